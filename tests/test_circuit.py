"""EICircuit and IntCircuit: worked examples, refusals, files, gradients, and every form held against scalar loops."""

from __future__ import annotations

from collections import Counter
from copy import copy
from fractions import Fraction
from typing import Any

import circuit_oracle
import nir
import numpy as np
import pytest
import torch
from cases import Case, chain
from circuit_cases import (
    FLAT,
    FLOATS,
    FORMS,
    MAP,
    WHOLE,
    alphabet_holds,
    apart,
    both,
    circuit_of,
    expected,
    gradients,
    inputs,
    learning,
    ran,
)
from int_networks import dense

from eiexport import graph
from eiexport.alphabet import BINARY, REAL, TERNARY, Alphabet, interval
from eiexport.circuits import Circuit, EICircuit, IntCircuit, fold, reciprocals
from eiexport.errors import GraphError
from eiexport.nodes import lif, prepare
from eiexport.ops import NumpyOps
from eiexport.steps import Clock, bind
from targets import base
from targets.loihi.executor import IntegerOps
from targets.pytorch import TorchOps

CLOCK = Clock(1.0, "euler")
WEIGHTS = ("excite", "inhibit", "spread")


def step_of(node: Any) -> Circuit:
    step = prepare(node, CLOCK)
    assert isinstance(step, Circuit)
    return step


def values(node: EICircuit, x: Any) -> np.ndarray:
    """I for rows of input."""
    return step_of(node).drive(NumpyOps(), np.asarray(x, float))


def linear(**fields: Any) -> EICircuit:
    parts = {k: nir.Linear(np.array(fields.pop(k), float)) for k in WEIGHTS}
    return EICircuit(**parts, **{k: np.array(v) if isinstance(v, list) else v for k, v in fields.items()})


# Liu, Ding, Yu (2025): the sheet's worked examples
E1 = linear(
    excite=[[0.5, 0.2, 0.1], [0.3, 0.3, 0.3], [0.1, 0.8, 0.4], [0.9, 0, 0.6]],
    inhibit=[[0.2, 0.4, 0.2]],
    spread=[[1], [0.5], [1.5], [2]],
    gain_i=[0.5],
    gain_e=[1.0, 2.0, 1.0, 1.0],
    bias=[0, 0.1, -0.1, 0.2],
)
E2 = linear(
    excite=np.full((8, 2), 0.5),
    inhibit=[[0.4, 0], [0, 0.2]],
    spread=[[1, 0], [0, 1], [0.5, 0.5], [2, 0], [0, 0], [1, 1], [0.25, 0], [0, 2]],
    gain_i=[0.5, 1.0],
    gain_e=np.ones(8),
    bias=np.zeros(8),
)


def test_worked_example_with_neurons() -> None:
    """E-1. Neuron 0 meets its threshold up to rounding, so its spikes are not looked at."""
    x = np.tile([1.0, 0, 1], (1, 3, 1))
    cell = lif((4,), decay=0.5, threshold=1, compare="ge", reset="subtract")
    network = graph.check(both((3,), E1, cell), alphabet=BINARY)
    sums = np.array([1.0, 8.1, -1 / 3 - 0.1, 1.95])
    spikes = np.array([[1, 1, 0, 1]] * 3)
    held = np.array([[0, 7.1, -0.43333, 0.95], [0, 10.65, -0.65, 1.425], [0, 12.425, -0.75833, 1.6625]])
    for target in ("reference", "torch"):
        found = base.get(target)().compile(network).run(x, probe=True)
        i, v = found.z["n0"], found.states["v"]["n1"]
        assert i.shape == v.shape == found.z["n1"].shape == (1, 3, 4)
        np.testing.assert_allclose(i[0], np.tile(sums, (3, 1)), rtol=1e-12)
        np.testing.assert_array_equal(found.z["n1"][0, :, 1:], spikes[:, 1:])
        np.testing.assert_allclose(v[0, :, 1:], held[:, 1:], atol=1e-5)
        charged = i[0, 0, 0]  # from rest
        assert abs(charged - 1) < 1e-12 and found.z["n1"][0, 0, 0] == (charged >= 1)


def test_worked_example_on_the_threshold() -> None:
    """E-1 in dyadic numbers: neuron 0 gets exactly 1, and fires in every engine and dtype."""
    exact = linear(
        excite=[[0.5, 0.25, 0.25], [0.25, 0.25, 0.25]],
        inhibit=[[0.25, 0.5, 0.25]],
        spread=[[0.5], [0.25]],
        gain_i=[1.0],
        gain_e=[0.5, 1.0],
        bias=[0.0, -2.0],
    )
    cell = lif((2,), decay=0.5, threshold=1, compare="ge", reset="subtract")
    network = graph.check(both((3,), exact, cell), alphabet=BINARY)
    x = np.tile([1.0, 0, 1], (1, 3, 1))
    for target in ("reference", "torch", "torch32"):
        z = base.get(target)().compile(network).run(x).z
        np.testing.assert_array_equal(z["n0"][0], [[1.0, 1.0]] * 3)
        np.testing.assert_array_equal(z["n1"][0], [[1, 1]] * 3)


ZEROS_FILLED = [[0.5, 10, 3, -0.75, 10, 0.5, 8, 10], [0] * 8]


def test_worked_example_of_zero_denominators() -> None:
    found = values(E2, [[1, 0], [0, 0]])
    assert found.shape == (2, 8)
    np.testing.assert_allclose(found, ZEROS_FILLED, rtol=1e-12, atol=1e-12)
    assert np.array_equal(found[1], np.zeros(8))
    biased = replace_node(E2, bias=np.arange(8.0))
    np.testing.assert_array_equal(values(biased, [[0, 0]]), [np.arange(8.0)])


def test_each_row_fills_its_own_zeros() -> None:
    """A row between others, larger and smaller, is what it is alone: nothing is shared over samples or steps."""
    rows = np.array([[1, 0], [0.01, 0], [0, 0], [100, 3], [0, 5]])
    together = values(E2, rows)
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(together[k], values(E2, [row])[0])
    fixed = replace_node(E2, zero="constant", epsilon=0.125)
    np.testing.assert_allclose(values(fixed, [[1, 0]])[0, [1, 4, 7]], [4, 4, 4], rtol=1e-12)
    np.testing.assert_array_equal(values(fixed, [[0, 0]]), np.zeros((1, 8)))


def replace_node(node: Any, **fields: Any) -> Any:
    other = copy(node)
    for key, value in fields.items():
        setattr(other, key, value)
    return other


# --- gradients


def test_worked_example_of_gradients() -> None:
    found = gradients(E2, [[1.0, 0.0]], np.ones(8))
    column = [-1.25, -24, -5, -0.3125, -24, -1.25, -20, -24]
    np.testing.assert_allclose(found["spread"], np.stack([column, np.zeros(8)], 1), rtol=1e-12)
    np.testing.assert_allclose(found["gain_i"], [-22.5, 0], rtol=1e-12)


def test_silence_has_gradients_of_zero() -> None:
    found = gradients(E2, np.zeros((2, 2)), np.ones(8))
    np.testing.assert_array_equal(found.pop("bias"), np.full(8, 2.0))
    for name, g in found.items():
        assert np.array_equal(g, np.zeros_like(g)), name


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("zero", ["sample_min", "constant"])
def test_gradients_by_hand(seed: int, zero: str) -> None:
    node, rows, weight = learning(seed, zero)
    found = gradients(node, rows, weight)
    for name, g in circuit_oracle.gradients(node, rows.tolist(), weight.tolist()).items():
        assert found[name].shape == np.shape(g) and np.any(g)
        np.testing.assert_allclose(found[name], g, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("shape, fan_in", [(FLAT, 5), (MAP, 12)])
def test_spread_alone_is_scaled(shape: Any, fan_in: int) -> None:
    """E10: the gradient of W_EI, of both its uses, times 1 / d; d counts the taps of a kernel."""
    node = circuit_of(1, "exact", "sample_min", shape, False)
    rows = inputs(1, shape, False).reshape(-1, *shape)
    scaled, plain = (gradients(node, rows, 1.0, scaled=s) for s in (True, False))
    assert np.abs(plain["spread"]).max() > 0
    np.testing.assert_allclose(scaled["spread"], plain["spread"] / fan_in, rtol=1e-12)
    for name in set(plain) - {"spread"}:
        np.testing.assert_array_equal(scaled[name], plain[name], err_msg=name)


def test_without_straight_through_the_donor_gets_the_gradient() -> None:
    """What the option turns off: cell 6 lends its D to three others."""
    on, off = (gradients(E2, [[1.0, 0.0]], np.ones(8), straight_through=s)["spread"][:, 0] for s in (True, False))
    assert on[6] == pytest.approx(-20) and off[6] == pytest.approx(-20 - 3 * 0.5 / 0.05**2 * 0.2 / 2)
    np.testing.assert_allclose(off[[1, 4, 7]], [-4] * 3)  # of N alone


# --- against loops


@pytest.mark.parametrize("case", FLOATS, ids=repr)
def test_floats_equal_the_oracle(case: Case) -> None:
    network, wanted = case.network(), expected(case)
    for target in ("reference", "torch"):
        program = base.get(target)().compile(network)
        assert not apart(case, program.run(case.x).z, wanted), target
        for i in range(len(case.x)):  # nothing is shared between samples
            one = program.run(case.x[i : i + 1]).z
            assert not apart(case, one, {n: z[i : i + 1] for n, z in wanted.items()}), target


def test_float_cases_provoke() -> None:
    """Cases are worth something only if spikes fall, denominators are 0 and inhibition wins."""
    dyadic = [c for c in FLOATS if c.exact and "n1" in c.network().recorded]
    rates = [expected(c)["n1"].mean() for c in dyadic]
    assert len(rates) == 12 and 0.1 < min(rates) and max(rates) < 0.9
    for case in FLOATS:
        step, x = bind(case.network().steps["n0"], NumpyOps()), case.x.reshape(-1, *case.x.shape[2:])
        assert isinstance(step, Circuit)
        e, s = step.currents(NumpyOps(), x)
        assert (expected(case)["n0"] < 0).any() or case.name == "once"
        if step.gain_i is not None and case.exact:
            d = step.spread.drive(NumpyOps(), step.weighed(NumpyOps(), s))
            assert ((d == 0) & (e != 0)).any() and (d > 0).any(), case.name


def test_integers_equal_the_oracle() -> None:
    """Every engine's own ops, to the bit; the oracle counts what the cases met."""
    seen: Counter[str] = Counter()
    for case in WHOLE:
        network, wanted = case.network(), expected(case, seen)
        for ops in (NumpyOps(), TorchOps(torch.float64), IntegerOps()):
            assert not apart(case, ran(network, case.x, ops), wanted), ops.name
        for name, z in wanted.items():
            assert alphabet_holds(network.alphabets[name], z), f"{case.name}: {name} {network.alphabets[name]}"
        if case.alphabet != REAL:
            for target in ("reference", "torch"):
                assert not apart(case, base.get(target)().compile(network).run(case.x).z, wanted), target
    rare = {w: seen[w] for w in ("relu", "zero denominator", "gain lost bits", "shift below 0", "exact", "down")}
    assert min(rare.values()) > 300 and min(seen[w] for w in ("too low", "too high", "rest dropped")) > 100, seen
    shapes = {c.x.shape[:2] for c in WHOLE}
    assert shapes == {(1, 1), (2, 3)} and {c.name.partition("-")[0] for c in WHOLE} == {f for f, _ in FORMS}


def test_rounding_is_downward_and_current_is_clipped() -> None:
    """By hand: (3 - 2 s) / 4 for s = 0..4, then with a factor that leaves the range on both sides."""
    node = IntCircuit(
        *(dense([w], sign_mode="excitatory", message_bits=24) for w in ([3, 0], [0, 1], [2])),
        gain_i=np.array([0]),
        gain_e=np.array([1]),
        epsilon=4,
    )
    x = np.array([[[1, s] for s in range(5)]], float)
    network = graph.check(chain((2,), node), alphabet=interval(0, 4, True))
    found = ran(network, x, NumpyOps())["n0"].ravel()
    assert found.tolist() == [0, 0, -1, -1, -2]
    node.shift, node.gain_e, node.epsilon, node.bias = 16, np.array([40]), 1, np.array([-7])
    network = graph.check(chain((2,), node), alphabet=interval(0, 4, True))
    found = ran(network, x, NumpyOps())["n0"].ravel()
    assert found.tolist() == [131071, 131071, -131071, -131071, -131071]


@pytest.mark.parametrize("form, zero", FORMS)
def test_float_networks_keep_their_alphabets(form: str, zero: str) -> None:
    for seed in range(20):
        shape, counts = (MAP if seed % 2 else FLAT), seed % 3 > 0
        node = circuit_of(seed, form, zero, shape, counts, (3, 2))
        for part in WEIGHTS if counts and form == "none" else ():
            getattr(node, part).weight = getattr(node, part).weight * 4  # whole, and so the node's values
        a = interval(0, 4, counts)
        x = np.random.default_rng(seed).integers(0, 5, (2, 3, *shape)) * (1.0 if counts else 0.99)
        network = graph.check(chain(shape, node), alphabet=a)
        found, said = ran(network, x, NumpyOps())["n0"], network.alphabets["n0"]
        assert alphabet_holds(Alphabet(said.kind, said.lo - 1e-9, said.hi + 1e-9), found), (seed, said)
        assert said.discrete == (counts and form == "none")
        assert np.isfinite(said.hi) == (form in ("none", "frozen"))


# --- the forms


@pytest.mark.parametrize("bits", range(1, 11))
def test_reciprocals(bits: int) -> None:
    """Entries by whole-number arithmetic; the error of 1 / D is that of a part's middle, and of 12 bits."""
    table = reciprocals(bits)
    assert table.tolist() == [circuit_oracle.reciprocal(i, bits) for i in range(1 << bits)]
    assert (np.diff(table) < 0).all() or bits > 6  # 12 bits do not tell all of 2^7 parts and more from each other
    for i in range(1 << bits):
        for m in (Fraction(i, 1 << bits) + 1, Fraction(i + 1, 1 << bits) + 1):
            assert abs(m * int(table[i]) / 4096 - 1) <= Fraction(1, 2 << bits) + Fraction(1, 4096)


def lone(form: str, **fields: Any) -> Circuit:
    """N = 1 whatever comes, D = x."""
    parts = {"excite": [[1, 0]], "inhibit": [[0, 1]], "spread": [[1]]}
    node = linear(**parts, gain_i=[1.0], gain_e=[1.0], form=form, zero="constant", epsilon=0.5, **fields)
    return bind(step_of(node), NumpyOps())


def test_error_of_hardware_forms() -> None:
    """N / D of a form, times D / N: a table errs by half a part and its 12 bits, a shift by +41 / -29 %."""
    rng = np.random.default_rng(0)
    d = np.concatenate([rng.uniform(1, 2, 500), 1 + np.arange(256) / 128, np.nextafter(1 + np.arange(256) / 128, 0)])
    d = np.outer(2.0 ** np.arange(-20, 21, 5), np.append(d, 2**0.5 * (1 + np.array([-1e-9, 1e-9])))).ravel()
    n = np.full_like(d, 3.0)
    for bits in (1, 4, 6, 10):
        share = lone("table", table_bits=bits).divided(NumpyOps(), n, d) * d / n
        assert np.abs(share - 1).max() <= 2.0 ** -(bits + 1) + 2.0**-12
        assert np.abs(share - 1).max() > 0.3 * 2.0**-bits  # the bound is used
    share = lone("shift").divided(NumpyOps(), n, d) * d / n
    assert 2**0.5 * (1 - 1e-8) < share.max() < 2**0.5 < 1.4143
    assert 0.7071 < 0.5**0.5 < share.min() < 0.5**0.5 * (1 + 1e-8)
    assert lone("shift").divided(NumpyOps(), np.ones(4), np.array([1.4, 1.5, 2.8, 3.0])).tolist() == [1, 0.5, 0.5, 0.25]


def test_exact_powers_need_no_table_or_rounding() -> None:
    d = 2.0 ** np.arange(-8, 9)
    assert np.array_equal(lone("shift").divided(NumpyOps(), np.ones(17), d), 1 / d)
    first = reciprocals(6)[0] / 4096
    assert np.array_equal(lone("table").divided(NumpyOps(), np.ones(17), d), first / d)


def test_output_form_does_not_look_at_gains() -> None:
    """E8: the output layer stops at N; gains that a file may still hold change nothing."""
    plain = linear(**{k: getattr(E1, k).weight for k in WEIGHTS}, form="none")
    held = linear(**{k: getattr(E1, k).weight for k in WEIGHTS}, form="none", gain_i=[3.0], gain_e=[1.0, 2, 3, 4])
    x = np.random.default_rng(0).random((5, 3))
    np.testing.assert_array_equal(values(plain, x), values(held, x))
    np.testing.assert_allclose(values(plain, [[1, 0, 1]]), [[0.2, 0.4, -0.1, 0.7]], rtol=1e-12)
    network = graph.check(chain((3,), held))
    assert "gain" not in graph.show(network)


# --- folding


@pytest.mark.parametrize("shape", [FLAT, MAP])
@pytest.mark.parametrize("form", ["none", "frozen"])
def test_fold_equals_both_paths(form: str, shape: Any) -> None:
    """D2: one connection of mixed signs, for inputs that are not negative; as a stock node it is the same."""
    node = circuit_of(3, form, "sample_min", shape, False, (6, 3))
    step = step_of(node)
    weight, bias = fold(step)
    assert weight.shape == step.excite.weight.shape and (weight < 0).any() and (weight > 0).any()
    assert (bias is None) == (form == "none")
    bias = np.zeros(6) if bias is None else bias
    assert bias.shape == (6,)
    x = np.random.default_rng(4).random((2, 4, *shape)) * 5
    stock: Any = nir.Affine(weight, bias)
    if shape is MAP:
        stock = copy(node.excite)
        stock.weight, stock.bias = weight, bias
    two, one = (ran(graph.check(chain(shape, n)), x, NumpyOps())["n0"] for n in (node, stock))
    assert two.shape == one.shape and np.abs(two).max() > 0.5
    np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form, zero", [f for f in FORMS if f[0] not in ("none", "frozen")])
def test_what_divides_does_not_fold(form: str, zero: str) -> None:
    with pytest.raises(GraphError, match=f"divides by what its input brings .form '{form}'"):
        fold(step_of(circuit_of(0, form, zero, FLAT, True)))


# --- inputs


@pytest.mark.parametrize("a", [TERNARY, interval(-3, 7, True), interval(-0.5, 1, False)])
def test_negative_input_is_refused(a: Alphabet) -> None:
    """E6: declared, in one line that says what to do; undeclared, the relu takes it for silence."""
    for node in (E1, whole()):
        with pytest.raises(GraphError) as told:
            graph.check(chain((3,), node), alphabet=a)
        words = str(told.value)
        assert words.startswith(f"node 'n0' ({type(node).__name__}) gets {a}, ") and "\n" not in words
        assert "must not be negative" in words and "in [0, 1] without mean and standard deviation" in words
    for accepted in (BINARY, interval(0, 3, True), interval(0, 0.5, False), REAL):
        graph.check(chain((3,), E1), alphabet=accepted)
    np.testing.assert_allclose(values(E1, [[-1, 0, -1]]), [[0, 0.1, -0.1, 0.2]], atol=1e-15)
    out = values(replace_node(E1, zero="constant", epsilon=2.0), [[-1, 0, -1]])
    np.testing.assert_allclose(out, [[-0.3, -0.5, -0.35, -0.55]], rtol=1e-12)


def whole() -> IntCircuit:
    parts = ([[3, 2, 1], [0, 4, 1]], [[1, 0, 2]], [[5], [6]])
    made = [dense(w, sign_mode="excitatory", message_bits=b) for w, b in zip(parts, (3, 3, 9), strict=True)]
    return IntCircuit(*made, gain_i=np.array([3]), gain_e=np.array([7, 1]), bias=np.array([-1, 5]), shift=2)
