"""The meaning itself: NumPy in float64, which also holds every integer of an integer network exactly."""

from __future__ import annotations

import numpy as np

from eiexport.graph import Network
from eiexport.nodes import PREPARE
from eiexport.ops import NumpyOps
from eiexport.trace import Trace
from targets.base import Claim, Program, Target, check_input, recorded
from targets.loop import Executor, States


class Reference(Target):
    """NumPy, float64: what every other engine is held against; itself held against oracles that share no code."""

    name = "reference"
    claims = {kind: Claim("exact", "scalar oracle") for kind in PREPARE}

    @property
    def version(self) -> str:
        return f"numpy {np.__version__}"

    def compile(self, network: Network) -> Program:
        return _Program(network)


class _Program(Program):
    def __init__(self, network: Network) -> None:
        self.network = network
        self.latency = dict.fromkeys(network.recorded, 0)
        self._executor = Executor(network, NumpyOps())

    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        check_input(self.network, x)
        states: States | None = {} if probe else None
        z = self._executor.run(np.swapaxes(x, 0, 1).astype(np.float64), states)
        return recorded(self.network, self.latency, z, states)
