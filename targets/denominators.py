"""Watching a float network's circuits on real samples, for `eiexport.divide`: denominators, and what a form costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eiexport.circuits import Circuit
from eiexport.connections import Conv
from eiexport.divide import Denominators, dividing
from eiexport.errors import GraphError
from eiexport.graph import Network
from eiexport.ops import Ops
from eiexport.steps import bind
from targets.base import check_input
from targets.loop import Executor
from targets.observe import overriding
from targets.pytorch import TorchOps


@dataclass
class Distance:
    """How far a circuit's current is off in another form, given what the circuit gets in the exact network.

    error: sum of squares of the difference; total, square: sums of the exact currents and of their squares.
    """

    error: float = 0.0
    total: float = 0.0
    square: float = 0.0
    entries: int = 0

    def add(self, exact: Tensor, other: Tensor) -> None:
        exact = exact.double()
        self.error += float((other.double() - exact).square().sum())
        self.total += float(exact.sum())
        self.square += float(exact.square().sum())
        self.entries += exact.numel()

    @property
    def relative(self) -> float:
        """Root mean square of the error over the current's standard deviation."""
        variance = self.square - self.total**2 / max(1, self.entries)
        return float(np.sqrt(self.error / variance)) if variance > 0 else float(np.inf if self.error else 0)


@torch.no_grad()
def denominators(network: Network, chunks: Iterable[np.ndarray], device: str = "cpu") -> dict[str, Denominators]:
    """Run a float network on encoded samples (sample, time, *neuron); note what its circuits divide by.

    Raises GraphError where there is no sample.
    """
    found: dict[str, Denominators] = {}

    def filled(name: str, own: Any, ops: Ops, d: Tensor) -> Tensor:
        full = super(type(own), own).filled(ops, d)  # type: ignore[misc]
        some = d != 0
        cells = 1 if isinstance(own.excite, Conv) else d.ndim - 1
        seen = found.setdefault(name, Denominators(*np.zeros((2, d.shape[cells]))))
        rest = tuple(i for i in range(d.ndim) if i != cells)
        seen.total += d.double().sum(rest).cpu().numpy()
        seen.count += some.sum(rest).cpu().numpy()
        seen.zeros += int((~some).sum())
        seen.silent += int((~some.flatten(1).any(1)).sum())
        seen.entries += d.numel()
        seen.rows += len(d)
        if bool(some.any()):
            seen.least = min(seen.least, float(d[some].min()))
        return full

    ops = TorchOps(torch.float32, device)
    executor = Executor(network, ops)  # type: ignore[arg-type]
    for name in dividing(network):
        watched = {"filled": lambda own, ops, d, n=name: filled(n, own, ops, d)}
        executor.steps[name] = overriding(executor.steps[name], watched)
    _run(executor, network, chunks)
    return found


@torch.no_grad()
def distances(
    network: Network, other: Mapping[str, Circuit], chunks: Iterable[np.ndarray], device: str = "cpu"
) -> dict[str, Distance]:
    """Run the exact network; beside each circuit, its other form on the same currents: what that form alone costs."""
    ops = TorchOps(torch.float32, device)
    found = {n: Distance() for n in other}

    def act(name: str, bound: Circuit, own: Any, ops: Ops, e: Tensor, s: Tensor) -> Tensor:
        exact = super(type(own), own).act(ops, e, s)  # type: ignore[misc]
        found[name].add(exact, bound.act(ops, e, s))
        return exact

    executor = Executor(network, ops)  # type: ignore[arg-type]
    for name, step in other.items():
        bound = bind(step, ops)  # type: ignore[arg-type]
        watched = {"act": lambda own, ops, e, s, n=name, b=bound: act(n, b, own, ops, e, s)}
        executor.steps[name] = overriding(executor.steps[name], watched)
    _run(executor, network, chunks)
    return found


def _run(executor: Executor, network: Network, chunks: Iterable[np.ndarray]) -> None:
    done, ops = 0, executor.ops
    for x in chunks:
        check_input(network, x)
        moved = torch.from_numpy(np.ascontiguousarray(np.swapaxes(x, 0, 1)))
        executor.run(moved.to(ops.device, ops.dtype))  # type: ignore[attr-defined]
        done += len(x)
    if not done:
        raise GraphError("nothing to calibrate on: the input holds no sample")
