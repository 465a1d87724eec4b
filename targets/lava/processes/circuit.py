"""Circuits of excitation and inhibition: a process around the one step, fed by Lava's own connections."""

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

from eiexport.circuits import Circuit
from eiexport.ops import NumpyOps
from eiexport.steps import bind

OPS = NumpyOps()


class StepCircuit(AbstractProcess):
    """Sends `step.act` of what the connections W_EE (port excited) and W_IE (inhibited) bring, in the same engine step.

    shape: what enters those connections. out: the graded current I. Nothing is kept from one step to the next.
    """

    def __init__(self, shape: tuple[int, ...], step: Circuit, **kwargs: Any) -> None:
        super().__init__(shape=shape, step=step, **kwargs)
        self.excited = InPort(shape=step.excite.output_shape(shape))
        self.inhibited = InPort(shape=step.inhibit.output_shape(shape))
        self.out = OutPort(shape=step.output_shape(shape))


@implements(proc=StepCircuit, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyStepCircuit(PyLoihiProcessModel):
    excited: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    inhibited: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.step = bind(proc_params["step"], OPS)

    def run_spk(self) -> None:
        # whole numbers too: float64 holds every sum and product of the integer step exactly
        e, s = (np.asarray(port.recv(), np.float64)[None] for port in (self.excited, self.inhibited))
        self.out.send(self.step.act(OPS, e, OPS.relu(s))[0])


@implements(proc=StepCircuit, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyStepCircuitFixed(PyStepCircuit):
    excited: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    inhibited: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
