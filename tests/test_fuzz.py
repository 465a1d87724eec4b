"""Short runs of the fuzzing campaigns, and the corpus: what they have found, each as a number or a few lines.

`make fuzz` runs them in full: 2,000 float networks, 2,000 integer networks, 500 damaged files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import file_mutants
import float_features
import fuzz
import h5py
import nir
import numpy as np
import pytest
from cases import CASES, chain
from file_sources import writable
from float_networks import Made, made, network_of, networks
from hypothesis import HealthCheck, find, given, settings
from typer.testing import CliRunner

import eiexport.cli
from eiexport import graph as graphs
from eiexport import hdf5, inputs
from eiexport.check import MARGIN
from eiexport.errors import ExportError, GraphError, TraceError
from eiexport.plans import plan_from_json
from eiexport.trace import Trace, TraceFile, TraceWriter, compare_files
from eitrain import runs
from eitrain.errors import TrainError
from targets import base

ENGINES = [n for n in ("torch", "torch32", "onnx") if n in base.REGISTRY]
COMPILED = [n for n in ("c",) if n in base.REGISTRY]  # a compiler runs for every network


# --- generated networks


def test_float_networks_are_equal_or_explained() -> None:
    found = fuzz.floats(ENGINES, 40, 5000)
    assert found.problems == [] and found.networks == 40
    for row in found.rows.values():
        assert row.networks == 40 and row.entries["entries"] > 10_000 and row.entries["mismatches"] == 0
    assert fuzz.floats(COMPILED, 6, 5000).problems == []
    kinds = {what.removeprefix("kind ") for what in float_features.REQUIRED if what.startswith("kind ")}
    assert kinds <= set(found.rows["torch"].kinds), "forty networks already hold every kind"


def test_integer_networks_are_equal_bit_by_bit() -> None:
    engines = [n for n in fuzz.WHOLE if n in base.REGISTRY and n not in COMPILED]
    found = fuzz.integers(engines, 40, 5000)
    assert found.problems == [] and found.networks == 40
    for row in found.rows.values():
        assert row.entries["registers"] > 10_000 and row.entries["mismatches"] == 0
    assert fuzz.integers(COMPILED, 8, 5000).problems == []
    assert found.rows["torch"].kinds["IntCircuit"] and found.rows["torch"].kinds["IntGatedLIF"]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_drawn_networks_are_executions_on_torch(net: Made) -> None:
    network = net.network()
    for name in ("torch", "torch32"):
        check, trace = fuzz.held(base.get(name)(), network, net.x)
        assert set(trace.z) == set(network.recorded)
        assert not any(r.mismatches for r in check.results.values())


def test_a_number_names_a_network() -> None:
    (one, x), (two, y), (other, _) = network_of(11), network_of(11), network_of(12)
    assert one.graph.edges == two.graph.edges != other.graph.edges and np.array_equal(x, y)
    first, second = (base.get("reference")().compile(n).run(x).z for n in (one, two))
    assert list(first) == list(second) and all(np.array_equal(a, second[n]) for n, a in first.items())


def test_spikes_may_differ_behind_a_membrane_only() -> None:
    """Neither where no neuron sends its membrane, nor before the one that does."""
    n = nir.LI(np.full(2, 4.0), np.ones(2), np.zeros(2))
    fire = nir.Threshold(np.full(2, 0.5))
    for nodes, allowed in (((fire, n), False), ((n, fire), True), ((fire,), False)):
        network = graphs.check(chain((2,), *nodes))
        name = f"n{nodes.index(fire)}"
        assert fuzz.drifts(network, name) is allowed


def test_drawn_networks_shrink() -> None:
    """What fails in a large network is shown in the smallest that hypothesis finds."""
    options = settings(max_examples=200, deadline=None, derandomize=True, database=None)
    found = find(
        networks(), lambda net: any(type(n).__name__ == "LIF" for n in net.graph.nodes.values()), settings=options
    )
    assert len(found.graph.nodes) <= 5, sorted(found.graph.nodes)


def test_the_campaign_catches_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that drops one spike, one that breaks off, one that refuses, and networks that are silent."""
    torch = base.get("torch")

    class Drops(torch):  # type: ignore[valid-type, misc]
        def compile(self, network: Any) -> Any:
            program = super().compile(network)
            run = program.run

            def wrong(x: Any, probe: bool = False) -> Trace:
                trace = run(x, probe)
                for z in trace.z.values():
                    if z.dtype == np.int8 and z.any():
                        z[tuple(np.argwhere(z)[0])] = 0
                        break
                return trace

            program.run = wrong
            return program

    class Breaks(torch):  # type: ignore[valid-type, misc]
        def compile(self, network: Any) -> Any:
            raise KeyError("sorry")

    class Refuses(torch):  # type: ignore[valid-type, misc]
        def check(self, network: Any) -> None:
            raise base.Unsupported("node 'x': rule never: not this one")

    for kind, word in ((Drops, "differs"), (Breaks, "failed"), (Refuses, "refused")):
        monkeypatch.setattr(base, "get", lambda name, kind=kind: kind if name == "torch" else base_get(name))
        floats, whole = fuzz.floats(["torch"], 12, 0), fuzz.integers(["torch"], 8, 0)
        for found in (floats, whole):
            assert found.rows["torch"].status[word] >= 2, word
            assert any("torch" in text for text in found.problems), word


base_get = base.get


# --- corpus of networks: seeds at which float32 fires where the reference does not, and no tie is counted: what goes
# into the decision comes from a neuron that sends its membrane, and the run is checked from the membranes that it sent

NETWORKS = (351, 446, 475, 844, 1052, 1499)


def test_spikes_behind_membranes_are_explained_by_an_export(tmp_path: Path) -> None:
    """Other spikes than the reference's in an execution of the graph: told, and no failure."""
    net = made(NETWORKS[0])
    network = net.network()
    for name, node in net.graph.nodes.items():
        if isinstance(node, nir.Output):
            net.graph.nodes[name] = nir.Output(np.array(network.shapes[name]))
        elif getattr(node, "input_shape", ()) is None:
            size = network.input_shape(name)[1:]
            node.input_shape = size if len(size) > 1 else size[0]
    graphs.write(net.graph, tmp_path / "net.nir")
    np.save(tmp_path / "x.npy", net.x)
    arguments = [str(tmp_path / "net.nir"), "--input", str(tmp_path / "x.npy"), "--target", "torch32"]
    done = CliRunner().invoke(eiexport.cli.app, arguments)
    assert done.exit_code == 0, done.output
    row = json.loads((tmp_path / "net-export" / "report.json").read_text())["targets"]["torch32"]
    assert row["status"] == "explained" and row["free_running_mismatches"] > 0 and row["explained_ties"] == 0
    assert "behind neurons that send their membranes" in (tmp_path / "net-export" / "report.html").read_text()


@pytest.mark.parametrize("seed", NETWORKS)
def test_network_of_the_corpus(seed: int) -> None:
    net = made(seed)
    network = net.network()
    for name in ("reference", *ENGINES, *COMPILED):
        target = base.get(name)()
        check, _ = fuzz.held(target, network, net.x)
        assert not any(r.mismatches for r in check.results.values()), name
        assert max(r.margin for r in check.results.values()) <= MARGIN, name
    found = fuzz.floats(["torch32"], 1, seed)
    assert found.rows["torch32"].failures == []


# --- damaged files


def test_damaged_files_are_refused_or_right() -> None:
    found = file_mutants.campaign(60, 7000, 2)
    assert len(found.all) == 60 and found.problems == []


@pytest.fixture
def net(tmp_path: Path) -> Path:
    case = next(c for c in CASES if c.name == "branches")
    graphs.write(writable(case.network()), tmp_path / "net.nir")
    np.save(tmp_path / "x.npy", case.x)
    return tmp_path / "net.nir"


def _external(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["w"] = file["node/nodes/left/weight"][()]
    del file["node/nodes/left/weight"]
    file["node/nodes/left/weight"] = h5py.ExternalLink("other.h5", "/w")


def _virtual(file: h5py.File) -> None:
    w = file["node/nodes/left/weight"][()]
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["w"] = w
    layout = h5py.VirtualLayout(w.shape, w.dtype)
    layout[...] = h5py.VirtualSource("other.h5", "w", w.shape)
    del file["node/nodes/left/weight"]
    file.create_virtual_dataset("node/nodes/left/weight", layout)


def _raw(file: h5py.File) -> None:
    w = file["node/nodes/left/weight"][()]
    raw = Path(file.filename).with_name("raw")
    raw.write_bytes(w.tobytes())
    del file["node/nodes/left/weight"]
    file.create_dataset("node/nodes/left/weight", w.shape, w.dtype, external=[(str(raw), 0, w.nbytes)])


def _deep(file: h5py.File) -> None:
    group = file["node/metadata"]
    for _ in range(300):
        group = group.create_group("g")


def _claims(file: h5py.File) -> None:
    del file["node/nodes/left/weight"]
    file.create_dataset("node/nodes/left/weight", (10**6, 10**6), "f8", chunks=(100, 100))


def _zeros(file: h5py.File) -> None:
    """A bomb: one chunk of zeros for all of them."""
    del file["node/nodes/in/shape"]
    file.create_dataset("node/nodes/in/shape", data=np.zeros(4 * 10**7, np.int64), compression="gzip")


BROKEN: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "a node's metadata is a number": (lambda f: f.create_dataset("node/nodes/left/metadata", data=1.0), "no group"),
    "metadata in metadata is a number": (lambda f: f.create_dataset("node/metadata/a/metadata", data=1.0), "no group"),
    "an Input's shape in words": (lambda f: _other(f, "node/nodes/in/shape", "three"), "whole numbers"),
    "an Output's shape of references": (
        lambda f: _other(f, "node/nodes/out/shape", np.array([f.ref], h5py.ref_dtype)),
        "whole numbers",
    ),
    "a shape of fractions": (lambda f: _other(f, "node/nodes/in/shape", np.array([2.5])), "whole numbers"),
}


def _other(file: h5py.File, name: str, value: Any) -> None:
    del file[name]
    file[name] = value


@pytest.mark.parametrize("what", BROKEN)
def test_graph_of_the_corpus(what: str, net: Path) -> None:
    edit, word = BROKEN[what]
    with h5py.File(net, "r+") as file:
        edit(file)
    with pytest.raises(GraphError, match=word) as told:
        graphs.check(graphs.read(net))
    assert "\n" not in str(told.value)


def test_a_delay_that_no_state_holds_is_refused() -> None:
    late = nir.Delay(np.array([1.0, 1e9]))
    with pytest.raises(GraphError, match="at most 16384"):
        graphs.check(chain((2,), late))


@pytest.mark.parametrize("head", ["(" * 90, "(-1, 2, 3)", "(10**12,)", "'x'"])
def test_array_of_the_corpus(head: str, tmp_path: Path) -> None:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {head}, }}".encode()
    size = len(text).to_bytes(2, "little")
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + size + text + bytes(99))
    with pytest.raises(ExportError, match=r"x\.npy: not a readable") as told:
        inputs.load(tmp_path / "x.npy")
    assert "\n" not in str(told.value)


GRAPHS: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "a group inside itself": (lambda f: f["node"].__setitem__("metadata/g", f["node"]), "stands under two names"),
    "a soft link to its own group": (lambda f: f.__setitem__("node/metadata/g", h5py.SoftLink("/node")), "soft link"),
    "a weight by external link": (_external, "links to another file"),
    "a weight by virtual dataset": (_virtual, "in other files"),
    "a weight in a raw file": (_raw, "in other files"),
    "groups 300 deep": (_deep, "64 groups deep"),
    "10^12 weights that are not there": (_claims, "declares 8,000,000,000,000 bytes and holds 0"),
    "zeros by the hundred megabytes": (_zeros, "declares 320,000,000 bytes"),
}


@pytest.mark.parametrize("what", GRAPHS)
def test_file_of_the_corpus(what: str, net: Path) -> None:
    edit, word = GRAPHS[what]
    with h5py.File(net, "r+") as file:
        edit(file)
    with pytest.raises(GraphError, match=word) as told:
        graphs.read(net)
    assert str(net) in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(TraceError, match=word):
        hdf5.opened(net, TraceError, hdf5.WHOLE)


def test_sound_files_are_opened(net: Path) -> None:
    with h5py.File(net, "r+") as file:
        file["node/metadata/same"] = file["node/nodes/left/weight"]  # a dataset may stand twice
    with hdf5.opened(net, GraphError, hdf5.WHOLE) as file:
        assert "node" in file
    assert len(graphs.read(net).nodes) == 7


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    with TraceWriter(tmp_path / "t.h5", dt=1.0, dtype="float64") as writer:
        writer.append(Trace({"a": np.arange(24.0).reshape(2, 3, 4)}))
    return tmp_path / "t.h5"


def _refill(file: h5py.File, **options: Any) -> None:
    del file["nodes/a/observables/z/data"]
    file.create_dataset("nodes/a/observables/z/data", **options)


TRACES: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "ragged rows": (lambda f: _refill(f, shape=(2, 3, 4), dtype=h5py.vlen_dtype(np.float64)), "not numbers"),
    "texts": (lambda f: _refill(f, shape=(2, 3, 4), dtype=h5py.string_dtype()), "not numbers"),
    "complex": (lambda f: _refill(f, data=np.zeros((2, 3, 4), complex)), "not numbers"),
    "structures": (lambda f: _refill(f, data=np.zeros((2, 3, 4), [("r", "f4")])), "not numbers"),
    "a group": (
        lambda f: (f.pop("nodes/a/observables/z/data"), f.create_group("nodes/a/observables/z/data")),
        "no node",
    ),
    "nodes that are numbers": (lambda f: (f.pop("nodes"), f.create_dataset("nodes", data=1.0)), "no group 'nodes'"),
    "no dt": (lambda f: f["nodes/a/observables/z"].attrs.__setitem__("dt", np.nan), "dt must be"),
    "dt in words": (lambda f: f["nodes/a/observables/z"].attrs.__setitem__("dt", "one"), "corrupt"),
    "many values for dt": (lambda f: f["nodes/a/observables/z"].attrs.__setitem__("t0", np.zeros(3)), "corrupt"),
    "10^12 samples": (lambda f: _refill(f, shape=(10**12, 3, 4), dtype="f8", chunks=(9, 3, 4)), "holds 0"),
    "a sample of 10^9": (
        lambda f: _refill(f, shape=(1, 10**9, 1), dtype="u1", chunks=(1, 10**6, 1), fillvalue=0),
        "declares 1,000,000,000 bytes",
    ),
}


@pytest.mark.parametrize("what", TRACES)
def test_trace_of_the_corpus(what: str, trace: Path) -> None:
    edit, word = TRACES[what]
    with h5py.File(trace, "r+") as file:
        edit(file)
    with pytest.raises(TraceError, match=word) as told:
        TraceFile(trace)
    assert "\n" not in str(told.value)


def test_damaged_numbers_of_a_trace_are_told_when_read(trace: Path) -> None:
    with h5py.File(trace, "r+") as file:
        chunk = file["nodes/a/observables/z/data"].id.get_chunk_info(0)
        at, size = chunk.byte_offset, chunk.size
    data = bytearray(trace.read_bytes())
    data[at : at + size] = bytes(size)
    trace.write_bytes(data)
    other = trace.with_name("other.h5")
    other.write_bytes(bytes(data))
    with pytest.raises(TraceError, match="corrupt"):
        TraceFile(trace).nodes["a"]["data"][:1]
    with pytest.raises(TraceError, match="corrupt"):
        compare_files(trace, other)


PLAN: dict[str, Any] = {"bits": 8, "input_scale": 1.0, "input_lo": 0, "input_hi": 1}
LAYER: dict[str, Any] = {"exponent": 1, "connections": {"w": {"shift": 0, "sign_mode": "mixed", "bits": 8}}}
LAYER |= {"feedback": None, "balance": None, "headroom": None, "proven": False, "bias_exp": 6}


@pytest.mark.parametrize(
    "change",
    [{"exponent": 2.5}, {"exponent": True}, {"exponent": "1e3"}, {"exponent": 1e999}, {"headroom": "1e3"}]
    + [
        {"connections": {"w": {"shift": s, "sign_mode": "mixed", "bits": 8}}} for s in ([["a"]], [1.5], [None], 10**400)
    ],
)
def test_plan_of_the_corpus(change: dict[str, Any]) -> None:
    assert plan_from_json({**PLAN, "layers": {"n": LAYER}}).layers["n"].exponent == 1
    with pytest.raises(GraphError, match="not a quantisation plan") as told:
        plan_from_json({**PLAN, "layers": {"n": {**LAYER, **change}}})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ud800", "{", '{"data": {"folder": 3}}']
)
def test_config_of_the_corpus(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf8", "surrogatepass"))
    with pytest.raises(TrainError, match=r"config\.json") as told:
        runs.Run(tmp_path).config()
    assert "\n" not in str(told.value)
    (tmp_path / "plan.json").write_bytes(text.encode("utf8", "surrogatepass"))
    with pytest.raises(TrainError, match=r"plan\.json"):
        runs.Run(tmp_path).plan(8)


@pytest.mark.parametrize("epoch", [1e999, "three", None, 10**20, [1], True])
def test_checkpoint_of_the_corpus(epoch: Any, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    runs.save(path, {}, {"epoch": 3})
    assert runs.load(path)[1] == {"epoch": 3}
    runs.save(path, {}, {"epoch": epoch})
    with pytest.raises(TrainError, match=r"best\.safetensors.*epoch"):
        runs.load(path)
    runs.save(path, {}, json.loads("[1]"))
    with pytest.raises(TrainError, match=r"best\.safetensors"):
        runs.load(path)
