"""What is exported: a graph with input samples, and where it was trained its labels and its own trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nir
import numpy as np

from eiexport import graph, inputs, netfile, shapes
from eiexport.alphabet import Alphabet, interval
from eiexport.errors import ExportError
from eiexport.plans import Plan


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


def read(path: Path, message_bits: int | None = None) -> tuple[nir.NIRGraph, tuple[str, ...]]:
    """(graph, notes) of a .nir file, or of lava-dl's .net file; raises GraphError or ExportError in one line.

    message_bits: the width of graded input of a .net file, which netx is told beside the file.
    """
    if path.suffix == ".net":
        found, notes = netfile.read_net(path, message_bits)
        return found, tuple(notes)
    if message_bits is not None:
        raise ExportError(f"{path}: --message-bits is for .net files; a NIR graph says what its nodes take")
    return graph.load(path)


def open_graph(
    path: Path,
    source: Path,
    samples: int | None,
    calibration: Path | None = None,
    dt: float | None = None,
    message_bits: int | None = None,
) -> Model:
    """What `read` reads, with input in one of the forms of `inputs.load`; raises GraphError or ExportError in one line.

    calibration: a file of input like `source`; without it, quantisation is calibrated on the input itself.
    dt: what the user says, where the graph does not: events are put on its grid.
    """
    found, notes = read(path, message_bits)
    notes += _single(found, dt)
    wanted = _wanted(found, dt)
    x, told = inputs.load(source, wanted)
    if x.ndim < 2:
        raise ExportError(f"{source}: input has shape {x.shape}; expected (samples, steps, *neurons)")
    if samples is not None and samples < 1:
        raise ExportError(f"--samples {samples}: must be at least 1")
    count = min(len(x), samples or len(x))
    if count == 0:
        raise ExportError(f"{source}: holds no sample")

    def chunks(size: int) -> Iterator[np.ndarray]:
        return (np.asarray(x[i : min(i + size, count)]) for i in range(0, count, size))

    other = x if calibration is None else inputs.load(calibration, wanted)[0]
    if other.ndim < 2 or len(other) == 0:
        raise ExportError(
            f"{calibration}: calibration data has shape {other.shape}; expected (samples, steps, *neurons)"
        )

    def calibrating(most: int) -> Iterator[np.ndarray]:
        return (np.asarray(other[i : min(i + 50, most)]) for i in range(0, min(most, len(other)), 50))

    own = calibration is None
    return Model(path.name, found, count, chunks, notes=(*notes, *told), calibration=calibrating, own_calibration=own)


def _single(found: nir.NIRGraph, dt: float | None) -> tuple[str, ...]:
    """A word on ties, where other tools formed dt / tau in float32: theirs is another number than ours."""
    taus = [np.asarray(a) for n in found.nodes.values() for k, a in vars(n).items() if k.startswith("tau")]
    if dt is None or "eiexport" in found.metadata or not taus or any(a.dtype != np.float32 for a in taus):
        return ()
    if (held := float(np.float32(dt))) == dt:
        return ()
    return (
        f"its time constants are float32, and a tool that computed in float32 (snnTorch does) held dt = {dt:g} as "
        f"{held!r}: give that as --dt where membranes that land on their thresholds must be decided as there",
    )


def _wanted(found: nir.NIRGraph, dt: float | None) -> inputs.Wanted:
    """What the graph says of its input; what is wrong with it, `graph.check` tells."""
    ends = [n for n, node in found.nodes.items() if isinstance(node, nir.Input)]
    step = graph.step_of(found, dt)
    if len(ends) != 1:
        return inputs.Wanted(dt=step)
    shape = shapes.declared(found.nodes[ends[0]])
    return inputs.Wanted(ends[0], shape if shape and min(shape) >= 1 else None, step)


def alphabet_of(x: np.ndarray) -> Alphabet:
    """The narrowest alphabet that holds these values."""
    whole = bool((x == np.rint(x)).all())
    return interval(min(0.0, float(x.min())), max(0.0, float(x.max())), whole)


def widest(a: Alphabet | None, b: Alphabet) -> Alphabet:
    """The alphabet that holds both."""
    if a is None:
        return b
    return interval(min(a.lo, b.lo), max(a.hi, b.hi), a.discrete and b.discrete)
