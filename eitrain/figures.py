"""Pictures of a run: curves, confusion matrix, firing rates, the balance of +1 and -1 spikes, and of E-I circuits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from eiexport import pictures
from eiexport.files import replacing
from eiexport.insight import Seen
from eiexport.pictures import EXCITATORY, INHIBITORY, NEUTRAL
from eitrain.fit import Score
from eitrain.schedule import runs

matplotlib.use("Agg")  # files only: no display needed
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

PHASES = {"G": "#dd8452", "S": "#4c72b0", "M": "#8172b3", "P": "#64b5cd"}


@contextmanager
def figure(path: Path, width: float, height: float, columns: int = 1, **options: Any) -> Iterator[Any]:
    """Axes of a new figure, saved as PNG under its name when the block succeeds; options: of `plt.subplots`."""
    fig, axes = plt.subplots(ncols=columns, figsize=(width, height), layout="constrained", **options)
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


def circuits(rows: list[dict[str, Any]], path: Path) -> None:
    """Over training, one line of panels a layer: currents, their balance, denominators, zeros, and the rate behind."""
    rows = [r for r in rows if r.get("circuits")]
    epochs, names = [r["epoch"] + 1 for r in rows], list(rows[-1]["circuits"])
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in names:
        of = [r["circuits"][name] for r in rows]
        found[name] = {k: np.array([np.nan if o[k] is None else o[k] for o in of], np.float64) for k in of[0]}
    off, rate = (np.concatenate([found[n][k] for n in names]) for k in ("balance", "rate"))
    off = np.nanmax(np.abs(off - 1), initial=0.04)
    fixed = {"balance": (1 - 1.25 * off, 1 + 1.25 * off), "rate": (0, 1.1 * np.nanmax(rate, initial=0.01))}
    options = {"nrows": len(names), "sharex": True, "squeeze": False}
    with figure(path, 13, 1.0 + 1.45 * len(names), len(_PANELS), **options) as grid:
        for name, line in zip(names, grid, strict=True):
            for axes, (_, curves) in zip(line, _PANELS, strict=True):
                _history(axes, epochs, found[name], curves, fixed.get(curves[0][0]))
            line[0].set_ylabel(name, fontsize=9, fontweight="bold")
            line[1].axhline(1, color=NEUTRAL, lw=0.8, ls=":")
        for axes, (title, curves) in zip(grid[0], _PANELS, strict=True):
            axes.set_title(title, fontsize=9, pad=28)
            if len(curves) > 1:
                place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3 if len(curves) > 2 else 1}
                axes.legend(frameon=False, fontsize=7, borderpad=0.2, labelspacing=0.1, columnspacing=0.8, **place)
        for axes in grid[-1]:
            axes.set_xlabel("epoch", fontsize=8)


# title, and (key, colour, label, style) of the curves; shares are drawn in percent
_PANELS: tuple[tuple[str, tuple[tuple[str, str, str, str], ...]], ...] = (
    (
        "currents",
        (("excitation", EXCITATORY, "excitation W_EE x", ".-"), ("inhibition", INHIBITORY, "inhibition W_EI s", ".-")),
    ),
    ("inhibition : excitation", (("balance", NEUTRAL, "", ".-"),)),
    (
        "denominators",
        (
            ("denominator", NEUTRAL, "mean and standard deviation", ".-"),
            ("denominator_least", NEUTRAL, "smallest other than 0", ":"),
        ),
    ),
    (
        "zeros (%)",
        (
            ("zeros", NEUTRAL, "share of denominators", ".-"),
            ("silent", "#dd8452", "share of steps with zeros only", ".--"),
        ),
    ),
    (
        "weights at 0 (%)",
        (
            ("zero_excite", EXCITATORY, "W_EE", ".-"),
            ("zero_inhibit", INHIBITORY, "W_IE", ".-"),
            ("zero_spread", INHIBITORY, "W_EI", ".:"),
        ),
    ),
    ("firing rate", (("rate", NEUTRAL, "", ".-"),)),
)
_PERCENT = ("zeros", "silent", "zero_excite", "zero_inhibit", "zero_spread")


def _history(
    axes: Any,
    epochs: list[int],
    found: Mapping[str, np.ndarray],
    curves: tuple[tuple[str, str, str, str], ...],
    ends: tuple[float, float] | None,
) -> None:
    """Some measures of one layer over training, from 0 or between given ends; "none" where the layer has none."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=7)
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    percent = curves[0][0] in _PERCENT
    drawn = [(100 if percent else 1) * found[key] for key, *_ in curves]
    for y, (_, colour, label, style) in zip(drawn, curves, strict=True):
        style = style if len(epochs) < 60 else style.lstrip(".")
        axes.plot(epochs, y, style, color=colour, label=label, lw=1.2, ms=4)
    if np.isnan(drawn).all():
        axes.set_yticks([])
        axes.text(0.5, 0.5, "none", ha="center", va="center", fontsize=8, color=NEUTRAL, transform=axes.transAxes)
        return
    if curves[0][0] == "denominator":
        low, high = (found["denominator"] + k * found["denominator_std"] for k in (-1, 1))
        low = np.maximum(low, found["denominator_least"])
        axes.fill_between(epochs, low, high, color=NEUTRAL, alpha=0.2, lw=5 if len(epochs) == 1 else 0)
        drawn.append(high)
    top = float(np.nanmax(drawn))
    axes.set_ylim(*(ends or (0, 1.12 * max(top, 1.0 if percent else 0.0) or 1)))
    axes.grid(alpha=0.25)


def circuit_samples(
    seen: Mapping[str, Seen], labels: np.ndarray, classes: tuple[str, ...], path: Path, title: str
) -> None:
    """Inhibition against excitation of each sample, and the denominators of each class, for every layer."""
    with replacing(path) as temporary:
        temporary.write_bytes(pictures.circuits({n: s.samples() for n, s in seen.items()}, title, labels, classes))


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
