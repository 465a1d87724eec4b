"""A batch's STDP increment against spikingjelly's STDPLearner, Norse's STDP step and one weight gradient.

    pip install -e ".[bench]"
    python benchmarks/stdp_speed.py [--only NAME] [--threads 1 2] [--rounds 7] [--write]

spikingjelly: a multi-step layer and a node that plays recorded spikes back, both recorded by the learner as always;
timed is `learner.step(on_grad=False)` alone, tau 2 and 100, f = clamp(w, -1, 1), without our mean over the batch.
Norse: its step over all T, traces included, by the rule that both have: additive, weights starting at zero.
Floor: one call of the layer's weight gradient for the whole batch, no traces.

Every timed run of a peer is compared: largest difference over largest entry, float32 on both sides. Each round times
ours and the floor before and after the peers; a ratio is the median of the rounds' ratios. A shape gets no further
round after BUDGET. One thread is timed by the processor's clock, which other work does not stretch, more threads by
the wall's; OMP_WAIT_POLICY=PASSIVE keeps those from spinning where cores are shared. Exit 1 where a difference or a
ratio is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import grad as conv_grad

sys.path.insert(0, str(Path(__file__).parents[1]))
from eitrain.stdp import STDP

try:
    from norse.torch.functional import stdp as norse
    from spikingjelly.activation_based import layer as sj_layer
    from spikingjelly.activation_based import learning
except ImportError as error:
    raise SystemExit(f"{error}: the peers come with pip install -e '.[bench]'") from error

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "stdp_speed.json"
RATE, TAU_PRE, TAU_POST = 0.1, 2.0, 100.0
DIFFERENCE = 1e-5
BUDGET = 60.0  # seconds of wall time after which a shape gets no further round
OURS = 0.2  # seconds that ours and the floor are repeated for, before and after the peers of each round


def clock() -> float:
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


@dataclass(frozen=True)
class Shape:
    inputs: tuple[int, ...]
    outputs: int
    kernel: int = 0  # none: linear
    padding: int = 0
    steps: int = 20
    batch: int = 100
    least: float = 0.0  # times faster than spikingjelly, that must be reached


SHAPES = {
    "1->15 5x5": Shape((1, 28, 28), 15, 5),
    "15->40 5x5": Shape((15, 12, 12), 40, 5, least=30),
    "64->64 3x3": Shape((64, 16, 16), 64, 3, padding=1, batch=16, least=100),
    "linear 640->300": Shape((640,), 300),
}


class Played(nn.Module):
    """A node that answers with recorded spikes."""

    def __init__(self, spikes: Tensor) -> None:
        super().__init__()
        self.spikes = spikes

    def forward(self, x: Tensor) -> Tensor:
        return self.spikes


@dataclass
class Case:
    """One layer with the spikes on both sides, and what is timed on them; each returns the increment."""

    shape: Shape
    layer: Any
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, shape: Shape) -> Case:
        torch.manual_seed(0)
        if shape.kernel:
            geometry = {"padding": shape.padding, "bias": False, "step_mode": "m"}
            layer = sj_layer.Conv2d(shape.inputs[0], shape.outputs, shape.kernel, **geometry)
        else:
            layer = sj_layer.Linear(shape.inputs[0], shape.outputs, bias=False, step_mode="m")
        x = (torch.rand(shape.steps, shape.batch, *shape.inputs) < RATE).float()
        y = (torch.rand_like(layer(x)) < RATE).float()
        return cls(shape, layer, x, y)

    def ours(self, weight: str = "clamp") -> Tensor:
        rule = STDP(lr=1.0, tau_pre=TAU_PRE, tau_post=TAU_POST, weight=weight, mean=False)
        return rule.increment(self.layer.weight, rule.drive(self.layer, self.x, self.y))

    def floor(self) -> Tensor:
        x, y = self.x.flatten(0, 1), self.y.flatten(0, 1)
        if not self.shape.kernel:
            return y.T @ x
        return conv_grad.conv2d_weight(x, self.layer.weight.shape, y, self.layer.stride, self.layer.padding)

    def spikingjelly(self) -> tuple[Tensor, float]:
        """(increment, seconds); a learner keeps its traces, so each run has one of its own."""
        node = Played(self.y)

        def f(w: Tensor) -> Tensor:
            return w.clamp(-1, 1)

        learner = learning.STDPLearner("m", self.layer, node, TAU_PRE, TAU_POST, f_pre=f, f_post=f)
        node(self.layer(self.x))
        began = clock()
        found = learner.step(on_grad=False)
        seconds = clock() - began
        for monitor in (learner.in_spike_monitor, learner.out_spike_monitor):
            monitor.remove_hooks()
        return found, seconds

    def norse(self) -> tuple[Tensor, float]:
        """(increment, seconds). Its traces move by dt / tau * (a z - trace): a = tau makes a spike count 1."""
        given = {"a_pre": TAU_PRE, "a_post": TAU_POST, "tau_pre_inv": 1 / TAU_PRE, "tau_post_inv": 1 / TAU_POST}
        window = {"convolutional": True, "padding": self.shape.padding} if self.shape.kernel else {}
        p = norse.STDPParameters(**given, **window, eta_plus=1.0, eta_minus=1.0, hardbound=False)
        step = norse.stdp_step_conv2d if self.shape.kernel else norse.stdp_step_linear
        began = clock()
        w = torch.zeros_like(self.layer.weight)
        state = norse.STDPState(torch.zeros_like(self.x[0]), torch.zeros_like(self.y[0]))
        for x, y in zip(self.x, self.y, strict=True):
            w, state = step(x, y, w, state, p, dt=1.0)
        return w, clock() - began


def repeated(run: Callable[[], object]) -> float:
    """Seconds a call, over as many calls as take OURS seconds."""
    began, calls = clock(), 0
    while calls == 0 or clock() - began < OURS:
        run()
        calls += 1
    return (clock() - began) / calls


def difference(found: Tensor, theirs: Tensor) -> float:
    return float((found - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    case = Case.of(shape)
    small = Case(shape, case.layer, case.x[:1], case.y[:1])
    for run in (case.ours, case.floor, small.spikingjelly, small.norse):  # pages, code and pools are there from now on
        run()
    found = {"spikingjelly": case.ours(), "norse": case.ours("additive")}
    times: dict[str, list[float]] = {n: [] for n in ("ours", "floor", *found)}
    differences = dict.fromkeys(found, 0.0)
    began = time.perf_counter()
    while not times["ours"] or (len(times["ours"]) < rounds and time.perf_counter() - began < BUDGET):
        before = repeated(case.ours), repeated(case.floor)
        for name, ours in found.items():
            theirs, seconds = getattr(case, name)()
            times[name].append(seconds)
            differences[name] = max(differences[name], difference(ours, theirs))
        times["floor"].append((before[1] + repeated(case.floor)) / 2)
        times["ours"].append((before[0] + repeated(case.ours)) / 2)
    return {
        "clock": "processor" if torch.get_num_threads() == 1 else "wall",
        "rounds": len(times["ours"]),
        "ms": {n: spread([1e3 * s for s in t]) for n, t in times.items()},
        "times_ours": {
            n: spread([a / b for a, b in zip(t, times["ours"], strict=True)]) for n, t in times.items() if n != "ours"
        },
        "difference": {n: float(f"{d:.2g}") for n, d in differences.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    return {k: float(f"{f(values):.4g}") for k, f in (("median", statistics.median), ("least", min), ("most", max))}


def faults(shape: Shape, result: dict[str, Any]) -> list[str]:
    found = [f"differs from {n} by {d}" for n, d in result["difference"].items() if not d <= DIFFERENCE]
    ratio = result["times_ours"]["spikingjelly"]["median"]
    if ratio < shape.least:
        found.append(f"{ratio} times as fast as spikingjelly, not {shape.least}")
    return found


def about() -> dict[str, Any]:
    names = ("torch", "spikingjelly", "norse")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"machine": platform.machine(), "cores": cores, "capability": torch.backends.cpu.get_cpu_capability()}
    return {**{n: version(n) for n in names}, "python": platform.python_version(), **machine}


def write(head: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    """What was not measured this time stays in the file, if it came from the same versions and machine."""
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    kept = before.pop("result", {}) if before | head == before else {}
    merged = {n: kept.get(n, {}) | results.get(n, {}) for n in SHAPES if n in kept or n in results}
    RESULT.write_text(json.dumps({**head, "result": merged}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SHAPES), action="append")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    missed: list[str] = []
    for name in options.only or SHAPES:
        shape = SHAPES[name]
        results[name] = {"T": shape.steps, "batch": shape.batch, "input": shape.inputs, "padding": shape.padding}
        for threads in options.threads:
            torch.set_num_threads(threads)
            load = os.getloadavg()[0]
            results[name][f"threads {threads}"] = found = {"load": round(load, 1), **measure(shape, options.rounds)}
            where = f"{name:16s} {threads} thread{'s' * (threads > 1)}"
            missed += [f"{where}: {fault}" for fault in faults(shape, found)]
            for what, ms in found["ms"].items():
                ratio = found["times_ours"].get(what, {"median": 1.0})["median"]
                other = found["difference"].get(what, "")
                print(f"{where:27s} {what:13s} {ms['median']:10.2f} ms {ratio:8.2f} x ours {other}", flush=True)
    if options.write:
        setting = {"rate": RATE, "tau": [TAU_PRE, TAU_POST], "wait": os.environ.get("OMP_WAIT_POLICY")}
        write({"setting": setting, **about()}, results)
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
