"""Narrow arithmetic that is exact: sums of bytes in int32, pools of bytes, neurons in int32 (the CPU's fast ways).

Arrays are (samples x steps, *space, channels) or (samples, *space, channels), and are changed in place. Each kernel
stands for a step of `eiexport.integers`, which is its meaning: tests hold it against that step, bit for bit.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from eiexport.alphabet import Alphabet
from eiexport.connections import Pool
from eiexport.integers import ALIGN, REGISTER, TOP, UNITY, IntConvStep, IntFire, IntGatedFire, IntLinear
from eiexport.ops import Ints, Window
from eiexport.steps import bind

WIDEST = 1 << 18  # inputs up to this leave a register within its 24 bits after one turn
PLAIN = Window((1, 1), (0, 0), (1, 1))


def planar(window: Window) -> Window:
    """A window over one axis as one over two."""
    if len(window.stride) == 2:
        return window
    return Window((1, *window.stride), (0, *window.padding), (1, *window.dilation), window.groups)


# --- sums


class Scratch:
    """Arrays of one thread that are used again and again; fresh ones hold zeros."""

    def __init__(self) -> None:
        self._held: dict[Any, np.ndarray] = {}

    def __call__(self, key: Any, shape: Ints, dtype: Any) -> np.ndarray:
        size, key = math.prod(shape), (key, np.dtype(dtype))
        if key not in self._held or self._held[key].size < size:
            self._held[key] = np.zeros(size, dtype)
        return self._held[key][:size].reshape(shape)


class Product:
    """The sums of an IntLinear (shifted, wrapped, with bias) in int32, for messages of one or two bytes.

    Gathers, for each `block` of neighbouring outputs of a row, the input bytes that they see, and multiplies them by
    the kernels laid side by side: a matrix product of few rows and many columns, which is fastest with bytes. A dense
    layer is a kernel of one pixel.
    """

    def __init__(self, step: IntLinear, shape: Ints, types: tuple[torch.dtype, ...], most: float) -> None:
        self.types, self.shift = types, step.shift - _halvings(step.weight)
        self.wraps = step.wraps and most > TOP << step.shift
        self.window = planar(step.window) if isinstance(step, IntConvStep) else PLAIN
        w = np.ldexp(step.weight, self.shift - step.shift).astype(np.int8)
        w = w.reshape(*w.shape[:2], *[1] * (4 - w.ndim), *w.shape[2:])  # (O, C, kernel, taps)
        self.out = self.window.output((1, 1, *shape[1:])[-2:], w.shape[2:])
        apart, taps = self.window.dilation[1], w.shape[3]
        self.block, self.seen = _best_block(w.shape, self.window, self.out[1])
        m = np.zeros((self.block, len(w), w.shape[2], self.seen, w.shape[1]), np.int8)
        for i, first in enumerate(range(0, self.block * self.window.stride[1], self.window.stride[1])):
            m[i, :, :, first : first + apart * taps : apart] = w.transpose(0, 2, 3, 1)
        self.kernel, self.matrix = w.shape[2], torch.from_numpy(m.reshape(self.block * len(w), -1).T.copy())
        self.bias = None if step.bias is None else step.bias.reshape(-1).astype(np.int32)

    @staticmethod
    def of(step: IntLinear, shape: Ints, a: Alphabet, types: frozenset[torch.dtype]) -> Product | None:
        """None where the weights, the messages or the sums are too wide, or the geometry is not this one."""
        plain = step.window.groups == 1 if isinstance(step, IntConvStep) else len(shape) == 1
        words, sent, most = np.ldexp(step.weight, -_halvings(step.weight)), message_bytes(a), reach(step, a)
        if not plain or words.min() < -128 or words.max() > 127 or most >= 1 << 30:
            return None
        return Product(step, shape, sent, most) if sent and types.issuperset(sent) else None

    def __call__(self, x: np.ndarray, scratch: Scratch, up: int = 0) -> np.ndarray:
        """Sums << up for x (N, *space, channels) of bytes or int32; the result is scratch and may be changed."""
        y: Any = None
        for plane, kind in enumerate(self.types):  # the lowest byte first
            a = self._gather(_byte(x, plane), scratch)
            part = scratch((self, plane), (len(a), self.matrix.shape[1]), np.int32)
            torch._int_mm(torch.from_numpy(a).view(kind), self.matrix, out=torch.from_numpy(part))
            y = part if plane == 0 else np.add(y, np.left_shift(part, 8 * plane, out=part), out=y)
        y = y.reshape(len(x), *self.out[4 - x.ndim :], -1)
        plain = self.shift <= 0 and not self.wraps and self.bias is None
        y = shifted(y, self.shift - up if plain else self.shift)
        if self.wraps:
            np.subtract((y + TOP + 1) & (1 << REGISTER) - 1, TOP + 1, out=y)
        if self.bias is not None:
            y += self.bias
        return y if plain else shifted(y, -up)

    def _gather(self, x: np.ndarray, scratch: Scratch) -> np.ndarray:
        """(N x rows x blocks, what a block sees)."""
        x, w = x.reshape(len(x), *[1] * (4 - x.ndim), *x.shape[1:]), self.window
        n, height, width, channels = x.shape
        padded = n, height + 2 * w.padding[0], width + 2 * w.padding[1], channels
        if padded != x.shape or not x.flags.c_contiguous:
            room = scratch((self, "padded"), padded, x.dtype)  # its rim stays zero
            room[:, w.padding[0] : w.padding[0] + height, w.padding[1] : w.padding[1] + width] = x
            x = room
        # runs of bytes as one opaque item each: copying them is one move, not a loop
        row, run = padded[2] * channels, np.dtype(f"V{self.seen * channels}")
        shape = n, self.out[0], self.out[1] // self.block, self.kernel
        steps = padded[1] * row, w.stride[0] * row, self.block * w.stride[1] * channels, w.dilation[0] * row
        room = scratch((self, "gathered"), (math.prod(shape[:3]), self.kernel * self.seen * channels), x.dtype)
        np.copyto(room.view(run).reshape(shape), np.ndarray(shape, run, x, 0, steps))
        return room


class FloatSums:
    """The same by the step itself, in its op set's floats, where the sums fit int32."""

    def __init__(self, step: IntLinear, ops: Any) -> None:
        self.step, self.ops = bind(step, ops), ops

    def __call__(self, x: np.ndarray, scratch: Scratch, up: int = 0) -> np.ndarray:
        a = torch.from_numpy(x).double()
        y = self.step.drive(self.ops, a.movedim(-1, 1)).movedim(1, -1).numpy()
        room = scratch(self, y.shape, np.int32)
        np.copyto(room, y, casting="unsafe")
        return shifted(room, -up)


Summing = Product | FloatSums
Gates = tuple[Summing | None, Summing | None]


def reach(step: IntLinear, a: Alphabet) -> float:
    """What no partial sum exceeds, for messages of this alphabet."""
    return float(np.abs(step.weight).reshape(len(step.weight), -1).sum(1).max()) * max(-a.lo, a.hi)


def _best_block(words: Ints, window: Window, width: int) -> tuple[int, int]:
    """(outputs side by side, input columns they see): wider ones multiply more zeros, narrower ones move more runs."""
    outputs, channels, _, taps = words

    def seen(block: int) -> int:
        return (block - 1) * window.stride[1] + window.dilation[1] * (taps - 1) + 1

    def cost(block: int) -> float:
        """Nanoseconds an output, measured; NumPy has moves of their own for items of these sizes."""
        run, columns = seen(block) * channels, -(-block * outputs // 16) * 16
        products = run * columns / (145 * min(1, columns / 96) ** 0.5)
        return (products + (1.2 if run in (1, 2, 4, 8, 16) else 4.5) + run / 20) / block

    best = min((b for b in range(1, width + 1) if width % b == 0), key=cost)
    return best, seen(best)


def shifted(y: np.ndarray, down: int) -> np.ndarray:
    if down:
        (np.right_shift if down > 0 else np.left_shift)(y, abs(down), out=y)
    return y


def _halvings(weight: np.ndarray) -> int:
    """How often all weights can be halved: mixed words of 8 bits are even, and have 9."""
    union = int(np.bitwise_or.reduce(np.abs(weight).astype(np.int64), axis=None))
    return (union & -union).bit_length() - 1 if union else 0


def message_bytes(a: Alphabet) -> tuple[torch.dtype, ...]:
    """The bytes of a message, lowest first; () for more than two."""
    if a.lo >= 0 and a.hi <= 255:
        return (torch.uint8,)
    if a.lo >= -128 and a.hi <= 127:
        return (torch.int8,)
    return (torch.uint8, torch.int8) if a.lo >= -(1 << 15) and a.hi < 1 << 15 else ()


def _byte(x: np.ndarray, number: int) -> np.ndarray:
    """The bytes of that number, counted from the lowest, of whole numbers in two's complement."""
    return x.view(np.uint8) if x.itemsize == 1 else np.ascontiguousarray(x, "<i4").view(np.uint8)[..., number::4]


def pooled(step: Pool, x: np.ndarray, dtype: Any, scratch: Scratch, key: Any) -> np.ndarray:
    """Sums over windows of x (N, H, W, C): rows added up, then every place and its neighbours, of which some stay."""
    (up, left), (down, right), (tall, wide) = step.window.padding, step.window.stride, step.kernel
    x = np.pad(x, ((0, 0), (up, up), (left, left), (0, 0))) if up or left else x
    n, height, width, channels = x.shape
    size = (height - tall) // down + 1, (width - wide) // right + 1
    rows = scratch((key, "rows"), (n, size[0], width, channels), dtype)
    _total([x[:, i : i + down * (size[0] - 1) + 1 : down] for i in range(tall)], rows)
    flat, rest = rows.reshape(-1), rows.size - (wide - 1) * channels
    sums = scratch((key, "sums"), flat.shape, dtype)
    _total([flat[j * channels : j * channels + rest] for j in range(wide)], sums[:rest])
    run, line = np.dtype(f"V{channels * rows.itemsize}"), width * channels * rows.itemsize
    chosen = np.ndarray((n, *size), run, sums, 0, (size[0] * line, line, right * run.itemsize))
    out = scratch((key, "pooled"), (n, *size, channels), dtype)
    np.copyto(out.view(run)[..., 0], chosen)
    return out


def _total(terms: list[np.ndarray], out: np.ndarray) -> None:
    """Sums into out, whose type holds them; bytes of either sign are added alike."""
    alike = [t.view(out.dtype) if t.itemsize == 1 == out.itemsize else t for t in terms]
    if len(alike) == 1:
        np.copyto(out, alike[0], casting="unsafe")
        return
    np.add(alike[0], alike[1], out=out, casting="unsafe")
    for term in alike[2:]:
        np.add(out, term, out=out, casting="unsafe")


# --- neurons in int32


@cache
def events(keep_u: int, keep_v: int, bias: int, most: int, steps: int) -> tuple[bool, bool]:
    """(wraps, saturates): what can happen within so many steps from zero, for inputs up to `most` in size."""
    u, v, wraps, saturates = 0, 0, False, False
    for _ in range(steps):
        before = u, v
        u = (u * keep_u >> UNITY) + (most << ALIGN)
        wraps, u = wraps or u > TOP, min(u, TOP + 1)
        v = (v * keep_v >> UNITY) + u + bias
        saturates, v = saturates or v > TOP, min(v, TOP)
        if (u, v) == before:
            break
    return wraps, saturates


class TooWide(Exception):
    """Values that the narrow way at hand cannot hold."""


class Cells:
    """`integers.IntFire` in int32, arrays changed in place.

    Holds w = -v: then "0 where above the threshold" is torch's threshold, a single pass.
    """

    align: ClassVar[int] = ALIGN  # bits by which the input has been shifted when it comes

    def __init__(self, step: IntFire, shape: Ints, scratch: Scratch, key: Any) -> None:
        def array(name: str, dtype: Any = np.int32) -> np.ndarray:
            found = scratch((key, name), shape, dtype)
            found.fill(0)
            return found

        self.array, self.step, self.w = array, step, array("w")
        self.u = None if step.keep_u is None else array("u")
        self.keep_u, self.keep_v = (None if k is None else last(k) / (1 << UNITY) for k in (step.keep_u, step.keep_v))
        self.bias = None if step.bias is None else last(step.bias, np.int32)
        # v > th is w <= -th - 1, v >= th is w <= -th; below the lower threshold likewise
        strict = step.compare == "gt"
        self.limit = last(-step.threshold - strict, np.int32)
        self.lower = None if step.lower is None else last(strict - step.lower, np.int32)
        self.simple = step.reset_mode == "zero" and self.lower is None and self.limit.ndim == 0
        self.largest = [0 if p is None else int(np.abs(p).max()) for p in (step.keep_u, step.keep_v, step.bias)]

    def events(self, most: int, steps: int) -> tuple[bool, bool]:
        """What can happen for inputs up to `most`; TooWide where a register would need more than one turn."""
        if most > WIDEST:
            raise TooWide
        return events(*self.largest, 1 << (most - 1).bit_length() if most else 0, steps)

    def advance(
        self, chunk: np.ndarray, z: np.ndarray, happens: tuple[bool, bool], rows: dict[str, np.ndarray]
    ) -> None:
        """Some steps, for the summed input << align, which is used up: spikes into z (int8), registers into rows."""
        if self.simple and not rows:
            limit, w = int(self.limit), torch.from_numpy(self.w)
            for a, charged in zip(chunk, torch.from_numpy(chunk), strict=True):
                self.charge(a, a, *happens)
                torch.threshold(charged, limit, 0, out=w)
            np.less_equal(chunk, self.limit, z.view(np.bool_))
            return
        for t, a in enumerate(chunk):
            u = self.charge(a, self.w, *happens)
            if rows:
                np.copyto(rows["u"][t], u)
            self.fire(z[t])
            if rows:
                np.negative(self.w, rows["v"][t])

    def charge(self, a: np.ndarray, out: np.ndarray, wraps: bool, saturates: bool) -> np.ndarray:
        """One step's membranes into out, which may be a; returns u, unless out is where it lay."""
        u = a
        if self.u is not None:
            self._decay(self.u, self.keep_u)
            u = np.add(self.u, a, self.u)
        if wraps:
            np.subtract(u, 1 << REGISTER, out=u, where=u > TOP + 1)
            np.add(u, 1 << REGISTER, out=u, where=u <= -TOP - 1)
        if self.keep_v is None:
            np.negative(u, out)
        else:
            self._decay(self.w, self.keep_v)
            np.subtract(self.w, u, out)
        if self.bias is not None:
            out -= self.bias
        if saturates:
            np.clip(out, -TOP, TOP, out=out)
        return u

    def _decay(self, x: np.ndarray, keep: Any) -> None:
        if keep.ndim or keep != 1:
            # NumPy computes in float64, some thousand values at a time, and the cast rounds toward zero
            np.multiply(x, keep, x, casting="unsafe")

    def fire(self, z: np.ndarray) -> None:
        """The spikes into z (int8), and the reset."""
        up, w, mode = z.view(np.bool_), self.w, self.step.reset_mode
        np.less_equal(w, self.limit, up)
        down = np.False_ if self.lower is None else w >= self.lower
        if mode == "zero":
            w *= ~(up | down)
        elif mode == "subtract":
            w += up * last(self.step.threshold, np.int32)
        z -= down


class GatedCells(Cells):
    """`integers.IntGatedFire` likewise, with sums for its gates; its input comes unshifted."""

    align: ClassVar[int] = 0

    def __init__(self, step: IntGatedFire, gates: Gates, shape: Ints, scratch: Scratch, key: Any) -> None:
        super().__init__(step.inner, shape, scratch, key)
        self.simple = False
        self.gated, self.scratch, self.values = step, scratch, step.values.astype(np.int32)
        self.feedback, self.balance = gates
        self.sent, self.sign, self.message = self.array("d", np.int8), self.array("e", np.int8), self.array("m")

    def charge(self, a: np.ndarray, out: np.ndarray, wraps: bool, saturates: bool) -> np.ndarray:
        step, m = self.gated, self.message
        if self.feedback is not None:
            index = self.feedback(self.sent, self.scratch)
            index >>= step.feedback_shift
            index += 128
            a *= np.take(self.values, index, out=m, mode="clip")
            a >>= 8
        u = super().charge(shifted(a, -ALIGN), out, wraps, saturates)
        if self.balance is not None:
            top = (1 << (step.balance_bits - 1)) - 1
            np.negative(out, out=m)
            m >>= step.balance_shift
            np.sign(self.balance(np.clip(m, -top, top, out=m), self.scratch), out=self.sign, casting="unsafe")
        return u

    def fire(self, z: np.ndarray) -> None:
        super().fire(z)
        if self.balance is not None:
            z *= self.sign
        self.sent = z


def last(a: Any, dtype: Any = None) -> np.ndarray:
    """A neuron array (C, *space), or a tensor (time, sample, C, *space), with its channels last."""
    if isinstance(a, Tensor):
        return (a if a.dim() == 3 else a.movedim(2, -1)).numpy()
    return np.asarray(a if a.ndim < 2 else np.moveaxis(a, 0, -1), dtype)


def first(x: np.ndarray) -> Tensor:
    """The tensor (time, sample, C, *space) of such an array."""
    return torch.from_numpy(x) if x.ndim == 3 else torch.from_numpy(x).movedim(-1, 2)
