"""Circuits on the real Lava runtime, in reals and in integers: against the reference, and against plain loops."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from cases import Case, chain, connected, full, hard, whole
from test_lava import LAVA, change, differences
from test_lava_fixed import compared, different, neuron, refused

from eiexport import graph as graphs
from eiexport.alphabet import BINARY, REAL, Alphabet, interval
from eiexport.circuits import FORMS, EICircuit, IntCircuit
from eiexport.integers import IntConv, IntDense
from eiexport.nodes import lif
from eiexport.trace import Trace
from targets.lava.plan import plan

MAP = (2, 4, 3)
GRADED = interval(0, 3, True)
TOP = 131071  # an integer current is clipped to it


class Circuits:
    """Random circuits of whole numbers, or with `real` of quarters; the last cell's denominator is always zero."""

    def __init__(self, seed: int, real: bool) -> None:
        self.rng, self.real = np.random.default_rng(seed), real

    def draw(self, shape: Any, lo: int, hi: int, part: float = 1.0) -> np.ndarray:
        return self.rng.integers(lo, hi + 1, shape) * (part if self.real else 1)

    def __call__(self, out: int, cells: int, inputs: int, kernel: tuple[int, ...] = (), **fields: Any) -> Any:
        """A circuit of `out` excitatory and `cells` inhibitory cells; options of a part stand in a dict by its name."""
        given = {k: fields.pop(k, {}) for k in ("excite", "inhibit", "spread")}
        geometry = fields.pop("geometry", {})
        shapes = {"excite": (out, inputs), "inhibit": (cells, inputs), "spread": (out, cells)}
        parts = {}
        for k, (rows, columns) in shapes.items():
            own = geometry if k != "spread" else {}
            size = (kernel if k != "spread" else (1,) * len(kernel)) if kernel else ()
            shape = (rows, columns // own.get("groups", 1), *size)
            weight = self.draw(shape, -2, 2 if k == "spread" else 5, 0.25).clip(0)
            parts[k] = self.part(weight, own, given[k])
        parts["spread"].weight[-1] = 0
        form = fields.get("form", "exact")
        numbers: dict[str, Any] = {"bias": self.draw(out, -6, 6, 0.25)} if form != "none" or self.real else {}
        if form != "none":
            numbers["gain_e"] = self.draw(out, 1, 4, 0.5)
        if form in ("exact", "shift", "table"):
            numbers |= {"gain_i": self.draw(cells, 0, 3, 0.5), "epsilon": 0.75 if self.real else 3}
            numbers |= {"zero": "constant"} if self.real else {"gain_shift": 1, "shift": 2}
        if form == "frozen":
            # powers of two: g / D is then exact, and so is every order of the products
            numbers |= {"denominator": 2.0 ** self.rng.integers(-1, 3, out)} if self.real else {"shift": -1}
        return (EICircuit if self.real else IntCircuit)(**parts, **(numbers | fields))

    def part(self, weight: np.ndarray, geometry: dict[str, Any], fields: dict[str, Any]) -> Any:
        window = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | geometry
        if not self.real:
            fields = {"sign_mode": "excitatory"} | fields
            if weight.ndim == 2:
                return IntDense(weight, np.zeros(len(weight)), **fields)
            return IntConv(weight, np.zeros(len(weight)), **window, **fields)
        if weight.ndim == 2:
            return nir.Linear(weight)
        kind = nir.Conv1d if weight.ndim == 3 else nir.Conv2d
        return kind(input_shape=None, weight=weight, bias=np.zeros(len(weight)), **window)


def soft(shape: Any, threshold: float = 1.0, **fields: Any) -> Any:
    """The neuron of these networks: fires at its threshold, and that is taken off."""
    return lif(shape, **{"decay": 0.5, "threshold": threshold, "compare": "ge", "reset": "subtract"} | fields)


def soft_whole(shape: Any, vth: int = 8, **fields: Any) -> Any:
    return neuron(shape, **{"vth": vth, "dv": 2048, "compare": "ge", "reset": "subtract"} | fields)


def spikes(shape: tuple[int, ...], seed: int, hi: int = 1, steps: int = 6) -> np.ndarray:
    """Three samples: one with silent steps at its start and its end, one silent all through."""
    x = whole(shape, seed, 0, hi)[:, :steps]
    x[1, :1] = x[1, -1:] = x[2] = 0
    return x


def branches(c: Any, cell: Any, bits: dict[str, Any]) -> nir.NIRGraph:
    """Neurons of latency 1, 1 and 2 that are summed into one circuit."""
    nodes = {"c0": c(4, 2, 4), "a": cell((4,)), "c1": c(4, 2, 4), "b": cell((4,)), "c2": c(4, 1, 4), "d": cell((4,))}
    nodes |= {"sum": c(3, 2, 4, excite=bits, inhibit=bits, bias=full(3, -1)), "end": cell((3,))}
    edges = [("in", "c0"), ("c0", "a"), ("a", "c1"), ("c1", "b"), ("in", "c2"), ("c2", "d"), ("sum", "end")]
    return connected(nodes, [*edges, *((n, "sum") for n in "abd"), ("end", "out")], (4,))


def loop(c: Any, cell: Any, bits: dict[str, Any]) -> nir.NIRGraph:
    nodes = {"c": c(4, 2, 4, excite=bits, inhibit=bits), "cell": cell((4,)), "z": nir.Delay(full(4, 1.0))}
    edges = [("in", "c"), ("c", "cell"), ("cell", "z"), ("z", "c"), ("cell", "out")]
    return connected(nodes, edges, (4,))


def side_by_side(c: Any, options: list[dict[str, Any]]) -> nir.NIRGraph:
    """Circuits of one input, each recorded itself."""
    nodes = {f"c{i}": c(3, 2, 4, **fields) for i, fields in enumerate(options)}
    return connected(nodes, [e for n in nodes for e in (("in", n), (n, "out"))], (4,))


def case(name: str, graph: nir.NIRGraph, x: np.ndarray, alphabet: Alphabet = BINARY) -> Case:
    return Case(name, graph, x, alphabet, True, name)


def real_cases() -> Iterator[Case]:
    c = Circuits(70, True)

    window = {"stride": (2, 1), "padding": (1, 0)}
    yield case("conv", chain(MAP, c(3, 2, 2, (3, 2), geometry=window), soft((3, 2, 2))), spikes(MAP, 1))
    grouped = c(4, 2, 2, (2, 2), geometry={"groups": 2, "dilation": (2, 1)}, form="table")
    yield case("groups", chain(MAP, grouped, soft((4, 2, 2))), spikes(MAP, 2, 3), GRADED)
    yield case("dense", chain((4,), c(3, 2, 4), soft((3,))), spikes((4,), 3))
    forms = side_by_side(c, [{"form": f} for f in FORMS])
    yield case("forms", forms, spikes((4,), 4, 3), GRADED)
    for steps in (6, 1):
        rest = [nir.Affine(0.5 * np.eye(3), full(3, 0.625)), lif((3,), decay=1.0, threshold=1.0)]
        rest += [c(3, 2, 3, bias=full(3, 0.625)), soft((3,)), c(3, 2, 3, bias=full(3, 0.375)), soft((3,))]
        yield case(f"biases {steps}", chain((3,), *rest), spikes((3,), 5, 1, steps))
    yield case("sum", branches(c, soft, {}), spikes((4,), 6))
    yield case("ends in currents", chain((4,), c(4, 2, 4), soft((4,)), c(3, 2, 4, form="none")), spikes((4,), 7))
    yield case("pixels", chain(MAP, c(3, 2, 2, (2, 2)), soft((3, 3, 2))), hard(MAP, 8)[[0, 1, 4]].clip(0), REAL)
    two = [c(4, 2, 4, form="shift", bias=full(4, -1.5)), c(3, 2, 4, form="shift"), soft((3,))]
    yield case("negative currents", chain((4,), *two), spikes((4,), 9))
    flip = [nir.Affine(-np.eye(4), full(4, 1.0)), c(3, 2, 4), soft((3,))]
    yield case("a bias makes 0 and 1 of 0 and -1", chain((4,), *flip), spikes((4,), 10))
    yield case("one axis", chain((2, 7), c(3, 2, 2, (3,), geometry={"stride": 2}), soft((3, 3))), spikes((2, 7), 11))
    yield case("places", chain((2, 4), c(3, 3, 4), soft((2, 3))), spikes((2, 4), 12))
    yield case("loop", loop(c, soft, {}), spikes((4,), 13))
    ends = {"c": c(3, 2, 4, bias=full(3, 0.75)), "stock": lif((3,), decay=0.5, threshold=0.75)}
    ends |= {"soft": soft((3,), gain=0.5), "c1": c(3, 2, 4), "scaled": lif((3,), decay=0.5, threshold=0.75, gain=0.5)}
    edges = [(a, b) for path in (("in", "c", "stock", "out"), ("c", "soft", "out")) for a, b in pairwise(path)]
    edges += pairwise(("in", "c1", "scaled", "out"))
    yield case("neurons behind", connected(ends, edges, (4,)), spikes((4,), 14))
    path = [c(3, 2, 2, (2, 2)), soft((3, 3, 2)), nir.SumPool2d(np.array([2, 1]), np.array([1, 1]), np.zeros(2, int))]
    path += [nir.Flatten({"input": np.array((3, 2, 2))}, 0, -1), c(3, 2, 12, form="table"), soft((3,), 9.0)]
    for part in (getattr(node, k) for node in (path[0], path[4]) for k in ("excite", "inhibit", "spread")):
        part.weight = part.weight * c.rng.uniform(0.5, 1, part.weight.shape)
    yield Case("rounded", chain(MAP, *path, c(2, 2, 3, form="none")), hard(MAP, 15).clip(0) / 3, REAL, False, "")


def whole_cases() -> Iterator[Case]:
    c = Circuits(71, False)
    two = {k: {"message_bits": bits} for k, bits in (("excite", 2), ("inhibit", 2), ("spread", 12))}

    def made(*args: Any, **fields: Any) -> Any:
        return c(*args, **({"spread": {"message_bits": 16}} | fields))

    window = {"stride": (2, 1), "padding": (1, 0)}
    maps = made(3, 2, 2, (3, 2), geometry=window, excite={"weight_exp": 1}, inhibit={"weight_exp": 2}, form="table")
    yield case("conv", chain(MAP, maps, soft_whole((3, 2, 2))), spikes(MAP, 21))
    yield case("dense", chain((4,), made(3, 2, 4), soft_whole((3,))), spikes((4,), 22))
    forms = side_by_side(c, [two | {"form": f} for f in FORMS])
    yield case("forms", forms, spikes((4,), 23, 3), GRADED)
    options: list[dict[str, Any]] = [{"gain_shift": 0, "shift": 5}, {"gain_shift": 3, "shift": 0, "epsilon": 1}]
    options += [{"form": "frozen", "shift": 2}, {"form": "table", "table_bits": 1, "shift": 13}]
    options += [{"form": "shift", "shift": 7, "epsilon": 5}]
    yield case("shifts", side_by_side(made, options), spikes((4,), 24))
    worded: dict[str, Any] = {"excite": {"weight_exp": np.array([3, 0, 1])}, "inhibit": {"weight_exp": -1, "bits": 7}}
    words = made(3, 2, 4, **worded, spread={"weight_exp": -2, "message_bits": 12})
    words.excite.weight, words.inhibit.weight = words.excite.weight * 9, words.inhibit.weight * 60
    yield case("synapse words", chain((4,), words, soft_whole((3,), 20)), spikes((4,), 25))
    for steps in (6, 1):
        start = [IntDense(4 * np.eye(3), np.zeros(3)), soft_whole((3,), 9, bias_mant=5, dv=0)]
        rest = [made(3, 2, 3), soft_whole((3,), bias_mant=3), made(3, 2, 3, bias=full(3, 2)), soft_whole((3,), 3)]
        yield case(f"biases {steps}", chain((3,), *start, *rest), spikes((3,), 26, 1, steps))
    yield case("sum", branches(made, soft_whole, {"message_bits": 2}), spikes((4,), 27))
    path = [made(4, 2, 4), soft_whole((4,)), made(3, 2, 4, form="none")]
    yield case("ends in currents", chain((4,), *path), spikes((4,), 28))
    far = made(3, 2, 4, shift=20, gain_shift=0, epsilon=1)
    far.bias = np.array([-9, 0, 9])
    ends = {"c": far, "n": neuron((3,), vth=130000)}
    edges = [("in", "c"), ("c", "out"), ("c", "n"), ("n", "out")]
    yield case("currents stop", connected(ends, edges, (4,)), spikes((4,), 29))
    for name, bias, bits in (("a bias makes 0 and 1 of 0 and -1", 1, 0), ("a bias of graded messages", 5, 3)):
        flip = IntDense(-np.eye(4), full(4, bias), sign_mode="inhibitory", message_bits=bits and 2)
        behind = made(3, 2, 4, excite={"message_bits": bits}, inhibit={"message_bits": bits, "weight_exp": -1})
        x = spikes((4,), 30, 3 if bits else 1)
        yield case(name, chain((4,), flip, behind, soft_whole((3,))), x, GRADED if bits else BINARY)
    yield case("places", chain((2, 4), made(3, 3, 4), soft_whole((2, 3))), spikes((2, 4), 31))
    axis = made(3, 2, 2, (3,), geometry={"stride": 2, "padding": 1})
    yield case("one axis", chain((2, 7), axis, soft_whole((3, 4))), spikes((2, 7), 32))
    yield case("loop", loop(made, lambda shape: soft_whole(shape, 2), {"message_bits": 2}), spikes((4,), 33))
    ends = {"c": made(3, 2, 4), "stock": neuron((3,), vth=6), "signed": neuron((3,), vth=6, lower=-3)}
    edges = [("in", "c"), *(e for n in ("stock", "signed") for e in (("c", n), (n, "out")))]
    yield case("neurons behind", connected(ends, edges, (4,)), spikes((4,), 34))


REALS = {c.name: c for c in real_cases()}
WHOLES = {c.name: c for c in whole_cases()}
EVERY = [("real", n) for n in REALS] + [("whole", n) for n in WHOLES]
NAMES = [" ".join(key) for key in EVERY]


def held(kind: str, name: str) -> Case:
    return (REALS if kind == "real" else WHOLES)[name]


def run(picked: list[tuple[str, str]]) -> dict[tuple[str, str], Trace]:
    pairs = [(held(*key).network(), held(*key).x) for key in picked]
    return dict(zip(picked, LAVA.run_many(pairs, probe=True), strict=True))


@pytest.fixture(scope="module")
def traces() -> dict[tuple[str, str], Trace]:
    return run(EVERY)


def wrong(case: Case, trace: Trace) -> list[str]:
    """Where a trace is not the reference's, registers included; of reals, also where it is no execution."""
    return different(compared(case, trace)) if case.network().integer else differences(case, trace)


@pytest.mark.parametrize("kind,name", EVERY, ids=NAMES)
def test_case(kind: str, name: str, traces: dict[tuple[str, str], Trace]) -> None:
    case, trace = held(kind, name), traces[kind, name]
    assert wrong(case, trace) == []
    if not name.endswith(" 1"):
        assert all(z.any() for z in trace.z.values())


# --- an oracle of plain loops: Python's own numbers, one at a time


def played(case: Case) -> dict[str, np.ndarray]:
    """Every node's output (sample, time, *neuron), as plain loops have it."""
    graph, exact = case.graph, int if case.network().integer else float
    samples = [[np.vectorize(exact, otypes=[object])(row) for row in sample] for sample in case.x]
    found = [_sample(graph, x) for x in samples]
    return {n: np.array([rows[n] for rows in found], np.float64) for n in graph.nodes if n != "out"}


def _sample(graph: nir.NIRGraph, x: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    sent: dict[str, list[np.ndarray]] = {n: [] for n in graph.nodes}
    membranes: dict[str, np.ndarray] = {}
    for row in x:
        waiting = [n for n in graph.nodes if n != "out"]
        while waiting:
            name = waiting.pop(0)
            node, came = graph.nodes[name], [a for a, b in graph.edges if b == name]
            t = len(sent[name])
            if isinstance(node, nir.Delay):  # of one step
                sent[name].append(sent[came[0]][t - 1] if t else np.full(node.delay.shape, 0, object))
            elif any(len(sent[a]) == t for a in came):
                waiting.append(name)
            else:
                sent[name].append(_output(node, sum(sent[a][t] for a in came) if came else row, membranes, name))
    return sent


def _output(node: Any, x: np.ndarray, membranes: dict[str, np.ndarray], name: str) -> np.ndarray:
    if isinstance(node, nir.Input):
        return x
    if isinstance(node, EICircuit | IntCircuit):
        return circuit(node, x)
    if not hasattr(node, "compare"):
        return linear(node, x)
    v, z = membranes.setdefault(name, np.full(x.shape, 0, object)), np.empty(x.shape, object)
    fields = {k: a for k, a in vars(node).items() if isinstance(a, np.ndarray) and a.shape in ((), x.shape)}
    for at in np.ndindex(x.shape):
        one = {k: np.broadcast_to(a, x.shape)[at].item() for k, a in fields.items()}
        z[at], v[at] = fired(one, node, v[at], x[at])
    return z


def fired(p: dict[str, Any], node: Any, v: Any, x: Any) -> tuple[int, Any]:
    """(spike, membrane) of one neuron; no synaptic state."""
    if "vth" in p:
        u, half = 64 * x, 1 << 23
        u += -2 * half if u > half else 2 * half if u <= -half else 0
        kept = v * (4096 - p["dv"])
        v = (abs(kept) >> 12) * (1 if kept >= 0 else -1) + u + (p["bias_mant"] << p["bias_exp"])
        v, upper, lower = min(max(v, 1 - half), half - 1), 64 * p["vth"], 64 * p.get("lower", -half)
    else:
        v, upper, lower = p["decay"] * v + p["gain"] * x, p["v_threshold"], -(2.0**99)
    spike = (v >= upper if node.compare == "ge" else v > upper) - (v < lower)
    return spike, (v - upper if node.reset == "subtract" else 0) if spike else v


def linear(node: Any, x: np.ndarray) -> np.ndarray:
    """A matrix over the last axis, or a cross-correlation over all but the first."""
    w, maps = node.weight, np.ndim(node.weight) > 2
    if not maps:
        out = np.empty((*x.shape[:-1], len(w)), object)
        for *at, o in np.ndindex(out.shape):
            total = sum(word(node, w[o][i]) * x[(*at, i)] for i in range(len(w[o])))
            out[(*at, o)] = shifted(node, o, total)
        return out
    axes = w.ndim - 2
    stride, padding, dilation = (np.broadcast_to(getattr(node, k), axes) for k in ("stride", "padding", "dilation"))
    reach = [d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilation, strict=True)]
    size = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(x.shape[1:], padding, reach, stride, strict=True)]
    out = np.empty((len(w), *size), object)
    for o, *at in np.ndindex(out.shape):
        first, total = o // (len(w) // int(node.groups)) * w.shape[1], 0
        for i, *k in np.ndindex(w.shape[1:]):
            place = [a * s + b * d - p for a, s, b, d, p in zip(at, stride, k, dilation, padding, strict=True)]
            if all(0 <= a < n for a, n in zip(place, x.shape[1:], strict=True)):
                total = total + word(node, w[(o, i, *k)]) * x[(first + i, *place)]
        out[(o, *at)] = shifted(node, o, total)
    return out


def word(node: Any, w: Any) -> Any:
    """What a synapse holds of a weight."""
    if isinstance(node, IntConv):
        return int(w)
    if not isinstance(node, IntDense):
        return w.item()
    flip, mixed = (-1 if node.sign_mode == "inhibitory" else 1), node.sign_mode == "mixed"
    drop = 8 - node.bits + mixed
    return flip * (min(max(flip * int(w), -256 * mixed), 255) >> drop << drop)


def shifted(node: Any, output: int, total: Any) -> Any:
    bias = getattr(node, "bias", None)
    offset = 0 if bias is None else bias[output].item()
    if not isinstance(node, IntDense | IntConv):
        return total + offset
    exponent = int(np.broadcast_to(node.weight_exp, len(node.weight))[output])
    return (total << exponent if exponent >= 0 else total >> -exponent) + int(offset)


def circuit(node: Any, x: np.ndarray) -> np.ndarray:
    axis = -1 if np.ndim(node.excite.weight) == 2 else 0  # where the cells lie
    e, s = linear(node.excite, x), linear(node.inhibit, x)
    for at in np.ndindex(s.shape):
        s[at] = max(s[at], 0)
    shunt = np.full(s.shape, 0, object)
    for at in np.ndindex(s.shape):
        if node.gain_i is not None:
            shunt[at] = s[at] * node.gain_i[at[axis]].item()
        if isinstance(node, IntCircuit):
            shunt[at] >>= node.gain_shift
    less, d, out = linear(node.spread, s), linear(node.spread, shunt), np.empty(e.shape, object)
    for at in np.ndindex(e.shape):
        cell = at[axis]
        n = (e[at] - less[at]) * (1 if node.gain_e is None else node.gain_e[cell].item())
        current = whole_current if isinstance(node, IntCircuit) else real_current
        y = current(node, n, d[at] or node.epsilon, cell) + (0 if node.bias is None else node.bias[cell].item())
        out[at] = min(max(y, -TOP), TOP) if isinstance(node, IntCircuit) and node.form != "none" else y
    return out


def real_current(node: Any, n: float, d: float, cell: int) -> float:
    if node.form == "none":
        return n
    if node.form == "frozen":
        return n / node.denominator[cell].item()
    if node.form == "table":
        return n * (entry(d, node.table_bits) / 4096) / power(d, False)
    return n / (d if node.form == "exact" else power(d, True))


def whole_current(node: Any, n: int, d: int, cell: int) -> int:
    if node.form == "none":
        return n
    if node.form == "frozen":
        y = n << node.shift if node.shift >= 0 else n >> -node.shift
    elif node.form == "table":
        y = ((n * entry(d, node.table_bits) << node.shift) >> 12) // power(d, False)
    else:
        y = (n << node.shift) // (d if node.form == "exact" else power(d, True))
    return y


def power(d: Any, nearest: bool) -> Any:
    """The power of two at or below d, or the nearest in its logarithm."""
    p = 1 if isinstance(d, int) else 2.0**-40
    while 2 * p <= d:
        p *= 2
    return 2 * p if nearest and d * d >= 2 * p * p else p


def entry(d: Any, bits: int) -> int:
    """4096 / m, where d = m times its power of two, m taken at the middle of its part of [1, 2)."""
    part = int((d / power(d, False) - 1) * 2**bits)
    return round(4096 / (1 + (2 * part + 1) / 2 ** (bits + 1)))


@pytest.mark.parametrize("kind,name", [key for key in EVERY if held(*key).exact])
def test_plain_loops_agree(kind: str, name: str, traces: dict[tuple[str, str], Trace]) -> None:
    case, trace = held(kind, name), traces[kind, name]
    expected = played(case)
    for node, z in trace.z.items():
        assert z.shape == expected[node].shape and np.array_equal(z, expected[node]), node


def test_what_was_compared(traces: dict[tuple[str, str], Trace]) -> None:
    stopped = traces["whole", "currents stop"].z["c"]
    assert stopped.max() == TOP and stopped.min() == -TOP
    forms = [traces[kind, "forms"].z for kind in ("real", "whole")]
    assert all(len({z.tobytes() for z in found.values()}) == len(FORMS) for found in forms)
    case = REALS["dense"]
    expected = played(case)["n0"]
    case.graph.nodes["n0"].epsilon *= 2
    assert (played(case)["n0"] != expected)[..., -1].any()
    case.graph.nodes["n0"].epsilon /= 2


# --- samples, and what is decided


def test_a_sample_of_a_batch_equals_the_sample_alone(traces: dict[tuple[str, str], Trace]) -> None:
    picked = [(kind, name) for kind in ("real", "whole") for name in ("biases 6", "loop", "sum")]
    pairs = [(held(*key).network(), held(*key).x[1:2]) for key in picked]
    for key, alone in zip(picked, LAVA.run_many(pairs, probe=True), strict=True):
        for (kind, node, a), (_, _, b) in zip(alone.observables(), traces[key].observables(), strict=True):
            assert a.shape[0] == 1 and np.array_equal(a[0], b[1]), (key, kind, node)


def test_a_circuit_is_one_hop(traces: dict[tuple[str, str], Trace]) -> None:
    found = {key: traces[key].latency for key in EVERY}
    for kind in ("real", "whole"):
        assert found[kind, "sum"] == {"a": 1, "b": 2, "d": 1, "end": 3}
        assert found[kind, "forms"] == dict.fromkeys(("c0", "c1", "c2", "c3", "c4"), 1)
        assert found[kind, "ends in currents"] == {"n1": 1, "n2": 2} and found[kind, "loop"] == {"cell": 1}
    assert found["real", "biases 6"] == found["real", "biases 1"] == {"n1": 1, "n3": 2, "n5": 3}
    assert LAVA.compile(REALS["sum"].network()).latency == found["real", "sum"]


def test_stock_neurons_stand_behind_circuits_of_ours() -> None:
    for kind, custom in (("real", {"c", "c1", "soft", "scaled"}), ("whole", {"c"})):
        network = held(kind, "neurons behind").network()
        inner = set(network.steps) - {"in", "out"}
        assert {n for n in inner if LAVA.process(network, n) == "custom"} == custom < inner
        assert LAVA.evidence_for(network) == "plumbing"


def test_processes_are_counted() -> None:
    # player, two connections, the rest of the circuit, neuron, recorder; a bias adds its connection, and what adds it
    expected = {("real", "dense"): 6, ("real", "a bias makes 0 and 1 of 0 and -1"): 8, ("real", "loop"): 7}
    for key, processes in (expected | {("whole", "synapse words"): 8}).items():  # three exponents of W_EE
        network = held(*key).network()
        assert plan(network).processes(network) == processes, key


# --- refusals


def test_a_minimum_over_the_sample_is_refused() -> None:
    c = Circuits(80, True)
    LAVA.check(graphs.check(chain((4,), c(3, 2, 4, form="none", zero="sample_min"))))
    hint = "give --divide exact (a calibrated constant for zero denominators), frozen, shift or table"
    refused(chain((4,), c(3, 2, 4, zero="sample_min"), soft((3,))), BINARY, "'n0' (EICircuit)", hint)


def test_what_fixed_point_lava_cannot_do_is_refused() -> None:
    c = Circuits(81, False)
    bits = {"message_bits": 16}
    thirds = c(2, 2, 2, (2, 2), inhibit={"weight_exp": -1}, spread=bits)
    thirds.inhibit.weight[0, 0, 0, 0] = 3
    image = chain(MAP, thirds, soft_whole((2, 3, 2)))
    refused(image, BINARY, "'n0' (IntCircuit)", "in inhibit", "weight_exp", "-1 does not")
    for part in ("excite", "inhibit"):
        both = {k: {"message_bits": 21, "weight_exp": 2 * (k == part)} for k in ("excite", "inhibit")}
        far = c(2, 2, 4, **both, spread={"message_bits": 32}, form="none")
        getattr(far, part).weight[0] = 255
        refused(chain((4,), far), interval(0, 1 << 20, True), "'n0' (IntCircuit)", f"in {part}", "32 bits")
    both = {k: {"message_bits": 20} for k in ("excite", "inhibit")}
    far = c(2, 2, 4, **both, spread={"message_bits": 31}, form="none")
    far.spread.weight, far.inhibit.weight = full((2, 2), 64), full((2, 4), 9)
    refused(chain((4,), far), interval(0, 1 << 19, True), "'out' (Output)", "signals have 32 bits")
    mixed = chain((4,), c(3, 2, 4, spread=bits), soft_whole((3,)), Circuits(82, True)(3, 2, 3))
    refused(mixed, BINARY, "'n2' (EICircuit)", "quantise")


# --- mutants: the source that the worker runs, changed in one place

MUTANTS = {
    "connections exchanged": ("build.py", "(own.excited, own.inhibited)", "(own.inhibited, own.excited)", "places"),
    "one connection twice": ("build.py", "linear, getattr(node, part)", "linear, node.excite", "places"),
    "messages are spikes": ("build.py", "message_bits(self.network, self.plan, name, linear)", "0", "forms"),
    "constant not added": ("build.py", "if not constant.any():", "if True:", "a bias of graded messages"),
    "currents below zero": ("processes/circuit.py", "OPS.relu(s)", "s", "negative currents"),
}


@pytest.mark.parametrize("file,old,new,name", MUTANTS.values(), ids=MUTANTS)
def test_mutant_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, old: str, new: str, name: str
) -> None:
    change(monkeypatch, tmp_path, file, old, new)
    key = ("whole" if name in WHOLES else "real", name)
    assert wrong(held(*key), run([key])[key])
