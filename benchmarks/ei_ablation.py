"""DeepEISNN against its BatchNorm baseline, and what each part of E-I Init and E-I Prop is worth.

    python benchmarks/ei_ablation.py [--recipe deepei-fashion] [--epochs 4] [--batches 0] [--seeds 3] [--out FILE]

Every variant trains the same network with the same schedule, data order and number of steps; only what its name says
differs. The baseline has BatchNorm in each circuit's place and two learning rates, the better of which counts. Rows are
written as they come; a run that diverges (a loss or a weight that is no number) is a result, and is told as one.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eiexport.files import replacing
from eitrain import recipes
from eitrain.errors import TrainError
from eitrain.fit import Fitting
from eitrain.recipes import Recipe

VARIANTS: dict[str, dict[str, Any]] = {
    "circuits": {},
    "BatchNorm, lr 0.1": {"batchnorm": True, "lr": 0.1, "weight_decay": 1e-4},
    "BatchNorm, same lr": {"batchnorm": True},
    "without E-I Init": {"ei_init": False},
    "without stabilisation": {"stabilise": False},
    "without straight-through": {"straight_through": False},
    "without gradient scaling": {"scale_gradients": False},
    "without any of them": dict.fromkeys(("ei_init", "stabilise", "straight_through", "scale_gradients"), False),
}


def train(recipe: Recipe, data_dir: Path | None) -> dict[str, Any]:
    """One run: test accuracy of its last epoch, and of the one that was best in validation."""
    with tempfile.TemporaryDirectory() as folder:
        fitting = Fitting(recipe, Path(folder, "run"), data_dir=data_dir)
        rows: list[dict[str, Any]] = []
        try:
            rows.extend(fitting.epochs())
        except TrainError as e:
            return {"diverged": str(e), "epochs": len(fitting.rows), "test_last": None}
    best = max(rows, key=lambda r: r["val_accuracy"])
    return {
        "test_last": rows[-1]["test_accuracy"],
        "test_best": best["test_accuracy"],
        "train_loss": [r["train_loss"] for r in rows],
        "silent": rows[-1]["silent"],
        "seconds": round(sum(r["seconds"] for r in rows), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="deepei-fashion")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batches", type=int, default=0, help="training steps an epoch, 0: all")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.0, help="of the circuits; 0: the recipe's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ei_ablation.json")
    given = parser.parse_args()
    size = {"epochs": given.epochs, "cosine": given.epochs, "batches": given.batches, "width": given.width}
    named = recipes.find(given.recipe)
    size["warmup"] = min(named.warmup, given.epochs - 1)
    base = replace(named, **size, **({"lr": given.lr} if given.lr else {}))
    about = {"recipe": recipes.to_config(base), "torch": torch.__version__, "python": platform.python_version()}
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {"runs": {}}
    if "recipe" in found and found["recipe"] != about["recipe"]:
        raise SystemExit(f"{given.out} holds runs of another set-up: give another --out")
    found |= about
    for seed in range(given.seeds):
        for name in given.variants:
            rows = found["runs"].setdefault(name, {})
            if str(seed) in rows:
                continue
            recipe = recipes.adjust(replace(base, seed=base.seed + seed, **VARIANTS[name]), [])
            rows[str(seed)] = train(recipe, given.data_dir)
            with replacing(given.out) as temporary:
                temporary.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name}, seed {seed}: {rows[str(seed)]}", flush=True)
    for name, rows in found["runs"].items():
        scores = [100 * r["test_last"] for r in rows.values() if r["test_last"] is not None]
        lost = sum(r["test_last"] is None for r in rows.values())
        told = f"{np.mean(scores):.2f} +- {np.std(scores):.2f} %" if scores else "-"
        print(f"{name:26s} {told}  {[round(s, 2) for s in scores]}" + (f"  {lost} diverged" if lost else ""))


if __name__ == "__main__":
    main()
