"""The real Lava runtime against the reference: every case, each in a start shared with others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from cases import CASES, FLAT, MAP, Case, Numbers, chain, connected, full, hard, integrate, whole

import targets
from eiexport import graph as graphs
from eiexport.alphabet import BINARY, REAL, TERNARY
from eiexport.check import ExecutionCheck
from eiexport.errors import ExportError
from eiexport.nodes import EIDiscreteLIF, EIGatedLIF, lif
from eiexport.trace import Trace
from targets import base, lava
from targets.lava import env, jobs, plan

LAVA, REFERENCE = lava.Lava(), base.get("reference")()


def fire(shape: Any, **fields: Any) -> EIDiscreteLIF:
    return lif(shape, **{"decay": 0.5, "threshold": 0.75} | fields)


def biased(steps: int = 6, samples: int = 3) -> Case:
    """Three layers that fire from their biases alone: an engine that starts them early is at another phase."""
    layers = [n for _ in range(3) for n in (nir.Affine(0.5 * np.eye(3), full(3, 0.625)), integrate((3,)))]
    x = whole((3,), 1, 0, 1, samples)[:, :steps]
    return Case(f"biased-{steps}-{samples}", chain((3,), *layers), x, BINARY, True, "biases")


def own_cases() -> list[Case]:
    n = Numbers(400, True)
    found = [biased(), biased(1)]

    def add(name: str, graph: nir.NIRGraph, x: np.ndarray, alphabet: Any = REAL) -> None:
        found.append(Case(name, graph, x, alphabet, True, name))

    add("gain folded", chain((3,), n.affine(3, 4), fire(FLAT, gain=0.5)), whole((3,), 2, -1, 1), TERNARY)
    add("gain of the input", chain(FLAT, fire(FLAT, gain=0.5)), hard(FLAT, 3))
    shared = {"a": n.affine(4, 4), "b": fire(FLAT, gain=2.0), "c": fire(FLAT)}
    edges = [("in", "a"), ("a", "b"), ("a", "c"), ("b", "out"), ("c", "out")]
    add("gain of a connection that feeds two", connected(shared, edges, FLAT), hard(FLAT, 4))
    cuba = {k: full(4, v) for k, v in {"tau_mem": 2.0, "tau_syn": 2.0, "r": 2.0, "v_leak": 0.25}.items()}
    cuba |= {k: full(4, v) for k, v in {"v_threshold": 0.75, "v_reset": 0.0, "w_in": 2.0}.items()}
    add("synapse", chain((3,), nir.Linear(n.weight(4, 3)), nir.CubaLIF(**cuba)), whole((3,), 5, -1, 1), TERNARY)
    add("synapse behind a bias", chain((3,), n.affine(3, 4), nir.CubaLIF(**cuba)), whole((3,), 6, -1, 1), TERNARY)

    bias = nir.Affine(np.eye(4), np.array([0.5, -0.25, 1.0, 0.0]))
    add(
        "bias into a delay",
        chain(FLAT, bias, nir.Delay(np.array([0.0, 2.0, 1.0, 9.0])), integrate(FLAT)),
        hard(FLAT, 7),
    )
    add("no steps of delay", chain(FLAT, bias, nir.Delay(np.zeros(4)), integrate(FLAT)), hard(FLAT, 8))
    flip = [nir.Affine(-np.eye(4), full(4, 1.0)), n.affine(4, 4), fire(FLAT)]
    add("a bias makes 0 and 1 of 0 and -1", chain(FLAT, *flip), whole(FLAT, 9, 0, 1), BINARY)
    restless = [nir.Threshold(full(4, -0.5)), n.affine(4, 4), fire(FLAT, decay=1.0)]
    add("fires before its start", chain(FLAT, n.affine(4, 4), *restless), hard(FLAT, 10))

    # branches of 0, 1 and 3 connections meet, one of them behind a view and one behind a neuron
    nodes = {"w": n.affine(4, 4), "a": fire(FLAT), "w1": n.affine(4, 4), "w2": n.affine(4, 4), "w3": n.affine(4, 4)}
    nodes |= {"flat": nir.Flatten({"input": np.array(FLAT)}, 0, -1), "b": fire(FLAT)}
    edges = [
        ("in", "w"),
        ("w", "a"),
        ("a", "w1"),
        ("w1", "w2"),
        ("w2", "b"),
        ("in", "w3"),
        ("w3", "flat"),
        ("flat", "b"),
    ]
    edges += [("in", "b"), ("a", "b"), ("b", "out"), ("w3", "out")]
    add("branches of different length", connected(nodes, edges, FLAT), hard(FLAT, 11))

    # two connections in a cycle two layers deep, whose delay is longer than that
    nodes = {"w": n.affine(4, 4), "a": fire(FLAT), "w1": n.affine(4, 4), "b": fire(FLAT), "w2": n.affine(4, 4)}
    nodes |= {"z": nir.Delay(np.array([3.0, 4.0, 3.0, 5.0])), "w3": n.affine(4, 4)}
    edges = [("in", "w"), ("w", "a"), ("a", "w1"), ("w1", "b"), ("b", "z"), ("z", "w2"), ("w2", "w3"), ("w3", "b")]
    add("slack in a cycle", connected(nodes, [*edges, ("b", "out")], FLAT), hard(FLAT, 12))

    image = [
        fire((2, 4, 6), lower=-0.5, reset="subtract"),
        nir.SumPool2d(np.array([2, 3]), np.array([2, 3]), np.zeros(2, int)),
    ]
    image += [n.conv(4, 2, (2, 1), padding=(1, 0), groups=2), fire((4, 3, 2))]
    add("names / of % any « kind", _renamed(chain((2, 4, 6), *image)), hard((2, 4, 6), 13))
    wide = [nir.SumPool2d(np.array([1, 2]), np.array([1, 130]), np.zeros(2, int)), integrate((130, 1, 2))]
    add("more channels and pixels than int8 holds", chain((130, 1, 140), *wide), hard((130, 1, 140), 15))
    add(
        "gates behind a convolution",
        chain(MAP, n.conv(2, 2, (3, 3), padding=1), n.gated(MAP, True, True)),
        hard(MAP, 14),
    )
    return found


def _renamed(graph: nir.NIRGraph) -> nir.NIRGraph:
    new = {n: n if n in ("in", "out") else f"{n} % « {n}.npy" for n in graph.nodes}
    nodes = {new[n]: node for n, node in graph.nodes.items()}
    return nir.NIRGraph(nodes, [(new[a], new[b]) for a, b in graph.edges], metadata=graph.metadata, type_check=False)


OWN = {c.name: c for c in own_cases()}
ALL = [*CASES, *OWN.values()]


def pack(cases: list[Case]) -> dict[str, Trace]:
    traces = LAVA.run_many([(c.network(), c.x) for c in cases], probe=True)
    return dict(zip([c.name for c in cases], traces, strict=True))


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return pack(ALL)


def differences(case: Case, trace: Trace) -> list[str]:
    """Where a trace is no execution of the graph, or not the reference's."""
    network = case.network()
    check = ExecutionCheck(network, "float64")
    check.add(case.x, trace.z)
    found = [f"{n}: {r.first}" for n, r in check.results.items() if r.mismatches or r.explained_ties]
    expected = REFERENCE.compile(network).run(case.x, probe=True)
    assert trace.z.keys() == expected.z.keys() == check.results.keys()
    held = [(kind, name) for kind, name, _ in trace.observables()]
    assert held == [(kind, name) for kind, name, _ in expected.observables()]
    for (kind, name, ours), (_, _, a) in zip(trace.observables(), expected.observables(), strict=True):
        assert ours.dtype == a.dtype
        if case.exact or a.dtype == np.int8:
            same = np.array_equal(ours, a)
        else:
            same = np.allclose(ours, a, rtol=1e-12, atol=1e-12)
        found += [] if same else [f"{name}: {kind} is not the reference's"]
    return found


@pytest.mark.parametrize("case", ALL, ids=repr)
def test_case(case: Case, traces: dict[str, Trace]) -> None:
    assert differences(case, traces[case.name]) == []


# --- worked examples

GATED = {
    "B-1": ((1.0, 0.0), (1.0, -0.8), [2.0, 0.8, 1.0, 1.0, 0.9], [1, -1, 0, -1, 0]),
    "B-2": ((1.0, 0.5), (2.0, -1.5), [1.0, 1.0, 0.9, 0.4, 0.0], [-1, 0, -1, 0, 0]),
    "B-3": (None, (1.0, -1.0), [1.0, 0.4, 0.0], [0, 0, 0]),  # swallowed and reset: a kept membrane would fire at 1
    "B-4": (None, None, [0.5, 0.0], [0, 0]),
    "B-5": (None, None, [0.4, 0.4, 0.45, 0.45, 0.1], [0, 0, 1, 0, 0]),
}


def test_worked_examples() -> None:
    """BackEISNN by hand: decay .2, threshold .5, one channel with gates of one pixel."""

    def gate(numbers: tuple[float, float] | None) -> nir.Conv2d | None:
        if numbers is None:
            return None
        return nir.Conv2d((1, 1), full((1, 1, 1, 1), numbers[0]), 1, 0, 1, 1, full(1, numbers[1]))

    pairs = []
    for feedback, balance, x, _ in GATED.values():
        neuron = lif((1, 1, 1), decay=0.2, threshold=0.5)
        network = graphs.check(chain((1, 1, 1), EIGatedLIF(neuron, gate(feedback), gate(balance))))
        pairs.append((network, np.array(x).reshape(1, -1, 1, 1, 1)))
    for (name, (*_, expected)), trace in zip(GATED.items(), LAVA.run_many(pairs), strict=True):
        assert trace.z["n0"].ravel().tolist() == expected, name


# --- samples

BATCHED = ["biased-6-3", "slack in a cycle", "bias into a delay", "gates behind a convolution"]


def test_a_sample_of_a_batch_equals_the_sample_alone(traces: dict[str, Trace]) -> None:
    picked = [(name, k) for name in BATCHED for k in (1, len(OWN[name].x) - 1)]
    pairs = [(OWN[name].network(), OWN[name].x[k : k + 1]) for name, k in picked]
    for (name, k), alone in zip(picked, LAVA.run_many(pairs), strict=True):
        for node, z in traces[name].z.items():
            assert np.array_equal(alone.z[node][0], z[k]), (name, node, k)


def test_stream_is_one_start_read_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case, starts = biased(samples=5), []
    monkeypatch.setattr(lava, "chunk_size", lambda *_: 2)
    monkeypatch.setattr(jobs.tempfile, "tempdir", str(tmp_path))
    write = jobs.write
    monkeypatch.setattr(jobs, "write", lambda *a: (starts.append(1), write(*a)))
    program = LAVA.compile(case.network())
    told: list[int] = []
    with h5py.File(tmp_path / "x.h5", "w") as file:
        rows = file.create_dataset("x", data=case.x.astype(np.int8))
        parts = list(program.stream(rows, told.append, probe=True))
    assert [p.samples for p in parts] == [2, 2, 1] and sum(told) == 5 and len(starts) == 1
    states = {
        k: {n: np.concatenate([p.states[k][n] for p in parts]) for n in rows} for k, rows in parts[0].states.items()
    }
    joined = Trace({n: np.concatenate([p.z[n] for p in parts]) for n in parts[0].z}, states=states)
    assert differences(case, joined) == []
    left_early = program.stream(case.x)
    next(left_early)
    left_early.close()
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


# --- what is decided


def test_latency_is_the_number_of_connections_before(traces: dict[str, Trace]) -> None:
    assert traces["biased-6-3"].latency == {"n1": 1, "n3": 2, "n5": 3}
    assert traces["branches of different length"].latency == {"a": 1, "b": 3, "w3": 1}
    assert traces["slack in a cycle"].latency == {"a": 1, "b": 2}
    assert traces["gates behind a convolution"].latency == {"n1": 1}
    assert LAVA.compile(biased().network()).latency == traces["biased-6-3"].latency


@pytest.mark.parametrize(
    "name,expected",
    [
        ("biased-6-3", {"n1": "stock", "n3": "stock", "n5": "stock"}),
        ("gain folded", {"n0": "stock", "n1": "stock"}),
        ("gain of the input", {"n0": "custom"}),
        ("gain of a connection that feeds two", {"b": "custom", "c": "stock"}),
        ("synapse", {"n1": "stock"}),
        ("synapse behind a bias", {"n1": "custom"}),
        ("fires before its start", {"n1": "stock", "n3": "stock"}),
        ("bias into a delay", {"n1": "custom", "n2": "stock"}),
        ("gates behind a convolution", {"n0": "stock", "n1": "custom"}),
    ],
)
def test_stock_processes_stand_where_they_mean_the_node(name: str, expected: dict[str, str]) -> None:
    """The worker reads off what it built; a difference to this would have been an error of the run."""
    network = OWN[name].network()
    assert {n: LAVA.process(network, n) for n in expected} == expected
    inner = [n for n in network.steps if n not in (network.input, *network.outputs)]
    stock = all(LAVA.process(network, n) == "stock" for n in inner)
    assert LAVA.evidence_for(network) == ("independent" if stock else "plumbing")


@pytest.mark.parametrize(
    "field,value",
    [("reset", "subtract"), ("reset", "none"), ("lower", -1.0), ("v_reset", -0.5), ("decay", None)],
)
def test_what_stock_lif_does_not_mean_is_custom(field: str, value: Any) -> None:
    neuron = fire(FLAT)
    for neuron.compare in ("ge", "gt"):  # in float64, v >= threshold is v > the number below it
        assert LAVA.process(graphs.check(chain(FLAT, neuron)), "n0") == "stock"
    each = np.array([0.5, 0.25, 1.0, 0.5])
    setattr(neuron, field, value if isinstance(value, str) else each if value is None else full(4, value))
    assert LAVA.process(graphs.check(chain(FLAT, neuron)), "n0") == "custom"


# --- refusals and failures


def one_line(e: pytest.ExceptionInfo[ExportError], *parts: str) -> None:
    text = str(e.value)
    assert "\n" not in text and all(p in text for p in parts), text


def test_a_cycle_with_too_many_connections_is_refused() -> None:
    nodes = {"cell": fire(FLAT), "z": nir.Delay(full(4, 1.0)), "w": nir.Linear(np.eye(4)), "w1": nir.Linear(np.eye(4))}
    edges = [("in", "cell"), ("cell", "z"), ("z", "w"), ("w", "w1"), ("w1", "cell"), ("cell", "out")]
    with pytest.raises(base.Unsupported) as e:
        LAVA.check(graphs.check(connected(nodes, edges, FLAT)))
    one_line(e, "'cell' -> 'z' -> 'w' -> 'w1'", "2 engine steps", "delays give 1")


def test_input_that_is_not_what_was_declared_is_refused() -> None:
    program = LAVA.compile(biased().network())
    for x, part in (
        (full((1, 2, 3), 0.5), "declared binary"),
        (full((1, 2, 4), 0), "shape"),
        (full((0, 2, 3), 0), "empty"),
    ):
        with pytest.raises(base.TargetError) as e:
            program.run(x)
        one_line(e, part)


def test_the_time_that_lava_may_be_silent_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    program = LAVA.compile(biased().network())
    for value in ("soon", "-1", "nan"):
        monkeypatch.setenv(jobs.TIMEOUT, value)
        with pytest.raises(base.TargetError) as e:
            program.run(biased().x)
        one_line(e, jobs.TIMEOUT, value)
    monkeypatch.setenv(jobs.TIMEOUT, "0.01")
    with pytest.raises(base.EngineUnavailable) as e:
        program.run(biased().x)
    one_line(e, "0.01 s")


# --- mutants: the source that the worker runs, changed in one place


def change(monkeypatch: pytest.MonkeyPatch, folder: Path, file: str, old: str, new: str) -> None:
    """Give the worker a copy of the package, made in `folder`, with one place of one file changed."""
    copy = folder / "targets"
    shutil.copytree(targets.__path__[0], copy)
    source = (copy / "lava" / file).read_text()
    assert source.count(old) == 1
    (copy / "lava" / file).write_text(source.replace(old, new))
    monkeypatch.setattr(targets, "__path__", [str(copy)])


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    return lambda *what: change(monkeypatch, tmp_path, *what)


LATENCY, RESET = "self.plan.latency[name]", '"reset_offset": (self.plan.latency[name] + 1) % self.period'
FED, GATED_CASE = "self.resting if first else rest[0] + self.resting", ["gates behind a convolution"]
MUTANTS = {
    "late": ("build.py", f"self.period, {LATENCY}\n", f"self.period, {LATENCY} + 1\n", ["biased-1-3"]),
    "unsigned": ("plan.py", '"binary" else 24', '"binary" else 0', ["signed-balance-chain", "signed-lower-chain"]),
    "bias before the start": ("build.py", RESET, '"reset_offset": 0', ["biased-6-1"]),
    "state kept": ("build.py", '"reset_interval": self.period', '"reset_interval": 10**9', ["biased-6-3"]),
    "feedback not heard": ("processes/neuron.py", FED, "self.resting", GATED_CASE),
    "feedback kept": ("processes/neuron.py", FED, "rest[0] + self.resting", GATED_CASE),
    "no feedback": ("processes/neuron.py", "self.state, fed)", "self.state, None)", GATED_CASE),
    "delay kept": ("processes/delay.py", "np.where(self.delay <= model, y, 0)", "y", ["bias into a delay"]),
    "branches not equal": ("build.py", "if not slack:", "if True:", ["branches of different length"]),
    "kernel not flipped": ("build.py", "weight[:, :, ::-1, ::-1]", "weight", ["names / of % any « kind"]),
}


@pytest.mark.parametrize("file,old,new,names", MUTANTS.values(), ids=MUTANTS)
def test_mutant_is_caught(mutate: Any, file: str, old: str, new: str, names: list[str]) -> None:
    known = OWN | {c.name: c for c in CASES} | {"biased-6-1": biased(6, 1)}
    cases = [known[n] for n in names]
    mutate(file, old, new)
    for name, trace in pack(cases).items():
        assert differences(known[name], trace), name


def test_a_worker_that_built_something_else_is_caught(mutate: Any) -> None:
    mutate("plan.py", "return STOCK if step.threshold.ndim == 0 else CUSTOM", "return CUSTOM")
    case = OWN["fires before its start"]
    with pytest.raises(base.EngineUnavailable, match="another network than was planned"):
        LAVA.run_many([(case.network(), case.x)])


def test_a_crash_inside_of_lava_is_one_line(mutate: Any) -> None:
    mutate("processes/neuron.py", "arrived = self.receive()", "raise RuntimeError('no such luck')")
    case = OWN["gain of the input"]
    with pytest.raises(base.EngineUnavailable) as e:
        LAVA.compile(case.network()).run(case.x)
    one_line(e, "no such luck")


def test_importing_the_target_needs_no_lava() -> None:
    assert base.get("lava") is lava.Lava
    assert not hasattr(plan, "LavaConv") and env.place()
    assert base.get("lava")().version == "lava-nc 0.10.0"
