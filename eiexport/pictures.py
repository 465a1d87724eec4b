"""Pictures of circuits, sample by sample; and the colours of excitation and inhibition."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only: no display needed
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

EXCITATORY, INHIBITORY, NEUTRAL = "#c44e52", "#4c72b0", "#555555"
NAMED = 20  # more classes than that get no legend: nobody tells their colours apart
ACROSS = 4  # layers beside each other, at most


def circuits(
    seen: Mapping[str, Mapping[str, np.ndarray]],
    title: str,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
) -> bytes:
    """PNG: per layer inhibition against excitation, one dot a sample, and how the samples' mean denominators lie.

    seen: as `insight.Seen.samples` gives it for each layer, (samples,) each. labels: class of each sample, by which
    dots are coloured and denominators told apart; classes: their names.
    """
    bands = -(-len(seen) // ACROSS)
    across = -(-len(seen) // bands)
    size = (2.9 * across + 1.3, 4.7 * bands + 0.7)
    fig, grid = plt.subplots(2 * bands, across, figsize=size, layout="constrained", squeeze=False)
    for panel in grid.flat:
        panel.axis("off")
    colours = [NEUTRAL] if labels is None else _colours(int(labels.max()) + 1)
    names = [classes[k] if k < len(classes) else str(k) for k in range(len(colours))]
    kinds = np.zeros(len(next(iter(seen.values()))["excitation"]), np.int64) if labels is None else labels
    for i, (name, of) in enumerate(seen.items()):
        row, column = 2 * (i // across), i % across
        upper, lower = grid[row, column], grid[row + 1, column]
        upper.axis("on")
        _currents(upper, of, [colours[k] for k in kinds], name)
        d = of.get("denominator", np.zeros(0))
        if np.isfinite(d).any():
            lower.axis("on")
            _histogram(lower, d) if labels is None else _strips(lower, d, labels, colours, names)
        else:
            why = "no denominators: all are 0" if len(d) else "no division by what a sample brings"
            lower.text(0.5, 0.5, why, ha="center", va="center", fontsize=8, color=NEUTRAL, transform=lower.transAxes)
    marks = [Line2D([], [], color=NEUTRAL, lw=0.9, ls=":", label="inhibition = excitation")]
    if labels is not None:
        marks.append(Line2D([], [], color="k", lw=1.6, label="mean of a class"))
        dots: dict[str, Any] = {"ls": "", "marker": "o", "ms": 5}
        shown = np.unique(labels)
        marks += [Line2D([], [], color=colours[k], label=names[k], **dots) for k in shown if len(shown) <= NAMED]
    fig.legend(handles=marks, loc="outside lower center", ncols=min(6, len(marks)), frameon=False, fontsize=8)
    fig.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    plt.close(fig)
    return buffer.getvalue()


def _currents(axes: Any, of: Mapping[str, np.ndarray], colours: list[Any], name: str) -> None:
    """Both axes with the same ends, so that balance is the diagonal."""
    e, i = of["excitation"], of["inhibition"]
    low, high = (float(f([e, i])) for f in (np.min, np.max))
    margin = 0.06 * (high - low) or 0.06 * high or 1.0
    ends = max(0.0, low - margin), high + margin
    axes.plot(ends, ends, color=NEUTRAL, lw=0.9, ls=":")
    axes.scatter(e, i, s=13, c=colours, alpha=0.8, linewidths=0)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_title(name if e.any() else f"{name}: silent", fontsize=9)
    _plain(axes, "excitation W_EE x", "inhibition W_EI s")
    axes.xaxis.label.set_color(EXCITATORY)
    axes.yaxis.label.set_color(INHIBITORY)


def _strips(axes: Any, d: np.ndarray, labels: np.ndarray, colours: list[Any], names: list[str]) -> None:
    """Each sample's mean denominator in the column of its class, and the mean of these."""
    shown = np.unique(labels)
    for place, kind in enumerate(shown):
        own = d[(labels == kind) & np.isfinite(d)]
        # spread over the column in the order of the samples: the same picture every time
        aside = ((np.arange(len(own)) * 0.618034) % 1 - 0.5) * 0.7
        axes.scatter(place + aside, own, s=9, color=colours[kind], alpha=0.7, linewidths=0)
        if len(own):
            axes.hlines(own.mean(), place - 0.4, place + 0.4, color="k", lw=1.6)
    axes.set(xlim=(-0.7, len(shown) - 0.3), ylim=(0, 1.08 * float(np.nanmax(d))))
    _plain(axes, "class", "mean denominator")
    told = [names[k] for k in shown] if len(shown) <= NAMED else []
    axes.set_xticks(range(len(told)), told, rotation=90 if max(map(len, told), default=0) > 2 else 0)


def _histogram(axes: Any, d: np.ndarray) -> None:
    axes.hist(d[np.isfinite(d)], bins=20, color=NEUTRAL, alpha=0.8)
    _plain(axes, "mean denominator", "samples")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _plain(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


def _colours(count: int) -> list[Any]:
    """A colour a class, as unlike each other as so many can be."""
    if count <= 20:
        few = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
        return [few(k) for k in range(count)]
    return [matplotlib.colormaps["turbo"](k / (count - 1)) for k in range(count)]
