"""Every node kind and whole graphs written a second time from the definitions: scalar floats and loops.

It imports nothing of the toolchain, so agreement means that two readings of the equations agree. A signal is
a dict from neuron index to value, e.g. {(0, 2): 1.0}. An index outside the map reads as 0: zero padding. A maximum
leaves it out.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

Signal = dict[tuple[int, ...], float]

CONNECTIONS = ("Affine", "Linear", "Scale", "Conv1d", "Conv2d", "Flatten", "SumPool2d", "AvgPool2d", "EIMaxPool2d")
REAL = ("I", "LI", "CubaLI")  # neurons that send their membrane
SPIKING = ("IF", "LIF", "CubaLIF", "EIDiscreteLIF", "EIGatedLIF", "Threshold")


class Clock:
    """Time step and integrator; `leak(tau)` is what one step keeps, and what it takes in."""

    def __init__(self, dt: float, integrator: str) -> None:
        self.dt, self.integrator = dt, integrator

    def leak(self, tau: float) -> tuple[float, float]:
        keep = 1 - self.dt / tau if self.integrator == "euler" else math.exp(-self.dt / tau)
        return keep, (self.dt / tau if self.integrator == "euler" else 1 - keep)


def run(graph: Any, x: Any, dt: float, integrator: str) -> list[list[dict[str, Signal]]]:
    """Every node's value as [sample][step][node]; x is indexed (sample, time, *neuron)."""
    clock = Clock(dt, integrator)
    return [_sample(graph, x[s], clock) for s in range(len(x))]


def _sample(graph: Any, x: Any, clock: Clock) -> list[dict[str, Signal]]:
    history: list[dict[str, Signal]] = []
    state: dict[str, Any] = {}  # empty: zero at the start of the sample

    def incoming(name: str, t: int) -> Signal:
        total: Signal = {}
        for source in sorted(a for a, b in graph.edges if b == name):
            for i, value in at_step(source, t).items():
                total[i] = total.get(i, 0.0) + value
        return total

    def at_step(name: str, t: int) -> Signal:
        """The node's value at step t; whatever it depends on is computed first."""
        if name not in history[t]:
            history[t][name] = value(name, graph.nodes[name], t)
        return history[t][name]

    def value(name: str, node: Any, t: int) -> Signal:
        kind = type(node).__name__
        if kind == "Input":
            return {i: float(x[(t, *i)]) for i in indices(x.shape[1:])}
        if kind == "Delay":  # asks for the past only, so it may close a cycle
            late = {i: round(at(node.delay, i) / clock.dt) for i in indices(node.delay.shape)}
            return {i: incoming(name, t - d)[i] if t >= d else 0.0 for i, d in late.items()}
        came = incoming(name, t)
        if kind == "Output":
            return came
        if kind in CONNECTIONS:
            return connect(node, came)
        if kind == "EIGatedLIF":
            out, state[name] = gated(node, came, state.get(name), clock)
            return out
        before = state.get(name, {})
        both = {i: local(node, i, xi, *before.get(i, (0.0, 0.0)), clock) for i, xi in came.items()}
        state[name] = {i: after for i, (_, after) in both.items()}
        return {i: z for i, (z, _) in both.items()}

    for t in range(x.shape[0]):
        history.append({})
        for name in graph.nodes:
            at_step(name, t)
    return history


def indices(shape: Any) -> list[tuple[int, ...]]:
    return list(product(*(range(int(n)) for n in shape)))


def extents(x: Signal) -> tuple[int, ...]:
    return tuple(max(axis) + 1 for axis in zip(*x, strict=True))


def at(parameter: Any, i: tuple[int, ...]) -> float:
    """A parameter at a neuron; one number holds for all."""
    return float(parameter[i]) if getattr(parameter, "size", 1) > 1 else float(parameter.reshape(-1)[0])


def local(
    node: Any, i: tuple[int, ...], x: float, v: float, u: float, clock: Clock
) -> tuple[float, tuple[float, float]]:
    """One neuron, one step: (output, (membrane, current) carried on)."""
    kind = type(node).__name__
    if kind == "Threshold":
        return (1.0 if x > at(node.threshold, i) else 0.0), (0.0, 0.0)
    if kind in ("CubaLI", "CubaLIF"):
        keep, take = clock.leak(at(node.tau_syn, i))
        u = keep * u + take * at(node.w_in, i) * x
        x = u  # the membrane sees the current of this very step
    if kind == "EIDiscreteLIF":
        v = at(node.decay, i) * v + at(node.gain, i) * x
    elif kind in ("I", "IF"):
        v = v + clock.dt * at(node.r, i) * x
    else:
        keep, take = clock.leak(at(node.tau_mem if kind.startswith("Cuba") else node.tau, i))
        v = keep * v + take * (at(node.r, i) * x + at(node.v_leak, i))
    if kind in REAL:
        return v, (v, u)
    z, v = fire(node, i, v)
    return z, (v, u)


def fire(node: Any, i: tuple[int, ...], v: float) -> tuple[float, float]:
    """Decision and reset: (z, membrane carried on). Stock NIR kinds compare strictly and reset to v_reset."""
    compare, reset = getattr(node, "compare", "gt"), getattr(node, "reset", "zero")
    threshold, lower = at(node.v_threshold, i), getattr(node, "lower", None)
    z = 0.0
    if v > threshold or (compare == "ge" and v == threshold):
        z = 1.0
    elif lower is not None and (v < at(lower, i) or (compare == "ge" and v == at(lower, i))):
        z = -1.0
    if z == 0.0 or reset == "none":
        return z, v
    if reset == "subtract":
        return z, v - (threshold if z > 0 else at(lower, i))
    return z, at(node.v_reset, i)


def gated(node: Any, x: Signal, state: Any, clock: Clock) -> tuple[Signal, tuple[Signal, Signal]]:
    """BackEISNN's neuron, one step over the map: (signed spikes d, (membrane after reset, d))."""
    neuron = node.neuron
    v, d = state or (dict.fromkeys(x, 0.0), dict.fromkeys(x, 0.0))
    g = dict.fromkeys(x, 1.0)
    if node.feedback is not None:
        g = {i: sigmoid(y) for i, y in connect(node.feedback, d).items()}
    charged = {i: at(neuron.decay, i) * v[i] + g[i] * (at(neuron.gain, i) * x[i]) for i in x}
    e = dict.fromkeys(x, 1.0)
    if node.balance is not None:
        e = {i: float((y > 0) - (y < 0)) for i, y in connect(node.balance, charged).items()}
    fired = {i: fire(neuron, i, charged[i]) for i in x}
    sent = {i: e[i] * s for i, (s, _) in fired.items()}
    # the unsigned spike resets, also where the balance swallows it
    return sent, ({i: after for i, (_, after) in fired.items()}, sent)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def connect(node: Any, x: Signal) -> Signal:
    """A connection without state."""
    kind, size = type(node).__name__, extents(x)
    if kind == "Scale":
        return {i: at(node.scale, i) * xi for i, xi in x.items()}
    if kind in ("Affine", "Linear"):
        outputs, inputs = node.weight.shape
        bias = [at(node.bias, (o,)) if kind == "Affine" else 0.0 for o in range(outputs)]
        lead = indices(size[:-1])
        return {
            (*n, o): sum(float(node.weight[o, i]) * x[(*n, i)] for i in range(inputs)) + bias[o]
            for n in lead
            for o in range(outputs)
        }
    if kind == "Flatten":
        return flatten(x, int(node.start_dim) % len(size), int(node.end_dim) % len(size))
    return convolve(node, x) if kind.startswith("Conv") else pool(node, x)


def flatten(x: Signal, first: int, last: int) -> Signal:
    size, out = extents(x), {}
    for i, xi in x.items():
        joined = 0
        for axis in range(first, last + 1):
            joined = joined * size[axis] + i[axis]
        out[(*i[:first], joined, *i[last + 1 :])] = xi
    return out


def per_axis(value: Any, axes: int) -> list[int]:
    """A geometry field: one number for all axes, or one each."""
    return [int(n) for n in value] if getattr(value, "shape", ()) or isinstance(value, tuple) else [int(value)] * axes


def convolve(node: Any, x: Signal) -> Signal:
    outputs, per_group, *kernel = node.weight.shape
    axes = range(len(kernel))
    stride, dilation = per_axis(node.stride, len(kernel)), per_axis(node.dilation, len(kernel))
    reach = [dilation[a] * (kernel[a] - 1) for a in axes]
    if isinstance(node.padding, str):
        padding = [r // 2 if node.padding == "same" else 0 for r in reach]
    else:
        padding = per_axis(node.padding, len(kernel))
    size = [(n + 2 * padding[a] - reach[a] - 1) // stride[a] + 1 for a, n in enumerate(extents(x)[1:])]
    y: Signal = {}
    for o in range(outputs):
        first = o // (outputs // int(node.groups)) * per_group  # first input channel of this filter's group
        for place in indices(size):
            total = 0.0
            for c, *tap in indices((per_group, *kernel)):
                seen = tuple(place[a] * stride[a] + tap[a] * dilation[a] - padding[a] for a in axes)
                total += float(node.weight[(o, c, *tap)]) * x.get((first + c, *seen), 0.0)
            y[(o, *place)] = total + at(node.bias, (o,))
    return y


def pool(node: Any, x: Signal) -> Signal:
    kernel, stride, padding = (per_axis(f, 2) for f in (node.kernel_size, node.stride, node.padding))
    channels, *maps = extents(x)
    size = [(n + 2 * padding[a] - kernel[a]) // stride[a] + 1 for a, n in enumerate(maps)]
    y: Signal = {}
    for c, *place in indices((channels, *size)):
        taps = [(c, *(place[a] * stride[a] + tap[a] - padding[a] for a in (0, 1))) for tap in indices(kernel)]
        if type(node).__name__ == "EIMaxPool2d":  # what lies outside the map takes no part
            y[(c, *place)] = max(x[i] for i in taps if i in x)
            continue
        total = sum(x.get(i, 0.0) for i in taps)
        y[(c, *place)] = total / (kernel[0] * kernel[1]) if type(node).__name__ == "AvgPool2d" else total
    return y
