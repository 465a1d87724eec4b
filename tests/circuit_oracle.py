"""DeepEISNN's circuit and the neuron behind it written a second time, cell by cell: floats and whole numbers.

It imports nothing of the toolchain, so agreement means that two readings of the equations agree. A signal is a dict
from index to number, (cell,) or (channel, row, column); what lies outside of a map reads as 0. Integers are Python's
own: `//` rounds down, `>>` too. Powers of two are found by doubling and compared as fractions, never by a logarithm.
"""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

Index = tuple[int, ...]
Signal = dict[Index, Any]

WIDEST = 131071  # an integer current; 64 times that fills a register of 24 bits


def signal(a: np.ndarray, number: Any = float) -> Signal:
    return {i: number(a[i]) for i in np.ndindex(a.shape)}


def array(s: Signal) -> np.ndarray:
    shape = tuple(max(axis) + 1 for axis in zip(*s, strict=True))
    return np.array([s[i] for i in np.ndindex(shape)]).reshape(shape)


def run(nodes: list[Any], x: np.ndarray, seen: Counter[str] | None = None) -> list[np.ndarray]:
    """What each node of a chain sends, (sample, time, *neuron); x likewise. `seen` counts what integers met."""
    sent: list[list[list[np.ndarray]]] = [[] for _ in nodes]
    for sample in x:
        for rows in sent:
            rows.append([])
        state: dict[int, Signal] = {}  # absent: zero, as at the start of every sample
        for row in sample:
            s = signal(row, int if type(nodes[0]).__name__.startswith("Int") else float)
            for k, node in enumerate(nodes):
                kind = type(node).__name__
                if kind == "EICircuit":
                    s = circuit(node, s)
                elif kind == "IntCircuit":
                    s = int_circuit(node, s, Counter() if seen is None else seen)
                else:
                    step = soft_reset if kind == "EIDiscreteLIF" else int_soft_reset
                    s, state[k] = step(node, s, state.get(k, dict.fromkeys(s, 0)))
                sent[k][-1].append(array(s))
    return [np.array(rows) for rows in sent]


# --- parameters


def one(a: Any) -> int:
    return int(np.asarray(a).reshape(-1)[0])


def of_cell(a: Any, cell: int, otherwise: Any) -> Any:
    """A cell's own number, or the one that holds for all."""
    if a is None:
        return otherwise
    values = np.asarray(a).reshape(-1)
    return values[cell if len(values) > 1 else 0].item()


def each_axis(a: Any) -> tuple[int, int]:
    values = [int(v) for v in np.asarray(a).reshape(-1)]
    return (values[0], values[-1])


# --- connections


def connect(part: Any, x: Signal) -> Signal:
    """`sum of w x` over the cells or over a kernel; an integer one is then shifted by its weight_exp."""
    weight = part.weight.tolist()
    y = {}
    if part.weight.ndim == 2:
        for o, row in enumerate(weight):
            y[(o,)] = sum(w * x[(i,)] for i, w in enumerate(row))
    else:
        stride, padding, dilation = (each_axis(a) for a in (part.stride, part.padding, part.dilation))
        size = [max(i[a] for i in x) + 1 for a in (1, 2)]
        kernel = part.weight.shape[2:]
        reach = [(size[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)]
        for o, r, c in product(range(len(weight)), range(reach[0]), range(reach[1])):
            total = 0
            for i, kr, kc in product(range(len(weight[0])), range(kernel[0]), range(kernel[1])):
                row, column = (
                    p * stride[a] + k * dilation[a] - padding[a] for a, (p, k) in enumerate(((r, kr), (c, kc)))
                )
                total += weight[o][i][kr][kc] * x.get((i, row, column), 0)
            y[(o, r, c)] = total
    exponent = one(getattr(part, "weight_exp", 0))
    if exponent == 0:
        return y
    return {i: n << exponent if exponent > 0 else n >> -exponent for i, n in y.items()}


def taken(spread: Any, s: Signal) -> Signal:
    """What the inhibitory cells do to the excitatory ones at the same place."""
    places = {i[1:] for i in s}
    made = {}
    for place in places:
        here = {(i[0],): n for i, n in s.items() if i[1:] == place}
        for o, row in enumerate(spread.weight.reshape(len(spread.weight), -1).tolist()):
            made[(o, *place)] = sum(w * here[(k,)] for k, w in enumerate(row))
    exponent = one(getattr(spread, "weight_exp", 0))
    if exponent == 0:
        return made
    return {i: n << exponent if exponent > 0 else n >> -exponent for i, n in made.items()}


# --- powers of two, and their reciprocals


def power_below(d: Any) -> Fraction:
    """The largest power of two that is not above d > 0."""
    p, d = Fraction(1), Fraction(d)
    while p > d:
        p /= 2
    while 2 * p <= d:
        p *= 2
    return p


def power_next(d: Any) -> Fraction:
    """The power of two next to d > 0 on a logarithmic scale: p / sqrt(2) <= d < p sqrt(2)."""
    p = power_below(d)
    return 2 * p if Fraction(d) ** 2 >= 2 * p * p else p


def reciprocal(part: int, bits: int) -> int:
    """2^12 divided by the middle 1 + (part + 1/2) / 2^bits of a part of [1, 2), to the nearest whole number."""
    above, below = 1 << (13 + bits), (2 << bits) + 2 * part + 1
    return (2 * above + below) // (2 * below)


def part_of(d: Any, p: Fraction, bits: int) -> int:
    return math.floor((Fraction(d) / p - 1) * (1 << bits))


# --- the circuit


def circuit(node: Any, x: Signal) -> Signal:
    """EICircuit at one step of one sample."""
    e, s = connect(node.excite, x), connect(node.inhibit, x)
    s = {i: max(0.0, v) for i, v in s.items()}
    sub = taken(node.spread, s)
    n = {i: v - sub[i] for i, v in e.items()}
    bias = {i: of_cell(node.bias, i[0], 0.0) for i in n}
    if node.form == "none":
        return {i: v + bias[i] for i, v in n.items()}
    n = {i: of_cell(node.gain_e, i[0], 1.0) * v for i, v in n.items()}
    if node.form == "frozen":
        return {i: v / of_cell(node.denominator, i[0], 1.0) + bias[i] for i, v in n.items()}
    d = taken(node.spread, {i: of_cell(node.gain_i, i[0], 1.0) * v for i, v in s.items()})
    others = [v for v in d.values() if v != 0]
    instead = float(np.asarray(node.epsilon)) if node.zero == "constant" else min(others, default=math.inf)
    y = {}
    for i, v in d.items():
        v = v if v != 0 else instead
        if v == math.inf:
            y[i] = bias[i]
        elif node.form == "exact":
            y[i] = n[i] / v + bias[i]
        elif node.form == "shift":
            y[i] = n[i] / float(power_next(v)) + bias[i]
        else:
            bits, p = one(node.table_bits), power_below(v)
            y[i] = n[i] * (reciprocal(part_of(v, p, bits), bits) / 4096) / float(p) + bias[i]
    return y


def int_circuit(node: Any, x: Signal, seen: Counter[str]) -> Signal:
    """IntCircuit at one step of one sample; `seen` counts the ways that values took."""
    e, s = connect(node.excite, x), connect(node.inhibit, x)
    seen["relu"] += sum(v < 0 for v in s.values())
    s = {i: max(0, v) for i, v in s.items()}
    sub = taken(node.spread, s)
    n = {i: v - sub[i] for i, v in e.items()}
    if node.form == "none":
        return n
    n = {i: int(of_cell(node.gain_e, i[0], 1)) * v for i, v in n.items()}
    shift, low, d = one(node.shift), one(node.gain_shift), dict.fromkeys(n, 1)
    if node.form != "frozen":
        weighed = {i: int(of_cell(node.gain_i, i[0], 1)) * v for i, v in s.items()}
        seen["gain lost bits"] += sum(v % (1 << low) != 0 for v in weighed.values())
        d = taken(node.spread, {i: v >> low for i, v in weighed.items()})
    y = {}
    for i, v in n.items():
        below = d[i]
        if below == 0:
            seen["zero denominator"] += 1
            below = one(node.epsilon)
        if node.form == "table":
            bits, p = one(node.table_bits), power_below(below)
            above = v * reciprocal(part_of(below, p, bits), bits) * 2**shift // 4096
            below = int(p)
        else:
            above = v
            if shift < 0:
                seen["shift below 0"] += 1
                below = 2**-shift  # "frozen" alone
            else:
                above *= 2**shift
            if node.form == "shift":
                below = int(power_next(below))
        q = above // below
        seen["exact" if above % below == 0 else "down" if above < 0 else "rest dropped"] += 1
        q += int(of_cell(node.bias, i[0], 0))
        seen["too high"] += q > WIDEST
        seen["too low"] += q < -WIDEST
        y[i] = WIDEST if q > WIDEST else -WIDEST if q < -WIDEST else q
    return y


def gradients(node: Any, rows: list[list[float]], weight: list[float]) -> dict[str, list[Any]]:
    """Of the sum over rows and cells of weight[o] I[o], for matrices: what E-I Prop says each parameter gets.

    A filled-in D passes its gradient as if nothing had been filled in, none goes to where the value came from; a row
    whose D are all 0 gives none. A current that is exactly 0 still learns. W_EI's gradient is divided by its fan-in.
    """
    ee, ie, ei = (p.weight.tolist() for p in (node.excite, node.inhibit, node.spread))
    gi, ge = node.gain_i.tolist(), node.gain_e.tolist()
    outs, cells, fan_in = range(len(ee)), range(len(ie)), range(len(ee[0]))
    g: dict[str, Any] = {"excite": [[0.0] * len(fan_in) for _ in outs], "inhibit": [[0.0] * len(fan_in) for _ in cells]}
    g |= {"spread": [[0.0] * len(cells) for _ in outs], "gain_i": [0.0] * len(cells), "gain_e": [0.0] * len(outs)}
    g["bias"] = [0.0] * len(outs)
    for x in rows:
        current = [sum(w * x[j] for j, w in enumerate(row)) for row in ie]
        s, slope = [max(0.0, v) for v in current], [float(v >= 0) for v in current]
        d = [sum(ei[o][k] * gi[k] * s[k] for k in cells) for o in outs]
        least = min((v for v in d if v != 0), default=math.inf)
        for o in outs:
            n = sum(w * x[j] for j, w in enumerate(ee[o])) - sum(ei[o][k] * s[k] for k in cells)
            below = d[o] or (least if node.zero == "sample_min" else float(node.epsilon))
            g["bias"][o] += weight[o]
            if below == math.inf:
                continue
            by_n, by_d = weight[o] * ge[o] / below, -weight[o] * ge[o] * n / below**2
            g["gain_e"][o] += weight[o] * n / below
            for j in fan_in:
                g["excite"][o][j] += by_n * x[j]
            for k in cells:
                g["spread"][o][k] += (by_d * gi[k] * s[k] - by_n * s[k]) / len(fan_in)
                g["gain_i"][k] += by_d * ei[o][k] * s[k]
                for j in fan_in:
                    g["inhibit"][k][j] += (by_d * gi[k] - by_n) * ei[o][k] * slope[k] * x[j]
    return g


def soft_reset(node: Any, x: Signal, v: Signal) -> tuple[Signal, Signal]:
    """EIDiscreteLIF with "ge" and "subtract", one step: (spikes, membranes carried on)."""
    if (node.compare, node.reset) != ("ge", "subtract") or node.lower is not None:
        raise ValueError("another neuron")
    z, kept = {}, {}
    for i, drive in x.items():
        charged = node.decay[i] * v[i] + node.gain[i] * drive
        z[i] = 1.0 if charged >= node.v_threshold[i] else 0.0
        kept[i] = float(charged - node.v_threshold[i] * z[i])
    return z, kept


def int_soft_reset(node: Any, x: Signal, v: Signal) -> tuple[Signal, Signal]:
    """IntCubaLIF with "ge" and "subtract", without synaptic current or bias, one step: (spikes, registers v)."""
    if (node.compare, node.reset, one(node.du), one(node.bias_mant)) != ("ge", "subtract", 4095, 0):
        raise ValueError("another neuron")
    z, kept, half = {}, {}, 1 << 23
    for i, a in x.items():
        u = a << 6
        u += (u <= -half) * 2 * half - (u > half) * 2 * half
        left = v[i] * (4096 - one(node.dv))
        charged = max(1 - half, min(half - 1, (left >> 12 if left >= 0 else -(-left >> 12)) + u))
        threshold = int(node.vth[i]) << 6
        z[i] = int(charged >= threshold)
        kept[i] = charged - threshold * z[i]
    return z, kept
