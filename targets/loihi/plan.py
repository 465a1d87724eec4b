"""What a network becomes on the chip, before any core is chosen: populations, synapse groups, paths, latencies.

A population is what cores hold: the injected input, neurons, and readouts (sums that the host reads). Between two
populations stands one hop: pools and delays are part of the way a message takes (`Path`), and one connection's words
lie at the receiving core (`Group`). Messages are what the source sends; a pool adds nothing but addresses, so its sum
is formed where the connection's own sum is, before the shift, which is exact.

A circuit and what stands behind it are one population, whose neurons are programmed to form its current from three
sums, and one of inhibitory cells, which are a hop further to the front: the input reaches both, and waits a step at
the former. Each inhibitory cell sends s and, where the circuit divides, (g_I s) >> gain_shift: two graded messages over
the same axons and words of W_EI, told apart by a bit of their payload (assumed).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eiexport.alphabet import Alphabet
from eiexport.circuits import DIVIDING, RECIPROCAL_BITS, IntCircuitStep
from eiexport.connections import Flatten, Pool
from eiexport.errors import GraphError
from eiexport.graph import Network
from eiexport.integers import IntFire, IntGatedFire, IntLinear, grid_limits, grid_step
from eiexport.neurons import Delay
from eiexport.ops import Ints
from eiexport.passes import latencies
from eiexport.quantise import message_bits
from targets.loihi import limits
from targets.loihi.kernel import Kernel, Table, identity_kernel, kernel_of, table_of
from targets.loihi.limits import Chip

ROLES = ("input", "feedback", "balance", "spread")
FIRING = ("neuron", "gated", "circuit")  # kinds of population whose neurons fire
LIF_FIELDS = ("vth", "du", "dv", "bias_mant", "bias_exp", "lower")
CIRCUIT_FIELDS = ("gain_i", "gain_e", "current")  # current: what a circuit adds last


@dataclass(frozen=True)
class Population:
    """Neurons that share a node. latency in engine steps.

    kind: "input" | "neuron" | "gated" | "circuit" (neurons with a circuit in front) | "inhibitory" (its cells) |
    "readout" (of a circuit too).
    """

    name: str
    kind: str
    shape: Ints
    latency: int
    message_bits: int  # payload of what it sends; 0: a spike
    custom: str = ""  # why it needs a programmed neuron
    circuit: str = ""  # node of the circuit that it computes, or a part of it

    @property
    def neurons(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Group:
    """One accumulator of each neuron of a population: the words of a connection, shifted after their sum.

    pooled: unit of the connection -> neuron, where a pool stands behind the connection; else unit = neuron.
    constant: what is added after the shift, one number a neuron, or one for all. ports: accumulators that share the
    words; a message says which one it is for.
    """

    sink: str
    role: str  # one of ROLES
    name: str  # of the connection; "" where messages are summed without one
    kernel: Kernel
    constant: np.ndarray
    pooled: Table | None = None
    after: Ints = ()  # kernel, stride, padding of that pool
    ports: int = 1

    def constant_words(self, neurons: np.ndarray) -> int:
        """Synapse words of the axon that brings the constants: one for each started 8 bits of a number."""
        alike = self.constant.ndim == 0
        own = np.abs(np.broadcast_to(self.constant, len(neurons)) if alike else self.constant[neurons])
        return int(sum((own >= 1 << shift).sum() for shift in (0, 8, 16)))


@dataclass(frozen=True, eq=False)
class Path:
    """How messages of a population reach a group: table of source neuron -> line, steps of delay."""

    source: str
    group: int
    table: Table
    lag: int  # engine steps from sending to use, beyond the table's own delay

    @property
    def longest(self) -> int:
        """Steps that the last message waits beyond its hop."""
        return self.lag + int(self.table.delay.max(initial=0)) - 1


@dataclass(frozen=True, eq=False)
class Plan:
    """All decisions but the cores. Groups and paths are told by their place in the tuple."""

    network: Network
    chip: Chip
    populations: tuple[Population, ...]
    groups: tuple[Group, ...]
    paths: tuple[Path, ...]

    def population(self, name: str) -> Population:
        return next(p for p in self.populations if p.name == name)

    def index(self, name: str) -> int:
        return next(i for i, p in enumerate(self.populations) if p.name == name)

    def groups_of(self, name: str) -> tuple[int, ...]:
        """Groups of a population, its input first, then the gates."""
        found = [i for i, g in enumerate(self.groups) if g.sink == name]
        return tuple(sorted(found, key=lambda i: ROLES.index(self.groups[i].role)))

    def message_bits(self, path: int) -> int:
        """Payload of the messages of a path: a spike's, or a membrane's."""
        source = self.paths[path].source
        if self.groups[self.paths[path].group].role == "balance":
            return int(self.network.steps[source].balance_bits)  # type: ignore[attr-defined]
        return self.population(source).message_bits

    @property
    def cored(self) -> tuple[Population, ...]:
        """Populations that live on cores."""
        return tuple(p for p in self.populations if p.kind != "input")

    @property
    def synapses(self) -> int:
        """Words when nothing is shared, zeros and borders counted in."""
        return sum(self.population(g.sink).neurons * self.fan_in(g) for g in self.groups)

    @property
    def operations(self) -> int:
        """Synaptic operations of a step in which every source sends all it can."""
        return sum(self.population(g.sink).neurons * self.fan_in(g) * g.ports for g in self.groups)

    def circuit(self, population: Population) -> IntCircuitStep | None:
        """What a population computes of a circuit."""
        step = self.network.steps.get(population.circuit)
        return step if isinstance(step, IntCircuitStep) else None

    def table_bits(self, population: Population) -> int:
        """Bits of the table of reciprocals that its neurons look up."""
        step = self.circuit(population)
        if population.kind == "inhibitory" or step is None or step.table is None:
            return 0
        return step.table.size * RECIPROCAL_BITS

    def fan_in(self, group: Group) -> int:
        """Words of one neuron."""
        return group.kernel.fan_in * (1 if group.pooled is None else group.pooled.most)


def plan(network: Network, chip: Chip) -> Plan:
    """Decide; raises Unsupported by the first rule that the network breaks."""
    readouts = [n for n in network.recorded if not network.steps[n].neuron]
    for name, node in network.graph.nodes.items():
        if type(node).__name__ == "IntCircuit":
            limits.circuit_nodes(chip, name)
    for name in readouts:
        limits.readout_fits(chip, name)
    verify_parameters(network, chip)
    latency = _latencies(network, chip)
    latency |= {cells_of(n): latency[n] for n in network.steps if _is_circuit(network, n)}
    latency |= {n: latency[n] + 1 for n in readouts}
    names = [n for component in network.order for n in component]
    found = [n for n in names if n == network.input or network.steps[n].neuron or n in readouts]
    groups: list[Group] = []
    paths: list[Path] = []
    populations: list[Population] = []
    for name in found:
        if circuit := circuit_of(network, name):
            _circuit(network, chip, name, circuit, latency, groups, paths)
        elif name != network.input:
            _incoming(network, chip, name, latency, groups, paths)
    for name in found:
        if circuit := circuit_of(network, name):
            populations.append(_inhibitory(network, chip, circuit, latency))
        populations.append(_population(network, chip, name, latency[name], name in readouts, groups, paths))
    for path in paths:
        limits.delay_fits(chip, groups[path.group].sink, path.longest, path.source)
    return Plan(network, chip, tuple(populations), tuple(groups), tuple(paths))


def _latencies(network: Network, chip: Chip) -> dict[str, int]:
    """Engine steps by which each node runs behind: a message takes one, so every population adds one."""
    try:
        return latencies(network, lambda n: int(network.steps[n].neuron or _is_circuit(network, n)))
    except GraphError as e:
        told = str(e)
    raise limits.one_hop_a_connection(chip, told)


def _population(
    network: Network,
    chip: Chip,
    name: str,
    latency: int,
    readout: bool,
    groups: list[Group],
    paths: list[Path],
) -> Population:
    step = network.steps[name]
    gated, circuit = isinstance(step, IntGatedFire), circuit_of(network, name)
    fires = "gated" if gated else "circuit" if circuit else "neuron"
    kind = "input" if name == network.input else "readout" if readout else fires
    alphabet = network.alphabets[name]
    if kind == "readout":
        bits = 0
    elif alphabet.kind != "real":
        bits = payload(alphabet)
    else:  # not told: what the connections declare bounds it
        bits = max([groups[p.group].kernel.message_bits for p in paths if p.source == name], default=0)
    if any(p.source == name and groups[p.group].role != "balance" for p in paths):
        limits.message_bits_fit(chip, name, bits, alphabet)
    custom = _custom(network.graph.nodes[name], kind)
    if circuit:
        custom = ", ".join(filter(None, [f"circuit {network.graph.nodes[circuit].form}", custom]))
    return Population(name, kind, network.shapes[name], latency, bits, custom, circuit)


def _inhibitory(network: Network, chip: Chip, circuit: str, latency: dict[str, int]) -> Population:
    """The inhibitory cells of a circuit; where it divides, a bit of each message says which sum it is for."""
    step, name = network.steps[circuit], cells_of(circuit)
    assert isinstance(step, IntCircuitStep)
    bits = step.spread.message_bits + (step.form in DIVIDING)
    limits.message_bits_fit(chip, circuit, bits, "currents of its inhibitory cells")
    shape = step.inhibit.output_shape(network.input_shape(circuit))
    return Population(name, "inhibitory", shape, latency[name], bits, "rectified sums", circuit)


def payload(alphabet: Alphabet) -> int:
    """Bits that a message carries beside its address: none where it says no more than "one spike"."""
    return 0 if alphabet.kind == "binary" else message_bits(alphabet)


def _custom(node: Any, kind: str) -> str:
    """What Loihi 1's fixed neuron, and Lava's stock LIF, do not do."""
    if kind == "input":
        return ""
    if kind == "readout":
        return "sums without a neuron"
    lif = getattr(node, "neuron", node)
    reasons = ["gates"] if kind == "gated" else []
    reasons += [f"compare {lif.compare}"] if lif.compare != "gt" else []
    reasons += [f"reset {lif.reset}"] if lif.reset != "zero" else []
    reasons += ["two thresholds"] if lif.lower is not None else []
    reasons += ["du -1"] if (np.asarray(lif.du) == -1).any() else []
    reasons += ["dv 4096"] if (np.asarray(lif.dv) == 4096).any() else []
    return ", ".join(reasons)


def verify_parameters(network: Network, chip: Chip) -> None:
    """The rules that concern one node's own numbers."""
    for name, node in network.graph.nodes.items():
        kind = type(node).__name__
        if kind == "IntCircuit":
            _verify_circuit(network, chip, name)
            for part in (node.excite, node.inhibit, node.spread):
                _verify_connection(chip, name, part)
        if kind == "IntGatedLIF":
            limits.gated_nodes(chip, name)
            for part in (node.feedback, node.balance):
                if part is not None:
                    _verify_connection(chip, name, part)
        if kind in ("IntDense", "IntConv"):
            _verify_connection(chip, name, node)
        if kind in ("IntGatedLIF", "IntCubaLIF"):
            _verify_neuron(chip, name, getattr(node, "neuron", node))


def _verify_circuit(network: Network, chip: Chip, name: str) -> None:
    """What a circuit drives: one population of its own, or the host."""
    readers = sorted(n for n, came in network.sources.items() if name in came)
    told = "leads to " + (", ".join(repr(n) for n in readers) or "nothing")
    if len(readers) != 1:
        raise limits.circuits_end_in_neurons(chip, name, told)
    kind, came = type(network.graph.nodes[readers[0]]).__name__, network.sources[readers[0]]
    if kind == "IntCubaLIF" and len(came) > 1:
        others = ", ".join(repr(n) for n in came if n != name)
        raise limits.circuits_end_in_neurons(chip, name, f"{told}, which also gets {others}")
    if kind not in ("IntCubaLIF", "Output"):
        raise limits.circuits_end_in_neurons(chip, name, f"{told} ({kind})")


def _verify_neuron(chip: Chip, name: str, lif: Any) -> None:
    limits.vth_fits(chip, name, np.asarray(lif.vth))
    limits.du_fits(chip, name, np.asarray(lif.du))
    limits.dv_fits(chip, name, np.asarray(lif.dv))
    limits.bias_fits(chip, name, bias_of(lif))
    limits.compare(chip, name, lif.compare)
    limits.reset(chip, name, lif.reset)
    limits.double_threshold(chip, name, None if lif.lower is None else np.asarray(lif.lower))


def bias_of(lif: Any) -> np.ndarray:
    """A neuron's bias as a number: mantissa << exponent, >> for a negative exponent."""
    mant, exp = np.broadcast_arrays(np.asarray(lif.bias_mant, np.int64), np.asarray(lif.bias_exp, np.int64))
    return np.where(exp < 0, mant >> np.maximum(-exp, 0), mant << np.maximum(exp, 0))


def _verify_connection(chip: Chip, name: str, node: Any) -> None:
    kernel = kernel_of(node, (), ())
    lo, hi = grid_limits(kernel.bits, node.sign_mode)
    limits.weight_bits_fit(chip, name, kernel.bits)
    limits.weight_fits(chip, name, kernel.words, lo, hi, grid_step(kernel.bits, node.sign_mode))
    limits.exponent_fits(chip, name, kernel.exponent)
    limits.constant_fits(chip, name, np.asarray(node.bias))


# --- what reaches a population


def _incoming(
    network: Network, chip: Chip, name: str, latency: dict[str, int], groups: list[Group], paths: list[Path]
) -> None:
    """Append the groups of a population and the paths into them."""
    known: dict[tuple[str, tuple[str, ...]], int] = {}  # by connection and what stands behind it
    starts = (name,) if not network.steps[name].neuron else network.sources[name]
    for source, before, linear, behind in (w for s in starts for w in _ways(network, chip, name, s)):
        late, pools = _behind(network, chip, name, linear, behind)
        key = (linear, behind)
        if key not in known:
            known[key] = len(groups)
            groups.append(_group(network, name, linear, pools))
        table = table_of([(network.steps[n], network.input_shape(n)) for n in before], network.shapes[source])
        paths.append(Path(source, known[key], table, latency[name] - latency[source] + late))
    step = network.steps[name]
    if isinstance(step, IntGatedFire):
        for role, lag in (("feedback", 1), ("balance", 0)):
            node = getattr(network.graph.nodes[name], role)
            if node is not None:
                shape = network.shapes[name]
                kernel = kernel_of(node, shape, shape)
                groups.append(Group(name, role, role, kernel, _constant(node, shape)))
                paths.append(Path(name, len(groups) - 1, table_of([], shape), lag))


def cells_of(circuit: str) -> str:
    """Name of the population of a circuit's inhibitory cells; no node that was written can be called so."""
    return f"{circuit}/inhibit"


def _is_circuit(network: Network, name: str) -> bool:
    return isinstance(network.steps[name], IntCircuitStep)


def circuit_of(network: Network, name: str) -> str:
    """The circuit that a population computes: the one in front of its neurons, or the readout itself; "" for none."""
    near = network.sources[name] if network.steps[name].neuron else (name,)
    return next((n for n in near if _is_circuit(network, n)), "")


def _circuit(
    network: Network,
    chip: Chip,
    name: str,
    circuit: str,
    latency: dict[str, int],
    groups: list[Group],
    paths: list[Path],
) -> None:
    """Append the groups of a circuit's two populations, W_IE, W_EE and W_EI, and the paths into them."""
    node: Any = network.graph.nodes[circuit]
    step, entering, shape = network.steps[circuit], network.input_shape(circuit), network.shapes[circuit]
    assert isinstance(step, IntCircuitStep)
    cells, within, first = cells_of(circuit), step.inhibit.output_shape(entering), len(groups)
    none = np.zeros((), np.int64)
    groups.append(Group(cells, "input", circuit, kernel_of(node.inhibit, entering, within), none))
    groups.append(Group(name, "input", circuit, kernel_of(node.excite, entering, shape), none))
    spread = kernel_of(node.spread, within, shape)
    groups.append(Group(name, "spread", circuit, spread, none, ports=2 if step.form in DIVIDING else 1))
    for source, before, *_ in (w for s in network.sources[circuit] for w in _ways(network, chip, circuit, s, circuit)):
        table = table_of([(network.steps[n], network.input_shape(n)) for n in before], network.shapes[source])
        for group, sink in enumerate((cells, name), first):
            paths.append(Path(source, group, table, latency[sink] - latency[source]))
    paths.append(Path(cells, first + 2, table_of([], within), latency[name] - latency[cells]))


Way = tuple[str, tuple[str, ...], str, tuple[str, ...]]  # source, stages, connection or "", stages behind it


def _ways(network: Network, chip: Chip, sink: str, start: str, passed: str = "") -> list[Way]:
    """Every way back from a node to a population, over at most one connection, which may be `passed` already."""
    found: list[Way] = []

    def walk(name: str, linear: str, stages: tuple[str, ...], behind: tuple[str, ...], first: bool) -> None:
        step = network.steps[name]
        if name == network.input or (step.neuron and not first):
            found.append((name, stages, linear, behind))
            return
        if isinstance(step, IntLinear):
            if linear:
                raise limits.connections_end_in_neurons(chip, sink, f"{name!r} leads to {linear!r}")
            linear, stages, behind = name, (), stages
        elif isinstance(step, Flatten | Pool | Delay):
            stages = (name, *stages)
        for source in network.sources[name]:
            walk(source, linear, stages, behind, False)

    walk(start, passed, (), (), start == sink)
    return found


def _behind(
    network: Network, chip: Chip, sink: str, linear: str, behind: tuple[str, ...]
) -> tuple[int, tuple[str, ...]]:
    """(steps of delay, pools) of the stages behind a connection, which must not come between its sum and its shift."""
    late = 0
    pools: list[str] = []
    for name in behind:
        step, whole = network.steps[name], network.steps[linear]
        assert isinstance(whole, IntLinear)
        if isinstance(step, Delay):
            if step.masks or whole.bias is not None:
                found = f"Delay {name!r} behind {linear!r}, which has a bias or differs between neurons,"
                raise limits.connections_end_in_neurons(chip, sink, found)
            late += step.shortest
        elif isinstance(step, Pool):
            if whole.shift or whole.wraps or pools:
                found = f"pool {name!r} behind {linear!r}, which drops bits,"
                raise limits.connections_end_in_neurons(chip, sink, found)
            pools.append(name)
    return late, tuple(pools)


def _group(network: Network, sink: str, linear: str, pools: tuple[str, ...]) -> Group:
    shape = network.shapes[sink]
    if not linear:
        return Group(sink, "input", "", identity_kernel(shape), np.zeros((), np.int64))
    node, units = network.graph.nodes[linear], network.shapes[linear]
    kernel, constant = kernel_of(node, network.input_shape(linear), units), _constant(node, units)
    if not pools:
        return Group(sink, "input", linear, kernel, constant)
    step = network.steps[pools[0]]
    assert isinstance(step, Pool)
    pooled = table_of([(step, units)], units)
    whole = np.broadcast_to(constant, int(np.prod(units)))
    summed = np.bincount(pooled.line, whole[pooled.source], int(np.prod(shape))).astype(np.int64)
    after = (*step.kernel, *step.window.stride, *step.window.padding)
    return Group(sink, "input", linear, kernel, summed, pooled, after)


def _constant(node: Any, units: Ints) -> np.ndarray:
    """A connection's bias, one number a unit in C order, or one for all."""
    bias = np.asarray(node.bias, np.int64)
    if not bias.any():
        return np.zeros((), np.int64)
    if bias.ndim == 0:
        return bias
    if type(node).__name__ == "IntDense":
        return np.tile(bias, int(np.prod(units)) // len(bias))
    return np.repeat(bias, int(np.prod(units)) // len(bias))


def lif_of(node: Any) -> Any:
    """The IntCubaLIF of a plain or gated node."""
    return getattr(node, "neuron", node)


def threshold_kinds(network: Network, name: str) -> tuple[int, str]:
    """(number of different thresholds, "one" | "channel" | "neuron": how finely they differ)."""
    step: Any = network.steps.get(name)  # inhibitory cells are no node
    inner = getattr(step, "inner", step)
    if not isinstance(inner, IntFire):
        return 1, "one"
    vth = np.asarray(lif_of(network.graph.nodes[name]).vth)
    different = len(np.unique(vth))
    if different == 1:
        return 1, "one"
    rows = vth.reshape(len(vth), -1)
    return different, "channel" if vth.ndim > 1 and (rows == rows[:, :1]).all() else "neuron"
