"""What a bare graph is fed: arrays, traces and NIRData, and events put on the graph's time grid.

Everything comes back as something that is sliced by sample into (sample, time, *neuron), and what was done in words.
Nothing is dropped: an event that has no place on the grid or in the input is refused.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eiexport import hdf5
from eiexport.errors import ExportError, TraceError
from eiexport.ops import Ints
from eiexport.trace import Stored, TraceFile

OFF_GRID = 1e-6  # of a step, beside the rounding of the file's own dtype
UNSURE = 0.01  # of a step: where times are rounded by more, they do not say their step
FLOAT32 = 2.0**-24  # what float32 rounds at most, of the number: many a dt was stored so
MOST = 1 << 28  # values that one sample of events may become
FORMS = "F.npy or F.h5 (samples, steps, *neurons), or events as F.npz with x, y, t, p"


@dataclass(frozen=True)
class Wanted:
    """What the graph says of its input: the Input's name and shape, dt; None where it does not say."""

    name: str = "input"
    shape: Ints | None = None
    dt: float | None = None


class Rows:
    """A dataset (sample, time, neurons in a row) as (sample, time, *neuron), read when sliced."""

    def __init__(self, data: Any, neurons: Ints) -> None:
        self._data, self._neurons = data, neurons

    @property
    def shape(self) -> Ints:
        return (*self._data.shape[:2], *self._neurons)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, part: slice) -> np.ndarray:
        rows = self._data[part]
        return rows.reshape(*rows.shape[:2], *self._neurons)


class FlatView(Rows):
    """A node's output in a trace file."""

    def __init__(self, file: TraceFile, name: str) -> None:
        super().__init__(file.nodes[name]["data"], file.shape(name))
        self._file = file


@dataclass(frozen=True, eq=False)
class Events:
    """Events as (sample, time, *neuron), made dense when sliced; several at one place and step add up.

    sample, step, neuron (index in C order), value: one entry an event; size: (samples, steps).
    """

    size: tuple[int, int]
    neurons: Ints
    sample: np.ndarray
    step: np.ndarray
    neuron: np.ndarray
    value: np.ndarray

    @property
    def shape(self) -> Ints:
        return (*self.size, *self.neurons)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype

    def __len__(self) -> int:
        return self.size[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(self.size[0])
        mine = (self.sample >= start) & (self.sample < stop)
        out = np.zeros((max(0, stop - start), self.size[1], math.prod(self.neurons)), self.value.dtype)
        np.add.at(out, (self.sample[mine] - start, self.step[mine], self.neuron[mine]), self.value[mine])
        return out.reshape(*out.shape[:2], *self.neurons)

    def told(self) -> str:
        """How many events share a place, in words."""
        place = (self.sample * self.size[1] + self.step) * math.prod(self.neurons) + self.neuron
        place.sort()
        places = int(np.count_nonzero(np.diff(place))) + 1 if len(place) else 0
        more = (
            f", {len(self.step) - places} of them where another one is: these add up" if places < len(self.step) else ""
        )
        return f"{len(self.step)} events in {self.size[1]} steps{more}"


Input = np.ndarray | Rows | Events


def load(source: Path, wanted: Wanted = Wanted()) -> tuple[Input, tuple[str, ...]]:
    """(input, notes) of a file; raises ExportError in one line.

    .npy: (sample, time, *neuron), or one recording as an array with fields x, y, t, p. .npz: one recording as arrays
    x, y, t, p, and where needed `shape` (channels, height, width) for an Input in a row and `dt` (seconds a step) for
    a graph that says none or counts steps (dt = 1); neither may contradict the graph. .h5: a trace or NIRData. Times of
    a recording are microseconds if whole numbers, else seconds, from the sample's start; step k holds
    [k dt, (k + 1) dt). Times of NIRData are those of the graph and must lie on its grid.
    """
    if not source.is_file():
        raise ExportError(f"{source}: no such input file; give --input {FORMS}")
    if source.suffix in (".npy", ".npz"):
        try:
            found = np.load(source, mmap_mode="r" if source.suffix == ".npy" else None, allow_pickle=False)
            if isinstance(found, np.ndarray) and found.dtype.names is None:
                if found.dtype.kind not in "biuf":
                    raise ExportError(f"{source}: holds {found.dtype}, not numbers")
                return found, ()
            if isinstance(found, np.ndarray) and not {"x", "t"} <= set(found.dtype.names or ()):
                raise ExportError(f"{source}: holds {found.dtype}, not numbers; events are records of x, y, t, p")
            parts = found.dtype.names if isinstance(found, np.ndarray) else found.files
            fields = {str(n): np.asarray(found[n]) for n in parts or ()}
        except (*hdf5.DAMAGE, EOFError, SyntaxError, tokenize.TokenError, zlib.error, zipfile.BadZipFile) as e:
            raise ExportError(f"{source}: not a readable {source.suffix} file ({_line(e)})") from None
        return _recording(source, fields, wanted)
    if source.suffix.startswith(".aedat") or source.suffix == ".bin":
        raise ExportError(
            f"{source}: recordings of this format are not read; write its events as an .npz of x, y, t, p"
        )
    return _hdf5(source, wanted)


# --- recordings


def _recording(source: Path, fields: Mapping[str, np.ndarray], wanted: Wanted) -> tuple[Events, tuple[str, ...]]:
    """Address events (x, y, t, p) on the graph's grid: one sample."""
    if odd := sorted(set(fields) - {"x", "y", "t", "p", "shape", "dt"}):
        raise ExportError(f"{source}: holds {odd[0]!r}; events are x, y, t, p, beside them `shape` and `dt`")
    if missing := [k for k in ("x", "t") if k not in fields]:
        raise ExportError(f"{source}: has no {missing[0]!r}; events need x and t, and y and p where there are such")
    columns = {k: np.asarray(fields[k]) for k in ("x", "y", "t", "p") if k in fields}
    sizes = {k: a.shape for k, a in columns.items()}
    if len(set(sizes.values())) > 1 or columns["t"].ndim != 1:
        raise ExportError(f"{source}: x, y, t, p must be rows of one length, found {sizes}")
    for key, a in columns.items():
        if a.dtype.kind not in ("biuf" if key == "t" else "biu"):
            raise ExportError(f"{source}: {key!r} holds {a.dtype}, expected whole numbers")
    if not len(columns["t"]):
        raise ExportError(f"{source}: holds no event")
    if wanted.shape is None:
        raise ExportError(
            f"{source}: the graph's Input does not say its shape, so events have no place in it; write it"
        )
    dt, said = _step_of(source, fields, wanted)
    step = _binned(source, columns["t"], dt, math.prod(wanted.shape))
    neuron, notes = _places(source, columns, _sensor(source, fields, wanted.shape))
    first = np.zeros(len(step), np.int64)
    size = (1, int(step.max()) + 1)
    found = Events(size, wanted.shape, first, step, neuron, np.ones(len(step), np.float32))
    unit = "microseconds" if columns["t"].dtype.kind != "f" else "seconds"
    return found, (
        f"{source.name}: {found.told()}; times are {unit} from the start{said}",
        *(f"{source.name}: {n}" for n in notes),
    )


def _step_of(source: Path, fields: Mapping[str, np.ndarray], wanted: Wanted) -> tuple[float, str]:
    """Seconds a step, and where from in words: the graph's, or the recording's `dt` where the graph has no seconds."""
    own = fields.get("dt")
    if own is not None and (own.size != 1 or own.dtype.kind not in "iuf" or not 0 < float(own.item()) < math.inf):
        raise ExportError(f"{source}: `dt` must be one positive number, the seconds of a step")
    told = None if own is None else float(own.item())
    if told is not None and wanted.dt in (None, 1):
        return told, f", steps {told:g} s as its `dt` says"
    dt = _grid(source, wanted)
    if told is None and dt == 1:
        raise ExportError(
            f"{source}: the graph counts time in steps (dt = 1), so how long one lasts is not said: add `dt`, the "
            "seconds of a step, to an .npz"
        )
    if told is not None and abs(told - dt) > OFF_GRID * dt:
        raise ExportError(
            f"{source}: its `dt` is {told:g} s, the graph's steps are {dt:g} s: make them one, or leave `dt` out"
        )
    return dt, ""


def _grid(where: Path | str, wanted: Wanted) -> float:
    """The graph's dt, for events to be put on."""
    if wanted.dt is None:
        raise ExportError(
            f"{where}: events have to be put on a grid, and the graph does not say its dt: give --dt SECONDS"
        )
    if not 0 < wanted.dt < math.inf:  # input is read before the graph is checked
        raise ExportError(f"{where}: events cannot be put on a grid of dt = {wanted.dt:g}; it must be positive")
    return wanted.dt


def _binned(source: Path, t: np.ndarray, dt: float, neurons: int) -> np.ndarray:
    """The step that each time falls into; compared before any cast, which would wrap what is too large."""
    if (bad := t[~(np.isfinite(t) & (t >= 0))]).size:
        raise ExportError(f"{source}: 't' holds {bad[0]:g}; times start at 0")
    if t.dtype.kind == "f":
        with np.errstate(over="ignore"):
            exact = np.asarray(t, np.float64) / dt
        _bounded(source, float(exact.max()) + 1, neurons)
        rounding = _rounding(t.dtype, dt) * exact
        if rounding.max() > UNSURE:
            raise ExportError(
                f"{source}: 't' ({t.dtype}) reaches {float(t.max()):g} s, where rounding is more than {UNSURE:g} of a "
                f"step of {dt:g} s; store t as float64 or integer microseconds"
            )
        return np.floor(exact + rounding + OFF_GRID).astype(np.int64)
    microseconds = _microseconds(dt)
    if microseconds is None:
        raise ExportError(f"{source}: times are whole microseconds, and dt = {dt:g} s is no whole number of them")
    last = int(t.max()) // microseconds
    _bounded(source, last + 1, neurons)
    if last == 0:  # a step may be longer than any integer type holds
        return np.zeros(len(t), np.int64)
    return (t.astype(np.uint64) // np.uint64(microseconds)).astype(np.int64)


def _microseconds(dt: float) -> int | None:
    """Whole microseconds of a step, also where dt is the float32 of that; None if it has no such number."""
    exact = dt * 1e6
    if not 0.5 < exact < math.inf:
        return None
    whole = round(exact)
    return whole if abs(exact - whole) <= OFF_GRID + FLOAT32 * whole else None


def _rounding(dtype: np.dtype, dt: float) -> float:
    """What times in steps may be off, of their size: by the times' dtype, and by a dt that is float32 of another."""
    whole = _microseconds(dt)
    own = float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
    return own + (abs(whole / (dt * 1e6) - 1) if whole else 0.0)


def _sensor(source: Path, fields: Mapping[str, np.ndarray], shape: Ints) -> Ints:
    """(channels, height, width), (channels, length) or (length,) in which the events lie."""
    if "shape" not in fields:
        return shape
    own = fields["shape"]
    if own.dtype.kind not in "iu" or own.ndim > 1 or not 1 <= own.size <= 3:
        raise ExportError(
            f"{source}: `shape` holds {own.dtype} {own.shape}; it is (channels, height, width) in whole numbers"
        )
    told = tuple(int(n) for n in np.atleast_1d(own))
    if min(told) < 1 or math.prod(told) != math.prod(shape):
        raise ExportError(
            f"{source}: `shape` is {told}, the graph's Input {shape}: they must hold equally many neurons"
        )
    if told != shape and len(shape) > 1:
        raise ExportError(
            f"{source}: `shape` is {told}, the graph's Input {shape}: only an Input in a row takes another shape; "
            "transpose the events, or leave `shape` out"
        )
    return told


def _places(source: Path, columns: Mapping[str, np.ndarray], space: Ints) -> tuple[np.ndarray, list[str]]:
    """Neuron indices in C order."""
    channels, sizes = (space[0], space[1:]) if len(space) > 1 else (1, space)
    polarity = columns["p"] if "p" in columns else np.zeros(len(columns["x"]), np.int64)
    signs = set(np.unique(polarity).tolist())  # of the file's own dtype: a cast makes -1 of the largest uint64
    if not (signs <= {0, 1} or signs <= {-1, 1}):
        raise ExportError(f"{source}: 'p' holds {sorted(signs)[:4]}; a polarity is 0 or 1, or -1 or 1")
    if len(sizes) > 2 or channels > 2:
        raise ExportError(f"{source}: the graph's Input is {space}; events go into (1 or 2 polarities, height, width)")
    if len(sizes) == 1 and "y" in columns and (len(space) == 1 or columns["y"].any()):
        raise ExportError(
            f"{source}: events have x and y, the graph's Input is {space}: add `shape` = (polarities, height, width) "
            "to an .npz"
        )
    if len(sizes) == 2 and "y" not in columns:
        raise ExportError(f"{source}: has no 'y', and the graph's Input is {space}")
    notes = []
    if channels == 2 and "p" not in columns:
        raise ExportError(f"{source}: has no 'p', and the graph's Input {space} has a channel for each polarity")
    if channels == 1 and len(signs) > 1:
        notes.append(f"both polarities go into the one channel of {space}")
    index = (polarity > 0).astype(np.int64) if channels == 2 else np.zeros(len(polarity), np.int64)
    for key, size in zip(("y", "x") if len(sizes) == 2 else ("x",), sizes, strict=True):
        a = columns[key]
        if a.min() < 0 or a.max() >= size:
            raise ExportError(
                f"{source}: {key!r} reaches from {a.min()} to {a.max()}, the graph's Input {space} has {size}: crop or "
                "pool the events first"
            )
        index = index * size + a.astype(np.int64)
    return index, notes


def _bounded(where: Path | str, steps: float, neurons: int) -> None:
    if steps * neurons > MOST:
        raise ExportError(
            f"{where}: a sample would be {_count(steps)} steps of {neurons} neurons; is dt right, and do times start "
            "at 0?"
        )


def _count(steps: float) -> str:
    """Whole where that is not too long a number."""
    return f"{math.floor(steps):.15g}" if steps < math.inf else "endlessly many"


# --- HDF5


def _hdf5(source: Path, wanted: Wanted) -> tuple[Rows | Events, tuple[str, ...]]:
    with hdf5.opened(source, TraceError) as file:
        try:
            name, kind, group = _observable(source, file, wanted)
            if group is not None and "idx" in group:
                return _nirdata_events(source, name, group, wanted)
            if group is not None:
                _same_step(source, name, group, wanted)
        except hdf5.DAMAGE as e:
            raise TraceError(f"{source}: {hdf5.damage(e)}") from None
    if kind == "z" or group is None:  # our own layout, or none: the trace reader says what is wrong
        trace = TraceFile(source)
        view = FlatView(trace, name := _node(source, list(trace.nodes), wanted))
        return (view if view.ndim > 3 else Rows(trace.nodes[name]["data"], _neurons(view.shape[2], wanted))), ()
    data = Stored(source, hdf5.opened(source, TraceError)["nodes"][name]["observables"][kind]["data"])
    if data.ndim != 3 or data.dtype.kind not in "biuf":
        raise TraceError(
            f"{source}: node {name!r} holds {data.dtype} {data.shape}, expected numbers (samples, steps, neurons)"
        )
    return Rows(data, _neurons(data.shape[2], wanted)), ()


def _observable(source: Path, file: h5py.File, wanted: Wanted) -> tuple[str, str, Any]:
    """(node, observable, its group) to read; the group is None where `TraceFile` should look."""
    found: dict[str, Any] = {}
    held = file.get("nodes")
    for name in held if isinstance(held, h5py.Group) else ():
        inside = held[name].get("observables") if isinstance(held[name], h5py.Group) else None
        if isinstance(inside, h5py.Group) and len(inside):
            found[name] = inside
    if not found:
        return "", "", None
    name = _node(source, list(found), wanted)
    kinds = sorted(found[name])
    kind = "z" if "z" in kinds else kinds[0]
    if len(kinds) > 1 and kind != "z":
        raise TraceError(
            f"{source}: node {name!r} holds {', '.join(kinds)}; the input must be called 'z' or stand alone"
        )
    group = found[name][kind]
    if not isinstance(group, h5py.Group) or not ({"data", "idx"} & set(group)):
        return name, kind, None
    return name, kind, group


def _node(source: Path, names: list[str], wanted: Wanted) -> str:
    for name in (wanted.name, "input"):
        if name in names:
            return name
    if len(names) > 1:
        raise TraceError(f"{source}: holds several nodes ({', '.join(names)}) and none is called 'input'")
    return names[0]


def _same_step(source: Path, name: str, group: Any, wanted: Wanted) -> None:
    dt = float(group.attrs.get("dt", math.nan))
    if wanted.dt is not None and abs(dt - wanted.dt) > OFF_GRID * wanted.dt:
        raise TraceError(f"{source}: node {name!r} has steps of dt = {dt:g}, the graph of {wanted.dt:g}; resample it")


def _neurons(count: int, wanted: Wanted) -> Ints:
    """NIRData holds neurons in a row; the graph says their shape."""
    fits = wanted.shape is not None and math.prod(wanted.shape) == count
    return wanted.shape if fits and wanted.shape is not None else (count,)


def _nirdata_events(source: Path, name: str, group: Any, wanted: Wanted) -> tuple[Events, tuple[str, ...]]:
    """NIR's EventData and ValuedEventData: (sample, event) rows filled up with idx -1 at time infinity."""
    where = f"{source}: node {name!r}"
    if any(isinstance(part, h5py.Dataset) and part.size > MOST for part in group.values()):
        raise TraceError(f"{where}: holds more than {MOST:,} events; write fewer samples into a file")
    idx, time = group["idx"][()], group["time"][()] if "time" in group else None
    value = group["value"][()] if "value" in group else np.ones(np.shape(idx), np.float32)
    if time is None or idx.ndim != 2 or idx.shape != time.shape or idx.shape != value.shape:
        raise TraceError(f"{where}: idx, time and value must be (samples, events) of one shape")
    if idx.dtype.kind not in "iu" or time.dtype.kind not in "iuf" or value.dtype.kind not in "biuf":
        raise TraceError(f"{where}: idx must be whole numbers, time and value numbers")
    count, end = (float(group.attrs.get(k, math.nan)) for k in ("n_neurons", "t_max"))
    if not (1 <= count < math.inf and count == int(count) and 0 < end < math.inf):
        raise TraceError(f"{where}: needs n_neurons and t_max, found {count:g} and {end:g}")
    dt = _grid(where, wanted)
    real = idx != -1
    if not (np.isfinite(time[real]).all() and not np.isfinite(time[~real]).any()):
        raise TraceError(f"{where}: an event has no time, or a time no event (idx -1); write it again")
    steps = _on_grid(where, np.asarray([end]), dt, "t_max")[0]
    step = _on_grid(where, time[real], dt, "event time")
    neuron = idx[real]
    if step.size and (step.min() < 0 or step.max() >= steps):
        at = step.min() if step.min() < 0 else step.max()
        raise TraceError(f"{where}: an event at step {at} lies outside of the {steps} steps up to t_max")
    if neuron.size and (neuron.min() < 0 or neuron.max() >= count):
        at = neuron.min() if neuron.min() < 0 else neuron.max()
        raise TraceError(f"{where}: an event of neuron {at}, but n_neurons = {count:g}")
    _bounded(where, int(steps), int(count))
    values = value[real].astype(np.float32 if value.dtype.itemsize <= 2 or value.dtype == np.float32 else np.float64)
    size, place = (len(idx), int(steps)), neuron.astype(np.int64)
    found = Events(size, _neurons(int(count), wanted), np.nonzero(real)[0], step, place, values)
    return found, (f"{source.name}: {found.told()}",)


def _on_grid(where: str, time: np.ndarray, dt: float, what: str) -> np.ndarray:
    """Whole steps; refused beyond OFF_GRID and what the dtype rounds. Rounded: a floor loses 0.3 / 0.1."""
    with np.errstate(over="ignore"):
        exact = np.asarray(time, np.float64) / dt
    if exact.size and np.abs(exact).max() > MOST:  # before any cast: it would wrap
        at = int(np.abs(exact).argmax())
        raise TraceError(
            f"{where}: {what} {float(time[at]):g} is {_count(exact[at])} steps of dt = {dt:g}, too many; is dt right, "
            "and do times start at 0?"
        )
    steps = np.rint(exact)
    off = np.abs(exact - steps) - np.minimum(_rounding(time.dtype, dt) * np.abs(exact), UNSURE)
    if off.size and off.max() > OFF_GRID:
        at = int(off.argmax())
        raise TraceError(
            f"{where}: {what} {float(time[at]):g} is {exact[at]:g} steps of dt = {dt:g}, not whole; shift or round it"
        )
    return steps.astype(np.int64)


def _line(e: BaseException) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]
