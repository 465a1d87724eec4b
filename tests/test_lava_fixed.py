"""Integer networks on Lava's fixed-point models against the reference: z, u and v, every bit of every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from cases import Case, chain, connected, full
from test_lava import change, one_line

from eiexport import graph as graphs
from eiexport.alphabet import BINARY, REAL, TERNARY, Alphabet, interval
from eiexport.errors import TraceError
from eiexport.integers import IntConv, IntCubaLIF, IntDense, IntGatedLIF
from eiexport.nodes import lif as float_lif
from eiexport.trace import NodeResult, Trace, compare_entries
from targets import base, lava

LAVA, REFERENCE = lava.Lava(), base.get("reference")()
T, SAMPLES = 9, 3
MAP = (2, 4, 3)
TABLE = np.minimum(np.rint(256 / (1 + np.exp(-(np.arange(256) - 128) / 16))), 255)


class Integers:
    """Random integer nodes; whatever is not given is a plain integrator or a connection of 8 mixed bits."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def draw(self, shape: Any, lo: int, hi: int) -> np.ndarray:
        return self.rng.integers(lo, hi + 1, shape)

    def spikes(self, shape: tuple[int, ...], lo: int = 0, hi: int = 1, steps: int = T) -> np.ndarray:
        return self.draw((SAMPLES, steps, *shape), lo, hi).astype(float)

    def dense(self, outputs: int, inputs: int, bias: int = 0, **fields: Any) -> IntDense:
        lo, hi = fields.pop("span", (-256, 255))
        return IntDense(self.draw((outputs, inputs), lo, hi), self.draw(outputs, -bias, bias), **fields)

    def conv(self, outputs: int, inputs: int, kernel: tuple[int, ...], bias: int = 0, **fields: Any) -> IntConv:
        lo, hi = fields.pop("span", (-60, 80))
        fields = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | fields
        weight = self.draw((outputs, inputs // fields["groups"], *kernel), lo, hi)
        return IntConv(weight, self.draw(outputs, -bias, bias), **fields)


def neuron(shape: Any, **fields: Any) -> IntCubaLIF:
    fields = {"vth": 130, "du": 4095, "dv": 0, "bias_mant": 0, "bias_exp": 6} | fields
    whole = {k: np.asarray(v) for k, v in fields.items() if k not in ("compare", "reset")}
    for name in {"vth", "lower"} & whole.keys():
        whole[name] = np.broadcast_to(whole[name], shape)
    return IntCubaLIF(**(fields | whole))


def cases() -> list[Case]:
    n = Integers(60)
    found: list[Case] = []

    def add(name: str, graph: nir.NIRGraph, x: np.ndarray, alphabet: Alphabet = BINARY) -> None:
        found.append(Case(name, graph, x, alphabet, True, name))

    def side_by_side(name: str, inputs: int, parts: list[tuple[Any, Any]], alphabet: Alphabet = BINARY) -> None:
        """Pairs of a connection and a neuron, all driven by one input; a connection may drive several."""
        nodes, edges = {}, set()
        for i, (connection, cell) in enumerate(parts):
            w = f"w{[c is connection for c, _ in parts].index(True)}"
            nodes |= {w: connection, f"n{i}": cell}
            edges |= {("in", w), (w, f"n{i}"), (f"n{i}", "out")}
        x = n.spikes((inputs,), int(alphabet.lo), int(alphabet.hi))
        add(name, connected(nodes, sorted(edges), (inputs,)), x, alphabet)

    def driven(bits: int, cells: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
        connection = n.dense(3, 5, bits=bits)
        return [(connection, neuron(3, **cell)) for cell in cells]

    # --- synapses: every sign mode and width, with weights that are clipped and lose bits
    for mode in ("mixed", "excitatory", "inhibitory"):
        span = {"mixed": (-300, 300), "excitatory": (-20, 300), "inhibitory": (-300, 20)}[mode]
        cell: dict[str, Any] = {"vth": 300, "dv": 300} if mode != "inhibitory" else {"vth": -500, "dv": 200}
        parts = [(n.dense(3, 5, bits=b, sign_mode=mode, span=span), neuron(3, **cell)) for b in (8, 7, 6, 5, 4, 1)]
        side_by_side(f"{mode} bits", 5, parts)
    parts = [
        (n.dense(3, 5, weight_exp=e, bits=b), neuron(3, vth=int(2.0**e * 260)))
        for e, b in zip(range(-3, 4), [8, 7] * 4, strict=False)
    ]
    side_by_side("weight exponents", 5, parts)
    own_exponent = n.dense(4, 5, weight_exp=np.array([2, 0, -1, 2]), bits=7, bias=9)
    maps = n.conv(3, 2, (2, 2), weight_exp=np.array([1, -1, 0]))
    maps.weight[1] *= 2
    side_by_side("exponents of outputs", 5, [(own_exponent, neuron(4, vth=500))])
    add("exponents of maps", chain(MAP, maps, neuron((3, 3, 2))), n.spikes(MAP))
    side_by_side("odd sums shifted", 5, [(n.dense(3, 5, weight_exp=-9, bias=3), neuron(3, vth=2))] * 1)
    graded = interval(-90, 110, True)
    parts = [(n.dense(3, 4, weight_exp=e, message_bits=8), neuron(3, vth=9000, dv=99)) for e in (-3, -2, 0, 2)]
    side_by_side("graded messages", 4, parts, graded)
    side_by_side("ternary messages", 4, [(n.dense(3, 4, message_bits=2), neuron(3))], TERNARY)

    # --- neurons: decays, thresholds, biases; stock and not
    decays = [
        (4095, 0),
        (4095, 4096),
        (-1, 0),
        (-1, 4096),
        (0, 1),
        (1000, 819),
        (4094, 4095),
        (3000, 3277),
        (4095, 2048),
    ]
    each: list[dict[str, Any]] = [{"du": du, "dv": dv, "vth": 99 + dv // 20} for du, dv in decays]
    each += [
        {"bias_mant": 7, "bias_exp": 8},
        {"bias_mant": -5, "bias_exp": 5, "dv": 30},
        {"bias_mant": n.draw(3, -99, 99)},
    ]
    each += [{"bias_mant": n.draw(3, -3000, 3000), "bias_exp": np.array([-3, 0, 2])}, {"vth": -3, "dv": 700}]
    each += [
        {"bias_mant": 32767, "bias_exp": 0},
        {"bias_mant": -40000, "bias_exp": 0},
        {"bias_mant": 40001, "bias_exp": -1},
    ]
    each += [
        {"vth": 131071, "bias_mant": 9, "bias_exp": 15},
        {"vth": 1 << 20, "du": 40, "bias_mant": 9, "bias_exp": 16},
    ]
    side_by_side("neurons", 5, driven(8, each))
    signed: list[dict[str, Any]] = [{"lower": -90}, {"lower": -200, "vth": 60, "du": 700, "dv": 300}]
    signed += [{"lower": -60, "bias_mant": -4}, {"lower": 20, "vth": 90, "dv": 2048}, {"lower": -70, "dv": 4096}]
    side_by_side("ternary neurons", 5, driven(8, signed))
    own: list[dict[str, Any]] = [{"compare": "ge", "vth": 128}, {"reset": "subtract", "dv": 99}, {"reset": "none"}]
    own += [{"vth": np.array([60, 99, 200])}, {"du": np.array([-1, 40, 4095])}, {"dv": np.array([0, 900, 4096])}]
    own += [{"lower": np.array([-9, -99, -20])}, {"lower": -64, "vth": 64, "compare": "ge"}]
    side_by_side("neurons that Lava lacks", 5, driven(5, own))
    add("one step", chain((5,), n.dense(4, 5), neuron(4), n.dense(3, 4, bias=50), neuron(3)), n.spikes((5,), steps=1))

    # --- registers: u turns once, v stops at its ends, sums of a convolution are modulo 2^24
    wide = interval(-(1 << 10), 1 << 10, True)
    parts = [(n.dense(3, 1, message_bits=12), neuron(3, du=du, vth=131071)) for du in (-1, 5, 4095)]
    side_by_side(
        "u turns", 1, [*parts, (n.dense(3, 1, message_bits=12), neuron(3, du=-1, vth=3000, lower=-3000))], wide
    )
    ends: list[tuple[Any, dict[str, Any]]] = [((9, 40), {"vth": 1 << 20}), ((9, 40), {"vth": 131071})]
    ends += [((-40, -9), {"lower": -(1 << 20)}), ((-40, -9), {"lower": -131071, "du": -1})]
    top = [(n.dense(3, 2, message_bits=12, span=span), neuron(3, **cell)) for span, cell in ends]
    side_by_side("v stops", 2, top, interval(0, 1 << 10, True))
    far = interval(-(1 << 17), 1 << 17, True)
    image = chain(MAP, n.conv(2, 2, (3, 2), span=(-250, 250), message_bits=19), neuron((2, 2, 2), vth=90000, dv=10))
    add("a convolution wraps", image, n.spikes(MAP, int(far.lo), int(far.hi)), far)
    late, far = (
        chain((2,), n.dense(3, 2, message_bits=17), neuron(3, vth=9000, du=4000)),
        interval(-(1 << 15), 1 << 15, True),
    )
    add("u turns more than once", late, n.spikes((2,), int(far.lo), int(far.hi)), far)

    # --- maps
    geometry: list[dict[str, Any]] = [{"stride": (2, 1)}, {"padding": (1, 0)}, {"dilation": (2, 1)}, {"groups": 2}]
    geometry += [{"weight_exp": 2}, {"stride": (1, 2), "padding": (2, 1), "weight_exp": 1, "bias": 30}]
    for i, fields in enumerate(geometry):
        net = chain((2, 5, 4), n.conv(4, 2, (3, 2), **fields), *_cells(n, (2, 5, 4), 4, (3, 2), fields))
        add(f"convolution {i}", net, n.spikes((2, 5, 4)))
    halves = n.conv(2, 2, (2, 2), weight_exp=-1, span=(-20, 80))
    halves.weight = halves.weight // 2 * 2
    add("convolution divided", chain(MAP, halves, neuron((2, 3, 2), vth=40)), n.spikes(MAP))
    add("one axis", chain((2, 7), n.conv(3, 2, (3,), stride=2, padding=1), neuron((3, 4))), n.spikes((2, 7)))
    pool = nir.SumPool2d(np.array([2, 2]), np.array([2, 1]), np.zeros(2, int))
    most = nir.Threshold(full((2, 2, 2), 0.5))
    layers = [n.conv(2, 2, (1, 1)), neuron(MAP, lower=-70, vth=70), pool, n.conv(3, 2, (2, 1), message_bits=4, bias=20)]
    layers += [neuron((3, 1, 2)), nir.Flatten({"input": np.array((3, 1, 2))}, 0, -1), n.dense(4, 6), neuron(4)]
    add("sums of signed spikes", chain(MAP, *layers), n.spikes(MAP))
    add("maximum of spikes", chain(MAP, pool, most, n.dense(3, 2), neuron((2, 2, 3))), n.spikes(MAP))
    odd = nir.Threshold(full(3, -1.5))
    add("threshold", chain((5,), n.dense(3, 5, bias=3, span=(-4, 4)), odd, n.dense(3, 3), neuron(3)), n.spikes((5,)))
    each_own = nir.Threshold(np.array([0.0, 20.0, -30.5]))
    add("thresholds", chain((5,), n.dense(3, 5, bias=40), each_own, n.dense(3, 3), neuron(3)), n.spikes((5,)))

    # --- time: biases, branches, cycles
    for steps in (8, 1):
        layers = [p for _ in range(3) for p in (n.dense(3, 3, span=(0, 30)), neuron(3, vth=50, bias_mant=31))]
        add(f"biased neurons {steps}", chain((3,), *layers), n.spikes((3,), steps=steps))
        layers = [p for _ in range(3) for p in (n.dense(3, 3, span=(-9, 9)), neuron(3, vth=50, bias_mant=3))]
        for connection in layers[::2]:
            connection.bias = n.draw(3, 20, 70)
        add(f"biased connections {steps}", chain((3,), *layers), n.spikes((3,), steps=steps))
    layers = [n.dense(3, 3, bias=60), neuron(3, du=1000, bias_mant=9), n.dense(3, 3, bias=60), neuron(3, lower=-50)]
    add("a bias meets memory", chain((3,), *layers), n.spikes((3,)))
    layers = [
        n.dense(3, 3, bias=90),
        nir.Delay(np.array([0.0, 2.0, 5.0])),
        neuron(3),
        n.dense(3, 3),
        nir.Delay(full(3, 2.0)),
    ]
    add("delays", chain((3,), *layers, neuron(3)), n.spikes((3,)))
    layers = [n.dense(3, 3), neuron(3, vth=-1), n.dense(3, 3, bias=9), neuron(3, dv=200), n.dense(2, 3, bias=5)]
    add("fires before its start, ends in currents", chain((3,), *layers), n.spikes((3,)))
    two = [n.dense(3, 3, bias=7, message_bits=3), n.dense(2, 3, message_bits=12), neuron(2, vth=9000)]
    add("two connections in a row", chain((3,), *two), n.spikes((3,), -3, 3), interval(-3, 3, True))
    nodes = {
        "w": n.dense(4, 4),
        "a": neuron(4, dv=99),
        "w1": n.dense(4, 4, bias=9),
        "w2": n.dense(4, 4, message_bits=9),
    }
    nodes |= {"w3": n.dense(4, 4), "b": neuron(4, vth=300), "c": neuron(4, compare="ge")}
    ends = [
        ("in", "w"),
        ("w", "a"),
        ("a", "w1"),
        ("w1", "b"),
        ("in", "w3"),
        ("w3", "b"),
        ("w3", "c"),
        ("b", "out"),
        ("c", "out"),
    ]
    add("branches of different length", connected(nodes, [*ends, ("in", "w2"), ("w2", "c")], (4,)), n.spikes((4,)))
    for name, cell, bits in (("spikes", neuron(4, dv=300), 0), ("signs", neuron(4, lower=-99, du=2000), 2)):
        loop = {
            "w": n.dense(4, 5),
            "cell": cell,
            "z": nir.Delay(full(4, 1.0)),
            "back": n.dense(4, 4, message_bits=bits),
        }
        loop |= {"far": nir.Delay(full(4, 3.0)), "back3": n.dense(4, 4, message_bits=bits, bias=20)}
        edges = [("in", "w"), ("w", "cell"), ("cell", "z"), ("z", "back"), ("back", "cell"), ("cell", "out")]
        edges += [("cell", "far"), ("far", "back3"), ("back3", "cell")]
        add(f"recurrent {name}", connected(loop, edges, (5,)), n.spikes((5,)))

    # --- gates
    same = {"padding": 1, "bias": 40}
    for name, part in {
        "both": {
            "feedback": n.conv(2, 2, (3, 3), message_bits=2, **same),
            "balance": n.conv(2, 2, (3, 3), message_bits=12, **same),
        },
        "feedback": {"feedback": n.conv(2, 2, (3, 3), **same)},
        "shifted feedback": {"feedback": n.conv(2, 2, (3, 3), weight_exp=-2, **same)},
        "balance": {"balance": n.conv(2, 2, (3, 3), message_bits=12, **same)},
        "none": {},
    }.items():
        cell = IntGatedLIF(
            neuron(MAP, vth=60, dv=700), table=TABLE, balance_shift=5, balance_bits=12, feedback_shift=1, **part
        )
        bits = {"message_bits": 2} if "balance" in part else {}
        path = [n.conv(2, 2, (3, 3), **same), cell, n.conv(3, 2, (2, 2), **bits), neuron((3, 3, 2))]
        add(f"gates {name}", chain(MAP, *path), n.spikes(MAP))
    flat = IntGatedLIF(
        neuron(4, du=900), n.dense(4, 4, bias=99, weight_exp=-1, message_bits=2), n.dense(4, 4, message_bits=16), TABLE
    )
    flat.feedback.weight_exp = np.array([-1, 0, 1, 0])
    flat.balance_shift, flat.feedback_shift, flat.balance_bits = 8, 2, 14
    add("gates dense", chain((5,), n.dense(4, 5, span=(0, 200)), flat), n.spikes((5,)))
    return found


def _cells(n: Integers, shape: Any, channels: int, kernel: Any, fields: dict[str, Any]) -> list[Any]:
    """A neuron layer behind a convolution."""
    probe = graphs.check(chain(shape, n.conv(channels, shape[0], kernel, **fields)), alphabet=BINARY)
    return [neuron(probe.shapes["n0"], vth=100, dv=99)]


CASES = {c.name: c for c in cases()}


def pack(names: list[str]) -> dict[str, Trace]:
    chosen = [CASES[n] for n in names]
    return dict(zip(names, LAVA.run_many([(c.network(), c.x) for c in chosen], probe=True), strict=True))


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return pack(list(CASES))


def compared(case: Case, trace: Trace) -> dict[str, NodeResult]:
    """Entry by entry against the reference, after both hold the same things in the same shapes."""
    expected = REFERENCE.compile(case.network()).run(case.x, probe=True)
    held = [(kind, name, a.shape) for kind, name, a in trace.observables()]
    assert held == [(kind, name, a.shape) for kind, name, a in expected.observables()]
    results: dict[str, NodeResult] = {}
    compare_entries(results, trace, expected)
    return results


def different(results: dict[str, NodeResult]) -> list[str]:
    return [f"{n}: {r.first}" for n, r in results.items() if r.mismatches or r.state_mismatches]


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, traces: dict[str, Trace]) -> None:
    results = compared(CASES[name], traces[name])
    assert different(results) == []
    assert any(not r.silent for r in results.values())


def test_what_was_compared(traces: dict[str, Trace]) -> None:
    entries = states = stock = 0
    for name, trace in traces.items():
        network = CASES[name].network()
        for node, result in compared(CASES[name], trace).items():
            entries, states = entries + result.entries, states + result.state_entries
            stock += (result.entries + result.state_entries) * (LAVA.process(network, node) == "stock")
    print(f"entries: {entries}, registers: {states}, on stock processes: {stock}")
    assert entries > 9000 and states > 18000 and stock > 0.6 * (entries + states)
    both = [np.concatenate([t.states[k][n].ravel() for t in traces.values() for n in t.states[k]]) for k in "uv"]
    assert all((a < 0).mean() > 0.1 and (a > 0).mean() > 0.1 for a in both)


def test_probing_changes_nothing_and_is_not_done_unasked(traces: dict[str, Trace]) -> None:
    picked = ["ternary neurons", "recurrent signs", "gates both", "fires before its start, ends in currents"]
    plain = LAVA.run_many([(CASES[n].network(), CASES[n].x) for n in picked])
    for name, trace in zip(picked, plain, strict=True):
        assert not trace.states
        for node, z in trace.z.items():
            assert z.dtype == traces[name].z[node].dtype and np.array_equal(z, traces[name].z[node]), (name, node)
    assert {a.dtype for t in traces.values() for _, _, a in t.observables()} == {np.dtype("i1"), np.dtype("i4")}


BATCHED = [
    "ternary neurons",
    "neurons that Lava lacks",
    "biased connections 8",
    "delays",
    "recurrent signs",
    "gates both",
]


def test_a_sample_of_a_batch_equals_the_sample_alone(traces: dict[str, Trace]) -> None:
    picked = [(name, 1 + i % 2) for i, name in enumerate(BATCHED)]
    pairs = [(CASES[name].network(), CASES[name].x[k : k + 1]) for name, k in picked]
    for (name, k), alone in zip(picked, LAVA.run_many(pairs, probe=True), strict=True):
        for (kind, node, a), (_, _, b) in zip(alone.observables(), traces[name].observables(), strict=True):
            assert np.array_equal(a[0], b[k]), (name, k, kind, node)


def test_integers_and_reals_in_one_call() -> None:
    real = graphs.check(chain((5,), float_lif((5,), decay=0.5, threshold=0.75)))
    whole = CASES["odd sums shifted"]
    pairs = [(real, whole.x), (whole.network(), whole.x), (real, whole.x * 0.5)]
    found = LAVA.run_many(pairs, probe=True)
    for (network, x), trace in zip(pairs, found, strict=True):
        results: dict[str, NodeResult] = {}
        compare_entries(results, trace, REFERENCE.compile(network).run(x, probe=True))
        assert different(results) == [] and sum(r.state_entries for r in results.values())


def test_stream_with_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["ternary neurons"]
    monkeypatch.setattr(lava, "chunk_size", lambda *_: 2)
    parts = list(LAVA.compile(case.network()).stream(case.x, probe=True))
    assert [p.samples for p in parts] == [2, 1]
    join = {k: {n: np.concatenate([p.states[k][n] for p in parts]) for n in parts[0].states[k]} for k in ("v", "u")}
    z = {n: np.concatenate([p.z[n] for p in parts]) for n in parts[0].z}
    assert different(compared(case, Trace(z, states=join))) == []


# --- what is decided


@pytest.mark.parametrize(
    "name,custom",
    [
        ("mixed bits", ""),
        ("weight exponents", ""),
        ("graded messages", ""),
        ("ternary neurons", ""),
        ("u turns", ""),
        ("v stops", ""),
        ("u turns more than once", "n1"),  # only up to 2^24 does one turn bring u back
        ("neurons", "n15"),  # a mantissa of more than 16 bits; 40001 >> 1 is another
        ("biased neurons 8", ""),
        ("biased connections 8", ""),
        ("a bias meets memory", "n1"),
        ("neurons that Lava lacks", "n0 n1 n2 n3 n4 n5 n6 n7"),
        ("convolution 5", ""),
        ("sums of signed spikes", ""),
        ("maximum of spikes", ""),
        ("threshold", ""),
        ("thresholds", "n1"),
        ("delays", "n1 n4"),
        ("gates both", "n1"),
    ],
)
def test_stock_processes_stand_where_they_mean_the_node(name: str, custom: str) -> None:
    """The worker reads off what it built; a difference to this would have been an error of the run."""
    network = CASES[name].network()
    found = {n for n in network.steps if n != network.input and LAVA.process(network, n) == "custom"}
    expected = set(custom.split()) | ({"n16"} if name == "neurons" else set())
    assert found == expected
    assert LAVA.evidence_for(network) == ("plumbing" if found else "independent")


def refused(graph: nir.NIRGraph, alphabet: Alphabet, *parts: str) -> None:
    with pytest.raises(base.Unsupported) as e:
        LAVA.check(graphs.check(graph, alphabet=alphabet))
    one_line(e, *parts)


def test_what_fixed_point_lava_cannot_do_is_refused() -> None:
    n = Integers(61)
    thirds = n.conv(2, 2, (1, 1), weight_exp=-2)
    refused(chain(MAP, thirds, neuron(MAP)), BINARY, "'n0' (IntConv)", "weight_exp", "-2", ">= 0")
    mixed = chain((4,), n.dense(4, 4), float_lif((4,), decay=0.5, threshold=1.0))
    refused(mixed, BINARY, "'n1' (EIDiscreteLIF)", "quantise")
    rounded = chain((4,), n.dense(4, 4, bias=9), n.dense(4, 4, weight_exp=-9, message_bits=14), neuron(4))
    refused(rounded, BINARY, "'n1' (IntDense)", "bias", "behind")
    huge = interval(-(1 << 27), 1 << 27, True)
    refused(chain((4,), n.dense(3, 4, message_bits=29)), huge, "'n0' (IntDense)", "32 bits")
    beyond = interval(0, 1 << 31, True)
    refused(chain((4,), n.dense(3, 4, message_bits=32)), beyond, "'n0' (IntDense)", "32 bits")
    pool = nir.SumPool2d(np.array([2, 2]), np.array([1, 1]), np.zeros(2, int))
    large = interval(0, 1 << 22, True)
    refused(chain(MAP, pool, neuron((2, 3, 2))), large, "'n0' (SumPool2d)", "24 bits")


def test_what_is_refused_or_not_stock_is_what_lava_gets_wrong() -> None:
    """More than an int32 holds: with an input of which nothing is known nothing is refused, and Lava is wrong."""

    def wrong(graph: nir.NIRGraph, x: int, node: str) -> bool:
        network = graphs.check(graph, alphabet=REAL)
        assert LAVA.process(network, node) == "stock"
        (trace,) = LAVA.run_many([(network, full((1, 3, 1), x))])
        return not np.array_equal(trace.z[node], REFERENCE.compile(network).run(full((1, 3, 1), x)).z[node])

    currents = chain((1,), IntDense(np.full((1, 1), 255), np.zeros(1), message_bits=26))
    refused(currents, interval(0, 1 << 24, True), "'n0' (IntDense)", "32 bits")
    assert wrong(currents, 1 << 24, "n0")
    kept = chain((1,), IntDense(np.full((1, 1), 126), np.zeros(1), message_bits=26), neuron(1, du=-1, vth=9))
    assert LAVA.process(graphs.check(kept, alphabet=interval(0, 1 << 18, True)), "n1") == "custom"
    assert wrong(kept, 1 << 18, "n1")


def test_input_must_be_what_was_declared() -> None:
    case = CASES["graded messages"]
    for x, part in ((case.x * 2, "declared int[-90,110]"), (case.x + 0.5, "whole")):
        with pytest.raises(base.TargetError) as e:
            LAVA.compile(case.network()).run(x)
        one_line(e, part)
    open_end = graphs.check(chain((4,), Integers(62).dense(3, 4, message_bits=32)), alphabet=REAL)
    with pytest.raises(base.TargetError) as e:
        LAVA.compile(open_end).run(full((1, 1, 4), 2.0**31))
    one_line(e, "32 bits")


# --- mutants: the source that the worker runs, changed in one place

AT = "(self.plan.latency[name] + 1) % self.period"
MUTANTS = {
    "a neuron's bias dropped": ("fixed.py", '{"bias_mant": mant,', '{"bias_mant": 0 * mant,', "biased neurons 8"),
    "a connection's bias dropped": (
        "fixed.py",
        "if constant.any():\n        total",
        "if False:\n        total",
        "biased connections 8",
    ),
    "signs unheard": ("plan.py", "return step.message_bits", "return 0", "sums of signed spikes"),
    "feedback unsigned": ("build.py", "0 if step.balance is None else 24", "0", "gates both"),
    "exponent off by one": ("build.py", "weight_exp=exponent,", "weight_exp=exponent + 1,", "weight exponents"),
    "exponents of the first output": ("build.py", "each == exponent", "each == each[0]", "exponents of outputs"),
    "exponent of a convolution": ("build.py", "np.float64), rows)", "np.float64), 0 * rows)", "convolution 4"),
    "sign mode forced": ("build.py", "SignMode[node.sign_mode.upper()]", "SignMode.MIXED", "excitatory bits"),
    "one bit less": ("build.py", "num_weight_bits=fixed.number(node.bits)", "num_weight_bits=7", "mixed bits"),
    "reset late": ("build.py", AT, AT.replace("1", "2"), "biased neurons 8"),
    "signed neurons kept": ("models.py", "self.u *= 0", "pass", "ternary neurons"),
    "signed membranes kept": ("models.py", "self.v *= 0", "pass", "ternary neurons"),
    "a state kept": (
        "processes/neuron.py",
        "if first := since",
        "if first := 0 == since or 0 * since",
        "neurons that Lava lacks",
    ),
    "threshold rounded up": ("fixed.py", "math.floor(step.threshold)", "math.ceil(step.threshold)", "threshold"),
    "registers a step late": ("watch.py", "rows[step - self.latency] =", "rows[0 * step] =", "ternary messages"),
}


@pytest.mark.parametrize("file,old,new,name", MUTANTS.values(), ids=MUTANTS)
def test_mutant_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, old: str, new: str, name: str
) -> None:
    change(monkeypatch, tmp_path, file, old, new)
    (trace,) = pack([name]).values()
    assert different(compared(CASES[name], trace))


def test_missing_registers_and_other_shapes_are_told(traces: dict[str, Trace]) -> None:
    case = CASES["neurons"]
    trace = traces["neurons"]
    with pytest.raises(AssertionError):
        compared(case, Trace(trace.z))
    with pytest.raises(AssertionError):
        compared(case, Trace({n: z[:, :-1] for n, z in trace.z.items()}, states=trace.states))
    with pytest.raises(TraceError):
        compare_entries({}, Trace({n: z[..., :1] for n, z in trace.z.items()}), trace)
