"""The real Lava runtime, in an environment and a process group of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from eiexport.graph import Network
from eiexport.trace import Trace, chunk_size
from targets.base import Claim, Program, Target
from targets.lava.jobs import Engine, Job, finished, run_many, trace
from targets.lava.plan import STOCK, Plan, plan

FLOAT, FIXED, OWN = "Lava float", "Lava fixed_pt", "own step"  # oracles


class Lava(Target):
    """Lava 0.10.0 in floating point, on its stock processes wherever they mean exactly the node; integers in fixed.

    A connection takes one engine step, so a node runs `latency` steps behind; samples follow each other without gaps,
    each from zero state. Recorded traces are shifted back.
    """

    name = "lava"
    dtype = "float64"
    evidence = "independent"
    setup = "set up on first use (about a minute, needs a package index); EITRAIN_LAVA_ENV names another place"
    engine: ClassVar[Engine] = Engine("targets.lava.worker")
    claims: ClassVar[dict[str, Claim]] = {
        **dict.fromkeys(("Affine", "Linear", "Conv1d", "Conv2d", "Flatten"), Claim("exact", FLOAT)),
        # stock as long as all neurons share their parameters, fire above one threshold and reset to zero
        **dict.fromkeys(("IF", "LIF", "CubaLIF", "Threshold", "EIDiscreteLIF"), Claim("exact", f"{FLOAT} or {OWN}")),
        **dict.fromkeys(("SumPool2d", "AvgPool2d"), Claim("exact after lowering", FLOAT)),
        "Delay": Claim("exact after lowering", OWN),
        **dict.fromkeys(("Scale", "I", "LI", "CubaLI", "EIGatedLIF", "EIMaxPool2d", "EICircuit"), Claim("exact", OWN)),
        **dict.fromkeys(("IntDense", "IntConv"), Claim("exact", FIXED)),
        "IntCubaLIF": Claim("exact", f"{FIXED} or {OWN}"),
        **dict.fromkeys(("IntGatedLIF", "IntCircuit"), Claim("exact", OWN)),
        **dict.fromkeys(("Input", "Output"), Claim("exact")),
    }

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self._planned: tuple[Network, Plan] | None = None  # the last network asked about

    @property
    def version(self) -> str:
        return "lava-nc 0.10.0"

    def check(self, network: Network) -> None:
        self._plan(network)

    def compile(self, network: Network) -> Program:
        return LavaProgram(self.engine, network, self._plan(network))

    def process(self, network: Network, name: str) -> str:
        """STOCK where Lava's own process or port computes this node, else CUSTOM."""
        return self._plan(network).process.get(name, STOCK)

    def evidence_for(self, network: Network) -> str:
        """ "independent" where Lava's own processes computed every node, "plumbing" where any ran our step."""
        process = self._plan(network).process
        stock = all(kind == STOCK for name, kind in process.items() if name != network.input)
        return "independent" if stock else "plumbing"

    def run_many(self, pairs: Sequence[tuple[Network, np.ndarray]], probe: bool = False) -> list[Trace]:
        """Run small networks together, in as few starts of Lava as the number of processes allows."""
        return run_many(self.engine, [Job(network, self._plan(network), x, probe) for network, x in pairs])

    def _plan(self, network: Network) -> Plan:
        if self._planned is None or self._planned[0] is not network:
            self._planned = network, self._decide(network)
        return self._planned[1]

    def _decide(self, network: Network) -> Plan:
        super().check(network)
        return plan(network)


class LavaProgram(Program):
    """A planned network; every call starts Lava once, for all samples."""

    def __init__(self, engine: Engine, network: Network, planned: Plan) -> None:
        self._engine, self.network, self._plan = engine, network, planned
        self.latency = {n: planned.latency[n] for n in network.recorded}

    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        job = Job(self.network, self._plan, x, probe)
        with finished(self._engine, [job]) as folder:
            return trace(folder, 0, job, slice(None))

    def stream(self, x: Any, progress: Callable[[int], None] | None = None, probe: bool = False) -> Iterator[Trace]:
        """One start for all samples, then chunk by chunk from disk; `progress` gets samples while the engine runs."""
        told, last = 0, max(self._plan.latency.values())

        def advance(done: int) -> None:
            nonlocal told
            samples = max(0, done - last) // x.shape[1]
            if progress and samples > told:
                progress(samples - told)
                told = samples

        job = Job(self.network, self._plan, x, probe)
        with finished(self._engine, [job], advance) as folder:
            size = chunk_size(self.network, x.shape[1])
            for start in range(0, len(x), size):
                yield trace(folder, 0, job, slice(start, start + size))
