"""Both command lines: what they refuse and how, their exit codes, and the report they write."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
import typer.main
from cases import connected
from PIL import Image
from test_data import write_mnist
from typer.testing import CliRunner

import eiexport.cli
import eitrain.cli
from eiexport import graph as graphs
from eiexport import session
from eiexport.model import Model
from eiexport.nodes import PREPARE, lif
from eiexport.trace import Trace, TraceFile, TraceWriter, chunk_size
from eitrain import runs
from eitrain.fit import Fitting
from eitrain.recipes import RECIPES
from targets import base
from targets.reference import Reference

FIT, EXPORT = eitrain.cli.app, eiexport.cli.app
QUICK = replace(RECIPES["backei-digits"], architecture="6C3-P2-10", epochs=1, batches=4, batch=16, steps=3, lr=0.02)


def invoke(app: Any, *arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
    failed = result.exception if not isinstance(result.exception, SystemExit) else None
    assert failed is None and result.exit_code == code, (failed, result.output)
    return result


def tree(folder: Path) -> dict[str, str]:
    """Every file with its content, every folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in folder.rglob("*")
    }


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Calls a tool and checks: exit code 2, one line that names the culprit, nothing written, nothing on stdout."""

    def call(app: Any, *arguments: object, names: tuple[object, ...]) -> str:
        before = tree(tmp_path)
        result = invoke(app, *arguments, code=2)
        lines = result.stderr.splitlines()
        assert len(lines) == 1 and result.stdout == "", result.output
        assert [n for n in map(str, names) if n not in lines[0]] == [], lines[0]
        assert lines[0].startswith("eitrain: " if app is FIT else "eiexport: ")
        assert tree(tmp_path) == before
        return lines[0]

    return call


@pytest.fixture(autouse=True)
def no_data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may go looking for data elsewhere, or download it."""
    monkeypatch.setenv("EITRAIN_DATA", str(tmp_path_factory.getbasetemp() / "no data"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    list(Fitting(QUICK, out, device="cpu").epochs())
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


# --- training


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["backei-minst"], ["backei-minst", "backei-mnist"]),
        (["--data", "imagenet"], ["imagenet", "digits, mnist, fashion, cifar10, cifar100"]),
        (["--epochs", "0"], ["epochs = 0"]),
        (["--epochs=-3"], ["epochs = -3"]),
        (["--seed=-1"], ["seed = -1"]),
        (["--device", "tpu"], ["'tpu'", "auto, cpu, cuda"]),
        (["--set", "architecture=6C3-P2-11"], ["6C3-P2-11", "10"]),
        (["--set", "architecture=6X3-10"], ["'6X3'"]),
        (["--resume"], ["no such run folder"]),
        (["--from", "no-run"], ["no-run", "no such run folder"]),
    ],
)
def test_fit_refuses(arguments: list[str], names: list[str], tmp_path: Path, refused: Any) -> None:
    refused(FIT, "fit", *arguments, "--out", tmp_path / "out", names=tuple(names))


def test_fit_refuses_data_that_is_not_there_or_not_the_original(
    tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mnist(folder: Path) -> tuple[Any, ...]:
        return FIT, "fit", "backei-mnist", "--data-dir", folder, "--out", tmp_path / "out"

    refused(*mnist(tmp_path / "gone"), names=(tmp_path / "gone", "No such file", "--data-dir"))
    refused(FIT, "fit", "backei-mnist", "--out", tmp_path / "out", names=(os.environ["EITRAIN_DATA"], "EITRAIN_DATA"))
    (tmp_path / "empty").mkdir()
    refused(*mnist(tmp_path / "empty"), names=("train-images-idx3-ubyte", tmp_path / "empty"))
    folder = tmp_path / "data"
    write_mnist(folder, gz=False)
    refused(*mnist(folder), names=(folder / "train-images-idx3-ubyte", "sha256", "not the original"))
    whole = (folder / "train-images-idx3-ubyte").read_bytes()
    (folder / "train-images-idx3-ubyte").write_bytes(whole[:-1])
    refused(*mnist(folder), names=(folder / "train-images-idx3-ubyte", f"{len(whole) - 1} bytes"))
    folder.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            pytest.skip("root reads everything")
        refused(*mnist(folder), names=(folder, "Permission denied"))
    finally:
        folder.chmod(0o755)


def test_fit_refuses_an_output_that_is_taken(run: Path, tmp_path: Path, refused: Any) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    refused(FIT, "fit", "--out", file, names=(file, "exists"))
    refused(FIT, "fit", "--out", run, names=(run, "not empty", "--resume"))
    refused(FIT, "fit", "--out", file / "below", names=(file, "Not a directory"))


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "config missing": (lambda run: (run / "config.json").unlink(), ["config.json"]),
    "config no JSON": (lambda run: (run / "config.json").write_text("{"), ["config.json", "JSON"]),
    "config a list": (lambda run: (run / "config.json").write_text("[]"), ["config.json"]),
    "config without recipe": (lambda run: (run / "config.json").write_text("{}"), ["config.json", "recipe"]),
    "config of another version": (
        lambda run: change(run / "config.json", lambda c: c["recipe"].pop("steps")),
        ["steps"],
    ),
    "config with wrong type": (
        lambda run: change(run / "config.json", lambda c: c["recipe"].update(steps="three")),
        ["config.json"],
    ),
    "checkpoint missing": (lambda run: (run / "best.safetensors").unlink(), ["best.safetensors", "no such checkpoint"]),
    "checkpoint empty": (lambda run: (run / "best.safetensors").write_bytes(b""), ["best.safetensors", "corrupt"]),
    "checkpoint truncated": (
        lambda run: os.truncate(run / "best.safetensors", 1000),
        ["best.safetensors", "truncated or corrupt"],
    ),
    "checkpoint garbage": (lambda run: (run / "best.safetensors").write_bytes(b"\xff" * 999), ["best.safetensors"]),
    "checkpoint misfits": (
        lambda run: change(run / "config.json", lambda c: c["recipe"].update(architecture="7C3-P2-10")),
        ["best.safetensors", "conv1", "(6,", "(7,"],
    ),
    "checkpoint lacks gates": (
        lambda run: change(run / "config.json", lambda c: c["recipe"].update(sfbm=False)),
        ["best.safetensors", "neuron1.p.feedback"],
    ),
    "NaN weights": (lambda run: poison(run, float("nan")), ["best.safetensors", "linear1.weight", "NaN"]),
    "infinite weights": (lambda run: poison(run, float("inf")), ["best.safetensors", "linear1.weight", "infinite"]),
}


def poison(run: Path, value: float) -> None:
    tensors, meta = runs.load(run / "best.safetensors")
    tensors["linear1.weight"][3, 4] = value
    runs.save(run / "best.safetensors", tensors, meta)


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_run_is_refused(damage: str, run: Path, refused: Any) -> None:
    breaks, names = BROKEN[damage]
    breaks(run)
    refused(EXPORT, run, names=(run, *names))
    refused(FIT, "evaluate", run, names=(run, *names))


def test_damaged_resume_is_refused(run: Path, refused: Any) -> None:
    refused(FIT, "fit", "--out", run, "--resume", "--set", "lr=1", names=("lr was 0.02 and is now 1",))
    os.truncate(run / "resume.safetensors", 2000)
    refused(FIT, "fit", "--out", run, "--resume", names=(run / "resume.safetensors", "corrupt"))


def test_run_whose_data_is_gone(run: Path, refused: Any) -> None:
    def moved(config: dict[str, Any]) -> None:
        config["recipe"]["data"], config["data"]["folder"] = "mnist", str(run / "data")

    change(run / "config.json", moved)
    for call in ((EXPORT, run), (FIT, "evaluate", run)):
        refused(*call, names=("data folder", os.environ["EITRAIN_DATA"]))


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--samples", "0"], ["--samples 0", "at least 1"]),
        (["--samples=-4"], ["--samples -4"]),
        (["--checkpoint", "first"], ["'first'", "best, last"]),
        (["--target", "loihi9"], ["'loihi9'", "reference, torch"]),
        (["--device", "tpu"], ["'tpu'"]),
        (["--dt", "0.5"], ["dt = 1.0", "0.5"]),
        (["--integrator", "exponential"], ["integrator = euler"]),
        (["--input", "x.npy"], ["run folder", "--input"]),
    ],
)
def test_export_of_a_run_refuses(arguments: list[str], names: list[str], run: Path, refused: Any) -> None:
    refused(EXPORT, run, *arguments, names=tuple(names))


def test_evaluate_refuses(run: Path, tmp_path: Path, refused: Any) -> None:
    refused(FIT, "evaluate", run, "--checkpoint", "first", names=("'first'", "best, last"))
    refused(FIT, "evaluate", tmp_path / "none", names=(tmp_path / "none", "no such run folder"))
    refused(FIT, "evaluate", run, "--device", "tpu", names=("'tpu'",))


# --- a graph of one's own


def small_graph() -> nir.NIRGraph:
    """3 inputs, 4 neurons, 2 neurons; all numbers dyadic, so that every engine must agree to the bit."""
    weight = np.array([[0.5, 0.25, 0.5], [0.25, 0.5, -0.5], [1, 0, 0], [0, 0.25, 0.25]])
    found = {
        "in": nir.Input(np.array((3,))),
        "fc": nir.Linear(weight),
        "cell": lif((4,), decay=0.5, threshold=0.5),
        "fc2": nir.Affine(np.array([[0.5, 0.5, 0.25, 0], [0, -0.5, 1, 0.5]]), np.array([0.125, 0])),
        "last": lif((2,), decay=0.25, threshold=0.5, compare="ge"),
        "out": nir.Output(np.array((2,))),
    }
    edges = [("in", "fc"), ("fc", "cell"), ("cell", "fc2"), ("fc2", "last"), ("last", "out")]
    return graphs.stamp(nir.NIRGraph(found, edges, type_check=False), dt=1.0, integrator="euler", dtype="float64")


X = np.random.default_rng(0).integers(0, 2, (6, 5, 3)).astype(np.float32)


@pytest.fixture
def net(tmp_path: Path) -> tuple[Path, Path]:
    """(net.nir, x.npy)."""
    graphs.write(small_graph(), tmp_path / "net.nir")
    np.save(tmp_path / "x.npy", X)
    return tmp_path / "net.nir", tmp_path / "x.npy"


def edited(path: Path, edit: Callable[[h5py.Group], None]) -> None:
    with h5py.File(path, "a") as file:
        edit(file["node"])


def replaced(group: h5py.Group, key: str, value: Any) -> None:
    del group[key]
    group[key] = value


def add_edge(node: h5py.Group) -> None:
    edges = [tuple(e) for e in node["edges"][()].tolist()]
    replaced(node, "edges", np.array([*edges, (b"last", b"nobody")], h5py.string_dtype()))


def not_nir(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["something"] = 1


WRONG: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "empty": (lambda p: p.write_bytes(b""), ["net.nir", "HDF5"]),
    "text": (lambda p: p.write_text("hello"), ["net.nir", "HDF5"]),
    "truncated": (lambda p: os.truncate(p, p.stat().st_size // 2), ["net.nir", "HDF5"]),
    "not NIR": (not_nir, ["net.nir", "not NIR"]),
    "unknown node": (
        lambda p: edited(p, lambda n: replaced(n["nodes/cell"], "type", "Izhikevich")),
        ["net.nir", "'cell'", "Izhikevich"],
    ),
    "newer schema": (lambda p: edited(p, lambda n: replaced(n["nodes/cell"], "schema", 7)), ["'cell'", "schema 7"]),
    "missing edge end": (lambda p: edited(p, add_edge), ["'last'", "'nobody'", "no node"]),
    "NaN weight": (
        lambda p: edited(p, lambda n: replaced(n["nodes/fc"], "weight", np.full((4, 3), np.nan))),
        ["'fc'", "weight", "NaN"],
    ),
    "NaN threshold": (
        lambda p: edited(p, lambda n: replaced(n["nodes/last"], "v_threshold", np.array([0.5, np.nan]))),
        ["'last'", "v_threshold", "NaN"],
    ),
    "misfit": (
        lambda p: edited(p, lambda n: replaced(n["nodes/fc2"], "weight", np.ones((2, 5)))),
        ["'cell'", "'fc2'", "(4,)", "5"],
    ),
    "wrong compare": (lambda p: edited(p, lambda n: replaced(n["nodes/cell"], "compare", "gte")), ["'cell'", "'gte'"]),
    "decay above 1": (
        lambda p: edited(p, lambda n: replaced(n["nodes/cell"], "decay", np.full(4, 1.5))),
        ["'cell'", "decay", "1.5"],
    ),
}


@pytest.mark.parametrize("damage", WRONG)
def test_damaged_graph_is_refused(damage: str, net: tuple[Path, Path], refused: Any) -> None:
    breaks, names = WRONG[damage]
    breaks(net[0])
    refused(EXPORT, net[0], "--input", net[1], names=tuple(names))


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def with_value(value: float, at: tuple[int, ...]) -> np.ndarray:
    x = X.copy()
    x[at] = value
    return x


def text_trace(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["weights"] = np.ones(3)


INPUTS: dict[str, tuple[Any, list[str]]] = {
    "too few axes": (X[0, 0], ["x.npy", "(3,)", "samples, steps"]),
    "no steps axis": (X[0], ["(3,)", "(steps, 3)"]),
    "wrong neurons": (X[..., :2], ["(5, 2)", "(steps, 3)"]),
    "wrong rank": (X[..., None], ["3"]),
    "no sample": (X[:0], ["x.npy", "no sample"]),
    "no step": (X[:, :0], ["0 steps"]),
    "NaN first": (with_value(np.nan, (0, 0, 0)), ["NaN"]),
    "NaN later": (with_value(np.nan, (4, 3, 1)), ["NaN"]),
    "infinite later": (with_value(-np.inf, (5, 4, 2)), ["infinite"]),
    "text": (np.array([["a"]]), ["x.npy", "not numbers"]),
    "complex": (X.astype(complex), ["x.npy", "complex"]),
    "records": (np.zeros((2, 2), [("a", "f4")]), ["x.npy", "not numbers"]),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_bad_input_is_refused(kind: str, net: tuple[Path, Path], refused: Any) -> None:
    x, names = INPUTS[kind]
    np.save(net[1], x)
    refused(EXPORT, net[0], "--input", net[1], names=tuple(names))


def test_input_is_never_unpickled(net: tuple[Path, Path], tmp_path: Path, refused: Any) -> None:
    bomb = Bomb(tmp_path / "ran")
    for write in (
        lambda: np.save(net[1], np.array([bomb], dtype=object)),
        lambda: net[1].write_bytes(pickle.dumps(bomb)),
    ):
        write()
        np.load(net[1], allow_pickle=True)
        (tmp_path / "ran").rmdir()  # so an unwary reader does run it
        refused(EXPORT, net[0], "--input", net[1], names=("x.npy",))
        assert not (tmp_path / "ran").exists()


def test_unreadable_input_is_refused(net: tuple[Path, Path], tmp_path: Path, refused: Any) -> None:
    graph, x = net
    refused(EXPORT, graph, names=("net.nir", "--input"))
    refused(EXPORT, graph, "--input", tmp_path / "none.npy", names=("none.npy", "no such input"))
    for content in (b"", b"text", x.read_bytes()[:-7]):
        x.write_bytes(content)
        refused(EXPORT, graph, "--input", x, names=("x.npy",))
    (tmp_path / "x.h5").write_bytes(b"text")
    refused(EXPORT, graph, "--input", tmp_path / "x.h5", names=("x.h5", "HDF5"))
    text_trace(tmp_path / "x.h5")
    refused(EXPORT, graph, "--input", tmp_path / "x.h5", names=("x.h5", "nodes"))
    with TraceWriter(tmp_path / "x.h5", dt=1, dtype="float32") as writer:
        writer.append(Trace({"a": X, "b": X}))
    refused(EXPORT, graph, "--input", tmp_path / "x.h5", names=("x.h5", "a, b", "'input'"))


def test_time_must_be_told(net: tuple[Path, Path], refused: Any) -> None:
    graph, x = net
    tau = nir.LIF(*(np.full(3, v) for v in (0.01, 1.0, 0.0, 0.5)))
    plain = connected({"cell": tau}, [("in", "cell"), ("cell", "out")], (3,))
    nodes = {**plain.nodes, "out": nir.Output(np.array((3,)))}
    graphs.write(nir.NIRGraph(nodes, plain.edges, type_check=False), graph)
    command = (EXPORT, graph, "--input", x)
    refused(*command, names=("dt", "--dt SECONDS"))
    refused(*command, "--dt", "1e-3", names=("integrator", "--integrator euler|exponential"))
    euler = (*command, "--integrator", "euler")
    for value, says in (("0", "positive"), ("-1", "positive"), ("nan", "positive"), ("inf", "positive")):
        refused(*euler, f"--dt={value}", names=("dt", says))
    refused(*command, "--dt", "1e-3", "--integrator", "rk4", names=("'rk4'", "euler, exponential"))
    invoke(*euler, "--dt", "1e-3")
    written = graphs.check(graphs.read(graph.with_name("net-export") / "model.nir"))
    assert (written.clock.dt, written.clock.integrator) == (1e-3, "euler")


def test_export_refuses_what_it_cannot_place(net: tuple[Path, Path], tmp_path: Path, refused: Any) -> None:
    graph, x = net
    refused(EXPORT, names=("run folder", "--help"))
    refused(EXPORT, tmp_path / "none.nir", "--input", x, names=("none.nir", "no such"))
    refused(EXPORT, graph, "--input", x, "--out", x, names=("x.npy", "--out"))
    refused(EXPORT, graph, "--input", x, "--out", x / "below", names=(x, "Not a directory"))
    refused(EXPORT, graph, "--input", x, "--samples", "0", names=("--samples 0",))
    refused(EXPORT, graph, "--input", x, "--target", "torch", "--device", "tpu", names=("'tpu'",))
    refused(EXPORT, tmp_path, names=(tmp_path, "config.json"))  # some other folder


def whole_files_only(folder: Path) -> None:
    """What an interrupted tool left: files that appeared under their names are readable, and no others are there."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert not path.name.endswith(".tmp"), path
        if path.suffix == ".h5":
            TraceFile(path).__exit__()
        elif path.suffix == ".nir":
            graphs.check(graphs.read(path))
        elif path.suffix == ".safetensors":
            runs.load(path)
        elif path.suffix in (".json", ".jsonl"):
            [json.loads(line) for line in ([path.read_text()] if path.suffix == ".json" else path.open())]


@pytest.mark.parametrize("tool", ["eitrain", "eiexport"])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_no_space_for_the_nth_file(
    tool: str, at: int, net: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, rename = at, os.replace

    def full(source: Path, target: Path) -> None:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        left -= 1
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    out = tmp_path / "out"
    if tool == "eitrain":
        quick = ("--set", "architecture=6C3-P2-10", "--set", "batches=1", "--set", "steps=2", "--epochs", 1)
        result = invoke(FIT, "fit", *quick, "--out", out, code=2)
    else:
        result = invoke(EXPORT, net[0], "--input", net[1], "--out", out, code=2)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{tool}: {out}") and "No space left on device" in line
    assert len([p for p in out.rglob("*") if p.is_file()]) == at
    whole_files_only(out)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
from {0}.cli import main
sys.argv[:2] = ["{0}"]
main()
"""


@pytest.mark.parametrize("tool, size", [("eitrain", 300), ("eitrain", 5000), ("eiexport", 300), ("eiexport", 12000)])
def test_no_space_left(tool: str, size: int, net: tuple[Path, Path], tmp_path: Path) -> None:
    """Files beyond a size cannot be written, so that write() itself fails, as on a full disk; a process of its own."""
    out = tmp_path / "out"
    quick = ("--set", "architecture=6C3-P2-10", "--set", "batches=1", "--set", "steps=2", "--epochs", 1)
    arguments = ("fit", *quick, "--out", out) if tool == "eitrain" else (net[0], "--input", net[1], "--out", out)
    command = [sys.executable, "-W", "ignore", "-c", LIMITED.format(tool), size, *arguments]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{tool}: {out}") and "File too large" in line
    whole_files_only(out)


@pytest.mark.parametrize(
    "tool, arguments, names",
    [
        (eitrain.cli, ["fit", "--epochs", "many"], ["--epochs", "integer"]),
        (eitrain.cli, ["fit", "--epoch-count", "3"], ["--epoch-count"]),
        (eitrain.cli, ["fti"], ["'fti'"]),
        (eiexport.cli, ["net.nir", "--samples", "1.5"], ["--samples", "integer"]),
        (eiexport.cli, ["--compare", "a.h5"], ["--compare"]),
        (eiexport.cli, ["--nonsense"], ["--nonsense"]),
    ],
)
def test_mistaken_option_is_one_line(
    tool: Any, arguments: list[str], names: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by the option parser, so only the process's own main can shorten it."""
    name = tool.__name__.removesuffix(".cli")
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as caught:
        tool.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and line.startswith(f"{name}: ") and all(n in line for n in names), line


# --- what an export tells


REPORT = {"model", "samples", "steps", "output_silent", "reference", "targets"}
ROW = {
    "status", "compared_with", "class", "evidence", "engine", "entries", "mismatches", "explained_ties",
    "free_running_mismatches", "first_divergence", "accuracy", "latency", "seconds", "nodes",
}  # fmt: skip
NODE = {"entries", "mismatches", "explained_ties", "spikes", "spikes_reference", "silent", "process"}


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def test_export_of_a_run(run: Path) -> None:
    told = invoke(EXPORT, run, "--target", "reference", "--target", "torch", "--samples", 20).stdout
    out = run / "export"
    report = report_of(out)
    assert report.keys() >= REPORT and (report["samples"], report["steps"]) == (20, 3)
    assert report["model"].startswith("backei-digits") and report["output_silent"] is False
    assert report["reference"].items() >= {"class": "float", "dtype": "float64"}.items()
    assert list(report["targets"]) == ["reference", "torch", "torch32"]  # the run's own dtype is a row of its own
    layers = {"neuron1": 6 * 8 * 8, "neuron2": 10}
    for name, row in report["targets"].items():
        assert row.keys() >= ROW and row["class"] == "float" and row["compared_with"] == "trained"
        assert row["status"] == "equal" or (name == "torch32" and row["status"] == "explained")
        assert row["engine"].keys() >= {"name", "version"} and row["first_divergence"] is None
        assert row["entries"] == sum(layers.values()) * 3 * 20
        for node, neurons in layers.items():
            assert row["nodes"][node].keys() >= NODE and row["nodes"][node]["entries"] == neurons * 3 * 20
            assert row["nodes"][node]["spikes"] > 0
        assert name in told
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and p.suffix != ".png"}
    traces = {f"traces/{n}.h5" for n in ("trained", "reference", "torch", "torch32")}
    assert files == {"model.nir", "input.h5", "report.json", "report.html", *traces}
    with TraceFile(out / "traces/reference.h5") as trace, TraceFile(out / "input.h5") as given:
        z = {n: g["data"][()] for n, g in trace.nodes.items()}
        assert z["neuron1"].shape == (20, 3, 384) and given.nodes["input"]["data"].shape == (20, 3, 64)
    assert {n: int(np.count_nonzero(a)) for n, a in z.items()} == {
        n: report["targets"]["reference"]["nodes"][n]["spikes"] for n in layers
    }
    assert "report.html" in told and "20 samples, 3 steps" in told


def test_accuracy_of_an_export_is_that_of_the_evaluation(run: Path) -> None:
    told = invoke(FIT, "evaluate", run).stdout
    accuracy = float(re.search(r"test accuracy ([\d.]+) %", told)[1])
    invoke(EXPORT, run, "--samples", 10_000)  # more than there are: all of them
    report = report_of(run / "export")
    assert report["samples"] == 360
    assert 100 * report["reference"]["accuracy"] == pytest.approx(accuracy, abs=0.006)
    assert report["targets"]["reference"]["accuracy"] == report["reference"]["accuracy"]


def test_exported_checkpoint_is_the_one_asked_for(run: Path) -> None:
    tensors, meta = runs.load(run / "last.safetensors")
    tensors["linear1.bias"] += 1
    runs.save(run / "last.safetensors", tensors, meta)
    for name in ("best", "last"):
        invoke(EXPORT, run, "--checkpoint", name, "--samples", 1, "--out", run / name)
        stored = graphs.read(run / name / "model.nir").nodes["linear1"].bias
        assert np.array_equal(stored, runs.load(run / f"{name}.safetensors")[0]["linear1.bias"].numpy())


def test_report_page_stands_alone(run: Path) -> None:
    invoke(EXPORT, run, "--target", "torch", "--samples", 5)
    page = (run / "export/report.html").read_text()
    assert "<script" not in page and not re.search(r"https?://|url\(|@import|<link", page)
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert len(sources) == 2  # torch and torch32
    for source in sources:
        head, _, encoded = source.partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as image:
            image.load()
            assert image.format == "PNG"
    for text in ("backei-digits", "neuron1", "neuron2", "equal", "EIGatedLIF"):
        assert text in page


def test_names_are_text_in_the_report_page(tmp_path: Path) -> None:
    """A foreign graph may call its nodes what it likes."""
    odd = "<script>x[b]"
    graph = small_graph()
    nodes = {odd if n == "cell" else n: v for n, v in graph.nodes.items()}
    edges = [tuple(odd if e == "cell" else e for e in pair) for pair in graph.edges]
    graphs.write(nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False), tmp_path / "net.nir")
    np.save(tmp_path / "x.npy", X)
    out = tmp_path / "net-export"
    invoke(EXPORT, tmp_path / "net.nir", "--input", tmp_path / "x.npy")
    page = (out / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;x[b]" in page
    told = invoke(EXPORT, "--compare", out / "traces/reference.h5", out / "traces/reference.h5").stdout
    assert odd in told


class _Wrapped(base.Program):
    def __init__(self, network: graphs.Network, spoil: Callable[[dict[str, np.ndarray]], None]) -> None:
        self.network, self.spoil = network, spoil
        self.inner = Reference().compile(network)
        self.latency = self.inner.latency

    def run(self, x: np.ndarray) -> Trace:
        trace = self.inner.run(x)
        self.spoil(trace.z)
        return trace


class Wrong(Reference):
    """One entry is not what the network sends."""

    name = "wrong"

    def compile(self, network: graphs.Network) -> base.Program:
        def flip(z: dict[str, np.ndarray]) -> None:
            z["last"][2, 3, 1] = 1 - z["last"][2, 3, 1]

        return _Wrapped(network, flip)


class Lossy(Reference):
    """A node is missing from its trace."""

    name = "lossy"

    def compile(self, network: graphs.Network) -> base.Program:
        return _Wrapped(network, lambda z: z.pop("cell"))


class Absent(Reference):
    """Its engine is not installed."""

    name = "absent"

    def compile(self, network: graphs.Network) -> base.Program:
        raise base.EngineUnavailable("absent: no such engine here; install it with care")


class Breaks(Reference):
    """Its engine fails after the first chunk."""

    name = "breaks"

    def compile(self, network: graphs.Network) -> base.Program:
        def fail(z: dict[str, np.ndarray]) -> None:
            raise base.EngineUnavailable("breaks: the engine stopped")

        return _Wrapped(network, fail)


class Limited(Reference):
    """Knows no discrete neurons."""

    name = "limited"
    claims = {k: c for k, c in Reference.claims.items() if k != "EIDiscreteLIF"}


@pytest.fixture
def odd_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Wrong, Lossy, Absent, Breaks, Limited):
        monkeypatch.setitem(base.REGISTRY, kind.name, f"{__name__}:{kind.__name__}")


@pytest.mark.parametrize(
    "name, status, says",
    [
        ("absent", "failed", "install it with care"),
        ("breaks", "failed", "the engine stopped"),
        ("limited", "unsupported", "'cell' (EIDiscreteLIF)"),
        ("lossy", "failed", "'cell'"),
    ],
)
def test_a_target_that_cannot_run_is_a_row(
    name: str, status: str, says: str, net: tuple[Path, Path], odd_targets: None
) -> None:
    """Exit code 1, and the targets before and behind it run all the same."""
    order = ("torch", name, "reference")
    result = invoke(EXPORT, net[0], "--input", net[1], *(a for t in order for a in ("--target", t)), code=1)
    out = net[0].with_name("net-export")
    rows = report_of(out)["targets"]
    assert {n: r["status"] for n, r in rows.items()} == {
        "torch": "equal", "torch32": "equal", name: status, "reference": "equal",
    }  # fmt: skip
    assert says in rows[name]["message"] and rows[name].keys() >= ROW
    assert says in result.stdout and says in (out / "report.html").read_text().replace("&#39;", "'")
    assert result.stderr == "" and not (out / f"traces/{name}.h5").exists()


def test_wrong_trace_differs_and_its_first_divergence_is_named(net: tuple[Path, Path], odd_targets: None) -> None:
    result = invoke(EXPORT, net[0], "--input", net[1], "--target", "wrong", "--target", "torch", code=1)
    out = net[0].with_name("net-export")
    rows = report_of(out)["targets"]
    assert (rows["wrong"]["status"], rows["torch"]["status"]) == ("differs", "equal")
    found = rows["wrong"]["first_divergence"]
    at = {"node": "last", "sample": 2, "step": 3, "neuron": [1]}
    assert found.items() >= at.items() and found["value"] == 1 - found["expected"]
    assert rows["wrong"]["mismatches"] >= 1 and rows["wrong"]["nodes"]["cell"]["mismatches"] == 0
    assert rows["wrong"]["free_running_mismatches"] == 1
    words = "node 'last', step 3, neuron (1,), sample 2"
    assert words in (out / "report.html").read_text().replace("&#39;", "'") and words in result.stdout


def test_targets_are_expanded_once(net: tuple[Path, Path]) -> None:
    twice = ("--target", "torch32", "--target", "torch", "--target", "torch")
    invoke(EXPORT, net[0], "--input", net[1], *twice)
    assert list(report_of(net[0].with_name("net-export"))["targets"]) == ["torch32", "torch"]


def test_onnx_is_two_rows_and_two_files_that_the_example_streams(net: tuple[Path, Path]) -> None:
    invoke(EXPORT, net[0], "--input", net[1], "--target", "onnx")
    out = net[0].with_name("net-export")
    rows = report_of(out)["targets"]
    assert {n: r["status"] for n, r in rows.items()} == {"onnx": "equal", "onnx-step": "equal"}
    assert rows["onnx"]["engine"]["version"].startswith("onnxruntime ") and rows["onnx"]["entries"] > 0
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples/onnx_stream.py"))
    assert example["main"](out, samples=3) is True
    (out / "model_step.onnx").write_bytes(b"left over")
    invoke(EXPORT, net[0], "--input", net[1], "--target", "reference")
    assert not list(out.glob("*.onnx"))  # an older result must not stand beside this one


def test_input_file_may_be_a_trace(net: tuple[Path, Path], tmp_path: Path) -> None:
    graph, x = net
    invoke(EXPORT, graph, "--input", x, "--samples", 4, "--out", tmp_path / "a")
    assert report_of(tmp_path / "a")["samples"] == 4
    with TraceFile(tmp_path / "a/input.h5") as given:
        assert np.array_equal(given.nodes["in"]["data"][()], X[:4])
    invoke(EXPORT, graph, "--input", tmp_path / "a/input.h5", "--out", tmp_path / "b")
    told = invoke(EXPORT, "--compare", tmp_path / "a/traces/reference.h5", tmp_path / "b/traces/reference.h5").stdout
    assert told.splitlines()[-1] == "equal"


def test_silence_is_told(run: Path, tmp_path: Path) -> None:
    quiet = ("--set", "init_gain=0.001", "--set", "batches=1", "--set", "steps=2", "--epochs", 1)
    told = invoke(FIT, "fit", *quiet, "--out", tmp_path / "quiet").stdout
    assert re.search(r"epoch 1/1 .*silent: neuron1, neuron2, neuron3, neuron4", told)
    assert "warning: silent on the test set: neuron1" in told and "init_gain" in told
    told = invoke(EXPORT, tmp_path / "quiet", "--samples", 5).stdout
    assert "the output is silent" in told and "Silent, so little is proven: neuron1" in told
    report = report_of(tmp_path / "quiet/export")
    assert report["output_silent"] is True and report["targets"]["reference"]["nodes"]["neuron4"]["silent"] is True
    page = (tmp_path / "quiet/export/report.html").read_text()
    assert "The output is silent" in page
    traces = (tmp_path / "quiet/export/traces/reference.h5",) * 2
    told = invoke(EXPORT, "--compare", *traces, code=1).stdout  # nothing was compared that could have differed
    assert told.splitlines()[-1] == "equal, but silent: this proves nothing"


def test_compare_both_ways(net: tuple[Path, Path], tmp_path: Path, odd_targets: None) -> None:
    invoke(EXPORT, net[0], "--input", net[1], "--target", "wrong", code=1)
    traces = net[0].with_name("net-export") / "traces"
    a, b = traces / "wrong.h5", traces / "reference.h5"
    sent = {}
    for first, second in ((a, b), (b, a)):
        told = invoke(EXPORT, "--compare", first, second, code=1).stdout
        last = told.splitlines()[-1]
        assert last.startswith("first divergence: node 'last', step 3, neuron (1,), sample 2")
        sent[first] = re.search(r"sent (\d), expected (\d)", last).groups()
        assert re.search(r"last +60 +1 ", told) and re.search(r"cell +120 +0 ", told)
    assert sent[a] == sent[b][::-1] and set(sent[a]) == {"0", "1"}
    assert invoke(EXPORT, "--compare", b, b).stdout.splitlines()[-1] == "equal"


def test_compare_refuses(net: tuple[Path, Path], tmp_path: Path, refused: Any) -> None:
    invoke(EXPORT, net[0], "--input", net[1])
    out = net[0].with_name("net-export")
    good = out / "traces/reference.h5"
    refused(EXPORT, "--compare", good, tmp_path / "none.h5", names=("none.h5", "no such trace"))
    refused(EXPORT, "--compare", net[1], good, names=("x.npy", "HDF5"))
    refused(EXPORT, "--compare", net[0], good, names=("net.nir", "nodes"))
    refused(EXPORT, "--compare", good, out / "input.h5", names=("share no node", "cell", "in"))
    with TraceFile(good) as trace, TraceWriter(tmp_path / "short.h5", dt=1, dtype="float64") as writer:
        writer.append(Trace({n: g["data"][:2] for n, g in trace.nodes.items()}))
    refused(EXPORT, "--compare", good, tmp_path / "short.h5", names=("6 samples", "2"))


# --- help and lists


def commands() -> list[tuple[str, Any, list[str], Any]]:
    train, export = typer.main.get_command(FIT), typer.main.get_command(EXPORT)
    found = [(f"eitrain {n}", FIT, [n], c) for n, c in sorted(train.commands.items())]
    return [*found, ("eiexport", EXPORT, [], export)]


@pytest.mark.parametrize("name, app, prefix, command", commands(), ids=[c[0] for c in commands()])
def test_help_has_every_option_and_an_example(name: str, app: Any, prefix: list[str], command: Any) -> None:
    told = invoke(app, *prefix, "--help").stdout
    for parameter in command.params:
        shown = parameter.opts if parameter.param_type_name == "option" else [parameter.name]
        assert all(re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", told, re.I) for o in shown), shown
        words = parameter.help.replace("`", "").split()[:3]
        assert words and " ".join(words) in " ".join(told.split()), parameter.name
    assert "Example" in told and f"{name} " in told.replace("\n", " ")


def test_contract_options_are_there() -> None:
    options = {name: {o for p in c.params for o in p.opts} for name, _, _, c in commands()}
    train = {"--data", "--data-dir", "--epochs", "--device", "--seed", "--out", "--resume", "--from", "--set"}
    assert options["eitrain fit"] >= train and "eitrain recipes" in options and "eitrain evaluate" in options
    export = {"--target", "--input", "--samples", "--out", "--checkpoint", "--dt", "--integrator", "--device"}
    assert options["eiexport"] >= {*export, "--list-targets", "--compare"}


def test_list_targets() -> None:
    told = invoke(EXPORT, "--list-targets").stdout
    head, *lines = told.splitlines()
    assert head.split()[2:] == list(base.REGISTRY)
    starts = [head.index(f" {n}") + 1 for n in base.REGISTRY]
    rows = {line.split()[0]: line for line in lines}
    notes = {n: claim for n, _, claim in (line.partition(": ") for line in lines) if n.isdigit()}
    for kind in PREPARE.keys() - {"Input", "Output"}:
        for (name, start), end in zip(zip(base.REGISTRY, starts, strict=True), [*starts[1:], None], strict=True):
            *_, number = rows[kind][start:end].split()
            claim = str(base.get(name).claims.get(kind, base.Claim("no")))
            assert notes.get(number, number) == claim, (kind, name)
    assert all(any(line.startswith(f"{name}: ") for line in lines) for name in base.REGISTRY)


# --- memory


def test_a_stream_runs_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "chunk_size", lambda network, steps: 4)
    network = graphs.check(small_graph())
    program = Reference().compile(network)
    seen: list[int] = []
    parts = list(program.stream(np.concatenate([X, X]), seen.append))
    assert [p.samples for p in parts] == [4, 4, 4] == seen
    whole = program.run(np.concatenate([X, X]))
    for name, z in whole.z.items():
        assert z.any() and np.array_equal(np.concatenate([p.z[name] for p in parts]), z)


@pytest.mark.parametrize("samples, size", [(10, 4), (6, 100)])
def test_an_export_holds_a_chunk_at_a_time(
    samples: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither encoding, nor the trained network, nor a target ever sees more samples at once."""
    asked: list[int] = []
    x = np.resize(X, (samples, 5, 3))
    network = graphs.check(small_graph())
    program = Reference().compile(network)

    def chunks(most: int) -> Iterator[np.ndarray]:
        asked.append(most)
        return (x[i : i + most] for i in range(0, samples, most))

    def trace(part: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(len(part))
        return {n: z.astype(np.float64) for n, z in program.run(part).z.items()}

    run = Reference.compile(Reference(), network).__class__.run

    def watched(self: Any, part: np.ndarray) -> Trace:
        asked.append(len(part))
        return run(self, part)

    monkeypatch.setattr(type(program), "run", watched)
    for module in (session, base):
        monkeypatch.setattr(module, "chunk_size", lambda network, steps: size)
    model = Model("test", small_graph(), samples, chunks, None, trace)
    settings = session.Settings(("reference",), tmp_path / "out")
    found = session.export(model, settings, lambda what, done, total: None)
    assert found.ok and found.samples == samples
    assert len(asked) >= 4 and max(asked) <= size
    with TraceFile(tmp_path / "out/traces/reference.h5") as stored:
        wanted = run(program, x)
        for name, z in wanted.z.items():
            assert np.array_equal(stored.nodes[name]["data"][()], z)


def test_chunks_fit_the_budget() -> None:
    network = graphs.check(small_graph())
    values = sum(int(np.prod(s)) for s in network.shapes.values())
    assert chunk_size(network, 5) == 100
    assert chunk_size(network, 5, budget=8 * values * 5 * 7) == 7
    assert chunk_size(network, 10**9, budget=8) == 1


def test_nothing_prints_in_colour_into_a_pipe(net: tuple[Path, Path]) -> None:
    told = invoke(EXPORT, net[0], "--input", net[1])
    assert "\x1b" not in told.stdout and torch.get_default_dtype() == torch.float32


def test_an_earlier_export_leaves_nothing_beside_this_one(net: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [net[0], "--input", net[1], "--out", out]
    invoke(eiexport.cli.app, *arguments, "--target", "torch")
    own = [out / "report.txt", out / "raster-mine.png", out / "traces/mine.h5"]
    for path in own:
        path.write_text("not made here")
    invoke(eiexport.cli.app, *arguments, "--target", "reference")
    assert not (out / "traces/torch.h5").exists() and not (out / "raster-torch.png").exists()
    assert (out / "traces/reference.h5").exists()
    assert all(path.read_text() == "not made here" for path in own)


# --- pictures, and files that are read


def test_draw_alone_and_beside_an_export(net: tuple[Path, Path], tmp_path: Path) -> None:
    graph, x = net
    invoke(EXPORT, graph, "--draw", tmp_path / "p" / "g.svg")
    assert "EIGatedLIF" in (tmp_path / "p" / "g.svg").read_text() or "LIF" in (tmp_path / "p" / "g.svg").read_text()
    assert not graph.with_name("net-export").exists()
    invoke(EXPORT, graph, "--input", x, "--target", "torch", "--draw", tmp_path / "both.svg")
    assert (tmp_path / "both.svg").is_file() and graph.with_name("net-export").is_dir()


@pytest.mark.parametrize(
    "more, words",
    [
        (["--draw", "g.png"], "give F.svg"),
        (["--draw", "g.svg", "--quantize", "8"], "leave --quantize out"),
        (["--draw", "g.svg", "--out", "x"], "leave --out out"),
        (["--draw", "g.svg", "--standard-nir"], "leave --standard-nir out"),
        (["--draw", "g.svg", "--message-bits", "4"], "--message-bits is for .net files"),
    ],
)
def test_draw_refuses(more: list[str], words: str, net: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(net[0].parent)
    before = sorted(net[0].parent.rglob("*"))
    assert words in invoke(EXPORT, net[0], *more, code=2).stderr
    assert sorted(net[0].parent.rglob("*")) == before


def test_the_model_itself_is_not_drawn_over(net: tuple[Path, Path]) -> None:
    model = net[0].rename(net[0].with_suffix(".svg"))
    kept = model.read_bytes()
    assert "would overwrite" in invoke(EXPORT, model, "--draw", model, code=2).stderr
    assert model.read_bytes() == kept


@pytest.mark.parametrize("name", ["model.net", "traces/reference.h5", "input.h5", "raster-torch.png"])
def test_no_export_touches_what_it_reads(name: str, net: tuple[Path, Path], tmp_path: Path) -> None:
    """Whatever an export writes or clears away, it never is the input or the model itself."""
    graph, x = net
    invoke(EXPORT, graph, "--input", x, "--out", tmp_path / "first")
    given = tmp_path / "out" / name
    given.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "first" / "input.h5", given)
    kept = given.read_bytes()
    said = invoke(EXPORT, graph, "--input", given, "--out", tmp_path / "out", code=2).stderr
    assert "would be overwritten" in said and given.read_bytes() == kept
