"""Networks: sizes of the published ones, time folding, readout, dropout, initialisation, and their graphs."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eiexport import graph as graphs
from eitrain.architectures import backeisnn
from eitrain.cells import Cell
from eitrain.errors import TrainError
from eitrain.nets import SpikingNet
from eitrain.recipes import RECIPES
from targets import base

SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "nmnist": (2, 34, 34),
}
# base, what each gate adds, both gates
COUNTS = {
    "mnist": (210_740, 45_680, 302_100),
    "fashion": (3_274_634, 46_176, 3_366_986),
    "cifar10": (9_878_794, 3_097_472, 16_073_738),
}
MAPS = {
    "mnist": ([24, 12, 8, 4], 640),
    "fashion": ([28, 14, 14, 7], 3136),
    "cifar10": ([32, 16, 16, 8, 8, 4], 8192),
    "nmnist": ([30, 15, 11, 5], 1600),
}


def published(data: str, **changes: Any) -> SpikingNet:
    """The paper's network for a data set, without memory for its weights."""
    with torch.device("meta"):
        return replace(RECIPES[f"backei-{data}"], **changes).net(SHAPES[data])


@pytest.mark.parametrize("data", COUNTS)
def test_parameter_counts(data: str) -> None:
    plain, gate, both = COUNTS[data]
    for sfbm, beim, count in (
        (False, False, plain),
        (True, False, plain + gate),
        (False, True, plain + gate),
        (True, True, both),
    ):
        assert sum(p.numel() for p in published(data, sfbm=sfbm, beim=beim).parameters()) == count
    assert plain + 2 * gate == both


@pytest.mark.parametrize("data", MAPS)
def test_map_sizes(data: str) -> None:
    sizes, flat = MAPS[data]
    x, maps, rows = torch.zeros(1, *SHAPES[data], device="meta"), [], []
    for module in published(data).children():
        x = x if isinstance(module, Cell) else module(x)
        if isinstance(module, nn.Conv2d | nn.AvgPool2d):
            assert x.shape[2] == x.shape[3]
            maps.append(x.shape[2])
        elif isinstance(module, nn.Flatten):
            rows.append(x.shape[1])
    assert (maps, rows, x.shape) == (sizes, [flat], (1, 10))


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.system == "backei"])
def test_nothing_is_normalised_and_only_connections_are_trained(name: str) -> None:
    with torch.device("meta"):
        net = RECIPES[name].net(SHAPES[RECIPES[name].data])
    kinds = {type(m).__name__ for m in net.modules()}
    assert kinds <= {"SpikingNet", "Conv2d", "Linear", "AvgPool2d", "Flatten", "Dropout", "Cell", "Parameters"}
    connections = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    trained = {id(p) for m in connections for p in (m.weight, m.bias)}
    assert {id(p) for p in net.parameters()} == trained and not list(net.buffers())


def single(**changes: Any) -> SpikingNet:
    torch.manual_seed(0)
    given: dict[str, Any] = {"architecture": "3C3-P2-4C3-P2-6-5", "shape": (2, 8, 8), "padding": 1, "init_gain": 5.0}
    return backeisnn(**given | changes)


def small(**changes: Any) -> SpikingNet:
    return single(**changes).double()


def image(batch: int = 4) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(1, batch, 2, 8, 8, dtype=torch.float64)


def test_signed_spikes_are_averaged() -> None:
    signed = torch.tensor([[[1.0, -1.0], [0.0, 1.0]]], dtype=torch.float64)
    assert small().pool1(signed).item() == 0.25


def test_static_input_is_the_repeated_input_computed_once() -> None:
    net, x, steps = small(), image(), 6
    seen: list[int] = []
    net.conv1.register_forward_hook(lambda module, given, result: seen.append(len(result)))
    found = []
    for shown in (x, x.expand(steps, -1, -1, -1, -1).contiguous()):
        record: dict[str, Tensor] = {}
        net.zero_grad()
        scores = net(shown, steps, record)
        (scores * torch.arange(5)).sum().backward()
        found.append((scores, record, [p.grad.clone() for p in net.parameters()]))
    assert seen == [4, 4 * steps]
    (once, spikes, gradients), (many, others, wanted) = found
    assert torch.equal(once, many) and all(z.any() for z in spikes.values())
    assert all(torch.equal(z, others[n]) for n, z in spikes.items())
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.abs().max()))
    assert all(g.any() for g in gradients)


def test_scores_are_the_mean_of_the_last_spikes() -> None:
    record: dict[str, Tensor] = {}
    scores = small()(image(), 7, record)
    assert list(record) == ["neuron1", "neuron2", "neuron3", "neuron4"]
    counts = record["neuron4"].sum(0)
    assert set(record["neuron4"].unique().tolist()) == {0, 1}  # no gates, so no signs
    torch.testing.assert_close(7 * scores, counts, rtol=0, atol=1e-12)
    assert len(counts.unique()) > 2


def test_dropout_is_redrawn_every_step() -> None:
    net, seen = small(dropout=0.5, beim=False), []
    net.dropout1.register_forward_hook(lambda module, given, result: seen.append((given[0], result)))
    net(image(), 6)
    sent, kept = (a.detach().view(6, -1) for a in seen.pop())
    assert set(kept.unique().tolist()) == {0, 2}  # spikes count double where they are kept
    for t in range(5):
        both = (sent[t] == 1) & (sent[t + 1] == 1)
        assert both.sum() > 20 and not torch.equal(kept[t][both], kept[t + 1][both])
    net.eval()(image(), 6)
    sent, kept = seen.pop()
    assert sent.any() and torch.equal(sent, kept)


def test_dropout_stands_between_neuron_and_pool_and_not_behind_the_output() -> None:
    wanted = (
        "conv1 neuron1 dropout1 pool1 conv2 neuron2 dropout2 pool2 flatten linear1 neuron3 dropout3 linear2 neuron4"
    )
    assert " ".join(dict(small(dropout=0.5).named_children())) == wanted


def test_init_gain_scales_connections_and_spares_gates_and_biases() -> None:
    one, three = (dict(small(init_gain=g).named_parameters()) for g in (1.0, 3.0))
    scaled = {"conv1.weight", "conv2.weight", "linear1.weight", "linear2.weight"}
    assert len(one) == 8 + 2 * 4  # two gates in each of two cells
    for name, p in one.items():
        torch.testing.assert_close(three[name], 3 * p if name in scaled else p, rtol=1e-6, atol=0)


def test_graph_is_the_network() -> None:
    net = single(dropout=0.5).eval()
    network = graphs.check(net.graph(tool="test"))
    kinds = {n: (type(node).__name__, network.shapes[n]) for n, node in network.graph.nodes.items()}
    assert kinds == {
        "input": ("Input", (2, 8, 8)),
        "conv1": ("Conv2d", (3, 8, 8)),
        "neuron1": ("EIGatedLIF", (3, 8, 8)),
        "pool1": ("AvgPool2d", (3, 4, 4)),
        "conv2": ("Conv2d", (4, 4, 4)),
        "neuron2": ("EIGatedLIF", (4, 4, 4)),
        "pool2": ("AvgPool2d", (4, 2, 2)),
        "flatten": ("Flatten", (16,)),
        "linear1": ("Affine", (6,)),
        "neuron3": ("EIDiscreteLIF", (6,)),
        "linear2": ("Affine", (5,)),
        "neuron4": ("EIDiscreteLIF", (5,)),
        "output": ("Output", (5,)),
    }
    assert [c[0] for c in network.order] == list(kinds)
    assert network.graph.metadata["eiexport"]["provenance"] == {"tool": "test"}
    record: dict[str, Tensor] = {}
    with torch.no_grad():
        net.double()(image(), 6, record)
    x = image().expand(6, -1, -1, -1, -1).transpose(0, 1).numpy()
    found = base.get("reference")().compile(network).run(x).z
    for name, z in record.items():
        assert z.any()
        np.testing.assert_array_equal(found[name], z.transpose(0, 1))


def test_graph_of_a_pool_that_leaves_a_border() -> None:
    """5 pixels in pairs: the last row and column belong to no window."""
    net = single(architecture="3C4-P2-5", shape=(2, 8, 8), padding=0)
    assert graphs.check(net.graph()).shapes["pool1"] == (3, 2, 2)


@pytest.mark.parametrize(
    "architecture, names",
    [
        ("", "''"),
        ("15C5-300-", "''"),
        ("15c5-10", "'15c5'"),
        ("15C5--10", "''"),
        ("15C5-Q2-10", "'Q2'"),
        ("15C5 -10", "'15C5 '"),
        ("P0-10", "'P0'"),
        ("0C3-10", "'0C3'"),
        ("16C0-10", "'16C0'"),
        ("16C3-0", "'0'"),
        ("30-15C5-10", "'15C5'"),
        ("30-P2-10", "'P2'"),
        ("16C3", "'16C3'"),
        ("16C3-P2", "'P2'"),
        ("16C9-10", "'16C9'"),
        ("16C3-P2-P4-10", "'P4'"),
    ],
)
def test_bad_architecture_is_refused(architecture: str, names: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of empty weights: two lines where one is promised
        with pytest.raises(TrainError) as caught:
            backeisnn(architecture, (1, 8, 8))
    message = str(caught.value)
    assert names in message and repr(architecture) in message and "\n" not in message


def test_even_gate_is_refused() -> None:
    with pytest.raises(TrainError, match=r"gate_kernel = 4.*odd"):
        backeisnn("4C3-10", (1, 8, 8), gate_kernel=4)
