"""What must hold of the torch target, the fused scan, the check and an export, each as a script of claims.

`test_mutants_proof` runs a script unchanged and with mutants. A claim is (its words, whether it holds); the scripts
import the project only when they run, else a mutant would come too late.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

Claims = Iterator[tuple[str, Any]]


def torch_target() -> Claims:
    import torch
    from cases import CASES, expected

    from targets.loop import Executor
    from targets.pytorch import Torch, TorchOps

    kinds = ("Affine", "Conv", "SumPool2d", "AvgPool2d", "EIGatedLIF", "EIDiscreteLIF-g", "LI-", "signed", "loop-gated")
    training = TorchOps(torch.float64, surrogate=torch.ones_like)
    for case in (c for c in CASES if c.name.startswith(kinds) and not c.name.endswith("-once")):
        network, wanted = case.network(), expected(case)
        found = Torch().compile(network).run(case.x).z
        trained = Executor(network, training).run(torch.from_numpy(case.x).transpose(0, 1))
        for name, z in found.items():
            right, ours = wanted[name], trained[name].transpose(0, 1).numpy()
            for engine, a in (("torch", z), ("training", ours)):
                same = a.shape == right.shape and np.allclose(a, right, rtol=1e-12, atol=1e-14)
                yield f"{engine}, {case.name}: node {name}", same


def fused_scan() -> Claims:
    import torch

    from eiexport.connections import Conv
    from eiexport.neurons import GatedFire, LeakyFire
    from eiexport.ops import Window
    from targets import kernels
    from targets.loop import scan
    from targets.pytorch import TorchOps

    ops = TorchOps(torch.float64, surrogate=lambda x: 1 / (1 + 4 * x * x))  # nowhere 0: every path carries a gradient
    for kind in ("random", "ties"):
        rng = np.random.default_rng(0)
        shapes, values = [(2, 2, 3, 3), (2,)] * 2, [0.0, 0.0, rng.choice([-0.5, 0.0, 0.5], (2, 2, 3, 3)), -0.25]
        arrays = [
            rng.normal(0, 0.5, s) if kind == "random" else np.broadcast_to(v, s)
            for s, v in zip(shapes, values, strict=True)
        ]
        x = 2.5 * rng.random((4, 2, 2, 5, 4)) if kind == "random" else rng.integers(0, 3, (4, 2, 2, 5, 4))
        every = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, *arrays)]
        windows = [Window((1, 1), (d, d), (d, d)) for d in (1, 2)]
        gates = [Conv(*every[1 + 2 * i : 3 + 2 * i], windows[i]) for i in range(2)]
        fire: Any = {"threshold": 0.5, "v_reset": None, "compare": "gt", "reset_mode": "zero", "lower": None}
        step = GatedFire(inner=LeakyFire(shape=(2, 5, 4), decay=0.5, **fire), feedback=gates[0], balance=gates[1])
        if kernels.find(step, ops) is not kernels.gated_scan:
            raise RuntimeError("the kernel does not take this step: the script is out of date")
        ours, wanted = kernels.gated_scan(step, ops, every[0]), scan(step, ops, every[0])
        yield f"{kind}: spikes", torch.equal(ours, wanted)
        loss = torch.from_numpy(rng.normal(size=x.shape))
        pairs = zip(*(torch.autograd.grad(z, every, loss) for z in (ours, wanted)), strict=True)
        for what, (a, b) in zip(("x", "wf", "bf", "wb", "bb"), pairs, strict=True):
            yield f"{kind}: gradient of {what}", b.any() and torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def check() -> Claims:
    import nir
    from cases import CASES, chain, full
    from test_trace import faulty_run

    from eiexport import graph
    from eiexport.alphabet import BINARY
    from eiexport.check import ExecutionCheck, judge
    from eiexport.errors import TraceError
    from eiexport.nodes import lif
    from eiexport.ops import NumpyOps
    from eiexport.trace import Trace, compact, compare_entries
    from targets.loop import Executor

    named = {c.name: c for c in CASES}

    def engine(network: Any, x: np.ndarray, dtype: str = "float64") -> dict[str, np.ndarray]:
        z = Executor(network, NumpyOps(dtype)).run(np.swapaxes(x, 0, 1).astype(dtype))
        return {n: compact(np.swapaxes(a, 0, 1), network.alphabets[n]) for n, a in z.items()}

    def verdict(network: Any, x: np.ndarray, z: dict[str, np.ndarray], dtype: str = "float64") -> tuple[Any, ...]:
        checked = ExecutionCheck(network, dtype)
        checked.add(x, z, 10)
        results = checked.results.values()
        counts = (sum(getattr(r, k) for r in results) for k in ("mismatches", "explained_ties"))
        return judge(checked.results, dtype), *counts, next((r.first for r in results if r.first), None)

    # right engines
    for case in (
        c
        for c in CASES
        if c.name.startswith(("EIDiscreteLIF-ge", "EIGated", "LI", "Cuba", "Affine", "Conv2d-all", "loop"))
    ):
        network = case.network()
        for dtype in ("float64", "float32"):
            z = engine(network, case.x, dtype)
            yield f"{case.name}, {dtype}: right", verdict(network, case.x, z, dtype)[:3] == ("equal", 0, 0)
    rng = np.random.default_rng(0)
    big = 10 * rng.normal(size=(1, 64))
    big[0, -1] = 0.001 - big[0, :-1].sum()
    one = np.array([[1.0]])
    for what, *nodes in (
        ("cancellation", nir.Linear(big)),
        ("a large bias", nir.Affine(0.1 * one, np.array([1000.1]))),
        ("an error from the layer before", nir.Linear(big), nir.Linear(one)),
        ("more digits than float32 has", nir.Linear(np.array([[2.0**24 + 1]]))),
    ):
        network = graph.check(chain((nodes[0].weight.shape[1],), *nodes))
        x = np.ones((1, 1, nodes[0].weight.shape[1]))
        z, exact = engine(network, x, "float32"), engine(network, x)
        if not any((z[n] != exact[n]).any() for n in z):
            raise RuntimeError(f"{what}: float32 rounds nothing, the script proves nothing")
        yield f"right with {what}", verdict(network, x, z, "float32")[0] == "equal"
    row, x = np.array([[1.0, 2.0, 4.0, -7.0]]), np.ones((1, 1, 4))
    folded = engine(graph.check(chain((4,), nir.Linear(0.1 * row))), x, "float32")["n0"]
    network = graph.check(chain((4,), nir.Linear(row), nir.Scale(full((1,), 0.1))))
    yield "right with a folded factor", folded.any() and verdict(network, x, {"n1": folded}, "float32")[0] == "equal"
    # thresholds between what float64 and float32 sum up to in 20 steps: ties, each of them explained
    x = rng.uniform(0.1, 0.2, (1, 20, 50))
    ends = [np.cumsum(x.astype(d), axis=1, dtype=d)[0, -1].astype(float) for d in ("float64", "float32")]
    node = lif((50,), decay=1, threshold=1)
    node.v_threshold = (ends[0] + ends[1]) / 2
    network = graph.check(chain((50,), node))
    found = verdict(network, x, engine(network, x, "float32"), "float32")
    yield "right after rounding 20 times", found[1] == 0 and found[2] > 5

    # one neuron among silent ones, so that one tie is within the share that is accepted
    def quiet(values: list[float], threshold: float, neurons: int = 60_000) -> tuple[Any, np.ndarray]:
        x = np.zeros((1, len(values), neurons))
        x[0, :, 0] = values
        return graph.check(chain((neurons,), lif((neurons,), decay=1, threshold=threshold))), x

    for neurons, status in ((60_000, "explained"), (30, "differs")):
        network, x = quiet([0.1, 0.1, 0.1, 0.2], 0.3, neurons)  # 0.30000000000000004 > 0.3, but not in float32
        found = verdict(network, x, engine(network, x, "float32"), "float32")
        yield f"a tie among {neurons}", found[:3] == (status, 0, 1)
    for what, values in (("an exact hit", [0.25, 0.75]), ("2e-5 below the threshold", [0.5, 0.49998])):
        network, x = quiet(values, 1.0)
        z = engine(network, x)
        z["n0"][0, 1, 0] ^= 1
        for dtype in ("float32", "float64"):
            yield f"flipped at {what}, {dtype}", verdict(network, x, z, dtype)[:3] == ("differs", 1, 0)
    weight = np.zeros((60_000, 3))
    weight[0] = [30_000.1, -30_000.1, 1.0005]
    network, x = graph.check(chain((3,), nir.Linear(weight), lif((60_000,), decay=1, threshold=1))), np.ones((1, 2, 3))
    z = engine(network, x)
    z["n1"][0, 0, 0] = 0
    yield "a tie 5e-4 from its threshold", verdict(network, x, z, "float32")[:3] == ("differs", 0, 1)

    # wrong engines
    for name in ("EIDiscreteLIF-ge-subtract-lower-hard", "EIGatedLIF-conv-balance-hard"):
        case, network = named[name], named[name].network()
        z = engine(network, case.x)["n0"]
        late = np.concatenate([0 * z[:, :1], z[:, :-1]], axis=1)
        for what, other in (("without signs", np.abs(z)), ("one step late", late), ("silent", 0 * z)):
            found = verdict(network, case.x, {"n0": other})
            yield f"{name} {what}", found[0] == "differs" and found[1] > 0 and found[2] == 0
        free: dict[str, Any] = {}
        for start in (0, 3):
            part = slice(start, start + 3)
            compare_entries(free, Trace({"n0": np.abs(z)[part]}), Trace({"n0": z[part]}), 10 + start)
        samples, steps = np.nonzero((z < 0).reshape(*z.shape[:2], -1).any(2))
        at, first = min(zip(steps, samples + 10, strict=True)), free["n0"].first
        yield f"{name} without signs, free-running", free["n0"].mismatches == (z < 0).sum()
        yield f"{name}: the first of them", first is not None and (first.step, first.sample) == at
    case, network = named["Threshold-random"], named["Threshold-random"].network()
    z = engine(network, case.x)
    z["n0"][2, 1, 3] ^= 1
    z["n0"][0, 4, 0] ^= 1
    found = verdict(network, case.x, z)
    yield "two flips", found[:3] == ("differs", 2, 0)
    yield "the first of them", (found[3].sample, found[3].step, found[3].neuron) == (12, 1, (3,))
    odd = z["n0"] * 1.9
    yield "1.9 as a spike", verdict(network, case.x, {"n0": compact(odd, BINARY)})[1] >= (odd > 1).sum()
    case, network = named["biased-chain-0.625"], named["biased-chain-0.625"].network()
    clean = engine(network, case.x)
    for name, step in product(clean, (0, 1, 2)):
        z = faulty_run(network, case.x, name, (1, step, 0), 1 - clean[name][1, step, 0])
        found = verdict(network, case.x, z)
        yield f"one wrong decision in {name}", found[:3] == ("differs", 1, 0)
        yield f"where in {name}", (found[3].node, found[3].sample, found[3].step) == (name, 11, step)
    x = np.repeat(case.x[:1], 3, axis=0)  # equal samples: one could stand for all
    clean = engine(network, x)
    for name in clean:
        without = {n: a for n, a in clean.items() if n != name}
        for other in (without, without | {name: clean[name][:1]}):
            try:
                verdict(network, x, other)
            except TraceError:
                continue
            yield f"{name} missing or short", False
    slips = (("float32", 1e-3), ("float32", 2e-5), ("float64", 1e-9), ("float32", np.nan), ("float64", np.nan))
    for name in ("LI-random", "Conv2d-all-real"):
        case, network = named[name], named[name].network()
        for dtype, slip in slips:
            z = engine(network, case.x, dtype)["n0"].astype(float)
            z[1, -1].reshape(-1)[0] += slip
            found = verdict(network, case.x, {"n0": z}, dtype)
            yield f"{name}, {dtype}: off by {slip}", found[:2] == ("differs", 1) and found[3].sample == 11
    network, x = graph.check(chain((3,), nir.Linear(np.array([[3e7, -3e7, 1.1]])))), np.ones((1, 1, 3))
    found = verdict(network, x, {"n0": engine(network, x)["n0"] + 0.5}, "float32")
    yield "a wide bound is no excuse", found[0] == "differs"
    yield "nothing compared", judge(ExecutionCheck(network, "float64").results, "float64") == "differs"


def export() -> Claims:
    import nir
    from cases import chain, integrate, whole

    from eiexport import session
    from eiexport.model import Model
    from eiexport.trace import Trace
    from targets import base
    from targets.reference import Reference

    def changed(z: dict[str, np.ndarray], fault: str, start: int) -> dict[str, np.ndarray]:
        z = {n: a.copy() for n, a in z.items() if (fault, n) != ("lacks", "n0")}
        if start == 4 and fault == "flips":
            z["n0"][1, 2, 1] ^= 1
        if start == 4 and fault == "slips":
            z["n2"][1, 2, 1] += 1e-3
        return z

    class Faulty(Reference):
        def compile(self, network: Any) -> Any:
            program, fault = super().compile(network), self.name

            def stream(x: Any, progress: Any = None) -> Iterator[Trace]:
                starts = range(0, len(x), 2)
                for start in islice(starts, 2 if fault == "stops" else None):
                    part = program.run(x[start : start + 2])
                    yield Trace(changed(part.z, fault, start), part.dt, part.latency)

            setattr(program, "stream", stream)  # noqa: B010
            return program

    names = ("flips", "slips", "lacks", "stops", "right")
    for name in names:
        base.REGISTRY[name] = f"{__name__}:{name}"
        setattr(sys.modules[__name__], name, type(name, (Faulty,), {"name": name}))
    session.chunk_size = lambda network, steps: 2  # type: ignore[assignment]
    session.report.write = lambda report, out: None  # type: ignore[assignment]  # pictures take their time
    g = chain((3,), integrate((3,)), nir.Affine(np.eye(3), np.full(3, 0.1)), nir.LI(*np.full((3, 3), 2.0)))
    g.nodes["out"] = nir.Output(np.array([3]))
    x = whole((3,), 0, 0, 1, samples=7).astype(np.float32)

    def report(fault: str, targets: tuple[str, ...]) -> Any:
        """Of an export whose training code has this fault."""
        starts = iter(range(0, 99, 2))

        def trained(part: np.ndarray) -> dict[str, np.ndarray]:
            z = Reference().compile(session.graph.check(g)).run(part).z
            return {n: a.astype(float) for n, a in changed(z, fault, next(starts)).items()}

        model = Model("test", g, len(x), lambda size: (x[i : i + size] for i in range(0, len(x), size)), None, trained)
        with tempfile.TemporaryDirectory() as out:
            settings = session.Settings(targets, Path(out) / "out")
            return session.export(model, settings, lambda what, done, total: None)

    found = report("", names)
    status = {r.name: r.status for r in found.rows}
    yield "rows", status == dict(zip(names, ("differs", "differs", "failed", "differs", "equal"), strict=True))
    yield "one good row is not enough", found.reference.status == "equal" and not found.ok
    flips = found.rows[0]
    firsts = [r["n0"].first for r in (flips.results, flips.free)]
    yield "where it flips", [(f.sample, f.step, f.neuron) for f in firsts if f] == [(5, 2, (1,))] * 2
    yield "a right engine", report("", ("right",)).ok
    yield "a node lacking", not report("", ("lacks",)).ok
    yield "a wrong reference", not report("slips", ("right",)).ok
    yield "another run than the reference's", report("flips", ("right",)).rows[0].status == "differs"
