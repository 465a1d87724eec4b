"""Makes unmodified lava-nc 0.10.0 run on Python 3.11 and later, and makes its failures visible.

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


def load() -> None:
    """Import Lava's core with both repairs."""
    _import_var_model()
    infrastructure = importlib.import_module("lava.magma.runtime.message_infrastructure.multiprocessing")
    infrastructure.SystemProcess.run = _run_or_end


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
