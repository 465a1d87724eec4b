"""What quantisation cost: per layer what rounding did to its weights, and how many spikes and decisions changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from eiexport.connections import Conv, Dense
from eiexport.explicit import explicit
from eiexport.graph import Network
from eiexport.plans import LayerPlan, Plan, WeightPlan
from eiexport.quantise import Layer, Readout, layers
from eiexport.quantise_circuits import matrices
from eiexport.trace import Trace

MEASURES = ("changed", "changed_share", "spikes_float", "spikes", "output_error")  # null where a row has none


@dataclass
class Loss:
    """What rounding cost of one population or readout.

    alpha: float value of one unit of its input; shares are of all weights that feed it. clipped: weights beyond the
    largest level; zeroed: weights that became 0; snr_db: 10 log10 of the weights' energy over the rounding error's,
    infinite where nothing was lost. alone_*: the float network with only these numbers rounded.
    """

    name: str
    alpha: float
    scales: dict[str, tuple[float, float]]  # of each connection, smallest and largest weight step, float
    bits: int
    headroom: float  # infinite for a readout, which has no register
    proven: bool
    clipped: float
    zeroed: float
    snr_db: float
    entries: int = 0
    alone_accuracy: float | None = None
    alone_decisions: float | None = None  # share of the samples whose decision changed

    @property
    def room(self) -> str:
        """Headroom in words."""
        parts = [f"{self.headroom:.1f}x"] if math.isfinite(self.headroom) else []
        return " ".join([*parts, "proven"] if self.proven else parts)

    @property
    def distance(self) -> float:
        """Of the integer network's own run from the float network's, relative."""
        raise NotImplementedError

    @property
    def change(self) -> str:
        """The distance in words."""
        return f"{100 * self.distance:.2f} %"

    def count(self, floats: np.ndarray, ours: np.ndarray) -> None:
        """Add a chunk of what both runs sent."""
        raise NotImplementedError

    def measured(self) -> dict[str, Any]:
        """Those of MEASURES that it has."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(Loss) if f.name != "name"}
        return own | dict.fromkeys(MEASURES) | self.measured()


@dataclass
class LayerLoss(Loss):
    """A population. changed: entries of z that differ from the float network's own run."""

    changed: int = 0
    spikes_float: int = 0
    spikes: int = 0

    @property
    def distance(self) -> float:
        return self.changed / max(1, self.entries)

    def count(self, floats: np.ndarray, ours: np.ndarray) -> None:
        self.entries += floats.size
        self.changed += int((floats != ours).sum())
        self.spikes_float += int(np.count_nonzero(floats))
        self.spikes += int(np.count_nonzero(ours))

    def measured(self) -> dict[str, Any]:
        counts = {k: getattr(self, k) for k in ("changed", "spikes_float", "spikes")}
        return counts | {"changed_share": self.distance}


@dataclass
class ReadoutLoss(Loss):
    """A readout. energy, error: sums of squares of the float outputs, and of what the integer ones are away."""

    energy: float = 0.0
    error: float = 0.0

    @property
    def distance(self) -> float:
        return math.sqrt(self.error / self.energy) if self.energy else math.inf if self.error else 0.0

    @property
    def change(self) -> str:
        return f"outputs {super().change} off"

    def count(self, floats: np.ndarray, ours: np.ndarray) -> None:
        wanted = floats.astype(np.float64)
        self.entries += wanted.size
        self.energy += float((wanted**2).sum())
        self.error += float(((ours * self.alpha - wanted) ** 2).sum())

    def measured(self) -> dict[str, Any]:
        return {"output_error": self.distance}


@dataclass
class Quantisation:
    """The lossy step of an export; accuracies on the exported samples, None without labels."""

    plan: Plan
    calibrated_on: int
    layers: dict[str, Loss]
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
    def costliest(self) -> Loss | None:
        """The layer that, rounded alone, changes most decisions; None where none changes any."""
        found = [x for x in self.layers.values() if x.alone_decisions]
        return max(found, key=lambda x: (x.alone_decisions or 0.0, x.distance), default=None)

    def count(self, float_trace: Trace, trace: Trace) -> None:
        """Add a chunk of both runs."""
        for name, layer in self.layers.items():
            if name in trace.z and name in float_trace.z:
                layer.count(float_trace.z[name], trace.z[name])

    def to_json(self) -> dict[str, Any]:
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
            "per_layer": {name: x.to_json() for name, x in self.layers.items()},
            "plan": self.plan.to_json(),
        }


def of_weights(network: Network, plan: Plan) -> dict[str, Loss]:
    """What rounding did to each population's and readout's weights."""
    given = {n for n, s in network.steps.items() if isinstance(s, Dense | Conv)}  # others were written out, and exact
    found = layers(explicit(network), plan.input_scale)
    return {n: _loss(layer, plan.layers[n], plan.bits, given) for n, layer in found.items()}


def _loss(layer: Layer | Readout, plan: LayerPlan, bits: int, given: set[str]) -> Loss:
    counted = given.intersection(layer.weights) or layer.weights.keys()
    parts: list[tuple[np.ndarray, WeightPlan]] = [
        (w * 2.0**plan.exponent, plan.connections[c]) for c, w in layer.weights.items() if c in counted
    ]
    step = layer.step if isinstance(layer, Layer) else None
    for name, chosen in (("feedback", plan.feedback), ("balance", plan.balance)):
        gate = getattr(step, name, None)
        if gate is not None and chosen is not None:
            parts.append((gate.weight * 2.0**chosen.exponent, chosen.weight))
    scales = {}
    for c, circuit in layer.circuits.items():
        made = plan.circuits[c]
        for (key, weight), x in zip(matrices(circuit, layer.units[c]).items(), made.exponents, strict=True):
            part: WeightPlan = getattr(made, key)
            parts.append((weight * 2.0**x, part))
            scales[f"{c}.{key}"] = (2.0 ** (int(part.shift) - x),) * 2  # type: ignore[arg-type]
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
    for c, chosen_weight in plan.connections.items():
        steps = np.atleast_1d(np.asarray(chosen_weight.shift, float))
        scales[c] = (float(2 ** steps.min() * plan.alpha), float(2 ** steps.max() * plan.alpha))
    about = (scales, bits, plan.headroom, plan.proven, clipped / count, zeroed / count, snr)
    kind = LayerLoss if isinstance(layer, Layer) else ReadoutLoss
    return kind(layer.name, plan.alpha, *about)


def _step(plan: WeightPlan, weight: np.ndarray) -> np.ndarray:
    step = 2.0 ** np.asarray(plan.shift, np.float64)
    return step.reshape(-1, *[1] * (weight.ndim - 1)) if step.ndim else step
