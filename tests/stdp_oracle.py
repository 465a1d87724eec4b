"""STDP without the library's code: pairs of spikes counted one by one, and traces carried from step to step.

Arrays are float64: w (out, in) or (out, in / groups, k, k), x (T, B, *in), y (T, B, *out). Of a rule only the field
values are read. A geometry is (stride, padding, dilation, groups) of a convolution with equal sides, None: linear.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Geometry = tuple[int, int, int, int]


class Sums(NamedTuple):
    """What the pairs add up to before the functions of the weight, and the change they ask for (without lr)."""

    up: Array
    down: Array
    change: Array


def f_post(rule: Any, w: float) -> float:
    kinds = {"clamp": max(-1.0, min(1.0, w)), "identity": w, "soft": 1 - w, "magnitude": 1 - abs(w), "additive": 1.0}
    return kinds[rule.weight]


def f_pre(rule: Any, w: float) -> float:
    return {"clamp": max(-1.0, min(1.0, w)), "identity": w, "soft": w, "magnitude": abs(w), "additive": 1.0}[
        rule.weight
    ]


def factor(rule: Any, tau: float) -> float:
    return (tau - 1) / tau if rule.decay == "linear" else math.exp(-1 / tau)


def synapses(w: Array, x: Array, y: Array, geometry: Geometry | None) -> Iterator[tuple[Any, Any, Any]]:
    """(weight, pre neuron, post neuron) of every single connection; taps on padding have no pre neuron."""
    if geometry is None:
        for o, i in itertools.product(*map(range, w.shape)):
            yield (o, i), (i,), (o,)
        return
    stride, padding, dilation, groups = geometry
    outs, ins, tall, wide = w.shape
    for o, c, a, b in itertools.product(range(outs), range(ins), range(tall), range(wide)):
        channel = o // (outs // groups) * ins + c
        for row, column in itertools.product(range(y.shape[3]), range(y.shape[4])):
            r, s = row * stride - padding + a * dilation, column * stride - padding + b * dilation
            if 0 <= r < x.shape[3] and 0 <= s < x.shape[4]:
                yield (o, c, a, b), (channel, r, s), (o, row, column)


def times(rule: Any, x: Array, y: Array) -> Iterator[tuple[str, int, int]]:
    """("up" | "down", step of the pre spike, step of the post spike) of the pairs of two spike trains that count."""
    together = rule.same_step == "include"
    for s, t in itertools.product(range(len(x)), range(len(y))):
        if rule.pairs == "nearest":
            first = x[s] != 0 and not any(x[s + 1 : t + together])
            last = y[t] != 0 and not any(y[t + 1 : s + together])
        else:
            first = last = True
        if (s < t or (s == t and together)) and first:
            yield "up", s, t
        if (t < s or (s == t and together)) and last:
            yield "down", s, t


def pairs(rule: Any, w: Array, x: Array, y: Array, geometry: Geometry | None = None, reward: Any = None) -> Sums:
    """Every pair of one pre and one post spike, in nested loops."""
    found = {"up": np.zeros(w.shape), "down": np.zeros(w.shape)}
    pre, post = factor(rule, rule.tau_pre), factor(rule, rule.tau_post)
    for weight, i, o in synapses(w, x, y, geometry):
        for n in range(x.shape[1]):
            worth = 1.0 if reward is None else float(reward[n])
            ins, outs = x[(slice(None), n, *i)], y[(slice(None), n, *o)]
            for branch, s, t in times(rule, ins, outs):
                gain = rule.a_plus * pre ** (t - s) if branch == "up" else rule.a_minus * post ** (s - t)
                found[branch][weight] += worth * gain * ins[s] * outs[t]
    return _finished(rule, w, y, found["up"], found["down"])


def patches(x: Array, w: Array, y: Array, geometry: Geometry) -> Array:
    """im2col: (B, C, H, W) to (groups, C / groups * k * k, B * positions)."""
    stride, padding, dilation, groups = geometry
    _, ins, tall, wide = w.shape
    rows, columns = y.shape[-2:]
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    columns_of = []
    for c, a, b in itertools.product(range(ins * groups), range(tall), range(wide)):
        window = padded[:, c, a * dilation :, b * dilation :][:, ::stride, ::stride][:, :rows, :columns]
        columns_of.append(window.reshape(-1))
    return np.stack(columns_of).reshape(groups, ins * tall * wide, -1)


def meeting(r: Array, x: Array, w: Array, geometry: Geometry | None) -> Array:
    """SUM over samples and positions of post r times pre x, of one step."""
    if geometry is None:
        return np.einsum("no,ni->oi", r, x)
    groups = geometry[3]
    post = r.transpose(1, 0, 2, 3).reshape(groups, len(w) // groups, -1)
    return np.einsum("gol,gkl->gok", post, patches(x, w, r, geometry)).reshape(w.shape)


def traces(rule: Any, w: Array, x: Array, y: Array, geometry: Geometry | None = None, reward: Any = None) -> list[Sums]:
    """Pre and post traces carried on, as the sheet's section 2.1 has them: the sums of each single step."""
    pre, post = factor(rule, rule.tau_pre), factor(rule, rule.tau_post)
    worth = np.ones(x.shape[1]) if reward is None else np.asarray(reward, np.float64)
    p, q, found = np.zeros(x.shape[1:]), np.zeros(y.shape[1:]), []

    def met(trace: Array, spikes: Array) -> Array:
        return np.where(spikes != 0, spikes, trace) if rule.pairs == "nearest" else trace + spikes

    for t in range(len(y)):
        p, q = p * pre, q * post
        if rule.same_step == "include":
            p, q = met(p, x[t]), met(q, y[t])
        by = worth.reshape(-1, *[1] * (y.ndim - 2))
        up = rule.a_plus * meeting(by * y[t], p, w, geometry)
        down = rule.a_minus * meeting(by * q, x[t], w, geometry)
        found.append(_finished(rule, w, y, up, down))
        if rule.same_step == "exclude":
            p, q = met(p, x[t]), met(q, y[t])
    return found


def total(steps: list[Sums]) -> Sums:
    return Sums(*(np.sum(parts, axis=0) for parts in zip(*steps, strict=True)))


def _finished(rule: Any, w: Array, y: Array, up: Array, down: Array) -> Sums:
    share = y.shape[1] * math.prod(y.shape[3:]) if rule.mean else 1
    up, down = up / share, down / share
    gain = np.vectorize(lambda v: f_post(rule, v))(w) if w.size else w
    loss = np.vectorize(lambda v: f_pre(rule, v))(w) if w.size else w
    return Sums(up, down, gain * up - loss * down)
