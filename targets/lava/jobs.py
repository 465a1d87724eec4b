"""Jobs for a worker that runs Lava, and what it has recorded of them."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import eiexport
import targets
from eiexport.graph import Network
from eiexport.trace import Trace, chunk_size, compact
from targets.base import EngineUnavailable, TargetError, check_input
from targets.lava import env, fixed
from targets.lava.plan import Plan, register
from targets.lava.supervise import run_worker

TIMEOUT = "EITRAIN_LAVA_TIMEOUT"  # seconds of silence after which the engine is given up
JOBS, RESULTS = "jobs.pickle", "result.json"
PACK = 45  # processes in one start: the cost of a step grows faster than their number


class Engine(NamedTuple):
    """A worker: its module, folders that it imports from beside Lava's environment, and a file it needs of each job."""

    worker: str
    libraries: Callable[[], list[Path]] = list
    prepare: Callable[[Network, Path], None] | None = None


class Job(NamedTuple):
    """A network to run; x (sample, time, *neuron) is an array or an HDF5 dataset."""

    network: Network
    plan: Plan
    x: Any = None
    probe: bool = False

    @property
    def registers(self) -> dict[str, tuple[str, ...]]:
        """What is recorded of each neuron beside its output."""
        if not self.probe:
            return {}
        found = {n: getattr(self.network.steps[n], "observed", ()) for n in self.network.recorded}
        return {n: kinds for n, kinds in found.items() if kinds}


def run_many(engine: Engine, jobs: Sequence[Job]) -> list[Trace]:
    """Run small jobs together, in as few starts of Lava as the number of processes allows."""
    traces: dict[int, Trace] = {}
    for pack in (p for integer in (False, True) for p in _packs(jobs, integer)):
        with finished(engine, [jobs[i] for i in pack]) as folder:
            traces |= {i: trace(folder, k, jobs[i], slice(None)) for k, i in enumerate(pack)}
    return [traces[i] for i in range(len(jobs))]


def _packs(jobs: Sequence[Job], integer: bool) -> list[list[int]]:
    """Numbers of the jobs of one arithmetic, in groups that share a start."""
    packs: list[list[int]] = []
    room = 0
    for i, (network, planned, *_) in enumerate(jobs):
        if network.integer != integer:
            continue
        size = planned.processes(network)
        if size > room:
            packs.append([])
            room = PACK
        packs[-1].append(i)
        room -= size
    return packs


@contextmanager
def finished(engine: Engine, jobs: Sequence[Job], advance: Callable[[int], None] | None = None) -> Iterator[Path]:
    """A folder in which Lava has run the jobs, gone when the block ends; raises EngineUnavailable in one line.

    advance: called with the engine steps done so far.
    """

    def follow(line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "progress" and advance:
            advance(int(rest.partition("/")[0]))

    timeout = _timeout(jobs)
    with tempfile.TemporaryDirectory(prefix="eitrain-lava-") as name:
        folder = Path(name)
        write(folder, jobs)
        for i, job in enumerate(jobs):
            if engine.prepare:
                engine.prepare(job.network, folder / f"{i}.net")
        packages = folder / "packages"
        packages.mkdir()
        # these two alone: what else is installed beside them must not shadow Lava's own libraries
        for package in (eiexport, targets):
            (packages / package.__name__).symlink_to(Path(package.__path__[0]).resolve())
        places = [packages, *engine.libraries()]
        argv = ["-P", "-m", engine.worker, str(folder)]
        run_worker(env.python(), argv, timeout=timeout, cwd=folder, pythonpath=places, on_progress=follow)
        _agree(folder, jobs)
        yield folder


def _timeout(jobs: Sequence[Job]) -> float:
    given = os.environ.get(TIMEOUT)
    try:
        # silence is at most the start (some .03 s a process) or a piece of the run (about a second, or one step)
        seconds = float(given) if given else 300.0 + sum(p.processes(n) for n, p, *_ in jobs)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise TargetError(f"{TIMEOUT} is {given!r}; give a number of seconds greater than 0")
    return seconds


def write(folder: Path, jobs: Sequence[Job]) -> None:
    """Write the jobs, inputs chunk by chunk. Files are numbered, since nodes may bear any name."""
    listed = []
    for i, job in enumerate(jobs):
        network, x = job.network, job.x
        check_input(network, x[:1])
        samples, steps = x.shape[:2]
        _make_room(folder, job, samples * steps)
        size, shape = chunk_size(network, steps), (samples * steps, *x.shape[2:])
        spikes = network.alphabets[network.input].kind in ("binary", "ternary")
        held = np.int8 if spikes else np.int32 if network.integer else np.float64
        rows = np.lib.format.open_memmap(folder / f"{i}.npy", "w+", held, shape)
        for start in range(0, samples, size):
            part = np.asarray(x[start : start + size])
            check_input(network, part)
            if network.integer and np.abs(part).max() >= fixed.WORD:
                raise TargetError(
                    f"the input holds {np.abs(part).max():g}, and Lava's signals have 32 bits; scale it down"
                )
            rows[start * steps : (start + len(part)) * steps] = part.reshape(-1, *shape[1:])
        numbers = {name: f"{i}.{j}" for j, name in enumerate(network.recorded)}
        files = {"input": f"{i}.npy", "outputs": {name: f"{number}.npy" for name, number in numbers.items()}}
        kinds = {n: {k: f"{numbers[n]}.{k}.npy" for k in ks} for n, ks in job.registers.items()}
        listed.append({"network": network, "samples": samples, "steps": steps, "registers": kinds, **files})
    # both ends are this very package, so a network crosses as it is, also where NIR could not write it
    (folder / JOBS).write_bytes(pickle.dumps(listed))


def _make_room(folder: Path, job: Job, steps: int) -> None:
    """Refuse what the disk cannot hold: a mapped file that finds no space ends a process without a word."""
    network = job.network
    names = (network.input, *network.recorded, *(n for n, kinds in job.registers.items() for _ in kinds))
    values = sum(math.prod(network.shapes[n]) for n in names)
    needed, free = 8 * steps * values, shutil.disk_usage(folder).free
    if needed > free:
        raise TargetError(
            f"Lava may need {needed >> 20} MiB in {folder.parent}, which has {free >> 20} MiB free; "
            "run fewer samples, or set TMPDIR to a larger disk"
        )


def _agree(folder: Path, jobs: Sequence[Job]) -> None:
    """What the worker built must be what was planned, since that is what reports tell."""
    results = json.loads((folder / RESULTS).read_text())
    for built, job in zip(results, jobs, strict=True):
        if not (
            built["process"].items() <= job.plan.process.items()
            and built["latency"].items() <= job.plan.latency.items()
        ):
            raise EngineUnavailable("the Lava worker built another network than was planned; please report the graph")


def trace(folder: Path, index: int, job: Job, samples: slice) -> Trace:
    """Some samples of one network's recordings."""
    network = job.network

    def read(file: str) -> np.ndarray:
        rows = np.load(folder / file, mmap_mode="r")
        return np.array(rows.reshape(*job.x.shape[:2], *rows.shape[1:])[samples])

    z: dict[str, np.ndarray] = {}
    states: dict[str, dict[str, np.ndarray]] = {}
    for j, name in enumerate(network.recorded):
        z[name] = compact(read(f"{index}.{j}.npy"), network.alphabets[name])
        for kind in job.registers.get(name, ()):
            held = read(f"{index}.{j}.{kind}.npy")
            states.setdefault(kind, {})[name] = register(network, job.plan, name, kind, held)
    return Trace(z, network.clock.dt, {n: job.plan.latency[n] for n in network.recorded}, states)
