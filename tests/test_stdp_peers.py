"""STDP against spikingjelly's learner, which the sheet's rule is read from; skipped where it is not installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eitrain.stdp import STDP, Drive

why = "spikingjelly (0.0.0.0.14 or later) is not installed: pip install -e '.[bench]'"
learning = pytest.importorskip("spikingjelly.activation_based.learning", reason=why)
layers = pytest.importorskip("spikingjelly.activation_based.layer", reason=why)
neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason=why)

FUNCTIONS: dict[str, tuple[Any, Any]] = {  # f_post, f_pre
    "clamp": (lambda w: w.clamp(-1, 1), lambda w: w.clamp(-1, 1)),
    "identity": (lambda w: w, lambda w: w),
    "additive": (torch.ones_like, torch.ones_like),
    "magnitude": (lambda w: 1 - w.abs(), lambda w: w.abs()),
    "soft": (lambda w: 1 - w, lambda w: w),
}
# inputs, outputs, kernel, stride, padding, (steps, batch), map
GEOMETRIES: list[tuple[Any, ...]] = [
    (2, 3, 3, 1, 0, (5, 2), (5, 6)),
    (3, 2, (3, 2), (2, 1), (1, 2), (4, 3), (6, 5)),
    (1, 4, 2, 2, 0, (1, 1), (4, 4)),
    (2, 2, 3, 1, 1, (4, 2), (4, 4)),
]


class Played(nn.Module):
    """A node that answers with recorded spikes."""

    def __init__(self, spikes: Tensor) -> None:
        super().__init__()
        self.spikes = spikes

    def forward(self, x: Tensor) -> Tensor:
        return self.spikes


def learner_of(rule: STDP, layer: Any, node: nn.Module, mode: str = "m") -> Any:
    def scaled(a: float, f: Any) -> Any:
        return lambda w: a * f(w)

    f_post, f_pre = (scaled(a, f) for a, f in zip((rule.a_plus, rule.a_minus), FUNCTIONS[rule.weight], strict=True))
    taus = float(rule.tau_pre), float(rule.tau_post)
    return learning.STDPLearner(mode, layer, node, *taus, f_pre=f_pre, f_post=f_post)


def rule_of(weight: str, **fields: Any) -> STDP:
    """Decays 1/2 and 3/4 and weights in eighths: float64 has no rounding to hide behind."""
    bounds = {"low": 0.0, "high": 1.0} if weight == "soft" else {}
    given = {"lr": 1.0, "tau_pre": 2, "tau_post": 4, "a_plus": 1.5, "a_minus": 0.5, "mean": False}
    return STDP(**given | {"weight": weight, **bounds} | fields)


def prepared(layer: Any, weight: str) -> Any:
    w = layer.double().weight
    least = 0 if weight == "soft" else -12
    w.data = torch.randint(least, 9 if weight == "soft" else 13, w.shape).double() / 8
    return layer


def spikes(*shape: int) -> Tensor:
    """Integers, half of them silent and some negative."""
    return (torch.randint(-2, 4, shape) * torch.randint(0, 2, shape)).double()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def conv(geometry: Any, weight: str, mode: str = "m") -> tuple[Any, Tensor, Tensor]:
    ins, outs, kernel, stride, padding, lead, size = geometry
    layer = prepared(layers.Conv2d(ins, outs, kernel, stride, padding, bias=False, step_mode=mode), weight)
    x = spikes(*lead, ins, *size)
    return layer, x, spikes(*lead, *nn.functional.conv2d(x[0], layer.weight, None, stride, padding).shape[1:])


@torch.no_grad()
def theirs(rule: STDP, layer: Any, x: Tensor, y: Tensor) -> Tensor:
    node = Played(y)
    learner = learner_of(rule, layer, node)
    node(layer(x))
    return learner.step(on_grad=False)


@pytest.mark.parametrize("weight", FUNCTIONS)
@pytest.mark.parametrize(("steps", "batch", "ins", "outs"), [(6, 3, 4, 5), (5, 2, 7, 2), (1, 1, 9, 8)])
def test_linear(steps: int, batch: int, ins: int, outs: int, weight: str) -> None:
    layer = prepared(layers.Linear(ins, outs, bias=False, step_mode="m"), weight)
    x, y, rule = spikes(steps, batch, ins), spikes(steps, batch, outs), rule_of(weight)
    found = rule.increment(layer.weight.detach(), rule.drive(layer, x, y))
    assert found.shape == (outs, ins) and found.any()
    assert torch.equal(found, theirs(rule, layer, x, y))


@pytest.mark.parametrize("weight", FUNCTIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution(geometry: Any, weight: str) -> None:
    layer, x, y = conv(geometry, weight)
    rule = rule_of(weight)
    found = rule.increment(layer.weight.detach(), rule.drive(layer, x, y))
    assert found.shape == layer.weight.shape and found.any()
    assert torch.equal(found, theirs(rule, layer, x, y))


@pytest.mark.parametrize(("tau_pre", "tau_post"), [(2.0, 100.0), (100.0, 2.0), (1.0, 1.0)])
def test_time_constants(tau_pre: float, tau_post: float) -> None:
    layer, x, y = conv(GEOMETRIES[1], "clamp")
    rule = rule_of("clamp", tau_pre=tau_pre, tau_post=tau_post)
    found = rule.increment(layer.weight.detach(), rule.drive(layer, x, y))
    torch.testing.assert_close(found, theirs(rule, layer, x, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES[:2], ids=str)
def test_steps_one_by_one(geometry: Any) -> None:
    """Its single-step mode, as its examples train: traces carried on, one call for all recorded steps."""
    layer, x, y = conv(geometry, "clamp", mode="s")
    rule = rule_of("clamp")
    node = Played(y[0])
    learner = learner_of(rule, layer, node, mode="s")
    with torch.no_grad():
        for pre, node.spikes in zip(x, y, strict=True):
            node(layer(pre))
        total = learner.step(on_grad=False)
    assert torch.equal(rule.increment(layer.weight.detach(), rule.drive(layer, x, y)), total)


def test_a_neuron_and_an_sgd_step() -> None:
    """Its recipe: the learner adds to the gradient, SGD takes the step; ours does both. Real spikes of its IF node."""
    layer = layers.Conv2d(2, 3, 3, padding=1, bias=False, step_mode="m").double()
    node = neuron.IFNode(step_mode="m")
    x = (torch.rand(6, 4, 2, 5, 5) < 0.4).double()
    rule = rule_of("clamp", lr=0.01, tau_post=100)
    learner = learner_of(rule, layer, node)
    with torch.no_grad():
        y = node(layer(x))
    assert 0.02 < y.mean() < 0.9
    weight = layer.weight.detach().clone()
    drive: Drive = rule.drive(layer, x, y)
    learner.step(on_grad=True)
    torch.optim.SGD([layer.weight], lr=0.01).step()
    change = rule.apply(weight, drive)
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(weight, layer.weight.detach(), rtol=1e-12, atol=1e-12)
