"""lava-dl's network exchange files (`.net`, HDF5): written here, proven by lava-dl's own reader `lava.lib.dl.netx`.

A file is a row of layers, each one connection and its CUBA neurons. Per layer `type`, `shape`, `weight`, `bias`,
`neuron/{type, iDecay, vDecay, vThMant}`; convolutions also `stride`, `padding`, `dilation`, `groups`. Shapes are
(C, H, W), kernels (O, I / groups, H, W); iDecay = du + 1; biases have the exponent 6. Everything else the reader
derives, and what it derives wrongly is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import h5py
import nir
import numpy as np

from eiexport.connections import Flatten
from eiexport.errors import GraphError
from eiexport.files import writing
from eiexport.graph import Network
from eiexport.integers import ALIGN, IntConvStep, IntDenseStep, IntFire, IntLinear
from eiexport.netlayers import GEOMETRY, LEAST, MOST, held, words_of
from eiexport.neurons import Delay
from eiexport.ops import Ints
from eiexport.trace import Trace
from targets.base import Claim, Program, Unsupported
from targets.lava import FIXED, Lava, LavaProgram, env
from targets.lava.fixed import MANTISSA, number
from targets.lava.jobs import Engine
from targets.lava.plan import STOCK, Plan, plan

NETX = f"{FIXED}, through netx"
POOL = "netx has no pooling, and each of its layers ends in neurons; use a convolution with a stride"
REASONS = {
    "SumPool2d": POOL,
    "AvgPool2d": POOL,
    "IntGatedLIF": "netx has CUBA neurons, without gates",
    "IntCircuit": "netx has CUBA neurons, and no circuits before them",
    "Threshold": "netx has CUBA neurons; write it as an IntCubaLIF without memory (du 4095, dv 4096)",
}


@dataclass(frozen=True)
class Layer:
    """A layer of the file: a connection and its neurons. flatten: what enters is a map."""

    neuron: str
    kind: str  # "dense" | "dense_rec" | "conv"
    flatten: bool
    message_bits: int
    data: dict[str, np.ndarray]  # its datasets
    cell: dict[str, int]  # those of its neurons


@dataclass(frozen=True)
class Link:
    """The nodes of a layer."""

    connection: str
    neuron: str
    loop: str  # the recurrent IntDense, or ""
    flatten: bool


class LavaDL(Lava):
    """lava-dl 0.6.0: the network as a `.net` file, loaded by the real netx and run on Lava in fixed point."""

    name = "lava-dl"
    setup = "set up on first use, Lava and 70 MB more (needs a package index); EITRAIN_LAVA_ENV names another place"
    claims: ClassVar[dict[str, Claim]] = {
        **dict.fromkeys(("IntDense", "IntConv", "IntCubaLIF"), Claim("exact", NETX)),
        **dict.fromkeys(("Flatten", "Delay"), Claim("exact after lowering", NETX)),
        **dict.fromkeys(("Input", "Output"), Claim("exact")),
    }

    @property
    def version(self) -> str:
        return "lava-dl 0.6.0 on lava-nc 0.10.0"

    def compile(self, network: Network) -> Program:
        program = LavaProgram(self.engine, network, self._plan(network))
        return Apart(self, program) if network.cycles else program

    def run_many(self, pairs: Sequence[tuple[Network, np.ndarray]], probe: bool = False) -> list[Trace]:
        """Run small networks together; of one with a loop, each sample in a network of its own.

        netx resets neurons, and a loop still brings what the last step of the sample before has sent.
        """
        parts = [[(n, x[k : k + 1]) for k in range(len(x))] if n.cycles else [(n, x)] for n, x in pairs]
        found = iter(super().run_many([pair for part in parts for pair in part], probe))
        return [_joined([next(found) for _ in part]) for part in parts]

    def emit(self, network: Network, out: Path) -> None:
        """Write the network file."""
        write(network, out / "model.net")

    def _decide(self, network: Network) -> Plan:
        return decided(network)[0]


class Apart(Program):
    """A network with a loop, its samples apart."""

    def __init__(self, target: LavaDL, program: LavaProgram) -> None:
        self.network, self.latency, self._target = program.network, program.latency, target

    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        return self._target.run_many([(self.network, x)], probe)[0]


def _joined(parts: list[Trace]) -> Trace:
    """The samples of several traces of one network."""
    first = parts[0]

    def join(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {n: np.concatenate([r[n] for r in rows]) for n in rows[0]}

    states = {kind: join([p.states[kind] for p in parts]) for kind in first.states}
    return Trace(join([p.z for p in parts]), first.dt, first.latency, states)


def write(network: Network, path: str | Path) -> None:
    """Write the file, whole or not at all; raises Unsupported for what netx lacks or would change.

    Attributes: input_message_bits, which a user has to give netx's Network, and latency, the engine steps after
    which the last layer's output appears. With reset_interval = T and reset_offset = 1 every sample of T steps starts
    from zero, but for a loop: it brings what the sample before has sent last, so give such a network one sample.
    """
    found = decided(network)[1]
    with writing(Path(path)) as sink, h5py.File(sink, "w") as file:
        about = {"input_message_bits": found[0].message_bits, "latency": len(found), "written_by": "eiexport"}
        file.attrs.update(about)
        entries: list[tuple[str, dict[str, np.ndarray], dict[str, int]]] = []
        entries.append(("input", {"shape": np.array(network.shapes[network.input])}, {}))
        for layer in found:
            entries += [("flatten", {}, {})] if layer.flatten else []
            entries.append((layer.kind, layer.data, layer.cell))
        for i, (kind, data, cell) in enumerate(entries):
            group = file.create_group(f"layer/{i}")
            group["type"] = np.array([kind.encode()], "S10")
            for name, values in data.items():
                group[name] = values
            if cell:
                group["neuron/type"] = np.array([b"CUBA"], "S10")
                for name, value in cell.items():
                    group[f"neuron/{name}"] = np.int64(value)


LavaDL.engine = Engine("targets.lava.netx", lambda: [env.deep()], write)


def decided(network: Network) -> tuple[Plan, list[Layer]]:
    """The plan on Lava, which tells latencies and biases, and the layers; raises Unsupported."""
    if not network.integer:
        raise Unsupported("target 'lava-dl' writes integer networks; export this one with --quantize")
    for name, node in network.graph.nodes.items():
        kind = type(node).__name__
        if kind not in LavaDL.claims:
            _refuse(network, name, REASONS.get(kind, "netx knows dense and convolution layers of CUBA neurons"))
    for i, link in enumerate(links(network)):
        _check_connection(network, link, first=i == 0)
        _check_neuron(network, link)
    planned = plan(network)
    return planned, [_layer(network, planned, link) for link in links(network)]


def _refuse(network: Network, name: str, why: str) -> NoReturn:
    kind = type(network.graph.nodes[name]).__name__
    raise Unsupported(f"target 'lava-dl' cannot write node {name!r} ({kind}): {why}")


# --- the row of layers


def links(network: Network) -> list[Link]:
    """The network as a row: input, then connection and neuron in turn, a Flatten before a connection."""
    loops = _loops(network)
    inside = {n for c in network.order if c[0] in network.cycles for n in c if n not in loops}
    found: list[Link] = []
    at, flatten, connection = network.input, False, ""
    while True:
        readers = sorted(n for n, came in network.sources.items() if at in came and n not in inside)
        if len(readers) > 1:
            _refuse(network, at, f"it feeds {_told(readers)}, and netx has its layers in one row, the last as output")
        following = readers[0] if readers else ""
        if not following or isinstance(network.graph.nodes[following], nir.Output):
            if not found or at != found[-1].neuron:
                _refuse(network, at, "it is the last, and each layer of netx ends in neurons; add an IntCubaLIF")
            return found
        came = [s for s in network.sources[following] if s not in inside]
        if len(came) > 1:
            _refuse(network, following, f"it gets {_told(came)}, and a layer of netx has one connection")
        step, at = network.steps[following], following
        if isinstance(step, Flatten) and not connection and len(network.shapes[at]) == 1:
            flatten = len(network.input_shape(at)) > 1
        elif isinstance(step, IntLinear) and not connection:
            connection = at
        elif isinstance(step, IntFire) and connection:
            found.append(Link(connection, at, loops.get(at, ""), flatten))
            flatten, connection = False, ""
        else:
            _refuse(
                network, at, f"it stands behind {came[0]!r}; netx has a Flatten of all axes, a connection, a neuron"
            )


def _loops(network: Network) -> dict[str, str]:
    """The recurrent IntDense of each neuron that has one."""
    loops = {}
    for component in (c for c in network.order if c[0] in network.cycles):
        roles = {type(network.graph.nodes[n]).__name__: n for n in component}
        if len(component) != 3 or set(roles) != {"Delay", "IntCubaLIF", "IntDense"}:
            only = "netx has one loop: a neuron, a Delay of one step, an IntDense, the same neuron"
            _refuse(network, component[0], f"it lies in the cycle {_told(component)}; {only}")
        delay, neuron, dense = (roles[k] for k in ("Delay", "IntCubaLIF", "IntDense"))
        held = network.steps[delay]
        assert isinstance(held, Delay)
        if (held.shortest, held.longest) != (1, 1):
            _refuse(network, delay, f"it takes up to {held.longest} steps, and the loop of netx takes one")
        for name in (delay, dense):
            if len(network.sources[name]) > 1:
                _refuse(network, name, f"it gets {_told(network.sources[name])}; netx feeds its neurons back alone")
        if network.sources[delay] == (dense,) and np.any(network.graph.nodes[dense].bias):
            _refuse(
                network, dense, "its bias comes one step late, and in netx from the start; move the Delay before it"
            )
        loops[neuron] = dense
    for name, step in network.steps.items():
        if isinstance(step, Delay) and name not in network.cycles:
            _refuse(network, name, "netx delays single synapses and ignores delays of convolutions; remove it")
    return loops


def _told(names: Any) -> str:
    return ", ".join(repr(n) for n in names)


# --- what netx and Lava change


def _check_connection(network: Network, link: Link, first: bool) -> None:
    for name in filter(None, (link.connection, link.loop)):
        step, node = network.steps[name], network.graph.nodes[name]
        assert isinstance(step, IntLinear)
        if step.shift:
            derived = "netx derives exponents from whole weights"
            _refuse(network, name, f"weight_exp = {number(node.weight_exp)} does not divide its weights; {derived}")
        a = network.arriving(name)
        if not first and a.kind != "binary":
            _refuse(network, name, f"it gets {a}, and only the first layer of netx takes more than spikes")
        if isinstance(step, IntDenseStep) and len(network.input_shape(name)) > 1:
            _refuse(network, name, f"it gets shape {network.input_shape(name)}; put a Flatten before it")
        if isinstance(step, IntConvStep):
            window = step.window
            if len(window.stride) != 2:
                _refuse(network, name, "netx has convolutions over two axes; give it a height of 1")
            numbers = (*window.stride, *window.padding, *window.dilation, window.groups, *step.weight.shape[2:])
            if max(numbers) > GEOMETRY:
                _refuse(network, name, f"its geometry holds {max(numbers)}, and Lava's Conv at most {GEOMETRY}")


def _check_neuron(network: Network, link: Link) -> None:
    name, step = link.neuron, network.steps[link.neuron]
    assert isinstance(step, IntFire)
    if step.compare != "gt":
        _refuse(network, name, f'compare = "{step.compare}", and netx\'s neurons fire above their threshold ("gt")')
    if step.reset_mode != "zero":
        _refuse(network, name, f'reset = "{step.reset_mode}", and netx\'s neurons have "zero"')
    if step.lower is not None:
        _refuse(network, name, "netx's neurons have one threshold, and this one has a lower")
    for field, values in (("vth", step.threshold), ("du", step.keep_u), ("dv", step.keep_v)):
        if values is not None and values.ndim:
            _refuse(network, name, f"{field} differs between its neurons, and a layer of netx has one number")
    for connection in filter(None, (link.connection, link.loop)):
        if step.keep_u is not None and np.any(network.graph.nodes[connection].bias):
            why = f"its bias goes into the synaptic current of {name!r}, and netx adds biases to the membrane"
            _refuse(network, connection, f"{why}; give the neuron a bias_mant")


def _layer(network: Network, planned: Plan, link: Link) -> Layer:
    name, step = link.neuron, network.steps[link.connection]
    assert isinstance(step, IntLinear)
    if planned.process[name] != STOCK:
        _refuse(network, name, "its bias or its input leaves the 16 and 24 bits that Lava's neurons have for them")
    lif, shape = planned.lif[name], network.shapes[name]
    cell = {"iDecay": lif["du"] + 1, "vDecay": lif["dv"], "vThMant": lif["vth"], "refDelay": 1}
    data: dict[str, np.ndarray] = {"shape": np.array(shape), "weight": step.weight.astype(np.int32)}
    kind = "conv"
    if isinstance(step, IntConvStep):
        window = step.window
        data |= {k: np.array(getattr(window, k)) for k in ("stride", "padding", "dilation", "groups")}
    else:
        kind = "dense_rec" if link.loop else "dense"
        parts = [data["weight"]]
        if link.loop:
            data["weight_rec"] = _weights(network, link.loop).astype(np.int32)
            parts.append(data["weight_rec"])
        if why := corrupted(parts):
            _refuse(network, link.connection, why)
    if link.loop and kind == "conv":
        _refuse(network, link.loop, "netx has loops in dense layers only")
    bias = np.floor(np.ldexp(lif["bias_mant"].astype(float), lif["bias_exp"]))
    if bias.any():
        data["bias"] = _bias(network, name, bias, shape)
    return Layer(name, kind, link.flatten, step.message_bits, data, cell)


def _weights(network: Network, name: str) -> np.ndarray:
    step = network.steps[name]
    assert isinstance(step, IntLinear)
    return step.weight


def _bias(network: Network, name: str, bias: np.ndarray, shape: Ints) -> np.ndarray:
    """Mantissas for the exponent 6; one a channel, or in netx's order (W, H, C) one a neuron."""
    mant = bias / (1 << ALIGN)
    if (mant != np.rint(mant)).any():
        worst = bias[mant != np.rint(mant)].flat[0]
        _refuse(network, name, f"its bias is {worst:g}, and netx has the exponent 6: use multiples of {1 << ALIGN}")
    if np.abs(mant).max() > MANTISSA:
        _refuse(network, name, f"its bias is {np.abs(mant).max():g} << 6, and Lava's mantissas end at {MANTISSA}")
    mant = mant.astype(np.int32)
    if len(shape) == 3:
        channels = mant[:, 0, 0]
        return channels if (mant == channels[:, None, None]).all() else mant.transpose(2, 1, 0)
    return mant


def corrupted(parts: list[np.ndarray]) -> str:
    """Why netx and Lava would compute with other weights than these, or "".

    parts: a layer's weights (outputs, inputs), and those of its loop. netx takes one exponent and one width for all,
    which leave the synapse word no low bits unused; Lava then tells the sign mode of each part by itself.
    """
    whole = np.hstack(parts)
    lo, hi = int(whole.min()), int(whole.max())
    if (lo < 0 < hi and (lo < LEAST or hi > MOST)) or hi > 255:
        return f"its weights reach from {lo} to {hi}; netx holds {LEAST} to {MOST}, or 0 to 255 without negative ones"
    try:
        words = words_of(whole)
        kept = [held(part, words) for part in parts]
    except GraphError as e:
        return str(e)
    for part, words_held in zip(parts, kept, strict=True):
        if (wrong := words_held != part * 2**words.left).any():
            weight, got = int(part[wrong][0]), words_held[wrong][0] / 2**words.left + 0.0
            return (
                f"netx would turn its weight {weight} into {got:g}: it shifts weights until one is -256, which Lava "
                f"cuts to -255 where none is positive; change {int(part.min())} by one"
            )
    return ""
