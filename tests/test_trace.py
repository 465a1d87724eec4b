"""Traces on disk, their comparison, and the check that a trace is an execution of its graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from cases import CASES, MAP, Case, Numbers, T, chain, noise, whole

from eiexport.check import ExecutionCheck, judge
from eiexport.errors import TraceError
from eiexport.graph import Network, check
from eiexport.nodes import lif
from eiexport.ops import NumpyOps
from eiexport.trace import NodeResult, Trace, TraceFile, TraceWriter, compare_files
from targets import base
from targets.loop import Executor


def run(network: Network, x: np.ndarray, target: str = "reference") -> dict[str, np.ndarray]:
    return base.get(target)().compile(network).run(x).z


def save(path: Path, *pieces: dict[str, np.ndarray], dtype: str = "float64", **about: Any) -> Path:
    with TraceWriter(path, dt=1.0, dtype=dtype, engine="test") as writer:
        for z in pieces:
            writer.append(Trace(z, latency=about.get("latency", {})))
    return path


@pytest.fixture
def z() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    spikes = rng.integers(-1, 2, (5, T, *MAP)).astype(np.int8)
    return {"spikes": spikes, "real": rng.normal(size=(5, T, 3))}


# --- files


def test_nir_opens_a_trace(z: dict[str, np.ndarray], tmp_path: Path) -> None:
    data = nir.read_data(save(tmp_path / "t.h5", z, latency={"real": 3}))
    assert sorted(data.nodes) == ["real", "spikes"]
    for name, values in z.items():
        grid = data.nodes[name].observables["z"]
        np.testing.assert_array_equal(grid.data, values.reshape(5, T, -1))  # neurons flat, C order
        assert grid.dt == 1.0
    with h5py.File(tmp_path / "t.h5") as f:
        about = f["nodes/real/observables/z"].attrs
        assert (about["latency"], about["t0"], about["dtype"]) == (3, 0, "float64")


def test_chunks_equal_one_piece(z: dict[str, np.ndarray], tmp_path: Path) -> None:
    one = save(tmp_path / "one.h5", z)
    parts = [{n: a[i:j] for n, a in z.items()} for i, j in ((0, 2), (2, 3), (3, 5))]
    many = save(tmp_path / "many.h5", *parts)
    results, remarks = compare_files(one, many, size=2)
    assert not remarks and all(r.entries == z[n].size and not r.mismatches for n, r in results.items())
    with TraceFile(many) as f:
        assert f.samples == 5 and f.shape("spikes") == MAP
        back = list(f.chunks(3))
        assert [start for start, _ in back] == [0, 3]
        np.testing.assert_array_equal(np.concatenate([t.z["spikes"] for _, t in back]), z["spikes"])


def test_file_appears_only_when_complete(z: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), TraceWriter(tmp_path / "t.h5", dt=1.0, dtype="float64") as writer:
        writer.append(Trace(z))
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_unreadable_traces(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no")
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["x"] = 1
    with h5py.File(tmp_path / "empty.h5", "w") as f:
        f.create_group("nodes")
    for name in ("absent.h5", "text.h5", "other.h5", "empty.h5"):
        with pytest.raises(TraceError, match=name):
            TraceFile(tmp_path / name)


# --- comparison of two files


Outputs = dict[str, np.ndarray]


def pair(tmp_path: Path, a: Outputs, b: Outputs) -> tuple[dict[str, NodeResult], list[str]]:
    return compare_files(save(tmp_path / "a.h5", a), save(tmp_path / "b.h5", b), size=2)


def test_divergence_is_named(z: dict[str, np.ndarray], tmp_path: Path) -> None:
    other = {n: a.copy() for n, a in z.items()}
    other["spikes"][3, 2, 1, 2, 0] = 5
    other["spikes"][1, 4, 0, 0, 1] = 7
    results, _ = pair(tmp_path, other, z)
    found = results["spikes"].first
    assert found is not None and results["spikes"].mismatches == 2 and results["real"].mismatches == 0
    # the earliest step, although a smaller sample differs later
    assert (found.node, found.sample, found.step, found.neuron, found.value) == ("spikes", 3, 2, (1, 2, 0), 5)
    assert "'spikes', step 2, neuron (1, 2, 0), sample 3" in str(found)


def test_signs_count(tmp_path: Path) -> None:
    minus = {"a": -np.ones((1, T, 2), np.int8)}
    for other, wrong in ((np.abs(minus["a"]), 2 * T), (0 * minus["a"], 2 * T), (minus["a"], 0)):
        results, _ = pair(tmp_path, minus, {"a": other})
        assert results["a"].mismatches == wrong
        assert results["a"].negative == 2 * T and results["a"].spikes == 2 * T and not results["a"].silent


def test_silence_is_told(tmp_path: Path) -> None:
    results, _ = pair(tmp_path, {"a": np.zeros((1, T, 2), np.int8)}, {"a": np.zeros((1, T, 2), np.int8)})
    assert results["a"].silent and results["a"].entries == 2 * T


def test_lag_is_remarked_and_not_applied(z: dict[str, np.ndarray], tmp_path: Path) -> None:
    late = {n: np.concatenate([0 * a[:, :2], a[:, :-2]], axis=1) for n, a in z.items()}
    results, remarks = pair(tmp_path, late, z)
    assert results["spikes"].mismatches > 0
    assert any("'spikes'" in r and "2 steps later" in r for r in remarks)
    assert any("2 steps earlier" in r for r in pair(tmp_path, z, late)[1])


def test_t0_aligns_rows(z: dict[str, np.ndarray], tmp_path: Path) -> None:
    a, b = save(tmp_path / "a.h5", {"s": z["spikes"][:, 2:]}), save(tmp_path / "b.h5", {"s": z["spikes"]})
    with h5py.File(a, "a") as f:
        f["nodes/s/observables/z"].attrs["t0"] = 2
    result = compare_files(a, b)[0]["s"]
    assert result.mismatches == 0 and result.entries == z["spikes"][:, 2:].size


@pytest.mark.parametrize("t0", [10, 7])
def test_traces_that_share_no_step_are_refused(z: dict[str, np.ndarray], tmp_path: Path, t0: int) -> None:
    a, b = save(tmp_path / "a.h5", {"s": z["spikes"][:, :3]}), save(tmp_path / "b.h5", {"s": z["spikes"]})
    with h5py.File(a, "a") as f:
        f["nodes/s/observables/z"].attrs["t0"] = t0
    for pair in ((a, b), (b, a)):
        try:
            results, remarks = compare_files(*pair)
        except TraceError as e:
            assert "shape" not in str(e), "the shapes are fine, the steps are not"
        else:  # or said in words, and nothing counted as compared
            assert remarks and not any(r.entries for r in results.values())


def test_foreign_file_without_shape_is_compared_flat(z: dict[str, np.ndarray], tmp_path: Path) -> None:
    b = save(tmp_path / "b.h5", {"s": z["spikes"]})
    with h5py.File(b, "a") as f:
        del f["nodes/s/observables/z"].attrs["shape"]
    result = compare_files(save(tmp_path / "a.h5", {"s": z["spikes"]}), b)[0]["s"]
    assert result.mismatches == 0 and result.entries == z["spikes"].size


def test_what_cannot_be_compared_is_refused(z: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="share no node"):
        pair(tmp_path, {"a": z["real"]}, {"b": z["real"]})
    with pytest.raises(TraceError, match="samples"):
        pair(tmp_path, {"a": z["real"]}, {"a": z["real"][:3]})
    with pytest.raises(TraceError, match="'a'"):
        pair(tmp_path, {"a": z["real"]}, {"a": z["real"][..., :2]})
    _, remarks = pair(tmp_path, {"a": z["real"], "b": z["real"]}, {"a": z["real"]})
    assert remarks == ["node 'b' is in one file only"]


# --- the execution check


def verdict(network: Network, x: np.ndarray, z: dict[str, np.ndarray], dtype: str = "float64") -> tuple[str, Any]:
    checked = ExecutionCheck(network, dtype)
    checked.add(x, z)
    return judge(checked.results, dtype), checked.results


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_own_trace_is_equal(case: Case) -> None:
    network = case.network()
    got, results = verdict(network, case.x, run(network, case.x))
    assert got == "equal" and sum(r.entries for r in results.values()) > 0


@pytest.mark.parametrize("case", [c for c in CASES if not c.exact], ids=repr)
def test_float32_trace_is_no_mismatch(case: Case) -> None:
    network = case.network()
    assert verdict(network, case.x, run(network, case.x, "torch32"), "float32")[0] == "equal"


def faulty_run(network: Network, x: np.ndarray, name: str, at: tuple[int, ...], value: float) -> Outputs:
    """An engine that takes one wrong decision at (sample, step, *neuron) and goes on from there."""
    executor = Executor(network, NumpyOps())
    decide, calls = executor.steps[name].decide, iter(range(x.shape[1]))

    def wrong_once(ops: Any, membrane: Any) -> Any:
        z, s = (np.array(a) for a in decide(ops, membrane))
        if next(calls) == at[1]:
            z[(at[0], *at[2:])], s[(at[0], *at[2:])] = value, abs(value)
        return z, s

    object.__setattr__(executor.steps[name], "decide", wrong_once)
    return {n: np.swapaxes(a, 0, 1) for n, a in executor.run(np.swapaxes(x, 0, 1)).items()}


WRONG_ONCE = [c for c in CASES if c.name.endswith("-random") or "chain" in c.name or c.name.startswith("loop")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_wrong_decision_is_one_mismatch(dtype: str) -> None:
    """Named where it happened; what follows from it, in later steps and other nodes, is not blamed."""
    rng, tried, free_running = np.random.default_rng(0), 0, 0
    for case in WRONG_ONCE:
        network = case.network()
        clean = run(network, case.x)
        for name in (n for n in clean if network.steps[n].neuron and network.alphabets[n].kind != "real"):
            at = (int(rng.integers(len(case.x))), 1, *(int(rng.integers(n)) for n in clean[name].shape[2:]))
            values = {0, 1} if network.alphabets[name].kind == "binary" else {-1, 0, 1}
            for value in values - {int(clean[name][at])}:
                z = faulty_run(network, case.x, name, at, value)
                checked = ExecutionCheck(network, dtype)
                checked.add(case.x, z)
                wrong = {n: r.mismatches for n, r in checked.results.items() if r.mismatches}
                assert wrong == {name: 1}, case.name
                first = checked.results[name].first
                assert first is not None
                assert (first.sample, first.step, first.neuron, first.value) == (at[0], at[1], at[2:], value)
                assert first.expected == clean[name][at]
                assert judge(checked.results, dtype) == "differs"
                tried += 1
                free_running += sum(int((z[n] != clean[n]).sum()) for n in clean)
    assert tried > 40 and free_running > 1.5 * tried  # the free-running count does spread


def test_lost_sign_is_found() -> None:
    by_name = {c.name: c for c in CASES}
    for name in (
        "EIDiscreteLIF-ge-subtract-lower-hard",
        "EIGatedLIF-conv-balance-hard",
        "signed-lower-chain",
    ):
        case = by_name[name]
        network = case.network()
        z = run(network, case.x)
        lost = int((z["n0"] < 0).sum())
        z["n0"] = np.abs(z["n0"])
        got, results = verdict(network, case.x, z)
        assert got == "differs" and lost > 0 and results["n0"].mismatches >= lost


def test_wrong_real_value_is_found() -> None:
    for case in CASES:
        network = case.network()
        z = run(network, case.x)
        if case.name in ("LI-random", "CubaLI-random", "Conv2d-all-real", "AvgPool2d-real"):
            for slip, wanted in ((1e-9, "differs"), (0.0, "equal")):
                other = {n: a.copy() for n, a in z.items()}
                other["n0"][0, 1].reshape(-1)[0] += slip
                got, results = verdict(network, case.x, other)
                assert got == wanted
                assert results["n0"].largest <= 1.1e-9
            # float32 may be this far off; what is beyond its own rounding is wrong there too
            other["n0"][0, 1].reshape(-1)[0] += 1e-3
            assert verdict(network, case.x, other, "float32")[0] == "differs"
            other["n0"][0, 1].reshape(-1)[0] = np.nan
            assert verdict(network, case.x, other, "float32")[0] == "differs", case.name


# 0.1 three times: 0.30000000000000004 > 0.3 in float64, but float32(0.3) in float32
TIE_INPUT, TIE_STEP = np.full(3, 0.1), 2


def tie(neurons: int, compare: str = "gt") -> tuple[Network, np.ndarray]:
    """One neuron that ties in float32 among silent ones."""
    x = np.zeros((1, 3, neurons))
    x[0, :, 0] = TIE_INPUT
    return check(chain((neurons,), lif((neurons,), decay=1, threshold=0.3, compare=compare))), x


def test_float32_tie_is_explained() -> None:
    network, x = tie(40_000)
    z = run(network, x, "torch32")
    assert (run(network, x)["n0"] != z["n0"]).sum() == 1, "no tie: another rounding would make this test empty"
    got, results = verdict(network, x, z, "float32")
    result = results["n0"]
    assert (got, result.explained_ties, result.mismatches, result.first) == ("explained", 1, 0, None)
    assert 0 < result.margin < 1e-6
    # an engine that claims float64 may have 1e-10 of its entries as ties: less than one here
    assert verdict(network, x, z, "float64")[0] == "differs"


def test_too_many_ties_differ() -> None:
    network, x = tie(30)
    got, results = verdict(network, x, run(network, x, "torch32"), "float32")
    assert got == "differs" and results["n0"].explained_ties == 1 and results["n0"].mismatches == 0


def test_tie_far_from_its_threshold_differs() -> None:
    """Cancellation widens the bound; a tie 5e-4 from the threshold lies inside and is still no rounding."""
    weight = np.zeros((60_000, 3))
    weight[0] = [30_000.1, -30_000.1, 1.0005]
    network = check(chain((3,), nir.Linear(weight), lif((60_000,), decay=1, threshold=1)))
    x = np.ones((1, 2, 3))
    z = run(network, x)
    assert z["n1"][0, 0, 0] == 1
    z["n1"][0, 0, 0] = 0
    z["n1"][0, 1, 0] = 1
    got, results = verdict(network, x, z, "float32")
    assert results["n1"].mismatches == 0 and results["n1"].explained_ties == 1 and results["n1"].margin > 1e-4
    assert got == "differs"


@pytest.mark.parametrize("compare", ["gt", "ge"])
def test_exact_hit_leaves_no_room_for_a_tie(compare: str) -> None:
    """Dyadic sums are exact in any dtype and order, so the other answer is an error, not a rounding."""
    node = lif((2,), decay=0.5, threshold=1, compare=compare)
    network = check(chain((2,), nir.Linear(np.array([[0.5, 0.25], [0.5, 0.5]])), node))
    x = np.ones((1, 1, 2))
    z = run(network, x)
    assert z["n1"][0, 0].tolist() == [0, int(compare == "ge")]
    z["n1"][0, 0, 1] ^= 1
    for dtype in ("float32", "float64"):
        got, results = verdict(network, x, z, dtype)
        assert got == "differs" and results["n1"].mismatches == 1 and results["n1"].explained_ties == 0


def test_sign_gate_tie_is_explained() -> None:
    """The balance is 0 up to rounding: which sign an engine sends is a tie, that it sends one is not."""
    node = Numbers(0, False).gated((1,), False, True)
    node.neuron = lif((1,), decay=1, threshold=0.25)
    node.balance = nir.Affine(np.array([[1.0]]), np.array([-0.3]))
    network = check(chain((1,), node))
    x = np.full((1, 1, 1), 0.1 + 0.2)
    for sent, ties in ((1, 0), (0, 1), (-1, 1)):
        _, results = verdict(network, x, {"n0": np.full((1, 1, 1), sent, np.int8)}, "float32")
        assert (results["n0"].explained_ties, results["n0"].mismatches) == (ties, 0), sent
    quiet = replace(node, neuron=lif((1,), decay=1, threshold=0.5))
    _, results = verdict(check(chain((1,), quiet)), x, {"n0": np.ones((1, 1, 1), np.int8)}, "float32")
    assert results["n0"].mismatches == 1


def test_comparing_nothing_is_no_success() -> None:
    network = check(chain((3,), lif((3,), decay=1, threshold=1)))
    assert judge({}, "float64") == "differs"
    assert judge(ExecutionCheck(network, "float64").results, "float64") == "differs"
    x = np.zeros((0, 4, 3))
    assert verdict(network, x, {"n0": np.zeros((0, 4, 3), np.int8)})[0] == "differs"


def test_missing_or_misshapen_nodes_are_refused() -> None:
    network = check(chain((3,), lif((3,), decay=1, threshold=1)))
    x = noise((3,), 0)
    z = run(network, x)
    with pytest.raises(TraceError, match="'n0'"):
        ExecutionCheck(network, "float64").add(x, {})
    for wrong in (z["n0"][:, 1:], z["n0"][..., :2], z["n0"][:1]):
        with pytest.raises(TraceError, match="'n0'"):
            ExecutionCheck(network, "float64").add(x, {"n0": wrong})


def test_samples_are_counted_over_chunks() -> None:
    network = check(chain((3,), lif((3,), decay=1, threshold=1)))
    x = whole((3,), 0, 0, 1, samples=6)
    z = run(network, x)
    z["n0"][5, 2, 1] ^= 1
    checked = ExecutionCheck(network, "float64")
    for start in (0, 2, 4):
        checked.add(x[start : start + 2], {"n0": z["n0"][start : start + 2]}, start)
    first = checked.results["n0"].first
    assert checked.results["n0"].entries == z["n0"].size
    assert first is not None and (first.sample, first.step, first.neuron) == (5, 2, (1,))
    assert "membrane" in str(first) and "threshold" in str(first)
