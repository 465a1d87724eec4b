"""Training: one loop for every recipe, on Fabric; a seed gives the same CPU run bit for bit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional

from eiexport import calibrate, divide, graph
from eiexport.plans import Plan
from eitrain import data, insight, learning, recipes, runs
from eitrain.architectures import classes_of
from eitrain.cells import Cell
from eitrain.circuits import SPARSE
from eitrain.data import Dataset, Split
from eitrain.errors import TrainError
from eitrain.integer import IntegerNet
from eitrain.learning import Learner
from eitrain.nets import SpikingNet
from eitrain.recipes import Recipe
from eitrain.runs import Run
from eitrain.schedule import Phase
from targets.denominators import denominators
from targets.observe import observe
from targets.pytorch import device_of

Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass
class Score:
    """What an evaluation found: confusion[true, predicted], and per layer rate and share of +1 and -1 spikes.

    rate: spikes (of either sign) per neuron and step. positive, negative: share of the spikes with that sign.
    """

    confusion: np.ndarray
    loss: float = 0.0
    layers: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / max(1, self.confusion.sum()))

    @property
    def silent(self) -> list[str]:
        """Layers without a single spike."""
        return [n for n, layer in self.layers.items() if layer["rate"] == 0]


def prepare(recipe: Recipe, x: np.ndarray, generator: np.random.Generator, training: bool = False) -> Tensor:
    """A batch of samples as network input, (T, B, C, H, W), or (1, B, ...) for direct encoding.

    x: images (B, C, H, W) in [0, 1], or event frames (B, T, C, H, W).
    """
    if recipe.augment and training:
        x = recipe.augmentation(x, generator)
    x = recipe.augmentation.resize(x)
    if x.ndim == 5:
        return torch.from_numpy(np.ascontiguousarray(np.swapaxes(x, 0, 1)))
    if recipe.normalise:
        x = recipe.augmentation.normalise(x)
    if recipe.encoder == "rate":
        return torch.from_numpy((x > generator.random((recipe.steps, *x.shape), np.float32)).astype(np.float32))
    if recipe.encoder == "latency":
        return latency(torch.from_numpy(x), recipe.steps)
    return torch.from_numpy(np.ascontiguousarray(x[None]))


def latency(x: Tensor, steps: int) -> Tensor:
    """One spike a pixel, at step round((1 - pixel) (steps - 1)): brightest first, black last.

    x: images (B, C, H, W) in [0, 1]; result (steps, B, C, H, W).
    """
    when = ((1 - x) * (steps - 1)).round().long().unsqueeze(0)
    return torch.zeros(steps, *x.shape, dtype=x.dtype).scatter_(0, when, 1.0)


def encode(recipe: Recipe, split: Split, indices: np.ndarray) -> np.ndarray:
    """Network input of given samples with time written out, float32 (sample, T, C, H, W); rate: drawn by index."""
    chunks = []
    for i in indices:
        x = prepare(recipe, split.batch(np.array([i])), np.random.default_rng([recipe.seed, int(i)]))
        chunks.append(x.expand(recipe.steps if len(x) == 1 else len(x), *x.shape[1:]).transpose(0, 1).numpy())
    return np.concatenate(chunks)


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, recipe: Recipe, split: Split, indices: np.ndarray, classes: int, device: torch.device
) -> Score:
    """Accuracy, confusion matrix and layer activity on `indices` of a split; rate codes are drawn by (seed, batch)."""
    model.eval()
    cells = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, Cell)}
    score, seen = Score(np.zeros((classes, classes), np.int64)), 0
    sums: dict[str, Tensor] = {}
    for start in range(0, len(indices), recipe.batch):
        part = indices[start : start + recipe.batch]
        x = prepare(recipe, split.batch(part), np.random.default_rng([recipe.seed, start])).to(device)
        record: dict[str, Tensor] = {}
        scores = model(x, recipe.steps, record)
        labels = torch.from_numpy(split.labels[part])
        np.add.at(score.confusion, (labels.numpy(), scores.argmax(1).cpu().numpy()), 1)
        score.loss += float(loss_of(recipe, scores, labels.to(device))) * len(part)
        seen += len(part)
        for name, z in record.items():
            if name not in cells:
                continue
            counts = torch.stack([(z > 0).sum(), (z < 0).sum(), torch.tensor(z.numel(), device=z.device)])
            sums[name] = sums.get(name, 0) + counts.cpu().to(torch.float64)
    score.loss /= max(1, seen)
    for name, (up, down, entries) in sums.items():
        spikes = max(1.0, float(up + down))
        shares = {"positive": float(up) / spikes, "negative": float(down) / spikes}
        score.layers[name] = {"rate": float((up + down) / entries), **shares}
    return score


def loss_of(recipe: Recipe, scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, or MSE to one-hot, mean over samples and classes (BackEISNN's code; the paper sums classes)."""
    if recipe.loss == "cross_entropy":
        return functional.cross_entropy(scores, labels)
    return functional.mse_loss(scores, functional.one_hot(labels, scores.shape[1]).to(scores.dtype))


class Fitting:
    """One training run: `epochs()` trains and yields a metrics row after each epoch is safely stored."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        data_dir: Path | None = None,
        device: str = "auto",
        resume: bool = False,
        start_from: Path | None = None,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self.recipe, self.run, self.progress = recipe, Run(out), progress
        accelerator = "cuda" if device_of(device).type == "cuda" else "cpu"
        # several devices only when torchrun started that many processes
        self.fabric = Fabric(accelerator=accelerator, devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self.fabric.launch()
        if recipe.resume_from_best and self.fabric.world_size > 1:
            raise TrainError("resume_from_best keeps the best weights in one process: train with a single device")
        if resume and start_from is not None:
            raise TrainError("--resume goes on with a run's own weights: leave --from out")
        data_dir = self.run.data_dir(data_dir) if resume else data_dir
        self.dataset: Dataset = data.load(recipe.data, data_dir, steps=recipe.steps)
        if self.dataset.steps is not None and recipe.encoder != "direct":
            raise TrainError(f"encoder = {recipe.encoder!r}: {recipe.data} holds events already; give encoder=direct")
        classes = len(self.dataset.classes)
        if classes_of(recipe.architecture) not in (None, classes):
            raise TrainError(
                f"architecture {recipe.architecture!r} does not end with {classes}, {recipe.data}'s classes"
            )
        train, held = data.split_validation(self.dataset.train.labels, recipe.validation, recipe.seed)
        self.train_indices, self.held_indices = train, held
        torch.manual_seed(recipe.seed)
        net = recipe.net(recipe.shape(self.dataset.shape), classes).laid_out(self.fabric.device)
        self.names = [n for n, _ in net.named_parameters()]
        optimiser = _optimiser(recipe, net)
        self.watched = tuple(
            dict.fromkeys(n for p in recipe.phases.phases if p.rule.local for n in learning.layers_of(net, p.layers))
        )
        self.labelled = labelled(self.dataset.train.labels, train, recipe)
        self.notes: list[str] = []
        self.moments: dict[str, Tensor] = {}
        self.first, self.best = 0, -1.0
        self.best_weights: dict[str, Tensor] = {}
        self.rows: list[dict[str, Any]] = []
        if resume:
            self._resume(net, optimiser)
        else:
            self._begin(net, start_from, data_dir)
        self.fabric.barrier()
        self.net: SpikingNet = net
        # every process reads the plan that the first one wrote
        module = IntegerNet(net, self.run.plan(recipe.quantize)) if recipe.quantize else net
        self.module = module
        self.model, self.optimiser = self.fabric.setup(module, optimiser)
        if self.moments:  # on the device where the weights are now
            runs.restore_optimiser(optimiser, self.moments, self.names)
            self.moments = {}

    def _begin(self, net: SpikingNet, start_from: Path | None, data_dir: Path | None) -> None:
        if self.recipe.quantize and start_from is None:
            raise TrainError("training in integers goes on from float weights: give --from RUN")
        if self.recipe.divide != "exact" and start_from is None:
            raise TrainError(f"divide = {self.recipe.divide!r} goes on from trained weights: give --from RUN")
        self._start(net, start_from)
        if not self.fabric.is_global_zero:
            return
        path = self.run.path
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise TrainError(f"{path}: exists and is not empty; choose another --out, or continue it with --resume")
        came = {} if start_from is None else {"from": str(start_from.resolve())}
        folder = None if data_dir is None else str(data_dir.resolve())
        about = {
            "name": self.dataset.name,
            "folder": folder,
            "source": self.dataset.source,
            "checksum": self.dataset.checksum,
        }
        if self.recipe.quantize:
            self.run.write_json("plan.json", self._calibrated(net).to_json())
        config = {"recipe": recipes.to_config(self.recipe), "data": about, **came, **runs.provenance()}
        self.run.write_json("config.json", config)

    def _start(self, net: SpikingNet, source: Path | None) -> None:
        """What comes before the first epoch: another run's weights, or E-I Init on the first batch."""
        recipe = self.recipe
        if source is not None:
            self._take_weights(net, source)
        elif net.circuits and recipe.ei_init:
            # what the first step of a single process will see
            order = np.random.default_rng([recipe.seed, 0]).permutation(len(self.labelled))[: recipe.batch]
            images = self.dataset.train.batch(self.labelled[order])
            x = prepare(recipe, images, np.random.default_rng([recipe.seed, 0, 0]), training=True)
            if flat := net.initialise(x, recipe.steps):
                self.notes.append(
                    f"E-I Init: {', '.join(flat)} got nothing, or the same in every row, from the first batch, and "
                    f"starts as for spikes of probability {SPARSE}"
                )

    def _calibrated(self, net: SpikingNet) -> Plan:
        """Scales for the integer network, chosen on training samples and kept from then on."""
        network = graph.check(divide.fold(net.graph()))
        return calibrate.choose(network, observe(network, self._calibrating()), self.recipe.quantize)

    def _take_weights(self, net: SpikingNet, source: Path) -> None:
        path = Run(source).checkpoint("best")
        before = Run(source).recipe()  # says in one line what is no run folder
        weights, _ = runs.load(path)
        if self.recipe.divide in ("exact", before.divide):
            runs.load_weights(net, weights, path)
            return
        # the circuits' own division tells what takes its place
        shape = self.recipe.shape(self.dataset.shape)
        exact = replace(self.recipe, divide="exact").net(shape, len(self.dataset.classes))
        own = exact.state_dict().keys()
        runs.load_weights(exact, {k: v for k, v in weights.items() if k in own}, path)
        net.load_state_dict(exact.state_dict(), strict=False)
        network = graph.check(exact.graph())
        for name, numbers in divide.choose(network, denominators(network, self._calibrating())).items():
            if name in net.circuits:
                net.circuits[name].calibrate(numbers)

    def _calibrating(self) -> Iterator[np.ndarray]:
        """Encoded training samples, by which numbers are chosen that stay."""
        picked = calibration_samples(self.recipe, self.train_indices)
        return (encode(self.recipe, self.dataset.train, picked[i : i + 50]) for i in range(0, len(picked), 50))

    def _resume(self, net: SpikingNet, optimiser: torch.optim.Optimizer) -> None:
        stored = self.run.recipe()
        mine, theirs = recipes.to_config(self.recipe), recipes.to_config(stored)
        if changed := [k for k in mine if mine[k] != theirs[k] and k != "epochs"]:
            key = changed[0]
            raise TrainError(f"--resume continues the same config, but {key} was {theirs[key]} and is now {mine[key]}")
        before = self.run.config().get("data", {}).get("checksum")
        if before != self.dataset.checksum:
            raise TrainError(
                f"--resume: {self.dataset.name} here is not the data the run was trained on (checksums differ)"
            )
        checkpoint = self.run.checkpoint("resume")
        if checkpoint.is_file():
            tensors, meta = runs.load(checkpoint)
            weights = {k: v for k, v in tensors.items() if not k.startswith(("optimiser.", "best."))}
            runs.load_weights(net, weights, checkpoint)
            self.best_weights = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
            self.moments = tensors
            self.first, self.best = meta["epoch"] + 1, meta["best"]
            self.rows = self.run.read_metrics(self.first)
        else:  # stopped within its first epoch: begin again
            source = self.run.config().get("from")
            self._start(net, None if source is None else Path(source))
        if self.first > self.recipe.epochs:
            raise TrainError(
                f"{self.run.path}: has {self.first} epochs already, more than --epochs {self.recipe.epochs}"
            )
        if theirs["epochs"] != mine["epochs"] and self.fabric.is_global_zero:
            self.run.write_json("config.json", {**self.run.config(), "recipe": mine})

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train the epochs that are left. After each: best, metrics, last and resume are on disk."""
        classes = len(self.dataset.classes)
        seen = watched(self.recipe, self.dataset.train, self.held_indices)[0] if self.net.circuits else None
        for epoch in range(self.first, self.recipe.epochs):
            began = time.perf_counter()
            phase = self.recipe.phases.phase_at(epoch)
            if self.recipe.resume_from_best and self.recipe.phases.starts(epoch):
                self.net.load_state_dict(self.best_weights)
            loss, updates = self._train(epoch, phase)
            runs.finite_weights(self.net, epoch, "stdp_lr" if phase.rule.local else "lr")
            held, test = (
                evaluate(self.module, self.recipe, split, indices, classes, self.fabric.device)
                for split, indices in (
                    (self.dataset.train, self.held_indices),
                    (self.dataset.test, np.arange(len(self.dataset.test))),
                )
            )
            row: dict[str, Any] = {
                "epoch": epoch,
                "phase": phase.rule.letter,
                "train_loss": loss,
                "val_loss": held.loss,
            }
            row |= {"val_accuracy": held.accuracy, "test_accuracy": test.accuracy, "lr": self.recipe.lr_at(epoch)}
            if self.watched:
                row |= {"updates": updates, "stdp_layers": list(learning.layers_trained(self.net, phase))}
            if seen is not None:
                row["circuits"] = insight.measure(self.net, seen.to(self.fabric.device), self.recipe.steps)
            row |= {"silent": test.silent, "layers": test.layers, "seconds": round(time.perf_counter() - began, 3)}
            self.rows.append(row)
            if self.fabric.is_global_zero:
                self._store(epoch, held.accuracy)
            self.fabric.barrier()
            yield row

    def _train(self, epoch: int, phase: Phase) -> tuple[float, dict[str, Any]]:
        """One epoch; everything random in it depends on (seed, epoch) alone, so a resumed run repeats it exactly.

        Returns the mean loss and, where any phase of the schedule uses STDP, what was done to each of its layers.
        """
        recipe, fabric = self.recipe, self.fabric
        generator = np.random.default_rng([recipe.seed, epoch, fabric.global_rank])
        torch.manual_seed((recipe.seed * 1_000_003 + epoch) * 64 + fabric.global_rank)
        seen = self.labelled if phase.rule.gradient else self.train_indices
        order = seen[np.random.default_rng([recipe.seed, epoch]).permutation(len(seen))]
        # every process takes as many samples, since each step waits for all
        order = order[fabric.global_rank : len(order) // fabric.world_size * fabric.world_size : fabric.world_size]
        batches = -(-len(order) // recipe.batch)
        batches = min(batches, recipe.batches) if recipe.batches else batches
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.lr_at(epoch)
        self.model.train()
        total = 0.0
        learner = Learner(
            self.model, self.net, self.optimiser, phase, recipe.stdp(epoch), self.watched, fabric.backward, self._reduce
        )
        for i in range(batches):
            if recipe.by_iteration:
                for group in self.optimiser.param_groups:
                    group["lr"] = recipe.lr_at(epoch + i / batches)
            part = order[i * recipe.batch : (i + 1) * recipe.batch]
            x = prepare(recipe, self.dataset.train.batch(part), generator, training=True).to(fabric.device)
            labels = torch.from_numpy(self.dataset.train.labels[part]).to(fabric.device)
            loss = learner.iterate(x, labels, recipe.steps, partial(loss_of, recipe))
            total += runs.finite(float(loss), epoch)
            self.progress(f"epoch {epoch + 1}/{recipe.epochs}", i + 1, batches)
        mean = fabric.all_reduce(torch.tensor(total / batches, dtype=torch.float64))
        return float(mean), learner.rows()  # type: ignore[arg-type]

    def _reduce(self, x: Tensor, how: str) -> Tensor:
        return self.fabric.all_reduce(x, reduce_op=how) if self.fabric.world_size > 1 else x  # type: ignore[return-value]

    def _store(self, epoch: int, accuracy: float) -> None:
        """best, metrics, last, and resume at the very end: it names the epoch that a later start goes on from."""
        runs.dale(self.net, epoch)
        weights = dict(self.net.state_dict())
        if accuracy > self.best:
            self.best = accuracy
            if self.recipe.resume_from_best:
                self.best_weights = {k: v.detach().clone() for k, v in weights.items()}
            runs.save(self.run.checkpoint("best"), weights, {"epoch": epoch, "val_accuracy": accuracy})
        self.run.write_metrics(self.rows)
        runs.save(self.run.checkpoint("last"), weights, {"epoch": epoch, "val_accuracy": accuracy})
        everything = weights | runs.optimiser_state(self.optimiser, self.names)
        # the file `best` may be of an epoch that is repeated after a kill
        everything |= {f"best.{k}": v for k, v in self.best_weights.items()}
        runs.save(self.run.checkpoint("resume"), everything, {"epoch": epoch, "best": self.best})

    def scores(self) -> dict[str, Score]:
        """Test scores of the stored `best` and `last`."""
        found = {}
        for name in runs.CHECKPOINTS:
            model, _ = load_model(self.run, name, self.dataset)
            model.to(self.fabric.device)
            whole = np.arange(len(self.dataset.test))
            classes = len(self.dataset.classes)
            found[name] = evaluate(model, self.recipe, self.dataset.test, whole, classes, self.fabric.device)
        return found


def _optimiser(recipe: Recipe, net: SpikingNet) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.Adam(net.parameters(), recipe.lr, weight_decay=recipe.weight_decay)


def labelled(labels: np.ndarray, train: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Training samples whose labels gradients may use: all, or `recipe.labels` of each class, drawn by the seed."""
    if not recipe.labels:
        return train
    order = np.random.default_rng([recipe.seed, 2]).permutation(train)
    classes = labels[order]
    rank = np.zeros(len(order), np.int64)
    for c in np.unique(classes):
        rank[classes == c] = np.arange((classes == c).sum())
    return np.sort(order[rank < recipe.labels])


def calibration_samples(recipe: Recipe, train: np.ndarray, most: int = 100) -> np.ndarray:
    """Training samples that scales are chosen by: never test samples, nor those that choose the best epoch."""
    return np.random.default_rng([recipe.seed, 1]).permutation(train)[:most]


def watched(recipe: Recipe, split: Split, held: np.ndarray, most: int = 64) -> tuple[Tensor, np.ndarray]:
    """(network input, labels) of the validation samples that circuits are watched on: the same after every epoch."""
    generator = np.random.default_rng([recipe.seed, 4])
    picked = generator.permutation(held)[:most]
    return prepare(recipe, split.batch(picked), generator), split.labels[picked]


def load_model(run: Run, checkpoint: str, dataset: Dataset) -> tuple[SpikingNet | IntegerNet, dict[str, Any]]:
    """The network as the run trained it, in float or in integers, and its checkpoint's metadata."""
    path, recipe = run.checkpoint(checkpoint), run.recipe()
    tensors, meta = runs.load(path)
    net = recipe.net(recipe.shape(dataset.shape), len(dataset.classes))
    runs.load_weights(net, tensors, path)
    return (IntegerNet(net, run.plan(recipe.quantize)) if recipe.quantize else net).eval(), meta
