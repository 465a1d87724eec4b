"""Runs jobs on Lava: `python -m targets.lava.worker FOLDER`, inside Lava's environment and under its guard.

FOLDER holds the jobs and their inputs (see `targets.lava.jobs`); the worker writes the outputs, and what it built.
Several networks share one start, as parts that are not connected: all in floating point, or all in fixed point.
On stdout: `progress done/total`, in engine steps.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from targets.lava import compat
from targets.lava.guard import guard
from targets.lava.jobs import JOBS, RESULTS
from targets.lava.plan import plan

PIECE = 1.0  # seconds between two progress lines, about


def main() -> None:
    folder = Path(sys.argv[1])
    jobs = pickle.loads((folder / JOBS).read_bytes())
    compat.load()  # before anything imports Lava
    compat.widen()
    from targets.lava.build import Build
    from targets.lava.processes.anchor import Anchor

    anchor, results, total = Anchor(), [], 0
    constants: list[tuple[Path, np.ndarray]] = []
    for job in jobs:
        network = job["network"]
        planned = plan(network)
        build = Build(network, planned, job["steps"], folder / job["input"])
        build.player.link.connect(anchor.links)
        for name, file in job["outputs"].items():
            build.record(name, folder / file, job["samples"])
            constants.append((folder / file, planned.leaving[name]))
        for name, files in job["registers"].items():
            build.watch(name, {kind: folder / file for kind, file in files.items()}, job["samples"])
        results.append({"process": build.processes, "latency": planned.latency})
        total = max(total, job["samples"] * job["steps"] + max(planned.latency.values()))
    integer, probe = jobs[0]["network"].integer, any(job["registers"] for job in jobs)
    run(anchor, total, integer, probe)
    for path, constant in constants:
        if constant.any():
            rows = np.load(path, mmap_mode="r+")
            rows += constant.astype(rows.dtype)
            rows.flush()
    (folder / RESULTS).write_text(json.dumps(results))


def run(process: Any, total: int, integer: bool, probe: bool) -> None:
    """Run whatever is connected to a process for `total` engine steps, and tell how far it is."""
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    from targets.lava.models import models

    tag = "fixed_pt" if integer else "floating_pt"
    config = Loihi2SimCfg(select_tag=tag, exception_proc_model_map=models(integer, probe))
    done, piece = 0, 1
    try:
        while done < total:
            start, steps = time.monotonic(), min(piece, total - done)
            # one slot a channel: more would cost shared memory and bring nothing
            process.run(RunSteps(num_steps=steps), config, {"pypy_channel_size": 1})
            done += steps
            print(f"progress {done}/{total}", flush=True)
            # the first piece holds the start, and says little about the next
            piece = 2 * piece if time.monotonic() - start < PIECE or done == steps else max(1, piece // 2)
    finally:
        process.stop()


if __name__ == "__main__":
    guard(main)
