"""Circuits trained through their integers: the forward pass is what is exported, and Dale's law holds on the way."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_divide import exact, no_data, tuning  # noqa: F401
from test_ei_recipes import compared
from test_fit import contents, train

from eiexport import divide, graph, quantise
from eiexport.calibrate import choose
from eiexport.circuits import IntCircuit
from eiexport.errors import GraphError
from eitrain import data, fit, recipes, runs
from eitrain.fit import Fitting
from eitrain.integer import IntegerNet
from eitrain.runs import Run
from targets import base
from targets.observe import observe


@pytest.fixture(scope="module")
def frozen(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("frozen") / "run"
    train(out, tuning("frozen"), start_from=exact)
    return out


@pytest.fixture(scope="module")
def whole(frozen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out, whole_recipe(), start_from=frozen)
    return out


def whole_recipe() -> recipes.Recipe:
    return replace(recipes.fine_tuning(tuning("frozen"), from_weights=True), quantize=4, epochs=2, batches=2, lr=0.01)


@pytest.mark.parametrize("training", [False, True], ids=["evaluated", "with gradients"])
def test_training_runs_the_exported_integers(whole: Path, training: bool) -> None:
    """u, v and z of every neuron, and the readout's sums."""
    dataset = data.load("digits")
    net, _ = fit.load_model(Run(whole), "best", dataset)
    assert isinstance(net, IntegerNet) and net.plan == Run(whole).plan(4)
    x = net.plan.encode(fit.encode(whole_recipe(), dataset.test, np.arange(10)).astype(np.float64))
    network_ = graph.check(
        quantise.apply(graph.check(divide.fold(net.net.graph())), net.plan), alphabet=net.plan.alphabet
    )
    wanted = base.get("reference")().compile(network_).run(x, probe=True)
    record: dict[str, torch.Tensor] = {}
    states: dict[str, dict[str, torch.Tensor]] = {}
    with torch.set_grad_enabled(training):
        net.run(torch.from_numpy(np.swapaxes(x, 0, 1).copy()), None, record, states)
    assert wanted.z.keys() == record.keys() == {"neuron1", "neuron2", "neuron3", "readout1"}
    for name, z in wanted.z.items():
        ours = record[name].detach().transpose(0, 1).numpy()
        assert ours.shape == z.shape and np.array_equal(ours, z) and z.any(), name
        assert record[name].requires_grad == training
    for kind, rows in wanted.states.items():
        for name, a in rows.items():
            assert np.array_equal(states[kind][name].detach().transpose(0, 1).numpy(), a), (kind, name)


def test_gradients_reach_every_matrix(whole: Path) -> None:
    """All but g_I, which a frozen denominator replaces, and the readout's gains; in size and direction the float's."""
    dataset = data.load("digits")
    recipe = replace(whole_recipe(), quantize=8)
    net = fit.load_model(Run(whole), "best", dataset)[0].net.train()
    before = graph.check(divide.fold(net.graph()))
    x = fit.encode(recipe, dataset.train, np.arange(48))
    integer = IntegerNet(net, choose(before, observe(before, [x]), 8))
    moved, labels = torch.from_numpy(np.swapaxes(x, 0, 1).copy()), torch.from_numpy(dataset.train.labels[:48])
    found = []
    for model in (net, integer):
        net.zero_grad()
        torch.nn.functional.cross_entropy(model(moved).float(), labels).backward()
        found.append({n: p.grad.double().flatten() for n, p in net.named_parameters() if p.grad is not None})
    hidden = {f"circuit{i}.{k}" for i in (1, 2, 3) for k in ("w_ee", "w_ie", "w_ei", "g_e", "b_e")}
    assert found[0].keys() == found[1].keys() == hidden | {f"readout1.{k}" for k in ("w_ee", "w_ie", "w_ei")}
    for name, wanted in found[0].items():
        ours = found[1][name]
        # folded, W_EI's gradient is not divided by its fan-in
        assert torch.isfinite(ours).all() and ours.any(), name
        assert torch.nn.functional.cosine_similarity(ours, wanted, 0) > 0.8, name


def test_dale_holds_through_training_in_integers(frozen: Path, whole: Path) -> None:
    before, after = (runs.load(p / "last.safetensors")[0] for p in (frozen, whole))
    idle = {"denominator", "g_i"}
    for key, value in after.items():
        still = key.rpartition(".")[2] in idle or key in ("readout1.g_e", "readout1.b_e")
        assert key.endswith("b_e") or value.min() >= 0
        assert torch.equal(value, before[key]) == still, key
    again = Fitting(replace(whole_recipe(), epochs=3), whole, device="cpu", resume=True)
    assert again.first == 2 and again.module.plan == Run(whole).plan(4)


def test_resumed_in_integers(frozen: Path, whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", replace(whole_recipe(), epochs=1), start_from=frozen)
    train(tmp_path / "run", whole_recipe(), resume=True)
    mine, theirs = contents(tmp_path / "run"), contents(whole)
    assert mine["metrics"] == theirs["metrics"] and mine["resume"] == theirs["resume"]


def test_export_of_a_run_in_integers(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compared(whole, tmp_path / "out", monkeypatch, "torch", "loihi", samples=20)
    rows = {r.name: r.status for r in (found.reference, *found.rows)}
    assert rows == {"reference": "equal", "trained": "equal", "torch": "equal", "loihi": "equal"}


@pytest.mark.parametrize("form", ["exact", "table"])
def test_export_quantises_circuits(form: str, exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """From a trained run: the minimum over a sample cannot go, a form of the division can."""
    with pytest.raises(GraphError, match=r"'circuit1' fills zeros by a minimum .* --divide"):
        compared(exact, tmp_path / "no", monkeypatch, "torch", quantize=8)
    out = tmp_path / "out"
    found = compared(exact, out, monkeypatch, "torch", "loihi", samples=20, quantize=8, divide=form)
    assert {r.name: r.status for r in found.rows} == {
        "torch": "equal",
        "loihi": "equal",
    } and found.float_row.status == "equal"
    nodes = graph.read(out / "model.nir").nodes
    assert {n for n, node in nodes.items() if isinstance(node, IntCircuit)} == {"circuit1", "circuit2", "circuit3"}
    assert found.division.form == form and found.quantisation.layers.keys() == {
        "neuron1",
        "neuron2",
        "neuron3",
        "readout1",
    }
    for layer in found.quantisation.layers.values():
        assert layer.snr_db > 20 and layer.alone_decisions is not None and not layer.clipped > 0.2


def test_two_processes_train_circuits(tmp_path: Path) -> None:
    """The readout's gains and bias get no gradient, for which several processes would wait at the second step."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "eitrain.cli", "fit"]
    given = ("deepei-digits", "--set", "width=8", "--set", "batches=3", "--epochs", "1", "--set", "warmup=0")
    command = [*torchrun, *given, "--device", "cpu", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("best: test accuracy") == 1
