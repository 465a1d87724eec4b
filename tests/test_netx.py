"""Network files for lava-dl: loaded by the real `lava.lib.dl.netx` and run, against the reference; and refusals."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from cases import Case, chain, connected, full
from test_lava import change, one_line
from test_lava_fixed import REFERENCE, Integers, compared, different, neuron

from eiexport import graph as graphs
from eiexport.alphabet import BINARY, TERNARY, Alphabet, interval
from eiexport.integers import IntDense, IntGatedLIF
from eiexport.nodes import lif as float_lif
from eiexport.ops import Ints
from eiexport.trace import Trace
from targets import base, lavadl
from targets.lava import env
from targets.lava.supervise import run_worker

DL = lavadl.LavaDL()
ROOT = Path(__file__).parents[1]
FLAT = nir.Flatten({"input": np.array((1, 1, 1))}, 0, -1)


def looped(n: Integers, cell: Any, delay_first: bool, **fields: Any) -> dict[str, Any]:
    """Nodes and edges of input -> w -> cell, which feeds itself through a delay and an IntDense."""
    nodes = {"w": n.dense(4, 5, span=(-90, 90)), "cell": cell, "z": nir.Delay(full(4, 1.0))}
    nodes["back"] = n.dense(4, 4, span=(-60, 60), **fields)
    path = ["cell", "z", "back", "cell"] if delay_first else ["cell", "back", "z", "cell"]
    edges = [("in", "w"), ("w", "cell"), *pairwise(path)]
    return {"nodes": nodes, "edges": edges}


def cases() -> list[Case]:
    n = Integers(70)
    found: list[Case] = []

    def add(name: str, graph: nir.NIRGraph, shape: Ints, alphabet: Alphabet = BINARY, **fields: Any) -> None:
        x = n.spikes(shape, int(alphabet.lo), int(alphabet.hi), **fields)
        found.append(Case(name, graph, x, alphabet, True, name))

    def row(*layers: Any) -> nir.NIRGraph:
        return chain((5,), *layers)

    # matrices that netx holds: of one sign or of both, even and odd, up to the ends of their ranges, with exponents
    spans = {"mixed": (-128, 127), "excitatory": (1, 255), "inhibitory": (-255, -1)}
    for mode, span in spans.items():
        first = n.dense(4, 5, bits=8, sign_mode=mode, span=span)
        cell = neuron(4, vth=-400 if mode == "inhibitory" else 300, dv=77)
        add(f"{mode} weights", row(first, cell, n.dense(3, 4, bits=4), neuron(3, vth=99)), (5,))
    scaled = [
        n.dense(4, 5, span=(-31, 31), weight_exp=2),
        neuron(4),
        n.dense(3, 4, bits=5, weight_exp=-3),
        neuron(3, vth=9),
    ]
    add("exponents", row(*scaled), (5,))
    each = [n.dense(4, 5, span=(-31, 31), weight_exp=np.array([2, 0, -1, 1])), neuron(4, vth=60)]
    add("exponents of outputs", row(*each), (5,))
    add("small weights", row(n.dense(4, 5, span=(-2, 2), sign_mode="mixed"), neuron(4, vth=3)), (5,))
    add("one step", row(n.dense(4, 5), neuron(4), n.dense(3, 4), neuron(3, bias_mant=200)), (5,), steps=1)

    memory = neuron(4, du=700, dv=4096, vth=200, bias_mant=np.array([3, -5, 70, 0]))
    tail = [
        n.dense(3, 4, bias=60),
        neuron(3, dv=819, bias_mant=4, bias_exp=8),
        n.dense(3, 3),
        neuron(3, du=-1, vth=900),
    ]
    add("biases", row(n.dense(4, 5), memory, *tail), (5,))
    graded = [n.dense(4, 5, message_bits=7, span=(-9, 9)), neuron(4, vth=250), n.dense(3, 4), neuron(3)]
    add("graded input", row(*graded), (5,), interval(-30, 40, True))

    kernels = [n.conv(4, 2, (3, 2), stride=(2, 1), padding=(1, 0), bias=40), neuron((4, 3, 3), dv=50)]
    kernels += [n.conv(4, 4, (2, 3), padding=(0, 2), groups=2, span=(-200, 300)), neuron((4, 2, 5), vth=200)]
    kernels += [
        n.conv(2, 4, (1, 2), dilation=(1, 3), weight_exp=1),
        neuron((2, 2, 2), bias_mant=n.draw((2, 2, 2), -9, 40)),
    ]
    add("convolutions", chain((2, 5, 4), *kernels), (2, 5, 4))
    mixed = [*kernels[:2], FLAT, n.dense(5, 36, bits=6), neuron(5, vth=300), n.dense(3, 5), neuron(3)]
    add("convolution, flatten, dense", chain((2, 5, 4), *mixed), (2, 5, 4))
    add("flatten first", chain((2, 3, 4), FLAT, n.dense(4, 24), neuron(4, vth=300)), (2, 3, 4))
    for name, first, cell, fields in (
        ("loop", True, neuron(4, vth=99, dv=99), {"bias": 30}),
        ("loop with memory", True, neuron(4, du=1200), {}),
        ("loop the other way round", False, neuron(4, vth=99), {}),
    ):
        parts = looped(n, cell, first, **fields)
        parts["nodes"] |= {"w2": n.dense(3, 4), "out2": neuron(3)}
        edges = [*parts["edges"], ("cell", "w2"), ("w2", "out2"), ("out2", "out")]
        add(name, connected(parts["nodes"], edges, (5,)), (5,))
    return found


CASES = {c.name: c for c in cases()}


def pack(names: list[str]) -> dict[str, Trace]:
    chosen = [CASES[n] for n in names]
    return dict(zip(names, DL.run_many([(c.network(), c.x) for c in chosen], probe=True), strict=True))


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return pack(list(CASES))


@pytest.mark.parametrize("name", CASES)
def test_the_real_netx_computes_the_network(name: str, traces: dict[str, Trace]) -> None:
    """z, u and v, three samples of nine steps."""
    results = compared(CASES[name], traces[name])
    assert different(results) == []
    assert any(not r.silent for r in results.values())


def test_what_was_compared(traces: dict[str, Trace]) -> None:
    results = [r for name, trace in traces.items() for r in compared(CASES[name], trace).values()]
    entries, states = (sum(getattr(r, k) for r in results) for k in ("entries", "state_entries"))
    print(f"entries: {entries}, registers: {states}")
    assert entries > 5000 and states > 10000


def test_latency_and_what_the_target_says(traces: dict[str, Trace]) -> None:
    network = CASES["convolution, flatten, dense"].network()
    assert traces["convolution, flatten, dense"].latency == {"n1": 1, "n4": 2, "n6": 3}
    assert DL.compile(network).latency == {"n1": 1, "n4": 2, "n6": 3}
    assert DL.evidence_for(network) == "independent" and DL.process(network, "n1") == "stock"
    assert base.get("lava-dl") is lavadl.LavaDL


def test_a_sample_of_a_batch_equals_the_sample_alone(traces: dict[str, Trace]) -> None:
    picked = [("biases", 1), ("loop with memory", 2)]
    pairs = [(CASES[name].network(), CASES[name].x[k : k + 1]) for name, k in picked]
    for (name, k), alone in zip(picked, DL.run_many(pairs), strict=True):
        assert not alone.states
        for node, z in alone.z.items():
            assert np.array_equal(z[0], traces[name].z[node][k])


def test_a_loop_of_netx_brings_spikes_of_the_sample_before() -> None:
    """Why its samples run apart: neurons are reset, and what they have sent last is on its way."""
    case = CASES["loop"]
    (together,) = lavadl.Lava.run_many(DL, [(case.network(), case.x)], probe=True)
    assert different(compared(case, together))
    streamed = list(DL.compile(case.network()).stream(case.x, probe=True))
    assert [different(compared(case, part)) for part in streamed] == [[]]


# --- the file


def test_file(tmp_path: Path) -> None:
    case = CASES["convolution, flatten, dense"]
    path = tmp_path / "new" / "model.net"
    lavadl.write(case.network(), path)
    assert [p.name for p in path.parent.iterdir()] == ["model.net"]
    conv, cell = case.graph.nodes["n0"], case.graph.nodes["n1"]
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"input_message_bits": 0, "latency": 3, "written_by": "eiexport"}
        kinds = [file[f"layer/{i}/type"][0] for i in range(len(file["layer"]))]
        assert kinds == [b"input", b"conv", b"flatten", b"dense", b"dense"]
        layer = file["layer/1"]
        assert np.array_equal(layer["weight"], conv.weight) and layer["weight"].dtype == np.int32
        assert layer["stride"][()].tolist() == [2, 1] and layer["groups"][()] == 1
        assert layer["shape"][()].tolist() == [4, 3, 3] and file["layer/0/shape"][()].tolist() == [2, 5, 4]
        assert layer["bias"][()].tolist() == conv.bias.tolist()
        numbers = {k: int(v[()]) for k, v in layer["neuron"].items() if k != "type"}
        assert numbers == {"iDecay": 4096, "vDecay": int(cell.dv), "vThMant": 130, "refDelay": 1}
        assert "bias" not in file["layer/3"]


def test_a_refused_network_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(base.Unsupported):
        lavadl.write(graphs.check(chain((2,), float_lif((2,), decay=0.5, threshold=1.0))), tmp_path / "model.net")
    assert list(tmp_path.iterdir()) == []


# --- refusals


def refused() -> dict[str, tuple[nir.NIRGraph, Alphabet, tuple[str, ...]]]:
    n = Integers(71)
    found: dict[str, tuple[nir.NIRGraph, Alphabet, tuple[str, ...]]] = {}

    def add(name: str, graph: nir.NIRGraph, *parts: str, alphabet: Alphabet = BINARY) -> None:
        found[name] = graph, alphabet, parts

    def row(*nodes: Any) -> nir.NIRGraph:
        return chain((4,), *nodes)

    def cell(**fields: Any) -> nir.NIRGraph:
        return row(n.dense(3, 4), neuron(3, **fields))

    dense, image = n.dense(4, 4), (2, 4, 4)
    add("reals", row(float_lif((4,), decay=0.5, threshold=1.0)), "integer", "--quantize")
    pool = nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.zeros(2, int))
    add(
        "pool",
        chain(image, pool, n.conv(2, 2, (1, 1), message_bits=4), neuron((2, 2, 2))),
        "'n0' (SumPool2d)",
        "pooling",
    )
    add(
        "threshold", row(dense, nir.Threshold(full(4, 0.5)), n.dense(3, 4), neuron(3)), "'n1' (Threshold)", "IntCubaLIF"
    )
    gated = IntGatedLIF(neuron(4), n.dense(4, 4), None, np.zeros(256))
    add("gates", row(dense, gated), "'n1' (IntGatedLIF)", "gates")
    add("delay", row(dense, neuron(4), nir.Delay(full(4, 1.0)), n.dense(3, 4), neuron(3)), "'n2' (Delay)", "remove")
    add("ge", cell(compare="ge"), "'n1' (IntCubaLIF)", 'compare = "ge"')
    add("subtract", cell(reset="subtract"), 'reset = "subtract"')
    add("ternary", cell(lower=-9), "'n1'", "lower")
    add("thresholds", cell(vth=np.array([1, 2, 3])), "vth differs")
    add("decays", cell(dv=np.array([1, 2, 3])), "dv differs")
    add("bias exponent", cell(bias_mant=3, bias_exp=5), "bias is 96", "multiples of 64")
    add("bias size", cell(bias_mant=4000, bias_exp=10), "64000 << 6", "32767")
    add("bias into memory", row(n.dense(3, 4, bias=9), neuron(3, du=9)), "'n0' (IntDense)", "synaptic current of 'n1'")
    add("odd exponent", row(n.dense(3, 4, weight_exp=-9), neuron(3)), "weight_exp = -9", "whole weights")
    add(
        "conv exponent",
        chain(image, n.conv(2, 2, (1, 1), weight_exp=-3), neuron(image)),
        "'n0' (IntConv)",
        "weight_exp = -3",
    )
    add("zeros", row(IntDense(np.zeros((3, 4)), np.zeros(3)), neuron(3)), "all its weights are 0")
    wide = IntDense(np.array([[255, -2, 0, 0]]), np.zeros(1), weight_exp=1)
    add("range", row(wide, neuron(1)), "from -4 to 508", "-256 to 254")
    least = IntDense(np.full((3, 4), -128), np.zeros(3), sign_mode="inhibitory")
    add("power of two", row(least, neuron(3, vth=-9)), "'n0' (IntDense)", "-128 into 0", "-256")
    two = {"a": n.dense(3, 4), "b": n.dense(3, 4), "c": neuron(3)}
    edges = [("in", "a"), ("in", "b"), ("a", "c"), ("b", "c"), ("c", "out")]
    add("branches", connected(two, edges, (4,)), "'in' (Input)", "feeds 'a', 'b'", "one row")
    skip = {"a": n.dense(4, 4), "b": neuron(4), "c": n.dense(4, 4), "d": neuron(4)}
    edges = [("in", "a"), ("a", "b"), ("b", "c"), ("c", "d"), ("d", "out"), ("b", "out")]
    add("two outputs", connected(skip, edges, (4,)), "'b' (IntCubaLIF)", "'c', 'out'")
    add("currents", row(dense), "'n0' (IntDense)", "ends in neurons")
    add("two in a row", row(dense, n.dense(3, 4, message_bits=12), neuron(3)), "'n1' (IntDense)", "behind 'n0'")
    add("no flatten", chain((2, 4), n.dense(3, 4), neuron((2, 3))), "'n0' (IntDense)", "Flatten")
    add("one axis", chain((2, 5), n.conv(3, 2, (3,)), neuron((3, 3))), "'n0' (IntConv)", "two axes")
    groups = n.conv(130, 130, (1, 1), groups=130)
    add("groups", chain((130, 2, 2), groups, neuron((130, 2, 2))), "'n0' (IntConv)", "130", "127")
    parts = looped(n, neuron(4), True)
    parts["nodes"]["z"].delay += 1
    add("slow loop", connected(parts["nodes"], [*parts["edges"], ("cell", "out")], (5,)), "'z' (Delay)", "2 steps")
    parts = looped(n, neuron(4), False, bias=9)
    add("late bias", connected(parts["nodes"], [*parts["edges"], ("cell", "out")], (5,)), "'back' (IntDense)", "late")
    parts = looped(n, neuron(4), True)
    nodes = parts["nodes"] | {"w2": n.dense(4, 4), "c2": neuron(4)}
    edges = [("in", "w"), ("w", "cell"), ("cell", "w2"), ("w2", "c2"), ("c2", "z"), ("z", "back"), ("back", "cell")]
    add("wide loop", connected(nodes, [*edges, ("c2", "out")], (5,)), "cycle", "one loop")
    unknown = row(n.dense(4, 4, message_bits=2), neuron(4), n.dense(3, 4, bits=5), neuron(3))
    add("none", unknown, alphabet=TERNARY)
    return found


REFUSED = refused()


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    graph, alphabet, parts = REFUSED[name]
    network = graphs.check(graph, alphabet=alphabet)
    if name == "none":
        DL.check(network)
        return
    with pytest.raises(base.Unsupported) as e:
        DL.check(network)
    one_line(e, "target 'lava-dl'", *parts)


# --- what netx makes of weights

NETX = """
import pickle, sys
from pathlib import Path
from targets.lava.guard import guard

def main():
    from targets.lava import compat
    compat.load()
    from targets.lava.netx import load
    load()
    import numpy as np
    from lava.lib.dl.netx.utils import optimize_weight_bits
    from lava.utils.weightutils import clip_weights, determine_sign_mode, truncate_weights
    folder, found = Path(sys.argv[1]), []
    for parts in pickle.loads((folder / "matrices").read_bytes()):
        try:
            weight, bits, exponent, _ = optimize_weight_bits(np.hstack(parts))
        except (OverflowError, ValueError):  # all zero
            found.append(False)
            continue
        cuts = np.cumsum([p.shape[1] for p in parts])[:-1]
        same = True
        for part, held in zip(parts, np.split(weight, cuts, axis=1)):
            mode = determine_sign_mode(held)
            held = truncate_weights(clip_weights(held, mode, num_bits=8), mode, bits)
            # sums are shifted by the exponent, up for one above 0
            same &= exponent <= 0 and bool((held == part * 2.0**-exponent).all())
        found.append(same)
    (folder / "found").write_bytes(pickle.dumps(found))

guard(main)
"""


def test_refused_weights_are_those_that_the_real_netx_changes(tmp_path: Path) -> None:
    """2000 matrices, and pairs of a loop: `corrupted` says what netx's and Lava's own functions do."""
    import pickle

    rng, matrices = np.random.default_rng(72), []
    limits = [0, 1, 2, 3, 16, 63, 64, 127, 128, 129, 192, 254, 255, 256, 257, 300]
    for _ in range(2000):
        lo, hi = -rng.choice(limits) * rng.integers(0, 2), rng.choice(limits) * rng.integers(0, 2)
        parts = [rng.integers(lo, hi + 1, (2, 3)) for _ in range(rng.integers(1, 3))]
        parts[0][0, 0], parts[0][1, 1] = lo, hi
        matrices.append([np.sign(p) * (np.abs(p) >> (k := rng.integers(0, 4)) << k) for p in parts])
    (tmp_path / "matrices").write_bytes(pickle.dumps(matrices))
    (tmp_path / "ask.py").write_text(NETX)
    places = [ROOT, env.deep()]
    run_worker(env.python(), [str(tmp_path / "ask.py"), str(tmp_path)], timeout=60, pythonpath=places)
    held = pickle.loads((tmp_path / "found").read_bytes())
    ours = [not lavadl.corrupted(parts) for parts in matrices]
    assert 400 < sum(held) < 1600
    wrong = [(m, a, b) for m, a, b in zip(matrices, ours, held, strict=True) if a != b]
    assert not [m for m, a, b in wrong if a and not b], "let through"
    assert not [m for m, a, b in wrong if b and not a], "refused for nothing"


def test_the_real_netx_corrupts_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lavadl, "corrupted", lambda parts: "")
    pairs = []
    for weight in (-128, -100):
        node = IntDense(np.full((3, 4), weight), np.zeros(3), sign_mode="inhibitory")
        pairs.append((graphs.check(chain((4,), node, neuron(3, vth=-300))), np.ones((2, 5, 4))))
    for (network, x), trace, same in zip(pairs, DL.run_many(pairs, probe=True), (False, True), strict=True):
        expected = REFERENCE.compile(network).run(x, probe=True)
        assert np.array_equal(trace.states["u"]["n1"], expected.states["u"]["n1"]) == same
        assert same or not trace.states["u"]["n1"].any()  # all of -128 has become 0


# --- the comparison can fail


EDITS = {
    "kernel turned": ("layer/1/weight", lambda a: a[:, :, ::-1], "convolutions"),
    "biases turned": ("layer/1/bias", lambda a: a[::-1], "convolutions"),
    "decay off by one": ("layer/1/neuron/iDecay", lambda a: a + 1, "loop with memory"),
    "bias off by one": ("layer/1/bias", lambda a: a + 1, "biases"),
    "another threshold": ("layer/1/neuron/vThMant", lambda a: a + 200, "exponents"),
    "loop transposed": ("layer/1/weight_rec", lambda a: a.T, "loop"),
    "inputs of the flat layer turned": ("layer/3/weight", lambda a: a[:, ::-1], "convolution, flatten, dense"),
}


def test_other_files_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(CASES[name].network(), CASES[name].x) for *_, name in EDITS.values()]
    edits = {id(network): edit for (network, _), edit in zip(pairs, EDITS.values(), strict=True)}

    def write(network: graphs.Network, file: Path) -> None:
        """A file that holds something else in one place."""
        lavadl.write(network, file)
        path, value, _ = edits[id(network)]
        with h5py.File(file, "r+") as f:
            found = f[path][()]
            del f[path]
            f[path] = value(found)

    monkeypatch.setattr(lavadl.LavaDL, "engine", DL.engine._replace(prepare=write))
    for (edit, (*_, name)), trace in zip(EDITS.items(), DL.run_many(pairs, probe=True), strict=True):
        assert different(compared(CASES[name], trace)), edit


def test_a_reset_at_another_step_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    change(monkeypatch, tmp_path, "netx.py", "reset_offset=1", "reset_offset=0")
    (trace,) = pack(["biases"]).values()
    assert different(compared(CASES["biases"], trace))


# --- lava-dl itself


def test_lava_dl_that_cannot_be_installed_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lava's own environment stays as it is, and ready."""
    place = tmp_path / "env"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    (place / env.MARKER).write_text(env.specification())
    monkeypatch.setenv(env.PLACE, str(place))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(env.LavaUnavailable) as e:
        env.deep()
    one_line(e, "pip failed", "lava-dl")
    assert env.python() == place / "bin" / "python"
    assert sorted(p.name for p in place.iterdir()) == ["bin", env.MARKER, "lava-dl.lock"]
