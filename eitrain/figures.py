"""Pictures of a run: curves, confusion matrix, firing rates and the balance of +1 and -1 spikes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from eiexport.files import replacing
from eitrain.fit import Score

matplotlib.use("Agg")  # files only: no display needed
import matplotlib.pyplot as plt

EXCITATORY, INHIBITORY, NEUTRAL = "#c44e52", "#4c72b0", "#555555"


@contextmanager
def figure(path: Path, width: float, height: float, columns: int = 1) -> Iterator[Any]:
    """Axes of a new figure, saved as PNG under its name when the block succeeds."""
    fig, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    try:
        yield axes
        with replacing(path) as temporary:
            fig.savefig(temporary, format="png", dpi=120)
    finally:
        plt.close(fig)


def curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Loss, and validation and test accuracy, per epoch; the epoch that `best` holds is marked."""
    epochs = [r["epoch"] + 1 for r in rows]
    with figure(path, 9, 3.4, 2) as (left, right):
        left.plot(epochs, [r["train_loss"] for r in rows], ".-", color=NEUTRAL, label="train")
        left.plot(epochs, [r["val_loss"] for r in rows], ".-", color="#dd8452", label="validation")
        left.set(xlabel="epoch", ylabel="loss", yscale="log")
        for key, colour in (("val_accuracy", "#dd8452"), ("test_accuracy", "#55a868")):
            right.plot(epochs, [100 * r[key] for r in rows], ".-", color=colour, label=key.split("_")[0])
        best = max(rows, key=lambda r: r["val_accuracy"])
        right.axvline(best["epoch"] + 1, color=NEUTRAL, lw=0.8, ls=":", label="best on validation")
        right.set(xlabel="epoch", ylabel="accuracy (%)")
        for axes in (left, right):
            axes.legend(frameon=False)
            axes.grid(alpha=0.25)


def confusion(score: Score, classes: tuple[str, ...], path: Path, title: str) -> None:
    """Confusion matrix, counts; rows are the true classes."""
    matrix = score.confusion
    size = 2.2 + 0.42 * len(classes)
    with figure(path, size + 0.6, size) as axes:
        share = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
        axes.imshow(share, cmap="Greys", vmin=0, vmax=1)
        for (i, j), count in np.ndenumerate(matrix):
            if count:
                axes.text(
                    j, i, str(count), ha="center", va="center", fontsize=7, color="w" if share[i, j] > 0.5 else "k"
                )
        axes.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
        axes.set_yticks(range(len(classes)), classes)
        axes.set(xlabel="predicted", ylabel="true", title=title)


def activity(rows: list[dict[str, Any]], path: Path) -> None:
    """Firing rate of each layer over training, and how its spikes split into +1 and -1 at the end."""
    epochs, names = [r["epoch"] + 1 for r in rows], list(rows[-1]["layers"])
    with figure(path, 9, 3.4, 2) as (left, right):
        for name in names:
            left.plot(epochs, [r["layers"][name]["rate"] for r in rows], ".-", label=name)
        left.set(xlabel="epoch", ylabel="spikes per neuron and step")
        left.set_ylim(bottom=0)
        left.legend(frameon=False)
        left.grid(alpha=0.25)
        layers = [rows[-1]["layers"][n] for n in names]
        up = np.array([100 * layer["positive"] for layer in layers])
        down = np.array([100 * layer["negative"] for layer in layers])
        right.barh(names, up, color=EXCITATORY, label="+1 (excitatory)")
        right.barh(names, -down, color=INHIBITORY, label="-1 (inhibitory)")
        for y, (a, b, layer) in enumerate(zip(up, down, layers, strict=True)):
            text = "silent" if layer["rate"] == 0 else f"{a:.0f} : {b:.0f}"
            right.text(104, y, text, va="center", fontsize=8)
        right.axvline(0, color="k", lw=0.8)
        right.set(xlim=(-105, 135), xlabel="share of spikes (%)", title="E : I, last epoch")
        right.set_xticks([-100, -50, 0, 50, 100], ["100", "50", "0", "50", "100"])
        right.invert_yaxis()
        right.legend(frameon=False, loc="lower left", fontsize=8)
