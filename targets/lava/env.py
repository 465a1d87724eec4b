"""The environment that Lava runs in, made on first use and kept.

lava-nc pins an old Python and an old NumPy and brings a package named `tests`, so it never shares the tools'
environment; no torch is in its own. `EITRAIN_LAVA_ENV` names a place other than the user's cache.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from targets.base import EngineUnavailable

# NumPy 2.4 dropped np.reshape(newshape=), which Lava's reshaping ports call.
LIBRARIES = ("numpy==2.3.5", "scipy==1.16.3", "networkx==3.5", "asteval==1.0.7", "h5py==3.15.1")
# Their metadata refuse this Python and this NumPy; see `targets.lava.compat` for what it takes to run them.
UNPINNED = ("lava-nc==0.10.0", "nir==1.0.8")
# Large, and needed for its network files alone: it stands beside, in a folder that only their worker imports from.
DEEP = "lava-dl==0.6.0"
PYTHONS = ((3, 11), (3, 13))  # first and last that the above was tried on

PLACE = "EITRAIN_LAVA_ENV"
MARKER = "eitrain-lava.txt"  # written last; holds what was installed
# Settings made for the tools' own environment, which would break or misplace this one.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PIP_CONSTRAINT", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")


class LavaUnavailable(EngineUnavailable):
    """Lava's environment does not exist and could not be made."""


def place() -> Path:
    """The folder of the environment, whether or not it exists."""
    if chosen := os.environ.get(PLACE):
        return Path(chosen).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "eitrain" / f"lava-0.10.0-py{sys.version_info[0]}.{sys.version_info[1]}"


def python() -> Path:
    """The Python of Lava's environment, which is made first if it is missing, stale or broken."""
    folder = place()
    return prepared(folder, specification(), _install)


def deep() -> Path:
    """The folder to import lava-dl from, which is installed there first if it is missing or stale."""
    executable, folder = python(), place() / "lava-dl"

    def install(build: Path) -> None:
        with _told("setting up lava-dl (one time, 70 MB) ..."):
            # its own requirements are for training
            _pip(executable, "--no-deps", "--ignore-requires-python", "--target", str(build), DEEP)

    prepared(folder, f"{specification()}{DEEP}\n", install, "lava/lib/dl/netx/hdf5.py")
    return folder


def specification() -> str:
    """What a complete environment holds, as its marker file records it."""
    return "\n".join([f"python {sys.version_info[0]}.{sys.version_info[1]}", *LIBRARIES, *UNPINNED]) + "\n"


def prepared(folder: Path, specification: str, install: Callable[[Path], None], product: str = "bin/python") -> Path:
    """`product` in `folder`; what is missing, `install(build)` makes beside it, to be moved in whole."""
    made = folder / product
    if _complete(made, folder, specification):
        return made
    build = folder.with_name(folder.name + ".new")
    try:
        with _locked(folder.with_name(folder.name + ".lock")):
            if _complete(made, folder, specification):  # another process made it while this one waited
                return made
            if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
                raise LavaUnavailable(
                    f"Lava's environment cannot be made in {folder}: it holds other files; "
                    f"set {PLACE} to a folder that is empty or does not exist"
                )
            shutil.rmtree(build, ignore_errors=True)  # of a process that was killed
            try:
                install(build)
                (build / MARKER).write_text(specification)
                shutil.rmtree(folder, ignore_errors=True)
                build.rename(folder)
            finally:
                shutil.rmtree(build, ignore_errors=True)
    except OSError as error:
        raise LavaUnavailable(
            f"Lava's environment cannot be made in {folder}: {error.strerror or error}; "
            f"free space there, or set {PLACE} to a folder that can be written"
        ) from error
    return made


def _complete(made: Path, folder: Path, specification: str) -> bool:
    """Whether the environment is whole; its Python is a link, which may lead nowhere after an upgrade."""
    try:
        return (folder / MARKER).read_text() == specification and made.exists()
    except OSError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file: one process at a time, and free again as soon as its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(build: Path) -> None:
    """Make the environment in `build` and install Lava there, with a line of progress on stderr."""
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        first, last = (".".join(map(str, version)) for version in PYTHONS)
        raise LavaUnavailable(
            f"Lava runs on Python {first} to {last}, not {sys.version.split()[0]}; "
            "install these tools under one of those, or choose another --target"
        )
    with _told("setting up the Lava engine (one time, about a minute) ..."):
        _call("venv", sys.executable, "-m", "venv", str(build))
        executable = build / "bin" / "python"
        _pip(executable, *LIBRARIES)
        _pip(executable, "--no-deps", "--ignore-requires-python", *UNPINNED)


@contextmanager
def _told(message: str) -> Iterator[None]:
    """Say on stderr what the block does."""
    from rich.console import Console  # here, since Lava's own environment imports this package too

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(message)
    with console.status(message):
        yield


def _pip(executable: Path, *arguments: str) -> None:
    pip = (str(executable), "-m", "pip", "--no-cache-dir", "--disable-pip-version-check")
    _call("pip", *pip, "install", "--quiet", "--no-input", "--only-binary=:all:", *arguments)


def _call(step: str, *command: str) -> None:
    """Run one step; a failure becomes the line of its output that says why."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        # pip's last ERROR line names the package; what comes after it is advice.
        errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
        why = (errors or lines or ["no output"])[-1]
        raise LavaUnavailable(
            f"the Lava engine cannot be set up: {step} failed: {why}; "
            f"check the network and the package index, then repeat, or set {PLACE} to one "
            "that these tools made elsewhere"
        )
