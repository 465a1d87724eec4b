"""The C file: every case compiled, run and held against reference and scalar oracles; its text; its refusals."""

from __future__ import annotations

import re
import runpy
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import campaign
import cases
import circuit_cases
import int_networks as made
import nir
import numpy as np
import pytest

from eiexport import graph as graphs
from eiexport.alphabet import BINARY, REAL, interval
from eiexport.check import ExecutionCheck
from eiexport.errors import GraphError
from eiexport.graph import Network
from eiexport.integers import IntCubaLIF
from eiexport.ops import NumpyOps, Window
from eiexport.steps import Clock
from eiexport.trace import Trace
from eiexport.tracing import Dag, TraceOps
from targets import base
from targets.c import CProgram, build, emit
from targets.c.emit import Source, source
from targets.c.plan import DTYPES

ROOT = Path(__file__).parents[1]
QUICK = ("-std=c99", "-O0", "-ffp-contract=off", *build.STRICT)  # warnings are errors, and soon compiled
FLOATS = [*cases.CASES, *circuit_cases.FLOATS]
WHOLES: list[Any] = [*made.provoking_cases(), *circuit_cases.WHOLE[:70]]
RANDOM = [made.random_network(seed) for seed in range(12)]

Programs = dict[str, CProgram]


def programs(networks: Iterable[tuple[str, Network]], probe: bool) -> Programs:
    """All in one library: a compiler's start costs more than a small network."""
    found = [(name, n, source(n, probe=probe, prefix=f"k{k}_")) for k, (name, n) in enumerate(networks)]
    library = build.Library([s for *_, s in found], QUICK)
    held = {}
    for name, network, text in found:
        held[name] = CProgram(network, text, library)
        held[name]._made = {True: (text, library), False: (text, library)}
    return held


@pytest.fixture(scope="module")
def floats() -> Programs:
    return programs([(str(c), c.network()) for c in FLOATS], probe=False)


@pytest.fixture(scope="module")
def wholes() -> Programs:
    named = [(str(c), c.network()) for c in WHOLES]
    named += [(f"random-{k}", graphs.check(g, alphabet=a)) for k, (g, _, a) in enumerate(RANDOM)]
    return programs([*named, *((f"undeclared-{k}", graphs.check(RANDOM[k][0])) for k in range(6))], probe=True)


def reference(network: Network, x: np.ndarray) -> Trace:
    return base.get("reference")().compile(network).run(x, probe=True)


# --- float networks


@pytest.mark.parametrize("case", FLOATS, ids=str)
def test_floats_are_the_networks_execution(case: cases.Case, floats: Programs) -> None:
    network, found = case.network(), floats[str(case)].run(case.x)
    assert list(found.z) == list(network.recorded)
    for name, z in found.z.items():
        assert z.shape == (*case.x.shape[:2], *network.shapes[name])
        assert z.dtype == (np.int8 if network.alphabets[name].kind in ("binary", "ternary") else np.float32)
    check = ExecutionCheck(network, "float32")
    check.add(case.x, found.z)
    assert sum(r.entries for r in check.results.values()) == sum(z.size for z in found.z.values()) > 0
    assert not any(r.mismatches for r in check.results.values())
    if case.exact:  # sums of dyadic numbers are not rounded, whatever their order
        wanted = circuit_cases.ran(network, case.x, NumpyOps(np.float32))
        for name, z in found.z.items():
            np.testing.assert_array_equal(z, wanted[name])


@pytest.mark.parametrize("case", [c for c in cases.CASES if c.exact][::3], ids=str)
def test_exact_floats_are_what_the_oracle_says(case: cases.Case, floats: Programs) -> None:
    found, wanted = floats[str(case)].run(case.x), cases.expected(case)
    for name, z in found.z.items():
        np.testing.assert_array_equal(z, wanted[name])


def test_registers_of_floats() -> None:
    case = next(c for c in cases.CASES if str(c) == "CubaLIF-hard")
    found, wanted = base.get("c")().compile(case.network()).run(case.x, probe=True), reference(case.network(), case.x)
    assert found.states.keys() == wanted.states.keys() == {"v", "u"}
    for kind, rows in found.states.items():
        np.testing.assert_array_equal(rows["n0"], wanted.states[kind]["n0"])
        assert rows["n0"].dtype == np.float32 and rows["n0"].any()


# --- whole numbers


def input_of(name: str) -> np.ndarray:
    kind, _, number = name.rpartition("-")
    if kind in ("random", "undeclared"):
        return RANDOM[int(number)][1]
    return next(c.x for c in WHOLES if str(c) == name)


NAMES = [*map(str, WHOLES), *(f"random-{k}" for k in range(12)), *(f"undeclared-{k}" for k in range(6))]
REFUSED = [str(c) for c in circuit_cases.WHOLE[:70] if c.x.min() < 0]  # by every engine: Dale's law


@pytest.mark.parametrize("name", NAMES)
def test_whole_numbers_are_equal_to_the_bit(name: str, wholes: Programs) -> None:
    program, x = wholes[name], input_of(name)
    if name in REFUSED:
        with pytest.raises(GraphError, match="Dale's law"):
            program.run(x)
        return
    entries, said = campaign.compared(program.run(x, probe=True), reference(program.network, x))
    assert entries["mismatches"] == 0 and entries["z"] > 0, said


@pytest.mark.parametrize("name", [*map(str, made.provoking_cases()[::2]), *NAMES[-18:-6:3]])
def test_whole_numbers_are_what_the_oracle_says(name: str, wholes: Programs) -> None:
    program, x = wholes[name], input_of(name)
    found, wanted = program.run(x, probe=True), campaign.expected(program.network, x)
    entries, said = campaign.compared(found, wanted)
    assert entries["mismatches"] == 0 and entries["z"] > 0, said


@pytest.mark.parametrize("case", [c for c in circuit_cases.WHOLE[:70] if str(c) not in REFUSED][::4], ids=str)
def test_whole_circuits_are_what_the_oracle_says(case: cases.Case, wholes: Programs) -> None:
    found = {n: z.astype(float) for n, z in wholes[str(case)].run(case.x).z.items()}
    assert circuit_cases.apart(case, found, circuit_cases.expected(case)) == ""


# --- samples, steps, files


@pytest.mark.parametrize("name", ["loop-adding", "EIGatedLIF-conv-feedback-balance-hard", "reset-none-ge", "loop-one"])
def test_a_sample_does_not_depend_on_its_neighbours(name: str, floats: Programs, wholes: Programs) -> None:
    program = {**floats, **wholes}[name]
    x = next(c.x for c in [*FLOATS, *WHOLES] if str(c) == name)
    whole = program.run(x).z
    for k in (len(x) - 1, 0):
        for part, steps in ((x[k : k + 1], x.shape[1]), (x[k : k + 1, :1], 1)):
            alone = program.run(part).z
            assert all(np.array_equal(alone[n], whole[n][k : k + 1, :steps]) for n in whole)
    assert any(z.any() for z in whole.values())


def test_as_a_target(tmp_path: Path) -> None:
    """Compiled as shipped, -O2; the probed one is a file of its own and says the same."""
    target = base.get("c")()
    case = next(c for c in WHOLES if str(c) == "saturation")
    target.check(network := case.network())
    program = target.compile(network)
    plain, probed = program.run(case.x), program.run(case.x, probe=True)
    assert not plain.states and probed.states.keys() == {"v", "u"}
    np.testing.assert_array_equal(plain.z["n0"], probed.z["n0"])
    target.emit(network, tmp_path)
    text = (tmp_path / "model.c").read_text()
    assert text == source(network).text and "n0_u" not in text  # nothing reads u: no memory for it
    assert "n0_u" in source(network, probe=True).text
    assert [p.name for p in tmp_path.iterdir()] == ["model.c"]
    assert re.search(r"gcc|clang|cc", target.version) and "\n" not in target.version
    assert set(target.claims) == set(base.get("reference").claims)


def test_the_text_is_deterministic_and_reads_well() -> None:
    case = next(c for c in cases.CASES if str(c) == "LIF-hard")
    nodes, edges = dict(reversed(case.graph.nodes.items())), case.graph.edges[::-1]
    turned = nir.NIRGraph(nodes, edges, metadata=case.graph.metadata, type_check=False)
    text = source(case.network()).text
    assert text == source(case.network()).text == source(graphs.check(turned)).text
    loop = """    /* n0: LIF 4 */
    for (int32_t i = 0; i < 4; i++) {
        const float v = n0_v[i];
        const float t = v * n0_decay[i] + (in[i] * n0_gain[i] + n0_bias[i]);
        const float s = t > n0_threshold[i] ? 1.0f : 0.0f;
        n0_z[i] = (int8_t)s;
        n0_v[i] = t * (1.0f - s) + s * n0_v_reset[i];
    }
"""
    assert loop in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_layer_is_one_product_and_one_loop() -> None:
    """Spikes of bytes select rows of bytes; no array beside sums, registers and spikes."""
    node = made.neuron((4,), 10, dv=2048)
    text = source(graphs.check(made.chain((3,), made.dense([[2, -4, 6]] * 4), node), alphabet=BINARY)).text
    assert "static const int8_t n0_weight[12]" in text and "if (!in[k]) continue;" in text
    assert re.findall(r"^static (?!const|int\w+ ei_)(\w+ \w+\[\d+\])", text, re.M) == [
        *("int16_t n1_v[4]", "int8_t n1_z[4]"),
        "int32_t n0_sum[4]",
    ]
    assert text.count("for (") == 3


def test_any_name_becomes_an_identifier() -> None:
    names = ["for", "1st", "a-b", "a_b", "*/ int x;", "ü", "model.step", "int8.t", "ei.down", "a.b", "in"]
    nodes: dict[str, Any] = {}
    for k, name in enumerate(names):
        nodes[name] = made.neuron((3,), 3, dv=1000) if k % 2 else made.conv([[[3]]] * 3, groups=3, message_bits=8)
    nodes = {
        n: (made.dense(np.eye(3) * 6, message_bits=8) if not k % 2 else v) for k, (n, v) in enumerate(nodes.items())
    }
    ends = {"x y": nir.Input(np.array([3])), "out put": nir.Output(output_type={"output": None})}
    path = ["x y", *names, "out put"]
    bare = nir.NIRGraph({**ends, **nodes}, list(pairwise(path)), type_check=False)
    network = graphs.check(graphs.stamp(bare, dt=1.0, integrator="euler", dtype="int64"), alphabet=interval(0, 7, True))
    x = np.random.default_rng(0).integers(0, 8, (2, 9, 3)).astype(float)
    (program,) = programs([("", network)], probe=True).values()
    entries, said = campaign.compared(program.run(x, probe=True), reference(network, x))
    assert entries["mismatches"] == 0, said
    assert all(z.any() for z in program.run(x).z.values())


def test_memory_is_static_and_counted(tmp_path: Path) -> None:
    """The object wants nothing of its surroundings but functions of the C library, and gives two functions."""
    for name in ("EIGatedLIF-conv-feedback-balance-hard", "signed-maps", "loop-one"):
        network = next(c.network() for c in [*FLOATS, *WHOLES] if str(c) == name)
        text = source(network)
        (tmp_path / "model.c").write_text(text.text)
        compile_ = [*build.compiler(), *build.FLAGS, *build.STRICT, "-c", str(tmp_path / "model.c")]
        build.run([*compile_, "-o", str(tmp_path / "model.o")])
        rows = subprocess.run(["nm", "-S", tmp_path / "model.o"], capture_output=True, text=True, check=True).stdout
        wanted = {r.split()[-1] for r in rows.splitlines() if " U " in r} - {"_GLOBAL_OFFSET_TABLE_"}
        assert wanted <= {"memset", "memcpy", "expf", "frexpf", "ldexpf", "floor", "frexp", "ldexp"}
        assert {r.split()[-1] for r in rows.splitlines() if " T " in r} == {"model_reset", "model_step"}
        sizes = [(r.split()[2], int(r.split()[1], 16)) for r in rows.splitlines() if len(r.split()) == 4]
        assert sum(n for kind, n in sizes if kind == "b") == text.memory["state"] + text.memory["work"] > 0
        assert text.memory["constants"] > 0 and f"constants {text.memory['constants']:,} bytes" in text.text


def test_sums_share_memory() -> None:
    """Four layers of convolutions take the two largest sums, not all of them."""
    layers = [cases.Numbers(0, True).conv(4, 4, (3, 3), padding=1) for _ in range(4)]
    text = source(graphs.check(cases.chain((4, 5, 5), *layers)))
    assert text.memory["work"] == 2 * 4 * 25 * 4


SANITIZED = ("-std=c99", "-O0", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Undefined behaviour and stray accesses end the program; it writes what the reference sends."""
    held: list[tuple[Source, Network, np.ndarray]] = []
    names = ["wrap", "saturation", "modulo", "exponent-conv", "geometry", "gated-conv-feedback-balance", "loop-one"]
    names += ["signed-maps", "table-14", "exact-6", "EIGatedLIF-conv-feedback-balance-hard", "Conv2d-all-spikes"]
    chosen = {str(c): (c.network(), c.x) for c in [*FLOATS, *WHOLES] if str(c) in names}
    assert len(chosen) == len(names)
    for k in range(12, 16):
        graph, x, alphabet = made.random_network(k)
        chosen[f"random-{k}"] = (graphs.check(graph, alphabet=alphabet), x)
    main, lines = [], ["#include <stdio.h>"]
    for k, (network, x) in enumerate(chosen.values()):
        s = source(network, prefix=f"k{k}_")
        held.append((s, network, x))
        (tmp_path / f"k{k}.c").write_text(s.text)
        lines.append(f'#include "k{k}.c"')
        outs = "".join(f" static {r.kind} r{k}_{j}[{r.size}];" for j, r in enumerate(s.results.values()))
        call = ", ".join([f"x{k}", *(f"r{k}_{j}" for j in range(len(s.results)))])
        writes = "".join(f" fwrite(r{k}_{j}, sizeof r{k}_{j}, 1, stdout);" for j in range(len(s.results)))
        main.append(f"  {{ static {s.given.kind} x{k}[{s.given.size}];{outs} {s.name}_reset();")
        main.append(f"    for (int t = 0; t < {x.shape[1]}; t++) {{ if (!fread(x{k}, sizeof x{k}, 1, stdin)) return 1;")
        main.append(f"      {s.name}_step({call});{writes} }} }}")
    (tmp_path / "all.c").write_text("\n".join([*lines, "int main(void) {", *main, "  return 0; }"]))
    try:
        build.run([*build.compiler(), *SANITIZED, str(tmp_path / "all.c"), "-o", str(tmp_path / "all"), "-lm"])
    except base.EngineUnavailable as e:
        pytest.skip(f"this compiler has no sanitizers: {e}")
    given = b"".join(x[0].astype(DTYPES[s.given.kind]).tobytes() for s, _, x in held)
    done = subprocess.run([tmp_path / "all"], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[:2000]
    at = 0
    for s, network, x in held:
        wanted = base.get("reference" if network.integer else "torch32")().compile(network).run(x[:1]).z
        for t in range(x.shape[1]):
            for n, r in s.results.items():
                z = np.frombuffer(done.stdout, DTYPES[r.kind], r.size, at)
                at += z.nbytes
                np.testing.assert_array_equal(z, wanted[n][0, t].reshape(-1))
    assert at == len(done.stdout)


# --- every op by itself

X = np.array([-2000, -129, -128, -65, -64, -63, -2, -1, 0, 1, 2, 63, 64, 127, 128, 2000], np.float64)


def every_op(ops: TraceOps, x: Any, table: Any, integer: bool) -> dict[str, Any]:
    size = ops.add(ops.relu(x), 3.0)
    map_ = ops.reshape(x, (1, 4, 4))
    made = {
        "add": ops.add(x, 7.0), "less": ops.add(x, -7.0), "sub": ops.sub(5.0, x), "mul": ops.mul(x, x),
        "relu": ops.relu(x), "fill": ops.fill(x, 9.0), "octave": ops.octave(size, 1.0), "sign": ops.sign(x),
        "round": ops.octave(size, 0.70710678), "gt": ops.fire(x, 64.0, "gt"), "ge": ops.fire(x, 64.0, "ge"),
        "down": ops.shift_floor(x, 6), "up": ops.shift_floor(x, -6), "zero": ops.shift_zero(x, 6),
        "wrap": ops.wrap(x, 8), "modulo": ops.modulo(x, 8), "clip": ops.saturate(x, -64, 63),
        "table": ops.table(ops.add(ops.saturate(ops.shift_floor(x, 3), -8, 7), 8.0), table),
        "quotient": ops.quotient(x, size),
        "share": ops.shift_floor(ops.mul(ops.div(x, size), 64.0), 1),
        "pool": ops.pool(map_, (2, 3), Window((2, 1), (1, 1), (1, 1))),
        "most": ops.max_pool(map_, (3, 2), Window((1, 2), (1, 1), (1, 1))),
    }  # fmt: skip
    if not integer:
        made |= {"gate": ops.gate(x), "least": ops.fill(ops.relu(x), ops.least(ops.relu(x))), "div": ops.div(x, size)}
    return made


def alone(lines: Callable[[TraceOps, Any], dict[str, Any]], integer: bool, reach: float) -> tuple[Any, Any]:
    """(a network whose step is these lines, the lines)."""
    ops = TraceOps(NumpyOps())
    found = lines(ops, ops.input("in", X.shape))
    dag = Dag(tuple(ops.lines), tuple(found.values()), tuple(f"n.{k}" for k in found)).pruned()
    alphabet = interval(-reach, reach, True) if integer else REAL
    shapes = {"in": X.shape, **{f"n.{k}": s.shape[1:] for k, s in found.items()}}
    fields: dict[str, Any] = {"integer": integer, "input": "in", "alphabets": dict.fromkeys(shapes, alphabet)}
    graph = SimpleNamespace(nodes={})
    return SimpleNamespace(**fields, shapes=shapes, outputs=(), sources={}, graph=graph, clock=Clock(1.0, "euler")), dag


def computed(lines: Any, integer: bool, reach: float, x: np.ndarray, monkeypatch: Any) -> tuple[Any, Any]:
    """By op: (what C computed, what NumPy does)."""
    network, dag = alone(lines, integer, reach)
    monkeypatch.setattr(emit, "stream", lambda _: dag)
    text = source(network, prefix="k_")
    held = build.Library([text], QUICK).run(text, x[None, None])
    ops = NumpyOps(np.float64 if integer else np.float32)
    wanted = dag.run(ops, {"in": x[None].astype(ops.dtype)})
    return {n: held[s.name][0, 0] for n, s in text.outputs.items()}, {
        n: np.ravel(a) for n, a in zip(dag.names, wanted, strict=True)
    }


@pytest.mark.parametrize("integer", [True, False], ids=["whole", "float"])
def test_every_op(integer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(0).integers(-999, 999, 16).astype(float)
    lines = lambda ops, x: every_op(ops, x, ops.const(table), integer)  # noqa: E731
    found, wanted = computed(lines, integer, 2000, X, monkeypatch)
    assert len(found) == (22 if integer else 25)
    for name, a in found.items():
        assert a.shape == wanted[name].shape, name
        if name == "n.gate":
            np.testing.assert_allclose(a, wanted[name], rtol=3e-7, atol=0)
            continue
        np.testing.assert_array_equal(a, wanted[name], name)
        assert a.any() and (a.dtype.kind == "f") <= (not integer), name


def test_whole_numbers_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same forms in int64_t, where values or steps between them need it."""

    def lines(ops: TraceOps, x: Any) -> dict[str, Any]:
        wide = ops.mul(x, 4000001.0)
        size = ops.add(ops.mul(ops.relu(x), 1000003.0), 3.0)
        return {
            "add": ops.add(wide, x), "sub": ops.sub(x, wide), "mul": ops.mul(wide, x), "relu": ops.relu(wide),
            "gt": ops.fire(wide, ops.mul(x, 4000000.0), "gt"), "sign": ops.sign(wide), "down": ops.shift_floor(wide, 9),
            "zero": ops.shift_zero(ops.mul(wide, 4095.0), 30), "wrap": ops.wrap(wide, 24), "fill": ops.fill(wide, 5.0),
            "modulo": ops.modulo(wide, 24), "clip": ops.saturate(wide, -(1 << 33), 1 << 20),
            "quotient": ops.quotient(wide, size),
        }  # fmt: skip

    found, wanted = computed(lines, True, 2000, X, monkeypatch)
    assert len(found) == 13 and {a.dtype for a in found.values()} >= {np.dtype(np.int64), np.dtype(np.int32)}
    for name, a in found.items():
        np.testing.assert_array_equal(a, wanted[name], name)
        assert a.any()


# --- mutants of the text

LIF, HARD = "LIF-hard", "EIDiscreteLIF-gt-zero-hard"
GATED, LOOP, TABLE = "EIGatedLIF-conv-feedback-balance-hard", "loop-adding", "table-14"
MUTANTS = {
    ">= for >": (LIF, "> n0_threshold", ">= n0_threshold"),
    "no reset": (HARD, "t * (1.0f - s)", "t"),
    "leak lost": (HARD, "v * n0_decay[i]", "v"),
    "state kept between samples": (HARD, "memset(n0_v, 0, sizeof n0_v);", ""),
    "kernel turned around": (GATED, "y + 1 - ky", "y - 1 + ky"),
    "padding not cut off": (GATED, "if (ox < 0 || ox >= 2) continue;", "if (ox < 0 || ox > 2) continue;"),
    "sums not cleared": (GATED, "n0_sum[p * 2 + o] = n0_feedback_bias[o]", "n0_sum[p * 2 + o] += n0_feedback_bias[o]"),
    "sign of the balance lost": (GATED, "(n0_sum_2[p * 2 + c] > 0.0f) -", "(n0_sum_2[p * 2 + c] > 0.0f) +"),
    "channels for places": (GATED, "n0_sum[p * 2 + c]", "n0_sum[i]"),
    "one step late": (LOOP, "memcpy(a0_past1, cell_z, sizeof a0_past1);", ""),
    "past overwritten first": (
        LOOP,
        "memcpy(a1_past2, a1_past1, sizeof a1_past2);\n    memcpy(a1_past1, a0_past1, sizeof a1_past1);",
        "memcpy(a1_past1, a0_past1, sizeof a1_past1);\n    memcpy(a1_past2, a1_past1, sizeof a1_past2);",
    ),
    "floor for toward zero": ("decay-fast-and-slow", "/ 4096", ">> 12"),
    "toward zero for floor": ("exponent-mixed", "~(~x >> bits)", "-(-x >> bits)"),
    "turned one too late": ("wrap", "x <= -top", "x < -top"),
    "not turned": ("modulo", "return turned - top;", "return x;"),
    "not saturated": ("saturation", "x > hi ? hi : ", ""),
    "quotient toward zero": (TABLE, "a / b - (a % b < 0)", "a / b"),
    "next octave": (TABLE, "exponent - 1", "exponent"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_text_is_caught(name: str) -> None:
    which, old, new = MUTANTS[name]
    case = next(c for c in [*FLOATS, *WHOLES] if str(c) == which)
    network = case.network()
    text = source(network, probe=True)
    assert old in text.text
    wrong = replace(text, text=text.text.replace(old, new))
    program = CProgram(network, wrong, build.Library([wrong], ("-std=c99", "-O0")))
    program._made[True] = program._made[False]
    found = program.run(case.x, probe=True)
    if network.integer:
        entries, _ = campaign.compared(found, reference(network, case.x))
        assert entries["mismatches"] > 0 < entries["z"]
    else:
        check = ExecutionCheck(network, "float32")
        check.add(case.x, found.z)
        assert any(r.mismatches for r in check.results.values())


# --- refusals


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = cases.CASES[0].network()
    target: Any = base.get("c")()
    monkeypatch.setenv("CC", "no-such-compiler -x")
    with pytest.raises(base.EngineUnavailable, match="CC names 'no-such-compiler -x', which is no program"):
        target.compile(network)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    for act in (lambda: target.compile(network), lambda: target.version):
        with pytest.raises(base.EngineUnavailable, match="needs a C compiler: install gcc or clang") as e:
            act()
        assert "\n" not in str(e.value)
    target.check(network)  # which asks nothing of a compiler, and neither does the file
    target.emit(network, tmp_path)
    assert (tmp_path / "model.c").is_file()


def test_a_compilers_error_is_told_in_one_line() -> None:
    text = source(cases.CASES[0].network())
    with pytest.raises(base.EngineUnavailable, match=r"failed \(1\): .*error") as e:
        build.Library([replace(text, text=text.text.replace("void", "vood"))])
    assert "\n" not in str(e.value)


def test_limits_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    target = base.get("c")()
    half = nir.Scale(np.full(3, 0.5))
    cell = made.neuron((3,), 2)
    with pytest.raises(base.Unsupported, match="rule whole_values: node 'n0' holds fractions in an integer network"):
        target.check(graphs.check(made.side_by_side((3,), {"n0": half, "n1": cell}), alphabet=BINARY))
    with pytest.raises(base.Unsupported, match="rule whole_sums: node 'n1': linear of fractions in an integer network"):
        dense = made.dense(2 * np.eye(3), message_bits=8)
        target.check(graphs.check(made.chain((3,), half, dense, cell), alphabet=BINARY))
    scales = [nir.Scale(np.full(3, 2.0**30)) for _ in range(3)]
    with pytest.raises(base.Unsupported, match=r"rule int64: node 'n1': mul reaches .* limit 2\^62.*; declare what"):
        target.check(graphs.check(made.chain((3,), *scales, cell)))
    monkeypatch.setattr(emit, "MOST", 10)
    with pytest.raises(base.Unsupported, match="rule file_size: 16 constants, limit 10"):
        target.check(
            cases.CASES[0].network() if False else graphs.check(cases.chain((4,), nir.Linear(np.ones((4, 4)))))
        )


def test_input_and_steps_beyond_what_was_proven_are_refused() -> None:
    fast = IntCubaLIF(np.full(3, 9, np.int32), *(np.array(v, np.int32) for v in (-1, 0, 0, 0)))
    network = graphs.check(made.chain((3,), fast))
    program = CProgram(network, source(network), SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(base.TargetError, match=r"made for input in \[-32768, 32767\], it holds \[0, 40000\]"):
        program.run(np.array([[[0.0, 1, 40000]]]))
    network = graphs.check(made.chain((3,), fast), alphabet=interval(-(2**24), 2**24, True))
    text = source(network)
    assert text.steps is not None and 10_000 < text.steps < 20_000 and f"limit       {text.steps:,} steps" in text.text
    program = CProgram(network, replace(text, steps=3), SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(base.TargetError, match="may overflow after 3 steps, the input has 4"):
        program.run(np.zeros((1, 4, 3)))


def test_the_example_agrees(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert runpy.run_path(str(ROOT / "examples/c_network.py"))["main"](["--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "99 output spikes of the reference, 99 of the C program: equal" in said
    assert {p.name for p in tmp_path.iterdir()} == {"model", "model.c"}
