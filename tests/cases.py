"""Conformance cases: small networks with inputs that provoke what engines get wrong.

`CASES` is what every target is held against. Shapes are a few neurons: a slow engine can pack many cases
into one run. A case is `exact` where all its numbers are dyadic and short: float32, float64 and any order of
summation must then agree to the bit, also where a membrane lands exactly on its threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import nir
import numpy as np
import oracle

from eiexport import graph as graphs
from eiexport.alphabet import BINARY, REAL, TERNARY, Alphabet, interval
from eiexport.nodes import EIDiscreteLIF, EIGatedLIF, EIMaxPool2d

T = 6
MAP = (2, 3, 2)  # channels, height, width: no two alike where it matters
FLAT = (4,)


@dataclass(frozen=True, eq=False)
class Case:
    """A network, its input (sample, time, *neuron) and the alphabet that input carries."""

    name: str
    graph: nir.NIRGraph
    x: np.ndarray
    alphabet: Alphabet
    exact: bool
    provokes: str

    def __repr__(self) -> str:
        return self.name

    def network(self) -> graphs.Network:
        return graphs.check(self.graph, alphabet=self.alphabet)


def connected(
    nodes: dict[str, Any], edges: list[tuple[str, str]], shape: tuple[int, ...], clock: Any = (1.0, "euler")
) -> nir.NIRGraph:
    """A stamped graph; the node "in" has `shape`, and "out" takes whatever reaches it."""
    ends = {"in": nir.Input(np.array(shape)), "out": nir.Output(output_type={"output": None})}
    raw = nir.NIRGraph({**ends, **nodes}, edges, type_check=False)
    return graphs.stamp(raw, dt=clock[0], integrator=clock[1], dtype="float64")


def chain(shape: tuple[int, ...], *nodes: Any, clock: Any = (1.0, "euler")) -> nir.NIRGraph:
    """in -> n0 -> n1 -> ... -> out."""
    named = {f"n{i}": node for i, node in enumerate(nodes)}
    path = ["in", *named, "out"]
    return connected(named, list(pairwise(path)), shape, clock)


# --- parameters: dyadic (exact) or any, different for every neuron


class Numbers:
    """Random parameters; with `exact` from few dyadic values, so that sums meet thresholds."""

    def __init__(self, seed: int, exact: bool) -> None:
        self.rng, self.exact = np.random.default_rng(seed), exact

    def pick(self, shape: Any, dyadic: tuple[float, ...], lo: float, hi: float) -> np.ndarray:
        return self.rng.choice(dyadic, shape) if self.exact else self.rng.uniform(lo, hi, shape)

    def weight(self, *shape: int) -> np.ndarray:
        return self.pick(shape, (-1.0, -0.5, 0.25, 0.5, 1.0), -1, 1.5)

    def tau(self, shape: Any) -> np.ndarray:
        return self.pick(shape, (1.0, 2.0), 1.2, 8)

    def lif(self, shape: Any) -> dict[str, np.ndarray]:
        return {
            "tau": self.tau(shape),
            "r": self.pick(shape, (1.0, 2.0), 0.5, 2),
            "v_leak": self.pick(shape, (0.0, 0.5, -0.25), -0.3, 0.3),
        }

    def threshold(self, shape: Any) -> dict[str, np.ndarray]:
        return {
            "v_threshold": self.pick(shape, (0.5, 0.75, 1.0), 0.3, 1),
            "v_reset": self.pick(shape, (0.0, -0.25), -0.2, 0.2),
        }

    def cuba(self, shape: Any) -> dict[str, np.ndarray]:
        p = self.lif(shape)
        w_in = self.pick(shape, (1.0, 2.0), 0.5, 2)
        return {"tau_mem": p.pop("tau"), "tau_syn": self.tau(shape), "w_in": w_in, **p}

    def discrete(self, shape: Any, compare: str = "gt", reset: str = "zero", lower: bool = False) -> EIDiscreteLIF:
        below = self.pick(shape, (-0.5, -0.25), -0.8, -0.2) if lower else None
        fields = {
            "decay": self.pick(shape, (0.5, 0.25, 1.0), 0.1, 1),
            "gain": self.pick(shape, (1.0, 0.5), 0.5, 1.5),
            **self.threshold(shape),
        }
        return EIDiscreteLIF(**fields, compare=compare, reset=reset, lower=below)

    def affine(self, inputs: int, outputs: int) -> nir.Affine:
        return nir.Affine(self.weight(outputs, inputs), self.pick(outputs, (0.0, 0.25, -0.5), -0.4, 0.4))

    def conv(self, outputs: int, inputs: int, kernel: tuple[int, ...], **geometry: Any) -> Any:
        kind = nir.Conv1d if len(kernel) == 1 else nir.Conv2d
        fields = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **geometry}
        weight = self.weight(outputs, inputs // fields["groups"], *kernel)
        bias = self.pick(outputs, (0.25, -0.5), -0.4, 0.4)
        return kind(input_shape=None, weight=weight, bias=bias, **fields)

    def gated(self, shape: tuple[int, ...], feedback: bool, balance: bool) -> EIGatedLIF:
        """Gates as convolutions over maps, dense over flat populations."""

        def gate() -> Any:
            return self.conv(shape[0], shape[0], (3, 3), padding=1) if len(shape) == 3 else self.affine(*shape, *shape)

        return EIGatedLIF(self.discrete(shape), gate() if feedback else None, gate() if balance else None)


# --- inputs


def hard(shape: tuple[int, ...], seed: int, steps: int = T) -> np.ndarray:
    """Five samples of multiples of 1/4: two that tie, negative only, large, silent."""
    rng = np.random.default_rng(seed)
    ties, coarse = rng.integers(-2, 5, (steps, *shape)) / 4, rng.integers(-1, 3, (steps, *shape)) / 2
    negative = -rng.integers(0, 5, (steps, *shape)) / 4
    large = rng.integers(-1, 2, (steps, *shape)) * 64.0
    return np.stack([ties, coarse, negative, large, np.zeros_like(ties)])


def noise(shape: tuple[int, ...], seed: int, samples: int = 3, steps: int = T) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.4, 0.8, (samples, steps, *shape))


def whole(shape: tuple[int, ...], seed: int, lo: int, hi: int, samples: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(lo, hi + 1, (samples, T, *shape)).astype(float)


# --- neuron kinds


def neurons() -> dict[str, tuple[tuple[int, ...], Callable[[Numbers], Any]]]:
    """Every kind with state or decisions: (neuron shape, node from numbers)."""
    kinds: dict[str, tuple[tuple[int, ...], Callable[[Numbers], Any]]] = {
        "I": (FLAT, lambda n: nir.I(r=n.lif(FLAT)["r"])),
        "LI": (FLAT, lambda n: nir.LI(**n.lif(FLAT))),
        "IF": (FLAT, lambda n: nir.IF(r=n.lif(FLAT)["r"], **n.threshold(FLAT))),
        "LIF": (FLAT, lambda n: nir.LIF(**n.lif(FLAT), **n.threshold(FLAT))),
        "LIF-map": (MAP, lambda n: nir.LIF(**n.lif(MAP), **n.threshold(MAP))),
        "CubaLI": (FLAT, lambda n: nir.CubaLI(**n.cuba(FLAT))),
        "CubaLIF": (FLAT, lambda n: nir.CubaLIF(**n.cuba(FLAT), **n.threshold(FLAT))),
        "Threshold": (FLAT, lambda n: nir.Threshold(n.threshold(FLAT)["v_threshold"])),
        "Delay": (FLAT, lambda n: nir.Delay(np.full(FLAT, 2.0))),
        "Delay-each": (FLAT, lambda n: nir.Delay(np.array([0.0, 1.0, 3.0, 2.0]))),
    }
    for compare in ("gt", "ge"):
        for reset in ("zero", "subtract", "none"):
            for lower in (False, True):
                name = f"EIDiscreteLIF-{compare}-{reset}" + ("-lower" if lower else "")
                kinds[name] = (FLAT, lambda n, c=compare, r=reset, b=lower: n.discrete(FLAT, c, r, b))
    for shape, form in ((FLAT, "dense"), (MAP, "conv")):
        for feedback, balance in ((False, False), (True, False), (False, True), (True, True)):
            name = f"EIGatedLIF-{form}" + "-feedback" * feedback + "-balance" * balance
            kinds[name] = (shape, lambda n, s=shape, f=feedback, b=balance: n.gated(s, f, b))
    return kinds


def neuron_cases() -> Iterator[Case]:
    for seed, (name, (shape, make)) in enumerate(neurons().items()):
        exact = "feedback" not in name  # a sigmoid is not dyadic
        hit = "threshold hits, negative membranes, large values, silence; batch 5"
        yield Case(f"{name}-hard", chain(shape, make(Numbers(seed, True))), hard(shape, seed), REAL, exact, hit)
        other = chain(shape, make(Numbers(seed, False)))
        yield Case(f"{name}-random", other, noise(shape, seed), REAL, False, "own parameters per neuron; batch 3")
        yield Case(f"{name}-once", other, noise(shape, seed, 1, 1), REAL, False, "one step, batch 1")
    for kind in ("LI", "LIF", "CubaLI", "CubaLIF"):
        shape, make = neurons()[kind]
        scaled = make(Numbers(70, False))
        for field in ("tau", "tau_mem", "tau_syn"):
            if hasattr(scaled, field):
                setattr(scaled, field, getattr(scaled, field) * 1e-3)
        for integrator in ("euler", "exponential"):
            g = chain(shape, scaled, clock=(1e-3, integrator))
            yield Case(
                f"{kind}-{integrator}-ms",
                g,
                3 * noise(shape, 71),
                REAL,
                False,
                "dt is not 1; both integrators",
            )
    shut = Numbers(80, True).gated(MAP, True, True)
    shut.feedback.weight[:], shut.feedback.bias[:] = 0, 0
    text = "an all-zero feedback halves the input; the balance swallows and flips spikes"
    yield Case("EIGatedLIF-half", chain(MAP, shut), hard(MAP, 80), REAL, True, text)
    swallow = Numbers(81, True).gated(FLAT, False, True)
    swallow.balance = nir.Linear(np.zeros((4, 4)))
    text = "sign(0) = 0: spikes are swallowed, the membrane is still reset"
    yield Case("EIGatedLIF-swallow", chain(FLAT, swallow), hard(FLAT, 81), REAL, True, text)
    big = nir.IF(np.ones(FLAT), np.full(FLAT, 2.0**20), np.zeros(FLAT))
    x = whole(FLAT, 82, 0, 4) * 2.0**18
    yield Case("IF-large", chain(FLAT, big), x, REAL, True, "threshold 2^20, hit exactly")


# --- connections


def connections() -> dict[str, tuple[tuple[int, ...], Callable[[Numbers], Any]]]:
    return {
        "Affine": ((3,), lambda n: n.affine(3, 4)),
        "Affine-last-axis": ((2, 3), lambda n: n.affine(3, 2)),
        "Linear": ((3,), lambda n: nir.Linear(n.weight(4, 3))),
        "Scale": (MAP, lambda n: nir.Scale(n.weight(*MAP))),
        "Scale-uniform": (FLAT, lambda n: nir.Scale(np.full(FLAT, 0.5))),
        "Conv1d": ((2, 5), lambda n: n.conv(3, 2, (2,))),
        "Conv1d-geometry": ((2, 9), lambda n: n.conv(4, 2, (3,), stride=2, padding=1, dilation=2, groups=2)),
        "Conv1d-same": ((1, 5), lambda n: n.conv(2, 1, (3,), padding="same")),
        "Conv2d": ((2, 3, 4), lambda n: n.conv(2, 2, (2, 3))),
        "Conv2d-stride": ((1, 5, 4), lambda n: n.conv(2, 1, (2, 2), stride=(2, 1))),
        "Conv2d-padding": ((1, 3, 2), lambda n: n.conv(2, 1, (3, 3), padding=(0, 1))),
        "Conv2d-dilation": ((1, 5, 4), lambda n: n.conv(1, 1, (3, 2), dilation=(2, 3))),
        "Conv2d-groups": ((4, 3, 2), lambda n: n.conv(4, 4, (2, 1), groups=2)),
        "Conv2d-depthwise": ((2, 3, 3), lambda n: n.conv(4, 2, (3, 3), padding=1, groups=2)),
        "Conv2d-all": (
            (2, 6, 5),
            lambda n: n.conv(2, 2, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        ),
        "Conv2d-same": ((1, 3, 4), lambda n: n.conv(1, 1, (3, 1), padding="same")),
        "Conv2d-valid": ((1, 3, 4), lambda n: n.conv(1, 1, (3, 1), padding="valid")),
        "Flatten": (MAP, lambda n: nir.Flatten({"input": np.array(MAP)}, 0, -1)),
        "Flatten-tail": (MAP, lambda n: nir.Flatten({"input": np.array(MAP)}, 1, 2)),
        "SumPool2d": (
            (2, 5, 4),
            lambda n: nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        ),
        "SumPool2d-odd": (
            (1, 5, 4),
            lambda n: nir.SumPool2d(np.array([3, 2]), np.array([2, 1]), np.array([1, 0])),
        ),
        "AvgPool2d": (
            (2, 4, 3),
            lambda n: nir.AvgPool2d(np.array([2, 2]), np.array([2, 1]), np.array([0, 0])),
        ),
        "AvgPool2d-pad": (
            (1, 3, 4),
            lambda n: nir.AvgPool2d(np.array([2, 4]), np.array([1, 2]), np.array([1, 2])),
        ),
        "EIMaxPool2d": (MAP, lambda n: EIMaxPool2d(*np.array([[3, 3], [1, 1], [1, 1]]))),
        "EIMaxPool2d-odd": ((2, 5, 4), lambda n: EIMaxPool2d(*np.array([[3, 2], [2, 1], [1, 0]]))),
        "EIMaxPool2d-wide": ((1, 3, 4), lambda n: EIMaxPool2d(*np.array([[1, 4], [1, 2], [0, 2]]))),
        "EIMaxPool2d-one": (MAP, lambda n: EIMaxPool2d(*np.array([[1, 1], [1, 1], [0, 0]]))),
    }


def connection_cases() -> Iterator[Case]:
    """Each connection alone, its values recorded, and before neurons that it brings onto their threshold."""
    for seed, (name, (shape, make)) in enumerate(connections().items(), 100):
        free = make(Numbers(seed, False))
        x = noise(shape, seed, 2, 2)
        yield Case(f"{name}-real", chain(shape, free), x, REAL, False, "values recorded")
        node = make(Numbers(seed, True))
        out = oracle.extents(oracle.connect(node, dict.fromkeys(oracle.indices(shape), 0.0)))
        fire = EIDiscreteLIF(*(np.full(out, v) for v in (0.5, 1.0, 0.25, 0.0)), compare="ge")
        x = whole(shape, seed, -1, 1)
        yield Case(f"{name}-spikes", chain(shape, node, fire), x, TERNARY, True, "ternary input, exact hits")


# --- networks


def full(shape: Any, value: float) -> np.ndarray:
    return np.full(shape, value)


def integrate(shape: Any, threshold: float = 1.0) -> nir.IF:
    return nir.IF(full(shape, 1.0), full(shape, threshold), full(shape, 0.0))


def network_cases() -> Iterator[Case]:
    for bias, exact in ((0.6, False), (0.625, True)):
        layers = [n for _ in range(3) for n in (nir.Affine(0.5 * np.eye(3), full(3, bias)), integrate((3,)))]
        x = whole((3,), 200, 0, 1)
        text = "an engine that starts biases early fires at the wrong parity"
        yield Case(f"biased-chain-{bias}", chain((3,), *layers), x, BINARY, exact, text)

    n = Numbers(205, True)
    # behind the zero padding of the second convolution, the first one's bias differs from place to place
    currents = [n.conv(2, 1, (1, 1)), n.conv(2, 2, (3, 3), padding=1), EIMaxPool2d(*np.array([[3, 3], [1, 1], [1, 1]]))]
    block = [*currents, n.conv(2, 2, (1, 1), groups=2), n.discrete((2, 5, 4), "ge")]
    text = "E-I Net's block: maxima of negative currents, and of what biases become; then norm and neuron"
    yield Case("maxpool-block", chain((1, 5, 4), *block), hard((1, 5, 4), 205), REAL, True, text)

    n = Numbers(201, True)
    pooled = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    tail = [pooled, n.conv(2, 2, (2, 1)), n.discrete((2, 1, 2))]
    text = "-1 must survive the pool and the convolution"
    signed = n.discrete((2, 4, 4), "ge", "subtract", True)
    yield Case("signed-lower-chain", chain((2, 4, 4), signed, *tail), hard((2, 4, 4), 201), REAL, True, text)
    signed = n.gated((2, 4, 4), False, True)
    yield Case("signed-balance-chain", chain((2, 4, 4), signed, *tail), hard((2, 4, 4), 202), REAL, True, text)

    nodes = {
        "left": n.affine(3, 4),
        "right": nir.Linear(n.weight(4, 3)),
        "sum": n.discrete(FLAT, "ge", "subtract"),
        "skip": n.discrete(FLAT),
        "last": n.discrete(FLAT, "ge"),
    }
    edges = [("in", "left"), ("in", "right"), ("left", "sum"), ("right", "sum"), ("right", "skip")]
    edges += [("sum", "last"), ("skip", "last"), ("last", "out")]
    text = "two branches into one node, and a node read twice"
    yield Case("branches", connected(nodes, edges, (3,)), whole((3,), 203, 0, 1), BINARY, True, text)

    nodes = {"late": nir.Delay(full(3, 2.0)), "a": integrate((3,)), "b": integrate((3,), 2.0)}
    edges = [("in", "late"), ("in", "a"), ("late", "b"), ("a", "b"), ("b", "out"), ("a", "out")]
    text = "paths of different delay meet; the output sums two neurons"
    yield Case("delayed-branch", connected(nodes, edges, (3,)), whole((3,), 204, 0, 1), BINARY, True, text)
    yield from recurrent_cases()


def recurrent_cases() -> Iterator[Case]:
    loops = {
        "uniform": [nir.Delay(full(4, 1.0))],
        "two-steps": [nir.Delay(full(4, 2.0))],
        "each": [nir.Delay(np.array([1.0, 3.0, 2.0, 1.0]))],
        "adding": [nir.Delay(full(4, 1.0)), nir.Delay(np.array([1.0, 0.0, 2.0, 1.0]))],
    }
    for seed, (name, delays) in enumerate(loops.items(), 300):
        n = Numbers(seed, True)
        # names are chosen so that alphabetical order is not the order of execution
        nodes: dict[str, Any] = {"w": n.affine(2, 4), "cell": n.discrete(FLAT, "ge"), "back": n.affine(4, 4)}
        nodes |= {f"a{i}": d for i, d in enumerate(delays)}
        ring = ["cell", *(f"a{i}" for i in range(len(delays))), "back", "cell"]
        edges = [("in", "w"), ("w", "cell"), *pairwise(ring), ("cell", "out")]
        text = "recurrence through delays, whose steps add up round the cycle"
        yield Case(
            f"loop-{name}",
            connected(nodes, edges, (2,)),
            whole((2,), seed, -1, 2),
            interval(-1, 2, True),
            True,
            text,
        )

    n = Numbers(310, True)
    nodes = {"b": n.discrete((3,)), "a": n.discrete((3,), "ge", "subtract", True), "m": n.affine(3, 3)}
    nodes |= {"back": nir.Delay(full(3, 1.0))}
    edges = [("in", "b"), ("b", "m"), ("m", "a"), ("a", "back"), ("back", "b"), ("a", "out"), ("b", "out")]
    yield Case(
        "loop-two-neurons",
        connected(nodes, edges, (3,)),
        hard((3,), 310),
        REAL,
        True,
        "two neurons in a cycle",
    )

    late = nir.Delay(np.array([1e-3, 3e-3, 2e-3]))
    nodes = {
        "cell": nir.IF(full(3, 500.0), full(3, 1.0), full(3, 0.0)),
        "late": late,
        "w": nir.Linear(0.5 * np.eye(3)[::-1]),
    }
    edges = [("in", "cell"), ("cell", "late"), ("late", "w"), ("w", "cell"), ("cell", "out")]
    g = connected(nodes, edges, (3,), (1e-3, "euler"))
    yield Case("loop-ms", g, whole((3,), 313, 0, 2), REAL, False, "delays in seconds, dt is not 1")

    n = Numbers(311, True)
    nodes = {
        "cell": n.gated(MAP, False, True),
        "z": nir.Delay(full(MAP, 1.0)),
        "back": n.conv(2, 2, (3, 3), padding=1),
    }
    edges = [("in", "cell"), ("cell", "z"), ("z", "back"), ("back", "cell"), ("cell", "out")]
    text = "signed spikes of a gated neuron come back through a convolution"
    yield Case("loop-gated-conv", connected(nodes, edges, MAP), hard(MAP, 311), REAL, True, text)

    n = Numbers(312, True)
    nodes = {"cell": nir.LI(**n.lif((2,))), "fire": nir.Threshold(full(2, 0.5)), "z": nir.Delay(full(2, 1.0))}
    nodes |= {"soft": nir.Scale(full(2, -0.25))}
    edges = [
        ("in", "cell"),
        ("cell", "fire"),
        ("fire", "z"),
        ("z", "soft"),
        ("soft", "cell"),
        ("fire", "out"),
    ]
    text = "soft reset spelled in stock nodes: LI, Threshold, delayed feedback"
    yield Case("loop-soft-reset", connected(nodes, edges, (2,)), hard((2,), 312), REAL, True, text)


@cache
def expected(case: Case) -> dict[str, np.ndarray]:
    """What the oracle says of every node: (sample, time, *neuron)."""
    about = case.graph.metadata["eiexport"]
    rows = oracle.run(case.graph, case.x, about["dt"], about["integrator"])
    out = {}
    for name in rows[0][0]:
        shape = oracle.extents(rows[0][0][name])
        values = [[[step[name][i] for i in oracle.indices(shape)] for step in sample] for sample in rows]
        out[name] = np.array(values).reshape(len(rows), len(rows[0]), *shape)
    return out


CASES: list[Case] = [*neuron_cases(), *connection_cases(), *network_cases()]
