"""Where registers wrapped or saturated on a given input, told from a trace that holds v and u.

Every step is charged again from the recorded state before it, all steps at once, over an op set that notes what its
limits changed. So nothing is run a second time, and the engine need not watch itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from eiexport.graph import Network
from eiexport.integers import TOP
from eiexport.ops import Array, Ints, NumpyOps
from eiexport.steps import Neuron
from eiexport.trace import first_index
from targets.base import TargetError
from targets.loihi.signals import Signals
from targets.loop import fold

HELP = {
    "u": "quantise with fewer weight bits or a larger margin",
    "v": "quantise with fewer weight bits or a larger margin, or use a stronger decay",
    "sum": "use fewer weight bits, a smaller weight_exp or narrower messages",
}
WHAT = {"u": "register u wraps", "v": "register v saturates", "sum": "the convolution's sum wraps"}


@dataclass(frozen=True)
class Overflow:
    """The first value of a node that its register could not hold."""

    node: str
    register: str  # "u" | "v" | "sum"
    sample: int
    step: int
    neuron: Ints
    value: int

    def error(self) -> TargetError:
        where = f"sample {self.sample}, step {self.step}, neuron {self.neuron}"
        return TargetError(
            f"node {self.node!r}: rule no_overflow: {WHAT[self.register]} at {where}: {self.value}, limit +-{TOP} "
            f"(24 bits); {HELP[self.register]}"
        )


class _Watch(NumpyOps):
    """NumPy, and a note of every entry that a limit changed: (register, mask, values)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, np.ndarray, np.ndarray]] = []
        self.clipped = 0

    def _note(self, register: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if (changed := x != y).any():
            self.found.append((register, changed, x))
        return y

    def wrap(self, x: Array, bits: int) -> Array:
        return self._note("u", x, super().wrap(x, bits))

    def modulo(self, x: Array, bits: int) -> Array:
        return self._note("sum", x, super().modulo(x, bits))

    def saturate(self, x: Array, lo: int, hi: int) -> Array:
        y = super().saturate(x, lo, hi)
        if hi == TOP:
            return self._note("v", x, y)
        if lo == -hi:  # a membrane as a message, a circuit's current; indices of tables are clipped otherwise
            self.clipped += int(np.count_nonzero(x != y))
        return y


def find(
    network: Network, x: np.ndarray, z: dict[str, np.ndarray], states: dict[str, dict[str, np.ndarray]]
) -> tuple[Overflow | None, dict[str, int]]:
    """(the earliest overflow, balance messages and circuits' currents that were clipped by node).

    Arrays are (sample, time, *neuron).
    """
    found: list[Overflow] = []
    clipped: dict[str, int] = {}
    watches: defaultdict[str, _Watch] = defaultdict(_Watch)
    signals = Signals(network, x, z, lambda name: watches[name])

    def note(name: str, ops: _Watch, shape: Any) -> None:
        for register, mask, held in ops.found:
            sample, step, neuron = first_index(np.swapaxes(mask.reshape(shape), 0, 1))
            number = int(held.reshape(shape)[step, sample][neuron])
            found.append(Overflow(name, register, sample, step, neuron, number))
        if ops.clipped:
            clipped[name] = ops.clipped

    for name in (n for component in network.order for n in component):
        step = network.steps[name]
        if not (isinstance(step, Neuron) and step.neuron):
            if name != network.input:
                note(name, watches[name], signals.sent(name).shape)
            continue
        ops = _Watch()
        driven = fold(step, ops, signals.arriving(name))
        before = [_late(states[k][name]) for k in step.observed]
        if hasattr(step, "balance"):
            before.append(_late(z[name]))
        flat = (-1, *driven.shape[2:])
        step.charge(ops, driven.reshape(flat), tuple(a.reshape(flat) for a in before))
        note(name, ops, driven.shape)
    rank = {n: i for i, n in enumerate(n for component in network.order for n in component)}
    return min(found, key=lambda o: (o.step, rank[o.node], o.sample), default=None), clipped


def _late(a: np.ndarray) -> np.ndarray:
    """(sample, time, *neuron) as (time, sample, *neuron), one step late, zero at first."""
    moved = np.swapaxes(a, 0, 1).astype(np.float64)
    return np.concatenate([np.zeros_like(moved[:1]), moved[:-1]])
