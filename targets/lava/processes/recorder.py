"""A sink that writes a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Recorder(AbstractProcess):
    """Writes what arrives at step n, counted from zero, to row n - latency of a .npy file (steps, *shape).

    The file is made here, so that a folder that cannot be written is told before Lava starts. Its rows are a
    shared mapping: every reader of the file sees a row as soon as the step is over.
    """

    def __init__(
        self,
        path: str | Path,
        shape: tuple[int, ...],
        steps: int,
        latency: int = 0,
        dtype: str = "float64",
        **kwargs: Any,
    ) -> None:
        shape = tuple(map(int, shape))  # Lava's Conv has NumPy integers there, which .npy headers cannot hold
        np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=(steps, *shape))
        super().__init__(path=str(path), latency=latency, **kwargs)
        self.inp = InPort(shape=shape)


@implements(proc=Recorder, protocol=LoihiProtocol)
@requires(CPU)
class PyRecorder(PyLoihiProcessModel):
    inp: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.path, self.latency = proc_params["path"], proc_params["latency"]
        self.rows = np.load(self.path, mmap_mode="r+")

    def run_spk(self) -> None:
        values = self.inp.recv()
        row = self.time_step - 1 - self.latency
        if 0 <= row < len(self.rows):
            self.rows[row] = values
            if not np.array_equal(self.rows[row], values, equal_nan=True):
                kind = self.rows.dtype
                raise ValueError(f"step {row} has values that {kind} cannot hold, recording {self.path}")
