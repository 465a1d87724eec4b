"""The worker's side of `targets.lava.supervise`: nothing outlives the worker or its starter.

Runs inside Lava's environment, before Lava is imported: standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, NoReturn

STARTED_BY = "EITRAIN_WORKER"  # "process id of the starter:prefix of the shared memory"
SHARED_MEMORY = Path("/dev/shm")
POLL = 0.05  # seconds between looks at the worker and at the starter
GRACE = 1.0  # seconds that a worker has to end on SIGTERM


def guard(main: Callable[[], None]) -> NoReturn:
    """Run `main()` in a process group of its own, and exit with its status; call it first in the worker.

    This process stays behind to watch. When main ends, when the starter dies (however it dies) or on SIGTERM,
    it ends every process of the group and removes the shared memory that the group made.
    """
    starter, prefix = os.environ[STARTED_BY].split(":")
    told_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told_to_end.append(number))
    worker = os.fork()
    if not worker:
        _work(main, prefix)
    with suppress(OSError):  # the worker has done it already
        os.setpgid(worker, worker)
    while not (told_to_end or _ended(worker) or os.getppid() != int(starter)):
        time.sleep(POLL)
    status = os.waitstatus_to_exitcode(end_group(worker))
    remove_shared_memory(prefix)
    sys.exit(status if status >= 0 else 128 - status)


def remove_shared_memory(prefix: str) -> None:
    """Remove the segments whose names start with prefix; Linux shows them as files."""
    for segment in SHARED_MEMORY.glob(f"{prefix}*"):
        segment.unlink(missing_ok=True)


def end_group(leader: int) -> int:
    """End all processes of the group that our child leads, and reap it; returns its status like waitpid."""
    if not _ended(leader):
        os.killpg(leader, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while not _ended(leader) and time.monotonic() < deadline:
            time.sleep(POLL)
    # The dead leader is not reaped yet, so that no other process can have taken its number.
    os.killpg(leader, signal.SIGKILL)
    return os.waitpid(leader, 0)[1]


def _ended(child: int) -> bool:
    """Whether the child has ended; leaves it to be reaped."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _work(main: Callable[[], None], prefix: str) -> NoReturn:
    """Be the worker: name the shared memory, run main, leave without waiting for children that may hang."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(OSError):  # the watching process has done it already
        os.setpgid(0, 0)
    names: Any = shared_memory
    names._SHM_NAME_PREFIX = f"/{prefix}"
    names._SHM_SAFE_NAME_LENGTH = len(prefix) + 9  # keeps eight random digits
    code = 0
    try:
        main()
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else int(request.code is not None)
        if isinstance(request.code, str):
            print(request.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
