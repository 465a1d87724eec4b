"""The networks of EICIL and BIRIL: sizes, where shortcuts join, and BatchNorm folded into the exported graph."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eiexport import graph as graphs
from eitrain.architectures import DEEP, IF, Stage, classes_of, deep, spiking_cnn, spiking_resnet
from eitrain.cells import Cell
from eitrain.errors import TrainError
from eitrain.nets import SpikingNet, Tape, affine
from targets import base

PUBLISHED = ("resnet18", "vgg11", "einet", "einet-average", "biril")


def meta(name: str, shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, width: int = 64) -> SpikingNet:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return deep(name, shape, classes, width=width, spiking_head=False)


def count(net: SpikingNet) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    "name, classes, wanted",
    [
        ("einet", 100, 11_220_132),
        ("einet-average", 100, 11_220_132),  # pools have no parameters
        ("biril", 100, 12_705_288 - 51_300),  # the published count holds a layer that is not used
        ("resnet18", 10, 11_173_962),
        ("vgg11", 10, 9_228_362),
    ],
)
def test_parameter_counts(name: str, classes: int, wanted: int) -> None:
    """A1; VGG-11: 9 (3 64 + 64 128 + 128 256 + 256^2 + 256 512 + 3 512^2) + 2 * 2752 + 512 * 10 + 10."""
    assert count(meta(name, classes=classes)) == wanted


def sides(net: SpikingNet, shape: tuple[int, ...], kind: type) -> list[int]:
    """Sides of the maps behind all modules of a kind."""
    seen: list[int] = []
    for module in net.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda m, given, out: seen.append(out.shape[-1]))
    for cell in net.cells.values():
        cell.over_time = lambda x: x  # type: ignore[method-assign]
    net.eval()(torch.zeros(1, 1, *shape, device="meta"), 1)
    return seen


@pytest.mark.parametrize(
    "name, shape, convs, pools",
    [
        ("resnet18", (3, 32, 32), [32] * 5 + [16] * 5 + [8] * 5 + [4] * 5, []),
        ("einet", (3, 32, 32), [32] + [16] * 4 + [8] * 5 + [4] * 5 + [2] * 5, [16] * 5 + [8] * 4 + [4] * 4 + [2] * 4),
        ("biril", (3, 32, 32), [32] * 8 + [16] * 7 + [8] * 5, []),
        ("vgg11", (3, 32, 32), [32, 16, 8, 8, 4, 4, 2, 2], [16, 8, 4, 2, 1]),
        ("vgg11", (1, 28, 28), [28, 14, 7, 7, 3, 3, 1, 1], [14, 7, 3, 1]),  # the last pool would find one pixel
        ("vgg11", (1, 8, 8), [8, 4, 2, 2, 1, 1, 1, 1], [4, 2, 1]),
        ("resnet18", (1, 28, 28), [28] * 5 + [14] * 5 + [7] * 5 + [4] * 5, []),
        ("einet", (1, 8, 8), [8] + [4] * 4 + [2] * 5 + [1] * 5 + [1] * 5, [4] * 5 + [2] * 4 + [1] * 4 + [1] * 4),
        ("resnet8", (1, 8, 8), [8] + [4] * 3 + [2] * 3 + [1] * 3, []),
    ],
    ids=lambda v: str(v)[:14],
)
def test_map_sizes(name: str, shape: tuple[int, ...], convs: list[int], pools: list[int]) -> None:
    """A2; a block's shortcut counts as one of its convolutions."""
    assert sorted(sides(meta(name, shape, width=2), shape, nn.Conv2d), reverse=True) == convs
    assert sides(meta(name, shape, width=2), shape, nn.MaxPool2d) == pools


def test_layers_of_the_e_i_net() -> None:
    """Section 4.4: 20 convolutions with the shortcuts; each block pools in front of BatchNorm, as published."""
    net = meta("einet", classes=100)
    assert len([m for m in net.modules() if isinstance(m, nn.Conv2d)]) == 20
    names = list(dict(net.named_children()))
    assert names[:12] == (
        "conv1 norm1 neuron1 stempool1 conv2 blockpool1 norm2 neuron2 conv3 blockpool2 norm3 neuron3".split()
    )
    assert net.sources["neuron3"] == ("norm3", "stempool1")
    average = list(dict(meta("einet-average").named_children()))
    assert average[4:8] == ["conv2", "blockpool1", "norm2", "neuron2"]
    for pool in (net.blockpool1, net.stempool1):
        assert (pool.kernel_size, pool.padding) == (3, 1)
    assert (net.blockpool1.stride, net.stempool1.stride) == (1, 2)


def test_heads() -> None:
    for name, units in (("resnet18", [(512, 10)]), ("biril", [(512, 256), (256, 10)]), ("vgg11", [(512, 10)])):
        net = meta(name)
        found = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
        assert found == units and isinstance(net.get_submodule(net.last), nn.Linear)
        spiking = deep(name, (1, 8, 8), 7, width=1, spiking_head=True)
        assert isinstance(spiking.get_submodule(spiking.last), Cell)
        with torch.no_grad():
            assert spiking(torch.rand(1, 2, 1, 8, 8), 3).shape == (2, 7)


@pytest.mark.parametrize("name", DEEP)
def test_every_neuron_integrates_and_fires(name: str) -> None:
    """Section 4.2; no convolution has a bias, all start with Kaiming's normal weights for fan out."""
    torch.manual_seed(0)
    net = deep(name, (1, 8, 8), 10, width=16, spiking_head=False)
    for cell in net.cells.values():
        p = cell.p
        assert (p.decay, p.threshold, p.compare, p.reset, p.surrogate) == (1, 1, "ge", "zero", "sigmoid")
        assert p.feedback is p.balance is None and not p.detach_reset
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    for m in convs:
        fan = m.out_channels * m.kernel_size[0] ** 2
        assert m.bias is None and float(m.weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=0.35)
    with torch.no_grad():
        v = Cell(**IF).over_time(torch.tensor([0.6, 0.4, 0.7, 0.5, 1.3])[:, None])
    assert v[:, 0].tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("width", [1, 2, 16])
@pytest.mark.parametrize("name", DEEP)
def test_widths(name: str, width: int) -> None:
    """Maps scale with the first layer's, and never vanish."""
    narrow, full = (
        [m.out_channels for m in meta(name, (1, 8, 8), width=w).modules() if isinstance(m, nn.Conv2d)]
        for w in (width, 64)
    )
    assert narrow == [max(1, maps * width // 64) for maps in full] and narrow[0] == width
    net = deep(name, (1, 8, 8), 3, width=width, spiking_head=False)
    with torch.no_grad():
        assert net(torch.rand(1, 2, 1, 8, 8), 2).shape == (2, 3)


# --- shortcuts


def one_block(stage: Stage, main: float, shortcut: float = 0.0) -> SpikingNet:
    """Stem and one block of one map; weights on the middle tap only, BatchNorm that does nothing."""
    net = spiking_resnet((1, 8, 8), 2, width=1, stages=(stage,)).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
        if isinstance(module, nn.Conv2d):
            module.weight.data.zero_()
    for name, value in (("conv1", 1.0), ("conv2", 1.0), ("conv3", main)):
        net.get_submodule(name).weight.data[..., 1, 1] = value
    if "shortcut1" in net.connections:
        net.shortcut1.weight.data[...] = shortcut
    return net


@pytest.mark.parametrize(
    "stage, shortcut, current",
    [
        (Stage(64, 1, 1), 0.0, 1.25),  # identity: .25 of the main way, 1 of the stem's spike
        (Stage(64, 1, 2), 0.5, 0.75),  # conv1x1 - BN: .25 + .5
        (Stage(64, 1, 2), -0.5, -0.25),
    ],
)
def test_shortcut_joins_before_the_neuron(stage: Stage, shortcut: float, current: float) -> None:
    """A5: the block's neuron sees main + shortcut as one current; whatever leaves it is 0 or 1."""
    net = one_block(stage, 0.25, shortcut)
    net.tape, record = Tape(["neuron3"], ["neuron1", "neuron2", "neuron3"]), {}
    with torch.no_grad():
        net(torch.full((1, 1, 1, 8, 8), 0.5, dtype=torch.float64), 4, record)
    seen = net.tape.outputs
    for name in ("neuron1", "neuron2"):  # half of the threshold a step: every second step
        assert [z.unique().tolist() for z in seen[name]] == [[0], [1], [0], [1]]
    assert [i.unique().tolist() for i in net.tape.inputs["neuron3"]] == [[0], [current], [0], [current]]
    spikes = {1.25: [0, 1, 0, 1], 0.75: [0, 0, 0, 1], -0.25: [0, 0, 0, 0]}[current]
    assert [z.unique().tolist() for z in seen["neuron3"]] == [[s] for s in spikes]
    side = 8 // stage.stride
    assert seen["neuron3"].shape == (4, 1, 1, side, side) and record["neuron3"] is not None


def test_second_block_takes_the_shortcut_of_the_first() -> None:
    net = meta("resnet18")
    assert net.sources["neuron3"] == ("norm3", "neuron1") and net.sources["neuron5"] == ("norm5", "neuron3")
    assert net.sources["neuron7"] == ("norm7", "shortcutnorm1") and net.sources["shortcut1"] == ("neuron5",)
    assert net.shortcut1.kernel_size == (1, 1) and net.shortcut1.stride == (2, 2) == net.conv6.stride
    assert net.sources["conv6"] == ("neuron5",) and net.conv7.stride == (1, 1)


@pytest.mark.parametrize("name", ["resnet18", "biril"])
def test_nothing_but_spikes_leaves_a_neuron(name: str) -> None:
    torch.manual_seed(0)
    net, record = randomised(deep(name, (1, 8, 8), 5, width=4, spiking_head=False)), dict[str, Tensor]()
    with torch.no_grad():
        net(torch.rand(1, 3, 1, 8, 8, dtype=torch.float64), 3, record)
    assert all(set(record[n].unique().tolist()) == {0, 1} for n in net.cells)


# --- BatchNorm


def randomised(net: SpikingNet, negative: bool = True) -> SpikingNet:
    """BatchNorm as after training, with some negative scales, and weights large enough for every layer to spike."""
    generator = torch.Generator().manual_seed(3)

    def uniform(like: Tensor | None, low: float, high: float) -> Tensor:
        assert like is not None
        return torch.empty_like(like).uniform_(low, high, generator=generator)

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= 4
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = uniform(module.weight, 0.5, 1.5)
            if negative:
                module.weight.data[1::2] *= -1
            module.bias.data = uniform(module.bias, 0.1, 0.6)
            module.running_mean = uniform(module.running_mean, -0.3, 0.3)
            module.running_var = uniform(module.running_var, 0.3, 2.0)
    return net.double().eval()


def test_folding_by_hand() -> None:
    """D1."""
    net = SpikingNet({"conv1": nn.Conv2d(1, 1, 1, bias=False), "norm1": nn.BatchNorm2d(1), "n": Cell(**IF)}, (1, 2, 2))
    norm = net.norm1
    for p, value in (
        *((net.conv1.weight, 0.8), (norm.weight, 1.5), (norm.bias, -0.2)),
        *((norm.running_mean, 0.3), (norm.running_var, 0.25)),
    ):
        p.data.fill_(value)
    assert norm.eps == 1e-5
    weight, bias = net.folded("conv1", torch.float64)
    assert bias is not None and weight.dtype == bias.dtype == torch.float64
    assert (weight.item(), bias.item()) == pytest.approx((2.399952, -1.099982), abs=5e-7)
    node = net.graph().nodes["conv1"]
    assert node.weight.item() == weight.item() and node.bias.item() == bias.item()
    assert "norm1" not in net.graph().nodes
    with torch.no_grad():
        x = torch.full((1, 1, 2, 2), 0.5)
        assert float(norm.eval()(net.conv1(x))[0, 0, 0, 0]) == pytest.approx(0.5 * 2.399952 - 1.099982, abs=1e-6)


def test_folding_keeps_a_bias() -> None:
    net = randomised(SpikingNet({"conv1": nn.Conv2d(2, 3, 3), "norm1": nn.BatchNorm2d(3)}, (2, 5, 5)))
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    weight, bias = net.folded("conv1")
    wanted = net.norm1(net.conv1(x))
    torch.testing.assert_close(torch.conv2d(x, weight, bias), wanted, rtol=1e-12, atol=1e-12)
    scale, shift = affine(net.norm1)
    assert (scale < 0).any() and shift.shape == (3,)


@pytest.mark.parametrize(
    "pools, folds",
    [
        ([nn.AvgPool2d(3, 1)], True),
        ([nn.AvgPool2d(2), nn.AvgPool2d(3, 1)], True),
        ([nn.AvgPool2d(3, 1, 1)], False),  # its border would see less of the shift
        ([nn.AvgPool2d(2), nn.MaxPool2d(2)], False),  # of scales of both signs
        ([nn.MaxPool2d(3, 1, 1)], False),
    ],
    ids=str,
)
def test_pools_that_a_norm_folds_through(pools: list[nn.Module], folds: bool) -> None:
    torch.manual_seed(0)
    modules = {"conv1": nn.Conv2d(1, 4, 3, padding=1), **{f"pool{i}": p for i, p in enumerate(pools)}}
    net = randomised(SpikingNet({**modules, "norm1": nn.BatchNorm2d(4), "n": Cell(**IF)}, (1, 8, 8)))
    assert ("norm1" in net.graph().nodes) != folds
    assert agrees(net, (1, 8, 8))["n"].any()


@pytest.mark.parametrize("between", [nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(3, 1, 1)], ids=["conv", "average"])
def test_a_norm_folds_no_further_than_it_may(between: nn.Module) -> None:
    torch.manual_seed(0)
    modules = {"conv1": nn.Conv2d(1, 4, 3, padding=1), "pool1": nn.MaxPool2d(2), "between": between}
    net = SpikingNet({**modules, "norm1": nn.BatchNorm2d(4), "n": Cell(**IF)}, (1, 8, 8))
    agrees(randomised(net, negative=False), (1, 8, 8))


def agrees(net: SpikingNet, shape: tuple[int, ...], steps: int = 4, batch: int = 2) -> dict[str, Tensor]:
    """Spikes of network and graph, float64; what was recorded."""
    x = torch.rand(1, batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    record: dict[str, Tensor] = {}
    with torch.no_grad():
        scores = net(x, steps, record)
    network = graphs.check(net.graph())
    shown = x.expand(steps, *x.shape[1:]).transpose(0, 1).numpy()
    found = base.get("reference")().compile(network).run(shown).z
    for name, z in record.items():
        assert found[name].shape == (batch, steps, *z.shape[2:])
        if name == net.last:
            np.testing.assert_allclose(found[name], z.transpose(0, 1), rtol=1e-10, atol=1e-12)
        else:
            np.testing.assert_array_equal(found[name], z.transpose(0, 1))
    np.testing.assert_allclose(found[net.last].mean(1), scores, rtol=1e-10, atol=1e-12)
    assert record.keys() >= {*net.cells, net.last}
    return record


@pytest.mark.parametrize("side", [8, 12, 16])
@pytest.mark.parametrize("name", ["resnet8", "einet-average", "einet", "vgg11", "biril"])
def test_folded_graph_is_the_network(name: str, side: int) -> None:
    """Every spike of every layer, with scales of either sign, in front of pools and behind them."""
    torch.manual_seed(1)
    net = randomised(deep(name, (2, side, side), 3, width=4, spiking_head=False))
    record = agrees(net, (2, side, side))
    lively = [n for n in net.cells if record[n].any() and not record[n].all()]
    assert len(lively) > 0.8 * len(net.cells)
    kinds = [type(node).__name__ for node in net.graph().nodes.values()]
    assert not any("BatchNorm" in k for k in kinds)
    negative = sum(bool((affine(m)[0] < 0).any()) for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert negative == sum(m.num_features > 1 for m in net.modules() if isinstance(m, nn.BatchNorm2d)) > 6


@pytest.mark.parametrize("head", [False, True])
def test_plain_chain(head: bool) -> None:
    torch.manual_seed(1)
    net = randomised(spiking_cnn("6C3-P2-4C3-8-3", (2, 10, 10), padding=1, spiking_head=head))
    names = "conv1 norm1 neuron1 pool1 conv2 norm2 neuron2 flatten linear1 neuron3 linear2".split()
    assert list(net.sources) == names + ["neuron4"] * head
    assert net.conv1.bias is None and net.linear1.in_features == 100
    record = agrees(net, (2, 10, 10))
    assert all(record[n].any() for n in ("neuron1", "neuron2", "neuron3"))


def test_scales_decide_whether_a_norm_moves_before_a_max_pool() -> None:
    """max(s x + b) = s max(x) + b for s >= 0 only."""
    for negative in (False, True):
        torch.manual_seed(1)
        net = randomised(deep("einet", (1, 8, 8), 3, width=4, spiking_head=False), negative)
        norms = [n for n in net.graph().nodes if "norm" in n]
        behind = [n for n in net.sources if n.startswith("norm") and "blockpool" in net.sources[n][0]]
        assert len(behind) == 16 and norms == (behind if negative else [])
        agrees(net, (1, 8, 8))
        if negative:
            node = net.graph().nodes[behind[0]]
            assert type(node).__name__ == "Conv2d" and node.weight.shape == (4, 1, 1, 1) and node.groups == 4


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1)], ids=str)
def test_max_pool_on_spikes_is_a_threshold_on_their_sum(window: tuple[int, int, int]) -> None:
    """D8."""
    torch.manual_seed(0)
    modules: dict[str, Any] = {"conv1": nn.Conv2d(1, 2, 3, padding=1), "neuron1": Cell(**IF)}
    modules |= {"pool1": nn.MaxPool2d(*window), "flatten": nn.Flatten()}
    side = (7 + 2 * window[2] - window[0]) // window[1] + 1
    net = SpikingNet({**modules, "linear1": nn.Linear(2 * side * side, 3)}, (1, 7, 7)).double().eval()
    net.conv1.weight.data *= 5
    nodes = net.graph().nodes
    assert [type(nodes[n]).__name__ for n in ("pool1_sum", "pool1")] == ["SumPool2d", "Threshold"]
    np.testing.assert_array_equal(nodes["pool1"].threshold, np.full((2, side, side), 0.5))
    record = agrees(net, (1, 7, 7), steps=6)
    assert set(record["pool1"].unique().tolist()) == {0, 1} and record["pool1"].shape[-1] == side


def test_max_pool_on_currents_stays_one() -> None:
    modules: dict[str, Any] = {"conv1": nn.Conv2d(1, 2, 3, padding=1), "pool1": nn.MaxPool2d(2), "n": Cell(**IF)}
    net = SpikingNet(modules, (1, 8, 8)).double().eval()
    net.conv1.weight.data *= 4
    assert type(net.graph().nodes["pool1"]).__name__ == "EIMaxPool2d" and not net.spikes_into("pool1")
    assert agrees(net, (1, 8, 8))["n"].any()


def test_graph_leaves_the_network_as_it_was() -> None:
    net = randomised(deep("resnet8", (1, 8, 8), 3, width=2, spiking_head=False))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.graph()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# --- refusals


@pytest.mark.parametrize("shape", [(1, 7, 7), (3, 32, 16), (64,), (1, 8)], ids=str)
@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_odd_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(TrainError, match=rf"architecture '{name}' takes square maps of at least 8 pixels") as caught:
        deep(name, shape, 10, width=4, spiking_head=False)
    assert str(shape) in str(caught.value) and "\n" not in str(caught.value)


def test_classes_of() -> None:
    assert {*PUBLISHED, "resnet8"} <= set(DEEP) and {classes_of(n) for n in DEEP} == {None}
    assert classes_of("16C3-P2-10") == 10 and classes_of("100") == 100 and classes_of("16C3-P2") is None


def test_named_networks_take_any_number_of_classes() -> None:
    build = partial(deep, "resnet8", (2, 8, 8), width=1, spiking_head=False)
    for classes in (1, 11, 200):
        assert build(classes)(torch.zeros(1, 2, 2, 8, 8), 1).shape == (2, classes)
