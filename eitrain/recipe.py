"""A recipe: everything a training run is made of, as one frozen value, and what is checked of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from eiexport.ops import Ints
from eiexport.plans import BITS
from eitrain import schedule as schedules
from eitrain.architectures import CIRCUITS, DEEP, backeisnn, deep, ei_network, spiking_cnn
from eitrain.augment import AUGMENTATIONS, Augmentation, augmentation
from eitrain.circuits import Prop
from eitrain.errors import TrainError
from eitrain.nets import SpikingNet
from eitrain.schedule import Schedule
from eitrain.stdp import STDP

PROP = ("ei_init", "stabilise", "straight_through", "scale_gradients")  # DeepEISNN's E-I Init and E-I Prop
OWN = {  # fields that are for the networks of some systems alone
    "backei": ("sfbm", "beim", "gate_kernel", "dropout", "init_gain"),
    "eicil": ("width", "spiking_head"),
    "biril": ("width", "spiking_head"),
    "deepei": ("width", "batchnorm", "divide", *PROP),
}
DIVISIONS = ("exact", "frozen", "shift", "table")
OPTIMISERS = ("adam", "sgd")
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
    optimiser: "adam", or "sgd" with momentum; weight_decay is for both. warmup: epochs in which the learning rate rises
    from start_lr. batchnorm: DeepEISNN's baseline. ei_init, stabilise, straight_through, scale_gradients: what makes
    its circuits trainable; each may be left out. divide: "exact", or the form that a chip divides in, which is then
    what is trained, from a trained run.
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
    optimiser: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup: int = 0
    start_lr: float = 1e-7
    batchnorm: bool = False
    ei_init: bool = True
    stabilise: bool = True
    straight_through: bool = True
    scale_gradients: bool = True
    divide: str = "exact"
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

    def lr_at(self, epoch: float) -> float:
        """Learning rate at an epoch (from 0), or within it: DeepEISNN's change by iteration, and all with a warm-up.

        Rises linearly from start_lr in `warmup` epochs; then lr (1 + cos(pi e / T_max)) / 2, e and T_max without the
        warm-up, or a drop every so many epochs.
        """
        if epoch < self.warmup:
            return self.start_lr + (self.lr - self.start_lr) * epoch / self.warmup
        return self.lr * self.lr_share(epoch)

    def lr_share(self, epoch: float) -> float:
        """What is left of the initial rates at an epoch."""
        if self.cosine:
            return (1 + math.cos(math.pi * (epoch - self.warmup) / (self.cosine - self.warmup))) / 2
        return self.lr_drop ** (epoch // self.lr_every)

    @property
    def by_iteration(self) -> bool:
        """True where the learning rate changes within an epoch."""
        return self.system == "deepei" or self.warmup > 0

    @property
    def augmentation(self) -> Augmentation:
        """What the system's recipes do with this data's training images, and how they normalise."""
        return augmentation(self.augmentation_style, self.data)

    @property
    def augmentation_style(self) -> str:
        """Rows of `eitrain.augment.AUGMENTATIONS`; EICIL's set-up is known from BIRIL's code alone."""
        return "biril" if self.system == "eicil" else self.system

    def shape(self, shape: Ints) -> Ints:
        """What enters the network of samples of `shape` (C, H, W)."""
        return self.augmentation.shape(shape)

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
        if self.warmup >= self.epochs:
            found.append(f"epochs = {self.epochs}, all of them warm-up (warmup = {self.warmup}): lr is never reached")
        if self.cosine and self.epochs > self.cosine:
            found.append(
                f"epochs = {self.epochs} > cosine = {self.cosine}: the learning rate reaches 0 and rises again"
            )
        return tuple(found)

    def net(self, shape: Ints, classes: int = 10) -> SpikingNet:
        """The untrained network for inputs of `shape` (C, H, W)."""
        if self.system == "deepei":
            prop = Prop(self.stabilise, self.straight_through, self.scale_gradients)
            given: dict[str, Any] = {"width": self.width, "batchnorm": self.batchnorm, "prop": prop}
            net = ei_network(self.architecture, shape, classes, **given)
            if self.divide != "exact":
                net.deploy(self.divide)
            return net
        if self.architecture in DEEP:
            return deep(self.architecture, shape, classes, width=self.width, spiking_head=self.spiking_head)
        if self.system != "backei":
            return spiking_cnn(self.architecture, shape, padding=self.padding, spiking_head=self.spiking_head)
        gates: dict[str, Any] = {"sfbm": self.sfbm, "beim": self.beim, "gate_kernel": self.gate_kernel}
        rest: dict[str, Any] = {"padding": self.padding, "dropout": self.dropout, "init_gain": self.init_gain}
        return backeisnn(self.architecture, shape, **gates, **rest)


def _verify_circuits(recipe: Recipe) -> None:
    """What DeepEISNN's networks ask for."""
    if recipe.architecture not in CIRCUITS:
        raise TrainError(f"architecture {recipe.architecture!r}; recipes of deepei know {', '.join(CIRCUITS)}")
    if recipe.width < 4 and not recipe.batchnorm:
        raise TrainError(
            f"width = {recipe.width}: a circuit has one inhibitory cell for 4 others; give width=4 or more"
        )
    if recipe.divide not in DIVISIONS:
        raise TrainError(f"divide = {recipe.divide!r}; valid: {', '.join(DIVISIONS)}")
    if recipe.batchnorm and (off := [k for k in ("divide", *PROP) if getattr(recipe, k) != getattr(Recipe, k)]):
        raise TrainError(f"{off[0]} = {getattr(recipe, off[0])}: the baseline with batchnorm has no circuits")
    if recipe.phases.local:
        raise TrainError(f"schedule = {recipe.schedule!r}: circuits are trained by gradients; give schedule=G")
    if recipe.quantize and recipe.divide in ("shift", "table", "exact") and not recipe.batchnorm:
        raise TrainError(
            f"--quantize with divide = {recipe.divide}: only frozen denominators fold into weights that can be trained "
            "in integers; fine-tune with --divide frozen first"
        )


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
        "warmup": 0,
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
    if recipe.system == "deepei" and recipe.normalise:
        raise TrainError(
            "normalise = true: a circuit's input must not be negative (Dale's law), and images with mean and standard "
            "deviation taken off are; give normalise=false"
        )
    if recipe.normalise and not recipe.augmentation.std and recipe.augmentation != Augmentation():
        raise TrainError(f"normalise: recipes of {recipe.system} have no mean and deviation for {recipe.data}")
    if (recipe.augment or recipe.normalise) and recipe.augmentation == Augmentation():
        known = ", ".join(d for style, d in AUGMENTATIONS if style == recipe.augmentation_style)
        raise TrainError(f"augment and normalise, in recipes of {recipe.system}, know {known}, not {recipe.data}")
    if not 0 <= recipe.dropout < 1:
        raise TrainError(f"dropout = {recipe.dropout}: must lie in [0, 1)")
    if recipe.encoder not in ENCODERS:
        raise TrainError(f"encoder = {recipe.encoder!r}; valid: {', '.join(ENCODERS)}")
    if recipe.loss not in ("mse", "cross_entropy"):
        raise TrainError(f"loss = {recipe.loss!r}; valid: mse, cross_entropy")
    mine = OWN[recipe.system]
    for key in {k: None for keys in OWN.values() for k in keys if k not in mine}:
        if getattr(recipe, key) != getattr(Recipe, key):
            raise TrainError(
                f"{key} = {getattr(recipe, key)}: recipes of {recipe.system} do not have it, but {', '.join(mine)}"
            )
    if recipe.system == "backei" and recipe.architecture in (*DEEP, *CIRCUITS):
        raise TrainError(f"architecture {recipe.architecture!r} has no gates: take a recipe of eicil, biril or deepei")
    if recipe.system == "deepei":
        _verify_circuits(recipe)
    if recipe.optimiser not in OPTIMISERS:
        raise TrainError(f"optimiser = {recipe.optimiser!r}; valid: {', '.join(OPTIMISERS)}")
    for key, above, below in (("momentum", 0, 1), ("weight_decay", 0, 1), ("start_lr", 0, 10)):
        if not above <= getattr(recipe, key) < below:
            raise TrainError(f"{key} = {getattr(recipe, key)}: must lie in [{above}, {below})")
    if recipe.warmup and recipe.cosine and recipe.cosine <= recipe.warmup:
        raise TrainError(f"cosine = {recipe.cosine}: must be more than warmup = {recipe.warmup}")
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
    d = {**{k: getattr(Recipe, k) for k in later}, **d}  # fields that runs of before their time do not have
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
