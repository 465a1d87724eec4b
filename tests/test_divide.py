"""The division on its way to a chip: its numbers against loops, folding, and runs trained with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from cases import chain
from circuit_cases import circuit_of
from test_cli import EXPORT, FIT, invoke, no_data, refused  # noqa: F401
from test_ei_recipes import compared
from test_ei_training import QUICK
from test_fit import train
from torch import Tensor

from eiexport import calibrate, divide, graph, quantise
from eiexport.alphabet import interval
from eiexport.circuits import EICircuit
from eiexport.divide import Denominators, Numbers
from eiexport.errors import GraphError
from eiexport.nodes import EIDiscreteLIF, lif
from eitrain import data, figures, fit, recipes, runs
from eitrain.circuits import Circuit
from eitrain.recipes import Recipe
from eitrain.runs import Run
from targets import base
from targets.denominators import Distance, denominators, distances
from targets.observe import observe

FORMS = ("frozen", "shift", "table")
T, RNG = 4, np.random.default_rng
COUNTS = interval(0, 4, True)


def linear(a: Any) -> nir.Linear:
    return nir.Linear(np.asarray(a, np.float64))


def first(zero: str = "sample_min", **fields: Any) -> EICircuit:
    """Six cells over five inputs; cell 0 is inhibited by nothing, input 4 leads to no inhibitory cell."""
    rng = RNG(1)
    parts = [linear(rng.exponential(0.4, size)) for size in ((6, 5), (2, 5), (6, 2))]
    parts[1].weight[:, 4] = 0
    parts[2].weight[0] = 0
    given = {"gain_i": rng.uniform(0.3, 1, 2), "gain_e": rng.uniform(0.5, 2, 6), "bias": rng.normal(0, 0.3, 6)}
    return EICircuit(*parts, **{**given, "zero": zero, **fields})


def network(zero: str = "sample_min", **fields: Any) -> nir.NIRGraph:
    """circuit, neurons, circuit, neurons, output circuit."""
    rng = RNG(2)
    parts = [linear(rng.exponential(0.5, size)) for size in ((8, 6), (2, 6), (8, 2))]
    gains = {"gain_i": rng.uniform(0.3, 1, 2), "gain_e": rng.uniform(0.5, 2, 8), "bias": rng.normal(0.2, 0.3, 8)}
    second = EICircuit(*parts, **{**gains, "zero": zero, **fields})
    readout = EICircuit(*(linear(rng.exponential(0.5, size)) for size in ((4, 8), (1, 8), (4, 1))), form="none")
    cells = [lif((n,), decay=0.5, threshold=1.0, compare="ge", reset="subtract") for n in (6, 8)]
    return chain((5,), first(zero, **fields), cells[0], second, cells[1], readout)


def counts(seed: int, samples: int = 9) -> np.ndarray:
    """(sample, time, 5): silent steps, and steps on which input 4 alone is heard."""
    rng = RNG(seed)
    x = rng.integers(0, 4, (samples, T, 5)) * (rng.random((samples, T, 5)) < 0.5)
    x[0, 0], x[1, 1] = 0, (0, 0, 0, 0, 2)
    return x.astype(np.float32)


def parts_of(node: EICircuit, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D as it came) of rows."""
    s = np.maximum(x @ node.inhibit.weight.T, 0)
    taken, below = (a @ node.spread.weight.T for a in (s, s * node.gain_i))
    return x @ node.excite.weight.T - taken, below


def filled(d: np.ndarray, node: EICircuit) -> np.ndarray:
    d = d.copy()
    for row in d:
        row[row == 0] = node.epsilon if node.zero == "constant" else min(row[row != 0], default=np.inf)
    return d


def entering(net: nir.NIRGraph, x: np.ndarray) -> dict[str, np.ndarray]:
    """Rows that enter the two circuits that divide, as the watching engine runs them."""
    z = base.get("torch32")().compile(graph.check(net, alphabet=COUNTS)).run(x).z
    return {"n0": x.reshape(-1, 5).astype(float), "n2": z["n1"].reshape(-1, 6).astype(float)}


# --- the numbers


@pytest.mark.parametrize("zero", ["sample_min", "constant"])
def test_denominators_against_loops(zero: str) -> None:
    net = network(zero, epsilon=0.07)
    x = counts(3)
    chunks = [x[:4], x[4:]]
    found = denominators(graph.check(net, alphabet=COUNTS), chunks)
    rows = entering(net, x)
    assert found.keys() == rows.keys()
    for name, seen in found.items():
        node = net.nodes[name]
        _, came = parts_of(node, rows[name])
        d = filled(came, node)
        assert seen.rows == len(x) * T and seen.entries == d.size
        assert seen.zeros == (came == 0).sum() and seen.silent == (came == 0).all(1).sum()
        assert seen.epsilon == pytest.approx(came[came != 0].min(), rel=1e-6)
        for cell in range(d.shape[1]):
            own = [v for v in came[:, cell] if v != 0] or [v for v in came.ravel() if v != 0]
            assert seen.frozen[cell] == pytest.approx(sum(own) / len(own), rel=1e-5), (name, cell)
    assert found["n0"].zeros > found["n0"].rows and found["n0"].silent >= 2


def test_cells_without_current_take_the_mean_of_all() -> None:
    seen = Denominators(np.array([6.0, 0, 4]), np.array([2.0, 0, 2]))
    assert seen.frozen.tolist() == [3, 2.5, 2]
    silent = Denominators(*np.zeros((2, 3)))
    assert silent.frozen.tolist() == [1, 1, 1] and silent.epsilon == 1
    zeros = np.zeros((1, 2, 5), np.float32)
    (seen,) = denominators(graph.check(chain((5,), first()), alphabet=COUNTS), [zeros]).values()
    assert (seen.zeros, seen.silent, seen.rows) == (12, 2, 2) and (seen.frozen == 1).all() and seen.epsilon == 1


def test_maps_have_one_number_a_channel() -> None:
    node = circuit_of(3, "exact", "sample_min", (2, 5, 4), False)
    x = RNG(6).random((3, 2, 2, 5, 4)).astype(np.float32)
    (seen,) = denominators(graph.check(chain((2, 5, 4), node), alphabet=interval(0, 1, False)), [x]).values()
    rows = x.reshape(6, 2, 5, 4)

    def conv(weight: np.ndarray, a: np.ndarray, **window: Any) -> np.ndarray:
        return torch.nn.functional.conv2d(torch.from_numpy(a).double(), torch.from_numpy(weight), **window).numpy()

    window = {"stride": (2, 1), "padding": (1, 0)}
    s = np.maximum(conv(node.inhibit.weight, rows, **window), 0)
    d = conv(node.spread.weight, s * node.gain_i.reshape(-1, 1, 1)).swapaxes(0, 1).reshape(4, -1)
    wanted = [a[a != 0].mean() if a.any() else d[d != 0].mean() for a in d]
    assert seen.frozen.shape == (4,) and sum(a.any() for a in d) >= 3
    np.testing.assert_allclose(seen.frozen, wanted, rtol=1e-5)


# --- what a form costs


def approximated(form: str, n: np.ndarray, came: np.ndarray, numbers: Numbers) -> np.ndarray:
    """N over what a form makes of D."""
    d = np.where(came == 0, numbers.epsilon, came)
    if form == "exact":
        return n / d
    if form == "frozen":
        return n / numbers.denominator
    if form == "shift":
        return n / 2.0 ** np.round(np.log2(d))
    p = 2.0 ** np.floor(np.log2(d))
    part = np.floor((d / p - 1) * 64)
    return n * np.round(4096 / (1 + (part + 0.5) / 64)) / 4096 / p


@pytest.mark.parametrize("form", divide.FORMS)
def test_distance_of_a_form(form: str) -> None:
    net, x = network(), counts(7)
    before = graph.check(net, alphabet=COUNTS)
    numbers = divide.choose(before, denominators(before, [x]))
    after = graph.check(divide.reform(net, form, numbers), alphabet=COUNTS)
    found = distances(before, {n: after.steps[n] for n in numbers}, [x[:5], x[5:]])  # type: ignore[misc]
    rows = entering(net, x)
    assert found.keys() == rows.keys()
    for name, seen in found.items():
        node = net.nodes[name]
        n, came = parts_of(node, rows[name])
        exact = node.gain_e * n / filled(came, node) + node.bias
        other = node.gain_e * approximated(form, n, came, numbers[name]) + node.bias
        wanted = np.sqrt(((exact - other) ** 2).mean()) / exact.std()
        assert seen.entries == exact.size and (wanted > 1e-4 or form == "exact")
        assert seen.relative == pytest.approx(wanted, rel=1e-3, abs=1e-6), (name, form)
        heard = came != 0  # where no zero was filled, a form has its own bound
        off = np.abs(approximated(form, n, came, numbers[name]) * came / np.where(n == 0, 1, n) - 1)[heard & (n != 0)]
        assert off.max() <= {"exact": 1e-12, "shift": np.sqrt(2) - 1, "table": 1 / 64}.get(form, np.inf)


def test_distance_of_nothing() -> None:
    same = Distance()
    same.add(torch.ones(2, 3), torch.ones(2, 3))
    assert same.relative == 0 == Distance().relative
    same.add(torch.ones(2, 3), torch.zeros(2, 3))
    assert same.relative == np.inf


# --- graphs in another form


def chosen(net: nir.NIRGraph) -> dict[str, Numbers]:
    before = graph.check(net, alphabet=COUNTS)
    return divide.choose(before, denominators(before, [counts(8)]))


@pytest.mark.parametrize("form", divide.FORMS)
def test_reform_changes_what_divides_and_says_so(form: str) -> None:
    net = network()
    numbers = chosen(net)
    made = divide.reform(net, form, numbers)
    for name, node in made.nodes.items():
        if name not in numbers:
            assert node is net.nodes[name]
            continue
        assert node.form == form and net.nodes[name].form == "exact"
        if form == "frozen":
            np.testing.assert_array_equal(node.denominator, numbers[name].denominator)
        else:
            assert (node.zero, node.epsilon) == ("constant", numbers[name].epsilon)
        for part in ("excite", "inhibit", "spread"):
            assert getattr(node, part) is getattr(net.nodes[name], part)
    assert made.metadata["eiexport"]["provenance"]["divide"] == form
    assert "divide" not in net.metadata["eiexport"].get("provenance", {})
    assert graph.check(made, alphabet=COUNTS).order == graph.check(net, alphabet=COUNTS).order


def test_refusals_of_a_form() -> None:
    net = network()
    numbers = chosen(net)
    with pytest.raises(GraphError, match=r"^--divide half; valid: exact, frozen, shift, table$"):
        divide.reform(net, "half", numbers)
    with pytest.raises(GraphError, match=r"^node 'n2': its denominators were not calibrated; give samples$"):
        divide.reform(net, "shift", {"n0": numbers["n0"]})
    with pytest.raises(GraphError, match=r"^node 'n0': its denominators were not calibrated"):
        divide.choose(graph.check(net, alphabet=COUNTS), {})
    with pytest.raises(GraphError, match="holds no sample"):
        denominators(graph.check(net, alphabet=COUNTS), [])


def images() -> tuple[nir.NIRGraph, np.ndarray]:
    """A strided circuit over maps, its neurons, and an output circuit."""
    node = circuit_of(5, "exact", "sample_min", (2, 5, 4), False)
    size = tuple(int(v) for v in node.spread.input_shape)
    rng, cells = RNG(9), 4 * size[0] * size[1]
    readout = EICircuit(*(linear(rng.exponential(0.4, s)) for s in ((4, cells), (1, cells), (4, 1))), form="none")
    cell = lif((4, *size), decay=0.5, threshold=1.0, compare="ge", reset="subtract")
    flat = nir.Flatten({"input": np.array((4, *size))}, 0, -1)
    return chain((2, 5, 4), node, cell, flat, readout), rng.integers(0, 5, (6, T, 2, 5, 4)).astype(np.float32)


@pytest.mark.parametrize("make", [lambda: (network(), counts(10)), images], ids=["dense", "maps"])
def test_folding_keeps_every_number(make: Callable[[], tuple[nir.NIRGraph, np.ndarray]]) -> None:
    net, x = make()
    before = graph.check(net, alphabet=COUNTS)
    frozen = divide.reform(net, "frozen", divide.choose(before, denominators(before, [x])))
    folded = divide.fold(frozen)
    kinds = {type(n).__name__ for n in folded.nodes.values()}
    assert (
        kinds <= {"Input", "Output", "Affine", "Conv2d", "Flatten", "EIDiscreteLIF"}
        and folded.nodes.keys() == net.nodes.keys()
    )
    assert folded.edges == net.edges
    assert {k: folded.metadata["eiexport"]["provenance"][k] for k in ("divide", "dale")} == {
        "divide": "frozen",
        "dale": "folded",
    }
    weights = np.concatenate([n.weight.ravel() for n in folded.nodes.values() if hasattr(n, "weight")])
    assert weights.dtype == np.float64 and (weights < 0).any()  # Dale's law holds for the matrices alone
    # each connection alone, then the network
    for name in (n for n, node in net.nodes.items() if isinstance(node, EICircuit)):
        shape = before.input_shape(name)
        rows = RNG(11).random((3, 1, *shape)).astype(np.float32)
        apart, one = (
            base.get("reference")().compile(graph.check(chain(shape, g.nodes[name]))).run(rows).z
            for g in (frozen, folded)
        )
        assert apart.keys() == one.keys()
        for key, value in apart.items():
            np.testing.assert_allclose(one[key], value, rtol=1e-12, atol=1e-12)
    apart, one = (base.get("reference")().compile(graph.check(g, alphabet=COUNTS)).run(x).z for g in (frozen, folded))
    end = graph.check(folded).sources["out"][0]
    cells = [n for n, node in net.nodes.items() if isinstance(node, EIDiscreteLIF)]
    for name in cells:
        np.testing.assert_array_equal(one[name], apart[name])
        assert 0 < apart[name].mean() < 1
    np.testing.assert_allclose(one[end], apart[end], rtol=1e-12, atol=1e-12)


def test_what_divides_stays_and_nothing_else_is_touched() -> None:
    net = network()
    folded = divide.fold(net)
    assert [n for n in net.nodes if folded.nodes[n] is not net.nodes[n]] == ["n4"]
    assert isinstance(folded.nodes["n4"], nir.Affine) and not folded.nodes["n4"].bias.any()
    plain = chain((5,), nir.Affine(np.ones((2, 5)), np.zeros(2)), lif((2,), decay=0.5, threshold=1.0))
    assert divide.fold(plain) is plain


# --- runs


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exact") / "run"
    train(out, replace(QUICK, batches=8))
    return out


def tuning(form: str) -> Recipe:
    return replace(recipes.deployed(replace(QUICK, batches=8), form, from_weights=True), epochs=1)


@pytest.fixture(scope="module")
def tuned(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {form: tmp_path_factory.mktemp(form) / "run" for form in FORMS}
    for form, out in found.items():
        train(out, tuning(form), start_from=exact)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_tuned_run_is_its_export(form: str, tuned: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    found = compared(tuned[form], tmp_path / "out", monkeypatch, "reference", "torch", samples=20)
    assert (found.reference.name, [r.name for r in found.rows]) == ("trained", ["reference", "torch", "torch32"])
    for row in (found.reference, *found.rows):
        assert row.status in ("equal", "explained"), (row.name, row.message)
        assert all(row.results[n].spikes > 0 for n in ("neuron1", "neuron2", "neuron3"))
    stored = graph.read(tmp_path / "out/model.nir")
    assert stored.metadata["eiexport"]["provenance"]["dale"] == "folded"
    kinds = {type(n).__name__ for n in stored.nodes.values()}
    assert ("EICircuit" in kinds) == (form != "frozen") and {"EIDiscreteLIF", "Affine"} <= kinds


@pytest.mark.parametrize("form", FORMS)
def test_numbers_survive_and_are_those_of_calibration(form: str, exact: Path, tuned: dict[str, Path]) -> None:
    dataset = data.load("digits")
    net, _ = fit.load_model(Run(tuned[form]), "last", dataset)
    stored, _ = runs.load(tuned[form] / "last.safetensors")
    buffers = dict(net.named_buffers())
    key = "denominator" if form == "frozen" else "epsilon"
    assert buffers.keys() == {f"circuit{i}.{key}" for i in (1, 2, 3)}
    assert all(torch.equal(v, stored[k]) and (v > 0).all() for k, v in buffers.items())
    for name, node in net.graph().nodes.items():  # type: ignore[operator]
        if isinstance(node, EICircuit) and name != "readout1":
            assert np.array_equal(getattr(node, key), buffers[f"{name}.{key}"].numpy())
    # by the exact run's best weights, on training samples
    before, _ = fit.load_model(Run(exact), "best", dataset)
    shown = graph.check(before.graph())  # type: ignore[operator]
    train_, _ = data.split_validation(dataset.train.labels, QUICK.validation, QUICK.seed)
    x = fit.encode(QUICK, dataset.train, fit.calibration_samples(QUICK, train_))
    for name, numbers in divide.choose(shown, denominators(shown, [x[:50], x[50:]])).items():
        np.testing.assert_allclose(buffers[f"{name}.{key}"], np.float32(getattr(numbers, key)), rtol=1e-5)


def test_resumed_with_its_numbers(exact: Path, tuned: dict[str, Path], tmp_path: Path) -> None:
    longer = replace(tuning("shift"), epochs=2)
    run = shutil.copytree(tuned["shift"], tmp_path / "run")
    train(run, longer, resume=True)
    train(tmp_path / "whole", longer, start_from=exact)
    one, other = (runs.load(p / "resume.safetensors")[0] for p in (run, tmp_path / "whole"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert "circuit2.epsilon" in one


def test_gradients_of_a_rounded_division_are_those_of_the_exact_one() -> None:
    """Straight through: forward the form's, backward as if D were what it stands for, zeros a constant."""
    found: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    x = torch.from_numpy(counts(12).reshape(-1, 5))
    for form in ("exact", "shift", "table"):
        torch.manual_seed(1)
        c = Circuit(5, 8)
        c.deploy(form)
        c.get_buffer("epsilon").fill_(0.07)
        y = c(x)
        y.square().sum().backward() if form == "exact" else y.backward(2 * found["exact"][0])
        found[form] = y.detach(), {k: p.grad for k, p in c.named_parameters() if p.grad is not None}
    for form in ("shift", "table"):
        y, grads = found[form]
        assert not torch.allclose(y, found["exact"][0], rtol=1e-4) and torch.allclose(y, found["exact"][0], rtol=0.5)
        for key, g in found["exact"][1].items():
            torch.testing.assert_close(grads[key], g)


@pytest.mark.parametrize("form", ["frozen", "exact"])
def test_dale_apart_keeps_the_matrices(
    form: str, exact: Path, tuned: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    run = tuned.get(form, exact)
    found = compared(run, tmp_path / "out", monkeypatch, "reference", samples=10, dale="apart")
    assert {r.status for r in (found.reference, *found.rows)} == {"equal"}
    made = graph.read(tmp_path / "out/model.nir")
    circuits = {n: node for n, node in made.nodes.items() if isinstance(node, EICircuit)}
    assert [c.form for c in circuits.values()] == [form] * 3 + ["none"]
    assert "dale" not in made.metadata["eiexport"]["provenance"]
    for node in circuits.values():
        held = [node.excite.weight, node.inhibit.weight, node.spread.weight]
        held += [] if node.form == "none" else [node.gain_i, node.gain_e]
        assert all((a >= 0).all() and a.any() for a in held)


# --- command lines


def test_command_line(exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains on with a chip's division; an export puts its cost into the report."""
    tuned = tmp_path / "tuned"
    for name in ("curves", "activity", "confusion", "circuits", "circuit_samples"):  # drawing takes its time
        monkeypatch.setattr(figures, name, lambda *arguments: None)
    told = invoke(FIT, "fit", "--from", exact, "--divide", "shift", "--epochs", 1, "--set", "batches=1", "--out", tuned)
    config = json.loads((tuned / "config.json").read_text())
    assert config["recipe"]["divide"] == "shift" and config["recipe"]["lr"] == QUICK.lr / 2
    assert config["from"] == str(exact.resolve()) and "best: test accuracy" in told.stdout
    out = tmp_path / "out"
    told = invoke(EXPORT, exact, "--divide", "table", "--target", "torch", "--samples", 20, "--out", out).stdout
    report = json.loads((out / "report.json").read_text())
    found = report["division"]
    assert (found["form"], found["calibrated_on"], found["own"]) == ("table", 100, False)
    assert found["per_layer"].keys() == {"circuit1", "circuit2", "circuit3"}
    for layer in found["per_layer"].values():
        assert layer.keys() >= {"error", "zeros", "silent", "epsilon"} and layer["epsilon"] > 0
        assert 0 <= layer["silent"] <= layer["zeros"] < 1 and layer["error"] >= 0
    assert 0 <= found["changed"] <= 1 and found["accuracy"] == report["targets"]["torch"]["accuracy"]
    assert f"accuracy {100 * found['accuracy_exact']:.2f} % as trained" in told and "of the decisions changed" in told
    assert "table" in (out / "report.html").read_text()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.nir, input x.npy and other samples c.npy; plain.nir without circuits; int.nir of whole numbers."""
    folder = tmp_path_factory.mktemp("files")
    plain = chain((5,), nir.Affine(np.ones((2, 5)), np.zeros(2)), lif((2,), decay=0.5, threshold=1.0))
    for name, net, cells in (("net", network(), 4), ("plain", plain, 2)):
        net.nodes["out"] = nir.Output(np.array([cells]))
        graph.write(net, folder / f"{name}.nir")
    np.save(folder / "x.npy", counts(13))
    np.save(folder / "c.npy", counts(14))
    constant = network("constant", epsilon=0.1)
    constant.nodes["out"] = nir.Output(np.array([4]))
    before = graph.check(constant, alphabet=COUNTS)
    plan = calibrate.choose(before, observe(before, [counts(14)]), 8)
    graph.write(quantise.apply(before, plan), folder / "int.nir")
    return folder


def test_calibration_of_a_file(files: Path, tmp_path: Path) -> None:
    """With --divide alone, samples of its own may be given; else the tested ones serve, and the report says so."""
    common = [files / "net.nir", "--input", files / "x.npy", "--divide", "shift", "--target", "torch"]
    found = {}
    for name, more in (("own", []), ("given", ["--calibration", files / "c.npy"])):
        invoke(EXPORT, *common, *more, "--out", tmp_path / name)
        found[name] = json.loads((tmp_path / name / "report.json").read_text())["division"]
        assert "accuracy" not in found[name] or found[name]["accuracy"] is None
    assert found["own"]["own"] is True and found["given"]["own"] is False
    for name, file in (("own", "x.npy"), ("given", "c.npy")):
        seen = denominators(graph.check(network()), [np.load(files / file)])
        assert found[name]["per_layer"]["n0"]["epsilon"] == pytest.approx(seen["n0"].epsilon)
        assert found[name]["per_layer"]["n0"]["zeros"] == pytest.approx(seen["n0"].zeros / seen["n0"].entries)
        assert found[name]["calibrated_on"] == 9


def test_refusals(files: Path, exact: Path, tuned: dict[str, Path], tmp_path: Path, refused: Any) -> None:  # noqa: F811
    out = tmp_path / "out"
    x = ("--input", files / "x.npy", "--out", out)
    refused(EXPORT, files / "net.nir", *x, "--divide", "half", names=("--divide half", "exact, frozen, shift, table"))
    refused(EXPORT, files / "net.nir", *x, "--dale", "bend", names=("--dale bend", "fold, apart"))
    refused(EXPORT, files / "net.nir", *x, "--divide", "shift", "--calibrate", 0, names=("--calibrate N",))
    refused(EXPORT, files / "plain.nir", *x, "--divide", "shift", names=("--divide shift", "no circuit"))
    refused(EXPORT, files / "int.nir", *x, "--divide", "shift", names=("--divide shift", "no circuit"))
    refused(EXPORT, tuned["frozen"], "--out", out, "--divide", "shift", names=("--divide shift", "no circuit"))
    refused(FIT, "fit", "deepei-digits", "--divide", "frozen", "--out", out, names=("--divide", "--from RUN"))
    refused(FIT, "fit", "--from", exact, "--divide", "half", "--out", out, names=("'half'", "exact, frozen"))
    refused(FIT, "fit", "--from", exact, "--quantize", 4, "--out", out, names=("divide = exact", "--divide frozen"))
    shifted = ("fit", "--from", tuned["shift"], "--quantize", 4, "--out", out)
    refused(FIT, *shifted, names=("divide = shift", "--divide frozen"))
    config = tmp_path / "backei"
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"recipe": recipes.to_config(recipes.find("backei-digits"))}))
    refused(FIT, "fit", "--from", config, "--divide", "frozen", "--out", out, names=("backei-digits has no circuits",))
