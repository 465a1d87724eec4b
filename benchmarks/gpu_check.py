"""Train, export and compare on a CUDA device, and store what it found together with a golden trace.

    python benchmarks/gpu_check.py                 # on a GPU machine: writes benchmarks/results/cuda_check.json
    python benchmarks/gpu_check.py --device cpu    # the same on a CPU: benchmarks/results/cpu_check.json

float64 evaluation: spikes equal to the NumPy reference. float32: equal, or differences explained as ties.
Tests on any machine hold every target against the golden traces found here.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import golden
from eiexport.check import ExecutionCheck, judge
from eiexport.trace import Trace, compare_entries
from eitrain import recipes, runs
from eitrain.export import open_run
from eitrain.fit import Fitting
from targets.pytorch import Torch, Torch32
from targets.reference import Reference

RESULTS = Path(__file__).parent / "results"


def train_and_compare(device: str, epochs: int) -> dict[str, Any]:
    """The digits recipe on the device; its trace and both torch targets against the reference on the CPU."""
    import eiexport.graph

    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        recipe = recipes.adjust(recipes.find(recipes.DEFAULT), [f"epochs={epochs}"])
        fitting = Fitting(recipe, run, device=device)
        rows = list(fitting.epochs())
        model = open_run(run, samples=60, device=device)
    network = eiexport.graph.check(model.graph)
    x = np.concatenate(list(model.chunks(60)))
    reference = Reference().compile(network).run(x)
    assert model.trace is not None
    traces = {"trained": Trace({n: z.astype(np.int8) for n, z in model.trace(x).items()})}
    traces |= {t.name: t(device).compile(network).run(x) for t in (Torch, Torch32)}
    found: dict[str, Any] = {"test_accuracy": rows[-1]["test_accuracy"], "seconds": rows[-1]["seconds"]}
    for kind, trace in traces.items():
        dtype = "float32" if kind == "torch32" else "float64"
        check = ExecutionCheck(network, dtype)
        check.add(x, trace.z)
        free: dict[str, Any] = {}
        compare_entries(free, trace, reference)
        counts = {
            k: sum(getattr(r, k) for r in check.results.values()) for k in ("entries", "mismatches", "explained_ties")
        }
        differ = sum(r.mismatches for r in free.values())
        found[kind] = {"status": judge(check.results, dtype), **counts, "free_running_mismatches": differ}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: this torch sees no CUDA device")
        return 0
    began = time.time()
    net = golden.network()
    trace = Torch(options.device).compile(net).run(golden.stimulus())
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    result = {
        "device": {"type": options.device, "name": name},
        **runs.provenance(),
        "python": platform.python_version(),
        "training": train_and_compare(options.device, options.epochs),
        "golden": {"weights": golden.weights_hash(net), "dtype": "float64", "trace": golden.pack(trace.z)},
        "seconds": round(time.time() - began, 1),
    }
    path = options.out or RESULTS / f"{options.device}_check.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["training"], indent=1))
    print(f"written: {path}")
    rows = [v for v in result["training"].values() if isinstance(v, dict)]
    exact = all(r["free_running_mismatches"] == 0 for k, r in result["training"].items() if k in ("trained", "torch"))
    return 0 if exact and all(r["status"] in ("equal", "explained") for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
