"""The quantise pass: a float network becomes an integer one, by a plan that was chosen once and is stored.

Units. A population computes in steps of `alpha = 2^-exponent`: an input current of one unit is `alpha` in the float
network's terms, the registers hold 64 units each. A weight is `level * 2^shift` units with a level of `bits` bits, so
every scale is a power of two, zero stays zero and signs stay. What is not a power of two (a pool's 1 / area, a gain,
the input's scale) is multiplied into the weights before they are rounded.

    w_int = clip(round(w * unit * gain * 2^exponent / 2^shift), levels) * 2^shift
    vth = round(threshold * 2^exponent);  bias = round(b * 2^exponent) << 6;  dv = 4096 - round(4096 decay)

A readout has no registers: its sums, bias included, are whole numbers in steps of its own alpha. Connections that the
graph leaves implicit are written out first (`eiexport.explicit`), so that every population is fed through weights.
`eiexport.calibrate` chooses plans, `apply` makes the integer graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import nir
import numpy as np

from eiexport import graph as graphs
from eiexport import quantise_circuits
from eiexport.alphabet import Alphabet
from eiexport.circuits import Circuit, IntCircuit
from eiexport.connections import Conv, Dense, Flatten, Identity, MaxPool, Pool, Scale
from eiexport.errors import GraphError
from eiexport.explicit import explicit
from eiexport.graph import Network
from eiexport.integers import (
    ALIGN,
    REGISTER,
    TOP,
    UNITY,
    IntConv,
    IntCubaLIF,
    IntDense,
    IntGatedLIF,
    grid_step,
)
from eiexport.neurons import Delay, GatedFire, LeakyFire, SynapseFire, Threshold
from eiexport.ops import NumpyOps
from eiexport.plans import GatePlan, LayerPlan, Plan, WeightPlan
from eiexport.steps import Step

VTH_MAX = (1 << 17) - 1
BIAS_MAX = (1 << 12) - 1  # mantissa, 13 bits with sign
EXP_MAX = 7  # largest weight exponent of a synapse


# --- how a float network is built, as far as quantisation cares


@dataclass(frozen=True, kw_only=True)
class Fed:
    """A node and the connections that feed it alone; effective weights in the node's own units.

    weights: float weights times what an input message means, pools and gains on the way included. biases likewise.
    units: what one unit of a connection's messages means in the float network.
    """

    name: str
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    biases: dict[str, np.ndarray | None] = field(default_factory=dict)
    # effective weight = factor (one an output channel) * float weight
    factors: dict[str, np.ndarray] = field(default_factory=dict)
    units: dict[str, float] = field(default_factory=dict)
    carried: dict[str, bool] = field(default_factory=dict)  # the connection's bias is the neuron's own register
    circuits: dict[str, Circuit] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Readout(Fed):
    """Sums without a neuron behind them, which an Output hands to the host; the node is the last before the Output."""


@dataclass(frozen=True, kw_only=True)
class Layer(Fed):
    """A spiking population."""

    step: LeakyFire | SynapseFire | GatedFire | Threshold

    @property
    def fire(self) -> LeakyFire | SynapseFire | Threshold:
        return self.step.inner if isinstance(self.step, GatedFire) else self.step


def layers(network: Network, input_scale: float = 1.0) -> dict[str, Layer | Readout]:
    """Every population and every readout of an explicit float network, with its connections.

    Raises GraphError for what has no integer meaning.
    """
    units = _units(network, input_scale)
    sinks: dict[str, list[str]] = {n: [] for n in network.steps}
    for name, came in network.sources.items():
        for s in came:
            sinks[s].append(name)
    found: dict[str, Layer | Readout] = {}
    for name in (n for component in network.order for n in component):
        step = network.steps[name]
        if isinstance(step, LeakyFire | SynapseFire | GatedFire | Threshold):
            _verify(network, name, step)
            found[name] = Layer(name=name, step=step)
        elif step.neuron:
            raise GraphError(
                f"node {name!r} ({_kind(network, name)}) sends its membrane, which has no integer kind; "
                "end the network in spiking neurons or in a connection"
            )
    if not found:
        raise GraphError("the network has no spiking neurons, so there is nothing to quantise")
    for name, step in network.steps.items():
        if isinstance(step, Dense | Conv):
            owner, factor = _owner(network, sinks, name)
            layer = found.setdefault(owner, Readout(name=owner))
            direct = sinks[name] == [owner]
            gain = _gain(network, owner, step) * factor * units[name]
            wide = gain.reshape(-1, *[1] * (step.weight.ndim - 1))
            layer.weights[name], layer.factors[name], layer.units[name] = step.weight * wide, gain, units[name]
            layer.biases[name] = None if step.bias is None else step.bias * (gain / units[name])
            # behind a pool or a delay, or within a gate or a synaptic memory, a bias is not the neuron's own
            layer.carried[name] = direct and isinstance(network.steps[owner], LeakyFire | Threshold)
        if isinstance(step, Circuit):
            owner, factor = _owner(network, sinks, name)
            layer = found.setdefault(owner, Readout(name=owner))
            inner = network.steps[owner]
            inner = inner.inner if isinstance(inner, GatedFire) else inner
            gains = [getattr(inner, k, None) for k in ("gain", "gain_u")]
            apart = owner != name and sinks[name] != [owner]
            if apart or factor != 1 or any(g is not None and (g != 1).any() for g in gains):
                raise GraphError(f"node {name!r}: a circuit ends in one neuron without a gain, or in an Output")
            layer.circuits[name], layer.units[name] = step, units[name]
    for name, layer in found.items():
        if isinstance(layer, Readout) and layer.circuits and layer.weights:
            raise GraphError(f"readout {name!r} sums a circuit and connections: give each an Output")
        if not layer.weights and not layer.circuits:
            raise GraphError(
                f"node {name!r} is fed by no Dense or Conv, so it has no weights to scale; put one before it"
            )
    return found


def _kind(network: Network, name: str) -> str:
    return type(network.graph.nodes[name]).__name__


def _verify(network: Network, name: str, step: Step) -> None:
    fire = step.inner if isinstance(step, GatedFire) else step
    if getattr(fire, "v_reset", None) is not None and fire.reset_mode == "zero":  # type: ignore[attr-defined]
        raise GraphError(f"node {name!r}: v_reset must be 0 in integers; shift the membrane's origin")
    if getattr(fire, "lower", None) is not None and fire.reset_mode == "subtract":  # type: ignore[attr-defined]
        raise GraphError(f"node {name!r}: two thresholds with reset 'subtract' have no integer kind; use 'zero'")


def _units(network: Network, input_scale: float) -> dict[str, float]:
    """What one unit of the integer signal that enters each node means in the float network."""
    sent: dict[str, float] = {}
    entering: dict[str, float] = {}
    order = [n for component in network.order for n in component]
    for name in (*order, *order):  # twice: round a cycle, neurons have been met by then
        step = network.steps[name]
        came = {sent[s] for s in network.sources[name] if s in sent}
        if len(came) > 1 and isinstance(step, Dense | Conv | Circuit | Pool | Flatten | Delay):
            raise GraphError(f"node {name!r} sums edges of different scales {sorted(came)}; give each its connection")
        unit = came.pop() if came else 1.0
        entering[name] = unit
        if name == network.input:
            sent[name] = input_scale
        elif isinstance(step, Pool):
            sent[name] = unit * (1.0 if step.factor is None else float(step.factor))
        elif isinstance(step, Scale):
            raise GraphError(f"node {name!r} (Scale) has no integer kind; multiply it into the weights beside it")
        elif isinstance(step, MaxPool):
            raise GraphError(
                f"node {name!r} ({_kind(network, name)}) has no integer kind; pool spikes, by SumPool2d and "
                "Threshold, or train with averages of currents (einet-average)"
            )
        else:
            sent[name] = unit if isinstance(step, Flatten | Delay | Identity) else 1.0
    return entering


def _owner(network: Network, sinks: dict[str, list[str]], name: str) -> tuple[str, float]:
    """The one population or readout that a connection feeds, and the factor of pools in between."""
    factor, at = 1.0, name
    while True:
        if len(sinks[at]) != 1:
            raise GraphError(f"node {at!r} feeds {len(sinks[at])} nodes, so it has no scale of its own; duplicate it")
        last, at = at, sinks[at][0]
        step = network.steps[at]
        if step.neuron:
            return at, factor
        if isinstance(step, Identity):
            if len(came := network.sources[at]) > 1:
                told = " and ".join(map(repr, came))
                raise GraphError(f"Output {at!r} sums {told}, which have scales of their own; give each an Output")
            return last, factor
        if isinstance(step, Pool):
            factor *= 1.0 if step.factor is None else float(step.factor)
        elif not isinstance(step, Flatten | Delay):
            raise GraphError(
                f"node {name!r} leads to {at!r} ({_kind(network, at)}) without a spiking neuron between them"
            )


def _gain(network: Network, owner: str, step: Dense | Conv) -> np.ndarray:
    """The input gain of what a connection feeds, for each of its output channels."""
    inner = network.steps[owner]
    inner = inner.inner if isinstance(inner, GatedFire) else inner
    gain: np.ndarray = np.ones(())
    for value in (getattr(inner, "gain", None), getattr(inner, "gain_u", None)):
        gain = gain if value is None else gain * value
    if not gain.ndim:
        return np.full(len(step.weight), float(gain))
    turned = np.moveaxis(gain, -1 if isinstance(step, Dense) else 0, 0)  # outputs first
    rows = turned.reshape(len(turned), -1)
    if len(rows) != len(step.weight) or (rows != rows[:, :1]).any():
        raise GraphError(f"node {owner!r}: its gain differs within a channel; multiply it into the weights")
    return rows[:, 0]


# --- applying a plan


def apply(network: Network, plan: Plan) -> nir.NIRGraph:
    """The integer graph of a float network; raises GraphError where the plan does not fit it."""
    network = explicit(network)
    if (made_for := graphs.exact_for(network.graph)) != graphs.ANY:
        raise GraphError(
            f"thresholds or decays of this graph were moved by a rounding of {made_for}, which whole numbers would "
            "undo: quantise the graph that it was lowered from"
        )
    found = layers(network, plan.input_scale)
    if found.keys() != plan.layers.keys():
        odd = sorted(found.keys() ^ plan.layers.keys())
        raise GraphError(f"the quantisation plan was made for another network: {odd[0]!r} is on one side only")
    made: dict[str, nir.ir.NIRNode] = {}
    for name, layer in found.items():
        chosen = plan.layers[name]
        if chosen.connections.keys() != layer.weights.keys():
            raise GraphError(f"the quantisation plan was made for another network: connections of {name!r} differ")
        if chosen.circuits.keys() != layer.circuits.keys():
            raise GraphError(f"the quantisation plan was made for another network: circuits of {name!r} differ")
        for c, circuit in layer.circuits.items():
            made[c] = quantise_circuits.node(circuit, chosen.circuits[c], layer.units[c], chosen.exponent, _part)
        for c, weight in layer.weights.items():
            bias = None if layer.carried[c] else layer.biases[c]
            made[c] = _connection(network.steps[c], weight, bias, chosen.connections[c], chosen.exponent)
        if isinstance(layer, Layer):
            made[name] = _neuron(network, layer, chosen)
    for name, step in network.steps.items():
        if isinstance(step, Pool) and step.factor is not None:
            made[name] = nir.SumPool2d(*(np.array(v) for v in (step.kernel, step.window.stride, step.window.padding)))
    nodes = {n: made.get(n, node) for n, node in network.graph.nodes.items()}
    result = nir.NIRGraph(nodes, list(network.graph.edges), metadata=dict(network.graph.metadata), type_check=False)
    return _sized(_stamped(result, network, plan), plan)


def _stamped(graph: nir.NIRGraph, network: Network, plan: Plan) -> nir.NIRGraph:
    meta = dict(graph.metadata.get("eiexport", {}))
    provenance = dict(meta.get("provenance", {}) or {"tool": "eiexport"})
    provenance |= {"quantised_bits": plan.bits, "input_scale": plan.input_scale}
    clock = network.clock
    return graphs.stamp(graph, dt=clock.dt, integrator=clock.integrator, dtype="int32", **provenance)


def _sized(graph: nir.NIRGraph, plan: Plan) -> nir.NIRGraph:
    """The same graph with message widths as narrow as the alphabets allow; checked."""
    network = graphs.check(graph, alphabet=plan.alphabet)
    nodes = dict(graph.nodes)
    for name, node in nodes.items():
        if isinstance(node, IntDense | IntConv):
            nodes[name] = replace(node, message_bits=message_bits(network.arriving(name)))
        elif isinstance(node, IntCircuit):
            nodes[name] = quantise_circuits.sized(node, network.arriving(name), message_bits)
    result = nir.NIRGraph(nodes, list(graph.edges), metadata=dict(graph.metadata), type_check=False)
    graphs.check(result, alphabet=plan.alphabet)
    return result


def message_bits(a: Alphabet) -> int:
    """Width of a message that holds an alphabet: 0 for spikes, sign included where there is one."""
    if a.kind == "binary":
        return 0
    bits = 1
    while a.hi > (1 << bits) - 1 if a.lo >= 0 else (a.lo < -(1 << bits) / 2 or a.hi > (1 << bits) / 2 - 1):
        bits += 1
    return bits


def _whole(a: Any, dtype: Any = np.int32) -> np.ndarray:
    if a.size and np.abs(a).max() > np.iinfo(dtype).max:
        raise GraphError(f"a value of {np.abs(a).max():g} units is more than the integers hold: rescale the network")
    return np.rint(a).astype(dtype)


def _connection(step: Step, weight: np.ndarray, bias: np.ndarray | None, plan: WeightPlan, exponent: int) -> Any:
    """IntDense or IntConv for effective weights; the words hold the levels, the exponent the rest of the shift."""
    assert isinstance(step, Dense | Conv)
    units = plan.units(weight * 2.0**exponent)
    grid = grid_step(plan.bits, plan.sign_mode)
    factor = grid / 2.0 ** np.asarray(plan.shift, np.float64)
    words = units * (factor.reshape(-1, *[1] * (weight.ndim - 1)) if factor.ndim else factor)
    exponents = np.asarray(plan.shift) - int(math.log2(grid))
    fields: dict[str, Any] = {
        "weight": _whole(words, np.int16),
        "bias": np.zeros(len(weight), np.int32) if bias is None else _whole(bias * 2.0**exponent),
        "weight_exp": exponents.astype(np.int32) if exponents.ndim else int(exponents),
        "bits": plan.bits,
        "sign_mode": plan.sign_mode,
        "message_bits": REGISTER,
    }
    if isinstance(step, Dense):
        return IntDense(**fields)
    w = step.window
    fields |= {k: np.array(getattr(w, k)) for k in ("stride", "padding", "dilation")}
    return IntConv(**fields, groups=w.groups)


def _part(step: Step, weight: np.ndarray, plan: WeightPlan, exponent: int) -> Any:
    """A circuit's connection."""
    return _connection(step, weight, None, plan, exponent)


def _neuron(network: Network, layer: Layer, plan: LayerPlan) -> Any:
    fire, name = layer.fire, layer.name
    shape = network.shapes[name]
    scale = 2.0**plan.exponent
    threshold = np.rint(fire.threshold * scale)
    lower = getattr(fire, "lower", None)
    if np.abs(threshold).max() > VTH_MAX:
        raise GraphError(f"node {name!r}: threshold {np.abs(threshold).max():g} is more than {VTH_MAX} (17 bits)")
    own = getattr(fire, "bias", None)
    bias = np.zeros(shape) if own is None else np.broadcast_to(own, shape)
    for c, b in layer.biases.items():
        if b is not None and layer.carried[c]:
            bias = bias + over_neurons(network.steps[c], b, len(shape))
    mant = _whole(mantissa(bias * scale, plan.bias_exp))
    du = _kept(getattr(fire, "decay_u", None), 4095)
    dv = np.array(1 << UNITY) if isinstance(fire, Threshold) else _kept(fire.decay, 4096)
    compare, reset = getattr(fire, "compare", "gt"), getattr(fire, "reset_mode", "zero")
    aligned = (du == 4095).all() and (dv == 0).all() and plan.bias_exp >= ALIGN
    if compare == "ge" and aligned and lower is None and reset == "zero" and threshold.min() > 0:
        # v is a multiple of 64, so v >= vth << 6 is v > (vth - 1) << 6: what chips and Lava's own neurons have.
        # Once it has saturated below it is 1 off until its next spike, and fires one unit early (`lossy` says so)
        compare, threshold = "gt", threshold - 1
    lif = IntCubaLIF(
        vth=np.broadcast_to(_whole(threshold), shape).copy(),
        du=du,
        dv=dv,
        bias_mant=mant if mant.any() else np.array(0, np.int32),
        bias_exp=np.array(plan.bias_exp),
        compare=compare,
        reset=reset,
        lower=None if lower is None else np.broadcast_to(_whole(lower * scale), shape).copy(),
    )
    if not isinstance(layer.step, GatedFire):
        return lif
    gates: dict[str, Any] = {}
    if plan.feedback is not None:
        gates["feedback"] = gate_node(layer.step.feedback, plan.feedback, 1.0, 1 if layer.step.balance is None else 2)
        gates |= {"table": gate_table(plan.feedback).astype(np.uint8), "feedback_shift": plan.feedback.shift}
    if plan.balance is not None:
        unit = message_unit(plan)
        gates["balance"] = gate_node(layer.step.balance, plan.balance, unit, plan.balance.message_bits)
        gates |= {"balance_shift": plan.balance.shift, "balance_bits": plan.balance.message_bits}
    return IntGatedLIF(lif, **gates)


def message_unit(plan: LayerPlan) -> float:
    """Float value of one unit of the membrane's message to the balance gate."""
    assert plan.balance is not None
    return 2.0 ** (plan.balance.shift - plan.exponent - ALIGN)


def gate_node(step: Any, plan: GatePlan, unit: float, bits: int) -> Any:
    """A gate's connection: weights in steps of 2^-exponent, its bias in the unit of the sums, 2^-exponent * unit."""
    bias = None if step.bias is None else step.bias * 2.0**plan.exponent / unit
    units, rounded = gate_units(plan, step.weight * 2.0**plan.exponent, bias)
    node = _connection(step, units, None, plan.weight, 0)
    whole = np.zeros(len(units)) if rounded is None else rounded
    return replace(node, bias=_whole(whole), message_bits=0 if bits == 1 else bits)


def gate_table(plan: GatePlan) -> np.ndarray:
    """The sigmoid in Q0.8 at the middle of each index' sums: min(round(256 sigmoid(sum * 2^-exponent)), 255)."""
    sums = np.arange(-128, 128) * 2.0**plan.shift + (2.0**plan.shift - 1) / 2
    return np.minimum(np.rint(256 * NumpyOps().gate(sums * 2.0**-plan.exponent)), 255)


def _kept(decay: Any, unity: int) -> np.ndarray:
    """Register value of a decay: unity - round(4096 * decay); no decay at all (None) keeps nothing."""
    keep = 0 if decay is None else np.rint(np.asarray(decay) * (1 << UNITY))
    return np.asarray(unity - keep).astype(np.int32)


def mantissa(bias: Any, exponent: int) -> Any:
    """Mantissa of a bias in input units, for NumPy arrays or torch tensors; saturates at 13 bits."""
    return (bias * 2.0 ** (ALIGN - exponent)).round().clip(-BIAS_MAX, BIAS_MAX)


def over_neurons(step: Step, bias: Any, axes: int) -> Any:
    """One number an output, as it lies over a population: a convolution's channels come first, a dense layer's last."""
    return bias if isinstance(step, Dense) else bias.reshape(-1, *[1] * (axes - 1))


def gate_units(plan: GatePlan, weight: Any, bias: Any = None) -> tuple[Any, Any]:
    """(weights, bias) of a gate in units of its sums, NumPy arrays or torch tensors, (O, ...) and (O,).

    Rows whose sums of messages could outgrow the accumulator are scaled down to it: training may let them grow.
    """
    units, top = plan.weight.units(weight), float((1 << max(plan.message_bits - 1, 0)) - 1) or 1.0
    if bias is not None:
        bias = bias.round().clip(-(TOP // 2), TOP // 2)
    room = TOP - (0.0 if bias is None else float(abs(bias).max()))
    if float(abs(units).reshape(len(units), -1).sum(1).max()) * top > room:
        taps = math.prod(weight.shape[1:])
        reach = abs(weight).reshape(len(weight), -1).sum(1) + 1e-30
        # rounding adds half a unit a tap at most
        scale = ((room / top - taps / 2) / reach).clip(0.0, 1.0).reshape(-1, *[1] * (weight.ndim - 1))
        scale = scale * 4096 // 1 / 4096  # the same in whichever order the row was summed
        units = plan.weight.units(weight * scale)
    return units, bias
