"""A program file in memory, checked: every index in range, every dataset whole numbers; TargetError otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eiexport.circuits import DIVIDING, FORMS, RECIPROCAL_BITS, SPANS
from eiexport.ops import Ints, Window
from eiexport.steps import text
from targets.base import TargetError
from targets.loihi.assembly import Heard, Routes, Synapses, Way, routes, synapses
from targets.loihi.kernel import KINDS, Kernel, Table, units_of
from targets.loihi.plan import CIRCUIT_FIELDS, FIRING, LIF_FIELDS, ROLES
from targets.loihi.program import FORMAT, RESETS, SCHEMA

EXPAND_LIMIT = 1 << 25  # words that a simulator may unroll


@dataclass(frozen=True)
class PopulationImage:
    """As in the file; the fields of gates are 0 elsewhere, form is "" where there is no circuit."""

    name: str
    kind: str
    shape: Ints
    latency: int
    message_bits: int
    compare: str = "gt"
    reset: str = "zero"
    feedback: bool = False
    balance: bool = False
    feedback_shift: int = 0
    balance_shift: int = 0
    balance_bits: int = 2
    form: str = ""
    gain_shift: int = 0
    shift: int = 0
    epsilon: int = 1
    table: np.ndarray = field(default_factory=lambda: np.zeros(256, np.uint8))

    @property
    def neurons(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def sends_twice(self) -> bool:
        """Inhibitory cells of a circuit that divides."""
        return self.kind == "inhibitory" and self.form in DIVIDING


def _needed(population: PopulationImage) -> tuple[str, ...]:
    """Parameters that a core of a population must have."""
    found = LIF_FIELDS[:-1] if population.kind in FIRING else ()
    if population.sends_twice:
        return ("gain_i",)
    excites = population.kind != "inhibitory" and population.form not in ("", "none")
    return (*found, "gain_e") if excites else found


@dataclass(frozen=True)
class GroupImage:
    population: int
    role: str
    wraps: bool
    ports: int


@dataclass(frozen=True, eq=False)
class CoreImage:
    """A core; exponent and constant by group, one number or one a neuron."""

    population: int
    neurons: np.ndarray
    parameters: dict[str, np.ndarray]
    exponent: dict[int, np.ndarray]
    constant: dict[int, np.ndarray]
    synapses: Synapses
    spikes: Routes
    membranes: Routes | None

    @property
    def groups(self) -> list[int]:
        return sorted(self.exponent)


@dataclass(frozen=True, eq=False)
class Readout:
    """Core and slot of each neuron of a population, in C order."""

    population: int
    core: np.ndarray
    slot: np.ndarray


@dataclass(frozen=True, eq=False)
class Image:
    dt: float
    tail: int
    reset: str
    populations: list[PopulationImage]
    groups: list[GroupImage]
    cores: list[CoreImage]
    injection: Routes
    readout: list[Readout]

    @property
    def input(self) -> int:
        return next(i for i, p in enumerate(self.populations) if p.kind == "input")

    @property
    def longest_delay(self) -> int:
        own = [r for c in self.cores for r in (c.spikes, c.membranes) if r is not None]
        return max(int(r.delay.max(initial=0)) for r in (self.injection, *own))


def read(path: Path) -> Image:
    """The program in a file; raises TargetError in one line for anything else."""
    if not path.is_file():
        raise TargetError(f"{path}: no such program file")
    try:
        with h5py.File(path, "r") as f:
            if text(f.attrs.get("format")) != FORMAT:
                raise TargetError(f"{path}: an HDF5 file, but no Loihi program")
            if int(f.attrs["schema"]) != SCHEMA:
                raise TargetError(f"{path}: program of schema {int(f.attrs['schema'])}; this version reads {SCHEMA}")
            return _Reader(path, f).image()
    except TargetError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration) as e:
        told = (str(e).splitlines() or [""])[0]
        raise TargetError(
            f"{path}: truncated or corrupt program ({type(e).__name__}: {told}); write it again"
        ) from None


class _Reader:
    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file

    def fail(self, what: str) -> TargetError:
        return TargetError(f"{self.path}: corrupt program: {what}; write it again")

    def whole(self, group: Any, name: str) -> np.ndarray:
        """A dataset of whole numbers."""
        data = group[name]
        if data.dtype.kind not in "iu":
            raise self.fail(f"{data.name} holds {data.dtype}, not whole numbers")
        return np.asarray(data[()]).astype(np.int64)

    def image(self) -> Image:
        f = self.file
        populations = [self.population(g) for _, g in sorted(f["populations"].items())]
        groups = [self.group(g, len(populations)) for _, g in sorted(f["groups"].items())]
        if sum(p.kind == "input" for p in populations) != 1:
            raise self.fail("it needs one input")
        if text(f.attrs["reset"]) not in RESETS:
            raise self.fail(f"reset {text(f.attrs['reset'])!r}")
        blocks = [g for _, g in sorted(f["cores"].items())]
        neurons = [self.neurons(g, populations) for g in blocks]
        self.covered(populations, blocks, neurons)
        made = self.lists if text(f.attrs["encoding"]) == "list" else self.kernels
        words, spikes, membranes, injection = made(populations, groups, blocks, neurons)
        cores = [
            CoreImage(
                int(g.attrs["population"]),
                ids,
                {k: self.per_neuron(g, k, ids) for k in (*LIF_FIELDS, *CIRCUIT_FIELDS) if k in g},
                {int(k): self.per_neuron(g["exponent"], k, ids) for k in g.get("exponent", ())},
                {int(k): self.per_neuron(g["constant"], k, ids) for k in g.get("constant", ())},
                synapses=own,
                spikes=sent,
                membranes=shown,
            )
            for g, ids, own, sent, shown in zip(blocks, neurons, words, spikes, membranes, strict=True)
        ]
        about = float(f.attrs["dt"]), int(f.attrs["tail"]), text(f.attrs["reset"])
        read_out = [self.readout(g) for g in self.ordered("readout")]
        found = Image(*about, populations, groups, cores, injection, read_out)
        self.verify(found)
        return found

    def population(self, group: Any) -> PopulationImage:
        a = dict(group.attrs)
        fields: dict[str, Any] = {k: text(a[k]) for k in ("name", "kind", "compare", "reset") if k in a}
        fields |= {k: int(a[k]) for k in ("latency", "message_bits")}
        fields |= {k: int(a[k]) for k in ("feedback_shift", "balance_shift", "balance_bits") if k in a}
        fields |= {k: bool(a[k]) for k in ("feedback", "balance") if k in a}
        if fields["kind"] not in ("input", "inhibitory", "readout", *FIRING):
            raise self.fail(f"population of kind {fields['kind']!r}")
        if fields["kind"] == "gated":
            fields["table"] = self.whole(group, "table")
        if fields["kind"] in ("circuit", "inhibitory") or "form" in a:
            fields |= self.circuit(group, fields["kind"])
        return PopulationImage(shape=tuple(int(n) for n in a["shape"]), **fields)

    def circuit(self, group: Any, kind: str) -> dict[str, Any]:
        """What is told of a circuit, in the ranges that its arithmetic takes."""
        fields: dict[str, Any] = {k: int(group.attrs[k]) for k in ("gain_shift", "shift", "epsilon")}
        fields["form"] = text(group.attrs["form"])
        divides = fields["form"] in DIVIDING
        for name, (lo, hi) in SPANS.items():
            if not lo <= fields[name] <= hi or (divides and fields[name] < 0):
                raise self.fail(f"{group.name} has {name} {fields[name]}")
        if fields["form"] not in FORMS:
            raise self.fail(f"{group.name} is a circuit of form {fields['form']!r}")
        if fields["form"] == "table" and kind != "inhibitory":
            table = fields["table"] = self.whole(group, "table")
            bits = len(table).bit_length() - 1
            if not 1 <= bits <= 10 or len(table) != 1 << bits or table.min() < 0 or table.max() > 1 << RECIPROCAL_BITS:
                raise self.fail(f"{group.name} has a table of {len(table)} entries, {table.min()} to {table.max()}")
        return fields

    def readout(self, group: Any) -> Readout:
        return Readout(int(group.attrs["population"]), self.whole(group, "core"), self.whole(group, "slot"))

    def group(self, group: Any, populations: int) -> GroupImage:
        role, population = text(group.attrs["role"]), int(group.attrs["population"])
        if role not in ROLES or not 0 <= population < populations:
            raise self.fail(f"{group.name} is a {role!r} of population {population}")
        if (ports := int(group.attrs.get("ports", 1))) not in (1, 2):
            raise self.fail(f"{group.name} has {ports} ports")
        return GroupImage(population, role, bool(group.attrs["wraps"]), ports)

    def neurons(self, group: Any, populations: list[PopulationImage]) -> np.ndarray:
        ids, k = self.whole(group, "neurons"), int(group.attrs["population"])
        if not 0 <= k < len(populations) or not len(ids) or ids.min() < 0 or ids.max() >= populations[k].neurons:
            raise self.fail(f"{group.name} holds neurons of no population")
        return ids

    def covered(self, populations: list[PopulationImage], blocks: list[Any], neurons: list[np.ndarray]) -> None:
        """Every neuron lives on one core."""
        for i, population in enumerate(populations):
            own = [ids for g, ids in zip(blocks, neurons, strict=True) if int(g.attrs["population"]) == i]
            if population.kind == "input":
                continue
            count = np.bincount(np.concatenate([*own, np.zeros(0, np.int64)]), minlength=population.neurons)
            if (count != 1).any():
                raise self.fail(f"neuron {int(np.argmax(count != 1))} of {population.name!r} is not on one core")

    def per_neuron(self, group: Any, name: str, ids: np.ndarray) -> np.ndarray:
        data = self.whole(group, name)
        if data.shape not in ((), (len(ids),)):
            raise self.fail(f"{group.name}/{name} has shape {data.shape}, the core {len(ids)} neurons")
        return data

    # --- lists as they are

    def lists(
        self, populations: list[PopulationImage], groups: list[GroupImage], blocks: list[Any], neurons: list[np.ndarray]
    ) -> tuple[list[Synapses], list[Routes], list[Routes | None], Routes]:
        words = [Synapses(*(self.whole(g, n) for n in ("axon_group", "axon_start", "target", "word"))) for g in blocks]
        spikes = [self.routes(g["spikes"]) for g in blocks]
        membranes = [self.routes(g["membranes"]) if "membranes" in g else None for g in blocks]
        return words, spikes, membranes, self.routes(self.file["input"])

    def routes(self, group: Any) -> Routes:
        return Routes(*(self.whole(group, n) for n in ("start", "core", "axon", "delay")))

    # --- lists from kernels

    def kernels(
        self, populations: list[PopulationImage], groups: list[GroupImage], blocks: list[Any], neurons: list[np.ndarray]
    ) -> tuple[list[Synapses], list[Routes], list[Routes | None], Routes]:
        made = [(self.kernel(g), self.table(g["pooled"]) if "pooled" in g else None) for g in self.ordered("kernels")]
        size = sum(
            k.fan_in * (1 if pooled is None else pooled.most) * populations[g.population].neurons
            for (k, pooled), g in zip(made, groups, strict=True)
        )
        if size > EXPAND_LIMIT:
            raise TargetError(f"{self.path}: {size} synapses are more than this simulator unrolls ({EXPAND_LIMIT})")
        words: list[Synapses] = []
        heard: list[dict[int, Heard]] = []
        for block, ids in zip(blocks, neurons, strict=True):
            own = [i for i, g in enumerate(groups) if g.population == int(block.attrs["population"])]
            lists = {i: made[i][0].lists(*units_of(made[i][1], ids)) for i in own}
            found, lines = synapses(lists)
            words.append(found)
            heard.append(lines)
        owner = [int(g.attrs["population"]) for g in blocks]
        spikes, hosted = self.derived(populations, groups, heard, owner, neurons, False)
        membranes, _ = self.derived(populations, groups, heard, owner, neurons, True)
        gated = [populations[i].balance for i in owner]
        shown = [r if g else None for r, g in zip(membranes, gated, strict=True)]
        return words, spikes, shown, hosted

    def ordered(self, name: str) -> list[Any]:
        return [g for _, g in sorted(self.file[name].items())]

    def derived(
        self,
        populations: list[PopulationImage],
        groups: list[GroupImage],
        heard: list[dict[int, Heard]],
        owner: list[int],
        neurons: list[np.ndarray],
        membranes: bool,
    ) -> tuple[list[Routes], Routes]:
        """(routes of each core, of the host), along the pairs of cores that the file lets talk."""
        prefix = "membrane_" if membranes else ""
        pairs = zip(
            *(self.whole(self.file["routes"], f"{prefix}{end}").tolist() for end in ("from", "to")), strict=True
        )
        allowed: dict[int, set[int]] = {}
        for a, b in pairs:
            allowed.setdefault(a, set()).add(b)
        ways = [self.way(g) for g in self.ordered("ways")]
        made: dict[int, Routes] = {}
        for i, population in enumerate(populations):
            own = [k for k, p in enumerate(owner) if p == i] if population.kind != "input" else [-1]
            parts = [np.arange(population.neurons)] if population.kind == "input" else [neurons[k] for k in own]
            taken = [w for w in ways if w.source == i and (groups[w.group].role == "balance") == membranes]
            found = routes(taken, heard, parts, population.neurons, [allowed.get(k, set()) for k in own])
            made |= dict(zip(own, found, strict=True))
        return [made[k] for k in range(len(owner))], made[-1]

    def way(self, group: Any) -> Way:
        source, target, lag = (int(group.attrs[k]) for k in ("source", "group", "lag"))
        return Way(source, target, lag, self.table(group))

    def table(self, group: Any) -> Table:
        return Table(*(self.whole(group, k) for k in ("source", "line", "delay")))

    def kernel(self, group: Any) -> Kernel:
        a, window = group.attrs, None
        if text(a["kind"]) not in KINDS:
            raise self.fail(f"{group.name} is of kind {text(a['kind'])!r}")
        if "stride" in a:
            stride, padding, dilation = (tuple(int(n) for n in a[k]) for k in ("stride", "padding", "dilation"))
            window = Window(stride, padding, dilation, int(a["groups"]))
        inputs, outputs = (tuple(int(n) for n in a[k]) for k in ("inputs", "outputs"))
        return Kernel(
            text(a["kind"]), self.whole(group, "words"), self.whole(group, "exponent"), inputs, outputs, window
        )

    # --- what must hold

    def verify(self, image: Image) -> None:
        """Indices in range: a wrong program must not read another core's memory."""
        for k, core in enumerate(image.cores):
            population, words = image.populations[core.population], core.synapses
            needed = _needed(population)
            if missing := [p for p in needed if p not in core.parameters]:
                raise self.fail(f"core {k} lacks {missing[0]}")
            wrong = [
                i
                for i in core.groups
                if not 0 <= i < len(image.groups) or image.groups[i].population != core.population
            ]
            if wrong or core.groups != sorted(core.constant):
                raise self.fail(f"core {k} has groups {core.groups}")
            self.rows(f"axons of core {k}", words.start, len(words.group), len(words.target))
            self.inside(f"axons of core {k}", np.isin(words.group, core.groups))
            self.inside(f"words of core {k}", (words.target >= 0) & (words.target < len(core.neurons)))
            if len(words.word) != len(words.target):
                raise self.fail(f"words of core {k} are not as many as their targets")
            if population.balance != (core.membranes is not None):
                raise self.fail(f"core {k} has routes of membranes, or lacks them")
            for found in (core.spikes, core.membranes):
                if found is not None:
                    self.routed(f"core {k}", found, len(core.neurons), image)
            if population.sends_twice:
                self.ported(f"core {k}", core.spikes, image)
        sizes = np.array([len(c.neurons) for c in image.cores])
        owner = np.array([c.population for c in image.cores])
        for r in image.readout:
            if not 0 <= r.population < len(image.populations):
                raise self.fail("a readout of no population")
            size, name = image.populations[r.population].neurons, image.populations[r.population].name
            if len(r.core) != size or len(r.slot) != size:
                raise self.fail(f"the readout of {name!r} is not as long as its population")
            self.inside(f"the readout of {name!r}", (r.core >= 0) & (r.core < len(sizes)))
            self.inside(f"the readout of {name!r}", owner[r.core] == r.population)
            self.inside(f"the readout of {name!r}", (r.slot >= 0) & (r.slot < sizes[r.core]))
        self.routed("the host", image.injection, image.populations[image.input].neurons, image)

    def ported(self, what: str, found: Routes, image: Image) -> None:
        """Second messages go to groups of two accumulators."""
        for k in np.unique(found.core).tolist():
            groups = np.unique(image.cores[k].synapses.group[found.axon[found.core == k]]).tolist()
            self.inside(f"ports of {what}", np.array([image.groups[i].ports == 2 for i in groups]))

    def rows(self, what: str, start: np.ndarray, rows: int, entries: int) -> None:
        if len(start) != rows + 1 or start[0] != 0 or start[-1] != entries or (np.diff(start) < 0).any():
            raise self.fail(f"{what}: the table of starts does not fit")

    def inside(self, what: str, holds: np.ndarray) -> None:
        if not holds.all():
            raise self.fail(f"{what}: an index is out of range")

    def routed(self, what: str, found: Routes, neurons: int, image: Image) -> None:
        self.rows(f"routes of {what}", found.start, neurons, len(found.core))
        if len(found.axon) != len(found.core) or len(found.delay) != len(found.core):
            raise self.fail(f"routes of {what} differ in length")
        axons = np.array([len(c.synapses.group) for c in image.cores])
        self.inside(f"routes of {what}", (found.core >= 0) & (found.core < len(axons)))
        self.inside(f"routes of {what}", (found.axon >= 0) & (found.axon < axons[found.core]))
        self.inside(f"delays of {what}", (found.delay >= 0) & (found.delay < 1 << 16))
