"""A Loihi-style integer engine that stands on its own: named limits, cores, a program file, and how much of a chip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from eiexport.graph import Network
from eiexport.trace import Trace, chunk_size
from targets.base import Claim, Program, Target, Unsupported, check_input, recorded
from targets.loihi import overflow
from targets.loihi.activity import count_activity
from targets.loihi.cores import Partition
from targets.loihi.estimates import estimates
from targets.loihi.limits import Chip, chip_of
from targets.loihi.program import partitioned, write
from targets.loihi.resources import resources

INTEGER, OWN = "Lava fixed_pt", "own step"  # oracles


class Loihi(Target):
    """Loihi-style integers: the chip's rules by name, then the network's own integer arithmetic.

    chip: "loihi1" | "loihi2". strict: a register that wraps or saturates on the given input is an error.
    """

    name = "loihi"
    dtype: ClassVar[str] = "float64"  # which holds every integer of a network exactly
    evidence = "shared-step"
    options = ("device", "chip", "strict")
    claims: ClassVar[dict[str, Claim]] = {
        **dict.fromkeys(("IntCubaLIF", "IntDense", "IntConv"), Claim("exact", INTEGER)),
        **dict.fromkeys(("IntGatedLIF", "IntCircuit"), Claim("exact", OWN)),
        **dict.fromkeys(("SumPool2d", "Delay", "Flatten"), Claim("exact after lowering", OWN)),
        **dict.fromkeys(("Input", "Output"), Claim("exact")),
    }

    def __init__(self, device: str = "cpu", chip: str | Chip = "loihi2", strict: bool = False) -> None:
        from targets.pytorch import device_of

        super().__init__(device)
        self.device, self.chip, self.strict = str(device_of(device)), chip_of(chip), strict
        self._made: Partition | None = None  # of the last network asked about

    @property
    def version(self) -> str:
        return f"{self.chip.name}-style integers"

    def check(self, network: Network) -> None:
        self.partition(network)

    def compile(self, network: Network) -> LoihiProgram:
        return LoihiProgram(self.partition(network), self.device, self.strict)

    def process(self, network: Network, name: str) -> str:
        """ "custom" where a neuron has to be programmed."""
        return "custom" if self.partition(network).plan.population(name).custom else "stock"

    def emit(self, network: Network, out: Path) -> None:
        """Write the program file."""
        made = self.partition(network)
        write(network, self.chip, out, made=made)

    def costs(self, network: Network, x: np.ndarray, trace: Trace) -> dict[str, Any]:
        """Cores, chips and what binds; operations counted from the events of a run."""
        made, activity = self.partition(network), count_activity(network, x, trace)
        return {
            "resources": resources(network, self.chip, activity, made=made),
            "estimates": estimates(network, self.chip, activity, made=made),
        }

    def partition(self, network: Network) -> Partition:
        """The network on cores; raises Unsupported by the first rule that it breaks."""
        if self._made is None or self._made.plan.network is not network:
            if not network.integer:
                raise Unsupported(f"target {self.name!r} runs integer networks; quantise first: --quantize 8")
            super().check(network)
            self._made = partitioned(network, self.chip)
        return self._made


class LoihiProgram(Program):
    """A network that fits the chip, run in integers.

    latency: of this engine, which is none. chip_latency: engine steps by which each population would run behind on
    the chip, one a hop. saturated: balance messages, and currents of circuits, that were clipped so far, by node, where
    `strict` counts them.
    """

    def __init__(self, made: Partition, device: str, strict: bool) -> None:
        self.partition, self.network, self.strict = made, made.plan.network, strict
        self.latency = dict.fromkeys(self.network.recorded, 0)
        self.chip_latency = {p.name: p.latency for p in made.plan.populations}
        self.saturated: dict[str, int] = {}
        self._executor = engine(self.network, device)
        self._device = device

    def run(self, x: np.ndarray, probe: bool = False, first: int = 0) -> Trace:
        """first: number of the first sample, for errors."""
        import torch

        check_input(self.network, x)
        states: dict[str, dict[str, Any]] | None = {} if probe or self.strict else None
        moved = torch.from_numpy(np.ascontiguousarray(np.swapaxes(x, 0, 1), np.float64)).to(self._device)
        with torch.no_grad():
            z = {n: _host(a) for n, a in self._executor.run(moved, states).items()}
        held = states and {k: {n: _host(a) for n, a in rows.items()} for k, rows in states.items()}
        trace = recorded(self.network, self.latency, z, held)
        if self.strict:
            self._verify(x, trace, first)
        return trace if probe else replace(trace, states={})

    def stream(self, x: Any, progress: Callable[[int], None] | None = None, probe: bool = False) -> Iterator[Trace]:
        size = chunk_size(self.network, x.shape[1])
        for start in range(0, len(x), size):
            part = self.run(np.asarray(x[start : start + size]), probe, start)
            yield part
            if progress:
                progress(part.samples)

    def _verify(self, x: np.ndarray, trace: Trace, first: int) -> None:
        worst, clipped = overflow.find(self.network, x, trace.z, trace.states)
        for name, count in clipped.items():
            self.saturated[name] = self.saturated.get(name, 0) + count
        if worst is not None:
            raise replace(worst, sample=worst.sample + first).error()

    def write(self, folder: str | Path) -> Path:
        """Write the program file into a folder."""
        return write(self.network, self.partition.plan.chip, folder, made=self.partition)


def engine(network: Network, device: str) -> Any:
    """What runs the integers: the engine made for them, or the executor that every network has."""
    if find_spec("targets.loihi.executor") is not None:
        return import_module("targets.loihi.executor").IntegerExecutor(network, device)
    import torch

    from targets.loop import Executor
    from targets.pytorch import TorchOps

    return Executor(network, TorchOps(torch.float64, device))  # type: ignore[arg-type]


def _host(a: Any) -> np.ndarray:
    return a if isinstance(a, np.ndarray) else a.cpu().numpy()
