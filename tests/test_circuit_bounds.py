"""Error bounds of circuits: what float32 computes lies inside them, they say something, and a check that rests on them.

Two kinds of evidence: every op by itself, for any value that an engine may hold; and whole circuits that NumPy and
torch really compute in float32, on the edges where an octave, a part of the table or a zero may turn over.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import nir
import numpy as np
import pytest
import torch
from cases import chain
from circuit_cases import FLAT, FORMS, MAP, both, circuit_of, inputs, ran

from eiexport import graph
from eiexport.alphabet import REAL, interval
from eiexport.bounds import Bounded, BoundedOps
from eiexport.check import ExecutionCheck, judge
from eiexport.circuits import HALF_OCTAVE, EICircuit, reciprocals
from eiexport.nodes import lif, prepare
from eiexport.ops import NumpyOps
from eiexport.steps import Clock, bind
from targets import base
from targets.pytorch import TorchOps

Claims = Iterator[tuple[str, bool]]
SINGLE = NumpyOps(np.float32)


def inside(bound: Bounded, found: Any) -> bool:
    """Whether what an engine found is no further from the value than its bound; NaN is nowhere."""
    z, e = np.asarray(found, np.float64), np.broadcast_to(bound.e, bound.x.shape)
    with np.errstate(invalid="ignore"):
        return z.shape == bound.x.shape and bool(((z == bound.x) | (np.abs(z - bound.x) <= e)).all())


# --- every op by itself


def held(rng: np.random.Generator, x: np.ndarray, found: np.ndarray) -> Bounded:
    """A value for which an engine holds `found`, with an error bound that is tight or wide."""
    return Bounded(x, np.abs(x - found) * rng.choice([1.0, 1.5], x.shape), None)


def pair(rng: np.random.Generator, edges: Any, zeros: bool) -> tuple[Bounded, np.ndarray]:
    """Numbers >= 0 on edges and elsewhere, and what an engine holds instead: the same, its neighbours, 0, another."""
    shape = (4, 6)
    found = np.float32(rng.choice(edges, shape) * 2.0 ** rng.integers(-9, 9, shape))
    found = np.where(rng.random(shape) < 0.3, rng.random(shape).astype(np.float32), found)
    x = found.astype(float)
    row = rng.random((4, 1)) < 0.7  # some rows are known exactly
    x = np.where(row, x * (1 + rng.choice([0, 0, 6e-8, -6e-8, 1e-4, -1e-3, 0.6], shape)), x)
    if zeros:
        gone, seen, nothing = (rng.random(shape) < p for p in (0.05, 0.05, 0.3))
        seen |= rng.random((4, 1)) < 0.1
        found = np.where(gone & row, np.float32(0), found)  # an engine that holds 0 where there is something
        x = np.where(seen & row, 0.0, x)  # or something where there is none
        nothing |= rng.random((4, 1)) < 0.1  # or both hold 0, in whole rows too
        x, found = np.where(nothing, 0.0, x), np.where(nothing, np.float32(0), found)
    return held(rng, x, found), found


def whole_pair(rng: np.random.Generator, lo: int, hi: int) -> tuple[Bounded, np.ndarray]:
    found = rng.integers(lo, hi, (4, 6))
    x = np.clip(found + rng.integers(-2, 3, (4, 6)) * (rng.random((4, 1)) < 0.7), lo, hi - 1)
    return held(rng, x.astype(float), found.astype(np.float32)), found.astype(np.float32)


def ops_hold(seeds: range) -> Claims:
    """Whatever value inside its bound an engine goes on with, the result is inside the bound of the result."""
    ops, table = BoundedOps("float32"), (reciprocals(3) / 4096).astype(np.float32)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        (d, one), (below, two) = (pair(rng, [1, HALF_OCTAVE, 1.25, 1.5], z) for z in (True, False))
        (n, three), (a, four), (b, five) = (whole_pair(rng, *s) for s in ((-40, 40), (0, 8), (1, 30)))
        filled, six = ops.fill(d, ops.least(d)), SINGLE.fill(one, SINGLE.least(one))
        yield f"least, {seed}", inside(ops.least(d), SINGLE.least(one))
        yield f"fill, {seed}", inside(filled, six)
        yield f"fill by a number, {seed}", inside(ops.fill(d, 0.3), SINGLE.fill(one, np.float32(0.3)))
        yield f"div, {seed}", inside(ops.div(n, below), SINGLE.div(three, two))
        yield f"div by what was filled, {seed}", inside(ops.div(n, filled), SINGLE.div(three, six))
        for low in (1.0, HALF_OCTAVE):
            yield f"octave {low:g}, {seed}", inside(ops.octave(below, low), SINGLE.octave(two, low))
        yield f"relu, {seed}", inside(ops.relu(n), SINGLE.relu(three))
        yield f"shift, {seed}", inside(ops.shift_floor(n, 2), SINGLE.shift_floor(three, 2))
        yield f"quotient, {seed}", inside(ops.quotient(n, b), SINGLE.quotient(three, five))
        yield f"saturate, {seed}", inside(ops.saturate(n, -9, 9), SINGLE.saturate(three, -9, 9))
        yield f"table, {seed}", inside(ops.table(a, ops.const(table)), SINGLE.table(four, table))


def test_ops_hold() -> None:
    wrong = [what for what, holds in ops_hold(range(400)) if not holds]
    assert not wrong, wrong[:5]


def test_ops_say_something() -> None:
    """By hand: what must come out, and not a bound around it."""
    ops = BoundedOps("float32")
    d = Bounded(np.array([[3.0, 0, 1, 5], [0, 0, 0, 0]]), np.array([[0.1, 0, 0.25, 4], [0, 0, 0, 0]]), None)
    least = ops.least(d)
    assert least.x.ravel().tolist() == [1, np.inf] and least.e.ravel().tolist() == [0.25, 0]
    far = ops.least(Bounded(np.array([[2.0, 3.0]]), np.array([[0.5, 2.5]]), None))
    assert (float(far.x[0, 0]), float(far.e[0, 0])) == (2.0, 1.5)  # the other one may be as small as 0.5
    filled = ops.fill(d, least)
    assert filled.x[0].tolist() == [3, 1, 1, 5] and filled.e[0].tolist() == [0.1, 0.25, 0.25, 4]
    silent = ops.div(ops.exact(np.ones((2, 4))), filled)  # a / inf is 0
    assert not silent.x[1].any() and not silent.e[1].any() and silent.e[0].all()
    exact = ops.div(ops.exact(np.array([3.0, -5.0, 0.75])), ops.exact(np.array([2.0, 0.25, 8.0])))
    assert not exact.e.any() and exact.k is not None
    assert ops.div(ops.exact(np.ones(1)), ops.exact(np.array([3.0]))).e[0] == pytest.approx(2**-24 / 3, rel=1e-6)
    edge = ops.exact(np.array([0.25, 1.0, 4.0]))
    for low in (1.0, HALF_OCTAVE):
        assert not ops.octave(edge, low).e.any()
    beside = Bounded(np.array([1.0, 1.5]), np.array([1e-7, 1e-7]), None)
    assert ops.octave(beside, 1.0).e.tolist() == [0.5, 0]
    whole = ops.exact(np.array([7.0, -7.0]))
    assert ops.quotient(whole, ops.exact(np.array([2.0, 2.0]))).x.tolist() == [3, -4]
    assert not ops.quotient(whole, ops.exact(np.array([3.0, 3.0]))).e.any()
    unsure = Bounded(np.array([[0.0, 2.0]]), np.array([[1e-8, 0.0]]), None)
    assert np.isinf(ops.least(unsure).e).all() and np.isinf(ops.fill(unsure, 1.0).e).tolist() == [[True, False]]
    flushed = ops.exact(np.array([[1e-40, 2.0]]))
    assert np.isinf(ops.fill(flushed, 1.0).e).tolist() == [[True, False]]


# --- whole circuits in float32


def evaluated(node: EICircuit, x: np.ndarray) -> tuple[Bounded, list[np.ndarray]]:
    """(value with bound, what NumPy and torch compute in float32) for rows of input."""
    step, ops = prepare(node, Clock(1.0, "euler")), BoundedOps("float32")
    x = x.astype(np.float32)
    bound = bind(step, ops).drive(ops, ops.exact(x.astype(float)))
    t32: Any = TorchOps(torch.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        found = [bind(step, SINGLE).drive(SINGLE, x), bind(step, t32).drive(t32, torch.from_numpy(x)).numpy()]
    assert all(z.dtype == np.float32 for z in found)
    return bound, found


def on_edges(rng: np.random.Generator, form: str, zero: str) -> tuple[EICircuit, np.ndarray]:
    """Denominators on octaves, on parts of the table and a few units beside them, tiny, and 0; a rounded sum first."""
    x = rng.uniform(0.1, 1, (3, 7)) * np.array([[1], [0], [1]])
    inhibit, gain = rng.uniform(0.1, 1, (1, 7)), rng.choice([0.3, 1.0, 1e-20])
    s = float(inhibit[0] @ x[0].astype(np.float32).astype(float)) * gain
    edges = rng.choice([1.0, 1.25, 1.5, 1.75, 1 / HALF_OCTAVE], 40) * 2.0 ** rng.integers(-4, 5, 40)
    beside = 1 + rng.choice([0, 0, 3e-8, -3e-8, 1e-7, -1e-7, 1e-6], 40)
    spread = (edges * beside / s)[:, None] * (rng.random((40, 1)) < 0.8)
    fields = {"denominator": rng.uniform(0.5, 2, 40)} if form == "frozen" else {}
    parts = (nir.Linear(rng.uniform(0, 1, (40, 7))), nir.Linear(inhibit), nir.Linear(spread))
    gains = {"gain_i": np.array([gain]), "gain_e": rng.uniform(0.5, 2, 40), "bias": rng.normal(size=40)}
    epsilon = 0.07 if zero == "constant" else 0.0
    return EICircuit(*parts, form=form, zero=zero, epsilon=epsilon, table_bits=2, **gains, **fields), x


def cancelled(rng: np.random.Generator) -> tuple[EICircuit, np.ndarray]:
    """Inhibitory currents of an undeclared signed input that cancel: whether D is 0 depends on rounding."""
    inhibit = rng.uniform(0.1, 1, (2, 3)).astype(np.float32)
    x = rng.uniform(0.1, 1, (4, 3)).astype(np.float32)
    x[:2, 2] = -(inhibit[0, :2] @ x[:2, :2].T) / inhibit[0, 2]
    x[1] *= 0.5
    inhibit[1] *= rng.random() < 0.5
    parts = (rng.uniform(0, 1, (3, 3)), inhibit.astype(float), np.array([[1.0, 0.5], [0.5, 0], [0, 0]]))
    return EICircuit(*map(nir.Linear, parts), gain_i=np.array([0.3, 1.0]), gain_e=np.ones(3)), x


def circuits_hold(seeds: range) -> Claims:
    """Every entry of every form, in either geometry and on the edges, is inside its bound in float32."""
    for seed in seeds:
        for form, zero in FORMS:
            rng = np.random.default_rng([seed, len(form)])
            shape = (FLAT, MAP, (48,))[seed % 3]
            node = circuit_of(seed, form, zero, shape, False, (9, 3))
            made = {
                "random": (node, inputs(seed, shape, False).reshape(-1, *shape)),
                "edges": on_edges(rng, form, zero),
            }
            for what, (circuit, x) in made.items():
                bound, found = evaluated(circuit, x)
                yield f"{form}, {zero}, {what}, {seed}", all(inside(bound, z) for z in found)
        bound, found = evaluated(*cancelled(np.random.default_rng(seed)))
        yield f"cancelled, {seed}", all(inside(bound, z) for z in found)


def test_circuits_hold() -> None:
    wrong = [what for what, holds in circuits_hold(range(60)) if not holds]
    assert not wrong, wrong[:5]


def test_edges_turn_over_in_float32() -> None:
    """Else the cases above prove nothing: float32 takes another octave, another part, or another zero."""
    turned = dict.fromkeys(("shift", "table", "cancelled"), 0)
    for seed in range(60):
        for form in ("shift", "table"):
            bound, found = evaluated(*on_edges(np.random.default_rng([seed, len(form)]), form, "constant"))
            turned[form] += sum(int((np.abs(z - bound.x) > 1e-3 * (np.abs(z) + 1e-3)).sum()) for z in found)
        bound, found = evaluated(*cancelled(np.random.default_rng(seed)))
        turned["cancelled"] += sum(int((np.abs(z - bound.x) > 1e-3 * (np.abs(z) + 1)).sum()) for z in found)
    assert min(turned.values()) >= 20, turned


@pytest.mark.parametrize("form, zero", FORMS)
def test_bounds_of_circuits_say_something(form: str, zero: str) -> None:
    """99 % of the entries of random circuits are known to 1e-4, nearly all to 1e-2; where N / D is, so is the bound."""
    wide, share = [], []
    for seed in range(30):
        for shape in (FLAT, MAP, (48,)):
            node = circuit_of(seed, form, zero, shape, False, (9, 3))
            bound, _ = evaluated(node, inputs(seed, shape, False).reshape(-1, *shape))
            relative = np.broadcast_to(bound.e, bound.x.shape) / (1 + np.abs(bound.x))
            share.append((relative < 1e-4).ravel())
            wide.append((relative < 1e-2).ravel())
    assert np.concatenate(share).mean() > 0.99, np.concatenate(share).mean()
    assert np.concatenate(wide).mean() > 0.999, np.concatenate(wide).mean()


@pytest.mark.parametrize("form, zero", FORMS)
def test_dyadic_circuits_are_exact(form: str, zero: str) -> None:
    """Short numbers, and D a power of two, 0 or filled in: no bound at all, so a hit on a threshold is no tie."""
    rng = np.random.default_rng(0)
    excite, spread = rng.integers(0, 3, (6, 4)).astype(float), np.array([[0.5], [1], [2], [0], [4], [0.25]])
    node = EICircuit(*map(nir.Linear, (excite, np.array([[1.0, 0, 0, 0]]), spread)), form=form, zero=zero)
    node.gain_i, node.gain_e, node.bias = np.array([0.5]), rng.choice([1.0, 2.0], 6), rng.choice([-0.5, 0.25], 6)
    node.epsilon, node.denominator = 0.125, np.array([0.5, 1, 2, 4, 0.25, 0.5])
    x = rng.integers(0, 4, (9, 4)).astype(float)
    x[:, 0] = [0, 1, 2, 4, 8, 1, 0, 2, 1]
    bound, found = evaluated(node, x)
    assert not np.any(bound.e) and bound.k is not None and np.abs(bound.x).max() > 1
    for z in found:
        np.testing.assert_array_equal(z, bound.x)
    if form == "exact":  # other denominators are rounded by
        x[:, 0] *= 3
        assert np.any(evaluated(node, x)[0].e)


# --- the check that rests on them


def network_of(node: EICircuit, shape: Any, **fields: Any) -> graph.Network:
    """The circuit and its neurons, both recorded; thresholds that differ from cell to cell."""
    x = np.zeros((1, *shape))
    step = prepare(node, Clock(1.0, "euler"))
    cells = step.output_shape(x.shape[1:])
    cell = lif(cells, decay=0.5, threshold=1.0, **{"compare": "ge", "reset": "subtract", **fields})
    return graph.check(both(shape, node, cell), alphabet=REAL)


def verdict(network: graph.Network, x: np.ndarray, z: dict[str, np.ndarray], dtype: str) -> tuple[str, int, int]:
    check = ExecutionCheck(network, dtype)
    check.add(x, z)
    results = check.results.values()
    return judge(check.results, dtype), sum(r.mismatches for r in results), sum(r.explained_ties for r in results)


@pytest.mark.parametrize("form, zero", FORMS)
@pytest.mark.parametrize("exact", [True, False])
def test_right_traces_pass(form: str, zero: str, exact: bool) -> None:
    for shape in (FLAT, MAP):
        network = network_of(circuit_of(11, form, zero, shape, exact), shape)
        x = inputs(11, shape, exact, 4, 6) * 4
        for target, dtype in (("torch", "float64"), ("torch32", "float32"), ("reference", "float64")):
            z = base.get(target)().compile(network).run(x).z
            assert 0.05 < z["n1"].mean() < 0.95
            assert verdict(network, x, z, dtype) == ("equal", 0, 0)


def wrong_circuits() -> dict[str, Any]:
    return {
        "g_I ignored": {"gain_i": np.ones(2)},
        "g_E ignored": {"gain_e": np.ones(4)},
        "bias dropped": {"bias": None},
        "zeros filled with a number": {"zero": "constant", "epsilon": 0.3},
        "rounded to powers of two": {"form": "shift", "zero": "constant", "epsilon": 0.3},
        "no division": {"form": "frozen", "denominator": np.ones(4)},
    }


@pytest.mark.parametrize("what", wrong_circuits())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wrong_circuits_are_caught(what: str, dtype: str) -> None:
    """By their neurons' spikes alone, and by their own values."""
    node = circuit_of(15, "exact", "sample_min", FLAT, False)
    other = copy(node)
    for field, value in wrong_circuits()[what].items():
        setattr(other, field, value)
    network, wrong = network_of(node, FLAT), network_of(other, FLAT)
    x = inputs(15, FLAT, False, 4, 12)
    right, z = ran(network, x, NumpyOps(dtype)), ran(wrong, x, NumpyOps(dtype))
    assert verdict(network, x, right, dtype)[:2] == ("equal", 0)
    for mixed in ({**right, "n1": z["n1"]}, {**right, "n0": z["n0"]}):
        status, mismatches, _ = verdict(network, x, mixed, dtype)
        assert status == "differs" and mismatches > 0


def test_other_neurons_are_caught() -> None:
    node, x = circuit_of(11, "table", "constant", FLAT, True), inputs(11, FLAT, True, 4, 12)
    network = network_of(node, FLAT)
    for fields in ({"reset": "zero"}, {"reset": "none"}):
        z = ran(network_of(node, FLAT, **fields), x, NumpyOps("float32"))
        assert verdict(network, x, z, "float32")[0] == "differs"


def test_a_hit_on_the_threshold_has_one_answer() -> None:
    """I = 1 exactly, through a division: ">" is wrong in either dtype, and no tie."""
    parts = ([[0.5, 0.25, 0.25]], [[0.25, 0.5, 0.25]], [[0.5]])
    node = EICircuit(*(nir.Linear(np.array(w)) for w in parts), gain_i=np.ones(1), gain_e=np.array([0.5]))
    network, strict = network_of(node, (3,)), network_of(node, (3,), compare="gt")
    x = np.tile([1.0, 0, 1], (2, 3, 1))
    for dtype in ("float32", "float64"):
        assert verdict(network, x, ran(network, x, NumpyOps(dtype)), dtype) == ("equal", 0, 0)
        found = verdict(
            network, x, {**ran(network, x, NumpyOps(dtype)), "n1": ran(strict, x, NumpyOps(dtype))["n1"]}, dtype
        )
        assert found[0] == "differs" and found[1] > 0 and found[2] == 0


def test_a_flipped_spike_and_a_shared_minimum_are_caught() -> None:
    node, x = circuit_of(12, "exact", "sample_min", FLAT, False), inputs(12, FLAT, False, 4, 6)
    network = network_of(node, FLAT)
    z = ran(network, x, NumpyOps("float64"))
    flipped = {**z, "n1": z["n1"].copy()}
    flipped["n1"][2, 3, 1] = 1 - flipped["n1"][2, 3, 1]
    assert verdict(network, x, flipped, "float64")[:2] == ("differs", 1)

    class Shared(NumpyOps):
        """Takes the least denominator of all rows."""

        def least(self, v: Any) -> Any:
            return np.broadcast_to(np.where(v == 0, np.inf, v).min(), (len(v), *[1] * (v.ndim - 1)))

    wrong = ran(network, x, Shared())
    assert verdict(network, x, wrong, "float64")[0] == "differs"


def test_output_layer_is_held_to_its_bound() -> None:
    """Form none as the last node: no spikes, so its values are what is compared."""
    node, x = circuit_of(2, "none", "sample_min", FLAT, False), inputs(2, FLAT, False)
    network = graph.check(chain(FLAT, node), alphabet=interval(0, 1, False))
    z = base.get("torch32")().compile(network).run(x).z
    assert verdict(network, x, z, "float32") == ("equal", 0, 0)
    assert verdict(network, x, {"n0": z["n0"] + 3e-6}, "float32")[0] == "differs"
