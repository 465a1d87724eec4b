"""Worked examples of the published systems: BackEISNN (B), EICIL's and BIRIL's IF, DeepEISNN's LIF (E)."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import pytest
from cases import chain, connected

from eiexport.graph import check
from eiexport.nodes import EIGatedLIF, lif, prepare
from eiexport.ops import NumpyOps
from eiexport.steps import Clock, Neuron, bind
from targets import base

MAP = (1, 1, 1)  # one channel, one pixel


@pytest.fixture(params=["reference", "torch"])
def target(request: pytest.FixtureRequest) -> str:
    return request.param


def spikes(target: str, node: Any, current: Any, shape: tuple[int, ...] = MAP) -> list[Any]:
    """What a node alone sends for one sample of input currents."""
    x = np.asarray(current, float).reshape(1, -1, *shape)
    z = base.get(target)().compile(check(chain(shape, node))).run(x).z["n0"]
    return z.reshape(len(x[0]), -1).squeeze(-1).tolist()


def membranes(node: Any, current: Any, shape: tuple[int, ...] = MAP) -> tuple[list[float], list[float], list[float]]:
    """(V before reset, balance current or V, v after reset) of one neuron, step by step."""
    ops = NumpyOps()
    step = bind(prepare(node, Clock(1.0, "euler")), ops)
    assert isinstance(step, Neuron)
    state, rows = step.init(ops, (1, *shape)), []
    for value in current:
        membrane = step.charge(ops, step.drive(ops, np.full((1, *shape), float(value))), state)
        state = step.reset(ops, membrane, *step.decide(ops, membrane))
        rows.append([float(a.reshape(-1)[0]) for a in (membrane[0], membrane[-1], state[0])])
    return tuple(list(column) for column in zip(*rows, strict=True))  # type: ignore[return-value]


def gate(weight: float, bias: float) -> nir.Conv2d:
    return nir.Conv2d(None, np.full((1, 1, 1, 1), weight), 1, 0, 1, 1, np.array([bias]))


def backei(feedback: nir.Conv2d | None = None, balance: nir.Conv2d | None = None, **fields: Any) -> EIGatedLIF:
    return EIGatedLIF(lif(MAP, decay=0.2, threshold=0.5, **fields), feedback, balance)


B1 = (gate(1, 0), gate(1, -0.8)), (2.0, 0.8, 1.0, 1.0, 0.9)
B2 = (gate(1, 0.5), gate(2, -1.5)), (1, 1, 0.9, 0.4, 0)


def test_b1_both_gates(target: str) -> None:
    gates, current = B1
    # with a signed reset the neuron would fire at steps 2 and 4 instead of 3
    assert spikes(target, backei(*gates), current) == [1, -1, 0, -1, 0]
    before, balance, after = membranes(backei(*gates), current)
    np.testing.assert_allclose(before, [1.0, 0.584847, 0.268941, 0.553788, 0.242047], atol=1e-6)
    np.testing.assert_allclose(balance, [0.2, -0.215153, -0.531059, -0.246212, -0.557953], atol=1e-6)
    np.testing.assert_allclose(after, [0, 0, 0.268941, 0, 0.242047], atol=1e-6)


def test_b2_gate_with_bias(target: str) -> None:
    gates, current = B2
    assert spikes(target, backei(*gates), current) == [-1, 0, -1, 0, 0]
    before, _, _ = membranes(backei(*gates), current)
    np.testing.assert_allclose(before, [0.622459, 0.377541, 0.635722, 0.151016, 0.030203], atol=1e-6)


def test_b3_swallowed_spike_still_resets(target: str) -> None:
    node = backei(balance=gate(1, -1))
    assert spikes(target, node, [1.0]) == [0]
    before, balance, after = membranes(node, [1.0])
    assert (before, balance, after) == ([1.0], [0.0], [0.0])


def test_b4_threshold_is_strict(target: str) -> None:
    assert spikes(target, backei(), [0.5]) == [0]
    assert spikes(target, backei(compare="ge"), [0.5]) == [1]


def test_b5_dense_node(target: str) -> None:
    current = [0.4, 0.4, 0.45, 0.45, 0.1]
    node = lif((1,), decay=0.2, threshold=0.5)
    assert spikes(target, node, current, (1,)) == [0, 0, 1, 0, 0]
    before, _, _ = membranes(node, current, (1,))
    np.testing.assert_allclose(before, [0.4, 0.48, 0.546, 0.45, 0.19], atol=1e-12)


def test_if_fires_on_its_threshold(target: str) -> None:
    current = [0.6, 0.4, 0.7, 0.5, 1.3]
    node = lif((1,), decay=1, threshold=1, compare="ge")
    assert spikes(target, node, current, (1,)) == [0, 1, 0, 1, 1]
    np.testing.assert_allclose(membranes(node, current, (1,))[2], [0.6, 0, 0.7, 0, 0], atol=1e-12)


def test_e3_soft_reset(target: str) -> None:
    current = [0.6, 0.8, 1.4, 0.2, 2.6]
    node = lif((1,), decay=0.5, threshold=1, compare="ge", reset="subtract")
    assert spikes(target, node, current, (1,)) == [0, 1, 1, 0, 1]
    np.testing.assert_allclose(membranes(node, current, (1,))[2], [0.6, 0.1, 0.45, 0.425, 1.8125], atol=1e-12)


def test_gates_switched_off_leave_a_plain_lif(target: str) -> None:
    current = np.random.default_rng(0).uniform(-0.5, 1.5, 60)
    plain = lif(MAP, decay=0.2, threshold=0.5)
    wanted = spikes(target, plain, current)
    assert 10 < sum(wanted) < 50
    assert spikes(target, backei(), current) == wanted
    assert spikes(target, backei(balance=gate(0, 1)), current) == wanted
    assert spikes(target, backei(balance=gate(0, -1)), current) == [-z for z in wanted]
    halved = spikes(target, plain, current / 2)
    assert halved != wanted
    assert spikes(target, backei(feedback=gate(0, 0)), current) == halved


def test_average_pool_of_signed_spikes(target: str) -> None:
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    x = np.array([[1.0, -1.0], [0.0, 1.0]]).reshape(1, 1, 1, 2, 2)
    z = base.get(target)().compile(check(chain((1, 2, 2), pool))).run(x).z["n0"]
    assert z.tolist() == [[[[[0.25]]]]]


@pytest.mark.parametrize("compare,wanted", [("gt", [0, 1]), ("ge", [1, 0])])
def test_exact_threshold_hit(target: str, compare: str, wanted: list[int]) -> None:
    """D5. 0.5 reaches a threshold of 0.5; what is left over decides the next step."""
    node = lif((1,), decay=0.5, threshold=0.5, compare=compare)
    assert spikes(target, node, [0.5, 0.375], (1,)) == wanted


def test_threshold_one_ulp_lower_turns_gt_into_ge() -> None:
    """D6. In the dtype that compares; the float64 nudge vanishes in float32."""
    current = np.random.default_rng(1).integers(0, 5, 400) / 4
    for target, dtype in (("torch32", np.float32), ("torch", np.float64), ("reference", np.float64)):
        below = float(np.nextafter(dtype(1), dtype(-np.inf)))
        wanted = spikes(target, lif((1,), decay=0.5, threshold=1, compare="ge"), current, (1,))
        assert spikes(target, lif((1,), decay=0.5, threshold=below), current, (1,)) == wanted
        assert spikes(target, lif((1,), decay=0.5, threshold=1), current, (1,)) != wanted
    lost = lif((1,), decay=0.5, threshold=float(np.nextafter(1.0, 0.0)))
    assert spikes("torch32", lost, [1.0], (1,)) == [0]


VALUES = (-2.0, -0.1, 0.0, 0.1, 3.0)


def test_sign_by_two_thresholds(target: str) -> None:
    """D9. sign(x) = Threshold(0)(x) - Threshold(0)(-x), 0 at 0."""
    nodes = sign_nodes()
    graph = connected(nodes, [*sign_edges("in"), ("up", "out"), ("down", "out")], (1,))
    x = np.reshape(VALUES, (1, -1, 1))
    z = base.get(target)().compile(check(graph)).run(x).z
    assert (z["up"] + z["down"]).reshape(-1).tolist() == [-1, -1, 0, 1, 1]


def sign_nodes() -> dict[str, Any]:
    one = np.ones(1)
    nodes = {"above": nir.Threshold(0 * one), "negate": nir.Scale(-one), "below": nir.Threshold(0 * one)}
    return {**nodes, "up": nir.Scale(one), "down": nir.Scale(-one)}


def sign_edges(source: str) -> list[tuple[str, str]]:
    return [(source, "above"), (source, "negate"), ("negate", "below"), ("above", "up"), ("below", "down")]


def test_signed_and_by_thresholds(target: str) -> None:
    """D9. e * S = Threshold(1.5)(S + [x > 0]) - Threshold(1.5)(S + [-x > 0]) for all x and S."""
    pick = {"x": nir.Linear(np.array([[1.0, 0.0]])), "s": nir.Linear(np.array([[0.0, 1.0]]))}
    both = {n: nir.Threshold(np.full(1, 1.5)) for n in ("plus", "minus")}
    keep = {k: v for k, v in sign_nodes().items() if k in ("above", "negate", "below")}
    edges = [("in", "x"), ("in", "s"), ("x", "above"), ("x", "negate"), ("negate", "below")]
    edges += [
        ("above", "plus"),
        ("s", "plus"),
        ("below", "minus"),
        ("s", "minus"),
        ("plus", "out"),
        ("minus", "out"),
    ]
    x = np.array([[v, s] for v in VALUES for s in (0.0, 1.0)])[None]
    z = base.get(target)().compile(check(connected({**pick, **both, **keep}, edges, (2,)))).run(x).z
    signed = z["plus"].astype(int) - z["minus"].astype(int)
    assert signed.reshape(-1).tolist() == (np.sign(x[0, :, 0]) * x[0, :, 1]).tolist()
