"""One training step of spiking ResNet-18 (T = 4, CIFAR-10 shapes, width 64) against a plain step loop and spikingjelly.

    python benchmarks/resnet_step.py [--batch 8] [--threads 2] [--rounds 3] [--write]

Each variant runs in a process of its own, so that peak memory is its own too; rounds are interleaved and ratios are of
medians. All train the same network on the same images in float32, forward, loss and backward
(BatchNorm's statistics are over steps and batch, in the plain loop over the batch of each step):
    ours          as `eitrain fit` trains: time folded into the batch, neurons fused over time, channels last
    plain         the same modules, one time step after the other (Norse's way: a cell and its state)
    spikingjelly  its own layers in multi-step mode, IFNode, sigmoid surrogate; skipped where it is not installed
                  (pip install spikingjelly, in the environment that holds this project)
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

STEPS, CLASSES = 4, 10
RESULTS = Path(__file__).parent / "results/resnet_step.json"
VARIANTS = ("ours", "plain", "spikingjelly")


def ours(width: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from eitrain.architectures import spiking_resnet

    net = spiking_resnet((3, 32, 32), CLASSES, width=width).laid_out(torch.device("cpu"))
    return net, lambda x: net(x[None], STEPS)


def plain(width: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The loop that people write first: every module at every step, autograd through all of it."""
    from eitrain.architectures import spiking_resnet

    net = spiking_resnet((3, 32, 32), CLASSES, width=width)

    def forward(x: Tensor) -> Tensor:
        states: dict[str, Any] = dict.fromkeys(net.cells)
        total: Any = 0.0
        for _ in range(STEPS):
            values = {"input": x}
            for name, module in net.named_children():
                y = sum((values[s] for s in net.sources[name][1:]), values[net.sources[name][0]])
                if name in states:
                    y, states[name] = module(y, states[name])
                else:
                    y = module(y)
                values[name] = y
            total = total + values[net.last]
        return total / STEPS

    return net, forward


def spikingjelly(width: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from spikingjelly.activation_based import functional as sj
    from spikingjelly.activation_based import layer, neuron, surrogate

    def fire() -> nn.Module:
        return neuron.IFNode(surrogate_function=surrogate.Sigmoid(), step_mode="m")

    class Block(nn.Module):
        def __init__(self, inputs: int, maps: int, stride: int) -> None:
            super().__init__()
            self.main = nn.Sequential(
                layer.Conv2d(inputs, maps, 3, stride, 1, bias=False),
                layer.BatchNorm2d(maps),
                fire(),
                layer.Conv2d(maps, maps, 3, 1, 1, bias=False),
                layer.BatchNorm2d(maps),
            )
            same = stride == 1 and inputs == maps
            self.shortcut = (
                nn.Sequential()
                if same
                else nn.Sequential(layer.Conv2d(inputs, maps, 1, stride, bias=False), layer.BatchNorm2d(maps))
            )
            self.fire = fire()

        def forward(self, x: Tensor) -> Tensor:
            return self.fire(self.main(x) + self.shortcut(x))

    parts: list[nn.Module] = [layer.Conv2d(3, width, 3, 1, 1, bias=False), layer.BatchNorm2d(width), fire()]
    inputs = width
    for maps, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        parts += [Block(inputs, maps, stride), Block(maps, maps, 1)]
        inputs = maps
    net = nn.Sequential(*parts, layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(inputs, CLASSES))
    sj.set_step_mode(net, "m")

    def forward(x: Tensor) -> Tensor:
        sj.reset_net(net)
        return net(x.expand(STEPS, *x.shape)).mean(0)

    return net, forward


def measure(variant: str, batch: int, width: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    net, forward = globals()[variant](width)
    x, labels = torch.rand(batch, 3, 32, 32), torch.randint(CLASSES, (batch,))
    seconds = []
    for i in range(repeats + 1):
        began = time.perf_counter()
        net.zero_grad()
        loss = functional.cross_entropy(forward(x), labels)
        loss.backward()
        if i:  # the first warms up
            seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": statistics.median(seconds),
        "peak_mib": peak,
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="steps a round")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args()
    if args.variant:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(args.variant, args.batch, args.width, args.repeats)))
        return
    found: dict[str, list[dict[str, float]]] = {v: [] for v in VARIANTS}
    same = ["--batch", args.batch, "--width", args.width, "--threads", args.threads, "--repeats", args.repeats]
    for _ in range(args.rounds):
        for variant in list(found):
            command = [sys.executable, __file__, "--variant", variant, *map(str, same)]
            done = subprocess.run(
                command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(args.threads)}
            )
            if done.returncode and "No module named 'spikingjelly'" in done.stderr:
                print("spikingjelly: not installed, skipped")
                del found[variant]
                continue
            if done.returncode:
                sys.exit(done.stderr)
            found[variant].append(json.loads(done.stdout))
    medians = {v: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for v, rows in found.items()}
    mine = medians["ours"]
    for variant, m in medians.items():
        print(
            f"{variant:13} {m['seconds']:.2f} s, {m['seconds'] / mine['seconds']:.2f} x ours; "
            f"peak memory {m['peak_mib']:.0f} MiB, {m['peak_mib'] / mine['peak_mib']:.2f} x ours"
        )
    if args.write:
        from eitrain.runs import provenance

        about = {
            "steps": STEPS,
            "batch": args.batch,
            "width": args.width,
            "threads": args.threads,
            "rounds": args.rounds,
        }
        ratios = {v: {k: m[k] / mine[k] for k in ("seconds", "peak_mib")} for v, m in medians.items()}
        RESULTS.write_text(
            json.dumps({**about, "medians": medians, "over_ours": ratios, **provenance()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
