"""`eiexport`: lower a trained network to NIR, run it on back ends, and prove its spikes equal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from eiexport.console import run, user_errors, wide_console
from eiexport.errors import ExportError

if TYPE_CHECKING:
    from eiexport.model import Model
    from eiexport.session import Settings

CHIPS = ("loihi1", "loihi2")
SHORT = {"exact after lowering": "lowered", "approximate": "ties"}
app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
console = wide_console()

EXAMPLES = (
    "Examples: `eiexport runs/backei-digits --target reference --target torch --target lava` · "
    "`eiexport net.nir --input spikes.npy --target lava --dt 1e-4 --integrator euler` · "
    "`eiexport network.net --input spikes.npy --target loihi --target c` · "
    "`eiexport net.nir --draw graph.svg --dt 1 --integrator euler` · "
    "`eiexport runs/backei-digits --quantize 8 --target torch --target loihi --target lava` · "
    "`eiexport --list-targets` · `eiexport --compare a.h5 b.h5`. "
    "Exit code 0: every comparison holds; 1: a target differs, failed or is unsupported; 2: the request was refused."
)


@app.command(epilog=EXAMPLES)
def main_command(
    model: Annotated[
        Path | None, typer.Argument(help="A run folder of `eitrain fit`, a .nir file, or a .net file of lava-dl.")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Where to run; may be repeated. See --list-targets.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input", help="Input of a file: .npy or .h5 (samples, steps, *neurons), NIRData, or events (.npz, .npy)."
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="How many test samples; default 100, or all of --input.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; default RUN/export or MODEL-export.")] = None,
    checkpoint: Annotated[str, typer.Option(help="best or last, of a run folder.")] = "best",
    dt: Annotated[float | None, typer.Option(help="Time step in seconds, where the graph does not say it.")] = None,
    integrator: Annotated[
        str | None, typer.Option(help="euler or exponential, where the graph does not say it.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, for torch.")] = "cpu",
    quantize: Annotated[
        int | None, typer.Option(help="Weights in 4 to 8 bits: export the integer network.", metavar="BITS")
    ] = None,
    channels: Annotated[
        bool, typer.Option("--per-channel", help="With --quantize: one weight scale an output channel.")
    ] = False,
    calibrate: Annotated[int, typer.Option(help="With --quantize or --divide: samples to choose numbers by.")] = 100,
    calibration: Annotated[
        Path | None, typer.Option(help="The same, for a .nir file: .npy or .h5 to calibrate on.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="With --quantize: points of accuracy it may cost, else exit code 1.")
    ] = None,
    message_bits: Annotated[
        int | None, typer.Option(help="Of a .net file: width of its graded input; else its input are spikes.")
    ] = None,
    chip: Annotated[str, typer.Option(help="loihi1 or loihi2, for the target loihi.")] = "loihi2",
    strict: Annotated[bool, typer.Option("--strict", help="Target loihi: an overflow is an error.")] = False,
    standard: Annotated[
        bool, typer.Option("--standard-nir", help="Lower to stock NIR nodes where that is exact, and run those.")
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(help="With --standard-nir: float32 or float64, in which its readers compute; default float32."),
    ] = None,
    recurrence: Annotated[
        str | None,
        typer.Option(help="With --standard-nir: explicit or implicit, one-step Delays written or left to readers."),
    ] = None,
    division: Annotated[
        str | None,
        typer.Option("--divide", help="Circuits: exact, frozen, shift or table; a chip has no other.", metavar="FORM"),
    ] = None,
    dale: Annotated[
        str, typer.Option(help="Circuits without division: fold into one connection, or keep apart.")
    ] = "fold",
    drawing: Annotated[
        Path | None,
        typer.Option("--draw", help="A picture of the graph; alone, or beside an export.", metavar="F.svg"),
    ] = None,
    list_targets: Annotated[
        bool, typer.Option("--list-targets", help="Node kinds x targets: how exact, held against what.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A.h5 B.h5", help="Compare two trace files; B is the reference.")
    ] = None,
) -> None:
    """Lower a network to NIR with signed spikes and gates, run it on TARGETs, and compare every spike."""
    with user_errors("eiexport"):
        if sum((list_targets, compare is not None, model is not None)) > 1:
            raise ExportError("give one of MODEL, --list-targets and --compare")
        if drawing is not None and model is None:
            raise ExportError("--draw needs a MODEL to draw")
        if list_targets:
            code = _list_targets()
        elif compare is not None:
            code = _compare(*compare)
        elif model is None:
            raise ExportError("nothing to export: give a run folder or a .nir file; see eiexport --help")
        else:
            from eiexport.session import Settings

            _verify(quantize, channels, calibration, budget, chip)
            _circuits(division, dale)
            lowered = _standard(standard, dtype, recurrence, quantize)
            chosen = (dt, integrator, device, quantize, channels, calibrate, budget, chip, strict, *lowered)
            settings = Settings(tuple(target or ["reference"]), out or Path(), *chosen, division, dale)
            given = Given(model, source, samples, checkpoint, calibration, message_bits, drawing)
            alone = drawing is not None and target is None and source is None
            if drawing is not None:
                _verify_drawing(given, drawing)
            if alone:
                made = {"--quantize": quantize, "--divide": division, "--out": out, "--calibration": calibration}
                if named := [k for k, v in made.items() if v is not None] + ["--standard-nir"] * standard:
                    raise ExportError(
                        f"--draw alone shows the graph as it is: leave {named[0]} out, or name a --target"
                    )
            code = _draw(given, settings) if alone else _export(given, settings, out)
    raise typer.Exit(code)


def _verify(quantize: int | None, channels: bool, calibration: Path | None, budget: float | None, chip: str) -> None:
    """Refuse options that contradict each other, before anything is read."""
    given = {"--per-channel": channels}
    if quantize is None and (alone := [k for k, on in given.items() if on]):
        raise ExportError(f"{alone[0]} needs --quantize BITS")
    if budget is not None and not budget >= 0:
        raise ExportError(f"--budget {budget}: give points of accuracy, at least 0")
    if chip not in CHIPS:
        raise ExportError(f"unknown chip {chip!r}; valid: {', '.join(CHIPS)}")


def _circuits(division: str | None, dale: str) -> None:
    from eiexport.divide import DALE, FORMS

    if division not in (None, *FORMS):
        raise ExportError(f"--divide {division}; valid: {', '.join(FORMS)}")
    if dale not in DALE:
        raise ExportError(f"--dale {dale}; valid: {', '.join(DALE)}")


def _standard(
    standard: bool, dtype: str | None, recurrence: str | None, quantize: int | None
) -> tuple[str | None, str]:
    """The dtype to lower to stock NIR for, or None, and the recurrence; refuses options that contradict each other."""
    from eiexport.standard import DTYPES, RECURRENCES

    for option, given, valid in (("dtype", dtype, DTYPES), ("recurrence", recurrence, RECURRENCES)):
        if given is not None and not standard:
            raise ExportError(f"--{option} needs --standard-nir")
        if given not in (None, *valid):
            raise ExportError(f"unknown {option} {given!r}; valid: {', '.join(valid)}")
    if standard and quantize is not None:
        raise ExportError("--standard-nir writes a float graph and --quantize an integer one: give one of them")
    return (dtype or DTYPES[0]) if standard else None, recurrence or RECURRENCES[0]


@dataclass(frozen=True)
class Given:
    """What is exported, as the user named it."""

    path: Path
    source: Path | None
    samples: int | None
    checkpoint: str
    calibration: Path | None
    message_bits: int | None
    drawing: Path | None


def _verify_drawing(given: Given, drawing: Path) -> None:
    if drawing.suffix != ".svg" or drawing.is_dir():
        raise ExportError(f"--draw {drawing}: the picture is an SVG file; give F.svg")
    files = (p for p in (given.path, given.source, given.calibration) if p is not None)
    if drawing.resolve() in {p.resolve() for p in files}:
        raise ExportError(f"--draw {drawing} would overwrite a file that is read; choose another name")


def _draw(given: Given, settings: Settings) -> int:
    """The picture alone, of the graph as it is."""
    from eiexport import graph, model, passes
    from eiexport.draw import write_svg

    assert given.drawing is not None
    if given.path.is_dir():
        from eitrain.export import open_run

        if given.message_bits is not None:
            raise ExportError(
                f"{given.path} is a run folder: its graph says its message bits, leave --message-bits out"
            )
        found = open_run(given.path, checkpoint=given.checkpoint, samples=1).graph
    else:
        found, _ = model.read(given.path, given.message_bits)
    clock = (settings.dt, settings.integrator)
    network = graph.check(passes.insert_delays(found, *clock)[0], *clock)
    write_svg(network, given.drawing, given.path.name)
    console.print(f"picture: {given.drawing}", markup=False, soft_wrap=True)
    return 0


def _model(given: Given, settings: Settings) -> Model:
    from eiexport.model import open_graph

    path = given.path
    if path.is_dir():
        from eitrain.export import open_run

        for option, value, why in (
            ("--input", given.source, "its input are its test samples"),
            ("--calibration", given.calibration, "it calibrates on its training data"),
            ("--message-bits", given.message_bits, "its graph says them"),
        ):
            if value is not None:
                raise ExportError(f"{path} is a run folder: {why}, leave {option} out")
        count = 100 if given.samples is None else given.samples
        return open_run(path, checkpoint=given.checkpoint, samples=count, device=settings.device)
    if given.checkpoint not in ("best", "last"):
        raise ExportError(f"unknown checkpoint {given.checkpoint!r}; valid: best, last")
    if not path.exists():
        raise ExportError(f"{path}: no such run folder or file")
    if given.source is None:
        raise ExportError(f"{path}: a graph alone has no input; give --input F.npy|F.h5 (samples, steps, *neurons)")
    return open_graph(path, given.source, given.samples, given.calibration, settings.dt, given.message_bits)


def _export(given: Given, settings: Settings, out: Path | None) -> int:
    from eiexport import report
    from eiexport.console import bar
    from eiexport.draw import write_svg
    from eiexport.session import export, made_files

    path = given.path
    model = _model(given, settings)
    folder = out or (path / "export" if path.is_dir() else path.with_name(f"{path.stem}-export"))
    ours = {file.resolve() for file in made_files(folder)}
    for file in (p for p in (path, given.source, given.calibration) if p is not None and p.is_file()):
        if file.resolve() in ours:
            raise ExportError(f"{file.name} lies in --out {folder} and would be overwritten; choose another --out")
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder}: exists and is no folder; choose another --out")
    if given.drawing is not None:
        given.drawing.parent.mkdir(parents=True, exist_ok=True)  # before the work, not behind it
    with bar() as progress:
        found = export(model, replace(settings, out=folder), progress)
    console.print(f"{found.model}: {found.samples} samples, {found.steps} steps", markup=False)
    report.table(found, console)
    console.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)
    if given.drawing is not None:
        write_svg(found.network, given.drawing, found.model)
        console.print(f"picture: {given.drawing}", markup=False, soft_wrap=True)
    return 0 if found.ok else 1


def _compare(first: Path, second: Path) -> int:
    from eiexport.trace import compare_files, earliest

    results, remarks = compare_files(first, second)
    table = Table(box=None, pad_edge=False)
    for column in ("node", "entries", "differ", "registers", "differ", "spikes A", "spikes B"):
        table.add_column(column, justify="left" if column == "node" else "right")
    for name, r in results.items():
        mark = f"{name} (silent)" if r.silent else name
        counts = (r.entries, r.mismatches, r.state_entries, r.state_mismatches, r.spikes, r.spikes_reference)
        table.add_row(Text(mark), *(f"{n:,}" for n in counts))
    console.print(table)
    for text in remarks:
        console.print(text, markup=False)
    found = earliest(results, sorted(results))
    if found is not None:
        console.print(f"first divergence: {found}", markup=False)
        return 1
    if all(r.silent for r in results.values()):
        console.print("equal, but silent: this proves nothing")
        return 1
    console.print("equal in what was compared, which is not all of it" if remarks else "equal")
    return 1 if remarks else 0


def _list_targets() -> int:
    """Node kinds by targets; a cell's number leads to the claim below the table."""
    from eiexport.nodes import PREPARE
    from targets import base

    targets = {n: base.get(n) for n in base.REGISTRY}
    claims: dict[str, int] = {}
    table = Table(box=None, pad_edge=False)
    table.add_column("node kind", no_wrap=True)
    for name in targets:
        table.add_column(name, no_wrap=True)
    for kind in (k for k in PREPARE if k not in ("Input", "Output")):
        cells = []
        for t in targets.values():
            claim = t.claims.get(kind, base.Claim("no"))
            word = SHORT.get(claim.exactness, claim.exactness)
            cells.append(word if word == "no" else f"{word} {claims.setdefault(str(claim), len(claims) + 1)}")
        table.add_row(kind, *cells)
    console.print(table)
    for text, number in claims.items():
        console.print(f"{number}: {text}", markup=False)
    for name, t in targets.items():
        console.print(f"{name}: {(t.__doc__ or '').strip().splitlines()[0]} {t.setup}".rstrip(), markup=False)
    return 0


def main() -> None:
    run(app, "eiexport")


if __name__ == "__main__":
    main()
