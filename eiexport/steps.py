"""What a prepared node is: its parameters in float64 and its meaning over ops.

`drive(x)` is the part without state, folded over time; `charge`, `decide`, `reset` are the step of a node that has
state or makes decisions, always in this order. A prepared node is a frozen dataclass; `bind` gives it to an engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from eiexport.alphabet import Alphabet, interval
from eiexport.errors import GraphError
from eiexport.ops import Array, Ints, Ops

State = tuple[Array, ...]
S = TypeVar("S", bound="Step")


@dataclass(frozen=True)
class Clock:
    """Discrete time: `dt` in the unit of the graph's time constants, and how the equations are integrated."""

    dt: float
    integrator: str  # "euler" | "exponential"

    def decay(self, tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(decay, gain) per step, formed once in float64: Euler 1 - dt/tau, dt/tau; else exp(-dt/tau), 1 - that."""
        a = self.dt / tau
        if self.integrator == "euler" and np.max(a) > 1:
            raise GraphError(f"dt = {self.dt:g} is longer than tau = {np.min(tau):g}: are both in the same unit?")
        return (1 - a, a) if self.integrator == "euler" else (np.exp(-a), -np.expm1(-a))


@dataclass(frozen=True)
class Step:
    """A prepared node. `scope`: "stateless" | "local" (state per neuron) | "coupled" (needs neighbours' state).

    A neuron records its output `z`: it has state or takes decisions. The others are folded over time.
    """

    scope: ClassVar[str] = "stateless"
    neuron: ClassVar[bool] = False

    def output_shape(self, shape: Ints) -> Ints:
        """Neuron shape of the output for an input shape; raises ValueError with the rule that is broken."""
        return shape

    def alphabet(self, a: Alphabet) -> Alphabet:
        """Output alphabet for an input alphabet."""
        raise NotImplementedError

    def under(self, a: Alphabet) -> Step:
        """The same step for inputs of this alphabet, without what cannot happen; ValueError for what must not."""
        return self

    def drive(self, ops: Ops, x: Array) -> Array:
        """Feed-forward part; x and result have (samples x steps) as leading axis."""
        return x


@dataclass(frozen=True)
class Neuron(Step):
    """A node with state or decisions: charge, fire (decide), reset; state is zero at the start of each sample."""

    scope: ClassVar[str] = "local"
    neuron: ClassVar[bool] = True
    observed: ClassVar[tuple[str, ...]] = ()  # names of the first entries of the state: "v", "u"

    def init(self, ops: Ops, shape: Ints) -> State:
        """Zero state; shape = (samples, *neuron shape)."""
        return ()

    def charge(self, ops: Ops, driven: Array, state: State) -> State:
        """Membranes before decision and reset; the first is V."""
        raise NotImplementedError

    def decide(self, ops: Ops, membrane: State) -> tuple[Array, Array]:
        """(z, s): the output, and the unsigned spike that resets. Element-wise in the membranes."""
        raise NotImplementedError

    def reset(self, ops: Ops, membrane: State, z: Array, s: Array) -> State:
        """State carried to the next step."""
        return ()

    def step(self, ops: Ops, driven: Array, state: State) -> tuple[Array, State]:
        return self.settle(ops, self.charge(ops, driven, state))

    def settle(self, ops: Ops, membrane: State) -> tuple[Array, State]:
        """Fire and reset: (z, state) for charged membranes."""
        z, s = self.decide(ops, membrane)
        return z, self.reset(ops, membrane, z, s)


def bind(step: S, ops: Ops) -> S:
    """The same step with its float64 parameters in the engine's own arrays."""
    changed: dict[str, Any] = {}
    for f in fields(step):
        value = getattr(step, f.name)
        if isinstance(value, np.ndarray):
            changed[f.name] = ops.const(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], np.ndarray):
            changed[f.name] = tuple(ops.const(v) for v in value)
        elif isinstance(value, Step):
            changed[f.name] = bind(value, ops)
    return replace(step, **changed)


def parameter(node: Any, field: str, *, positive: bool = False) -> np.ndarray:
    """A node's numeric field in float64; a uniform array collapses to one number, which every engine holds cheaply."""
    raw = getattr(node, field)
    try:
        held = np.asarray(raw)
    except (TypeError, ValueError):
        raise GraphError(f"{field} is {type(raw).__name__}, not numbers") from None
    if held.dtype.kind not in "biuf":
        what = held.dtype.name if held.dtype.kind in "cMm" else type(raw).__name__ if held.ndim == 0 else "text"
        raise GraphError(f"{field} is {what}, not numbers; write it as real numbers")
    a = held.astype(np.float64)
    if not np.isfinite(a).all():
        bad = "NaN" if np.isnan(a).any() else "infinite"
        raise GraphError(f"{field} holds {bad} values; train again or repair the file")
    if positive and not (a > 0).all():
        raise GraphError(f"{field} must be > 0, found {a.min():g}")
    return a


def whole_numbers(node: Any, field: str, lo: int, hi: int) -> np.ndarray:
    """A node's field in float64; raises GraphError unless all entries are whole numbers in [lo, hi]."""
    a = parameter(node, field)
    if a.size == 0:
        raise GraphError(f"{field} is empty")
    if (a != np.rint(a)).any():
        raise GraphError(f"{field} must hold whole numbers, found {a[a != np.rint(a)].reshape(-1)[0]:g}")
    if a.min() < lo or a.max() > hi:
        raise GraphError(f"{field} must lie in [{lo}, {hi}], found {a.min():g} to {a.max():g}")
    return a


def text(value: Any) -> Any:
    """HDF5 gives strings back as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def complete(kind: type[Any], found: dict[str, Any]) -> Any:
    """The node class; raises GraphError where a file leaves out a field that is always written.

    A default in its place would be another network. Fields that may be absent have the default None.
    """
    wanted = (f for f in fields(kind) if f.init and f.default is not None and f.name not in ("metadata", "schema"))
    if missing := [f.name for f in wanted if f.name not in found]:
        raise GraphError(f"{kind.__name__} has no {missing[0]}; write it again")
    return kind


def uniform(a: np.ndarray) -> np.ndarray:
    """One number where all entries agree; else the array."""
    return np.asarray(a.flat[0]) if a.size and (a == a.flat[0]).all() else a


def linear_alphabet(a: Alphabet, weight: np.ndarray, bias: np.ndarray | None) -> Alphabet:
    """Interval of `W x + b` over rows of a (rows, terms) matrix, for x in [lo, hi] or absent (zero padding)."""
    if not (math.isfinite(a.lo) and math.isfinite(a.hi)):
        return interval(-math.inf, math.inf, False)
    lo, hi = min(a.lo, 0.0), max(a.hi, 0.0)
    up, down = np.maximum(weight, 0).sum(1), np.minimum(weight, 0).sum(1)
    b = np.zeros(len(weight)) if bias is None else np.broadcast_to(bias, len(weight))
    whole = a.discrete and bool((weight == np.rint(weight)).all() and (b == np.rint(b)).all())
    return interval(float((up * lo + down * hi + b).min()), float((up * hi + down * lo + b).max()), whole)
