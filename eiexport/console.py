"""What both command lines share: errors in one line, tables that are not squeezed, progress with ETA."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eiexport.errors import ExportError


def wide_console() -> Console:
    """Prints to stdout; into a file or a pipe, tables are not squeezed into 80 columns."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=140)


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
    """Call it with (what, done, total); `line` prints something that stays. `every`: seconds between plain lines."""

    def __init__(self, progress: Progress | None, console: Console, every: float = 10.0) -> None:
        self._progress, self._console, self._every = progress, console, every
        self._what, self._began, self._last = "", 0.0, 0.0
        self._task = progress.add_task("", total=None, visible=False) if progress else None

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._last = what, now, now
            if self._progress and self._task is not None:
                self._progress.reset(self._task, description=what, total=total, visible=True)
        if self._progress and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)
        elif now - self._last >= self._every and done < total:
            self._last = now
            left = (now - self._began) / max(1, done) * (total - done)
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
