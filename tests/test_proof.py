"""What the execution check must neither miss nor invent: ties behind real values, folded factors, cancellation."""

from __future__ import annotations

from itertools import pairwise

import nir
import numpy as np
import pytest

from eiexport import graph
from eiexport.bounds import BoundedOps
from eiexport.check import ExecutionCheck, judge
from eiexport.graph import Network
from targets import base


def chain(shape: tuple[int, ...], **found: nir.ir.NIRNode) -> Network:
    nodes = {"in": nir.Input(np.array(shape)), **found}
    names = [*nodes, "out"]
    nodes["out"] = nir.Output(None)
    edges = list(pairwise(names))
    bare = nir.NIRGraph(nodes, edges, type_check=False)
    return graph.check(graph.stamp(bare, dt=1.0, integrator="euler", dtype="float64"))


def verdict(network: Network, x: np.ndarray, z: dict[str, np.ndarray], dtype: str) -> tuple[str, dict]:
    check = ExecutionCheck(network, dtype)
    check.add(x, z)
    return judge(check.results, dtype), check.results


def integrator_then_threshold() -> Network:
    return chain(
        (1,),
        weigh=nir.Linear(np.array([[0.1]])),
        sum=nir.I(np.ones(1)),
        fire=nir.Threshold(np.array([0.3])),
    )


def test_a_tie_behind_a_real_value_is_counted() -> None:
    """An engine that sends an integrator's value one rounding lower moves the spike behind it: that is a tie."""
    network, x = integrator_then_threshold(), np.ones((1, 3, 1))
    z = base.get("reference")().compile(network).run(x).z
    assert z["fire"].ravel().tolist() == [0, 0, 1]  # .1 + .1 + .1 is above .3 in float64
    z["sum"][0, 2] = 0.3
    z["fire"][0, 2] = 0
    status, results = verdict(network, x, z, "float64")
    assert results["fire"].explained_ties == 1 and results["fire"].mismatches == 0
    assert status == "differs"  # one tie in so few entries is more than float64 is allowed


def test_a_spike_lost_away_from_the_threshold_is_found() -> None:
    network, x = integrator_then_threshold(), np.ones((1, 5, 1))
    z = base.get("reference")().compile(network).run(x).z
    z["fire"][0, 4] = 0
    status, results = verdict(network, x, z, "float64")
    assert status == "differs" and results["fire"].mismatches == 1
    assert results["fire"].first is not None and results["fire"].first.step == 4


def test_cancellation_is_no_difference() -> None:
    """.1 + .2 - .3: one engine's rounding leaves 2.8e-17, the other's 0."""
    network = chain((3,), weigh=nir.Linear(np.array([[0.1, 0.2, -0.3]])), sum=nir.I(np.ones(1)))
    x = np.ones((2, 4, 3))
    for name in ("reference", "torch", "torch32"):
        target = base.get(name)()
        assert verdict(network, x, target.compile(network).run(x).z, target.dtype)[0] == "equal"
    wrong = {"sum": np.full((2, 4, 1), 1e-3)}
    assert verdict(network, x, wrong, "float32")[0] == "differs"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_folded_factor_stays_inside_the_bound(dtype: str) -> None:
    """w x is exact in whole numbers, but an engine that multiplies the weights by a factor first rounds every term."""
    rng, ops = np.random.default_rng(0), BoundedOps(dtype)
    for _ in range(200):
        x, w = rng.integers(-9, 10, (1, 30)).astype(float), rng.integers(-999, 1000, (1, 30)).astype(float)
        w[0, 0] -= (w @ x.T).item() // max(1, x[0, 0])  # most of it cancels
        factor = rng.random()
        bounded = ops.mul(ops.linear(ops.exact(x), ops.const(w), None), ops.const(np.array(factor)))
        folded = np.dot((w * factor).astype(dtype), x.astype(dtype).T)
        assert np.abs(folded - bounded.x).item() <= bounded.e.item()


def test_lava_with_a_folded_gain_is_an_execution() -> None:
    """tau = 10 becomes a factor of the weights on Lava, where whole numbers no longer cancel exactly."""
    lif = nir.LIF(*(np.full(1, v) for v in (10.0, 1.0, 0.0, 0.3)), v_reset=np.zeros(1))
    network = chain((2,), weigh=nir.Linear(np.array([[1000.0, -997.0]])), fire=lif)
    x = np.ones((2, 12, 2))
    lava = base.get("lava")()
    z = lava.compile(network).run(x).z
    _, results = verdict(network, x, z, "float64")
    assert results["fire"].mismatches == 0 and results["fire"].spikes > 0
    assert lava.process(network, "fire") == "stock" and lava.evidence_for(network) == "independent"
