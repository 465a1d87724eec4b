"""Cores and what they hold: exact counts from each core's own neurons.

How convolutions share weights on Loihi 2 is not public, so everything is counted in two encodings, which enclose it:
"list": every neuron has its own words, every line its axon. "kernel": a core holds each word of a kernel once and one
axon an input channel, with the position in the message (assumed); a message then needs one entry a channel and target.
A connection's bias takes one more axon, which is sent at every step (assumed: a neuron program could hold it instead).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

import numpy as np

from eiexport.ops import Ints
from targets.loihi import limits
from targets.loihi.kernel import Lists, distinct, units_of
from targets.loihi.limits import Chip
from targets.loihi.plan import FIRING, Group, Plan, Population, lif_of

ENCODINGS = ("list", "kernel")


@dataclass(frozen=True, eq=False)
class Core:
    """Neurons of one population on one core, in flat indices of its map."""

    population: str
    neurons: np.ndarray


@dataclass(frozen=True)
class Need:
    """What one core holds: counts, and bits of each class of memory."""

    neurons: int
    axons_in: int
    axons_out: int
    words: int
    thresholds: int
    profiles: int
    formats: int
    state: int
    synapses: int
    axon_in_table: int
    axon_out_table: int
    program: int

    @property
    def bits(self) -> int:
        return sum(self.memory().values())

    def memory(self) -> dict[str, int]:
        """Bits by class."""
        names = ("state", "synapses", "axon_in_table", "axon_out_table", "program")
        return {n: getattr(self, n) for n in names}


@dataclass(frozen=True, eq=False)
class Partition:
    """All cores of a plan. lists: those of each core's groups, in the list encoding.

    spikes, membranes: pairs of (neuron, target axon) from core to core; the last row of spikes is the host.
    """

    plan: Plan
    encoding: str
    cores: tuple[Core, ...]
    needs: tuple[Need, ...]
    spikes: np.ndarray
    membranes: np.ndarray
    lists: tuple[dict[int, Lists], ...] = ()
    sizes: dict[str, Ints] | None = None  # of the boxes

    def heard(self, core: int, group: int) -> np.ndarray:
        """Sorted lines of a group that a core hears."""
        if self.lists:
            return self.lists[core][group].lines
        return heard_by(self.plan.groups[group], self.cores[core].neurons)


def shares(chip: Chip, need: Need) -> list[tuple[str, float]]:
    """(limit's name, use / limit) of a core; memory against the share of it that may be used."""
    share = float(chip.utilisation.value or 1)
    pairs = [
        ("neurons", need.neurons, 1.0),
        ("axons_in", need.axons_in, 1.0),
        ("axons_out", need.axons_out, 1.0),
        ("core_bits", need.bits, share),
        ("synapse_bits", need.synapses, share),
        ("thresholds", need.thresholds, 1.0),
        ("neuron_profiles", need.profiles, 1.0),
        ("synapse_formats", need.formats, 1.0),
    ]
    found = [(n, used / (float(v) * factor)) for n, used, factor in pairs if (v := getattr(chip, n).value) is not None]
    return found or [("none", 0.0)]


def tightest(chip: Chip, need: Need) -> tuple[str, float]:
    """(limit, share of it) that a core uses most; it fits where the share is at most 1."""
    return max(shares(chip, need), key=lambda s: s[1])


def verify(chip: Chip, name: str, need: Need) -> None:
    """All rules of a core, by name."""
    limits.neurons_per_core_fit(chip, name, need.neurons)
    limits.fan_in_fits(chip, name, need.axons_in)
    limits.fan_out_fits(chip, name, need.axons_out)
    limits.core_memory_fits(chip, name, need.bits, need.synapses)
    limits.thresholds_per_core_fit(chip, name, need.thresholds)
    limits.neuron_profiles_fit(chip, name, need.profiles)
    limits.synapse_formats_fit(chip, name, need.formats)


def need_of(plan: Plan, population: Population, **counts: int) -> Need:
    """The memory that counts take; `synapses` is in bits already."""
    chip, n = plan.chip, counts["neurons"]
    formats = sum(len(np.unique(plan.groups[i].kernel.exponent)) for i in plan.groups_of(population.name))
    return Need(
        **counts,
        formats=formats,
        state=n * state_registers(plan, population) * int(chip.register_bits.value or 0),
        axon_in_table=counts["axons_in"] * int(chip.axon_in_bits.value or 0),
        axon_out_table=counts["axons_out"] * int(chip.axon_out_bits.value or 0),
        program=int(chip.program_bits.value or 0) + plan.table_bits(population) if population.custom else 0,
    )


def state_registers(plan: Plan, population: Population) -> int:
    """State variables of a neuron: v and u, what a gated one sent last, and sums for each group and waiting step."""
    own = 3 if population.kind == "gated" else 2 if population.kind in FIRING else 0
    sums = 0
    for i in plan.groups_of(population.name):
        longest = max((p.longest for p in plan.paths if p.group == i), default=0)
        sums += plan.groups[i].ports * (1 + max(0, longest))
    return own + sums


def list_bits_each(plan: Plan, group: int, lengths: np.ndarray) -> np.ndarray:
    """Bits of synapse lists: each in parts of at most 64 words, a header each, padded to the memory's word."""
    chip, bits = plan.chip, plan.groups[group].kernel.bits
    header, most, word = (int(v.value or 1) for v in (chip.synapse_header, chip.synapse_group, chip.memory_word))
    late = any(p.longest > 0 for p in plan.paths if p.group == group)
    each = bits + int(chip.index_bits.value or 0) + (int(chip.delay_bits.value or 0) if late else 0)
    full, rest = np.divmod(np.asarray(lengths, np.int64), most)
    whole = -(-(most * each + header) // word) * word
    return full * whole + np.where(rest > 0, -(-(rest * each + header) // word) * word, 0)


def counted(plan: Plan, encoding: str, cores: tuple[Core, ...]) -> Partition:
    """What each core needs, and who sends to whom."""
    groups = {p.name: plan.groups_of(p.name) for p in plan.cored}
    lists: tuple[dict[int, Lists], ...] = ()
    if encoding == "list":
        lists = tuple({i: group_lists(plan.groups[i], c.neurons) for i in groups[c.population]} for c in cores)
        heard = [{i: own.lines for i, own in each.items()} for each in lists]
    else:
        heard = [{i: heard_by(plan.groups[i], c.neurons) for i in groups[c.population]} for c in cores]
    spikes, membranes, axons_out = _flows(plan, encoding, cores, heard)
    needs = []
    for k, core in enumerate(cores):
        population = plan.population(core.population)
        counts = dict.fromkeys(("axons_in", "words", "synapses"), 0)
        for i in groups[core.population]:
            found = _listed(plan, i, lists[k][i]) if lists else _shared(plan, i, core.neurons, heard[k][i])
            more = constants(plan, i, plan.groups[i].constant_words(core.neurons))
            counts = {n: counts[n] + a + b for n, a, b in zip(counts, found, more, strict=True)}
        thresholds, profiles = _different(plan, population, core.neurons)
        counts |= {"thresholds": thresholds, "profiles": profiles, "axons_out": int(axons_out[k])}
        needs.append(need_of(plan, population, neurons=len(core.neurons), **counts))
    return Partition(plan, encoding, cores, tuple(needs), spikes, membranes, lists)


def _listed(plan: Plan, group: int, own: Lists) -> tuple[int, int, int]:
    """(axons, words, bits) of synapse lists."""
    lengths = np.diff(own.start)
    return len(own.lines), int(lengths.sum()), int(list_bits_each(plan, group, lengths).sum())


def constants(plan: Plan, group: int, words: int) -> tuple[int, int, int]:
    """(axons, words, bits) of the axon that brings a connection's bias at every step."""
    return int(words > 0), words, int(list_bits_each(plan, group, np.array(words)))


def _shared(plan: Plan, group: int, neurons: np.ndarray, lines: np.ndarray) -> tuple[int, int, int]:
    """(axons, words, bits) where a convolution's words are held once for all positions."""
    g = plan.groups[group]
    axons, words = len(lines), len(neurons) * plan.fan_in(g)
    if g.kernel.kind == "conv":
        units = units_of(g.pooled, neurons)[0]
        axons = len(distinct(lines // prod(g.kernel.inputs[1:])))
        words = len(distinct(g.kernel.output_of(units))) * g.kernel.fan_in
    return axons, words, int(list_bits_each(plan, group, np.array(ceil(words / max(axons, 1))))) * axons


def _different(plan: Plan, population: Population, neurons: np.ndarray) -> tuple[int, int]:
    """(thresholds, pairs of decays) on a core."""
    if population.kind not in FIRING:
        return 1, 1
    lif = lif_of(plan.network.graph.nodes[population.name])
    vth, du, dv = (np.asarray(a) for a in (lif.vth, lif.du, lif.dv))
    own = [a.reshape(-1)[neurons] if a.size > 1 else a.reshape(-1) for a in (vth, du * 8192 + dv)]
    return len(np.unique(own[0])), len(np.unique(own[1]))


def group_lists(group: Group, neurons: np.ndarray) -> Lists:
    """Synapse lists of a group on a core."""
    return group.kernel.lists(*units_of(group.pooled, neurons))


def heard_by(group: Group, neurons: np.ndarray) -> np.ndarray:
    """Sorted lines that a core hears, words of zero counted in."""
    units = units_of(group.pooled, neurons)[0]
    return group.kernel.heard(units if group.pooled is None else distinct(units))


def _flows(
    plan: Plan, encoding: str, cores: tuple[Core, ...], heard: list[dict[int, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(spikes, membranes, output axons): pairs of neuron and target axon from core to core; entries of each core."""
    n = len(cores)
    flows = {False: np.zeros((n + 1, n), np.int64), True: np.zeros((n + 1, n), np.int64)}
    axons = np.zeros(n + 1, np.int64)
    for source in plan.populations:
        owner = owners(plan, cores, source.name)
        size, channels = prod(source.shape[1:]), source.shape[0]
        # in the kernel encoding an entry serves a channel: (core, channel) of each neuron
        place = owner * channels + np.arange(source.neurons) // size
        for path in (p for p in plan.paths if p.source == source.name):
            group = plan.groups[path.group]
            flow = flows[group.role == "balance"]
            shared = encoding == "kernel" and group.kernel.kind == "conv" and source.kind != "input"
            for k, lines in ((k, own[path.group]) for k, own in enumerate(heard) if path.group in own):
                sent = path.table.source[path.table.into(lines)]
                count = np.bincount(owner[sent], minlength=n + 1)
                flow[:, k] += count
                axons += np.bincount(distinct(place[sent]) // channels, minlength=n + 1) if shared else count
    return flows[False], flows[True][:n], axons[:n]


def owners(plan: Plan, cores: tuple[Core, ...], name: str) -> np.ndarray:
    """Core of each neuron of a population; the number of cores stands for the host."""
    owner = np.full(plan.population(name).neurons, len(cores), np.int64)
    for k, core in enumerate(cores):
        if core.population == name:
            owner[core.neurons] = k
    return owner
