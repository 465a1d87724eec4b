"""Every recipe, built, trained, resumed, exported and compared on tiny files in the data's original format."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data import event, idx, write
from typer.testing import CliRunner

import eiexport.cli
import eitrain.cli
from eitrain import download, recipes
from eitrain.errors import TrainError
from eitrain.recipes import RECIPES, Recipe, adjust, find

LABELS = np.array([3, 3, 7, 7], np.uint8)  # two of a class: one to train on, one to validate on


def write_idx(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images = rng.integers(0, 256, (4, 28, 28), dtype=np.uint8)
        write(folder, {f"{part}-images-idx3-ubyte": idx(images), f"{part}-labels-idx1-ubyte": idx(LABELS)})


def write_cifar(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for name in download.CIFAR_PY_MD5:
        records = np.concatenate([LABELS[:, None], rng.integers(0, 256, (4, 3072), dtype=np.uint8)], axis=1)
        write(folder, {f"{name}.bin": records.tobytes()})


def write_nmnist(folder: Path) -> None:
    rng = np.random.default_rng(2)
    for part in ("Train", "Test"):
        for i, label in enumerate(LABELS):
            events = (event(x, y, p, t) for x, y, p, t in rng.integers(0, (34, 34, 2, 6000), (3000, 4)).tolist())
            write(folder / f"{part}/{label}", {f"{i:05d}.bin": b"".join(events)})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_idx(root / "MNIST/raw")
    write_idx(root / "FashionMNIST/raw")
    write_cifar(root / "cifar-10-batches-bin")
    write_nmnist(root / "NMNIST")
    return root


def invoke(app: Any, *arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def marks(name: str) -> Any:
    slow = name.startswith("backei-cifar10-")  # 16 million weights in each; the recipe itself is always run
    return pytest.param(name, marks=pytest.mark.slow) if slow else name


BACKEI = {name: recipe for name, recipe in RECIPES.items() if recipe.system == "backei"}
DEEP = {name: recipe for name, recipe in RECIPES.items() if recipe.system in ("eicil", "biril")}
DEEPEI = {name: recipe for name, recipe in RECIPES.items() if recipe.system == "deepei"}
TESTED = [marks(name) for name in BACKEI]


def test_no_recipe_is_listed_untested() -> None:
    names = [p if isinstance(p, str) else p.values[0] for p in TESTED]
    assert names == list(BACKEI) and len(set(names)) == 22
    assert BACKEI | DEEP | DEEPEI == RECIPES  # the others: test_local_recipes and test_ei_recipes
    assert [p.values[0] for p in TESTED if not isinstance(p, str)] == [
        f"backei-cifar10-{k}" for k in ("sfbm", "beim", "none")
    ]
    told = invoke(eitrain.cli.app, "recipes").stdout
    assert re.findall(r"^(backei-\S+)", told, re.M) == names


@pytest.mark.parametrize("name", TESTED)
def test_recipe_from_data_to_comparison(name: str, folder: Path) -> None:
    recipe, run = RECIPES[name], folder / "run"
    # weights large enough that a spike passes every layer within the two steps
    changes = ["batch=2", "batches=1", "steps=2", "init_gain=12"]
    common = ["fit", name, "--out", run, *(a for c in changes for a in ("--set", c)), "--device", "cpu"]
    invoke(eitrain.cli.app, *common, "--epochs", 1)
    told = invoke(eitrain.cli.app, *common, "--epochs", 2, "--resume")
    assert "resumed after epoch 1" in told.stdout and "epoch 2/2" in told.stdout
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1] and all(np.isfinite(line["train_loss"]) for line in lines)
    assert lines[-1]["layers"]["neuron1"]["rate"] > 0

    targets = ["--target", "reference", "--target", "torch"]
    samples = 1 if recipe.data == "cifar10" else 3
    invoke(eiexport.cli.app, run, *targets, "--samples", samples)
    report = json.loads((run / "export/report.json").read_text())
    assert (report["samples"], report["steps"]) == (samples, 2)
    assert {n: t["status"] for n, t in report["targets"].items()}.keys() == {"reference", "torch", "torch32"}
    for target in report["targets"].values():
        assert target["status"] in ("equal", "explained") and target["compared_with"] == "trained"
        assert target["nodes"]["neuron1"]["spikes"] > 0
        assert {n for n in target["nodes"] if n.startswith("neuron")} == set(lines[0]["layers"])


def test_recipes_are_the_published_ones() -> None:
    for r in BACKEI.values():
        if r.data != "digits":
            assert (r.lr, r.lr_drop, r.lr_every, r.batch, r.epochs, r.seed) == (1e-3, 0.1, 40, 100, 200, 4150)
        assert r.encoder == ("rate" if r.name.endswith("-rate") else "direct")
        assert (r.augment, r.normalise, r.dropout) == ((True, True, 0.5) if r.data == "cifar10" else (False, False, 0))
        gates = {"sfbm": (True, False), "beim": (False, True), "none": (False, False)}
        assert (r.sfbm, r.beim) == gates.get(r.name.rsplit("-", 1)[1], (True, True))
    steps = {n: (r.steps, r.gate_kernel) for n, r in BACKEI.items()}
    assert steps["backei-mnist"] == (20, 5) and steps["backei-fashion"] == (20, 3)
    assert steps["backei-fashion-rate"] == (30, 5) and steps["backei-cifar10"] == (20, 3)
    assert steps["backei-nmnist"] == (100, 3)


@pytest.mark.parametrize("name", ["backei-minst", "mnist", "backei-mnist-sfmb", "BACKEI-MNIST", "x"])
def test_unknown_recipe_suggests_near_names(name: str) -> None:
    with pytest.raises(TrainError, match=r"unknown recipe") as caught:
        find(name)
    message = str(caught.value)
    near = re.search(r"did you mean (.*)\?", message)[1].split(" or ")
    assert near and set(near) <= RECIPES.keys() and repr(name) in message and "`eitrain recipes`" in message
    if "min" in name or "sfmb" in name:
        assert near[0] in ("backei-mnist", "backei-mnist-sfbm")


def test_settings_are_applied_with_their_types() -> None:
    given = ["epochs=7", "lr=1e-2", "sfbm=no", "augment=0", "architecture=4C3-10", "encoder=rate", "batch=1"]
    found = adjust(RECIPES["backei-mnist"], given)
    wanted = {"epochs": 7, "lr": 0.01, "sfbm": False, "augment": False, "architecture": "4C3-10", "encoder": "rate"}
    assert found == replace(RECIPES["backei-mnist"], **wanted, batch=1)
    assert adjust(found, []) == found and adjust(found, ["epochs=1", "epochs=2"]).epochs == 2


KEYS = [f.name for f in fields(Recipe) if f.name not in ("name", "system")]


@pytest.mark.parametrize(
    "setting, names",
    [
        ("learning_rate=1", ["learning_rate=1", *KEYS]),
        ("name=x", ["name=x", *KEYS]),
        ("epochs", ["key=value", *KEYS]),
        ("=5", ["key=value"]),
        ("epochs=1.5", ["epochs is int", "'1.5'"]),
        ("epochs=", ["epochs is int", "''"]),
        ("lr=fast", ["lr is float", "'fast'"]),
        ("sfbm=maybe", ["sfbm", "'maybe'", "true", "false"]),
        ("epochs=0", ["epochs = 0", "at least 1"]),
        ("epochs=-3", ["epochs = -3", "at least 1"]),
        ("steps=0", ["steps = 0", "at least 1"]),
        ("batch=0", ["batch = 0", "at least 1"]),
        ("batches=-1", ["batches = -1", "at least 0"]),
        ("lr_every=0", ["lr_every = 0", "at least 1"]),
        ("padding=-1", ["padding = -1", "at least 0"]),
        ("gate_kernel=0", ["gate_kernel = 0", "at least 1"]),
        ("seed=-1", ["seed = -1", "at least 0"]),
        ("seed=99999999999999999999", ["seed = 99999999999999999999", "2**31"]),
        ("lr=0", ["lr = 0", "between 0 and 10"]),
        ("lr=nan", ["lr = nan"]),
        ("lr=inf", ["lr = inf"]),
        ("lr_drop=2", ["lr_drop = 2"]),
        ("init_gain=0", ["init_gain = 0"]),
        ("validation=0", ["validation = 0", "between 0 and 1"]),
        ("validation=1", ["validation = 1"]),
        ("dropout=1", ["dropout = 1", "[0, 1)"]),
        ("dropout=-0.1", ["dropout = -0.1"]),
        ("dropout=nan", ["dropout = nan"]),
        ("encoder=poisson", ["'poisson'", "direct, rate"]),
        ("normalise=true", ["normalise", "cifar10"]),
        ("augment=true", ["augment", "cifar10"]),
    ],
)
def test_bad_setting_is_refused(setting: str, names: list[str], tmp_path: Path) -> None:
    result = invoke(eitrain.cli.app, "fit", "--out", tmp_path / "run", "--set", setting, code=2)
    (line,) = result.stderr.splitlines()
    assert all(n in line for n in names), line
    assert not (tmp_path / "run").exists()


def test_rate_coding_of_normalised_pixels_is_refused() -> None:
    with pytest.raises(TrainError, match=r"encoder = 'rate'.*\[0, 1\]"):
        adjust(RECIPES["backei-cifar10"], ["encoder=rate"])


def test_config_round_trip_and_foreign_fields() -> None:
    stored = json.loads(json.dumps(recipes.to_config(RECIPES["backei-cifar10-beim"])))
    assert recipes.from_config(stored) == RECIPES["backei-cifar10-beim"]
    for odd in ({**stored, "momentum": 1}, {k: v for k, v in stored.items() if k != "steps"}):
        with pytest.raises(TrainError, match=r"momentum|steps"):
            recipes.from_config(odd)
