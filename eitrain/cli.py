"""`eitrain`: train excitatory-inhibitory spiking networks."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from eiexport.console import Bar, bar, run, user_errors, wide_console

if TYPE_CHECKING:
    from eitrain.data import Dataset
    from eitrain.fit import Fitting
    from eitrain.runs import Run

app = typer.Typer(
    name="eitrain",
    help="Train excitatory-inhibitory spiking networks (Norse cells, surrogate gradients) for export with `eiexport`.",
    epilog="Examples: `eitrain fit` · `eitrain recipes` · `eitrain evaluate runs/backei-digits`",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
console = wide_console()


@app.command(
    epilog="Examples: `eitrain fit` (digits, about a minute) · `eitrain fit backei-mnist --data-dir DIR --epochs 1 "
    "--set steps=10 --out runs/mnist` · `eitrain fit --out runs/digits --resume --epochs 40` · "
    "`eitrain fit --from runs/digits --quantize 4 --out runs/digits-int4`"
)
def fit(
    recipe: Annotated[str, typer.Argument(help="Recipe, see `eitrain recipes`.")] = "",
    data: Annotated[str, typer.Option("--data", help="Train the recipe on another data set.")] = "",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the data; else EITRAIN_DATA, else a download.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs in all.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and encoders.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, same config.")] = False,
    start_from: Annotated[
        Path | None, typer.Option("--from", help="Start from the best weights of another run.")
    ] = None,
    quantize: Annotated[
        int | None, typer.Option(help="Train the integer network itself, weights in 4 to 8 bits.", metavar="BITS")
    ] = None,
    divide: Annotated[
        str, typer.Option(help="Train circuits with the division of a chip: frozen, shift or table.", metavar="FORM")
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the recipe: key=value.")
    ] = None,
) -> None:
    """Train a recipe; without arguments, BackEISNN on scikit-learn's digits."""
    from eiexport.plans import BITS
    from eitrain import figures, recipes
    from eitrain.errors import TrainError
    from eitrain.fit import Fitting, load_model
    from eitrain.runs import Run

    with user_errors("eitrain"):
        kind = f"{f'-{divide}' if divide else ''}{'' if quantize is None else f'-int{quantize}'}"
        name = recipe or (Run(start_from).recipe().name if start_from and not resume else recipes.DEFAULT)
        path = out or Path("runs") / f"{name}{kind}"
        given = [*(settings or [])]
        named = (("data", data), ("epochs", epochs), ("seed", seed), ("quantize", quantize), ("divide", divide))
        given += [f"{k}={v}" for k, v in named if v not in ("", None)]
        known = path if resume else start_from
        chosen = Run(known).recipe() if known and not recipe else recipes.find(recipe or recipes.DEFAULT)
        if quantize is not None and quantize not in BITS:
            raise TrainError(f"--quantize {quantize}: weights take {BITS[0]} to {BITS[-1]} bits")
        if divide and not resume:
            chosen = recipes.deployed(chosen, divide, from_weights=start_from is not None)
        if quantize is not None and not resume:
            chosen = recipes.fine_tuning(chosen, from_weights=start_from is not None)
        chosen = recipes.adjust(chosen, given)
        with bar(quiet=int(os.environ.get("RANK", "0")) > 0) as progress:
            fitting = Fitting(
                chosen, path, data_dir=data_dir, device=device, resume=resume, start_from=start_from, progress=progress
            )
            _announce(fitting, progress)
            for row in fitting.epochs():
                _report(progress, row, chosen.epochs)
        if not fitting.fabric.is_global_zero:
            return
        scores = fitting.scores()
        classes = fitting.dataset.classes
        figures.curves(fitting.rows, path / "curves.png")
        figures.activity(fitting.rows, path / "activity.png")
        for name, score in scores.items():
            correct, total = int(score.confusion.trace()), int(score.confusion.sum())
            console.print(f"{name}: test accuracy {100 * score.accuracy:.2f} % ({correct} of {total})")
        title = f"{fitting.dataset.name}, best: {100 * scores['best'].accuracy:.2f} %"
        figures.confusion(scores["best"], classes, path / "confusion.png", title)
        idle = _plasticity(fitting, path)
        if fitting.net.circuits:
            best, _ = load_model(fitting.run, "best", fitting.dataset)
            _circuits(fitting.run, fitting.dataset, best.to(fitting.fabric.device), title)
        if scores["best"].silent:
            hint = "; raise init_gain" if chosen.system == "backei" else "; train longer or widen the network"
            console.print(f"warning: silent on the test set: {', '.join(scores['best'].silent)}{hint}")
        console.print(
            f"run folder: {path}\n"
            f"next: eiexport {shlex.quote(str(path))}{_division(fitting)} --target torch --target "
            f"{'loihi' if chosen.quantize else 'lava'}",
            markup=False,
        )
        if idle:
            raise typer.Exit(1)


def _division(fitting: Fitting) -> str:
    """What an export has to be told where circuits fill zeros by a minimum over the sample, as no chip does."""
    return " --divide exact" if fitting.net.circuits and fitting.recipe.divide == "exact" else ""


def _plasticity(fitting: Fitting, path: Path) -> bool:
    """Report what STDP did; True where it did next to nothing."""
    from eitrain import figures
    from eitrain.learning import ACTIVE, inactive, summary

    rows = [r for r in fitting.rows if r.get("updates")]
    if not rows:
        return False
    found, idle = summary(rows), inactive(rows)
    fitting.run.write_json("plasticity.json", {"phases": found, "inactive": idle})
    figures.plasticity(rows, path / "plasticity.png")
    table = Table(box=None, pad_edge=False)
    for column in ("phase", "layer", "|weight|", "change by gradient", "by STDP", "STDP's share", "cosine to descent"):
        table.add_column(column)
    for letter, layers in found.items():
        for name, u in layers.items():
            told = (
                f"{u[k]:.3g}" if u[k] is not None else "-" for k in ("weight", "gradient", "stdp", "share", "cosine")
            )
            table.add_row(letter, name, *told)
    console.print(table)
    for name, share in idle.items():
        console.print(
            f"check failed: STDP-inactive on {name}: its increments are {100 * share:.2g} % of a gradient "
            f"epoch's change (bar: {100 * ACTIVE:g} %); raise stdp_lr"
        )
    return bool(idle)


def _circuits(run: Run, dataset: Dataset, model: Any, title: str) -> Table | None:
    """Draw what the circuits of a network did over training and on validation samples; the latter as a table.

    Of a network that computes in integers: its float weights' own circuits, since the integer graph has them folded.
    """
    from eiexport.insight import TITLES, cells
    from eitrain import data, figures, insight
    from eitrain.fit import watched

    net, recipe = getattr(model, "net", model), run.recipe()
    if not net.circuits:
        return None
    rows = run.read_metrics(recipe.epochs)
    if any(r.get("circuits") for r in rows):
        figures.circuits(rows, run.path / "circuits.png")
    _, held = data.split_validation(dataset.train.labels, recipe.validation, recipe.seed)
    x, labels = watched(recipe, dataset.train, held, 200)
    seen = insight.watch(net, x.to(next(net.parameters()).device), recipe.steps)
    where = run.path / "circuits-samples.png"
    figures.circuit_samples(seen, labels, dataset.classes, where, f"{title}; {len(labels)} validation samples")
    table = Table(box=None, pad_edge=False, title=f"circuits on {len(labels)} validation samples", title_justify="left")
    for column in ("circuit", *TITLES):
        table.add_column(column)
    for name, found in seen.items():
        table.add_row(name, *cells(found.summary()))
    return table


def _announce(fitting: Fitting, progress: Bar) -> None:
    r, count = fitting.recipe, sum(p.numel() for p in fitting.net.parameters())
    gates = f" {r.gates}," if r.system == "backei" else ""
    progress.line(f"{r.name}: {r.architecture},{gates} T={r.steps}, {count:,} parameters, {fitting.fabric.device}")
    if (phases := r.phases).local:
        where = ", ".join(fitting.watched) if len(fitting.watched) < 5 else f"{len(fitting.watched)} layers"
        amount = "mean" if r.stdp_mean else "sum"
        rule = f"f = {r.stdp_weight}, tau {r.stdp_tau_pre:g} and {r.stdp_tau_post:g}, {amount}, lr {r.stdp_lr:g}"
        progress.line(f"schedule {r.schedule}: {phases.letters(phases.length)}, repeated; STDP on {where}: {rule}")
    for remark in (*r.remarks, *fitting.notes):
        progress.line(f"note: {remark}")
    sizes = len(fitting.train_indices), len(fitting.held_indices), len(fitting.dataset.test)
    some = f" ({len(fitting.labelled)} with labels)" if r.labels else ""
    progress.line(f"{fitting.dataset.source}: {sizes[0]} train{some}, {sizes[1]} validation, {sizes[2]} test samples")
    if fitting.first:
        progress.line(f"resumed after epoch {fitting.first}")


def _report(progress: Bar, row: dict[str, Any], epochs: int) -> None:
    from eitrain.learning import overshooting

    val, test = (f"{100 * row[k]:.2f} %" for k in ("val_accuracy", "test_accuracy"))
    text = f"epoch {row['epoch'] + 1}/{epochs} [{row['phase']}]  loss {row['train_loss']:.4f}  "
    text += f"val {val}  test {test}  {row['seconds']:.1f} s"
    if row.get("stdp_layers"):
        updates = row["updates"].values()
        stdp, gradient = (sum(u[k] for u in updates) for k in ("stdp", "gradient"))
        text += f"  STDP {100 * stdp / max(1e-30, stdp + gradient):.1f} % of the change"
    progress.line(text + (f"  silent: {', '.join(row['silent'])}" if row["silent"] else ""))
    for name, drive in overshooting(row).items():
        progress.line(
            f"warning: {name}: lr x largest drive = {drive:.2g} > 1, weights can turn around in one step; "
            "lower stdp_lr, or give stdp_mean=true"
        )


@app.command(
    epilog="Examples: `eitrain schedule biril-cifar10` · "
    "`eitrain schedule eicil-mnist --set schedule=GSI:-3 --draw schedule.png`"
)
def schedule(
    recipe: Annotated[str, typer.Argument(help="Recipe, see `eitrain recipes`.")],
    epochs: Annotated[int | None, typer.Option(help="Number of epochs.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the recipe: schedule=GSI:3, 1:8:3, GGSGGM.")
    ] = None,
    draw: Annotated[Path | None, typer.Option(help="Draw it, with the learning rate, as a PNG.")] = None,
) -> None:
    """Which rule trains which epoch: the cycle's letters first."""
    from eitrain import recipes
    from eitrain.schedule import RULES

    with user_errors("eitrain"):
        given = [*(settings or []), *([] if epochs is None else [f"epochs={epochs}"])]
        chosen = recipes.adjust(recipes.find(recipe), given)
        phases = chosen.phases
        letters = phases.letters(chosen.epochs)
        print(phases.letters(phases.length))
        print(f"{chosen.name}, schedule {chosen.schedule}: a cycle of {phases.length}, {chosen.epochs} epochs")
        for letter in dict.fromkeys(letters):
            strip = "".join("#" if k == letter else "." for k in letters[:72])
            share = f"{letters.count(letter)} ({100 * letters.count(letter) / len(letters):.1f} %)"
            print(f"  {letter} {strip}{'...' if len(letters) > 72 else ''} {share}")
        for letter in dict.fromkeys(letters):
            print(f"{letter}: {RULES[letter].name}")
        for remark in chosen.remarks:
            print(f"note: {remark}")
        if draw is not None:
            from eitrain import figures

            figures.schedule(letters, [chosen.lr_at(e) for e in range(chosen.epochs)], draw)
            print(f"drawn: {draw}")


@app.command(name="recipes", epilog="Example: `eitrain recipes`")
def list_recipes() -> None:
    """List the recipes: SYSTEM-DATA[-VARIANT]."""
    from eitrain.recipes import DEFAULT, RECIPES

    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "data", "architecture", "gates", "T", "epochs", "encoder", "schedule"):
        table.add_column(column, no_wrap=column == "recipe")
    for r in RECIPES.values():
        name = f"{r.name} (default)" if r.name == DEFAULT else r.name
        table.add_row(name, r.data, r.architecture, r.gates, str(r.steps), str(r.epochs), r.encoder, r.schedule)
    console.print(table)


@app.command(epilog="Example: `eitrain evaluate runs/backei-digits --checkpoint last`")
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    checkpoint: Annotated[str, typer.Option(help="best or last.")] = "best",
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the data.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Test accuracy, confusion matrix and activity of a trained run."""
    import numpy as np

    from eitrain import data, figures, runs
    from eitrain.fit import evaluate as score_of
    from eitrain.fit import load_model
    from targets.pytorch import device_of

    with user_errors("eitrain"):
        stored = runs.Run(folder)
        recipe = stored.recipe()
        dataset = data.load(recipe.data, stored.data_dir(data_dir), steps=recipe.steps)
        model, _ = load_model(stored, checkpoint, dataset)
        where = device_of(device)
        every = np.arange(len(dataset.test))
        score = score_of(model.to(where), recipe, dataset.test, every, len(dataset.classes), where)
        figures.confusion(score, dataset.classes, folder / "confusion.png", f"{recipe.name}, {checkpoint}")
        console.print(f"{checkpoint}: test accuracy {100 * score.accuracy:.2f} % of {len(every)} samples")
        table = Table(box=None, pad_edge=False)
        for column in ("layer", "spikes per neuron and step", "+1", "-1"):
            table.add_column(column)
        for name, layer in score.layers.items():
            shares = (f"{100 * layer[k]:.1f} %" for k in ("positive", "negative"))
            table.add_row(name, f"{layer['rate']:.4f}" if layer["rate"] else "silent", *shares)
        console.print(table)
        if (circuits := _circuits(stored, dataset, model, f"{recipe.name}, {checkpoint}")) is not None:
            console.print(circuits)


def main() -> None:
    run(app, "eitrain")


if __name__ == "__main__":
    main()
