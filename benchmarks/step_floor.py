"""A training step of BackEISNN's MNIST network against the floor of its own convolutions and matrix products.

    python benchmarks/step_floor.py [--steps 10] [--batch 100] [--rounds 12] [--json FILE]

Floor: the same convolutions and linear maps on the same shapes, forward and both gradients through autograd, nothing
else: no membranes, gates, loss or optimiser. Like the step, it computes the first layer of a static image once.
Peer: the same step without the fused scan, as autograd runs it. Rounds of all three alternate, so that whatever else
the machine does hits all alike; the ratio of medians is the result.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from eitrain import recipes
from eitrain.nets import SpikingNet
from targets import kernels


def step_of(net: SpikingNet, steps: int, batch: int) -> Callable[[], None]:
    """One optimiser step on random pixels."""
    x, labels = torch.rand(1, batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    target = functional.one_hot(labels, 10).float()
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)

    def step() -> None:
        optimiser.zero_grad()
        functional.mse_loss(net(x, steps), target).backward()
        optimiser.step()

    return step


def floor_of(net: SpikingNet, steps: int, batch: int) -> Callable[[], None]:
    """Every convolution and product of the step: shapes are recorded from a real forward pass."""
    calls: list[tuple[Callable[..., torch.Tensor], torch.Size, torch.Size, tuple]] = []
    real = {"conv2d": functional.conv2d, "linear": functional.linear}

    def recorder(name: str) -> Callable[..., torch.Tensor]:
        def record(x: torch.Tensor, weight: torch.Tensor, bias: object = None, *rest: object) -> torch.Tensor:
            calls.append((real[name], x.shape, weight.shape, rest))
            return real[name](x, weight, bias, *rest)

        return record

    patched = mock.patch.multiple(functional, **{n: recorder(n) for n in real})
    with patched, mock.patch.object(kernels, "find", lambda step, ops: None):
        net(torch.rand(1, batch, 1, 28, 28), steps)
    jobs = []
    for i, (function, x, weight, rest) in enumerate(calls):
        # the input image needs no gradient, here as in the step
        jobs.append((function, torch.rand(x, requires_grad=i > 0), torch.randn(weight, requires_grad=True), rest))

    def floor() -> None:
        for function, x, weight, rest in jobs:
            x.grad = weight.grad = None
            y = function(x, weight, None, *rest)
            y.backward(y.detach())

    return floor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    net = recipes.find("backei-mnist").net((1, 28, 28))
    step, floor = (make(net, options.steps, options.batch) for make in (step_of, floor_of))

    def unfused() -> None:
        with mock.patch.object(kernels, "find", lambda step, ops: None):
            step()

    times: dict[str, list[float]] = {"step": [], "step, unfused": [], "floor": []}
    for _ in range(options.rounds + 1):
        for name, run in zip(times, (step, unfused, floor), strict=True):
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    base = statistics.median(times["floor"][1:])
    result = {
        n: {"ratio_to_floor": statistics.median(t[1:]) / base, "best": min(t[1:]) / min(times["floor"][1:])}
        for n, t in times.items()
    }
    for name, row in result.items():
        print(f"{name:15s} {row['ratio_to_floor']:.2f} x floor (best of each: {row['best']:.2f})")
    if options.json:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        setting = {"T": options.steps, "batch": options.batch, "rounds": options.rounds}
        options.json.write_text(json.dumps({"setting": setting, **about, "result": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
