"""Recipes: everything a training run is made of, as one frozen value. Names are SYSTEM-DATA[-VARIANT]."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from eiexport.ops import Ints
from eiexport.plans import BITS
from eitrain import schedule as schedules
from eitrain.architectures import DEEP, backeisnn, deep, spiking_cnn
from eitrain.augment import AUGMENTATIONS, Augmentation, augmentation
from eitrain.errors import TrainError
from eitrain.nets import SpikingNet
from eitrain.schedule import Schedule
from eitrain.stdp import STDP

CHAIN = ("sfbm", "beim", "gate_kernel", "dropout", "init_gain")  # fields of BackEISNN's networks alone
DEEPER = ("width", "spiking_head")  # fields of EICIL's and BIRIL's alone
ENCODERS = ("direct", "rate", "latency")


@dataclass(frozen=True)
class Recipe:
    """One training set-up. Defaults are BackEISNN's (arXiv 2105.13004 and its code): Adam 1e-3, lr x0.1 every 40
    epochs, batch 100, MSE against one-hot (mean over samples and classes), T = 20, direct encoding.

    steps: T. encoder: "direct" (the image at every step), "rate" (spike where pixel > uniform[0, 1), drawn anew each
    step) or "latency" (one spike a pixel, brighter is earlier); event data is its own input. sfbm, beim: the two
    gates. validation: share of the training data on which `best` is chosen. batches: 0 = whole epochs, else so many
    training steps an epoch. quantize: 0 = float, else the bits of the integer network whose own forward is trained.
    loss: "mse" of scores to one-hot, or "cross_entropy". cosine: T_max of a cosine schedule in epochs, 0: steps.
    width: maps of the first layer of a named architecture. spiking_head: neurons behind its last layer too.
    schedule: which rule trains which epoch (`eitrain.schedule.FORMS`). resume_from_best: each new phase starts from
    the best weights so far; Adam's moments go on. labels: training samples a class that gradients see, 0: all (phase P
    sees them all).
    stdp_*: fields of `eitrain.stdp.STDP`; its step size follows the learning rate's schedule. stdp_low = stdp_high:
    no bounds.
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
    loss: str = "mse"
    cosine: int = 0
    width: int = 64
    spiking_head: bool = False
    schedule: str = "G"
    resume_from_best: bool = False
    labels: int = 0
    stdp_layers: str = "conv"
    stdp_lr: float = STDP.lr
    stdp_tau_pre: float = STDP.tau_pre
    stdp_tau_post: float = STDP.tau_post
    stdp_decay: str = STDP.decay
    stdp_same_step: str = STDP.same_step
    stdp_pairs: str = STDP.pairs
    stdp_weight: str = STDP.weight
    stdp_a_plus: float = STDP.a_plus
    stdp_a_minus: float = STDP.a_minus
    stdp_mean: bool = STDP.mean
    stdp_low: float = 0.0
    stdp_high: float = 0.0
    stdp_keep_norm: bool = STDP.keep_norm
    stdp_reward: bool = STDP.reward
    stdp_winners: int = STDP.winners

    @property
    def gates(self) -> str:
        """The gates that are on, in words."""
        if self.system != "backei":
            return "-"
        return "+".join(k for k, on in (("SFBM", self.sfbm), ("BEIM", self.beim)) if on) or "no gates"

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch (from 0): lr (1 + cos(pi epoch / T_max)) / 2, or a drop every so many epochs."""
        return self.lr * self.lr_share(epoch)

    def lr_share(self, epoch: int) -> float:
        """What is left of the initial rates in an epoch."""
        if self.cosine:
            return (1 + math.cos(math.pi * epoch / self.cosine)) / 2
        return self.lr_drop ** (epoch // self.lr_every)

    @property
    def augmentation(self) -> Augmentation:
        """What the system's recipes do with this data's training images, and how they normalise."""
        return augmentation(self.augmentation_style, self.data)

    @property
    def augmentation_style(self) -> str:
        """Rows of `eitrain.augment.AUGMENTATIONS`; EICIL's set-up is known from BIRIL's code alone."""
        return "biril" if self.system == "eicil" else self.system

    @property
    def phases(self) -> Schedule:
        """Which rule trains which epoch."""
        return schedules.parse(self.schedule, self.stdp_layers)

    def stdp(self, epoch: int = 0) -> STDP:
        """The plasticity rule, with its step size of an epoch."""
        given = {f.name: getattr(self, f"stdp_{f.name}") for f in fields(STDP)}
        if self.stdp_low == self.stdp_high:
            given |= {"low": -math.inf, "high": math.inf}
        return STDP(**given | {"lr": self.stdp_lr * self.lr_share(epoch)})

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know before the run starts."""
        found = [self.phases.remark] if self.phases.remark else []
        if self.phases.local and not any(self.phases.phase_at(e).rule.local for e in range(self.epochs)):
            found.append(f"the first {self.epochs} epochs of {self.schedule} hold no STDP")
        if self.cosine and self.epochs > self.cosine:
            found.append(
                f"epochs = {self.epochs} > cosine = {self.cosine}: the learning rate reaches 0 and rises again"
            )
        return tuple(found)

    def net(self, shape: Ints, classes: int = 10) -> SpikingNet:
        """The untrained network for inputs of `shape` (C, H, W)."""
        if self.architecture in DEEP:
            return deep(self.architecture, shape, classes, width=self.width, spiking_head=self.spiking_head)
        if self.system != "backei":
            return spiking_cnn(self.architecture, shape, padding=self.padding, spiking_head=self.spiking_head)
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
    gentle = replace(recipe, lr=recipe.lr / 10, epochs=min(recipe.epochs, 4))
    return replace(gentle, schedule="G", resume_from_best=False)  # integers are trained by gradients


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
        "cosine": 0,
        "width": 1,
        "labels": 0,
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
    if (recipe.augment or recipe.normalise) and recipe.augmentation == Augmentation():
        known = ", ".join(d for style, d in AUGMENTATIONS if style == recipe.augmentation_style)
        raise TrainError(f"augment and normalise, in recipes of {recipe.system}, know {known}, not {recipe.data}")
    if not 0 <= recipe.dropout < 1:
        raise TrainError(f"dropout = {recipe.dropout}: must lie in [0, 1)")
    if recipe.encoder not in ENCODERS:
        raise TrainError(f"encoder = {recipe.encoder!r}; valid: {', '.join(ENCODERS)}")
    if recipe.loss not in ("mse", "cross_entropy"):
        raise TrainError(f"loss = {recipe.loss!r}; valid: mse, cross_entropy")
    mine, others = (CHAIN, DEEPER) if recipe.system == "backei" else (DEEPER, CHAIN)
    for key in others:
        if getattr(recipe, key) != getattr(Recipe, key):
            raise TrainError(
                f"{key} = {getattr(recipe, key)}: recipes of {recipe.system} do not have it, but {', '.join(mine)}"
            )
    if recipe.system == "backei" and recipe.architecture in DEEP:
        raise TrainError(f"architecture {recipe.architecture!r} has no gates: take a recipe of eicil or biril")
    phases = recipe.phases  # refuses what is no schedule
    if recipe.stdp_reward and any(not p.rule.gradient for p in phases.phases):
        raise TrainError("stdp_reward uses labels, and phase P is without: leave one of them out")
    if recipe.encoder == "latency" and recipe.steps < 2:
        raise TrainError("encoder = 'latency' tells pixels apart by their step: give steps=2 or more")
    if recipe.quantize and phases.local:
        raise TrainError("--quantize trains by gradients: give --set schedule=G")
    recipe.stdp()
    if recipe.encoder != "direct" and recipe.normalise:
        raise TrainError(
            f"encoder = {recipe.encoder!r} needs pixels in [0, 1]; normalised pixels below 0 could never spike: "
            "give normalise=false"
        )
    return recipe


def from_config(d: dict[str, Any]) -> Recipe:
    """A recipe from a stored run's config; raises TrainError for unknown or missing fields."""
    known = {f.name for f in fields(Recipe)}
    later = [f.name for f in fields(Recipe)][[f.name for f in fields(Recipe)].index("quantize") :]
    d = {**{k: getattr(RECIPES[DEFAULT], k) for k in later}, **d}  # fields that runs of before their time do not have
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
