"""What must hold of the torch target, the fused scan, the check, an export and the pass to stock NIR, as claims.

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

import nir
import numpy as np

Claims = Iterator[tuple[str, Any]]


def torch_target() -> Claims:
    import torch
    from cases import CASES, expected

    from targets.loop import Executor
    from targets.pytorch import Torch, TorchOps

    kinds = ("Affine", "Conv", "SumPool2d", "AvgPool2d", "EIMaxPool2d", "EIGatedLIF", "EIDiscreteLIF-g")
    kinds += ("LI-", "signed", "loop-gated")
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
    from cases import CASES, chain, full
    from test_trace import faulty_run

    from eiexport import graph
    from eiexport.alphabet import BINARY
    from eiexport.check import ExecutionCheck, judge
    from eiexport.errors import TraceError
    from eiexport.nodes import EIMaxPool2d, lif
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
        if c.name.startswith(
            ("EIDiscreteLIF-ge", "EIGated", "LI", "Cuba", "Affine", "Conv2d-all", "loop", "EIMax", "maxpool")
        )
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
    kernel = nir.Conv2d(None, row.reshape(1, 4, 1, 1), 1, 0, 1, 1, np.zeros(1))
    pooled = chain((4, 1, 1), kernel, EIMaxPool2d(*np.array([[1, 1], [1, 1], [0, 0]])), nir.Scale(full((1,), 0.1)))
    found = verdict(graph.check(pooled), x.reshape(1, 1, 4, 1, 1), {"n2": folded.reshape(1, 1, 1, 1, 1)}, "float32")
    yield "right with a factor folded through a maximum", found[0] == "equal"
    # of two candidates, the one that float64 finds smaller wins in float32, or wins with a larger error
    largest = EIMaxPool2d(*np.array([[1, 2], [1, 2], [0, 0]]))
    sums = nir.Conv2d(None, np.ones((1, 3, 1, 1)), 1, 0, 1, 1, np.zeros(1))
    network = graph.check(chain((3, 1, 2), sums, largest))
    x = rng.uniform(0.1, 1, (400, 1, 3, 1, 2))
    x[..., 1] = x[..., 0][:, :, [2, 0, 1]] + 1e-9
    pixels = {d: x.astype(d)[:, 0, 0] + x.astype(d)[:, 0, 1] + x.astype(d)[:, 0, 2] for d in ("float32", "float64")}
    if not (np.ptp([p.argmax(-1) for p in pixels.values()], axis=0) * np.ptp(pixels["float32"], axis=-1)).any():
        raise RuntimeError("the same candidate wins in float32, the script proves nothing")
    z = {"n1": pixels["float32"].max(-1)[:, None, None, :, None]}
    yield "right where another candidate wins", verdict(network, x, z, "float32")[:2] == ("equal", 0)
    yield "of a maximum, more than rounding", verdict(network, x, {"n1": z["n1"] + 1e-5}, "float32")[1] == 400
    x = np.array([[1.0, 1000.1], [0.0, -1000.1], [0.0, 0.99999]]).reshape(1, 1, 3, 1, 2)
    z = {"n1": np.full((1, 1, 1, 1, 1), 1 + 5e-5)}
    yield "right where a candidate of a larger error wins", verdict(network, x, z, "float32")[:2] == ("equal", 0)
    yield "nothing wins by as much in float64", verdict(network, x, z, "float64")[1] == 1
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


def standard_form() -> Claims:
    from cases import chain, connected

    from eiexport import graph, session
    from eiexport.errors import GraphError
    from eiexport.model import Model
    from eiexport.nodes import EIDiscreteLIF, EIGatedLIF, EIMaxPool2d, lif
    from eiexport.passes import insert_delays
    from eiexport.standard import to_standard_nir
    from targets import base

    def sent(g: Any, x: np.ndarray, target: str) -> dict[str, np.ndarray]:
        return base.get(target)().compile(graph.check(g)).run(x).z

    def refused(g: Any, dtype: str) -> bool:
        try:
            to_standard_nir(g, dtype)
        except GraphError:
            return True
        return False

    rng = np.random.default_rng(0)
    for dtype, target in (("float32", "torch32"), ("float64", "torch")):
        for threshold, compare, decay in product((1.0, 0.1, -0.75), ("ge", "gt"), (1.0, 0.5)):
            hit = np.array(threshold, dtype)
            x = np.array([np.nextafter(hit, hit.dtype.type(-np.inf)), hit, np.nextafter(hit, hit.dtype.type(np.inf))])
            g = chain((3,), lif((3,), decay=decay, threshold=threshold, compare=compare))
            after = to_standard_nir(g, dtype)
            found = sent(after, x.astype(np.float64).reshape(1, 1, 3), target)["n0"].ravel().tolist()
            yield f"{dtype}: a membrane at {threshold}, {compare}", found == [0, int(compare == "ge"), 1]
            said = after.metadata["eiexport"]["exact_for"]
            yield f"{dtype}: what {compare} is exact for", said == (dtype if compare == "ge" else "any")
        fields = [rng.choice(v, 40) for v in ((0.25, 0.5, 0.75), (0.5, 1.0, 3.0), (0.5, 1.0), (-0.25, 0.0))]
        g, x = chain((40,), EIDiscreteLIF(*fields, compare="ge")), rng.integers(-2, 5, (3, 9, 40)) / 4
        before, after = (sent(form, x, target)["n0"] for form in (g, to_standard_nir(g, dtype)))
        yield f"{dtype}: before and after", before.any() and (before == after).all()
        fields[1:3] = rng.choice((0.5, 1.0, -2.0), 40), rng.choice((0.5, 1.0, -0.25), 40)
        for compare in ("ge", "gt"):
            g = chain((40,), EIDiscreteLIF(*fields, compare=compare, reset="subtract"))
            bare = to_standard_nir(g, dtype, recurrence="implicit")
            forms = (g, to_standard_nir(g, dtype), insert_delays(bare)[0])
            yield f"{dtype}: a delay", any(isinstance(a, nir.Delay) for a in forms[1].nodes.values())
            before, *after = (sent(form, x, target)["n0"] for form in forms)
            yield f"{dtype}: soft reset, {compare}", before.any() and all((before == z).all() for z in after)
            said = {form.metadata["eiexport"]["exact_for"] for form in forms[1:]}
            yield f"{dtype}: what a soft reset is exact for", said == {dtype if compare == "ge" else "any"}
            yield f"{dtype}: delays left out", not any(isinstance(a, nir.Delay) for a in bare.nodes.values())
            said = [form.metadata["eiexport"]["provenance"].get("recurrence") for form in (forms[1], bare)]
            yield f"{dtype}: and it is said", said == ["explicit", "implicit"]
    decay = chain((1,), lif((1,), decay=0.2, threshold=1))
    yield "a decay that float64 cannot give", refused(decay, "float64")
    near = chain((1,), lif((1,), decay=1 - 1 / 22, gain=0.7, threshold=1))  # not by the nearest r
    yield "a neighbour", not refused(near, "float64")
    yield "but float32", to_standard_nir(decay, "float32").metadata["eiexport"]["exact_for"] == "float32"
    fire = {"decay": 0.5, "threshold": 1.0}
    for what, node in (
        ("no reset", lif((1,), reset="none", **fire)),
        ("two thresholds", lif((1,), lower=-1.0, **fire)),
        ("a gate", EIGatedLIF(lif((1,), **fire), balance=nir.Linear(np.ones((1, 1))))),
    ):
        yield f"{what} is refused", refused(chain((1,), node), "float32")
    for clock, refuses in (((1.0, "euler"), False), ((1.0, "exponential"), True)):
        yield f"{clock[1]}", refused(chain((1,), lif((1,), **fire), clock=clock), "float32") == refuses
    pools = [lif((1, 4, 4), **fire), EIMaxPool2d(*np.array([[3, 3], [1, 1], [1, 1]])), lif((1, 4, 4), **fire)]
    g, x = chain((1, 4, 4), *pools), rng.uniform(0, 1.2, (2, 6, 1, 4, 4))
    before, after = (sent(form, x, "torch")["n2"] for form in (g, to_standard_nir(g, "float64")))
    yield "a maximum of spikes", before.any() and (before == after).all()
    yield "a maximum of currents is refused", refused(chain((1, 4, 4), *pools[1:]), "float32")
    again = to_standard_nir(chain((1,), lif((1,), compare="ge", **fire)), "float32")
    yield "done again", to_standard_nir(again, "float32").metadata["eiexport"]["exact_for"] == "float32"
    yield "done again for another dtype", refused(again, "float64")

    # an export: engines run the standard form, and are held against the graph before
    session.report.write = lambda report, out: None  # type: ignore[assignment]  # pictures take their time
    cell = lif((1,), decay=1, threshold=1, compare="ge")
    g = connected({"a": cell}, [("in", "a"), ("a", "out")], (1,))
    g.nodes["out"] = nir.Output(np.array([1]))

    def export(g: Any, x: np.ndarray, *targets: str, **options: Any) -> Any:
        with tempfile.TemporaryDirectory() as out:
            model = Model("test", g, 1, lambda size: iter([x]))
            settings = session.Settings(targets, Path(out) / "out", **options)
            return session.export(model, settings, lambda what, done, total: None)

    def report(value: float, **options: Any) -> Any:
        return export(g, np.full((1, 3, 1), value), "reference", "torch", **options)

    found = report(1.0, standard="float32")
    yield (
        "exact hits",
        [(r.name, r.status) for r in found.rows] == [(name, "equal") for name in ("reference", "torch", "torch32")],
    )
    yield "its spikes", all(r.results["a"].spikes == 3 for r in found.rows)
    yield "told", any("exact in float32 alone" in n and "(reference, torch)" in n for n in found.notes)
    found = report(1 - 1e-9, standard="float32")
    yield "between the thresholds", {r.status for r in found.rows if r.dtype == "float64"} == {"differs"}
    yield "the graph before", found.reference.results["a"].spikes == 1 and found.reference.status == "equal"
    found = report(1 - 1e-9)
    yield "without it", found.rows[0].status == "equal" and not any("exact in" in n for n in found.notes)
    # gain .75: a hit is exact in the neuron's order of sums, and a tie in its cycle's; one in 120000 entries
    tie, x = (
        chain((240,), lif((240,), decay=1, threshold=1, gain=0.75, compare="ge", reset="subtract")),
        np.zeros(120000),
    )
    x[7:967:240] = 3, 2, -1, -9
    tie.nodes["out"] = nir.Output(np.array([240]))
    (row,) = export(tie, x.reshape(1, 500, 240), "torch32", standard="float32").rows
    yield "a cycle's own rounding", (row.status, row.total("explained_ties"), row.free_running) == ("explained", 1, 1)
    for how in ("explicit", "implicit"):
        cell = lif((1,), decay=1, threshold=1, compare="ge", reset="subtract")
        g = connected({"a": cell}, [("in", "a"), ("a", "out")], (1,))
        g.nodes["out"] = nir.Output(np.array([1]))
        found = report(0.75, standard="float32", recurrence=how)
        yield f"a soft reset, {how}", [(r.status, r.results["a"].spikes) for r in found.rows] == [("equal", 2)] * 3
        left = any("leaves the one-step delay of these cycles" in n for n in found.notes)
        yield f"told of {how}", left == (how == "implicit")
