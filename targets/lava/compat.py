"""Makes unmodified lava-nc 0.10.0 run on Python 3.11 and later, makes its failures visible, and its start quicker.

Runs inside Lava's environment: call `load` before the first import of `lava`.
"""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from typing import Any

import numpy as np


def load() -> None:
    """Import Lava's core with all repairs."""
    _import_var_model()
    infrastructure = importlib.import_module("lava.magma.runtime.message_infrastructure.multiprocessing")
    infrastructure.SystemProcess.run = _run_or_end
    _find_models_once()


def widen() -> None:
    """Let Lava's Conv hold its geometry in int32: NumPy 2 widens an int8 no more beside more than 127 pixels."""
    types, models = (importlib.import_module(n) for n in ("lava.magma.core.model.py.type", "lava.proc.conv.models"))
    for name in ("kernel_size", "stride", "padding", "dilation", "groups"):
        setattr(models.AbstractPyConvModel, name, types.LavaPyType(np.ndarray, np.int32))


def _find_models_once() -> None:
    """Look up a process class's models once: Lava executes every file beside the class again for each process."""
    compiler: Any = importlib.import_module("lava.magma.compiler.compiler_graphs").ProcGroupDiGraphs
    find = compiler._find_proc_models
    known: dict[type, list[type]] = {}

    def models(proc: Any) -> list[type]:
        if type(proc) not in known:
            known[type(proc)] = find(proc)
        return list(known[type(proc)])

    compiler._find_proc_models = staticmethod(models)


def _import_var_model() -> None:
    """Import the module whose `ByteEncoder` is a default in dataclasses: Python 3.11 wants those hashable."""
    original: Any = dataclasses.dataclass

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        if cls is not None and cls.__name__ == "ByteEncoder":
            options["unsafe_hash"] = True
        return original(cls, **options)

    dataclasses.dataclass = dataclass  # type: ignore[assignment]
    try:
        importlib.import_module("lava.magma.compiler.var_model")
    finally:
        dataclasses.dataclass = original


def _run_or_end(process: Any) -> None:
    """Run one of Lava's processes; an error is told and ends the worker.

    Lava keeps the error to itself and waits for ever for the processes that wait for the failed one.
    """
    try:
        multiprocessing.Process.run(process)
        process._cconn.send(None)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        process._cconn.send((error, ""))
        os.kill(os.getppid(), signal.SIGTERM)
