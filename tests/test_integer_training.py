"""Quantisation-aware training: its forward pass is the integer network, and what is trained is what is exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import EXPORT, FIT, QUICK, invoke, no_data, refused, tree  # noqa: F401
from test_fit import contents
from torch import Tensor

from eiexport import graph
from eiexport.ops import NumpyOps
from eitrain import data, fit, recipes, runs
from eitrain.fit import Fitting
from eitrain.integer import IntegerNet, StraightThroughOps
from eitrain.runs import Run
from targets import base

BITS = 4
TUNED = replace(QUICK, epochs=2, quantize=BITS, lr=0.003)
BOTH = replace(QUICK, architecture="8C3-P2-20-10", steps=6)  # a gated layer, two plain ones


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("float") / "run"
    list(Fitting(QUICK, out, device="cpu").epochs())
    return out


@pytest.fixture(scope="module")
def tuned(floats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    list(Fitting(TUNED, out, device="cpu", start_from=floats).epochs())
    return out


@pytest.fixture(scope="module")
def loaded(tuned: Path) -> tuple[IntegerNet, np.ndarray, np.ndarray]:
    """(network, float input (time, sample, ...), labels)."""
    dataset = data.load("digits", None, steps=QUICK.steps)
    net, _ = fit.load_model(Run(tuned), "best", dataset)
    assert isinstance(net, IntegerNet)
    x = fit.encode(QUICK, dataset.test, np.arange(12))
    return net, np.swapaxes(x, 0, 1), dataset.test.labels[:12]


@pytest.mark.parametrize("training", [False, True], ids=["evaluated", "with gradients"])
@pytest.mark.parametrize("target", ["reference", "loihi"])
def test_the_forward_pass_is_the_integer_network(loaded: Any, training: bool, target: str) -> None:
    """u, v and z of every neuron, against the graph that is exported."""
    net, x, _ = loaded
    whole = net.plan.encode(x.astype(np.float64))
    network = graph.check(net.network.graph, alphabet=net.plan.alphabet)
    expected = base.get(target)().compile(network).run(np.swapaxes(whole, 0, 1), probe=True)
    record: dict[str, Tensor] = {}
    states: dict[str, dict[str, Tensor]] = {}
    with torch.set_grad_enabled(training):
        net.run(torch.from_numpy(whole), None, record, states)
    assert expected.z.keys() == record.keys() and {"u", "v"} == states.keys()
    for name, z in expected.z.items():
        found = {"z": record[name], "u": states["u"][name], "v": states["v"][name]}
        for kind, a in (("z", z), ("u", expected.states["u"][name]), ("v", expected.states["v"][name])):
            ours = found[kind].detach().transpose(0, 1).numpy()
            assert ours.shape == a.shape and np.array_equal(ours, a), (name, kind)
            assert a.any(), (name, kind)
    assert record["neuron1"].requires_grad == training


def test_every_parameter_learns(loaded: Any) -> None:
    net, x, labels = loaded
    scores = net(torch.from_numpy(x))
    net.zero_grad()
    torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels).long()).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), name


def test_gradients_are_those_of_the_float_network_up_to_rounding() -> None:
    """With 8 bits and few changed spikes, both gradients point the same way, and are of one size."""
    from eiexport.calibrate import choose
    from targets.observe import observe

    torch.manual_seed(1)
    dataset = data.load("digits", None, steps=BOTH.steps)
    net = BOTH.net(dataset.shape)
    x = fit.encode(BOTH, dataset.train, np.arange(40))
    network = graph.check(net.graph())
    integer = IntegerNet(net, choose(network, observe(network, [x]), 8))
    moved, labels = torch.from_numpy(np.swapaxes(x, 0, 1).copy()), torch.from_numpy(dataset.train.labels[:40]).long()
    found = []
    for model in (net, integer):
        net.zero_grad()
        torch.nn.functional.mse_loss(model(moved).float(), torch.nn.functional.one_hot(labels, 10).float()).backward()
        found.append({n: p.grad.double().flatten() for n, p in net.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        ours = found[1][name]
        assert torch.nn.functional.cosine_similarity(ours, expected, 0) > 0.8, name
        assert 0.7 < float(ours.norm() / expected.norm()) < 1.4, name


def test_straight_through_operations() -> None:
    """Values are those of NumPy; slopes are the shift's, one, or the table's."""
    ops, exact = StraightThroughOps("cpu", None), NumpyOps()
    values = np.array([-(2.0**23) - 5, -4097, -65, -64, -63, -1, 0, 1, 63, 64, 4097, 2.0**23 + 5])
    for name, arguments, slope in (
        ("shift_floor", (6,), 2.0**-6),
        ("shift_floor", (-6,), 2.0**6),
        ("shift_zero", (12,), 2.0**-12),
        ("wrap", (24,), 1.0),
        ("modulo", (24,), 1.0),
    ):
        x = torch.tensor(values, requires_grad=True)
        y = getattr(ops, name)(x, *arguments)
        assert np.array_equal(y.detach().numpy(), getattr(exact, name)(values, *arguments)), name
        y.sum().backward()
        assert x.grad is not None and (x.grad == slope).all(), name
    table = np.array([0.0, 1, 4, 9])
    x = torch.tensor([0.0, 1, 3], dtype=torch.float64, requires_grad=True)
    y = ops.table(x, torch.tensor(table))
    assert y.tolist() == [0, 1, 9]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 2, 5]


def test_float32_is_used_only_where_it_is_exact() -> None:
    ops = StraightThroughOps("cpu", None)
    x = torch.tensor([[2.0**12, 1.0]], dtype=torch.float64)
    for weight, narrow in (([[2.0**12 - 1, 1.0]], True), ([[2.0**12, 1.0]], False)):
        y = ops.linear(x, torch.tensor(weight, dtype=torch.float64), None)
        assert float(y) == weight[0][0] * 2.0**12 + 1, narrow


def test_the_export_has_the_very_weights(tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    invoke(EXPORT, tuned, "--samples", 20, "--target", "torch", "--target", "loihi", "--out", out)
    report = json.loads((out / "report.json").read_text())
    assert report["targets"]["trained"]["status"] == "equal"  # the training code's own forward pass
    assert {r["status"] for r in report["targets"].values()} == {"equal"}
    plan = Run(tuned).plan(BITS)
    assert report["quantisation"]["plan"] == plan.to_json() and report["quantisation"]["calibrated_on"] == 0
    tensors, _ = runs.load(Run(tuned).checkpoint("best"))
    layer = plan.layers["neuron1"]
    weight = tensors["conv1.weight"].double().numpy() * plan.input_scale * 2.0**layer.exponent
    node = graph.read(out / "model.nir").nodes["conv1"]
    units = layer.connections["conv1"].units(weight)
    assert np.array_equal(np.ldexp(node.weight.astype(float), node.weight_exp), units) and units.any()


def test_trained_weights_moved(floats: Path, tuned: Path) -> None:
    before, after = (runs.load(Run(p).checkpoint("last"))[0] for p in (floats, tuned))
    assert all((before[k] != after[k]).any() for k in before)


def test_resumed_is_uninterrupted(floats: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    list(Fitting(replace(TUNED, epochs=1), out, device="cpu", start_from=floats).epochs())
    list(Fitting(TUNED, out, device="cpu", resume=True).epochs())
    mine, theirs = contents(out), contents(tuned)
    assert mine["metrics"] == theirs["metrics"] and mine["last"] == theirs["last"]
    assert (out / "plan.json").read_bytes() == (tuned / "plan.json").read_bytes()


def test_command_line(floats: Path, tmp_path: Path) -> None:
    out = tmp_path / "int"
    said = invoke(FIT, "fit", "--from", floats, "--quantize", BITS, "--epochs", 1, "--out", out).stdout
    config = json.loads((out / "config.json").read_text())["recipe"]
    # everything else is the float run's, with a tenth of its learning rate
    kept = {k: v for k, v in recipes.to_config(QUICK).items() if k not in ("lr", "quantize")}
    assert {k: config[k] for k in kept} == kept and config["lr"] == QUICK.lr / 10 and config["quantize"] == BITS
    accuracy = said.split("best: test accuracy ")[1].split(" %")[0]
    assert f"{accuracy} %" in invoke(FIT, "evaluate", out).stdout


def test_an_older_run_without_the_field_still_loads(floats: Path, tmp_path: Path) -> None:
    run = shutil.copytree(floats, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    del config["recipe"]["quantize"]
    (run / "config.json").write_text(json.dumps(config))
    assert Run(run).recipe() == QUICK


def test_refusals(floats: Path, tuned: Path, tmp_path: Path, refused: Callable[..., str]) -> None:  # noqa: F811
    out = tmp_path / "out"
    refused(FIT, "fit", "--quantize", 8, "--out", out, names=("--from RUN",))
    refused(FIT, "fit", "--from", floats, "--quantize", 3, "--out", out, names=("--quantize 3", "4 to 8"))
    refused(EXPORT, tuned, "--quantize", 8, "--out", out, names=("trained for 4 bits",))
    damaged = shutil.copytree(tuned, tmp_path / "run")
    (damaged / "plan.json").write_text("{}")
    refused(EXPORT, damaged, "--out", out, names=("plan.json", "train it again"))
    (damaged / "plan.json").unlink()
    refused(FIT, "evaluate", damaged, names=("plan.json", "missing"))
    assert tree(tmp_path)
