"""The machine's C compiler: a network's file and a driver that steps through samples, as a library for ctypes."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from targets.base import EngineUnavailable
from targets.c.emit import Source
from targets.c.plan import DTYPES, Store

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-Wdouble-promotion")
FLAGS = ("-std=c99", "-O2", "-ffp-contract=off")
SETUP = "needs a C compiler: install gcc or clang (Debian: apt-get install gcc), or name one in CC"


def compiler() -> tuple[str, ...]:
    """The command of the C compiler, $CC first; raises EngineUnavailable where there is none."""
    if asked := os.environ.get("CC"):
        try:
            words = tuple(shlex.split(asked))
        except ValueError as e:
            raise EngineUnavailable(f"target 'c': CC is {asked!r}, which is no command ({e}); correct it") from None
        if not words or shutil.which(words[0]) is None:
            raise EngineUnavailable(f"target 'c': CC names {asked!r}, which is no program; unset it or correct it")
        return words
    found = next((p for p in ("cc", "gcc", "clang") if shutil.which(p)), None)
    if found is None:
        raise EngineUnavailable(f"target 'c' {SETUP}")
    return (found,)


def version() -> str:
    """First line of what the compiler says of itself."""
    command = compiler()
    told = _started([*command, "--version"]).stdout.decode(errors="replace")
    return (told.splitlines() or command)[0]


def driver(source: Source) -> str:
    """A function that runs samples one after the other and copies the arrays of each step out; not in the file."""
    seen = [*source.outputs.values(), *source.states.values()]
    results = [f"    static {s.kind} result{k}[{s.size}];" for k, s in enumerate(source.results.values())]
    call = ", ".join(["x", *(f"result{k}" for k in range(len(results)))])
    copies = [
        f"            memcpy(({s.kind} *)to[{k}] + (sample * steps + step) * {s.size}, {s.name}, sizeof {s.name});"
        for k, s in enumerate(seen)
    ]
    head = f"void {source.name}_run(int64_t samples, int64_t steps, const {source.given.kind} *x, void *const *to) {{"
    loops = ["    for (int64_t sample = 0; sample < samples; sample++) {", f"        {source.name}_reset();"]
    loops += [f"        for (int64_t step = 0; step < steps; step++, x += {source.given.size}) {{"]
    loops += [f"            {source.name}_step({call});", *copies, "        }", "    }"]
    mine = head.replace(" {", ";")
    return "\n".join([mine, head, *results, *loops, "}"]) + "\n"


class Library:
    """Sources compiled into one library, which lies in a folder of its own as long as this object lives."""

    def __init__(self, sources: Sequence[Source], flags: Sequence[str] = FLAGS) -> None:
        lines = [line for k, s in enumerate(sources) for line in (f'#include "model{k}.c"', driver(s))]
        texts = {**{f"model{k}.c": s.text for k, s in enumerate(sources)}, "driver.c": "\n".join(lines)}
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="eiexport-c-")
            folder = Path(self._folder.name)
            for name, text in texts.items():
                (folder / name).write_text(text)
        except OSError as e:
            raise EngineUnavailable(f"target 'c': no folder to compile in ({e}); set TMPDIR to one") from None
        made = folder / "model.so"
        run([*compiler(), *flags, "-shared", "-fPIC", str(folder / "driver.c"), "-o", str(made), "-lm"])
        try:
            self._library = ctypes.CDLL(str(made))
        except OSError as e:
            raise EngineUnavailable(f"target 'c': what was compiled does not load ({str(e).splitlines()[0]})") from None

    def run(self, source: Source, x: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays after each step, (sample, time, *values): by name of array in C; x likewise."""
        samples, steps = x.shape[:2]
        given = np.ascontiguousarray(x.reshape(samples, steps, -1), DTYPES[source.given.kind])
        stores: list[Store] = [*source.outputs.values(), *source.states.values()]
        held = [np.empty((samples, steps, s.size), DTYPES[s.kind]) for s in stores]
        to: Any = (ctypes.c_void_p * len(held))(*(a.ctypes.data for a in held))
        act = getattr(self._library, f"{source.name}_run")
        act.restype, act.argtypes = None, (ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
        act(samples, steps, given.ctypes.data, ctypes.cast(to, ctypes.c_void_p))
        return {s.name: a for s, a in zip(stores, held, strict=True)}


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A compiler's run; raises EngineUnavailable with its first error."""
    done = _started(command, **options)
    if done.returncode:
        told = done.stderr.decode(errors="replace")
        lines = [t for t in told.splitlines() if "error" in t] or told.splitlines() or ["no message"]
        raise EngineUnavailable(f"target 'c': {command[0]} failed ({done.returncode}): {lines[0]}")
    return done


def _started(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(list(command), capture_output=True, check=False, **options)
    except (OSError, ValueError) as e:
        raise EngineUnavailable(f"target 'c': {command[0]} cannot be started ({e}); correct CC or unset it") from None
