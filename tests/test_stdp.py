"""STDP: the sheet's worked examples, and every option against an oracle that counts pairs and carries traces."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import stdp_oracle as oracle
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eitrain import stdp
from eitrain.architectures import IF
from eitrain.cells import Cell
from eitrain.stdp import DECAYS, PAIRS, SAME_STEP, STDP, WEIGHTS

relaxed = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
PLAIN = STDP(lr=1.0, tau_pre=2, tau_post=2, mean=False)
DYADIC = replace(PLAIN, tau_pre=2, tau_post=4, a_plus=1.5, a_minus=0.5)  # decays 1/2 and 3/4: float64 loses nothing
SOFT = {"weight": "soft", "low": 0.0, "high": 1.0}
OPTIONS = [
    replace(DYADIC, same_step=same, pairs=pairs, weight=weight, **{"low": 0.0, "high": 1.0} if weight == "soft" else {})
    for same, pairs, weight in itertools.product(SAME_STEP, PAIRS, WEIGHTS)
]
# stride, padding, dilation, groups
GEOMETRIES = [(1, 0, 1, 1), (1, 1, 1, 1), (2, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (2, 1, 2, 2), (1, 1, 1, 2)]
X1 = [[1, 0], [0, 1], [1, 0]]
Y1 = [[0, 0], [1, 0], [0, 1]]
W1 = [[0.5, 0.2], [0.4, -0.8]]


def name_of(rule: STDP) -> str:
    return f"{rule.same_step}-{rule.pairs}-{rule.weight}"


def linear(w: Any) -> nn.Linear:
    values = torch.tensor(w, dtype=torch.float64)
    layer = nn.Linear(*values.shape[::-1]).double()
    layer.weight.data = values
    return layer


def conv(w: np.ndarray, geometry: oracle.Geometry) -> nn.Conv2d:
    stride, padding, dilation, groups = geometry
    out, ins, *kernel = w.shape
    layer = nn.Conv2d(ins * groups, out, kernel, stride, padding, dilation, groups).double()  # type: ignore[arg-type]
    layer.weight.data = torch.tensor(w)
    return layer


def trains(*rows: list[list[float]]) -> list[Tensor]:
    """Spike trains of one sample, (T, 1, neurons)."""
    return [torch.tensor(r, dtype=torch.float64)[:, None] for r in rows]


def changed(rule: STDP, layer: Any, x: Tensor, y: Tensor, reward: Tensor | None = None) -> np.ndarray:
    """lr dW of a batch, as the weights get it (without bounds and normalisation)."""
    drive = rule.drive(layer, x, y, reward)
    assert drive.up.shape == layer.weight.shape and (drive.down is None) == rule.symmetric
    return rule.increment(layer.weight.detach(), drive).numpy()


def numbers(*shape: int, seed: int = 0, low: int = 0, high: int = 2) -> np.ndarray:
    """Small integers; the last step of every train and the first neuron are silent somewhere."""
    return np.random.default_rng([seed, *shape]).integers(low, high, shape).astype(np.float64)


def eighths(*shape: int, seed: int = 0, low: int = -12, high: int = 13) -> np.ndarray:
    """Weights that hold zero, both signs, and some beyond 1."""
    return np.random.default_rng([seed, *shape]).integers(low, high, shape) / 8


def maps(geometry: oracle.Geometry, steps: int = 4, batch: int = 2) -> tuple[np.ndarray, ...]:
    """(w, x, y) of a convolution on a map of 4 x 5."""
    stride, padding, dilation, groups = geometry
    rows, columns = ((size + 2 * padding - 2 * dilation - 1) // stride + 1 for size in (4, 5))
    seed = sum(v * 7**i for i, v in enumerate(geometry))
    x, y = numbers(steps, batch, 2, 4, 5, seed=seed), numbers(steps, batch, 2, rows, columns, seed=seed + 1)
    return eighths(2, 2 // groups, 3, 3, seed=seed), x, y


# --- worked examples


@pytest.mark.parametrize(
    "rule, steps",
    [
        (replace(PLAIN, weight="additive"), [0, [[0.5, 0], [0, 0]], [[-0.5, 0], [0.25, 0.5]]]),
        (PLAIN, [0, [[0.25, 0], [0, 0]], [[-0.25, 0], [0.1, -0.4]]]),
        (replace(PLAIN, tau_post=100), [0, [[0.25, 0], [0, 0]], [[-0.495, 0], [0.1, -0.4]]]),
        (replace(PLAIN, tau_post=100, weight="additive"), [0, [[0.5, 0], [0, 0]], [[-0.99, 0], [0.25, 0.5]]]),
    ],
    ids=("S-1 additive", "S-1 clamp", "S-2 clamp", "S-2 additive"),
)
def test_s1_and_s2(rule: STDP, steps: list[Any]) -> None:
    """The change up to each step is the sum of the sheet's changes of the steps; traces go on between them."""
    (x, y), layer, wanted = trains(X1, Y1), linear(W1), np.zeros((2, 2))
    for t, step in enumerate(steps):
        wanted = wanted + np.array(step)
        np.testing.assert_allclose(changed(rule, layer, x[: t + 1], y[: t + 1]), wanted, rtol=0, atol=1e-15)


def test_s3_soft_bounds() -> None:
    (x, y), layer = trains(X1, Y1), linear([[0.5, 0.2], [0.4, 0.8]])
    rule = replace(PLAIN, **SOFT)
    np.testing.assert_allclose(changed(rule, layer, x[:2], y[:2]), [[0.25, 0.6], [0, 0]], atol=1e-15)
    np.testing.assert_allclose(changed(rule, layer, x, y), [[0, 0.6], [0.35, 0.1]], atol=1e-15)
    strict = changed(replace(rule, same_step="exclude"), layer, x[:2], y[:2])
    assert strict[0, 1] == 0 and strict[0, 0] == 0.25


def test_s4_strict_order_of_equal_constants() -> None:
    (x, y), layer = trains(X1, Y1), linear(W1)
    rule = replace(PLAIN, weight="additive")
    for same in SAME_STEP:
        np.testing.assert_array_equal(changed(replace(rule, same_step=same), layer, x, y), [[0, 0], [0.25, 0.5]])
    # unequal constants tell the orders apart: a_plus - a_minus of the two coincident pairs
    include, exclude = (
        changed(replace(rule, same_step=same, a_plus=3, a_minus=1), layer, x, y) for same in ("include", "exclude")
    )
    np.testing.assert_array_equal(include - exclude, [[0, 2], [2, 0]])


def test_s5_convolution() -> None:
    layer = conv(np.array([[[[0.5, 0.2], [0.4, 0.8]]]]), (1, 0, 1, 1))
    x = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.float64).view(3, 1, 1, 2, 2)
    y = torch.tensor([0.0, 1, 1], dtype=torch.float64).view(3, 1, 1, 1, 1)
    assert not changed(PLAIN, layer, x[:1], y[:1]).any()
    np.testing.assert_allclose(changed(PLAIN, layer, x[:2], y[:2]).ravel(), [0.25, 0, 0, 0.4], atol=1e-15)
    np.testing.assert_allclose(changed(PLAIN, layer, x, y).ravel(), [0.125, 0, 0, 0.6], atol=1e-15)


def test_s6_a_neuron_and_the_step_its_synapses_take() -> None:
    layer, (x,) = linear([[0.6, 0.5], [0.3, 0.9]]), trains([[1, 1], [0, 1], [1, 0]])
    layer.bias.data.zero_()
    with torch.no_grad():
        y = Cell(**IF).over_time(layer(x))
    np.testing.assert_array_equal(y[:, 0], [[1, 1], [0, 0], [1, 1]])
    np.testing.assert_allclose(changed(PLAIN, layer, x, y), [[0, 0.125], [0, 0.225]], atol=1e-15)
    rule, weight = replace(PLAIN, lr=0.1), layer.weight.detach()
    change = rule.apply(weight, rule.drive(layer, x, y))
    np.testing.assert_allclose(weight, [[0.6, 0.5125], [0.3, 0.9225]], rtol=1e-15)
    np.testing.assert_allclose(change, [[0, 0.0125], [0, 0.0225]], atol=1e-15)


@pytest.mark.parametrize("batch", [1, 3])
def test_s7_sum_or_mean_over_the_batch(batch: int) -> None:
    """A post spike, then a pre spike: the post trace is 1 before the step and 0.5 in it."""
    x, y = (t.expand(-1, batch, -1) for t in trains([[0], [1]], [[1], [0]]))
    rule, layer = replace(PLAIN, weight="additive"), linear([[0.3]])
    assert changed(rule, layer, x, y).item() == -0.5 * batch
    assert changed(replace(rule, mean=True), layer, x, y).item() == pytest.approx(-0.5, abs=1e-15)


def test_s8_pair_values() -> None:
    rule = STDP(tau_pre=20, tau_post=20, decay="exponential", same_step="exclude", a_plus=0.01, a_minus=0.01, **SOFT)
    assert rule.pair(0.4, 10) == pytest.approx(0.00363918, abs=5e-9)
    assert rule.pair(0.4, -10) == pytest.approx(-0.00242612, abs=5e-9)
    assert rule.pair(0.4, 0) == 0
    include = replace(rule, same_step="include")
    assert include.pair(0.4, 0) == pytest.approx(0.01 * 0.6 - 0.01 * 0.4, abs=1e-15)


# --- against the oracle


@pytest.mark.parametrize("rule", OPTIONS, ids=name_of)
def test_linear_is_the_sum_of_its_pairs(rule: STDP) -> None:
    w, x, y = eighths(3, 4), numbers(6, 4, 4, seed=1), numbers(6, 4, 3, seed=2)
    up, down, wanted = oracle.pairs(rule, w, x, y)
    found = changed(rule, linear(w), torch.tensor(x), torch.tensor(y))
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(oracle.total(oracle.traces(rule, w, x, y)).change, wanted)
    assert up.all() and down.all() and wanted.any()
    halved = changed(replace(rule, mean=True, lr=0.5), linear(w), torch.tensor(x), torch.tensor(y))
    np.testing.assert_array_equal(halved, wanted / 8)


@pytest.mark.parametrize("rule", OPTIONS, ids=name_of)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution_is_its_patches(geometry: oracle.Geometry, rule: STDP) -> None:
    """S9: im2col with traces carried step by step, and so S13, the sum over the steps."""
    w, x, y = maps(geometry)
    steps = oracle.traces(rule, w, x, y, geometry)
    found = changed(rule, conv(w, geometry), torch.tensor(x), torch.tensor(y))
    np.testing.assert_array_equal(found, oracle.total(steps).change)
    assert found.any() and len(steps) == 4


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution_is_the_sum_of_its_pairs(geometry: oracle.Geometry) -> None:
    """S9: nested loops over taps and positions, which know of no padding."""
    w, x, y = maps(geometry, steps=3)
    for rule in (DYADIC, replace(DYADIC, pairs="nearest", weight="magnitude", same_step="exclude")):
        wanted = oracle.pairs(rule, w, x, y, geometry)
        assert wanted.up.any() and wanted.down.any()
        found = changed(rule, conv(w, geometry), torch.tensor(x), torch.tensor(y))
        np.testing.assert_array_equal(found, wanted.change)
        np.testing.assert_array_equal(oracle.total(oracle.traces(rule, w, x, y, geometry)).change, wanted.change)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("weight", ["clamp", "magnitude"])
def test_mean_counts_samples_and_positions(weight: str, pairs: str) -> None:
    """4 samples, 2 x 2 positions: the sum over 16, exactly."""
    w, x, y = eighths(2, 1, 3, 3), numbers(3, 4, 1, 4, 4), numbers(3, 4, 2, 2, 2, seed=1)
    rule = replace(DYADIC, weight=weight, pairs=pairs)
    summed, mean = (
        changed(r, conv(w, (1, 0, 1, 1)), torch.tensor(x), torch.tensor(y)) for r in (rule, replace(rule, mean=True))
    )
    np.testing.assert_array_equal(mean, summed / 16)
    assert mean.any()


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("pairs", PAIRS)
def test_decays(pairs: str, decay: str) -> None:
    rule = replace(PLAIN, tau_pre=3, tau_post=7, decay=decay, pairs=pairs, weight="identity")
    w, x, y = eighths(3, 4), numbers(6, 2, 4, seed=1), numbers(6, 2, 3, seed=2)
    wanted = oracle.pairs(rule, w, x, y).change
    np.testing.assert_allclose(changed(rule, linear(w), torch.tensor(x), torch.tensor(y)), wanted, rtol=0, atol=1e-13)
    factors = {"linear": (2 / 3, 6 / 7), "exponential": (math.exp(-1 / 3), math.exp(-1 / 7))}
    assert rule.decays == pytest.approx(factors[decay], rel=1e-15)


@pytest.mark.parametrize("rule", OPTIONS, ids=name_of)
def test_a_pair_is_what_two_spikes_do(rule: STDP) -> None:
    for w, dt in itertools.product((-1.5, -0.25, 0.0, 0.75), range(-3, 4)):
        x, y = np.zeros((4, 1, 1)), np.zeros((4, 1, 1))
        x[max(0, -dt)], y[max(0, dt)] = 1, 1
        wanted = oracle.pairs(rule, np.array([[w]]), x, y).change.item()
        assert changed(rule, linear([[w]]), torch.tensor(x), torch.tensor(y)).item() == wanted
        assert rule.pair(w, dt) == wanted


@pytest.mark.parametrize("pairs", PAIRS)
def test_reward_turns_the_pairs_of_its_sample(pairs: str) -> None:
    w, x, y = eighths(3, 4), numbers(4, 3, 4, seed=1), numbers(4, 3, 3, seed=2)
    rule, layer, reward = replace(DYADIC, pairs=pairs, reward=True), linear(w), [1.0, -1.0, -1.0]
    found = changed(rule, layer, torch.tensor(x), torch.tensor(y), torch.tensor(reward, dtype=torch.float64))
    np.testing.assert_array_equal(found, oracle.pairs(rule, w, x, y, reward=reward).change)
    right, *wrong = (changed(rule, layer, torch.tensor(x[:, [n]]), torch.tensor(y[:, [n]])) for n in range(3))
    np.testing.assert_array_equal(found, right - wrong[0] - wrong[1])
    assert all(part.any() for part in (right, *wrong))
    w, x, y = maps((1, 1, 1, 1), batch=3)
    given = torch.tensor(reward, dtype=torch.float64)
    found = changed(rule, conv(w, (1, 1, 1, 1)), torch.tensor(x), torch.tensor(y), given)
    np.testing.assert_array_equal(found, oracle.pairs(rule, w, x, y, (1, 1, 1, 1), reward).change)


@pytest.mark.parametrize("rule", OPTIONS, ids=name_of)
def test_input_that_stays_counts_at_every_step(rule: STDP) -> None:
    """Pixels are real: quarters, some of them zero."""
    w, y = eighths(2, 2, 3, 3), numbers(5, 2, 2, 4, 4, seed=1)
    x = np.random.default_rng(3).integers(0, 5, (1, 2, 2, 4, 4)) / 4
    long = np.repeat(x, 5, 0)
    once, many = (changed(rule, conv(w, (1, 1, 1, 1)), torch.tensor(v), torch.tensor(y)) for v in (x, long))
    np.testing.assert_array_equal(once, many)
    np.testing.assert_array_equal(once, oracle.total(oracle.traces(rule, w, long, y, (1, 1, 1, 1))).change)
    flat = numbers(1, 2, 4, low=0, high=3), numbers(5, 2, 3, seed=1)
    found = changed(rule, linear(eighths(3, 4)), *map(torch.tensor, flat))
    np.testing.assert_array_equal(found, oracle.pairs(rule, eighths(3, 4), np.repeat(flat[0], 5, 0), flat[1]).change)


@pytest.mark.parametrize("rule", OPTIONS[:4], ids=name_of)
@pytest.mark.parametrize("outs", [1, 7])
def test_either_side_may_be_the_larger(outs: int, rule: STDP) -> None:
    """The traces are formed on one of them."""
    w, x, y = eighths(outs, 3), numbers(4, 2, 3, seed=1), numbers(4, 2, outs, seed=2)
    found = changed(rule, linear(w), torch.tensor(x), torch.tensor(y))
    np.testing.assert_array_equal(found, oracle.pairs(rule, w, x, y).change)
    assert found.any()


@pytest.mark.parametrize("piece", [1, 7, 40, 10**6])
@pytest.mark.parametrize("stays", [False, True])
def test_pieces_of_a_large_batch(stays: bool, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdp, "PIECE", piece)
    w, x, y = maps((2, 1, 1, 1), batch=3)
    x = np.repeat(x[:1], len(y), 0) if stays else x
    for rule in OPTIONS[:4]:
        wanted = oracle.total(oracle.traces(rule, w, x, y, (2, 1, 1, 1))).change
        found = changed(rule, conv(w, (2, 1, 1, 1)), torch.tensor(x[:1] if stays else x), torch.tensor(y))
        np.testing.assert_array_equal(found, wanted)


def test_activity_is_not_changed_by_looking_at_it() -> None:
    """The tape's tensors are the network's own."""
    for rule in OPTIONS:
        x, y, layer = torch.tensor(numbers(4, 2, 4)), torch.tensor(numbers(4, 2, 3)), linear(eighths(3, 4))
        before = x.clone(), y.clone(), layer.weight.detach().clone()
        rule.drive(layer, x, y, torch.tensor([1.0, -1.0], dtype=torch.float64))
        assert all(torch.equal(a, b) for a, b in zip((x, y, layer.weight), before, strict=True))


@st.composite
def tasks(draw: st.DrawFn) -> tuple[STDP, np.ndarray, np.ndarray, np.ndarray, oracle.Geometry | None]:
    """A rule of dyadic numbers, weights in eighths, and trains of small integers of either sign."""
    rule = STDP(
        lr=draw(st.sampled_from([0.25, 1.0])),
        tau_pre=draw(st.sampled_from([1, 2, 4])),
        tau_post=draw(st.sampled_from([1, 2, 4])),
        same_step=draw(st.sampled_from(SAME_STEP)),
        pairs=draw(st.sampled_from(PAIRS)),
        weight=(weight := draw(st.sampled_from(WEIGHTS))),
        a_plus=draw(st.sampled_from([0.0, 0.5, 1.0])),
        a_minus=draw(st.sampled_from([0.0, 1.0, 1.5])),
        mean=False,
        low=0.0 if weight == "soft" else -math.inf,
        high=1.0 if weight == "soft" else math.inf,
    )
    steps, batch, seed = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 2**20))
    if draw(st.booleans()):
        ins, outs, low = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(-1, 0))
        x, y = (numbers(steps, batch, n, seed=seed + i, low=low) for i, n in enumerate((ins, outs)))
        return rule, eighths(outs, ins, seed=seed), x, y, None
    stride, padding, dilation, groups = (draw(st.integers(*b)) for b in ((1, 2), (0, 1), (1, 2), (1, 2)))
    side = draw(st.integers(3, 4))
    kernel = draw(st.integers(1, 2))
    out = (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    x = numbers(steps, batch, groups, side, side, seed=seed, low=-1)
    y = numbers(steps, batch, groups, out, out, seed=seed + 1)
    return rule, eighths(groups, 1, kernel, kernel, seed=seed), x, y, (stride, padding, dilation, groups)


@relaxed
@given(tasks())
def test_pairs_traces_and_the_exchanged_sums_agree(task: Any) -> None:
    rule, w, x, y, geometry = task
    layer = linear(w) if geometry is None else conv(w, geometry)
    found = changed(rule, layer, torch.tensor(x), torch.tensor(y))
    counted = oracle.pairs(rule, w, x, y, geometry)
    carried = oracle.total(oracle.traces(rule, w, x, y, geometry))
    np.testing.assert_array_equal(counted.change, carried.change)
    np.testing.assert_array_equal(found, rule.lr * counted.change)


@pytest.mark.parametrize("weight", ["clamp", "magnitude"])
@pytest.mark.parametrize("pairs", PAIRS)
def test_float32_is_near_float64(pairs: str, weight: str) -> None:
    """The defaults on a layer of usual size: each sum within 1e-5 of what its terms add up to."""
    generator = np.random.default_rng(5)
    x, y = ((generator.random((8, 8, n, 9, 9)) < 0.2).astype(np.float64) for n in (6, 8))
    w, geometry = generator.normal(0, 0.3, (8, 6, 3, 3)).astype(np.float32), (1, 1, 1, 1)
    rule, layer = STDP(pairs=pairs, weight=weight), conv(w.astype(np.float64), geometry).float()
    wanted = oracle.total(oracle.traces(rule, w.astype(np.float64), x, y, geometry))
    drive = rule.drive(layer, torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))
    assert drive.up.dtype == torch.float32 and (wanted.up > 0).all() and (wanted.down > 0).all()
    size = wanted.up + wanted.down
    if drive.down is None:
        assert (np.abs(drive.up.numpy() - (wanted.up - wanted.down)) <= 1e-5 * size).all()
    else:
        np.testing.assert_allclose(drive.up, wanted.up, rtol=1e-5)
        np.testing.assert_allclose(drive.down, wanted.down, rtol=1e-5)
    increment = rule.increment(layer.weight.detach(), drive).numpy()
    assert (np.abs(increment - rule.lr * wanted.change) <= 1e-5 * rule.lr * size).all()
