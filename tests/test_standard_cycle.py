"""Soft reset in stock NIR nodes: the cycle LI -> Threshold -> Delay -> Scale -> LI is the fused neuron, or says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import nir
import nirtorch
import numpy as np
import pytest
import torch
from cases import Numbers, chain, connected, full
from test_cli import EXPORT, invoke, no_data  # noqa: F401
from test_standard import ENGINES, made_for, spikes, told, written

from eiexport import graph as graphs
from eiexport.check import ExecutionCheck, judge
from eiexport.nodes import EIDiscreteLIF, EIGatedLIF, lif
from eiexport.passes import insert_delays
from eiexport.standard import as_run, stands_for, to_standard_nir
from targets import base

RUNS = [(dtype, target) for dtype, target in (*ENGINES.items(), ("float64", "reference"))]
GEOMETRY = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}


def soft(shape: Any, *, decay: float = 0.5, threshold: float = 1.0, compare: str = "ge", **fields: Any) -> Any:
    return lif(shape, decay=decay, threshold=threshold, compare=compare, reset="subtract", **fields)


def forms(graph: nir.NIRGraph, dtype: str) -> dict[str, nir.NIRGraph]:
    """The explicit form, and the implicit one with its delays put back."""
    return {
        "explicit": to_standard_nir(graph, dtype),
        "implicit": insert_delays(to_standard_nir(graph, dtype, recurrence="implicit"))[0],
    }


def fused(x: Any, decay: float, threshold: float, gain: float, compare: str) -> tuple[list[int], list[Fraction]]:
    """One neuron in rational numbers: spikes, and membranes before their reset."""
    s, membranes, v = [], [], Fraction(0)
    for value in x:
        v = Fraction(decay) * v + Fraction(gain) * Fraction(float(value))
        membranes.append(v)
        s.append(int(v >= Fraction(threshold) if compare == "ge" else v > Fraction(threshold)))
        v -= s[-1] * Fraction(threshold)
    return s, membranes


# --- the cycle is the neuron


@pytest.mark.parametrize("compare", ["gt", "ge"])
@pytest.mark.parametrize("decay", [1.0, 0.5, 0.25, 0.0])
def test_200_steps_of_dyadic_numbers(decay: float, compare: str) -> None:
    """Thresholds and gains of every sign, each neuron its own; inputs of whole eighths, most of the time near ties."""
    thresholds, gains = np.array([(a, b) for a in (1.0, 0.5, 0.75, 2.0, 0.0, -0.25) for b in (1.0, 0.5, -2.0)]).T
    n = len(thresholds)
    node = EIDiscreteLIF(full(n, decay), gains, thresholds, full(n, 7.0), compare, "subtract")
    x = np.random.default_rng(1).integers(-6, 13, (1, 200, n)) / 8 * np.sign(gains)
    wanted = [fused(x[0, :, i], decay, thresholds[i], gains[i], compare) for i in range(n)]
    s, v = (np.array(part, float).T[None] for part in zip(*wanted, strict=True))
    assert (s.any(1) & ~s.all(1)).sum() >= 12  # of 18
    for dtype, target in RUNS:
        for how, graph in forms(chain((n,), node), dtype).items():
            z = spikes(graph, x, target)
            np.testing.assert_array_equal(z["n0"], s, err_msg=f"{dtype} {target} {how}")
            exact = decay in (0, 1)  # else every step takes more digits, and float64 has no more after some 50
            np.testing.assert_allclose(z["n0_v"], v, rtol=0, atol=0 if exact else {"float32": 1e-5}.get(dtype, 1e-14))


def test_what_is_left_above_the_threshold_stays() -> None:
    """Worked by hand: DeepEISNN's five steps with 2.6 at the end, and an integrator that is owed four spikes."""
    leaky, whole = chain((1,), soft((1,))), chain((1,), soft((1,), decay=1.0))
    for dtype, target in RUNS:
        for graph in forms(leaky, dtype).values():
            x = np.reshape([0.6, 0.8, 1.4, 0.2, 2.6, 0.0, 0.6], (1, 7, 1))
            z = spikes(graph, x, target)
            assert z["n0"].ravel().tolist() == [0, 1, 1, 0, 1, 0, 1]
            np.testing.assert_allclose(z["n0_v"].ravel(), [0.6, 1.1, 1.45, 0.425, 2.8125, 0.90625, 1.053125], rtol=1e-6)
        for graph in forms(whole, dtype).values():
            x = np.reshape([4.5, 0, 0, 0, 0, -1.5, 0, 2], (1, 8, 1))
            z = spikes(graph, x, target)
            assert z["n0"].ravel().tolist() == [1, 1, 1, 1, 0, 0, 0, 1]
            assert z["n0_v"].ravel().tolist() == [4.5, 3.5, 2.5, 1.5, 0.5, -1, -1, 1]


@pytest.mark.parametrize("dtype, target", RUNS)
def test_an_exact_hit_fires_with_ge_alone(dtype: str, target: str) -> None:
    """At once, after a reset, and one number of the dtype below; the reset takes the threshold itself away."""
    hit = np.array(1.0, dtype)
    below = float(np.nextafter(hit, hit.dtype.type(0)))
    x = np.stack([[1, 1, 1, 1], [1.5, 0.5, 0.25, 0.6875], [below, 0, 0, 0], [0.5, 0.75, 0, 1]], 1)[None]
    wanted = {
        "ge": [[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]],
        "gt": [[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
    }
    for compare, rows in wanted.items():
        assert [fused(x[0, :, i], 0.5, 1, 1, compare)[0] for i in range(4)] == rows
        for graph in forms(chain((4,), soft((4,), compare=compare)), dtype).values():
            z = spikes(graph, x, target)
            assert z["n0"][0].T.tolist() == rows
            assert made_for(graph) == (dtype if compare == "ge" else "any")
            assert z["n0_v"][0, 1, 0] == (0.5 * 0 + 1 if compare == "ge" else 0.5 * 1 + 1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 1)])
def test_one_step_one_sample_silence(shape: tuple[int, int]) -> None:
    x = np.zeros((*shape, 4))
    node = EIDiscreteLIF(full(4, 0.5), full(4, 1.0), np.array([0.0, 1.0, -1.0, 0.5]), full(4, 0.0), "ge", "subtract")
    for target, graph in product(("torch", "reference"), forms(chain((4,), node), "float64").values()):
        z = spikes(graph, x, target)["n0"]
        assert z.shape == x.shape
        assert z[0].tolist() == [[1, 0, 1, 0]] * shape[1]  # a membrane at a threshold of 0, and one above -1 for ever


def test_samples_of_a_batch_do_not_meet() -> None:
    x = np.random.default_rng(5).integers(-2, 8, (4, 5, 3)) / 4
    for graph in forms(chain((3,), soft((3,), decay=1.0)), "float64").values():
        whole = spikes(graph, x, "torch")["n0"]
        assert whole[:, 0].any()
        np.testing.assert_array_equal(
            whole, np.concatenate([spikes(graph, x[i : i + 1], "torch")["n0"] for i in range(4)])
        )


def test_random_numbers_agree_up_to_rounding(record_property: Callable[[str, object], None]) -> None:
    """Decay .3, threshold .7: of random inputs, rounding moves next to nothing; what it moves is found to be that."""
    graph = chain((500,), soft((500,), decay=0.3, threshold=0.7))
    x = np.random.default_rng(3).normal(0.4, 0.8, (1, 200, 500))
    wanted = np.array([fused(x[0, :, i], 0.3, 0.7, 1, "ge")[0] for i in range(40)]).T
    for how, after in forms(graph, "float32").items():
        moved = {t: int((spikes(after, x, t)["n0"][0, :, :40] != wanted).sum()) for t in ("torch32", "torch")}
        record_property(f"spikes that rounding moved, {how}", f"{moved} of {wanted.size}")
        assert 0.2 < wanted.mean() < 0.6 and max(moved.values()) <= 2
        found = check(graph, after, x, "float32", "torch32")
        assert found.mismatches == 0 and judge({"n0": found}, "float32") in ("equal", "explained")


def test_each_neuron_its_own_numbers_on_maps() -> None:
    """Full arrays of a (C, H, W) shape, no two alike: in every field of every node they keep their places."""
    shape = (2, 3, 4)
    rng = np.random.default_rng(6)
    tau = rng.uniform(1.2, 9, shape)
    decay, gain, threshold = 1 - 1 / tau, 1 / tau * rng.uniform(0.5, 3, shape), rng.uniform(0.2, 1, shape)
    node = EIDiscreteLIF(decay, gain, threshold, np.zeros(shape), "gt", "subtract")
    x = rng.normal(0.8, 1.5, (2, 30, *shape))
    after = to_standard_nir(chain(shape, node), "float64")
    assert made_for(after) == "any"
    fields = {n: {k: v.shape for k, v in vars(a).items() if isinstance(v, np.ndarray)} for n, a in after.nodes.items()}
    assert fields["n0_v"] == dict.fromkeys(("tau", "r", "v_leak"), shape) and fields["n0"] == {"threshold": shape}
    assert fields["n0_reset"] == {"scale": shape} and fields["n0_delay"] == {"delay": shape}
    np.testing.assert_allclose(after.nodes["n0_reset"].scale, -threshold * decay / gain, rtol=1e-15)
    for graph in forms(chain(shape, node), "float64").values():
        z = spikes(graph, x, "torch")["n0"]
        for b, i in product(range(2), np.ndindex(shape)):
            s, _ = fused(x[(b, slice(None), *i)], decay[i], threshold[i], gain[i], "gt")
            assert z[(b, slice(None), *i)].tolist() == s


@pytest.mark.parametrize("channels", [(1.0, 0.5, 2.0), (0.75, 0.75, 0.75)])
def test_thresholds_of_channels(channels: tuple[float, ...]) -> None:
    shape = (3, 2, 2)
    threshold = np.broadcast_to(np.reshape(channels, (3, 1, 1)), shape).copy()
    node = EIDiscreteLIF(full(shape, 0.5), full(shape, 1.0), threshold, full(shape, 0.0), "ge", "subtract")
    x = np.random.default_rng(7).integers(-2, 9, (1, 20, *shape)) / 4
    for graph in forms(chain(shape, node), "float32").values():
        z = spikes(graph, x, "torch32")["n0"]
        for i in np.ndindex(shape):
            assert z[(0, slice(None), *i)].tolist() == fused(x[(0, slice(None), *i)], 0.5, threshold[i], 1, "ge")[0]


def test_an_integrator_runs_under_either_integrator_and_any_dt() -> None:
    x = np.random.default_rng(8).integers(-2, 9, (1, 20, 2)) / 4
    for integrator in ("euler", "exponential"):
        graph = chain((2,), soft((2,), decay=1.0), clock=(2.0**-10, integrator))
        after = to_standard_nir(graph, "float64")
        assert type(after.nodes["n0_v"]) is nir.I and (after.nodes["n0_delay"].delay == 2.0**-10).all()
        assert spikes(after, x, "torch")["n0"][0].T.tolist() == [fused(x[0, :, i], 1, 1, 1, "ge")[0] for i in (0, 1)]


# --- what the graph becomes


def test_names_stay_and_new_ones_are_free() -> None:
    """A recurrent pair with a shared source; the names that the pass would take are taken."""
    nodes = {
        "a": soft((2,), decay=0.5),
        "a_v": soft((2,), decay=0.25, compare="gt"),
        "a_reset": nir.Linear(np.array([[0.0, 0.5], [-0.5, 0.25]])),
        "a_delay": nir.Delay(full(2, 1.0)),
        "b": EIGatedLIF(soft((2,), decay=1.0)),
    }
    edges = [("in", "a"), ("in", "a_v"), ("a", "a_v"), ("a_v", "a_reset"), ("a_reset", "a_delay"), ("a_delay", "a")]
    edges += [("a", "b"), ("a_v", "b"), ("b", "out")]
    graph = connected(nodes, edges, (2,))
    x = np.random.default_rng(9).integers(-2, 7, (3, 12, 2)) / 4
    before = spikes(graph, x, "torch")
    assert all(0 < before[n].mean() < 1 for n in ("a", "a_v", "b"))
    after = forms(graph, "float32")
    kinds = {n: type(a).__name__ for n, a in after["explicit"].nodes.items()}
    assert kinds == {
        **{"in": "Input", "out": "Output", "a_reset": "Linear", "a_delay": "Delay"},
        **{"a": "Threshold", "a_v_": "LI", "a_reset_": "Scale", "a_delay_": "Delay"},
        **{"a_v": "Threshold", "a_v_v": "LI", "a_v_reset": "Scale", "a_v_delay": "Delay"},
        **{"b": "Threshold", "b_v": "I", "b_reset": "Scale", "b_delay": "Delay"},
    }
    for how, form in after.items():
        z = spikes(form, x, "torch")
        for name in ("a", "a_v", "b"):
            np.testing.assert_array_equal(z[name], before[name], err_msg=f"{how} {name}")
    network, lowered = graphs.check(graph), graphs.check(after["implicit"])
    assert set(stands_for(network, lowered, "a")) == {"a", "a_v_", "a_reset_", "a_reset__a_v__delay"}
    assert set(stands_for(network, lowered, "a_reset")) == {"a_reset"}


def test_the_delay_is_left_out_and_put_back_on_the_way_into_the_membrane() -> None:
    graph = chain((2,), soft((2,)), nir.Linear(np.eye(2)), soft((2,), decay=1.0))
    bare = to_standard_nir(graph, recurrence="implicit")
    assert not any(isinstance(a, nir.Delay) for a in bare.nodes.values())
    assert set(bare.edges) == {
        *(("in", "n0_v"), ("n0_v", "n0"), ("n0", "n0_reset"), ("n0_reset", "n0_v")),
        *(("n0", "n1"), ("n1", "n2_v"), ("n2_v", "n2"), ("n2", "n2_reset"), ("n2_reset", "n2_v"), ("n2", "out")),
    }
    back, notes = insert_delays(bare)
    delays = {n: a for n, a in back.nodes.items() if isinstance(a, nir.Delay)}
    assert len(notes) == len(delays) == 2
    for name, delay in delays.items():
        assert delay.delay.tolist() == [1.0, 1.0]
        (source,), (sink,) = ([a for a, b in back.edges if b == name], [b for a, b in back.edges if a == name])
        assert (source, sink) in (("n0_reset", "n0_v"), ("n2_reset", "n2_v"))
    said = bare.metadata["eiexport"]["provenance"]
    assert said["recurrence"] == "implicit" and said["up_to_rounding"] == "n0, n2"
    said = to_standard_nir(graph).metadata["eiexport"]["provenance"]
    assert said["recurrence"] == "explicit" and said["up_to_rounding"] == "n0, n2"
    # done again, the delays that were put back are left out again
    again = to_standard_nir(back, recurrence="implicit")
    assert set(again.edges) == set(bare.edges)
    assert again.metadata["eiexport"]["provenance"]["recurrence"] == "implicit"


def looped(steps: Any, *, branch: bool = False, into: str = "sum") -> nir.NIRGraph:
    """in -> sum -> cell -> late -> back -> sum; branch: the delayed spikes leave the cycle too."""
    nodes = {
        "sum": nir.Linear(np.eye(2) / 2),
        "cell": lif((2,), decay=0.5, threshold=1.0),
        "late": nir.Delay(np.array(steps, float)),
        "back": nir.Linear(np.array([[0.0, 1.0], [-1.0, 0.5]])),
    }
    edges = [("in", "sum"), ("sum", "cell"), ("cell", "late"), ("late", "back"), ("back", into), ("cell", "out")]
    if branch:
        nodes["other"] = lif((2,), decay=0.5, threshold=1.0)
        edges += [("late", "other"), ("other", "out")]
    return connected(nodes, edges, (2,))


def assert_put_back(graph: nir.NIRGraph, node: str) -> None:
    """Left out by name, and behind `insert_delays` the same network to the step."""
    bare = to_standard_nir(graph, recurrence="implicit")
    assert node not in bare.nodes and bare.metadata["eiexport"]["provenance"]["recurrence"] == "implicit"
    x = np.random.default_rng(5).integers(-2, 5, (3, 12, 2)) / 2
    before, after = (spikes(g, x, "reference") for g in (graph, insert_delays(bare)[0]))
    assert before["cell"].any() and not before["cell"].all()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_a_delay_before_a_matrix_is_the_same_behind_it() -> None:
    """Readers delay the way into the cycle's entry; the graph's Delay stands before `back`, which has no bias."""
    assert_put_back(looped([1.0, 1.0], into="cell"), "late")
    graph = looped([1.0, 1.0], into="cell")
    graph.nodes["back"] = nir.Affine(np.array([[0.0, 1.0], [-1.0, 0.5]]), np.array([0.5, 0.0]))
    assert "late" in to_standard_nir(graph, recurrence="implicit").nodes  # the bias would come a step later


@pytest.mark.parametrize("steps", [[1.0, 1.0], [2.0, 2.0], [1.0, 2.0]])
@pytest.mark.parametrize("branch", [False, True])
def test_a_delay_is_left_to_readers_only_where_they_put_it_back(steps: Any, branch: bool) -> None:
    for graph in (looped(steps, branch=branch), looped(steps, branch=branch, into="cell")):
        if steps == [1.0, 1.0] and not branch:
            assert_put_back(graph, "late")
            continue
        bare = to_standard_nir(graph, recurrence="implicit")
        assert "late" in bare.nodes  # nothing else is the same network to the step
        assert bare.metadata["eiexport"]["provenance"]["recurrence"] == "explicit"


@pytest.mark.parametrize("steps,left", [([1.0, 1.0], True), ([2.0, 2.0], False), ([1.0, 2.0], False)])
def test_a_one_step_delay_on_the_way_in_is_left_out_and_comes_back(steps: Any, left: bool) -> None:
    nodes = {
        "cell": lif((2,), decay=0.5, threshold=1.0),
        "back": nir.Linear(np.array([[0.0, 1.0], [-1.0, 0.5]])),
        "late": nir.Delay(np.array(steps)),
    }
    edges = [("in", "cell"), ("cell", "back"), ("back", "late"), ("late", "cell"), ("cell", "out")]
    graph = connected(nodes, edges, (2,))
    bare = to_standard_nir(graph, recurrence="implicit")
    assert ("late" not in bare.nodes) == left and (("back", "cell") in bare.edges) == left
    assert bare.metadata["eiexport"]["provenance"]["recurrence"] == ("implicit" if left else "explicit")
    x = np.random.default_rng(5).integers(-2, 5, (3, 12, 2)) / 2
    before, after = (spikes(g, x, "reference")["cell"] for g in (graph, insert_delays(bare)[0]))
    assert before.any() and not before.all()
    np.testing.assert_array_equal(after, before)
    assert "late" in to_standard_nir(graph).nodes


class Reader:
    """NIRTorch, which reads for Norse and snnTorch: it takes last step's value where a cycle comes back."""

    class LI(torch.nn.Module):
        def __init__(self, node: nir.LI) -> None:
            super().__init__()
            self.tau, self.r = (torch.from_numpy(a).float() for a in (node.tau, node.r))

        def forward(self, x: Any, state: Any = None) -> Any:
            v = torch.zeros_like(x) if state is None else state
            v = v + (self.r * x - v) / self.tau
            return v, v

    class Element(torch.nn.Module):
        def __init__(self, number: np.ndarray, act: Any) -> None:
            super().__init__()
            self.number, self.act = torch.from_numpy(number).float(), act

        def forward(self, x: Any) -> Any:
            return self.act(x, self.number)

    class Delay(torch.nn.Module):
        def __init__(self, node: nir.Delay) -> None:
            super().__init__()

        def forward(self, x: Any, state: Any = None) -> Any:
            return torch.zeros_like(x) if state is None else state, x

    kinds: ClassVar[dict[Any, Any]] = {
        nir.LI: LI,
        nir.Delay: Delay,
        nir.Threshold: lambda node: Reader.Element(node.threshold, lambda x, th: (x > th).float()),
        nir.Scale: lambda node: Reader.Element(node.scale, torch.mul),
        nir.Linear: lambda node: Reader.Element(node.weight, lambda x, w: x @ w.T),
    }


def test_a_foreign_reader_with_a_step_of_its_own_wants_it_implicit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [nir.Linear(rng.integers(-2, 4, shape) / 4) for shape in ((5, 4), (3, 5))]
    graph = chain((4,), weights[0], soft((5,)), weights[1], soft((3,), compare="gt"))
    graph.nodes["out"] = nir.Output(np.array([3]))
    x = rng.integers(-2, 7, (2, 12, 4)) / 4
    wanted = spikes(graph, x, "torch32")["n3"]
    assert 0 < wanted.mean() < 1
    same = {}
    for how in ("implicit", "explicit"):
        graphs.write(to_standard_nir(graph, recurrence=how), tmp_path / "g.nir")
        module, state, rows = nirtorch.nir_to_torch(nir.read(tmp_path / "g.nir"), Reader.kinds), None, []
        for t in range(12):
            z, state = module(torch.from_numpy(x[:, t]).float(), state)
            rows.append(z.detach().numpy())
        same[how] = bool((np.stack(rows, 1) == wanted).all())
    assert same == {"implicit": True, "explicit": False}  # two steps where both of them delay


# --- how a trace of the cycle is checked


def check(before: nir.NIRGraph, after: nir.NIRGraph, x: np.ndarray, dtype: str, target: str, late: bool = True) -> Any:
    """The result of node n0 of the cycle's own run, held against the graph before."""
    network = graphs.check(before)
    seen = ExecutionCheck(as_run(network, graphs.check(after)) if late else network, dtype)
    seen.add(x, {"n0": spikes(after, x, target)["n0"]})
    return seen.results["n0"]


def test_a_cycle_rounds_in_its_own_places() -> None:
    """Gain .75 and whole numbers: the neuron's own sums are exact, the cycle's -4/3 is not. Ties, in its own bounds."""
    graph = chain((400,), soft((400,), decay=1.0, gain=0.75))
    after = to_standard_nir(graph)
    x = np.random.default_rng(2).integers(-1, 2, (1, 40, 400)).astype(float)
    own, fused_bounds = (check(graph, after, x, "float32", "torch32", late) for late in (True, False))
    assert fused_bounds.mismatches > 0 and own.mismatches == 0 and own.explained_ties == fused_bounds.mismatches
    assert judge({"n0": own}, "float32") == "differs"  # honest, but far too many for "equal up to rounding"


@pytest.mark.parametrize("decay, steps", [(1.0, 40), (0.5, 8)])
def test_where_sums_are_exact_nothing_is_excused(decay: float, steps: int) -> None:
    graph = chain((200,), soft((200,), decay=decay))
    after = to_standard_nir(graph)
    x = np.random.default_rng(2).integers(-2, 7, (1, steps, 200)) / 4
    z = spikes(after, x, "torch32")["n0"]
    network = as_run(graphs.check(graph), graphs.check(after))
    _, membranes = zip(*(fused(x[0, :, i], decay, 1, 1, "ge") for i in range(200)), strict=True)
    hits = [(t, i) for i, v in enumerate(membranes) for t in range(steps) if v[t] == 1]
    assert len(hits) > 20 and all(z[0, t, i] == 1 for t, i in hits)
    for t, i in hits[:3]:
        wrong = z.copy()
        wrong[0, t, i] = 0  # `>` for `>=`
        seen = ExecutionCheck(network, "float32")
        seen.add(x, {"n0": wrong})
        assert seen.results["n0"].mismatches >= 1 and seen.results["n0"].explained_ties == 0
        assert f"step {t}, neuron ({i},)" in str(seen.results["n0"].first)
    seen = ExecutionCheck(network, "float32")
    seen.add(x, {"n0": z})
    assert judge(seen.results, "float32") == "equal"


def spoiled(graph: nir.NIRGraph, what: str) -> nir.NIRGraph:
    """A cycle that is wrong in one place."""
    nodes = dict(graph.nodes)
    scale, delay, threshold = (nodes[n] for n in ("n0_reset", "n0_delay", "n0"))
    if what == "two steps":
        nodes["n0_delay"] = nir.Delay(2 * delay.delay)
    elif what == "sign":
        nodes["n0_reset"] = nir.Scale(-scale.scale)
    elif what == "decay forgotten":
        nodes["n0_reset"] = nir.Scale(2 * scale.scale)
    elif what == "gain forgotten":
        nodes["n0_reset"] = nir.Scale(0.5 * scale.scale)
    else:
        nodes["n0"] = nir.Threshold(np.ones_like(threshold.threshold))
    return nir.NIRGraph(nodes, list(graph.edges), metadata=graph.metadata, type_check=False)


@pytest.mark.parametrize("what", ["two steps", "sign", "decay forgotten", "gain forgotten", ">"])
def test_a_wrong_cycle_is_found(what: str) -> None:
    """By its spikes, and by the check of an export."""
    graph = chain((4,), soft((4,), gain=0.5))
    after = to_standard_nir(graph)
    wrong = spoiled(after, what)
    x = np.array([[4.0, 2.0, 2.0, 0.0], [2, 0, 2, 3], [1, 2, 1, 1], [1, 1, 0, 2]]).T[None] * [1, 1, 1, 1]
    x = np.concatenate([x, np.full((1, 12, 4), 1.5)], 1)
    assert (spikes(after, x, "torch32")["n0"] == spikes(graph, x, "torch32")["n0"]).all()
    assert (spikes(wrong, x, "torch32")["n0"] != spikes(graph, x, "torch32")["n0"]).any()
    assert check(graph, wrong, x, "float32", "torch32").mismatches > 0


# --- the command line


def network_of_layers(rng: np.random.Generator) -> list[Any]:
    """Two convolutions with soft resets, the first threshold by channel; a pool and a readout."""

    def conv(outputs: int, inputs: int, size: tuple[int, int]) -> nir.Conv2d:
        weight = rng.integers(-3, 5, (outputs, inputs, 3, 3)) / 8
        return nir.Conv2d(size, weight, 1, 1, 1, 1, rng.integers(-1, 3, outputs) / 8)

    shape = (3, 4, 4)
    threshold = np.broadcast_to(np.reshape([1.0, 0.5, 0.75], (3, 1, 1)), shape).copy()
    first = EIDiscreteLIF(full(shape, 0.5), full(shape, 1.0), threshold, full(shape, 0.0), "ge", "subtract")
    pool, flat = nir.AvgPool2d(*np.array([[2, 2], [2, 2], [0, 0]])), nir.Flatten(np.array([4, 2, 2]), 0, 2)
    dense = nir.Affine(rng.integers(-3, 4, (3, 16)) / 8, full(3, 0.125))
    return [conv(3, 2, (4, 4)), first, pool, conv(4, 3, (2, 2)), soft((4, 2, 2)), flat, dense, nir.I(full(3, 1.0))]


@pytest.mark.parametrize("recurrence, engine", [("explicit", "lava"), ("implicit", "torch32")])
def test_export_of_a_network(recurrence: str, engine: str, tmp_path: Path) -> None:
    """One start of Lava is enough: `test_on_lava` has the other form."""
    rng = np.random.default_rng(11)
    arguments = written(tmp_path, *network_of_layers(rng), x=rng.integers(0, 5, (2, 10, 2, 4, 4)) / 4)
    chosen = [word for target in ("reference", "torch", engine) for word in ("--target", target)]
    said = invoke(EXPORT, *arguments, *chosen, "--standard-nir", "--recurrence", recurrence).stdout
    status, notes = told(tmp_path)
    assert status == dict.fromkeys(("reference", "torch", "torch32", engine), "equal")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for row in report["targets"].values():
        assert row["nodes"].keys() == {"n1", "n4", "n7"} and row["free_running_mismatches"] == 0
        assert not any(row["nodes"][n]["silent"] for n in ("n1", "n4"))
    row = report["targets"][engine]
    assert row["nodes"]["n4"]["process"] == "custom" and row["entries_stock"] == 0
    assert "'n1', 'n4': the soft reset comes back through a cycle" in notes and "equal up to rounding" in notes
    assert ("leaves the one-step delay of these cycles to its readers" in said) == (recurrence == "implicit")
    file = tmp_path / "out" / "model.nir"
    stock = nir.read(file, type_check=False)
    assert all(type(a).__module__.startswith("nir.") for a in stock.nodes.values())
    kinds = sorted(type(a).__name__ for n, a in stock.nodes.items() if n.startswith(("n1", "n4")))
    assert kinds == sorted(["LI", "Threshold", "Scale", *(["Delay"] if recurrence == "explicit" else [])] * 2)
    assert nir.read(file).nodes.keys() == stock.nodes.keys()  # with all its checks too
    said = stock.metadata["eiexport"]
    assert (said["exact_for"], said["provenance"]["recurrence"]) == ("float32", recurrence)
    if recurrence == "explicit":
        return
    # the file again, without the graph it came from: what is written then holds its delays, and says so
    again = tmp_path / "again"
    invoke(EXPORT, file, *arguments[1:3], "--out", again, "--target", "torch32")
    model = nir.read(again / "model.nir")
    assert model.metadata["eiexport"]["provenance"]["recurrence"] == "explicit"
    assert sum(isinstance(a, nir.Delay) for a in model.nodes.values()) == 2
    first, second = (json.loads((d / "report.json").read_text()) for d in (tmp_path / "out", again))
    counts = [{n: r["targets"]["torch32"]["nodes"][n]["spikes"] for n in ("n1", "n4")} for r in (first, second)]
    assert counts[0] == counts[1]


def test_an_option_without_effect_says_so(tmp_path: Path) -> None:
    arguments = written(tmp_path, lif((2,), decay=0.5, threshold=1), x=np.ones((1, 4, 2)))
    said = invoke(EXPORT, *arguments, "--standard-nir", "--recurrence", "implicit").stdout
    assert "--recurrence implicit left nothing out" in said and "leaves the one-step delay" not in said
    assert nir.read(tmp_path / "out" / "model.nir").metadata["eiexport"]["provenance"]["recurrence"] == "explicit"


def test_what_rounding_moves_is_not_called_equal(tmp_path: Path) -> None:
    """Tenths that add up to the threshold, in two orders: the engine ran the cycle, and the report tells it apart."""
    x = np.random.default_rng(0).integers(-9, 20, (1, 60, 50)) / 10
    arguments = written(tmp_path, soft((50,), decay=1.0, threshold=0.7), x=x)
    invoke(EXPORT, *arguments, "--standard-nir", "--dtype", "float64", "--target", "torch", code=1)
    row = json.loads((tmp_path / "out" / "report.json").read_text())["targets"]["torch"]
    assert row["status"] == "differs" and row["mismatches"] == 0 and row["free_running_mismatches"] > 0


def test_one_tie_in_many_entries_is_explained(tmp_path: Path) -> None:
    """Gain .75, and a hit whose sums are exact in the neuron's order: the export looks at the cycle's."""
    x = np.zeros((1, 500, 240))
    x[0, :4, 7] = [3, 2, -1, -9]
    arguments = written(tmp_path, soft((240,), decay=1.0, gain=0.75), x=x)
    invoke(EXPORT, *arguments, "--standard-nir", "--target", "torch32")
    row = json.loads((tmp_path / "out" / "report.json").read_text())["targets"]["torch32"]
    assert (row["status"], row["explained_ties"], row["free_running_mismatches"]) == ("explained", 1, 1)


# --- Lava


def test_on_lava() -> None:
    """Cycles at latencies 0 and behind two connections, behind biases, per channel; both forms, in one start."""
    n = Numbers(21, True)
    rng = np.random.default_rng(21)
    deep = [layer for _ in range(2) for layer in (nir.Affine(0.5 * np.eye(3), full(3, 0.625)), soft((3,), decay=1.0))]
    own = EIDiscreteLIF(full(4, 0.5), full(4, 2.0), np.array([1.0, 0.5, 2.0, -0.25]), full(4, 0.0), "gt", "subtract")
    cases = {
        "first": (chain((4,), own), rng.integers(-2, 5, (3, 6, 4)) / 4),
        "behind biases": (chain((3,), *deep), rng.integers(0, 2, (3, 6, 3)).astype(float)),
        "a map, one step": (
            chain((2, 4, 4), n.conv(3, 2, (3, 3)), soft((3, 2, 2))),
            rng.uniform(0, 1, (2, 1, 2, 4, 4)),
        ),
    }
    jobs, wanted = [], []
    for name, (graph, x) in cases.items():
        for how, form in forms(graph, "float64").items():
            jobs.append((graphs.check(form), x))
            wanted.append((name, how, graph, spikes(graph, x, "reference")))
    lava = base.get("lava")()
    for (lowered, x), (name, how, graph, before), trace in zip(jobs, wanted, lava.run_many(jobs), strict=True):  # type: ignore[attr-defined]
        assert any(z.any() for z in before.values()), name
        for node, z in before.items():
            np.testing.assert_array_equal(trace.z[node], z, err_msg=f"{name} {how} {node}")
        seen = ExecutionCheck(as_run(graphs.check(graph), lowered), "float64")
        seen.add(x, trace.z)
        assert judge(seen.results, "float64") == "equal", (name, how)
