"""Damaged files through the command line: each must be refused in one line or give a right answer, soon and in bounds.

Valid files (graphs, input traces, network files of lava-dl, a float and an integer run folder) are damaged one by one:
bytes, HDF5 structure, JSON values, safetensors. Every attempt is a process of its own, forked from one that has all
modules loaded, with a limit on its memory and its time. `Outcome.failed` says what must never be: a traceback, a hang,
a crash, more than one line, an answer that is not the file's.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count as counter
from pathlib import Path
from typing import Any

import file_damage
import numpy as np
from file_sources import SOURCES, sources

SECONDS = 20.0  # for one attempt
MEMORY = 3 << 30  # bytes of address space
Progress = Callable[[str, int, int], None]


@dataclass
class Outcome:
    """What became of one damaged file. failed: what must not be, or nothing."""

    seed: int
    source: str
    damage: str
    result: str  # refused | ran | said that it differs | traceback | ...
    text: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.result not in ("refused", "ran", "said that it differs", "no damage")

    def __str__(self) -> str:
        return f"file {self.seed} ({self.source}, {self.damage}): {self.result}: {self.text}"


@dataclass
class Outcomes:
    all: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def problems(self) -> list[str]:
        found = [str(o) for o in self.all if o.failed]
        refused = sum(o.result == "refused" for o in self.all)
        return found + (["fewer than half of the damaged files were refused"] if 2 * refused < len(self.all) else [])

    def lines(self) -> Iterator[str]:
        told = Counter(o.result for o in self.all)
        slowest = max((o.seconds for o in self.all), default=0.0)
        yield f"damaged files: {len(self.all)}, slowest {slowest:.1f} s, {self.seconds:.0f} s in all"
        yield "  " + ", ".join(f"{n} {what}" for what, n in told.most_common())

    def record(self) -> dict[str, Any]:
        table: dict[str, Counter[str]] = {}
        for o in self.all:
            table.setdefault(o.source, Counter())[o.result] += 1
        about = {"files": len(self.all), "seconds": round(self.seconds, 1)}
        about["results"] = dict(Counter(o.result for o in self.all))
        about["by_source"] = {k: dict(c) for k, c in sorted(table.items())}
        about["by_damage"] = dict(Counter(o.damage.split(":")[0] for o in self.all).most_common())
        return about | {"failures": [str(o) for o in self.all if o.failed][:50]}


def campaign(number: int, seed: int, workers: int, progress: Progress = lambda *_: None) -> Outcomes:
    """Damaged files seed, seed + 1, ..."""
    found, start = Outcomes(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        valid = sources(Path(folder) / "valid")
        for outcome in attempts(list(range(seed, seed + number)), valid, Path(folder), workers):
            found.all.append(outcome)
            progress("damaged files", len(found.all), number)
    found.all.sort(key=lambda o: o.seed)
    found.seconds = time.monotonic() - start
    return found


def attempts(seeds: list[int], valid: dict[str, Path], folder: Path, workers: int) -> Iterator[Outcome]:
    """An outcome for each seed, in whatever order they end."""
    here = Path(__file__).resolve().parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["file_warm", "file_mutants"])
    waiting, running = list(reversed(seeds)), {}
    places = counter()
    while waiting or running:
        while waiting and len(running) < workers:
            seed, place = waiting.pop(), folder / f"case{next(places)}"
            process = context.Process(target=_attempt, args=(seed, valid, place), daemon=True)
            process.start()
            running[process] = (seed, place, time.monotonic())
        time.sleep(0.01)
        for process, (seed, place, began) in list(running.items()):
            seconds = time.monotonic() - began
            if process.is_alive() and seconds < SECONDS + 10:  # its own alarm comes first
                continue
            hung = process.is_alive()
            if hung:
                process.kill()
            process.join()
            del running[process]
            yield _outcome(seed, place, process.exitcode, hung, seconds)
            shutil.rmtree(place, ignore_errors=True)


def _outcome(seed: int, place: Path, code: int | None, hung: bool, seconds: float) -> Outcome:
    source, damage, result, text = SOURCES[seed % len(SOURCES)], "?", "", ""
    with contextlib.suppress(OSError, ValueError):
        damage = (place / "damage").read_text()
        told = json.loads((place / "result").read_text())
        result, text, seconds = told["result"], told["text"], told["seconds"]
    if hung or code == -14:
        result, text = "hang", f"more than {SECONDS:.0f} s"
    elif not result:
        result, text = "crash", f"the process ended with {code}"
    return Outcome(seed, source, damage, result, text, seconds)


# --- in the forked process


def _attempt(seed: int, valid: dict[str, Path], place: Path) -> None:
    place.mkdir(parents=True)
    source = SOURCES[seed % len(SOURCES)]
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        case = place / "case"
        shutil.copytree(valid[source], case)
        _, damage = file_damage.damage(np.random.default_rng([seed, 3]), source, case)
    (place / "damage").write_text(damage)
    import signal

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(int(SECONDS))
    start = time.monotonic()
    if seed % 10:  # the pictures of a report take longer than everything else
        _without_pictures()
    result, text = called(source, case)
    told = {"result": result, "text": text, "seconds": time.monotonic() - start}
    (place / "result").write_text(json.dumps(told))
    os._exit(0)  # nothing of what a damaged file left behind has to be taken down


def arguments(source: str, case: Path) -> list[str]:
    """What a user types for it."""
    out = ["--target", "reference", "--samples", "2", "--out", str(case / "out")]
    if source == "compare":
        return ["--compare", str(case / "a.h5"), str(case / "b.h5")]
    if source in ("checkpoint", "config", "plan", "integer checkpoint"):
        return [str(case), *out]
    data = next(n for n in ("x.h5", "x.npy") if (case / n).exists())
    model = next(n for n in ("net.net", "net.nir") if (case / n).exists())
    return [str(case / model), "--input", str(case / data), *out]


def _without_pictures() -> None:
    from matplotlib.figure import Figure

    def nothing(self: Figure, target: Any, **_: Any) -> None:
        target.write(b"") if hasattr(target, "write") else Path(target).write_bytes(b"")

    Figure.savefig = nothing  # type: ignore[method-assign, assignment]


def called(source: str, case: Path) -> tuple[str, str]:
    """(result, text) of the command line on a damaged case, run in this process."""
    from eiexport.cli import app
    from eiexport.console import run

    files = [open(case.parent / n, "w+b") for n in ("stdout", "stderr")]  # noqa: SIM115
    kept = [os.dup(n) for n in (1, 2)]
    for n, file in zip((1, 2), files, strict=True):
        os.dup2(file.fileno(), n)
    sys.argv, code, failure = ["eiexport", *arguments(source, case)], 0, ""
    sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
    try:
        if source == "net":
            _network_file(case)
        else:
            run(app, "eiexport")
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except click_exit() as e:
        code = e.exit_code
    except BaseException as e:
        last = traceback.extract_tb(e.__traceback__)[-8:]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(last))
        failure = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]} at {where}"
    sys.stdout.flush()
    sys.stderr.flush()
    lines = (case.parent / "stderr").read_text(errors="replace").splitlines()
    for n, old in zip((1, 2), kept, strict=True):
        os.dup2(old, n)
    if failure:
        return "traceback", failure
    if code == 2:
        if len(lines) != 1 or not lines[0].startswith("eiexport: ") or not lines[0].isprintable():
            return "unclear", " | ".join(lines)[:300]
        if (case / "out").exists() and any((case / "out").iterdir()):
            return "left something", f"{sorted(p.name for p in (case / 'out').iterdir())}: {lines[0][:200]}"
        return "refused", lines[0][:300]
    if code not in (0, 1):
        return "odd exit code", str(code)
    wrong = file_damage.wrong(source, case) if source != "compare" and (case / "out").exists() else ""
    if wrong:
        return "wrong answer", wrong
    return ("ran", "") if code == 0 else ("said that it differs", "")


def click_exit() -> type[Any]:
    import typer

    return typer.Exit


def _network_file(case: Path) -> None:
    """lava-dl's file through its reader and the reference."""
    from eiexport.alphabet import interval
    from eiexport.console import user_errors
    from eiexport.graph import check
    from eiexport.netfile import read_net
    from targets import base

    x = np.load(case / "x.npy")
    with user_errors("eiexport"):
        network = check(read_net(case / "net.net")[0], alphabet=interval(min(x.min(), 0), max(x.max(), 1), True))
        base.get("reference")().compile(network).run(x, probe=True)


if __name__ == "__main__":
    for o in campaign(int(sys.argv[1]), int(sys.argv[2]), 2, lambda *a: None).all:
        if o.failed or "-v" in sys.argv:
            print(o, f"{o.seconds:.1f}")
