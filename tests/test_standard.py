"""The pass to stock NIR: the same spikes before and after, in the dtype it was made for, or a refusal by name."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from cases import CASES, Case, Numbers, chain, connected, full, integrate
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import EXPORT, invoke, no_data, refused, tree  # noqa: F401
from test_graph import NIR_MISJUDGES, on_file

from eiexport import graph as graphs
from eiexport.errors import GraphError
from eiexport.nodes import EIDiscreteLIF, EIGatedLIF, EIMaxPool2d, lif, prepare
from eiexport.standard import to_standard_nir
from eiexport.steps import Clock
from targets import base

ENGINES = {"float32": "torch32", "float64": "torch"}
BLOCK = np.array([[3, 3], [1, 1], [1, 1]])


def lowered(node: Any, dtype: str = "float32", clock: Any = (1.0, "euler")) -> Any:
    """The node that one neuron node of shape (n,) or (C, H, W) becomes."""
    shape = np.shape(getattr(node, "neuron", node).v_threshold)
    return to_standard_nir(chain(shape, node, clock=clock), dtype).nodes["n0"]


def spikes(graph: nir.NIRGraph, x: np.ndarray, target: str) -> dict[str, np.ndarray]:
    return base.get(target)().compile(graphs.check(graph)).run(x).z


def made_for(graph: nir.NIRGraph) -> str:
    return graph.metadata["eiexport"]["exact_for"]


@pytest.mark.parametrize("dtype", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_every_case_runs_the_same_or_is_refused_by_name(case: Case, dtype: str, tmp_path: Path) -> None:
    before = on_file(case)
    kinds = {n: type(node).__name__ for n, node in before.nodes.items()}
    try:
        after = to_standard_nir(before, dtype)
    except GraphError as e:
        named = [n for n, kind in kinds.items() if kind.startswith("EI") and str(e).startswith(f"node {n!r} ({kind}) ")]
        assert len(named) == 1 and "--standard-nir lowers EIDiscreteLIF" in str(e)
        return
    graphs.write(after, tmp_path / "g.nir")
    misjudged = f"{case.name.removesuffix('-spikes').removesuffix('-real')}-real" in NIR_MISJUDGES
    stock = nir.read(tmp_path / "g.nir", type_check=not misjudged)
    assert not any(type(node).__name__.startswith("EI") for node in stock.nodes.values())
    assert all(after.nodes[n] is node for n, node in before.nodes.items() if not kinds[n].startswith("EI"))
    back = graphs.check(graphs.read(tmp_path / "g.nir"), alphabet=case.alphabet)
    x, found, wanted = case.x, {}, {}
    for target in (ENGINES[dtype], *(("reference",) if dtype == "float64" else ())):
        found, wanted = (base.get(target)().compile(n).run(x).z for n in (back, case.network()))
        assert found.keys() >= wanted.keys()
        for name, z in wanted.items():
            np.testing.assert_array_equal(found[name], z, err_msg=name)


def test_which_cases_are_lowered() -> None:
    """A pass that refuses everything would pass the test above."""
    done = set()
    for case in CASES:
        try:
            after = to_standard_nir(case.graph)
        except GraphError:
            continue
        done |= {
            f"{type(node).__name__}-{getattr(node, 'compare', '')} as {type(after.nodes[n]).__name__}"
            for n, node in case.graph.nodes.items()
            if type(node).__name__.startswith("EI")
        }
    assert done >= {f"EIDiscreteLIF-{c} as LIF" for c in ("gt", "ge")} | {"EIGatedLIF- as LIF"}


# --- thresholds


@pytest.mark.parametrize("dtype, target", ENGINES.items())
@pytest.mark.parametrize("threshold", [1.0, 0.5, 0.1, -0.75, 0.0, 2.0**20])
@pytest.mark.parametrize("decay", [1.0, 0.5, 0.9])
def test_an_exact_hit_fires_and_one_below_does_not(decay: float, threshold: float, dtype: str, target: str) -> None:
    hit = np.array(threshold, dtype)
    x = np.array([hit, np.nextafter(hit, hit.dtype.type(-np.inf)), np.nextafter(hit, hit.dtype.type(np.inf))])
    x = x.astype(np.float64).reshape(1, 1, 3)
    for compare, wanted in (("ge", [1, 0, 1]), ("gt", [0, 0, 1])):
        graph = chain((3,), lif((3,), decay=decay, threshold=threshold, compare=compare))
        after = to_standard_nir(graph, dtype)
        assert type(after.nodes["n0"]) is (nir.IF if decay == 1 else nir.LIF)
        assert made_for(after) == (dtype if compare == "ge" else "any")
        for form in (graph, after):
            assert spikes(form, x, target)["n0"].ravel().tolist() == wanted


def test_a_hit_after_several_steps() -> None:
    """Membranes that charge up to the threshold, are reset there, and charge again."""
    half, whole = lif((2,), decay=0.5, threshold=1.5, compare="ge"), lif((2,), decay=1, threshold=2, compare="ge")
    graph = chain((2,), half, whole)
    x = np.array([[1.0, 1.0, 0.5, 1.25, 1.0, 1.0, 1.0, 1.0]])[..., None] * [1.0, 0.75]
    z = spikes(to_standard_nir(graph), x, "torch32")
    assert z["n0"][0, :, 0].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert z["n1"][0, :, 0].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    for name, wanted in spikes(graph, x, "torch32").items():
        np.testing.assert_array_equal(z[name], wanted)


def test_v_reset_gain_and_shape_are_kept() -> None:
    n = Numbers(3, False)
    node = EIDiscreteLIF(*(n.rng.uniform(0.1, 0.9, (2, 3, 2)) for _ in range(4)), compare="ge")
    after = lowered(node)
    assert {v.shape for k, v in vars(after).items() if isinstance(v, np.ndarray)} == {(2, 3, 2)}
    np.testing.assert_array_equal(after.v_reset, node.v_reset)
    assert (after.v_threshold < node.v_threshold.astype(np.float32)).all()
    np.testing.assert_array_equal(after.v_threshold, after.v_threshold.astype(np.float32))
    assert not after.v_leak.any()
    step = prepare(after, Clock(1.0, "euler"))
    for found, wanted in ((step.decay, node.decay), (step.gain, node.gain)):
        np.testing.assert_array_equal(found.astype(np.float32), wanted.astype(np.float32))
        np.testing.assert_allclose(found, wanted, rtol=1e-15)


# --- decays


@pytest.mark.parametrize("dt, tau", [(1.0, 1.25), (1.0, 2.0), (1.0, 10.0), (1e-3, 5e-3), (1e-4, 2.5e-3), (1.0, 1.0)])
@pytest.mark.parametrize("dtype", ENGINES)
def test_a_decay_of_the_stock_formula_comes_back(dt: float, tau: float, dtype: str) -> None:
    """A cell that computes 1 - fl(dt / tau), as stock LIFs do: decays .2, .5, .9, ..."""
    node = lif((3,), decay=1 - dt / tau, gain=dt / tau * 3, threshold=1)
    graph = to_standard_nir(chain((3,), node, clock=(dt, "euler")), dtype)
    step = prepare(graph.nodes["n0"], Clock(dt, "euler"))
    assert (step.decay, step.gain) == (1 - dt / tau, dt / tau * 3) and made_for(graph) == "any"


def test_most_decays_of_the_stock_formula_come_back_in_float64() -> None:
    """tau and r need not be the numbers that were trained, but together they give the same two."""
    rng = np.random.default_rng(0)
    tau, r = rng.uniform(1, 50, 400), rng.uniform(0.1, 3, 400)
    node = EIDiscreteLIF(1 - 1 / tau, 1 / tau * r, np.ones(400), np.zeros(400))
    step = prepare(lowered(node, "float64"), Clock(1.0, "euler"))
    np.testing.assert_array_equal(step.decay, node.decay)
    np.testing.assert_array_equal(step.gain, node.gain)


@pytest.mark.parametrize("decay, exact", [(0.2, False), (0.3, False), (0.5, True), (0.9, True)])
def test_a_decay_written_as_a_number(decay: float, exact: bool) -> None:
    """1 - a has no more than 53 digits behind the point: .2 in float64 has one more, .2 in float32 has not."""
    node = lif((2,), decay=decay, threshold=1)
    graph = to_standard_nir(chain((2,), node), "float32")
    found = prepare(graph.nodes["n0"], Clock(1.0, "euler"))
    assert np.float32(found.decay) == np.float32(decay) and (found.decay == decay) == exact and found.gain is None
    assert made_for(graph) == ("any" if exact else "float32")
    if exact:
        assert lowered(node, "float64").tau.tolist() == [1 / (1 - decay)] * 2
    else:
        with pytest.raises(GraphError, match=rf"'n0' \(EIDiscreteLIF\) has decay {decay}.* and gain 1.0, .*float64"):
            lowered(node, "float64")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(1e-3, 10), st.floats(1, 500), st.floats(-4, 4), st.sampled_from([1.0, 1e-3, 1e-4]))
def test_random_decays_in_float32(r: float, ratio: float, threshold: float, dt: float) -> None:
    """What training in float32 gives: always there, and the same in both forms."""
    decay, gain = float(np.float32(1 - 1 / ratio)), float(np.float32(r))
    node = lif((1,), decay=decay, gain=gain, threshold=threshold)
    step = prepare(lowered(node, "float32", (dt, "euler")), Clock(dt, "euler"))
    assert np.float32(step.decay) == np.float32(decay)
    assert np.float32(1.0 if step.gain is None else step.gain) == np.float32(gain)


def test_no_decay_is_an_integrator_under_either_integrator() -> None:
    for integrator in ("euler", "exponential"):
        node = lowered(lif((2,), decay=1, gain=0.1, threshold=1), "float64", (1e-3, integrator))
        assert type(node) is nir.IF and (1e-3 * node.r == 0.1).all()


# --- pools, graphs


def maxima(alphabet: str) -> nir.NIRGraph:
    shape = (2, 4, 4)
    first = lif(shape, decay=0.5, threshold=1, lower=-1.0 if alphabet == "ternary" else None)
    ahead = [nir.Conv2d((4, 4), np.full((2, 2, 1, 1), 0.5), 1, 0, 1, 1, np.zeros(2))] if alphabet == "real" else []
    return chain(shape, first, *ahead, EIMaxPool2d(*BLOCK), integrate(shape, 2))


def test_a_maximum_of_spikes_becomes_stock() -> None:
    graph = maxima("binary")
    graph.nodes["n1_sum"] = nir.Scale(np.array(1.0))  # the name is taken
    graph = nir.NIRGraph(
        graph.nodes, [*graph.edges, ("n1", "n1_sum"), ("n1_sum", "out")], metadata=graph.metadata, type_check=False
    )
    x = np.random.default_rng(0).uniform(0, 0.8, (3, 6, 2, 4, 4))
    after = to_standard_nir(graph)
    assert [type(after.nodes[n]).__name__ for n in ("n1_sum", "n1_sum_", "n1")] == ["Scale", "SumPool2d", "Threshold"]
    before, found = spikes(graph, x, "torch32"), spikes(after, x, "torch32")
    assert 0 < before["n2"].mean() < 1 and made_for(after) == "any"
    for name, z in before.items():
        np.testing.assert_array_equal(found[name], z)


def test_the_graph_itself_is_left_alone_and_says_what_was_done() -> None:
    graph = connected({"a": lif((2,), decay=0.5, threshold=1, compare="ge")}, [("in", "a"), ("a", "out")], (2,))
    graph.metadata["eiexport"]["provenance"] = {"tool": "somebody", "epoch": 3}
    kept = deepcopy(graph.to_dict())
    after = to_standard_nir(graph, "float32")
    for key, value in kept["nodes"]["a"].items():
        np.testing.assert_array_equal(graph.nodes["a"].to_dict()[key], value)
    assert graph.metadata == kept["metadata"] and list(graph.edges) == kept["edges"]
    about = after.metadata["eiexport"]
    told = {k: about[k] for k in ("dtype", "exact_for", "dt", "integrator")}
    assert told == {"dtype": "float32", "exact_for": "float32", "dt": 1.0, "integrator": "euler"}
    assert about["provenance"] == {
        "tool": "somebody",
        "epoch": 3,
        "standard_nir": "float32",
        "recurrence": "explicit",
    }
    # done again it stays what it is, and is not called exact in another dtype
    assert made_for(to_standard_nir(after, "float32")) == "float32"
    with pytest.raises(GraphError, match="made for float32 and is not exact in float64"):
        to_standard_nir(after, "float64")


def test_a_gated_node_without_gates_is_its_neuron() -> None:
    neuron = lif((2,), decay=0.5, threshold=1)
    assert_equal = np.testing.assert_array_equal
    for key, value in vars(lowered(neuron)).items():
        if isinstance(value, np.ndarray):
            assert_equal(vars(lowered(EIGatedLIF(neuron)))[key], value)


N = Numbers(9, True)
REFUSED: dict[str, tuple[nir.NIRGraph, tuple[str, ...]]] = {
    "no reset": (chain((2,), lif((2,), decay=0.5, threshold=1, reset="none")), ("'n0'", "reset 'none'")),
    "two thresholds": (chain((2,), lif((2,), decay=0.5, threshold=1, lower=-1.0)), ("'n0'", "two thresholds")),
    "gates": (chain((3,), N.gated((3,), True, False)), ("'n0' (EIGatedLIF)", "gates")),
    "balance": (chain((3,), integrate((3,)), N.gated((3,), False, True)), ("'n1' (EIGatedLIF)", "gates")),
    "maximum of currents": (maxima("real"), ("'n2' (EIMaxPool2d)", "real[")),
    "maximum of signed spikes": (maxima("ternary"), ("'n0'", "two thresholds")),
    "exponential": (
        chain((2,), lif((2,), decay=0.5, threshold=1), clock=(1.0, "exponential")),
        ("'n0'", "integrator", "euler"),
    ),
    "exponential, reset softly": (
        chain((2,), lif((2,), decay=0.5, threshold=1, reset="subtract"), clock=(1.0, "exponential")),
        ("'n0'", "integrator", "euler"),
    ),
    "a soft reset that gets nowhere": (
        chain((2,), EIDiscreteLIF(full(2, 0.5), np.array([1.0, 0.0]), *full((2, 2), 1.0), reset="subtract")),
        ("'n0'", "gain 0"),
    ),
    "a soft reset too large": (
        chain((2,), lif((2,), decay=0.5, threshold=1e20, gain=1e-30, reset="subtract")),
        ("'n0'", "5e+49", "float32"),
    ),
    "a soft reset too small": (
        chain((2,), lif((2,), decay=0.5, threshold=1e-20, gain=1e30, reset="subtract")),
        ("'n0'", "5e-51", "float32"),
    ),
    "decay 1 in places": (
        chain((2,), EIDiscreteLIF(np.array([1.0, 0.5]), *full((2, 2), 1.0), full(2, 0.0))),
        ("'n0'", "split it"),
    ),
    "a huge threshold": (
        chain((2,), lif((2,), decay=1, threshold=1e39, compare="ge")),
        ("'n0'", "threshold", "float32", "1e+39"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, tmp_path: Path, refused: Any) -> None:  # noqa: F811
    graph, words = REFUSED[name]
    graph = nir.NIRGraph(dict(graph.nodes), graph.edges, metadata=graph.metadata, type_check=False)
    graph.nodes["out"] = nir.Output(np.array(graphs.check(graph).shapes["out"]))
    graphs.write(graph, tmp_path / "g.nir")
    np.save(tmp_path / "x.npy", np.zeros((1, 2, *graphs.check(graph).shapes["in"])))
    every = (*words, "--standard-nir lowers EIDiscreteLIF with one threshold and reset 'zero' or 'subtract'")
    refused(EXPORT, tmp_path / "g.nir", "--input", tmp_path / "x.npy", "--standard-nir", names=every)


# --- the command line


def written(tmp_path: Path, *nodes: Any, x: np.ndarray) -> tuple[Any, ...]:
    """Arguments that export a chain on an input."""
    graph = chain(x.shape[2:], *nodes)
    graph.nodes["out"] = nir.Output(np.array(graphs.check(graph).shapes["out"]))
    graphs.write(graph, tmp_path / "g.nir")
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "g.nir", "--input", tmp_path / "x.npy", "--out", tmp_path / "out"


def told(tmp_path: Path) -> tuple[dict[str, str], str]:
    """(status of each row, notes) of the report."""
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    return {n: row["status"] for n, row in report["targets"].items()}, "\n".join(report["notes"])


HITS = np.random.default_rng(4).integers(-1, 4, (3, 7, 4)) / 4
GE = [nir.Affine(np.eye(4)[::-1].copy(), full(4, 0.25)), lif((4,), decay=0.5, threshold=0.75, compare="ge")]


def test_export(tmp_path: Path) -> None:
    arguments = written(tmp_path, *GE, x=HITS)
    said = invoke(EXPORT, *arguments, "--target", "torch", "--target", "reference", "--standard-nir").stdout
    status, notes = told(tmp_path)
    assert status == dict.fromkeys(("torch", "torch32", "reference"), "equal")
    assert "the targets get the standard form" in said and "'n1' EIDiscreteLIF as LIF" in notes
    assert "exact in float32 alone" in notes and "(torch, reference)" in notes and "type_check" not in notes
    assert "original (reference)" in said
    stock = nir.read(tmp_path / "out" / "model.nir")  # plain, with all its checks
    assert {n: type(node).__name__ for n, node in stock.nodes.items()} == {
        "in": "Input",
        "n0": "Affine",
        "n1": "LIF",
        "out": "Output",
    }
    assert made_for(stock) == "float32"
    # the file again, without the graph it came from: the note stays, for the engines in float64
    again = [tmp_path / "out" / "model.nir", *arguments[1:3], "--out", tmp_path / "out" / "again", "--target", "torch"]
    invoke(EXPORT, *again)
    (notes_again,) = json.loads((tmp_path / "out" / "again" / "report.json").read_text())["notes"]
    assert "exact in float32 alone" in notes_again and "(reference, torch)" in notes_again


def test_what_was_rounded_is_not_quantised(tmp_path: Path) -> None:
    """Whole numbers would undo the rounding that made `>` of `>=`."""
    arguments = written(tmp_path, *GE, x=HITS)
    invoke(EXPORT, *arguments, "--target", "torch", "--standard-nir")
    again = [tmp_path / "out" / "model.nir", *arguments[1:3], "--out", tmp_path / "again", "--target", "torch"]
    result = invoke(EXPORT, *again, "--quantize", 8, code=2)
    assert "moved by a rounding of float32" in result.stderr and not (tmp_path / "again").exists()


def test_a_file_of_before_says_its_dtype_and_restricts_nothing() -> None:
    old = graphs.stamp(chain((4,), *GE), dt=1.0, integrator="euler", dtype="float64", exact_for="float64")
    assert graphs.exact_for(old) == graphs.ANY
    assert made_for(to_standard_nir(old, "float32")) == "float32"


def test_export_for_float64(tmp_path: Path) -> None:
    """Then float32 is not run unasked; asked for, it misses every exact hit, and the row says so."""
    arguments = (*written(tmp_path, *GE, x=HITS), "--standard-nir", "--dtype", "float64", "--target", "torch")
    invoke(EXPORT, *arguments)
    status, notes = told(tmp_path)
    assert status == {"torch": "equal"} and "exact in" not in notes
    invoke(EXPORT, *arguments, "--target", "torch32", code=1)
    status, notes = told(tmp_path)
    assert status == {"torch": "equal", "torch32": "differs"} and "exact in float64 alone" in notes
    assert "(torch32)" in notes


def test_an_engine_in_another_dtype_is_held_against_the_graph_before(tmp_path: Path) -> None:
    """A float64 membrane between the lowered and the meant threshold: the row differs, and a note says why."""
    x = np.full((1, 2, 1), 1 - 1e-9)
    arguments = written(tmp_path, lif((1,), decay=1, threshold=1, compare="ge"), x=x)
    invoke(EXPORT, *arguments)
    assert told(tmp_path)[0] == {"reference": "equal"}
    invoke(EXPORT, *arguments, "--target", "torch", "--target", "reference", "--standard-nir", code=1)
    status, notes = told(tmp_path)
    assert status["torch"] == status["reference"] == "differs" and "exact in float32 alone" in notes


def test_a_graph_that_holds_in_any_dtype_has_no_warning(tmp_path: Path) -> None:
    arguments = written(tmp_path, GE[0], lif((4,), decay=0.5, threshold=0.75), x=HITS)
    invoke(EXPORT, *arguments, "--target", "torch", "--standard-nir")
    status, notes = told(tmp_path)
    assert status == {"torch": "equal", "torch32": "equal"} and "exact in" not in notes


def test_a_file_that_nir_misjudges_says_so(tmp_path: Path) -> None:
    grouped = Numbers(5, True).conv(2, 2, (3, 3), padding=1, groups=2)
    grouped.input_shape = (4, 4)
    x = np.random.default_rng(1).integers(0, 2, (2, 3, 2, 4, 4)).astype(float)
    arguments = written(tmp_path, grouped, lif((2, 4, 4), decay=0.5, threshold=0.5, compare="ge"), x=x)
    invoke(EXPORT, *arguments, "--standard-nir")
    _, notes = told(tmp_path)
    assert "opens model.nir with type_check=False only" in notes and "type mismatch" in notes
    with pytest.raises(ValueError):
        nir.read(tmp_path / "out" / "model.nir")
    assert set(nir.read(tmp_path / "out" / "model.nir", type_check=False).nodes) == {"in", "n0", "n1", "out"}


@pytest.mark.parametrize(
    "options, names",
    [
        (["--dtype", "float32"], ["--dtype needs --standard-nir"]),
        (["--standard-nir", "--dtype", "float16"], ["'float16'", "float32, float64"]),
        (["--recurrence", "implicit"], ["--recurrence needs --standard-nir"]),
        (["--standard-nir", "--recurrence", "none"], ["'none'", "explicit, implicit"]),
        (["--standard-nir", "--quantize", "8"], ["--standard-nir", "--quantize"]),
        (["--standard-nir", "--budget", "1"], ["--budget", "--quantize"]),
    ],
)
def test_options_that_contradict_each_other(options: list[str], names: list[str], tmp_path: Path, refused: Any) -> None:  # noqa: F811
    arguments = written(tmp_path, *GE, x=HITS)
    refused(EXPORT, *arguments, *options, names=tuple(names))
