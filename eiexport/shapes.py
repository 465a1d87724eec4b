"""Shapes that other tools write into NIR files, made to fit: batch axes, parameters per channel, what was left out.

NIR declares shapes in Input, Output, Flatten and convolutions, and each neuron's parameters have one. They can say more
axes than the neurons have (batch, time), fewer (one value a channel), or nothing. `fit` walks the graph under each
reading and changes a shape only where the other nodes leave one reading.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, fields
from typing import Any

import nir
import numpy as np

from eiexport import connections, neurons
from eiexport.connections import Flatten
from eiexport.errors import GraphError
from eiexport.ops import Ints
from eiexport.steps import Clock, Step

PORTS = (nir.Input, nir.Output)
CONNECTIONS = ("Affine", "Linear", "Conv1d", "Conv2d")
# kinds that act neuron by neuron, with their parameters
ELEMENTWISE = {
    kind: tuple(f.name for f in fields(getattr(nir, kind)) if f.init and f.name != "metadata")
    for kind in (*neurons.PREPARE, "Scale")
}
Nodes = dict[str, nir.ir.NIRNode]


class Misfit(Exception):
    """`source` gives `shape`, which `name` does not take; `rule` says what it takes. doubtful: one might fit."""

    def __init__(self, source: str, name: str, shape: Ints, rule: str, doubtful: bool = False) -> None:
        super().__init__(rule)
        self.source, self.name, self.shape, self.rule, self.doubtful = source, name, shape, rule, doubtful


@dataclass(frozen=True)
class Reading:
    """One way to read the declared shapes. shape: the Input's neurons; dropped: axes in front of them in the file;
    counted: how many such axes a Flatten counts without saying so."""

    shape: Ints
    dropped: Ints
    counted: int = 0

    @property
    def heavy(self) -> bool:
        """True where more than single axes are left out."""
        return max(self.dropped, default=1) > 1


def number(value: Any) -> float:
    """NaN for what is no single number."""
    try:
        return float(np.asarray(value).item()) if np.asarray(value).dtype.kind in "biuf" else math.nan
    except (TypeError, ValueError):
        return math.nan


def declared(node: nir.ir.NIRNode) -> Ints | None:
    """The shape that an Input, an Output or a Flatten declares; entries below 1 are open, None says nothing."""
    value = (node.output_type or {}).get("output") if isinstance(node, nir.Output) else node.input_type.get("input")
    return _axes(value)


def _axes(value: Any) -> Ints | None:
    if value is None:
        return None
    a = np.atleast_1d(np.asarray(value))
    if a.dtype.kind not in "iuf" or a.ndim != 1 or not np.isfinite(a).all() or (a != np.rint(a)).any():
        raise GraphError(f"shape {value!r} is not a row of whole numbers; write it again")
    return tuple(int(n) for n in a)


def fit(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, list[str]]:
    """The graph with shapes that fit everywhere, and what was changed, in words. For graphs of NIR's own kinds.

    Kept as written where that fits. Else leading axes of the Input (batch, time) are left out, and those that a Flatten
    counts, if the other nodes' parameters allow one reading alone; parameters with one value a channel are spread.
    Shapes that are not told are filled in. Graphs that lack an Input, or parts of which nothing feeds, come back as
    they are. Raises GraphError with the edge and both shapes where nothing fits, and where several readings do.
    """
    fitter = Fitter(graph)
    if not fitter.whole:
        return graph, []
    reading, shapes = fitter.read()
    return fitter.written(reading, shapes)


class Fitter:
    """Walks the shapes of one flat graph."""

    def __init__(self, graph: nir.NIRGraph) -> None:
        self.graph = graph
        self.nodes: Nodes = dict(graph.nodes)
        self.sources = {n: sorted({a for a, b in graph.edges if b == n}) for n in sorted(self.nodes)}
        self.ours = "eiexport" in graph.metadata
        tops = [n for n, node in self.nodes.items() if isinstance(node, nir.Input) and not self.sources[n]]
        self.top = tops[0] if len(tops) == 1 else ""
        self.misled = self._misled()
        self.steps: dict[str, Step] = {}
        self.whole = bool(self.top) and self._prepared() and self._reached()

    def _misled(self) -> set[str]:
        """Nodes whose shapes NIR 1.0 declares wrongly: it infers from a kernel's height alone, to the next matrix."""
        oblong = [n for n, node in self.nodes.items() if len(set(np.shape(getattr(node, "weight", ()))[2:])) > 1]
        found: set[str] = set()
        while oblong:
            name = oblong.pop()
            after = {n for n, came in self.sources.items() if name in came} - found
            found |= after
            oblong += [n for n in after if type(self.nodes[n]).__name__ not in ("Affine", "Linear")]
        return found

    def _prepared(self) -> bool:
        """False where a node is refused for other reasons: `check` will tell them."""
        try:
            for name, node in self.nodes.items():
                if (kind := type(node).__name__) in connections.PREPARE and kind not in ELEMENTWISE:
                    self.steps[name] = connections.PREPARE[kind](node, Clock(1.0, "euler"))
                if kind in ("Input", "Output", "Flatten"):
                    try:
                        declared(node)
                    except GraphError as e:
                        raise GraphError(f"node {name!r} ({kind}): {e}") from None
        except (AttributeError, TypeError, ValueError, IndexError):
            return False
        except GraphError as e:
            if str(e).startswith("node "):
                raise
            return False
        return True

    def _reached(self) -> bool:
        seen = {self.top}
        while more := {n for n in self.sources if seen.intersection(self.sources[n])} - seen:
            seen |= more
        return len(seen) == len(self.nodes)

    # --- readings

    def read(self) -> tuple[Reading, dict[str, Ints]]:
        """The one reading that fits, with all shapes."""
        written = declared(self.nodes[self.top])
        readings = list(self._readings(written))
        if not readings:
            raise GraphError(
                f"Input {self.top!r} does not say its shape{'' if written is None else f' ({written})'}, and no node "
                f"behind it tells it: write its shape, without batch axis"
            )
        first = readings[0]
        plain = first.shape == written
        refused: Misfit | None = None
        if plain:
            try:
                shapes = self.walk(first)
            except Misfit as e:
                refused = e
            else:
                return self._stricter(readings, first, shapes)
            if refused.doubtful:
                raise GraphError(self._told(refused))
        # an axis of many entries is a batch axis only if a connection says so
        proof = self._refusal(first, True)
        sure = proof is not None and type(self.nodes[proof.name]).__name__ in CONNECTIONS
        found = [(r, s) for r, s in self._fitting(readings, True) if sure or not r.heavy]
        found = found or [(r, s) for r, s in self._fitting(readings, False) if not r.heavy]
        if not found:
            refused = refused or self._refusal(first, False)
            assert refused is not None
            told = "" if plain else f"Input {self.top!r} declares {written}: "
            raise GraphError(told + self._told(refused))
        reading, shapes = found[0]
        if other := next((r for r, s in found if s != shapes), None):
            raise GraphError(
                f"Input {self.top!r} has shape {written}, which fits as {reading.shape} and as {other.shape} "
                f"(axes counted in Flatten: {reading.counted}, {other.counted}): write its shape without batch axis"
            )
        return reading, shapes

    def _stricter(
        self, readings: list[Reading], first: Reading, shapes: dict[str, Ints]
    ) -> tuple[Reading, dict[str, Ints]]:
        """As written, unless that needs a matrix over several axes and the axes in front are single ones."""
        if self.ours or self._refusal(first, True) is None:
            return first, shapes
        less = [(r, s) for r, s in self._fitting(readings, True, False) if not r.heavy]
        return less[0] if less and all(s == less[0][1] for _, s in less) else (first, shapes)

    def _readings(self, written: Ints | None) -> Iterator[Reading]:
        counts = range(3) if any(isinstance(n, nir.Flatten) for n in self.nodes.values()) else range(1)
        shapes = [(written[i:], written[:i]) for i in range(len(written))] if written else []
        shapes = [(s, dropped) for s, dropped in shapes if min(s) >= 1]
        if written is None or min(written, default=0) < 1:
            known = {s for s, _ in shapes}
            shapes += [(s, ()) for s in sorted(self._told_shapes(written)) if s not in known]
        for shape, dropped in shapes:
            for counted in counts:
                yield Reading(shape, dropped, counted)

    def _told_shapes(self, written: Ints | None) -> set[Ints]:
        """What the nodes behind the Input say of its shape."""
        found: set[Ints] = set()
        waiting, seen = [self.top], set()
        while waiting:
            seen.add(name := waiting.pop())
            for after in (n for n in self.sources if name in self.sources[n] and n not in seen):
                node, kind = self.nodes[after], type(self.nodes[after]).__name__
                told: Ints | None = None
                if kind in ("Affine", "Linear"):
                    told = (np.shape(node.weight)[1],)
                elif kind.startswith("Conv") and node.input_shape is not None:
                    size = _axes(node.input_shape) or ()
                    axes = np.ndim(node.weight) - 2
                    told = (np.shape(node.weight)[1] * int(np.asarray(node.groups)), *size[-axes:])
                    told = told if len(told) == axes + 1 else None
                elif kind in ELEMENTWISE:
                    told = _parameter_shape(node) if math.prod(_parameter_shape(node)) > 1 else None
                elif kind == "Flatten":
                    told = declared(node)
                elif kind in ("Input", "Output"):
                    waiting.append(after)
                if told and min(told) >= 1:
                    found.add(told)
        return {s for s in found if written is None or _matches(written, s)}

    def _fitting(
        self, readings: list[Reading], strict: bool, doubts: bool = True
    ) -> list[tuple[Reading, dict[str, Ints]]]:
        """Readings that fit. doubts: raise GraphError for one that might."""
        found = []
        for reading in readings:
            try:
                found.append((reading, self.walk(reading, strict)))
            except Misfit as e:
                if e.doubtful and doubts:
                    raise GraphError(self._told(e)) from None
        return found

    def _refusal(self, reading: Reading, strict: bool) -> Misfit | None:
        try:
            self.walk(reading, strict)
        except Misfit as e:
            return e
        return None

    def _told(self, e: Misfit) -> str:
        kind = type(self.nodes[e.name]).__name__
        advice = "correct the shape of one of them"
        if kind in CONNECTIONS and len(e.shape) > 1 and math.prod(e.shape) == np.shape(self.nodes[e.name].weight)[-1]:
            advice = "put a Flatten between them"
        elif e.source == self.top:
            advice = f"write the Input's shape as {e.name!r} takes it, without batch axis"
        if e.doubtful:
            advice = f"write the parameters in the shape {e.shape}"
        return f"edge {e.source!r} -> {e.name!r}: {e.source!r} gives {e.shape}, {e.name!r} ({kind}) {e.rule}; {advice}"

    # --- one walk

    def walk(self, reading: Reading, strict: bool = False) -> dict[str, Ints]:
        """All shapes under a reading; raises Misfit. strict: a matrix takes one axis, as NIR declares it."""
        shapes: dict[str, Ints] = {self.top: reading.shape}
        waiting = [n for n in self.sources if n != self.top]
        while waiting:
            name = next(n for n in waiting if any(s in shapes for s in self.sources[n]))
            waiting.remove(name)
            source = next(s for s in self.sources[name] if s in shapes)
            try:
                shapes[name] = self._output(name, shapes[source], reading, strict)
            except Misfit as e:
                raise Misfit(source, name, shapes[source], e.rule, e.doubtful) from None
            except ValueError as e:
                raise Misfit(source, name, shapes[source], str(e)) from None
        for name, came in self.sources.items():
            for other in came:
                if shapes[other] != shapes[came[0]]:
                    rule = f"is given {shapes[came[0]]} by {came[0]!r}, and sums both"
                    raise Misfit(other, name, shapes[other], rule)
        return shapes

    def _output(self, name: str, shape: Ints, reading: Reading, strict: bool) -> Ints:
        node, kind = self.nodes[name], type(self.nodes[name]).__name__
        if kind in ELEMENTWISE:
            _spread(node, shape, name, strict)
            return shape
        if kind in ("Input", "Output"):
            if name not in self.misled and not self._agrees(declared(node), shape, reading):
                raise ValueError(f"declares {declared(node)}")
            return shape
        if isinstance(node, nir.Flatten):
            told = declared(node)
            if name not in self.misled and not self._agrees(told, shape, reading):
                raise ValueError(f"declares {told}")
            return self._flatten(node, shape, reading).output_shape(shape)
        if strict and kind in ("Affine", "Linear") and len(shape) != 1:
            raise ValueError(f"has weight {np.shape(node.weight)} and takes ({np.shape(node.weight)[-1]},)")
        size = _axes(node.input_shape) if kind.startswith("Conv") else None
        result = self.steps[name].output_shape(shape)
        if size is not None and name not in self.misled and not _matches(size[1 - len(shape) :], shape[1:]):
            raise ValueError(f"declares input_shape {size}")
        return result

    def _agrees(self, told: Ints | None, shape: Ints, reading: Reading) -> bool:
        """A declared shape, up to open entries and to axes in front that are single, open, or the Input's own."""
        if told is None:
            return True
        front = told[: max(0, len(told) - len(shape))]
        batch = all(n <= 1 for n in front) or front == reading.dropped[-len(front) :]
        return batch and _matches(told[len(front) :], shape)

    def _flatten(self, node: nir.Flatten, shape: Ints, reading: Reading) -> Flatten:
        """Its axes without those in front, which the declared input shape counts, or else the reading does."""
        told = declared(node)
        more = max(0, len(told) - len(shape)) if told else 0
        more = more or reading.counted
        start, end = int(node.start_dim), int(node.end_dim)
        if 0 <= start < more or 0 <= end < more:
            raise ValueError(f"joins axes {start}..{end}, with {more} in front of the neurons'")
        return Flatten(start - more if start >= 0 else start, end - more if end >= 0 else end)

    # --- what comes of it

    def written(self, reading: Reading, shapes: dict[str, Ints]) -> tuple[nir.NIRGraph, list[str]]:
        """The graph with these shapes in its nodes, and what was changed."""
        notes: list[str] = []
        made = {n: self._written(n, reading, shapes, notes) for n in self.nodes}
        if all(made[n] is node for n, node in self.nodes.items()):
            return self.graph, []
        metadata = dict(self.graph.metadata)
        return nir.NIRGraph(made, list(self.graph.edges), metadata=metadata, type_check=False), notes

    def _written(self, name: str, reading: Reading, shapes: dict[str, Ints], notes: list[str]) -> nir.ir.NIRNode:
        node, kind = self.nodes[name], type(self.nodes[name]).__name__
        shape = shapes[self.sources[name][0]] if self.sources[name] else shapes[name]
        if kind in ELEMENTWISE:
            return self._neurons(name, shape, notes)
        result = copy(node)
        if kind in ("Input", "Output"):
            if (told := declared(node)) == shape:
                return node
            if name == self.top and told is not None and min(told) >= 1:
                proof = self._refusal(Reading(told, ()), True)
                why = f", as {proof.name!r} ({type(self.nodes[proof.name]).__name__}) shows" if proof else ""
                notes.append(f"Input {name!r}: {told} is read as {shape}, the axes in front are batch or time{why}")
            elif name == self.top or told is not None:
                notes.append(
                    f"{kind} {name!r}: its shape is {'open' if told is None else told} in the file, {shape} here"
                )
            result.input_type, result.output_type = {"input": np.array(shape)}, {"output": np.array(shape)}
        elif isinstance(node, nir.Flatten):
            told, step = declared(node), self._flatten(node, shape, reading)
            start, end = step.start % len(shape), step.end % len(shape)
            moved = (step.start, step.end) != (int(node.start_dim), int(node.end_dim))
            if told == shape and not moved:
                return node
            if moved:
                notes.append(
                    f"Flatten {name!r}: axes {int(node.start_dim)}..{int(node.end_dim)} count a batch axis, "
                    f"they are {start}..{end} of {shape}"
                )
            elif told is not None and min(told) >= 1:
                notes.append(f"Flatten {name!r} declares {told}, and gets {shape}")
            result = nir.Flatten({"input": np.array(shape)}, start, end, metadata=node.metadata)
        elif kind.startswith("Conv"):
            size = _axes(node.input_shape)
            if size == shape[1:]:
                return node
            if size is not None:
                notes.append(f"{kind} {name!r} declares input_shape {size}, and gets {shape[1:]}")
            result.input_shape = shape[1:] if kind == "Conv2d" else shape[1]
            result.input_type, result.output_type = {"input": np.array(shape)}, {"output": np.array(shapes[name])}
        else:
            return node
        return result

    def _neurons(self, name: str, shape: Ints, notes: list[str]) -> nir.ir.NIRNode:
        node, kind = self.nodes[name], type(self.nodes[name]).__name__
        had = _parameter_shape(node)
        view = _spread(node, shape, name)
        if view is None:  # they fit
            return node
        result = copy(node)
        front = max(0, len(had) - len(shape))
        for key, a in zip(ELEMENTWISE[kind], _parameters(node), strict=True):
            one = _first(a, front) if a.ndim == len(had) else a
            spread = np.broadcast_to(one.reshape(view) if one.size > 1 else one.reshape(-1)[0], shape)
            setattr(result, key, np.array(spread))
        result.input_type, result.output_type = {"input": np.array(shape)}, {"output": np.array(shape)}
        if had:
            notes.append(f"node {name!r} ({kind}): parameters of shape {had} are spread over its neurons {shape}")
        return result


def _matches(told: Ints, shape: Ints) -> bool:
    """Equal up to open entries, and to axes in front that are open or single."""
    front = len(told) - len(shape)
    if front < 0 or any(n > 1 for n in told[:front]):
        return False
    return all(n < 1 or n == m for n, m in zip(told[front:], shape, strict=True))


def _parameters(node: nir.ir.NIRNode) -> list[np.ndarray]:
    return [np.asarray(getattr(node, k)) for k in ELEMENTWISE[type(node).__name__]]


def _parameter_shape(node: nir.ir.NIRNode) -> Ints:
    return max((a.shape for a in _parameters(node)), key=lambda s: (math.prod(s), len(s)))


def _first(a: np.ndarray, front: int) -> np.ndarray:
    """What stands at index 0 of the first `front` axes."""
    return a[(0,) * front] if a.ndim >= front else a


def _spread(node: nir.ir.NIRNode, shape: Ints, name: str, strict: bool = False) -> Ints | None:
    """The shape to give a node's parameters before they are broadcast over its neurons; None where they fit.

    One number holds for all. Axes in front along which nothing changes (a batch), and axes of 1 in place of a neuron
    axis, leave no doubt either, nor do neuron axes of 1 that the parameters lack, which `strict` refuses: they may be a
    batch. A row of values is taken for one a channel if no other axis has its length, and for all neurons in a row if
    the values are all one. Raises Misfit, doubtful where two readings remain, else ValueError.
    """
    had = _parameter_shape(node)
    if had == shape:
        return None
    if math.prod(had) == 1:
        return (1,) * len(shape)
    rule = f"has parameters of shape {had}"
    front = max(0, len(had) - len(shape))
    cut = had[front:] if all(np.all(a == _first(a, front)) for a in _parameters(node)) else had
    if len(cut) == len(shape) and all(n in (1, m) for n, m in zip(cut, shape, strict=True)):
        return cut
    if len(had) == 1 and len(shape) > 1:
        axes = [i for i, n in enumerate(shape) if n == had[0]]
        if axes == [0]:
            return (had[0], *(1,) * (len(shape) - 1))
        if had[0] == math.prod(shape) and axes and not strict:
            return shape
        if len(axes) > 1 and 0 in axes:
            raise Misfit("", name, shape, f"{rule}, which could go with axis {' or '.join(map(str, axes))}", True)
        if had[0] == math.prod(shape) and not axes:
            if all(np.all(a == a.flat[0]) for a in _parameters(node)):
                return shape
            raise Misfit("", name, shape, f"{rule}: in which order they go with the neurons is not said", True)
    raise ValueError(rule)
