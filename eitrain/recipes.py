"""The recipes by name, SYSTEM-DATA[-VARIANT]: the published set-ups, and small ones of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from eitrain.errors import TrainError
from eitrain.recipe import Recipe, adjust, from_config, to_config

__all__ = [
    "DEFAULT",
    "RECIPES",
    "Recipe",
    "adjust",
    "deployed",
    "find",
    "fine_tuning",
    "from_config",
    "to_config",
]


_BASE = (
    Recipe("backei-digits", "digits", "16C3-P2-32C3-P2-64-10", 24, padding=1, steps=8, batch=32, validation=0.15),
    Recipe("backei-mnist", "mnist", "15C5-P2-40C5-P2-300-10", 200, gate_kernel=5),
    Recipe("backei-fashion", "fashion", "32C5-P2-64C5-P2-1024-10", 200, padding=2),
    Recipe(
        "backei-cifar10",
        "cifar10",
        "128C3-P2-256C3-P2-512C3-P2-1024-10",
        200,
        padding=1,
        dropout=0.5,
        augment=True,
        normalise=True,
    ),
    Recipe("backei-nmnist", "nmnist", "12C5-P2-64C5-P2-10", 200, steps=100),
)
_RATE = (
    replace(_BASE[1], name="backei-mnist-rate", encoder="rate"),
    replace(_BASE[2], name="backei-fashion-rate", encoder="rate", steps=30, gate_kernel=5),
)


_EICIL = Recipe(
    "eicil-mnist",
    "mnist",
    "resnet18",
    320,
    system="eicil",
    steps=4,
    batch=64,
    loss="cross_entropy",
    cosine=320,
    schedule="GSGI:2",
    augment=True,
    normalise=True,
    seed=230,
)
_BIRIL = replace(_EICIL, name="biril-mnist", system="biril", architecture="biril", schedule="1:6:2")


def _eicil() -> Iterator[Recipe]:
    """EICIL (NeurIPS 2023): three networks on three data sets; the set-up is that of its descendant code (BIRIL's).

    T = 4, Adam 1e-3, batch 64, cosine to 0 at epoch 320 (the code trains on to 350, while the rate rises again).
    Without variant: ResNet-18 under GSGI with K = 2; the paper's other methods are variants.
    """
    methods = {"gs": "G", "stdp-bw": "S", "stdp-bw-gs": "M", "gsi": "GSI:2"}
    for data in ("mnist", "cifar10", "cifar100"):
        base = replace(_EICIL, name=f"eicil-{data}", data=data)
        yield base
        yield from (replace(base, name=f"{base.name}-{k}", schedule=v) for k, v in methods.items())
        for k in ("vgg11", "einet", "einet-average"):
            yield replace(base, name=f"{base.name}-{k}", architecture=k)


def _biril() -> Iterator[Recipe]:
    """BIRIL: its network and, for each data set, the ratio S:G:M that was best in its table 2."""
    best = {"mnist": "1:6:2", "cifar10": "1:8:3", "cifar100": "1:8:3", "tinyimagenet": "1:8:3"}
    yield from (replace(_BIRIL, name=f"biril-{k}", data=k, schedule=v) for k, v in best.items())
    frames: dict[str, Any] = {"steps": 16, "batch": 4, "augment": False, "normalise": False, "schedule": "2:6:1"}
    yield replace(_BIRIL, name="biril-dvsgesture", data="dvsgesture", **frames)


_DEEPEI = Recipe(
    "deepei-cifar10",
    "cifar10",
    "vgg8",
    300,
    system="deepei",
    steps=4,
    batch=128,
    loss="cross_entropy",
    optimiser="sgd",
    lr=2e-3,
    weight_decay=5e-4,
    warmup=10,
    cosine=300,
    augment=True,
    seed=2025,
)


def _deepei() -> Iterator[Recipe]:
    """DeepEISNN (arXiv 2509.23253, settings of its code): SGD, warm-up and cosine by iteration, cross entropy.

    `-bn`: the same network with BatchNorm, in the settings of the paper's baseline.
    """
    deeper: dict[str, Any] = {"lr": 1e-3, "warmup": 30}
    yield _DEEPEI
    yield replace(_DEEPEI, name="deepei-cifar10-vgg11", architecture="vgg11")
    for k in ("vgg16", "vgg19", "resnet18"):
        yield replace(_DEEPEI, name=f"deepei-cifar10-{k}", architecture=k, **deeper)
    baseline: dict[str, Any] = {"batchnorm": True, "lr": 0.1, "weight_decay": 1e-4, "warmup": 0}
    for k in ("vgg8", "resnet18"):
        yield replace(_DEEPEI, name=f"deepei-cifar10-{k}-bn".replace("-vgg8", ""), architecture=k, **baseline)
    for k in ("vgg16", "vgg19"):
        name = f"deepei-cifar100-{k}".replace("-vgg16", "")
        yield replace(_DEEPEI, name=name, data="cifar100", architecture=k, **deeper)
    small: dict[str, Any] = {"architecture": "resnet18", "lr": 3e-3, "start_lr": 1e-3}
    yield replace(_DEEPEI, name="deepei-tinyimagenet", data="tinyimagenet", **small)
    events: dict[str, Any] = {"lr": 1e-3, "batch": 32}
    for k in ("vgg8", "vgg11"):
        name = f"deepei-cifar10dvs-{k}".replace("-vgg8", "")
        yield replace(_DEEPEI, name=name, data="cifar10dvs", architecture=k, steps=10, **events)
    yield replace(_DEEPEI, name="deepei-dvsgesture", data="dvsgesture", steps=16, **events)
    # ours, for two cores: narrow, few epochs, a rate that gets somewhere in them
    quick: dict[str, Any] = {"lr": 5e-3, "warmup": 1, "start_lr": 1e-4, "augment": False, "width": 16, "batch": 64}
    for data, epochs, more in (
        ("digits", 20, {"architecture": "vgg5", "width": 32, "lr": 1e-2, "batch": 32, "validation": 0.15}),
        ("mnist", 5, {}),
        ("fashion", 8, {}),
    ):
        one = replace(_DEEPEI, name=f"deepei-{data}", data=data, epochs=epochs, cosine=epochs, **quick | more)
        yield one
        yield replace(one, name=f"{one.name}-bn", batchnorm=True)


_SMALL: dict[str, Any] = {
    "data": "digits",
    "architecture": "resnet8",
    "width": 16,
    "lr": 1e-2,
    "epochs": 12,
    "cosine": 12,
    "batch": 32,
    "augment": False,
    "normalise": False,
    "validation": 0.15,
}
_LOCAL = (
    replace(_EICIL, name="eicil-digits", **_SMALL),
    replace(_BIRIL, name="biril-digits", **_SMALL | {"architecture": "biril8", "schedule": "1:8:3"}),
    *_eicil(),
    *_biril(),
    *_deepei(),
)


def _ablations(recipe: Recipe) -> tuple[Recipe, ...]:
    """The paper's ablation (section 4.5): one gate, or none; both is the recipe itself."""
    switches: dict[str, Any] = {
        "sfbm": {"beim": False},
        "beim": {"sfbm": False},
        "none": {"sfbm": False, "beim": False},
    }
    return tuple(replace(recipe, name=f"{recipe.name}-{k}", **off) for k, off in switches.items())


RECIPES: dict[str, Recipe] = {r.name: r for r in (*_BASE, *_RATE, *(a for r in _BASE for a in _ablations(r)), *_LOCAL)}
DEFAULT = _BASE[0].name


def find(name: str) -> Recipe:
    """A recipe by name; raises TrainError with the nearest names for an unknown one."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 3) or [DEFAULT]
        raise TrainError(f"unknown recipe {name!r}; did you mean {' or '.join(near)}? `eitrain recipes` lists all")
    return RECIPES[name]


def fine_tuning(recipe: Recipe, *, from_weights: bool) -> Recipe:
    """The recipe for training in integers from trained weights: a tenth of the learning rate, at most 4 epochs."""
    if not from_weights:
        raise TrainError("--quantize trains on from float weights: give --from RUN")
    if recipe.quantize:
        return recipe  # it was fine-tuning already
    # integers are trained by gradients
    return replace(_going_on(recipe, 0.1, 4), schedule="G", resume_from_best=False)


def deployed(recipe: Recipe, form: str, *, from_weights: bool) -> Recipe:
    """The recipe for training on with a division that a chip has: half the rate, at most 8 epochs."""
    if form == "exact":
        raise TrainError("--divide exact is what recipes train: give frozen, shift or table")
    if recipe.system != "deepei" or recipe.batchnorm:
        raise TrainError(f"--divide {form}: {recipe.name} has no circuits, and so no division")
    if not from_weights:
        raise TrainError("--divide trains on from a run's weights: give --from RUN")
    if recipe.divide != "exact":
        return replace(recipe, divide=form)  # it was fine-tuning already
    return replace(_going_on(recipe, 0.5, 8), divide=form)


def _going_on(recipe: Recipe, rate: float, most: int) -> Recipe:
    """For training on: a share of the learning rate, at most so many epochs, no warm-up."""
    epochs = min(recipe.epochs, most)
    cosine = epochs if recipe.system == "deepei" else recipe.cosine
    return replace(recipe, lr=recipe.lr * rate, epochs=epochs, cosine=cosine, warmup=0)
