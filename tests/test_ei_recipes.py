"""DeepEISNN's recipes: the published sizes and settings, each trained in full size, and small ones to a comparison."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import FIT, invoke
from test_data import write
from test_data_cifar10dvs import stream
from test_data_events import labels, packet, recording, some
from test_data_images import binary, cifar100, tiny_jpeg
from test_recipes import DEEPEI, write_cifar, write_idx

from eiexport import session
from eiexport.report import Report
from eitrain import fit, runs
from eitrain.architectures import CIRCUITS, ei_network
from eitrain.cells import Cell
from eitrain.circuits import Circuit
from eitrain.errors import TrainError
from eitrain.export import open_run
from eitrain.fit import Fitting
from eitrain.nets import SpikingNet
from eitrain.recipes import adjust, deployed, find, fine_tuning

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def write_tinyimagenet(folder: Path) -> None:
    """Five classes of two images, and one of each to validate on."""
    ids = [f"n0000000{i}" for i in range(5)]
    files = {"wnids.txt": "\n".join(ids).encode(), "words.txt": b"\n".join(f"{n}\t{n}".encode() for n in ids)}
    rng = np.random.default_rng(3)
    for i, name in enumerate(ids):
        for k in range(2):
            files[f"train/{name}/images/{name}_{k}.JPEG"] = tiny_jpeg(tuple(rng.integers(0, 256, 3).tolist()))
        files[f"val/images/val_{i}.JPEG"] = tiny_jpeg(tuple(rng.integers(0, 256, 3).tolist()))
    rows = [f"val_{i}.JPEG\t{name}\t0\t0\t62\t62" for i, name in enumerate(ids)]
    write(folder, files | {"val/val_annotations.txt": "\n".join(rows).encode()})


def write_cifar10dvs(folder: Path) -> None:
    """Ten recordings a class, of which one is held out."""
    rng = np.random.default_rng(4)
    for name in NAMES:
        for n in range(10):
            events = zip(rng.integers(0, 2**15, 3000).tolist(), range(3000), strict=True)
            write(folder, {f"{name}/cifar10_{name}_{n}.aedat": stream(list(events))})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_idx(root / "MNIST/raw")
    write_idx(root / "FashionMNIST/raw")
    write_cifar(root / "cifar-10-batches-bin")
    train, test = cifar100([99, 99, 0, 0]), cifar100([99, 0])
    write(root / "cifar-100-binary", {"train.bin": binary(*train), "test.bin": binary(*test)})
    write_tinyimagenet(root / "tiny-imagenet-200")
    write_cifar10dvs(root / "CIFAR10DVS")
    events = recording(packet(some(1, 900, 0, 9000)), packet(some(2, 900, 9000, 18000)))
    rows = labels((2, 0, 9000), (2, 9000, 18000), (11, 0, 9000), (11, 9000, 18000))
    gestures = {f"trials_to_{part}.txt": f"user0{i}_led.aedat\n".encode() for i, part in enumerate(("train", "test"))}
    gestures |= {f"user0{i}_led.aedat": events for i in (0, 1)} | {f"user0{i}_led_labels.csv": rows for i in (0, 1)}
    write(root / "DvsGesture", gestures)
    return root


# --- networks


@pytest.mark.parametrize(
    "name, count",
    [
        ("vgg8", 5_048_714),
        ("vgg11", 11_834_570),
        ("vgg16", 18_856_378),
        ("vgg19", 25_642_234),
        ("resnet18", 14_401_226),
    ],
)
def test_parameter_counts(name: str, count: int) -> None:
    """A1."""
    with torch.device("meta"):
        net = ei_network(name, (3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) == count


SIDES = {
    "vgg5": [32, 16, 8],
    "vgg8": [32, 16, 8, 4, 2],
    "vgg11": [32, 16, 8, 8, 4, 4, 2, 2],
    "vgg16": [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2],
    "vgg19": [32, 32, 16, 16, *[8] * 4, *[4] * 4, *[2] * 4],
    "resnet18": [*[32] * 5, *[16] * 5, *[8] * 5, *[4] * 5],
}
MAPS = {
    "vgg5": [64, 128, 256],
    "vgg8": [64, 128, 256, 512, 512],
    "vgg11": [64, 128, 256, 256, *[512] * 4],
    "vgg16": [64, 64, 128, 128, *[256] * 3, *[512] * 6],
    "vgg19": [64, 64, 128, 128, *[256] * 4, *[512] * 8],
    "resnet18": [*[64] * 5, *[128] * 5, *[256] * 5, *[512] * 5],
}


@pytest.mark.parametrize("name", CIRCUITS)
def test_map_sizes(name: str) -> None:
    """A2: 32 pixels, or 48 of event frames, end in one; with 28 a pool is left out. vgg5 is ours, and ends before."""
    for shape, classes, left in (((3, 32, 32), 100, 4), ((2, 48, 48), 11, 6), ((1, 28, 28), 10, 3)):
        with torch.device("meta"):
            net = ei_network(name, shape, classes)
        *hidden, (last, readout) = net.circuits.items()
        assert last == "readout1" and readout.readout
        assert readout.w_ee.shape == (classes, MAPS[name][-1] * (left**2 if name == "vgg5" else 1))
        if shape[1] == 32:
            found = outputs(net, shape)
            assert sorted(found[n][1:] for n, _ in hidden) == sorted((k, k) for k in SIDES[name])
            assert [len(c.w_ee) for _, c in hidden] == [found[n][0] for n, _ in hidden] == MAPS[name]
            assert [found[n][1] for n, c in hidden if c.kernel == 3] == sorted(
                (found[n][1] for n, c in hidden if c.kernel == 3), reverse=True
            )


def outputs(net: SpikingNet, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes behind all modules."""
    seen: dict[str, tuple[int, ...]] = {}
    for n, m in net.named_children():
        if isinstance(m, Cell):
            m.over_time = lambda x: x  # type: ignore[method-assign]
        else:
            m.register_forward_hook(lambda m, given, out, n=n: seen.update({n: tuple(out.shape[1:])}))
    with torch.no_grad():
        net(torch.zeros(1, 1, *shape, device="meta"), 1)
    return seen


def test_widths() -> None:
    with torch.device("meta"):
        net = ei_network("resnet18", (3, 32, 32), 10, width=16)
    assert [len(c.w_ee) for c in net.circuits.values()] == [16] * 5 + [32] * 5 + [64] * 5 + [128] * 5 + [10]


# --- recipes


def test_recipes_are_the_published_ones() -> None:
    """Table 6.6: rate, warm-up and decay of every data set and network; 300 epochs of SGD with momentum."""
    table = {
        "cifar10": (4, 128, 2e-3, 10, 1e-7),
        "cifar10-vgg11": (4, 128, 2e-3, 10, 1e-7),
        **{f"cifar10-{k}": (4, 128, 1e-3, 30, 1e-7) for k in ("vgg16", "vgg19", "resnet18")},
        "cifar100": (4, 128, 1e-3, 30, 1e-7),
        "cifar100-vgg19": (4, 128, 1e-3, 30, 1e-7),
        "tinyimagenet": (4, 128, 3e-3, 10, 1e-3),
        "cifar10dvs": (10, 32, 1e-3, 10, 1e-7),
        "cifar10dvs-vgg11": (10, 32, 1e-3, 10, 1e-7),
        "dvsgesture": (16, 32, 1e-3, 10, 1e-7),
        "cifar10-bn": (4, 128, 0.1, 0, 1e-7),
        "cifar10-resnet18-bn": (4, 128, 0.1, 0, 1e-7),
    }
    ours = {f"deepei-{d}{k}" for d in ("digits", "mnist", "fashion") for k in ("", "-bn")}
    assert DEEPEI.keys() == {f"deepei-{k}" for k in table} | ours
    for key, found in table.items():
        r = DEEPEI[f"deepei-{key}"]
        assert (r.steps, r.batch, r.lr, r.warmup, r.start_lr) == found, key
        assert (r.epochs, r.cosine, r.optimiser, r.momentum, r.loss) == (300, 300, "sgd", 0.9, "cross_entropy")
        assert r.weight_decay == (1e-4 if key.endswith("-bn") else 5e-4) and r.batchnorm == key.endswith("-bn")
        assert (r.seed, r.augment, r.normalise, r.width, r.divide, r.encoder) == (
            2025,
            True,
            False,
            64,
            "exact",
            "direct",
        )
        usual = {"cifar100": "vgg16", "tinyimagenet": "resnet18"}.get(r.data, "vgg8")
        assert r.architecture == next((k for k in ("vgg11", "vgg16", "vgg19", "resnet18") if k in key), usual)
        assert r.ei_init and r.stabilise and r.straight_through and r.scale_gradients and not r.remarks
    for name in ours:
        assert DEEPEI[name] == replace(DEEPEI[name.removesuffix("-bn")], name=name, batchnorm=name.endswith("-bn"))
        assert DEEPEI[name].optimiser == "sgd" and not DEEPEI[name].remarks


def test_what_is_listed_and_runs() -> None:
    told = invoke(FIT, "recipes").stdout
    assert re.findall(r"^(deepei-\S+)", told, re.M) == list(DEEPEI)


def moved(net: SpikingNet, before: dict[str, torch.Tensor]) -> set[str]:
    return {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize("name", DEEPEI)
def test_recipe_in_full_size(name: str, folder: Path) -> None:
    """Two steps of SGD reach every layer, from spikes in every layer."""
    recipe = replace(DEEPEI[name], batch=2, batches=2, steps=2, epochs=1, warmup=0, cosine=300)
    recipe = replace(recipe, augment=recipe.augment and "dvs" not in name)  # crops of two made-up recordings are empty
    fitting = Fitting(recipe, folder / "run", device="cpu")
    net = fitting.net
    before = {k: v.clone() for k, v in net.state_dict().items()}
    loss, _ = fitting._train(0, recipe.phases.phase_at(0))
    assert np.isfinite(loss) and fitting.notes == []
    runs.dale(net, 0)
    idle = {k for k in before if k.startswith("readout1.") and k[9:] in ("g_i", "g_e", "b_e")}
    assert before.keys() - moved(net, before) == idle
    momenta = runs.optimiser_state(fitting.optimiser, fitting.names)
    assert {k[10:-16] for k, v in momenta.items() if v.any()} == {n for n in fitting.names if n not in idle}
    assert len(net.circuits) == 0 if recipe.batchnorm else all(isinstance(c, Circuit) for c in net.circuits.values())
    x = fit.prepare(recipe, fitting.dataset.test.batch(np.arange(2)), np.random.default_rng(0))
    assert tuple(x.shape[2:]) == recipe.shape(fitting.dataset.shape) == net.shape and x.min() >= 0
    record: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        scores = net(x, recipe.steps, record)
    assert scores.shape == (2, len(fitting.dataset.classes))
    if not recipe.batchnorm:
        assert [n for n, z in record.items() if n in net.cells and not z.any()] == []


def compared(run: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *targets: str, **options: Any) -> Report:
    """An export's rows, without the pictures of its report, which take most of the time."""
    samples = options.pop("samples", 2)
    monkeypatch.setattr(session.report, "write", lambda found, out: None)
    settings = session.Settings(targets, out, **options)
    return session.export(open_run(run, samples=samples), settings, lambda what, done, total: None)


SMALL = {  # each kind of network once, each kind of data once
    "deepei-digits": 8,
    "deepei-cifar10-resnet18": 8,
    "deepei-dvsgesture": 4,
    "deepei-mnist-bn": 4,
}


@pytest.mark.parametrize("name", SMALL)
def test_recipe_from_data_to_comparison(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder / "run"
    recipe = replace(DEEPEI[name], batch=4, batches=2, steps=2, width=SMALL[name], warmup=0, epochs=2)
    list(Fitting(replace(recipe, epochs=1), run, device="cpu").epochs())
    (row,) = Fitting(recipe, run, device="cpu", resume=True).epochs()
    assert row["epoch"] == 1 and np.isfinite(row["train_loss"])
    found = compared(run, run / "export", monkeypatch, "reference", "torch")
    assert (found.samples, found.steps, found.reference.name) == (2, 2, "trained")
    assert [r.name for r in found.rows] == ["reference", "torch", "torch32"]
    for target in (found.reference, *found.rows):
        assert target.status in ("equal", "explained"), target.message
        assert target.results["neuron1"].spikes > 0
        assert {n for n in target.results if n.startswith("neuron")} == set(row["layers"])
        assert ("readout1" in target.results) == (not recipe.batchnorm)


# --- fine-tuning recipes


def test_recipes_for_the_division_of_a_chip() -> None:
    base = find("deepei-cifar10")
    found = deployed(base, "frozen", from_weights=True)
    assert found == replace(base, divide="frozen", lr=1e-3, epochs=8, cosine=8, warmup=0)
    assert deployed(replace(base, epochs=3), "shift", from_weights=True).cosine == 3
    again = deployed(found, "table", from_weights=True)
    assert again == replace(found, divide="table")  # it was fine-tuning already
    whole = fine_tuning(found, from_weights=True)
    assert (whole.lr, whole.epochs, whole.cosine, whole.warmup) == (1e-4, 4, 4, 0)
    for name, form, given in (("backei-digits", "frozen", True), ("deepei-digits-bn", "frozen", True)):
        with pytest.raises(TrainError, match=rf"^--divide {form}: {name} has no circuits"):
            deployed(find(name), form, from_weights=given)
    with pytest.raises(TrainError, match="--from RUN"):
        deployed(base, "frozen", from_weights=False)


def test_integers_need_a_division_that_folds() -> None:
    base = replace(find("deepei-digits"), quantize=4)
    assert adjust(replace(base, divide="frozen"), []).quantize == 4
    for form in ("exact", "shift", "table"):
        with pytest.raises(TrainError, match=rf"divide = {form}: only frozen .*--divide frozen first"):
            adjust(base, [f"divide={form}"])
    assert adjust(replace(base, batchnorm=True), []).batchnorm


# --- what is refused


@pytest.mark.parametrize(
    "settings, names",
    [
        (["architecture=vgg9"], ["'vgg9'", "vgg5, vgg8, vgg11, vgg16, vgg19, resnet18"]),
        (["architecture=resnet8"], ["'resnet8'", "vgg5"]),
        (["normalise=true"], ["normalise"]),
        (["width=3"], ["width = 3", "give width=4"]),
        (["batchnorm=true", "ei_init=false"], ["ei_init = False", "batchnorm"]),
        (["batchnorm=true", "straight_through=false"], ["straight_through = False", "batchnorm"]),
        (["batchnorm=true", "divide=frozen"], ["divide = frozen", "batchnorm"]),
        (["schedule=M"], ["'M'", "schedule=G"]),
        (["schedule=GSGI:2"], ["'GSGI:2'", "schedule=G"]),
        (["divide=frozen"], ["divide = 'frozen'", "--from RUN"]),
        (["divide=half"], ["'half'", "exact, frozen, shift, table"]),
        (["warmup=20"], ["cosine = 20", "warmup = 20"]),
        (["momentum=1"], ["momentum = 1.0", "[0, 1)"]),
        (["weight_decay=-1"], ["weight_decay = -1.0"]),
        (["optimiser=rmsprop"], ["'rmsprop'", "adam, sgd"]),
        (["sfbm=false"], ["sfbm = False", "recipes of deepei"]),
        (["dropout=0.5"], ["dropout = 0.5", "recipes of deepei"]),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings: list[str], names: list[str], tmp_path: Path) -> None:
    given = [a for s in settings for a in ("--set", s)]
    result = invoke(FIT, "fit", "deepei-digits", "--out", tmp_path / "run", *given, code=2)
    (line,) = result.stderr.splitlines()
    assert [n for n in names if n not in line] == [] and not (tmp_path / "run").exists(), line


def test_fields_of_circuits_are_not_for_others(tmp_path: Path) -> None:
    for recipe, setting in (("backei-digits", "ei_init=false"), ("eicil-digits", "batchnorm=true")):
        told = invoke(FIT, "fit", recipe, "--out", tmp_path / "run", "--set", setting, code=2).stderr
        assert told.count("\n") == 1 and setting.split("=")[0] in told


def test_command_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = ["fit", "deepei-digits", "--epochs", 1, "--set", "batches=2", "--set", "width=8", "--out", out]
    told = invoke(FIT, *common, "--device", "cpu").stdout
    assert told.startswith("deepei-digits: vgg5, T=4, 8,178 parameters, cpu\n")
    assert "note: epochs = 1, all of them warm-up (warmup = 1)" in told and "epoch 1/1 [G]  loss " in told
    assert "best: test accuracy " in told and f"run folder: {out}" in told and f"next: eiexport {out}" in told
    (row,) = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    assert row["lr"] == 1e-4 and np.isfinite(row["train_loss"]) and row["circuits"]
