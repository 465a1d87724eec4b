"""Accuracy of a run's integer network on its whole test set, torch against loihi, spike by spike.

    python benchmarks/integer_accuracy.py RUN --bits 8               # after calibration
    python benchmarks/integer_accuracy.py RUN2                       # of `eitrain fit --from RUN --quantize BITS`

Prints (and with --write NAME stores in benchmarks/results/NAME.json) the accuracy in float and in integers, how many
entries were compared, and how many differ. Exit code 1 where any does.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from eiexport import calibrate, graph, quantise
from eiexport.session import decisions
from eiexport.trace import NodeResult, compare_entries
from eitrain import runs
from eitrain.export import open_run
from targets import base
from targets.observe import observe
from targets.pytorch import Torch32

RESULTS = Path(__file__).parent / "results"


def measure(run: Path, bits: int | None, samples: int, device: str, compared: int) -> dict[str, Any]:
    """Accuracies, and the comparison on the first `compared` samples, chunk by chunk."""
    model = open_run(run, samples=samples, device=device)
    network = graph.check(model.graph)
    plan = model.plan
    if plan is None:
        assert model.calibration is not None
        plan = calibrate.choose(network, observe(network, model.calibration(100), device), bits or 8)
    integer = graph.check(quantise.apply(network, plan), alphabet=plan.alphabet)
    end = integer.sources[integer.outputs[0]][0]
    floats, ours, theirs = (
        Torch32(device).compile(network),
        base.get("torch")(device=device).compile(integer),
        base.get("loihi")(device=device).compile(integer),
    )
    results: dict[str, NodeResult] = {}
    right = np.zeros(2, int)
    seconds = dict.fromkeys(("torch", "loihi"), 0.0)
    done, began = 0, time.monotonic()
    for x in model.chunks(100):
        whole, traces = plan.encode(x.astype(np.float64)), {"float": floats.run(x)}
        for name, program in (("loihi", theirs), ("torch", ours)) if done < compared else (("loihi", theirs),):
            mark = time.perf_counter()
            traces[name] = program.run(whole)
            seconds[name] += (time.perf_counter() - mark) * (done < compared)
        if "torch" in traces:
            compare_entries(results, traces["loihi"], traces["torch"], done)
        assert model.labels is not None
        labels = model.labels[done : done + len(x)]
        for i, name in enumerate(("float", "loihi")):
            right[i] += int((decisions(traces[name].z[end]) == labels).sum())
        done += len(x)
        left = (time.monotonic() - began) / done * (model.samples - done)
        print(f"{done}/{model.samples}, about {left:.0f} s left", file=sys.stderr)
    accuracy = dict(zip(("float", "integer"), (right / done).tolist(), strict=True))
    return {
        "model": model.name,
        "bits": plan.bits,
        "trained in integers": model.plan is not None,
        "samples": done,
        "samples compared with torch": min(done, compared),
        "accuracy": accuracy,
        "entries": sum(r.entries for r in results.values()),
        "differ": sum(r.mismatches for r in results.values()),
        "spikes": {n: r.spikes for n, r in results.items()},
        "loihi over torch, time": round(seconds["loihi"] / seconds["torch"], 3),
        "device": device,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        **runs.provenance(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--bits", type=int)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--compared", type=int, default=10_000, help="samples that torch runs too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", metavar="NAME")
    options = parser.parse_args()
    found = measure(options.run, options.bits, options.samples, options.device, options.compared)
    print(json.dumps(found, indent=2))
    if options.write:
        (RESULTS / f"{options.write}.json").write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(1 if found["differ"] else 0)


if __name__ == "__main__":
    main()
