"""The pass to stock NIR: extension nodes become nodes that every NIR reader has, where these mean exactly the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path

import nir
import numpy as np

from eiexport import graph as graphs
from eiexport.circuits import Circuit, IntCircuitStep
from eiexport.connections import Conv, Dense, Flatten, MaxPool, Pool, Scale
from eiexport.errors import GraphError
from eiexport.graph import ANY, Network
from eiexport.neurons import GatedFire, Leaky, LeakyFire
from eiexport.nodes import EXTENSIONS, EIMaxPool2d, prepare
from eiexport.ops import Array, Ints, Ops
from eiexport.passes import insert_delays
from eiexport.steps import Clock, Neuron, State, Step, uniform

DTYPES = ("float32", "float64")
EXPLICIT, IMPLICIT = RECURRENCES = ("explicit", "implicit")
NEAR = sorted(range(-4, 5), key=abs)  # neighbouring floats that are tried of a parameter, the nearest first
LOWERED = "EIDiscreteLIF with one threshold and reset 'zero' or 'subtract', and EIMaxPool2d on spikes of 0 and 1"

Values = dict[str, np.ndarray]
Kinds = tuple[Callable[..., nir.ir.NIRNode], Callable[..., nir.ir.NIRNode]]  # for decay 1, and for decays below
Edges = list[tuple[str, str]]


def to_standard_nir(
    graph: nir.NIRGraph,
    dtype: str = "float32",
    dt: float | None = None,
    integrator: str | None = None,
    recurrence: str = EXPLICIT,
) -> nir.NIRGraph:
    """The same network in stock NIR nodes alone, for readers that compute in `dtype`; its nodes keep their names.

    EIDiscreteLIF with reset "zero" becomes IF (decay 1) or LIF (decay below 1, Euler alone): tau and r are such that
    dt / tau and the products of `neurons`, formed in float64 and rounded to dtype, give its decay and gain. A stock
    neuron fires above its threshold; where `v >= threshold` is meant, the threshold stands one number of dtype lower.
    With reset "subtract" it becomes a cycle, see `_soft`: the same sums in another order, so it is equal up to
    rounding, and to the bit while all of them fit dtype. recurrence: "explicit" writes the Delay of that cycle;
    "implicit" leaves it out, for readers that put one step into a cycle without one, and with it every Delay of one
    step that such readers put back in its place (`drop_delays`); the graph runs here only behind
    `passes.insert_delays`.
    EIMaxPool2d of spikes becomes SumPool2d and Threshold(0.5). Stock nodes stay as they are.
    The metadata's `exact_for` says dtype where another dtype would not do, else "any"; `provenance` says the dtype
    (standard_nir), the recurrence, and which neurons are equal up to rounding only (up_to_rounding). dt, integrator:
    as in `graph.check`. Raises GraphError, with the node's name, for what has no stock form, and whatever `check`
    raises.
    """
    for what, value, valid in (("dtype", dtype, DTYPES), ("recurrence", recurrence, RECURRENCES)):
        if value not in valid:
            raise GraphError(f"unknown {what} {value!r}; valid: {', '.join(valid)}")
    network = graphs.check(graph, dt, integrator)
    made_for = graphs.exact_for(graph)
    if made_for not in (ANY, dtype):
        raise GraphError(f"the graph was made for {made_for} and is not exact in {dtype}: use --dtype {made_for}")
    found: dict[str, nir.ir.NIRNode] = {}
    edges, soft = list(graph.edges), []
    for name, node in graph.nodes.items():
        kind, step = type(node).__name__, network.steps[name]
        if kind not in EXTENSIONS:
            found[name] = node
            continue
        try:
            if isinstance(step, MaxPool):
                edges = _pool(network, name, step, found, edges)
                continue
            plain = _plain(step)
            if plain.reset_mode == "subtract":
                soft.append(name)
                edges, everywhere = _soft(network, name, plain, found, edges, dtype, recurrence)
            else:
                found[name], everywhere = _neuron(plain, network.shapes[name], network.clock, dtype)
            made_for = made_for if everywhere else dtype
        except GraphError as e:
            raise GraphError(f"node {name!r} ({kind}) {e}; --standard-nir lowers {LOWERED}") from None
    provenance = {"tool": "eiexport", **_provenance(graph), "standard_nir": dtype}
    provenance |= {"up_to_rounding": ", ".join(soft)} if soft else {}
    result, clock = nir.NIRGraph(found, edges, metadata=dict(graph.metadata), type_check=False), network.clock
    left = recurrence == IMPLICIT and bool(soft)
    if recurrence == IMPLICIT:
        result, dropped = drop_delays(result, network)
        left = left or bool(dropped)
    provenance["recurrence"] = IMPLICIT if left else EXPLICIT
    result = graphs.stamp(
        result, dt=clock.dt, integrator=clock.integrator, dtype=dtype, exact_for=made_for, **provenance
    )
    graphs.check(insert_delays(result)[0])
    return result


def drop_delays(graph: nir.NIRGraph, network: Network) -> tuple[nir.NIRGraph, list[str]]:
    """Without the delays of one step that `insert_delays` puts back, and their names.

    It must put them on the same edges, or behind what keeps zeros and sums (a matrix without bias, a pool): a delay
    may stand on either side of that. network: the graph before it was lowered, which has the same Delay nodes.
    """
    delays = [n for n in sorted(network.cycles) if isinstance(graph.nodes.get(n), nir.Delay)]
    one = [n for n in delays if (s := network.steps[n]).shortest == s.longest == 1]  # type: ignore[attr-defined]
    closed, dropped = _closed(graph, network.clock), list[str]()
    for name in one:
        came, went = ([a for a, b in graph.edges if b == name], [b for a, b in graph.edges if a == name])
        through = {(a, b) for a in came for b in went}
        if name in came or through & set(graph.edges):
            continue  # a loop of its own, or a second edge between two nodes
        kept = {n: node for n, node in graph.nodes.items() if n != name}
        # in the delay's place: some readers go by the order of edges
        edges = [(a, end) for a, b in graph.edges if a != name for end in (went if b == name else [b])]
        bare = nir.NIRGraph(kept, edges, metadata=dict(graph.metadata), type_check=False)
        found = _closed(bare, network.clock)
        if any(found == closed | moved for moved in _moved_on(through, bare, network)):
            graph, closed = bare, found
            dropped.append(name)
    return graph, dropped


def _moved_on(delayed: set[tuple[str, str]], graph: nir.NIRGraph, network: Network) -> Iterator[set[tuple[str, str]]]:
    """The edges that delays may stand on in place of these."""
    while delayed:
        yield delayed
        passed = {b for _, b in delayed}
        alone = all({e for e in graph.edges if e[1] == b} <= delayed for b in passed)
        if not (alone and all(_homogeneous(network.steps.get(b)) for b in passed)):
            return
        delayed = {(a, b) for a, b in graph.edges if a in passed}


def _homogeneous(step: Step | None) -> bool:
    """True for what is linear and gives zeros for zeros."""
    return isinstance(step, Scale | Pool | Flatten) or (isinstance(step, Dense | Conv) and step.bias is None)


def _closed(graph: nir.NIRGraph, clock: Clock) -> set[tuple[str, str]]:
    """The edges that `insert_delays` puts a delay on."""
    edges = insert_delays(graph, clock.dt, clock.integrator)[0].edges
    added = {b for _, b in edges} - graph.nodes.keys()
    return {(a, b) for n in added for a, at in edges for by, b in edges if at == n == by}


@dataclass(frozen=True, kw_only=True)
class LateReset(Neuron):
    """A neuron with reset "subtract" in the order that its cycle computes in, for the error bounds of a check.

    Meaning, decision and numbers are the neuron's own (`inner`). But the reset comes a step later, with the input:
    `V = decay * V' + gain * (x + back * s')`, with V' and s' of the step before and `back` of `_back`. Each order
    rounds in its own places, so the bounds of one do not hold for the other.
    """

    inner: LeakyFire
    back: np.ndarray

    def init(self, ops: Ops, shape: Ints) -> State:
        return *self.inner.init(ops, shape), ops.zeros(shape)

    def charge(self, ops: Ops, driven: Array, state: State) -> State:
        fed = ops.add(driven, ops.mul(state[1], self.back))
        return self.inner.charge(ops, self.inner.drive(ops, fed), state[:1])

    def decide(self, ops: Ops, membrane: State) -> tuple[Array, Array]:
        return self.inner.decide(ops, membrane)

    def reset(self, ops: Ops, membrane: State, z: Array, s: Array) -> State:
        return *membrane, s


def as_run(network: Network, lowered: Network) -> Network:
    """The network, for checks of traces of its standard form `lowered`: what became a cycle has a cycle's bounds."""
    late = {n: _plain(network.steps[n]) for n in _cycles(network.graph, lowered.graph)}
    return replace(
        network, steps=network.steps | {n: LateReset(inner=step, back=_back(step)) for n, step in late.items()}
    )


def stands_for(network: Network, lowered: Network, name: str) -> Iterator[str]:
    """The nodes of the standard form that compute what node `name` of the network does, itself first."""
    waiting, seen = [name], {name}
    while waiting:
        yield (node := waiting.pop())
        added = {s for s in lowered.sources[node] if s not in network.graph.nodes} - seen
        seen |= added
        waiting += sorted(added)


def _cycles(before: nir.NIRGraph, after: nir.NIRGraph) -> list[str]:
    """The neurons that became a cycle: as a neuron's output, a Threshold is nothing else."""
    others = (nir.Threshold, EIMaxPool2d)
    found = {n: type(after.nodes.get(n)) for n in before.nodes}
    return [n for n, a in before.nodes.items() if found[n] is nir.Threshold and not isinstance(a, others)]


def delays_written(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The same graph, behind `passes.insert_delays`: its metadata no longer leaves delays to the reader."""
    if "recurrence" not in (said := _provenance(graph)):
        return graph
    about = {**graph.metadata["eiexport"], "provenance": {**said, "recurrence": EXPLICIT}}
    metadata = {**graph.metadata, "eiexport": about}
    return nir.NIRGraph(dict(graph.nodes), list(graph.edges), metadata=metadata, type_check=False)


def remarks(before: nir.NIRGraph, after: nir.NIRGraph, path: Path, recurrence: str = EXPLICIT) -> list[str]:
    """What the user should know of a standard form that was made with `recurrence` and written to `path`, in words."""
    became = [
        f"{n!r} {type(node).__name__} as {type(after.nodes[n]).__name__}"
        for n, node in before.nodes.items()
        if n in after.nodes and type(after.nodes[n]) is not type(node)
    ]
    became += [f"{n!r} {type(node).__name__} added" for n, node in after.nodes.items() if n not in before.nodes]
    what = ", ".join(became) or "as the graph did before"
    told = [
        f"the targets get the standard form: {path.name} holds stock NIR nodes alone ({what}), "
        "and is held against the graph before"
    ]
    if soft := _cycles(before, after):
        told.append(
            f"{', '.join(map(repr, soft))}: the soft reset comes back through a cycle, the same sums in another order: "
            "equal up to rounding, and a membrane within rounding of its threshold may be decided otherwise (exact "
            "while all sums fit the dtype)"
        )
    if recurrence == IMPLICIT:
        left = sorted(n for n in before.nodes if n not in after.nodes)
        which = f" ({', '.join(map(repr, left))})" if left else ""
        told.append(
            f"{path.name} leaves the one-step delay of these cycles to its readers{which}; the targets here get it as "
            "a node"
            if soft or left
            else "--recurrence implicit left nothing out: no cycle has a one-step Delay that readers would put back"
        )
    try:
        nir.read(path)
    except Exception as e:  # whatever another reader does not like is worth a word, and no failure of ours
        told.append(
            f"nir {nir.version} opens {path.name} with type_check=False only, for its shape inference says: "
            f"{' '.join(str(e).split())} (it misjudges grouped and non-square convolutions, a matrix over several axes "
            "and single numbers as parameters; the shapes are checked here)"
        )
    return told


def _provenance(graph: nir.NIRGraph) -> dict[str, object]:
    said = graph.metadata.get("eiexport", {}).get("provenance")
    return dict(said) if isinstance(said, dict) else {}


def _plain(step: Step) -> LeakyFire:
    if isinstance(step, GatedFire) and step.feedback is None and step.balance is None:
        step = step.inner
    if isinstance(step, GatedFire):
        raise GraphError("has gates, which no stock nodes express")
    if not isinstance(step, LeakyFire):
        if isinstance(step, Circuit) and not isinstance(step, IntCircuitStep):
            why = "give it folded into one connection" if step.linear else "and no stock node divides by a signal"
            raise GraphError(f"is a circuit of form {step.form!r}, {why}")
        raise GraphError("computes in whole numbers, which no stock node does: export the float network")
    if step.lower is not None:
        raise GraphError("has two thresholds, whose stock form is not written yet")
    if step.reset_mode == "none":
        raise GraphError(f"has reset {step.reset_mode!r}, whose stock form is not written yet")
    return step


def _neuron(step: LeakyFire, shape: Ints, clock: Clock, dtype: str) -> tuple[nir.ir.NIRNode, bool]:
    """IF or LIF, and whether it means the same in every dtype."""
    v_reset = np.zeros(()) if step.v_reset is None else step.v_reset
    fire = {"v_threshold": _passed(step, dtype), "v_reset": v_reset}
    found, exact = _leaky((nir.IF, nir.LIF), fire, step, shape, clock, dtype)
    return found, exact and step.compare == "gt"


def _soft(
    network: Network, name: str, step: LeakyFire, found: dict[str, nir.ir.NIRNode], edges: Edges, dtype: str, how: str
) -> tuple[Edges, bool]:
    """A soft reset as a cycle; returns the edges, and whether its numbers mean the same in every dtype.

        NAME_v  LI (or I)    V[t] = decay * V[t-1] + gain * (x[t] + y[t])
        NAME    Threshold    s[t] = V[t] > threshold
        NAME_delay, NAME_reset  Delay, Scale    y[t] = back * s[t-1],   back = -threshold * decay / gain

    V is the membrane before its reset: what would have been taken away in step t - 1 has leaked once by step t, and
    enters there through the gain. Without a Delay the graph leaves this one step to its reader.
    """
    shape, clock = network.shapes[name], network.clock
    held, back, line = (_free(f"{name}_{part}", network, found) for part in ("v", "reset", "delay"))
    scale = _back(step)
    with np.errstate(over="ignore", under="ignore"):
        taken = scale.astype(dtype)
    if (lost := ~np.isfinite(taken) | ((taken == 0) != (scale == 0))).any():
        raise GraphError(f"takes {abs(scale[lost].flat[0]):g} back with its input, which {dtype} does not hold")
    found[held], exact = _leaky((nir.I, nir.LI), {}, step, shape, clock, dtype)
    found[name] = nir.Threshold(np.broadcast_to(_passed(step, dtype), shape).copy())
    found[back] = nir.Scale(np.broadcast_to(scale, shape).copy())
    way = [name, back, held]
    if how == EXPLICIT:
        found[line] = nir.Delay(np.full(shape, clock.dt))
        way.insert(1, line)
    edges = [(a, held if b == name else b) for a, b in edges]
    return [*edges, (held, name), *pairwise(way)], exact and step.compare == "gt"


def _free(name: str, network: Network, found: dict[str, nir.ir.NIRNode]) -> str:
    while name in network.graph.nodes or name in found:
        name += "_"
    return name


def _back(step: LeakyFire) -> np.ndarray:
    """What a spike adds to the next step's input, so that the membrane loses its threshold: -threshold * decay / gain.

    Nowhere -0. Raises GraphError where an input of gain 0 cannot carry it.
    """
    gain = _gain(step)
    if not gain.all():
        raise GraphError("has gain 0, and its reset could not come back with its input")
    return uniform(0 - step.threshold * step.decay / gain)


def _leaky(
    kinds: Kinds, fixed: Values, step: LeakyFire, shape: Ints, clock: Clock, dtype: str
) -> tuple[nir.ir.NIRNode, bool]:
    """A node with the step's decay and gain and the parameters `fixed`, and whether exactly so in float64."""
    gain, leaks = _gain(step), step.decay < 1
    if leaks.all() != leaks.any():
        raise GraphError("has decay 1 in some neurons and less in others: split it into two nodes")
    kind, guess = kinds[0], {"r": gain / clock.dt}
    if leaks.any():
        if clock.integrator != "euler":
            raise GraphError(
                f"is given in discrete time, and the graph's integrator is {clock.integrator!r}: use euler"
            )
        kind, fixed = kinds[1], {**fixed, "v_leak": np.zeros(())}
        guess = {"r": gain / (1 - step.decay), "tau": clock.dt / (1 - step.decay)}

    def stock(values: Values, size: Ints) -> nir.ir.NIRNode:
        return kind(**{k: np.broadcast_to(v, size).copy() for k, v in (fixed | values).items()})

    values, exact = _search(stock, guess, step.decay, gain, clock, dtype)
    return stock(values, shape), exact


def _gain(step: Leaky) -> np.ndarray:
    return np.ones(()) if step.gain is None else step.gain


def _passed(step: LeakyFire, dtype: str) -> np.ndarray:
    """The threshold of a stock node, which fires above it alone."""
    return next_below(step.threshold, dtype) if step.compare == "ge" else step.threshold


def next_below(threshold: np.ndarray, dtype: str) -> np.ndarray:
    """The number of `dtype` next below the threshold: v > it is v >= threshold for every v of that dtype."""
    with np.errstate(over="ignore"):
        held = threshold.astype(dtype)
        below = np.nextafter(held, held.dtype.type(-np.inf))
    if (lost := ~(np.isfinite(held) & np.isfinite(below))).any():
        raise GraphError(f"has a threshold that {dtype} does not hold: {threshold[lost].flat[0]:g}")
    return below.astype(np.float64)


def _search(
    stock: Callable[[Values, Ints], nir.ir.NIRNode],
    guess: Values,
    decay: np.ndarray,
    gain: np.ndarray,
    clock: Clock,
    dtype: str,
) -> tuple[Values, bool]:
    """Parameters near `guess` that our own reader turns into this decay and gain, and whether exactly so in float64.

    Rounded to dtype they are always the same; raises GraphError where no neighbour gives that.
    """
    size = np.broadcast_shapes(decay.shape, gain.shape)
    best = np.full(size, -1)
    kept = {k: np.broadcast_to(v, size) for k, v in guess.items()}
    for ulps in sorted(product(NEAR, repeat=len(guess)), key=lambda steps: sum(map(abs, steps))):
        tried = {k: _moved(np.broadcast_to(v, size), n) for (k, v), n in zip(guess.items(), ulps, strict=True)}
        if "tau" in tried:  # a step longer than tau is no LIF
            tried["tau"] = np.maximum(tried["tau"], clock.dt)
        step = prepare(stock(tried, size), clock)
        assert isinstance(step, Leaky)
        pairs = ((step.decay, decay), (_gain(step), gain))
        held = np.logical_and(*(a.astype(dtype) == b.astype(dtype) for a, b in pairs))
        exact = np.logical_and(*(a == b for a, b in pairs))
        score = np.broadcast_to(held.astype(int) + (held & exact), size)
        kept = {k: np.where(score > best, v, kept[k]) for k, v in tried.items()}
        best = np.maximum(best, score)
        if (best == 2).all():
            break
    if (best == 0).any():
        at = np.flatnonzero(best == 0)[0]
        worst = " and ".join(
            f"{n} {float(np.broadcast_to(v, size).flat[at])!r}" for n, v in (("decay", decay), ("gain", gain))
        )
        raise GraphError(f"has {worst}, which no tau and r near by give in {dtype}")
    return kept, bool((best == 2).all())


def _moved(a: np.ndarray, ulps: int) -> np.ndarray:
    for _ in range(abs(ulps)):
        a = np.nextafter(a, np.copysign(np.inf, ulps))
    return a


def _pool(network: Network, name: str, step: MaxPool, found: dict[str, nir.ir.NIRNode], edges: Edges) -> Edges:
    """A maximum of spikes as their sum and a threshold, which takes the node's name; returns the edges."""
    total = network.arriving(name)
    if total.kind != "binary":
        raise GraphError(f"takes the maximum of {total}, where stock nodes have one for spikes of 0 and 1 alone")
    pooled = _free(f"{name}_sum", network, found)
    found[pooled] = nir.SumPool2d(*(np.array(v) for v in (step.kernel, step.window.stride, step.window.padding)))
    found[name] = nir.Threshold(np.full(network.shapes[name], 0.5))
    return [*((a, pooled if b == name else b) for a, b in edges), (pooled, name)]
