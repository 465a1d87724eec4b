"""Values with running error bounds: what an engine of a given dtype may have computed instead.

Each value is (x, e, k, m): float64 value; bound on |engine - x|; exponent k such that x is a multiple of 2**k (None:
unknown); m, how large the error of x would be, over u, if nothing had been exact (None: |x|).
Sums whose terms all lie on one grid and fit the engine's mantissa are exact in any order, so they add no error:
integer-valued inputs that land on a threshold leave no room for an "explained" tie. An engine may fold a factor into
the weights before it, so a product with an inexact factor rounds at m, not at |x|.
Standard model fl(a op b) = (a op b)(1 + d), |d| <= u; n-term sums in any order: n u sum|terms| (Higham 2002, ch. 3).
Overflow and underflow have no place in it: values whose size the dtype cannot hold show up as differences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from eiexport.ops import Ints, NumpyOps, Window


class Bounded(NamedTuple):
    x: np.ndarray
    e: np.ndarray
    k: int | None
    m: np.ndarray | None = None

    @property
    def rough(self) -> np.ndarray:
        """What one rounding may scale with."""
        return np.abs(self.x) if self.m is None else self.m

    @property
    def shape(self) -> Ints:
        return self.x.shape


def grid(a: np.ndarray) -> int | None:
    """Largest k in 0, -2, ... -24 such that all entries are multiples of 2**k, else None."""
    found: int | None = None
    for k in (-24, -12, -6, -4, -2, 0):
        y = np.ldexp(a, -k)
        if (y != np.rint(y)).any():
            break
        found = k
    return found


class BoundedOps:
    """Float64 values with the error bound of an engine that computes in `dtype` ("float32" or "float64")."""

    name = "bounds"

    def __init__(self, dtype: str) -> None:
        # both sides round: the engine in its dtype, this computation in float64
        self.u = float(np.finfo(dtype).eps) / 2 + 2.0**-53
        self.limit = 2.0 ** (np.finfo(dtype).nmant + 1)
        self.tiny = float(np.finfo(dtype).smallest_normal)
        self.np = NumpyOps()

    def exact(self, x: np.ndarray) -> Bounded:
        """A value that the engine holds too: a recorded output, an input."""
        return Bounded(x, np.zeros_like(x), grid(x))

    def const(self, a: np.ndarray) -> Bounded:
        a = np.asarray(a, np.float64)
        k = grid(a)
        return Bounded(a, np.zeros_like(a) if self._fits(np.abs(a), k) else self.u * np.abs(a), k)

    def zeros(self, shape: Ints) -> Bounded:
        return Bounded(np.zeros(shape), np.zeros(shape), 0)

    def add(self, a: Any, b: Any) -> Bounded:
        a, b = self._lift(a), self._lift(b)
        return self._sum(a.x + b.x, a.e + b.e, np.abs(a.x) + np.abs(b.x), 1, _least(a.k, b.k), _terms(a, b))

    def sub(self, a: Any, b: Any) -> Bounded:
        a, b = self._lift(a), self._lift(b)
        return self._sum(a.x - b.x, a.e + b.e, np.abs(a.x) + np.abs(b.x), 1, _least(a.k, b.k), _terms(a, b))

    def mul(self, a: Any, b: Any) -> Bounded:
        a, b = self._lift(a), self._lift(b)
        e = np.abs(a.x) * b.e + (np.abs(b.x) + b.e) * a.e
        magnitude = a.rough * b.rough
        terms = None if a.m is None and b.m is None else magnitude
        return self._sum(a.x * b.x, e, magnitude, 1, _both(a.k, b.k), terms)

    def div(self, a: Any, b: Any) -> Bounded:
        """|a/b - a'/b'| <= (|a/b| e_b + e_a) / (|b| - e_b); by a power of two nothing is rounded."""
        a, b = self._lift(a), self._lift(b)
        endless = np.isinf(b.x) & (b.e == 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            y, room = np.where(endless, 0.0, a.x / b.x), np.abs(b.x) - b.e
            e = np.where(endless, 0.0, (np.abs(y) * b.e + a.e) / room)
            magnitude = np.where(endless, 0.0, a.rough / np.abs(b.x))
        e = np.where((room > 0) | endless, e, np.inf)
        inexact = (np.abs(np.frexp(b.x)[0]) != 0.5) | (np.broadcast_to(b.e, e.shape) > 0)
        e = np.where(inexact & ~endless, e + self.u * (magnitude + e), e)
        return Bounded(y, e, None if e.any() else grid(y))

    def relu(self, x: Bounded) -> Bounded:
        return Bounded(np.maximum(x.x, 0), x.e, x.k, x.m)

    def least(self, x: Bounded) -> Bounded:
        """No lower than the smallest of the lower ends, and not as far above, where it is known which values are 0."""
        y = self.np.least(x.x)
        with np.errstate(invalid="ignore"):
            e = np.where(np.isinf(y), 0.0, y - self.np.least(x.x - x.e))
        unsure = self._maybe_zero(x).any(axis=tuple(range(1, x.x.ndim)), keepdims=True)
        return Bounded(y, np.where(unsure, np.inf, e), None)

    def fill(self, x: Bounded, y: Any) -> Bounded:
        """Where it is not known whether x is 0, nothing is known."""
        y = self._lift(y)
        e = np.where(x.x == 0, np.broadcast_to(y.e, x.shape), x.e)
        return Bounded(self.np.fill(x.x, y.x), np.where(self._maybe_zero(x), np.inf, e), None)

    def _maybe_zero(self, x: Bounded) -> np.ndarray:
        """Where the engine may hold 0 or not; numbers too small for its dtype it may have flushed to 0."""
        size = np.abs(x.x)
        return (size <= x.e) & (x.e > 0) | (size < self.tiny) & (size > 0)

    def octave(self, x: Bounded, low: float) -> Bounded:
        # the factor `low` is rounded by the engine, and so is the quotient: unless it is a power of two itself
        rounded = 0.0 if np.frexp(low)[0] == 0.5 else 4 * self.u
        least = float(np.finfo(np.float64).tiny)
        return self._rising(lambda a: self.np.octave(np.maximum(a, least), low), x, x.e + rounded * np.abs(x.x))

    def gate(self, x: Bounded) -> Bounded:
        y = self.np.gate(x.x)
        # slope at most 1/4; exp and the division are good to a few units in the last place
        return Bounded(y, x.e / 4 + 8 * self.u * y, None)

    def fire(self, v: Bounded, threshold: Any, compare: str) -> Bounded:
        return self.exact(self.np.fire(v.x, self._lift(threshold).x, compare))

    def sign(self, x: Bounded) -> Bounded:
        return self.exact(np.sign(x.x))

    def linear(self, x: Bounded, weight: Bounded, bias: Bounded | None) -> Bounded:
        return self._product(x, weight, bias, lambda a, w: self.np.linear(a, w, None))

    def conv(self, x: Bounded, weight: Bounded, bias: Bounded | None, window: Window) -> Bounded:
        if bias is not None:
            wide = (-1, *[1] * len(window.stride))
            bias = Bounded(bias.x.reshape(wide), bias.e.reshape(wide), bias.k)
        return self._product(x, weight, bias, lambda a, w: self.np.conv(a, w, None, window))

    def pool(self, x: Bounded, kernel: Ints, window: Window) -> Bounded:
        def pooled(a: np.ndarray) -> np.ndarray:
            return self.np.pool(a, kernel, window)

        n = int(np.prod(kernel))
        # an engine may have folded the factor behind the pool into the weights before it: then each term was rounded
        folded = n * pooled(np.broadcast_to(x.rough, x.shape))
        return self._sum(pooled(x.x), pooled(x.e), pooled(np.abs(x.x)), n, x.k, folded)

    def max_pool(self, x: Bounded, kernel: Ints, window: Window) -> Bounded:
        """One of the values in the window, so no rounding; |max(a + d) - max(a)| <= max|d|, whichever wins."""

        def largest(a: np.ndarray) -> np.ndarray:
            return self.np.max_pool(a, kernel, window)

        m = None if x.m is None else largest(np.broadcast_to(x.m, x.shape))
        return Bounded(largest(x.x), largest(np.broadcast_to(x.e, x.shape)), x.k, m)

    def reshape(self, x: Bounded, shape: Ints) -> Bounded:
        m = None if x.m is None else self.np.reshape(x.m, shape)
        return Bounded(self.np.reshape(x.x, shape), self.np.reshape(x.e, shape), x.k, m)

    def stop_gradient(self, x: Bounded) -> Bounded:
        return x

    def scale_gradient(self, x: Bounded, factor: float) -> Bounded:
        return x

    # of whole numbers: without an error they are exact, with one the result lies between those of the ends

    def shift_floor(self, x: Bounded, bits: int) -> Bounded:
        return self._rising(lambda a: self.np.shift_floor(a, bits), x, x.e)

    def shift_zero(self, x: Bounded, bits: int) -> Bounded:
        return self._rising(lambda a: self.np.shift_zero(a, bits), x, x.e)

    def quotient(self, a: Bounded, b: Bounded) -> Bounded:
        y = self.div(a, b)
        exact = (np.broadcast_to(a.e, y.shape) == 0) & (np.broadcast_to(b.e, y.shape) == 0)
        return self._rising(np.floor, y._replace(x=self.np.quotient(a.x, b.x)), np.where(exact, 0.0, y.e))

    def wrap(self, x: Bounded, bits: int) -> Bounded:
        return self._whole(self.np.wrap(x.x, bits), np.where(x.e > 0, 2.0**bits, 0.0), x)

    def modulo(self, x: Bounded, bits: int) -> Bounded:
        return self._whole(self.np.modulo(x.x, bits), np.where(x.e > 0, 2.0**bits, 0.0), x)

    def saturate(self, x: Bounded, lo: int, hi: int) -> Bounded:
        return self._whole(self.np.saturate(x.x, lo, hi), x.e, x)

    def table(self, index: Bounded, values: Bounded) -> Bounded:
        y, top = self.np.table(index.x, values.x), len(values.x) - 1
        if (steps := np.diff(values.x)).size and not ((steps >= 0).all() or (steps <= 0).all()):
            return Bounded(y, np.where(index.e > 0, float(np.ptp(values.x)), 0.0), None)
        ends = (self.np.table(np.clip(np.rint(index.x + s * index.e), 0, top), values.x) for s in (-1, 1))
        e = np.maximum(*(np.abs(end - y) for end in ends))
        return Bounded(y, e + float(np.max(values.e, initial=0.0)), grid(values.x))

    def _rising(self, f: Any, x: Bounded, e: np.ndarray) -> Bounded:
        """A function that never falls, of x off by up to e."""
        y = f(x.x)
        with np.errstate(invalid="ignore"):
            off = np.maximum(f(x.x + e) - y, y - f(x.x - e))
        off = np.where(np.isnan(off), 0.0, off)  # of an infinite value
        return Bounded(y, np.where(np.isinf(e), np.inf, off), grid(y))

    def _whole(self, y: np.ndarray, e: np.ndarray, x: Bounded) -> Bounded:
        return Bounded(y, np.where(x.e > 0, e + 1, 0.0), 0)

    def _lift(self, a: Any) -> Bounded:
        return a if isinstance(a, Bounded) else self.const(np.asarray(a, np.float64))

    def _fits(self, magnitude: np.ndarray, k: int | None) -> bool:
        return k is not None and (magnitude.size == 0 or float(magnitude.max()) * 2.0**-k < self.limit)

    def _sum(
        self, x: np.ndarray, e: np.ndarray, magnitude: np.ndarray, n: int, k: int | None, m: np.ndarray | None = None
    ) -> Bounded:
        """A sum with n roundings and propagated error e; `magnitude` = sum of |terms|."""
        if self._fits(magnitude + e, k):
            return Bounded(x, np.broadcast_to(e, x.shape), k, m)
        return Bounded(x, e + n * self.u * (magnitude + e), k, m)

    def _product(self, x: Bounded, weight: Bounded, bias: Bounded | None, apply: Any) -> Bounded:
        """Sum of products; an engine may start its accumulator at the bias, so that is one more term of the sum."""
        y, k, w = apply(x.x, weight.x), _both(x.k, weight.k), np.abs(weight.x)
        magnitude = apply(np.abs(x.x), w)
        inexact = bool(x.e.any() or weight.e.any())
        if bias is not None:
            y, magnitude, k = y + bias.x, magnitude + np.abs(bias.x), _least(k, bias.k)
            inexact = inexact or bool(bias.e.any())
        roundings = weight.x[0].size + 3  # products, sums, and the parameters' own rounding
        if not inexact and self._fits(magnitude, k):
            return Bounded(y, np.zeros_like(y), k, roundings * magnitude)
        relative = roundings * self.u
        e = relative * magnitude + ((1 + relative) * apply(x.e, w) if x.e.any() else 0.0)
        return Bounded(y, e, k, roundings * magnitude)


def _terms(a: Bounded, b: Bounded) -> np.ndarray | None:
    return None if a.m is None and b.m is None else a.rough + b.rough


def _least(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else min(a, b)


def _both(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b
