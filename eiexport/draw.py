"""A picture of a graph: one SVG file that stands alone, with every node, edge, delay and extension to be seen.

Within a step values go from left to right; a dashed edge that runs back brings its value to a later step. What boxes
say is read off the prepared steps. Colours are ones that the colour-blind tell apart (Okabe and Ito's), and none says
anything that a word, a box's corners or a line's form does not say too.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eiexport import nodes
from eiexport.connections import Flatten, Identity, MaxPool, Pool
from eiexport.facts import carried, dims, facts, later, many, parameters, parts
from eiexport.files import replacing
from eiexport.graph import Network, details
from eiexport.layout import HEAD, Box, Edge, Layout, arrange, number
from eiexport.neurons import Delay
from eiexport.steps import Step

NAME, SMALL = 13, 11  # font sizes, px
LINE = 15.0  # from one line to the next
PAD = 11.0
MARGIN = 26.0
WIDEST = 250.0  # of a name or a line; the tooltip has all of it
ACROSS = 900.0  # least width that the legend may fill
SUM = 5.5  # radius of the sign where edges are summed


@dataclass(frozen=True)
class Family:
    """What a kind belongs to: its box's colours and corners."""

    name: str
    fill: str
    stroke: str
    corner: float
    dash: str = ""


FAMILIES = {
    "ends": Family("input, output", "#eceff1", "#546e7a", 16),
    "connection": Family("connection", "#dceaf6", "#0067a3", 3),
    "shape": Family("pool, reshape", "#f4f9fc", "#2f7196", 3),
    "neuron": Family("neuron", "#d8f0e7", "#00755a", 12),
    "extension": Family("extension", "#fdeecb", "#8f5c00", 12),
    "integer": Family("integer", "#f6e3ee", "#98397a", 7),
    "delay": Family("delay", "#fbf8cc", "#6b6400", 16, "5 3"),
    "part": Family("sub-part", "#ffffff", "#5d5648", 8),
}


@dataclass(frozen=True)
class Line:
    """How an edge is drawn; `core`: a white line inside it, which makes it double."""

    name: str
    colour: str
    width: float
    core: float = 0.0


LINES = {
    "binary": Line("spikes", "#1a1a1a", 2.4),
    "ternary": Line("signed spikes", "#c04e00", 4.2, 1.4),
    "int": Line("whole numbers", "#6a4c9c", 1.6),
    "real": Line("real currents", "#5c6870", 1.1),
}

STYLE = """
.eigraph text{font-family:Helvetica,Arial,"DejaVu Sans",sans-serif;font-size:11px;fill:#22282c;white-space:pre}
.eigraph .name{font-size:13px;font-weight:bold}
.eigraph .middle{text-anchor:middle}
.eigraph .line{fill:none}
.eigraph .core{fill:none;stroke:#fff}
.eigraph .sum{fill:#fff;stroke:#22282c;stroke-width:1.2}
""".strip()


def write_svg(network: Network, path: str | Path, title: str = "") -> None:
    """Draw a network into the file `path`, which appears whole or not at all; OSError where it cannot be written."""
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(draw(network, title).encode())


def draw(network: Network, title: str = "") -> str:
    """The picture as the text of an SVG file; the same for the same network, in whatever order its nodes are stored.

    title: a heading, such as the model's name. Nodes are `<g class="node">` with data-name, data-kind, data-family and
    data-alphabet, edges `<g class="edge">` with data-from, data-to and data-alphabet, and where an edge closes a
    cycle, data-later: how many steps later its value goes on.
    """
    order = [n for component in network.order for n in component]
    place = {n: i for i, n in enumerate(order)}
    edges = [(s, n) for n in order for s in network.sources[n]]
    # in a network's order only delays look back
    closing = frozenset((a, b) for a, b in edges if place[a] >= place[b])
    cards = {n: _card(network, n) for n in order}
    words = {e: _words(network, e, e in closing) for e in edges}
    labels = {e: (max(map(width, said)) + 12, 2 * LINE + (10 if e in closing else 2)) for e, said in words.items()}
    found = arrange({n: card.size for n, card in cards.items()}, labels, closing)
    head, top = _heading(network, title, cards, bool(closing), max(found.width, ACROSS))
    corner = (-MARGIN, -top - MARGIN)
    wide = max(found.width, max(end for _, end in head))
    across, down = wide + 2 * MARGIN, top + found.height + 2 * MARGIN
    view = " ".join(map(number, (*corner, across, down)))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="eigraph" role="img" viewBox="{view}"'
        f' width="{number(across)}" height="{number(down)}">',
        f"<title>{escape(f'{title}: ' if title else '')}{escape(_totals(network))}</title>",
        f"<style>{STYLE}</style>",
        f'<rect x="{number(corner[0])}" y="{number(corner[1])}" width="{number(across)}" height="{number(down)}"'
        ' fill="#ffffff"/>',
        *(text for text, _ in head),
        *(_edge(network, e, found, words[e], e in closing) for e in edges),
        *(_node(network, n, cards[n], found.boxes[n]) for n in order),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


# --- words


def _totals(network: Network) -> str:
    clock, steps = network.clock, network.steps
    neurons = sum(math.prod(network.shapes[n]) for n, step in steps.items() if step.neuron)
    edges = sum(map(len, network.sources.values()))
    counts = {"node": len(steps), "edge": edges, "neuron": neurons, "parameter": sum(map(parameters, steps.values()))}
    return " · ".join([f"dt {clock.dt:g}, {clock.integrator}", *(many(n, what) for what, n in counts.items())])


def _words(network: Network, edge: Edge, closes: bool) -> tuple[str, str]:
    """What stands above an edge and below it."""
    shape, alphabet = dims(network.shapes[edge[0]]), carried(network.alphabets[edge[0]])
    return (f"{shape} {alphabet}", f"{later(network.steps[edge[1]])} later") if closes else (shape, alphabet)


def family_of(kind: str, step: Step) -> str:
    """A key of FAMILIES."""
    if isinstance(step, Identity):
        return "ends"
    if isinstance(step, Delay):
        return "delay"
    if kind in nodes.EXTENSIONS:
        return "integer" if kind in nodes.INTEGERS else "extension"
    return "neuron" if step.neuron else "shape" if isinstance(step, Pool | MaxPool | Flatten) else "connection"


@dataclass(frozen=True)
class Card:
    """What a box says; chips: rows of (text, tooltip)."""

    kind: str
    family: str
    name: str
    lines: list[str]
    rows: list[list[tuple[str, str]]]
    signed: bool
    size: tuple[float, float] = field(default=(0.0, 0.0))


def _card(network: Network, name: str) -> Card:
    step, kind = network.steps[name], type(network.graph.nodes[name]).__name__
    lines = [many(math.prod(network.shapes[name]), "neuron")] if step.neuron else []
    lines = [shortened(line, SMALL) for line in [*facts(step), *lines]]
    chips = [(text, f"{part}: {_whole(held)}") for part, (text, held) in parts(step).items()]
    rows = _wrapped(chips, [width(text) + 20 for text, _ in chips], WIDEST)
    shown, signed = shortened(name, NAME), network.alphabets[name].kind == "ternary"
    wide = [width(shown, NAME, 1.08) + (34 if signed else 0), width(kind), *map(width, lines)]
    wide += [sum(width(text) + 20 for text, _ in row) - 6 for row in rows]
    tall = 2 * PAD + 2 * LINE + (LINE * len(lines) + 7 if lines else 0) + (24 * len(rows) + 2 if rows else 0) - 3
    return Card(kind, family_of(kind, step), shown, lines, rows, signed, (max(*wide, 48.0) + 2 * PAD, tall))


def _whole(step: Step) -> str:
    """All that a step holds, for a tooltip."""
    return ", ".join([type(step).__name__, *(f"{k}={v}" for k, v in details(step))])


def _wrapped(items: Sequence[tuple[str, str]], widths: Sequence[float], most: float) -> list[list[tuple[str, str]]]:
    rows: list[list[tuple[str, str]]] = []
    left = 0.0
    for item, wide in zip(items, widths, strict=True):
        if wide > left:
            rows.append([])
            left = most
        rows[-1].append(item)
        left -= wide
    return rows


# --- SVG


def _node(network: Network, name: str, card: Card, box: Box) -> str:
    look, alphabet = FAMILIES[card.family], str(network.alphabets[name])
    shape = dims(network.shapes[name])
    about = f"{name}: {shape} {alphabet}, {card.kind}, {_whole(network.steps[name])}"
    x, y = box.x + PAD, box.y + PAD
    dash = f' stroke-dasharray="{look.dash}"' if look.dash else ""
    lines = [
        f'<g class="node" data-name="{escape(name)}" data-kind="{card.kind}" data-family="{card.family}"'
        f' data-alphabet="{alphabet}">',
        f"<title>{escape(about)}</title>",
        _rect("box", box, look.corner, f'fill="{look.fill}" stroke="{look.stroke}" stroke-width="1.5"{dash}'),
        _text(card.name, x, y + 11, "name"),
        _text(card.kind, x, y + 11 + LINE, "kind", look.stroke),
    ]
    if card.signed:
        line = LINES["ternary"]
        badge = Box(box.x + box.width - 8 - 28, box.y + 8, 28, 15)
        lines.append(_rect("signed", badge, 7, f'fill="{line.colour}"'))
        lines.append(_text("±1", badge.x + 14, badge.y + 11.5, "middle", "#ffffff"))
    y += 2 * LINE
    if card.lines:
        end = box.x + box.width
        lines.append(f'<path d="M{number(box.x)} {number(y + 2)}H{number(end)}" stroke="{look.stroke}" opacity=".35"/>')
    for line_ in card.lines:
        y += LINE
        lines.append(_text(line_, x, y + 3, "fact"))
    y += 12
    for row in card.rows:
        at = x
        for text, tip in row:
            chip = Box(at, y, width(text) + 14, 19)
            part = FAMILIES["part"]
            lines.append(f'<g class="part"><title>{escape(tip)}</title>')
            lines.append(_rect("chip", chip, part.corner, f'fill="{part.fill}" stroke="{part.stroke}"'))
            lines.append(_text(text, at + 7, y + 13.5) + "</g>")
            at += chip.width + 6
        y += 24
    if len(network.sources[name]) > 1:
        lines.append(_plus(box.x, box.middle))
    return "\n".join([*lines, "</g>"])


def _edge(network: Network, edge: Edge, found: Layout, words: tuple[str, str], closes: bool) -> str:
    alphabet, target = network.alphabets[edge[0]], found.boxes[edge[1]]
    line, several = LINES[alphabet.kind], len(network.sources[edge[1]]) > 1
    shape = dims(network.shapes[edge[0]])
    when = f", {words[1]}" if closes else ""
    said = f' data-later="{later(network.steps[edge[1]])}"' if closes else ""
    curve, (x, y) = found.curves[edge], found.labels[edge]
    tip = target.x - (SUM if several else 0)
    reach, half = tip - HEAD, 2.6 + 0.75 * line.width
    lines = [
        f'<g class="edge" data-from="{escape(edge[0])}" data-to="{escape(edge[1])}" data-alphabet="{alphabet}"{said}>',
        f"<title>{escape(f'{edge[0]} → {edge[1]}: {shape} {alphabet}{when}')}</title>",
        f'<path class="line" d="{curve}" stroke="{line.colour}" stroke-width="{line.width}"{_dash(closes)}/>',
    ]
    if line.core:
        lines.append(f'<path class="core" d="{curve}" stroke-width="{line.core}"/>')
    points = f"M{number(tip)} {number(target.middle)}L{number(reach)} {number(target.middle - half)}"
    lines.append(f'<path class="head" d="{points}V{number(target.middle + half)}Z" fill="{line.colour}"/>')
    if closes:
        wide = width(words[1]) + 12
        pill = Box(x - wide / 2, y + line.width / 2 + 2, wide, 15)
        lines.append(_rect("later", pill, 7.5, f'fill="#ffffff" stroke="{line.colour}"'))
    lines.append(_text(words[0], x, y - line.width / 2 - 3, "middle", line.colour))
    lines.append(_text(words[1], x, y + line.width / 2 + (13 if closes else 10.5), "middle", line.colour))
    return "\n".join([*lines, "</g>"])


def _heading(
    network: Network, title: str, cards: dict[str, Card], closing: bool, most: float
) -> tuple[list[tuple[str, float]], float]:
    """([(text, where it ends on the right)], height): title, totals, and a legend of what occurs."""
    items: list[tuple[str, str]] = []
    for key, look in FAMILIES.items():
        kinds = sorted({card.kind for card in cards.values() if card.family == key})
        if key == "part":
            kinds = sorted({part for step in network.steps.values() for part in parts(step)})
        if kinds:
            items.append((key, f"{look.name}: {', '.join(kinds)}"))
    sends = {network.alphabets[s].kind for came in network.sources.values() for s in came}
    items += [(kind, f"{kind}: {line.name}") for kind, line in LINES.items() if kind in sends]
    if closing:
        items.append(("later", "to a later step"))
    if any(len(came) > 1 for came in network.sources.values()):
        items.append(("sum", "sum"))
    rows = _wrapped(items, [width(text) + 56 for _, text in items], most)
    top = 46.0 + 22 * len(rows) + 22
    y = -top + 12
    heading, totals = shortened(title or "graph", NAME, 4 * WIDEST), _totals(network)
    head = [(_text(heading, 0, y, "name"), width(heading, NAME, 1.08))]
    head.append((_text(totals, 0, y + 18, "totals"), width(totals)))
    y += 42
    for row in rows:
        x = 0.0
        for key, text in row:
            head.append((_swatch(key, x, y) + _text(text, x + 34, y + 4, "legend"), x + 34 + width(text)))
            x += width(text) + 56
        y += 22
    return head, top


def _swatch(key: str, x: float, y: float) -> str:
    if key in FAMILIES:
        look = FAMILIES[key]
        dash = f' stroke-dasharray="{look.dash}"' if look.dash else ""
        sample = Box(x, y - 7, 26, 14)
        return _rect("sample", sample, min(look.corner, 7), f'fill="{look.fill}" stroke="{look.stroke}"{dash}')
    if key == "sum":
        return _plus(x + 13, y)
    line = LINES.get(key, LINES["binary"])
    level = f'd="M{number(x)} {number(y)}H{number(x + 26)}"'
    text = f'<path class="line" {level} stroke="{line.colour}" stroke-width="{line.width}"{_dash(key == "later")}/>'
    return text + (f'<path class="core" {level} stroke-width="{line.core}"/>' if line.core else "")


def _plus(x: float, y: float) -> str:
    cross = f"M{number(x - 3)} {number(y)}h6M{number(x)} {number(y - 3)}v6"
    circle = f'<circle class="sum" cx="{number(x)}" cy="{number(y)}" r="{SUM}"/>'
    return f'{circle}<path class="sum" d="{cross}"/>'


def _dash(closes: bool) -> str:
    return ' stroke-dasharray="7 4"' if closes else ""


def _rect(kind: str, box: Box, corner: float, look: str) -> str:
    x, y, wide, tall = map(number, (box.x, box.y, box.width, box.height))
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{wide}" height="{tall}" rx="{number(corner)}" {look}/>'


def _text(text: str, x: float, y: float, kind: str = "", colour: str = "") -> str:
    look = (f' class="{kind}"' if kind else "") + (f' style="fill:{colour}"' if colour else "")
    return f'<text x="{number(x)}" y="{number(y)}"{look}>{escape(text)}</text>'


ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
ENTITIES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
)


def escape(text: str) -> str:
    """Any text for an XML element or attribute; what XML cannot hold becomes U+FFFD."""
    return ILLEGAL.sub("\ufffd", text).translate(ENTITIES)


# --- widths of text, which depend on the reader's fonts: those of the widest of the named ones

NARROW, THIN, BROAD = set(" ijl.,:;'|!()[]ftrI/\\-"), set("ijl.,:;'|!I"), set("mwMW@%+<>=~≥≤±→…")


def _em(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.02
    if letter in NARROW:
        return 0.34 if letter in THIN else 0.42
    return 0.95 if letter in BROAD else 0.73 if letter.isupper() or not letter.isascii() else 0.64


def width(text: str, size: float = SMALL, weight: float = 1.0) -> float:
    """Pixels that a text may take, rather too many than too few; weight: how much wider than regular letters."""
    return math.ceil(sum(map(_em, text)) * size * weight)


def shortened(text: str, size: float, most: float = WIDEST) -> str:
    """The text in one line, cut where it would be wider than `most`."""
    line = " ".join(text.split()) if any(c in text for c in "\t\n\r") else text
    if width(line, size) <= most:
        return line
    taken = 0
    while width(line[: taken + 1] + "…", size) <= most:
        taken += 1
    return line[:taken] + "…"
