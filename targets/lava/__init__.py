"""The real Lava runtime, in an environment and a process group of its own."""

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
from typing import Any, ClassVar, NamedTuple

import numpy as np

import eiexport
import targets
from eiexport.graph import Network
from eiexport.trace import Trace, chunk_size, compact
from targets.base import Claim, EngineUnavailable, Program, Target, TargetError, check_input
from targets.lava.plan import STOCK, Plan, plan

TIMEOUT = "EITRAIN_LAVA_TIMEOUT"  # seconds of silence after which the engine is given up
JOBS, RESULTS = "jobs.pickle", "result.json"
PACK = 45  # processes in one start: the cost of a step grows faster than their number

FLOAT, OWN = "Lava float", "own step"  # oracles


class Job(NamedTuple):
    """A network to run; x (sample, time, *neuron) is an array or an HDF5 dataset."""

    network: Network
    plan: Plan
    x: Any = None


class Lava(Target):
    """Lava 0.10.0 in floating point, on its stock processes wherever they mean exactly the node.

    A connection takes one engine step, so a node runs `latency` steps behind; samples follow each other without gaps,
    each from zero state. Recorded traces are shifted back.
    """

    name = "lava"
    dtype = "float64"
    evidence = "independent"
    setup = "set up on first use (about a minute, needs a package index); EITRAIN_LAVA_ENV names another place"
    claims: ClassVar[dict[str, Claim]] = {
        **dict.fromkeys(("Affine", "Linear", "Conv1d", "Conv2d", "Flatten"), Claim("exact", FLOAT)),
        # stock as long as all neurons share their parameters, fire above one threshold and reset to zero
        **dict.fromkeys(("IF", "LIF", "CubaLIF", "Threshold", "EIDiscreteLIF"), Claim("exact", f"{FLOAT} or {OWN}")),
        **dict.fromkeys(("SumPool2d", "AvgPool2d"), Claim("exact after lowering", FLOAT)),
        "Delay": Claim("exact after lowering", OWN),
        **dict.fromkeys(("Scale", "I", "LI", "CubaLI", "EIGatedLIF"), Claim("exact", OWN)),
        **dict.fromkeys(("Input", "Output"), Claim("exact")),
    }

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self._planned: Job | None = None  # the last network asked about, and its plan

    @property
    def version(self) -> str:
        return "lava-nc 0.10.0"

    def check(self, network: Network) -> None:
        self._plan(network)

    def compile(self, network: Network) -> Program:
        return LavaProgram(network, self._plan(network))

    def process(self, network: Network, name: str) -> str:
        """STOCK where Lava's own process or port computes this node, else CUSTOM."""
        return self._plan(network).process.get(name, STOCK)

    def evidence_for(self, network: Network) -> str:
        """ "independent" where Lava's own processes computed every node, "plumbing" where any ran our step."""
        process = self._plan(network).process
        stock = all(kind == STOCK for name, kind in process.items() if name != network.input)
        return "independent" if stock else "plumbing"

    def run_many(self, pairs: Sequence[tuple[Network, np.ndarray]]) -> list[Trace]:
        """Run small networks together, in as few starts of Lava as the number of processes allows."""
        packs: list[list[Job]] = []
        room = 0
        for network, x in pairs:
            job = Job(network, self._plan(network), x)
            size = job.plan.processes(network)
            if size > room:
                packs.append([])
                room = PACK
            packs[-1].append(job)
            room -= size
        traces = []
        for pack in packs:
            with _finished(pack) as folder:
                traces += [_trace(folder, i, job, slice(None)) for i, job in enumerate(pack)]
        return traces

    def _plan(self, network: Network) -> Plan:
        if self._planned is None or self._planned.network is not network:
            super().check(network)
            self._planned = Job(network, plan(network))
        return self._planned.plan


class LavaProgram(Program):
    """A planned network; every call starts Lava once, for all samples."""

    def __init__(self, network: Network, planned: Plan) -> None:
        self.network, self._plan = network, planned
        self.latency = {n: planned.latency[n] for n in network.recorded}

    def run(self, x: np.ndarray) -> Trace:
        job = Job(self.network, self._plan, x)
        with _finished([job]) as folder:
            return _trace(folder, 0, job, slice(None))

    def stream(self, x: np.ndarray, progress: Callable[[int], None] | None = None) -> Iterator[Trace]:
        """One start for all samples, then chunk by chunk from disk; `progress` gets samples while the engine runs."""
        told, last = 0, max(self._plan.latency.values())

        def advance(done: int) -> None:
            nonlocal told
            samples = max(0, done - last) // x.shape[1]
            if progress and samples > told:
                progress(samples - told)
                told = samples

        job = Job(self.network, self._plan, x)
        with _finished([job], advance) as folder:
            size = chunk_size(self.network, x.shape[1])
            for start in range(0, len(x), size):
                yield _trace(folder, 0, job, slice(start, start + size))


@contextmanager
def _finished(jobs: Sequence[Job], advance: Callable[[int], None] | None = None) -> Iterator[Path]:
    """A folder in which Lava has run the jobs, gone when the block ends; raises EngineUnavailable in one line.

    advance: called with the engine steps done so far.
    """
    from targets.lava import env
    from targets.lava.supervise import run_worker

    def follow(line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "progress" and advance:
            advance(int(rest.partition("/")[0]))

    timeout = _timeout(jobs)
    with tempfile.TemporaryDirectory(prefix="eitrain-lava-") as name:
        folder = Path(name)
        _write(folder, jobs)
        packages = folder / "packages"
        packages.mkdir()
        # these two alone: what else is installed beside them must not shadow Lava's own libraries
        for package in (eiexport, targets):
            (packages / package.__name__).symlink_to(Path(package.__path__[0]).resolve())
        argv = ["-P", "-m", "targets.lava.worker", str(folder)]
        run_worker(env.python(), argv, timeout=timeout, cwd=folder, pythonpath=[packages], on_progress=follow)
        _agree(folder, jobs)
        yield folder


def _timeout(jobs: Sequence[Job]) -> float:
    given = os.environ.get(TIMEOUT)
    try:
        # silence is at most the start (some .03 s a process) or a piece of the run (about a second, or one step)
        seconds = float(given) if given else 300.0 + sum(p.processes(n) for n, p, _ in jobs)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise TargetError(f"{TIMEOUT} is {given!r}; give a number of seconds greater than 0")
    return seconds


def _write(folder: Path, jobs: Sequence[Job]) -> None:
    """Write the jobs, inputs chunk by chunk. Files are numbered, since nodes may bear any name."""
    listed = []
    for i, (network, _, x) in enumerate(jobs):
        check_input(network, x[:1])
        samples, steps = x.shape[:2]
        _make_room(folder, network, samples * steps)
        alphabet, size = network.alphabets[network.input], chunk_size(network, steps)
        values = {"binary": (0, 1), "ternary": (-1, 0, 1)}.get(alphabet.kind)
        shape = (samples * steps, *x.shape[2:])
        rows = np.lib.format.open_memmap(folder / f"{i}.npy", "w+", np.int8 if values else np.float64, shape)
        for start in range(0, samples, size):
            part = np.asarray(x[start : start + size])
            check_input(network, part)
            if values and not np.isin(part, values).all():
                raise TargetError(f"the input was declared {alphabet}, but holds other values; declare what it holds")
            rows[start * steps : (start + len(part)) * steps] = part.reshape(-1, *shape[1:])
        outputs = {name: f"{i}.{j}.npy" for j, name in enumerate(network.recorded)}
        job = {"network": network, "samples": samples, "steps": steps, "input": f"{i}.npy", "outputs": outputs}
        listed.append(job)
    # both ends are this very package, so a network crosses as it is, also where NIR could not write it
    (folder / JOBS).write_bytes(pickle.dumps(listed))


def _make_room(folder: Path, network: Network, steps: int) -> None:
    """Refuse what the disk cannot hold: a mapped file that finds no space ends a process without a word."""
    values = sum(math.prod(network.shapes[n]) for n in (network.input, *network.recorded))
    needed, free = 8 * steps * values, shutil.disk_usage(folder).free
    if needed > free:
        raise TargetError(
            f"target 'lava' may need {needed >> 20} MiB in {folder.parent}, which has {free >> 20} MiB free; "
            "run fewer samples, or set TMPDIR to a larger disk"
        )


def _agree(folder: Path, jobs: Sequence[Job]) -> None:
    """What the worker built must be what was planned, since that is what reports tell."""
    results = json.loads((folder / RESULTS).read_text())
    if results != [{"process": job.plan.process, "latency": job.plan.latency} for job in jobs]:
        raise EngineUnavailable("the Lava worker built another network than was planned; please report the graph")


def _trace(folder: Path, index: int, job: Job, samples: slice) -> Trace:
    """Some samples of one network's recordings."""
    network, z = job.network, {}
    for j, name in enumerate(network.recorded):
        rows = np.load(folder / f"{index}.{j}.npy", mmap_mode="r")
        part = rows.reshape(*job.x.shape[:2], *rows.shape[1:])[samples]
        z[name] = compact(np.array(part), network.alphabets[name])
    return Trace(z, network.clock.dt, {n: job.plan.latency[n] for n in network.recorded})
