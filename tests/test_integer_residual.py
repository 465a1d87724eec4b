"""Quantisation-aware training of residual networks: shortcuts, max pools on spikes, folded BatchNorm, readouts."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from residuals import coarse
from torch import Tensor, nn

from eiexport import graph
from eiexport.calibrate import choose
from eitrain.architectures import deep
from eitrain.cells import Cell
from eitrain.integer import IntegerNet, StraightThroughOps
from eitrain.nets import SpikingNet
from targets import base
from targets.observe import observe

T, BATCH = 5, 6
IF: dict[str, Any] = {"decay": 1.0, "threshold": 1.0, "compare": "ge", "surrogate": "sigmoid"}


def residual(norm: bool) -> SpikingNet:
    """Stem, max pool, a block with its input added, a readout; weights are coarse dyadic numbers."""
    modules = OrderedDict[str, nn.Module]()
    for i, (maps, pooled) in enumerate(((3, True), (3, False), (3, False)), 1):
        modules[f"conv{i}"] = nn.Conv2d(2 if i == 1 else 3, maps, 3, padding=1, bias=not norm)
        if norm:
            modules[f"norm{i}"] = nn.BatchNorm2d(maps)
        modules[f"neuron{i}"] = Cell(**IF)
        if pooled:
            modules["pool1"] = nn.MaxPool2d(3, 2, 1)
    modules |= {"average": nn.AvgPool2d(4), "flatten": nn.Flatten(), "linear1": nn.Linear(3, 4)}
    into = ("norm3" if norm else "conv3", "pool1")
    net = SpikingNet(modules, (2, 8, 8), {"neuron3": into})
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(torch.from_numpy(coarse(*p.shape, seed=20 + i)))
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(torch.tensor([1.0, 0.5, 1.5]))
                m.running_mean.copy_(torch.tensor([0.25, -0.5, 0.0]))
                m.eps = 2.0**-10
                m.running_var.fill_(1.0 - m.eps)  # so that the weights stay dyadic when it is folded into them
    return net.eval()


def spikes(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).choice([0.0, 0.0, 1.0], (BATCH, T, *shape)).astype(np.float32)


def lowered(net: SpikingNet, x: np.ndarray, bits: int = 8) -> IntegerNet:
    network = graph.check(net.graph())
    return IntegerNet(net, choose(network, observe(network, [x]), bits))


def moved(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.swapaxes(x, 0, 1)))


def gradients(net: SpikingNet, scores: Tensor) -> dict[str, Tensor]:
    loss = nn.functional.cross_entropy(scores.double(), torch.arange(BATCH) % 4)
    found = torch.autograd.grad(loss, list(net.parameters()))
    return {n: g.double() for (n, _), g in zip(net.named_parameters(), found, strict=True)}


@pytest.mark.parametrize("training", [False, True], ids=["evaluated", "with gradients"])
@pytest.mark.parametrize("name", ["dyadic", "norm", "resnet18", "vgg11"])
def test_the_forward_pass_is_the_integer_network(name: str, training: bool) -> None:
    """z, u and v of every population and the sums of the readout, against the graph that is exported."""
    torch.manual_seed(0)
    net = (
        residual(name == "norm")
        if name in ("dyadic", "norm")
        else deep(name, (2, 8, 8), 4, width=3, spiking_head=False)
    )
    x = spikes(2, 8, 8)
    integer = lowered(net.eval(), x)
    network = graph.check(integer.network.graph, alphabet=integer.plan.alphabet)
    expected = base.get("reference")().compile(network).run(x, probe=True)
    record: dict[str, Tensor] = {}
    states: dict[str, dict[str, Tensor]] = {}
    with torch.set_grad_enabled(training):
        scores = integer.run(moved(x).double(), None, record, states)
    assert expected.z.keys() == record.keys() and "linear1" in record
    held: dict[str, dict[str, Tensor]] = {"z": record, **states}
    for kind, node, a in expected.observables():
        ours = held[kind][node].detach().transpose(0, 1).numpy()
        assert ours.shape == a.shape and np.array_equal(ours, a), (kind, node)
    alpha = integer.plan.layers["linear1"].alpha
    assert np.array_equal(scores.detach().numpy(), expected.z["linear1"].mean(1) * alpha)
    assert scores.requires_grad == training and expected.z["linear1"].any()


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_gradients_are_the_float_networks_where_nothing_is_lost(norm: bool) -> None:
    """The same spikes, so the same gradients: of BatchNorm's numbers, through shortcut and maximum, of the readout."""
    net = residual(norm)
    x = spikes(2, 8, 8)
    integer = lowered(net, x)
    floats: dict[str, Tensor] = {}
    ours: dict[str, Tensor] = {}
    net.double()
    wanted = gradients(net, net(moved(x).double(), None, floats))
    scores = integer(moved(x), None, ours)
    for name, z in floats.items():
        unit = integer.plan.layers[name].alpha if name == "linear1" else 1.0
        assert torch.allclose(ours[name].double() * unit, z, atol=1e-9) and z.any(), name
    found = gradients(net, scores)
    assert found.keys() == wanted.keys()
    for name, g in wanted.items():
        assert g.any() and torch.allclose(found[name], g, rtol=5e-3, atol=5e-3 * float(g.abs().max())), name


def test_a_maximum_hands_its_gradient_to_one_spike() -> None:
    """As torch's own max pool does, window by window."""
    net = residual(False)
    integer = lowered(net, spikes(2, 8, 8))
    steps = integer._live(dict(integer.network.steps))
    step: Any = steps["pool1_sum"]
    x = (torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) < 0.2).double()
    x.requires_grad_()
    step = type(step)(**{**vars(step), "weight": torch.from_numpy(step.weight)})
    sums = step.product(StraightThroughOps("cpu", None), x)
    unit = float(step.weight.flatten()[0])
    counts = nn.functional.avg_pool2d(x.detach(), 3, 2, 1, divisor_override=1)
    assert torch.equal(sums.detach(), counts * unit) and (counts > 1).any() and (counts == 0).any()
    (found,) = torch.autograd.grad(sums.sum(), x)
    (wanted,) = torch.autograd.grad(nn.functional.max_pool2d(x, 3, 2, 1).sum(), x)
    assert torch.equal(found, wanted * unit)


def test_every_parameter_learns_and_the_weights_stay_folded() -> None:
    """A step of the optimiser moves what the integers compute with, BatchNorm's numbers too."""
    net = residual(True)
    integer = lowered(net, spikes(2, 8, 8)).train()
    means = {n: b.clone() for n, b in net.named_buffers()}
    optimiser = torch.optim.SGD(integer.parameters(), 1.0)
    x = moved(spikes(2, 8, 8))
    before = integer._live(dict(integer.network.steps))
    nn.functional.cross_entropy(integer(x), torch.arange(BATCH) % 4).backward()
    for name, p in integer.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), name
    optimiser.step()
    after = integer._live(dict(integer.network.steps))
    changed = {n for n in before if any(_differs(vars(before[n])[k], v) for k, v in vars(after[n]).items())}
    assert changed >= {"conv1", "conv2", "conv3", "linear1"} and "pool1_neuron3_unit" not in changed
    assert all(torch.equal(b, means[n]) for n, b in net.named_buffers())  # folded as it evaluates, in training too
    network = graph.check(net.graph())
    weight, _ = net.folded("conv2", torch.float64)
    assert np.allclose(network.steps["conv2"].weight, weight.detach().numpy(), rtol=1e-12)  # type: ignore[attr-defined]


def _differs(a: Any, b: Any) -> bool:
    same = a is b or (np.shape(a) == np.shape(b) and bool(np.all(np.asarray(_host(a) == _host(b)))))
    return not same


def _host(a: Any) -> Any:
    return a.detach().numpy() if isinstance(a, Tensor) else a
