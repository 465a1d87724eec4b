"""What every node sent in a run, told from its trace: neurons as they were recorded, the rest computed from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eiexport.graph import Network
from eiexport.neurons import Delay
from eiexport.ops import NumpyOps
from targets.loop import fold, scan


class Signals:
    """Arrays (time, sample, *neuron), made when they are asked for. Neurons are known, so they break every cycle.

    x, z: input and spikes by node, (sample, time, *neuron). ops: of a node, the op set that computes it.
    """

    def __init__(
        self,
        network: Network,
        x: np.ndarray,
        z: dict[str, np.ndarray],
        ops: Callable[[str], NumpyOps] = lambda name: NumpyOps(),
    ) -> None:
        self.network, self._z, self._ops = network, z, ops
        self._sent: dict[str, np.ndarray] = {network.input: np.swapaxes(x, 0, 1).astype(np.float64)}

    def sent(self, name: str) -> np.ndarray:
        """What a node sends."""
        if name not in self._sent:
            step = self.network.steps[name]
            if step.neuron:
                self._sent[name] = np.swapaxes(self._z[name], 0, 1).astype(np.float64)
            elif isinstance(step, Delay):
                self._sent[name] = scan(step, NumpyOps(), self.arriving(name))
            else:
                self._sent[name] = fold(step, self._ops(name), self.arriving(name))
        return self._sent[name]

    def arriving(self, name: str) -> np.ndarray:
        """What a node gets, summed."""
        total, *rest = (self.sent(s) for s in self.network.sources[name])
        for other in rest:
            total = total + other
        return total
