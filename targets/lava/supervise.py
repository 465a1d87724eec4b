"""Runs Lava's worker so that it can neither hang the tools nor outlive them.

The worker is a script in Lava's environment whose main goes through `targets.lava.guard.guard`. It tells its
progress in lines on stdout; what it writes to stderr explains a failure.
"""

from __future__ import annotations

import os
import secrets
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from targets.base import EngineUnavailable
from targets.lava.guard import GRACE, STARTED_BY, remove_shared_memory

TAIL = 1 << 16  # bytes kept of stderr, and of an unfinished line
SETTINGS = {
    # Many processes on few cores: threads inside each would only be in the way, and a fork loses them.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONNOUSERSITE": "1",  # the environment alone, as it was pinned
    "PYTHONUNBUFFERED": "1",
}


class WorkerError(EngineUnavailable):
    """The worker failed; `stderr` holds the end of what it wrote."""

    def __init__(self, message: str, stderr: str) -> None:
        super().__init__(message)
        self.stderr = stderr


class WorkerTimeout(WorkerError):
    """The worker said nothing for too long and was ended."""


def run_worker(
    python: Path,
    argv: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    pythonpath: Sequence[Path] = (),
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Run `python *argv` to its end, handing each line of its stdout to on_progress.

    timeout: seconds that the worker may say nothing; every line starts them anew.
    Whatever ends the run (an error, a timeout, an exception here, the death of this process) ends all of the
    worker's processes, and their shared memory is removed.
    """
    prefix = f"ei{secrets.token_hex(4)}_"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    environment |= SETTINGS
    environment[STARTED_BY] = f"{os.getpid()}:{prefix}"
    environment["PYTHONPATH"] = os.pathsep.join(map(str, pythonpath))
    try:
        process = subprocess.Popen(
            [str(python), *argv],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the worker in order
        )
    except OSError as error:
        raise WorkerError(f"the Lava worker cannot be started with {python}: {error.strerror}", "") from error
    stderr = bytearray()
    try:
        _follow(process, stderr, timeout, on_progress or (lambda line: None))
        code = process.wait()
    except _Silent:
        text = _text(stderr)
        raise WorkerTimeout(
            f"the Lava worker said nothing for {timeout:g} s and was ended{_because(text)}; "
            "try fewer samples, or report the graph if they do not help",
            text,
        ) from None
    finally:
        _end(process)
        remove_shared_memory(prefix)
    if code:
        text = _text(stderr)
        raise WorkerError(f"the Lava worker failed (exit status {code}){_because(text)}", text)


class _Silent(Exception):
    """No line came in time."""


def _follow(
    process: subprocess.Popen[bytes], stderr: bytearray, timeout: float, on_progress: Callable[[str], None]
) -> None:
    """Read both pipes until the worker's last process has closed them; stderr keeps the end of what came."""
    assert process.stdout and process.stderr
    line = b""
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as pipes:
        pipes.register(process.stdout, selectors.EVENT_READ)
        pipes.register(process.stderr, selectors.EVENT_READ)
        while pipes.get_map():
            left = deadline - time.monotonic()
            if left <= 0:  # also while stderr keeps talking
                raise _Silent
            for key, _ in pipes.select(left):
                data = os.read(key.fd, TAIL)
                if not data:
                    pipes.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    stderr += data
                    del stderr[:-TAIL]
                else:
                    *lines, line = (line + data).split(b"\n")
                    line = line[-TAIL:]
                    for text in lines:
                        on_progress(text.decode(errors="replace"))
                        deadline = time.monotonic() + timeout


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the worker if it still runs: its guard ends the group, which takes its grace and little more."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10 * GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


def _text(stderr: bytes | bytearray) -> str:
    return stderr.decode(errors="replace")


def _because(stderr: str) -> str:
    """The last line of stderr that explains, after a colon; Python's tracker of leaked memory is later."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and "resource_tracker" not in line]
    lines = [line for line in lines if not line.startswith("warnings.warn(")]
    return f": {lines[-1]}" if lines else ""
