"""Networks: a chain of connections, spiking cells and pools, trained in torch and written out as a NIR graph."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from eiexport.graph import stamp
from eiexport.ops import Ints
from eitrain.cells import Cell, connection_node
from eitrain.errors import TrainError

TOKEN = re.compile(r"(?P<maps>\d+)C(?P<kernel>\d+)|P(?P<pool>\d+)|(?P<units>\d+)")


class SpikingNet(nn.Sequential):
    """Modules in order; cells see time, everything else is folded over (time x batch).

    forward: x (T, B, C, H, W), or (1, B, C, H, W) for a static image shown at every one of `steps` steps, whose
    first connection is then computed once. Returns the mean of the last cell's spikes over time, (B, classes), so
    scores are multiples of 1 / T.
    """

    def __init__(self, modules: OrderedDict[str, nn.Module], shape: Ints) -> None:
        super().__init__(modules)
        self.shape = shape

    def forward(self, x: Tensor, steps: int | None = None, record: dict[str, Tensor] | None = None) -> Tensor:
        steps = steps or len(x)
        for name, module in self.named_children():
            if isinstance(module, Cell):
                x = module.over_time(x if len(x) == steps else x.expand(steps, *x.shape[1:]))
                if record is not None:
                    record[name] = x
            else:
                y = module(x.flatten(0, 1))
                x = y.view(len(x), -1, *y.shape[1:])
        return x.mean(0)

    @property
    def cells(self) -> dict[str, Cell]:
        return {n: m for n, m in self.named_children() if isinstance(m, Cell)}

    def graph(self, **provenance: Any) -> nir.NIRGraph:
        """This network as a NIR graph; dropout is identity, the readout (mean over time) stays outside."""
        shape, previous = self.shape, "input"
        found: dict[str, Any] = {"input": nir.Input(np.array(shape))}
        edges = []
        for name, module in self.named_children():
            if isinstance(module, nn.Dropout):
                continue
            found[name], shape = _node(module, shape)
            edges.append((previous, name))
            previous = name
        found["output"] = nir.Output(np.array(shape))
        graph = nir.NIRGraph(found, [*edges, (previous, "output")], type_check=False)
        return stamp(graph, dt=1.0, integrator="euler", dtype="float32", **provenance)


def _node(module: nn.Module, shape: Ints) -> tuple[Any, Ints]:
    """(NIR node, output shape) of one module for an input shape."""
    if isinstance(module, Cell):
        return module.node(shape), shape
    if isinstance(module, nn.AvgPool2d):
        k = int(module.kernel_size)  # type: ignore[arg-type]
        pair = np.array([k, k])
        return nir.AvgPool2d(pair, pair, np.array([0, 0])), (shape[0], shape[1] // k, shape[2] // k)
    if isinstance(module, nn.Flatten):
        return nir.Flatten({"input": np.array(shape)}, 0, -1), (math.prod(shape),)
    weight = next(module.parameters())
    out = tuple(module(torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device)).shape[1:])
    return connection_node(module, shape), out


def backeisnn(
    architecture: str,
    shape: Ints,
    *,
    padding: int = 0,
    sfbm: bool = True,
    beim: bool = True,
    gate_kernel: int = 3,
    dropout: float = 0.0,
    init_gain: float = 1.0,
) -> SpikingNet:
    """BackEISNN (Zhao, Zeng, Li 2021, sections 3 and 4): convolutions with gated cells, then plain fully connected.

    architecture: e.g. "15C5-P2-40C5-P2-300-10"; xCk = conv with x maps and kernel k, P2 = 2x2 average pool, a number =
    fully connected. Cells sit before the pools: decay .2, threshold .5, strict >, hard reset, rectangular surrogate.
    sfbm, beim: the four ablations. gate_kernel: odd, stride 1, padded to keep the map. init_gain multiplies the
    initial conv and linear weights (not the gates): with PyTorch's default (1) gated networks start silent.
    """
    if gate_kernel % 2 == 0:
        raise TrainError(f"gate_kernel = {gate_kernel}: a gate keeps its map, so its kernel must be odd")
    entry, modules = shape, OrderedDict[str, nn.Module]()
    counts = dict.fromkeys(("conv", "pool", "linear", "neuron", "dropout"), 0)

    def add(kind: str, module: nn.Module) -> None:
        counts[kind] += 1
        modules[f"{kind}{counts[kind]}"] = module

    def gate(maps: int) -> nn.Module:
        return nn.Conv2d(maps, maps, gate_kernel, padding=gate_kernel // 2)

    constants: dict[str, Any] = {"decay": 0.2, "threshold": 0.5}
    tokens = architecture.split("-")
    for i, text in enumerate(tokens):
        match, size, last = TOKEN.fullmatch(text), shape[-1], i == len(tokens) - 1
        if match is None or any(int(v) < 1 for v in match.groups() if v):
            raise TrainError(f"architecture {architecture!r}: {text!r} is none of xCk, Pk, x (as in 15C5-P2-300-10)")
        if last and not match["units"]:
            raise TrainError(f"architecture {architecture!r}: must end with the number of classes, not {text!r}")
        if len(shape) == 1 and not match["units"]:
            raise TrainError(f"architecture {architecture!r}: {text!r} cannot follow a fully connected layer")
        if maps := match["maps"]:
            kernel = int(match["kernel"])
            if padding >= kernel:
                raise TrainError(f"padding = {padding}: must be smaller than the kernel {kernel} of {text!r}")
            add("conv", nn.Conv2d(shape[0], int(maps), kernel, padding=padding))
            shape = (int(maps), *(n + 2 * padding - kernel + 1 for n in shape[1:]))
            gates = {k: gate(int(maps)) if on else None for k, on in (("feedback", sfbm), ("balance", beim))}
            add("neuron", Cell(**constants, **gates))
            if dropout:
                add("dropout", nn.Dropout(dropout))
        elif pool := match["pool"]:
            add("pool", nn.AvgPool2d(int(pool)))
            shape = (shape[0], *(n // int(pool) for n in shape[1:]))
        else:
            if len(shape) > 1:
                modules["flatten"] = nn.Flatten()
                shape = (math.prod(shape),)
            add("linear", nn.Linear(shape[0], int(text)))
            shape = (int(text),)
            add("neuron", Cell(**constants))
            if dropout and not last:
                add("dropout", nn.Dropout(dropout))
        if min(shape) < 1:
            raise TrainError(f"architecture {architecture!r}: a map of {size} pixels is too small for {text!r}")
    with torch.no_grad():
        for module in modules.values():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(init_gain)
    return SpikingNet(modules, entry)
