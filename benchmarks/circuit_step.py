"""The training pass of DeepEISNN's circuit against the floor of its own four convolutions: VGG-8 at 32 x 32, T = 4.

    python benchmarks/circuit_step.py [--threads 1] [--batch 16] [--widths 64 16] [--rounds 9] [--out FILE]

Of every layer, forward and all gradients (the first layer's input needs none):
    floor    the convolutions W_EE x, W_IE x, W_EI s, W_EI (g_I s) alone, in the best of three memory layouts
    run      `targets.circuits.run`, channels last
    step     the circuit's step as autograd runs it, channels last
    + LIF    run and the fused scan behind it (decay 0.5, threshold 1, >=, subtraction, detached), over the same floor
Every row of the input has a silent border, as images and events have, so that D has zeros in the first layers.
Layers of an event net have T x batch rows; on a static image the first one has `batch` rows and is shown T times.
Rounds of all variants alternate, so that whatever else the machine does hits all alike; ratios are of medians, those of
a net of sums of medians. One thread is timed by the processor's clock, which other work does not stretch, more threads
by the wall's. For all variants alike, freed memory stays with the process.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # where cores are shared, threads must not spin

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from eiexport.connections import Dense
from eitrain.cells import Cell, sigmoid
from eitrain.circuits import Circuit
from targets import circuits, kernels
from targets.pytorch import TorchOps

STEPS, CLASSES, RATE = 4, 10, 0.2
LAST, PLAIN = torch.channels_last, torch.contiguous_format
LAYOUTS = {"floor, channels last": (LAST, LAST), "floor, maps so": (LAST, PLAIN), "floor, plain": (PLAIN, PLAIN)}
VARIANTS = ("run", "step", "+ LIF")
OPS = TorchOps(torch.float32, "cpu", sigmoid)
LIF: Any = Cell(decay=0.5, threshold=1.0, compare="ge", reset="subtract", detach_reset=True).p.step()


def clock() -> float:
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def keep_heap() -> None:
    """Let glibc keep what was freed, as it does where a network's other layers hold the heap's end.

    A layer alone would grow and shrink the heap at every call, and pay more for fresh pages than for its arithmetic.
    """
    with contextlib.suppress(OSError, AttributeError):
        trim_threshold, mmap_threshold = -1, -3
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)


@dataclass(frozen=True)
class Layer:
    """size: pixels a side; 0 for the dense output layer, which neither divides nor fires."""

    inputs: int
    cells: int
    size: int
    first: bool = False
    static: bool = False

    @property
    def name(self) -> str:
        return f"{self.inputs}-{self.cells}, {self.size or 1}^2" + ", static image" * self.static

    def input(self, batch: int) -> Tensor:
        """Pixels, or spikes behind an average pool; a quarter of every map is silent."""
        rows = batch * (1 if self.static else STEPS)
        if not self.size:
            return (torch.rand(rows, self.inputs) < RATE).float().requires_grad_()
        shape = (rows, self.inputs, 2 * self.size, 2 * self.size)
        x = (
            torch.rand(shape)[:, :, ::2, ::2]
            if self.first
            else functional.avg_pool2d((torch.rand(shape) < RATE) + 0.0, 2)
        )
        x[..., : self.size // 4] = 0
        return x.contiguous(memory_format=LAST).requires_grad_(not self.first)

    def circuit(self, x: Tensor) -> Circuit:
        """As E-I Init leaves it, laid out as for training."""
        made = Circuit(self.inputs, self.cells, kernel=3 if self.size else 0, readout=not self.size)
        made.initialise(x)
        return made.to(memory_format=LAST)  # type: ignore[call-overload]


def layers(width: int) -> list[Layer]:
    maps = [width, 2 * width, 4 * width, 8 * width, 8 * width]
    first = Layer(3, width, 32, first=True)
    rest = [Layer(a, b, 16 >> i) for i, (a, b) in enumerate(pairwise(maps))]
    return [Layer(3, width, 32, first=True, static=True), first, *rest, Layer(maps[-1], CLASSES, 0)]


def floor_of(circuit: Circuit, x: Tensor, layouts: Any) -> Callable[[], None]:
    """The circuit's connections, each with an input of its own; layouts of maps and weights."""
    step = circuit.step()
    jobs: list[tuple[Any, Tensor, Tensor, Tensor]] = []
    s = step.inhibit.drive(OPS, x).detach()
    for part, source in ((step.excite, x), (step.inhibit, x), (step.spread, s), (step.spread, s)):
        own, weight = (
            a.detach().clone(memory_format=layout if a.ndim == 4 else PLAIN)
            for a, layout in zip((source, part.weight), layouts, strict=True)
        )
        own.requires_grad_(source is s or x.requires_grad)
        weight.requires_grad_()
        jobs.append((part, own, weight, torch.randn_like(part.drive(OPS, own).detach())))

    def floor() -> None:
        for part, own, weight, grad in jobs:
            own.grad = weight.grad = None
            if isinstance(part, Dense):
                y = functional.linear(own, weight)
            else:
                y = functional.conv2d(own, weight, None, part.window.stride, part.window.padding)
            y.backward(grad)

    return floor


def variants_of(layer: Layer, batch: int) -> dict[str, Callable[[], None]]:
    x = layer.input(batch)
    circuit = layer.circuit(x.detach())
    assert circuits.applies(circuit.step(), OPS)
    with torch.no_grad():
        like = circuit.step().drive(OPS, x)
        assert torch.equal(circuits.run(circuit.step(), OPS, x), like)
    grad = torch.randn_like(like)
    sent = torch.randn(STEPS, batch, *like.shape[1:])
    if layer.size:
        sent = sent.flatten(0, 1).contiguous(memory_format=LAST).unflatten(0, (STEPS, batch))

    def timed(forward: Callable[[], Tensor], grad: Tensor) -> Callable[[], None]:
        def run() -> None:
            x.grad = None
            circuit.zero_grad()
            forward().backward(grad)

        return run

    def fires() -> Tensor:
        current = circuits.run(circuit.step(), OPS, x).unflatten(0, (-1, batch))
        return kernels.leaky_scan(LIF, OPS, current.expand(STEPS, *current.shape[1:]))

    made = {
        "run": timed(lambda: circuits.run(circuit.step(), OPS, x), grad),
        "step": timed(lambda: circuit.step().drive(OPS, x), grad),
        "+ LIF": timed(fires, sent),
    }
    if not layer.size:
        made["+ LIF"] = made["run"]
    return made | {name: floor_of(circuit, x, layouts) for name, layouts in LAYOUTS.items()}


def measure(layer: Layer, batch: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of every variant."""
    torch.manual_seed(0)
    variants = variants_of(layer, batch)
    times: dict[str, list[float]] = {n: [] for n in variants}
    for _ in range(rounds + 1):
        for name, run in variants.items():
            began = clock()
            run()
            times[name].append(clock() - began)
    found = {n: 1e3 * statistics.median(t[1:]) for n, t in times.items()}  # the first warms up
    return {"floor": min(found[n] for n in LAYOUTS), **found}


def ratios(found: Iterable[dict[str, float]]) -> dict[str, float]:
    found = list(found)
    floor = sum(f["floor"] for f in found)
    return {v: sum(f[v] for f in found) / floor for v in VARIANTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 16], help="cells of the first layer")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_heap()
    result: dict[str, Any] = {}
    print(f"{'x floor':28s}" + "".join(f"{v:>8s}" for v in VARIANTS) + "   floor, ms")
    for width in options.widths:
        rows = {layer: measure(layer, options.batch, options.rounds) for layer in layers(width)}
        nets = {
            f"VGG-8 of {width}, events": [f for k, f in rows.items() if not k.static],
            f"VGG-8 of {width}, images": [f for k, f in rows.items() if k.static or not k.first],
        }
        for name, found in {**{k.name: [f] for k, f in rows.items()}, **nets}.items():
            own = ratios(found)
            print(
                f"{name:28s}" + "".join(f"{own[v]:8.2f}" for v in VARIANTS) + f"{sum(f['floor'] for f in found):12.1f}"
            )
        result[str(width)] = {
            "nets": {n.split(", ")[1]: ratios(f) for n, f in nets.items()},
            "layers": {k.name: {"ms": f, "ratio_to_floor": ratios([f])} for k, f in rows.items()},
        }
    if options.out:
        setting = {"T": STEPS, "batch": options.batch, "rounds": options.rounds}
        about = {
            "torch": torch.__version__,
            "threads": options.threads,
            "machine": platform.machine(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
        }
        options.out.write_text(json.dumps({"setting": setting, **about, "result": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
