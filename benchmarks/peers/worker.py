"""Runs NIR files in another tool; a script for that tool's own environment, which need not have this project.

    python worker.py TOOL FOLDER

reads FOLDER/jobs.json, a list of {"name", "dt"} (seconds), FOLDER/NAME.nir and FOLDER/NAME.x.npy (sample, time,
*neuron). For each of REPEATS runs it writes FOLDER/NAME.RUN.z.npy, what the tool gives back, or FOLDER/NAME.RUN.json:
{"stage": "read" | "import" | "run", "error", "message"}; beside them versions.json. Each run has a fork of its own with
a time limit, so what one leaves behind, or never ends, does not meet the next, and a memory in another order, since
some results depend on where objects lie. An adapter below does what the tool's manual says and no more: its own
`from_nir`, its own loop over time, float32.
"""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch

SECONDS = 60.0  # for one run
REPEATS = 4
Forward = Callable[[Any], Any]  # (sample, time, *neuron) in torch -> the same


def step_by_step(net: Callable[[Any, Any], tuple[Any, Any]]) -> Forward:
    """A module that takes one step and its own state, from no state at all."""

    def forward(x: Any) -> Any:
        rows, state = [], None
        for t in range(x.shape[1]):
            y, state = net(x[:, t], state)
            rows.append(torch.as_tensor(y).detach().clone())
        return torch.stack(rows, 1)

    return forward


def snntorch(graph: Any, x: Any, dt: float) -> Forward:
    """Its importer computes with dt = 1e-4 and has no way to say another."""
    from snntorch.import_nir import import_from_nir

    return step_by_step(import_from_nir(graph))


def norse(graph: Any, x: Any, dt: float) -> Forward:
    import norse.torch

    return step_by_step(norse.torch.from_nir(graph, dt=dt))


def spikingjelly(graph: Any, x: Any, dt: float) -> Forward:
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return step_by_step(import_from_nir(graph, dt=dt))


def sinabs(graph: Any, x: Any, dt: float) -> Forward:
    """Layers take (sample x time) as one axis and keep their state; with a cycle they are called step by step."""
    from sinabs.nir import from_nir

    net = from_nir(graph, batch_size=len(x))
    if cyclic(graph.edges):
        return step_by_step(net)
    return lambda x: net(x.reshape(-1, *x.shape[2:]))[0].unflatten(0, x.shape[:2])


def rockpool(graph: Any, x: Any, dt: float) -> Forward:
    """Modules take whole sequences and guess dt from the parameters."""
    from rockpool.nn.modules.torch.nir import from_nir

    net = from_nir(graph)
    return lambda x: net(x)[0]


ADAPTERS = {f.__name__: f for f in (snntorch, norse, spikingjelly, sinabs, rockpool)}


def cyclic(edges: list[tuple[str, str]]) -> bool:
    left = set(edges)
    while True:
        ends = {a for a, _ in left}
        if (kept := {(a, b) for a, b in left if b in ends}) == left:
            return bool(left)
        left = kept


def elsewhere(seed: int) -> list[bytearray]:
    """Memory with holes: what is made next lies in another order."""
    rng = random.Random(seed)
    made = [bytearray(rng.randrange(1, 500)) for _ in range(20_000)]
    rng.shuffle(made)
    return made[rng.randrange(5_000, 15_000) :]


def run(tool: str, folder: Path, name: str, dt: float, number: int) -> None:
    """One run of a job, in its own process."""
    held = elsewhere(number)
    stage, out = "read", f"{name}.{number}"
    try:
        try:
            graph = nir.read(folder / f"{name}.nir")
        except ValueError:  # its shape inference misjudges some sound graphs, which readers then pass by
            if "type_check" not in nir.read.__code__.co_varnames:
                raise
            graph = nir.read(folder / f"{name}.nir", type_check=False)
        x = torch.from_numpy(np.load(folder / f"{name}.x.npy").astype(np.float32))
        stage = "import"
        forward = ADAPTERS[tool](graph, x, dt)
        stage = "run"
        with torch.no_grad():
            z = np.asarray(torch.as_tensor(forward(x)).detach())
        np.save(folder / f"{out}.z.npy", z)
        assert held
    except BaseException as e:
        traceback.print_exc()
        told = {"stage": stage, "error": type(e).__name__, "message": " ".join(str(e).split())}
        (folder / f"{out}.json").write_text(json.dumps(told))


def limited(tool: str, folder: Path, name: str, dt: float, number: int) -> None:
    if not (child := os.fork()):
        run(tool, folder, name, dt, number)
        sys.stdout.flush()
        os._exit(0)
    end = time.monotonic() + SECONDS
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            told = {"stage": "run", "error": "TimeoutError", "message": f"no answer in {SECONDS:g} s"}
            (folder / f"{name}.{number}.json").write_text(json.dumps(told))
            return
        time.sleep(0.005)


def main(tool: str, folder: Path) -> None:
    torch.set_num_threads(1)
    have = {"python": platform.python_version()}
    have |= {package: version(package) for package in (tool, "nir", "nirtorch", "torch")}
    (folder / "versions.json").write_text(json.dumps(have))
    graph = nir.NIRGraph.from_list(nir.Affine(np.eye(2), np.zeros(2)))
    try:  # so that every fork finds the tool imported
        ADAPTERS[tool](graph, torch.zeros(1, 1, 2), 1.0)
    except Exception:
        traceback.print_exc()
    for job in json.loads((folder / "jobs.json").read_text()):
        for number in range(REPEATS):
            limited(tool, folder, job["name"], job["dt"], number)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
