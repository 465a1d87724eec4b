"""Every engine in this process against the oracle, which shares no code with them."""

from __future__ import annotations

from dataclasses import replace

import nir
import numpy as np
import pytest
from cases import CASES, Case, chain, expected

from eiexport.alphabet import interval
from eiexport.graph import Network, check
from targets import base

EXACT = [case for case in CASES if case.exact]


def run(target: str, network: Network, x: np.ndarray) -> dict[str, np.ndarray]:
    return base.get(target)().compile(network).run(x).z


def assert_same(z: dict[str, np.ndarray], case: Case, network: Network, *, exact: bool) -> None:
    assert set(z) == set(network.recorded)
    for name, values in z.items():
        wanted = expected(case)[name]
        assert values.shape == wanted.shape, name
        if exact or network.alphabets[name].kind in ("binary", "ternary"):
            np.testing.assert_array_equal(values, wanted, err_msg=name)
        else:
            np.testing.assert_allclose(values, wanted, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("target", ["reference", "torch"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_float64_target_agrees_with_oracle(case: Case, target: str) -> None:
    network = case.network()
    assert_same(run(target, network, case.x), case, network, exact=case.exact)


@pytest.mark.parametrize("case", EXACT, ids=repr)
def test_float32_is_bit_equal_where_numbers_are_dyadic(case: Case) -> None:
    network = case.network()
    assert_same(run("torch32", network, case.x), case, network, exact=True)


@pytest.mark.parametrize("target", ["reference", "torch", "torch32"])
def test_sample_of_a_batch_equals_the_sample_alone(target: str) -> None:
    for case in CASES:
        if case.exact and len(case.x) > 1:
            network = case.network()
            program = base.get(target)().compile(network)
            batch = program.run(case.x).z
            # one program, used again and again: nothing may be left over from the run before
            for sample in range(len(case.x)):
                alone = program.run(case.x[sample : sample + 1]).z
                for name, values in alone.items():
                    np.testing.assert_array_equal(values[0], batch[name][sample], err_msg=f"{case.name} {name}")


@pytest.mark.parametrize("target", ["reference", "torch", "torch32"])
def test_traces_hold_no_negative_zero(target: str) -> None:
    for case in CASES:
        for name, values in run(target, case.network(), case.x).items():
            assert not (np.signbit(values) & (values == 0)).any(), f"{case.name} {name}"


def test_every_shape_is_that_of_the_oracle() -> None:
    for case in CASES:
        shapes = case.network().shapes
        assert {n: v.shape[2:] for n, v in expected(case).items()} == shapes, case.name


def test_values_stay_inside_their_alphabet() -> None:
    for case in CASES:
        for name, alphabet in case.network().alphabets.items():
            values = expected(case)[name]
            slack = 0 if alphabet.discrete else 1e-12 * np.abs(values).max()
            assert values.min() >= alphabet.lo - slack and values.max() <= alphabet.hi + slack, f"{case.name} {name}"
            assert not alphabet.discrete or (values == np.rint(values)).all(), f"{case.name} {name}"


def test_delay_carries_the_zeros_before_the_sample() -> None:
    network = check(chain((2,), nir.Delay(np.ones(2))), alphabet=interval(2, 5, True))
    a = network.alphabets["n0"]
    assert (a.lo, a.hi) == (0, 5)


@pytest.mark.parametrize("target", ["reference", "torch", "torch32"])
def test_input_is_checked(target: str) -> None:
    program = base.get(target)().compile(check(chain((2,), nir.Scale(np.ones(2)))))
    wrong = [np.zeros((1, 3, 3)), np.zeros((3, 2)), np.zeros((0, 3, 2)), np.zeros((1, 0, 2))]
    for x in (*wrong, np.full((1, 3, 2), np.nan), np.full((1, 3, 2), np.inf)):
        with pytest.raises(base.TargetError):
            program.run(x)
    for x in (np.ones((1, 3, 2), np.int8), np.ones((1, 3, 2), bool), np.ones((1, 3, 2), np.float32)):
        assert (program.run(x).z["n0"] == 1).all()


def test_cases_provoke_what_they_claim() -> None:
    """Cases that never tie, never send -1 or never fire would prove little."""
    by_name = {case.name: case for case in CASES}
    assert len(by_name) == len(CASES)
    for case in CASES:
        if case.name.startswith("EIDiscreteLIF") and case.name.endswith("hard"):
            # the same numbers under the other comparison differ only where a membrane lands on its threshold
            node = case.graph.nodes["n0"]
            other = replace(node, compare="ge" if node.compare == "gt" else "gt")
            z = run("reference", check(chain((4,), other)), case.x)["n0"]
            assert (z != expected(case)["n0"]).any(), case.name
        if any(word in case.name for word in ("lower", "balance")) and not case.name.endswith("-once"):
            assert (expected(case)["n0"] < 0).any(), case.name
    silent = [c.name for c in CASES if not any(expected(c)[n].any() for n in c.network().recorded)]
    # a gate that is always zero swallows every spike; in a single step some populations do not fire
    assert [n for n in silent if not n.endswith("-once")] == ["EIGatedLIF-swallow"]
