"""Where a connection's words lie and which lines they hear, in flat indices (C order): tables and synapse lists.

A line is an input of a connection: a position of the map that enters it. A unit is an output of it. This is the one
place that turns geometry into lists; the program file holds either the lists or, for large networks, the geometry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from eiexport.connections import Pool
from eiexport.integers import synapse_words
from eiexport.neurons import Delay
from eiexport.ops import Ints, Window
from eiexport.steps import Step

CHUNK = 1 << 21  # words that are unrolled at once
KINDS = ("one", "dense", "conv")


@dataclass(frozen=True, eq=False)
class Table:
    """Edges source -> line, with steps of delay; a source may reach several lines, and a line several sources."""

    source: np.ndarray
    line: np.ndarray
    delay: np.ndarray

    @property
    def most(self) -> int:
        """Edges into the line that has most."""
        return int(np.bincount(self.line).max(initial=0))

    def into(self, lines: np.ndarray) -> np.ndarray:
        """Rows of the table that lead into some lines."""
        wanted = np.zeros(int(max(self.line.max(initial=0), lines.max(initial=0))) + 1, bool)
        wanted[lines] = True
        return np.flatnonzero(wanted[self.line])


class Lists(NamedTuple):
    """Synapse lists of some neurons: words of lines[i] stand at start[i] to start[i + 1]; target counts the neurons."""

    lines: np.ndarray
    start: np.ndarray
    target: np.ndarray
    word: np.ndarray


@dataclass(frozen=True, eq=False)
class Kernel:
    """A connection: words (O, I) or (O, I / groups, *kernel), exponent one number an output; -> `Lists`.

    The sum of word * message is shifted by the exponent (left, or right rounding down), then wrapped at 24 bits.
    """

    kind: str  # one of KINDS
    words: np.ndarray
    exponent: np.ndarray
    inputs: Ints
    outputs: Ints
    window: Window | None = None
    bits: int = 8
    message_bits: int = 0
    wraps: bool = False

    @cached_property
    def lines(self) -> int:
        return int(np.prod(self.inputs, dtype=np.int64))

    @property
    def fan_in(self) -> int:
        """Words of one unit."""
        return 1 if self.kind == "one" else int(np.prod(self.words.shape[1:], dtype=np.int64))

    @cached_property
    def _positions(self) -> np.ndarray:
        """(output positions, taps): flat input position of each tap, -1 in the padding."""
        assert self.window is not None
        w, kernel = self.window, self.words.shape[2:]
        flat, bad = np.zeros((1, 1), np.int64), np.zeros((1, 1), bool)
        geometry = zip(self.inputs[1:], self.outputs[1:], kernel, w.stride, w.padding, w.dilation, strict=True)
        for size, out, k, stride, padding, dilation in geometry:
            at = np.arange(out)[:, None] * stride - padding + np.arange(k) * dilation
            # axes join as (positions so far x positions, taps so far x taps)
            outside = (at < 0) | (at >= size)
            flat = (flat[:, None, :, None] * size + at[None, :, None, :]).reshape(len(flat) * out, -1)
            bad = (bad[:, None, :, None] | outside[None, :, None, :]).reshape(len(bad) * out, -1)
        return np.where(bad, -1, flat)

    def output_of(self, units: np.ndarray) -> np.ndarray:
        """Index of each unit's words and exponent."""
        if self.kind == "dense":
            return units % len(self.words)
        return units // len(self._positions) if self.kind == "conv" else np.zeros_like(units)

    def taps(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lines, words), each (units, fan in); line -1 lies in the padding."""
        if self.kind == "one":
            return units[:, None], np.ones((len(units), 1), np.int64)
        output = self.output_of(units)
        words = self.words[output].reshape(len(units), -1)
        if self.kind == "dense":
            inputs = self.inputs[-1]
            return units[:, None] // len(self.words) * inputs + np.arange(inputs), words
        assert self.window is not None
        per, size = self.words.shape[1], int(np.prod(self.inputs[1:]))
        position = self._positions[units % len(self._positions)]
        first = output // (len(self.words) // self.window.groups) * per
        channel = (first[:, None] + np.arange(per))[:, :, None]
        lines = np.where(position[:, None, :] < 0, -1, channel * size + position[:, None, :])
        return lines.reshape(len(units), -1), words

    def heard(self, units: np.ndarray) -> np.ndarray:
        """Sorted lines that some units hear, words of zero counted in."""
        if self.kind == "one":
            return distinct(units)
        if self.kind == "dense":
            inputs = self.inputs[-1]
            return (distinct(units // len(self.words))[:, None] * inputs + np.arange(inputs)).reshape(-1)
        assert self.window is not None
        group = self.output_of(units) // (len(self.words) // self.window.groups)
        per, size, found = self.words.shape[1], int(np.prod(self.inputs[1:])), []
        for g in distinct(group):
            heard = distinct(self._positions[distinct(units[group == g] % len(self._positions))] + 1)
            heard = heard[heard > 0] - 1  # 0 was the padding
            found.append(((g * per + np.arange(per))[:, None] * size + heard).reshape(-1))
        return np.concatenate(found)

    def fan_out(self, units: np.ndarray) -> np.ndarray:
        """Words other than zero that each line has among some units, which may be listed more than once."""
        if self.kind == "one":
            return np.bincount(units, minlength=self.lines)
        full = self.words != 0
        output = self.output_of(units)
        if self.kind == "dense":
            found = np.zeros((self.lines // self.inputs[-1], self.inputs[-1]), np.int64)
            np.add.at(found, units // len(self.words), full[output])
            return found.reshape(-1)
        assert self.window is not None
        each, per = len(self.words) // self.window.groups, self.words.shape[1]
        found = np.zeros((self.window.groups * per, int(np.prod(self.inputs[1:]))), np.int64)
        position = units % len(self._positions)
        for g in distinct(output // each):
            # how often each (output, position) occurs, then positions as taps see them
            mine = output // each == g
            outputs, used = distinct(output[mine]), distinct(position[mine])
            count = np.zeros((len(outputs), len(used)))
            np.add.at(count, (np.searchsorted(outputs, output[mine]), np.searchsorted(used, position[mine])), 1)
            words = full[outputs].reshape(len(outputs), per, -1).astype(np.float64)
            for t in range(words.shape[2]):  # a tap moves every position to another one
                at = self._positions[used, t]
                inside = at >= 0
                found[g * per : (g + 1) * per, at[inside]] += (words[:, :, t].T @ count[:, inside]).astype(np.int64)
        return found.reshape(-1)

    def lists(self, units: np.ndarray, target: np.ndarray) -> Lists:
        """Synapse lists of units, whose sums go to `target`; words of zero are left out."""
        step = max(1, CHUNK // self.fan_in)
        held = np.int16 if np.abs(self.words).max() < 1 << 15 else np.int32
        parts: list[tuple[np.ndarray, ...]] = []
        for i in range(0, len(units), step):
            lines, words = self.taps(units[i : i + step])
            kept = (lines >= 0) & (words != 0)
            sinks = np.broadcast_to(target[i : i + step, None], lines.shape)[kept]
            parts.append((lines[kept].astype(np.int32), sinks.astype(np.int32), words[kept].astype(held)))
        line, sink, word = (np.concatenate(p) for p in zip(*parts, strict=True))
        order = np.argsort(line, kind="stable")
        found, count = np.unique(line, return_counts=True)
        return Lists(found.astype(np.int64), np.concatenate([[0], np.cumsum(count)]), sink[order], word[order])


def identity_kernel(shape: Ints) -> Kernel:
    """Messages that are summed as they are: one word of 1 each."""
    return Kernel("one", np.ones((1, 1), np.int64), np.zeros(1, np.int64), shape, shape, message_bits=32)


def kernel_of(node: Any, inputs: Ints, outputs: Ints) -> Kernel:
    """The words that an IntDense or IntConv node stands for."""
    weight = np.asarray(node.weight, np.int64)
    if dense := type(node).__name__ == "IntDense":
        weight = synapse_words(weight, int(node.bits), node.sign_mode).astype(np.int64)
    exponent = np.broadcast_to(np.asarray(node.weight_exp, np.int64).reshape(-1), len(weight))
    window = None
    if not dense:
        axes = weight.ndim - 2
        stride, padding, dilation = (
            tuple(int(v) for v in np.broadcast_to(np.asarray(getattr(node, f)).reshape(-1), axes))
            for f in ("stride", "padding", "dilation")
        )
        window = Window(stride, padding, dilation, int(np.asarray(node.groups)))
    kind = "dense" if dense else "conv"
    bits, messages = int(np.asarray(node.bits)), int(np.asarray(node.message_bits))
    return Kernel(kind, weight, exponent, inputs, outputs, window, bits, messages, wraps=not dense)


def table_of(stages: Sequence[tuple[Step, Ints]], shape: Ints) -> Table:
    """The edges that pools, delays and flattenings make of a map; stages with the shape that enters each."""
    line = np.arange(int(np.prod(shape, dtype=np.int64)))
    table = Table(line, line, np.zeros(len(line), np.int64))
    for step, entering in stages:
        if isinstance(step, Delay):
            table = Table(table.source, table.line, table.delay + _steps(step, table))
        elif isinstance(step, Pool):
            table = _joined(table, *pool_edges(step.kernel, step.window, entering))
    return table


def _steps(step: Delay, table: Table) -> np.ndarray:
    """Delay of each edge."""
    if not step.masks:
        return np.full(len(table.line), step.shortest)
    steps = sum(mask.reshape(-1).astype(np.int64) * (step.shortest + i) for i, mask in enumerate(step.masks))
    return np.asarray(steps)[table.line]


def pool_edges(kernel: Ints, window: Window, shape: Ints) -> tuple[np.ndarray, np.ndarray]:
    """(input, output) of a sum pool over (C, H, W), in flat indices; a window's part in the padding has no edge."""
    size = window.output(shape[1:], kernel)
    words = np.zeros((1, 1, *kernel), np.int64)
    # a pool is a convolution of each channel alone, as far as positions go
    one = Kernel("conv", words, np.zeros(1, np.int64), (1, *shape[1:]), (1, *size), window)
    position = one._positions
    inside = np.flatnonzero(position.reshape(-1) >= 0)
    source, out = position.reshape(-1)[inside], inside // position.shape[1]
    channel = np.arange(shape[0])[:, None]
    return (
        (channel * int(np.prod(shape[1:])) + source).reshape(-1),
        (channel * len(position) + out).reshape(-1),
    )


def _joined(table: Table, inner: np.ndarray, outer: np.ndarray) -> Table:
    """The table followed by edges inner -> outer."""
    order = np.argsort(table.line, kind="stable")
    count = np.bincount(table.line, minlength=int(inner.max(initial=-1)) + 1)
    start = np.cumsum(count) - count
    rows = order[ranges(start[inner], count[inner])]
    return Table(table.source[rows], np.repeat(outer, count[inner]), table.delay[rows])


def distinct(a: np.ndarray) -> np.ndarray:
    """Sorted different values of whole numbers >= 0; for small numbers much faster than sorting."""
    seen = np.zeros(int(a.max(initial=-1)) + 1, bool)
    seen[a] = True
    return np.flatnonzero(seen)


def ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """start[0], ..., start[0] + count[0] - 1, start[1], ..."""
    total = int(count.sum())
    before = np.cumsum(count) - count
    return np.repeat(start - before, count) + np.arange(total)


def units_of(pooled: Table | None, neurons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(units, place of the neuron that each feeds), for neurons in any order."""
    if pooled is None:
        return neurons, np.arange(len(neurons))
    rows = pooled.into(neurons)
    place = np.zeros(int(pooled.line.max()) + 1, np.int64)
    place[neurons] = np.arange(len(neurons))
    return pooled.source[rows], place[pooled.line[rows]]
