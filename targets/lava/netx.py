"""Runs lava-dl's network files in lava-dl's own netx: `python -m targets.lava.netx FOLDER`; see `targets.lava.worker`.

FOLDER holds a file `<number>.net` beside the input of each job.
"""

from __future__ import annotations

import importlib
import json
import pickle
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from targets.lava import compat
from targets.lava.guard import guard
from targets.lava.jobs import JOBS, RESULTS
from targets.lava.plan import STOCK
from targets.lava.worker import run
from targets.lavadl import Link, links

# What netx imports of the training library, and of torch, which is not here; the networks at hand use none of it.
UNUSED = ["lava.lib.dl.slayer", "lava.lib.dl.slayer.neuron", "lava.lib.dl.slayer.neuron.rf"]
UNUSED += ["lava.lib.dl.netx.sequential_modules"]


def main() -> None:
    folder = Path(sys.argv[1])
    jobs = pickle.loads((folder / JOBS).read_bytes())
    compat.load()
    compat.widen()
    hdf5 = load()
    from targets.lava.processes.anchor import Anchor

    anchor, results, total = Anchor(), [], 0
    for i, job in enumerate(jobs):
        found = links(job["network"])
        built = hdf5.Network(
            str(folder / f"{i}.net"),
            input_message_bits=job["network"].steps[found[0].connection].message_bits,
            reset_interval=job["steps"],
            reset_offset=1,  # layer n gets what a sample's first step has sent n + 1 steps later
        )
        if len(built) != len(found):
            raise ValueError(f"netx has made {len(built)} layers of {len(found)}")
        results.append(_connect(folder, job, built, found, anchor))
        total = max(total, job["samples"] * job["steps"] + len(found))
    run(anchor, total, True, any(job["registers"] for job in jobs))
    (folder / RESULTS).write_text(json.dumps(results))


def load() -> Any:
    """The module `lava.lib.dl.netx.hdf5`, unmodified, without torch."""
    package = importlib.import_module("lava.lib.dl").__path__[0]
    for name in UNUSED:
        module: Any = ModuleType(name)
        # Lava's compiler asks where a process's neighbours lie
        module.__path__, module.__file__ = [], str(Path(package, "netx", "hdf5.py"))
        module.neuron_params = None
        sys.modules[name] = module
    # that compiler also executes them, and says that one cannot be
    warnings.filterwarnings("ignore", message=".*sequential_modules")
    return importlib.import_module("lava.lib.dl.netx.hdf5")


def _connect(folder: Path, job: dict[str, Any], built: Any, found: list[Link], anchor: Any) -> dict[str, Any]:
    """Input and recordings of one network; netx's maps are (W, H, C). Returns what stands there."""
    from targets.lava.processes.player import Player
    from targets.lava.processes.recorder import Recorder
    from targets.lava.watch import WATCH, Watched

    network, rows = job["network"], job["samples"] * job["steps"]
    player = Player(folder / job["input"])
    player.link.connect(anchor.links)
    source = player.out.transpose((2, 1, 0)) if len(built.inp.shape) == 3 else player.out.flatten()
    source.connect(built.inp)
    for latency, (link, block) in enumerate(zip(found, built.layers, strict=True), 1):
        shape = network.shapes[link.neuron]
        recorder = Recorder(folder / job["outputs"][link.neuron], shape, rows, latency, "int8")
        out = block.neuron.s_out
        (out.transpose((2, 1, 0)) if len(shape) == 3 else out).connect(recorder.inp)
        files = {kind: folder / file for kind, file in job["registers"].get(link.neuron, {}).items()}
        for path in files.values():
            np.lib.format.open_memmap(path, "w+", np.dtype("int32"), (rows, *shape))
        block.neuron.proc_params[WATCH] = Watched({k: str(path) for k, path in files.items()}, latency, True)
    stock = all(type(block.neuron).__module__.startswith("lava.") for block in built.layers)
    names = [link.neuron for link in found]
    return {"process": dict.fromkeys(names, STOCK if stock else ""), "latency": {n: i for i, n in enumerate(names, 1)}}


if __name__ == "__main__":
    guard(main)
