"""The execution check: is an engine's trace an execution of the graph?

For every neuron the membrane is recomputed in float64 from the engine's own recorded inputs and its own past outputs,
with a running error bound for the engine's dtype. Each decision must be the recomputed one, or lie inside the bound:
an explained tie, counted with its margin. No engine is steered, and one early tie cannot hide or cause others.

Limit: where a balance gate is exactly 0, a spike is swallowed whether it was taken or not; if it was also a tie, the
nominal reset is assumed, and an engine that took the other one shows up as a mismatch later: never as agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from eiexport.bounds import Bounded, BoundedOps
from eiexport.errors import TraceError
from eiexport.graph import Network
from eiexport.steps import Neuron, Step, bind
from eiexport.trace import Divergence, NodeResult, first_index

MARGIN = 1e-4  # a tie further from its threshold than this, relative, is no rounding
TIES = {"float32": 1e-5, "float64": 1e-10}  # share of the entries that may be ties


class DecisionOps(BoundedOps):
    """Bounds, plus decisions that can be forced where they are ties; the nominal pass notes ties and margins."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.forced: dict[str, float | None] = {"fire": None, "sign": None}
        self.margin: np.ndarray | None = None
        self.reason = ""

    def fire(self, v: Bounded, threshold: Any, compare: str) -> Bounded:
        th = self._lift(threshold)
        distance = np.abs(v.x - th.x)
        return self._decide("fire", super().fire(v, th, compare), distance, v.e + th.e, np.abs(th.x))

    def sign(self, x: Bounded) -> Bounded:
        return self._decide("sign", super().sign(x), np.abs(x.x), x.e, np.ones(()))

    def _decide(self, kind: str, nominal: Bounded, distance: np.ndarray, e: np.ndarray, scale: np.ndarray) -> Bounded:
        forced = self.forced[kind]
        if forced is None:
            return nominal
        relative = distance / np.where(scale > 0, scale, 1.0)
        # where nothing was rounded (e = 0), there is no tie: an exact hit has one right answer
        flipped = (distance <= e) & (e > 0) & (nominal.x != forced)
        assert self.margin is not None
        self.margin = np.where(flipped, np.maximum(self.margin, relative), self.margin)
        return self.exact(np.where(flipped, forced, nominal.x))


class ExecutionCheck:
    """Checks chunks of a trace against a network; `dtype` is what the engine computed in."""

    def __init__(self, network: Network, dtype: str) -> None:
        self.network, self.dtype = network, dtype
        self.ops = DecisionOps(dtype)
        self.steps = {n: bind(s, self.ops) for n, s in network.steps.items()}
        self.results = {n: NodeResult() for n in network.recorded}

    def add(self, x: np.ndarray, z: dict[str, np.ndarray], sample: int = 0) -> None:
        """Check one chunk: input x and recorded z, (sample, time, *neuron) each.

        Raises TraceError when a recorded node is missing or misshapen.
        """
        for name in self.results:
            expected = (*x.shape[:2], *self.network.shapes[name])
            if name not in z:
                raise TraceError(f"the trace does not hold node {name!r}, so nothing can be said about it")
            if z[name].shape != expected:
                raise TraceError(f"node {name!r} has shape {z[name].shape} in the trace, expected {expected}")
        known: dict[str, Bounded] = {self.network.input: self._exact(x, rounded=True)}
        for name in self.results:
            # a spike is what the engine sent; a real value is known only up to its bound, else it could hide a tie
            if self.steps[name].neuron and (self._spikes(name) or name in self.network.cycles):
                known[name] = self._exact(z[name])
        for name, result in self.results.items():
            step = self.steps[name]
            if isinstance(step, Neuron) and step.neuron:
                y = self._check_neuron(step, name, known, z[name], result, sample)
                known.setdefault(name, y)
            else:
                y = known[name] if name in known else self._evaluate(name, known)
                self._check_values(name, y, z[name], result, sample)

    def _spikes(self, name: str) -> bool:
        return self.network.alphabets[name].kind in ("binary", "ternary")

    def _exact(self, a: np.ndarray, rounded: bool = False) -> Bounded:
        """A recorded signal; `rounded`: the engine holds it rounded to its own dtype."""
        b = self.ops.exact(np.swapaxes(a, 0, 1).astype(np.float64))
        return b._replace(e=np.abs(b.x - b.x.astype(self.dtype))) if rounded else b

    def _input(self, name: str, known: dict[str, Bounded]) -> Bounded:
        """What enters a node. Neurons are known from the trace, so they break every cycle."""
        for source in self.network.sources[name]:
            if source not in known:
                known[source] = self._evaluate(source, known)
        first, *rest = (known[s] for s in self.network.sources[name])
        for other in rest:
            first = self.ops.add(first, other)
        return first

    def _drive(self, step: Step, x: Bounded) -> Bounded:
        """The folded part over (time x samples)."""
        flat, lead = (-1, *x.shape[2:]), x.shape[:2]
        y = step.drive(self.ops, _each(x, lambda a: np.broadcast_to(a, x.shape).reshape(flat)))
        return _each(y, lambda a: np.broadcast_to(a, y.shape).reshape(*lead, *y.shape[1:]))

    def _evaluate(self, name: str, known: dict[str, Bounded]) -> Bounded:
        step, x = self.steps[name], self._input(name, known)
        if not isinstance(step, Neuron):
            return self._drive(step, x)
        state, out = step.init(self.ops, x.shape[1:]), []  # a delay line
        for driven in _rows(x):
            y, state = step.step(self.ops, driven, state)
            out.append(y)
        return _stacked(out)

    def _check_neuron(
        self, step: Neuron, name: str, known: dict[str, Bounded], z: np.ndarray, result: NodeResult, sample: int
    ) -> Bounded:
        """Compare every step of a neuron; returns what it should have sent, with bounds."""
        driven = self._drive(step, self._input(name, known))
        recorded = np.swapaxes(z, 0, 1).astype(np.float64)
        state = step.init(self.ops, (len(z), *self.network.shapes[name]))
        outputs = []
        for t, x in enumerate(_rows(driven)):
            membrane = step.charge(self.ops, x, state)
            nominal, s = step.decide(self.ops, membrane)
            sent = self.ops.exact(recorded[t])
            result.count(sent.x, nominal.x)
            outputs.append(nominal)
            if not self._spikes(name):
                wrong = _apart(sent.x, nominal.x, nominal.e, result)
                state = step.reset(self.ops, membrane, sent, sent)
            else:
                reset, wrong = self._resolve(step, membrane, sent.x, nominal.x, s.x, result)
                state = step.reset(self.ops, membrane, sent, self.ops.exact(reset))
            state = tuple(s._replace(m=None) for s in state)  # a membrane is rounded before the next step
            if wrong.any():
                result.mismatches += int(wrong.sum())
                i, _, neuron = first_index(wrong[:, None])
                at = (i, *neuron)
                why = f"membrane {membrane[0].x[at]:.9g} +- {np.broadcast_to(membrane[0].e, wrong.shape)[at]:.1g}"
                threshold = getattr(getattr(step, "inner", step), "threshold", None)
                if threshold is not None:
                    why += f", threshold {np.broadcast_to(threshold.x, wrong.shape[1:])[neuron]:.9g}"
                if len(membrane) > 1 and getattr(step, "balance", None) is not None:
                    why += f", balance {membrane[-1].x[at]:.9g}"
                result.diverge(Divergence(name, sample + i, t, neuron, float(sent.x[at]), float(nominal.x[at]), why))
        return _stacked(outputs)

    def _resolve(
        self, step: Neuron, membrane: Any, sent: np.ndarray, nominal: np.ndarray, s: np.ndarray, result: NodeResult
    ) -> tuple[np.ndarray, np.ndarray]:
        """(unsigned spike the engine must have taken, entries that no tie explains)."""
        wrong = sent != nominal
        if not wrong.any():
            return s, wrong
        reset = s.copy()
        for fire, sign in product((None, 0.0, 1.0), (None, -1.0, 0.0, 1.0)):
            self.ops.forced, self.ops.margin = {"fire": fire, "sign": sign}, np.zeros(sent.shape)
            z, other = step.decide(self.ops, membrane)
            hit = wrong & (z.x == sent)
            if hit.any():
                result.explained_ties += int(hit.sum())
                result.margin = max(result.margin, float(self.ops.margin[hit].max()))
                reset, wrong = np.where(hit, other.x, reset), wrong & ~hit
        self.ops.forced = {"fire": None, "sign": None}
        return np.where(wrong, np.abs(sent), reset), wrong  # beyond explanation: follow the engine

    def _check_values(self, name: str, y: Bounded, z: np.ndarray, result: NodeResult, sample: int) -> None:
        """A recorded value without decision: it must lie inside its bound."""
        x, e = np.swapaxes(y.x, 0, 1), np.swapaxes(np.broadcast_to(y.e, y.shape), 0, 1)
        result.count(z, x)
        wrong = _apart(z, x, e, result)
        if wrong.any():
            result.mismatches += int(wrong.sum())
            i, t, neuron = first_index(wrong)
            found = float(z[i, t][neuron]), float(x[i, t][neuron])
            result.diverge(Divergence(name, sample + i, t, neuron, *found, f"bound {e[i, t][neuron]:.1g}"))


def _apart(sent: np.ndarray, expected: np.ndarray, e: np.ndarray, result: NodeResult) -> np.ndarray:
    """Where real values differ by more than rounding: outside the bound, or by more than MARGIN of the largest."""
    difference = np.abs(sent - expected)
    result.largest = max(result.largest, float(np.nanmax(difference, initial=0.0)))
    allowed = np.minimum(e, MARGIN * np.abs(expected).max(initial=1.0))
    return ~((difference == 0) | (difference <= allowed) & np.isfinite(e))  # NaN is wrong


def judge(results: dict[str, NodeResult], dtype: str) -> str:
    """ "equal", "explained" or "differs" for checked nodes; comparing nothing is a difference."""
    entries = sum(r.entries for r in results.values())
    ties = sum(r.explained_ties for r in results.values())
    margin = max((r.margin for r in results.values()), default=0.0)
    if not entries or any(r.mismatches for r in results.values()):
        return "differs"
    if ties > TIES[dtype] * entries or margin > MARGIN:
        return "differs"
    return "explained" if ties else "equal"


def judge_whole(results: dict[str, NodeResult]) -> str:
    """ "equal" or "differs" for integers, where nothing explains a difference; comparing nothing is one."""
    wrong = sum(r.mismatches + r.state_mismatches for r in results.values())
    entries = sum(r.entries for r in results.values())
    return "equal" if entries and not wrong else "differs"


def drifts(network: Network, name: str) -> bool:
    """True behind a neuron that sends its membrane: spikes there may differ between two runs of the graph, untied.

    A run is checked from the real values that it sent itself, and these agree between runs up to rounding only.
    """
    waiting, seen = list(network.sources[name]), {name}
    while waiting:
        source = waiting.pop()
        if network.steps[source].neuron and network.alphabets[source].kind == "real":
            return True
        waiting += [s for s in network.sources[source] if s not in seen]
        seen.add(source)
    return False


def _each(x: Bounded, f: Callable[[np.ndarray], np.ndarray]) -> Bounded:
    return Bounded(f(x.x), f(x.e), x.k, None if x.m is None else f(x.m))


def _rows(x: Bounded) -> Iterator[Bounded]:
    whole = _each(x, lambda a: np.broadcast_to(a, x.shape))
    return (_each(whole, lambda a, t=t: a[t]) for t in range(len(x.x)))  # type: ignore[misc]


def _stacked(rows: Sequence[Bounded]) -> Bounded:
    k = [y.k for y in rows if y.k is not None]
    e = np.stack([np.broadcast_to(y.e, y.shape) for y in rows])
    return Bounded(np.stack([y.x for y in rows]), e, min(k) if len(k) == len(rows) else None)
