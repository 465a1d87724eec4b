"""What is exported: a graph with input samples, and where it was trained its labels and its own trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nir
import numpy as np

from eiexport import graph
from eiexport.alphabet import Alphabet, interval
from eiexport.errors import ExportError, TraceError
from eiexport.ops import Ints
from eiexport.plans import Plan
from eiexport.trace import TraceFile


@dataclass(frozen=True)
class Model:
    """chunks(size): encoded input, float32 (sample, time, *neuron), in pieces of up to `size` samples.

    notes: what the user should know, in words.
    trace: the trained network's spikes for a piece of input, in float64; None for a bare graph.
    calibration(count): encoded samples to choose scales by; own_calibration: they are the tested ones.
    plan: what quantisation-aware training used; integer_trace: its own forward pass for whole-number input.
    """

    name: str
    graph: nir.NIRGraph
    samples: int
    chunks: Callable[[int], Iterator[np.ndarray]]
    labels: np.ndarray | None = None
    trace: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    notes: tuple[str, ...] = ()
    calibration: Callable[[int], Iterator[np.ndarray]] | None = None
    plan: Plan | None = None
    integer_trace: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    own_calibration: bool = False


def open_graph(path: Path, source: Path, samples: int | None, calibration: Path | None = None) -> Model:
    """A .nir file with input from a .npy or trace file; raises GraphError or ExportError in one line.

    calibration: a file of input like `source`; without it, quantisation is calibrated on the input itself.
    """
    found = graph.read(path)
    x = _load_input(source)
    if x.ndim < 2:
        raise ExportError(f"{source}: input has shape {x.shape}; expected (samples, steps, *neurons)")
    if samples is not None and samples < 1:
        raise ExportError(f"--samples {samples}: must be at least 1")
    count = min(len(x), samples or len(x))
    if count == 0:
        raise ExportError(f"{source}: holds no sample")

    def chunks(size: int) -> Iterator[np.ndarray]:
        return (np.asarray(x[i : min(i + size, count)]) for i in range(0, count, size))

    other = x if calibration is None else _load_input(calibration)
    if other.ndim < 2 or len(other) == 0:
        raise ExportError(
            f"{calibration}: calibration data has shape {other.shape}; expected (samples, steps, *neurons)"
        )

    def calibrating(most: int) -> Iterator[np.ndarray]:
        return (np.asarray(other[i : min(i + 50, most)]) for i in range(0, min(most, len(other)), 50))

    return Model(path.name, found, count, chunks, calibration=calibrating, own_calibration=calibration is None)


def _load_input(source: Path) -> np.ndarray | FlatView:
    if not source.is_file():
        raise ExportError(f"{source}: no such input file; give --input F.npy or F.h5, (samples, steps, *neurons)")
    if source.suffix == ".npy":
        try:
            x = np.load(source, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as e:
            raise ExportError(f"{source}: not a readable .npy array ({str(e).splitlines()[0]})") from None
        if x.dtype.kind not in "biuf":
            raise ExportError(f"{source}: holds {x.dtype}, not numbers")
        return x
    file = TraceFile(source)
    name = "input" if "input" in file.nodes else next(iter(file.nodes))
    if len(file.nodes) > 1 and name != "input":
        raise TraceError(f"{source}: holds several nodes ({', '.join(file.nodes)}) and none is called 'input'")
    return FlatView(file, name)


class FlatView:
    """An observable of a trace file as an array (sample, time, *neuron) that is read when sliced."""

    def __init__(self, file: TraceFile, name: str) -> None:
        self._data, self._neurons = file.nodes[name]["data"], file.shape(name)

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


def alphabet_of(x: np.ndarray) -> Alphabet:
    """The narrowest alphabet that holds these values."""
    whole = bool((x == np.rint(x)).all())
    return interval(min(0.0, float(x.min())), max(0.0, float(x.max())), whole)


def widest(a: Alphabet | None, b: Alphabet) -> Alphabet:
    """The alphabet that holds both."""
    if a is None:
        return b
    return interval(min(a.lo, b.lo), max(a.hi, b.hi), a.discrete and b.discrete)
