"""A source that plays a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Player(AbstractProcess):
    """Sends row n of a .npy file (steps, *shape) at step n, counted from zero; zeros after the last row.

    link: sends nothing; connected to an Anchor it makes this component part of the anchor's run.
    """

    def __init__(self, path: str | Path, **kwargs: Any) -> None:
        rows = np.load(path, mmap_mode="r")
        super().__init__(path=str(path), **kwargs)
        self.out = OutPort(shape=rows.shape[1:])
        self.link = OutPort(shape=(1,))


@implements(proc=Player, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyPlayerFloat(PyLoihiProcessModel):
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    link: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.rows = np.load(proc_params["path"], mmap_mode="r")

    def run_spk(self) -> None:
        step = self.time_step - 1
        self.out.send(self.rows[step] if step < len(self.rows) else np.zeros(self.rows.shape[1:]))


@implements(proc=Player, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyPlayerFixed(PyPlayerFloat):
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
