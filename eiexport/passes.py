"""Passes over a graph: delays that close its cycles, and latencies on engines where a connection takes a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import nir
import numpy as np

from eiexport import graph as graphs
from eiexport import nodes
from eiexport.errors import GraphError
from eiexport.graph import Network, breaks_cycle, components
from eiexport.neurons import Delay

Sources = dict[str, tuple[str, ...]]


def insert_delays(
    graph: nir.NIRGraph, dt: float | None = None, integrator: str | None = None
) -> tuple[nir.NIRGraph, list[str]]:
    """The graph with one implicit delay of one step where a cycle contains none, and what was added, in words.

    The delay stands on the edges that lead from inside the cycles back to their entries, the nodes which are also
    fed from outside: where a step-by-step reader would look up the last step. Repeated until every cycle has one,
    so which edges are chosen depends on the graph alone, not on names or on their order. dt, integrator: as in
    `graph.check`. Raises GraphError for a cycle that nothing feeds, and for whatever `check` refuses.
    """
    clock = graphs.clock_of(graph, dt, integrator)
    found, edges = dict(graph.nodes), list(graph.edges)
    added: dict[str, tuple[str, str]] = {}

    def delays(name: str) -> bool:
        return isinstance(found[name], nir.Delay) and breaks_cycle(nodes.prepare(found[name], clock))

    while back := _back_edges(_sources(found, edges), delays):
        for a, b in back:
            name = f"{a}_{b}_delay"
            while name in found:
                name += "_"
            # any shape for now: shapes can be told only when every cycle is closed
            found[name] = nir.Delay(delay=np.array(clock.dt))
            edges.remove((a, b))
            edges += [(a, name), (name, b)]
            added[name] = (a, b)
    if not added:
        return graph, []
    result = nir.NIRGraph(found, edges, metadata=dict(graph.metadata), type_check=False)
    shapes = graphs.check(result, dt, integrator).shapes
    for name in added:
        found[name] = nir.Delay(delay=np.full(shapes[name], clock.dt))
    result = nir.NIRGraph(found, edges, metadata=dict(graph.metadata), type_check=False)
    return result, [
        f"edge {a!r} -> {b!r} closes a cycle without delay: added Delay {name!r} of one step"
        for name, (a, b) in added.items()
    ]


def _sources(found: dict[str, nir.ir.NIRNode], edges: list[tuple[str, str]]) -> Sources:
    for edge in edges:
        if missing := [end for end in edge if end not in found]:
            raise GraphError(f"edge {edge[0]!r} -> {edge[1]!r} names {missing[0]!r}, which is no node")
    return {n: tuple(sorted(a for a, b in edges if b == n)) for n in sorted(found)}


def _cycles(sources: Sources) -> Iterator[frozenset[str]]:
    return (frozenset(c) for c in components(sources) if len(c) > 1 or c[0] in sources[c[0]])


def _back_edges(sources: Sources, delays: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Edges that lead back to the entries of the cycles without delay."""
    whole = {n: c for c in _cycles(sources) for n in c}
    without = {n: () if delays(n) else s for n, s in sources.items()}
    back = []
    for cycle in _cycles(without):
        # a cycle inside a larger one may be fed by that one alone
        outsides: tuple[frozenset[str], ...] = (whole[min(cycle)], cycle)
        entries: list[str] = []
        for outside in outsides:
            entries = entries or [n for n in sorted(cycle) if set(sources[n]) - outside]
        if not entries:
            raise GraphError(f"cycle {_told(sorted(cycle))} is fed by nothing outside of it; connect it or remove it")
        back += [(a, b) for b in entries for a in sources[b] if a in cycle]
    return back


def latencies(network: Network, hop: Callable[[str], int]) -> dict[str, int]:
    """Engine steps L by which each node runs behind the model, where node v takes `hop(v)` steps of the engine.

    The least L >= 0 with L[Input] = 0 and, on every edge u -> v, L[v] >= L[u] + hop(v). A delay of d steps
    (the shortest, where neurons differ) gives its steps to the cycle it lies in: L[v] >= L[u] - d. Outside of cycles
    it keeps them, so that nothing is sent before its time.
    Raises GraphError for a cycle with more hops than steps of delay: it cannot run at one engine step a model step.
    """
    latency: dict[str, int] = {}
    for component in network.order:
        if component[0] not in network.cycles:
            (name,) = component
            latency[name] = max((latency[s] for s in network.sources[name]), default=0) + hop(name)
            continue
        costs = {n: _cost(network, n, hop) for n in component}
        edges = [(u, v) for v in sorted(component) for u in network.sources[v]]
        latency |= dict.fromkeys(component, 0)
        raised_by: dict[str, str] = {}
        # Bellman-Ford for longest paths: without a positive cycle it settles within one round a node
        for _ in range(len(component) + 1):
            raised = ""
            for u, v in edges:
                if latency[u] + costs[v] > latency[v]:
                    latency[v], raised_by[v], raised = latency[u] + costs[v], u, v
            if not raised:
                break
        else:
            raise GraphError(_too_fast(network, raised, raised_by, costs))
    return latency


def _cost(network: Network, name: str, hop: Callable[[str], int]) -> int:
    step = network.steps[name]
    return hop(name) - (step.shortest if isinstance(step, Delay) else 0)


def _too_fast(network: Network, raised: str, raised_by: dict[str, str], costs: dict[str, int]) -> str:
    for _ in raised_by:  # from anywhere on the way, back into the cycle itself
        raised = raised_by[raised]
    cycle = [raised]
    while (before := raised_by[cycle[-1]]) != raised:
        cycle.append(before)
    cycle.reverse()
    start = cycle.index(min(cycle))
    cycle = cycle[start:] + cycle[:start]
    hops = sum(c for n in cycle if (c := costs[n]) > 0)
    steps = -sum(c for n in cycle if (c := costs[n]) < 0)
    return (
        f"cycle {_told(cycle)} takes {hops} engine steps (one for each connection), but its delays give {steps}: "
        f"lengthen them by {(hops - steps) * network.clock.dt:g} or remove connections"
    )


def _told(cycle: list[str]) -> str:
    return " -> ".join(repr(n) for n in (*cycle, cycle[0]))
