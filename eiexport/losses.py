"""What quantisation cost: per layer what rounding did to its weights, and how many spikes and decisions changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eiexport.graph import Network
from eiexport.plans import LayerPlan, Plan, WeightPlan
from eiexport.quantise import Layer, layers
from eiexport.trace import Trace


@dataclass
class LayerLoss:
    """One population. alpha: float value of one unit of its input; shares are of all weights that feed it.

    clipped: weights beyond the largest level; zeroed: weights that became 0; snr_db: 10 log10 of the weights' energy
    over the rounding error's, infinite where nothing was lost. changed: entries of z that differ from the float
    network's own run. alone_*: the float network with only this population's numbers rounded.
    """

    name: str
    alpha: float
    scales: dict[str, tuple[float, float]]  # of each connection, smallest and largest weight step, float
    bits: int
    headroom: float
    proven: bool
    clipped: float
    zeroed: float
    snr_db: float
    entries: int = 0
    changed: int = 0
    spikes_float: int = 0
    spikes: int = 0
    alone_accuracy: float | None = None
    alone_decisions: float | None = None  # share of the samples whose decision changed

    @property
    def changed_share(self) -> float:
        return self.changed / max(1, self.entries)


@dataclass
class Quantisation:
    """The lossy step of an export; accuracies on the exported samples, None without labels."""

    plan: Plan
    calibrated_on: int
    layers: dict[str, LayerLoss]
    accuracy_float: float | None = None
    accuracy_int: float | None = None
    decisions_changed: float = 0.0
    samples_alone: int = 0
    budget: float | None = None  # points of accuracy that may be lost
    saturated: list[str] = field(default_factory=list)

    @property
    def lost(self) -> float | None:
        """Points of accuracy lost."""
        if self.accuracy_float is None or self.accuracy_int is None:
            return None
        return 100 * (self.accuracy_float - self.accuracy_int)

    @property
    def ok(self) -> bool:
        """Within the budget that was asked for."""
        return self.budget is None or (self.lost is not None and self.lost <= self.budget + 1e-9)

    @property
    def costliest(self) -> LayerLoss | None:
        """The layer that, rounded alone, changes most decisions; None where none changes any."""
        found = [x for x in self.layers.values() if x.alone_decisions]
        return max(found, key=lambda x: (x.alone_decisions or 0.0, x.changed_share), default=None)

    def count(self, float_trace: Trace, trace: Trace) -> None:
        """Add a chunk of both runs."""
        for name, layer in self.layers.items():
            if name in trace.z and name in float_trace.z:
                a, b = float_trace.z[name], trace.z[name]
                layer.entries += a.size
                layer.changed += int((a != b).sum())
                layer.spikes_float += int(np.count_nonzero(a))
                layer.spikes += int(np.count_nonzero(b))

    def to_json(self) -> dict[str, Any]:
        per_layer = {
            name: {**{k: v for k, v in vars(x).items() if k != "name"}, "changed_share": x.changed_share}
            for name, x in self.layers.items()
        }
        return {
            "bits": self.plan.bits,
            "input": {"scale": self.plan.input_scale, "lo": self.plan.input_lo, "hi": self.plan.input_hi},
            "calibrated_on": self.calibrated_on,
            "accuracy_float": self.accuracy_float,
            "accuracy_int": self.accuracy_int,
            "points_lost": self.lost,
            "budget": self.budget,
            "decisions_changed": self.decisions_changed,
            "samples_alone": self.samples_alone,
            "costliest_layer": None if self.costliest is None else self.costliest.name,
            "per_layer": per_layer,
            "plan": self.plan.to_json(),
        }


def of_weights(network: Network, plan: Plan) -> dict[str, LayerLoss]:
    """What rounding did to each population's weights."""
    return {n: _loss(layer, plan.layers[n], plan.bits) for n, layer in layers(network, plan.input_scale).items()}


def _loss(layer: Layer, plan: LayerPlan, bits: int) -> LayerLoss:
    parts = [(w * 2.0**plan.exponent, plan.connections[c]) for c, w in layer.weights.items()]
    for gate, chosen in (("feedback", plan.feedback), ("balance", plan.balance)):
        step = getattr(layer.step, gate, None)
        if step is not None and chosen is not None:
            parts.append((step.weight * 2.0**chosen.exponent, chosen.weight))
    count = sum(w.size for w, _ in parts)
    clipped = zeroed = 0
    signal = noise = 0.0
    for weight, chosen_weight in parts:
        rounded = chosen_weight.units(weight)
        clipped += int((np.abs(weight) > np.abs(rounded) + _step(chosen_weight, weight) / 2).sum())
        zeroed += int(((rounded == 0) & (weight != 0)).sum())
        # each connection in its own scale
        norm = max(float((weight**2).sum()), 1e-300)
        signal += 1.0
        noise += float(((weight - rounded) ** 2).sum()) / norm
    snr = 10 * math.log10(signal / noise) if noise else math.inf
    scales = {}
    for c, chosen_weight in plan.connections.items():
        steps = np.atleast_1d(np.asarray(chosen_weight.shift, float))
        scales[c] = (float(2 ** steps.min() * plan.alpha), float(2 ** steps.max() * plan.alpha))
    about = (scales, bits, plan.headroom, plan.proven, clipped / count, zeroed / count, snr)
    return LayerLoss(layer.neuron, plan.alpha, *about)


def _step(plan: WeightPlan, weight: np.ndarray) -> np.ndarray:
    step = 2.0 ** np.asarray(plan.shift, np.float64)
    return step.reshape(-1, *[1] * (weight.ndim - 1)) if step.ndim else step
