"""Where local learning helps and where it does not: unsupervised STDP features, and STDP inside gradient training.

    python benchmarks/local_search.py --data-dir DATA [--only PART] [--write]

features (MNIST): one spiking layer with random, STDP-learnt or gradient-trained kernels; its pooled spike counts, a
logistic regression on few labels, 2,000 test images. networks (digits): a small spiking ResNet whose schedule or
plasticity rule differs, everything else equal. Three seeds each; about 10 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from eitrain import data, fit, recipes, runs
from eitrain.architectures import IF
from eitrain.cells import Cell
from eitrain.samples import Dataset
from eitrain.stdp import STDP

RESULTS = Path(__file__).parent / "results/local_search.json"
PARTS = ("features", "ablations", "networks")
SEEDS, LABELS, STEPS, TEST = (0, 1, 2), (5, 20, 100), 8, 2000
RULE = STDP(
    lr=20, tau_pre=4, tau_post=4, decay="exponential", weight="soft", low=0, high=1, winners=1
)  # w in [0, 1]; only the map with the largest potential learns
KERNELS = {"8 maps 7x7": (8, 7), "32 maps 7x7": (32, 7), "50 neurons 28x28": (50, 28)}
NOISE = {
    "salt and pepper 20 %": lambda x, r: np.where(r.random(x.shape) < 0.2, r.integers(0, 2, x.shape), x),
    "Gaussian 0.3": lambda x, r: (x + 0.3 * r.standard_normal(x.shape)).clip(0, 1),
}


class Layer(nn.Module):
    """conv - minus the mean over maps (lateral inhibition) - BatchNorm - IF; features are pooled spike counts."""

    def __init__(self, weight: Tensor, lateral: bool = True) -> None:
        super().__init__()
        kernel = weight.shape[-1]
        stride, padding, self.pool = (1, 0, 1) if kernel == 28 else (2, kernel // 2, 4)
        self.conv = nn.Conv2d(1, len(weight), kernel, stride, padding, bias=False)
        self.conv.weight.data = weight.clone()
        self.norm, self.cell = nn.BatchNorm2d(len(weight), affine=False, momentum=None), Cell(**IF)
        self.lateral = lateral

    def forward(self, x: Tensor) -> Tensor:
        c = self.conv(fit.latency(x, STEPS + 1)[:STEPS].flatten(0, 1))  # the step left out is that of black pixels
        c = self.norm(inhibited(c, 1) if self.lateral else c)
        z = self.cell.over_time(c.view(STEPS, -1, *c.shape[1:]))
        return functional.adaptive_avg_pool2d(z.sum(0), self.pool).flatten(1)

    @torch.no_grad()
    def calibrate(self, x: np.ndarray) -> Layer:
        """Statistics of BatchNorm from unlabelled images."""
        self.norm.reset_running_stats()
        self.train()(torch.from_numpy(x))
        return self.eval()

    @torch.no_grad()
    def counts(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([self(torch.from_numpy(p)).numpy() for p in np.array_split(x, -(-len(x) // 100))])


def inhibited(current: Tensor, maps: int) -> Tensor:
    return current - current.mean(maps, keepdim=True)


def patches(images: np.ndarray, kernel: int, number: int, ink: float, seed: int) -> Tensor:
    """Random crops with a mean of at least `ink`."""
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while len(found) < number:
        i, (y, x) = rng.integers(len(images)), rng.integers(images.shape[-1] - kernel + 1, size=2)
        crop = images[i, :, y : y + kernel, x : x + kernel]
        if crop.mean() >= ink:
            found.append(crop)
    return torch.from_numpy(np.stack(found))


@torch.no_grad()
def stdp(weight: Tensor, bank: Tensor, seed: int, how: dict[str, Any]) -> Tensor:
    """Unsupervised kernels: batches of patches, one winner each, and homeostasis; no labels.

    how: rule; batches; homeostasis, the rate of each map's handicap (0: none); lateral; early: the winner has the
    largest area under its potential, where False takes the largest total current, black pixels' step included.
    """
    rule, batches = how.get("rule", RULE), how.get("batches", 150)
    early, lateral, homeostasis = how.get("early", True), how.get("lateral", True), how.get("homeostasis", 0.5)
    generator, cell = torch.Generator().manual_seed(seed), Cell(**IF)
    layer = nn.Linear(weight[0].numel(), len(weight), bias=False)
    layer.weight.data = weight.flatten(1).clone()
    handicap = torch.zeros(len(weight))
    for i in range(batches):
        spikes = fit.latency(bank[torch.randint(len(bank), (500,), generator=generator)], STEPS + 1).flatten(2)
        c = layer(spikes[:STEPS] if early else spikes)
        c = inhibited(c, 2) if lateral else c
        c = functional.batch_norm(c.flatten(0, 1), None, None, training=True).view(c.shape)
        # each step's share of the handicap: the sum over steps is what the potentials are compared by
        z = rule.compete(cell.over_time(c), (c.cumsum(0) if early else c) - handicap / len(c))
        z = torch.cat([z, torch.zeros_like(z[:1])]) if early else z
        handicap += homeostasis * (len(weight) * (z.sum(0) > 0).float().mean(0) - 1)
        now = replace(rule, lr=rule.lr * (1 - i / batches))
        now.apply(layer.weight, now.drive(layer, spikes, z))
    return layer.weight.view_as(weight).clone()


def descend(layer: Layer, x: np.ndarray, labels: np.ndarray, seed: int, batches: int = 100) -> Layer:
    """The same layer and a linear head trained by surrogate gradients on the few labels; Adam 1e-2, batch 50."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    head = nn.Linear(len(layer.conv.weight) * layer.pool**2, 10)
    optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], 1e-2)
    layer.train()
    for _ in range(batches):
        part = rng.integers(len(x), size=50)
        loss = functional.cross_entropy(head(layer(torch.from_numpy(x[part]))), torch.from_numpy(labels[part]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return layer


def read_out(train: np.ndarray, labels: np.ndarray, tests: list[np.ndarray], truth: np.ndarray) -> list[float]:
    """Accuracies (%) of a logistic regression on standardised counts."""
    mean, scale = train.mean(0), train.std(0) + 1e-2
    model = LogisticRegression(C=0.02, max_iter=200).fit((train - mean) / scale, labels)
    return [round(100 * float(model.score((t - mean) / scale, truth)), 2) for t in tests]


class Features:
    """Scores of a layer's counts, by labels a class, and under noise with the most labels."""

    def __init__(self, dataset: Dataset) -> None:
        self.train, self.unlabelled = dataset.train, dataset.train.batch(np.arange(4000))
        self.tests = [dataset.test.batch(np.arange(TEST))]
        rng = np.random.default_rng(0)
        self.tests += [noisy(self.tests[0], rng).astype(np.float32) for noisy in NOISE.values()]
        self.truth = dataset.test.labels[:TEST]

    def few(self, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        picked = np.concatenate([rng.permutation(np.flatnonzero(self.train.labels == c))[:labels] for c in range(10)])
        return self.train.batch(picked), self.train.labels[picked]

    def score(self, layer: Layer | None, seed: int, labels: tuple[int, ...] = LABELS) -> dict[str, float]:
        """None: the pixels themselves."""
        counts = (lambda x: x.reshape(len(x), -1)) if layer is None else layer.calibrate(self.unlabelled[:200]).counts
        tests = [counts(x) for x in (self.tests if LABELS[-1] in labels else self.tests[:1])]
        found = {}
        for n in labels:
            x, y = self.few(n, seed)
            found[str(n)], *noisy = read_out(counts(x), y, tests, self.truth)
        return found | dict(zip(NOISE, noisy, strict=False))

    def descended(self, weight: Tensor, seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for n in LABELS:
            found |= self.score(descend(Layer(weight), *self.few(n, seed), seed), seed, (n,))
        return found


ABLATIONS: dict[str, dict[str, Any]] = {
    "winner by total current": {"early": False},
    "winner by total current, no homeostasis": {"early": False, "homeostasis": 0.0},
    "no homeostasis": {"homeostasis": 0.0},
    "no lateral inhibition": {"lateral": False},
    "no competition": {"rule": replace(RULE, winners=0)},
    "tau 100, same step excluded": {"rule": replace(RULE, tau_pre=100, tau_post=100, same_step="exclude")},
    "additive, L1 norm kept": {"rule": replace(RULE, weight="additive", keep_norm=True)},
    "blank patches too": {},
}


def kernels(maps: int, kernel: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random kernels: uniform in [0.3, 0.7], where STDP starts, and normal ones."""
    generator, shape = torch.Generator().manual_seed(seed), (maps, 1, kernel, kernel)
    return 0.3 + 0.4 * torch.rand(shape, generator=generator), torch.randn(shape, generator=generator) / kernel


def ink(kernel: int, blank: bool = False) -> float:
    return 0.0 if kernel == 28 or blank else 0.1


def features(probe: Features) -> list[dict[str, Any]]:
    table: dict[tuple[str, str], dict[str, list[float]]] = {}
    for seed in SEEDS:
        add(table, ("none", "pixels"), probe.score(None, seed))
        for name, (maps, kernel) in KERNELS.items():
            uniform, normal = kernels(maps, kernel, seed)
            learnt = stdp(uniform, patches(probe.unlabelled, kernel, 4000, ink(kernel), seed), seed, {})
            add(table, (name, "random, uniform (STDP's start)"), probe.score(Layer(uniform), seed))
            add(table, (name, "random, normal"), probe.score(Layer(normal), seed))
            add(table, (name, "STDP"), probe.score(Layer(learnt), seed))
            if maps == 8:
                add(table, (name, "gradient from random, normal"), probe.descended(normal, seed))
                add(table, (name, "gradient from STDP"), probe.descended(learnt, seed))
    return listed(table)


def ablations(probe: Features) -> list[dict[str, Any]]:
    """STDP with one thing changed."""
    table: dict[tuple[str, str], dict[str, list[float]]] = {}
    for seed in SEEDS:
        for name, (maps, kernel) in KERNELS.items():
            for change, how in ABLATIONS.items() if maps != 32 else ():
                if (blank := "blank" in change) and kernel == 28:
                    continue
                bank = patches(probe.unlabelled, kernel, 4000, ink(kernel, blank), seed)
                learnt = stdp(kernels(maps, kernel, seed)[0], bank, seed, how)
                add(table, (name, change), probe.score(Layer(learnt, how.get("lateral", True)), seed))
    return listed(table)


def add(table: dict[tuple[str, str], dict[str, list[float]]], key: tuple[str, str], found: dict[str, float]) -> None:
    for score, value in found.items():
        table.setdefault(key, {}).setdefault(score, []).append(value)
    print(*key, found, flush=True)


def listed(table: dict[tuple[str, str], dict[str, list[float]]]) -> list[dict[str, Any]]:
    return [{"layer": layer, "kernels": kind, **scores} for (layer, kind), scores in table.items()]


_MORE = {"labels": 5, "batch": 10, "epochs": 12, "cosine": 0, "lr_every": 1000}
NETWORKS: dict[str, dict[str, Any]] = {
    "G": {"schedule": "G"},
    "M": {"schedule": "M"},
    "M, reward": {"schedule": "M", "stdp_reward": True},
    "S, lr 0 (frozen random convolutions)": {"schedule": "S", "stdp_lr": 0.0},
    "S, lr 1e-3": {"schedule": "S", "stdp_lr": 1e-3},
    "S, lr 1e-2": {"schedule": "S", "stdp_lr": 1e-2},
    "S, lr 1e-1": {"schedule": "S", "stdp_lr": 1e-1},
    "S, lr 1e-1, 1 winner, magnitude": {
        "schedule": "S",
        "stdp_lr": 1e-1,
        "stdp_winners": 1,
        "stdp_weight": "magnitude",
        "stdp_tau_post": 2.0,
    },
    "5 labels a class: 12 epochs G": {"schedule": "G", **_MORE},
    "5 labels a class: 1 epoch P on all images, then 12 G": {
        "schedule": "P" + "G" * 12,
        **_MORE | {"epochs": 13},
    },
}


def networks() -> list[dict[str, Any]]:
    base = replace(recipes.find("eicil-digits"), width=8, epochs=6, cosine=6)
    rows = []
    for name, changed in NETWORKS.items():
        found = []
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                fitting = fit.Fitting(replace(base, seed=seed, **changed), Path(folder) / "run", device="cpu")
                found.append(round(100 * list(fitting.epochs())[-1]["test_accuracy"], 2))
        rows.append({"setting": name, "changed": changed, "accuracy": found})
        print(f"{name}: {found}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST; else EITRAIN_DATA")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    torch.set_num_threads(1)
    result = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for part in PARTS if args.only is None else (args.only,):
        began = time.process_time()
        if part == "networks":
            result[part] = networks()
        else:
            probe = Features(data.load("mnist", args.data_dir))
            result[part] = features(probe) if part == "features" else ablations(probe)
        result[f"{part}_cpu_seconds"] = round(time.process_time() - began)
        for row in result[part]:
            told = {
                k: f"{statistics.mean(v):.1f}+-{statistics.stdev(v):.1f}" for k, v in row.items() if isinstance(v, list)
            }
            print(" | ".join([*(v for v in row.values() if isinstance(v, str)), str(told)]))
    if args.write:
        RESULTS.write_text(json.dumps(result | {"seeds": SEEDS} | runs.provenance(), indent=1) + "\n")


if __name__ == "__main__":
    main()
