"""Where recorded cases and data sets lie; tests that need them are skipped where the variable is not set."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"set {variable} to the folder of {what}")
    if not Path(value).is_dir():
        pytest.skip(f"{variable}={value} is no folder")
    return Path(value)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With EITRAIN_NO_SKIP (as in CI) a skipped test is a failure: nothing may pass by not having run."""
    skipped = terminalreporter.stats.get("skipped", [])
    # a test may say in so many words that it needs a GPU, a user whom permissions bind, or a peer of a benchmark
    allowed = ("CUDA", "root", "spikingjelly")
    missing = [r for r in skipped if not any(word in str(r.longrepr) for word in allowed)]
    if os.environ.get("EITRAIN_NO_SKIP") and missing:
        terminalreporter.write_line(f"EITRAIN_NO_SKIP is set, and {len(missing)} tests were skipped", red=True)
        terminalreporter._session.exitstatus = 1  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def cases_dir() -> Path:
    """Recorded outputs of other engines."""
    return _folder("EITRAIN_CASES", "recorded engine outputs")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Data sets."""
    return _folder("EITRAIN_DATA", "data sets")


@pytest.fixture
def folder(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder; data comes from the module's own fixture `tiny`.

    Made-up files cannot have the published checksums, so those alone are not looked at.
    """
    from eitrain import data

    monkeypatch.setattr(data, "load", functools.partial(data.load, verify=False))
    monkeypatch.setenv("EITRAIN_DATA", str(tiny))
    yield tmp_path
    shutil.rmtree(tmp_path)  # a CIFAR-10 run holds 300 MB
