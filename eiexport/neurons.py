"""Neuron kinds: one equation block per family. Order in every step: charge, fire, reset.

All are members of one linear family, so each published neuron is a choice of numbers, not a second equation:

    u[t] = decay_u * u[t-1] + gain_u * x[t]                  (synaptic current; only the Cuba kinds have it)
    V[t] = decay * v[t-1] + (gain * (u[t] or x[t]) + bias)   (charge)
    s[t] = V[t] > threshold   (or >=)                        (fire)
    v[t] = s * v_reset + (1 - s) * V,   V - threshold * s,   or V    (reset: zero | subtract | none)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from eiexport.alphabet import BINARY, REAL, TERNARY, Alphabet, interval
from eiexport.errors import GraphError
from eiexport.ops import Array, Ints, Ops
from eiexport.steps import Clock, Neuron, State, Step, parameter, uniform

COMPARES = ("gt", "ge")
RESETS = ("zero", "subtract", "none")
LONGEST = 1 << 14  # steps of a delay, each of which is a row of state


@dataclass(frozen=True, kw_only=True)
class Leaky(Neuron):
    """Leaky integrator (NIR LI, I): `v = decay * v + (gain * x + bias)`, output z = v.

    NIR LI, `tau dv/dt = (v_leak - v) + R x`: decay, a = clock.decay(tau); gain = a R; bias = a v_leak.
    NIR I, `dv/dt = R x`: decay = 1, gain = dt R.
    """

    observed: ClassVar[tuple[str, ...]] = ("v",)
    shape: Ints
    decay: np.ndarray
    gain: np.ndarray | None = None  # None: 1
    bias: np.ndarray | None = None  # None: 0

    def output_shape(self, shape: Ints) -> Ints:
        if self.shape not in ((), shape):
            raise ValueError(f"neuron parameters have shape {self.shape}")
        return shape

    def alphabet(self, a: Alphabet) -> Alphabet:
        return REAL

    def drive(self, ops: Ops, x: Array) -> Array:
        y = x if self.gain is None else ops.mul(x, self.gain)
        return y if self.bias is None else ops.add(y, self.bias)

    def init(self, ops: Ops, shape: Ints) -> State:
        return (ops.zeros(shape),)

    def charge(self, ops: Ops, driven: Array, state: State) -> State:
        return (ops.add(ops.mul(state[0], self.decay), driven),)

    def decide(self, ops: Ops, membrane: State) -> tuple[Array, Array]:
        return membrane[0], membrane[0]

    def reset(self, ops: Ops, membrane: State, z: Array, s: Array) -> State:
        return (z,)


@dataclass(frozen=True, kw_only=True)
class Synapse(Leaky):
    """Leaky integrator behind a synaptic current (NIR CubaLI): `u = decay_u * u + gain_u * x`, then v from the new u.

    `tau_syn du/dt = -u + w_in x`: gain_u = a_syn w_in. Both states use the new u in the same step, as Norse's
    box neuron and Lava's LIF do.
    """

    observed: ClassVar[tuple[str, ...]] = ("v", "u")
    decay_u: np.ndarray | None = None
    gain_u: np.ndarray | None = None

    def drive(self, ops: Ops, x: Array) -> Array:
        return ops.mul(x, self.gain_u)

    def init(self, ops: Ops, shape: Ints) -> State:
        return ops.zeros(shape), ops.zeros(shape)

    def charge(self, ops: Ops, driven: Array, state: State) -> State:
        u = ops.add(ops.mul(state[1], self.decay_u), driven)
        (v,) = super().charge(ops, super().drive(ops, u), state)
        return v, u

    def reset(self, ops: Ops, membrane: State, z: Array, s: Array) -> State:
        return *super().reset(ops, membrane, z, s), membrane[1]


@dataclass(frozen=True, kw_only=True)
class Fire(Neuron):
    """Decision and reset shared by all spiking kinds.

    s = V > threshold ("gt") or V >= threshold ("ge"). With `lower`, SpikeGrad's double threshold: z = +1 at the upper,
    -1 at the lower threshold, s = |z|. The reset uses the unsigned s: with a signed spike -1, `V * (1 - z)` would
    double the membrane.
    """

    threshold: np.ndarray
    v_reset: np.ndarray | None  # None: 0
    compare: str
    reset_mode: str
    lower: np.ndarray | None  # None: one-sided
    detach_reset: bool = False  # training only: no gradient through the reset

    def alphabet(self, a: Alphabet) -> Alphabet:
        return BINARY if self.lower is None else TERNARY

    def decide(self, ops: Ops, membrane: State) -> tuple[Array, Array]:
        v = membrane[0]
        s = ops.fire(v, self.threshold, self.compare)
        if self.lower is None:
            return s, s
        down = ops.fire(ops.sub(ops.mul(v, -1.0), ops.mul(self.lower, -1.0)), 0.0, self.compare)
        return ops.sub(s, down), ops.add(s, down)

    def after(self, ops: Ops, v: Array, z: Array, s: Array) -> Array:
        """The membrane carried on: reset applied to V."""
        if self.detach_reset:
            z, s = ops.stop_gradient(z), ops.stop_gradient(s)
        if self.reset_mode == "none":
            return v
        if self.reset_mode == "subtract":
            low = ops.mul(ops.mul(ops.sub(s, z), 0.5), self.lower) if self.lower is not None else None
            up = ops.mul(s if low is None else ops.mul(ops.add(s, z), 0.5), self.threshold)
            return ops.sub(v, up) if low is None else ops.sub(ops.sub(v, up), low)
        kept = ops.mul(v, ops.sub(1.0, s))
        return kept if self.v_reset is None else ops.add(kept, ops.mul(s, self.v_reset))


@dataclass(frozen=True, kw_only=True)
class LeakyFire(Fire, Leaky):
    """Leaky integrate-and-fire (NIR IF, LIF, EIDiscreteLIF)."""

    def reset(self, ops: Ops, membrane: State, z: Array, s: Array) -> State:
        return (self.after(ops, membrane[0], z, s),)


@dataclass(frozen=True, kw_only=True)
class SynapseFire(Fire, Synapse):
    """Leaky integrate-and-fire behind a synaptic current (NIR CubaLIF); only v is reset."""

    def reset(self, ops: Ops, membrane: State, z: Array, s: Array) -> State:
        return self.after(ops, membrane[0], z, s), membrane[1]


@dataclass(frozen=True, kw_only=True)
class Threshold(Neuron):
    """NIR Threshold: z = x > threshold; no state."""

    scope: ClassVar[str] = "stateless"
    threshold: np.ndarray
    shape: Ints

    def output_shape(self, shape: Ints) -> Ints:
        if self.shape not in ((), shape):
            raise ValueError(f"threshold has shape {self.shape}")
        return shape

    def alphabet(self, a: Alphabet) -> Alphabet:
        return BINARY

    def charge(self, ops: Ops, driven: Array, state: State) -> State:
        return (driven,)

    def decide(self, ops: Ops, membrane: State) -> tuple[Array, Array]:
        z = ops.fire(membrane[0], self.threshold, "gt")
        return z, z


@dataclass(frozen=True, kw_only=True)
class GatedFire(Neuron):
    """BackEISNN's neuron (Zhao, Zeng, Li 2021, arXiv 2105.13004, section 3), either gate optional.

    g = sigmoid(feedback(d[t-1]))      self-feedback (SFBM); 1 without it. At t = 0, d = 0: g = sigmoid(bias)
    V = decay * v + g * (gain * x)     charge
    e = sign(balance(V)), sign(0) = 0  balance (BEIM), from V before the reset; 1 without it
    s = V > threshold; d = e * s       fire: a spike is sent as +1, -1, or swallowed where e = 0
    v = V * (1 - s)                    reset by the unsigned s, also where e = 0

    Shapes: feedback and balance map the neuron shape onto itself. Output d in {-1, 0, 1} with balance, else {0, 1}.
    """

    scope: ClassVar[str] = "coupled"
    observed: ClassVar[tuple[str, ...]] = ("v",)
    inner: LeakyFire
    feedback: Step | None
    balance: Step | None

    def output_shape(self, shape: Ints) -> Ints:
        self.inner.output_shape(shape)
        for name, gate in (("feedback", self.feedback), ("balance", self.balance)):
            if gate is not None and gate.output_shape(shape) != shape:
                raise ValueError(f"{name} maps {shape} to {gate.output_shape(shape)}, must keep the shape")
        return shape

    def alphabet(self, a: Alphabet) -> Alphabet:
        return BINARY if self.balance is None else TERNARY

    def drive(self, ops: Ops, x: Array) -> Array:
        return self.inner.drive(ops, x)

    def init(self, ops: Ops, shape: Ints) -> State:
        return *self.inner.init(ops, shape), ops.zeros(shape)

    def charge(self, ops: Ops, driven: Array, state: State) -> State:
        fed = None if self.feedback is None else self.feedback.drive(ops, state[-1])
        return self.gated(ops, driven, state, fed)

    def gated(self, ops: Ops, driven: Array, state: State, fed: Array | None) -> State:
        """Membranes for a given feedback current `fed`: an engine may compute feedback(d[t-1]) on its own fabric."""
        membrane = self.inner.charge(ops, driven if fed is None else self.open(ops, driven, fed), state[:-1])
        return membrane if self.balance is None else (*membrane, self.weigh(ops, membrane[0]))

    def open(self, ops: Ops, driven: Array, fed: Array) -> Array:
        """The driven input behind the feedback gate."""
        return ops.mul(ops.gate(fed), driven)

    def weigh(self, ops: Ops, v: Array) -> Array:
        """balance(V), whose sign the spike takes."""
        assert self.balance is not None
        return self.balance.drive(ops, v)

    def decide(self, ops: Ops, membrane: State) -> tuple[Array, Array]:
        if self.balance is None:
            return self.inner.decide(ops, membrane)
        e = ops.sign(membrane[-1])
        _, s = self.inner.decide(ops, membrane[:-1])
        return ops.mul(e, s), s

    def reset(self, ops: Ops, membrane: State, z: Array, s: Array) -> State:
        return *self.inner.reset(ops, membrane if self.balance is None else membrane[:-1], s, s), z


@dataclass(frozen=True, kw_only=True)
class Delay(Neuron):
    """NIR Delay: `y[t] = x[t - d]`, d = delay / dt whole steps per neuron; zeros before the sample starts.

    State: the last max(d) inputs, newest first. `emit` needs no present input where every d >= 1, which is what lets
    a delay close a cycle.
    """

    neuron: ClassVar[bool] = False
    shape: Ints
    shortest: int
    longest: int
    masks: tuple[np.ndarray, ...] = ()  # one 0/1 array for each of shortest..longest; () where all delays agree

    def output_shape(self, shape: Ints) -> Ints:
        if self.shape not in ((), shape):
            raise ValueError(f"delay has shape {self.shape}")
        return shape

    def alphabet(self, a: Alphabet) -> Alphabet:
        return interval(min(a.lo, 0), max(a.hi, 0), a.discrete)  # zeros come first

    def init(self, ops: Ops, shape: Ints) -> State:
        return tuple(ops.zeros(shape) for _ in range(self.longest))

    def emit(self, ops: Ops, x: Array | None, state: State) -> Array:
        """y[t]; x may be None where every delay is at least one step."""
        past: tuple[Array | None, ...] = (x, *state)[self.shortest : self.longest + 1]
        if not self.masks:
            return past[0]
        y = ops.mul(past[0], self.masks[0])
        for mask, value in zip(self.masks[1:], past[1:], strict=True):
            y = ops.add(y, ops.mul(value, mask))
        return y

    def step(self, ops: Ops, driven: Array, state: State) -> tuple[Array, State]:
        return self.emit(ops, driven, state), (driven, *state)[: self.longest]


def _shared_shape(node: Any, names: tuple[str, ...]) -> tuple[Ints, dict[str, np.ndarray]]:
    """Parameters of one neuron node, all of one shape (a single number fits any); uniform ones collapse."""
    values = {n: parameter(node, n, positive=n.startswith("tau")) for n in names}
    shapes = {v.shape for v in values.values() if v.size > 1}
    if len(shapes) > 1:
        raise GraphError("parameters differ in shape: " + ", ".join(f"{n} {v.shape}" for n, v in values.items()))
    # a population of one neuron has shape (1,); a plain number fits any population
    shape = shapes.pop() if shapes else max((v.shape for v in values.values()), key=len)
    return shape, {n: uniform(v) for n, v in values.items()}


def unless(a: np.ndarray, neutral: float) -> np.ndarray | None:
    """None where a parameter does nothing, so that no engine pays (or rounds) for it."""
    return None if a.ndim == 0 and a == neutral else a


def _stock_fire(p: dict[str, np.ndarray]) -> dict[str, Any]:
    fire: dict[str, Any] = {"threshold": p["v_threshold"], "v_reset": unless(p["v_reset"], 0.0)}
    return {**fire, "compare": "gt", "reset_mode": "zero", "lower": None}


def _stock_leaky(shape: Ints, p: dict[str, np.ndarray], tau: np.ndarray, clock: Clock) -> dict[str, Any]:
    decay, a = clock.decay(tau)
    return {
        "shape": shape,
        "decay": np.asarray(decay),
        "gain": unless(np.asarray(a * p["r"]), 1.0),
        "bias": unless(np.asarray(a * p["v_leak"]), 0.0),
    }


def _leaky(node: Any, clock: Clock) -> Leaky:
    spiking = type(node).__name__ == "LIF"
    names = ("tau", "r", "v_leak", *(("v_threshold", "v_reset") if spiking else ()))
    shape, p = _shared_shape(node, names)
    leaky = _stock_leaky(shape, p, p["tau"], clock)
    return LeakyFire(**leaky, **_stock_fire(p)) if spiking else Leaky(**leaky)


def _integrator(node: Any, clock: Clock) -> Leaky:
    spiking = type(node).__name__ == "IF"
    shape, p = _shared_shape(node, ("r", *(("v_threshold", "v_reset") if spiking else ())))
    leaky: dict[str, Any] = {
        "shape": shape,
        "decay": np.asarray(1.0),
        "gain": unless(np.asarray(clock.dt * p["r"]), 1.0),
    }
    return LeakyFire(**leaky, **_stock_fire(p)) if spiking else Leaky(**leaky)


def _synapse(node: Any, clock: Clock) -> Synapse:
    spiking = type(node).__name__ == "CubaLIF"
    names = ("tau_mem", "tau_syn", "r", "v_leak", "w_in")
    shape, p = _shared_shape(node, (*names, *(("v_threshold", "v_reset") if spiking else ())))
    leaky = _stock_leaky(shape, p, p["tau_mem"], clock)
    decay_u, a = clock.decay(p["tau_syn"])
    synapse: dict[str, Any] = {"decay_u": np.asarray(decay_u), "gain_u": np.asarray(a * p["w_in"])}
    return SynapseFire(**leaky, **synapse, **_stock_fire(p)) if spiking else Synapse(**leaky, **synapse)


def _threshold(node: Any, clock: Clock) -> Threshold:
    shape, p = _shared_shape(node, ("threshold",))
    return Threshold(threshold=p["threshold"], shape=shape)


def _delay(node: Any, clock: Clock) -> Delay:
    delay = parameter(node, "delay")
    steps = np.rint(delay / clock.dt)
    if delay.size == 0:
        raise GraphError("delay is empty")
    raw = np.asarray(node.delay)
    rounded = np.finfo(raw.dtype).eps if raw.dtype.kind == "f" else 0.0  # of the file's own numbers
    if (np.abs(delay / clock.dt - steps) > np.clip(rounded * np.abs(steps), 1e-6, 0.01)).any():
        raise GraphError(f"delay {delay.reshape(-1)[0]:g} is no whole number of steps of dt = {clock.dt:g}")
    if steps.min() < 0:
        raise GraphError("delay must not be negative")
    if steps.max() > LONGEST:
        raise GraphError(f"delay of {steps.max():g} steps (dt = {clock.dt:g}); at most {LONGEST} are held")
    shortest, longest = (int(f(steps)) for f in (np.min, np.max))
    masks = () if shortest == longest else tuple(1.0 * (steps == d) for d in range(shortest, longest + 1))
    return Delay(shape=delay.shape, shortest=shortest, longest=longest, masks=masks)


PREPARE: dict[str, Callable[[Any, Clock], Step]] = {
    "LI": _leaky,
    "LIF": _leaky,
    "I": _integrator,
    "IF": _integrator,
    "CubaLI": _synapse,
    "CubaLIF": _synapse,
    "Threshold": _threshold,
    "Delay": _delay,
}
