"""One iteration under each rule: what is trained, in which order, on which layers, and what is counted of it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import stdp_oracle as oracle
import torch
from torch import Tensor, nn
from torch.nn import functional

from eitrain.architectures import IF, backeisnn, deep
from eitrain.cells import Cell
from eitrain.errors import TrainError
from eitrain.learning import ACTIVE, Learner, inactive, layers_of, unpooled
from eitrain.nets import SpikingNet
from eitrain.schedule import RULES, Phase
from eitrain.stdp import STDP

STEPS = 4
RULE = STDP(lr=0.05)
Build = Callable[[], SpikingNet]


def randomised(net: SpikingNet, seed: int = 2) -> SpikingNet:
    """BatchNorm that shifts currents upwards, so that all layers spike, with some negative scales."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.empty_like(module.weight).uniform_(0.5, 1.5, generator=generator)
            module.weight.data[::3] *= -1
            module.bias.data = torch.empty_like(module.bias).uniform_(0.1, 0.6, generator=generator)
    return net.double()


def plain() -> SpikingNet:
    """conv (with bias) - IF - pool - conv - IF - linear - IF - linear - IF."""
    torch.manual_seed(0)
    modules = {
        "conv1": nn.Conv2d(1, 3, 3, padding=1),
        "neuron1": Cell(**IF),
        "pool1": nn.AvgPool2d(2),
        "conv2": nn.Conv2d(3, 4, 3, stride=2, padding=1),
        "neuron2": Cell(**IF),
        "flatten": nn.Flatten(),
        "linear1": nn.Linear(16, 6),
        "neuron3": Cell(**IF),
        "linear2": nn.Linear(6, 3),
        "neuron4": Cell(**IF),
    }
    net = SpikingNet(modules, (1, 8, 8))
    with torch.no_grad():
        for c in net.connections.values():
            c.weight.mul_(3)
            assert c.bias is not None
            c.bias.add_(0.3)
    return net.double()


def resnet(name: str = "resnet8") -> SpikingNet:
    torch.manual_seed(0)
    return randomised(deep(name, (1, 8, 8), 3, width=4, spiking_head=False))


def batch(seed: int = 0, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    x = torch.tensor(generator.random((1, size, 1, 8, 8)))
    return x, torch.tensor(generator.integers(0, 3, size))


class Student:
    """A network, its optimiser, and phases one after the other."""

    def __init__(self, net: SpikingNet, stdp: STDP = RULE, lr: float = 1e-2) -> None:
        self.net, self.stdp = net, stdp
        self.optimiser = torch.optim.Adam(net.parameters(), lr)

    def learner(self, letter: str, layers: str = "conv", **changes: Any) -> Learner:
        return Learner(
            self.net.train(),
            self.net,
            self.optimiser,
            Phase(RULES[letter], layers=layers),
            replace(self.stdp, **changes),
            tuple(self.net.connections),
            lambda loss: loss.backward(),
            lambda x, how: x,
        )

    def learn(self, letter: str, seeds: tuple[int, ...] = (0,), layers: str = "conv", **changes: Any) -> Learner:
        learner = self.learner(letter, layers, **changes)
        for seed in seeds:
            x, labels = batch(seed)
            assert torch.isfinite(learner.iterate(x, labels, STEPS, functional.cross_entropy))
        assert self.net.tape is None
        return learner

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.net.named_parameters()}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Adam's state by parameter."""
        names = {p: n for n, p in self.net.named_parameters()}
        return {names[p]: {k: v.clone() for k, v in s.items()} for p, s in self.optimiser.state.items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {n for n in before if not torch.equal(before[n], after[n])}


def activity(net: SpikingNet, seed: int, layer: str, neuron: str) -> tuple[np.ndarray, np.ndarray]:
    """What enters a layer and leaves a neuron in training mode, seen by hooks; input repeated over time."""
    seen: dict[str, Tensor] = {}
    net = deepcopy(net).train()
    net.get_submodule(layer).register_forward_pre_hook(lambda m, given: seen.update(x=given[0]))
    cell = net.cells[neuron]
    before = cell.over_time
    cell.over_time = lambda x: seen.setdefault("y", before(x))  # type: ignore[method-assign]
    x, labels = batch(seed)
    with torch.no_grad():
        net(x, STEPS)
    entering = seen["x"].view(-1, len(labels), *seen["x"].shape[1:])
    return entering.expand(STEPS, *entering.shape[1:]).numpy(), seen["y"].numpy()


CONVS = {"conv1.weight", "conv2.weight"}


# --- G, M, S, P


@pytest.mark.parametrize("build", [plain, resnet, partial(resnet, "einet")], ids=["plain", "resnet8", "einet"])
def test_m_without_plasticity_is_g(build: Build) -> None:
    """S14: bit for bit, Adam's state and BatchNorm's statistics included, over several batches."""
    mixed, gradient = Student(build()), Student(build())
    mixed.learn("M", (0, 1, 2), lr=0.0)
    gradient.learn("G", (0, 1, 2))
    a, b = mixed.net.state_dict(), gradient.net.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)
    ours, theirs = mixed.moments(), gradient.moments()
    assert ours.keys() == theirs.keys() == mixed.weights().keys()
    assert all(torch.equal(ours[n][k], theirs[n][k]) for n in ours for k in ours[n])
    other = Student(build())
    other.learn("M", (0, 1, 2))
    assert all(not torch.equal(other.weights()[n], p) for n, p in gradient.weights().items() if "conv" in n)


def test_m_is_the_gradient_step_and_then_the_increment() -> None:
    """At the weights that the gradient left: the rule is proportional to them."""
    start, mixed, gradient = plain(), Student(plain()), Student(plain())
    mixed.learn("M")
    gradient.learn("G")
    after, stepped = mixed.weights(), gradient.weights()
    assert moved(stepped, after) == CONVS
    for layer, neuron, geometry in (("conv1", "neuron1", (1, 1, 1, 1)), ("conv2", "neuron2", (2, 1, 1, 1))):
        x, y = activity(start, 0, layer, neuron)
        w = stepped[f"{layer}.weight"].numpy()
        change = RULE.lr * oracle.total(oracle.traces(RULE, w, x, y, geometry)).change
        assert np.abs(change).max() > 1e-4
        np.testing.assert_allclose(after[f"{layer}.weight"].numpy() - w, change, rtol=0, atol=1e-12)


def test_s_drops_the_gradients_of_its_layers_and_trains_the_rest() -> None:
    start, local, gradient = plain(), Student(plain()), Student(plain())
    before = local.weights()
    local.learn("S")
    gradient.learn("G")
    after, stepped = local.weights(), gradient.weights()
    assert moved(before, after) == set(before)
    assert moved(after, stepped) == CONVS  # one batch: the others got the very step of G
    assert local.moments().keys() == before.keys() - CONVS
    for layer, neuron, geometry in (("conv1", "neuron1", (1, 1, 1, 1)), ("conv2", "neuron2", (2, 1, 1, 1))):
        w = before[f"{layer}.weight"].numpy()
        change = RULE.lr * oracle.total(oracle.traces(RULE, w, *activity(start, 0, layer, neuron), geometry)).change
        np.testing.assert_allclose(after[f"{layer}.weight"].numpy() - w, change, rtol=0, atol=1e-12)


def test_s_leaves_the_moments_of_its_layers_as_g_left_them() -> None:
    """The published code's momentum went on moving weights whose gradient was set to zero."""
    student = Student(plain())
    student.learn("G", (0, 1))
    before, weights = student.moments(), student.weights()
    student.learn("S", (2, 3))
    after = student.moments()
    for name in weights:
        same = all(torch.equal(before[name][k], after[name][k]) for k in before[name])
        assert same == (name in CONVS)
    student.learn("S", (4,), lr=0.0)
    now = student.weights()
    student.learn("S", (5, 6), lr=0.0)
    assert not moved(now, student.weights()) & CONVS


@pytest.mark.parametrize("build", [plain, resnet, partial(resnet, "einet")], ids=["plain", "resnet8", "einet"])
def test_p_changes_weights_of_its_layers_only(build: Build) -> None:
    """S10: no bias, no BatchNorm scale or shift. BatchNorm's running statistics do follow the batches."""
    student = Student(build())
    before, buffers = student.weights(), {n: b.clone() for n, b in student.net.named_buffers()}
    learner = student.learn("P", (0, 1))
    convs = {f"{n}.weight" for n, c in student.net.connections.items() if isinstance(c, nn.Conv2d)}
    assert moved(before, student.weights()) == convs == {f"{n}.weight" for n in learner.layers}
    assert moved(buffers, dict(student.net.named_buffers())) == buffers.keys()
    assert all(p.grad is None for p in student.net.parameters()) and not student.optimiser.state


def test_s_and_m_never_increment_bias_or_normalisation() -> None:
    """S10: what is no weight of STDP's layers gets exactly the gradient step, in one batch."""
    for letter in "SM":
        local, gradient = Student(resnet()), Student(resnet())
        local.learn(letter)
        gradient.learn("G")
        differing = moved(gradient.weights(), local.weights())
        assert differing == {f"{n}.weight" for n, c in local.net.connections.items() if isinstance(c, nn.Conv2d)}
        ours, theirs = dict(local.net.named_buffers()), dict(gradient.net.named_buffers())
        assert ours and not moved(ours, theirs)


def test_p_uses_no_labels() -> None:
    found = []
    for labels in (torch.zeros(6, dtype=torch.long), torch.tensor([2, 1, 0, 2, 1, 0])):
        student = Student(plain())
        learner = student.learner("P")
        loss = learner.iterate(batch()[0], labels, STEPS, functional.cross_entropy)
        found.append((student.weights(), float(loss)))
    (first, one), (second, two) = found
    assert not moved(first, second) and one != two


def test_increments_know_only_their_own_batch() -> None:
    """S11: two batches in a row are each alone, started from the weights of the one before."""
    for letter in "PM":
        together, apart = Student(plain()), Student(plain())
        together.learn(letter, (0, 1))
        apart.learn(letter, (0,))
        again = Student(plain())
        again.net.load_state_dict(apart.net.state_dict())
        again.optimiser.load_state_dict(apart.optimiser.state_dict())
        again.learn(letter, (1,))
        assert not moved(together.weights(), again.weights())
        other = Student(plain())
        other.learn(letter, (1, 0))
        assert moved(together.weights(), other.weights()) >= CONVS


def test_silence_keeps_every_weight() -> None:
    """S12 through a whole network: nothing comes in, no neuron fires."""
    student = Student(plain())
    with torch.no_grad():
        for c in student.net.connections.values():
            c.bias.zero_()  # type: ignore[union-attr]
    before = student.weights()
    learner = student.learner("P", "both")
    x, labels = torch.zeros(1, 1, 1, 8, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    learner.iterate(x, labels, 1, functional.cross_entropy)
    assert not moved(before, student.weights())
    assert learner.rows()["conv1"]["stdp"] == 0


def test_reward_is_right_or_wrong() -> None:
    student = Student(plain())
    x, _ = batch()
    guess = deepcopy(student.net).train()(x, STEPS).argmax(1)
    labels = torch.where(torch.arange(6) % 2 == 0, guess, (guess + 1) % 3)
    start, before = plain(), student.weights()
    student.learner("P", reward=True).iterate(x, labels, STEPS, functional.cross_entropy)
    reward = np.array([1.0, -1.0] * 3)
    w = before["conv2.weight"].numpy()
    steps = oracle.traces(RULE, w, *activity(start, 0, "conv2", "neuron2"), (2, 1, 1, 1), reward)
    found = student.weights()["conv2.weight"].numpy() - w
    np.testing.assert_allclose(found, RULE.lr * oracle.total(steps).change, rtol=0, atol=1e-12)
    assert found.any()


@pytest.mark.parametrize("mean, how", [(True, "mean"), (False, "sum")])
def test_processes_share_their_sums(mean: bool, how: str) -> None:
    """`reduce` sees the sums before any function of the weight, and is told how they were formed."""
    student, seen = Student(plain(), replace(RULE, mean=mean, weight="magnitude")), []
    learner, before = student.learner("P"), student.weights()
    learner.reduce = lambda x, kind: seen.append((tuple(x.shape), kind)) or x * 0
    learner.iterate(*batch(), STEPS, functional.cross_entropy)
    assert seen == [((3, 1, 3, 3), how)] * 2 + [((4, 3, 3, 3), how)] * 2
    assert not moved(before, student.weights())


# --- layers


@pytest.mark.parametrize(
    "layers, wanted",
    [("conv", ("conv1", "conv2")), ("last", ("linear2",)), ("both", ("conv1", "conv2", "linear2"))],
)
def test_heterogeneous_split(layers: str, wanted: tuple[str, ...]) -> None:
    assert layers_of(plain(), layers) == wanted
    student = Student(plain())
    before = student.weights()
    student.learn("P", layers=layers)
    assert moved(before, student.weights()) == {f"{n}.weight" for n in wanted}
    local, gradient = Student(plain()), Student(plain())
    local.learn("S", layers=layers)
    gradient.learn("G")
    assert moved(local.weights(), gradient.weights()) == {f"{n}.weight" for n in wanted}
    assert local.moments().keys() == before.keys() - {f"{n}.weight" for n in wanted}


def test_last_layer_is_a_linear_stdp() -> None:
    start, student = plain(), Student(plain())
    before = student.weights()["linear2.weight"].numpy()
    student.learn("P", layers="last")
    change = oracle.total(oracle.traces(RULE, before, *activity(start, 0, "linear2", "neuron4"))).change
    assert change.any()
    np.testing.assert_allclose(student.weights()["linear2.weight"].numpy() - before, RULE.lr * change, atol=1e-12)


def test_layers_of_the_named_networks() -> None:
    for name in ("resnet8", "einet", "biril", "vgg11"):
        with torch.device("meta"):
            closed, spiking = (deep(name, (1, 16, 16), 5, width=4, spiking_head=head) for head in (False, True))
        convs = tuple(n for n in closed.connections if "conv" in n or "shortcut" in n)
        assert layers_of(closed, "conv") == layers_of(spiking, "conv") == convs and len(convs) >= 8
        last = list(closed.connections)[-1]
        assert layers_of(spiking, "last") == (last,) and layers_of(spiking, "both") == (*convs, last)
        for layers in ("last", "both"):
            with pytest.raises(TrainError, match=rf"stdp_layers = '{layers}': the last linear layer feeds no neurons"):
                layers_of(closed, layers)


def test_layers_without_spikes_behind_them_are_refused() -> None:
    bare = SpikingNet({"flatten": nn.Flatten(), "linear1": nn.Linear(4, 2)}, (1, 2, 2))
    with pytest.raises(TrainError, match="no such layer that feeds neurons"):
        layers_of(bare, "conv")
    with pytest.raises(TrainError, match="give spiking_head=true or stdp_layers=conv") as caught:
        layers_of(bare, "last")
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainError, match="no such layer"):
        layers_of(backeisnn("6-3", (1, 2, 2)), "conv")
    assert layers_of(backeisnn("4C3-P2-6-3", (1, 8, 8)), "both") == ("conv1", "linear2")


# --- pools between synapses and neurons


def won(kind: str, kernel: int, stride: int, padding: int, x: np.ndarray, post: np.ndarray) -> np.ndarray:
    """A spike behind a window goes to the first of its largest inputs, or in equal shares to all of its places."""
    found = np.zeros(x.shape)
    for t, n, c, r, s in np.ndindex(*post.shape):
        places = [(r * stride - padding + a, s * stride - padding + b) for a in range(kernel) for b in range(kernel)]
        inside = [p for p in places if 0 <= p[0] < x.shape[3] and 0 <= p[1] < x.shape[4]]
        if kind == "max":
            best = max(x[(t, n, c, *p)] for p in inside)
            inside = [next(p for p in inside if x[(t, n, c, *p)] == best)]
        for p in inside:
            found[(t, n, c, *p)] += post[t, n, c, r, s] / (1 if kind == "max" else kernel**2)
    return found


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 1, 1), (3, 2, 1), (3, 2, 0)], ids=str)
def test_unpooled(window: tuple[int, int, int], kind: str) -> None:
    """Integers make ties: torch gives them to the first place of the window, in reading order."""
    generator = np.random.default_rng(list(window))
    pool = (nn.MaxPool2d if kind == "max" else nn.AvgPool2d)(*window)
    x = generator.integers(-2, 3, (3, 2, 2, 5, 5)).astype(np.float64)
    x[2] = 1.0  # nothing but ties
    side = pool(torch.tensor(x[0])).shape[-1]
    post = generator.integers(0, 2, (3, 2, 2, side, side)).astype(np.float64)
    found = unpooled(pool, torch.tensor(x), torch.tensor(post))
    wanted = won(kind, *window, x, post)
    assert found.shape == x.shape and wanted.any() and not found.requires_grad
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-15)
    still = unpooled(pool, torch.tensor(x[:1]), torch.tensor(post))
    np.testing.assert_allclose(still, won(kind, *window, np.repeat(x[:1], 3, 0), post), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["max", "average"])
def test_synapses_before_a_pool_are_those_that_won(kind: str) -> None:
    """conv - pool - IF: the increment is that of the spikes taken back through the pool."""
    torch.manual_seed(0)
    pool = nn.MaxPool2d(3, 1, 1) if kind == "max" else nn.AvgPool2d(2)
    modules = {"conv1": nn.Conv2d(1, 3, 3, padding=1), "pool1": pool, "neuron1": Cell(**IF)}
    net = SpikingNet({**modules, "flatten": nn.Flatten()}, (1, 8, 8)).double()
    net.conv1.weight.data *= 3
    student = Student(net)
    before, (x, labels) = student.weights(), batch()
    currents = functional.conv2d(x[0], before["conv1.weight"], before["conv1.bias"], padding=1).numpy()
    with torch.no_grad():
        spikes = Cell(**IF).over_time(pool(torch.tensor(currents)).expand(STEPS, -1, -1, -1, -1)).numpy()
    shape = (3, 1, 1) if kind == "max" else (2, 2, 0)
    post = won(kind, *shape, np.repeat(currents[None], STEPS, 0), spikes)
    student.learner("P").iterate(x, labels, STEPS, lambda scores, labels: scores.sum())
    w = before["conv1.weight"].numpy()
    change = oracle.total(oracle.traces(RULE, w, x.expand(STEPS, -1, -1, -1, -1).numpy(), post, (1, 1, 1, 1))).change
    assert np.abs(change).max() > 1e-3
    np.testing.assert_allclose(student.weights()["conv1.weight"].numpy() - w, RULE.lr * change, rtol=0, atol=1e-12)


# --- what is counted


def test_rows_are_what_happened() -> None:
    """Norms, angle and shares, recomputed from weights seen around the optimiser's steps."""
    student, name = Student(plain()), "conv2"
    weight = student.net.conv2.weight
    before, stepped, gradients, after = [], [], [], []
    student.optimiser.register_step_pre_hook(lambda *a: gradients.append(weight.grad.clone()))
    student.optimiser.register_step_post_hook(lambda *a: stepped.append(weight.detach().clone()))
    learner, drives = student.learner("M"), []
    for seed in (0, 1, 2):
        before.append(weight.detach().clone())
        x, y = activity(student.net, seed, "conv2", "neuron2")
        sums = oracle.total(oracle.traces(RULE, weight.detach().numpy(), x, y, (2, 1, 1, 1)))
        drives.append(RULE.lr * np.abs(sums.up - sums.down).max())
        learner.iterate(*batch(seed), STEPS, functional.cross_entropy)
        after.append(weight.detach().clone())
    down = sum(s - b for s, b in zip(stepped, before, strict=True))
    local = sum(a - s for a, s in zip(after, stepped, strict=True))
    descent = -sum(gradients)
    assert isinstance(down, Tensor) and isinstance(local, Tensor) and isinstance(descent, Tensor)
    grown = sum(float((a.abs() - s.abs()).clamp_min(0).sum()) for a, s in zip(after, stepped, strict=True))
    row = learner.rows()[name]
    a, b = float(local.norm()), float(down.norm())
    wanted = {
        "weight": float(weight.detach().norm()),
        "gradient": b,
        "stdp": a,
        "share": a / (a + b),
        "cosine": float((local * descent).sum() / (local.norm() * descent.norm())),
        "drive": max(drives),
        "growing": grown / sum(float((a - s).abs().sum()) for a, s in zip(after, stepped, strict=True)),
    }
    assert row.pop("projected") is None  # neither bounds nor normalisation
    assert row == pytest.approx(wanted, rel=1e-9) and row.keys() == wanted.keys()
    assert 0 < wanted["share"] < 1 and 0 < abs(wanted["cosine"]) < 1


def test_rows_of_other_rules() -> None:
    gradient, local, pure = (Student(plain()).learn(k).rows() for k in "GSP")
    assert list(gradient) == list(local) == ["conv1", "conv2", "linear1", "linear2"]
    row = gradient["conv1"]
    assert (row["stdp"], row["share"], row["cosine"], row["drive"], row["growing"]) == (0, 0, None, None, None)
    assert row["gradient"] and row["gradient"] > 0
    row = local["conv1"]
    assert (row["gradient"], row["share"]) == (0, 1) and row["cosine"]  # to the gradient that it did not follow
    assert (pure["conv1"]["gradient"], pure["conv1"]["share"], pure["conv1"]["cosine"]) == (0, 1, None)
    assert pure["linear1"] == {**dict.fromkeys(row), "weight": pure["linear1"]["weight"], "gradient": 0, "stdp": 0}


def test_growing() -> None:
    """1 where all weights grow in magnitude, 0 where all shrink."""
    for changes, wanted in (({"a_minus": 0.0}, 1), ({"a_plus": 0.0}, 0)):
        row = Student(plain()).learn("P", (0, 1), **changes).rows()["conv1"]
        assert row["growing"] == pytest.approx(wanted, abs=1e-9) and row["stdp"]


def entry(stdp: float, gradient: float, layers: tuple[str, ...] = ("conv1",)) -> dict[str, Any]:
    """One row of metrics.jsonl, as far as it matters."""
    return {"updates": {"conv1": {"stdp": stdp, "gradient": gradient}}, "stdp_layers": layers}


def test_inactive_by_hand() -> None:
    gradients = [entry(0, 2.0, ()), entry(0, 4.0, ())]  # 3 in the mean
    assert inactive([*gradients, entry(0.0299, 0)]) == {"conv1": pytest.approx(0.0299 / 3)}
    assert inactive([*gradients, entry(0.0301, 0)]) == {} and ACTIVE == 0.01
    assert inactive([*gradients, entry(0.0299, 0), entry(0.5, 0)]) == {}
    assert inactive([*gradients, entry(0.0, 0)]) == {"conv1": 0}
    assert inactive([entry(1e-9, 0)]) == {}  # nothing to hold it against
    assert inactive(gradients) == {}


def metrics(student: Student, letters: str, **changes: Any) -> list[dict[str, Any]]:
    """Rows as `fit` writes them."""
    rows = []
    for i, letter in enumerate(letters):
        learner = student.learn(letter, (2 * i, 2 * i + 1), **changes)
        updates = {n: u for n, u in learner.rows().items() if n in ("conv1", "conv2")}
        rows.append({"updates": updates, "stdp_layers": learner.layers})
    return rows


@pytest.mark.parametrize("letters", ["GS", "GM", "GGSGGM"])
def test_inactive_flags_tiny_steps_and_not_the_default(letters: str) -> None:
    assert inactive(metrics(Student(plain()), letters, lr=STDP().lr)) == {}
    found = inactive(metrics(Student(plain()), letters, lr=1e-6))
    assert found.keys() == {"conv1", "conv2"} and all(0 < share < 1e-3 for share in found.values())
    assert inactive(metrics(Student(plain()), letters, lr=0.0)) == {"conv1": 0, "conv2": 0}


def test_epochs_of_s_have_no_gradient_in_float32() -> None:
    """Else `inactive` takes their 1e-7 into the mean of the gradient epochs."""
    student = Student(plain().float())
    learner = student.learner("S", lr=0.5)
    for seed in range(20):
        x, labels = batch(seed)
        learner.iterate(x.float(), labels, STEPS, functional.cross_entropy)
    assert [learner.rows()[n]["gradient"] for n in ("conv1", "conv2")] == [0, 0]
