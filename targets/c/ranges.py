"""What every value of a traced step can be: an interval, and whether it is whole. C's types are chosen by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count, product
from typing import Any, NamedTuple

import numpy as np

from eiexport.ops import Ints, Window
from eiexport.tracing import Dag, Symbol


class Range(NamedTuple):
    """All values of an array lie in [lo, hi]; values: those of a constant."""

    lo: float
    hi: float
    whole: bool
    values: np.ndarray | None = None

    def within(self, lo: float, hi: float) -> bool:
        return lo <= self.lo and self.hi <= hi

    def join(self, other: Range) -> Range:
        return Range(min(self.lo, other.lo), max(self.hi, other.hi), self.whole and other.whole)


ZERO = Range(0.0, 0.0, True)
WIDEST = 2.0**44  # a register held over many steps: times a decay of 12 bits it still fits
LADDER = (1.0, 127.0, 2.0**15 - 1, 2.0**23, 2.0**24, 2.0**31 - 1, 2.0**36, 2.0**40, WIDEST)


class RangeOps:
    """The op protocol on ranges. Sums hold in any order: the interval of a product takes in all its partial sums.

    most: whole numbers beyond it are not tracked, as in a float that would round them; fractions then neither are.
    """

    name = "ranges"

    def __init__(self, most: float = math.inf) -> None:
        self.most = most
        self._rows: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def const(self, a: np.ndarray) -> Range:
        if not a.size:
            return ZERO
        lo, hi, whole = float(a.min()), float(a.max()), bool((a == np.rint(a)).all())
        return self._range(lo, hi, whole)._replace(values=a)

    def zeros(self, shape: Ints) -> Range:
        return ZERO

    def add(self, a: Any, b: Any) -> Range:
        a, b = self._lift(a), self._lift(b)
        return self._range(a.lo + b.lo, a.hi + b.hi, a.whole and b.whole)

    def sub(self, a: Any, b: Any) -> Range:
        a, b = self._lift(a), self._lift(b)
        return self._range(a.lo - b.hi, a.hi - b.lo, a.whole and b.whole)

    def mul(self, a: Any, b: Any) -> Range:
        return self._corners(lambda x, y: x * y, a, b, True)

    def div(self, a: Any, b: Any) -> Range:
        b = self._lift(b)
        if b.lo <= 0 <= b.hi:
            return self._range(-math.inf, math.inf, False)
        return self._corners(lambda x, y: x / y, a, b, False)

    def gate(self, x: Range) -> Range:
        return self._range(0.0, 1.0, False)

    def relu(self, x: Range) -> Range:
        return self._range(max(x.lo, 0.0), max(x.hi, 0.0), x.whole)

    def least(self, x: Range) -> Range:
        return self._range(-math.inf, math.inf, False)  # infinite where there is none

    def fill(self, x: Range, y: Any) -> Range:
        y = self._lift(y)
        lo = 1.0 if x.whole and x.lo == 0 else x.lo
        return self._range(min(lo, y.lo), max(x.hi, y.hi), x.whole and y.whole)

    def octave(self, x: Range, low: float) -> Range:
        if not 0 < x.lo <= x.hi < math.inf:
            return self._range(0.0, math.inf, False)
        lo, hi = (2.0 ** (math.frexp(v / low)[1] - 1) for v in (x.lo, x.hi))
        return self._range(lo, hi, lo >= 1)

    def fire(self, v: Any, threshold: Any, compare: str) -> Range:
        return Range(0.0, 1.0, True)

    def sign(self, x: Range) -> Range:
        return Range(-1.0, 1.0, True)

    def linear(self, x: Range, weight: Range, bias: Range | None) -> Range:
        return self._product(x, weight, bias)

    def conv(self, x: Range, weight: Range, bias: Range | None, window: Window) -> Range:
        return self._product(x, weight, bias)

    def pool(self, x: Range, kernel: Ints, window: Window) -> Range:
        n = math.prod(kernel)
        return self._range(n * min(x.lo, 0.0), n * max(x.hi, 0.0), x.whole)

    def max_pool(self, x: Range, kernel: Ints, window: Window) -> Range:
        return x._replace(values=None)

    def reshape(self, x: Range, shape: Ints) -> Range:
        return x

    def stop_gradient(self, x: Range) -> Range:
        return x

    def scale_gradient(self, x: Range, factor: float) -> Range:
        return x

    def shift_floor(self, x: Range, bits: int) -> Range:
        lo, hi = x.lo * 2.0**-bits, x.hi * 2.0**-bits
        return self._rounded(math.floor, lo, hi) if bits > 0 else self._range(lo, hi, x.whole)

    def shift_zero(self, x: Range, bits: int) -> Range:
        return self._rounded(math.trunc, x.lo * 2.0**-bits, x.hi * 2.0**-bits)

    def wrap(self, x: Range, bits: int) -> Range:
        top = 2.0 ** (bits - 1)
        parts = [(max(x.lo, -top), min(x.hi, top))]  # an end of -top is turned, so this is one too wide at most
        parts += [(max(x.lo, top) - 2 * top, x.hi - 2 * top)] if x.hi > top else []
        parts += [(x.lo + 2 * top, min(x.hi, -top) + 2 * top)] if x.lo <= -top else []
        kept = [(lo, hi) for lo, hi in parts if lo <= hi]
        return self._range(min(lo for lo, _ in kept), max(hi for _, hi in kept), x.whole)

    def modulo(self, x: Range, bits: int) -> Range:
        top = 2.0 ** (bits - 1)
        return x._replace(values=None) if x.within(-top, top - 1) else self._range(-top, top - x.whole, x.whole)

    def saturate(self, x: Range, lo: int, hi: int) -> Range:
        return self._range(min(max(x.lo, lo), hi), max(min(x.hi, hi), lo), x.whole)

    def table(self, index: Range, values: Range) -> Range:
        assert values.values is not None
        if not (index.whole and index.within(0, len(values.values) - 1)):
            raise ValueError(f"an index in [{index.lo:g}, {index.hi:g}] may leave its table")
        return values._replace(values=None)

    def quotient(self, a: Any, b: Any) -> Range:
        y = self.div(a, b)
        return self._rounded(math.floor, y.lo, y.hi)

    def _lift(self, a: Any) -> Range:
        return a if isinstance(a, Range) else self.const(np.asarray(a, np.float64))

    def _range(self, lo: float, hi: float, whole: bool) -> Range:
        if math.isnan(lo) or math.isnan(hi) or max(-lo, hi) > self.most or (self.most < math.inf and not whole):
            return Range(-math.inf, math.inf, whole)
        return Range(lo, hi, whole)

    def _rounded(self, f: Callable[[float], float], lo: float, hi: float) -> Range:
        low, high = (float(f(v)) if math.isfinite(v) else v for v in (lo, hi))
        return self._range(low, high, True)

    def _corners(self, f: Callable[[float, float], float], a: Any, b: Any, whole: bool) -> Range:
        a, b = self._lift(a), self._lift(b)
        ends = [f(x, y) for x, y in product((a.lo, a.hi), (b.lo, b.hi))]
        whole = whole and a.whole and b.whole
        bad = any(math.isnan(v) for v in ends)
        return self._range(-math.inf if bad else min(ends), math.inf if bad else max(ends), whole)

    def _product(self, x: Range, weight: Range, bias: Range | None) -> Range:
        whole = x.whole and weight.whole and (bias is None or bias.whole)
        lo, hi = min(x.lo, 0.0), max(x.hi, 0.0)
        if not math.isfinite(hi - lo):
            return self._range(-math.inf, math.inf, whole)
        assert weight.values is not None
        up, down = self._sums(weight.values)
        b = np.zeros(1) if bias is None else np.ravel(bias.values)  # type: ignore[arg-type]
        low = (up * lo + down * hi + np.minimum(b, 0)).min()
        return self._range(float(low), float((up * hi + down * lo + np.maximum(b, 0)).max()), whole)

    def _sums(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the positive and of the negative weights of each output."""
        if id(weight) not in self._rows:
            rows = weight.reshape(len(weight), -1).astype(np.float64)
            sums = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)
            self._rows[id(weight)] = (*sums, weight)  # held, so that no other array gets its id
        return self._rows[id(weight)][:2]


class Found(NamedTuple):
    """ranges: of each line; states: what they hold at any time; steps: for how many that is proven, None: for ever."""

    ranges: list[Range]
    states: dict[str, Range]
    steps: int | None


def infer(dag: Dag, given: dict[str, Range], ops: RangeOps) -> Found:
    """Ranges of all lines for inputs in `given`, over any number of steps; the other inputs are states, zero at first.

    A register that may grow without end is followed up to 2^44, and the number of steps told for which that holds.
    """
    held = {n: ZERO for n in dag.inputs if n not in given}
    ends = {n: o.index for n, o in zip(dag.names, dag.outputs, strict=True) if n in held}
    limits: dict[str, int] = {}  # steps for which what a state is held in is proven
    lines = _Lines(dag, {**given, **held}, ops)
    moved = set(ends)  # states to look at: what they were or become is another range than a turn before
    for turn in count():
        new: dict[str, Range] = {}
        for n in moved:
            r = held[n].join(lines.ranges[ends[n]])
            limits.pop(n, None)
            if r.whole and WIDEST < (reach := max(-r.lo, r.hi)) < math.inf:
                # it grows by no more a step than it does from here, and less than 2^24 before its first turn
                limits[n] = int((WIDEST - 2.0**24) / (reach - WIDEST))
                r = Range(-WIDEST, WIDEST, True)
            if r != held[n]:
                new[n] = _widened(held[n], r) if turn > 3 else r
        if not new:
            return Found(lines.ranges, held, min(limits.values(), default=None))
        held |= new
        changed = lines.set(new)
        moved = {n for i in changed for n in lines.ending.get(i, ()) if n in ends} | new.keys()
    raise AssertionError


class _Lines:
    """The range of each line; only what a new range of an input reaches is computed again."""

    def __init__(self, dag: Dag, inputs: dict[str, Range], ops: RangeOps) -> None:
        self.dag, self.ops, self.ranges = dag, ops, [ZERO] * len(dag.lines)
        self.inputs = {n: s.index for n, s in dag.inputs.items()}
        self.readers: dict[int, list[int]] = {}
        self.ending: dict[int, list[str]] = {}  # names of the outputs that a line is
        for n, o in zip(dag.names, dag.outputs, strict=True):
            self.ending.setdefault(o.index, []).append(n)
        for i, line in enumerate(dag.lines):
            for a in {a.index for a in line.args if isinstance(a, Symbol)}:
                self.readers.setdefault(a, []).append(i)
            self.ranges[i] = inputs[line.args[0]] if line.op == "input" else self._range(i)

    def set(self, inputs: dict[str, Range]) -> list[int]:
        """The lines whose range changed."""
        changed = [self.inputs[n] for n in inputs]
        for n, r in inputs.items():
            self.ranges[self.inputs[n]] = r
        waiting = sorted({k for i in changed for k in self.readers.get(i, ())})
        seen = set(waiting)
        while waiting:
            i = heappop(waiting)
            r = self._range(i)
            if r == self.ranges[i]:
                continue
            self.ranges[i] = r
            changed.append(i)
            for k in self.readers.get(i, ()):
                if k not in seen:
                    seen.add(k)
                    heappush(waiting, k)
        return changed

    def _range(self, i: int) -> Range:
        line = self.dag.lines[i]
        if line.op == "const":
            return self.ops.const(line.args[0])
        args = (self.ranges[a.index] if isinstance(a, Symbol) else a for a in line.args)
        found: Range = getattr(self.ops, line.op)(*args)
        return found


def _widened(old: Range, new: Range) -> Range:
    """Ends that moved go on to the next rung, so that it ends."""
    lo = new.lo if new.lo == old.lo else -next((v for v in LADDER if v >= -new.lo), math.inf)
    hi = new.hi if new.hi == old.hi else next((v for v in LADDER if v >= new.hi), math.inf)
    return Range(lo, hi, new.whole)
