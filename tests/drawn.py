"""Reading the SVG of a drawn graph back, and what must hold for any such picture."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from eiexport.alphabet import TERNARY
from eiexport.draw import LINES, width
from eiexport.graph import Network

SVG = "{http://www.w3.org/2000/svg}"
Rect = tuple[float, float, float, float]  # left, top, right, bottom


# --- reading a picture back


@dataclass
class Node:
    name: str
    kind: str
    family: str
    alphabet: str
    box: Rect
    words: list[str]
    signed: bool
    summed: bool
    rects: list[Rect]


@dataclass
class Edge:
    alphabet: str
    later: str | None
    points: list[tuple[float, float]]  # along the curve
    label: Rect
    tip: tuple[float, float]
    words: list[str]
    width: float
    colour: str
    dashed: bool
    double: bool


@dataclass
class Picture:
    nodes: dict[str, Node]
    edges: dict[tuple[str, str], Edge]
    legend: list[str]
    totals: str
    view: Rect


def picture(svg: str) -> Picture:
    root = ET.fromstring(svg)
    nodes: dict[str, Node] = {}
    edges: dict[tuple[str, str], Edge] = {}
    for g in root.findall(f"{SVG}g"):
        rects = {r.get("class"): rect(r) for r in g.iter(f"{SVG}rect")}
        words = ["".join(t.itertext()) for t in g.iter(f"{SVG}text")]
        if g.get("class") == "node":
            name = str(g.get("data-name"))
            assert name not in nodes
            about = [str(g.get(f"data-{k}")) for k in ("kind", "family", "alphabet")]
            chips = [rect(r) for r in g.iter(f"{SVG}rect") if r.get("class") == "chip"]
            nodes[name] = Node(name, *about, rects["box"], words, "signed" in rects, bool(lines(g, "sum")), chips)
        else:
            key = str(g.get("data-from")), str(g.get("data-to"))
            assert g.get("class") == "edge" and key not in edges
            (line,), (head,) = lines(g, "line"), lines(g, "head")
            tip = re.match(r"M(\S+) ([^L]+)L", str(head.get("d")))
            assert tip is not None
            edges[key] = Edge(
                str(g.get("data-alphabet")),
                g.get("data-later"),
                along(str(line.get("d"))),
                place(g),
                (float(tip[1]), float(tip[2])),
                words,
                float(str(line.get("stroke-width"))),
                str(line.get("stroke")),
                line.get("stroke-dasharray") is not None,
                bool(lines(g, "core")),
            )
    texts = {t.get("class"): "".join(t.itertext()) for t in root.findall(f"{SVG}text")}
    legend = ["".join(t.itertext()) for t in root.findall(f"{SVG}text") if t.get("class") == "legend"]
    x, y, wide, tall = map(float, str(root.get("viewBox")).split())
    return Picture(nodes, edges, legend, texts["totals"], (x, y, x + wide, y + tall))


def place(g: Any) -> Rect:
    """Where an edge's two lines of text stand."""
    above, below = g.iter(f"{SVG}text")
    half = max(width(str(t.text)) for t in (above, below)) / 2
    x, high, low = (float(v) for v in (above.get("x"), above.get("y"), below.get("y")))
    return x - half, high - 9, x + half, low + 2


def lines(g: Any, kind: str) -> list[Any]:
    return [p for p in g.iter(f"{SVG}path") if p.get("class") == kind]


def rect(r: Any) -> Rect:
    x, y, wide, tall = (float(r.get(k)) for k in ("x", "y", "width", "height"))
    return x, y, x + wide, y + tall


def along(path: str) -> list[tuple[float, float]]:
    """Points of a path of M, H and C, curves in 16 parts."""
    points: list[tuple[float, float]] = []
    for letter, rest in re.findall(r"([A-Za-z])([^A-Za-z]*)", path):
        n = [float(v) for v in rest.split()]
        if letter == "M":
            points.append((n[0], n[1]))
        elif letter == "H":
            points += [(points[-1][0] + (n[0] - points[-1][0]) * k / 16, points[-1][1]) for k in range(1, 17)]
        else:
            assert letter == "C"
            p = np.array([*points[-1], *n]).reshape(4, 2)
            for t in np.arange(1, 17) / 16:
                weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
                points.append(tuple(weights @ p))
    return points


def overlap(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def within(p: tuple[float, float], a: Rect) -> bool:
    return a[0] < p[0] < a[2] and a[1] < p[1] < a[3]


# --- what must hold for any picture


def verify(network: Network, svg: str) -> Picture:
    found = picture(svg)
    kinds = {n: type(node).__name__ for n, node in network.graph.nodes.items()}
    assert {n: node.kind for n, node in found.nodes.items()} == kinds
    assert {n: node.alphabet for n, node in found.nodes.items()} == {n: str(a) for n, a in network.alphabets.items()}
    assert set(found.edges) == set(network.graph.edges)
    for name, node in found.nodes.items():
        assert node.words[:2] == [name, kinds[name]] or "…" in node.words[0]
        assert node.signed == (network.alphabets[name] == TERNARY)
        assert node.summed == (len(network.sources[name]) > 1)
    for edge in found.edges:
        labelled(network, edge, found.edges[edge])
    geometry(found)
    return found


def labelled(network: Network, edge: tuple[str, str], drawn: Edge) -> None:
    shape, alphabet = "x".join(map(str, network.shapes[edge[0]])), network.alphabets[edge[0]]
    assert drawn.alphabet == str(alphabet)
    text = " ".join(drawn.words)
    assert text.startswith(f"{shape} {alphabet.kind}")
    assert (drawn.colour, drawn.double) == (LINES[alphabet.kind].colour, alphabet == TERNARY)
    if alphabet.kind == "int":
        assert all(f"{v:.0f}" in text for v in (alphabet.lo, alphabet.hi))
    # an edge that closes a cycle ends in a delay, from which its source can be reached
    closes = drawn.later is not None
    assert closes == drawn.dashed
    if closes:
        steps = np.rint(np.asarray(network.graph.nodes[edge[1]].delay) / network.clock.dt)
        ends = sorted({int(steps.min()), int(steps.max())})
        assert drawn.later == " to ".join(map(str, ends)) + (" step" if ends == [1] else " steps")
        assert steps.min() >= 1 and edge[0] in reached(network, edge[1])
        assert text.endswith(f"{drawn.later} later")


def reached(network: Network, start: str) -> set[str]:
    found = {start}
    while new := {b for a, b in network.graph.edges if a in found} - found:
        found |= new
    return found


def geometry(found: Picture) -> None:
    boxes = {n: node.box for n, node in found.nodes.items()}
    for a, b in itertools.combinations(boxes, 2):
        assert not overlap(boxes[a], boxes[b]), (a, b)
    left, top, right, bottom = found.view
    for x0, y0, x1, y1 in boxes.values():
        assert left < x0 < x1 < right and top < y0 < y1 < bottom
    for (a, b), edge in found.edges.items():
        source, target = boxes[a], boxes[b]
        start, end = edge.points[0], edge.points[-1]
        assert np.allclose(start, (source[2], (source[1] + source[3]) / 2), atol=0.2)
        assert np.allclose(end, (target[0] - 10, (target[1] + target[3]) / 2), atol=0.2)
        assert target[0] - 6 <= edge.tip[0] <= target[0] and edge.tip[1] == pytest.approx(end[1], abs=0.1)
        for other, drawn in found.edges.items():
            hit = [p for p in edge.points if other != (a, b) and within(p, drawn.label)]
            assert not hit and (other == (a, b) or not overlap(edge.label, drawn.label)), (a, b, other)
        assert not any(overlap(edge.label, box) for box in boxes.values())
        xs = [x for x, _ in edge.points]
        if edge.later is None:
            assert source[2] < target[0] and all(x <= y + 0.01 for x, y in itertools.pairwise(xs))
        else:
            assert target[0] < source[2]
        for x, y in edge.points:
            assert left < x < right and top < y < bottom
        for n, (x0, y0, x1, y1) in boxes.items():
            assert not any(within(p, (x0 + 0.2, y0, x1 - 0.2, y1)) for p in edge.points), (a, b, n)
