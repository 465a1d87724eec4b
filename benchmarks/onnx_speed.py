"""ONNX against a Norse step loop: one sample of an MNIST-sized network over 100 steps, one thread.

    python benchmarks/onnx_speed.py [--steps 100] [--rounds 9] [--write]

The network is 15C5-P2-40C5-P2-300-10 of stock LIF neurons (decay 0.2, threshold 0.5, average pools), weights drawn and
scaled so that a few percent of the neurons fire. Norse: LIFBoxCells in a SequentialState, called once a step without
gradients, as its documentation has it. onnxruntime: model.onnx (the whole sequence in one call) and model_step.onnx
(one call a step). Floor: the convolutions and matrix products alone, all steps at once, in torch.
All spikes of all layers are compared before anything is timed, and the comparison is part of the result. Rounds
alternate between all of them; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read by onnxruntime's session and by torch at their start

import nir
import numpy as np
import onnxruntime
import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState
from torch import nn

from eiexport.alphabet import BINARY
from eiexport.graph import Network, check, stamp
from targets.onnx import session
from targets.onnx.model import sequence_model, step_model

RESULT = Path(__file__).parent / "results" / "onnx_speed.json"
DECAY, THRESHOLD, AIM = 0.2, 0.5, 0.05
CHAIN = (("conv", 15), ("pool", 2), ("conv", 40), ("pool", 2), ("dense", 300), ("dense", 10))


def modules(x: torch.Tensor, seed: int = 0) -> list[tuple[str, nn.Module]]:
    """The layers, each neuron layer scaled until about `AIM` of it fires; x (time, 1, 28, 28)."""
    torch.manual_seed(seed)
    found: list[tuple[str, nn.Module]] = []
    cell = LIFBoxParameters(
        tau_mem_inv=torch.tensor(1 - DECAY), v_leak=torch.tensor(0.0), v_th=torch.tensor(THRESHOLD),
        v_reset=torch.tensor(0.0), alpha=torch.tensor(100.0),
    )  # fmt: skip
    for i, (kind, n) in enumerate(CHAIN):
        if kind == "pool":
            found.append((f"pool{i}", nn.AvgPool2d(n)))
            x = nn.functional.avg_pool2d(x, n)
            continue
        if kind == "dense" and x.ndim == 4:
            found.append(("flatten", nn.Flatten()))
            x = x.flatten(1)
        layer = nn.Conv2d(x.shape[1], n, 5, bias=False) if kind == "conv" else nn.Linear(x.shape[1], n, False)
        for _ in range(12):
            z = spikes(layer(x), cell)
            layer.weight.mul_(1.5 if z.mean() < AIM else 0.9)
        x = spikes(layer(x), cell)
        found += [(f"{kind}{i}", layer), (f"lif{i}", LIFBoxCell(cell, dt=1.0))]
    return found


def spikes(current: torch.Tensor, cell: Any) -> torch.Tensor:
    neuron, state, rows = LIFBoxCell(cell, dt=1.0), None, []
    for row in current.unbind(0):
        z, state = neuron(row[None], state)
        rows.append(z[0])
    return torch.stack(rows)


def graph_of(layers: list[tuple[str, nn.Module]]) -> Network:
    """The same network in NIR: Norse's `v + (1 - decay) (x - v)` is NIR's LIF with tau = 1 / (1 - decay)."""
    found: dict[str, Any] = {"input": nir.Input(np.array([1, 28, 28]))}
    shape: tuple[int, ...] = (1, 28, 28)
    for name, module in layers:
        if isinstance(module, nn.Conv2d):
            weight = module.weight.numpy()
            found[name] = nir.Conv2d(shape[1:], weight, 1, 0, 1, 1, np.zeros(len(weight), np.float32))
            shape = (len(weight), shape[1] - 4, shape[2] - 4)
        elif isinstance(module, nn.Linear):
            found[name] = nir.Linear(module.weight.numpy())
            shape = (len(module.weight),)
        elif isinstance(module, nn.AvgPool2d):
            found[name] = nir.AvgPool2d(*(np.array([v, v]) for v in (2, 2, 0)))
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
        elif isinstance(module, nn.Flatten):
            found[name] = nir.Flatten({"input": np.array(shape)}, 0, -1)
            shape = (int(np.prod(shape)),)
        else:
            numbers = (1 / (1 - DECAY), 1.0, 0.0, THRESHOLD, 0.0)
            found[name] = nir.LIF(**dict(zip(("tau", "r", "v_leak", "v_threshold", "v_reset"),
                                             (np.full(shape, v) for v in numbers), strict=True)))  # fmt: skip
    names = [*found, "output"]
    found["output"] = nir.Output(np.array(shape))
    graph = nir.NIRGraph(found, list(pairwise(names)), type_check=False)
    return check(stamp(graph, dt=1.0, integrator="euler", dtype="float32"), alphabet=BINARY)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--write", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    x = (torch.rand(given.steps, 1, 28, 28, generator=torch.Generator().manual_seed(1)) < 0.1).float()
    layers = modules(x)
    network = graph_of(layers)
    norse = SequentialState(*(m for _, m in layers)).eval()
    whole, step = session(sequence_model(network)), session(step_model(network))
    entered, last = x.numpy()[None], network.recorded[-1]

    def norse_layers() -> list[np.ndarray]:
        """Spikes of every neuron layer."""
        state, rows = None, []
        told = SequentialState(*(m for _, m in layers), return_hidden=True).eval()
        for row in x.unbind(0):
            hidden, state = told(row[None], state)
            rows.append([h for (_, m), h in zip(layers, hidden, strict=True) if isinstance(m, LIFBoxCell)])
        return [torch.cat(z).numpy() for z in zip(*rows, strict=True)]

    def norse_alone() -> Any:
        state, rows = None, []
        for row in x.unbind(0):
            z, state = norse(row[None], state)
            rows.append(z)
        return torch.cat(rows).numpy()

    def run_whole() -> Any:
        return whole.run([last], {network.input: entered})[0][0]

    held = {i.name: np.zeros((1, *i.shape[1:]), np.float32) for i in step.get_inputs() if i.name != network.input}
    nexts = [f"{n}_next" for n in held]

    def run_step() -> Any:
        state, rows = held, []
        for t in range(given.steps):
            z, *new = step.run([last, *nexts], {network.input: entered[:, t], **state})
            state = dict(zip(held, new, strict=True))
            rows.append(z[0])
        return np.stack(rows)

    def floor() -> Any:
        y = x
        for _, m in layers:
            y = y if isinstance(m, LIFBoxCell) else m(y)
        return y

    found = whole.run(list(network.recorded), {network.input: entered})
    entries = differ = fired = 0
    for z, other in zip(found, norse_layers(), strict=True):
        assert z[0].shape == other.shape
        entries, differ, fired = entries + z.size, differ + int((z[0] != other).sum()), fired + int(other.sum())
    assert np.array_equal(run_whole(), run_step())
    print(f"{entries:,} entries in {len(found)} layers, {differ} differ; {fired / entries:.1%} are spikes")
    if differ:
        raise SystemExit("the engines disagree, so their times say nothing")

    runs = {"norse": norse_alone, "onnx": run_whole, "onnx-step": run_step, "floor": floor}
    times: dict[str, list[float]] = {n: [] for n in runs}
    for i in range(given.rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if i:  # the first round warms up
                times[name].append(time.perf_counter() - began)
    ratios = {
        f"norse / {n}": statistics.median(a / b for a, b in zip(times["norse"], times[n], strict=True))
        for n in runs if n != "norse"
    }  # fmt: skip
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.1f}")
    if given.write:
        versions = {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        }
        facts = {"steps": given.steps, "entries": entries, "differ": differ, "spikes": fired, "ratios": ratios}
        facts |= {"milliseconds": {n: 1e3 * statistics.median(t) for n, t in times.items()}, "versions": versions}
        RESULT.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
