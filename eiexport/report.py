"""The report of an export: JSON for scripts, one self-contained HTML page and a printed table for people."""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment
from rich.console import Console
from rich.table import Table

from eiexport import __version__, insight, pictures
from eiexport.check import MARGIN, TIES, drifts
from eiexport.divide import Division
from eiexport.files import replacing
from eiexport.graph import Network, show
from eiexport.insight import Seen
from eiexport.losses import Loss, Quantisation
from eiexport.pictures import EXCITATORY, INHIBITORY
from eiexport.trace import Divergence, NodeResult, TraceFile, chunk_size, earliest

matplotlib.use("Agg")  # files only: no display needed
import matplotlib.pyplot as plt
from matplotlib.colors import BoundaryNorm, ListedColormap

NEURONS = 96  # rows of a raster
SPIKES = ListedColormap([INHIBITORY, "#ffffff", EXCITATORY])  # -1, 0, +1


@dataclass
class Row:
    """One target's result; status "equal" | "explained" | "differs" | "unsupported" | "failed"."""

    name: str
    status: str
    compared_with: str
    dtype: str = "float64"
    evidence: str = ""
    engine: dict[str, str] = field(default_factory=dict)
    results: dict[str, NodeResult] = field(default_factory=dict)
    free: dict[str, NodeResult] = field(default_factory=dict)
    processes: dict[str, str] = field(default_factory=dict)
    latency: dict[str, int] = field(default_factory=dict)
    accuracy: float | None = None
    seconds: float = 0.0
    message: str = ""
    costs: dict[str, Any] = field(default_factory=dict)  # "resources", "estimates": of the target's hardware

    @property
    def ok(self) -> bool:
        return self.status in ("equal", "explained")

    def total(self, key: str) -> int:
        return sum(getattr(r, key) for r in self.results.values())

    def entries_on(self, kind: str) -> int:
        """Entries that the engine's own ("stock") or our ("custom") processes made."""
        return sum(r.entries for n, r in self.results.items() if self.processes.get(n) == kind)

    @property
    def free_running(self) -> int:
        return sum(r.mismatches for r in self.free.values())

    def first(self, network: Network) -> Divergence | None:
        """The first divergence from the meaning; where there is none, from the reference's own run."""
        order = [n for c in network.order for n in c]
        return earliest(self.results, order) or earliest(self.free, order)

    def to_json(self, network: Network) -> dict[str, Any]:
        first = self.first(network)
        nodes = {
            name: {
                "entries": r.entries,
                "mismatches": r.mismatches,
                "explained_ties": r.explained_ties,
                "state_entries": r.state_entries,
                "state_mismatches": r.state_mismatches,
                "margin": r.margin,
                "spikes": r.spikes,
                "spikes_reference": self.free[name].spikes_reference if name in self.free else r.spikes_reference,
                "negative": r.negative,
                "silent": r.silent,
                "largest_difference": r.largest,
                "process": self.processes.get(name, ""),
            }
            for name, r in self.results.items()
        }
        return {
            "status": self.status,
            "message": self.message,
            "compared_with": self.compared_with,
            "class": "integer" if network.integer else "float",
            "dtype": self.dtype,
            "evidence": self.evidence,
            "engine": self.engine,
            "entries": self.total("entries"),
            **{f"entries_{kind}": self.entries_on(kind) for kind in ("stock", "custom")},
            "mismatches": self.total("mismatches"),
            "state_entries": self.total("state_entries"),
            "state_mismatches": self.total("state_mismatches"),
            "explained_ties": self.total("explained_ties"),
            "free_running_mismatches": self.free_running,
            "first_divergence": None if first is None else {**vars(first), "words": str(first)},
            "accuracy": self.accuracy,
            "latency": self.latency,
            "seconds": round(self.seconds, 3),
            "nodes": nodes,
        }


@dataclass
class Report:
    """Everything one export found out."""

    model: str
    samples: int
    steps: int
    network: Network
    reference: Row
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    float_row: Row | None = None  # the float network's own run, where the rest is integers
    quantisation: Quantisation | None = None
    lowered: Network | None = None  # what the targets ran in the network's place
    division: Division | None = None  # where circuits were given another form
    labels: np.ndarray | None = None  # class of each sample, by which pictures colour them
    circuits: dict[str, Seen] = field(default_factory=dict)  # what circuits did in the reference's run; see `write`

    @property
    def output_silent(self) -> bool:
        """No output neuron of the reference spiked: equality at the output then proves little."""
        ends = {s for o in self.network.outputs for s in self.network.sources[o]}
        found = [r for n, r in self.reference.results.items() if n in ends]
        return bool(found) and all(r.spikes == 0 for r in found)

    @property
    def ok(self) -> bool:
        first = (self.reference,) if self.float_row is None else (self.float_row, self.reference)
        within = self.quantisation is None or self.quantisation.ok
        return within and all(r.ok for r in (*first, *self.rows))

    @property
    def shown(self) -> list[Row]:
        """All rows, the float network's own run and the reference first."""
        return [*(() if self.float_row is None else (self.float_row,)), self.reference, *self.rows]

    @property
    def costs(self) -> dict[str, Any]:
        """ "resources" and "estimates", of the target that has hardware."""
        return next((r.costs for r in self.rows if r.costs), {})

    def title(self, row: Row) -> str:
        """A row's name, with its part in the comparison."""
        return f"{row.name} (reference)" if row is self.reference and row.name != "reference" else row.name

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "version": __version__,
            "samples": self.samples,
            "steps": self.steps,
            "dt": self.network.clock.dt,
            "integrator": self.network.clock.integrator,
            "output_silent": self.output_silent,
            "notes": self.notes,
            "reference": {
                "name": self.reference.name,
                "class": "integer" if self.network.integer else "float",
                "dtype": self.reference.dtype,
                "status": self.reference.status,
                "accuracy": self.reference.accuracy,
            },
            **({} if self.division is None else {"division": self.division.to_json()}),
            **({} if self.quantisation is None else {"quantisation": self.quantisation.to_json()}),
            **self._circuits_json(),
            **self.costs,
            "targets": {r.name: r.to_json(self.network) for r in self.rows},
        }

    def _circuits_json(self) -> dict[str, Any]:
        if not self.circuits:
            return {}
        layers = {n: seen.summary() for n, seen in self.circuits.items()}
        return {"circuits": {"samples": self.watched, "layers": layers}}

    @property
    def watched(self) -> int:
        """Samples that circuits were watched on."""
        return next((s.rows["excitation"].shape[1] for s in self.circuits.values()), 0)


def write(report: Report, out: Path) -> None:
    """DIR/report.json, DIR/report.html and DIR/raster-TARGET.png, each whole or not at all."""
    report.circuits = watch(report, out)
    with replacing(out / "report.json") as temporary:
        temporary.write_text(json.dumps(_finite(report.to_json()), indent=2, allow_nan=False) + "\n")
    drawn: dict[str, str] = {}
    reference = out / "traces" / f"{report.reference.name}.h5"
    for row in report.rows:
        trace = out / "traces" / f"{row.name}.h5"
        if row.results and trace.is_file() and reference.is_file():
            picture = raster(report, row, reference, trace)
            with replacing(out / f"raster-{row.name}.png") as temporary:
                temporary.write_bytes(picture)
            drawn[row.name] = base64.b64encode(picture).decode()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("eiexport").joinpath("report.html.j2").read_text())
    helpers = {"words": words, "loss_cells": loss_cells, "loss_words": loss_words, "cost_words": cost_words}
    about = {"report": report, "network": report.network, "pictures": drawn, "show": show}
    about |= {"circuits": _circuits_drawn(report), "titles": insight.TITLES, "cells": insight.cells}
    page = template.render(**about, **helpers)
    with replacing(out / "report.html") as temporary:
        temporary.write_text(page)


def watch(report: Report, out: Path) -> dict[str, Seen]:
    """What every circuit did in the reference's run, on its first chunk of samples: enough for averages."""
    whole, trace = out / "input.h5", out / "traces" / f"{report.reference.name}.h5"
    if not insight.circuits(report.network) or not (whole.is_file() and trace.is_file()):
        return {}
    with TraceFile(whole) as given, TraceFile(trace) as ran:
        part = slice(0, chunk_size(report.network, report.steps))
        return insight.of_trace(report.network, given.read(part).z[report.network.input], ran.read(part).z)


def _circuits_drawn(report: Report) -> str:
    if not report.circuits:
        return ""
    seen = {n: s.samples() for n, s in report.circuits.items()}
    labels = None if report.labels is None else report.labels[: report.watched]
    return base64.b64encode(pictures.circuits(seen, "", labels)).decode()


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def raster(report: Report, row: Row, reference: Path, trace: Path) -> bytes:
    """PNG: for each compared node, reference and target side by side; differences are marked with a ring.

    Shows the sample of the first divergence (else the first), and per node the neurons that differ, then the liveliest.
    """
    first = row.first(report.network)
    sample = first.sample if first else 0
    with TraceFile(reference) as a, TraceFile(trace) as b:
        names = [n for n in row.results if n in a.nodes and n in b.nodes]
        panels = [(n, *_rows(*(f.nodes[n]["data"][sample].T.astype(float) for f in (a, b)))) for n in names]
    fig, axes = plt.subplots(len(panels), 2, figsize=(9, 1.1 + 1.9 * len(panels)), layout="constrained", squeeze=False)
    norm = BoundaryNorm([-1.5, -0.5, 0.5, 1.5], 3)
    for (name, shown, x, y), (left, right) in zip(panels, axes, strict=True):
        spikes = np.isin(x, (-1, 0, 1)).all() and np.isin(y, (-1, 0, 1)).all()
        style = {"cmap": SPIKES, "norm": norm} if spikes else {"cmap": "viridis", "vmin": x.min(), "vmax": x.max()}
        for panel, values in ((left, x), (right, y)):
            panel.imshow(values, aspect="auto", interpolation="nearest", **style)
            panel.set_yticks([])
            panel.tick_params(labelsize=7)
        neurons, steps = np.nonzero(x != y) if spikes else np.nonzero(~np.isclose(x, y, rtol=1e-6))
        right.scatter(steps, neurons, s=40, facecolors="none", edgecolors="k", linewidths=1.2)
        total = row.results[name].entries // max(1, report.samples * report.steps)
        left.set_ylabel(f"{name}\n{len(shown)} of {total} neurons", fontsize=7)
        if not x.any() and not y.any():
            right.set_title("silent in this sample", fontsize=7, loc="right")
    axes[0][0].set_title(report.title(report.reference), fontsize=9)
    axes[0][1].set_title(f"{row.name}: {row.status}", fontsize=9)
    for panel in axes[-1]:
        panel.set_xlabel("step", fontsize=8)
    fig.suptitle(f"sample {sample}: +1 red, -1 blue, differences ringed", fontsize=9)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    plt.close(fig)
    return buffer.getvalue()


def _rows(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(neurons shown, their rows in x, in y): those that differ first, then the liveliest, in index order."""
    changes = (x[:, 1:] != x[:, :-1]).sum(1)
    weight = 1e6 * (x != y).any(1) + 2 * changes + np.abs(x).mean(1)
    shown = np.sort(np.argsort(-weight, kind="stable")[:NEURONS])
    return shown, x[shown], y[shown]


def words(report: Report, row: Row) -> str:
    """A result in one sentence."""
    first = row.first(report.network)
    entries, ties = row.total("entries"), row.total("explained_ties")
    if row.status in ("unsupported", "failed"):
        return row.message
    if row.status == "differs" and row.total("mismatches") and first is not None:
        return f"{row.total('mismatches'):,} of {entries:,} entries differ; first at {first}."
    if row.status == "differs" and row.total("state_mismatches") and first is not None:
        registers = row.total("state_entries")
        return f"{row.total('state_mismatches'):,} of {registers:,} register values differ; first at {first}."
    if row.status == "differs" and row.message:
        return row.message
    if row.status == "differs" and row.free_running and not ties:
        return f"It ran the graph, but not as the reference did: {row.free_running:,} entries; first at {first}."
    if row.status == "differs":
        margin = max(r.margin for r in row.results.values())
        return (
            f"{ties:,} ties in {entries:,} entries, the furthest {margin:.1g} from its threshold. Rounding could "
            f"explain each, but only {TIES[row.dtype]:g} of the entries and {MARGIN:g} of the threshold are accepted."
        )
    if report.network.integer:
        return _whole_words(report, row)
    text = f"All {entries:,} entries are those of the graph"
    text += f", {ties:,} of them ties that rounding explains." if ties else "."
    if row.free_running:
        text += f" Free-running, {row.free_running:,} entries differ from the reference's run; first at {first}."
        if not ties and all(drifts(report.network, n) for n, r in row.free.items() if r.mismatches):
            text += " They lie behind neurons that send their membranes, which agree up to rounding only."
    if own := row.entries_on("stock"):
        text += f" {own:,} come from the engine's own processes, {row.entries_on('custom'):,} from ours."
    silent = [n for n, r in row.results.items() if r.silent]
    return text + (f" Silent, so little is proven: {', '.join(silent)}." if silent else "")


def _whole_words(report: Report, row: Row) -> str:
    registers = row.total("state_entries")
    text = f"All {row.total('entries'):,} entries are the reference's"
    text += f", and so are {registers:,} values of the registers u and v." if registers else "; registers not compared."
    if own := row.entries_on("stock"):
        text += f" {own:,} entries come from the engine's own processes, {row.entries_on('custom'):,} from ours."
    silent = [n for n, r in row.results.items() if r.silent]
    return text + (f" Silent, so little is proven: {', '.join(silent)}." if silent else "")


def table(report: Report, console: Console) -> None:
    """The result as a table, then what needs words."""
    view = Table(box=None, pad_edge=False)
    for column, right in (("target", 0), ("status", 0), ("entries", 1), ("differ", 1), ("ties", 1), ("free", 1)):
        view.add_column(column, justify="right" if right else "left", no_wrap=True)
    for column in ("accuracy", "latency", "seconds"):
        view.add_column(column, justify="right", no_wrap=True)
    view.add_column("evidence")
    for row in report.shown:
        colour = {"equal": "green", "explained": "yellow"}.get(row.status, "red")
        cells = (f"{row.total(k):,}" for k in ("entries", "mismatches", "explained_ties"))
        free = f"{row.free_running:,}" if row in report.rows and not report.network.integer else ""
        accuracy = "" if row.accuracy is None else f"{100 * row.accuracy:.2f} %"
        late = str(max(row.latency.values(), default=0))
        status, seconds = f"[{colour}]{row.status}[/]", f"{row.seconds:.1f}"
        view.add_row(report.title(row), status, *cells, free, accuracy, late, seconds, row.evidence)
    console.print(view)
    for row in report.rows:
        if not row.ok or row.free_running or any(r.silent for r in row.results.values()):
            console.print(f"{row.name}: {words(report, row)}", markup=False)
    if report.output_silent:
        console.print("warning: the output is silent: equal spikes prove nothing about it")
    for note in report.notes:
        console.print(note, markup=False)
    if report.division is not None:
        _division(report.division, console)
    if report.quantisation is not None:
        _losses(report.quantisation, console)
    if report.costs:
        console.print(cost_words(report.costs), markup=False)


def cost_words(costs: dict[str, Any]) -> str:
    """Cores, chips, what binds, and the work of a step, in words."""
    needs, work = costs["resources"], costs["estimates"]
    binds, done, runtime = needs["binds"], work["operations"], work["runtime"]
    cores, chips = (_range_words(needs[k], k[:-1]) for k in ("cores", "chips"))
    text = f"{needs['chip']}: {cores} on {chips}; {binds['limit']} binds, {100 * binds['share']:.0f} % of a core"
    text += " (an assumed limit)" if binds["assumed"] else ""
    text += "" if needs["unrolled_fits"] else ", and one neuron alone exceeds a core where kernels are not shared"
    text += f"; a step: {done['synaptic_events']:,.0f} of {done['synaptic_events_dense']:,.0f} synaptic operations"
    text += f", {done['neuron_updates']:,.0f} neuron updates"
    if needs["custom_neurons"]:
        text += f"; {', '.join(needs['custom_neurons'])}: assumed microcode"
    if runtime["seconds_per_step"] is None:
        return text + "; no runtime bound, its constants are not available"
    return text + f"; at least {1e6 * runtime['seconds_per_step']:.2f} us, {runtime['binds']} binds"


def _range_words(pair: list[int], what: str) -> str:
    lo, hi = pair
    return f"{hi:,} {what}{'s' if hi > 1 else ''}" if lo == hi else f"{lo:,} to {hi:,} {what}s"


def _division(found: Division, console: Console) -> None:
    """What another division cost, circuit by circuit."""
    table = Table(box=None, pad_edge=False, title=f"circuits divide in form {found.form!r}", title_justify="left")
    for column in ("circuit", "error of its current", "zeros", "silent", "epsilon"):
        table.add_column(column)
    for name, layer in found.layers.items():
        shares = (f"{100 * layer[k]:.2g} %" for k in ("error", "zeros", "silent"))
        table.add_row(name, *shares, f"{layer['epsilon']:.3g}")
    console.print(table)
    if found.own:
        console.print("numbers were chosen on the tested input itself: give --calibration FILE for an honest measure")
    told = f"{100 * found.changed:.2g} % of the decisions changed"
    if found.accuracy_exact is not None and found.accuracy is not None:
        told += f"; accuracy {100 * found.accuracy_exact:.2f} % as trained, {100 * found.accuracy:.2f} % in this form"
    console.print(told)


def _losses(found: Quantisation, console: Console) -> None:
    """What quantisation cost, layer by layer."""
    view = Table(box=None, pad_edge=False)
    view.add_column("layer", no_wrap=True)
    for column in ("weight step", "clipped", "zeroed", "SNR dB", "headroom", "spikes changed", "decisions, alone"):
        view.add_column(column, justify="right", no_wrap=True)
    for layer in found.layers.values():
        view.add_row(layer.name, *loss_cells(layer))
    console.print(view)
    console.print(loss_words(found), markup=False)


def loss_cells(layer: Loss) -> tuple[str, ...]:
    """A layer's losses as text."""
    steps = [s for pair in layer.scales.values() for s in pair]
    exponents = sorted({int(math.log2(s)) for s in steps})
    step = f"2^{exponents[0]}" + (f"..2^{exponents[-1]}" if len(exponents) > 1 else "")
    alone = "" if layer.alone_decisions is None else f"{100 * layer.alone_decisions:.2f} %"
    shares = (f"{100 * share:.2f} %" for share in (layer.clipped, layer.zeroed))
    return step, *shares, f"{layer.snr_db:.1f}", layer.room, layer.change, alone


def loss_words(found: Quantisation) -> str:
    """The lossy step in words."""
    text = f"quantised to {found.plan.bits} bits: {100 * found.decisions_changed:.2f} % of the decisions changed"
    if found.accuracy_float is not None and found.accuracy_int is not None and found.lost is not None:
        text += f", accuracy {100 * found.accuracy_float:.2f} % -> {100 * found.accuracy_int:.2f} %"
        if found.budget is not None:
            told = "within" if found.ok else "OVER"
            text += f" ({found.lost:.2f} points, {told} the budget of {found.budget:g})"
    costly = found.costliest
    if costly is None:
        return text + f"; no layer alone changes a decision of {found.samples_alone} samples"
    share = f"{100 * (costly.alone_decisions or 0):.2f} % of {found.samples_alone} decisions alone"
    return text + f"; {costly.name} costs most, {share}"
