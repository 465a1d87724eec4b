"""NIR files of other tools, brought to the one form that `graph.check` verifies.

`adopt` reads the fields of a file: older schemas, parameters of mixed shape, nested sub-graphs. What it changes it says
in words; where a file could mean two things it is refused. Shapes are the work of `shapes.fit`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import nir
import numpy as np

from eiexport import connections, neurons, nodes, shapes
from eiexport.errors import GraphError
from eiexport.steps import text

Edges = list[tuple[str, str]]
STOCK = frozenset(connections.PREPARE) | frozenset(neurons.PREPARE)
PORTS = (nir.Input, nir.Output)


def adopt(found: dict[str, Any]) -> tuple[nir.NIRGraph, tuple[str, ...]]:
    """The graph of a file's group `node`, flat and with shapes that fit, and what was changed, in words.

    Raises GraphError in one line for what is no graph, or could be read in two ways.
    """
    graph, notes = parse(found)
    graph, inner, more = inline(graph)
    notes += more
    if all(type(node).__name__ in STOCK for node in graph.nodes.values()):
        graph, more = shapes.fit(graph)
        notes += more
    graph, more = dissolve(graph, inner)
    return graph, tuple(" ".join(n.split()) for n in (*notes, *more))  # each in one line


# --- fields -> nodes


def parse(found: dict[str, Any]) -> tuple[nir.NIRGraph, list[str]]:
    """A graph with its sub-graphs from its fields, and what had to be filled in."""
    notes: dict[str, list[str]] = {}
    graph = _graph(found, "", notes)
    return graph, [f"{text}: {', '.join(repr(n) for n in names)}" for text, names in notes.items()]


def _graph(found: dict[str, Any], path: str, notes: dict[str, list[str]]) -> nir.NIRGraph:
    where = f"sub-graph {path[:-1]!r}" if path else "the file"
    kind = _scalar(found.get("type", "NIRGraph"))
    if kind != "NIRGraph":
        raise GraphError(f"{where} holds a single {kind}, no graph; write it between an Input and an Output")
    for key in ("nodes", "edges"):
        if key not in found:
            raise GraphError(f"{where} has no {key!r}, so it is no NIR graph; write it again with nir.write")
    if not isinstance(found["nodes"], dict):
        raise GraphError(f"{where}: 'nodes' is no group of nodes; write it again with nir.write")
    made: dict[str, nir.ir.NIRNode] = {}
    for name, part in found["nodes"].items():
        if not isinstance(part, dict) or "type" not in part:
            raise GraphError(f"node {path + name!r} has no 'type'; a '/' in its name would do that: rename it")
        kind = _scalar(part["type"])
        if kind == "NIRGraph":
            made[name] = _graph(part, f"{path}{name}.", notes)
            continue
        try:
            made[name] = _node(kind, part, path + name, notes)
        except GraphError as e:
            raise GraphError(f"node {path + name!r}: {e}") from None
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError, IndexError) as e:
            told = (str(e).splitlines() or [type(e).__name__])[0]
            raise GraphError(f"node {path + name!r} ({kind}): malformed fields ({told}); write it again") from None
    metadata = found.get("metadata", {})
    metadata = metadata if isinstance(metadata, dict) else {}
    return nir.NIRGraph(made, _edges(found["edges"], where), metadata=metadata, type_check=False)


def _edges(found: Any, where: str) -> Edges:
    pairs = np.asarray(found)
    if pairs.size == 0:
        return []
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise GraphError(f"{where}: edges have shape {pairs.shape}, not (edges, 2); write them as pairs of names")
    return [(str(text(a)), str(text(b))) for a, b in pairs.tolist()]


def _node(kind: str, part: dict[str, Any], name: str, notes: dict[str, list[str]]) -> nir.ir.NIRNode:
    """One node. NIR's own kinds may lack what older schemas did not have, and mix numbers with arrays."""
    if kind not in STOCK or kind in nodes.EXTENSIONS:
        return nodes.from_dict(part)
    # what a node takes and gives follows from its parameters, but a Flatten has none
    derived = () if kind == "Flatten" else ("input_type", "output_type")
    d = {k: _scalar(v) for k, v in part.items() if k not in derived}
    port = kind in ("Input", "Output")
    wanted = {"shape": None} if port else _wanted(kind)
    if odd := sorted(set(d) - {*wanted, "type", "metadata"}):
        raise GraphError(f"{kind} has the field {odd[0]!r}, which NIR does not know; write the node without it")
    if missing := [k for k, default in wanted.items() if k not in d and default is MISSING]:
        raise GraphError(f"{kind} has no {missing[0]!r}; it needs {', '.join(wanted)}: write the node again")
    if "v_reset" in wanted and "v_reset" not in d:
        notes.setdefault("no v_reset in the file, as in older NIR: 0, as NIR itself reads it", []).append(name)
        d["v_reset"] = np.zeros_like(d["v_threshold"])
    if kind in ELEMENTWISE and _levelled(d, ELEMENTWISE[kind]):
        notes.setdefault("a parameter of one number, among those of many, holds for every neuron", []).append(name)
    if isinstance(d.get("padding"), str):
        d["padding"] = d["padding"].lower()
    if port:
        shape = d.pop("shape", None)
        made = nir.Input({"input": shape}) if kind == "Input" else nir.Output({"output": shape})
        made.metadata = d.get("metadata", {})
        return made
    size = d.pop("input_shape", None) if kind.startswith("Conv") else None
    if kind.startswith("Conv"):
        d["input_shape"] = None  # NIR would infer from it, and fail on a shape with a batch axis
    node = nodes.from_dict(d)
    if size is not None:
        node.input_shape = size
    return node


def _wanted(kind: str) -> dict[str, Any]:
    """Fields of one of NIR's kinds with their defaults, MISSING where there is none."""
    wanted = {f.name: f.default for f in fields(getattr(nir, kind)) if f.init and f.name != "metadata"}
    # readers of NIR have always taken these as given
    return wanted | {k: None for k in ("input_shape", "input_type") if k in wanted}


ELEMENTWISE = shapes.ELEMENTWISE


def _levelled(d: dict[str, Any], names: Iterable[str]) -> bool:
    """Give single numbers the shape of the other parameters, in place; True where that was needed."""
    found = {n: np.asarray(d[n]) for n in names if n in d}
    many = {a.shape for a in found.values() if a.size != 1}
    if len(many) > 1:
        raise GraphError("parameters differ in shape: " + ", ".join(f"{n} {a.shape}" for n, a in found.items()))
    shape = many.pop() if many else max((a.shape for a in found.values()), key=len)
    # nir itself spreads w_in, which it took as a plain number from the first
    short = {n: a for n, a in found.items() if a.shape != shape}
    # a plain number stays one: HDF5 compresses no array without axes
    d.update({n: a[()] for n, a in found.items()} | {n: np.full(shape, a.reshape(-1)[0]) for n, a in short.items()})
    return bool(many or shape) and bool(set(short) - {"w_in"}) and math.prod(shape) > 1


def _scalar(value: Any) -> Any:
    """HDF5 gives texts as bytes, some writers as arrays of one text."""
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "OSU":
        value = value.reshape(-1)[0]
    return text(value)


# --- sub-graphs -> one graph


@dataclass
class _Level:
    """One graph of the nest: its nodes under their flat names, its sub-graphs, its ports."""

    path: str
    leaves: dict[str, str] = field(default_factory=dict)
    inside: dict[str, _Level] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def inline(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, frozenset[str], list[str]]:
    """The graph with the nodes of its sub-graphs beside its own, as SUB.NODE; the sub-graphs' ports; what was done.

    An edge to a sub-graph leads to its one Input, an edge from it starts at its one Output; these ports are still there
    and have to be dissolved. Edges may also name a node inside as SUB.NODE.
    """
    found: dict[str, nir.ir.NIRNode] = {}
    edges: Edges = []
    notes: list[str] = []
    # what stands outside keeps its name, whatever the order of the file
    taken = {n for n, node in graph.nodes.items() if not isinstance(node, nir.NIRGraph)}
    top = _level(graph, "", found, taken, notes)
    _join(graph, top, edges, notes)
    inner = frozenset(n for n in found if isinstance(found[n], PORTS) and n not in top.leaves.values())
    metadata, told = _told_time(graph)
    return nir.NIRGraph(found, edges, metadata=metadata, type_check=False), inner, notes + told


def _level(
    graph: nir.NIRGraph, path: str, found: dict[str, nir.ir.NIRNode], taken: set[str], notes: list[str]
) -> _Level:
    level = _Level(path)
    for name in sorted(graph.nodes):
        node = graph.nodes[name]
        if isinstance(node, nir.NIRGraph):
            continue
        flat = path + name
        while path and flat in taken:
            flat += "_"
        if flat != path + name:
            notes.append(f"node {path + name!r} of a sub-graph is called {flat!r}: its name was taken")
        taken.add(flat)
        found[flat] = node
        level.leaves[name] = flat
        if isinstance(node, PORTS):
            (level.inputs if isinstance(node, nir.Input) else level.outputs).append(name)
    for name in sorted(graph.nodes):
        if isinstance(graph.nodes[name], nir.NIRGraph):
            notes.append(f"sub-graph {path + name!r} is flattened: its nodes are called '{path}{name}.NODE'")
            level.inside[name] = _level(graph.nodes[name], f"{path}{name}.", found, taken, notes)
    return level


def _join(graph: nir.NIRGraph, level: _Level, edges: Edges, notes: list[str]) -> None:
    for a, b in graph.edges:
        start, end = (_resolved(level, n, leaving, (a, b), notes) for n, leaving in ((a, True), (b, False)))
        edges.append((start, end))
    for name, inside in level.inside.items():
        _join(graph.nodes[name], inside, edges, notes)


def _resolved(level: _Level, name: str, leaving: bool, edge: tuple[str, str], notes: list[str]) -> str:
    """The flat name of an edge's end."""
    side, port = ("starts at", "output") if leaving else ("ends at", "input")
    if name in level.leaves:
        return level.leaves[name]
    if name in level.inside:
        inside = level.inside[name]
        ports = inside.outputs if leaving else inside.inputs
        if len(ports) == 1:
            return inside.leaves[ports[0]]
        kind, names = port.capitalize(), ", ".join(f"{name}.{p}" for p in ports)
        advice = f"name one of {names}" if ports else f"add an {kind} node to it"
        raise GraphError(
            f"edge {edge[0]!r} -> {edge[1]!r} {side} sub-graph {level.path + name!r}, which has "
            f"{len(ports)} {kind} nodes instead of one: {advice}"
        )
    if (beside := f"{name}.{port}") in level.leaves:
        notes.append(f"edge {edge[0]!r} -> {edge[1]!r} {side} {name!r}, which is no node: taken as {beside!r}")
        return level.leaves[beside]
    head, dot, rest = name.partition(".")
    if dot and head in level.inside:
        inside = level.inside[head]
        for inner in (rest, name):
            if inner in inside.leaves or inner in inside.inside or ("." in inner and inner == rest):
                return _resolved(inside, inner, leaving, edge, notes)
    known = ", ".join(sorted((*level.leaves, *level.inside)))
    raise GraphError(f"edge {edge[0]!r} -> {edge[1]!r} {side} {name!r}, which is no node; nodes: {known}")


def dissolve(graph: nir.NIRGraph, inner: frozenset[str] = frozenset()) -> tuple[nir.NIRGraph, list[str]]:
    """The graph without Inputs and Outputs that stand inside it, and what was done.

    inner: ports of sub-graphs. An Input that is fed, beside one that is not, and an Output that feeds, are passed
    through as well. Where joining would make an edge twice, a Scale by 1 takes the port's place.
    """
    found, edges, notes = dict(graph.nodes), list(graph.edges), []
    fed, feeding = {b for _, b in edges}, {a for a, _ in edges}
    inputs, outputs = ({n for n in found if isinstance(found[n], kind) and n not in inner} for kind in PORTS)
    odd = {*(inputs & fed if inputs - fed else ()), *(outputs & feeding if outputs - feeding else ())}
    for name in sorted(odd):
        notes.append(f"{type(found[name]).__name__} {name!r} stands inside the graph: what feeds it feeds what it fed")
    for name in sorted({*inner, *odd}):
        before, after = _beside(name, edges)
        if not before:
            raise GraphError(f"nothing feeds {name!r}, the Input of a sub-graph; connect it or remove it")
        if name in before:
            raise GraphError(f"{type(found[name]).__name__} {name!r} feeds itself; remove that edge")
        joined = [(a, b) for a in before for b in after]
        if set(joined) & set(edges):
            found[name] = _unit(found[name])
            continue
        del found[name]
        edges = [e for e in edges if name not in e] + joined
    for name in sorted(outputs if not outputs - feeding else ()):  # the only Outputs stay, at the end
        before, after = _beside(name, edges)
        joined = [(a, b) for a in before for b in after]
        if after and not set(joined) & set(edges):
            edges = [e for e in edges if e[0] != name] + joined
            notes.append(f"Output {name!r} feeds nodes: what feeds it feeds them")
    if not inner and not notes:
        return graph, []
    return nir.NIRGraph(found, edges, metadata=graph.metadata, type_check=False), notes


def _beside(name: str, edges: Edges) -> tuple[list[str], list[str]]:
    """(what feeds a node, what it feeds)"""
    return [a for a, b in edges if b == name], [b for a, b in edges if a == name]


def _unit(port: nir.ir.NIRNode) -> nir.Scale:
    shape = shapes.declared(port)
    # one number fits any shape; as an array, since NIR cannot write one without axes
    return nir.Scale(np.ones(1 if shape is None or min(shape, default=1) < 1 else shape))


# --- time


def _told_time(graph: nir.NIRGraph) -> tuple[dict[str, Any], list[str]]:
    """Metadata that says for the whole graph what it, a sub-graph or a node says of time: our group, or a plain `dt`.

    Other tools note `dt` in the metadata of the graph or of each neuron; none notes how it integrates.
    """
    metadata = dict(graph.metadata)
    if "eiexport" in metadata:
        return metadata, []
    levels = list(_metadata(graph))
    if groups := [(w, m["eiexport"]) for w, m in levels if isinstance(m.get("eiexport"), dict)]:
        if len({(str(g.get("dt")), str(text(g.get("integrator")))) for _, g in groups}) > 1:
            raise GraphError(
                f"sub-graphs {groups[0][0]} and {groups[-1][0]} differ in dt or integrator: export them apart"
            )
        metadata["eiexport"] = groups[0][1]
        return metadata, [f"dt and integrator are those of {groups[0][0]}"]
    said: dict[float, str] = {}
    notes = []
    for where, m in levels:
        if "dt" in m:
            value = shapes.number(m["dt"])
            if math.isfinite(value) and value > 0:
                said.setdefault(value, where)
            else:
                notes.append(
                    f"{where} says dt = {text(m['dt'])!r} in its metadata, which is no positive number: not used"
                )
    metadata.pop("dt", None)
    if len(said) == 1:
        ((value, where),) = said.items()
        metadata["dt"] = value
        notes.append(f"dt = {value:g} is what the metadata of {where} says, and holds unless --dt is given")
    elif said:
        told = ", ".join(f"{value:g} ({where})" for value, where in said.items())
        notes.append(f"the metadata names different dt, so none of them is used: {told}")
    return metadata, notes


def _metadata(graph: nir.NIRGraph, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(whose, metadata) of a graph, its nodes and its sub-graphs."""
    yield (f"sub-graph {path[:-1]!r}" if path else "the graph"), graph.metadata
    for name in sorted(graph.nodes):
        node = graph.nodes[name]
        if isinstance(node, nir.NIRGraph):
            yield from _metadata(node, f"{path}{name}.")
        elif isinstance(getattr(node, "metadata", None), dict):
            yield f"node {path + name!r}", node.metadata
