"""Circuits in integers: the scales of their matrices and gains, and the node that they make.

Everything in a circuit is >= 0 or stands behind an explicit minus, so all words are excitatory and zero stays zero:
Dale's law survives rounding. W_EI is rounded once, for both of its uses. By the plan's exponents:

    w_EE = W_EE unit 2^excite,  w_IE = W_IE unit 2^inhibit,  w_EI = W_EI 2^spread          (whole, `bits` bits)
    s in 2^-inhibit;  N in 2^-excite, since spread's sums are shifted by excite - inhibit - spread
    D in 2^-d, d = excite + gain_i - gain_shift;  I in steps of the population's own alpha

Sums are proven by the largest input, so no register can wrap. The finest scales that this leaves are taken.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from eiexport.alphabet import Alphabet, interval
from eiexport.circuits import DIVIDING, PARTS, RECIPROCAL_BITS, Circuit, IntCircuit, IntCircuitStep
from eiexport.errors import GraphError
from eiexport.integers import EXACT, REGISTER, TOP, grid_step
from eiexport.plans import CircuitPlan, WeightPlan
from eiexport.steps import Clock

ROOM = 1 << (REGISTER - 2)  # sums stay below it
DOWN = 8  # largest negative exponent of a synapse
UP = 7  # largest positive one
GAIN_BITS = 8
FINEST = 20  # of an exponent, for what is all but zero
MODE = "excitatory"


def choose(name: str, step: Circuit, a: Alphabet, unit: float, exponent: int | None, bits: int) -> CircuitPlan:
    """A plan for a circuit that gets `a` (float values, a message's `unit` in the float network's terms).

    exponent: of the population behind it; None for a readout, which computes in N's own. Raises GraphError for inputs
    without bound or below 0, for the zero rule of a sample, and where no scale fits.
    """
    if not (math.isfinite(a.hi) and a.lo >= 0):
        raise GraphError(f"node {name!r} gets {a}; its integer sums need an input between 0 and a known largest value")
    if step.form in DIVIDING and step.zero == "sample_min":
        raise GraphError(f"node {name!r} fills zeros by a minimum over the sample, which no chip has: give --divide")
    if step.form == "none" and exponent is not None:
        raise GraphError(f"node {name!r} has no gains, so it ends a network: an Output may follow, not a neuron")
    if step.form == "none" and step.bias is not None:
        raise GraphError(f"node {name!r} has a bias and no gains, which has no integer kind: leave --dale apart out")
    top, rows = a.hi / unit, _Rows(step, unit, bits)
    excite, inhibit, spread = _scales(name, rows, top)
    s, n = rows.sums("inhibit", inhibit) * top, rows.reach(excite, inhibit, spread, top)
    exponents = (excite, inhibit, spread)
    weights = (WeightPlan(rows.shift(k, x), MODE, bits) for k, x in _parts(exponents).items())
    plan = CircuitPlan(*weights, exponents)  # type: ignore[call-arg, arg-type]
    for key, x in _parts(exponents).items():
        if rows.weight[key].any() and not rows.sums(key, x):
            raise GraphError(
                f"node {name!r}: {key} rounds to 0 beside the other matrices; are their scales so far apart?"
            )
    if step.form == "none":
        return plan
    assert step.gain_e is not None and exponent is not None
    gain_e = _natural(step.gain_e, GAIN_BITS)
    most = float(np.max(step.gain_e))
    if step.form == "frozen":
        while exponent - gain_e - excite > REGISTER:
            gain_e += 1
        return replace(plan, gain_e=gain_e, shift=exponent - gain_e - excite)
    assert step.gain_i is not None
    gain_i = _natural(step.gain_i, GAIN_BITS)
    cells, gain_shift = max(1.0, np.rint(float(np.max(step.gain_i)) * 2.0**gain_i)) * s, 0
    while cells * 2.0**-gain_shift >= ROOM or rows.spread(excite, inhibit, spread, cells * 2.0**-gain_shift) >= ROOM:
        gain_shift += 1
    wide = EXACT / 4 / (2.0**RECIPROCAL_BITS if step.form == "table" else 1.0)
    shift = exponent - gain_e + gain_i - gain_shift
    while shift < 0:
        gain_e, shift = gain_e - 1, shift + 1
    if most and not np.rint(most * 2.0**gain_e):
        raise GraphError(f"node {name!r}: its gains of up to {most:g} round to 0 against the thresholds behind it")
    while shift > REGISTER or max(1.0, np.rint(most * 2.0**gain_e)) * n * 2.0**shift >= wide:
        if shift == 0:
            raise GraphError(f"node {name!r}: its numerators do not fit 52 bits at any scale")
        gain_shift, shift = gain_shift + 1, shift - 1
    assert step.epsilon is not None
    epsilon = max(1, int(np.rint(float(step.epsilon) * 2.0 ** (excite + gain_i - gain_shift))))
    if epsilon > TOP:
        raise GraphError(
            f"node {name!r}: epsilon = {float(step.epsilon):g} is more than {REGISTER} bits of denominators"
        )
    numbers: dict[str, Any] = {"gain_i": gain_i, "gain_shift": gain_shift, "gain_e": gain_e, "shift": shift}
    return replace(plan, **numbers, epsilon=epsilon)


def _parts(exponents: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(PARTS, exponents, strict=True))


class _Rows:
    """The circuit's matrices in effective weights, and bounds of what their integers sum up to."""

    def __init__(self, step: Circuit, unit: float, bits: int) -> None:
        self.bits = bits
        self.weight = matrices(step, unit)
        self.natural = {k: _finest(w, bits) for k, w in self.weight.items()}

    def shift(self, part: str, exponent: int) -> int:
        """Bits of words that are finer than their levels."""
        return max(0, exponent - self.natural[part])

    def sums(self, part: str, exponent: int) -> float:
        """The largest sum of a row's integers."""
        units = WeightPlan(self.shift(part, exponent), MODE, self.bits).units(self.weight[part] * 2.0**exponent)
        return float(units.reshape(len(units), -1).sum(1).max())

    def spread(self, excite: int, inhibit: int, spread: int, cells: float) -> float:
        """The largest sum of spread for messages up to `cells`, shifted."""
        return self.sums("spread", spread) * cells * 2.0 ** (excite - inhibit - spread)

    def reach(self, excite: int, inhibit: int, spread: int, top: float) -> float:
        """The largest |N|."""
        taken = self.spread(excite, inhibit, spread, self.sums("inhibit", inhibit) * top)
        return max(self.sums("excite", excite) * top, taken)


def _scales(name: str, rows: _Rows, top: float) -> tuple[int, int, int]:
    """(excite, inhibit, spread): the finest that keep sums below ROOM, and exponents within what synapses have."""
    inhibit, spread = rows.natural["inhibit"], rows.natural["spread"]
    grid = int(math.log2(grid_step(rows.bits, MODE)))
    for _ in range(200):
        least = inhibit + spread + grid - DOWN  # spread's sums are shifted down by as much as a synapse can
        # and up by no more either
        excite = min(max(rows.natural["excite"], least), inhibit + spread + grid + UP)
        while excite > least and max(rows.sums("excite", excite), 0) * top >= ROOM:
            excite -= 1
        fits = max(rows.reach(excite, inhibit, spread, top), rows.sums("inhibit", inhibit) * top) < ROOM
        if fits and rows.shift("excite", excite) <= UP:
            return excite, inhibit, spread
        inhibit -= 1
    raise GraphError(f"node {name!r}: no scale keeps its sums within {REGISTER} bits; use smaller messages")


def matrices(step: Circuit, unit: float) -> dict[str, np.ndarray]:
    """W_EE and W_IE times what a message means, and W_EI."""
    return {"excite": step.excite.weight * unit, "inhibit": step.inhibit.weight * unit, "spread": step.spread.weight}


def _natural(a: np.ndarray, bits: int) -> int:
    """The finest exponent at which `bits` bits clip nothing."""
    largest = float(np.max(a, initial=0.0))
    return min(FINEST, math.floor(math.log2(((1 << bits) - 1) / largest))) if largest > 2.0**-40 else FINEST


def _finest(weight: np.ndarray, bits: int) -> int:
    """The exponent of least square error: weights fall off exponentially, so clipping a few may pay for the others."""
    coarse, plan = _natural(weight, bits), WeightPlan(0, MODE, bits)

    def error(x: int) -> float:
        return float(np.square(plan.units(weight * 2.0**x) * 2.0**-x - weight).sum())

    return min(range(coarse, coarse + 3), key=error)


# --- the node, and its float twin


def gains(step: Circuit, plan: CircuitPlan) -> dict[str, np.ndarray | None]:
    """gain_i and gain_e as whole numbers."""
    given = (("gain_i", step.gain_i, plan.gain_i), ("gain_e", step.gain_e, plan.gain_e))
    return {k: None if a is None else np.rint(a * 2.0**x) for k, a, x in given}


def node(step: Circuit, plan: CircuitPlan, unit: float, exponent: int, connection: Any) -> IntCircuit:
    """The integer node; connection(step, weight, plan, exponent) makes one of its parts; message bits are set later."""
    weight, exponents = matrices(step, unit), _parts(plan.exponents)
    parts = {k: connection(getattr(step, k), weight[k], getattr(plan, k), x) for k, x in exponents.items()}
    down = exponents["excite"] - exponents["inhibit"] - exponents["spread"]
    parts["spread"] = replace(parts["spread"], weight_exp=parts["spread"].weight_exp + down)
    cells = {"gain_i": len(weight["inhibit"]), "gain_e": len(weight["excite"])}
    rest: dict[str, Any] = {}
    if step.form != "none":
        for key, a in gains(step, plan).items():
            if a is not None:
                rest[key] = _each(a, cells[key])
        bias = np.zeros(()) if step.bias is None else np.rint(step.bias * 2.0**exponent)
        rest["bias"] = _each(bias, cells["gain_e"])
        rest |= {"shift": plan.shift, "gain_shift": plan.gain_shift, "epsilon": plan.epsilon}
    return IntCircuit(**parts, form=step.form, table_bits=step.table_bits, **rest)


def _each(a: np.ndarray, cells: int) -> np.ndarray:
    return np.broadcast_to(np.ravel(a), cells).astype(np.int32)


def sized(made: IntCircuit, a: Alphabet, message_bits: Any) -> IntCircuit:
    """The node with message widths as narrow as the input's alphabet allows."""
    wide = replace(made, excite=replace(made.excite, message_bits=REGISTER))
    wide = replace(wide, inhibit=replace(made.inhibit, message_bits=REGISTER))
    step = _prepared(wide)
    s = step.inhibit.under(a).alphabet(a)
    top = max(0.0, s.hi)
    if step.gain_i is not None:
        top = max(top, math.floor(float(np.max(step.gain_i)) * top / 2.0**step.gain_shift))
    bits = message_bits(a)
    parts = {k: replace(getattr(made, k), message_bits=bits) for k in ("excite", "inhibit")}
    return replace(
        made, **parts, spread=replace(made.spread, message_bits=message_bits(interval(0, max(top, 2), True)))
    )


def _prepared(made: IntCircuit) -> IntCircuitStep:
    from eiexport.nodes import prepare

    step = prepare(made, Clock(1.0, "euler"))
    assert isinstance(step, IntCircuitStep)
    return step


def twin(step: Circuit, plan: CircuitPlan, unit: float, alpha: float) -> Circuit:
    """The float circuit with its numbers as its integers mean them."""
    changed: dict[str, Any] = {}
    for (key, weight), x in zip(matrices(step, unit).items(), plan.exponents, strict=True):
        rounded = getattr(plan, key).units(weight * 2.0**x) * 2.0**-x
        changed[key] = replace(getattr(step, key), weight=rounded / (1.0 if key == "spread" else unit))
    if step.form != "none":
        for (key, a), x in zip(gains(step, plan).items(), (plan.gain_i, plan.gain_e), strict=True):
            changed[key] = None if a is None else a * 2.0**-x
        if step.bias is not None:
            changed["bias"] = np.rint(step.bias / alpha) * alpha
    if step.form in DIVIDING:
        changed["epsilon"] = np.asarray(plan.epsilon * 2.0 ** (plan.gain_shift - plan.exponents[0] - plan.gain_i))
    return replace(step, **changed)
