"""DeepEISNN: excitatory-inhibitory circuits in place of BatchNorm, and what becomes of their division on a chip.

    python examples/deep_ei_circuit.py [--epochs 12]

Trains a small network of circuits on scikit-learn's digits and shows how excitation and inhibition balance in it. Then
the division goes to hardware in four forms, each measured against the network as it was trained: exact with a constant
for zeros, a shift, a table of reciprocals, and a frozen denominator, with which every circuit folds into one stock
connection. The last one costs most, so it is trained on for a few epochs, and then runs in 8-bit integers.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from eiexport.divide import FORMS
from eiexport.report import Report
from eiexport.session import Settings, export
from eitrain import recipes
from eitrain.export import open_run
from eitrain.fit import Fitting
from eitrain.recipes import Recipe


def train(recipe: Recipe, out: Path, start_from: Path | None = None) -> Fitting:
    fitting = Fitting(recipe, out, start_from=start_from)
    for row in fitting.epochs():
        print(f"    epoch {row['epoch'] + 1}  test {100 * row['test_accuracy']:.2f} %")
    return fitting


def send(run: Path, samples: int, form: str | None, quantize: int | None, *targets: str) -> Report:
    settings = Settings(targets, run / f"export-{form}-{quantize}", quantize=quantize, divide=form)
    return export(open_run(run, samples=samples), settings, lambda *_: None)


def main(epochs: int = 12, samples: int = 360) -> dict[str, float]:
    """Accuracy as trained, in each form, and with the frozen denominator after fine-tuning, in float and integers."""
    recipe = recipes.adjust(
        recipes.find("deepei-digits"), [f"epochs={epochs}", f"cosine={epochs}", f"warmup={int(epochs > 1)}"]
    )
    accuracy: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        run, tuned = Path(folder, "exact"), Path(folder, "frozen")
        print("circuits, trained without normalisation:")
        rows = train(recipe, run).rows
        print("    layer     excitation  inhibition  balance  denominator   zeros  firing rate")
        for name, c in rows[-1]["circuits"].items():
            told = f"    {name:9s} {c['excitation']:10.3f}  {c['inhibition']:10.3f}  {c['balance']:7.2f}"
            if c["denominator"] is not None:  # the readout has none
                told += f"  {c['denominator']:11.4f}  {100 * c['zeros']:4.1f} %  {c['rate']:11.3f}"
            print(told)
        for form in FORMS:
            found = send(run, samples, form, None, "torch").division
            assert found is not None and found.accuracy is not None and found.accuracy_exact is not None
            accuracy |= {"as trained": found.accuracy_exact, form: found.accuracy}
            worst = max(layer["error"] for layer in found.layers.values())
            print(f"{form}: {100 * found.accuracy:.2f} % (as trained {100 * found.accuracy_exact:.2f} %), ", end="")
            print(f"currents off by up to {100 * worst:.2g} % of their deviation")
        print("frozen denominators, trained on:")
        train(recipes.deployed(recipe, "frozen", from_weights=True), tuned, run)
        for quantize, targets in ((None, ("reference", "torch")), (8, ("torch", "loihi"))):
            report = send(tuned, samples, None, quantize, *targets)
            what = "frozen, trained on" + (f", {quantize} bits" if quantize else "")
            accuracy[what] = report.reference.accuracy or 0.0
            for row in report.rows:
                print(
                    f"    {what}: {row.name} {row.status}, {row.total('mismatches')} of {row.total('entries'):,} differ"
                )
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    for what, found in main(parser.parse_args().epochs).items():
        print(f"{what}: {100 * found:.2f} %")
