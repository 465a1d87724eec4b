"""Choosing a quantisation plan from what a float network does on real samples, and what each layer then costs."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from eiexport import graph as graphs
from eiexport import quantise_circuits
from eiexport.alphabet import interval
from eiexport.connections import Conv, Dense
from eiexport.errors import GraphError
from eiexport.explicit import explicit
from eiexport.graph import Network
from eiexport.integers import ALIGN, REGISTER, TOP, UNITY, IntFire, IntGatedFire, grid_step, sign_mode_of
from eiexport.neurons import GatedFire
from eiexport.ops import NumpyOps
from eiexport.plans import CircuitPlan, GatePlan, LayerPlan, Plan, WeightPlan, check_bits
from eiexport.quantise import (
    BIAS_MAX,
    EXP_MAX,
    VTH_MAX,
    Fed,
    Layer,
    Readout,
    apply,
    gate_units,
    layers,
    mantissa,
    message_unit,
)
from eiexport.steps import Step

MARGIN = 1.5  # registers hold at least this much more than the samples asked for
CLIPS = 3  # shifts tried: the one that clips no weight, and finer ones that clip some
SIGMOID = 8.0  # beyond, a table in Q0.8 has nothing to say
PLENTY = 64.0  # thresholds that a membrane behind a circuit may hold
WORK = 1e9  # products that one try may cost
OPS = NumpyOps()


@dataclass
class Observed:
    """What one node did on the samples, in the float network's numbers.

    largest: of |current| or |register|, before fire and reset. rows: some inputs of a connection, or membranes of a
    neuron with a balance gate, each (rows, *shape). fed: largest |sum| of the feedback gate.
    """

    largest: float = 0.0
    fed: float = 0.0
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class Samples:
    """Observations by node name; x: some of the network's input, (rows, *neuron), and its range."""

    nodes: dict[str, Observed] = field(default_factory=dict)
    lo: float = 0.0
    hi: float = 0.0
    whole: float = 0.0  # the largest d in 1, 2, 4, ... for which all inputs are multiples of 1 / d; 0: none


def choose(network: Network, samples: Samples, bits: int, *, channels: bool = False) -> Plan:
    """A plan for weights of `bits` bits, by the samples; channels: one weight scale an output channel.

    Raises GraphError for bits outside 4..8 and for networks without integer meaning.
    """
    check_bits(bits)
    if samples.lo == samples.hi == 0 and samples.nodes:
        raise GraphError("the calibration data is all zero: give samples like those that will be run")
    network = explicit(network)
    scale, lo, hi = _input(network, samples, bits)
    clock, entering = network.clock, interval(min(0, lo) * scale, max(0, hi) * scale, False)
    network = graphs.check(network.graph, clock.dt, clock.integrator, entering)  # which bounds the readouts
    chosen = {}
    for name, layer in layers(network, scale).items():
        about = (samples, bits, channels)
        chosen[name] = _layer(network, layer, *about) if isinstance(layer, Layer) else _readout(network, layer, *about)
    plan = Plan(bits, scale, lo, hi, chosen)
    integer = graphs.check(apply(network, plan), alphabet=plan.alphabet)
    return replace(plan, layers={n: replace(p, proven=_proven(integer, n)) for n, p in chosen.items()})


def _input(network: Network, samples: Samples, bits: int) -> tuple[float, int, int]:
    """(scale, lo, hi) of the integer input: spikes and whole numbers as they are, else the best of 4 to 8 bits.

    Wide messages leave fewer bits of the registers to the weights behind them, so the first currents' error decides.
    Circuits divide, so they take the widest.
    """
    codes: list[tuple[float, int, int]] = []
    if (d := samples.whole) and max(-samples.lo, samples.hi) * d < 256:
        codes.append((1 / d, math.floor(samples.lo * d + 0.5), math.floor(samples.hi * d + 0.5)))
        if d == 1:
            return codes[0]
    for width in range(8, 3, -1):
        top = (1 << width) - 1 if samples.lo >= 0 else (1 << (width - 1)) - 1
        codes.append((max(samples.hi, -samples.lo, 1e-30) / top, 0 if samples.lo >= 0 else -top, top))

    def error(code: tuple[float, int, int]) -> float:
        total = 0.0
        for layer in (x for x in layers(network, code[0]).values() if isinstance(x, Layer)):
            exponent = _exponent(layer, samples, bits)
            firsts = (c for c in layer.weights if _from_input(network, c))
            total += sum(_weights(network.steps[c], layer, c, exponent, samples, bits)[1] for c in firsts)
        return total

    return min(codes, key=error)


def _from_input(network: Network, name: str) -> bool:
    """True for a connection whose messages are the encoded input's, not spikes."""
    while name != network.input:
        if network.steps[name].neuron or len(network.sources[name]) != 1:
            return False
        (name,) = network.sources[name]
    return True


def _exponent(layer: Layer, samples: Samples, bits: int) -> int:
    """The finest alpha = 2^-exponent at which the registers hold MARGIN times what the samples asked for."""
    threshold = float(np.abs(layer.fire.threshold).max())
    largest = max(samples.nodes[layer.name].largest, threshold)
    if layer.circuits:  # a quotient has no bound, and is clipped: what is left of it makes the neuron fire all the same
        biases = [float(np.abs(c.bias).max()) for c in layer.circuits.values() if c.bias is not None]
        largest = max(min(largest, PLENTY * threshold), *biases, threshold)
    exponent = math.floor(math.log2(TOP / (1 << ALIGN) / (MARGIN * max(largest, 1e-30))))
    lower = getattr(layer.fire, "lower", None)
    thresholds = max(float(np.abs(t).max()) for t in (layer.fire.threshold, lower) if t is not None)
    # thresholds have 17 bits, biases a mantissa of 12 and up to 7 more
    while thresholds * 2.0**exponent > VTH_MAX or _largest_bias(layer) * 2.0**exponent > BIAS_MAX:
        exponent -= 1
    return _within_words(layer, exponent, bits)


def _within_words(fed: Fed, exponent: int, bits: int) -> int:
    """The exponent, or as much less as the largest exponent of a synapse asks for."""
    for weight in fed.weights.values():
        mode = sign_mode_of(weight)
        most = _top(mode, bits) * grid_step(bits, mode) * 2.0**EXP_MAX
        while np.abs(weight).max() * 2.0**exponent > most:
            exponent -= 1
    return exponent


def _top(mode: str, bits: int) -> int:
    """Magnitude of the largest level."""
    return max(map(abs, WeightPlan(0, mode, bits).limits))


def _readout(network: Network, readout: Readout, samples: Samples, bits: int, channels: bool) -> LayerPlan:
    """The finest alpha that synapses have exponents for, and that provably keeps the sums within 24 bits.

    No sum is more than four times its float bound: rounding doubles a weight at most, and may take away a bias that
    others had to make up for.
    """
    if readout.circuits:
        circuits = _circuits(network, readout, None, bits)
        (chosen,) = circuits.values()
        return LayerPlan(chosen.exponents[0], {}, circuits=circuits)
    bound = network.alphabets[readout.name]
    reach = max(-bound.lo, bound.hi, 2.0**-32)
    exponent = _within_words(readout, math.floor(math.log2(TOP / 4 / reach)), bits)
    steps = network.steps
    weights = {c: _weights(steps[c], readout, c, exponent, samples, bits, channels)[0] for c in readout.weights}
    return LayerPlan(exponent, weights)


def _layer(network: Network, layer: Layer, samples: Samples, bits: int, channels: bool) -> LayerPlan:
    exponent = _exponent(layer, samples, bits)
    weights = {c: _weights(network.steps[c], layer, c, exponent, samples, bits, channels)[0] for c in layer.weights}
    gates: dict[str, Any] = {}
    if isinstance(layer.step, GatedFire):
        seen = samples.nodes[layer.name]
        if layer.step.feedback is not None:
            gates["feedback"] = _feedback(layer.step.feedback, seen, bits)
        if layer.step.balance is not None:
            gates["balance"] = _balance(layer.name, layer.step.balance, seen, exponent, bits)
    largest = max(samples.nodes[layer.name].largest, 1e-30)
    headroom = TOP / (1 << ALIGN) / (largest * 2.0**exponent)
    most = _largest_bias(layer) * 2.0**exponent
    # room for a bit of growth in fine-tuning
    bias_exp = ALIGN + max(0, math.ceil(math.log2(max(most, 1e-30) / (BIAS_MAX / 2))))
    gates["circuits"] = _circuits(network, layer, exponent, bits)
    return LayerPlan(exponent, weights, **gates, headroom=headroom, bias_exp=bias_exp)


def _circuits(network: Network, fed: Fed, exponent: int | None, bits: int) -> dict[str, CircuitPlan]:
    return {
        name: quantise_circuits.choose(name, step, network.arriving(name), fed.units[name], exponent, bits)
        for name, step in fed.circuits.items()
    }


def _largest_bias(layer: Layer) -> float:
    """Of the neurons' own registers."""
    parts = [b for c, b in layer.biases.items() if b is not None and layer.carried[c]]
    own = getattr(layer.fire, "bias", None)
    return sum(float(np.abs(b).max()) for b in (*parts, *(() if own is None else (own,))))


def _proven(network: Network, name: str) -> bool:
    """True where the alphabets alone bound u and v of an integer population, or a readout, within 24 bits."""
    step = network.steps[name]
    fire = step.inner if isinstance(step, IntGatedFire) else step
    if not isinstance(fire, IntFire):
        a = network.alphabets[name]
        return a.discrete and max(-a.lo, a.hi) <= TOP
    total = [network.alphabets[s] for s in network.sources[name]]
    if any(a.kind == "real" for a in total):
        return False
    u = (1 << ALIGN) * max(-sum(a.lo for a in total), sum(a.hi for a in total))
    kept = [0.0 if k is None else float(np.max(k)) / (1 << UNITY) for k in (fire.keep_u, fire.keep_v)]
    if max(kept) >= 1:
        return False  # an integrator has no bound of its own
    u /= 1 - kept[0]
    return (u + (0.0 if fire.bias is None else float(np.abs(fire.bias).max()))) / (1 - kept[1]) <= TOP


def _weights(
    step: Step, layer: Fed, name: str, exponent: int, samples: Samples, bits: int, channels: bool = False
) -> tuple[WeightPlan, float]:
    """The weight plan of least mean square error of the current on the samples, and that error over the signal's."""
    weight = layer.weights[name] * 2.0**exponent
    mode = sign_mode_of(weight)
    top = _top(mode, bits)
    rows = np.abs(weight).reshape(len(weight), -1).max(1)
    if not channels:
        rows = rows.max(keepdims=True)
    fits = np.maximum(0, np.ceil(np.log2(np.maximum(rows, 1e-30) / top))).astype(int)  # clips nothing
    seen = samples.nodes[name].rows
    assert seen is not None
    exact = seen[: max(8, int(WORK / max(1, weight.size * math.prod(seen.shape[2:]))))] / layer.units[name]
    wanted, x = _currents(step, weight, exact), np.rint(exact)
    shifts, errors = [], []
    for finer in range(CLIPS):
        shift = np.maximum(0, fits - finer)
        error = (_currents(step, WeightPlan(_told(shift, channels), mode, bits).units(weight), x) - wanted) ** 2
        channel = 1 if isinstance(step, Conv) else error.ndim - 1
        rest = tuple(i for i in range(error.ndim) if not channels or i != channel)
        shifts.append(shift)
        errors.append(np.atleast_1d(error.mean(axis=rest)))
    pick = np.stack(errors).argmin(0)
    best = np.stack(shifts)[pick, np.arange(len(pick))]
    relative = float(np.stack(errors).min(0).mean()) / max(float((wanted**2).mean()), 1e-30)
    return WeightPlan(_told(best, channels), mode, bits), relative


def _told(shift: np.ndarray, channels: bool) -> int | tuple[int, ...]:
    return tuple(int(s) for s in shift) if channels else int(shift[0])


def _currents(step: Step, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    assert isinstance(step, Dense | Conv)
    return replace(step, weight=weight, bias=None).drive(OPS, x)


def _gate_weights(step: Any, bits: int) -> tuple[WeightPlan, int]:
    """(plan, exponent): gates stand alone, so the finest scale that clips nothing."""
    mode = sign_mode_of(step.weight)
    top = _top(mode, bits)
    largest = max(float(np.abs(step.weight).max()), top * 2.0**-16)
    return WeightPlan(0, mode, bits), math.floor(math.log2(top / largest))


def _feedback(step: Any, seen: Observed, bits: int) -> GatePlan:
    plan, exponent = _gate_weights(step, bits)
    reach = min(SIGMOID, max(seen.fed, 2.0**-6))
    finest = math.floor(math.log2(128 / reach))  # table steps of 2^-finest
    return GatePlan(plan, exponent, max(0, exponent - finest))


def _balance(name: str, step: Any, seen: Observed, exponent: int, bits: int) -> GatePlan:
    """The widest message whose sums 24 bits hold; its shift by the fewest sign flips on the sampled membranes."""
    plan, fine = _gate_weights(step, bits)
    weight = plan.units(step.weight * 2.0**fine)
    reach = float(np.abs(weight).reshape(len(weight), -1).sum(1).max())
    registers = None if seen.rows is None else np.rint(seen.rows * 2.0 ** (exponent + ALIGN))
    for width in range(16, 1, -1):
        top = (1 << (width - 1)) - 1
        shifts = _balance_shifts(seen, exponent, top)
        bias = 0.0
        if step.bias is not None:
            unit = 2.0 ** (shifts[0] - exponent - ALIGN)
            bias = float(np.abs(step.bias).max()) * 2.0**fine / unit
        if reach * top + bias * 2 ** (len(shifts) - 1) <= TOP:
            break
    else:
        raise GraphError(f"node {name!r}: its balance gate sums more than 24 bits hold at any message width")
    if registers is None:
        return GatePlan(plan, fine, shifts[0], width)

    def flips(shift: int) -> float:
        unit = 2.0 ** (shift - exponent - ALIGN)
        message = np.clip(np.floor(registers * 2.0**-shift), -top, top)
        bias = None if step.bias is None else np.rint(step.bias * 2.0**fine / unit)
        found = np.sign(replace(step, weight=weight, bias=bias).drive(OPS, message))
        wanted = np.sign(step.drive(OPS, seen.rows))
        return float((found != wanted).mean())

    return GatePlan(plan, fine, min(shifts, key=flips), width)


def _balance_shifts(seen: Observed, exponent: int, top: int) -> list[int]:
    largest = max(seen.largest, 1e-30) * 2.0 ** (exponent + ALIGN)
    widest = min(REGISTER - 1, max(0, math.ceil(math.log2(largest / top))))
    return [s for s in (widest, widest - 1, widest - 2) if s >= 0]


# --- the float twin


def twin(network: Network, plan: Plan, names: Collection[str]) -> Network:
    """The float network with the numbers of some populations (and their connections) as their integers mean them.

    Rounding of gates' tables, products and messages is not in it: it tells what weights, decays, thresholds and biases
    cost, one population at a time.
    """
    network = explicit(network)
    found = layers(network, plan.input_scale)
    steps = dict(network.steps)
    for name in names:
        layer, chosen = found[name], plan.layers[name]
        for c, weight in layer.weights.items():
            step = steps[c]
            assert isinstance(step, Dense | Conv)
            units = chosen.connections[c].units(weight * 2.0**chosen.exponent) * chosen.alpha
            rows = layer.factors[c].reshape(-1, *[1] * (weight.ndim - 1))
            bias = None if step.bias is None else _rounded_bias(layer, c, chosen)
            steps[c] = replace(step, weight=np.where(rows != 0, units / np.where(rows != 0, rows, 1), 0.0), bias=bias)
        for c, circuit in layer.circuits.items():
            steps[c] = quantise_circuits.twin(circuit, chosen.circuits[c], layer.units[c], chosen.alpha)
        if isinstance(layer, Layer):
            steps[name] = _rounded(layer, chosen)
    return replace(network, steps=steps)


def _rounded_bias(layer: Fed, name: str, plan: LayerPlan) -> np.ndarray:
    """A connection's float bias as its integers mean it."""
    bias, factor = layer.biases[name], layer.factors[name] / layer.units[name]
    assert bias is not None
    units = bias / plan.alpha
    step = 2.0 ** (plan.bias_exp - ALIGN)
    whole = mantissa(units, plan.bias_exp) * step if layer.carried[name] else np.rint(units)
    return np.where(factor != 0, whole * plan.alpha / np.where(factor != 0, factor, 1), 0.0)


def _rounded(layer: Layer, plan: LayerPlan) -> Step:
    fire: Any = layer.fire
    changed: dict[str, Any] = {"threshold": np.rint(fire.threshold / plan.alpha) * plan.alpha}
    if getattr(fire, "lower", None) is not None:
        changed["lower"] = np.rint(fire.lower / plan.alpha) * plan.alpha
    if getattr(fire, "bias", None) is not None:
        step = plan.alpha * 2.0 ** (plan.bias_exp - ALIGN)
        changed["bias"] = mantissa(fire.bias / plan.alpha, plan.bias_exp) * step
    for key in ("decay", "decay_u"):
        if getattr(fire, key, None) is not None:
            changed[key] = np.rint(getattr(fire, key) * (1 << UNITY)) / (1 << UNITY)
    inner = replace(fire, **changed)
    if not isinstance(layer.step, GatedFire):
        return inner
    gates: dict[str, Any] = {}
    for key in ("feedback", "balance"):
        step, chosen = getattr(layer.step, key), getattr(plan, key)
        if step is not None:
            unit = message_unit(plan) if key == "balance" else 1.0
            bias = None if step.bias is None else step.bias * 2.0**chosen.exponent / unit
            weight, bias = gate_units(chosen, step.weight * 2.0**chosen.exponent, bias)
            scaled = None if bias is None else (bias * unit * 2.0**-chosen.exponent).reshape(np.shape(step.bias))
            gates[key] = replace(step, weight=weight * 2.0**-chosen.exponent, bias=scaled)
    return replace(layer.step, inner=inner, **gates)  # type: ignore[arg-type]
