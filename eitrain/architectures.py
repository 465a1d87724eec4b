"""The published networks, built from modules and edges: BackEISNN's, EICIL's, BIRIL's and DeepEISNN's."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from eiexport.ops import Ints
from eitrain.cells import Cell
from eitrain.circuits import Circuit, Prop
from eitrain.errors import TrainError
from eitrain.nets import INPUT, SpikingNet, output_shape
from eitrain.point import PointConv2d

TOKEN = re.compile(r"(?P<maps>\d+)C(?P<kernel>\d+)|P(?P<pool>\d+)|(?P<units>\d+)")
IF: dict[str, Any] = {"decay": 1.0, "threshold": 1.0, "compare": "ge", "surrogate": "sigmoid"}
LIF: dict[str, Any] = {**IF, "decay": 0.5, "reset": "subtract", "detach_reset": True}  # DeepEISNN: V = 0.5 v + I


class _Builder:
    """Modules in order, named by kind and number; each is fed by its predecessor unless told otherwise."""

    def __init__(self, shape: Ints) -> None:
        self.entry = self.shape = shape
        self.modules, self.sources = OrderedDict[str, nn.Module](), dict[str, tuple[str, ...]]()
        self.at = INPUT

    def add(self, kind: str, module: nn.Module, *sources: str) -> str:
        name = f"{kind}{sum(n.rstrip('0123456789') == kind for n in self.modules) + 1}"
        self.modules[name], self.sources[name] = module, sources or (self.at,)
        self.shape, self.at = output_shape(module, self.shape), name
        return name

    def flatten(self) -> None:
        if len(self.shape) == 1:
            return
        self.modules["flatten"], self.sources["flatten"] = nn.Flatten(), (self.at,)
        self.shape, self.at = (math.prod(self.shape),), "flatten"

    def conv(self, maps: int, kernel: int = 3, stride: int = 1, padding: int | None = None, kind: str = "conv") -> str:
        """A convolution without bias, for a BatchNorm to follow; unless told otherwise it keeps the map."""
        pixels = kernel // 2 if padding is None else padding
        kind_of = PointConv2d if kernel == 1 and stride > 1 else nn.Conv2d
        module = kind_of(self.shape[0], maps, kernel, stride, pixels, bias=False)
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return self.add(kind, module)

    def norm(self, kind: str = "norm") -> str:
        return self.add(kind, nn.BatchNorm2d(self.shape[0]))

    def fire(self, *sources: str, **constants: Any) -> str:
        return self.add("neuron", Cell(**(constants or IF)), *sources)

    def head(self, hidden: tuple[int, ...], classes: int, spiking: bool) -> SpikingNet:
        """Global average, fully connected layers with neurons between them, and none behind the last unless asked."""
        self.add("pool", nn.AvgPool2d(self.shape[-1]))
        self.flatten()
        for units in hidden:
            self.add("linear", nn.Linear(self.shape[0], units))
            self.fire()
        self.add("linear", nn.Linear(self.shape[0], classes))
        if spiking:
            self.fire()
        return self.net()

    def net(self) -> SpikingNet:
        return SpikingNet(self.modules, self.entry, self.sources)


class _Token(NamedTuple):
    """One layer of a chain; what it is not, is 0."""

    maps: int
    kernel: int
    pool: int
    units: int
    last: bool


def _tokens(architecture: str, build: _Builder, padding: int) -> Iterator[_Token]:
    """The layers of a chain such as "15C5-P2-300-10", each checked against the shape that has been reached."""
    texts = architecture.split("-")
    for i, text in enumerate(texts):
        match, size, last = TOKEN.fullmatch(text), build.shape[-1], i == len(texts) - 1
        if match is None or any(int(v) < 1 for v in match.groups() if v):
            raise TrainError(f"architecture {architecture!r}: {text!r} is none of xCk, Pk, x (as in 15C5-P2-300-10)")
        maps, kernel, pool, units = (int(match[k] or 0) for k in ("maps", "kernel", "pool", "units"))
        token = _Token(maps, kernel, pool, units, last)
        if last and not token.units:
            raise TrainError(f"architecture {architecture!r}: must end with the number of classes, not {text!r}")
        if len(build.shape) == 1 and not token.units:
            raise TrainError(f"architecture {architecture!r}: {text!r} cannot follow a fully connected layer")
        if token.maps and padding >= token.kernel:
            raise TrainError(f"padding = {padding}: must be smaller than the kernel {token.kernel} of {text!r}")
        if size + 2 * padding * bool(token.maps) < max(token.kernel, token.pool):
            raise TrainError(f"architecture {architecture!r}: a map of {size} pixels is too small for {text!r}")
        yield token


def spiking_cnn(architecture: str, shape: Ints, *, padding: int = 0, spiking_head: bool = False) -> SpikingNet:
    """A plain chain in the neurons of EICIL and BIRIL: conv-BN-IF, average pools, linear-IF; no neuron at the end."""
    build = _Builder(shape)
    for token in _tokens(architecture, build, padding):
        if token.maps:
            build.conv(token.maps, token.kernel, padding=padding)
            build.norm()
            build.fire()
        elif token.pool:
            build.add("pool", nn.AvgPool2d(token.pool))
        else:
            build.flatten()
            build.add("linear", nn.Linear(build.shape[0], token.units))
            if spiking_head or not token.last:
                build.fire()
    return build.net()


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
    build = _Builder(shape)

    def gate(maps: int) -> nn.Module:
        return nn.Conv2d(maps, maps, gate_kernel, padding=gate_kernel // 2)

    constants: dict[str, Any] = {"decay": 0.2, "threshold": 0.5}
    for token in _tokens(architecture, build, padding):
        if token.maps:
            build.add("conv", nn.Conv2d(build.shape[0], token.maps, token.kernel, padding=padding))
            gates = {k: gate(token.maps) if on else None for k, on in (("feedback", sfbm), ("balance", beim))}
            build.add("neuron", Cell(**constants, **gates))
        elif token.pool:
            build.add("pool", nn.AvgPool2d(token.pool))
        else:
            build.flatten()
            build.add("linear", nn.Linear(build.shape[0], token.units))
            build.add("neuron", Cell(**constants))
        if dropout and not token.pool and not token.last:
            build.add("dropout", nn.Dropout(dropout))
    with torch.no_grad():
        for module in build.modules.values():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(init_gain)
    return build.net()


@dataclass(frozen=True)
class Stage:
    """Residual blocks of one width: the first has the stride."""

    maps: int
    blocks: int
    stride: int


EICIL_STAGES = (Stage(64, 2, 1), Stage(128, 2, 2), Stage(256, 2, 2), Stage(512, 2, 2))
BIRIL_STAGES = (Stage(128, 3, 1), Stage(256, 3, 2), Stage(512, 2, 2))
SMALL_STAGES = (Stage(64, 1, 2), Stage(128, 1, 2), Stage(256, 1, 2))  # ours, for two cores
VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # maps; 0: pool


def spiking_resnet(
    shape: Ints,
    classes: int,
    *,
    width: int = 64,
    stages: tuple[Stage, ...] = EICIL_STAGES,
    hidden: tuple[int, ...] = (),
    pool: str = "",
    spiking_head: bool = False,
) -> SpikingNet:
    """Spiking ResNet of integrate-and-fire neurons (EICIL, NeurIPS 2023; BIRIL's network with its stages and `hidden`).

    conv3x3-BN-IF, then blocks conv-BN-IF-conv-BN, plus the shortcut (identity, or conv1x1-BN) *before* the second IF;
    global average, fully connected. IF: V = v + I, fires at V >= 1, reset to 0; sigmoid surrogate, alpha 4.
    Convolutions have no bias, Kaiming-normal (fan out) weights. width: maps of the first convolution; stages and
    hidden are for 64 and scale with it. spiking_head: an IF behind the last layer too.
    pool: "" or EICIL's E-I Net, which pools with 3x3 windows behind the stem (stride 2, on spikes) and behind each
    convolution of a block (stride 1), before BatchNorm: "max" on currents, as published; "average" is the deployable
    variant, without padding (the convolutions have it instead), so that BatchNorm folds through it.
    """
    build = _Builder(shape)

    def scaled(maps: int) -> int:
        return max(1, maps * width // 64)

    def block_conv(maps: int, stride: int = 1) -> str:
        # an average takes a pixel off each side, which the convolution's padding gives back
        build.conv(maps, stride=stride, padding=stride + 1 if pool == "average" else 1)
        if pool:
            build.add("blockpool", nn.MaxPool2d(3, 1, 1) if pool == "max" else nn.AvgPool2d(3, 1))
        return build.norm()

    build.conv(scaled(64))
    build.norm()
    before = build.fire()
    if pool:
        before = build.add("stempool", nn.MaxPool2d(3, 2, 1))
    for stage in stages:
        for block in range(stage.blocks):
            stride = stage.stride if block == 0 else 1
            shortcut, entered = before, build.shape
            if stride > 1 or entered[0] != scaled(stage.maps):
                build.conv(scaled(stage.maps), 1, stride, kind="shortcut")
                shortcut = build.norm("shortcutnorm")
            left, build.shape, build.at = build.shape, entered, before
            block_conv(scaled(stage.maps), stride)
            build.fire()
            main = block_conv(scaled(stage.maps))
            assert left in (entered, build.shape)
            before = build.fire(main, shortcut)
    return build.head(tuple(map(scaled, hidden)), classes, spiking_head)


def spiking_vgg(shape: Ints, classes: int, *, width: int = 64, spiking_head: bool = False) -> SpikingNet:
    """Spiking VGG-11 (EICIL): conv3x3-BN-IF eight times, 2x2 max pools on spikes, global average, one linear layer.

    The paper leaves the classifier open; pools that would find a map of one pixel (as on 28x28 images) are left out.
    """
    build = _Builder(shape)
    for maps in VGG11:
        if maps:
            build.conv(max(1, maps * width // 64))
            build.norm()
            build.fire()
        elif build.shape[-1] > 1:
            build.add("pool", nn.MaxPool2d(2))
    return build.head((), classes, spiking_head)


_DEEP: dict[str, Callable[..., SpikingNet]] = {
    "resnet18": spiking_resnet,
    "resnet8": partial(spiking_resnet, stages=SMALL_STAGES),
    "biril": partial(spiking_resnet, stages=BIRIL_STAGES, hidden=(256,)),
    "biril8": partial(spiking_resnet, stages=SMALL_STAGES, hidden=(256,)),
    "einet": partial(spiking_resnet, pool="max"),
    "einet-average": partial(spiking_resnet, pool="average"),
    "vgg11": spiking_vgg,
}
DEEP = tuple(_DEEP)


def deep(architecture: str, shape: Ints, classes: int, *, width: int, spiking_head: bool) -> SpikingNet:
    """One of the networks of EICIL and BIRIL by name (`DEEP`), for square images of at least 8 pixels."""
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] < 8:
        raise TrainError(f"architecture {architecture!r} takes square maps of at least 8 pixels, the data has {shape}")
    return _DEEP[architecture](shape, classes, width=width, spiking_head=spiking_head)


_LAYERS = {  # maps of 3x3 circuits; 0: pool
    "vgg5": (64, 0, 128, 0, 256, 0),  # ours, for maps of 8 pixels
    "vgg8": (64, 0, 128, 0, 256, 0, 512, 0, 512, 0),
    "vgg11": VGG11,
    "vgg16": (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
    "vgg19": (64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, *[512] * 4, 0),
}
CIRCUITS = (*_LAYERS, "resnet18")


def ei_network(
    architecture: str,
    shape: Ints,
    classes: int,
    *,
    width: int = 64,
    batchnorm: bool = False,
    prop: Prop = Prop(),  # noqa: B008 - a frozen value
) -> SpikingNet:
    """DeepEISNN's networks of excitatory-inhibitory circuits (arXiv 2509.23253), without normalisation.

    vgg5 to vgg19: 3x3 circuit, LIF, 2x2 average pools (left out where a map has one pixel), one output circuit.
    resnet18: blocks circuit-LIF-circuit-LIF, the identity (or a 1x1 circuit and LIF) added *behind* the LIF, so whole
    numbers above 1 run between blocks; global average, output circuit. LIF: V = 0.5 v + I, fires at V >= 1, v = V - 1,
    reset not in the gradient; sigmoid surrogate, alpha 4. width: maps of the first layer, the others in proportion.
    batchnorm: the baseline, convolution and BatchNorm in each circuit's place, a linear layer at the end.
    """
    build = _Builder(shape)

    def scaled(maps: int) -> int:
        return max(1, maps * width // 64)

    def layer(maps: int, sources: tuple[str, ...] = (), stride: int = 1, kernel: int = 3, kind: str = "circuit") -> str:
        if batchnorm:
            convolution = PointConv2d if kernel == 1 and stride > 1 else nn.Conv2d
            module = convolution(build.shape[0], scaled(maps), kernel, stride, kernel // 2, bias=False)
            build.add(kind.replace("circuit", "conv"), module, *sources)
            build.norm()
        else:
            circuit = Circuit(build.shape[0], scaled(maps), kernel=kernel, stride=stride, prop=prop)
            build.add(kind, circuit, *sources)
        return build.fire(**LIF)

    before: tuple[str, ...] = ()
    if architecture != "resnet18":
        for maps in _LAYERS[architecture]:
            if maps:
                layer(maps)
            elif build.shape[-1] > 1:
                build.add("pool", nn.AvgPool2d(2))
    else:
        before = (layer(64),)
        for stage in EICIL_STAGES:
            for block in range(stage.blocks):
                stride = stage.stride if block == 0 else 1
                entered, came = build.shape, before
                if stride > 1 or entered[0] != scaled(stage.maps):
                    before = (layer(stage.maps, came, stride, 1, "shortcut"),)
                    build.shape = entered
                layer(stage.maps, came, stride)
                before = (*before, layer(stage.maps))
        build.add("pool", nn.AvgPool2d(build.shape[-1]), *before)
    build.flatten()
    if batchnorm:
        build.add("linear", nn.Linear(build.shape[0], classes))
    else:
        build.add("readout", Circuit(build.shape[0], classes, readout=True, prop=prop))
    return build.net()


def classes_of(architecture: str) -> int | None:
    """The number of classes that a chain of tokens ends with; None for networks that fit any number."""
    end = architecture.split("-")[-1]
    return int(end) if architecture not in DEEP and end.isdigit() else None
