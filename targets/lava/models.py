"""Lava's own neuron models, watched and restarted: not one line of their arithmetic is ours.

They stand beside the stock models and not in their place: `models` names those that a run shall take instead.
"""

from __future__ import annotations

from typing import Any

from lava.proc.lif.models import PyLifResetModelBitAcc, PyLifResetModelFloat, PyTernLifModelFixed
from lava.proc.lif.process import LIFReset, TernaryLIF

from targets.lava.watch import Watch


class WatchedModel:
    """Before a LIF model: writes u and v when the model has done its step."""

    time_step: int
    u: Any
    v: Any

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)  # type: ignore[call-arg]
        self.watch = Watch(proc_params)

    def run_spk(self) -> None:
        super().run_spk()  # type: ignore[misc]
        self.watch.note(self.time_step - 1, {"u": self.u, "v": self.v})


class PyTernaryReset(PyTernLifModelFixed):
    """Lava's ternary LIF with the reset of Lava's LIFReset in front of it, which has none for it."""

    def run_spk(self) -> None:
        if self.time_step % self.proc_params["reset_interval"] == self.proc_params["reset_offset"]:
            self.u *= 0
            self.v *= 0
        super().run_spk()


class PyWatchedFloat(WatchedModel, PyLifResetModelFloat):
    """Stock, and watched."""


class PyWatchedFixed(WatchedModel, PyLifResetModelBitAcc):
    """Stock, and watched."""


class PyWatchedTernary(WatchedModel, PyTernaryReset):
    """Stock but for its reset, and watched."""


def models(integer: bool, probe: bool) -> dict[type, type]:
    """Which model a run takes for a process of Lava's, where it is not the stock one."""
    if not integer:
        return {LIFReset: PyWatchedFloat} if probe else {}
    if not probe:
        return {TernaryLIF: PyTernaryReset}
    return {LIFReset: PyWatchedFixed, TernaryLIF: PyWatchedTernary}
