"""Training: the same bits for the same seed, however often it was interrupted, and what a run folder holds."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from eitrain import data, fit, recipes, runs
from eitrain.cli import app
from eitrain.errors import TrainError
from eitrain.fit import Fitting, Score, encode, evaluate, prepare
from eitrain.recipes import RECIPES, Recipe
from eitrain.runs import Run

# few batches, but every epoch changes the weights, the learning rate falls once, and all layers spike
QUICK = replace(
    RECIPES["backei-digits"], architecture="6C3-P2-10", epochs=4, batches=4, batch=16, steps=3, lr=0.02, lr_every=2
)
NOISY = replace(QUICK, encoder="rate", dropout=0.2)  # everything that draws random numbers while training
TRAINED = {"config.json", "metrics.jsonl", "best.safetensors", "last.safetensors", "resume.safetensors"}


def train(out: Path, recipe: Recipe = QUICK, **options: Any) -> list[dict[str, Any]]:
    return list(Fitting(recipe, out, device="cpu", **options).epochs())


def rows(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the one field that may differ."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in open(out / "metrics.jsonl")]


def contents(out: Path) -> dict[str, Any]:
    """All that a run is, comparable bit for bit."""
    found: dict[str, Any] = {"config": json.loads((out / "config.json").read_text()), "metrics": rows(out)}
    del found["config"]["git"]  # somebody may commit while tests run
    for name in ("best", "last", "resume"):
        tensors, meta = runs.load(out / f"{name}.safetensors")
        found[name] = meta, {k: (v.dtype, v.shape, v.numpy().tobytes()) for k, v in tensors.items()}
    return found


def weights(out: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    return runs.load(out / f"{checkpoint}.safetensors")[0]


def same(a: Path, b: Path) -> None:
    left, right = contents(a), contents(b)
    assert left["metrics"] == right["metrics"]
    assert left == right


def settings(recipe: Recipe) -> list[str]:
    """The same recipe as arguments of the command line."""
    changed = {k: v for k, v in recipes.to_config(recipe).items() if v != getattr(RECIPES["backei-digits"], k)}
    return ["backei-digits", *(a for k, v in changed.items() for a in ("--set", f"{k}={v}"))]


@pytest.fixture(scope="module", params=[QUICK, NOISY], ids=["quick", "noisy"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe, and its run without interruption."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out, request.param)
    assert len({row["train_loss"] for row in rows(out)}) == 4 and rows(out)[-1]["silent"] == []
    return request.param, out


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of QUICK; tests copy it before they change it."""
    out = tmp_path_factory.mktemp("plain") / "run"
    train(out)
    return out


def test_a_seed_gives_the_same_run(whole: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, out = whole
    train(tmp_path / "again", recipe)
    same(tmp_path / "again", out)
    train(tmp_path / "other", replace(recipe, seed=1))
    assert [r["train_loss"] for r in rows(tmp_path / "other")] != [r["train_loss"] for r in rows(out)]
    ours, theirs = weights(tmp_path / "other"), weights(out)
    assert all(not torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("epochs", [1, 3])
def test_resumed_is_uninterrupted(whole: tuple[Recipe, Path], tmp_path: Path, epochs: int) -> None:
    recipe, out = whole
    train(tmp_path / "run", replace(recipe, epochs=epochs))
    assert [row["epoch"] for row in train(tmp_path / "run", recipe, resume=True)] == list(range(epochs, 4))
    same(tmp_path / "run", out)


def test_resuming_a_finished_run_changes_nothing(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "run")
    assert train(tmp_path / "run", resume=True) == []
    same(tmp_path / "run", plain)


def test_killed_at_a_random_moment(tmp_path: Path) -> None:
    """SIGKILL leaves no time to tidy up."""
    recipe = replace(QUICK, epochs=25, batches=20)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "eitrain.cli", "fit", *settings(recipe), "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not (out / "metrics.jsonl").is_file():
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, said
    assert 1 <= len(rows(out)) < 25
    subprocess.run(command + ["--resume"], check=True, capture_output=True)
    train(tmp_path / "whole", recipe)
    same(out, tmp_path / "whole")


class Crash(BaseException):
    """Not an Exception: nothing may catch it on its way out."""


@pytest.mark.parametrize("at", range(12))
def test_crash_between_any_two_files(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The at-th file is never written: best, metrics, last and resume of each epoch, best only where it improved."""
    left = at
    save, write_metrics = runs.save, Run.write_metrics

    def unless_crashed(write: Any) -> Any:
        def wrapped(*args: Any) -> None:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            write(*args)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(runs, "save", unless_crashed(save))
        patched.setattr(Run, "write_metrics", unless_crashed(write_metrics))
        with pytest.raises(Crash):
            train(tmp_path / "run")
    train(tmp_path / "run", resume=True)
    same(tmp_path / "run", plain)


def test_stopped_in_the_first_epoch(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only config.json is there; the run begins again, from the weights it was given, for as long as is asked now."""
    for name, start, more in (
        ("anew", None, QUICK),
        ("from", plain, QUICK),
        ("longer", None, replace(QUICK, epochs=5)),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(Fitting, "_train", lambda self, epoch, phase: (_ for _ in ()).throw(Crash))
            with pytest.raises(Crash):
                train(tmp_path / name, start_from=start)
        assert {p.name for p in (tmp_path / name).iterdir()} == {"config.json"}
        train(tmp_path / name, more, resume=True)
        train(tmp_path / f"{name}-whole", more, start_from=start)
        same(tmp_path / name, tmp_path / f"{name}-whole")


def test_longer_than_planned(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "run")
    longer = replace(QUICK, epochs=6)
    train(tmp_path / "run", longer, resume=True)
    train(tmp_path / "whole", longer)
    same(tmp_path / "run", tmp_path / "whole")
    before = contents(tmp_path / "run")
    with pytest.raises(TrainError, match="6 epochs"):
        train(tmp_path / "run", replace(QUICK, epochs=5), resume=True)
    assert contents(tmp_path / "run") == before


def test_best_is_chosen_on_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch of the best validation accuracy, whatever the test set says."""
    digits = data.load("digits")
    held, test = iter([5, 7, 6, 7]), iter([9, 1, 10, 8])

    def scripted(model: Any, recipe: Recipe, split: data.Split, *args: Any) -> Score:
        right = next(held if len(split) == len(digits.train) else test)
        return Score(np.array([[right, 10 - right], [0, 0]]))

    with monkeypatch.context() as patched:
        patched.setattr(fit, "evaluate", scripted)
        train(tmp_path / "run")
    found = [(row["val_accuracy"], row["test_accuracy"]) for row in rows(tmp_path / "run")]
    assert found == [(0.5, 0.9), (0.7, 0.1), (0.6, 1.0), (0.7, 0.8)]
    assert runs.load(tmp_path / "run/best.safetensors")[1] == {"epoch": 1, "val_accuracy": 0.7}
    train(tmp_path / "two", replace(QUICK, epochs=2))
    best, last = weights(tmp_path / "run", "best"), weights(tmp_path / "two")
    assert all(torch.equal(best[k], last[k]) for k in last)
    assert any(not torch.equal(best[k], v) for k, v in weights(tmp_path / "run").items())


def test_best_outlives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([7, 0, 5, 0, 6, 0, 7, 0])  # validation and test in turn
    scripted = lambda *args: Score(np.array([[n := next(accuracies), 10 - n], [0, 0]]))  # noqa: E731
    monkeypatch.setattr(fit, "evaluate", scripted)
    train(tmp_path / "run", replace(QUICK, epochs=2))
    train(tmp_path / "run", resume=True)
    assert len(rows(tmp_path / "run")) == 4
    assert runs.load(tmp_path / "run/best.safetensors")[1] == {"epoch": 0, "val_accuracy": 0.7}


def test_validation_samples_are_not_trained_on(tmp_path: Path) -> None:
    fitting = Fitting(QUICK, tmp_path / "run", device="cpu")
    assert not set(fitting.train_indices) & set(fitting.held_indices)
    assert len(fitting.train_indices) + len(fitting.held_indices) == len(fitting.dataset.train)


def test_run_folder(plain: Path) -> None:
    assert {p.name for p in plain.iterdir()} == TRAINED
    config = json.loads((plain / "config.json").read_text())
    assert config["recipe"] == recipes.to_config(QUICK) and recipes.from_config(config["recipe"]) == QUICK
    assert {"eitrain", "torch", "norse", "nir", "numpy"} <= config["versions"].keys()
    assert config["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", config["git"])
    assert config["data"]["name"] == "digits" and config["data"]["checksum"] == data.load("digits").checksum
    lines = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    contract = {"epoch", "phase", "train_loss", "val_accuracy", "test_accuracy", "seconds"}
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3] and all(contract <= line.keys() for line in lines)
    assert {line["phase"] for line in lines} == {"G"}
    np.testing.assert_allclose([line["lr"] for line in lines], [0.02, 0.02, 0.002, 0.002], rtol=1e-12)
    for line in lines:
        assert 0 <= line["val_accuracy"] <= 1 and 0 <= line["test_accuracy"] <= 1 and np.isfinite(line["train_loss"])


def test_run_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runs.provenance()["git"] == "unknown"


def test_others_may_read_a_checkpoint_where_they_may_read_the_rest(plain: Path) -> None:
    assert len({oct(p.stat().st_mode) for p in plain.iterdir()}) == 1


def test_learning_rate_reaches_the_optimiser(tmp_path: Path) -> None:
    published = RECIPES["backei-mnist"]
    np.testing.assert_allclose(
        [published.lr_at(e) for e in (0, 39, 40, 80, 120, 199)], [1e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7], rtol=1e-9
    )
    fitting = Fitting(replace(QUICK, epochs=3), tmp_path / "run", device="cpu")
    used = [fitting.optimiser.param_groups[0]["lr"] for _ in fitting.epochs()]
    np.testing.assert_allclose(used, [0.02, 0.02, 0.002], rtol=1e-12)


def test_loss_is_the_mean_over_samples_and_classes() -> None:
    scores = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.25, 0.0]])
    assert fit.loss_of(QUICK, scores, torch.tensor([0, 2])).item() == pytest.approx((0.25 + 0.0625 + 1) / 6)


def test_diverged_training_stops_and_keeps_the_last_good_epoch(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(plain, tmp_path / "run")
    monkeypatch.setattr(fit, "loss_of", lambda recipe, scores, labels: scores.sum() * float("nan"))
    with pytest.raises(TrainError, match=r"epoch 5: the loss is nan.*lower lr"):
        train(tmp_path / "run", replace(QUICK, epochs=5), resume=True)
    monkeypatch.undo()
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "run", "resume").values())
    assert len(rows(tmp_path / "run")) == 4


def test_start_from_the_weights_of_another_run(plain: Path, tmp_path: Path) -> None:
    fitting = Fitting(replace(QUICK, seed=9, lr=1e-4), tmp_path / "tuned", device="cpu", start_from=plain)
    best = weights(plain, "best")
    assert all(torch.equal(best[k], v) for k, v in fitting.net.state_dict().items())
    config = json.loads((tmp_path / "tuned/config.json").read_text())
    assert config["from"] == str(plain.resolve()) and config["recipe"]["seed"] == 9
    for other, says in (
        (replace(QUICK, architecture="5C3-P2-10"), r"conv1\.(weight|bias)"),
        (replace(QUICK, sfbm=False), "feedback"),
    ):
        with pytest.raises(TrainError, match=says):
            Fitting(other, tmp_path / "misfit", device="cpu", start_from=plain)
        assert not (tmp_path / "misfit").exists()


@pytest.mark.parametrize("field, value", [("lr", 0.5), ("steps", 4), ("seed", 2), ("architecture", "5C3-10")])
def test_resume_refuses_a_changed_config(plain: Path, field: str, value: Any) -> None:
    before = contents(plain)
    says = rf"{field} was {re.escape(str(getattr(QUICK, field)))} and is now {value}"
    with pytest.raises(TrainError, match=says):
        Fitting(replace(QUICK, **{field: value}), plain, device="cpu", resume=True)
    assert contents(plain) == before


def test_resume_refuses_other_data_and_other_weights(plain: Path, tmp_path: Path) -> None:
    run = shutil.copytree(plain, tmp_path / "run")
    with pytest.raises(TrainError, match="--from"):
        Fitting(QUICK, run, device="cpu", resume=True, start_from=plain)
    config = json.loads((run / "config.json").read_text())
    config["data"]["checksum"]["images and labels"] = "sha256:0"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainError, match="checksums differ"):
        Fitting(QUICK, run, device="cpu", resume=True)


def test_a_run_is_never_overwritten(plain: Path) -> None:
    before = contents(plain)
    with pytest.raises(TrainError, match=r"not empty.*--resume"):
        Fitting(QUICK, plain, device="cpu")
    assert contents(plain) == before


def test_command_line_trains_draws_and_tells(tmp_path: Path, plain: Path) -> None:
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["fit", *settings(QUICK), "--out", str(out)])
    assert result.exit_code == 0, result.output
    same(out, plain)
    pictures = {p.name for p in out.iterdir()} - TRAINED
    assert pictures == {"curves.png", "activity.png", "confusion.png"}
    for name in pictures:
        with Image.open(out / name) as image:
            image.load()
            assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 20)) > 50
    # the row of the epoch that `best` holds, and the last row
    lines, epoch = rows(out), runs.load(out / "best.safetensors")[1]["epoch"]
    for name, row in (("best", lines[epoch]), ("last", lines[-1])):
        right = round(360 * row["test_accuracy"])
        assert f"{name}: test accuracy {100 * right / 360:.2f} % ({right} of 360)" in result.stdout
        told = CliRunner().invoke(app, ["evaluate", str(out), "--checkpoint", name])
        assert f"{name}: test accuracy {100 * right / 360:.2f} % of 360 samples" in told.stdout
    assert f"eiexport {out} --target" in result.stdout
    assert result.stdout.count("epoch ") >= 4 and "6C3-P2-10, SFBM+BEIM, T=3" in result.stdout


def test_rate_code() -> None:
    recipe = replace(NOISY, steps=4000)
    x = np.array([0, 0.1, 0.5, 0.9, 1], np.float32).reshape(1, 1, 1, 5)
    spikes = prepare(recipe, x, np.random.default_rng(0))
    assert spikes.shape == (4000, 1, 1, 1, 5) and set(spikes.unique().tolist()) == {0, 1}
    mean = spikes.mean(0).flatten().numpy()
    assert mean[0] == 0 and mean[-1] == 1
    np.testing.assert_allclose(mean, x.flatten(), atol=5 * np.sqrt(0.25 / 4000))  # five standard deviations
    assert not torch.equal(spikes[0], spikes[1]) or not torch.equal(spikes[1], spikes[2])


def test_direct_code_and_events() -> None:
    x = np.random.default_rng(1).random((2, 1, 3, 3), np.float32)
    direct = prepare(QUICK, x, np.random.default_rng(0))
    assert direct.shape == (1, 2, 1, 3, 3) and np.array_equal(direct[0].numpy(), x)
    events = np.random.default_rng(1).integers(0, 2, (2, 5, 1, 3, 3)).astype(np.float32)
    assert np.array_equal(prepare(NOISY, events, np.random.default_rng(0)).numpy(), events.swapaxes(0, 1))


def test_encoded_samples_do_not_depend_on_their_neighbours() -> None:
    split = data.load("digits").test
    found = encode(NOISY, split, np.array([5, 2, 5]))
    assert found.shape == (3, 3, 1, 8, 8) and found.dtype == np.float32
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1:2], encode(NOISY, split, np.array([2])))
    shown = encode(QUICK, split, np.array([5]))
    assert np.array_equal(shown, np.repeat(split.batch(np.array([5]))[:, None], 3, 1))


def test_training_draws_new_codes_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def watched(recipe: Recipe, x: np.ndarray, generator: Any, training: bool = False) -> torch.Tensor:
        if training:
            seen.append(prepare(recipe, np.full((1, 1, 8, 8), 0.5, np.float32), generator).numpy())
        return prepare(recipe, x, generator, training)

    monkeypatch.setattr(fit, "prepare", watched)
    train(tmp_path / "run", replace(NOISY, epochs=2, batches=2))
    assert len({a.tobytes() for a in seen}) == len(seen) == 4


@pytest.mark.parametrize("recipe", [QUICK, NOISY], ids=["quick", "noisy"])
def test_evaluation_counts_what_happened(recipe: Recipe) -> None:
    """Deterministic, without dropout, and each number recomputed here."""
    digits, part = data.load("digits"), np.arange(40)
    torch.manual_seed(0)
    net = recipe.net(digits.shape)
    score, again = (evaluate(net, recipe, digits.test, part, 10, torch.device("cpu")) for _ in range(2))
    assert np.array_equal(score.confusion, again.confusion) and (score.loss, score.layers) == (again.loss, again.layers)
    confusion, loss, spikes = np.zeros((10, 10), int), 0.0, []
    for start in range(0, 40, recipe.batch):
        now = part[start : start + recipe.batch]
        record: dict[str, torch.Tensor] = {}
        x = prepare(recipe, digits.test.batch(now), np.random.default_rng([recipe.seed, start]))
        with torch.no_grad():
            scores = net.eval()(x, recipe.steps, record)
        for label, found in zip(digits.test.labels[now], scores, strict=True):
            confusion[label, int(found.argmax())] += 1
            loss += float(((found - torch.eye(10)[label]) ** 2).mean()) / 40
        spikes.append(record["neuron1"])
    z = torch.cat(spikes, 1)
    assert np.array_equal(score.confusion, confusion) and score.loss == pytest.approx(loss, rel=1e-5)
    layer = score.layers["neuron1"]
    assert z.any() and layer["rate"] == pytest.approx(float(z.abs().mean()), rel=1e-5)
    assert layer["negative"] == pytest.approx(float((z < 0).sum() / (z != 0).sum()), rel=1e-5)
    assert layer["positive"] + layer["negative"] == pytest.approx(1)


def test_silent_layers_are_named() -> None:
    digits = data.load("digits")
    net = QUICK.net(digits.shape)
    with torch.no_grad():
        net.linear1.weight.zero_()
        net.linear1.bias.zero_()
    score = evaluate(net, QUICK, digits.test, np.arange(20), 10, torch.device("cpu"))
    assert score.silent == ["neuron2"] and score.layers["neuron2"] == {"rate": 0, "positive": 0, "negative": 0}


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """torchrun: each process takes half of the samples, gradients are averaged, one of them writes and prints."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "eitrain.cli"]
    command = [*torchrun, "fit", "--device", "cpu", "--out", str(tmp_path / "run"), *settings(replace(QUICK, epochs=2))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [r["epoch"] for r in rows(tmp_path / "run")] == [0, 1]
    assert done.stdout.count("best: test accuracy") == 1
    alone = train(tmp_path / "alone", replace(QUICK, epochs=2))
    # twice the samples a step: neither the same run nor another experiment
    pair = rows(tmp_path / "run")
    assert pair[-1]["train_loss"] != alone[-1]["train_loss"]
    assert abs(pair[-1]["train_loss"] - alone[-1]["train_loss"]) < 0.02
