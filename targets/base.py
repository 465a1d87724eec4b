"""What a target is, and the registry by name; engines are imported only when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from eiexport.errors import ExportError
from eiexport.graph import Network, check
from eiexport.model import alphabet_of
from eiexport.trace import Trace, chunk_size, compact

REGISTRY = {
    "reference": "targets.reference:Reference",
    "torch": "targets.pytorch:Torch",
    "torch32": "targets.pytorch:Torch32",
    "lava": "targets.lava:Lava",
    "lava-dl": "targets.lavadl:LavaDL",
    "loihi": "targets.loihi:Loihi",
    "loihi-file": "targets.loihi.file:LoihiFile",
    "c": "targets.c:C",
    "onnx": "targets.onnx:Onnx",
    "onnx-step": "targets.onnx:OnnxStep",
}


class TargetError(ExportError):
    """A target cannot do what was asked: the node, the rule, the limit, and what would help."""


class Unsupported(TargetError):
    """The target has no way to run this graph."""


class EngineUnavailable(TargetError):
    """The target's engine is not installed and could not be set up, or it failed."""


@dataclass(frozen=True)
class Claim:
    """What a target says of a node kind: how exact, and held against which oracle."""

    exactness: str  # "exact" | "exact after lowering" | "approximate" | "no"
    oracle: str = ""

    def __str__(self) -> str:
        return f"{self.exactness} ({self.oracle})" if self.oracle else self.exactness


class Program(ABC):
    """A graph made ready for an engine. latency: engine steps between a model step and its appearance, per node."""

    network: Network
    latency: dict[str, int]

    @abstractmethod
    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        """Run input (sample, time, *neuron), each sample from zero state; returns the recorded nodes.

        probe: also the neurons' registers after each step, `states["v"]` and `states["u"]`.
        """

    def stream(self, x: Any, progress: Callable[[int], None] | None = None, probe: bool = False) -> Iterator[Trace]:
        """Run chunk by chunk, so that memory holds one chunk; x may be an HDF5 dataset."""
        size = chunk_size(self.network, x.shape[1])
        for start in range(0, len(x), size):
            piece = np.asarray(x[start : start + size])
            part = self.run(piece, probe=True) if probe else self.run(piece)
            yield part
            if progress:
                progress(part.samples)


class Target(ABC):
    """An engine: named rules in `check`, and `compile` into a Program."""

    name: ClassVar[str]
    dtype: ClassVar[str] = "float64"
    evidence: ClassVar[str] = "shared-step"
    setup: ClassVar[str] = ""  # how to get the engine, one line
    claims: ClassVar[dict[str, Claim]]
    options: ClassVar[tuple[str, ...]] = ("device",)  # what its constructor takes, of device, chip, strict

    def __init__(self, device: str = "cpu") -> None:
        """`device`: for engines that run on several."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Version of the engine."""

    def check(self, network: Network) -> None:
        """Raise Unsupported with node, rule and value when the graph cannot run here."""
        for name, node in network.graph.nodes.items():
            kind = type(node).__name__
            if str(self.claims.get(kind, Claim("no"))) == "no":
                raise Unsupported(
                    f"target {self.name!r} cannot run node {name!r} ({kind}); see eiexport --list-targets"
                )

    @abstractmethod
    def compile(self, network: Network) -> Program: ...

    def evidence_for(self, network: Network) -> str:
        """What a result on this network rests on: "independent" | "shared-step" | "plumbing"."""
        return self.evidence

    def emit(self, network: Network, out: Path) -> None:
        """Write what this target makes of a graph, beside the traces: a program, a network file."""

    def costs(self, network: Network, x: np.ndarray, trace: Trace) -> dict[str, Any]:
        """What a graph needs of this target's hardware, from counted events: a report's "resources" and "estimates"."""
        return {}

    def process(self, network: Network, name: str) -> str:
        """ "stock" where the engine's own process computes this node, else "custom"."""
        return "custom"


def get(name: str) -> type[Target]:
    """The target class by name; raises TargetError for an unknown name."""
    verify_name(name)
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(import_module(module), attribute)


def verify_name(name: str) -> None:
    """Raise TargetError for an unknown target, before anything is imported or written."""
    if name not in REGISTRY:
        raise TargetError(f"unknown target {name!r}; valid: {', '.join(REGISTRY)}")


def check_input(network: Network, x: np.ndarray) -> None:
    """Raise TargetError unless x is (sample, time, *neuron) of the network's input, finite and not empty."""
    shape = network.shapes[network.input]
    if x.ndim != len(shape) + 2 or tuple(x.shape[2:]) != shape:
        expected = ", ".join(map(str, shape))
        raise TargetError(f"each input sample has shape {tuple(x.shape[1:])}; expected (steps, {expected})")
    if 0 in x.shape:
        raise TargetError(f"input is empty: {x.shape[0]} samples, {x.shape[1]} steps")
    if not np.isfinite(x).all():
        raise TargetError("input holds NaN or infinite values; every comparison with them is false")
    if network.integer and (x != np.rint(x)).any():
        raise TargetError(
            f"an integer network takes whole numbers, the input holds {x[x != np.rint(x)].flat[0]:g}; "
            "scale and round it, or export the float network with --quantize"
        )
    declared = network.alphabets[network.input]
    if declared.kind != "real":
        odd = x[(x < declared.lo) | (x > declared.hi) | (x != np.rint(x))]
        if odd.size:
            raise TargetError(f"the input was declared {declared}, but holds {odd.flat[0]:g}; declare what it holds")
    if network.integer and declared.kind == "real":  # what the messages may hold was not proven yet
        check(network.graph, network.clock.dt, network.clock.integrator, alphabet_of(x))


def recorded(
    network: Network, latency: dict[str, int], z: dict[str, np.ndarray], states: dict[str, dict[str, np.ndarray]] | None
) -> Trace:
    """A trace from an executor's arrays (time, sample, *neuron), in the dtypes that traces hold."""
    kept = {n: compact(np.swapaxes(a, 0, 1), network.alphabets[n]) for n, a in z.items()}
    if network.integer:
        for name, a in kept.items():
            if a.dtype.kind == "f" and (a != np.rint(a)).any():
                raise TargetError(
                    f"node {name!r} sends fractions in an integer network, which holds whole numbers only"
                )
        kept = {n: a if a.dtype == np.int8 else a.astype(np.int64) for n, a in kept.items()}
    probed = {k: {n: np.swapaxes(a, 0, 1) for n, a in rows.items()} for k, rows in (states or {}).items()}
    if network.integer:
        probed = {k: {n: _register(a, k, n) for n, a in rows.items()} for k, rows in probed.items()}
    return Trace(kept, network.clock.dt, latency, probed)


def _register(a: np.ndarray, kind: str, name: str) -> np.ndarray:
    if a.size and np.abs(a).max() >= 1 << 31:
        raise TargetError(
            f"node {name!r}: register {kind} reached {np.abs(a).max():g}, which engines' 32 bits do not hold; "
            "use a smaller weight_exp or fewer message bits"
        )
    return a.astype(np.int32)
