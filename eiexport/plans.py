"""Quantisation plans: all numbers that quantisation chose, stored beside a run and used again exactly."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from eiexport.alphabet import Alphabet, interval
from eiexport.errors import GraphError
from eiexport.integers import ALIGN, REGISTER, SIGN_MODES, TOP

BITS = range(4, 9)


@dataclass(frozen=True)
class WeightPlan:
    """How a connection's weights are rounded: level * 2^shift units of alpha; shift: one, or one an output channel."""

    shift: int | tuple[int, ...]
    sign_mode: str
    bits: int

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest level; symmetric where both signs occur."""
        if self.sign_mode == "mixed":
            top = (1 << (self.bits - 1)) - 1
            return -top, top
        top = (1 << self.bits) - 1
        return (0, top) if self.sign_mode == "excitatory" else (-top, 0)

    def units(self, weight: Any) -> Any:
        """Weights in units of alpha as whole numbers on this grid; NumPy arrays or torch tensors, (O, ...)."""
        factor: Any = 2.0 ** np.asarray(self.shift, np.float64)
        if factor.ndim:
            factor = factor.reshape(-1, *[1] * (weight.ndim - 1))
            factor = factor if isinstance(weight, np.ndarray) else weight.new_tensor(factor)
        else:
            factor = float(factor)
        lo, hi = self.limits
        return (weight / factor).round().clip(lo, hi) * factor


@dataclass(frozen=True)
class GatePlan:
    """A gate: weights in steps of 2^-exponent; feedback: shift from sums to indices; balance: from v to messages."""

    weight: WeightPlan
    exponent: int
    shift: int
    message_bits: int = 0


@dataclass(frozen=True)
class CircuitPlan:
    """A circuit: its matrices in steps of 2^-exponents (excite, inhibit, spread), gains in 2^-gain_i and 2^-gain_e.

    gain_shift, shift, epsilon: fields of `circuits.IntCircuit`.
    """

    excite: WeightPlan
    inhibit: WeightPlan
    spread: WeightPlan
    exponents: tuple[int, int, int]
    gain_i: int = 0
    gain_shift: int = 0
    gain_e: int = 0
    shift: int = 0
    epsilon: int = 1


@dataclass(frozen=True)
class LayerPlan:
    """One population: alpha = 2^-exponent, its connections, its gates. proven: bounds alone exclude overflow."""

    exponent: int
    connections: dict[str, WeightPlan]
    feedback: GatePlan | None = None
    balance: GatePlan | None = None
    headroom: float = math.inf  # register's range over the largest value seen in calibration
    proven: bool = False
    bias_exp: int = ALIGN  # the neurons' biases are mantissa << bias_exp in the registers
    circuits: dict[str, CircuitPlan] = field(default_factory=dict)

    @property
    def alpha(self) -> float:
        return 2.0**-self.exponent


@dataclass(frozen=True)
class Plan:
    """All numbers that quantisation chose; what is stored beside a run and used again exactly."""

    bits: int
    input_scale: float  # float value of one unit of the integer input
    input_lo: int
    input_hi: int
    layers: dict[str, LayerPlan] = field(default_factory=dict)

    @property
    def alphabet(self) -> Alphabet:
        return interval(min(0, self.input_lo), max(0, self.input_hi), True)

    def encode(self, x: Any) -> Any:
        """Float input as whole numbers, NumPy array or torch tensor."""
        return (x / self.input_scale).round().clip(self.input_lo, self.input_hi)

    def to_json(self) -> dict[str, Any]:
        d = asdict(self)
        for layer in d["layers"].values():
            layer["headroom"] = layer["headroom"] if math.isfinite(layer["headroom"]) else None
        return d


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{str(value)[:40]!r} is no whole number")
    return value


def _real(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{str(value)[:40]!r} is no number")
    return float(value)


def plan_from_json(d: Any) -> Plan:
    """A stored plan; raises GraphError in one line for anything else."""

    def weight(w: dict[str, Any]) -> WeightPlan:
        shift = w["shift"]
        each = tuple(map(_whole, shift)) if isinstance(shift, list) else _whole(shift)
        return WeightPlan(each, str(w["sign_mode"]), _whole(w["bits"]))

    def gate(g: dict[str, Any] | None) -> GatePlan | None:
        if g is None:
            return None
        return GatePlan(weight(g["weight"]), _whole(g["exponent"]), _whole(g["shift"]), _whole(g["message_bits"]))

    def circuit(c: dict[str, Any]) -> CircuitPlan:
        excite, inhibit, spread = (_whole(x) for x in c["exponents"])
        gain_i, gain_shift, gain_e = _whole(c["gain_i"]), _whole(c["gain_shift"]), _whole(c["gain_e"])
        parts = weight(c["excite"]), weight(c["inhibit"]), weight(c["spread"])
        exponents = excite, inhibit, spread
        return CircuitPlan(*parts, exponents, gain_i, gain_shift, gain_e, _whole(c["shift"]), _whole(c["epsilon"]))

    try:
        layers = {
            name: LayerPlan(
                _whole(p["exponent"]),
                {k: weight(w) for k, w in p["connections"].items()},
                gate(p["feedback"]),
                gate(p["balance"]),
                math.inf if p["headroom"] is None else _real(p["headroom"]),
                p["proven"] is True,
                _whole(p["bias_exp"]),
                {k: circuit(c) for k, c in p.get("circuits", {}).items()},
            )
            for name, p in d["layers"].items()
        }
        scale, lo, hi = _real(d["input_scale"]), _whole(d["input_lo"]), _whole(d["input_hi"])
        plan = Plan(check_bits(_whole(d["bits"])), scale, lo, hi, layers)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise GraphError(f"not a quantisation plan ({type(e).__name__}: {e})") from None
    if not (math.isfinite(scale) and 1e-12 < scale < 1e12 and -(1 << 31) < lo <= hi < 1 << 31):
        raise GraphError(f"not a quantisation plan: input scale {scale}, range {lo} to {hi}")
    for name, layer in layers.items():
        gates = [g for g in (layer.feedback, layer.balance) if g is not None]
        weights = [*layer.connections.values(), *(g.weight for g in gates)]
        made = layer.circuits.values()
        weights += [w for c in made for w in (c.excite, c.inhibit, c.spread)]
        right = all(w.bits == plan.bits and w.sign_mode in SIGN_MODES for w in weights)
        right = right and all(0 <= s < REGISTER for w in weights for s in np.atleast_1d(w.shift))
        right = right and all(abs(e) <= 64 for e in (layer.exponent, *(g.exponent for g in gates)))
        right = right and all(0 <= g.shift < REGISTER and 0 <= g.message_bits <= REGISTER for g in gates)
        right = right and all(abs(x) <= 64 for c in made for x in (*c.exponents, c.gain_i, c.gain_e))
        right = right and all(0 <= c.gain_shift < REGISTER and abs(c.shift) <= REGISTER for c in made)
        right = right and all(1 <= c.epsilon <= TOP for c in made)
        right = right and all(w.sign_mode == "excitatory" for c in made for w in (c.excite, c.inhibit, c.spread))
        if not right or not 0 <= layer.bias_exp < REGISTER or math.isnan(layer.headroom):
            raise GraphError(f"not a quantisation plan of {plan.bits} bits: the numbers of {name!r} are out of range")
    return plan


def check_bits(bits: int) -> int:
    """The bits; raises GraphError outside 4..8."""
    if bits not in BITS:
        raise GraphError(f"--quantize {bits}: weights take {BITS[0]} to {BITS[-1]} bits")
    return bits
