"""One export: write the graph, encode the input once, run every target on it, compare each with the reference.

This module belongs to the command line: it alone, with `cli`, imports `targets`, and only when an export runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import nir
import numpy as np

from eiexport import graph, lossy, passes, report, standard
from eiexport.alphabet import Alphabet
from eiexport.check import ExecutionCheck, drifts, judge, judge_whole
from eiexport.errors import ExportError, TraceError
from eiexport.graph import Network
from eiexport.inputs import FlatView
from eiexport.model import Model, alphabet_of, widest
from eiexport.report import Report, Row
from eiexport.trace import Trace, TraceFile, TraceWriter, chunk_size, compact, compare_entries

Progress = Callable[[str, int, int], None]
GRAPHS = ("model.nir", "model_float.nir", "input.h5", "input_float.h5")
FILES = ("model.net", "model.onnx", "model_step.onnx", "model.c", "program.loihi.h5")  # what targets write
MADE = (*GRAPHS, *FILES, "plan.json", "report.json", "report.html")
# rows and traces of the trained network's own run, of the float network, and of the graph before it was lowered
TRAINED, FLOAT, ORIGINAL = "trained", "float", "original"


@dataclass(frozen=True)
class Settings:
    """What the user chose; dt and integrator only where the graph does not say them.

    quantize: bits of the weights; channels: one weight scale an output channel; calibrate: samples to choose scales by;
    budget: points of accuracy that quantisation may cost; standard: the dtype to lower to stock nodes for, or None;
    recurrence: "explicit" or "implicit", whether these hold the one-step delays of the cycles they make;
    divide: the form that circuits divide in, None: as they do; dale: "fold" linear circuits into one connection each,
    or keep their matrices "apart".
    """

    targets: tuple[str, ...]
    out: Path
    dt: float | None = None
    integrator: str | None = None
    device: str = "cpu"
    quantize: int | None = None
    channels: bool = False
    calibrate: int = 100
    budget: float | None = None
    chip: str = "loihi2"
    strict: bool = False
    standard: str | None = None
    recurrence: str = "explicit"
    divide: str | None = None
    dale: str = "fold"

    def target(self, name: str) -> Any:
        """The engine, made with what the user chose."""
        from targets import base

        found = base.get(name)
        return found(**{k: getattr(self, k) for k in found.options})


def export(model: Model, settings: Settings, progress: Progress) -> Report:
    """Run and compare; returns the report that was written to settings.out.

    Raises ExportError before anything is written when the graph, its input or a target's name is refused.
    """
    from targets import base

    names = list(dict.fromkeys(settings.targets))
    for name in names:
        settings.target(name)  # an unknown name or device is refused before anything is written
    model, division = lossy.divided(model, settings, progress)
    prepared, notes = passes.insert_delays(model.graph, settings.dt, settings.integrator)
    if notes:
        prepared = standard.delays_written(prepared)
    network = graph.check(prepared, settings.dt, settings.integrator)
    stock = _standard(model, prepared, settings)
    quantised = lossy.lower(model, network, settings, progress)
    names = _expand(names, not network.integer and quantised is None and settings.standard != "float64")
    first = next(model.chunks(1))
    base.check_input(network, first)

    out = settings.out
    size = chunk_size(network, first.shape[1])
    entered = "input.h5" if quantised is None else "input_float.h5"
    fresh = not out.exists()
    try:
        alphabet = _write_input(model.chunks(size), network, out / entered, model.samples, progress)
    except Exception:
        if fresh and out.is_dir():  # refused: leave nothing behind
            out.rmdir()
        raise
    _clear(out, out / entered)
    network = graph.check(prepared, settings.dt, settings.integrator, alphabet)
    written = out / ("model.nir" if quantised is None else "model_float.nir")
    graph.write(stock or _stamped(prepared, network), written)
    notes = [*model.notes, *notes]
    lowered = None
    if stock is not None:
        notes += standard.remarks(prepared, stock, written, settings.recurrence)
        ran, added = passes.insert_delays(stock)
        notes += added
        lowered = graph.check(ran, alphabet=alphabet)
    with TraceFile(out / entered) as file:
        session = Session(model, network, FlatView(file, network.input), settings, size, progress, lowered)
        if quantised is None:
            result = session.compare(names, notes)
        else:
            result = quantised.export(session, names, notes)
        if division is not None:
            result.division = replace(division, accuracy=(result.float_row or result.reference).accuracy)
    report.write(result, out)
    return result


def _standard(model: Model, prepared: nir.NIRGraph, settings: Settings) -> nir.NIRGraph | None:
    """The graph in stock nodes, where that was asked for."""
    if settings.standard is None:
        return None
    if model.plan is not None or settings.quantize is not None:
        raise ExportError("--standard-nir writes a float graph, and this export makes an integer one: do them apart")
    clock = (settings.dt, settings.integrator)
    return standard.to_standard_nir(prepared, settings.standard, *clock, settings.recurrence)


def made_files(out: Path) -> list[Path]:
    """What an export to this folder may write, and removes if an earlier one left it there."""
    from targets import base

    names = (*base.REGISTRY, TRAINED, FLOAT, ORIGINAL)
    return [out / f for f in (*MADE, *(f for n in names for f in (f"traces/{n}.h5", f"raster-{n}.png")))]


def _clear(out: Path, kept: Path) -> None:
    """Remove what an earlier export left: it must not stand beside this one's results. No other file is touched."""
    for file in made_files(out):
        if file not in (kept, out / "input.h5"):
            file.unlink(missing_ok=True)


def _stamped(prepared: nir.NIRGraph, network: Network) -> nir.NIRGraph:
    """The graph that ran, saying its dt and integrator also where the user had to."""
    said = prepared.metadata.get("eiexport", {})
    if {"dt", "integrator"} <= set(said):
        return prepared
    clock = network.clock
    made = dict(said.get("provenance", {}))
    return graph.stamp(prepared, dt=clock.dt, integrator=clock.integrator, dtype="float64", **made)


def _expand(names: Sequence[str], floats: bool) -> list[str]:
    """Targets that are two rows: torch in float64, which proves, and in float32, which training computed in; ONNX as a
    whole sequence, and one step a call."""
    also = {"onnx": "onnx-step"} | ({"torch": "torch32"} if floats else {})
    return list(dict.fromkeys(n for name in names for n in (name, also.get(name, name))))


def _write_input(
    chunks: Iterator[np.ndarray], network: Network, path: Path, samples: int, progress: Progress
) -> Alphabet:
    """Encode every sample once; returns the alphabet of what was written."""
    from targets import base

    alphabet: Alphabet | None = None
    first = next(chunks)
    with TraceWriter(path, dt=network.clock.dt, dtype=_held(first.dtype), engine="encoder") as writer:
        done = 0
        for x in chain((first,), chunks):
            base.check_input(network, x)
            alphabet = widest(alphabet, alphabet_of(x))
            writer.append(Trace({network.input: np.asarray(x, _held(first.dtype))}))
            done += len(x)
            progress("encoding", done, samples)
    assert alphabet is not None
    return alphabet


def _held(dtype: np.dtype) -> str:
    """float32 where it holds every value exactly."""
    return "float32" if dtype == np.float32 or dtype.itemsize <= 2 else "float64"


@dataclass
class Session:
    """One network, its encoded input, and the rows that come of running it.

    lowered: what the targets run in its place, its nodes under the same names: each row is held against `network`.
    """

    model: Model
    network: Network
    x: FlatView
    settings: Settings
    size: int
    progress: Progress
    lowered: Network | None = None

    def compare(self, names: Sequence[str], notes: Sequence[str]) -> Report:
        """Run the reference and all targets; the report is not written yet."""
        reference = self.reference()
        rows = [self.row(name, reference) for name in names]
        steps = self.x.shape[1]
        notes = [*notes, *self._rounded((reference, *rows) if self.lowered is None else rows)]
        kept: dict[str, Any] = {"lowered": self.lowered, "labels": self.model.labels}
        return Report(self.model.name, len(self.x), steps, self.network, reference, rows, notes, **kept)

    def _rounded(self, rows: Sequence[Row]) -> Iterator[str]:
        """Where the graph was made for one dtype, and an engine computes in another."""
        made_for = graph.exact_for((self.lowered or self.network).graph)
        if odd := dict.fromkeys(r.name for r in rows if r.results and made_for not in (graph.ANY, r.dtype)):
            yield (
                f"the graph is exact in {made_for} alone, for which its thresholds or decays are rounded: in another "
                f"dtype ({', '.join(odd)}) a membrane within that rounding of its threshold may be decided otherwise"
            )

    def reference(self) -> Row:
        """The trained network in float64, else the reference target; itself checked as an execution of the graph."""
        trace = None if self.network.integer else self.model.trace
        if trace is not None:
            return self.trained(trace, None)
        return self.row("reference", None, "" if self.lowered is None else ORIGINAL)

    def float_run(self) -> Row:
        """The float network's own run, before everything else becomes integers."""
        trace = self.model.trace
        return self.row("reference", None, FLOAT) if trace is None else self.trained(trace, None, FLOAT)

    def trained(
        self, trace: Callable[[np.ndarray], dict[str, np.ndarray]], reference: Row | None, name: str = TRAINED
    ) -> Row:
        """The training code's own run."""
        against = "the graph" if reference is None else reference.name
        kind = "integers" if self.network.integer else "float64"
        row = Row(name, "equal", against, evidence=f"training code, {kind}")

        def run() -> Iterator[Trace]:
            for start in range(0, len(self.x), self.size):
                z = trace(self.x[start : start + self.size])
                yield Trace({n: compact(a, self.network.alphabets[n]) for n, a in z.items()}, self.network.clock.dt)

        self._compare(row, run(), reference)
        return row

    def row(self, name: str, reference: Row | None, shown: str = "") -> Row:
        """One target, compared with the reference; a target that cannot run is a row that says why."""
        from targets import base

        row = Row(shown or name, "failed", reference.name if reference else "itself")
        network = self.network if reference is None or self.lowered is None else self.lowered
        try:
            target = self.settings.target(name)
            row.dtype, row.engine = target.dtype, {"name": name, "version": target.version}
            target.check(network)
            program = target.compile(network)
            done = 0

            def count(samples: int) -> None:
                nonlocal done
                done += samples
                self.progress(f"running {name}", done, len(self.x))

            row.processes = {n: self._process(target, network, n) for n in self.network.recorded}
            row.evidence = target.evidence_for(network) if reference else "itself"
            # integers have to agree in their registers too
            probe = {"probe": True} if self.network.integer else {}
            stream = program.stream(self.x, count, **probe)
            self._compare(row, stream, reference)
            row.latency = program.latency
            target.emit(network, self.settings.out)
            if row.ok:
                row.costs = self._costs(target, row.name)
        except base.Unsupported as e:
            row.status, row.message = "unsupported", str(e)
        except (base.TargetError, TraceError) as e:  # the latter: what came back is no trace of this network
            row.status, row.message = "failed", str(e)
        if not row.results:
            row.evidence = ""  # nothing came of it, so it rests on nothing
        return row

    def _process(self, target: Any, ran: Network, name: str) -> str:
        """Of a node that is several in the standard form: the engine's own only if all of them are."""
        kinds = {target.process(ran, n) for n in standard.stands_for(self.network, ran, name)}
        return kinds.pop() if len(kinds) == 1 else "custom"

    def _costs(self, target: Any, name: str) -> dict[str, Any]:
        """Counted on the first chunk of samples: enough for averages."""
        with TraceFile(self.settings.out / "traces" / f"{name}.h5") as file:
            part = slice(0, min(self.size, len(self.x)))
            return target.costs(self.network, np.asarray(self.x[part]), file.read(part))

    def _compare(self, row: Row, chunks: Iterator[Trace], reference: Row | None) -> None:
        began, checking, start = time.perf_counter(), 0.0, 0
        meant = self.network
        if reference is not None and self.lowered is not None:
            meant = standard.as_run(meant, self.lowered)
        check = None if meant.integer else ExecutionCheck(meant, row.dtype)
        if check is None:
            row.dtype = "int32"
        out = self.settings.out
        path = out / "traces" / f"{row.name}.h5"
        correct = 0
        end = self.network.sources[self.network.outputs[0]][0]
        other = None if reference is None else TraceFile(out / "traces" / f"{reference.name}.h5")
        with TraceWriter(
            path, dt=self.network.clock.dt, dtype=row.dtype, engine=row.engine.get("version", "")
        ) as writer:
            for chunk in chunks:
                mark = time.perf_counter()
                part = slice(start, start + chunk.samples)
                expected = None if other is None else other.read(part)
                if check is None:
                    self._whole(row, chunk, expected, start)
                else:
                    check.add(np.asarray(self.x[part]), chunk.z, start)
                    if expected is not None:
                        spikes = {n: a for n, a in expected.z.items() if a.dtype == np.int8}
                        compare_entries(row.free, chunk, Trace(spikes), start)
                if self.model.labels is not None:
                    correct += int((decisions(chunk.z[end]) == self.model.labels[part]).sum())
                writer.append(chunk)
                start += chunk.samples
                checking += time.perf_counter() - mark
                self.progress(f"checking {row.name}", start, len(self.x))
        if other is not None:
            other.__exit__()
        row.seconds = time.perf_counter() - began - checking
        if check is None:
            row.status = judge_whole(row.results)
        else:
            row.results, row.status = check.results, judge(check.results, row.dtype)
        if row.status == "equal" and row.free_running:
            # it ran the graph, yet not as the reference did: the reference's own ties explain that, or real values
            tied = reference is not None and reference.status == "explained"
            drifted = all(drifts(meant, n) for n, r in row.free.items() if r.mismatches)
            row.status = "explained" if tied or drifted else "differs"
        if start != len(self.x):
            row.status, row.message = "differs", f"the engine delivered {start} of {len(self.x)} samples"
        if self.model.labels is not None:
            row.accuracy = correct / len(self.x)

    def _whole(self, row: Row, chunk: Trace, expected: Trace | None, start: int) -> None:
        """Integers: entry by entry, z and registers, with the reference's; the reference counts against itself."""
        if missing := sorted(set(self.network.recorded) - chunk.z.keys()):
            raise TraceError(f"the trace does not hold node {missing[0]!r}, so nothing can be said about it")
        compare_entries(row.results, chunk, chunk if expected is None else expected, start)


def decisions(z: np.ndarray) -> np.ndarray:
    """The class that an output's rates name: the largest mean over time, (samples,)."""
    return z.mean(axis=1, dtype=np.float64).reshape(len(z), -1).argmax(1)
