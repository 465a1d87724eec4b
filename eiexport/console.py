"""What both command lines share: errors in one line, tables that are not squeezed, progress with ETA."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from eiexport.errors import ExportError


def wide_console() -> Console:
    """Prints to stdout; into a file or a pipe, tables are not squeezed into 80 columns."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=240)


@contextmanager
def user_errors(tool: str) -> Iterator[None]:
    """A user's mistake is one line on stderr and exit code 2; an unexpected failure keeps its traceback."""
    try:
        yield
    except ExportError as e:
        print(f"{tool}: {e}", file=sys.stderr)
    except OSError as e:
        if e.errno is None:
            raise
        reason = str(e.strerror).splitlines()[0]
        where = e.filename or "output"
        print(f"{tool}: {where}: {reason}; check the path, its permissions and free space", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{tool}: interrupted", file=sys.stderr)
        raise typer.Exit(130) from None
    else:
        return
    raise typer.Exit(2)


def run(app: typer.Typer, tool: str) -> None:
    """The process's main: a mistake in the options themselves is one line too."""
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]  # typer's copy of click does not export it
    try:
        code = app(standalone_mode=False)
    except usage_error as e:
        if told := e.format_message():  # type: ignore[attr-defined]
            print(f"{tool}: {told.rstrip('.')}; see {tool} --help", file=sys.stderr)
        code = 2
    except typer.Abort:
        code = 130
    sys.exit(code or 0)


class Bar:
    """Call it with (what, done, total), for several things at once; `line` prints what stays.

    every: seconds between lines where there is no terminal.
    """

    def __init__(self, progress: Progress | None, console: Console, every: float = 10.0) -> None:
        self._progress, self._console, self._every = progress, console, every
        self._began: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        began = self._began.setdefault(what, now)
        if self._progress:
            if what not in self._tasks:
                self._tasks[what] = self._progress.add_task(what, total=total)
            self._progress.update(self._tasks[what], completed=done, total=total)
            if done >= total:
                self._progress.remove_task(self._tasks.pop(what))
        elif now - self._last >= self._every and done < total:
            self._last = now
            left = (now - began) / max(1, done) * (total - done)
            self._console.print(f"{what}: {done}/{total}, about {left:.0f} s left")

    def line(self, text: str) -> None:
        (self._progress.console if self._progress else self._console).print(text, markup=False)


@contextmanager
def bar(quiet: bool = False) -> Iterator[Bar]:
    """A progress bar on stderr where that is a terminal; lines go to stdout. quiet: neither."""
    out = Console(highlight=False, soft_wrap=True, quiet=quiet)
    if quiet or not sys.stderr.isatty():
        yield Bar(None, out)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, out)
