"""Delays: the model's own, and those that make paths of different length meet."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class DelayLine(AbstractProcess):
    """Sends what arrived `length` engine steps ago, plus `constant`, but zeros in the first `delay` steps of a sample.

    Model step t of sample k is engine step k * period + latency + t, counted from zero. A model's delay by d steps
    is `delay` d and `length` d + latency - (latency of what arrives): where a connection in its cycle has taken
    some of the steps, the line is the shorter, and still nothing passes from one sample to the next. A line that
    only makes up for a difference of latencies has delay 0.
    length, delay: whole numbers >= 0, or arrays of them, one a neuron. A cycle needs a length of at least 1 all
    over: such a line sends before it awaits its input.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        length: int | np.ndarray,
        delay: int | np.ndarray = 0,
        constant: float | np.ndarray = 0.0,
        period: int = 1,
        latency: int = 0,
        **kwargs: Any,
    ) -> None:
        own = {"length": length, "delay": delay, "constant": constant, "period": period, "latency": latency}
        super().__init__(shape=shape, **own, **kwargs)
        self.inp = InPort(shape=shape)
        self.out = OutPort(shape=shape)


@implements(proc=DelayLine, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyDelayLineFloat(PyLoihiProcessModel):
    inp: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.length, self.delay = (np.broadcast_to(proc_params[n], proc_params["shape"]) for n in ("length", "delay"))
        self.constant, self.period, self.latency = (proc_params[n] for n in ("constant", "period", "latency"))
        self.passing = bool((self.length == 0).any())
        self.ring = np.zeros((int(self.length.max()) + 1, *proc_params["shape"]))

    def _receive(self, now: int) -> None:
        self.ring[now % len(self.ring)] = self.inp.recv()

    def run_spk(self) -> None:
        now = self.time_step - 1
        if self.passing:
            self._receive(now)
        slot = (now - self.length) % len(self.ring)
        y = np.take_along_axis(self.ring, slot[None], axis=0)[0] + self.constant
        model = (now - self.latency) % self.period
        self.out.send(np.where(self.delay <= model, y, 0))
        if not self.passing:
            self._receive(now)


@implements(proc=DelayLine, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyDelayLineFixed(PyDelayLineFloat):
    inp: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
