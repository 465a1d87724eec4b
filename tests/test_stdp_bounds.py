"""STDP: silence, bounds, kept norms, competition, and what a rule refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import stdp_oracle as oracle
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_learning import RULE, Student, activity, plain
from test_stdp import DYADIC, OPTIONS, PLAIN, SOFT, changed, conv, eighths, linear, name_of, numbers, relaxed

from eitrain.errors import TrainError
from eitrain.stdp import PAIRS, SAME_STEP, STDP, WEIGHTS, Drive


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("rule", OPTIONS, ids=name_of)
def test_silence_changes_no_bit(rule: STDP, keep_norm: bool) -> None:
    """S12, and a single step of a single sample."""
    generator = np.random.default_rng(1)
    w = generator.random((3, 2, 3, 3)).astype(np.float32)
    spikes = torch.ones(1, 1, 2, 4, 4), torch.ones(1, 1, 3, 4, 4)
    for x, y in ((spikes[0], 0 * spikes[1]), (0 * spikes[0], spikes[1]), (0 * spikes[0], 0 * spikes[1])):
        layer = conv(w.astype(np.float64), (1, 1, 1, 1)).float()
        bounded = replace(rule, low=0.0, high=1.0, keep_norm=keep_norm)
        change = bounded.apply(layer.weight.data, bounded.drive(layer, x, y))
        assert layer.weight.detach().numpy().tobytes() == w.tobytes() and not change.any()
    bias = layer.bias.detach().clone()
    change = rule.apply(layer.weight.data, rule.drive(layer, *spikes))
    # of one step, only the coincident pairs are left; equal functions leave a_plus - a_minus of them
    assert bool(change.any()) == (rule.same_step == "include") and torch.equal(layer.bias, bias)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_coincident_pairs_do_nothing_under_strict_order(weight: str) -> None:
    """S15: spikes that only ever meet in one step, in sums and as one pair."""
    rule = replace(DYADIC, weight=weight, same_step="exclude", low=0.0, high=1.0)
    x = np.zeros((5, 2, 3))
    x[2] = 1
    layer = linear([[0.5, 0.25, 0.0]])
    assert not changed(rule, layer, torch.tensor(x), torch.tensor(x[..., :1])).any()
    assert rule.pair(0.5, 0) == 0 and rule.pair(0.5, 1) != 0 and rule.pair(0.5, -1) != 0


@relaxed
@given(st.integers(0, 2**20), st.sampled_from(SAME_STEP), st.sampled_from(PAIRS), st.floats(0.01, 1.0))
def test_soft_bounds_hold_weights_for_small_steps(seed: int, same: str, pairs: str, share: float) -> None:
    """S15: w + lr up (1 - w) - lr down w stays in [0, 1] while lr (up + down) <= 1; the clamp never acts."""
    rule = replace(DYADIC, same_step=same, pairs=pairs, **SOFT)
    w = np.random.default_rng(seed).integers(0, 9, (3, 4)) / 8  # 0 and 1 among them
    drive = rule.drive(linear(w), torch.tensor(numbers(5, 2, 4, seed=seed)), torch.tensor(numbers(5, 2, 3, seed=seed)))
    assert drive.down is not None
    small = replace(rule, lr=share / max(1.0, float((drive.up + drive.down).max())))
    free = torch.tensor(w) + small.increment(torch.tensor(w), drive)
    assert float(free.min()) >= -1e-15 and float(free.max()) <= 1 + 1e-15
    assert small.limit(drive) <= 1


def test_bounds() -> None:
    rule = replace(PLAIN, weight="additive", low=-0.5, high=0.75)
    weight = torch.tensor([[0.5, -0.25, 0.0]], dtype=torch.float64)
    change = rule.apply(weight, Drive(torch.tensor([[1.0, -1.0, 0.25]], dtype=torch.float64), None))
    np.testing.assert_array_equal(weight, [[0.75, -0.5, 0.25]])
    np.testing.assert_array_equal(change, [[0.25, -0.25, 0.25]])
    one_sided = replace(PLAIN, weight="additive", low=0.0)
    one_sided.apply(weight, Drive(torch.tensor([[3.0, 0.25, -3.0]], dtype=torch.float64), None))
    np.testing.assert_array_equal(weight, [[3.75, 0, 0]])


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2, 2)])
def test_kept_norm(shape: tuple[int, ...]) -> None:
    """Each neuron's incoming weights keep their L1 norm; one without weights keeps none."""
    w, rule = eighths(*shape, seed=3), replace(PLAIN, lr=0.5, keep_norm=True, weight="additive", a_plus=0.25)
    w[1] = 0
    weight, drive = torch.tensor(w), Drive(torch.tensor(eighths(*shape, seed=4)), None)
    drive.up[1] = 0
    change = rule.apply(weight, drive)
    norms = np.abs(w).reshape(3, -1).sum(1)
    np.testing.assert_allclose(weight.abs().flatten(1).sum(1), norms, rtol=1e-14)
    free = w + 0.5 * drive.up.numpy()
    now = np.abs(free).reshape(3, -1).sum(1)
    wanted = free * (norms / np.where(norms > 0, now, 1)).reshape(-1, *[1] * (w.ndim - 1))
    np.testing.assert_allclose(weight, wanted, rtol=1e-14)
    np.testing.assert_allclose(change, wanted - w, rtol=1e-13, atol=1e-15)
    assert norms[1] == 0 and not weight[1].any() and change[0].any()


def test_kept_norm_stays_within_the_bounds() -> None:
    rule = replace(PLAIN, weight="additive", low=0.0, high=1.0, keep_norm=True)
    weight = torch.tensor([[1.0, 0.5]])
    rule.apply(weight, Drive(torch.tensor([[0.25, -0.25]]), None))
    assert float(weight.max()) <= 1


def test_limit_is_where_signs_turn() -> None:
    w = torch.tensor([[0.5, -0.25, 1.0]], dtype=torch.float64)
    for lr, turns in ((0.5, False), (2.0, True)):
        rule, drive = replace(PLAIN, lr=lr), Drive(torch.tensor([[-1.0, 0.5, 0.25]], dtype=torch.float64), None)
        assert rule.limit(drive) == lr
        assert bool((torch.sign(w + rule.increment(w, drive)) != torch.sign(w)).any()) == turns
    both = Drive(torch.tensor([0.5, 3.0]), torch.tensor([2.0, 0.25]))
    assert replace(PLAIN, lr=0.5).limit(both) == 1.5
    assert replace(PLAIN, lr=0.5).limit(Drive(both.down, both.up)) == 1.5


def test_limit_of_sums_that_punishment_made_negative() -> None:
    assert replace(PLAIN, lr=1.0).limit(Drive(torch.tensor([-5.0]), torch.tensor([-3.0]))) == 5


# --- competition


def winning(y: np.ndarray, current: np.ndarray, winners: int) -> np.ndarray:
    """At each place of each sample only the maps with the largest current over all steps keep their spikes."""
    kept = np.zeros_like(y)
    for n, *place in np.ndindex(y.shape[1], *y.shape[3:]):
        sums = [sum(step[(n, c, *place)] for step in current) for c in range(y.shape[2])]
        for c in sorted(range(y.shape[2]), key=lambda c: -sums[c])[:winners]:
            kept[(slice(None), n, c, *place)] = y[(slice(None), n, c, *place)]
    return kept


@pytest.mark.parametrize("winners", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("place", [(), (3, 2)], ids=str)
def test_winners(place: tuple[int, ...], steps: int, winners: int) -> None:
    y, current = numbers(5, 2, 4, *place, low=-1), np.random.default_rng(2).normal(size=(steps, 2, 4, *place))
    rule = replace(PLAIN, winners=winners)
    given = torch.tensor(y)
    found = rule.compete(given, torch.tensor(current))
    np.testing.assert_array_equal(found, winning(y, current, winners))
    assert torch.equal(PLAIN.compete(given, torch.tensor(current)), given) and torch.equal(given, torch.tensor(y))
    assert (winners >= 4) == torch.equal(found, given)


def test_winners_learn() -> None:
    """Through a network: the neurons' spikes stay what they are, only the winners' synapses change by them."""
    rule = replace(RULE, winners=1)
    start, student = plain(), Student(plain(), rule)
    before = student.weights()["conv2.weight"].numpy()
    x, y = activity(start, 0, "conv2", "neuron2")
    current = np.stack([start.conv2(torch.tensor(step)).detach().numpy() for step in x])
    student.learn("P")
    change = oracle.total(oracle.traces(rule, before, x, winning(y, current, 1), (2, 1, 1, 1))).change
    np.testing.assert_allclose(student.weights()["conv2.weight"].numpy() - before, rule.lr * change, atol=1e-12)
    assert change.any() and winning(y, current, 1).sum() < y.sum()


# --- refusals


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"winners": -1}, "stdp_winners = -1: must be 0 (no competition) or more"),
        ({"weight": "soft"}, "stdp_weight = 'soft' is for weights in [0, 1]"),
        ({"weight": "soft", "low": -1.0, "high": 1.0}, "give stdp_low=0 and stdp_high=1"),
        ({"weight": "soft", "low": 0.0, "high": 1.5}, "'magnitude' or 'clamp'"),
        ({"tau_pre": 0.99}, "stdp_tau_pre = 0.99: must be at least 1 step"),
        ({"tau_post": 0.0}, "stdp_tau_post = 0.0: must be at least 1 step"),
        ({"tau_post": -2.0}, "stdp_tau_post = -2.0"),
        ({"tau_pre": math.nan}, "stdp_tau_pre = nan"),
        ({"tau_post": math.nan}, "stdp_tau_post = nan"),
        ({"a_minus": -1.0}, "a_minus = -1.0: must be 0 or more; a_minus is subtracted"),
        ({"a_plus": -0.5}, "stdp_a_plus = -0.5"),
        ({"a_plus": math.nan}, "stdp_a_plus = nan"),
        ({"a_minus": math.inf}, "stdp_a_minus = inf"),
        ({"lr": -1e-3}, "stdp_lr = -0.001"),
        ({"lr": math.nan}, "stdp_lr = nan"),
        ({"low": 1.0, "high": 0.5}, "stdp_low = 1.0: must be below stdp_high = 0.5"),
        ({"low": math.nan}, "stdp_low = nan"),
        ({"high": math.nan}, "stdp_high = nan"),
        ({"decay": "exp"}, "stdp_decay = 'exp'; valid: linear, exponential"),
        ({"same_step": "strict"}, "stdp_same_step = 'strict'; valid: include, exclude"),
        ({"pairs": "first"}, "stdp_pairs = 'first'; valid: all, nearest"),
        ({"weight": "Clamp"}, "stdp_weight = 'Clamp'; valid: clamp, identity, soft, magnitude, additive"),
    ],
)
def test_refusals(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(TrainError) as caught:
        STDP(**fields)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_edges_that_are_allowed() -> None:
    """No memory, and no forgetting."""
    assert STDP(tau_pre=1).decays == (0, 0.99) and STDP(tau_post=math.inf).decays == (0.5, 1)
    assert STDP(lr=0, a_plus=0, a_minus=0).pair(0.5, 1) == 0
