"""The C file of networks with odd names, long delays and numbers beyond float32; compilers that do not start."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import campaign
import cases
import circuit_cases
import int_networks as made
import nir
import numpy as np
import pytest

from eiexport.alphabet import BINARY, REAL
from eiexport.check import ExecutionCheck
from eiexport.graph import Network, check, stamp
from eiexport.nodes import EIMaxPool2d
from targets import base
from targets.c import CProgram, build
from targets.c.emit import HELPERS, Source, source
from targets.c.plan import Names, Store, _ordered

STRICT = ("-std=c99", "-O0", "-ffp-contract=off", "-Wshadow", *build.STRICT)

WORDS = [
    *"a c e g i k m o p s t u v w x y to oy ox ky kx t2 v2 s3 past1 past12".split(),
    *"bits top lo hi b low exponent turned n0 value".split(),
    *"memcpy memset exp expf fabs fabsf floor floorf trunc truncf frexp frexpf ldexp ldexpf INFINITY NULL".split(),
    *"INT8_MIN INT32_MIN INT64_MAX EI_MAIN math_h y0 y1 j0 gamma index signgam errno stdin stdout fread fwrite".split(),
    *"auto break const double float for if inline int long register restrict static void volatile _Bool main".split(),
    *"int8_t int32_t int64_t uint32_t uint64_t size_t wchar_t given result0 result1 work0 work1 in input".split(),
    *"model_reset model_step model_run model samples sample steps step in_x out_x x_z x_v n_x n0_v".split(),
    *"é é.v 日本 _ __ 1 0x".split(),
    *(f"ei_{h}{s}" for h in HELPERS for s in ("", "_64", "_real")),
]


def named(
    names: tuple[str, ...], shape: tuple[int, ...], nodes: dict[str, Any], beside: dict[str, Any], kind: str
) -> Network:
    """A chain and another one beside it; names: of input, connection, neuron and output, where the first starts."""
    start, connection, neuron, end = names
    inner = {connection: nodes.pop("connection"), neuron: nodes.pop("neuron"), **nodes}
    ends = {n: nir.Output(output_type={"output": None}) for n in (end, "a.end", "an.end")}
    edges = [*pairwise([start, *inner, end]), *pairwise([start, *beside, "a.end"]), (neuron, "an.end")]
    graph = nir.NIRGraph({start: nir.Input(np.array(shape)), **inner, **beside, **ends}, edges, type_check=False)
    alphabet = BINARY if kind == "int64" else REAL
    return check(stamp(graph, dt=1.0, integrator="euler", dtype=kind), alphabet=alphabet)


def floats(names: tuple[str, ...]) -> Network:
    """Loops over channels, places, windows and rows, also of the input; states of one step and of two; a gate."""
    n = cases.Numbers(1, True)
    nodes = {
        "connection": n.conv(2, 2, (3, 3), padding=1),
        "neuron": n.discrete((2, 5, 4)),
        "a.maximum": EIMaxPool2d(*np.array([[3, 2], [2, 2], [1, 0]])),
        "a.row": n.affine(2, 3),
        "a.delay": nir.Delay(np.full((2, 3, 3), 2.0)),
        "a.sum": nir.SumPool2d(*np.array([[2, 2], [1, 1], [0, 0]])),
        "a.flat": nir.Flatten({"input": np.array([2, 2, 2])}, 0, -1),
        "a.matrix": n.affine(8, 4),
        "a.gated": n.gated((4,), True, True),
    }
    return named(names, (2, 5, 4), nodes, {"a.line": n.affine(4, 3), "a.cell": n.discrete((2, 5, 3))}, "float64")


def wholes(names: tuple[str, ...]) -> Network:
    """Registers v and u, shifts and wrapped messages."""
    nodes = {
        "connection": made.dense([[40, -30, 8], [22, 6, -4], [-8, 64, 90]], weight_exp=-1, message_bits=8),
        "neuron": made.neuron((3,), 1, du=1000, dv=300),
        "a.matrix": made.dense(np.eye(3) * 60, message_bits=8),
        "a.neuron": made.neuron((3,), 2, dv=2048),
    }
    return named(names, (3,), nodes, {"a.line": made.dense(np.eye(3) * 8), "a.cell": made.neuron((3,), 9)}, "int64")


FORMS: dict[str, tuple[Callable[[tuple[str, ...]], Network], tuple[int, ...]]] = {
    "floats": (floats, (2, 5, 4)),
    "wholes": (wholes, (3,)),
}


def quadruples() -> list[tuple[str, ...]]:
    """Each word once in each role."""
    found = [(WORDS[k], *(WORDS[(k + j) % len(WORDS)] for j in (1, 2, 3))) for k in range(len(WORDS))]
    assert len(set(WORDS)) == len(WORDS)
    return found


def compiled(sources: list[Source], folder: Path) -> build.Library:
    """A file for each, so that names need no prefix."""
    for s in sources:
        (folder / f"{s.name}.c").write_text(s.text + build.driver(s))
    build.run([*build.compiler(), *STRICT, "-shared", "-fPIC", *(str(folder / f"{s.name}.c") for s in sources)]
              + ["-o", str(folder / "all.so"), "-lm"])  # fmt: skip
    library = object.__new__(build.Library)
    library._library = ctypes.CDLL(str(folder / "all.so"))
    return library


@pytest.mark.parametrize("form", FORMS)
def test_any_word_names_an_input_a_connection_a_neuron_and_an_output(form: str, tmp_path: Path) -> None:
    """Compiled without warnings, of shadows either, and what it was with plain names."""
    make, shape = FORMS[form]
    words = quadruples()[:: 1 if form == "floats" else 2]  # time: what is written of whole numbers is much the same
    networks = [make(names) for names in [*words, ("given one", "given two", "given three", "given four")]]
    integer = networks[0].integer
    sources = [source(n, f"k{k}", probe=integer) for k, n in enumerate(networks)]
    library = compiled(sources, tmp_path)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (2, 12, *shape)).astype(float) if integer else cases.hard(shape, 3)
    first: list[np.ndarray] = []
    for network, text in zip(networks, sources, strict=True):
        program = CProgram(network, text, library)
        program._made[True] = program._made[False]
        found = program.run(x, probe=integer)
        if integer:
            entries, said = campaign.compared(found, base.get("reference")().compile(network).run(x, probe=True))
            assert entries["mismatches"] == 0 < min(entries["z"], entries["u"]), said
        else:
            proof = ExecutionCheck(network, "float32")
            proof.add(x, found.z)
            assert not any(r.mismatches for r in proof.results.values()), list(network.graph.nodes)
        ends = [found.z[n] for o in network.outputs for n in network.sources[o]]
        assert len(ends) == 3 and all(z.any() for z in ends)
        first = first or sorted(ends, key=_key)
        assert all(np.array_equal(a, b) for a, b in zip(sorted(ends, key=_key), first, strict=True))


def _key(a: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return a.shape, a.tobytes()


def words_of(text: str) -> set[str]:
    bare = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    return set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", bare))


def test_every_word_of_the_writer_is_kept_from_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no name of a node became (locals, helpers, the C library, the driver) none can become."""
    given: set[str] = set()
    make = Names.make

    def record(self: Names, wanted: str) -> str:
        given.add(name := make(self, wanted))
        return name

    monkeypatch.setattr(Names, "make", record)
    held: list[Any] = [*cases.CASES, *circuit_cases.FLOATS, *made.provoking_cases(), *circuit_cases.WHOLE[:70]]
    networks = [c.network() for c in held]
    networks += [check(g, alphabet=a) for g, _, a in (made.random_network(k) for k in range(12))]
    networks += [make_(("the input", "one", "two", "the end")) for make_, _ in FORMS.values()]
    others: set[str] = set()
    for network in networks:
        given.clear()
        made_ = source(network, probe=True)
        others |= words_of(made_.text + build.driver(made_)) - given
    monkeypatch.undo()
    assert {"to", "v", "u", "past1", "x", "t2", "oy", "memcpy", "INFINITY", "INT8_MIN", "int32_t", "ei_down"} <= others
    assert {"model_step", "model_run", "result0", "given", "samples", "exponent", "ei_octave_real", "floor"} <= others
    taken = ("model_reset", "model_step", "model_run")
    for word in others - {"_Bool"}:
        assert Names("", taken).make(word) != word, word


def test_names_of_arrays() -> None:
    names = Names("", ("model_step",))
    wanted = [
        "in",
        "in.x",
        "in.x",
        "n0.v",
        "é.v",
        "日本",
        "_",
        "x",
        "1",
        "1.v",
        "work0",
        "ei.wrap",
        "INT8.MIN",
        "int8.t",
    ]
    assert [names.make(n) for n in wanted] == [
        *("in", "in_x", "in_x_2", "n0_v", "n_v", "n_n", "n_n_2", "n_x", "n_n1", "n1_v", "work0"),
        *("n_ei_wrap", "n_INT8_MIN", "n_int8_t"),
    ]
    assert names.make("model.step") == "model_step_2"


@pytest.mark.parametrize("name", ["last.v", "last.past1"])
def test_a_node_that_is_called_as_a_state_is_refused(name: str) -> None:
    first = cases.integrate((2,)) if name == "last.v" else nir.Delay(np.ones(2))
    graph = cases.connected(
        {"last": first, name: cases.integrate((2,))}, [*pairwise(["in", "last", name, "out"])], (2,)
    )
    target = base.get("c")()
    for act in (target.check, target.compile):
        with pytest.raises(base.Unsupported, match=f"node '{name}' is called as a state of 'last' is; rename it"):
            act(check(graph))


# --- compilers


@pytest.mark.parametrize("asked", ['"gcc', "{}/interpreter", "{}/format", "{}/format -m32"])
def test_a_compiler_that_cannot_be_started_is_one_line(
    asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "interpreter").write_text("#!/no/such/interpreter\n")
    (tmp_path / "format").write_bytes(b"\x7fELF and nothing more")
    for name in ("interpreter", "format"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("CC", asked.format(tmp_path))
    target, network = base.get("c")(), cases.CASES[0].network()
    for act in (lambda: target.version, lambda: target.compile(network)):
        said = "no command.*No closing quotation" if asked == '"gcc' else "cannot be started.*; correct CC or unset it"
        with pytest.raises(base.EngineUnavailable, match=said) as e:
            act()
        assert "\n" not in str(e.value)


def test_no_folder_to_compile_in_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(base.EngineUnavailable, match=r"no folder to compile in \(.*No such file.*\); set TMPDIR") as e:
        base.get("c")().compile(cases.CASES[0].network())
    assert "\n" not in str(e.value)


# --- long delays


def test_a_delay_of_4000_steps() -> None:
    """A register a step, each copied before it is overwritten; what each holds is found by 4000 turns."""
    text = source(check(cases.chain((2,), cases.integrate((2,)), nir.Delay(np.full(2, 4000.0)))))
    copies = re.findall(r"memcpy\((n1_past\d+), (\w+), ", text.text)
    assert [to for to, _ in copies] == [f"n1_past{k}" for k in range(4000, 0, -1)]
    assert [came for _, came in copies] == [*(f"n1_past{k}" for k in range(3999, 0, -1)), "n0_z"]
    assert {s.kind for n, s in text.states.items() if n != "n0.v"} == {"int8_t"} and len(text.states) == 4001


def test_a_delay_that_nothing_reads_takes_no_memory() -> None:
    nodes = {"a": nir.Delay(np.full(2, 3000.0)), "b": cases.integrate((2,))}
    network = check(cases.connected(nodes, [("in", "a"), ("in", "b"), ("b", "out")], (2,)))
    assert list(source(network).states) == ["b.v"] and len(source(network, probe=True).states) == 3001


def test_copies_are_made_in_an_order_that_loses_nothing() -> None:
    def order(*pairs: tuple[str, str]) -> list[str]:
        arrays = sorted({n for pair in pairs for n in pair})
        stores = {k: [Store(n, "float", 1)] for k, n in enumerate(arrays)}
        found = _ordered([(Store(to, "float", 1), arrays.index(came)) for to, came in pairs], stores)
        return ["".join((to.name, arrays[r])) for to, r in found]

    assert order(("b", "a"), ("c", "b"), ("d", "c")) == ["dc", "cb", "ba"]
    assert order(("b", "a"), ("c", "b"), ("d", "b")) == ["cb", "db", "ba"]  # two readers
    assert order(("a", "a"), ("c", "d"), ("b", "a")) == ["aa", "cd", "ba"]  # itself
    with pytest.raises(ValueError, match="states that take each other's place: a, b"):
        order(("a", "b"), ("b", "a"), ("c", "d"))


# --- numbers


@pytest.mark.parametrize(
    ("dt", "shown"), [(1.0, "1"), (1e-3, "0.001"), (0.1 + 0.2, "0.30000000000000004"), (1 / 3, "")]
)
def test_the_header_tells_dt_to_the_bit(dt: float, shown: str) -> None:
    text = source(check(cases.chain((2,), cases.integrate((2,)), clock=(dt, "euler")))).text
    (found,) = re.findall(r"dt = (\S+), integrator euler", text)
    assert float(found) == dt and (found == shown or not shown)


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32_are_refused() -> None:
    most = float(np.finfo(np.float32).max)
    program = base.get("c")().compile(check(cases.chain((2,), cases.integrate((2,)))))
    assert program.run(np.array([[[most, -most]]])).z["n0"].tolist() == [[[1, 0]]]
    for x in (1e300, -1e300, np.nextafter(most, np.inf)):
        with pytest.raises(
            base.TargetError, match=r"float32, which holds no more than 3.4e\+38; the input reaches"
        ) as e:
            program.run(np.array([[[0.0, x]]]))
        assert "\n" not in str(e.value)
    heavy = check(cases.chain((2,), nir.Linear(np.array([[1.0, -1e300]])), cases.integrate((1,))))
    with pytest.raises(base.Unsupported, match=r"rule float32: n0.weight reaches 1e\+300, limit 3.4e\+38; scale it"):
        base.get("c")().check(heavy)
