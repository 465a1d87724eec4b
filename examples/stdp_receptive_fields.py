"""Learn a spiking layer's receptive fields by STDP alone, without a label, and see what they are worth.

    python examples/stdp_receptive_fields.py [--data-dir DATA] [--maps 8] [--kernel 7] [--out FIELDS.png]

MNIST where it is at hand (--data-dir or EITRAIN_DATA), else scikit-learn's digits. Each pixel spikes once, brighter
ones earlier. Patches with ink go through integrate-and-fire neurons; the neuron whose potential is ahead wins and
learns: inputs that spiked before it gain weight, later ones lose it. Then the kernels are frozen and slid over whole
images (--kernel 28 covers one), and a linear read-out of the pooled spike counts sees few labels. Random kernels get
the same read-out.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import image as picture
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d, pad

from eitrain import data
from eitrain.architectures import IF
from eitrain.cells import Cell
from eitrain.fit import latency
from eitrain.stdp import STDP

T = 8  # steps that neurons see; black pixels spike one step later, when they can only be punished
RULE = STDP(lr=20, tau_pre=4, tau_post=4, decay="exponential", weight="soft", low=0, high=1, winners=1)
CELL = Cell(**IF)


@torch.no_grad()
def learn(kernels: Tensor, patches: Tensor, batches: int) -> Tensor:
    """The kernels (maps, 1, k, k) after so many batches of 500 patches."""
    maps = len(kernels)
    layer, handicap = nn.Linear(kernels[0].numel(), maps, bias=False).requires_grad_(False), torch.zeros(maps)
    layer.weight.data = kernels.flatten(1).clone()
    for i in range(batches):
        x = latency(patches[torch.randint(len(patches), (500,))], T + 1).flatten(2)
        c = layer(x[:T])
        c = c - c.mean(2, keepdim=True)  # lateral inhibition
        c = (c - c.mean((0, 1))) / c.std((0, 1))
        # competition by the area under the potential; homeostasis: who wins too often gets a handicap
        z = RULE.compete(CELL.over_time(c), c.cumsum(0) - handicap / T)
        handicap += 0.5 * (maps * z.amax(0).mean(0) - 1)
        rule = replace(RULE, lr=RULE.lr * (1 - i / batches))
        rule.apply(layer.weight, rule.drive(layer, x, torch.cat([z, torch.zeros_like(z[:1])])))
    return layer.weight.view_as(kernels)


@torch.no_grad()
def counts(kernels: Tensor, images: list[np.ndarray]) -> list[np.ndarray]:
    """Spikes of each map in a grid of 4 x 4 places; currents are scaled as in the first images."""
    k, size = kernels.shape[-1], images[0].shape[-1]
    stride, padding, grid = (1, 0, 1) if k == size else (2 if size > 8 else 1, k // 2, 4)
    found, scale = [], None
    for x in images:
        c = conv2d(latency(torch.from_numpy(x), T + 1)[:T].flatten(0, 1), kernels, stride=stride, padding=padding)
        c = c - c.mean(1, keepdim=True)
        mean, std = scale = scale or (c.mean((0, 2, 3), keepdim=True), c.std((0, 2, 3), keepdim=True))
        z = CELL.over_time(((c - mean) / std).view(T, len(x), *c.shape[1:]))
        found.append(adaptive_avg_pool2d(z.sum(0), grid).flatten(1).numpy())
    return found


def main(arguments: list[str] | None = None) -> dict[str, dict[int, float]]:
    """Accuracy (%) of the read-out, by kernels and labels a class."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("EITRAIN_DATA") or None)
    parser.add_argument("--maps", type=int, help="8 for MNIST, 20 for digits")
    parser.add_argument("--kernel", type=int, help="7 for MNIST, 8 (the whole image) for digits")
    parser.add_argument("--batches", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("stdp_receptive_fields.png"))
    args = parser.parse_args(arguments)
    dataset = data.load("mnist", args.data_dir) if args.data_dir else data.load("digits")
    maps, k = args.maps or (8 if args.data_dir else 20), args.kernel or (7 if args.data_dir else 8)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    images = dataset.train.batch(np.arange(min(4000, len(dataset.train))))
    crops = np.lib.stride_tricks.sliding_window_view(images, (k, k), (2, 3)).reshape(-1, 1, k, k)
    crops = crops[rng.permutation(len(crops))[:40000]]
    before = 0.3 + 0.4 * torch.rand(maps, 1, k, k)
    learnt = learn(before, torch.from_numpy(crops[crops.mean((1, 2, 3)) > 0.1]), args.batches)
    kernels = {"random, normal": torch.randn_like(before), "before": before, "STDP": learnt}

    scores: dict[str, dict[int, float]] = {name: {} for name in ("pixels", *kernels)}
    few, test = rng.permutation(len(dataset.train)), np.arange(min(1000, len(dataset.test)))
    for labels in (5, 20, 100):
        some = np.concatenate([few[dataset.train.labels[few] == c][:labels] for c in range(10)])
        sets = [images[:200], dataset.train.batch(some), dataset.test.batch(test)]
        for name, row in scores.items():
            _, x, y = counts(kernels[name], sets) if name in kernels else [s.reshape(len(s), -1) for s in sets]
            mean, std = x.mean(0), x.std(0) + 1e-2
            model = LogisticRegression(C=0.02, max_iter=200).fit((x - mean) / std, dataset.train.labels[some])
            row[labels] = 100 * model.score((y - mean) / std, dataset.test.labels[test])
    print(f"{dataset.name}, {maps} kernels {k}x{k}; test accuracy (%) of a linear read-out, by labels a class")
    for name, row in scores.items():
        print(f"{name:14}" + "".join(f"{n:8}: {score:4.1f}" for n, score in row.items()))
    for n in scores["STDP"]:
        gain = scores["STDP"][n] - max(scores[name][n] for name in ("random, normal", "before"))
        print(f"{n} labels a class: STDP {'gains' if gain > 0 else 'LOSES'} {abs(gain):.1f} points on random kernels")

    rows = [torch.cat(list(pad(kernels[name][:20, 0], (1, 1, 1, 1), value=1.0)), 1) for name in ("before", "STDP")]
    picture.imsave(args.out, torch.cat(rows).repeat_interleave(8, 0).repeat_interleave(8, 1), cmap="gray")
    print(f"receptive fields, before above and after below: {args.out}")
    return scores


if __name__ == "__main__":
    main()
