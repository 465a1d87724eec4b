"""Float networks of every node kind, whole graphs with their input: by number, or drawn by hypothesis.

    network, x = network_of(17)        # always the same
    @given(networks())                 # the same generator; structure is drawn, so it shrinks to something simple

A generator builds node by node and keeps what every node sends on the network's own input, so that thresholds can
lie where the membranes are, and exactly on them where all numbers are dyadic. `float_features` counts what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import nir
import numpy as np
from cases import connected
from hypothesis import strategies as st

from eiexport.alphabet import BINARY, REAL, TERNARY, Alphabet, interval
from eiexport.circuits import EICircuit
from eiexport.graph import Network, check
from eiexport.neurons import Leaky, Synapse
from eiexport.nodes import EIDiscreteLIF, EIGatedLIF, EIMaxPool2d, prepare
from eiexport.ops import NumpyOps
from eiexport.steps import Clock, Neuron, Step, bind
from targets.loop import fold, scan

T = TypeVar("T")
CLOCKS = ((1.0, "euler"), (1.0, "exponential"), (2.0**-10, "euler"), (1e-3, "euler"), (1e-3, "exponential"))
INPUTS: dict[str, Alphabet] = {"binary": BINARY, "ternary": TERNARY, "whole": interval(-3, 4, True)}
INPUTS |= {"counts": interval(0, 15, True), "real": REAL, "real above 0": REAL}
FORMS = (("none", "sample_min"), ("exact", "sample_min"), ("exact", "constant"), ("frozen", "sample_min"))
FORMS += (("shift", "constant"), ("table", "constant"))
NEURONS = ("IF", "LIF", "CubaLIF", "Threshold", "EIDiscreteLIF", "EIGatedLIF", "I", "LI", "CubaLI")
SPIKING = NEURONS[:6]
SIZES = (1.0, 1.0, 1.0, 1.0, 2.0**12, 2.0**-12, 3e4, 3e-5, 0.0)  # of weights


class Choices(Protocol):
    """Where a network's structure comes from; the first option and the lower end are the simplest."""

    def whole(self, lo: int, hi: int) -> int: ...
    def pick(self, options: Sequence[T]) -> T: ...


class Seeded:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 77])

    def whole(self, lo: int, hi: int) -> int:
        return int(self.rng.integers(lo, hi + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.whole(0, len(options) - 1)]


class Drawn:
    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def whole(self, lo: int, hi: int) -> int:
        return self.draw(st.integers(lo, hi))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.whole(0, len(options) - 1)]


@dataclass(frozen=True, eq=False)
class Made:
    """near: thresholds were put onto membranes that are no short dyadic numbers, so ties are common."""

    graph: nir.NIRGraph
    x: np.ndarray
    alphabet: Alphabet
    near: bool

    def network(self) -> Network:
        return check(self.graph, alphabet=self.alphabet)


def made(seed: int) -> Made:
    """Graph and input number `seed`."""
    return _Builder(Seeded(seed)).made()


def network_of(seed: int) -> tuple[Network, np.ndarray]:
    """Network number `seed` and its input (sample, time, *neuron)."""
    found = made(seed)
    return found.network(), found.x


@st.composite
def networks(draw: st.DrawFn) -> Made:
    return _Builder(Drawn(draw)).made()


@dataclass
class Signal:
    """What a node sends: its neuron shape, its alphabet, and its values (time, sample, *neuron) on the input."""

    shape: tuple[int, ...]
    alphabet: Alphabet
    values: np.ndarray = field(repr=False)


class _Builder:
    def __init__(self, choices: Choices) -> None:
        self.c = choices
        self.whole, self.pick = choices.whole, choices.pick
        self.exact = self.pick((True, False))
        self.clock = Clock(*(self.pick(CLOCKS[:3:2]) if self.exact else self.pick(CLOCKS)))
        self.near = not self.exact and self.chance(15)
        self.rng = np.random.default_rng(self.whole(0, 1 << 20))
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.signals: dict[str, Signal] = {}

    def chance(self, percent: int) -> bool:
        """False is the simpler one."""
        return self.whole(0, 99) >= 100 - percent

    def made(self) -> Made:
        alphabet, x = self.input()
        head, aside = ["in"], []
        for _ in range(self.whole(1, 6)):
            head = self.stage(head)
            aside += [n for n in head[:1] if n != "in" and self.chance(15)]
        if not any(type(self.nodes.get(n)).__name__ in NEURONS for n in head):
            head = [self.neuron(head)]
        shape = self.signals[head[0]].shape
        ends = dict.fromkeys([*head, *(n for n in aside if self.signals[n].shape == shape)])
        self.edges += [(n, "out") for n in ends if n != "in"]
        if aside and self.chance(50):  # a second output, of whatever shape
            self.nodes["other"] = nir.Output(output_type={"output": None})
            self.edges.append((aside[-1], "other"))
        clock = (self.clock.dt, self.clock.integrator)
        graph = connected(self.nodes, self.edges, self.signals["in"].shape, clock)
        return Made(graph, np.ascontiguousarray(np.swapaxes(x, 0, 1)), alphabet, self.near)

    def input(self) -> tuple[Alphabet, np.ndarray]:
        form = self.pick(("flat", "map", "map", "line"))
        n = self.whole(1, 6)
        shape = {
            "flat": (n,),
            "line": (self.whole(1, 2) * 2, 3 + n),
            "map": (self.whole(1, 2), 1 + n, self.whole(2, 6)),
        }
        steps, samples = self.pick((4, 1, 2, 7, 12)), self.whole(1, 3)
        kind = self.pick(tuple(INPUTS))
        size = (steps, samples, *shape[form])
        a = INPUTS[kind]
        if kind.startswith("real"):
            lo = -8 if kind == "real" else 0
            x = self.rng.integers(lo, 17, size) / 8 if self.exact else self.rng.normal(0.4, 1, size)
            x = x if kind == "real" else np.abs(x)
        else:
            x = self.rng.integers(int(a.lo), int(a.hi) + 1, size).astype(float)
        x = x * (self.rng.random(size) < self.pick((1.0, 0.6, 0.3)))
        if samples == 3 or self.chance(3):
            x[:, -1] = 0  # silence
        self.signals["in"] = Signal(shape[form], a, x)
        return a, x

    # numbers

    def numbers(
        self, shape: Any, dyadic: Sequence[float], lo: float, hi: float, each: bool | None = None
    ) -> np.ndarray:
        """One number an entry, or one for all."""
        each = self.chance(40) if each is None else each
        size = shape if each else ()
        drawn = self.rng.choice(dyadic, size) if self.exact else self.rng.uniform(lo, hi, size)
        return np.broadcast_to(drawn, shape).copy()

    def weight(self, *shape: int, tame: bool = False) -> np.ndarray:
        terms = max(1, int(np.prod(shape[1:])))
        size = 1.0 if tame else self.pick(SIZES)
        if self.exact:
            size = 2.0 ** round(np.log2(size)) if size else 0.0
            return self.rng.choice((-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.0), shape) * size * (0.25 if tame else 1)
        return self.rng.uniform(-1, 1.4, shape) * size / (terms if tame else np.sqrt(terms))

    def bias(self, outputs: int, weight: np.ndarray) -> np.ndarray:
        size = float(np.abs(weight).max(initial=0)) or 1.0
        drawn = self.numbers((outputs,), (0.0, 0.25, -0.5, 0.5), -0.3, 0.4, each=True)
        return drawn * (2.0 ** round(np.log2(size)) if self.exact else size) * self.pick((0, 1))

    # nodes

    def add(self, kind: str, node: Any, sources: Sequence[str], came: np.ndarray | None = None) -> str:
        """Names go backwards in the alphabet: the order of execution is not that of the names."""
        name = f"{chr(122 - len(self.nodes) % 26)}{len(self.nodes)}_{kind}"
        self.nodes[name] = node
        self.edges += [(s, name) for s in sources]
        step, came = prepare(node, self.clock), self.total(sources) if came is None else came
        self.signals[name] = Signal(
            step.output_shape(came.shape[2:]), step.alphabet(self.alphabet(sources)), self.sent(step, came)
        )
        return name

    def sent(self, step: Step, x: np.ndarray) -> np.ndarray:
        ops = NumpyOps()
        bound = bind(step, ops)
        with np.errstate(all="ignore"):
            y = fold(bound, ops, x)
            return scan(bound, ops, y) if isinstance(bound, Neuron) else y

    def total(self, sources: Sequence[str]) -> np.ndarray:
        return np.sum([self.signals[s].values for s in sources], axis=0)

    def alphabet(self, sources: Sequence[str]) -> Alphabet:
        first, *rest = (self.signals[s].alphabet for s in sources)
        for other in rest:
            first = first + other
        return first

    def shape(self, head: Sequence[str]) -> tuple[int, ...]:
        return self.signals[head[0]].shape

    # stages: what a network is made of, from sources of one shape to sources of one shape

    def stage(self, head: list[str]) -> list[str]:
        plain = (self.plain, self.plain, self.plain, lambda h: [self.neuron(h)], lambda h: [self.connection(h)])
        odd = (self.shortcut, self.branches, self.loop, self.ring, lambda h: [self.delay(h)])
        stages: tuple[Callable[[list[str]], list[str]], ...] = (*plain, *odd)
        return self.pick(stages)(head)

    def plain(self, head: list[str]) -> list[str]:
        return [self.neuron([self.connection(head)])]

    def shortcut(self, head: list[str]) -> list[str]:
        """A residual block: what comes in is added to what a neuron and a connection make of it."""
        body = self.neuron([self.keeping(head)])
        return list(dict.fromkeys([*head, body if self.chance(50) else self.keeping([body])]))

    def branches(self, head: list[str]) -> list[str]:
        """Two paths of different make, joined."""
        left = [self.neuron(head)] if self.chance(50) else [self.keeping(head)]
        return [*left, self.delay(head) if self.chance(50) else self.keeping(head)]

    def loop(self, head: list[str]) -> list[str]:
        """A neuron that reads itself later, through a connection before or behind the delay."""
        cell = self.neuron(head)
        back = [cell]
        for part in self.pick(("delay", "delay keeping", "keeping delay", "delay keeping delay")).split():
            back = [self.delay(back, least=1) if part == "delay" else self.keeping(back, tame=True)]
        self.edges.append((back[0], cell))
        return [cell]

    def ring(self, head: list[str]) -> list[str]:
        """Two neurons in one cycle, connections on the way there and back; a second delay inside a second cycle."""
        first = self.neuron(head)
        second = self.neuron([self.keeping([first], tame=True)])
        back = self.delay([second], least=1)
        self.edges.append((self.keeping([back], tame=True) if self.chance(60) else back, first))
        if self.chance(30):
            self.edges.append((self.delay([first], least=1), first))
        return [second] if self.chance(50) else [first, second]

    def delay(self, head: Sequence[str], least: int = 0) -> str:
        shape = self.shape(head)
        steps = self.rng.integers(least, 4, shape if self.chance(50) else ())
        return self.add("late", nir.Delay(np.broadcast_to(steps, shape) * self.clock.dt), head)

    def keeping(self, head: Sequence[str], tame: bool = False) -> str:
        """A connection that keeps the shape; tame: its sums stay as large as its inputs, as a cycle needs."""
        shape = self.shape(head)
        kinds = {
            1: ("Linear", "Affine", "Scale"),
            2: ("Conv1d", "Affine", "Scale"),
            3: ("Conv2d", "EIMaxPool2d", "Scale"),
        }
        kind = self.pick(kinds[len(shape)])
        if kind == "Scale":
            factor = 0.5 if tame else self.pick(tuple(s for s in SIZES if s))
            return self.scale(head, factor)
        if kind == "EIMaxPool2d":
            return self.add("max", EIMaxPool2d(*np.array([[3, 3], [1, 1], [1, 1]])), head)
        if kind in ("Linear", "Affine"):
            return self.dense(head, kind, shape[-1], tame)
        channels = shape[0]
        groups = self.pick((1, channels))
        weight = self.weight(channels, channels // groups, *[3] * (len(shape) - 1), tame=tame)
        padding = self.pick((1, "same"))
        return self.conv(head, weight, {"stride": 1, "padding": padding, "dilation": 1, "groups": groups})

    def connection(self, head: Sequence[str]) -> str:
        shape = self.shape(head)
        kinds: dict[int, tuple[str, ...]] = {1: ("Linear", "Affine", "Scale", "Flatten", "EICircuit", "EICircuit")}
        kinds[2] = ("Conv1d", "Conv1d", "Conv1d", "Affine", "Scale", "Flatten", "EICircuit")
        kinds[3] = ("Conv2d", "Conv2d", "Conv2d", "Conv2d", "SumPool2d", "AvgPool2d", "EIMaxPool2d", "Flatten")
        kinds[3] += ("EICircuit", "EICircuit", "Scale", "Affine")
        kind = self.pick(kinds[len(shape)])
        if kind == "Scale":
            return self.scale(head, self.pick(SIZES))
        if kind == "Flatten":
            start = self.whole(0, len(shape) - 1)
            return self.add(
                "flat", nir.Flatten({"input": np.array(shape)}, start, self.pick((-1, len(shape) - 1))), head
            )
        if kind == "EICircuit":
            return self.circuit(head)
        if kind in ("Linear", "Affine"):
            return self.dense(head, kind, self.whole(1, 6))
        if kind.startswith("Conv"):
            groups = self.pick((1, shape[0]))
            outputs = groups * self.whole(1, 3)
            kernel, geometry = self.geometry(shape[1:])
            return self.conv(head, self.weight(outputs, shape[0] // groups, *kernel), {**geometry, "groups": groups})
        window = [self.window(n, kind) for n in shape[1:]]
        node = {"SumPool2d": nir.SumPool2d, "AvgPool2d": nir.AvgPool2d, "EIMaxPool2d": EIMaxPool2d}[kind]
        return self.add("pool", node(*(np.array(v) for v in zip(*window, strict=True))), head)

    def window(self, n: int, kind: str) -> tuple[int, int, int]:
        """(kernel, stride, padding) along one axis of n; an average over a power of two is dyadic."""
        kernel = self.pick((2, 1, 4)) if kind == "AvgPool2d" else self.whole(1, 4)
        padding = self.whole(0, kernel // 2)
        return (kernel, self.whole(1, 3), padding) if kernel <= n + 2 * padding else (1, 1, 0)

    def scale(self, head: Sequence[str], size: float) -> str:
        shape = self.shape(head)
        size = 2.0 ** round(np.log2(size)) if self.exact and size else size
        return self.add("scale", nir.Scale(self.numbers(shape, (0.5, 1.0, -1.0, 2.0), -1, 1.5) * size), head)

    def dense(self, head: Sequence[str], kind: str, outputs: int, tame: bool = False) -> str:
        weight = self.weight(outputs, self.shape(head)[-1], tame=tame)
        node = nir.Linear(weight) if kind == "Linear" else nir.Affine(weight, self.bias(outputs, weight))
        return self.add("w", node, head)

    def geometry(self, size: tuple[int, ...]) -> tuple[list[int], dict[str, Any]]:
        """(kernel, geometry) of a convolution over `size` that leaves at least one place."""
        if self.chance(20):  # in words
            kernel = [self.pick((1, 3)) for _ in size]
            if all(k <= n for k, n in zip(kernel, size, strict=True)):
                return kernel, {"stride": 1, "padding": self.pick(("same", "valid")), "dilation": 1}
        each = []
        for n in size:
            kernel, padding, dilation = self.whole(1, min(3, n)), self.whole(0, 2), self.whole(1, 2)
            dilation = dilation if dilation * (kernel - 1) + 1 <= n + 2 * padding else 1
            each.append((kernel, self.whole(1, 2), padding, dilation))
        kernels, stride, padding, dilation = (list(v) for v in zip(*each, strict=True))
        return kernels, {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}

    def conv(self, head: Sequence[str], weight: np.ndarray, geometry: dict[str, Any]) -> str:
        if weight.ndim == 3:
            geometry = {k: v[0] if isinstance(v, tuple) else v for k, v in geometry.items()}
        kind = nir.Conv1d if weight.ndim == 3 else nir.Conv2d
        return self.add("conv", kind(None, weight, bias=self.bias(len(weight), weight), **geometry), head)

    # circuits

    def circuit(self, head: Sequence[str]) -> str:
        """Behind what is not negative, or short: where a sum may be 0 or not quite, float32 has no right answer."""
        a = self.alphabet(head)
        short = self.exact and list(head) == ["in"]
        fits = a.lo >= 0 or (a.lo == -np.inf and (short or (self.total(head) >= 0).all()))
        if not fits:
            head = [self.neuron(head, ("IF", "LIF", "Threshold"))]
        shape, (form, zero) = self.shape(head), self.pick(FORMS)
        n, m = self.whole(1, 4), self.whole(1, 3)

        def draw(*size: int) -> np.ndarray:
            kept = self.rng.random(size) < 0.7
            return kept * (self.rng.choice((0.25, 0.5, 1.0), size) if self.exact else self.rng.uniform(0.05, 1, size))

        if len(shape) == 1:
            parts: list[Any] = [nir.Linear(draw(*size)) for size in ((n, *shape), (m, *shape), (n, m))]
        else:
            kernel, geometry = self.geometry(shape[1:])
            if len(shape) == 2:
                geometry = {k: v[0] if isinstance(v, tuple) else v for k, v in geometry.items()}
            kind = nir.Conv1d if len(shape) == 2 else nir.Conv2d
            parts = [
                kind(
                    shape[1:] if len(shape) > 2 else shape[1],
                    draw(k, shape[0], *kernel),
                    groups=1,
                    bias=np.zeros(k),
                    **geometry,
                )
                for k in (n, m)
            ]
            step = prepare(parts[0], self.clock)
            place = step.output_shape(shape)[1:]
            parts.append(
                kind(place if len(shape) > 2 else place[0], draw(n, m, *[1] * len(place)), 1, 0, 1, 1, np.zeros(n))
            )
        if self.chance(30):
            parts[-1].weight[0] = 0  # a cell that nothing inhibits: its D is filled in whatever comes
        node = EICircuit(*parts, form=form, zero=zero, table_bits=self.whole(1, 8))
        if form != "none":
            node.gain_i, node.gain_e = (
                self.numbers((m,), (0.5, 1.0, 2.0), 0.2, 2),
                self.numbers((n,), (0.5, 1, 4), 0.2, 3),
            )
            node.bias = self.numbers((n,), (0.0, 0.25, -0.5), -0.5, 0.5)
        if form == "frozen":
            node.denominator = self.numbers((n,), (0.25, 1.0, 2.0), 0.1, 2)
        if zero == "constant":
            node.epsilon = 0.0625 if self.exact else 0.07
        self.exact &= form not in ("exact", "table")  # nor is a quotient
        return self.add("circuit", node, head)

    # neurons

    def neuron(self, head: Sequence[str], kinds: Sequence[str] = NEURONS) -> str:
        kind, shape = self.pick(kinds), self.shape(head)
        came = self.total(head)
        if kind in ("EIDiscreteLIF", "EIGatedLIF"):
            node: Any = self.discrete(shape, came, gated=kind == "EIGatedLIF")
            node = self.gates(node, shape, came) if kind == "EIGatedLIF" else node
        else:
            node = self.stock(kind, shape, came)
        return self.add("cell", node, head, came)

    def stock(self, kind: str, shape: tuple[int, ...], came: np.ndarray) -> Any:
        unit = self.clock.dt
        tau, r = (1.0, 2.0, 4.0), self.numbers(shape, (1.0, 2.0), 0.5, 2)
        p: dict[str, Any] = {"r": r / unit if kind in ("I", "IF") else r}
        if kind.startswith(("LI", "Cuba")):
            size = float(np.abs(came).max(initial=0)) or 1.0
            size = 2.0 ** round(np.log2(size)) if self.exact else size
            p["v_leak"] = self.numbers(shape, (0.0, 0.0, 0.5, -0.25), -0.2, 0.3) * size * self.pick((0, 0, 1))
        if kind in ("LI", "LIF"):
            p["tau"] = self.numbers(shape, tau, 1, 9) * unit
        if kind.startswith("Cuba"):
            p["tau_mem"], p["tau_syn"] = (self.numbers(shape, tau, 1, 9) * unit for _ in range(2))
            p["w_in"] = self.numbers(shape, (1.0, 2.0), 0.5, 2)
        if kind == "Threshold":
            return nir.Threshold(self.threshold(shape, came))
        make = getattr(nir, kind)
        if kind not in SPIKING:
            return make(**p)
        probe = make(**p, v_threshold=np.ones(shape), v_reset=np.zeros(shape))
        threshold = self.threshold(shape, self.membranes(prepare(probe, self.clock), came))
        return make(**p, v_threshold=threshold, v_reset=self.reset_to(shape, threshold))

    def discrete(self, shape: tuple[int, ...], came: np.ndarray, gated: bool) -> EIDiscreteLIF:
        p: dict[str, Any] = {"decay": self.numbers(shape, (0.5, 1.0, 0.25, 0.0), 0, 1)}
        if not self.exact and self.chance(30):
            p["decay"] = self.rng.choice((0.0, 1.0), shape)
        p["gain"] = self.numbers(shape, (1.0, 0.5, 2.0), 0.5, 2)
        one = np.ones(shape)
        v = self.membranes(prepare(EIDiscreteLIF(**p, v_threshold=one, v_reset=0 * one), self.clock), came)
        p["v_threshold"] = self.threshold(shape, v * (0.6 if gated and not self.exact else 1))
        p["v_reset"] = self.reset_to(shape, p["v_threshold"])
        lower = None
        if not gated and self.chance(45):
            lower = -self.threshold(shape, -v)
            lower = np.where(lower < p["v_threshold"], lower, p["v_threshold"] - 1 - np.abs(p["v_threshold"]))
        compare, reset = self.pick(("gt", "ge")), self.pick(("zero", "subtract", "none"))
        return EIDiscreteLIF(**p, compare=compare, reset=reset, lower=lower)

    def gates(self, node: EIDiscreteLIF, shape: tuple[int, ...], came: np.ndarray) -> EIGatedLIF:
        def gate() -> Any:
            if len(shape) == 1:
                w = self.weight(*shape, *shape, tame=True)
                return nir.Linear(w) if self.chance(30) else nir.Affine(w, self.bias(shape[0], w))
            kind, axes = (nir.Conv1d, 1) if len(shape) == 2 else (nir.Conv2d, 2)
            w = self.weight(shape[0], shape[0], *[3] * axes, tame=True)
            return kind(shape[1:] if axes > 1 else shape[1], w, 1, 1, 1, 1, self.bias(shape[0], w))

        feedback, balance = self.pick(((False, False), (True, False), (False, True), (True, True)))
        found = EIGatedLIF(node, gate() if feedback else None, gate() if balance else None)
        self.exact &= not feedback  # a sigmoid is not dyadic: nothing behind it may count on exact sums
        return found

    def membranes(self, step: Any, came: np.ndarray) -> np.ndarray:
        """What the membranes would be if nothing fired."""
        kind = Synapse if isinstance(step, Synapse) else Leaky
        fields = ("shape", "decay", "gain", "bias", *(("decay_u", "gain_u") if kind is Synapse else ()))
        return self.sent(kind(**{k: getattr(step, k) for k in fields}), came)

    def threshold(self, shape: tuple[int, ...], v: np.ndarray) -> np.ndarray:
        """Where membranes are: exactly on one of the first where sums are exact, or `near`; else among them."""
        size = shape if self.chance(50) else ()
        least = 2.0**-16 * float(np.abs(v).max(initial=0))  # below it, float32 cannot tell a membrane from 0
        v = np.where(np.abs(v) > least, v, 0)
        above = v[v > 0] if self.exact or not self.near else v[:2][v[:2] > 0]
        above = v[:2][v[:2] > 0] if self.exact and (v[:2] > 0).any() else above
        if not above.size:
            found = self.rng.choice((0.5, 0.0, -0.25, 1.0), size)
        elif self.exact or self.near:
            found = self.rng.choice(above, size)
        else:
            at = np.asarray(self.rng.uniform(0.3, 0.95, size))
            found = np.quantile(above, at.ravel()).reshape(size) * self.rng.uniform(0.9, 1, size)
        return np.broadcast_to(found, shape).copy()

    def reset_to(self, shape: tuple[int, ...], threshold: np.ndarray) -> np.ndarray:
        return self.numbers(shape, (0.0, 0.0, -0.25, 0.5), -0.3, 0.5) * np.abs(threshold) * self.pick((0, 0, 1))
