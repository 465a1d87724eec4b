"""Stateless node kinds: affine maps, convolutions, pools, reshapes. Equations as in NIR 1.0 (Pedersen et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from eiexport.alphabet import Alphabet, interval
from eiexport.errors import GraphError
from eiexport.ops import Array, Ints, Ops, Window
from eiexport.steps import Clock, Step, linear_alphabet, parameter, uniform


@dataclass(frozen=True)
class Dense(Step):
    """`y = W x + b` over the last axis; weight (O, I), bias (O,) or none."""

    weight: np.ndarray
    bias: np.ndarray | None = None

    def output_shape(self, shape: Ints) -> Ints:
        out, inputs = self.weight.shape
        if not shape or shape[-1] != inputs:
            raise ValueError(f"weight {self.weight.shape} takes {inputs} inputs")
        return (*shape[:-1], out)

    def alphabet(self, a: Alphabet) -> Alphabet:
        return linear_alphabet(a, self.weight, self.bias)

    def drive(self, ops: Ops, x: Array) -> Array:
        return ops.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Conv(Step):
    """`y[o] = sum_i W[o, i] * x[i] + b[o]` (cross-correlation); weight (O, I / groups, *kernel), bias (O,) or none."""

    weight: np.ndarray
    bias: np.ndarray | None
    window: Window

    def output_shape(self, shape: Ints) -> Ints:
        axes, channels = len(self.window.stride), self.weight.shape[1] * self.window.groups
        if len(shape) != axes + 1 or shape[0] != channels:
            raise ValueError(f"convolution takes ({channels}, {', '.join('HW'[-axes:])})")
        size = self.window.output(shape[1:], self.weight.shape[2:])
        if min(size) < 1:
            raise ValueError(f"kernel {self.weight.shape[2:]} is larger than the padded input")
        return (self.weight.shape[0], *size)

    def alphabet(self, a: Alphabet) -> Alphabet:
        rows = self.weight.reshape(len(self.weight), -1)
        return linear_alphabet(a, rows, self.bias)

    def drive(self, ops: Ops, x: Array) -> Array:
        return ops.conv(x, self.weight, self.bias, self.window)


@dataclass(frozen=True)
class Scale(Step):
    """`y = s * x`, element-wise; scale of the neuron shape, or one number."""

    scale: np.ndarray
    shape: Ints

    def output_shape(self, shape: Ints) -> Ints:
        if self.shape and self.shape != shape:
            raise ValueError(f"scale has shape {self.shape}")
        return shape

    def alphabet(self, a: Alphabet) -> Alphabet:
        return linear_alphabet(a, self.scale.reshape(-1, 1), None)

    def drive(self, ops: Ops, x: Array) -> Array:
        return ops.mul(x, self.scale)


@dataclass(frozen=True)
class Pool(Step):
    """Sum over windows, times `factor` (1 for SumPool2d, 1 / area for AvgPool2d, zero padding counted in)."""

    kernel: Ints
    window: Window
    factor: np.ndarray | None

    def output_shape(self, shape: Ints) -> Ints:
        return _pooled_shape(shape, self.kernel, self.window)

    def alphabet(self, a: Alphabet) -> Alphabet:
        weight = 1.0 if self.factor is None else float(self.factor)
        return linear_alphabet(a, np.full((1, math.prod(self.kernel)), weight), None)

    def drive(self, ops: Ops, x: Array) -> Array:
        y = ops.pool(x, self.kernel, self.window)
        return y if self.factor is None else ops.mul(y, self.factor)


@dataclass(frozen=True)
class MaxPool(Step):
    """`y = max over the window of x` (EIMaxPool2d); padding counts as minus infinity, so it never wins."""

    kernel: Ints
    window: Window

    def output_shape(self, shape: Ints) -> Ints:
        return _pooled_shape(shape, self.kernel, self.window)

    def alphabet(self, a: Alphabet) -> Alphabet:
        return a

    def drive(self, ops: Ops, x: Array) -> Array:
        return ops.max_pool(x, self.kernel, self.window)


def _pooled_shape(shape: Ints, kernel: Ints, window: Window) -> Ints:
    if len(shape) != 3:
        raise ValueError("pooling takes (C, H, W)")
    size = window.output(shape[1:], kernel)
    if min(size) < 1:
        raise ValueError(f"pool window {kernel} is larger than the padded input")
    return (shape[0], *size)


@dataclass(frozen=True)
class Flatten(Step):
    """Joins the neuron axes `start`..`end` (NIR counts them without the batch axis), C order."""

    start: int
    end: int

    def output_shape(self, shape: Ints) -> Ints:
        n = len(shape)
        start, end = self.start % n if n else 0, self.end % n if n else 0
        if not -n <= self.start < n or not -n <= self.end < n or end < start:
            raise ValueError(f"cannot flatten axes {self.start}..{self.end} of {n}")
        return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])

    def alphabet(self, a: Alphabet) -> Alphabet:
        return interval(a.lo, a.hi, a.discrete)

    def drive(self, ops: Ops, x: Array) -> Array:
        return ops.reshape(x, self.output_shape(tuple(x.shape[1:])))


@dataclass(frozen=True)
class Identity(Step):
    """Input and Output: pass what they get."""

    def alphabet(self, a: Alphabet) -> Alphabet:
        return a


def _dense(node: Any, clock: Clock) -> Dense:
    weight = parameter(node, "weight")
    if weight.ndim != 2 or 0 in weight.shape:
        raise GraphError(f"weight must be (outputs, inputs), found shape {weight.shape}")
    bias = parameter(node, "bias") if isinstance(node, nir.Affine) else None
    if bias is not None and bias.shape not in ((len(weight),), ()):
        raise GraphError(f"bias has shape {bias.shape}, weight has {len(weight)} outputs")
    return Dense(weight, None if bias is None else _bias(bias, len(weight)))


def _bias(bias: np.ndarray, outputs: int) -> np.ndarray | None:
    """One bias an output; none where all are zero."""
    return np.broadcast_to(bias, outputs) if bias.any() else None


def _conv(node: Any, clock: Clock) -> Conv:
    axes = 1 if isinstance(node, nir.Conv1d) else 2
    weight, bias = parameter(node, "weight"), parameter(node, "bias")
    if weight.ndim != axes + 2 or 0 in weight.shape:
        raise GraphError(f"weight must have {axes + 2} axes (out, in / groups, kernel), found {weight.shape}")
    if bias.shape not in ((len(weight),), ()):
        raise GraphError(f"bias has shape {bias.shape}, weight has {len(weight)} output channels")
    groups = int(np.asarray(node.groups))
    if groups < 1 or len(weight) % groups:
        raise GraphError(f"groups = {groups} does not divide {len(weight)} output channels")
    stride, dilation = (_ints(node, f, axes, 1) for f in ("stride", "dilation"))
    kernel = weight.shape[2:]
    padding = _padding(node, axes, kernel, stride, dilation)
    return Conv(weight, _bias(bias, len(weight)), Window(stride, padding, dilation, groups))


def _padding(node: Any, axes: int, kernel: Ints, stride: Ints, dilation: Ints) -> Ints:
    value = node.padding.decode() if isinstance(node.padding, bytes) else node.padding
    if not isinstance(value, str):
        return _ints(node, "padding", axes, 0)
    if value == "valid":
        return (0,) * axes
    spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if value != "same" or any(s != 1 for s in stride) or any(s % 2 for s in spans):
        raise GraphError(f'padding "{value}" needs "same" with stride 1 and odd kernels, or numbers')
    return tuple(s // 2 for s in spans)


def _ints(node: Any, field: str, axes: int, least: int) -> Ints:
    a = np.asarray(getattr(node, field))
    if a.size not in (1, axes) or not np.issubdtype(a.dtype, np.number) or (a != a.astype(int)).any():
        raise GraphError(f"{field} must be {axes} whole numbers, found {getattr(node, field)!r}")
    values = tuple(int(v) for v in np.broadcast_to(a.reshape(-1), axes))
    if min(values) < least:
        raise GraphError(f"{field} must be at least {least}, found {min(values)}")
    return values


def _pool(node: Any, clock: Clock) -> Pool:
    kernel, window = _pool_window(node)
    factor = None if isinstance(node, nir.SumPool2d) else np.asarray(1 / math.prod(kernel))
    return Pool(kernel, window, factor)


def max_pool(node: Any, clock: Clock) -> MaxPool:
    return MaxPool(*_pool_window(node))


def _pool_window(node: Any) -> tuple[Ints, Window]:
    """(kernel, window); every window then holds at least one pixel of the map."""
    kernel, stride = _ints(node, "kernel_size", 2, 1), _ints(node, "stride", 2, 1)
    padding = _ints(node, "padding", 2, 0)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise GraphError(f"padding {padding} is more than half the window {kernel}")
    return kernel, Window(stride, padding, (1, 1))


def _scale(node: Any, clock: Clock) -> Scale:
    scale = parameter(node, "scale")
    return Scale(uniform(scale), () if scale.size == 1 else scale.shape)


PREPARE: dict[str, Callable[[Any, Clock], Step]] = {
    "Affine": _dense,
    "Linear": _dense,
    "Conv1d": _conv,
    "Conv2d": _conv,
    "Scale": _scale,
    "SumPool2d": _pool,
    "AvgPool2d": _pool,
    "Flatten": lambda node, clock: Flatten(int(node.start_dim), int(node.end_dim)),
    "Input": lambda node, clock: Identity(),
    "Output": lambda node, clock: Identity(),
}
