"""Read, write, check, order and show NIR graphs: a verified `Network` or a GraphError, nothing between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nir
import numpy as np

from eiexport import foreign, hdf5, nodes
from eiexport import shapes as declared_shapes
from eiexport.alphabet import REAL, Alphabet
from eiexport.errors import GraphError
from eiexport.files import writing
from eiexport.ops import Ints
from eiexport.steps import Clock, Step

INTEGRATORS = ("euler", "exponential")
ANY = "any"  # a graph that means the same in whatever dtype it is run


@dataclass(frozen=True)
class Network:
    """A verified graph, ready to run.

    order: strongly connected components in topological order; a component of several nodes, or of one with a
    self-edge, is a cycle and runs step by step, the others are folded over time. Inside a cycle the nodes stand in
    an order in which only delays look back.
    """

    graph: nir.NIRGraph
    clock: Clock
    steps: dict[str, Step]
    shapes: dict[str, Ints]  # neuron shape of each node's output
    sources: dict[str, tuple[str, ...]]
    order: tuple[tuple[str, ...], ...]
    cycles: frozenset[str]
    alphabets: dict[str, Alphabet] = field(default_factory=dict)

    @property
    def input(self) -> str:
        return next(n for n, node in self.graph.nodes.items() if isinstance(node, nir.Input))

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(sorted(n for n, node in self.graph.nodes.items() if isinstance(node, nir.Output)))

    @property
    def recorded(self) -> tuple[str, ...]:
        """Nodes whose output is a trace: neurons, and whatever feeds an output directly."""
        ends = {s for o in self.outputs for s in self.sources[o]}
        flat = (n for component in self.order for n in component)
        return tuple(n for n in flat if self.steps[n].neuron or (n in ends and n != self.input))

    @property
    def integer(self) -> bool:
        """True where integer nodes compute: then every value is a whole number, and engines must agree bit for bit."""
        return any(type(node).__name__ in nodes.INTEGERS for node in self.graph.nodes.values())

    def arriving(self, name: str) -> Alphabet:
        """What a node gets: the sum of its sources, their biases included."""
        return _total(self.alphabets, self.sources[name])

    def input_shape(self, name: str) -> Ints:
        """Neuron shape that enters a node."""
        return self.shapes[self.sources[name][0]] if self.sources[name] else self.shapes[name]


def read(path: str | Path) -> nir.NIRGraph:
    """Read a .nir file, stock or with extension nodes; raises GraphError in one line for anything else."""
    return load(path)[0]


def load(path: str | Path) -> tuple[nir.NIRGraph, tuple[str, ...]]:
    """(graph, notes): a .nir file of any tool, flat and with shapes that fit, and what was changed for that, in words.

    Raises GraphError in one line for what is no such file, is broken, or could mean two things.
    """
    path = Path(path)
    if not path.is_file():
        raise GraphError(f"{path}: no such file; give a .nir file or a run folder")
    with hdf5.opened(path, GraphError, hdf5.WHOLE) as f:
        if "node" not in f:
            raise GraphError(f"{path}: an HDF5 file, but not NIR (no group 'node'); is it a trace or a .net file?")
        try:
            d = nir.serialization.hdf2dict(f["node"])
        except hdf5.DAMAGE as e:
            raise GraphError(f"{path}: {hdf5.damage(e)}") from None
    try:
        _writable(d)
        return foreign.adopt(d)
    except GraphError as e:
        raise GraphError(f"{path}: {' '.join(str(e).split())}") from None
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, IndexError, RecursionError) as e:
        raise GraphError(f"{path}: not a NIR graph ({type(e).__name__}: {_line(e)}); write it again") from None


def _writable(fields: dict[str, Any], where: str = "") -> None:
    """NIR writes whatever is called `metadata` as a group, at any depth; at the top, what is none is left out."""
    for name, value in fields.items():
        if isinstance(value, dict):
            _writable(value, f"{where}{name}/")
        elif name == "metadata" and where:
            raise GraphError(f"{where}metadata is no group, and NIR could not write it: rename it")


def write(graph: nir.NIRGraph, path: str | Path) -> None:
    """Write a graph; the file appears whole or not at all. Raises GraphError for names that HDF5 cannot hold."""
    for name in graph.nodes:
        if "/" in name or name in ("", "."):
            raise GraphError(f"node {name!r}: a name must not be empty or hold '/'; rename it")
    for name, node in graph.nodes.items():
        empty = [k for k, v in node.to_dict().items() if v is None]
        if empty:
            raise GraphError(f"node {name!r}: {empty[0]} is None, which HDF5 cannot hold; fill it in")
    with writing(Path(path)) as sink:
        nir.write(sink, graph)


def stamp(
    graph: nir.NIRGraph, *, dt: float, integrator: str, dtype: str, exact_for: str = ANY, **provenance: Any
) -> nir.NIRGraph:
    """The same graph with the metadata group `eiexport`, which asserts dt, integrator and dtype.

    exact_for: the one dtype in which its numbers mean what was meant, as thresholds moved by a rounding do.
    """
    group = {"schema": 1, "dt": float(dt), "integrator": integrator, "dtype": dtype, "exact_for": exact_for}
    metadata = {**graph.metadata, "eiexport": {**group, "provenance": provenance or {"tool": "eiexport"}}}
    return nir.NIRGraph(dict(graph.nodes), list(graph.edges), metadata=metadata, type_check=False)


def exact_for(graph: nir.NIRGraph) -> str:
    """The dtype that a graph's numbers were rounded for; ANY where it does not matter, or the graph does not say.

    Graphs that never were lowered say their dtype there too, in older files: that restricts nothing.
    """
    meta = graph.metadata.get("eiexport", {}) if isinstance(graph.metadata, dict) else {}
    made = meta.get("provenance", {}) if isinstance(meta, dict) else {}
    lowered = isinstance(made, dict) and "standard_nir" in made
    return str(nodes.text(meta.get("exact_for", ANY))) if lowered else ANY


def clock_of(graph: nir.NIRGraph, dt: float | None = None, integrator: str | None = None) -> Clock:
    """dt and integrator from the metadata, or given by the user; refused when neither says, or when they disagree.

    A plain `dt` in the metadata, as other tools write it, holds where neither our group nor the user says one.
    """
    meta = graph.metadata.get("eiexport", {}) if isinstance(graph.metadata, dict) else {}
    if not isinstance(meta, dict) or _number(meta.get("schema", 1)) != 1:
        raise GraphError("the graph's metadata group 'eiexport' is of another schema than 1: update eiexport")
    if dt is None and "dt" not in meta:
        dt = step_of(graph)
    for name, given, flag in (("dt", dt, "--dt SECONDS"), ("integrator", integrator, "--integrator euler|exponential")):
        if name not in meta and given is None:
            raise GraphError(f"the graph does not say its {name}, and spikes depend on it: give {flag}")
        if name in meta and given is not None and nodes.text(meta[name]) != given:
            raise GraphError(f"the graph was made for {name} = {nodes.text(meta[name])}, not {given}: leave {flag} out")
    step = _number(meta.get("dt", dt))
    kind = nodes.text(meta.get("integrator", integrator))
    if not (math.isfinite(step) and step > 0):
        raise GraphError(f"dt must be a positive number, found {step}")
    if kind not in INTEGRATORS:
        raise GraphError(f"integrator {kind!r}; valid: {', '.join(INTEGRATORS)}")
    return Clock(step, kind)


def step_of(graph: nir.NIRGraph, dt: float | None = None) -> float | None:
    """dt as `clock_of` takes it, None where nobody says it: our metadata, the user, then another tool's metadata."""
    metadata = graph.metadata if isinstance(graph.metadata, dict) else {}
    meta = metadata.get("eiexport", {})
    if isinstance(meta, dict) and "dt" in meta:
        dt = _number(meta["dt"])
    elif dt is None and "dt" in metadata:
        dt = _number(metadata["dt"])
    return dt


def check(
    graph: nir.NIRGraph, dt: float | None = None, integrator: str | None = None, alphabet: Alphabet = REAL
) -> Network:
    """Verify a graph and return it as a Network; `alphabet` is what the input carries.

    Raises GraphError for a missing edge end, duplicate or missing inputs, unknown kinds, non-finite or misshapen
    parameters, two nodes whose shapes differ, a cycle without delay or without neuron, unreachable nodes.
    """
    clock = clock_of(graph, dt, integrator)
    sources = _sources(graph)
    steps: dict[str, Step] = {}
    for name, node in graph.nodes.items():
        try:
            steps[name] = nodes.prepare(node, clock)
        except GraphError as e:
            told = " ".join(str(e).split())  # values of several rows print as several lines
            raise GraphError(f"node {name!r} ({type(node).__name__}): {told}") from None
        except (AttributeError, TypeError, ValueError, IndexError) as e:
            raise GraphError(f"node {name!r} ({type(node).__name__}): malformed fields ({_line(e)})") from None
    order, cycles = _order(steps, sources)
    shapes, alphabets = _infer(graph, steps, sources, order, alphabet)
    for name, came in sources.items():
        try:
            steps[name] = steps[name].under(_total(alphabets, came)) if came else steps[name]
        except ValueError as e:
            raise GraphError(f"node {name!r} ({type(graph.nodes[name]).__name__}) {e}") from None
    return Network(graph, clock, steps, shapes, sources, order, cycles, alphabets)


def show(network: Network) -> str:
    """Stable text form: one line a node in execution order, independent of dictionary order."""
    clock = network.clock
    lines = [f"graph dt={clock.dt:g} integrator={clock.integrator}"]
    for component in network.order:
        for name in component:
            node = network.graph.nodes[name]
            mark = "~ " if name in network.cycles else "  "
            came = f" <- {', '.join(network.sources[name])}" if network.sources[name] else ""
            shape = "x".join(map(str, network.shapes[name]))
            text = f"{mark}{name}: {type(node).__name__} {shape} {network.alphabets[name]}{came}"
            lines.append(text + "".join(f" {k}={v}" for k, v in details(network.steps[name])))
    return "\n".join(lines)


def details(step: Step) -> Iterator[tuple[str, str]]:
    for key, value in vars(step).items():
        if isinstance(value, Step):
            inner = " ".join(f"{k}={v}" for k, v in details(value))
            yield key, f"{type(value).__name__}({inner})"
        elif isinstance(value, np.ndarray):
            yield key, f"{value:g}" if value.ndim == 0 else f"array{list(value.shape)}"
        elif value is not None and value != () and key != "shape":
            yield key, str(value).replace(" ", "")


def _number(value: Any) -> float:
    """NaN for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _line(e: Exception) -> str:
    return str(e).splitlines()[0] if str(e) else type(e).__name__


def _sources(graph: nir.NIRGraph) -> dict[str, tuple[str, ...]]:
    names = set(graph.nodes)
    seen: set[tuple[str, str]] = set()
    for a, b in graph.edges:
        for end, side in ((a, "starts at"), (b, "ends at")):
            if end not in names:
                raise GraphError(
                    f"edge {a!r} -> {b!r} {side} {end!r}, which is no node; nodes: {', '.join(sorted(names))}"
                )
        if (a, b) in seen:
            raise GraphError(f"edge {a!r} -> {b!r} stands twice; NIR sums edges, so weight it by a Scale node instead")
        seen.add((a, b))
    inputs = [n for n, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(inputs) != 1:
        roots = ", ".join(repr(n) for n in sorted(names - {b for _, b in seen}) if n not in inputs)
        advice = "write it as one, and split it inside" if inputs else f"add one that feeds {roots or 'the first node'}"
        told = f" ({', '.join(sorted(inputs))})" if inputs else ""
        raise GraphError(f"a graph needs exactly one Input node, found {len(inputs)}{told}: {advice}")
    if not any(isinstance(node, nir.Output) for node in graph.nodes.values()):
        ends = ", ".join(repr(n) for n in sorted(names - {a for a, _ in seen}))
        raise GraphError(f"a graph needs an Output node, found none: add one behind {ends or 'its last node'}")
    sources = {n: tuple(sorted(a for a, b in seen if b == n)) for n in sorted(names)}
    for name, came in sources.items():
        if not came and name != inputs[0]:
            raise GraphError(f"node {name!r} has no incoming edge; connect it or remove it")
    if sources[inputs[0]]:
        raise GraphError(f"Input {inputs[0]!r} has an incoming edge from {sources[inputs[0]][0]!r}; remove it")
    return sources


def components(sources: dict[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Strongly connected components in topological order (Tarjan), stable under renaming of the dictionary's order."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []
    for root in sorted(sources):
        if root in index:
            continue
        work: list[tuple[str, Iterator[str]]] = [(root, iter(sources[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            name, rest = work[-1]
            for source in rest:
                if source not in index:
                    index[source] = low[source] = len(index)
                    stack.append(source)
                    work.append((source, iter(sources[source])))
                    break
                if source in stack:
                    low[name] = min(low[name], index[source])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    cut = stack.index(name)
                    found.append(tuple(sorted(stack[cut:])))
                    del stack[cut:]
    return found  # following edges backwards, Tarjan emits sources first


def _order(
    steps: dict[str, Step], sources: dict[str, tuple[str, ...]]
) -> tuple[tuple[tuple[str, ...], ...], frozenset[str]]:
    order: list[tuple[str, ...]] = []
    cyclic: set[str] = set()
    for component in components(sources):
        if len(component) == 1 and component[0] not in sources[component[0]]:
            order.append(component)
            continue
        cyclic.update(component)
        names = " -> ".join(component)
        if not any(steps[n].neuron for n in component):
            raise GraphError(f"cycle {names} holds no neuron; a loop of connections alone has no meaning")
        inside = {n: () if breaks_cycle(steps[n]) else _within(sources[n], component) for n in component}
        inner = components(inside)
        if any(len(c) > 1 or c[0] in inside[c[0]] for c in inner):
            raise GraphError(f"cycle {names} has no delay of at least one step; add a Delay node on the way back")
        order.append(tuple(n for c in inner for n in c))
    return tuple(order), frozenset(cyclic)


def breaks_cycle(step: Step) -> bool:
    """True for a delay of at least one step everywhere: its output does not need its present input."""
    return getattr(step, "shortest", 0) >= 1


def _within(names: tuple[str, ...], component: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in names if n in component)


def _infer(
    graph: nir.NIRGraph,
    steps: dict[str, Step],
    sources: dict[str, tuple[str, ...]],
    order: tuple[tuple[str, ...], ...],
    alphabet: Alphabet,
) -> tuple[dict[str, Ints], dict[str, Alphabet]]:
    shapes: dict[str, Ints] = {}
    alphabets: dict[str, Alphabet] = {}
    for component in order:
        waiting = list(component)
        while waiting:
            # round a cycle, shapes are told by whichever source is known first
            name = next((n for n in waiting if not sources[n] or any(s in shapes for s in sources[n])), "")
            if not name:
                raise GraphError(f"node {waiting[0]!r}: its shape cannot be told, only its own cycle feeds it")
            waiting.remove(name)
            known = [s for s in sources[name] if s in shapes]
            if not known:
                shapes[name] = _input_shape(graph, name)
                alphabets[name] = alphabet
                continue
            source, shape = known[0], shapes[known[0]]
            try:
                shapes[name] = steps[name].output_shape(shape)
            except ValueError as e:
                raise GraphError(f"nodes {source!r} and {name!r} do not fit: {source!r} gives {shape}, {e}") from None
            # a value that comes back round a cycle is not known yet
            alphabets[name] = steps[name].alphabet(_total(alphabets, sources[name]))
        # a neuron's output does not depend on what drives it, so a second round knows what comes back
        for name in component if len(component) > 1 else ():
            alphabets[name] = steps[name].alphabet(_total(alphabets, sources[name]))
        for name in component:
            for source in sources[name]:
                if shapes[source] != shapes[sources[name][0]]:
                    raise GraphError(
                        f"nodes {sources[name][0]!r} {shapes[sources[name][0]]} and {source!r} {shapes[source]} "
                        f"are summed into {name!r}, but their shapes differ"
                    )
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Output) and node.output_type.get("output") is not None:
            declared = _declared(node, name)
            if declared != shapes[name]:
                raise GraphError(f"Output {name!r} declares {declared}, but {sources[name][0]!r} gives {shapes[name]}")
    return shapes, alphabets


def _total(alphabets: dict[str, Alphabet], sources: tuple[str, ...]) -> Alphabet:
    """The alphabet of the sum of some edges; REAL while one of them is unknown."""
    total = alphabets.get(sources[0], REAL)
    for other in sources[1:]:
        total = total + alphabets.get(other, REAL)
    return total


def _declared(node: nir.ir.NIRNode, name: str) -> Ints | None:
    try:
        return declared_shapes.declared(node)
    except GraphError as e:
        raise GraphError(f"{type(node).__name__} {name!r}: {e}") from None


def _input_shape(graph: nir.NIRGraph, name: str) -> Ints:
    shape = _declared(graph.nodes[name], name)
    if shape is None:
        raise GraphError(f"Input {name!r} does not say its shape")
    if any(n < 1 for n in shape):
        raise GraphError(f"Input {name!r} has shape {shape}; every axis needs at least one entry")
    return shape
