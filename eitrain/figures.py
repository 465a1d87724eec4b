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
from eitrain.schedule import runs

matplotlib.use("Agg")  # files only: no display needed
import matplotlib.pyplot as plt

EXCITATORY, INHIBITORY, NEUTRAL = "#c44e52", "#4c72b0", "#555555"
PHASES = {"G": "#dd8452", "S": "#4c72b0", "M": "#8172b3", "P": "#64b5cd"}


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
    matrix, few = score.confusion, len(classes) <= 30
    size = 2.2 + 0.42 * len(classes) if few else 9.0
    with figure(path, size + 0.6, size) as axes:
        share = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
        axes.imshow(share, cmap="Greys", vmin=0, vmax=1)
        for (i, j), count in np.ndenumerate(matrix):
            if count and few:
                axes.text(
                    j, i, str(count), ha="center", va="center", fontsize=7, color="w" if share[i, j] > 0.5 else "k"
                )
        if few:  # more names and numbers than that nobody reads, and drawing them takes minutes
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


def plasticity(rows: list[dict[str, Any]], path: Path) -> None:
    """What gradients and STDP changed in an epoch, over all of STDP's layers; and per layer, STDP's share and angle."""
    epochs = [r["epoch"] + 1 for r in rows]
    names = list(rows[-1]["updates"])
    with figure(path, 11, max(3.4, 1.2 + 0.22 * len(names)), 3) as (left, middle, right):
        for key, colour in (("gradient", EXCITATORY), ("stdp", INHIBITORY)):
            sizes = [np.sqrt(sum(u[key] ** 2 for u in r["updates"].values())) or np.nan for r in rows]
            left.plot(epochs, sizes, ".-", color=colour, label={"stdp": "STDP"}.get(key, key))
        _shade(left, "".join(r["phase"] for r in rows))
        left.set(xlabel="epoch", ylabel="norm of the weights' change", yscale="log", title="each rule, all layers")
        left.legend(frameon=False)
        local = [r for r in rows if r.get("stdp_layers")] or rows
        for axes, key, title in (
            (middle, "share", "STDP's share of the change"),
            (right, "cosine", "cosine of STDP and descent"),
        ):
            known = [[v for r in local if (v := r["updates"][n][key]) is not None] for n in names]
            axes.barh(names, [np.mean(v) if v else 0.0 for v in known], color=INHIBITORY)
            axes.axvline(0, color="k", lw=0.8)
            axes.invert_yaxis()
            axes.set(title=title, xlim=(0, 1) if key == "share" else (-1, 1))
            axes.tick_params(axis="y", labelsize=7)


def schedule(letters: str, rates: list[float], path: Path) -> None:
    """Which rule trains which epoch, and the learning rate."""
    with figure(path, 9, 2.6) as axes:
        axes.plot(np.arange(1, len(letters) + 1), rates, ".-" if len(rates) < 60 else "-", color="k")
        _shade(axes, letters)
        for letter in dict.fromkeys(letters):
            axes.plot([], [], lw=8, alpha=0.35, color=PHASES[letter], label=f"{letter}: {letters.count(letter)} epochs")
        axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0.5, len(letters) + 0.5))
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))


def _shade(axes: Any, letters: str) -> None:
    """Each epoch in the colour of its rule."""
    for letter, start, count in runs(letters):
        axes.axvspan(start + 0.5, start + count + 0.5, color=PHASES[letter], alpha=0.2, lw=0)
