"""The recipes of EICIL and BIRIL in small: every network and every data set, from original files to a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data import write
from test_data_events import labels, packet, recording, some
from test_data_images import binary, cifar100, tiny_files
from test_recipes import DEEP, invoke, write_cifar, write_idx
from typer.testing import CliRunner

import eiexport.cli
import eitrain.cli

# each network once, each data set once; the other recipes differ in their schedule alone
FULL = {
    **{f"eicil-mnist{k}": "GM" for k in ("", "-vgg11", "-einet", "-einet-average")},
    "eicil-cifar10-gsi": "GS",
    "eicil-cifar100-stdp-bw": "SS",
    "biril-mnist": "GG",
    "biril-tinyimagenet": "GG",
    "biril-dvsgesture": "GG",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_idx(root / "MNIST/raw")
    write_cifar(root / "cifar-10-batches-bin")
    train, test = cifar100([99, 99, 0, 0]), cifar100([99, 0])
    write(root / "cifar-100-binary", {"train.bin": binary(*train), "test.bin": binary(*test)})
    write(root / "tiny-imagenet-200", tiny_files())
    events = recording(packet(some(1, 900, 0, 9000)), packet(some(2, 900, 9000, 18000)))
    rows = labels((2, 0, 9000), (2, 9000, 18000), (11, 0, 9000), (11, 9000, 18000))
    gestures = {f"trials_to_{part}.txt": f"user0{i}_led.aedat\n".encode() for i, part in enumerate(("train", "test"))}
    gestures |= {f"user0{i}_led.aedat": events for i in (0, 1)} | {f"user0{i}_led_labels.csv": rows for i in (0, 1)}
    write(root / "DvsGesture", gestures)
    return root


def run_fit(*arguments: object) -> Any:
    """A network that has seen two images may be silent in its deep layers, where STDP then finds nothing to do."""
    result = CliRunner().invoke(eitrain.cli.app, list(map(str, arguments)))
    assert result.exit_code == 0 or "check failed: STDP-inactive on" in result.stdout, result.output
    return result


def test_every_network_and_data_set_is_tested() -> None:
    tested = {(DEEP[n].data, DEEP[n].architecture) for n in FULL}
    assert {d for d, _ in tested} == {r.data for r in DEEP.values()} - {"digits"}
    assert {a for d, a in tested if d == "mnist"} == {r.architecture for r in DEEP.values() if r.data != "digits"}


@pytest.mark.parametrize("name", FULL)
def test_recipe_from_data_to_comparison(name: str, folder: Path) -> None:
    run, recipe = folder / "run", DEEP[name]
    changes = ["batch=2", "batches=1", "steps=2", "width=4", "stdp_lr=0.5"]
    changes += [] if recipe.data == "mnist" else ["architecture=resnet8"]  # deep ones take their time
    common = ["fit", name, "--out", run, *(a for c in changes for a in ("--set", c)), "--device", "cpu"]
    run_fit(*common, "--epochs", 1)
    told = run_fit(*common, "--epochs", 2, "--resume")
    assert "resumed after epoch 1" in told.stdout
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "".join(r["phase"] for r in rows) == FULL[name]
    for row in rows:
        assert np.isfinite(row["train_loss"])
        first = row["updates"]["conv1"]
        assert (first["stdp"] > 0) == (row["phase"] in "SM") and (first["gradient"] > 0) == (row["phase"] != "S")
        assert {n for n, u in row["updates"].items() if u["stdp"]} <= set(row["stdp_layers"])
    plasticity = json.loads((run / "plasticity.json").read_text())
    assert plasticity["phases"].keys() == set(FULL[name]) and "conv1" not in plasticity["inactive"]
    assert (run / "plasticity.png").read_bytes().startswith(b"\x89PNG")

    invoke(eiexport.cli.app, run, "--target", "reference", "--target", "torch", "--samples", 2)
    report = json.loads((run / "export/report.json").read_text())
    assert report["targets"].keys() == {"reference", "torch", "torch32"}
    for target in report["targets"].values():
        assert target["status"] in ("equal", "explained") and target["compared_with"] == "trained"
        assert target["nodes"]["neuron1"]["spikes"] > 0
        cells = {n for n in target["nodes"] if n.startswith("neuron")}
        assert cells == set(rows[0]["layers"])
        assert ("linear2" if "biril-" in name and recipe.data == "mnist" else "linear1") in target["nodes"]


def test_inactive_stdp_is_told_and_fails(folder: Path) -> None:
    run = folder / "run"
    common = ["fit", "eicil-digits", "--out", run, "--set", "width=4", "--set", "batches=2", "--epochs", 2]
    told = invoke(eitrain.cli.app, *common, "--set", "stdp_lr=1e-7", code=1)
    assert "check failed: STDP-inactive on conv1" in told.stdout and "raise stdp_lr" in told.stdout
    assert (run / "last.safetensors").is_file()  # the run itself is whole
    assert json.loads((run / "plasticity.json").read_text())["inactive"].keys() >= {"conv1", "conv7"}


def test_a_step_that_turns_weights_around_is_told(folder: Path) -> None:
    common = ["fit", "eicil-digits", "--out", folder / "run", "--set", "width=4", "--set", "batches=2", "--epochs", 2]
    told = invoke(eitrain.cli.app, *common, "--set", "stdp_mean=false").stdout
    assert "warning: conv1: lr x largest drive = " in told and "stdp_mean=true" in told


def test_schedule_prints_letters_first_and_draws(folder: Path) -> None:
    told = invoke(eitrain.cli.app, "schedule", "biril-cifar10", "--draw", folder / "s.png").stdout.splitlines()
    assert told[0] == "GGSGGMGGMGGM" and "1:8:3" in told[1] and "320 epochs" in told[1]
    assert (folder / "s.png").read_bytes().startswith(b"\x89PNG")
    shares = [line for line in told if line.startswith("  ")]
    assert [line.split()[0] for line in shares] == ["G", "S", "M"]
    assert shares[1].split()[1].startswith("..#.........") and "27 (8.4 %)" in shares[1]
    told = invoke(eitrain.cli.app, "schedule", "eicil-mnist", "--set", "schedule=GSI:-3", "--epochs", 400).stdout
    assert told.startswith("GSS\n") and "reaches 0 and rises again" in told


@pytest.mark.parametrize(
    "setting,parts",
    [
        ("schedule=GSI:1", ["K = 1", "2, 3"]),
        ("schedule=GSI:0", ["K = 0"]),
        ("schedule=GSX:2", ["'GSX:2'", "GSI:K", "S:G:M"]),
        ("schedule=1:4", ["'1:4'", "ratio"]),
        ("schedule=GSI:3@3", ["offset 3", "0 to 2"]),
        ("schedule=", ["schedule ''"]),
        ("stdp_layers=all", ["'all'", "conv, last, both"]),
        ("stdp_weight=soft", ["[0, 1]", "magnitude"]),
        ("stdp_tau_pre=0.5", ["stdp_tau_pre = 0.5", "at least 1"]),
        ("stdp_a_minus=-1", ["stdp_a_minus", "subtracted"]),
        ("loss=hinge", ["'hinge'", "mse, cross_entropy"]),
        ("width=0", ["width = 0"]),
        ("dropout=0.5", ["dropout = 0.5", "recipes of eicil"]),
        ("stdp_winners=-1", ["stdp_winners = -1"]),
    ],
)
def test_bad_settings_are_refused_in_one_line(setting: str, parts: list[str], folder: Path) -> None:
    result = invoke(eitrain.cli.app, "fit", "eicil-digits", "--out", folder / "run", "--set", setting, code=2)
    told = result.stderr.strip()
    assert "\n" not in told and all(p in told for p in parts), told
    assert not (folder / "run").exists()


def test_the_last_layer_needs_neurons_behind_it(folder: Path) -> None:
    common = ["fit", "eicil-digits", "--out", folder / "run", "--set", "stdp_layers=last", "--epochs", 2]
    small = ["--set", "width=4", "--set", "batches=1"]
    told = invoke(eitrain.cli.app, *common, *small, code=2).stderr
    assert "feeds no neurons" in told and "spiking_head=true" in told and not (folder / "run").exists()
    invoke(eitrain.cli.app, *common, *small, "--set", "spiking_head=true", "--set", "stdp_lr=1")
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["stdp_layers"] for r in rows] == [[], ["linear1"]]


def small(folder: Path, *settings: str, epochs: int = 2, code: int = 0) -> Any:
    changes = [a for s in ("width=4", "batches=2", *settings) for a in ("--set", s)]
    return invoke(
        eitrain.cli.app, "fit", "eicil-digits", "--out", folder / "run", "--epochs", epochs, *changes, code=code
    )


def test_what_uses_labels_is_not_called_unlabelled(folder: Path) -> None:
    told = small(folder, "schedule=P", "stdp_reward=true", code=2).stderr
    assert "stdp_reward uses labels" in told


def test_weights_that_are_no_numbers_end_the_run(folder: Path) -> None:
    told = small(folder, "schedule=GS", "stdp_lr=1e30", "stdp_weight=identity", epochs=3, code=2).stderr
    assert "epoch 2: " in told and "lower stdp_lr" in told
    rows = (folder / "run/metrics.jsonl").read_text().splitlines()
    assert len(rows) == 1 and "NaN" not in rows[0]


def test_one_value_a_channel_is_refused(folder: Path) -> None:
    told = small(folder, "steps=1", "batch=1", code=2).stderr
    assert "BatchNorm cannot train on one value a channel" in told and told.count("\n") == 1


def test_bounds_are_not_counted_as_plasticity(folder: Path) -> None:
    """Bounds wipe out negative weights at once: that is no work of STDP's."""
    told = small(folder, "schedule=GS", "stdp_weight=soft", "stdp_high=1", "stdp_lr=0", code=1).stdout
    assert "check failed: STDP-inactive on conv1" in told
    row = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[1])
    assert row["updates"]["conv1"]["stdp"] == 0 and row["updates"]["conv1"]["projected"] > 0.1


def test_a_schedule_that_never_comes_to_stdp_says_so(folder: Path) -> None:
    assert "the first 2 epochs of GGM hold no STDP" in small(folder, "schedule=GGM").stdout


def test_many_classes_are_drawn_in_bounded_time(folder: Path) -> None:
    from eitrain import figures
    from eitrain.fit import Score

    matrix = np.random.default_rng(0).integers(0, 3, (200, 200))
    figures.confusion(Score(matrix), tuple(map(str, range(200))), folder / "c.png", "200 classes")
    assert 0 < (folder / "c.png").stat().st_size < 1_000_000
