"""What generated float networks hold and do: every kind, option, structure and branch, counted from the outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import nir
import numpy as np

from eiexport.graph import Network
from eiexport.nodes import INTEGERS, PREPARE
from eiexport.ops import NumpyOps
from eiexport.trace import Trace
from targets.base import recorded
from targets.loop import Executor

OPTIONS = {
    "conv": ("groups", "stride", "dilation", "padding", "same", "valid", "bias", "uneven"),
    "pool": ("padding", "stride", "uneven"),
    "flatten": ("all", "tail"),
    "delay": ("one for all", "each its own", "none", "longer than the run"),
    "neuron": ("parameters for each", "one for all", "no decay", "full decay", "v_reset", "v_leak"),
    "threshold": ("0", "negative"),
    "weights": ("huge", "tiny", "all zero", "some zero", "biases"),
    "clock": ("euler", "exponential", "dt is not 1"),
    "input": ("one step", "one sample", "silent sample", "negative", "binary", "ternary", "int", "real"),
    "graph": ("join", "shortcut", "branch", "two outputs", "depth 1-3", "depth 4-9", "deeper")
    + (
        "cycle",
        "two neurons in a cycle",
        "connection in a cycle",
        "delay of one step in a cycle",
        "longer delay in a cycle",
    ),
    "run": ("tie gt", "tie ge", "lower tie", "spike", "negative spike", "swallowed sign 0", "relu", "filled zero")
    + ("nothing to fill with",),
}
REQUIRED = [f"kind {k}" for k in PREPARE if k not in INTEGERS]
REQUIRED += [f"{group}: {o}" for group, options in OPTIONS.items() for o in options]
REQUIRED += [
    f"EIDiscreteLIF {compare} {reset}{lower}"
    for compare in ("gt", "ge")
    for reset in ("zero", "subtract", "none")
    for lower in ("", " lower")
]
REQUIRED += [f"EIGatedLIF {g} {f}" for g in ("bare", "feedback", "balance", "both") for f in ("flat", "map")]
FORMS = (
    "none sample_min",
    "exact sample_min",
    "exact constant",
    "frozen sample_min",
    "shift constant",
    "table constant",
)
REQUIRED += [f"EICircuit {form} {f}" for form in FORMS for f in ("dense", "conv")]


class Watching(NumpyOps):
    """The reference's arithmetic, which notes what decisions it met."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def note(self, what: str, where: Any) -> None:
        self.seen[f"run: {what}"] += int(np.count_nonzero(where))

    def fire(self, v: Any, threshold: Any, compare: str) -> Any:
        z = super().fire(v, threshold, compare)
        lower = np.ndim(threshold) == 0 and threshold == 0.0 and not isinstance(threshold, np.ndarray)
        self.note("lower tie" if lower else f"tie {compare}", (v == threshold) & (v != 0 if not lower else True))
        self.note("spike", z)
        return z

    def sign(self, x: Any) -> Any:
        self.note("swallowed sign 0", x == 0)
        return super().sign(x)

    def relu(self, x: Any) -> Any:
        self.note("relu", x < 0)
        return super().relu(x)

    def fill(self, x: Any, y: Any) -> Any:
        self.note("filled zero", x == 0)
        self.note("nothing to fill with", (x == 0) & np.isinf(np.broadcast_to(y, x.shape)))
        return super().fill(x, y)


def watched(network: Network, x: np.ndarray) -> tuple[Trace, Counter[str]]:
    """(the reference's trace, which branches it took)."""
    ops = Watching()
    with np.errstate(over="ignore", invalid="ignore"):
        z = Executor(network, ops).run(np.swapaxes(x, 0, 1).astype(np.float64))
    trace = recorded(network, dict.fromkeys(network.recorded, 0), z, None)
    ops.note("negative spike", [bool((a < 0).any()) for a in trace.z.values() if a.dtype == np.int8])
    return trace, ops.seen


def seen(network: Network, x: np.ndarray) -> Counter[str]:
    """What a network and its input hold, each at most once."""
    graph = network.graph
    found = {f"kind {type(n).__name__}" for n in graph.nodes.values()}
    found |= {f"clock: {network.clock.integrator}", f"input: {network.alphabets[network.input].kind}"}
    if network.clock.dt != 1:
        found.add("clock: dt is not 1")
    found |= {
        f"input: {text}"
        for text, true in zip(("one step", "one sample"), (x.shape[1], len(x)), strict=True)
        if true == 1
    }
    found |= {"input: silent sample"} if any(not a.any() for a in x) else set()
    found |= {"input: negative"} if (x < 0).any() else set()
    for name, node in graph.nodes.items():
        found |= set(_options(network, name, node, x.shape[1]))
    found |= {f"graph: {text}" for text in _structure(network)}
    return Counter(dict.fromkeys(found, 1))


def _options(network: Network, name: str, node: Any, steps: int) -> Iterator[str]:
    kind, step = type(node).__name__, network.steps[name]
    if kind in ("Conv1d", "Conv2d"):
        yield from _conv(node, step)
    if hasattr(node, "weight"):
        yield from _weights(node)
    if kind.endswith("Pool2d"):
        w = getattr(step, "window")  # noqa: B009
        yield from (f"pool: {k}" for k, on in (("padding", any(w.padding)), ("stride", set(w.stride) != {1})) if on)
        if len(set(step.kernel)) > 1:  # type: ignore[attr-defined]
            yield "pool: uneven"
    if kind == "Flatten":
        yield "flatten: all" if len(network.shapes[name]) == 1 else "flatten: tail"
    if kind == "Delay":
        steps_each = np.rint(np.asarray(node.delay) / network.clock.dt)
        yield "delay: one for all" if len(np.unique(steps_each)) == 1 else "delay: each its own"
        yield from (["delay: none"] if (steps_each == 0).any() else [])
        yield from (["delay: longer than the run"] if (steps_each >= steps).any() else [])
    if step.neuron:
        yield from _neuron(node, step)
    if kind == "EIDiscreteLIF":
        yield f"EIDiscreteLIF {node.compare} {node.reset}" + (" lower" if node.lower is not None else "")
    if kind == "EIGatedLIF":
        gates = {(0, 0): "bare", (1, 0): "feedback", (0, 1): "balance", (1, 1): "both"}
        form = gates[node.feedback is not None, node.balance is not None]
        yield f"EIGatedLIF {form} {'flat' if len(network.shapes[name]) == 1 else 'map'}"
    if kind == "EICircuit":
        yield f"EICircuit {node.form} {node.zero} {'dense' if isinstance(node.excite, nir.Linear) else 'conv'}"


def _conv(node: Any, step: Any) -> Iterator[str]:
    w = step.window
    told = {"groups": w.groups > 1, "stride": set(w.stride) != {1}, "dilation": set(w.dilation) != {1}}
    told |= {"padding": any(w.padding), "bias": step.bias is not None, "uneven": len(set(node.weight.shape[2:])) > 1}
    told |= {word: isinstance(node.padding, str) and node.padding == word for word in ("same", "valid")}
    yield from (f"conv: {k}" for k, on in told.items() if on)


def _weights(node: Any) -> Iterator[str]:
    w = np.abs(node.weight)
    told = {"huge": w.max() >= 1000, "tiny": 0 < w.max() <= 1e-3, "all zero": not w.any(), "some zero": (w == 0).any()}
    told["biases"] = bool(np.any(getattr(node, "bias", 0)))
    yield from (f"weights: {k}" for k, on in told.items() if on)


def _neuron(node: Any, step: Any) -> Iterator[str]:
    inner = getattr(step, "inner", step)
    p = {k: getattr(inner, k, None) for k in ("decay", "threshold", "v_reset")}
    held = [v for v in p.values() if isinstance(v, np.ndarray)]
    told = {"parameters for each": any(v.ndim for v in held), "one for all": all(v.ndim == 0 for v in held)}
    told |= {"no decay": np.any(p["decay"] == 1), "full decay": np.any(p["decay"] == 0)}
    told |= {"v_reset": np.any(getattr(node, "v_reset", 0)), "v_leak": np.any(getattr(node, "v_leak", 0))}
    yield from (f"neuron: {k}" for k, on in told.items() if on)
    if p["threshold"] is not None:
        yield from (["threshold: 0"] if np.any(p["threshold"] == 0) else [])
        yield from (["threshold: negative"] if np.any(p["threshold"] < 0) else [])


def _structure(network: Network) -> Iterator[str]:
    sources = network.sources
    read = Counter(s for came in sources.values() for s in came)
    joins = [came for came in sources.values() if len(came) > 1]
    told = {"join": bool(joins), "branch": max(read.values()) > 1, "two outputs": len(network.outputs) > 1}
    # what a node sums stands both before and behind one of its other sources
    told["shortcut"] = any(a in before(network, b) for came in joins for a in came for b in came if a != b)
    depth = len(network.graph.nodes)
    told |= {"depth 1-3": depth < 6, "depth 4-9": 6 <= depth < 12, "deeper": depth >= 12}
    for component in network.order:
        if component[0] in network.cycles:
            steps = [network.steps[n] for n in component]
            delays = [s.shortest for s in steps if getattr(s, "shortest", 0) > 0]  # type: ignore[attr-defined]
            told |= {"cycle": True} | ({"two neurons in a cycle": True} if sum(s.neuron for s in steps) > 1 else {})
            told |= (
                {"connection in a cycle": True} if any(s.scope == "stateless" and not s.neuron for s in steps) else {}
            )
            told |= {"delay of one step in a cycle": True} if 1 in delays else {}
            told |= {"longer delay in a cycle": True} if max(delays) > 1 else {}
    yield from (k for k, on in told.items() if on)


def before(network: Network, name: str) -> set[str]:
    """Nodes that a node comes from."""
    found: set[str] = set()
    waiting = list(network.sources[name])
    while waiting:
        n = waiting.pop()
        if n not in found:
            found.add(n)
            waiting += network.sources[n]
    return found


def unseen(counts: Counter[str]) -> list[str]:
    """What never occurred, of everything that has to."""
    return [what for what in REQUIRED if not counts[what]]
