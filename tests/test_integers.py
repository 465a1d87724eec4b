"""Integer networks: the reference against an oracle of Python ints, torch against the reference, a chip's own trace."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import campaign
import h5py
import nir
import numpy as np
import pytest
from campaign import BRANCHES, compared, coverage, expected, kind_of, unhit
from int_networks import (
    Case,
    chain,
    connected,
    conv,
    dense,
    gated,
    network_of_size,
    neuron,
    provoking_cases,
    random_network,
)
from test_graph import assert_same_node

from eiexport import graph as graphs
from eiexport.alphabet import BINARY, REAL, TERNARY, Alphabet, interval
from eiexport.bounds import BoundedOps
from eiexport.errors import GraphError
from eiexport.graph import check, read, write
from eiexport.integers import IntGatedLIF
from eiexport.ops import NumpyOps
from eiexport.steps import Neuron, bind
from eiexport.trace import Trace
from eiexport.tracing import trace
from targets import base
from targets.loop import Executor, fold

CASES = provoking_cases()
RANDOM = [
    Case(f"random-{seed}{'-stock' * stock}", *random_network(seed, stock), ())
    for seed in range(24)
    for stock in (False, True)
]
EVERY = CASES + RANDOM


@cache
def network_of(case: Case) -> graphs.Network:
    return case.network()


def run(case: Case, target: str = "reference") -> Trace:
    return base.get(target)().compile(network_of(case)).run(case.x, probe=True)


# --- engines


@pytest.mark.parametrize("case", EVERY, ids=repr)
def test_reference_equals_the_oracle(case: Case) -> None:
    network = network_of(case)
    entries, different = compared(run(case), expected(network, case.x))
    assert not different
    cells = [n for n in network.recorded if kind_of(network.graph.nodes[n]) in BRANCHES and network.steps[n].neuron]
    registers = sum(int(np.prod(network.shapes[n])) for n in cells) * case.x.shape[0] * case.x.shape[1]
    assert entries.get("v", 0) == entries.get("u", 0) == registers and entries["z"] > 0


@pytest.mark.parametrize("case", EVERY, ids=repr)
def test_torch_equals_the_reference(case: Case) -> None:
    assert not compared(run(case, "torch"), run(case))[1]


def test_larger_networks_run_alike_on_torch() -> None:
    counts = {kind: Counter[str]() for kind in BRANCHES}
    for seed in range(24):
        graph, x, alphabet = network_of_size(seed, 4000)
        case = Case(f"large-{seed}", graph, x, alphabet, ())
        network, wanted = network_of(case), run(case)
        entries, different = compared(run(case, "torch"), wanted)
        assert not different and entries["v"] >= 4000
        for name, found in coverage(network, x, wanted).items():
            counts[kind_of(graph.nodes[name])].update(found)
    assert len(unhit(counts, stock=False)) < 6, "the generator provokes too little"


def test_cases_take_the_branches_they_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    counts = {kind: Counter[str]() for kind in BRANCHES}
    for case in CASES:
        found = coverage(network_of(case), case.x, run(case))
        for node, branch in case.hits:
            assert found[node][branch] > 0, f"{case.name}: {node} never takes {branch!r}"
        for name, taken in found.items():
            counts[kind_of(case.graph.nodes[name])].update(taken)
    named = {branch for case in CASES for _, branch in case.hits}
    assert named >= {b for branches in BRANCHES.values() for b in branches} - {"positive v"}


@pytest.mark.parametrize("target", ["reference", "torch"])
def test_sample_of_a_batch_equals_the_sample_alone(target: str) -> None:
    for case in EVERY:
        program = base.get(target)().compile(network_of(case))
        batch = {(k, n): a for k, n, a in program.run(case.x, probe=True).observables()}
        for sample in range(len(case.x)) if len(case.x) > 1 else ():
            for kind, name, alone in program.run(case.x[sample : sample + 1], probe=True).observables():
                np.testing.assert_array_equal(alone[0], batch[kind, name][sample], err_msg=f"{case} {name} {kind}")


class Watching(NumpyOps):
    """NumPy, where every result of whole numbers must be one that float64 holds exactly."""

    largest = 0.0

    def __getattribute__(self, op: str) -> Any:
        method = super().__getattribute__(op)
        if op not in ("add", "sub", "mul", "linear", "conv", "pool", "shift_floor", "shift_zero", "wrap", "modulo"):
            return method

        def watched(*args: Any) -> Any:
            y = method(*args)
            assert (y == np.rint(y)).all(), f"{op} leaves the whole numbers"
            self.largest = max(self.largest, float(np.abs(y).max(initial=0.0)))
            return y

        return watched


def test_float64_holds_every_intermediate_value() -> None:
    largest = 0.0
    for case in EVERY:
        ops, states = Watching(), dict[str, dict[str, Any]]()
        Executor(network_of(case), ops).run(np.swapaxes(case.x, 0, 1), states)
        largest = max(largest, ops.largest)
        assert ops.largest < 2**53, case.name
    assert largest > 2**35, "no product came near the width that float32 lacks"


# --- the comparison itself


def changed(held: Trace, change: str) -> Trace:
    """The trace of the case "wrap", wrong in one way."""
    z, v, u = (dict(d) for d in (held.z, held.states["v"], held.states["u"]))
    if change in ("z", "v", "u"):
        rows = {"z": z, "v": v, "u": u}[change]
        rows["n0"] = rows["n0"].copy()
        rows["n0"][1, -1, 2] += 1
    changes = {
        "no node": lambda: z.clear(),
        "no register": lambda: u.clear(),
        "another shape": lambda: v.update(n0=v["n0"][:, :, :-1]),
        "another dtype": lambda: z.update(n0=z["n0"].astype(np.float64)),
    }
    changes.get(change, lambda: None)()
    return Trace(z, held.dt, states={"v": v, "u": u})


@pytest.mark.parametrize("change", ["z", "v", "u", "no node", "no register", "another shape", "another dtype"])
def test_comparison_sees(change: str) -> None:
    held = run(next(c for c in CASES if c.name == "wrap"))
    assert not compared(held, changed(held, ""))[1]
    for a, b in ((held, changed(held, change)), (changed(held, change), held)):
        entries, different = compared(a, b)
        assert entries["mismatches"] == 1 and different


def test_campaign_finds_a_wrong_engine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def wrong(pairs: list[tuple[graphs.Network, np.ndarray]]) -> list[Trace]:
        traces = []
        for network, x in pairs:
            trace = base.get("reference")().compile(network).run(x, probe=True)
            first = next(iter(trace.states["u"].values()))
            first[0, -1].flat[0] += 1
            traces.append(trace)
        return traces

    few = ["--networks", "3", "--values", "900", "--oracle", "0", "--engines"]
    assert campaign.main([*few, "torch"]) == 1
    said = capsys.readouterr().out
    assert " 0 differ" in said and "never taken: " in said  # equal, but of too little
    monkeypatch.setattr(campaign, "unhit", lambda counts, stock: [])
    assert campaign.main([*few, "torch"]) == 0
    monkeypatch.setitem(campaign.ENGINES, "torch", wrong)
    assert campaign.main([*few, "torch", "--write", str(tmp_path / "c.json")]) == 1
    assert " 3 differ" in capsys.readouterr().out
    written = json.loads((tmp_path / "c.json").read_text())
    assert not written["ok"] and written["engines"]["torch"]["mismatches"] == 3
    assert campaign.main([*few, "nosuch"]) == 1
    assert "nosuch: not in this version" in capsys.readouterr().out


# --- one meaning, other op sets


def neurons_of(case: Case) -> list[tuple[str, Neuron, tuple[int, ...]]]:
    network = network_of(case)
    steps = ((n, network.steps[n]) for n, node in network.graph.nodes.items() if kind_of(node) in BRANCHES)
    return [(n, s, network.input_shape(n)) for n, s in steps if isinstance(s, Neuron)]


DRIVEN = [case for case in CASES if list(case.graph.nodes)[2:] == ["n0"] and neurons_of(case)]


@pytest.mark.parametrize("case", DRIVEN, ids=repr)
def test_traced_step_equals_the_step(case: Case) -> None:
    ((name, step, shape),) = neurons_of(case)
    ops, wanted = NumpyOps(), run(case)
    dag, state = trace(step, ops, shape), step.init(ops, (1, *shape))
    for t in range(case.x.shape[1]):
        z, *state = dag.run(ops, {"x": case.x[:1, t], **{f"state{i}": s for i, s in enumerate(state)}})
        for found, a in ((z, wanted.z), (state[0], wanted.states["v"]), (state[1], wanted.states["u"])):
            np.testing.assert_array_equal(found[0], a[name][0, t])
    assert {"wrap", "saturate", "fire"} <= {line.op for line in dag.lines}


@pytest.mark.parametrize("case", DRIVEN, ids=repr)
def test_bounds_of_integer_neurons_are_zero(case: Case) -> None:
    ((name, step, shape),) = neurons_of(case)
    ops, wanted = BoundedOps("float64"), run(case)
    bound, state = bind(step, ops), bind(step, ops).init(ops, (1, *shape))
    for t in range(case.x.shape[1]):
        z, state = bound.step(ops, bound.drive(ops, ops.exact(case.x[:1, t])), state)
        for found, a in ((z, wanted.z), (state[0], wanted.states["v"]), (state[1], wanted.states["u"])):
            np.testing.assert_array_equal(found.x[0], a[name][0, t])
            assert not np.any(found.e)


def test_bounds_of_integer_connections_are_zero() -> None:
    seen = set()
    for case in CASES:
        network, ops = network_of(case), BoundedOps("float64")
        for name in (n for n in network.recorded if not network.steps[n].neuron and network.sources[n] == ("in",)):
            step, x = network.steps[name], case.x.reshape(-1, *case.x.shape[2:])
            found = bind(step, ops).drive(ops, ops.exact(x))
            np.testing.assert_array_equal(found.x, fold(step, NumpyOps(), x[None])[0])
            assert not np.any(found.e), f"{case} {name}"
            seen.add(type(step).__name__)
    assert seen == {"IntDenseStep", "IntConvStep"}


def test_float32_is_not_enough_for_a_decay() -> None:
    """Else the bounds above would say nothing."""
    case = next(c for c in CASES if c.name == "wrap")
    ((_, step, shape),) = neurons_of(case)
    ops = BoundedOps("float32")
    bound, state = bind(step, ops), bind(step, ops).init(ops, (1, *shape))
    for t in range(case.x.shape[1]):
        _, state = bound.step(ops, ops.exact(case.x[:1, t]), state)
    assert np.any(state[0].e)


# --- files


def declared(case: Case) -> nir.NIRGraph:
    """The graph with its output's shape, which a file has to tell."""
    nodes = {**case.graph.nodes, "out": nir.Output(np.array(network_of(case).shapes["out"]))}
    return nir.NIRGraph(nodes, list(case.graph.edges), metadata=case.graph.metadata, type_check=False)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_write_and_read_keep_the_network(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "g.nir"
    write(declared(case), path)
    back = read(path)
    for name, node in declared(case).nodes.items():
        assert_same_node(node, back.nodes[name], name)
    network = check(back, alphabet=case.alphabet)
    assert network.alphabets == network_of(case).alphabets
    found = base.get("reference")().compile(network).run(case.x, probe=True)
    assert not compared(found, run(case))[1]


def test_integers_stay_integers_on_disk(tmp_path: Path) -> None:
    kinds = set()
    for i, case in enumerate(CASES):
        write(declared(case), tmp_path / f"{i}.nir")
        with h5py.File(tmp_path / f"{i}.nir") as f:
            for name, node in case.graph.nodes.items():
                if kind_of(node) not in BRANCHES:
                    continue
                kinds.add(kind_of(node))
                fields: dict[str, np.dtype] = {}
                group = f["node/nodes"][name]
                group.visititems(lambda k, v, to=fields: to.update({k: v.dtype} if hasattr(v, "dtype") else {}))
                wrong = {k: d for k, d in fields.items() if d.kind not in "iuO"}
                assert not wrong and any(d.kind in "iu" for d in fields.values()), f"{case} {name}: {wrong}"
    assert kinds == set(BRANCHES)


# --- refusals

EYE = [[1, 0], [0, 1]]


def refuse(words: str, *nodes: Any, shape: tuple[int, ...] = (2,), alphabet: Alphabet = BINARY) -> None:
    """check() names the node and says these words, in one line."""
    with pytest.raises(GraphError, match=words) as e:
        check(chain(shape, *nodes), alphabet=alphabet)
    assert "\n" not in str(e.value) and "'n" in str(e.value)


@pytest.mark.parametrize(
    "field,value,words",
    [
        ("weight", [[0.5, 1], [1, 1]], "weight must hold whole numbers, found 0.5"),
        ("weight", [1, 2], "weight must be .outputs, inputs."),
        ("weight", [[1 << 24, 0]], "weight must lie in"),
        ("bias", [0.25, 0], "bias must hold whole numbers, found 0.25"),
        ("bias", [1, 2, 3], "bias has shape"),
        ("bits", 0, r"bits must lie in \[1, 8\], found 0"),
        ("bits", 9, r"bits must lie in \[1, 8\], found 9"),
        ("bits", [8, 8], "bits must be one number"),
        ("weight_exp", 1.5, "weight_exp must hold whole numbers"),
        ("weight_exp", 99, "weight_exp must lie in"),
        ("message_bits", -1, "message_bits must lie in"),
        ("sign_mode", "positive", "sign_mode = 'positive'; valid: mixed, excitatory, inhibitory"),
    ],
)
def test_wrong_fields_of_a_connection_are_refused(field: str, value: Any, words: str) -> None:
    refuse(words, replace(dense(EYE), **{field: value if isinstance(value, str) else np.array(value)}))


@pytest.mark.parametrize(
    "field,value,words",
    [
        ("vth", [0.5, 1], "vth must hold whole numbers, found 0.5"),
        ("vth", [1, 2, 3], "shape"),
        ("vth", [], "vth is empty"),
        ("du", -2, r"du must lie in \[-1, 4095\], found -2"),
        ("du", 4096, r"du must lie in \[-1, 4095\], found 4096"),
        ("dv", -1, r"dv must lie in \[0, 4096\], found -1"),
        ("dv", 4097, r"dv must lie in \[0, 4096\], found 4097"),
        ("dv", [1, 2, 3], "dv has shape"),
        ("bias_mant", 0.5, "bias_mant must hold whole numbers"),
        ("bias_exp", 40, "bias_exp must lie in"),
        ("lower", [10, 0], "lower must lie below vth"),
        ("lower", [11, 0], "lower must lie below vth"),
        ("compare", "eq", "compare = 'eq'; valid: gt, ge"),
        ("reset", "soft", "reset = 'soft'; valid: zero, subtract, none"),
    ],
)
def test_wrong_fields_of_a_neuron_are_refused(field: str, value: Any, words: str) -> None:
    node = replace(neuron((2,)), **{field: value if isinstance(value, str) else np.array(value)})
    refuse(words, node)
    refuse(words if field != "lower" else "lower", IntGatedLIF(node))


def test_two_thresholds_have_no_subtractive_reset() -> None:
    refuse('reset "subtract" has one threshold', neuron((2,), 3, lower=-3, reset="subtract"))


@pytest.mark.parametrize(
    "alphabet,bits,fits",
    [
        (TERNARY, 0, False),
        (interval(0, 2, True), 0, False),
        (BINARY, 0, True),
        (TERNARY, 1, False),
        (TERNARY, 2, True),
        (interval(0, 15, True), 4, True),
        (interval(0, 16, True), 4, False),
        (interval(-8, 7, True), 4, True),
        (interval(-8, 8, True), 4, False),
        (interval(-9, 7, True), 4, False),
    ],
)
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_messages_must_fit_their_bits(alphabet: Alphabet, bits: int, fits: bool, kind: str) -> None:
    node = dense(EYE, message_bits=bits) if kind == "dense" else conv([[[1]], [[2]]], message_bits=bits)
    shape = (2,) if kind == "dense" else (1, 3)
    if fits:
        check(chain(shape, node), alphabet=alphabet)
    else:
        words = "-1 would arrive as .1" if bits == 0 else f"message_bits = {bits} cannot hold"
        refuse(words, node, shape=shape, alphabet=alphabet)


def test_signed_spikes_into_messages_without_bits_are_refused() -> None:
    refuse("-1 would arrive as .1", neuron((2,), 3, lower=-3), dense(EYE))


@pytest.mark.parametrize(
    "node,words",
    [
        (gated((2,), dense(EYE), table=np.zeros(255, np.uint8)), "table of 256 entries, found .255,."),
        (replace(gated((2,), dense(EYE)), table=None), "table of 256 entries"),
        (gated((2,), dense(EYE), table=np.full(256, 256)), r"table must lie in \[0, 255\]"),
        (gated((2,), dense(EYE), feedback_shift=24), "feedback_shift must lie in"),
        (gated((2,), None, dense(EYE, message_bits=12), balance_shift=-1), "balance_shift must lie in"),
        (gated((2,), None, dense(EYE, message_bits=12), balance_bits=1), "balance_bits must lie in"),
        (gated((2,), None, dense(EYE)), "balance gets .*-1 would arrive"),
        (gated((2,), dense(EYE), dense(EYE, message_bits=12)), "feedback gets ternary"),
        (gated((2,), None, dense(EYE, message_bits=11)), "balance gets .*message_bits = 11 cannot hold"),
        (gated((2,), None, dense([[1, 0]], message_bits=12)), "balance maps .* must keep the shape"),
        (
            gated((2,), replace(dense(EYE), weight=np.full((2, 2), 0.5))),
            "feedback weight must hold",
        ),
        (gated((2,), nir.Linear(np.eye(2))), "feedback is a Linear"),
        (gated((2,), lower=-3), "a gated neuron has one threshold"),
    ],
    ids=lambda v: v if isinstance(v, str) else "gate",
)
def test_wrong_gates_are_refused(node: Any, words: str) -> None:
    refuse(words, node)


@pytest.mark.parametrize("bits,fits", [(20, False), (21, True), (40, True)])
def test_sums_of_a_gate_must_fit_its_accumulator(bits: int, fits: bool) -> None:
    """254 * 2047 twice is 1,039,876: more than 2^19 - 1, less than 2^20."""
    node = gated((2,), None, dense([[254, 254], [254, -254]], message_bits=12))
    node = replace(node, accumulator_bits=bits)
    if fits:
        check(chain((2,), node), alphabet=BINARY)
    else:
        refuse(f"balance sums up to .*accumulator_bits = {bits} hold", node)


def test_input_of_an_integer_network_must_be_whole() -> None:
    network = check(chain((2,), neuron((2,))), alphabet=interval(0, 3, True))
    for target in ("reference", "torch"):
        program = base.get(target)().compile(network)
        with pytest.raises(base.TargetError, match=r"takes whole numbers, the input holds 0\.5") as e:
            program.run(np.array([[[1, 2], [0.5, 1]]]))
        assert "\n" not in str(e.value)
        for dtype in (np.int8, np.int64, np.float32, bool):
            assert program.run(np.ones((1, 2, 2), dtype), probe=True).states["v"]["n0"].tolist() == [
                [[64] * 2, [128] * 2]
            ]


def test_undeclared_input_runs_like_the_declared_one() -> None:
    for case in (c for c in CASES if c.name.startswith(("loop", "geometry", "modulo", "signed"))):
        network = check(case.graph, alphabet=REAL)
        found = base.get("reference")().compile(network).run(case.x, probe=True)
        for kind, name, a in run(case).observables():
            np.testing.assert_array_equal(dict(z=found.z, **found.states)[kind][name], a, err_msg=case.name)


@pytest.mark.parametrize("alphabet", [REAL, BINARY], ids=str)
def test_message_of_minus_one_without_bits_is_refused(alphabet: Alphabet) -> None:
    """Lava would read it as +1."""
    graph = chain((2,), dense(EYE), neuron((2,)))
    with pytest.raises((GraphError, base.TargetError)):
        base.get("reference")().compile(check(graph, alphabet=alphabet)).run(-np.ones((1, 2, 2)))


# --- recordings


def one_neuron() -> nir.NIRGraph:
    """u = 10 * 64 * x[t - 1]; v = (v * (4096 - 163) toward zero >> 12) + u; spike above 25 * 64."""
    nodes = {"hop": nir.Delay(np.ones(1)), "w": dense([[10]]), "lif": neuron((1,), 25, dv=163)}
    return connected(nodes, [("in", "hop"), ("hop", "w"), ("w", "lif"), ("lif", "out")], (1,))


@pytest.mark.parametrize("engine,differing", [("lava_cpu_fixed", []), ("lava_loihi_fixed", [461, 511, 711, 761])])
@pytest.mark.parametrize("target", ["reference", "torch"])
def test_recorded_fixed_point_neuron_is_reproduced(
    cases_dir: Path, engine: str, differing: list[int], target: str
) -> None:
    """Lava's fixed point, and a Loihi 2 chip, whose probe reads 128 where the membrane has just been reset."""
    folder = cases_dir / "lif" if (cases_dir / "lif").is_dir() else cases_dir
    x, v, z = np.loadtxt(folder / f"lif_{engine}.csv", delimiter=",").T
    assert len(x) == 1000
    network = check(one_neuron(), alphabet=BINARY)
    found = base.get(target)().compile(network).run(x[None, :, None], probe=True)
    spikes, membrane = found.z["lif"][0, :, 0], found.states["v"]["lif"][0, :, 0]
    np.testing.assert_array_equal(spikes, z)
    assert np.flatnonzero(spikes).tolist() == [461, 511, 711, 761]
    assert np.flatnonzero(membrane != v).tolist() == differing
    assert (v[differing] == 128).all() and (membrane[differing] == 0).all()
