"""Watching a float network on real samples, for `eiexport.calibrate`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eiexport.calibrate import Observed, Samples
from eiexport.connections import Conv, Dense
from eiexport.errors import GraphError
from eiexport.explicit import explicit
from eiexport.graph import Network
from eiexport.neurons import GatedFire, SynapseFire
from eiexport.steps import Neuron, Step
from targets.loop import Executor
from targets.pytorch import TorchOps

ROWS = 96  # inputs kept of each connection, membranes of each neuron
GRIDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 255.0)


class Watch:
    """Collects what bound steps see; `torch` float32 is enough to choose scales by."""

    def __init__(self, network: Network, seed: int = 0) -> None:
        self.nodes = {n: Observed() for n in network.steps}
        self._random = np.random.default_rng(seed)
        self._kept: dict[str, list[np.ndarray]] = {}

    def step(self, name: str, step: Step) -> Step:
        """The same step, watched."""
        if isinstance(step, Dense | Conv):
            return overriding(step, {"drive": lambda own, ops, x: self._connection(name, own, ops, x)})
        if isinstance(step, Neuron) and step.neuron:
            watched = {"step": lambda own, ops, driven, state: self._neuron(name, own, ops, driven, state)}
            if isinstance(step, GatedFire):
                watched["open"] = lambda own, ops, driven, fed: self._gate(name, own, ops, driven, fed)
            return overriding(step, watched)
        return step

    def finish(self) -> dict[str, Observed]:
        for name, parts in self._kept.items():
            rows = np.concatenate(parts).astype(np.float64)
            pick = self._random.permutation(len(rows))[:ROWS]
            self.nodes[name].rows = rows[pick]
        return self.nodes

    def _connection(self, name: str, step: Any, ops: TorchOps, x: Tensor) -> Tensor:
        self._keep(name, x, ROWS)
        return super(type(step), step).drive(ops, x)  # type: ignore[misc]

    def _neuron(self, name: str, step: Any, ops: TorchOps, driven: Tensor, state: Any) -> Any:
        membrane = step.charge(ops, driven, state)
        if isinstance(step, SynapseFire):  # the gain behind the current is part of the integer current
            gain: Any = 1.0 if step.gain is None else step.gain
            self._reach(name, membrane[0], driven * gain, membrane[1] * gain)
        elif getattr(step, "feedback", None) is not None:
            self._reach(name, membrane[0])  # and what `open` lets through
        else:
            self._reach(name, membrane[0], driven)
        if getattr(step, "balance", None) is not None:
            self._keep(name, membrane[0], 16)
        return step.settle(ops, membrane)

    def _gate(self, name: str, step: Any, ops: TorchOps, driven: Tensor, fed: Tensor) -> Tensor:
        seen = self.nodes[name]
        seen.fed = max(seen.fed, float(fed.abs().max()))
        opened = super(type(step), step).open(ops, driven, fed)  # type: ignore[misc]
        self._reach(name, opened)
        return opened

    def _reach(self, name: str, *registers: Tensor) -> None:
        seen = self.nodes[name]
        seen.largest = max(seen.largest, *(float(a.abs().max()) for a in registers))

    def _keep(self, name: str, x: Tensor, count: int) -> None:
        pick = self._random.integers(0, len(x), min(len(x), count))
        kept = self._kept.setdefault(name, [])
        if len(kept) < 64:
            kept.append(x[torch.as_tensor(pick, device=x.device)].cpu().numpy())


def overriding(step: Step, methods: dict[str, Any]) -> Step:
    """An instance of a subclass of the step's own, with methods replaced."""
    return type(type(step).__name__, (type(step),), methods)(**vars(step))


@torch.no_grad()
def observe(
    network: Network,
    chunks: Iterable[np.ndarray],
    device: str = "cpu",
) -> Samples:
    """Run a float network, made explicit, on encoded samples (sample, time, *neuron); note ranges and examples.

    Raises GraphError where there is nothing to calibrate on, or where it is of the wrong shape.
    """
    from targets.base import check_input

    ops, network = TorchOps(torch.float32, device), explicit(network)
    executor = Executor(network, ops)  # type: ignore[arg-type]
    watch = Watch(network)
    executor.steps = {n: watch.step(n, s) for n, s in executor.steps.items()}
    lo, hi, grids, count = 0.0, 0.0, set(GRIDS), 0
    for x in chunks:
        check_input(network, x)
        lo, hi = min(lo, float(x.min())), max(hi, float(x.max()))
        grids = {d for d in grids if np.abs(x * d - np.rint(x * d)).max() <= 1e-6 * d * np.abs(x).max()}
        executor.run(torch.from_numpy(np.ascontiguousarray(np.swapaxes(x, 0, 1))).to(ops.device, ops.dtype))
        count += len(x)
    if not count:
        raise GraphError("nothing to calibrate on: the input holds no sample")
    return Samples(watch.finish(), lo, hi, min(grids, default=0.0))
