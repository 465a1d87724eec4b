"""The lossy steps of an export: another division for circuits, integers for floats, and the count of what that cost.

Belongs to the command line, like `session`: it runs networks, so it imports `targets`, and only when an export runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import nir
import numpy as np

from eiexport import calibrate, graph, losses, passes, quantise
from eiexport import divide as divisions
from eiexport.alphabet import Alphabet
from eiexport.circuits import EICircuit
from eiexport.divide import Division
from eiexport.errors import ExportError
from eiexport.explicit import explicit
from eiexport.files import replacing
from eiexport.graph import Network
from eiexport.inputs import FlatView
from eiexport.integers import IntFire
from eiexport.losses import Quantisation
from eiexport.model import Model, alphabet_of, widest
from eiexport.plans import Plan, check_bits
from eiexport.report import Report
from eiexport.trace import TraceFile

if TYPE_CHECKING:
    from eiexport.session import Session, Settings

ALONE = 500  # samples that each layer alone is measured on, at most


@dataclass(frozen=True)
class Lowered:
    """An integer graph and the plan that made it."""

    graph: nir.NIRGraph
    plan: Plan
    calibrated_on: int

    def export(self, session: Session, names: Sequence[str], notes: Sequence[str]) -> Report:
        """Run the float network once, then everything else on the integers; the report, not written yet."""
        from eiexport.session import Session, _write_input, decisions

        model, settings, progress = session.model, session.settings, session.progress
        out = settings.out
        before = session.float_run()
        graph.write(self.graph, out / "model.nir")
        with replacing(out / "plan.json") as temporary:
            temporary.write_text(json.dumps(self.plan.to_json(), indent=2) + "\n")
        network = graph.check(self.graph, alphabet=self.plan.alphabet)
        size = max(1, session.size // 3)  # registers are recorded beside the spikes
        outside = 0

        def encoded() -> Iterator[np.ndarray]:
            nonlocal outside
            for x in _pieces(session.x, size):
                whole = np.rint(x / self.plan.input_scale)
                outside += int(((whole < self.plan.input_lo) | (whole > self.plan.input_hi)).sum())
                yield self.plan.encode(x).astype(np.float32)

        _write_input(encoded(), network, out / "input.h5", len(session.x), progress)
        notes = [*notes, *self._remarks(model, session.network, network, outside / math.prod(session.x.shape))]
        with TraceFile(out / "input.h5") as file:
            inner = Session(model, network, FlatView(file, network.input), settings, size, progress)
            result = inner.compare(names, notes)
            if model.integer_trace is not None:
                result.rows.insert(0, inner.trained(model.integer_trace, result.reference))
        result.float_row = before
        if not (before.ok and result.reference.ok):
            return result  # there is nothing to compare yet; the rows say why
        found = Quantisation(self.plan, self.calibrated_on, losses.of_weights(session.network, self.plan))
        found.accuracy_float, found.accuracy_int = before.accuracy, result.reference.accuracy
        found.budget = settings.budget
        end = network.sources[network.outputs[0]][0]
        changed = 0
        with (
            TraceFile(out / "traces" / f"{before.name}.h5") as floats,
            TraceFile(out / "traces" / f"{result.reference.name}.h5") as whole,
        ):
            for start in range(0, len(session.x), size):
                a, b = (f.read(slice(start, start + size)) for f in (floats, whole))
                found.count(a, b)
                changed += int((decisions(a.z[end]) != decisions(b.z[end])).sum())
        found.decisions_changed = changed / len(session.x)
        _alone(session, self.plan, found, settings.device, progress)
        result.quantisation = found
        return result

    def _remarks(self, model: Model, before: Network, network: Network, outside: float) -> Iterator[str]:
        """What the user should know of the plan."""
        if self.calibrated_on and model.own_calibration:
            yield "scales were chosen on the tested input itself: give --calibration FILE for an honest measure"
        if outside:
            yield f"{100 * outside:.2g} % of the input lay outside what calibration had seen, and was clipped"
        unproven = [
            n
            for n, plan in self.plan.layers.items()
            if (_compare(before, n), _compare(network, n)) == ("ge", "gt") and not plan.proven
        ]
        if unproven:
            yield (
                f"v >= threshold runs as v > the unit below it in {', '.join(unproven)}: the same while no membrane "
                "saturates below, which calibration did not see and the alphabets do not prove"
            )
        for name, step in network.steps.items():
            fire = getattr(step, "inner", step)
            if isinstance(fire, IntFire):
                if not np.asarray(fire.threshold).any():
                    yield f"node {name!r}: every threshold rounds to 0 against its currents; is it meant so small?"
                weights = [vars(network.steps[c])["weight"] for c in self.plan.layers[name].connections]
                if weights and not any(w.any() for w in weights):
                    yield f"node {name!r}: every weight rounds to 0 against its thresholds; are these so far apart?"


def _compare(network: Network, name: str) -> str:
    return getattr(network.steps[name], "compare", "")


def _pieces(x: FlatView, size: int) -> Iterator[np.ndarray]:
    return (x[i : i + size] for i in range(0, len(x), size))


def divided(
    model: Model, settings: Settings, progress: Callable[[str, int, int], None]
) -> tuple[Model, Division | None]:
    """The model with its circuits in the form that was asked for, linear ones folded unless they are to stay apart.

    Raises ExportError where there is no circuit that divides, or nothing to calibrate on.
    """
    if not any(isinstance(n, EICircuit) for n in model.graph.nodes.values()):
        if settings.divide is not None:
            raise ExportError(f"--divide {settings.divide}: the model has no circuit that divides; leave it out")
        return model, None
    clock, found = (settings.dt, settings.integrator), None
    alphabet: Alphabet | None = None  # of the whole input: a circuit's must not be negative, which folding relies on
    for x in model.chunks(50):
        alphabet = widest(alphabet, alphabet_of(x))
    assert alphabet is not None
    network = graph.check(passes.insert_delays(model.graph, *clock)[0], *clock, alphabet)
    if settings.divide is not None:
        model, found = _reformed(model, network, settings, progress)
    if settings.dale == "fold":
        network = graph.check(passes.insert_delays(model.graph, *clock)[0], *clock, alphabet)
        model = replace(model, graph=divisions.fold(model.graph, network))
    return model, found


def _reformed(
    model: Model, before: Network, settings: Settings, progress: Callable[[str, int, int], None]
) -> tuple[Model, Division]:
    from targets.denominators import denominators, distances

    assert settings.divide is not None
    clock = settings.dt, settings.integrator
    if not divisions.dividing(before):
        raise ExportError(f"--divide {settings.divide}: the model has no circuit that divides; leave it out")
    samples = _Calibrating(model, settings, "denominators", progress)
    seen = denominators(before, samples, settings.device)
    numbers = divisions.choose(before, seen)
    made = divisions.reform(model.graph, settings.divide, numbers)
    after = graph.check(passes.insert_delays(made, *clock)[0], *clock)
    rest = distances(before, {n: after.steps[n] for n in numbers}, _first(model, ALONE), settings.device)  # type: ignore[misc]
    layers = {
        n: {
            "error": rest[n].relative,
            "zeros": d.zeros / d.entries,
            "silent": d.silent / d.rows,
            "epsilon": numbers[n].epsilon,
        }
        for n, d in seen.items()
    }
    first, second = _decided((before, after), model.chunks(50), settings.device, model.samples, progress)
    result = Division(settings.divide, samples.used, layers, own=model.own_calibration)
    result.changed = float((first != second).mean())
    if model.labels is not None:
        result.accuracy_exact = float((first == model.labels).mean())
    return replace(model, graph=made, trace=None), result


def _first(model: Model, most: int) -> Iterator[np.ndarray]:
    done = 0
    for x in model.chunks(50):
        yield x[: most - done]
        done += len(x)
        if done >= most:
            return


class _Calibrating:
    """A model's calibration samples, counted and told as they are taken."""

    def __init__(self, model: Model, settings: Settings, what: str, progress: Callable[[str, int, int], None]) -> None:
        if model.calibration is None or settings.calibrate < 1:
            raise ExportError(f"{what}: there are no samples to choose by: give --calibrate N or --calibration FILE")
        self._chunks, self._most = model.calibration(settings.calibrate), settings.calibrate
        self._what, self._progress, self.used = what, progress, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for x in self._chunks:
            yield x
            self.used += len(x)
            self._progress(self._what, min(self.used, self._most), self._most)


def _decided(
    networks: Sequence[Network],
    chunks: Iterable[np.ndarray],
    device: str,
    samples: int,
    progress: Callable[[str, int, int], None],
) -> list[np.ndarray]:
    """What each network decides on the samples, in float32; they are encoded once for all."""
    from eiexport.session import decisions
    from targets.pytorch import Torch32

    programs = [Torch32(device).compile(n) for n in networks]
    found: list[list[np.ndarray]] = [[] for _ in networks]
    done = 0
    for x in chunks:
        for network, program, kept in zip(networks, programs, found, strict=True):
            kept.append(decisions(program.run(x).z[network.sources[network.outputs[0]][0]]))
        done += len(x)
        progress("comparing decisions", done, samples)
    return [np.concatenate(kept) for kept in found]


def lower(
    model: Model, network: Network, settings: Settings, progress: Callable[[str, int, int], None]
) -> Lowered | None:
    """The integer form of a model, or None where a float export was asked for.

    Raises ExportError where bits and a stored plan disagree, the network has no integer meaning, or there is nothing
    to calibrate on.
    """
    if settings.quantize is not None:
        check_bits(settings.quantize)
    lowered = _lower(model, network, settings, progress)
    if settings.budget is not None and (lowered is None or model.labels is None):
        raise ExportError("--budget counts accuracy that quantisation costs: it needs --quantize and a run folder")
    return lowered


def _lower(
    model: Model, network: Network, settings: Settings, progress: Callable[[str, int, int], None]
) -> Lowered | None:
    if network.integer:
        if settings.quantize is not None:
            raise ExportError("the graph is an integer graph already: leave --quantize out")
        return None
    plan, used = model.plan, 0
    if plan is not None and settings.quantize not in (None, plan.bits):
        raise ExportError(f"the run was trained for {plan.bits} bits: leave --quantize {settings.quantize} out")
    if plan is not None and settings.channels:
        raise ExportError("the run was trained with a scale a layer: leave --per-channel out")
    if plan is None:
        if settings.quantize is None:
            return None
        plan, used = _chosen(model, network, settings, progress)
    return Lowered(quantise.apply(network, plan), plan, used)


def _chosen(
    model: Model, network: Network, settings: Settings, progress: Callable[[str, int, int], None]
) -> tuple[Plan, int]:
    from targets.observe import observe

    samples = _Calibrating(model, settings, "calibration", progress)
    seen = observe(network, samples, settings.device)
    return calibrate.choose(network, seen, settings.quantize or 8, channels=settings.channels), samples.used


def _alone(
    session: Session, plan: Plan, found: Quantisation, device: str, progress: Callable[[str, int, int], None]
) -> None:
    """Each layer rounded alone in the float network: the decisions and the accuracy that it costs by itself."""
    network = explicit(session.network)
    count = found.samples_alone = min(len(session.x), ALONE)
    labels = None if session.model.labels is None else session.model.labels[:count]

    def decided(twin: Network) -> np.ndarray:
        pieces = (session.x[i : min(i + session.size, count)] for i in range(0, count, session.size))
        return _decided((twin,), pieces, device, count, lambda *_: None)[0]

    before = decided(network)
    for i, (name, layer) in enumerate(found.layers.items()):
        after = decided(calibrate.twin(network, plan, (name,)))
        layer.alone_decisions = float((after != before).mean())
        layer.alone_accuracy = None if labels is None else float((after == labels).mean())
        progress("each layer alone", i + 1, len(found.layers))
