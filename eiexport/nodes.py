"""The node vocabulary: NIR's own kinds and the extension nodes, and which step each one means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from eiexport import circuits, connections, integers, neurons
from eiexport.errors import GraphError
from eiexport.ops import Ints
from eiexport.steps import Clock, Step, complete, parameter, text, uniform

CONNECTIONS = ("Affine", "Linear", "Conv1d", "Conv2d")


@dataclass(eq=False)
class EIDiscreteLIF(nir.ir.NIRNode):
    """Leaky integrate-and-fire, given in discrete time so that nothing is left to an integrator.

        V = decay * v + gain * x;   s = V > v_threshold (compare "gt") or V >= v_threshold ("ge")
        v = v_reset where s (reset "zero"), V - v_threshold * s ("subtract"), V ("none")

    decay, gain, v_threshold, v_reset, lower: full arrays of the neuron shape (C, H, W) or (N,). decay in [0, 1];
    `lower` (optional, below v_threshold): z = -1 below it (at or below with "ge"; SpikeGrad's double threshold),
    reset by |z|. v_reset is used by reset "zero" alone.
    One node serves BackEISNN (decay .2, "gt", zero), EICIL and BIRIL (1, "ge", zero), DeepEISNN (.5, "ge", subtract).
    """

    decay: np.ndarray
    gain: np.ndarray
    v_threshold: np.ndarray
    v_reset: np.ndarray
    compare: str = "gt"
    reset: str = "zero"
    lower: np.ndarray | None = None
    schema: int = 1

    def __post_init__(self) -> None:
        self.compare, self.reset = text(self.compare), text(self.reset)
        shape = np.array(np.shape(self.v_threshold))
        self.input_type, self.output_type = {"input": shape}, {"output": shape}

    def to_dict(self) -> dict[str, Any]:
        return _without_none(super().to_dict())


@dataclass(eq=False)
class EIGatedLIF(nir.ir.NIRNode):
    """BackEISNN's gated neuron: an EIDiscreteLIF with a feedback (SFBM) and a balance (BEIM) connection, each optional.

    The equations stand at `neurons.GatedFire`. feedback, balance: Affine, Linear, Conv1d or Conv2d that keep the
    neuron shape. Both live inside the node because balance needs V before the reset of the same step, which no
    NIR edge can carry.
    """

    neuron: EIDiscreteLIF
    feedback: nir.ir.NIRNode | None = None
    balance: nir.ir.NIRNode | None = None
    schema: int = 1

    def __post_init__(self) -> None:
        self.input_type, self.output_type = self.neuron.input_type, self.neuron.output_type

    def to_dict(self) -> dict[str, Any]:
        parts = {"neuron": self.neuron, "feedback": self.feedback, "balance": self.balance}
        d: dict[str, Any] = {"type": type(self).__name__, "schema": self.schema, "metadata": self.metadata}
        size = np.shape(self.neuron.v_threshold)[1:]  # a gate keeps the map, so this is its input's size too
        for name, part in parts.items():
            if part is not None:
                fields = part.to_dict()
                d[name] = fields | ({"input_shape": size} if fields.get("input_shape", size) is None else {})
        return d

    @classmethod
    def from_dict(cls, kwargs: dict[str, Any]) -> EIGatedLIF:
        parts = {k: from_dict(kwargs[k]) for k in ("neuron", "feedback", "balance") if k in kwargs}
        rest = {k: v for k, v in kwargs.items() if k not in parts and k != "type"}
        return cls(**parts, **rest)


@dataclass(eq=False)
class EIMaxPool2d(nir.ir.NIRNode):
    """Max pooling of real currents, `y = max over the window of x`; stateless.

    EICIL's E-I Net: conv3x3 - MaxPool(3, stride 1, padding 1) - BatchNorm - IF. kernel_size, stride, padding: two whole
    numbers each, (H, W), in pixels; padding at most half the window, and it counts as minus infinity: it never wins.
    No dilation. On spikes 0 and 1, SumPool2d and Threshold(0.5) mean the same in stock nodes.
    """

    kernel_size: np.ndarray
    stride: np.ndarray
    padding: np.ndarray
    schema: int = 1

    def __post_init__(self) -> None:
        self.kernel_size, self.stride, self.padding = map(np.asarray, (self.kernel_size, self.stride, self.padding))
        self.input_type, self.output_type = {"input": None}, {"output": None}

    @classmethod
    def from_dict(cls, kwargs: dict[str, Any]) -> EIMaxPool2d:
        if "dilation" in kwargs:
            raise GraphError("EIMaxPool2d has no dilation; write the pool without it")
        return super().from_dict(kwargs)


EXTENSIONS: dict[str, type[nir.ir.NIRNode]] = {c.__name__: c for c in (EIDiscreteLIF, EIGatedLIF, EIMaxPool2d)}
INTEGERS = integers.EXTENSIONS | circuits.INTEGERS  # kinds that compute in whole numbers
EXTENSIONS |= circuits.EXTENSIONS | INTEGERS


def _without_none(d: dict[str, Any]) -> dict[str, Any]:
    """HDF5 has no None: an absent field is an absent dataset."""
    return {k: v for k, v in d.items() if v is not None}


def from_dict(d: dict[str, Any]) -> nir.ir.NIRNode:
    """A node from its serialised fields; raises GraphError for kinds that neither NIR nor this package has."""
    kind = text(d.get("type"))
    if kind in EXTENSIONS:
        schema = int(d.get("schema", 1))
        if schema != 1:
            raise GraphError(f"{kind} has schema {schema}; this version reads schema 1: update eiexport")
        return complete(EXTENSIONS[kind], d).from_dict({**d, "type": kind})
    if kind not in PREPARE:
        raise GraphError(f"unknown node kind {kind!r}; known: {', '.join(sorted(PREPARE))}")
    return nir.dict2NIRNode({k: v for k, v in d.items() if not (k == "metadata" and not v)})


def _discrete(node: EIDiscreteLIF, clock: Clock) -> neurons.LeakyFire:
    if type(node) is not EIDiscreteLIF:
        raise GraphError(f"neuron must be an EIDiscreteLIF, found {type(node).__name__}")
    for field, value, valid in (("compare", node.compare, neurons.COMPARES), ("reset", node.reset, neurons.RESETS)):
        if value not in valid:
            raise GraphError(f"{field} = {value!r}; valid: {', '.join(valid)}")
    names = ("decay", "gain", "v_threshold", "v_reset", *(() if node.lower is None else ("lower",)))
    p = {n: parameter(node, n) for n in names}
    shape = max((v.shape for v in p.values()), key=lambda s: (int(np.prod(s)), len(s)))
    if bad := [n for n, v in p.items() if v.shape not in ((), shape)]:
        raise GraphError(f"{bad[0]} has shape {p[bad[0]].shape}, the neurons {shape}")
    if (p["decay"] < 0).any() or (p["decay"] > 1).any():
        raise GraphError(f"decay must lie in [0, 1], found {p['decay'].min():g} to {p['decay'].max():g}")
    if node.lower is not None and (p["lower"] >= p["v_threshold"]).any():
        raise GraphError("lower must lie below v_threshold")
    p = {n: uniform(v) for n, v in p.items()}
    return neurons.LeakyFire(
        shape=shape,
        decay=p["decay"],
        gain=neurons.unless(p["gain"], 1.0),
        threshold=p["v_threshold"],
        v_reset=neurons.unless(p["v_reset"], 0.0),
        compare=node.compare,
        reset_mode=node.reset,
        lower=p.get("lower"),
    )


def _gated(node: EIGatedLIF, clock: Clock) -> neurons.GatedFire:
    gates: dict[str, Step | None] = {"feedback": None, "balance": None}
    for name in gates:
        if (inner := getattr(node, name)) is not None:
            if type(inner).__name__ not in CONNECTIONS:
                raise GraphError(f"{name} is a {type(inner).__name__}; a gate is one of {', '.join(CONNECTIONS)}")
            gates[name] = connections.PREPARE[type(inner).__name__](inner, clock)
    if node.neuron.lower is not None:
        raise GraphError("a gated neuron has one threshold: its sign comes from the balance gate, not from `lower`")
    return neurons.GatedFire(inner=_discrete(node.neuron, clock), **gates)


PREPARE: dict[str, Callable[[Any, Clock], Step]] = {
    **connections.PREPARE,
    **neurons.PREPARE,
    "EIDiscreteLIF": _discrete,
    "EIGatedLIF": _gated,
    "EIMaxPool2d": connections.max_pool,
    **integers.PREPARE,
    **circuits.PREPARE,
}


def prepare(node: nir.ir.NIRNode, clock: Clock) -> Step:
    """The step a node means at this clock, parameters in float64; raises GraphError (without the node's name)."""
    kind = type(node).__name__
    if kind not in PREPARE:
        hint = "flatten the sub-graph first" if kind == "NIRGraph" else f"known: {', '.join(sorted(PREPARE))}"
        raise GraphError(f"node kind {kind} is not supported; {hint}")
    return PREPARE[kind](node, clock)


def lif(shape: Ints, *, decay: float, threshold: float, **fields: Any) -> EIDiscreteLIF:
    """An EIDiscreteLIF with uniform parameters written out to the full neuron shape, as NIR asks."""
    full: dict[str, Any] = {
        "decay": decay,
        "gain": fields.pop("gain", 1.0),
        "v_threshold": threshold,
        "v_reset": fields.pop("v_reset", 0.0),
    }
    if (lower := fields.pop("lower", None)) is not None:
        full["lower"] = lower
    arrays: dict[str, Any] = {k: np.full(shape, v, np.float64) for k, v in full.items()}
    return EIDiscreteLIF(**arrays, **fields)
