"""BIRIL: cycles of gradient, STDP and both in a ratio S:G:M, stopped in the middle of a cycle and resumed.

    python examples/biril_cycle.py [--epochs 12]

Prints each published ratio's cycle, then trains BIRIL's network in small on scikit-learn's digits under 1:8:3: first
for half of a cycle, then on from the run folder, as after a crash. Every epoch says which rule trained it and how much
of the weights' change was STDP's. `plasticity.png` in the run folder shows it layer by layer.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from eitrain import figures, recipes, schedule
from eitrain.fit import Fitting

RATIOS = ("1:4:1", "2:6:1", "1:6:2", "1:8:3", "3:8:1")


def main(out: Path, epochs: int = 12, batches: int = 0) -> list[dict]:
    """The metrics rows of the whole run."""
    for ratio in RATIOS:
        cycle = schedule.parse(ratio)
        print(f"{ratio}  {cycle.letters(cycle.length)}")
    recipe = replace(recipes.find("biril-digits"), epochs=epochs, cosine=epochs, batches=batches, schedule="1:8:3")
    for resume in (False, True):
        until = epochs if resume else epochs // 2
        fitting = Fitting(replace(recipe, epochs=until), out, resume=resume)
        for row in fitting.epochs():
            stdp, gradient = (sum(u[k] for u in row["updates"].values()) for k in ("stdp", "gradient"))
            share = 100 * stdp / (stdp + gradient)
            print(
                f"epoch {row['epoch'] + 1:2} [{row['phase']}]  loss {row['train_loss']:.3f}  "
                f"test {100 * row['test_accuracy']:.2f} %  STDP {share:.0f} % of the change"
            )
        print("stopped, and resumed from the run folder" if not resume else f"pictures in {out}")
    figures.plasticity(fitting.rows, out / "plasticity.png")
    figures.schedule(recipe.phases.letters(epochs), [r["lr"] for r in fitting.rows], out / "schedule.png")
    return fitting.rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, help="a new folder; default a temporary one")
    given = parser.parse_args()
    main(given.out or Path(tempfile.mkdtemp()) / "biril", given.epochs)
