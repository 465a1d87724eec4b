"""STDP against Norse's own, where both have the rule.

Norse moves its traces by dt / tau * (a z - trace) and then uses them, so with dt = 1 it has our traces for a = tau
(linear decay), and for 1 / tau = 1 - exp(-1 / tau'), a = 1 / (1 - exp(-1 / tau')) (exponential decay of tau').
It is our same_step = "include", pairs = "all", mean = False; weight = "additive" is its "additive", and "soft" its
"multiplicative_pow" with mu = 1 between 0 and 1. It changes the weight at every step; ours are held meanwhile, so it is
given the old ones again. Its hard bounds hold at every step, too: with one step they are ours.
It has no counterpart of the other weight functions, of "exclude", "nearest", rewards, groups and static inputs.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from norse.torch.functional.stdp import STDPParameters, STDPState, stdp_step_conv2d, stdp_step_linear
from torch import Tensor, nn

from eitrain.stdp import STDP

WEIGHTS = {"additive": {}, "soft": {"stdp_algorithm": "multiplicative_pow", "mu": 1.0}}
BOUNDS: dict[str, dict[str, Any]] = {"additive": {}, "soft": {"low": 0.0, "high": 1.0}}
# steps, batch, stride, padding, dilation, (height, width) of the input
GEOMETRIES = [
    (5, 3, 1, 0, 1, (5, 6)),
    (4, 2, 2, 1, 1, (6, 5)),
    (4, 2, (1, 2), (2, 0), (2, 1), (6, 7)),
    (1, 1, 1, 0, 1, (3, 2)),
]


def of_norse(rule: STDP, layer: Any, x: Tensor, y: Tensor, **fields: Any) -> Tensor:
    """Norse's changes of all steps at the layer's weight."""
    rates = [1 / tau if rule.decay == "linear" else 1 - math.exp(-1 / tau) for tau in (rule.tau_pre, rule.tau_post)]
    fields = {"hardbound": False, **WEIGHTS[rule.weight], **fields}
    if isinstance(layer, nn.Conv2d):
        window = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        fields |= {"convolutional": True, **window}
    p = STDPParameters(
        *(1 / r for r in rates), *rates, eta_plus=rule.lr * rule.a_plus, eta_minus=rule.lr * rule.a_minus, **fields
    )
    step = stdp_step_conv2d if isinstance(layer, nn.Conv2d) else stdp_step_linear
    state, weight = STDPState(torch.zeros_like(x[0]), torch.zeros_like(y[0])), layer.weight.detach()
    total = torch.zeros_like(weight)
    for pre, post in zip(x, y, strict=True):
        after, state = step(pre, post, weight, state, p, dt=1.0)
        total += after - weight
    return total


def spikes(*shape: int, seed: int) -> Tensor:
    """Integers, half of them silent and some negative."""
    made = torch.Generator().manual_seed(seed)
    return (torch.randint(-2, 4, shape, generator=made) * torch.randint(0, 2, shape, generator=made)).double()


def with_weight(layer: Any) -> Any:
    """Weights in eighths from 0 to 1, both included, so that sums are exact."""
    weight = layer.double().weight
    weight.data = torch.randint(0, 9, weight.shape, generator=torch.Generator().manual_seed(1)).double() / 8
    weight.data.flatten()[:2] = torch.tensor([0.0, 1.0])
    return layer


def task(geometry: Any) -> tuple[Any, Tensor, Tensor]:
    steps, batch, stride, padding, dilation, size = geometry
    layer = with_weight(nn.Conv2d(2, 3, (3, 2), stride, padding, dilation, bias=False))
    x = spikes(steps, batch, 2, *size, seed=2)
    return layer, x, spikes(steps, *layer(x[0]).shape, seed=3)


def ours(rule: STDP, layer: Any, x: Tensor, y: Tensor) -> Tensor:
    return rule.increment(layer.weight.detach(), rule.drive(layer, x, y))


def dyadic(weight: str, **fields: Any) -> STDP:
    """Every number is a short binary fraction: both sides have to have the same bits."""
    given = {"lr": 0.5, "tau_pre": 2, "tau_post": 4, "a_plus": 1.5, "a_minus": 0.25, "mean": False}
    return STDP(**given | {"weight": weight, **BOUNDS[weight]} | fields)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize(("steps", "batch", "ins", "outs"), [(6, 3, 4, 5), (5, 2, 7, 2), (1, 1, 3, 2), (1, 4, 2, 3)])
def test_linear(steps: int, batch: int, ins: int, outs: int, weight: str) -> None:
    layer = with_weight(nn.Linear(ins, outs, bias=False))
    x, y = spikes(steps, batch, ins, seed=2), spikes(steps, batch, outs, seed=3)
    theirs = of_norse(dyadic(weight), layer, x, y)
    assert theirs.shape == (outs, ins) and theirs.any()
    assert torch.equal(ours(dyadic(weight), layer, x, y), theirs)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution(geometry: Any, weight: str) -> None:
    layer, x, y = task(geometry)
    theirs = of_norse(dyadic(weight), layer, x, y)
    assert theirs.shape == layer.weight.shape and theirs.any()
    assert torch.equal(ours(dyadic(weight), layer, x, y), theirs)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize(("tau_pre", "tau_post"), [(2, 100), (20, 1)])
def test_exponential_decay(tau_pre: float, tau_post: float, weight: str) -> None:
    rule = dyadic(weight, decay="exponential", tau_pre=tau_pre, tau_post=tau_post)
    layer, x, y = task(GEOMETRIES[1])
    torch.testing.assert_close(ours(rule, layer, x, y), of_norse(rule, layer, x, y), rtol=1e-12, atol=1e-12)


def test_a_trace_that_forgets_at_once() -> None:
    rule = dyadic("additive", tau_pre=1)  # linear decay 1 - 1/1: pairs of one step alone potentiate
    layer, x, y = task(GEOMETRIES[0])
    theirs = of_norse(rule, layer, x, y)
    assert torch.equal(ours(rule, layer, x, y), theirs)
    assert not torch.equal(theirs, of_norse(dyadic("additive"), layer, x, y))


def test_bounds_after_one_step() -> None:
    layer, x, y = task((1, 2, 1, 0, 1, (5, 6)))
    theirs = of_norse(dyadic("additive"), layer, x, y, hardbound=True)
    free = of_norse(dyadic("additive"), layer, x, y)
    assert not torch.equal(theirs, free)
    rule = dyadic("additive", low=0.0, high=1.0)
    assert torch.equal(rule.apply(layer.weight.detach().clone(), rule.drive(layer, x, y)), theirs)


def test_silent_sides_leave_the_weight() -> None:
    layer, x, y = task(GEOMETRIES[0])
    for pre, post in ((x, torch.zeros_like(y)), (torch.zeros_like(x), y)):
        assert not of_norse(dyadic("soft"), layer, pre, post).any()
        assert not ours(dyadic("soft"), layer, pre, post).any()
