"""Seeing circuits: every number against scalar loops, and that looking changes nothing; tables and pictures."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import circuit_oracle as oracle
import nir
import numpy as np
import pytest
import torch
from cases import Case, connected
from circuit_cases import FLOATS, WHOLE, expected
from PIL import Image
from typer.testing import CliRunner

from eiexport import graph, insight, pictures
from eiexport.circuits import DIVIDING, EICircuit
from eiexport.cli import app as export_app
from eiexport.insight import Seen
from eiexport.nodes import lif, prepare
from eiexport.ops import NumpyOps
from eiexport.report import Report, Row, write
from eiexport.steps import Clock
from eiexport.trace import Trace, TraceWriter
from eitrain import figures, fit, recipes
from eitrain import insight as watching
from eitrain.architectures import ei_network
from eitrain.cells import Cell
from eitrain.circuits import Circuit
from eitrain.cli import app
from eitrain.nets import SpikingNet
from targets.pytorch import TorchOps

LIF: dict[str, Any] = {"decay": 0.5, "threshold": 1.0, "compare": "ge", "reset": "subtract"}


# --- every number, against the oracle


def told(node: Any, x: np.ndarray, z: np.ndarray | None) -> tuple[dict[str, float | None], list[float], list[float]]:
    """What a summary must say, from lists of single numbers; and each sample's excitation, and its mean D."""
    whole = type(node).__name__ == "IntCircuit"
    e, sub, d, current, silent, rows = [], [], [], [], 0, 0
    by_sample: list[tuple[list[float], list[float]]] = []
    for sample in x:
        by_sample.append(([], []))
        for step in sample:
            s = oracle.signal(step, int if whole else float)
            cells = {i: max(0, v) for i, v in oracle.connect(node.inhibit, s).items()}
            weighed = {i: oracle.of_cell(node.gain_i, i[0], 1) * v for i, v in cells.items()}
            if whole:
                weighed = {i: int(v) >> int(node.gain_shift) for i, v in weighed.items()}
            excited = [*oracle.connect(node.excite, s).values()]
            e += excited
            sub += oracle.taken(node.spread, cells).values()
            current += (oracle.int_circuit(node, s, oracle.Counter()) if whole else oracle.circuit(node, s)).values()
            divided = [*oracle.taken(node.spread, weighed).values()]
            d += divided
            rows, silent = rows + 1, silent + (not any(divided))
            by_sample[-1][0].extend(excited)
            by_sample[-1][1].extend(v for v in divided if v)
    other = [v for v in d if v]
    divides = node.form in DIVIDING
    wanted: dict[str, float | None] = {
        "excitation": statistics.fmean(e),
        "inhibition": statistics.fmean(sub),
        "balance": sum(sub) / sum(e) if sum(e) > 0 else None,
        "denominator": statistics.fmean(other) if divides and other else None,
        "denominator_std": statistics.pstdev(other) if divides and other else None,
        "denominator_least": min(other) if divides and other else None,
        "zeros": (len(d) - len(other)) / len(d) if divides else None,
        "silent": silent / rows if divides else None,
        "current": statistics.fmean(current),
        "current_std": statistics.pstdev(map(float, current)),
        "rate": None if z is None else np.count_nonzero(z) / z.size,
    }
    for part in ("excite", "inhibit", "spread"):
        weights = getattr(node, part).weight.reshape(-1).tolist()
        wanted[f"zero_{part}"] = weights.count(0) / len(weights)
    means = [statistics.fmean(own) if own else math.nan for _, own in by_sample]
    return wanted, [statistics.fmean(own) for own, _ in by_sample], means


def near(wanted: dict[str, float | None], rel: float = 1e-9) -> dict[str, Any]:
    return {k: None if v is None else pytest.approx(v, rel=rel, abs=rel) for k, v in wanted.items()}


def agrees(case: Case) -> dict[str, float | None]:
    sent, node = expected(case), case.graph.nodes["n0"]
    network = graph.check(case.graph, alphabet=case.alphabet)
    behind = sent.get("n1")
    seen = insight.of_trace(network, case.x, {n: sent[n] for n in network.recorded})
    assert list(seen) == ["n0"]
    found, (wanted, excitation, means) = seen["n0"].summary(), told(node, case.x, behind)
    assert found == near(wanted), case.name
    each = seen["n0"].samples()
    assert each["excitation"] == pytest.approx(np.array(excitation), rel=1e-9)
    assert ("denominator" in each) == (node.form in DIVIDING)
    if "denominator" in each:
        assert each["denominator"] == pytest.approx(np.array(means), rel=1e-9, nan_ok=True)
    if behind is not None:
        assert each["rate"] == pytest.approx((behind != 0).reshape(len(behind), -1).mean(1))
    return found


def test_every_number_is_that_of_scalar_loops() -> None:
    found = [agrees(case) for case in FLOATS]
    assert {f["denominator"] is None for f in found} == {True, False}
    assert any(f["zeros"] and f["silent"] for f in found) and any(f["rate"] for f in found)


def test_integer_circuits_too() -> None:
    found = [agrees(case) for case in WHOLE[:70]]
    assert sum(bool(f["zeros"]) for f in found) > 9 and sum(bool(f["zero_spread"]) for f in found) > 9


def sheet(a: float = 0.4, b: float = 0.2) -> EICircuit:
    """Zero denominators, as worked out by hand from the published code; with a and b dyadic, exact in float32."""
    spread = [(1, 0), (0, 1), (0.5, 0.5), (2, 0), (0, 0), (1, 1), (0.25, 0), (0, 2)]
    parts = [nir.Linear(np.array(w, float)) for w in (np.full((8, 2), 0.5), [[a, 0], [0, b]], spread)]
    return EICircuit(*parts, gain_i=np.array([0.5, 1]), gain_e=np.ones(8), bias=np.zeros(8))


def looked(node: EICircuit, x: Any) -> Seen:
    step: Any = prepare(node, Clock(1.0, "euler"))
    return insight.look(NumpyOps(), step, np.array(x, float), 1)


def test_zero_denominators_are_counted() -> None:
    # I_div = .2 0 .1 .4 0 .2 .05 0, then zeros only
    found = looked(sheet(), [[1, 0], [0, 0]]).summary()
    assert found["zeros"] == pytest.approx(11 / 16) and found["silent"] == 0.5
    assert found["denominator"] == pytest.approx(0.95 / 5) and found["denominator_least"] == pytest.approx(0.05)
    assert found["denominator_std"] == pytest.approx(statistics.pstdev([0.2, 0.1, 0.4, 0.2, 0.05]))
    assert found["excitation"] == 0.25 and found["current"] == pytest.approx(41.25 / 16)
    assert (found["zero_excite"], found["zero_inhibit"], found["zero_spread"]) == (0, 0.5, 7 / 16)


def test_a_silent_layer_has_no_balance_and_no_denominator() -> None:
    seen = looked(sheet(), [[0, 0], [0, 0]]).rated(np.zeros((2, 1)))
    found = seen.summary()
    assert [found[k] for k in ("excitation", "zeros", "silent", "current", "rate")] == [0, 1, 1, 0, 0]
    assert all(found[k] is None for k in ("balance", "denominator", "denominator_std", "denominator_least"))
    assert np.isnan(seen.samples()["denominator"]).all()
    assert insight.cells(found) == ("0", "0", "-", "-", "100.00 %", "silent")
    size, _ = opened(pictures.circuits({"layer": seen.samples()}, "silent"))
    assert min(size) > 300


# --- in training


def dense_net() -> SpikingNet:
    """2 -> 8 cells -> LIF -> readout of 4, weights of the sheet and dyadic ones; inputs are rows of two numbers."""
    first, last = Circuit(2, 8), Circuit(8, 4, readout=True)
    node = sheet(0.5, 0.25)
    with torch.no_grad():
        for p, value in ((first.w_ee, node.excite), (first.w_ie, node.inhibit), (first.w_ei, node.spread)):
            p.copy_(torch.tensor(value.weight))
        first.g_i.copy_(torch.tensor(node.gain_i))
        last.w_ee.copy_(torch.arange(32).reshape(4, 8) % 3 / 4)
        last.w_ie.fill_(0.25)
        last.w_ei.fill_(1)
    return SpikingNet({"first": first, "neuron": Cell(**LIF), "end": last}, (2,))


ROWS = torch.tensor([[[1, 0], [0, 0], [2, 1]], [[0, 0], [0, 0], [4, 0]], [[1, 1], [0, 0], [0, 3]]], dtype=torch.float)


def test_training_sees_what_the_oracle_says() -> None:
    """(T, B, 2) with a silent sample, and silent steps; the neuron between as the oracle has it."""
    net = dense_net()
    found, each = watching.measure(net, ROWS, 3), watching.samples(net, ROWS, 3)
    x = ROWS.transpose(0, 1).numpy()
    first, last = sheet(0.5, 0.25), net.circuits["end"].node((8,))
    _, z = oracle.run([first, lif((8,), **LIF)], x)
    assert 0 < np.count_nonzero(z) < z.size
    for name, node, entered, sent in (("first", first, x, z), ("end", last, z, None)):
        wanted, excitation, means = told(node, entered, sent)
        assert found[name] == near(wanted, 1e-6), name
        assert each[name]["excitation"] == pytest.approx(excitation, rel=1e-6)
        if name == "first":
            assert each[name]["denominator"] == pytest.approx(means, rel=1e-6, nan_ok=True) and math.isnan(means[1])
            assert each[name]["rate"] == pytest.approx((z != 0).reshape(3, -1).mean(1))
    assert each["end"].keys() == {"excitation", "inhibition"}


@pytest.mark.parametrize("architecture", ["vgg5", "resnet18"])
def test_an_exported_graph_shows_the_same(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of circuits recomputed through pools and sums, against the training code's own pass, in pieces."""
    torch.manual_seed(3)
    net = ei_network(architecture, (1, 8, 8), 4, width=4).double().eval()
    x = torch.rand(1, 5, 1, 8, 8, dtype=torch.float64)
    net.initialise(x, 2)
    monkeypatch.setattr(watching, "PIECE", 2)
    own, z = watching.watch(net, x, 2), {}
    with torch.no_grad():
        net(x, 2, z)
    given = x.expand(2, 5, 1, 8, 8).transpose(0, 1).numpy()
    network = graph.check(net.graph())
    seen = insight.of_trace(network, given, {n: a.transpose(0, 1).numpy() for n, a in z.items()})
    assert seen.keys() == own.keys() == net.circuits.keys() and len(seen) in (4, 21)
    for name in seen:
        assert seen[name].summary() == near(own[name].summary()), name
        for key, a in own[name].samples().items():
            assert a.shape == (5,) and seen[name].samples()[key] == pytest.approx(a, rel=1e-9, nan_ok=True)
    assert own["circuit1"].rows["excitation"].shape == (1, 5)  # a static image is looked at once


def test_looking_changes_nothing() -> None:
    parts = dense_net()._modules
    net = SpikingNet({"early": torch.nn.Dropout(0.5), **{k: parts[k] for k in parts}}, (2,)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(1)
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    found = watching.measure(net, ROWS, 3)
    assert net.training and all(m.training for m in net.modules())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (str(np.random.get_state()), random.getstate())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and not net.circuits["first"]._forward_pre_hooks
    assert watching.measure(net.eval(), ROWS, 3) == found and not net.training


QUICK = replace(
    recipes.find("deepei-digits"), name="deepei-digits", epochs=2, batches=2, batch=16, steps=2, width=4, cosine=2
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the command line, pictures and all."""
    out = tmp_path_factory.mktemp("insight") / "run"
    given = [f"{k}={getattr(QUICK, k)}" for k in ("epochs", "batches", "batch", "steps", "width", "cosine")]
    done = CliRunner().invoke(
        app, ["fit", "deepei-digits", "--device", "cpu", "--out", str(out), *(a for g in given for a in ("--set", g))]
    )
    assert done.exit_code == 0, done.output
    return out


def test_a_run_is_the_same_watched_stopped_or_unwatched(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(r["circuits"].keys() == {"circuit1", "circuit2", "circuit3", "readout1"} for r in rows)
    assert rows[0]["circuits"] != rows[1]["circuits"]
    stopped = fit.Fitting(QUICK, tmp_path / "a", device="cpu").epochs()
    next(stopped)
    again = list(fit.Fitting(QUICK, tmp_path / "a", device="cpu", resume=True).epochs())
    assert again[0]["circuits"] == rows[1]["circuits"]
    monkeypatch.setattr(watching, "measure", lambda net, x, steps: {})
    list(fit.Fitting(QUICK, tmp_path / "b", device="cpu").epochs())
    weights = [(f / "last.safetensors").read_bytes() for f in (run, tmp_path / "a", tmp_path / "b")]
    assert weights[0] == weights[1] == weights[2]


def opened(png: bytes) -> tuple[tuple[int, int], np.ndarray]:
    """Size and pixels of a picture that has something on it."""
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    pixels = np.asarray(image.convert("RGB"))
    assert 0.005 < (pixels != 255).any(-1).mean() < 0.6
    return image.size, pixels


def coloured(pixels: np.ndarray, colour: str) -> int:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels.astype(int) - rgb).max(-1) < 20).sum())


def test_pictures_of_a_run(run: Path) -> None:
    (width, height), pixels = opened((run / "circuits.png").read_bytes())
    assert 1200 < width < 2000 and 600 < height < 1200
    assert min(coloured(pixels, c) for c in (figures.EXCITATORY, figures.INHIBITORY)) > 200
    (width, height), pixels = opened((run / "circuits-samples.png").read_bytes())
    assert 1000 < width < 2000 and 400 < height < 1200
    assert all(coloured(pixels, c) > 30 for c in ("#1f77b4", "#2ca02c", "#e377c2"))  # classes 0, 2 and 6


def test_evaluate_prints_the_table_and_draws_again(run: Path) -> None:
    before = {n: (run / n).read_bytes() for n in ("circuits.png", "circuits-samples.png")}
    for name in before:
        (run / name).unlink()
    done = CliRunner().invoke(app, ["evaluate", str(run), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert before["circuits.png"] == (run / "circuits.png").read_bytes() and (run / "circuits-samples.png").is_file()
    lines = {line.split()[0]: line.split() for line in done.output.splitlines() if line.strip()}
    assert "circuits on 200 validation samples" in done.output
    assert lines["circuit"] == "circuit excitation inhibition I : E denominator zeros of D rate behind".split()
    assert lines["readout1"][-3:] == ["-", "-", "-"] and float(lines["readout1"][1]) > 0
    assert re.fullmatch(
        r"circuit1 [\d.]+ [\d.]+ [\d.]+ [\d.]+ ± [\d.]+ [\d.]+ % ([\d.]+|silent)", " ".join(lines["circuit1"])
    )


def test_rows_of_an_older_run_are_left_out_and_other_networks_have_none(run: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures.circuits([{"epoch": 0}, *rows[1:]], tmp_path / "one.png")
    opened((tmp_path / "one.png").read_bytes())
    other = replace(recipes.find("backei-digits"), architecture="6C3-P2-10", epochs=1, batches=1, batch=16, steps=2)
    (row,) = fit.Fitting(other, tmp_path / "run", device="cpu").epochs()
    assert "circuits" not in row


def test_watched_samples_are_validation_samples_of_any_class() -> None:
    labels = np.repeat(np.arange(10), 30)  # sorted by class, as some data sets are
    split = fit.Split(labels, lambda i: np.broadcast_to(i[:, None, None, None], (len(i), 1, 2, 2)).astype(np.float32))
    held = np.arange(0, 300, 2)
    x, kinds = fit.watched(QUICK, split, held)
    picked = x[0, :, 0, 0, 0].numpy().astype(int)
    assert x.shape == (1, 64, 1, 2, 2) and set(picked) <= set(held) and len(set(picked)) == 64
    assert (labels[picked] == kinds).all() and len(set(kinds)) > 7
    again, _ = fit.watched(QUICK, split, held)
    assert torch.equal(x, again) and len(fit.watched(QUICK, split, held[:5])[1]) == 5


# --- in the export report


def exported(run: Path, out: Path, *given: str) -> tuple[dict[str, Any], str]:
    arguments = [str(run), "--target", "reference", "--samples", "12", "--out", str(out), *given]
    done = CliRunner().invoke(export_app, arguments)
    assert done.exit_code == 0, done.output
    return json.loads((out / "report.json").read_text()), (out / "report.html").read_text()


def test_the_export_report_shows_circuits(run: Path, tmp_path: Path) -> None:
    found, page = exported(run, tmp_path / "out")
    assert found["circuits"]["samples"] == 12
    layers = found["circuits"]["layers"]
    assert {"circuit1", "circuit2", "circuit3"} <= layers.keys()
    rows = page[page.index("<h2>Circuits</h2>") :]
    for name, seen in layers.items():
        assert seen["balance"] == pytest.approx(seen["inhibition"] / seen["excitation"])
        told = "".join(f'<td class="n">{cell}</td>' for cell in insight.cells(seen))
        assert f"<tr><td>{name}</td>{told}</tr>" in rows
    picture = re.search(r'alt="currents[^"]*" src="data:image/png;base64,([^"]+)"', rows)
    assert picture is not None
    (width, height), _ = opened(base64.b64decode(picture[1]))
    assert 700 < width < 2000 and 400 < height < 1600
    # the same numbers from the training code, on the same samples
    from eitrain.export import open_run

    x = next(open_run(run, samples=12).chunks(12))
    own, _ = fit.load_model(fit.Run(run), "best", fit.data.load("digits", None))
    assert isinstance(own, SpikingNet)
    again = watching.measure(own.double(), torch.from_numpy(x).double().transpose(0, 1), QUICK.steps)
    for name, seen in layers.items():
        assert seen == near(again[name])


def test_folded_circuits_show_nothing(run: Path, tmp_path: Path) -> None:
    found, page = exported(run, tmp_path / "out", "--divide", "frozen")
    assert "circuits" not in found and "<h2>Circuits</h2>" not in page


def test_a_report_with_labels_colours_them_and_integers_say_so(tmp_path: Path) -> None:
    case = next(c for c in WHOLE if c.name.startswith("exact") and "n1" in c.graph.nodes and c.alphabet.kind != "real")
    network, sent = graph.check(case.graph, alphabet=case.alphabet), expected(case)
    (tmp_path / "traces").mkdir()
    for path, z in (("input.h5", {"in": case.x}), ("traces/reference.h5", sent)):
        with TraceWriter(tmp_path / path, dt=1.0, dtype="float64") as writer:
            writer.append(Trace({n: a.astype(float) for n, a in z.items()}))
    pages = {}
    for labels in (None, np.arange(len(case.x))):
        report = Report("m", *case.x.shape[:2], network, Row("reference", "equal", "itself"), [], labels=labels)
        write(report, tmp_path)
        pages[labels is None] = (tmp_path / "report.html").read_text()
    assert all("in the integers of each layer" in page for page in pages.values()) and pages[True] != pages[False]
    wanted, _, _ = told(case.graph.nodes["n0"], case.x, sent["n1"])
    layers = json.loads((tmp_path / "report.json").read_text())["circuits"]["layers"]
    assert layers["n0"] == near(wanted)
    (tmp_path / "traces" / "reference.h5").unlink()
    write(report, tmp_path)
    assert "circuits" not in json.loads((tmp_path / "report.json").read_text())


def test_the_neurons_behind_are_found_through_pools_or_not_at_all() -> None:
    node = sheet()
    fired, delay = lif((8,), **LIF), nir.Delay(np.ones(8))
    named = {"c": node, "d": delay, "n": fired}
    network = graph.check(connected(named, [("in", "c"), ("c", "d"), ("d", "n"), ("n", "out")], (2,)))
    assert insight.neurons_behind(network, "c") == "n"
    named = {"c": node, "a": fired, "b": lif((8,), **LIF)}
    edges = [("in", "c"), ("c", "a"), ("c", "b"), ("a", "out"), ("b", "out")]
    assert insight.neurons_behind(graph.check(connected(named, edges, (2,))), "c") == ""
    alone = graph.check(connected({"c": node}, [("in", "c"), ("c", "out")], (2,)))
    assert insight.neurons_behind(alone, "c") == ""
    (seen,) = insight.of_trace(alone, np.ones((1, 2, 2)), {"c": np.zeros((1, 2, 8))}).values()
    assert seen.summary()["rate"] is None and "rate" not in seen.samples()


@pytest.mark.parametrize("count", [3, 15, 40])
def test_pictures_of_any_number_of_classes(count: int) -> None:
    rng = np.random.default_rng(count)
    e = rng.uniform(1, 2, count)
    layer = {"excitation": e, "inhibition": e * rng.uniform(0.8, 1.2, count), "denominator": e}
    size, pixels = opened(pictures.circuits({"a": layer}, "t", np.arange(count)))
    _, plain = opened(pictures.circuits({"a": layer}, "t"))
    bright = [int((np.ptp(p.astype(int), axis=-1) > 60).sum()) for p in (pixels, plain)]
    assert bright[0] > bright[1] + 20 * count and min(size) > 300


def test_torch_and_numpy_see_the_same() -> None:
    step: Any = prepare(sheet(), Clock(1.0, "euler"))
    x = ROWS.reshape(-1, 2)
    from eiexport.steps import bind

    ops: Any = TorchOps(torch.float64)
    a, b = insight.look(NumpyOps(), step, x.double().numpy(), 3), insight.look(ops, bind(step, ops), x.double(), 3)
    assert a.at_zero == b.at_zero and a.rows.keys() == b.rows.keys()
    assert all(np.allclose(a.rows[k], b.rows[k], rtol=1e-12) for k in a.rows)
