"""The op protocol that every step is written in, and its NumPy op set.

A node kind's step calls these methods and nothing else, so one equation serves every engine: NumPy here,
torch in `targets.pytorch`, values with error bounds in `eiexport.bounds`, symbols in `eiexport.tracing`.
Arrays carry one leading axis (samples, or samples x steps where time is folded) before the neuron axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = Any  # the engine's own array type
Ints = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pool over the trailing spatial axes; all in (H, W) order, units of pixels."""

    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int = 1

    def output(self, size: Sequence[int], kernel: Sequence[int]) -> Ints:
        """Spatial output size, `floor((n + 2p - d(k-1) - 1) / s) + 1` per axis."""
        axes = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


class Ops(Protocol):
    """What a step may use. `x`, `v`: arrays of the engine; parameters come from `const`."""

    def const(self, a: np.ndarray) -> Array: ...
    def zeros(self, shape: Ints) -> Array: ...
    def add(self, a: Array, b: Array) -> Array: ...
    def sub(self, a: Array, b: Array) -> Array: ...
    def mul(self, a: Array, b: Array) -> Array: ...
    def div(self, a: Array, b: Array) -> Array:
        """a / b; b is never 0, and a / inf is 0."""

    def gate(self, x: Array) -> Array:
        """Logistic sigmoid 1 / (1 + exp(-x))."""

    def relu(self, x: Array) -> Array:
        """x where it is above 0, else 0."""

    def least(self, x: Array) -> Array:
        """The smallest value other than 0 of each row of x >= 0, (N, 1, ...); infinite where a row holds zeros only."""

    def fill(self, x: Array, y: Array) -> Array:
        """y where x is exactly 0, else x."""

    def octave(self, x: Array, low: float) -> Array:
        """For finite x > 0 the power of two p with low * p <= x < 2 * low * p."""

    def fire(self, v: Array, threshold: Array, compare: str) -> Array:
        """1 where `v > threshold` (compare "gt") or `v >= threshold` ("ge"), else +0."""

    def sign(self, x: Array) -> Array:
        """-1, 0 or +1, with sign(0) = 0."""

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """x (N, *, I) with weight (O, I), bias (O,) -> (N, *, O)."""

    def conv(self, x: Array, weight: Array, bias: Array | None, window: Window) -> Array:
        """Cross-correlation, x (N, C, *spatial), weight (O, C / groups, *kernel), bias (O,); one or two axes."""

    def pool(self, x: Array, kernel: Ints, window: Window) -> Array:
        """Sum over each kernel window, zero padded."""

    def max_pool(self, x: Array, kernel: Ints, window: Window) -> Array:
        """Largest value of each kernel window of x (N, C, H, W); padding counts as minus infinity."""

    def reshape(self, x: Array, shape: Ints) -> Array:
        """New neuron shape behind the leading axis."""

    def stop_gradient(self, x: Array) -> Array:
        """Identity; cuts the gradient where there is one."""

    def scale_gradient(self, x: Array, factor: float) -> Array:
        """Identity; multiplies the gradient where there is one."""

    # Whole numbers are held in the engine's float arrays: exact below 2^53 in float64.

    def shift_floor(self, x: Array, bits: int) -> Array:
        """x >> bits (arithmetic: rounds down), x << -bits for negative bits."""

    def shift_zero(self, x: Array, bits: int) -> Array:
        """sign(x) * (|x| >> bits): rounds toward zero."""

    def wrap(self, x: Array, bits: int) -> Array:
        """One turn of a register of `bits` bits, top = 2^(bits - 1): x > top goes down by 2^bits, x <= -top up."""

    def modulo(self, x: Array, bits: int) -> Array:
        """x modulo 2^bits, in [-2^(bits - 1), 2^(bits - 1))."""

    def saturate(self, x: Array, lo: int, hi: int) -> Array:
        """x clipped to [lo, hi]."""

    def table(self, index: Array, values: Array) -> Array:
        """values[index], for whole numbers 0 <= index < len(values)."""

    def quotient(self, a: Array, b: Array) -> Array:
        """a / b rounded down, for whole numbers with |a| + b below 2^52 and b >= 1."""


class NumpyOps:
    """The meaning itself: NumPy, float64 unless told otherwise."""

    name = "numpy"

    def __init__(self, dtype: Any = np.float64) -> None:
        self.dtype = np.dtype(dtype)

    def const(self, a: np.ndarray) -> np.ndarray:
        return np.asarray(a, self.dtype)

    def zeros(self, shape: Ints) -> np.ndarray:
        return np.zeros(shape, self.dtype)

    def add(self, a: Array, b: Array) -> Array:
        return a + b

    def sub(self, a: Array, b: Array) -> Array:
        return a - b

    def mul(self, a: Array, b: Array) -> Array:
        return a * b

    def div(self, a: Array, b: Array) -> Array:
        return a / b

    def gate(self, x: Array) -> Array:
        # exp of a non-positive number only: never overflows
        e = np.exp(-np.abs(x))
        return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(self.dtype, copy=False)

    def relu(self, x: Array) -> Array:
        return np.maximum(x, 0)

    def least(self, x: Array) -> Array:
        return np.where(x == 0, np.inf, x).min(axis=tuple(range(1, x.ndim)), keepdims=True)

    def fill(self, x: Array, y: Array) -> Array:
        return np.where(x == 0, y, x)

    def octave(self, x: Array, low: float) -> Array:
        fraction, exponent = np.frexp(x / low)  # fraction in [1/2, 1)
        return np.ldexp(np.ones_like(fraction), exponent - 1)

    def fire(self, v: Array, threshold: Array, compare: str) -> Array:
        return (v >= threshold if compare == "ge" else v > threshold).astype(self.dtype)

    def sign(self, x: Array) -> Array:
        return np.sign(x)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return x @ weight.T if bias is None else x @ weight.T + bias

    def conv(self, x: Array, weight: Array, bias: Array | None, window: Window) -> Array:
        n, kernel = x.shape[0], weight.shape[2:]
        per, out = weight.shape[1], weight.shape[0] // window.groups
        patches = _windows(x, kernel, window)  # (N, C, *out, *kernel)
        size = patches.shape[2 : 2 + len(kernel)]
        space = tuple(range(2, 2 + len(kernel)))
        taps = tuple(range(2 + len(kernel), patches.ndim))
        result = np.empty((n, weight.shape[0], *size), np.result_type(x, weight))
        # im2col in slabs of samples: one matrix product each, and never more than about 64 MB of patches
        slab = max(1, int(8e6 // max(1, math.prod(size) * per * math.prod(kernel))))
        for g in range(window.groups):
            filters = weight[g * out : (g + 1) * out].reshape(out, -1).T
            for i in range(0, n, slab):
                part = patches[i : i + slab, g * per : (g + 1) * per].transpose(0, *space, 1, *taps)
                y = part.reshape(-1, per * math.prod(kernel)) @ filters
                y = y.reshape(part.shape[0], *size, out)
                result[i : i + slab, g * out : (g + 1) * out] = np.moveaxis(y, -1, 1)
        return result if bias is None else result + bias.reshape(-1, *[1] * len(kernel))

    def pool(self, x: Array, kernel: Ints, window: Window) -> Array:
        return _windows(x, kernel, window).sum(axis=tuple(range(-len(kernel), 0)))

    def max_pool(self, x: Array, kernel: Ints, window: Window) -> Array:
        return _windows(x, kernel, window, -np.inf).max(axis=tuple(range(-len(kernel), 0)))

    def reshape(self, x: Array, shape: Ints) -> Array:
        return x.reshape(x.shape[0], *shape)

    def stop_gradient(self, x: Array) -> Array:
        return x

    def scale_gradient(self, x: Array, factor: float) -> Array:
        return x

    def shift_floor(self, x: Array, bits: int) -> Array:
        return np.floor(np.ldexp(x, -bits)) if bits > 0 else np.ldexp(x, -bits)

    def shift_zero(self, x: Array, bits: int) -> Array:
        return np.trunc(np.ldexp(x, -bits))

    def wrap(self, x: Array, bits: int) -> Array:
        top = 2.0 ** (bits - 1)
        return np.where(x > top, x - 2 * top, np.where(x <= -top, x + 2 * top, x))

    def modulo(self, x: Array, bits: int) -> Array:
        top = 2.0 ** (bits - 1)
        return np.mod(x + top, 2 * top) - top

    def saturate(self, x: Array, lo: int, hi: int) -> Array:
        return np.clip(x, lo, hi)

    def table(self, index: Array, values: Array) -> Array:
        return values[index.astype(np.int64)]

    def quotient(self, a: Array, b: Array) -> Array:
        # floor(fl(a / b)) is exact: a quotient below a whole number n is at least 1 / b below it, more than fl moves it
        return np.floor(a / b)


def _windows(x: np.ndarray, kernel: Sequence[int], window: Window, fill: float = 0.0) -> np.ndarray:
    """Strided view (N, C, *out, *kernel) of the input, padded with `fill`."""
    pad = [(0, 0), (0, 0)] + [(p, p) for p in window.padding]
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, window.dilation, strict=True))
    padded = np.pad(x, pad, constant_values=fill) if any(window.padding) else x
    view = sliding_window_view(padded, span, axis=tuple(range(2, x.ndim)))
    steps = [slice(None, None, s) for s in window.stride] + [slice(None, None, d) for d in window.dilation]
    return view[(slice(None), slice(None), *steps)]
