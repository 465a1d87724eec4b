"""Spiking networks: modules and the edges between them, trained in torch and written out as a NIR graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from eiexport import nodes
from eiexport.graph import stamp
from eiexport.ops import Ints
from eitrain.cells import Cell, connection_node
from eitrain.circuits import Circuit

INPUT = "input"
Sources = Mapping[str, tuple[str, ...]]
Connection = nn.Conv2d | nn.Linear


class Tape:
    """What a forward pass should keep, detached: inputs of some modules, outputs of others."""

    def __init__(self, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        nothing = torch.empty(0)
        self.inputs, self.outputs = dict.fromkeys(inputs, nothing), dict.fromkeys(outputs, nothing)


class SpikingNet(nn.Module):
    """Modules in topological order; edges into one module are summed; cells see time, all else is folded over it.

    sources: the modules (or "input") that feed each one; by default its predecessor. The last module is the output.

    forward: x (T, B, C, H, W), or (1, B, C, H, W) for a static image shown at every one of `steps` steps, whose
    first connection is then computed once. Returns the mean of the last module's output over time, (B, classes): a
    spike count over T for a cell, the mean current for a connection. `record` takes the outputs of the cells and of
    the last module. `tape`, where set, is filled by every pass, also inside a wrapper for several devices.
    """

    def __init__(self, modules: Mapping[str, nn.Module], shape: Ints, sources: Sources | None = None) -> None:
        super().__init__()
        previous = INPUT
        self.sources: dict[str, tuple[str, ...]] = {}
        for name, module in modules.items():
            self.add_module(name, module)
            self.sources[name] = (sources or {}).get(name, (previous,))
            previous = name
        self.shape, self.last = shape, previous
        self.tape: Tape | None = None
        self._after = {s: [n for n in self.sources if s in self.sources[n]] for s in (INPUT, *self.sources)}

    def forward(self, x: Tensor, steps: int | None = None, record: dict[str, Tensor] | None = None) -> Tensor:
        steps, tape = steps or len(x), self.tape or Tape((), ())
        values = {INPUT: x}
        for name, module in self.named_children():
            first, *rest = (values[s] for s in self.sources[name])
            y = sum(rest, first)
            if name in tape.inputs:
                tape.inputs[name] = y.detach()
            if isinstance(module, Cell):
                y = module.over_time(y if len(y) == steps else y.expand(steps, *y.shape[1:]))
            else:
                z = module(y.flatten(0, 1))
                y = z.view(len(y), -1, *z.shape[1:])
            if record is not None and self._recorded(name, module):
                record[name] = y
            if name in tape.outputs:
                tape.outputs[name] = y.detach()
            values[name] = y
            for source in self.sources[name]:  # what nobody reads any more need not stay in memory
                if self._after[source][-1] == name:
                    del values[source]
        return values[self.last].mean(0)

    def _recorded(self, name: str, module: nn.Module) -> bool:
        pools = isinstance(module, nn.MaxPool2d) and self.spikes_into(name)
        return isinstance(module, Cell) or name == self.last or pools

    def laid_out(self, device: torch.device) -> SpikingNet:
        """This network with its weights where a CPU's convolutions find them fastest: channels last.

        Only with BatchNorm, which likes that layout too; gated neurons do better without.
        """
        if device.type == "cpu" and any(isinstance(m, nn.BatchNorm2d) for m in self.children()):
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    @property
    def cells(self) -> dict[str, Cell]:
        return {n: m for n, m in self.named_children() if isinstance(m, Cell)}

    @property
    def connections(self) -> dict[str, Connection]:
        return {n: m for n, m in self.named_children() if isinstance(m, Connection)}

    @property
    def circuits(self) -> dict[str, Circuit]:
        return {n: m for n, m in self.named_children() if isinstance(m, Circuit)}

    def deploy(self, form: str) -> None:
        """Circuits take a form of the division that a chip has; see `Circuit.deploy`."""
        for circuit in self.circuits.values():
            circuit.deploy(form)

    def project(self) -> None:
        """Circuits back onto Dale's law; does nothing to other networks."""
        for circuit in self.circuits.values():
            circuit.project()

    @torch.no_grad()
    def initialise(self, x: Tensor, steps: int) -> list[str]:
        """E-I Init of every circuit, each from what the ones before it send; returns those whose input did not vary.

        x: a first batch as `forward` takes it.
        """
        flat: list[str] = []

        def first(name: str, circuit: Circuit, rows: Tensor) -> None:
            if not circuit.initialise(rows, max(1, steps * x.shape[1] // len(rows))):
                flat.append(name)

        with self.entering_circuits(first):
            self(x, steps)
        return flat

    @contextmanager
    def entering_circuits(self, note: Callable[[str, Circuit, Tensor], None]) -> Iterator[None]:
        """Within it, every pass calls note(name, circuit, rows) before a circuit takes its rows."""
        hooks = [
            c.register_forward_pre_hook(lambda c, args, n=n: note(n, c, args[0]))  # type: ignore[misc]
            for n, c in self.circuits.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def way_out(self, connection: str) -> tuple[str, ...]:
        """What stands behind a connection up to and with the cell it feeds; ends without one at the network's end."""
        names: list[str] = []
        at = connection
        while self._after[at]:
            (at,) = self._after[at]  # builders give every connection one way out
            names.append(at)
            if isinstance(self.get_submodule(at), Cell):
                break
        return tuple(names)

    def folded(self, connection: str, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) of a connection with the BatchNorm behind it, as it evaluates, or of a circuit that is one.

        Gradients flow to all of them.
        w' = w gamma / sqrt(var + eps), b' = beta + (b - mean) gamma / sqrt(var + eps), computed in `dtype`.
        """
        module: Any = self.get_submodule(connection)
        if isinstance(module, Circuit):
            return module.folded(dtype)
        weight, bias = (None if p is None else p.to(dtype or p.dtype) for p in (module.weight, module.bias))
        assert weight is not None
        if (norm := self._norm_of(connection)) is None:
            return weight, bias
        scale, shift = affine(norm, weight.dtype)
        return weight * scale.view(-1, 1, 1, 1), shift if bias is None else shift + bias * scale

    def _norm_of(self, connection: str) -> nn.BatchNorm2d | None:
        """The BatchNorm that folds into a connection: right behind it, or behind pools that it commutes with.

        Those are averages without padding (which would dilute its shift), and maxima where it turns no sign around.
        """
        rising = False
        for name in self.way_out(connection):
            module = self.get_submodule(name)
            if isinstance(module, nn.BatchNorm2d):
                return None if rising and bool((affine(module)[0] < 0).any()) else module
            if not isinstance(module, nn.MaxPool2d) and not (isinstance(module, nn.AvgPool2d) and module.padding == 0):
                break
            rising = rising or isinstance(module, nn.MaxPool2d)
        return None

    def spikes_into(self, name: str) -> bool:
        """True where a pool's input is one cell's unsigned spikes: then its maximum is a threshold on their sum."""
        (source,) = self.sources[name]
        cell = self.cells.get(source)
        return cell is not None and cell.p.balance is None

    def graph(self, **provenance: Any) -> nir.NIRGraph:
        """This network as a NIR graph, as it evaluates: BatchNorm folded in float64, dropout left out.

        The readout (mean over time) stays outside. A max pool on spikes becomes SumPool2d -> Threshold. A BatchNorm
        behind a max pool on currents that turns signs around cannot move before the pool; it becomes a channel-wise
        convolution behind it.
        """
        folded = [norm for n in self.connections if (norm := self._norm_of(n)) is not None]
        shapes, stands = {INPUT: self.shape}, {INPUT: INPUT}
        found: dict[str, Any] = {INPUT: nir.Input(np.array(self.shape))}
        edges: list[tuple[str, str]] = []
        for name, module in self.named_children():
            came = [stands[s] for s in self.sources[name]]
            shape = shapes[self.sources[name][0]]
            shapes[name], stands[name] = output_shape(module, shape), name
            if isinstance(module, nn.Dropout) or any(module is norm for norm in folded):
                (stands[name],) = came
                continue
            if isinstance(module, nn.MaxPool2d) and self.spikes_into(name):
                found[f"{name}_sum"] = nir.SumPool2d(*_window(module))
                edges += [(s, f"{name}_sum") for s in came]
                came, found[name] = [f"{name}_sum"], nir.Threshold(np.full(shapes[name], 0.5))
            else:
                found[name] = self._node(name, module, shape)
            edges += [(s, name) for s in came]
        found["output"] = nir.Output(np.array(shapes[self.last]))
        graph = nir.NIRGraph(found, [*edges, (stands[self.last], "output")], type_check=False)
        return stamp(graph, dt=1.0, integrator="euler", dtype="float32", **provenance)

    @torch.no_grad()
    def _node(self, name: str, module: nn.Module, shape: Ints) -> Any:
        """The NIR node of one module for an input shape."""
        if isinstance(module, Cell | Circuit):
            return module.node(shape)
        if isinstance(module, nn.AvgPool2d):
            return nir.AvgPool2d(*_window(module))
        if isinstance(module, nn.MaxPool2d):
            return nodes.EIMaxPool2d(*_window(module))
        if isinstance(module, nn.Flatten):
            return nir.Flatten({"input": np.array(shape)}, 0, -1)
        if isinstance(module, nn.BatchNorm2d):
            scale, shift = (a.cpu().numpy() for a in affine(module, torch.float64))
            one = (1, 1)
            return nir.Conv2d(shape[1:], scale.reshape(-1, 1, 1, 1), one, (0, 0), one, len(scale), shift)
        if self._norm_of(name) is None:
            return connection_node(module, shape)
        # in float64: the proof compares the folded graph with the network as it was trained
        return connection_node(module, shape, *self.folded(name, torch.float64))


def affine(norm: nn.BatchNorm2d, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """(scale, shift) of a BatchNorm in evaluation, computed in `dtype`: y = scale * x + shift a channel."""
    parts = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    gamma, beta, mean, var = (p.to(dtype or p.dtype) for p in parts)  # type: ignore[union-attr]
    scale = gamma / torch.sqrt(var + norm.eps)
    return scale, beta - mean * scale


def _window(module: nn.AvgPool2d | nn.MaxPool2d) -> tuple[np.ndarray, ...]:
    """Kernel, stride and padding of a square pool, as NIR's pairs."""
    return tuple(np.array([int(v)] * 2) for v in (module.kernel_size, module.stride, module.padding))  # type: ignore[arg-type]


def output_shape(module: nn.Module, shape: Ints) -> Ints:
    """Neuron shape behind a module."""
    if isinstance(module, Cell | nn.Dropout | nn.BatchNorm2d):
        return shape
    like = next(module.parameters(), torch.zeros(()))
    with torch.no_grad():
        return tuple(module(torch.zeros(1, *shape, dtype=like.dtype, device=like.device)).shape[1:])
