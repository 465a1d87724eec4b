"""Valid files to damage: graphs of every kind, input, traces, lava-dl's networks, a float and an integer run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import nir
import numpy as np
from circuit_cases import FLOATS
from int_networks import chain, conv, dense, draw, neuron, random_network

from eiexport import graph as graphs
from eiexport.alphabet import BINARY
from eiexport.graph import Network, check
from eiexport.trace import Trace, TraceWriter

GRAPHS = ("graph", "gated", "circuit", "loop", "integers", "convolutions")
SOURCES = (
    *GRAPHS,
    "trace",
    "input trace",
    "npy",
    "compare",
    "net",
    "checkpoint",
    "config",
    "plan",
    "integer checkpoint",
)
SOURCES += GRAPHS[:4]  # twice as many of them


def writable(network: Network) -> nir.NIRGraph:
    """The graph with the shapes that a file has to hold."""
    made: dict[str, Any] = {}
    for name, node in network.graph.nodes.items():
        if isinstance(node, nir.Output):
            node = nir.Output(np.array(network.shapes[name]))
        elif isinstance(node, (nir.Conv1d, nir.Conv2d)):
            size = network.input_shape(name)[1:]
            fields = {k: getattr(node, k) for k in ("weight", "stride", "padding", "dilation", "groups", "bias")}
            node = type(node)(input_shape=size if len(size) > 1 else size[0], **fields)
        made[name] = node
    return nir.NIRGraph(made, network.graph.edges, metadata=network.graph.metadata, type_check=False)


def _graph(folder: Path, network: Network, x: np.ndarray) -> None:
    folder.mkdir(parents=True)
    graphs.write(writable(network), folder / "net.nir")
    np.save(folder / "x.npy", x)


def sources(folder: Path) -> dict[str, Path]:
    """name -> a folder of valid files; some take the training of a tiny network."""
    listed = {c.name: c for c in cases.CASES}
    for name, case in (
        ("graph", "branches"),
        ("gated", "EIGatedLIF-dense-feedback-balance-hard"),
        ("loop", "loop-each"),
    ):
        _graph(folder / name, listed[case].network(), listed[case].x[:2])
    _graph(folder / "convolutions", listed["maxpool-block"].network(), listed["maxpool-block"].x[:2])
    circuit = next(c for c in FLOATS if c.name == "exact-constant-dense-dyadic")
    _graph(folder / "circuit", circuit.network(), circuit.x[:2])
    found, x, alphabet = random_network(2)
    _graph(folder / "integers", check(found, alphabet=alphabet), x[:2])
    trace(folder / "trace", listed["branches"])
    shutil.copytree(folder / "trace", folder / "input trace")
    shutil.copytree(folder / "graph", folder / "npy")
    (folder / "compare").mkdir()
    shutil.copy(folder / "trace" / "x.h5", folder / "compare" / "a.h5")
    shutil.copy(folder / "trace" / "x.h5", folder / "compare" / "b.h5")
    net(folder / "net")
    runs(folder)
    return {name: folder / name for name in SOURCES}


def trace(folder: Path, case: cases.Case) -> None:
    _graph(folder, case.network(), case.x)
    with TraceWriter(folder / "x.h5", dt=1.0, dtype="float64") as writer:
        writer.append(Trace({"in": case.x.astype(np.float64)}))
    (folder / "x.npy").unlink()


def net(folder: Path) -> None:
    """A file of lava-dl's layers: convolution, flatten, dense."""
    from targets import lavadl

    kernel = conv(2 * draw(-60, 60, 3, 2, 2, 2))
    cells = neuron((3, 4, 3), 200, du=1000, dv=500)
    flat = nir.Flatten({"input": np.array([3, 4, 3])}, 0, -1)
    graph = chain((2, 5, 4), kernel, cells, flat, dense(2 * draw(-60, 60, 4, 36)), neuron((4,), 300, dv=100))
    folder.mkdir(parents=True)
    lavadl.write(check(graph, alphabet=BINARY), folder / "net.net")
    np.save(folder / "x.npy", draw(0, 1, 2, 6, 2, 5, 4).astype(float))


def runs(folder: Path) -> None:
    """A run of one epoch on digits, and an integer run of its weights."""
    from eitrain.fit import Fitting
    from eitrain.recipes import RECIPES, fine_tuning

    quick = {"architecture": "4C3-P2-10", "epochs": 1, "batches": 2, "batch": 8, "steps": 2, "lr": 0.02}
    recipe = replace(RECIPES["backei-digits"], **quick)
    run = folder / "checkpoint"
    list(Fitting(recipe, run, device="cpu").epochs())
    whole = replace(fine_tuning(recipe, from_weights=True), quantize=8, **{k: quick[k] for k in ("epochs", "batches")})
    list(Fitting(whole, folder / "plan", device="cpu", start_from=run).epochs())
    for name in ("checkpoint", "plan"):
        (folder / name / "resume.safetensors").unlink(missing_ok=True)
    shutil.copytree(run, folder / "config")
    shutil.copytree(folder / "plan", folder / "integer checkpoint")
