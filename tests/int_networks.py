"""Integer networks: hand-made cases that each provoke a named branch, random ones of any size.

A branch is a way a value can go: onto a threshold, round a register, against a limit, through a reset;
`campaign.coverage` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import nir
import numpy as np

from eiexport import graph as graphs
from eiexport.alphabet import BINARY, TERNARY, Alphabet, interval
from eiexport.integers import IntConv, IntCubaLIF, IntDense, IntGatedLIF, synapse_words

HALF = 1 << 23  # of a 24-bit register
Made = tuple[nir.NIRGraph, np.ndarray, Alphabet]


def neuron(shape: Any, vth: Any = 10, **fields: Any) -> IntCubaLIF:
    """No synaptic state, no leak, no bias unless told: IF."""
    p: dict[str, Any] = {"du": 4095, "dv": 0, "bias_mant": 0, "bias_exp": 0, **fields}
    lower = p.pop("lower", None)
    whole = {k: v if isinstance(v, str) else np.array(v, np.int32) for k, v in p.items()}
    low = None if lower is None else np.broadcast_to(np.array(lower, np.int32), shape).copy()
    return IntCubaLIF(vth=np.broadcast_to(np.array(vth, np.int32), shape).copy(), lower=low, **whole)


def dense(weight: Any, bias: Any = None, **fields: Any) -> IntDense:
    w = np.array(weight, np.int32)
    return IntDense(w, np.zeros(len(w), np.int32) if bias is None else np.array(bias, np.int32), **fields)


def conv(weight: Any, bias: Any = None, **fields: Any) -> IntConv:
    w = np.array(weight, np.int32)
    axes = w.ndim - 2
    geometry = {"stride": 1, "padding": 0, "dilation": 1} | {
        k: fields.pop(k) for k in ("stride", "padding", "dilation") if k in fields
    }
    each = {k: np.broadcast_to(np.array(v, np.int32), axes).copy() for k, v in geometry.items()}
    return IntConv(w, np.zeros(len(w), np.int32) if bias is None else np.array(bias, np.int32), **each, **fields)


def sigmoid_table() -> np.ndarray:
    """sigmoid(k / 16) in Q0.8, k = -128..127."""
    return np.minimum(np.rint(256 / (1 + np.exp(-np.arange(-128, 128) / 16))), 255).astype(np.uint8)


def connected(nodes: dict[str, Any], edges: list[tuple[str, str]], shape: tuple[int, ...]) -> nir.NIRGraph:
    """A stamped graph of dt = 1; the node "in" has `shape`, and "out" takes whatever reaches it."""
    ends = {"in": nir.Input(np.array(shape)), "out": nir.Output(output_type={"output": None})}
    raw = nir.NIRGraph({**ends, **nodes}, edges, type_check=False)
    return graphs.stamp(raw, dt=1.0, integrator="euler", dtype="int64")


def chain(shape: tuple[int, ...], *nodes: Any) -> nir.NIRGraph:
    """in -> n0 -> n1 -> ... -> out."""
    named = {f"n{i}": node for i, node in enumerate(nodes)}
    return connected(named, list(pairwise(["in", *named, "out"])), shape)


# --- cases


@dataclass(frozen=True, eq=False)
class Case:
    """A network, its input (sample, time, *neuron), and branches of nodes that it must hit."""

    name: str
    graph: nir.NIRGraph
    x: np.ndarray
    alphabet: Alphabet
    hits: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return self.name

    def network(self) -> graphs.Network:
        return graphs.check(self.graph, alphabet=self.alphabet)


def case(name: str, graph: nir.NIRGraph, x: Any, *hits: tuple[str, str]) -> Case:
    a = np.array(x, np.float64)
    lo, hi = min(a.min(), 0), max(a.max(), 1)
    return Case(name, graph, a, interval(lo, hi, True), hits)


def draw(lo: int, hi: int, *shape: int) -> np.ndarray:
    """Whole numbers in [lo, hi], the same at every call."""
    return np.random.default_rng([*shape, hi]).integers(lo, hi + 1, shape)


def provoking_cases() -> list[Case]:
    """Small networks, each made for what it is named after."""
    return [*neuron_cases(), *connection_cases(), *gated_cases(), *network_cases()]


def neuron_cases() -> Iterator[Case]:
    """The input goes straight into the neurons, so x is what they sum up."""
    for compare in ("gt", "ge"):
        for form, dv in (("", [0, 0, 2048, 4096]), ("-if", 0)):
            node = neuron((4,), [1, 2, 3, 4], compare=compare, dv=dv)
            yield case(f"tie-{compare}{form}", chain((4,), node), draw(-2, 4, 3, 20, 4), ("n0", f"tie {compare}"))
        for reset in ("zero", "subtract", "none"):
            node = neuron((4,), [4, 6, 9, 13], du=2048, dv=1024, compare=compare, reset=reset)
            hits = [("n0", f"reset {reset}"), ("n0", "kept"), ("n0", "negative v")]
            yield case(f"reset-{reset}-{compare}", chain((4,), node), draw(-4, 9, 2, 20, 4), *hits)
        for reset in ("zero", "none"):
            node = neuron((3,), [2, 3, 4], lower=[-2, -1, -5], dv=[0, 2048, 4096], compare=compare, reset=reset)
            hits = [("n0", b) for b in ("negative spike", "lower tie", f"tie {compare}", f"reset {reset}")]
            yield case(f"ternary-{reset}-{compare}", chain((3,), node), draw(-5, 5, 3, 20, 3), *hits)
    du, dv = [-1, 0, 1, 163, 2048, 4094, 4095], [3277, 163, 0, 4095, 4096, 1, 2048]
    for name, leak in (("fast-and-slow", dv), ("slow-and-fast", dv[::-1])):
        x, hits = draw(-40, 30, 2, 20, 7), [("n0", "u toward zero"), ("n0", "v toward zero")]
        yield case(f"decay-{name}", chain((7,), neuron((7,), 90, du=du, dv=leak)), x, *hits)
    x = np.random.default_rng(0).choice([131072, -131072, 131071, 1, -1, 0, 400000, -400000], (2, 25, 5))
    x[:, :2, 0] = [[131072, 1], [-131072, -1]]  # onto the edge of the register, and a step further
    node = neuron((5,), 1 << 18, du=[-1, -1, 0, 2048, 4095], dv=4096)
    yield case("wrap", chain((5,), node), x, ("n0", "wrap top"), ("n0", "wrap bottom"))
    # 4096 << 8 is an eighth of the limit, so the eighth step lands one beyond it
    bias = {"bias_mant": [4096, -4096, 4095, -4095, 4095], "bias_exp": [8, 8, 7, 7, 8]}
    node = neuron((5,), [1 << 18] * 4 + [131071], **bias)
    hits = [("n0", "saturation top"), ("n0", "saturation bottom"), ("n0", "reset zero")]
    yield case("saturation", chain((5,), node), np.zeros((1, 30, 5)), *hits)
    node = neuron((7,), 5, dv=2048, bias_mant=[-5, -5, -1, 5, 7, -3, 9], bias_exp=[-1, -2, -23, -1, 3, 0, 6])
    yield case("bias-exponents", chain((7,), node), draw(-1, 1, 2, 15, 7), ("n0", "v toward zero"))
    node = neuron((2, 3), [[0, 1, -1], [131071, 7, 2]], dv=300)
    yield case("one-step", chain((2, 3), node), [[[[1, 1, 0], [9, 8, 2]]]], ("n0", "tie gt"), ("n0", "reset zero"))
    yield case("silence", chain((3,), neuron((3,), [0, 1, 5])), np.zeros((2, 4, 3)), ("n0", "tie gt"))


def side_by_side(shape: tuple[int, ...], nodes: dict[str, Any]) -> nir.NIRGraph:
    """All read the input, and all are recorded."""
    return connected(nodes, [e for n in nodes for e in (("in", n), (n, "out"))], shape)


def connection_cases() -> Iterator[Case]:
    """Connections alone, their sums recorded."""
    edges = [1, -1, 2, -2, 3, -3, 15, -15, 254, 255, -254, -255, 256, -256, 257, -257, 300, -300]
    raw = np.concatenate([np.array(edges)[:, None], draw(-280, 280, len(edges), 3)], axis=1)
    x = draw(-7, 7, 2, 9, 4)
    x[0, 0] = [1, 0, 0, 0]
    for mode in ("mixed", "excitatory", "inhibitory"):
        nodes = {f"b{b}": dense(raw, sign_mode=mode, bits=b, message_bits=4) for b in range(1, 9)}
        hits = [("b5", "clipped weight"), ("b5", "truncated weight"), ("b5", "message -1")]
        yield case(f"synapse-{mode}", side_by_side((4,), nodes), x, *hits)
        fields = {"sign_mode": mode, "message_bits": 4}
        bias = draw(-9, 9, len(edges))
        nodes = {f"e{e + 3}": dense(raw, bias, weight_exp=e, **fields) for e in range(-3, 4)}
        yield case(f"exponent-{mode}", side_by_side((4,), nodes), x, ("e0", "floor"), ("e1", "floor"))
    w = draw(-99, 99, 4, 2, 2, 3)
    nodes = {f"e{e + 3}": conv(w, [5, -5, 1, 0], weight_exp=e, message_bits=4) for e in range(-3, 4)}
    yield case("exponent-conv", side_by_side((2, 3, 4), nodes), draw(-7, 7, 2, 5, 2, 3, 4), ("e0", "floor"))
    limit = np.array([HALF - 1, HALF, HALF + 1, 3 * HALF, 5 * HALF + 7])
    x = np.stack([[limit, -limit], [limit - 1, 1 - limit]])[:, :, None]
    nodes = {f"e{e + 1}": conv([[[1]], [[-3]]], [7, -7], weight_exp=e, message_bits=28) for e in (-1, 0, 1)}
    yield case("modulo", side_by_side((1, 5), nodes), x, ("e1", "modulo top"), ("e1", "modulo bottom"))
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    graph = chain((2, 6, 5), conv(draw(-90, 90, 4, 1, 2, 3), [1, 2, 3, 4], **geometry, message_bits=3))
    yield case("geometry", graph, draw(-3, 3, 2, 4, 2, 6, 5), ("n0", "message -1"))
    geometry = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    graph = chain((4, 9), conv(draw(-90, 90, 4, 2, 3), **geometry))
    yield case("geometry-line", graph, draw(0, 1, 2, 4, 4, 9))
    graph = chain((2, 4), dense(raw, draw(-9, 9, len(edges)), message_bits=4))
    yield case("last-axis", graph, draw(-7, 7, 2, 3, 2, 4), ("n0", "message -1"))
    each = np.array([-3, 0, 2, 1, -1], np.int32)
    w = draw(-25, 25, 5, 2, 3) * 8
    nodes = {
        "dense": dense(w[:, 0], weight_exp=each, message_bits=4),
        "late": dense(w[:, 1], weight_exp=3, message_bits=4),
    }
    yield case("exponent-each", side_by_side((3,), nodes), draw(-7, 7, 2, 5, 3), ("dense", "message -1"))
    graph = chain((2, 7), conv(w, weight_exp=each, message_bits=4))
    yield case("exponent-each-conv", graph, draw(-7, 7, 2, 5, 2, 7), ("n0", "message -1"))


def gated(shape: tuple[int, ...], feedback: Any = None, balance: Any = None, **fields: Any) -> IntGatedLIF:
    """fields of the neuron, and of the gates."""
    own = ("table", "feedback_shift", "balance_shift", "balance_bits")
    p = {"table": sigmoid_table(), "balance_bits": 12, **{k: fields.pop(k) for k in own if k in fields}}
    return IntGatedLIF(neuron(shape, **fields), feedback, balance, accumulator_bits=40, **p)


def gated_cases() -> Iterator[Case]:
    # feedback of a fixed strength: one entry of the table each, and beyond both ends
    fed = [-130, -129, -128, -127, -1, 0, 1, 126, 127, 128]
    table = np.random.default_rng(1).permutation(256).astype(np.uint8)
    for shift in (0, 1, 3):
        node = gated(
            (10,),
            dense(np.zeros((10, 10)), (np.array(fed) << shift) + (shift > 0)),
            table=table,
            feedback_shift=shift,
            vth=300,
        )
        hits = [("n0", b) for b in ("table start", "table end", "gate floor")]
        yield case(f"table-shift-{shift}", chain((10,), node), draw(-900, 900, 2, 9, 10), *hits)
    weight = draw(-127, 127, 6, 6)
    weight[0] = 0
    parts = {"feedback": dense(weight[::-1], draw(-9, 9, 6), message_bits=2)}
    parts["balance"] = dense(weight, message_bits=12)
    pads = {"padding": 1, "message_bits": 2}
    maps = {"feedback": conv(draw(-127, 127, 2, 2, 3, 3), [40, -40], **pads)}
    maps["balance"] = conv(draw(-127, 127, 2, 2, 3, 3), [3, -3], **{**pads, "message_bits": 12})
    for shape, gates, form in (((6,), parts, "dense"), ((2, 3, 4), maps, "conv")):
        x = draw(-150, 150, 3, 20, *shape)
        for which in (("feedback",), ("balance",), ("feedback", "balance")):
            used = {k: v for k, v in gates.items() if k in which}
            if which == ("feedback",):
                used["feedback"] = replace(used["feedback"], message_bits=0)
            node = gated(shape, **used, vth=30, du=1000, dv=500, balance_shift=3)
            named = {"feedback": ("gate floor",), "balance": ("negative spike", "message top", "message bottom")}
            hits = [("n0", "reset zero"), *(("n0", b) for w in which for b in named[w])]
            yield case(f"gated-{form}-{'-'.join(which)}", chain(shape, node), x, *hits)
    # which of the two is larger is seen only below the limit of a message
    node = gated((2,), None, dense([[2, -4], [-4, 2]], message_bits=6), balance_bits=6, vth=0)
    x = draw(-4, 9, 3, 20, 2)
    hits = [("n0", b) for b in ("message top", "message bottom", "negative spike")]
    yield case("message-limits", chain((2,), node), x, *hits)
    # two that fire, and two whose messages stand at a limit: one more, and the signs would turn
    balance = dense([[0, 2, 0, 0], [0] * 4, [0, 0, 0, 2], [0] * 4], [63, 0, -63, 0], message_bits=6)
    node = gated((4,), None, balance, balance_bits=6, vth=[0, 0, 0, 1 << 16])
    yield case("message-edges", chain((4,), node), [[[2, -5, 2, 5]] * 3], *hits[:2])
    # the first fires, and the second's membrane, small and negative, is its sign
    for shift in (5, 6, 7, 9):
        node = gated((2,), None, dense([[0, 2], [2, 0]], message_bits=12), balance_shift=shift, vth=[-1000, 2])
        yield case(f"message-shift-{shift}", chain((2,), node), draw(-3, 3, 3, 9, 2), ("n0", "negative spike"))
    balance = dense([[0, 0, 0], [4, 0, -4], [0, 2, 0]], message_bits=12)
    node = gated((3,), None, balance, vth=[1, 1, 1], dv=[0, 0, 1000])
    yield case("swallowed", chain((3,), node), draw(-1, 4, 3, 20, 3), ("n0", "swallowed"), ("n0", "reset zero"))


def network_cases() -> Iterator[Case]:
    signs = neuron((4,), [2, 3, 1, 2], lower=[-2, -1, -3, -1], dv=1000)
    layer = dense(draw(-99, 99, 5, 4), message_bits=2)
    graph = chain((4,), signs, layer, neuron((5,), [40, 90, 10, 60, 30], du=900, dv=700))
    yield case("signed-dense", graph, draw(-4, 4, 2, 15, 4), ("n1", "message -1"), ("n2", "u toward zero"))
    signs = neuron((2, 3, 4), 2, lower=-2, dv=1000)
    pool = nir.SumPool2d(*(np.array(v) for v in ((2, 2), (2, 1), (1, 0))))
    parts = [signs, conv(draw(-40, 40, 2, 2, 2, 2), message_bits=2), neuron((2, 2, 3), 50, lower=-20, dv=400), pool]
    parts += [nir.Flatten({"input": np.array([2, 2, 2])}, 0, -1), dense(draw(-99, 99, 3, 8), message_bits=4)]
    graph = chain((2, 3, 4), *parts, neuron((3,), [50, 20, 90]))
    yield case("signed-maps", graph, draw(-4, 4, 2, 12, 2, 3, 4), ("n1", "message -1"), ("n5", "message -1"))
    for name, steps in (("one", [1] * 4), ("each", [1, 3, 2, 1])):
        # names are chosen so that alphabetical order is not the order of execution
        nodes = {"w": dense(draw(-60, 90, 4, 3)), "cell": neuron((4,), [50, 70, 30, 60], du=1500, dv=200)}
        nodes |= {"late": nir.Delay(np.array(steps, float)), "back": dense(draw(-99, 60, 4, 4), weight_exp=-1)}
        edges = [("in", "w"), ("w", "cell"), ("cell", "late"), ("late", "back"), ("back", "cell"), ("cell", "out")]
        yield case(f"loop-{name}", connected(nodes, edges, (3,)), draw(0, 1, 3, 20, 3), ("cell", "reset zero"))
    nodes = {"late": nir.Delay(np.array([2.0, 0.0, 1.0])), "z": neuron((3,), 3), "a": neuron((3,), [4, 6, 1], dv=2048)}
    edges = [("in", "late"), ("in", "z"), ("late", "a"), ("z", "a"), ("a", "out")]
    yield case("delayed-branch", connected(nodes, edges, (3,)), draw(0, 5, 2, 12, 3), ("a", "tie gt"))


# --- random networks

KINDS = ("IF", "LIF", "CUBA", "ternary", "gated")
REGIMES = ("ties", "saturation", "any")
SHORT = 1 << 18  # inputs up to here move u by one register at most, so one turn brings it back
GRADED = {"binary": (0, 1), "ternary": (-1, 1), "graded": (0, 127), "wide": (-8191, 8191)}


def random_network(seed: int, stock: bool = False) -> Made:
    """Some tens of neurons for some steps: (graph, input, alphabet of the input).

    stock: only what Lava's stock processes do. They compare "gt", reset to zero, have one threshold, decay and bias
    exponent a population, no bias on connections, no gates, and no negative exponent on a convolution.
    """
    return _Builder(seed, stock, 1).made(steps=1 if seed % 8 == 5 else 6 + seed * 7 % 15)


def network_of_size(seed: int, values: int, stock: bool = False) -> Made:
    """A network of about a hundred neurons that runs for `values` outputs, or a little more."""
    return _Builder(seed, stock, 4).made(values=values)


class _Builder:
    """Inputs and forms go round with the seed; kinds, regimes and numbers are drawn."""

    def __init__(self, seed: int, stock: bool, size: int) -> None:
        self.rng, self.stock, self.size = np.random.default_rng([seed, stock, size]), stock, size
        self.block = np.random.default_rng([seed, stock, size, 1]).choice(["", "", "direct", "unit"])
        self.kinds = KINDS[:4] if stock else KINDS
        self.fits = stock or self.rng.random() < 0.5  # weights of convolutions and gates are ones that a synapse holds
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.input = tuple(GRADED)[seed % 4]
        self.form = ("flat", "map", "flat", "line")[seed // 4 % 4]
        self.reach: dict[str, tuple[int, int]] = {"in": GRADED[self.input]}  # values that a node sends
        self.shape: dict[str, tuple[int, ...]] = {}
        self.unit: dict[str, int] = {}  # what a connection sends are multiples of this

    def pick(self, *values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def whole(self, lo: int, hi: int, shape: Any = None) -> Any:
        return self.rng.integers(lo, hi + 1, shape)

    def made(self, steps: int = 0, values: int = 0) -> Made:
        n = 2 + self.size
        self.shape["in"] = {"flat": (4 * n,), "map": (2, n + 3, n), "line": (2, 4 * n)}[self.form]
        last = self.flat() if self.form == "flat" else self.maps()
        if not self.stock and self.rng.random() < 0.3:  # a connection that is recorded itself
            last = self.connect(last, (3,), "any", HALF)
        self.edges.append((last, "out"))
        samples = 1 if steps == 1 else self.whole(1, 3)
        neurons = sum(int(np.prod(self.shape[n])) for n in self.nodes if n.endswith("cell"))
        shape = (samples, steps or -(-values // (neurons * samples)), *self.shape["in"])
        lo, hi = self.reach["in"]
        x = self.whole(lo, hi, shape) * (self.rng.random(shape) < self.pick(0.2, 0.6))
        if samples == 3:
            x[-1] = 0  # silence
        alphabet = {"binary": BINARY, "ternary": TERNARY}.get(self.input, interval(lo, hi, True))
        return connected(self.nodes, self.edges, self.shape["in"]), x.astype(np.float64), alphabet

    def flat(self) -> str:
        """Two populations side by side, and one that both feed; each may feed itself."""
        first = [self.population(["in"], (self.width(),)) for _ in range(2)]
        return self.population(first, (self.width(),))

    def maps(self) -> str:
        first = self.population(["in"], None)
        if not self.stock and self.form == "map" and self.shape[first][2] > 1 and self.rng.random() < 0.7:
            first = self.add("pool", nir.SumPool2d(*(np.array(v) for v in ((2, 2), (2, 1), (1, 0)))), [first])
            c, h, w = self.shape[self.edges[-1][0]]
            self.shape[first] = (c, h // 2 + 1, w - 1)
            self.reach[first] = tuple(4 * v for v in self.reach[self.edges[-1][0]])
        second = self.population([first], None)
        if self.block:
            second = self.population([second], None, self.shortcut(second))
        shape = self.shape[second]
        joined = self.add("flatten", nir.Flatten({"input": np.array(shape)}, 0, -1), [second])
        self.shape[joined], self.reach[joined] = (int(np.prod(shape)),), self.reach[second]
        return self.population([joined], (self.width(),))

    def width(self) -> int:
        return self.whole(4, 9) * self.size

    def add(self, kind: str, node: Any, sources: list[str]) -> str:
        """Names go backwards in the alphabet: the order of execution is not that of the names."""
        name = f"{chr(122 - len(self.nodes))}_{kind}"
        self.nodes[name] = node
        self.edges += [(s, name) for s in sources]
        return name

    # connections

    def connect(self, source: str, out: tuple[int, ...] | None, regime: str, cap: int, keep: bool = False) -> str:
        """A matrix to the shape `out`, a convolution where none is given; its sums stay below `cap` if they can."""
        lo, hi = self.reach[source]
        mode, bits = self.pick("mixed", "mixed", "excitatory", "inhibitory"), self.whole(4, 8)
        shape = (*out, self.shape[source][0]) if out else None
        geometry: dict[str, Any] = {}
        if shape is None:
            shape, geometry, out = self.geometry(source, keep)
        raw = (
            self.whole(-2, 2, shape) * 32 if regime == "ties" else self.whole(*self.pick((-400, 400), (-60, 90)), shape)
        )
        low = -3 if not geometry or not self.stock else 0
        exponent = self.whole(0, 1) if regime == "ties" else self.whole(low, 3)
        if regime == "ties":
            raw, mode, bits = 32 * raw, "mixed", 8
        if geometry and not self.fits and regime == "any":
            raw = raw * 50  # more than a synapse holds: a convolution takes it as it is
        elif geometry:
            raw = synapse_words(raw, bits, mode).astype(int)
        held = raw if geometry else synapse_words(raw, bits, mode)
        most = int(np.abs(held).reshape(len(held), -1).sum(1).max()) * max(-lo, hi)
        while most * 2.0**exponent >= (1 << 30 if geometry and cap == HALF else cap) and exponent > low:
            exponent -= 1
        if not self.stock and exponent > 0 and self.rng.random() < 0.5:
            exponent = self.whole(0, exponent, len(raw)).astype(np.int32)  # one an output
        fields = {"weight_exp": exponent, "bits": bits, "sign_mode": mode, "message_bits": self.bits(lo, hi)}
        bias = self.whole(-200, 200, len(raw)) if not self.stock and regime != "ties" else None
        node = conv(raw, bias, **geometry, **fields) if geometry else dense(raw, bias, **fields)
        name = self.add("w", node, [source])
        self.shape[name], self.unit[name] = out, 32 << max(int(np.min(exponent)), 0)
        reach = min(int(most * 2.0 ** np.max(exponent)), HALF) + 200
        self.reach[name] = (-reach, reach)
        return name

    def geometry(self, source: str, keep: bool) -> tuple[tuple[int, ...], dict[str, Any], tuple[int, ...]]:
        """(weight shape, geometry, output shape) of a convolution; keep: the map stays as it is."""
        channels, *size = self.shape[source]
        out, each = [], []
        for n in size:
            stride, dilation, padding = (1, 1, 1) if keep else (self.whole(1, 2), self.whole(1, 2), self.whole(0, 1))
            kernel = 3 if keep else min(self.whole(1, 3), n)
            dilation = dilation if n + 2 * padding > dilation * (kernel - 1) else 1
            out.append((n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
            each.append((kernel, stride, padding, dilation))
        kernels, *rest = (list(v) for v in zip(*each, strict=True))
        groups, outputs = self.pick(1, 2), channels if keep else self.pick(2, 4)
        geometry = dict(zip(("stride", "padding", "dilation"), rest, strict=True))
        return (outputs, channels // groups, *kernels), {**geometry, "groups": groups}, (outputs, *out)

    def shortcut(self, source: str) -> str:
        """Messages that are added to a population's currents as they are, or times a power of two."""
        if self.block == "direct":
            self.unit[source] = 1
            return source
        channels, axes = self.shape[source][0], len(self.shape[source]) - 1
        weight, bits = np.full((channels, 1, *[1] * axes), 1 << self.whole(1, 7)), self.bits(*self.reach[source])
        fields = {"weight_exp": self.whole(0, 3), "sign_mode": "excitatory", "message_bits": bits}
        name = self.add("w", conv(weight, groups=channels, **fields), [source])
        self.shape[name], self.unit[name] = self.shape[source], int(weight.flat[0]) << fields["weight_exp"]
        self.reach[name] = tuple(self.unit[name] * v for v in self.reach[source])
        return name

    def bits(self, lo: int, hi: int) -> int:
        """Of a message; 0 for plain spikes."""
        if (lo, hi) == (0, 1):
            return 0
        return (max(hi, -lo - 1)).bit_length() + (lo < 0) + self.pick(0, 3)

    # populations

    def population(self, sources: list[str], out: tuple[int, ...] | None, beside: str = "") -> str:
        """beside: what is added to its currents, of the shape that the sources have."""
        kind, regime = self.pick(*self.kinds), self.pick(*REGIMES)
        cap = SHORT // 4 if self.stock and kind == "CUBA" else HALF
        drives = [self.connect(s, out, regime, cap, keep=bool(beside)) for s in sources] + ([beside] if beside else [])
        shape = self.shape[drives[0]]
        name = self.add("cell", None, [])
        self.shape[name], self.reach[name] = shape, (0, 1) if kind in ("IF", "LIF", "CUBA") else (-1, 1)
        if self.rng.random() < 0.5:
            late = self.add("late", nir.Delay(np.ones(shape)), [name])
            self.shape[late], self.reach[late] = shape, self.reach[name]
            drives.append(self.connect(late, out, regime, cap, keep=True))
        self.edges += [(d, name) for d in drives]
        most, unit = sum(self.reach[d][1] for d in drives), min(self.unit[d] for d in drives)
        node = self.neuron(kind, regime, shape, most, unit)
        self.nodes[name] = node if kind != "gated" else self.gates(node, shape)
        return name

    def neuron(self, kind: str, regime: str, shape: tuple[int, ...], most: int, unit: int) -> IntCubaLIF:
        """most: largest input. Above SHORT a synaptic current must fade, or int32 would not hold it."""
        ties, each = regime == "ties", not self.stock and self.rng.random() < 0.3
        some = shape if each else None
        slow = [-1] if ties else [-1, 163, self.whole(0, 4094, some)]
        fast = [4095] if self.stock else [2048, 4094, self.whole(2048, 4094, some)]
        keeps = slow if most <= SHORT else fast
        forms = {"IF": (4095, 0), "LIF": (4095, None), "CUBA": (self.pick(*keeps), None)}
        du, dv = forms.get(kind) or (self.pick(4095, *keeps), None)
        if dv is None and regime == "saturation":
            dv = self.whole(1, 3)
        elif dv is None:
            dv = self.pick(2048, 4096) if ties else self.pick(2048, 4096, 4095, self.whole(1, 4094, some))
            dv = 0 if kind != "LIF" and self.rng.random() < 0.3 else dv
        unit = 1 if kind == "gated" else unit  # its input was scaled by a gate
        vth = {
            "ties": unit * self.whole(1, 4, some),
            "saturation": 131071,
            "any": self.whole(0, min(most, 131070), some),
        }
        mant, exponent = self.whole(-4095, 4095, shape), self.whole(-7, 7, some)
        if regime == "saturation":
            exponent = 7
        elif ties:
            mant, exponent = unit * self.whole(-1, 1, shape), 6
        elif self.rng.random() < 0.3:
            mant = 0
        fields: dict[str, Any] = {"du": du, "dv": dv, "bias_mant": mant, "bias_exp": exponent}
        if kind == "ternary":
            fields["lower"] = -np.broadcast_to(vth[regime], shape) - (regime == "any")
        if not self.stock:
            fields["compare"] = self.pick("gt", "ge")
            fields["reset"] = self.pick("zero", "none", "zero" if kind == "ternary" else "subtract")
        return neuron(shape, vth[regime], **fields)

    def gates(self, node: IntCubaLIF, shape: tuple[int, ...]) -> IntGatedLIF:
        feedback, balance = self.pick((True, True), (True, True), (True, False), (False, True))
        made = [self.gate(shape, 2 if balance else 0) if feedback else None]
        bits = self.whole(4, 16)
        made.append(self.gate(shape, bits) if balance else None)
        if balance:
            made[1].weight[0], made[1].bias[0] = 0, 0  # the sign of nothing
        table = sigmoid_table() if self.rng.random() < 0.5 else self.whole(0, 255, 256).astype(np.uint8)
        shifts = {"feedback_shift": self.whole(0, 4), "balance_shift": self.whole(0, 10)}
        return IntGatedLIF(node, *made, table, **shifts, balance_bits=bits, accumulator_bits=40)

    def gate(self, shape: tuple[int, ...], bits: int) -> Any:
        fields = {"weight_exp": self.whole(-2, 2), "message_bits": bits}
        if len(shape) == 1:
            weight = self.whole(-300, 300, (*shape, *shape))
            return dense(synapse_words(weight, 8, "mixed") if self.fits else weight, self.whole(-9, 9, shape), **fields)
        weight = self.whole(-60, 60, (shape[0], shape[0], *[3] * (len(shape) - 1))) * 2 - (not self.fits)
        return conv(weight, self.whole(-9, 9, shape[0]), padding=1, **fields)
