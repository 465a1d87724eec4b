"""Neurons that Lava does not have: processes around the one step."""

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

from eiexport.ops import Array, NumpyOps
from eiexport.steps import Neuron, State, Step, bind
from targets.lava.watch import Watch

OPS = NumpyOps()


class StepNeuron(AbstractProcess):
    """Runs a prepared neuron: sample k starts at engine step k * period + latency, from zero state.

    constant: what the neuron gets at every step beside its port. Before its first sample it sends zeros.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        step: Neuron,
        constant: np.ndarray,
        period: int,
        latency: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(shape=shape, step=step, constant=constant, period=period, latency=latency, **kwargs)
        self.inp = InPort(shape=shape)
        self.out = OutPort(shape=shape)


class StepGated(StepNeuron):
    """A gated neuron. fed: the current of its feedback connection, which carries its own output of the last step."""

    def __init__(self, shape: tuple[int, ...], *args: Any) -> None:
        super().__init__(shape, *args)
        self.fed = InPort(shape=shape)


class StepMap(AbstractProcess):
    """Sends `step.drive(x + constant)` of a node without state in the same engine step."""

    def __init__(self, shape: tuple[int, ...], step: Step, constant: np.ndarray, **kwargs: Any) -> None:
        super().__init__(shape=shape, step=step, constant=constant, **kwargs)
        self.inp = InPort(shape=shape)
        self.out = OutPort(shape=step.output_shape(shape))


class AbstractPyStep(PyLoihiProcessModel):
    """What both models share; Lava lets no model derive from another process's model."""

    inp: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.shape = tuple(proc_params["shape"])
        self.step = bind(proc_params["step"], OPS)
        self.constant = proc_params["constant"]
        self.period, self.latency = proc_params["period"], proc_params["latency"]
        self.state: State = ()
        self.watch = Watch(proc_params)

    def receive(self) -> tuple[np.ndarray, ...]:
        """What all in-ports bring, which must be taken at every step."""
        raise NotImplementedError

    def advance(self, first: bool, x: np.ndarray, *rest: np.ndarray) -> tuple[Array, State]:
        """One model step; first: of a sample."""
        raise NotImplementedError

    def driven(self, x: np.ndarray) -> Array:
        return self.step.drive(OPS, (x + self.constant)[None])

    def run_spk(self) -> None:
        arrived = self.receive()
        since = self.time_step - 1 - self.latency
        if since < 0:
            self.out.send(np.zeros(self.shape))
            return
        if first := since % self.period == 0:
            self.state = self.step.init(OPS, (1, *self.shape))
        z, self.state = self.advance(first, *arrived)
        self.watch.note(self.time_step - 1, {k: a[0] for k, a in zip(self.step.observed, self.state, strict=False)})
        self.out.send(z[0])


@implements(proc=StepNeuron, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyStepNeuron(AbstractPyStep):
    def receive(self) -> tuple[np.ndarray, ...]:
        return (self.inp.recv(),)

    def advance(self, first: bool, x: np.ndarray, *rest: np.ndarray) -> tuple[Array, State]:
        return self.step.step(OPS, self.driven(x), self.state)


@implements(proc=StepNeuron, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyStepNeuronFixed(PyStepNeuron):
    inp: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)


@implements(proc=StepGated, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyStepGated(AbstractPyStep):
    fed: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.resting = self.step.feedback.drive(OPS, np.zeros((1, *self.shape)))

    def receive(self) -> tuple[np.ndarray, ...]:
        return self.inp.recv(), self.fed.recv()

    def advance(self, first: bool, x: np.ndarray, *rest: np.ndarray) -> tuple[Array, State]:
        # what a sample's first step is fed still comes from the sample before
        fed = self.resting if first else rest[0] + self.resting
        return self.step.settle(OPS, self.step.gated(OPS, self.driven(x), self.state, fed))


@implements(proc=StepGated, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyStepGatedFixed(PyStepGated):
    inp: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    fed: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)


@implements(proc=StepMap, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyStepMap(PyLoihiProcessModel):
    inp: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.step = bind(proc_params["step"], OPS)
        self.constant = proc_params["constant"]

    def run_spk(self) -> None:
        self.out.send(self.step.drive(OPS, (self.inp.recv() + self.constant)[None])[0])
