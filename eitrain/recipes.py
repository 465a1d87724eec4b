"""Recipes: everything a training run is made of, as one frozen value. Names are SYSTEM-DATA[-VARIANT]."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from eiexport.ops import Ints
from eiexport.plans import BITS
from eitrain.errors import TrainError
from eitrain.nets import SpikingNet, backeisnn


@dataclass(frozen=True)
class Recipe:
    """One training set-up. Defaults are BackEISNN's (arXiv 2105.13004 and its code): Adam 1e-3, lr x0.1 every 40
    epochs, batch 100, MSE against one-hot (mean over samples and classes), T = 20, direct encoding.

    steps: T. encoder: "direct" (the image at every step) or "rate" (spike where pixel > uniform[0, 1), drawn anew each
    step); event data is its own input. sfbm, beim: the two gates. validation: share of the training data on which
    `best` is chosen. batches: 0 = whole epochs, else so many training steps an epoch. quantize: 0 = float, else the
    bits of the integer network whose own forward pass is trained.
    """

    name: str
    data: str
    architecture: str
    epochs: int
    system: str = "backei"
    padding: int = 0
    gate_kernel: int = 3
    sfbm: bool = True
    beim: bool = True
    dropout: float = 0.0
    init_gain: float = 3.0
    steps: int = 20
    encoder: str = "direct"
    augment: bool = False
    normalise: bool = False
    batch: int = 100
    batches: int = 0
    lr: float = 1e-3
    lr_drop: float = 0.1
    lr_every: int = 40
    validation: float = 0.1
    seed: int = 4150
    quantize: int = 0

    @property
    def gates(self) -> str:
        """The gates that are on, in words."""
        return "+".join(k for k, on in (("SFBM", self.sfbm), ("BEIM", self.beim)) if on) or "no gates"

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch (from 0)."""
        return self.lr * self.lr_drop ** (epoch // self.lr_every)

    def net(self, shape: Ints) -> SpikingNet:
        """The untrained network for inputs of `shape` (C, H, W)."""
        gates: dict[str, Any] = {"sfbm": self.sfbm, "beim": self.beim, "gate_kernel": self.gate_kernel}
        rest: dict[str, Any] = {"padding": self.padding, "dropout": self.dropout, "init_gain": self.init_gain}
        return backeisnn(self.architecture, shape, **gates, **rest)


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


def _ablations(recipe: Recipe) -> tuple[Recipe, ...]:
    """The paper's ablation (section 4.5): one gate, or none; both is the recipe itself."""
    switches: dict[str, Any] = {
        "sfbm": {"beim": False},
        "beim": {"sfbm": False},
        "none": {"sfbm": False, "beim": False},
    }
    return tuple(replace(recipe, name=f"{recipe.name}-{k}", **off) for k, off in switches.items())


RECIPES: dict[str, Recipe] = {r.name: r for r in (*_BASE, *_RATE, *(a for r in _BASE for a in _ablations(r)))}
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
    return replace(recipe, lr=recipe.lr / 10, epochs=min(recipe.epochs, 4))


def adjust(recipe: Recipe, settings: list[str]) -> Recipe:
    """The recipe with `key=value` settings applied and checked; raises TrainError naming key and valid values."""
    types = {f.name: type(getattr(recipe, f.name)) for f in fields(recipe) if f.name not in ("name", "system")}
    changed: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or key not in types:
            raise TrainError(f"--set {text}: expected key=value, with key one of {', '.join(types)}")
        try:
            changed[key] = _parse(value, types[key])
        except ValueError:
            kind = {bool: "bool (true or false)"}.get(types[key], types[key].__name__)
            raise TrainError(f"--set {text}: {key} is {kind}, {value!r} is not") from None
    return verify(replace(recipe, **changed))


def _parse(value: str, kind: type) -> Any:
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if value.lower() not in words:
            raise ValueError(value)
        return words[value.lower()]
    return kind(value)


def verify(recipe: Recipe) -> Recipe:
    """The recipe itself; raises TrainError where a value is out of range."""
    at_least = {
        "epochs": 1,
        "steps": 1,
        "batch": 1,
        "batches": 0,
        "lr_every": 1,
        "gate_kernel": 1,
        "padding": 0,
        "seed": 0,
    }
    for key, least in at_least.items():
        if getattr(recipe, key) < least:
            raise TrainError(f"{key} = {getattr(recipe, key)}: must be at least {least}")
    for key, above, below in (("lr", 0, 10), ("lr_drop", 0, 1.0001), ("init_gain", 0, 1e3), ("validation", 0, 1)):
        if not above < getattr(recipe, key) < below:
            raise TrainError(f"{key} = {getattr(recipe, key)}: must lie between {above} and {below:g}")
    if recipe.quantize and recipe.quantize not in BITS:
        raise TrainError(f"--quantize {recipe.quantize}: weights take {BITS[0]} to {BITS[-1]} bits")
    if recipe.seed >= 2**31:
        raise TrainError(f"seed = {recipe.seed}: must be below 2**31")
    if (recipe.augment or recipe.normalise) and recipe.data != "cifar10":
        raise TrainError(f"augment and normalise are made for cifar10's images, not for {recipe.data}")
    if not 0 <= recipe.dropout < 1:
        raise TrainError(f"dropout = {recipe.dropout}: must lie in [0, 1)")
    if recipe.encoder not in ("direct", "rate"):
        raise TrainError(f"encoder = {recipe.encoder!r}; valid: direct, rate")
    if recipe.encoder == "rate" and recipe.normalise:
        raise TrainError("encoder = 'rate' needs pixels in [0, 1]; normalised pixels below 0 could never spike")
    return recipe


def from_config(d: dict[str, Any]) -> Recipe:
    """A recipe from a stored run's config; raises TrainError for unknown or missing fields."""
    known = {f.name for f in fields(Recipe)}
    d = {"quantize": 0, **d}  # a field that runs of before its time do not have
    if set(d) != known:
        odd = sorted(set(d) ^ known)
        raise TrainError(f"the run's config has other fields than this version ({', '.join(odd)}): train it again")
    for f in fields(Recipe):
        number = isinstance(d[f.name], int) and f.type == "float"
        if type(d[f.name]).__name__ != f.type and not number:
            raise TrainError(f"the run's config holds {f.name} = {d[f.name]!r}, which is no {f.type}: train it again")
    return verify(Recipe(**d))


def to_config(recipe: Recipe) -> dict[str, Any]:
    return asdict(recipe)
