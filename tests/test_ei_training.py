"""Training of DeepEISNN's circuits: E-I Init, E-I Prop, projection, and runs that keep all of it, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_fit import Crash, contents, rows, same, train, weights
from torch import Tensor, nn

from eitrain import fit, runs
from eitrain.architectures import CIRCUITS, LIF, ei_network
from eitrain.cells import Cell, sigmoid
from eitrain.circuits import TINY, Circuit, Prop
from eitrain.errors import TrainError
from eitrain.fit import Fitting
from eitrain.learning import Learner
from eitrain.nets import SpikingNet
from eitrain.recipes import RECIPES, adjust
from eitrain.runs import Run

TABLE = {"lr": 0.1, "start_lr": 1e-3, "warmup": 2, "cosine": 6, "epochs": 6, "batches": 2}
QUICK = replace(RECIPES["deepei-digits"], width=8, batch=48, steps=2, epochs=2, cosine=3, batches=3)
BERNOULLI = np.random.default_rng(1).random((4000, 512)) < 0.2
MATRICES, GAINS = ("w_ee", "w_ie", "w_ei"), ("g_i", "g_e", "b_e")


def spikes(*shape: int, p: float = 0.3, seed: int = 0) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < p).float()


def circuit(inputs: int, cells: int, *, seed: int = 0, **options: Any) -> Circuit:
    torch.manual_seed(seed)
    return Circuit(inputs, cells, **options)


def net_of(architecture: str = "vgg5", shape: tuple[int, ...] = (1, 8, 8)) -> SpikingNet:
    torch.manual_seed(0)
    return ei_network(architecture, shape, 10, width=8)


def published(x: Any, fan_in: int) -> tuple[float, float]:
    """(scale, g_I) of E-I Init, section 3 of the paper: rows are the first axis, all others positions."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    e, q = x.mean(), (x * x).mean()
    r = (((x - x.mean(0)) ** 2).sum(0) / (len(x) - 1)).mean()
    return float(np.sqrt(r / (fan_in * (q + r)))), float(np.sqrt(q + r) / (np.sqrt(fan_in) * e))


def inputs(net: SpikingNet, x: Tensor, steps: int) -> dict[str, Tensor]:
    """What enters each circuit, rows of (step, sample)."""
    seen: dict[str, Tensor] = {}
    hooks = [c.register_forward_pre_hook(lambda c, a, n=n: seen.update({n: a[0]})) for n, c in net.circuits.items()]
    with torch.no_grad():
        net(x, steps)
    for hook in hooks:
        hook.remove()
    return seen


# --- E-I Init


def test_init_values_of_bernoulli_spikes() -> None:
    """E3: p = 0.2, d = 512: scale 0.0294628, g_I 0.132583, within what 4000 rows of it leave open."""
    c = circuit(512, 256)
    assert c.initialise(torch.from_numpy(BERNOULLI)) is True
    scale, gain = published(BERNOULLI, 512)
    assert scale == pytest.approx(0.0294628, rel=3e-3) and gain == pytest.approx(0.132583, rel=3e-3)
    np.testing.assert_allclose(c.g_i.detach(), gain, rtol=1e-6)
    assert c.w_ei.unique().tolist() == [1 / 64] and c.g_e.unique().tolist() == [1] and not c.b_e.any()
    for w in (c.w_ee, c.w_ie):
        a = w.detach().double().numpy().ravel() / scale
        assert a.min() >= 0 and a.mean() == pytest.approx(1, rel=0.02)
        assert a.std() == pytest.approx(1, rel=0.03)  # an exponential's, and its quantiles
        np.testing.assert_allclose(np.quantile(a, [0.1, 0.5, 0.9]), -np.log([0.9, 0.5, 0.1]), rtol=0.04)
    assert not torch.equal(c.w_ee[:64], c.w_ie)


def test_init_values_of_four_rows() -> None:
    """E3: E = Q = 0.5625, and R = 0.2708333, the unbiased variance over rows: not Q - E^2, nor the biased one."""
    x = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1]])
    assert published(x, 4) == pytest.approx((0.285044, 0.811441), rel=1e-5)
    c, drawn = circuit(4, 400), {}
    for name, batch in (("four", x), ("other", BERNOULLI[:50, :4])):
        torch.manual_seed(3)
        assert c.initialise(torch.as_tensor(batch)) and published(batch, 4)[1] == pytest.approx(c.g_i[0].item())
        drawn[name] = c.w_ee.detach().double().numpy().copy(), published(batch, 4)[0]
    (four, scale), (other, unlike) = drawn.values()
    assert four.mean() == pytest.approx(0.285044, rel=0.05) and abs(scale / unlike - 1) > 0.02
    np.testing.assert_allclose(four / other, scale / unlike, rtol=1e-5)  # the same draws of a seed, times the scale


def test_init_of_maps_counts_kernel_and_positions() -> None:
    """d = C k k; a position is a pixel of a channel, whose mean over rows is its own."""
    x = spikes(6, 3, 5, 4) * torch.arange(1.0, 61).view(3, 5, 4)
    c = circuit(3, 800, kernel=3)
    c.initialise(x)
    scale, gain = published(x, 27)
    np.testing.assert_allclose(c.g_i.detach(), gain, rtol=1e-5)
    assert float(c.w_ie.detach().double().mean()) == pytest.approx(scale, rel=0.03)


def test_statistics_at_init() -> None:
    """E4, over 4000 rows: balance of E and I, D of the size of N's deviation, and I's deviation below 1."""
    x = torch.from_numpy(BERNOULLI).float()
    c = circuit(512, 256, seed=1)
    c.initialise(x)
    p = {k: v.detach().double().numpy() for k, v in c.named_parameters()}
    excited, s = BERNOULLI @ p["w_ee"].T, BERNOULLI @ p["w_ie"].T
    taken, below = s @ p["w_ei"].T, (s * p["g_i"]) @ p["w_ei"].T
    assert excited.mean() == pytest.approx(3.01, rel=0.03) and abs(excited.mean() - taken.mean()) < 0.06
    assert excited.std() == pytest.approx(0.4, rel=0.02) and below.mean() == pytest.approx(excited.std(), rel=0.02)
    assert below.std() / below.mean() == pytest.approx(0.089, abs=0.01)
    with torch.no_grad():
        current = c(x).double().numpy()
    np.testing.assert_allclose(current, (excited - taken) / below, rtol=1e-3, atol=1e-4)
    assert current.std() == pytest.approx(np.sqrt(1 / 1.8), rel=0.03) and abs(current.mean()) < 0.1


@pytest.mark.parametrize("architecture", ["vgg5", "resnet18"])
def test_every_layer_starts_from_what_the_ones_before_it_send(architecture: str) -> None:
    net = net_of(architecture)
    x = torch.rand(1, 12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert net.initialise(x, 4) == []
    found = inputs(net, x, 4)
    assert found.keys() == net.circuits.keys() and len({float(c.g_i[0]) for c in net.circuits.values()}) == len(found)
    for name, c in net.circuits.items():
        seen = found[name]
        if len(seen) == 12:  # an image is shown at every step
            seen = seen.repeat(4, *[1] * (seen.ndim - 1))
        assert len(seen) == 48 and seen.min() >= 0
        np.testing.assert_allclose(c.g_i.detach(), published(seen, c.w_ee[0].numel())[1], rtol=1e-5, err_msg=name)


def test_copies_are_rows() -> None:
    """A static image at T steps is the batch written out T times."""
    x = torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    few, many, once = (circuit(2, 8, kernel=3) for _ in range(3))
    for c, rows_, copies in ((few, x, 6), (many, x.repeat(6, 1, 1, 1), 1), (once, x, 1)):
        torch.manual_seed(3)
        assert c.initialise(rows_, copies)
    for key, p in few.named_parameters():
        torch.testing.assert_close(p, dict(many.named_parameters())[key], rtol=1e-6, atol=0)
    assert not torch.allclose(few.g_i, once.g_i, rtol=1e-3)  # whose variance has another divisor
    nets = [net_of(), net_of()]
    for net, given in zip(nets, (x[None, :, :1], x[None, :, :1].repeat(6, 1, 1, 1, 1)), strict=True):
        torch.manual_seed(3)
        assert net.initialise(given.repeat(1, 1, 1, 2, 2), 6) == []
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=0)


@pytest.mark.parametrize("x", [torch.zeros(8, 20), torch.ones(8, 20), spikes(1, 20)], ids=["silent", "same", "one row"])
def test_a_batch_that_tells_nothing(x: Tensor) -> None:
    """It starts as for spikes of probability 0.1, in numbers."""
    c = circuit(20, 4000)
    assert c.initialise(x) is False
    assert all(torch.isfinite(p).all() for p in c.parameters()) and c.w_ee.min() >= 0
    np.testing.assert_allclose(c.g_i.detach(), np.sqrt(1.9 / (20 * 0.1)), rtol=1e-6)
    assert float(c.w_ee.detach().double().mean()) == pytest.approx(np.sqrt(0.9 / (20 * 1.9)), rel=0.02)


def test_layers_without_a_start_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, level = fit.prepare, 0.5
    monkeypatch.setattr(fit, "prepare", lambda *a, **k: torch.full_like(prepare(*a, **k), level))
    (note,) = Fitting(QUICK, tmp_path / "same", device="cpu").notes
    assert note.startswith("E-I Init: circuit1") and "circuit2" not in note
    level = 0.0
    fitting = Fitting(replace(QUICK, epochs=1, warmup=0), tmp_path / "silent", device="cpu")
    (note,) = fitting.notes
    assert "circuit1, circuit2, circuit3, readout1" in note and "0.1" in note
    (row,) = fitting.epochs()
    assert np.isfinite(row["train_loss"]) and row["silent"] == ["neuron1", "neuron2", "neuron3"]
    assert all(torch.isfinite(w).all() for w in weights(tmp_path / "silent").values())


def test_without_init_weights_are_those_of_torch_projected(tmp_path: Path) -> None:
    found = {on: Fitting(replace(QUICK, ei_init=on), tmp_path / str(on), device="cpu").net for on in (True, False)}
    torch.manual_seed(QUICK.seed)
    drawn = [nn.init.kaiming_uniform_(torch.empty(s), a=np.sqrt(5)) for s in ((8, 1, 3, 3), (2, 1, 3, 3), (8, 2, 1, 1))]
    first, started = (found[on].circuits["circuit1"] for on in (False, True))
    for key, u in zip(MATRICES, drawn, strict=True):
        assert torch.equal(getattr(first, key), u.clamp(min=0)) and not torch.equal(getattr(started, key), u)
    assert all(c.g_i.unique().tolist() == [1] and not c.b_e.any() for c in found[False].circuits.values())
    assert started.w_ei.unique().tolist() == [0.5] and float(started.g_i[0]) != 1


# --- E-I Prop


def grads(c: Circuit, x: Tensor, loss: Any = torch.sum) -> tuple[Tensor, dict[str, Tensor]]:
    c.zero_grad()
    y = c(x)
    loss(y).backward()
    return y.detach(), {k: p.grad.clone() for k, p in c.named_parameters() if p.grad is not None}


def zeros_in_d(**prop: bool) -> Circuit:
    """E-2 of the sheet."""
    c = circuit(2, 8, prop=Prop(**prop))
    spread = [[1, 0], [0, 1], [0.5, 0.5], [2, 0], [0, 0], [1, 1], [0.25, 0], [0, 2]]
    given = {"w_ee": torch.full((8, 2), 0.5), "w_ie": [[0.4, 0], [0, 0.2]], "w_ei": spread, "g_i": [0.5, 1]}
    with torch.no_grad():
        for key, value in given.items():
            getattr(c, key).copy_(torch.as_tensor(value))
    return c


def test_worked_example_in_training() -> None:
    """E-2, and each of its switches: what changes, and that nothing else does."""
    x = torch.tensor([[1.0, 0]])
    y, full = grads(zeros_in_d(), x)
    torch.testing.assert_close(y[0], torch.tensor([0.5, 10, 3, -0.75, 10, 0.5, 8, 10]))
    column = torch.tensor([-1.25, -24, -5, -0.3125, -24, -1.25, -20, -24])
    torch.testing.assert_close(full["w_ei"], torch.stack([column, torch.zeros(8)], 1))
    torch.testing.assert_close(full["g_i"], torch.tensor([-22.5, 0.0]))

    again, unscaled = grads(zeros_in_d(scaled=False), x)
    assert torch.equal(again, y) and torch.equal(unscaled["w_ei"], 2 * full["w_ei"])
    assert all(torch.equal(unscaled[k], full[k]) for k in full if k != "w_ei")

    # N / D^2 of the three filled places, 200 each, goes to cell 6, whose D they took: (8 + (160 + 600) 0.2) / 2
    again, donated = grads(zeros_in_d(straight_through=False), x)
    column = torch.tensor([-1.25, -4, -5, -0.3125, -4, -1.25, -80, -4])
    torch.testing.assert_close(donated["w_ei"], torch.stack([column, torch.zeros(8)], 1))
    assert torch.equal(again, y) and all(torch.equal(donated[k], full[k]) for k in ("w_ee", "g_e", "b_e"))

    # N / 1e-6 at the zeros, the rest as it was
    again, _ = grads(zeros_in_d(stabilise=False), x)
    kept = torch.tensor([True, False, True, True, False, True, True, False])
    assert torch.equal(again[:, kept], y[:, kept])
    torch.testing.assert_close(again[0, ~kept], torch.tensor([0.5, 0.5, 0.5]) / TINY, rtol=1e-5, atol=0)


@pytest.mark.parametrize("prop", [Prop(), Prop(straight_through=False), Prop(stabilise=False)], ids=str)
def test_silence_is_the_bias_and_trains_it_alone(prop: Prop) -> None:
    """E7."""
    for options, shape in (({}, (3, 6)), ({"kernel": 3}, (3, 6, 4, 4))):
        c = circuit(6, 8, prop=prop, **options)
        with torch.no_grad():
            c.b_e.copy_(torch.arange(8) / 4 - 1)
        y, found = grads(c, torch.zeros(shape))
        assert torch.equal(y, c.b_e.detach().view(-1, *[1] * (len(shape) - 2)).expand_as(y))
        assert all(torch.isfinite(g).all() for g in found.values()), found
        assert not any(found[k].any() for k in ("w_ee", "w_ie", "g_i")) and (found["b_e"] == y[:, 0].numel()).all()


@pytest.mark.parametrize("kernel, readout", [(0, False), (3, False), (0, True)])
def test_spread_learns_by_one_fan_in_th(kernel: int, readout: bool) -> None:
    """E10."""
    shape = (20, 5, 4, 4) if kernel else (20, 5)
    x, weight = spikes(*shape), torch.randn(9, generator=torch.Generator().manual_seed(4))
    loss = lambda y: (y.movedim(1, -1) * weight).square().sum()  # noqa: E731
    options: dict[str, Any] = {"kernel": kernel, "readout": readout}
    (a, plain), (b, scaled) = (grads(circuit(5, 9, prop=Prop(scaled=on), **options), x, loss) for on in (False, True))
    assert torch.equal(a, b) and plain["w_ei"].any()
    torch.testing.assert_close(scaled["w_ei"] * (45 if kernel else 5), plain["w_ei"], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(scaled[k], plain[k]) for k in plain if k != "w_ei")


def test_fields_of_a_recipe_reach_every_circuit() -> None:
    props = Prop(stabilise=False), Prop(straight_through=False), Prop(scaled=False)
    for field, prop in zip(("stabilise", "straight_through", "scale_gradients"), props, strict=True):
        net = adjust(QUICK, [f"{field}=false"]).net((1, 8, 8))
        assert len(net.circuits) == 4 and {c.prop for c in net.circuits.values()} == {prop}
    assert {c.prop for c in QUICK.net((1, 8, 8)).circuits.values()} == {Prop()}


# --- cells and networks


def test_inhibitory_cells_are_a_quarter() -> None:
    """E9."""
    found = {n: len(Circuit(3, n, readout=True).g_i) for n in (4, 7, 8, 10, 11, 100, 200)}
    assert found == {4: 1, 7: 1, 8: 2, 10: 2, 11: 2, 100: 25, 200: 50}
    for cells in (0, 1, 3):
        with pytest.raises(TrainError, match=f"a circuit of {cells} excitatory cells .* at least 4"):
            Circuit(3, cells)


def test_output_layer_ignores_gains_and_bias() -> None:
    """E8: logits to the bit; neither gradients nor a state in the optimiser."""
    net, x = net_of(), torch.rand(1, 6, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    net.initialise(x, 3)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=0.1)
    logits = net(x, 3)
    nn.functional.cross_entropy(logits, torch.arange(6)).backward()
    optimiser.step()
    readout, names = net.circuits["readout1"], [n for n, _ in net.named_parameters()]
    kept = {names[i] for i in optimiser.state_dict()["state"]}
    assert {n for n in names if n not in kept} == {f"readout1.{k}" for k in GAINS}
    with torch.no_grad():
        before = net(x, 3)
        for key, value in zip(GAINS, (7.0, 0.0, -3.0), strict=True):
            getattr(readout, key).fill_(value)
        assert torch.equal(net(x, 3), before) and not torch.equal(before, logits)
        readout.w_ei.mul_(2)
        assert not torch.equal(net(x, 3), before)


@pytest.mark.parametrize("architecture", CIRCUITS)
def test_circuits_are_all_there_is_to_train(architecture: str) -> None:
    """A4; the baseline has a norm for every circuit instead."""
    with torch.device("meta"):
        plain = ei_network(architecture, (3, 32, 32), 10)
        baseline = ei_network(architecture, (3, 32, 32), 10, batchnorm=True)
    assert {type(m) for m in plain.children()} == {Circuit, Cell, nn.AvgPool2d, nn.Flatten}
    assert {n.rpartition(".")[2] for n, _ in plain.named_parameters()} == {*MATRICES, *GAINS}
    assert not list(plain.buffers())
    norms = [m for m in baseline.children() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len(plain.circuits) - 1 == len(plain.cells) and not baseline.circuits


def test_shortcuts_join_behind_the_neuron() -> None:
    """A5: whole numbers above 1 run between blocks, and no pool or norm is in their way."""
    net = net_of("resnet18", (1, 16, 16))
    x = torch.rand(1, 4, 1, 16, 16, generator=torch.Generator().manual_seed(6))
    net.initialise(x, 4)
    spikes_, found = {}, inputs(net, x, 4)
    with torch.no_grad():
        net(x, 4, spikes_)
    summed = {n: net.sources[n] for n in net.circuits if len(net.sources[n]) > 1}
    assert all(isinstance(net.get_submodule(s), Cell) for came in summed.values() for s in came)
    # of each stage its second block, and of the later ones the first block and its shortcut
    assert [len(came) for came in summed.values()] == [2, *[3, 3, 2] * 3] and len(net.sources["pool1"]) == 3
    highest = []
    for name, came in summed.items():
        total = torch.stack([spikes_[s].flatten(0, 1) for s in came]).sum(0)
        assert torch.equal(found[name], total) and set(total.unique().tolist()) <= {0, 1, 2, 3}
        highest.append(float(total.max()))
    assert max(highest) == 3


def test_gradients_do_not_go_through_the_reset() -> None:
    """N5: V1 = I0 / 2 - S0 / 2 + I1, of which dV1 / dI0 = 1 / 2, whatever S0 depends on; alpha = 4."""
    (cell,) = (c for n, c in net_of().cells.items() if n == "neuron1")
    assert {k: getattr(cell.p, k) for k in LIF} == LIF
    current = torch.tensor([[[2.6, 0.6, 0.9]], [[0.1, 0.8, 0.4]]], requires_grad=True)
    z = cell.over_time(current)
    assert z[:, 0].tolist() == [[1, 0, 0], [0, 1, 0]]
    z[1].sum().backward()
    charged = torch.tensor([0.5 * 1.6 + 0.1, 0.5 * 0.6 + 0.8, 0.5 * 0.9 + 0.4])
    s = torch.sigmoid(4 * (charged - 1))
    assert current.grad is not None
    torch.testing.assert_close(current.grad[1, 0], 4 * s * (1 - s))
    torch.testing.assert_close(current.grad[0, 0], 2 * s * (1 - s))
    torch.testing.assert_close(sigmoid(torch.tensor([-0.4])), torch.tensor([0.559055]))


# --- projection


def test_projection_after_a_huge_step() -> None:
    """E5 and E-4: two steps of SGD by hand; the momentum is not projected, and the bias not bounded."""
    net, x = net_of(), torch.rand(1, 8, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    net.initialise(x, 3)
    rate, decay, momentum = 9.0, 5e-4, 0.9
    optimiser = torch.optim.SGD(net.parameters(), rate, momentum, weight_decay=decay)
    labels = torch.arange(8)
    phase = QUICK.phases.phase_at(0)
    learner = Learner(net, net, optimiser, phase, QUICK.stdp(), (), lambda loss: loss.backward(), lambda t, how: t)
    buffers: dict[str, Tensor] = {}
    for _ in range(2):
        before = {k: p.detach().clone() for k, p in net.named_parameters()}
        learner.iterate(x, labels, 3, nn.functional.cross_entropy)
        for key, p in net.named_parameters():
            if p.grad is None:
                assert key.startswith("readout1.") and torch.equal(p, before[key])
                continue
            asked = p.grad + decay * before[key]
            buffers[key] = momentum * buffers[key] + asked if key in buffers else asked
            moved = before[key] - rate * buffers[key]
            torch.testing.assert_close(p.detach(), moved if key.endswith("b_e") else moved.clamp(min=0))
            torch.testing.assert_close(optimiser.state[p]["momentum_buffer"], buffers[key])
            assert key.endswith("b_e") or float(p.min()) >= 0
    bias = torch.cat([c.b_e for c in net.circuits.values()])
    some = torch.cat([p.flatten() for n, p in net.named_parameters() if not n.endswith("b_e")])
    assert bias.min() < 0 and 0.1 < float((some == 0).float().mean()) < 1
    stopped = net.circuits["circuit1"].w_ee
    assert (optimiser.state[stopped]["momentum_buffer"][stopped == 0] > 0).any()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    train(out, QUICK)
    assert len({r["train_loss"] for r in rows(out)}) == 2 and rows(out)[-1]["silent"] == []
    return out


def test_projection_after_a_load(plain: Path, tmp_path: Path) -> None:
    """E5: what a file holds may break Dale's law; biases stay as they are."""
    tensors, meta = runs.load(plain / "best.safetensors")
    net = QUICK.net((1, 8, 8))
    runs.load_weights(net, tensors, plain)
    assert all(torch.equal(tensors[k], v) for k, v in net.state_dict().items())  # which changes no lawful weight
    broken = {k: v * (1 - 2 * (torch.arange(v.numel()).view(v.shape) % 2)) for k, v in tensors.items()}
    runs.load_weights(net, broken, plain)
    for key, value in net.state_dict().items():
        expected = broken[key] if key.endswith("b_e") else broken[key].clamp(min=0)
        assert torch.equal(value, expected) and ((broken[key] < 0).any() or not tensors[key].any()), key
    run = tmp_path / "run"
    train(run, replace(QUICK, epochs=1))
    stored, meta = runs.load(run / "resume.safetensors")
    runs.save(run / "resume.safetensors", stored | broken, meta)
    runs.save(run / "best.safetensors", broken, meta)
    for fitting in (
        Fitting(QUICK, run, device="cpu", resume=True),
        Fitting(QUICK, tmp_path / "tuned", device="cpu", start_from=run),
    ):
        least = {k: float(v.min()) for k, v in fitting.net.state_dict().items()}
        assert all(v >= 0 for k, v in least.items() if not k.endswith("b_e")) and least["circuit1.b_e"] < 0


def test_a_checkpoint_against_dales_law_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(SpikingNet, "project", lambda self: None)
        fitting = Fitting(replace(QUICK, lr=1.0, warmup=0), out, device="cpu")
        with pytest.raises(TrainError, match=r"^epoch 1: (circuit|readout)\d\.\w+ holds -.*Dale's law$"):
            next(fitting.epochs())
    assert {p.name for p in out.iterdir()} == {"config.json"}


# --- the learning rate


BY_HAND = [0.001, 0.02575, 0.0505, 0.07525]  # a straight line from 0.001 at 0 to 0.1 at 2 epochs, every half epoch
# then 0.1 (1 + cos) / 2 of 0, 22.5, ... 157.5 degrees
BY_HAND += [0.1, 0.0961939766, 0.0853553391, 0.0691341716, 0.05, 0.0308658284, 0.0146446609, 0.0038060234]


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The optimiser's rate at every iteration."""
    found: list[float] = []
    iterate = Learner.iterate

    def watched(self: Learner, *args: Any) -> Tensor:
        found.append(self.optimiser.param_groups[0]["lr"])
        return iterate(self, *args)

    monkeypatch.setattr(Learner, "iterate", watched)
    yield found


def test_warm_up_and_cosine_by_iteration(tmp_path: Path, rates: list[float]) -> None:
    recipe = replace(QUICK, width=4, **TABLE)
    train(tmp_path / "whole", recipe)
    np.testing.assert_allclose(rates, BY_HAND, rtol=1e-8)
    assert [r["lr"] for r in rows(tmp_path / "whole")] == [recipe.lr_at(e) for e in range(6)] == rates[::2]
    assert recipe.lr_at(6) == pytest.approx(0, abs=1e-17)
    rates.clear()
    train(tmp_path / "run", replace(recipe, epochs=3))
    train(tmp_path / "run", recipe, resume=True)
    np.testing.assert_allclose(rates, BY_HAND, rtol=1e-8)
    same(tmp_path / "run", tmp_path / "whole")


# --- runs


def test_a_seed_gives_the_same_run(plain: Path, tmp_path: Path) -> None:
    train(tmp_path / "again", QUICK)
    same(tmp_path / "again", plain)
    train(tmp_path / "other", replace(QUICK, seed=1))
    ours, theirs = weights(tmp_path / "other"), weights(plain)
    assert all(not torch.equal(ours[k], theirs[k]) for k in ours if k not in ("readout1.g_e", "readout1.b_e"))


def test_resumed_is_uninterrupted(plain: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", replace(QUICK, epochs=1))
    assert [row["epoch"] for row in train(tmp_path / "run", QUICK, resume=True)] == [1]
    same(tmp_path / "run", plain)
    momenta = {k for k in contents(plain)["resume"][1] if k.startswith("optimiser.")}
    wanted = {f"optimiser.{k}.momentum_buffer" for k in weights(plain)} - {
        f"optimiser.readout1.{k}.momentum_buffer" for k in GAINS
    }
    assert momenta == wanted


@pytest.mark.parametrize("at", range(7))  # the second epoch improves on nothing
def test_crash_between_any_two_files(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    left = at
    save, write = runs.save, Run.write_metrics

    def unless_crashed(function: Any) -> Any:
        def wrapped(*args: Any) -> None:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            function(*args)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(runs, "save", unless_crashed(save))
        patched.setattr(Run, "write_metrics", unless_crashed(write))
        with pytest.raises(Crash):
            train(tmp_path / "run", QUICK)
    train(tmp_path / "run", QUICK, resume=True)
    same(tmp_path / "run", plain)
