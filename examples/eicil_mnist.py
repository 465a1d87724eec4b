"""EICIL: excitatory (gradient) epochs alternate with epochs that add STDP, then the network goes to integer hardware.

    python examples/eicil_mnist.py [--data-dir DATA] [--epochs 6] [--batches 60]

Trains a small spiking ResNet three ways from the same seed: gradient alone (GS), alternating with STDP on the
convolutions (GSI), and with both at once (GSGI), K = 2. Prints accuracy and what STDP changed, then exports the last:
float spikes compared entry by entry, and 8-bit integers on two engines. Without MNIST at hand it takes scikit-learn's
digits.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from eiexport.report import Report
from eiexport.session import Settings, export
from eitrain import data, learning, recipes
from eitrain.errors import TrainError
from eitrain.export import open_run
from eitrain.fit import Fitting
from eitrain.recipes import Recipe

METHODS = {"GS": "G", "GSI, K = 2": "GSI:2", "GSGI, K = 2": "GSGI:2"}


def train(recipe: Recipe, out: Path, data_dir: Path | None) -> Fitting:
    fitting = Fitting(recipe, out, data_dir=data_dir)
    for row in fitting.epochs():
        print(f"    epoch {row['epoch'] + 1} [{row['phase']}]  test {100 * row['test_accuracy']:.2f} %")
    for layer, u in learning.summary(fitting.rows).get("M", {}).items():
        print(f"    {layer}: STDP is {100 * (u['share'] or 0):.0f} % of the change, cosine {u['cosine'] or 0:+.2f}")
    return fitting


def send(run: Path, samples: int, quantize: int | None, *targets: str) -> Report:
    out = run / f"export-{quantize or 'float'}"
    found = export(open_run(run, samples=samples), Settings(targets, out, quantize=quantize), lambda *_: None)
    for row in found.rows:
        print(f"    {row.name}: {row.status}, {row.total('entries'):,} entries, {row.total('mismatches')} differ")
    return found


def main(data_dir: Path | None = None, epochs: int = 6, batches: int = 60, samples: int = 50) -> dict[str, float]:
    """Accuracy of each method, in float on the whole test set."""
    small = replace(recipes.find("eicil-digits"), epochs=epochs, cosine=epochs, batches=batches)
    try:
        data.load("mnist", data_dir)
        small = replace(small, data="mnist")
    except TrainError as e:
        print(f"{e}\ntaking scikit-learn's digits")
        data_dir = None
    accuracy = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, schedule) in enumerate(METHODS.items()):
            recipe, run = replace(small, schedule=schedule), Path(folder, str(i))
            print(f"{name}: {recipe.phases.letters(epochs)}")
            fitting = train(recipe, run, data_dir)
            accuracy[name] = fitting.rows[-1]["test_accuracy"]
        print("export of the last one, float:")
        send(run, samples, None, "reference", "torch")
        print("and in 8-bit integers:")
        send(run, samples, 8, "torch", "loihi")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST; else EITRAIN_DATA, else a download")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batches", type=int, default=60, help="training steps an epoch")
    given = parser.parse_args()
    for method, found in main(given.data_dir, given.epochs, given.batches).items():
        print(f"{method}: {100 * found:.2f} %")
