"""Where the boxes and curves of a drawn graph go: layers from left to right (Sugiyama, Tagawa, Toda 1981).

Boxes stand in the even columns and edge labels in the odd ones, so that a label has its own place and covers nothing.
An edge that spans several columns is led through a bend in each; one that closes a cycle runs back along such bends,
from the right side of its source round to the left side of its target. Everything is decided in a fixed order, so
the same graph gives the same picture.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

Edge = tuple[str, str]
Size = tuple[float, float]  # width, height
Place = tuple[int, int]  # column, position in it

BOX, LABEL, BEND = range(3)
APART = ((30.0, 16.0, 16.0), (16.0, 8.0, 8.0), (16.0, 8.0, 9.0))  # clear space between two of these, above each other
HEAD = 10.0  # length of an arrow head
BEND_HEIGHT = 4.0
STRAIGHT = (10**9, 3, 1)  # columns that a straight piece may span: tried in this order
TALL = 2.0  # a picture may be so much taller for its straight lines
WORK = 150_000  # segments that all sweeps over a graph may look at; large graphs get fewer sweeps


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True)
class Layout:
    """All in pixels, y downwards. curves: an SVG path a forward or closing edge, which ends where its head begins.

    labels: the middle of each edge's label, on its curve, which is level there.
    """

    boxes: dict[str, Box]
    curves: dict[Edge, str]
    labels: dict[Edge, tuple[float, float]]
    width: float
    height: float


@dataclass
class _Graph:
    """Vertices by number: boxes, labels and bends; a segment joins vertices of neighbouring columns."""

    column: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    size: list[Size] = field(default_factory=list)
    segments: list[tuple[int, int]] = field(default_factory=list)
    ranks: list[float] = field(default_factory=list)  # of segments: the smaller, the sooner made straight
    chains: dict[Edge, list[int]] = field(default_factory=dict)  # labels and bends, from left to right
    left: list[list[int]] = field(default_factory=list)
    right: list[list[int]] = field(default_factory=list)

    def add(self, column: int, kind: int, size: Size) -> int:
        self.column.append(column)
        self.kind.append(kind)
        self.size.append(size)
        self.left.append([])
        self.right.append([])
        return len(self.column) - 1

    def join(self, a: int, b: int, rank: float) -> None:
        self.segments.append((a, b))
        self.ranks.append(rank)
        self.right[a].append(b)
        self.left[b].append(a)

    def columns(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(max(self.column) + 2)]
        for v, column in enumerate(self.column):
            found[column].append(v)
        return found


def arrange(boxes: Mapping[str, Size], labels: Mapping[Edge, Size], closing: frozenset[Edge]) -> Layout:
    """Places boxes (name: size) and the edges that `labels` names, with their labels' sizes.

    Boxes are given in an order in which all edges but those of `closing` look ahead; ties are broken by it.
    """
    graph, vertex = _build(boxes, labels, closing)
    columns = _ordered(graph)
    y = _heights(graph, columns)
    starts, ends = _widths(graph, columns, y, {vertex[e[k]] for e in closing for k in (0, 1)})
    placed = {}
    for name, v in vertex.items():
        height = graph.size[v][1]
        x = starts[graph.column[v]]
        placed[name] = Box(x, float(y[v]) - height / 2, ends[graph.column[v]] - x, height)
    curves, middles = {}, {}
    for edge, chain in graph.chains.items():
        runs = [(starts[graph.column[v]], ends[graph.column[v]], float(y[v])) for v in chain]
        a, b = placed[edge[0]], placed[edge[1]]
        curves[edge] = _back(a, b, runs[1:-1]) if edge in closing else _ahead(a, b, runs)
        label = next(v for v in chain if graph.kind[v] == LABEL)
        c = graph.column[label]
        middles[edge] = ((starts[c] + ends[c]) / 2, float(y[label]))
    return Layout(placed, curves, middles, ends[-1], _lowest(graph, y))


# --- columns


def _layers(names: Sequence[str], edges: Iterable[Edge], closing: frozenset[Edge]) -> dict[str, int]:
    """Longest paths over the graph with closing edges turned round, then each node as near as it can to most of its
    neighbours."""
    ahead: dict[str, list[str]] = {n: [] for n in names}
    behind: dict[str, list[str]] = {n: [] for n in names}
    for edge in edges:
        a, b = edge if edge not in closing else edge[::-1]
        ahead[a].append(b)
        behind[b].append(a)
    order = {n: i for i, n in enumerate(names)}
    if bad := [(a, b) for a in names for b in ahead[a] if order[a] >= order[b]]:
        raise ValueError(f"edge {bad[0]} does not look ahead, nor is it closing")
    layer: dict[str, int] = {}
    for n in names:
        layer[n] = max((layer[s] + 1 for s in behind[n]), default=0)
    for _ in range(2):
        for n in reversed(names):
            if len(ahead[n]) > len(behind[n]):
                layer[n] = min(layer[s] for s in ahead[n]) - 1
    used = {old: new for new, old in enumerate(sorted(set(layer.values())))}
    return {n: used[k] for n, k in layer.items()}


def _build(
    boxes: Mapping[str, Size], labels: Mapping[Edge, Size], closing: frozenset[Edge]
) -> tuple[_Graph, dict[str, int]]:
    layer = _layers(list(boxes), labels, closing)
    graph = _Graph()
    # column 0 is free for the turns of edges that run back into the first layer
    vertex = {n: graph.add(2 * layer[n] + 1, BOX, size) for n, size in boxes.items()}
    length = _longest(list(boxes), [e for e in labels if e not in closing])

    def span(edge: Edge) -> int:
        return abs(layer[edge[1]] - layer[edge[0]])

    # long edges stand below short ones, unless that costs crossings, and those that run back below all
    for edge in sorted(labels, key=lambda e: (e in closing, span(e))):
        a, b = vertex[edge[0]], vertex[edge[1]]
        back = edge in closing
        first, last = (graph.column[b] - 1, graph.column[a] + 1) if back else (graph.column[a] + 1, graph.column[b] - 1)
        # a label stands beside the source; where an edge runs back, in its middle
        where = first + 2 * ((last - first) // 4) if back else first
        chain = []
        for column in range(first, last + 1):
            named = column == where
            chain.append(graph.add(column, LABEL if named else BEND, labels[edge] if named else (0.0, BEND_HEIGHT)))
        graph.chains[edge] = chain
        for pair in pairwise(chain):
            graph.join(*pair, rank=0.0)
        rank = np.inf if back else 1.0 / length[edge]
        graph.join(*((chain[0], b) if back else (a, chain[0])), rank=rank)
        graph.join(*((a, chain[-1]) if back else (chain[-1], b)), rank=rank)
    return graph, vertex


def _longest(names: Sequence[str], edges: Iterable[Edge]) -> dict[Edge, int]:
    """Edges of the longest path through each edge: what is on the longest of all is the main road."""
    edges = list(edges)
    order = {n: i for i, n in enumerate(names)}
    before, after = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for a, b in sorted(edges, key=lambda e: order[e[0]]):
        before[b] = max(before[b], before[a] + 1)
    for a, b in sorted(edges, key=lambda e: -order[e[1]]):
        after[a] = max(after[a], after[b] + 1)
    return {(a, b): before[a] + 1 + after[b] for a, b in edges}


# --- order in a column


def _ordered(graph: _Graph) -> list[list[int]]:
    """The columns from top to bottom: barycentre sweeps, then exchanges of neighbours; the best of all rounds."""
    columns = graph.columns()
    place = {v: i for c in columns for i, v in enumerate(c)}
    best, fewest = [list(c) for c in columns], _crossings(graph, columns, place)
    for sweep in range(min(24, WORK // max(1, len(graph.segments)))):
        if not fewest:
            break
        turn = sweep % 2 == 0
        for c in range(len(columns)) if turn else reversed(range(len(columns))):
            _sort(columns[c], graph.left if turn else graph.right, place)
        if sweep % 4 > 1:
            _exchange(graph, columns, place)
        now = _crossings(graph, columns, place)
        if now < fewest:
            best, fewest = [list(c) for c in columns], now
    return best


def _sort(column: list[int], beside: list[list[int]], place: dict[int, int]) -> None:
    """By the mean place of neighbours; a vertex without any keeps its place."""
    means = {v: sum(place[u] for u in beside[v]) / len(beside[v]) for v in column if beside[v]}
    moved = iter(sorted(means, key=lambda v: (means[v], place[v])))
    column[:] = [next(moved) if v in means else v for v in column]
    for i, v in enumerate(column):
        place[v] = i


def _exchange(graph: _Graph, columns: list[list[int]], place: dict[int, int]) -> None:
    for column in columns:
        for i in range(len(column) - 1):
            u, v = column[i : i + 2]
            gain = 0
            for beside in (graph.left, graph.right):
                a, b = (sorted(place[n] for n in beside[w]) for w in (u, v))
                gain += _inversions(a, b) - _inversions(b, a)
            if gain > 0:
                column[i], column[i + 1] = v, u
                place[v], place[u] = i, i + 1


def _inversions(a: list[int], b: list[int]) -> int:
    """Pairs (x of a, y of b) with x > y; both sorted."""
    return sum(bisect_left(b, x) for x in a)


def _crossings(graph: _Graph, columns: list[list[int]], place: dict[int, int]) -> int:
    total = 0
    for column in columns:
        seen: list[int] = []
        for v in column:
            ends = sorted(place[u] for u in graph.right[v])
            total += sum(len(seen) - bisect_left(seen, end + 1) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


# --- heights


def _heights(graph: _Graph, columns: list[list[int]]) -> np.ndarray:
    """y of each vertex's middle, from 0 on. Lines are straight, but where they are tangled, only over short pieces:
    many long blocks above each other would make a staircase."""
    bent = _balanced(graph, columns, STRAIGHT[-1])
    for longest in STRAIGHT[:-1]:
        y = _balanced(graph, columns, longest)
        if _lowest(graph, y) <= TALL * _lowest(graph, bent):
            return y
    return bent


def _lowest(graph: _Graph, y: np.ndarray) -> float:
    return max(float(at) + size[1] / 2 for at, size in zip(y, graph.size, strict=True))


def _balanced(graph: _Graph, columns: list[list[int]], longest: int) -> np.ndarray:
    """The same; what was made straight moves as one block, towards the mean of its neighbours."""
    block, count = _blocks(graph, columns, longest)
    below: list[dict[int, float]] = [{} for _ in range(count)]
    for column in columns:
        for u, v in pairwise(column):
            a, b = block[u], block[v]
            apart = (graph.size[u][1] + graph.size[v][1]) / 2 + APART[graph.kind[u]][graph.kind[v]]
            below[a][b] = max(below[a].get(b, 0.0), apart)
    order = _topological(below)
    above: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    for a, under in enumerate(below):
        for b, apart in under.items():
            above[b].append((a, apart))
    loose = np.array([(block[u], block[v]) for u, v in graph.segments if block[u] != block[v]], np.int64).reshape(-1, 2)
    pulls = np.bincount(loose.reshape(-1), minlength=count)
    y = _down(np.zeros(count), order, above)
    for _ in range(min(80, 8 * WORK // (1 + len(graph.segments)))):
        sums = np.bincount(loose.reshape(-1), y[loose[:, ::-1].reshape(-1)], count)
        wish = np.where(pulls > 0, (y + sums / np.maximum(pulls, 1)) / 2, y)  # half way, or neighbours would swap
        # pushed down only, and pushed up only: both keep all distances, and so does their mean
        y = (_down(wish, order, above) + _up(wish, order, below)) / 2
    found = y[block]
    found -= min(float(at) - size[1] / 2 for at, size in zip(found, graph.size, strict=True))
    return np.round(found, 1)


def _blocks(graph: _Graph, columns: list[list[int]], longest: int) -> tuple[np.ndarray, int]:
    """Vertices that share one height: segments made straight in the order of their ranks, as long as none cross.

    x-monotone paths that do not cross have an order from top to bottom, so that the blocks can always be placed.
    """
    place = {v: i for c in columns for i, v in enumerate(c)}
    root, reach = list(range(len(graph.column))), [1] * len(graph.column)
    taken: dict[int, list[tuple[int, int]]] = {}  # straight segments of a column, by place
    used: set[tuple[int, bool]] = set()
    for i in sorted(range(len(graph.segments)), key=lambda i: graph.ranks[i]):
        u, v = graph.segments[i]
        if graph.ranks[i] == np.inf or (u, True) in used or (v, False) in used:
            continue
        own = taken.setdefault(graph.column[u], [])
        at = bisect_left(own, (place[u], place[v]))
        if (at and own[at - 1][1] >= place[v]) or (at < len(own) and own[at][1] <= place[v]):
            continue
        a, b = _find(root, u), _find(root, v)
        if reach[a] + reach[b] > longest:
            continue
        reach[a] += reach[b]
        own.insert(at, (place[u], place[v]))
        used |= {(u, True), (v, False)}
        root[b] = a
    names: dict[int, int] = {}
    found = [names.setdefault(_find(root, v), len(names)) for v in range(len(root))]
    return np.array(found, np.int64), len(names)


def _find(root: list[int], v: int) -> int:
    while root[v] != v:
        root[v] = root[root[v]]
        v = root[v]
    return v


def _topological(below: list[dict[int, float]]) -> list[int]:
    waits = [0] * len(below)
    for under in below:
        for b in under:
            waits[b] += 1
    order = [v for v, n in enumerate(waits) if n == 0]
    for v in order:  # grows while it is read
        for b in below[v]:
            waits[b] -= 1
            if waits[b] == 0:
                order.append(b)
    return order


def _down(wish: np.ndarray, order: list[int], above: list[list[tuple[int, float]]]) -> np.ndarray:
    y = wish.tolist()
    for v in order:
        for u, apart in above[v]:
            y[v] = max(y[v], y[u] + apart)
    return np.array(y)


def _up(wish: np.ndarray, order: list[int], below: list[dict[int, float]]) -> np.ndarray:
    y = wish.tolist()
    for v in reversed(order):
        for u, apart in below[v].items():
            y[v] = min(y[v], y[u] - apart)
    return np.array(y)


# --- widths and curves


def _widths(
    graph: _Graph, columns: list[list[int]], y: np.ndarray, turning: set[int]
) -> tuple[list[float], list[float]]:
    """(left, right) of each column; between two of them is room for the steepest curve there, and for turns."""
    steep = np.zeros(len(columns))
    for u, v in graph.segments:
        steep[graph.column[u]] = max(steep[graph.column[u]], abs(y[u] - y[v]))
    starts, ends, x = [], [], 0.0
    turns = {graph.column[v] for v in turning}
    for c, column in enumerate(columns):
        starts.append(x)
        x += round(max((graph.size[v][0] for v in column), default=0.0), 1)
        ends.append(x)
        if c + 1 < len(columns) and (c or turns & {1}):
            x += round(10.0 + (HEAD if c % 2 == 0 else 0.0) + min(70.0, 0.3 * steep[c]), 1)
            x += 14.0 if turns & {c, c + 1} else 0.0
    return starts, ends


def _ahead(a: Box, b: Box, runs: Sequence[tuple[float, float, float]]) -> str:
    path = _Path(a.x + a.width, a.middle)
    for start, end, y in runs:
        path.curve(start, y)
        path.level(end)
    path.curve(b.x - HEAD, b.middle)
    return path.text()


def _back(a: Box, b: Box, runs: Sequence[tuple[float, float, float]]) -> str:
    """Out of a's right side, round, along the runs to the left, and round into b's left side."""
    right, left = a.x + a.width, b.x - HEAD
    path = _Path(right, a.middle)
    path.turn(right, runs[-1][2], 20.0)
    for start, end, y in reversed(runs):
        path.curve(end, y)
        path.level(start)
    path.level(left)
    path.turn(left, b.middle, -20.0)
    return path.text()


class _Path:
    """An SVG path of level lines and of curves that leave and arrive level."""

    def __init__(self, x: float, y: float) -> None:
        self.x, self.y, self.parts = x, y, [f"M{number(x)} {number(y)}"]

    def curve(self, x: float, y: float) -> None:
        if y == self.y:
            return self.level(x)
        middle = (self.x + x) / 2
        self._to(middle, middle, x, y)

    def turn(self, x: float, y: float, reach: float) -> None:
        self._to(self.x + reach, x + reach, x, y)

    def _to(self, leave: float, arrive: float, x: float, y: float) -> None:
        ends = [(leave, self.y), (arrive, y), (x, y)]
        self.parts.append("C" + " ".join(f"{number(p)} {number(q)}" for p, q in ends))
        self.x, self.y = x, y

    def level(self, x: float) -> None:
        if self.parts[-1].startswith("H"):
            self.parts.pop()
        self.parts.append(f"H{number(x)}")
        self.x = x

    def text(self) -> str:
        return "".join(self.parts)


def number(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{value + 0.0:.1f}".removesuffix(".0")
