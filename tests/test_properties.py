"""Random networks and numbers: what holds for the listed cases must hold for any."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nir
import numpy as np
import oracle
import pytest
import torch
from cases import Numbers, connected, connections, integrate, neurons
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eiexport.alphabet import BINARY, REAL, TERNARY, Alphabet, interval
from eiexport.bounds import BoundedOps
from eiexport.check import ExecutionCheck
from eiexport.graph import Network, check, read, write
from eiexport.nodes import lif, prepare
from eiexport.ops import NumpyOps
from eiexport.steps import Clock, Neuron, bind
from eiexport.tracing import trace
from targets import base
from targets.pytorch import TorchOps

relaxed = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**31)
ALPHABETS = {"binary": BINARY, "ternary": TERNARY, "int": interval(-3, 4, True), "real": REAL}
N = 3  # width of the random networks


def node_of(kind: str, n: Numbers) -> Any:
    """Any kind that keeps a population of N."""
    full = np.full(N, 1.0)
    plain: dict[str, Any] = {
        "Affine": lambda: n.affine(N, N),
        "Linear": lambda: nir.Linear(n.weight(N, N)),
        "Scale": lambda: nir.Scale(n.weight(N)),
        "Flatten": lambda: nir.Flatten({"input": np.array([N])}, 0, -1),
        "Delay": lambda: nir.Delay(n.rng.integers(0, 3, N).astype(float)),
        "Threshold": lambda: nir.Threshold(n.threshold(N)["v_threshold"]),
        "I": lambda: nir.I(n.lif(N)["r"]),
        "LI": lambda: nir.LI(**n.lif(N)),
        "IF": lambda: nir.IF(full, **n.threshold(N)),
        "LIF": lambda: nir.LIF(**n.lif(N), **n.threshold(N)),
        "CubaLI": lambda: nir.CubaLI(**n.cuba(N)),
        "CubaLIF": lambda: nir.CubaLIF(**n.cuba(N), **n.threshold(N)),
        "ge": lambda: n.discrete(N, "ge", "subtract", True),
        "gt": lambda: n.discrete(N, "gt", "none"),
        "gated": lambda: n.gated((N,), True, True),
    }
    return plain[kind]()


KINDS = (
    "Affine",
    "Linear",
    "Scale",
    "Flatten",
    "Delay",
    "Threshold",
    "I",
    "LI",
    "IF",
    "LIF",
    "CubaLI",
    "CubaLIF",
)
KINDS += ("ge", "gt", "gated")


@st.composite
def networks(draw: st.DrawFn) -> tuple[nir.NIRGraph, np.ndarray, Alphabet]:
    """Nodes in a row, each fed by one to three earlier ones; some feed back through a delay."""
    exact, integrator = draw(st.booleans()), draw(st.sampled_from(("euler", "exponential")))
    n = Numbers(draw(seeds), exact)
    names, nodes, edges = ["in"], {}, []
    for i, kind in enumerate(draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))):
        name = f"{'zyxwvu'[i]}{i}"  # alphabetical order is the reverse of execution order
        nodes[name] = node_of(kind, n)
        edges += [(s, name) for s in draw(st.sets(st.sampled_from(names[-4:]), min_size=1, max_size=3))]
        names.append(name)
    for i in range(draw(st.integers(0, 2))):
        # a neuron on the way back, so that the loop holds one, and a delay, so that it can be computed
        late, cell, back = f"late{i}", f"cell{i}", f"back{i}"
        nodes |= {
            late: nir.Delay(n.rng.integers(1, 3, N).astype(float)),
            cell: integrate((N,)),
            back: n.affine(N, N),
        }
        source, target = (draw(st.sampled_from(names[1:])) for _ in range(2))
        edges += [(source, late), (late, cell), (cell, back), (back, target)]
    edges += [(names[-1], "out")]
    graph = connected(nodes, edges, (N,), (1.0, integrator))
    kind = draw(st.sampled_from(sorted(ALPHABETS)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), N)
    a = ALPHABETS[kind]
    if kind == "real":
        return graph, n.rng.normal(0.3, 1, shape), a
    return graph, n.rng.integers(int(a.lo), int(a.hi) + 1, shape).astype(float), a


def run(network: Network, x: np.ndarray, target: str = "reference") -> dict[str, np.ndarray]:
    return base.get(target)().compile(network).run(x).z


@relaxed
@given(networks())
def test_write_read_run(made: tuple[nir.NIRGraph, np.ndarray, Alphabet]) -> None:
    graph, x, alphabet = made
    nodes = {**graph.nodes, "out": nir.Output(np.array([N]))}
    declared = nir.NIRGraph(nodes, graph.edges, metadata=graph.metadata, type_check=False)
    network = check(declared, alphabet=alphabet)
    with tempfile.TemporaryDirectory() as folder:
        write(declared, Path(folder) / "g.nir")
        back = check(read(Path(folder) / "g.nir"), alphabet=alphabet)
    assert back.order == network.order and back.alphabets == network.alphabets
    before, after = run(network, x), run(back, x)
    assert list(before) == list(after)
    for name, z in before.items():
        np.testing.assert_array_equal(z, after[name])


@relaxed
@given(networks())
def test_reference_torch_and_oracle_agree(made: tuple[nir.NIRGraph, np.ndarray, Alphabet]) -> None:
    graph, x, alphabet = made
    network = check(graph, alphabet=alphabet)
    z, other = run(network, x), run(network, x, "torch")
    rows = oracle.run(graph, x, network.clock.dt, network.clock.integrator)
    for name, values in z.items():
        assert values.shape == other[name].shape == (*x.shape[:2], *network.shapes[name])
        np.testing.assert_allclose(other[name], values, rtol=1e-11, atol=1e-11)
        wanted = np.array([[[step[name][(i,)] for i in range(N)] for step in sample] for sample in rows])
        np.testing.assert_allclose(values, wanted, rtol=1e-11, atol=1e-11, err_msg=name)
    for dtype, trace_ in (("float64", z), ("float64", other)):
        checked = ExecutionCheck(network, dtype)
        checked.add(x, trace_)
        assert not any(r.mismatches for r in checked.results.values())
    for name, a in network.alphabets.items():  # every node, not the recorded ones only
        seen = [v for sample in rows for step in sample for v in step[name].values()]
        slack = 0 if a.discrete else 1e-9 * max(map(abs, seen))
        assert a.lo - slack <= min(seen) and max(seen) <= a.hi + slack, name
        assert not a.discrete or all(v == round(v) for v in seen), name


@relaxed
@given(networks())
def test_float32_is_an_execution(made: tuple[nir.NIRGraph, np.ndarray, Alphabet]) -> None:
    """Every float32 output lies inside the bound; ties may be many in so small a trace, mismatches never."""
    graph, x, alphabet = made
    network = check(graph, alphabet=alphabet)
    checked = ExecutionCheck(network, "float32")
    checked.add(x, run(network, x, "torch32"))
    assert not any(r.mismatches for r in checked.results.values())


@pytest.mark.parametrize("kind", neurons())
@relaxed
@given(seeds)
def test_traced_step_equals_the_step(kind: str, seed: int) -> None:
    shape, make = neurons()[kind]
    numbers = Numbers(seed, seed % 2 == 0)
    step, ops = prepare(make(numbers), Clock(1.0, "euler")), NumpyOps()
    assert isinstance(step, Neuron)
    dag, bound = trace(step, ops, shape), bind(step, ops)
    state = step.init(ops, (1, *shape))
    for _ in range(4):
        driven = numbers.rng.normal(0.4, 1, (1, *shape))
        z, after = bound.step(ops, driven, state)
        got = dag.run(ops, {"x": driven, **{f"state{i}": s for i, s in enumerate(state)}})
        for a, b in zip((z, *after), got, strict=True):
            np.testing.assert_array_equal(a, b)
        state = after
    assert "return" in str(dag)


# --- bounds: what an engine computes in float32 lies within value +- bound


def inside(bound: Any, computed: Any) -> None:
    found = np.asarray(computed, np.float64)
    assert found.shape == bound.x.shape
    assert (np.abs(found - bound.x) <= bound.e).all(), float((np.abs(found - bound.x) - bound.e).max())


wide = st.sampled_from([1.0, 1e-3, 1e4])


@pytest.mark.parametrize("kind", connections())
@relaxed
@given(seeds, st.booleans(), wide)
def test_bounds_hold_for_connections(kind: str, seed: int, exact: bool, scale: float) -> None:
    shape, make = connections()[kind]
    n = Numbers(seed, exact)
    step = prepare(make(n), Clock(1.0, "euler"))
    x = n.rng.integers(-3, 4, (2, *shape)) if exact else n.rng.normal(0, scale, (2, *shape))
    x = x.astype(np.float32)
    t32: Any = TorchOps(torch.float32)
    bounded = BoundedOps("float32")
    found = bind(step, t32).drive(t32, torch.from_numpy(x))
    bound = bind(step, bounded).drive(bounded, bounded.exact(x.astype(np.float64)))
    inside(bound, found)
    if exact and "AvgPool" not in kind:
        assert not np.any(bound.e), "dyadic numbers are exact"


@pytest.mark.parametrize("kind", neurons())
@relaxed
@given(seeds, st.booleans(), wide)
def test_bounds_hold_for_neurons(kind: str, seed: int, exact: bool, scale: float) -> None:
    """Charge over several steps: decisions come from the engine, membranes propagate with their bound."""
    shape, make = neurons()[kind]
    n = Numbers(seed, exact)
    step = prepare(make(n), Clock(1.0, "euler"))
    assert isinstance(step, Neuron)
    t32: Any = TorchOps(torch.float32)
    bounded = BoundedOps("float32")
    engine, proof = bind(step, t32), bind(step, bounded)
    state, held = engine.init(t32, (1, *shape)), proof.init(bounded, (1, *shape))
    for _ in range(4):
        x = n.rng.integers(-2, 5, (1, *shape)) / 4 if exact else n.rng.normal(0.3, scale, (1, *shape))
        x = x.astype(np.float32)
        driven = engine.drive(t32, torch.from_numpy(x))
        bound = proof.drive(bounded, bounded.exact(x.astype(np.float64)))
        if not step.neuron:  # a delay line only moves values
            z, state = engine.step(t32, driven, state)
            y, held = proof.step(bounded, bound, held)
            inside(y, z)
            continue
        membrane, proven = engine.charge(t32, driven, state), proof.charge(bounded, bound, held)
        for found, value in zip(membrane, proven, strict=True):
            inside(value, found)
        z, s = engine.decide(t32, membrane)
        state = engine.reset(t32, membrane, z, s)
        held = proof.reset(bounded, proven, *(bounded.exact(v.double().numpy()) for v in (z, s)))


@relaxed
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=6), st.integers(0, 8))
def test_bounds_know_what_is_exact(values: list[int], power: int) -> None:
    """Sums of multiples of 2**-k that fit the mantissa carry no bound; one long fraction among them does."""
    ops = BoundedOps("float32")
    x = ops.exact(np.array([values], float) / 2**power)
    weight = ops.const(np.ones((1, len(values))) / 4)
    assert not ops.linear(x, weight, None).e.any()
    assert ops.linear(x, ops.const(np.full((1, len(values)), 0.1)), None).e.any() or not any(values)


def test_lif_helper_writes_full_arrays() -> None:
    node = lif((2, 3), decay=0.5, threshold=1, lower=-1)
    assert all(getattr(node, f).shape == (2, 3) for f in ("decay", "gain", "v_threshold", "v_reset", "lower"))
