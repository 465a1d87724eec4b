"""The program file as an engine of its own: written, and run by the simulator that reads nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from eiexport.graph import Network
from eiexport.trace import Trace
from targets.base import Program, check_input
from targets.loihi import Loihi
from targets.loihi.cores import Partition
from targets.loihi.program import write
from targets.loihi.simulator import Simulator


class LoihiFile(Loihi):
    """What the compiler wrote: DIR/program.loihi.h5 run core by core, message by message."""

    name = "loihi-file"

    def compile(self, network: Network) -> Program:  # type: ignore[override]
        return _Program(self.partition(network))

    def costs(self, network: Network, x: np.ndarray, trace: Trace) -> dict[str, Any]:
        return {}  # they are `loihi`'s


class _Program(Program):
    def __init__(self, made: Partition) -> None:
        self.network = made.plan.network
        self.latency = {p.name: p.latency for p in made.plan.populations if p.name in self.network.recorded}
        with tempfile.TemporaryDirectory(prefix="eitrain-loihi-") as folder:
            self._simulator = Simulator(write(self.network, made.plan.chip, Path(folder), made=made))

    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        check_input(self.network, x)
        return self._simulator.run(x, probe)
