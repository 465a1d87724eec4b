"""The pass to stock NIR: extension nodes become nodes that every NIR reader has, where these mean exactly the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import nir
import numpy as np

from eiexport import graph as graphs
from eiexport.connections import MaxPool
from eiexport.errors import GraphError
from eiexport.graph import ANY, Network
from eiexport.neurons import GatedFire, LeakyFire
from eiexport.nodes import EXTENSIONS, prepare
from eiexport.ops import Ints
from eiexport.steps import Clock, Step

DTYPES = ("float32", "float64")
NEAR = sorted(range(-4, 5), key=abs)  # neighbouring floats that are tried of a parameter, the nearest first
LOWERED = "EIDiscreteLIF with one threshold and reset 'zero', and EIMaxPool2d on spikes of 0 and 1"

Values = dict[str, np.ndarray]


def to_standard_nir(
    graph: nir.NIRGraph, dtype: str = "float32", dt: float | None = None, integrator: str | None = None
) -> nir.NIRGraph:
    """The same network in stock NIR nodes alone, for readers that compute in `dtype`; its nodes keep their names.

    EIDiscreteLIF with reset "zero" becomes IF (decay 1) or LIF (decay below 1, Euler alone): tau and r are such that
    dt / tau and the products of `neurons`, formed in float64 and rounded to dtype, give its decay and gain. A stock
    neuron fires above its threshold; where `v >= threshold` is meant, the threshold stands one number of dtype lower.
    EIMaxPool2d of spikes becomes SumPool2d and Threshold(0.5). Stock nodes stay as they are.
    The metadata's `exact_for` says dtype where another dtype would not do, else "any". dt, integrator: as in
    `graph.check`. Raises GraphError, with the node's name, for what has no stock form, and whatever `check` raises.
    """
    if dtype not in DTYPES:
        raise GraphError(f"unknown dtype {dtype!r}; valid: {', '.join(DTYPES)}")
    network = graphs.check(graph, dt, integrator)
    made_for = graphs.exact_for(graph)
    if made_for not in (ANY, dtype):
        raise GraphError(f"the graph was made for {made_for} and is not exact in {dtype}: use --dtype {made_for}")
    found: dict[str, nir.ir.NIRNode] = {}
    edges = list(graph.edges)
    for name, node in graph.nodes.items():
        kind, step = type(node).__name__, network.steps[name]
        if kind not in EXTENSIONS:
            found[name] = node
            continue
        try:
            if isinstance(step, MaxPool):
                edges = _pool(network, name, step, found, edges)
            else:
                found[name], everywhere = _neuron(_plain(step), network.shapes[name], network.clock, dtype)
                made_for = made_for if everywhere else dtype
        except GraphError as e:
            raise GraphError(f"node {name!r} ({kind}) {e}; --standard-nir lowers {LOWERED}") from None
    provenance = {"tool": "eiexport", **_provenance(graph), "standard_nir": dtype}
    result = nir.NIRGraph(found, edges, metadata=dict(graph.metadata), type_check=False)
    clock = network.clock
    result = graphs.stamp(
        result, dt=clock.dt, integrator=clock.integrator, dtype=dtype, exact_for=made_for, **provenance
    )
    graphs.check(result)
    return result


def remarks(before: nir.NIRGraph, after: nir.NIRGraph, path: Path) -> list[str]:
    """What the user should know of a standard form that was written to `path`, in words."""
    became = [
        f"{n!r} {type(node).__name__} as {type(after.nodes[n]).__name__}"
        for n, node in before.nodes.items()
        if type(after.nodes[n]) is not type(node)
    ]
    became += [f"{n!r} {type(node).__name__} added" for n, node in after.nodes.items() if n not in before.nodes]
    what = ", ".join(became) or "as the graph did before"
    told = [
        f"the targets get the standard form: {path.name} holds stock NIR nodes alone ({what}), "
        "and is held against the graph before"
    ]
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
        raise GraphError("computes in whole numbers, which no stock node does: export the float network")
    if step.lower is not None:
        raise GraphError("has two thresholds, whose stock form is not written yet")
    if step.reset_mode != "zero":
        raise GraphError(f"has reset {step.reset_mode!r}, whose stock form is not written yet")
    return step


def _neuron(step: LeakyFire, shape: Ints, clock: Clock, dtype: str) -> tuple[nir.IF | nir.LIF, bool]:
    """IF or LIF, and whether it means the same in every dtype."""
    ge = step.compare == "ge"
    fire = {"v_threshold": next_below(step.threshold, dtype) if ge else step.threshold}
    fire["v_reset"] = np.zeros(()) if step.v_reset is None else step.v_reset
    gain = np.ones(()) if step.gain is None else step.gain
    leaks = step.decay < 1
    if leaks.all() != leaks.any():
        raise GraphError("has decay 1 in some neurons and less in others: split it into two nodes")
    kind, r = (nir.LIF, gain / (1 - step.decay)) if leaks.any() else (nir.IF, gain / clock.dt)
    guess = {"r": r}
    if kind is nir.LIF:
        if clock.integrator != "euler":
            raise GraphError(
                f"is given in discrete time, and the graph's integrator is {clock.integrator!r}: use euler"
            )
        fire["v_leak"] = np.zeros(())
        guess["tau"] = clock.dt / (1 - step.decay)

    def stock(values: Values, size: Ints) -> nir.IF | nir.LIF:
        return kind(**{k: np.broadcast_to(v, size).copy() for k, v in (fire | values).items()})

    values, exact = _search(stock, guess, step.decay, gain, clock, dtype)
    return stock(values, shape), exact and not ge


def next_below(threshold: np.ndarray, dtype: str) -> np.ndarray:
    """The number of `dtype` next below the threshold: v > it is v >= threshold for every v of that dtype."""
    with np.errstate(over="ignore"):
        held = threshold.astype(dtype)
        below = np.nextafter(held, held.dtype.type(-np.inf))
    if (lost := ~(np.isfinite(held) & np.isfinite(below))).any():
        raise GraphError(f"has a threshold that {dtype} does not hold: {threshold[lost].flat[0]:g}")
    return below.astype(np.float64)


def _search(
    stock: Callable[[Values, Ints], nir.IF | nir.LIF],
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
        assert isinstance(step, LeakyFire)
        pairs = ((step.decay, decay), (np.ones(()) if step.gain is None else step.gain, gain))
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


def _pool(
    network: Network, name: str, step: MaxPool, found: dict[str, nir.ir.NIRNode], edges: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """A maximum of spikes as their sum and a threshold, which takes the node's name; returns the edges."""
    (first, *rest) = (network.alphabets[s] for s in network.sources[name])
    total = sum(rest, first)
    if total.kind != "binary":
        raise GraphError(f"takes the maximum of {total}, where stock nodes have one for spikes of 0 and 1 alone")
    pooled = f"{name}_sum"
    while pooled in network.graph.nodes:
        pooled += "_"
    found[pooled] = nir.SumPool2d(*(np.array(v) for v in (step.kernel, step.window.stride, step.window.padding)))
    found[name] = nir.Threshold(np.full(network.shapes[name], 0.5))
    return [*((a, pooled if b == name else b) for a, b in edges), (pooled, name)]
