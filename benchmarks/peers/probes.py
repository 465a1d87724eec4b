"""Small graphs, one for every node kind and variant that the pass to stock NIR leaves in a file, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import nir
import numpy as np

from eiexport import graph as graphs
from eiexport.nodes import EIMaxPool2d, lif
from eiexport.passes import insert_delays
from eiexport.standard import to_standard_nir
from eiexport.steps import Clock

T, SAMPLES, N = 12, 2, 4
MAP = (2, 4, 4)


@dataclass(frozen=True)
class Probe:
    """`make` gives the nodes and edges in a clock; nodes "in" and "out" are added. All numbers are dyadic."""

    name: str
    group: str
    what: str
    make: Callable[[Clock], dict[str, Any]]
    shape: tuple[int, ...] = (N,)
    edges: tuple[tuple[str, str], ...] = ()  # none: a chain
    recurrence: str = "explicit"

    def graph(self, clock: Clock) -> nir.NIRGraph:
        """The file's graph, lowered for float32."""
        inner = self.make(clock)
        path = ["in", *inner, "out"]
        ends = {"in": nir.Input(np.array(self.shape)), "out": nir.Output(output_type={"output": None})}
        raw = nir.NIRGraph({**ends, **inner}, list(self.edges or pairwise(path)), type_check=False)
        raw = graphs.stamp(raw, dt=clock.dt, integrator=clock.integrator, dtype="float32")
        network = graphs.check(insert_delays(raw)[0])
        for name, node in raw.nodes.items():
            if getattr(node, "input_shape", ()) is None:  # a file has to hold it
                size = network.input_shape(name)[1:]
                node.input_shape = size if len(size) > 1 else size[0]
        raw.nodes["out"] = nir.Output(np.array(network.shapes["out"]))
        if insert_delays(raw)[1] and self.recurrence == "implicit":
            return raw  # stock nodes that another tool wrote like this
        return to_standard_nir(raw, "float32", recurrence=self.recurrence)

    def input(self) -> np.ndarray:
        """(sample, time, *neuron): multiples of 1/4 from -1/4 to 1, which meet thresholds exactly."""
        seed = sum(map(ord, self.name))
        return np.random.default_rng(seed).integers(-1, 5, (SAMPLES, T, *self.shape)) / 4


def full(value: float, shape: tuple[int, ...] = (N,)) -> np.ndarray:
    return np.full(shape, value)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[0]).choice((-0.5, -0.25, 0.25, 0.5, 1.0), shape)


def bias(n: int) -> np.ndarray:
    return np.random.default_rng(n).choice((0.25, -0.5, 0.5), n)


def matrix(values: np.ndarray) -> nir.Affine:
    """With a bias of 0, since some tools know no Linear."""
    return nir.Affine(values, np.zeros(len(values)))


def conv(outputs: int, inputs: int, kernel: tuple[int, ...], **geometry: Any) -> Any:
    kind = nir.Conv1d if len(kernel) == 1 else nir.Conv2d
    fields = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "input_shape": None, **geometry}
    return kind(weight=weight(outputs, inputs // fields["groups"], *kernel), bias=bias(outputs), **fields)


# --- neurons: `gain` 1 means that an input of 1 adds 1 to the membrane


def fire(shape: tuple[int, ...], threshold: Any = 1.0, v_reset: float = 0.0) -> dict[str, np.ndarray]:
    return {"v_threshold": np.broadcast_to(threshold, shape).copy(), "v_reset": full(v_reset, shape)}


def leak(clock: Clock, shape: tuple[int, ...], steps: Any, gain: float | None, v_leak: float) -> dict[str, np.ndarray]:
    """tau, r, v_leak; steps: tau / dt; gain None: r = 1."""
    tau = np.broadcast_to(np.asarray(steps, float), shape) * clock.dt
    r = full(1.0, shape) if gain is None else gain / clock.decay(tau)[1]
    return {"tau": tau, "r": np.broadcast_to(r, shape).copy(), "v_leak": full(v_leak, shape)}


def an_if(clock: Clock, shape: tuple[int, ...] = (N,), gain: float = 1.0, **how: Any) -> nir.IF:
    return nir.IF(r=full(gain / clock.dt, shape), **fire(shape, **how))


def a_lif(
    clock: Clock,
    shape: tuple[int, ...] = (N,),
    steps: Any = 2.0,
    gain: float | None = 1.0,
    v_leak: float = 0.0,
    **how: Any,
) -> nir.LIF:
    return nir.LIF(**leak(clock, shape, steps, gain, v_leak), **fire(shape, **how))


def unit_r(clock: Clock, shape: tuple[int, ...] = (N,), threshold: Any = 0.5, **how: Any) -> nir.LIF:
    """With r = 1, which most tools read alike, so that a probe meets what else it is for."""
    return a_lif(clock, shape, gain=None, threshold=threshold, **how)


def an_li(clock: Clock, gain: float | None = 1.0, v_leak: float = 0.0) -> nir.LI:
    return nir.LI(**leak(clock, (N,), 2.0, gain, v_leak))


def cuba(clock: Clock, gain: float | None = 1.0, syn: float = 2.0, mem: float = 4.0) -> dict[str, np.ndarray]:
    inner, outer = (leak(clock, (N,), steps, gain, 0.0) for steps in (syn, mem))
    return {"tau_syn": inner["tau"], "w_in": inner["r"], "tau_mem": outer["tau"], "r": outer["r"], "v_leak": full(0.0)}


def a_cuba(clock: Clock, gain: float | None = 1.0, threshold: float = 1.0, v_reset: float = 0.0) -> nir.CubaLIF:
    return nir.CubaLIF(**cuba(clock, gain), **fire((N,), threshold, v_reset))


def pool(kind: Any, size: int, stride: int, padding: int = 0) -> Any:
    return kind(*(np.array([n, n]) for n in (size, stride, padding)))


RECURRENT = (("in", "a"), ("a", "n"), ("n", "w"), ("w", "n"), ("n", "b"), ("b", "out"))
DELAYED = (("in", "a"), ("a", "n"), ("n", "d"), ("d", "w"), ("w", "n"), ("n", "b"), ("b", "out"))
REVERSE = {"a": "z", "n": "y", "w": "x", "b": "w", "in": "in", "out": "out"}


def recurrent(
    clock: Clock, cell: Callable[[Clock], Any], delay: bool = False, rec_bias: bool = False
) -> dict[str, Any]:
    """Affine -> neuron with a matrix back into itself -> Affine."""
    back = nir.Affine(weight(N, N), bias(N)) if rec_bias else matrix(weight(N, N))
    named = {"a": nir.Affine(weight(N, N) + 0.5 * np.eye(N), bias(N)), "n": cell(clock), "w": back}
    return named | ({"d": nir.Delay(full(clock.dt))} if delay else {}) | {"b": matrix(weight(2, N))}


def small_net(clock: Clock) -> dict[str, Any]:
    return {
        "conv": conv(3, 2, (3, 3), padding=1, input_shape=(4, 4)),
        "spike": unit_r(clock, (3, 4, 4), 0.5),
        "pool": pool(nir.AvgPool2d, 2, 2),
        "flat": nir.Flatten({"input": np.array([3, 2, 2])}, 0, -1),
        "dense": nir.Affine(weight(3, 12), bias(3)),
        "last": unit_r(clock, (3,), 0.375),
    }


def chained(*makes: Callable[[Clock], Any]) -> Callable[[Clock], dict[str, Any]]:
    return lambda clock: {f"n{i}": make(clock) for i, make in enumerate(makes)}


def one(make: Callable[[], Any]) -> Callable[[Clock], dict[str, Any]]:
    return lambda clock: {"n": make()}


def behind(make: Callable[[Clock], Any], shape: tuple[int, ...] = (N,)) -> Callable[[Clock], dict[str, Any]]:
    """Behind a connection, since a reader that skips what it does not know gives no answer for a node alone."""
    front = nir.Affine(weight(N, N) + np.eye(N), bias(N)) if len(shape) == 1 else conv(shape[0], shape[0], (1, 1))
    return lambda clock: {"a": copy(front), "n": make(clock)}


def cell(make: Callable[..., Any], **how: Any) -> Callable[[Clock], dict[str, Any]]:
    return lambda clock: {"n": make(clock, **how)}


C, M, S, R = "connections", "neurons", "whole networks", "cycles"
PROBES = (
    Probe("Affine", C, "a matrix and a bias", one(lambda: nir.Affine(weight(3, N), bias(3)))),
    Probe("Linear", C, "a matrix, not square", one(lambda: nir.Linear(weight(3, N)))),
    Probe("Scale", C, "a factor for each neuron", behind(lambda c: nir.Scale(np.array([0.5, 1.0, -2.0, 0.25])))),
    Probe("Conv1d", C, "stride 2, padding 1", one(lambda: conv(3, 2, (3,), stride=2, padding=1)), (2, 6)),
    Probe("Conv1d groups", C, "two groups", one(lambda: conv(4, 2, (3,), groups=2)), (2, 6)),
    Probe("Conv2d", C, "3 x 3, padding 1", one(lambda: conv(3, 2, (3, 3), padding=1)), MAP),
    Probe(
        "Conv2d oblong",
        C,
        "kernel, stride and padding differ by axis",
        one(lambda: conv(3, 2, (3, 2), stride=(2, 1), padding=(1, 0))),
        (2, 4, 5),
    ),
    Probe("Conv2d dilation", C, "dilation 2", one(lambda: conv(3, 2, (2, 2), dilation=2)), MAP),
    Probe("Conv2d groups", C, "two groups", one(lambda: conv(4, 2, (3, 3), padding=1, groups=2)), MAP),
    Probe("SumPool2d", C, "2 x 2", behind(lambda c: pool(nir.SumPool2d, 2, 2), MAP), MAP),
    Probe(
        "SumPool2d padding", C, "3 x 3, stride 2, padding 1", behind(lambda c: pool(nir.SumPool2d, 3, 2, 1), MAP), MAP
    ),
    Probe("AvgPool2d", C, "2 x 2", behind(lambda c: pool(nir.AvgPool2d, 2, 2), MAP), MAP),
    Probe(
        "AvgPool2d padding", C, "4 x 4, stride 2, padding 1", behind(lambda c: pool(nir.AvgPool2d, 4, 2, 1), MAP), MAP
    ),
    Probe("Flatten", C, "all axes", behind(lambda c: nir.Flatten({"input": np.array(MAP)}, 0, -1), MAP), MAP),
    Probe(
        "Flatten some", C, "the last two axes", behind(lambda c: nir.Flatten({"input": np.array(MAP)}, 1, 2), MAP), MAP
    ),
    Probe("Delay", C, "two steps", behind(lambda c: nir.Delay(full(2 * c.dt)))),
    Probe("Threshold", M, "spike where the input is above", behind(lambda c: nir.Threshold(full(0.5)))),
    Probe("IF", M, "r = 1/dt: an input of 1 adds 1", cell(an_if)),
    Probe("IF r", M, "r = 1/(2 dt): an input of 1 adds 1/2", cell(an_if, gain=0.5)),
    Probe("IF v_reset", M, "reset to -0.5", cell(an_if, v_reset=-0.5)),
    Probe("LIF", M, "tau = 2 dt, r = 2: an input of 1 adds 1", cell(a_lif)),
    Probe("LIF r = 1", M, "an input of 1 adds less than 1", cell(a_lif, gain=None, threshold=0.5)),
    Probe("LIF v_reset", M, "reset to -0.5", cell(unit_r, v_reset=-0.5)),
    Probe("LIF v_leak", M, "leaks towards 0.25", cell(unit_r, v_leak=0.25)),
    Probe("LIF v_leak = v_reset", M, "both 0.25", cell(unit_r, v_leak=0.25, v_reset=0.25)),
    Probe(
        "LIF each",
        M,
        "tau and threshold of each neuron its own",
        cell(unit_r, steps=[2, 4, 8, 2], threshold=[0.5, 0.25, 0.125, 0.375]),
    ),
    Probe("LIF map", M, "neurons in (C, H, W)", cell(unit_r, shape=MAP), MAP),
    Probe("LIF tau = dt", M, "forgets everything in one step", cell(a_lif, steps=1.0, threshold=0.75)),
    Probe("CubaLIF", M, "tau_syn = 2 dt, tau_mem = 4 dt, both gains 1", cell(a_cuba)),
    Probe("CubaLIF r = w_in = 1", M, "as NIR's defaults have it", cell(a_cuba, gain=None, threshold=0.125)),
    Probe("CubaLIF v_reset", M, "reset to -0.5", cell(a_cuba, v_reset=-0.5)),
    Probe("I", M, "integrates", behind(lambda c: nir.I(full(1 / c.dt)))),
    Probe("LI", M, "tau = 2 dt, r = 2: an input of 1 adds 1", behind(an_li)),
    Probe("LI r = 1", M, "an input of 1 adds less than 1", behind(lambda c: an_li(c, None))),
    Probe("CubaLI", M, "tau_syn = 2 dt, tau_mem = 4 dt, both gains 1", behind(lambda c: nir.CubaLI(**cuba(c)))),
    Probe("`>=`, hard reset", S, "EIDiscreteLIF as LIF, for float32", lambda clock: {"n": discrete(clock, "zero")}),
    Probe(
        "two layers",
        S,
        "Affine -> LIF -> Affine -> LIF",
        chained(
            lambda c: nir.Affine(weight(5, N) + 0.25, bias(5)),
            lambda c: unit_r(c, (5,)),
            lambda c: matrix(weight(3, 5) + 0.25),
            lambda c: unit_r(c, (3,)),
        ),
    ),
    Probe(
        "two IF layers",
        S,
        "Affine -> IF -> Affine -> IF",
        chained(
            lambda c: nir.Affine(weight(5, N), bias(5)),
            lambda c: an_if(c, (5,)),
            lambda c: matrix(weight(3, 5)),
            lambda c: an_if(c, (3,)),
        ),
    ),
    Probe(
        "two paths",
        S,
        "Affine -> LIF -> (Affine + straight) -> LIF",
        lambda c: {
            "a": nir.Affine(weight(N, N) + 0.25, bias(N)),
            "n": unit_r(c),
            "w": matrix(weight(N, N)),
            "o": unit_r(c),
        },
        edges=(("in", "a"), ("a", "n"), ("n", "w"), ("n", "o"), ("w", "o"), ("o", "out")),
    ),
    Probe("conv network", S, "Conv2d -> LIF -> AvgPool2d -> Flatten -> Affine -> LIF", small_net, MAP),
    Probe(
        "max pool of spikes",
        S,
        "EIMaxPool2d as SumPool2d -> Threshold, behind a LIF",
        chained(lambda c: unit_r(c, MAP), lambda c: EIMaxPool2d(*np.array([[2, 2], [2, 2], [0, 0]]))),
        MAP,
    ),
    Probe(
        "LIF, explicit", R, "a matrix back through a Delay", lambda c: recurrent(c, unit_r, delay=True), edges=DELAYED
    ),
    Probe(
        "LIF, implicit",
        R,
        "the same, the Delay left to the reader",
        lambda c: recurrent(c, unit_r, delay=True),
        edges=DELAYED,
        recurrence="implicit",
    ),
    Probe(
        "LIF, implicit, bias",
        R,
        "a matrix and a bias back, no Delay",
        lambda c: recurrent(c, lambda k: unit_r(k, threshold=0.25), rec_bias=True),
        edges=RECURRENT,
        recurrence="implicit",
    ),
    Probe(
        "LIF, implicit, names",
        R,
        "the same with names in reverse order",
        lambda c: {REVERSE[k]: v for k, v in recurrent(c, unit_r).items()},
        edges=tuple((REVERSE[a], REVERSE[b]) for a, b in RECURRENT),
        recurrence="implicit",
    ),
    Probe(
        "CubaLIF, implicit",
        R,
        "a matrix back, no Delay",
        lambda c: recurrent(c, lambda k: a_cuba(k, threshold=1.25)),
        edges=RECURRENT,
        recurrence="implicit",
    ),
    Probe(
        "soft reset, explicit", R, "LI -> Threshold -> Delay -> Scale -> LI", lambda c: {"n": discrete(c, "subtract")}
    ),
    Probe(
        "soft reset, implicit",
        R,
        "LI -> Threshold -> Scale -> LI",
        lambda c: {"n": discrete(c, "subtract")},
        recurrence="implicit",
    ),
)


def discrete(clock: Clock, reset: str) -> Any:
    """Decay 1/2, `>=` 1."""
    return lif((N,), decay=0.5, threshold=1.0, compare="ge", reset=reset)
