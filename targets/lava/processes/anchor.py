"""What makes one run of several networks."""

from __future__ import annotations

from lava.magma.core.decorator import implements, requires
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Anchor(AbstractProcess):
    """Joins networks that share no connection: Lava runs what it can reach, and a start is costly.

    Connect the `link` of each network's players to `links`, then run and stop the anchor. Nothing is sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.links = InPort(shape=(1,))


@implements(proc=Anchor, protocol=LoihiProtocol)
@requires(CPU)
class PyAnchor(PyLoihiProcessModel):
    links: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
