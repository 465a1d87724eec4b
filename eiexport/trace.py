"""Traces: what every neuron sent, in memory and on disk, and how two of them are compared.

On disk: HDF5 in NIRData's layout (`nir.read_data` opens it), written chunk by chunk. Observables are `z` (output,
int8 where it is a spike) and `v`; neurons are flattened in C order, (sample, time, neuron). Attributes of each
observable: dt, shape (neuron shape), t0 (model step of the first row), latency (engine steps after which a row
appeared), dtype of the engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from eiexport import hdf5
from eiexport.alphabet import Alphabet
from eiexport.errors import TraceError
from eiexport.files import writing
from eiexport.graph import Network
from eiexport.ops import Ints

SAMPLE = 1 << 27  # numbers of one node in one sample: more is no trace, and would not fit into memory


@dataclass(frozen=True)
class Trace:
    """Outputs of recorded nodes, each (sample, time, *neuron); spikes as int8, real values in the engine's dtype.

    states: registers after each step where they were asked for, observable ("v", "u") -> node -> array.
    """

    z: dict[str, np.ndarray]
    dt: float = 1.0
    latency: dict[str, int] = field(default_factory=dict)
    states: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def observables(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """(observable, node, array) of everything that is held, outputs first."""
        for kind, rows in (("z", self.z), *self.states.items()):
            yield from ((kind, name, a) for name, a in rows.items())

    @property
    def samples(self) -> int:
        return len(next(iter(self.z.values())))


def compact(z: np.ndarray, alphabet: Alphabet) -> np.ndarray:
    """int8 for spikes; for real values +0 instead of -0, so that equal traces have equal bytes.

    What claims to be spikes and is not stays as it is: a cast would turn 1.9 into a spike.
    """
    if alphabet.kind in ("binary", "ternary") and np.isin(z, (-1, 0, 1)).all():
        return z.astype(np.int8)
    return z + np.zeros((), z.dtype)


def chunk_size(network: Network, steps: int, budget: int = 96 << 20) -> int:
    """Samples a chunk may hold so that one copy of every signal in float64 stays within `budget` bytes."""
    values = sum(math.prod(s) for s in network.shapes.values()) * max(1, steps) * 8
    return max(1, min(100, budget // max(1, values)))


class TraceWriter:
    """Appends chunks of samples to a trace file that appears under its name only when it is complete."""

    def __init__(self, path: str | Path, *, dt: float, dtype: str, engine: str = "") -> None:
        self._path, self._dt, self._dtype, self._engine = Path(path), dt, dtype, engine

    def __enter__(self) -> TraceWriter:
        self._stack = ExitStack()
        self._sink = self._stack.enter_context(writing(self._path))
        self._file = self._stack.enter_context(h5py.File(self._sink, "w"))
        self._file.attrs.update({"__type__": "NIRGraphData", "schema": 1, "engine": self._engine})
        self._nodes = self._file.create_group("nodes")
        return self

    def append(self, trace: Trace) -> None:
        for kind, name, z in trace.observables():
            if f"{name}/observables/{kind}" not in self._nodes:
                self._create(kind, name, z, trace.latency.get(name, 0))
            data = self._nodes[name]["observables"][kind]["data"]
            if not np.can_cast(z.dtype, data.dtype, "safe"):
                raise TraceError(
                    f"node {name!r} sent spikes at first and then other values ({z.dtype}): not its alphabet"
                )
            data.resize(len(data) + len(z), axis=0)
            data[len(data) - len(z) :] = z.reshape(*z.shape[:2], -1)
        if self._sink.error is not None:
            raise self._sink.error

    def _create(self, kind: str, name: str, z: np.ndarray, latency: int) -> None:
        node = self._nodes.require_group(name)
        node.attrs["__type__"] = "NIRNodeData"
        group = node.require_group("observables").create_group(kind)
        neurons = math.prod(z.shape[2:])
        about = {"dt": self._dt, "shape": np.array(z.shape[2:], np.int64), "t0": 0, "latency": latency}
        group.attrs.update({"__type__": "TimeGriddedData", **about, "dtype": self._dtype})
        row = max(1, min(z.shape[1], (1 << 18) // max(1, neurons)))
        layout = {"chunks": (1, row, max(1, neurons)), "maxshape": (None, z.shape[1], neurons)}
        group.create_dataset(
            "data", (0, z.shape[1], neurons), z.dtype, compression="gzip", compression_opts=1, **layout
        )

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, back: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, back)


class Stored:
    """A dataset of a trace file; what cannot be read of it raises TraceError."""

    def __init__(self, path: Path, data: h5py.Dataset) -> None:
        self._path, self._data = path, data
        self.shape, self.dtype, self.ndim = tuple(data.shape), data.dtype, data.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: Any) -> np.ndarray:
        try:
            return np.asarray(self._data[part])
        except hdf5.DAMAGE as e:
            raise TraceError(f"{self._path}: {hdf5.damage(e)}") from None


@dataclass(frozen=True)
class _About:
    """What the attributes of an observable say, and its other observables."""

    shape: Ints
    dt: float
    t0: int
    others: dict[str, Stored]


class TraceFile:
    """A trace on disk, read slice by slice; raises TraceError when it is not one.

    nodes: of each node {"data": its output z}, (sample, time, neuron).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise TraceError(f"{path}: no such trace file")
        self._file = hdf5.opened(self.path, TraceError)
        try:
            self._about = {n: self._read(group) for n, group in self._find().items() if group["z"]["data"].ndim == 3}
        except hdf5.DAMAGE as e:
            raise TraceError(f"{path}: {hdf5.damage(e)}") from None
        self.nodes = {n: {"data": about.others["z"]} for n, about in self._about.items()}
        counts = {n: len(z["data"]) for n, z in self.nodes.items()}
        if len(set(counts.values())) > 1:
            raise TraceError(f"{path}: its nodes hold different numbers of samples: {counts}")
        if not self.nodes:
            raise TraceError(f"{path}: no node with an observable 'z' of shape (sample, time, neuron)")
        for name, z in self.nodes.items():
            data = z["data"]
            if data.dtype.kind not in "biuf":
                raise TraceError(f"{path}: node {name!r} holds {data.dtype}, not numbers")
            if math.prod(data.shape[1:]) > SAMPLE:
                raise TraceError(f"{path}: a sample of node {name!r} holds {data.shape[1:]} numbers, too many to read")

    def _find(self) -> dict[str, Any]:
        """The observables of the nodes that have a z."""
        if not isinstance(self._file.get("nodes"), h5py.Group):
            raise TraceError(f"{self.path}: an HDF5 file, but no trace in NIRData's layout (no group 'nodes')")
        nodes = {n: node for n, node in self._file["nodes"].items() if isinstance(node, h5py.Group)}
        found = {n: node.get("observables") for n, node in nodes.items()}
        return {n: o for n, o in found.items() if isinstance(o, h5py.Group) and _data(o.get("z")) is not None}

    def _read(self, group: h5py.Group) -> _About:
        """Of an observable that does not say its shape, or not one that fits, neurons stand in a row."""
        z = Stored(self.path, group["z"]["data"])
        parts = {k: data for k, part in group.items() if (data := _data(part)) is not None and data.shape == z.shape}
        others = {k: Stored(self.path, data) for k, data in parts.items() if data.dtype.kind in "biuf"}
        attrs = group["z"].attrs
        shape = tuple(int(n) for n in np.atleast_1d(attrs.get("shape", z.shape[2])))
        fits = math.prod(shape) == z.shape[2] and min(shape, default=1) >= 0
        dt, t0 = float(attrs.get("dt", 1.0)), int(attrs.get("t0", 0))
        if not (math.isfinite(dt) and dt > 0):
            raise TraceError(f"{self.path}: dt must be a positive number, found {dt}")
        return _About(shape if fits else (z.shape[2],), dt, t0, {**others, "z": z})

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def samples(self) -> int:
        return len(next(iter(self.nodes.values()))["data"])

    @property
    def numbers(self) -> int:
        """How many numbers one sample holds, of all nodes and observables."""
        return sum(math.prod(d.shape[1:]) for about in self._about.values() for d in about.others.values())

    @property
    def dt(self) -> float:
        return next(iter(self._about.values())).dt

    def shape(self, name: str) -> Ints:
        """Neuron shape of a node; (neurons,) where a foreign file does not say."""
        return self._about[name].shape

    def registers(self, name: str) -> set[str]:
        """Observables beside z that cover the same steps."""
        return self._about[name].others.keys() - {"z"}

    def first_step(self, name: str) -> int:
        return self._about[name].t0

    def chunks(self, size: int) -> Iterator[tuple[int, Trace]]:
        """(index of the first sample, Trace of up to `size` samples)."""
        for start in range(0, self.samples, size):
            part = slice(start, min(start + size, self.samples))
            yield start, self.read(part)

    def read(self, part: slice) -> Trace:
        """Some samples, with the registers that were recorded."""
        found: dict[str, dict[str, np.ndarray]] = {"z": {}}
        for name, about in self._about.items():
            for kind in ("z", *sorted(self.registers(name))):
                a = about.others[kind][part]
                found.setdefault(kind, {})[name] = a.reshape(*a.shape[:2], *self.shape(name))
        return Trace(found.pop("z"), self.dt, states=found)


def _data(part: Any) -> h5py.Dataset | None:
    """The dataset of an observable."""
    data = part.get("data") if isinstance(part, h5py.Group) else None
    return data if isinstance(data, h5py.Dataset) else None


@dataclass(frozen=True)
class Divergence:
    """The first entry where an engine and its reference disagree."""

    node: str
    sample: int
    step: int
    neuron: Ints
    value: float
    expected: float
    why: str = ""

    def __str__(self) -> str:
        where = f"node {self.node!r}, step {self.step}, neuron {self.neuron}, sample {self.sample}"
        if self.why.startswith("register"):
            return f"{where}: {self.why} holds {self.value:g}, expected {self.expected:g}"
        return f"{where}: sent {self.value:g}, expected {self.expected:g}" + (f" ({self.why})" if self.why else "")


@dataclass
class NodeResult:
    """What was compared of one node. `largest`: largest difference of real-valued outputs."""

    entries: int = 0
    mismatches: int = 0
    explained_ties: int = 0
    margin: float = 0.0
    spikes: int = 0
    spikes_reference: int = 0
    state_entries: int = 0  # of registers v and u
    state_mismatches: int = 0
    negative: int = 0
    largest: float = 0.0
    first: Divergence | None = None

    @property
    def silent(self) -> bool:
        """No spike on either side: equality here proves little."""
        return self.spikes == 0 and self.spikes_reference == 0

    def count(self, z: np.ndarray, expected: np.ndarray) -> None:
        self.entries += z.size
        self.spikes += int(np.count_nonzero(z))
        self.spikes_reference += int(np.count_nonzero(expected))
        self.negative += int(np.count_nonzero(np.asarray(z) < 0))

    def diverge(self, found: Divergence) -> None:
        if self.first is None or (found.step, found.sample) < (self.first.step, self.first.sample):
            self.first = found


def first_index(mask: np.ndarray) -> tuple[int, int, Ints]:
    """(sample, step, neuron) of the first True of a (sample, time, *neuron) mask, earliest step first."""
    step = int(np.argmax(mask.any(axis=tuple(i for i in range(mask.ndim) if i != 1))))
    sample, *neuron = np.unravel_index(int(np.argmax(mask[:, step])), mask[:, step].shape)
    return int(sample), step, tuple(int(i) for i in neuron)


def earliest(results: dict[str, NodeResult], order: Sequence[str]) -> Divergence | None:
    """The first divergence of a network: earliest step, then the node that comes first in execution order."""
    rank = {n: i for i, n in enumerate(order)}
    found = [r.first for r in results.values() if r.first is not None]
    return min(found, key=lambda d: (d.step, rank.get(d.node, len(rank)), d.sample), default=None)


def compare_entries(results: dict[str, NodeResult], a: Trace, b: Trace, sample: int = 0) -> None:
    """Free-running comparison of two chunks, entry by entry; b is the reference. Shapes first, then values.

    Only nodes that both hold are compared. Raises TraceError where their shapes differ.
    """
    for name in (n for n in a.z if n in b.z):
        x, y = a.z[name], b.z[name]
        if x.shape != y.shape:
            raise TraceError(
                f"node {name!r} has shape {x.shape} (sample, time, neuron) on one side, {y.shape} on the other"
            )
        result = results.setdefault(name, NodeResult())
        result.count(x, y)
        result.mismatches += _unequal(result, name, x, y, sample)
    for kind in (k for k in a.states if k in b.states):
        for name in (n for n in a.states[kind] if n in b.states[kind]):
            x, y = a.states[kind][name], b.states[kind][name]
            if x.shape != y.shape:
                raise TraceError(f"node {name!r}: {kind} has shape {x.shape} on one side, {y.shape} on the other")
            result = results.setdefault(name, NodeResult())
            result.state_entries += x.size
            result.state_mismatches += _unequal(result, name, x, y, sample, kind)


def _unequal(result: NodeResult, name: str, x: np.ndarray, y: np.ndarray, sample: int, kind: str = "") -> int:
    """Number of differing entries; the first is noted."""
    wrong = x != y
    if wrong.any():
        s, t, neuron = first_index(wrong)
        found = float(x[s, t][neuron]), float(y[s, t][neuron])
        result.diverge(Divergence(name, sample + s, t, neuron, *found, f"register {kind}" if kind else ""))
    return int(wrong.sum())


def compare_files(first: str | Path, second: str | Path, size: int = 64) -> tuple[dict[str, NodeResult], list[str]]:
    """Compare anyone's two trace files (second is the reference); returns results per node and remarks in words.

    Rows are aligned by `t0`; a constant lag that would make two nodes equal is named, never applied.
    Raises TraceError when they share no node or hold different numbers of samples.
    """
    results: dict[str, NodeResult] = {}
    with TraceFile(first) as a, TraceFile(second) as b:
        shared = sorted(a.nodes.keys() & b.nodes.keys())
        if not shared:
            raise TraceError(f"{first} and {second} share no node: {', '.join(a.nodes)} | {', '.join(b.nodes)}")
        if a.samples != b.samples:
            raise TraceError(f"{first} holds {a.samples} samples, {second} {b.samples}")
        remarks = [f"node {n!r} is in one file only" for n in sorted(a.nodes.keys() ^ b.nodes.keys())]
        for n in shared:
            registers = (a.registers(n), b.registers(n))
            if odd := sorted(registers[0] ^ registers[1]):
                remarks.append(f"node {n!r}: register {odd[0]} is in one file only, or of another length there")
        if not math.isclose(a.dt, b.dt, rel_tol=1e-6):
            remarks.append(f"dt is {a.dt:g} in {a.path.name} and {b.dt:g} in {b.path.name}")
        size = max(1, min(size, SAMPLE // max(1, *(f.numbers for f in (a, b)))))
        for (sample, x), (_, y) in zip(a.chunks(size), b.chunks(size), strict=True):
            x, y = (_overlapping(t, own, other, shared) for t, own, other in ((x, a, b), (y, b, a)))
            compare_entries(results, x, y, sample)
            if sample == 0:
                for n in shared:
                    steps, whole = x.z[n].shape[1], max(f.nodes[n]["data"].shape[1] for f in (a, b))
                    if steps < whole:
                        remarks.append(f"node {n!r}: only {steps} of {whole} steps are in both files")
                remarks += [text for n in shared if (text := _lag(n, x.z[n], y.z[n]))]
    return results, remarks


def _overlapping(trace: Trace, own: TraceFile, other: TraceFile, names: list[str]) -> Trace:
    """The steps that both files hold, of outputs and of the registers that were recorded."""
    states = {k: _overlap(rows, own, other, [n for n in names if n in rows]) for k, rows in trace.states.items()}
    return Trace(_overlap(trace.z, own, other, names), states=states)


def _overlap(z: dict[str, np.ndarray], own: TraceFile, other: TraceFile, names: list[str]) -> dict[str, np.ndarray]:
    """The steps that both files hold, of the shared nodes; a foreign flat shape is compared flat."""
    out = {}
    for n in names:
        start = max(0, other.first_step(n) - own.first_step(n))
        ends = (f.first_step(n) + f.nodes[n]["data"].shape[1] for f in (own, other))
        stop = min(ends) - own.first_step(n)
        if stop <= start:
            raise TraceError(f"node {n!r}: {own.path} and {other.path} share no step (their t0 and lengths)")
        cut = z[n][:, start:stop]
        out[n] = cut if own.shape(n) == other.shape(n) else cut.reshape(*cut.shape[:2], -1)
    return out


def _lag(name: str, x: np.ndarray, y: np.ndarray) -> str:
    if (x.shape != y.shape) or not x.any() or (x == y).all():
        return ""
    for lag in range(1, min(5, x.shape[1])):
        for text, p, q in (("later", x, y), ("earlier", y, x)):
            if (p[:, lag:] == q[:, :-lag]).all() and q[:, :-lag].any():
                plural = "s" if lag > 1 else ""
                return f"node {name!r}: the first file is the second, {lag} step{plural} {text}: an undeclared latency?"
    return ""
