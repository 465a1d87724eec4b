"""The fast integer executor against Lava's own CPU engine, and against the floor of its own sums in float32.

    python benchmarks/loihi_speed.py [--only NAME] [--rounds 7] [--batch 64] [--write]

Lava: fixed_pt, stock processes alone (Conv, Dense, LIFReset, ring buffers at both ends), no probes; its start and its
compilation are not counted. It has no batches, so its time per sample holds for any number of samples. Every layer's
spikes are compared first, in a run that is not timed; each timed run compares the last layer's.
Floor: the convolutions and matrix products alone, in float32 on the same shapes, in slabs of 8 samples.
Gated networks are no Lava process: they are measured against `targets.loop.Executor` in float64, on one thread.

Rounds alternate between all of them while the others rest, so that whatever else the machine does hits all alike.
A ratio is the median of the rounds' ratios; `best` is fastest against fastest. OMP_NUM_THREADS sets the threads.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "loihi_speed.json"
STEPS = 20
PIECE = 2  # samples that Lava runs between two rounds of ours
SLAB = 8


# --- networks, as layers that both sides build: ("conv", weight, bits) | ("lif", vth) | ("pool",) | ("dense", ...)


@dataclass(frozen=True)
class Net:
    name: str
    shape: tuple[int, ...]
    layers: tuple[tuple[Any, ...], ...]
    du: int = 4095
    dv: int = 3277
    steps: int = STEPS
    top: int = 1  # largest input
    balance_bits: int = 0  # of gated neurons


@dataclass
class Builder:
    """Random 8-bit weights, and thresholds that let about a tenth of the neurons fire."""

    name: str
    shape: tuple[int, ...]
    du: int = 4095
    top: int = 1
    gated: bool = False
    rate: float = 0.2  # of the input
    layers: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(len(self.name))
        # mean square of a message; the input's values are uniform where it is not silent
        self.power, self.bits = self.rate * (1 if self.top == 1 else self.top**2 / 3), 8 * (self.top > 1)

    def weight(self, *shape: int) -> np.ndarray:
        limit = 8 if self.bits == 8 else 128  # sums of graded input have to stay within the registers
        return 2 * self.rng.integers(-limit, limit, shape)

    def linear(self, kind: str, outputs: int, inputs: int, *kernel: int, **geometry: int) -> Builder:
        weight = self.weight(outputs, inputs, *kernel)
        self.layers.append((kind, weight, self.bits, geometry.get("stride", 1)))
        spread = np.sqrt(self.power * (weight.astype(float) ** 2).mean() * weight[0].size)
        synapse = 1.8 if self.du < 4095 else 1.0  # what the synapse adds up
        self.layers.append(("gated" if self.gated and kind == "conv" else "lif", int(1.25 * synapse * spread)))
        self.power, self.bits = 0.1, 2 * self.gated
        return self

    def pool(self) -> Builder:
        self.layers.append(("pool",))
        self.power, self.bits = 4 * 0.1 * 0.9 + 16 * 0.01, 4
        return self

    def flatten(self) -> Builder:
        self.layers.append(("flatten",))
        return self

    def done(self, **fields: Any) -> Net:
        return Net(self.name, self.shape, tuple(self.layers), self.du, top=self.top, **fields)


def mnist(name: str, **fields: Any) -> Builder:
    b = Builder(name, (1, 28, 28), **fields).linear("conv", 15, 1, 5, 5).pool().linear("conv", 40, 15, 5, 5).pool()
    return b.flatten().linear("dense", 300, 640).linear("dense", 10, 300)


def nets() -> dict[str, Net]:
    found = [
        mnist("mnist").done(),
        mnist("mnist-cuba", du=1024).done(),
        mnist("mnist-graded", top=255).done(),
        Builder("dense", (784,)).linear("dense", 300, 784).linear("dense", 10, 300).done(),
        Builder("small-conv", (2, 16, 16)).linear("conv", 8, 2, 3, 3).linear("conv", 16, 8, 3, 3, stride=2).flatten()
        .linear("dense", 10, 16 * 6 * 6).done(),
        mnist("mnist-gated", top=255, gated=True).done(steps=10, balance_bits=9),
    ]  # fmt: skip
    return {n.name: n for n in found}


def stimulus(net: Net, samples: int) -> np.ndarray:
    """(sample, time, *neuron): a fifth of the inputs speak, with any value where values are graded."""
    rng = np.random.default_rng(7)
    shape = (samples, net.steps, *net.shape)
    return ((rng.random(shape) < 0.2) * rng.integers(1, net.top + 1, shape)).astype(np.int32)


# --- ours


def graph_of(net: Net) -> Any:
    import nir

    from eiexport import graph
    from eiexport.alphabet import interval
    from eiexport.integers import IntConv, IntCubaLIF, IntDense, IntGatedLIF

    def conv(weight: np.ndarray, bits: int, stride: int = 1, padding: int = 0) -> IntConv:
        geometry = (np.full(2, v, np.int32) for v in (stride, padding, 1))
        return IntConv(weight.astype(np.int32), np.zeros(len(weight), np.int32), *geometry, message_bits=bits)

    rng, shape = np.random.default_rng(1), net.shape
    nodes: list[Any] = [nir.Input(np.array(shape))]
    for kind, *rest in net.layers:
        if kind == "conv":
            nodes.append(conv(*rest))
            shape = (len(rest[0]), *((n - k) // rest[2] + 1 for n, k in zip(shape[1:], rest[0].shape[2:], strict=True)))
        elif kind == "dense":
            nodes.append(IntDense(rest[0].astype(np.int32), np.zeros(len(rest[0]), np.int32), message_bits=rest[1]))
            shape = (len(rest[0]),)
        elif kind == "pool":
            nodes.append(nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])))
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
        elif kind == "flatten":
            nodes.append(nir.Flatten({"input": np.array(shape)}, 0, -1))
            shape = (int(np.prod(shape)),)
        else:
            whole = {"du": net.du, "dv": net.dv, "bias_mant": 0, "bias_exp": 0}
            cell = IntCubaLIF(np.full(shape, rest[0], np.int32), **{k: np.array(v, np.int32) for k, v in whole.items()})
            if kind == "gated":
                c, bits = shape[0], net.balance_bits
                gates = [conv(2 * rng.integers(-32, 32, (c, c, 5, 5)), b, padding=2) for b in (2, bits)]
                table = np.minimum(np.rint(256 / (1 + np.exp(-np.arange(-128, 128) / 16))), 255).astype(np.uint8)
                nodes.append(IntGatedLIF(cell, *gates, table, 4, 14, bits, 26))
            else:
                nodes.append(cell)
    named = {f"n{i:02d}": n for i, n in enumerate(nodes)} | {"out": nir.Output(np.array(shape))}
    bare = nir.NIRGraph(named, list(pairwise(named)), type_check=False)
    stamped = graph.stamp(bare, dt=1.0, integrator="euler", dtype="int64")
    return graph.check(stamped, alphabet=interval(0, net.top, True))


def floor_of(net: Net, network: Any, samples: int) -> Callable[[], None]:
    """Every sum of one slab, in float32; a gate's sums step by step, as they have to be."""
    import torch
    from torch.nn import functional

    jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
    slab = min(samples, SLAB)

    def add(step: Any, shape: tuple[int, ...], count: int) -> None:
        x, w = torch.randint(0, 2, (count, *shape)).float(), torch.from_numpy(step.weight.astype(np.float32))
        if w.dim() == 2:
            jobs.append((functional.linear, (x, w)))
        else:
            jobs.append((functional.conv2d, (x, w, None, step.window.stride, step.window.padding)))

    for name, step in network.steps.items():
        if hasattr(step, "weight"):
            add(step, network.input_shape(name), slab * net.steps)
        for gate in (getattr(step, g, None) for g in ("feedback", "balance")):
            for _ in range(net.steps if gate else 0):
                add(gate, network.input_shape(name), slab)

    def run() -> None:
        for _ in range(0, samples, slab):
            for function, arguments in jobs:
                function(*arguments)

    return run


# --- Lava: this part runs inside its environment


def worker(folder: Path) -> None:
    """Runs PIECE samples each time a file asks for it; tells the time and keeps the last layer's spikes."""
    from targets.lava import compat

    compat.load()
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    fields, samples, every = pickle.loads((folder / "job.pickle").read_bytes())
    net = Net(**dict(fields))
    source, sinks, late = build(net, stimulus(net, samples), every)
    config = Loihi2SimCfg(select_tag="fixed_pt")

    def run(steps: int) -> None:
        source.run(RunSteps(num_steps=steps), config)

    try:
        run(late)  # starts everything, and fills the pipeline
        print("started", flush=True)
        for piece in range(samples // PIECE):
            while not (folder / f"go{piece}").exists():
                time.sleep(0.005)
            began = time.perf_counter()
            run(PIECE * net.steps)
            print(f"seconds {time.perf_counter() - began}", flush=True)
        found = [np.moveaxis(s.data.get(), -1, 0)[delay:][: samples * net.steps] for s, delay in sinks]
        (folder / "spikes.pickle").write_bytes(pickle.dumps(found))
    finally:
        source.stop()


def build(net: Net, x: np.ndarray, every: bool) -> tuple[Any, list[tuple[Any, int]], int]:
    """(source, sinks with their latency, latency of the whole); maps lie (W, H, C) in Lava, kernels are turned."""
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import Dense
    from lava.proc.io import sink, source
    from lava.proc.lif.process import LIFReset

    rows = x.reshape(-1, *net.shape)
    source_ = source.RingBuffer(data=rows.transpose(*range(rows.ndim - 1, 0, -1), 0))
    port, shape, late, sinks = source_.s_out, net.shape[::-1], 0, []
    last = len(net.layers) - 1
    for i, (kind, *rest) in enumerate(net.layers):
        if kind in ("conv", "pool"):
            weight, bits, stride = rest if kind == "conv" else (np.ones((shape[-1], 1, 2, 2), int), 1, 2)
            turned = np.ascontiguousarray(weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1))
            groups = shape[-1] if kind == "pool" else 1
            process = Conv(weight=turned, input_shape=shape, stride=stride, groups=groups, num_message_bits=bits)
            shape = tuple(int(n) for n in process.a_out.shape)
        elif kind == "dense":
            process = Dense(weights=rest[0], num_message_bits=rest[1])
            shape = (len(rest[0]),)
        elif kind == "flatten":
            port, shape = port.transpose((2, 1, 0)).flatten(), (int(np.prod(shape)),)
            continue
        else:
            p = {"du": net.du, "dv": net.dv, "vth": rest[0]}
            lif = LIFReset(shape=shape, **p, reset_interval=net.steps, reset_offset=(late + 1) % net.steps)
            port.connect(lif.a_in)
            port = lif.s_out
            if every or i == last:
                ring = sink.RingBuffer(shape=shape, buffer=len(rows) + 64)
                port.connect(ring.a_in)
                sinks.append((ring, late))
            continue
        port.connect(process.s_in)
        port, late = process.a_out, late + 1
    return source_, sinks, late


# --- rounds


def lava(net: Net, pieces: int, every: bool, between: Callable[[], None]) -> tuple[list[float], list[np.ndarray]]:
    """(seconds a sample of each piece, spikes of the sinks): Lava rests while `between` runs."""
    from targets.lava import env
    from targets.lava.supervise import run_worker

    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.pickle").write_bytes(pickle.dumps((tuple(vars(net).items()), pieces * PIECE, every)))

        def follow(line: str) -> None:
            word, _, rest = line.partition(" ")
            if word == "seconds":
                seconds.append(float(rest) / PIECE)
            if len(seconds) < pieces:
                between()
                (folder / f"go{len(seconds)}").touch()

        argv = [str(Path(__file__).resolve()), "--worker", str(folder)]
        run_worker(env.python(), argv, timeout=300, cwd=folder, on_progress=follow)
        return seconds, pickle.loads((folder / "spikes.pickle").read_bytes())


def equal(net: Net, network: Any, executor: Any, found: list[np.ndarray], samples: int) -> dict[str, float]:
    """Spike rates of our neurons, after Lava's have turned out the same in the layers that it recorded."""
    import torch

    z = executor.run(torch.from_numpy(np.swapaxes(stimulus(net, samples), 0, 1)))
    neurons = [n for n in z if network.steps[n].neuron]
    for name, theirs in zip(neurons[-len(found) :], found, strict=True):
        ours = np.swapaxes(z[name].numpy(), 0, 1).reshape(samples * net.steps, *network.shapes[name])
        turned = theirs.transpose(0, *range(theirs.ndim - 1, 0, -1))
        assert np.array_equal(ours, turned), f"{net.name}: {name} has {(ours != turned).sum()} other spikes"
    return {n: round(float(z[n].float().abs().mean()), 4) for n in neurons}


def measure(net: Net, rounds: int, batch: int) -> dict[str, Any]:
    import torch

    from targets.loihi.executor import IntegerExecutor
    from targets.loop import Executor
    from targets.pytorch import TorchOps

    network = graph_of(net)
    executor, generic = IntegerExecutor(network), Executor(network, TorchOps(torch.float64))  # type: ignore[arg-type]
    xs = {n: torch.from_numpy(np.swapaxes(stimulus(net, n), 0, 1).astype(np.float64)) for n in (1, batch)}
    times: dict[str, list[float]] = {}

    def time_of(name: str, samples: int, run: Callable[[], Any]) -> None:
        """Seconds a sample, over as many calls as take a quarter of a second."""
        began, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - began < 0.25:
            run()
            calls += 1
        times.setdefault(name, []).append((time.perf_counter() - began) / (samples * calls))

    def ours() -> None:
        for samples, x in xs.items():
            time_of(f"ours {samples}", samples, lambda x=x: executor.run(x))
            time_of(f"floor {samples}", samples, floors[samples])

    floors = {n: floor_of(net, network, n) for n in xs}
    for x in xs.values():
        executor.run(x)
    if net.balance_bits:
        few = xs[batch][:, :4]
        ours_z, z = executor.run(few), generic.run(few)
        assert all(torch.equal(ours_z[n].double(), z[n]) for n in z)
        rates = {n: round(float(a.float().abs().mean()), 4) for n, a in ours_z.items()}
        for _ in range(rounds):
            ours()
            with one_thread():
                for samples, x in ((1, xs[1]), (batch, few)):
                    time_of(f"generic {samples}", x.shape[1], lambda x=x: generic.run(x))
                    time_of(f"ours {samples}, one thread", samples, lambda n=samples: executor.run(xs[n]))
    else:
        _, found = lava(net, 2, True, lambda: None)
        rates = equal(net, network, executor, found, 2 * PIECE)
        seconds, found = lava(net, rounds, False, ours)
        equal(net, network, executor, found, rounds * PIECE)
        times["lava"] = seconds
    return {"ms_per_sample": {n: spread(v) for n, v in times.items()}, "ratios": ratios(times, batch), "rates": rates}


def one_thread() -> Any:
    from contextlib import contextmanager

    import torch

    @contextmanager
    def scope() -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    return scope()


def spread(seconds: list[float]) -> dict[str, float]:
    return {"median": round(1e3 * statistics.median(seconds), 4), "best": round(1e3 * min(seconds), 4)}


def ratios(times: dict[str, list[float]], batch: int) -> dict[str, dict[str, float]]:
    """How many times longer the others take than ours in the same round: median, and fastest against fastest."""
    found = {}
    for samples in (1, batch):
        pairs = [("lava", f"ours {samples}"), (f"floor {samples}", f"ours {samples}")]
        pairs.append((f"generic {samples}", f"ours {samples}, one thread"))
        for theirs, ours in pairs:
            if theirs in times:
                rounds = [a / b for a, b in zip(times[theirs], times[ours], strict=True)]
                best = min(times[theirs]) / min(times[ours])
                word = theirs.split()[0]
                row = {"median": round(statistics.median(rounds), 2), "best": round(best, 2)}
                found[f"{word} / ours, {samples}"] = row
    return found


def about() -> dict[str, Any]:
    import torch

    from targets.lava import Lava

    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"machine": platform.machine(), "cores": cores, "capability": torch.backends.cpu.get_cpu_capability()}
    return {**versions, "lava": Lava().version, "threads": torch.get_num_threads(), **machine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(nets()), action="append")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    options = parser.parse_args()
    results = {}
    for name in options.only or nets():
        results[name] = found = measure(nets()[name], options.rounds, options.batch)
        for what, ms in found["ms_per_sample"].items():
            print(f"{name:14s} {what:22s} {ms['median']:10.3f} ms a sample (best {ms['best']:.3f})")
        for what, ratio in found["ratios"].items():
            print(f"{name:14s} {what:22s} {ratio['median']:10.1f} x (best {ratio['best']:.1f})")
        print(f"{name:14s} spike rates {found['rates']}", flush=True)
    if options.write:
        setting = {"rounds": options.rounds, "batch": options.batch, "piece": PIECE, "slab_of_floor": SLAB}
        RESULT.write_text(json.dumps({"setting": setting, **about(), "result": results}, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        from targets.lava.guard import guard

        guard(lambda: worker(Path(sys.argv[2])))
    main()
