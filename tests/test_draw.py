"""The picture of a graph: everything is in it once, nothing covers anything, and it says what the network computes."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import circuit_cases
import matplotlib
import nir
import numpy as np
import pytest
from cases import CASES, MAP, Numbers, chain, connected, full, integrate
from drawn import SVG, Rect, overlap, picture, rect, verify
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from int_networks import provoking_cases, random_network
from PIL import ImageFont

from eiexport import draw as drawing
from eiexport import graph as graphs
from eiexport.alphabet import BINARY, REAL, Alphabet
from eiexport.draw import FAMILIES, LINES, draw, write_svg
from eiexport.graph import Network, check
from eiexport.layout import arrange
from eiexport.nodes import EIDiscreteLIF, EIMaxPool2d
from eiexport.steps import Step

FLOATS = {c.name: c for c in CASES}
WHOLE = {c.name: c for c in provoking_cases()}


def network_of(seed: int) -> Network:
    g, _, alphabet = random_network(seed)
    return check(g, alphabet=alphabet)


# --- any graph


@st.composite
def tangles(pick: st.DrawFn) -> tuple[nir.NIRGraph, Alphabet]:
    """Up to twenty nodes, each fed by some earlier ones, and delays that lead back from anywhere to anywhere."""
    count, rng = pick(st.integers(1, 20)), np.random.default_rng(pick(st.integers(0, 2**31)))
    names, nodes, edges = ["in"], {}, []
    for i in range(count):
        name = f"{'zyxwv'[i % 5]}{i}"
        n = Numbers(i, False)
        kinds = [n.affine(3, 3), n.discrete((3,), lower=True), integrate((3,)), nir.Delay(full(3, 2.0))]
        nodes[name] = kinds[rng.integers(len(kinds))]
        edges += [(s, name) for s in rng.permutation(names)[: rng.integers(1, 4)].tolist()]
        names.append(name)
    for i in range(pick(st.integers(0, 4))):
        a, b = sorted(rng.integers(1, len(names), 2))
        nodes |= {f"back{i}": nir.Delay(full(3, float(rng.integers(1, 4)))), f"cell{i}": integrate((3,))}
        edges += [(names[b], f"cell{i}"), (f"cell{i}", f"back{i}"), (f"back{i}", names[a])]
    edges += [(n, "out") for n in rng.permutation(names[1:])[: rng.integers(1, 3)].tolist()]
    return connected(nodes, edges, (3,)), BINARY if rng.random() < 0.5 else REAL


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(tangles())
def test_any_graph(made: tuple[nir.NIRGraph, Alphabet]) -> None:
    network = check(made[0], alphabet=made[1])
    found = verify(network, draw(network))
    backward = {e for e, drawn in found.edges.items() if drawn.later is not None}
    # without the edges that run back nothing is recurrent
    assert all(len(c) == 1 for c in graphs.components(without(network, backward)))


def without(network: Network, edges: set[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    return {n: tuple(s for s in came if (s, n) not in edges) for n, came in network.sources.items()}


def test_every_listed_network() -> None:
    kinds: Counter[str] = Counter()
    cases = [*CASES, *WHOLE.values(), *circuit_cases.FLOATS, *circuit_cases.WHOLE[:20]]
    families = set()
    for case in cases:
        found = verify(case.network(), draw(case.network()))
        kinds.update(n.kind for n in found.nodes.values())
        families |= {n.family for n in found.nodes.values()}
    assert set(kinds) == set(drawing.nodes.PREPARE)
    assert families == set(FAMILIES) - {"part"}


@pytest.mark.parametrize("seed", range(12))
def test_random_integer_networks(seed: int) -> None:
    network = network_of(seed)
    found = verify(network, draw(network))
    delays = {n for n, node in network.graph.nodes.items() if isinstance(node, nir.Delay)}
    assert {b for (_, b), e in found.edges.items() if e.later is not None} == delays


# --- what boxes say

CONV = Numbers(1, True).conv(4, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
SIGNED = EIDiscreteLIF(full((2,), 0.5), full((2,), 1.0), np.array([1.0, 3.0]), full((2,), 0.25), lower=full((2,), -1.0))
MEAN = ["mean over 3x2", "stride 1x2, padding 1x0"]
BOXES: dict[str, tuple[tuple[int, ...], Any, list[str]]] = {
    "conv": (
        (4, 7, 9),
        CONV,
        ["3x2 kernel", "stride 2x1, padding 1x0", "dilation 1x2, groups 2", "48 weights", "4 biases"],
    ),
    "plain-conv": ((1, 5), Numbers(1, True).conv(2, 1, (3,)), ["3 kernel", "6 weights", "2 biases"]),
    "dense": ((3,), nir.Linear(np.ones((40, 3))), ["3 to 40", "120 weights"]),
    "no-bias": ((3,), nir.Affine(np.ones((2, 3)), np.zeros(2)), ["3 to 2", "6 weights"]),
    "scale": ((3,), nir.Scale(np.array([1.0, -2.0, 0.5])), ["times -2 to 1", "3 factors"]),
    "scale-one": ((3,), nir.Scale(full(3, 0.25)), ["times 0.25"]),
    "sum": ((1, 4, 4), nir.SumPool2d(*np.array([[2, 2], [2, 2], [0, 0]])), ["sum over 2x2", "stride 2"]),
    "mean": ((1, 4, 4), nir.AvgPool2d(*np.array([[3, 2], [1, 2], [1, 0]])), MEAN),
    "max": ((1, 4, 4), EIMaxPool2d(*np.array([[3, 3], [1, 1], [1, 1]])), ["max over 3x3", "padding 1"]),
    "flatten": ((2, 3, 4), nir.Flatten({"input": np.array([2, 3, 4])}, 1, 2), ["axes 1 to 2 joined"]),
    "flatten-all": ((2, 3), nir.Flatten({"input": np.array([2, 3])}, 0, -1), ["all axes joined"]),
    "if": ((4,), integrate(4, 2.0), ["no leak", "fires: V > 2", "reset to 0", "4 neurons"]),
    "lif": (
        (2,),
        nir.LIF(*(full(2, v) for v in (4.0, 2.0, 1.0, 0.5)), v_reset=full(2, -0.5)),
        ["decay 0.75", "gain 0.5", "bias 0.25", "fires: V > 0.5", "reset to -0.5", "2 neurons"],
    ),
    "li": ((1,), nir.LI(full(1, 2.0), full(1, 2.0), full(1, 0.0)), ["decay 0.5", "1 neuron"]),
    "cuba": (
        (2,),
        nir.CubaLIF(
            **{k: full(2, v) for k, v in {"tau_mem": 2.0, "tau_syn": 4.0, "r": 2.0, "v_leak": 0.0}.items()},
            v_threshold=full(2, 1.5),
            w_in=full(2, 2.0),
        ),
        ["decay 0.5", "current: decay 0.75, gain 0.5", "fires: V > 1.5", "reset to 0", "2 neurons"],
    ),
    "threshold": ((2,), nir.Threshold(np.array([0.5, 2.0])), ["fires: x > 0.5 to 2", "2 neurons"]),
    "signed": (
        (2,),
        SIGNED,
        ["decay 0.5", "z = 1: V > 1 to 3", "z = -1: V < -1", "reset to 0.25", "2 neurons"],
    ),
    "subtract": (
        (2,),
        replace(SIGNED, compare="ge", reset="subtract", decay=np.array([0.0, 1.0])),
        ["decay 0 to 1", "z = 1: V ≥ 1 to 3", "z = -1: V ≤ -1", "reset by subtraction", "2 neurons"],
    ),
    "none": (
        (2,),
        replace(SIGNED, reset="none", lower=None),
        ["decay 0.5", "fires: V > 1 to 3", "no reset", "2 neurons"],
    ),
    "delay": ((3,), nir.Delay(full(3, 1.0)), ["1 step later"]),
    "delay-each": ((3,), nir.Delay(np.array([0.0, 4.0, 2.0])), ["0 to 4 steps later"]),
}


@pytest.mark.parametrize("name", BOXES)
def test_facts(name: str) -> None:
    shape, node, wanted = BOXES[name]
    words = verify(network := check(chain(shape, node)), draw(network)).nodes["n0"].words
    assert [w for w in words[2:] if w != "±1"] == wanted


@pytest.mark.parametrize("gates", [(True, True), (True, False), (False, True)])
def test_gates_are_parts(gates: tuple[bool, bool]) -> None:
    wanted = [name for name, on in zip(("feedback", "balance"), gates, strict=True) if on]
    for shape, form in ((MAP, "3x3"), ((4,), "dense")):
        network = check(chain(shape, Numbers(3, True).gated(shape, *gates)))
        svg = draw(network)
        node = verify(network, svg).nodes["n0"]
        assert node.words[-len(wanted) :] == [f"{name} {form}" for name in wanted]
        assert len(node.rects) == len(wanted) and all(inside(chip, node.box) for chip in node.rects)
        assert node.family == "extension" and node.signed == gates[1]
        assert f"sub-part: {', '.join(sorted(wanted))}" in picture(svg).legend


def inside(a: Rect, b: Rect) -> bool:
    return b[0] < a[0] and a[2] < b[2] and b[1] < a[1] and a[3] < b[3]


def test_integer_gates() -> None:
    network = WHOLE["gated-conv-feedback-balance"].network()
    node = verify(network, draw(network)).nodes["n0"]
    assert node.family == "integer" and node.words[-2:] == ["feedback 3x3", "balance 3x3"]
    assert {"v keeps 3596 of 4096", "u keeps 3095 of 4096", "fires: V > 30 << 6"} <= set(node.words)
    assert {"balance: v >> 3, 12 bits", "24 neurons"} <= set(node.words)


def test_integer_connections() -> None:
    words = picture(draw(WHOLE["signed-dense"].network())).nodes["n1"].words
    assert words[2:] == ["4 to 5", "20 weights", "2-bit messages"]
    words = picture(draw(WHOLE["loop-one"].network())).nodes["back"].words
    assert words[2:] == ["4 to 4", "16 weights", "messages: spikes"]
    words = picture(draw(WHOLE["exponent-conv"].network())).nodes["e0"].words
    assert words[2:] == ["2x3 kernel", "48 weights", "4 biases", "sum >> 3", "4-bit messages"]


@pytest.mark.parametrize("form, zero", circuit_cases.FORMS)
def test_circuits(form: str, zero: str) -> None:
    for shape, kernel in ((circuit_cases.FLAT, "dense"), (circuit_cases.MAP, "3x2")):
        node = circuit_cases.circuit_of(3, form, zero, shape, True, (6, 3))
        network = check(circuit_cases.both(shape, node))
        words = verify(network, draw(network)).nodes["n0"].words
        assert words[-3:] == [f"excite {kernel}, 6 cells", f"inhibit {kernel}, 3 cells", "spread 3 to 6"]
        assert ("no division" if form == "none" else f"division: {form}") in words
        zeros = [w for w in words if w.startswith("zeros: ")]
        divides = form in ("exact", "shift", "table")
        assert len(zeros) == divides and (not divides or ("least" in zeros[0]) == (zero == "sample_min"))
        assert ("stride 2x1, padding 1x0" in words) == (shape == circuit_cases.MAP)


def test_integer_circuits() -> None:
    case = circuit_cases.WHOLE[1]
    network = case.network()
    node = verify(network, draw(network)).nodes["n0"]
    made = network.graph.nodes["n0"]
    cells = [len(made.excite.weight), len(made.inhibit.weight)]
    assert node.family == "integer" and f"spread {cells[1]} to {cells[0]}" in node.words
    assert f"shifts: gain {made.gain_shift}, {made.shift}" in node.words


def test_unknown_steps_show_all_they_hold() -> None:
    @dataclass(frozen=True)
    class Strange(Step):
        slope: np.ndarray
        mode: str

    network = check(chain((3,), integrate(3)))
    network.steps["n0"] = Strange(np.asarray(0.125), "odd")
    assert picture(draw(network)).nodes["n0"].words[2:] == ["slope 0.125", "mode odd"]


def test_totals_and_legend() -> None:
    n = Numbers(4, True)
    layers = [n.conv(2, 1, (3, 3)), n.gated((2, 3, 3), True, False), nir.Flatten({"input": np.array([2, 3, 3])}, 0, -1)]
    layers += [nir.Affine(np.ones((5, 18)), np.ones(5)), nir.Scale(np.arange(1.0, 6))]
    layers.append(nir.LIF(full(5, 2.0), full(5, 1.0), np.arange(5.0), full(5, 1.0), full(5, 0.0)))
    graph = chain((1, 5, 5), *layers, clock=(1e-3, "exponential"))
    found = verify(network := check(graph, alphabet=BINARY), draw(network, "a & b"))
    gate, first = 2 * 2 * 9 + 2, 2 * 9 + 2
    total = first + gate + 5 * 18 + 5 + 5
    assert found.totals == f"dt 0.001, exponential · 8 nodes · 7 edges · 23 neurons · {total} parameters"
    assert found.legend == [
        "input, output: Input, Output",
        "connection: Affine, Conv2d, Scale",
        "pool, reshape: Flatten",
        "neuron: LIF",
        "extension: EIGatedLIF",
        "sub-part: feedback",
        "binary: spikes",
        "int: whole numbers",
        "real: real currents",
    ]
    network = FLOATS["loop-two-neurons"].network()
    assert picture(draw(network)).legend[-2:] == ["to a later step", "sum"]


# --- signs, lines, cycles


def test_signed_spikes_can_be_seen() -> None:
    n = Numbers(5, True)
    layers = [n.discrete((3,)), n.affine(3, 3), n.discrete((3,), lower=True), n.affine(3, 3)]
    network = check(chain((3,), *layers))
    found = verify(network, draw(network))
    assert [n for n, node in found.nodes.items() if node.signed] == ["n2"]
    looks = {e: (drawn.colour, drawn.width, drawn.double) for e, drawn in found.edges.items()}
    real, spikes, signed = looks["in", "n0"], looks["n0", "n1"], looks["n2", "n3"]
    assert len({real[0], spikes[0], signed[0]}) == 3
    assert real[1] < 0.5 * spikes[1] < spikes[1] < signed[1]
    assert [e for e, look in looks.items() if look[2]] == [("n2", "n3")]
    assert found.edges["n2", "n3"].words == ["3", "ternary"]


def test_a_cycle_runs_back_with_its_delay() -> None:
    network = FLOATS["loop-each"].network()
    svg = draw(network)
    found = verify(network, svg)
    assert {e: drawn.later for e, drawn in found.edges.items() if drawn.dashed} == {("cell", "a0"): "1 to 3 steps"}
    back = found.edges["cell", "a0"]
    assert back.words == ["4 binary", "1 to 3 steps later"]
    boxes = [found.nodes[n].box for n in ("a0", "back", "cell")]
    # past the boxes, and level on the way
    level = {round(y, 1) for x, y in back.points if boxes[0][2] < x < boxes[2][0]}
    assert len(level) == 1 and (max(level) > max(b[3] for b in boxes) or min(level) < min(b[1] for b in boxes))


def test_rows_are_straight() -> None:
    """A residual network of a hundred nodes: one row, its shortcuts level beneath it, and no curve along the row."""
    names = [f"n{i}" for i in range(100)]
    row = list(itertools.pairwise(names))
    skips = [(names[i], names[i + 4]) for i in range(2, 90, 5)]
    found = arrange(dict.fromkeys(names, (100.0, 80.0)), dict.fromkeys(row + skips, (40.0, 30.0)), frozenset())
    assert len({found.boxes[n].middle for n in names}) == 1
    assert all("C" not in found.curves[e] for e in row)
    assert all(found.curves[e].count("C") == 2 for e in skips)
    assert len({found.labels[e][1] for e in skips}) == 1
    assert found.height < 80 + 100
    for a, b in skips:  # the deeper it goes, the more room a curve has
        room = found.labels[a, b][0] - 20 - found.boxes[a].x - 100
        assert room > 10 + 0.25 * (found.labels[a, b][1] - found.boxes[a].middle)


def test_parallel_branches_lie_apart() -> None:
    network = FLOATS["branches"].network()
    found = verify(network, draw(network))
    left, right = (found.nodes[n].box for n in ("left", "right"))
    assert left[0] == right[0] and (left[1] > right[3] or right[1] > left[3])


def test_no_crossing_that_can_be_avoided() -> None:
    pairs = [(f"a{i}", f"b{4 - i}") for i in range(5)]
    edges = [("s", a) for a, _ in pairs] + pairs + [(b, "t") for _, b in pairs]
    names = ["s", *(f"a{i}" for i in range(5)), *(f"b{i}" for i in range(5)), "t"]
    found = arrange(dict.fromkeys(names, (50.0, 40.0)), dict.fromkeys(edges, (40.0, 30.0)), frozenset())
    assert all(found.boxes[a].middle == found.boxes[b].middle for a, b in pairs)


def test_a_delay_stands_beside_what_it_feeds() -> None:
    names, loop = ["in", "a", "b", "late", "c"], ("c", "late")
    edges = [("in", "a"), ("a", "b"), ("b", "c"), ("late", "c"), loop]
    found = arrange(dict.fromkeys(names, (50.0, 40.0)), dict.fromkeys(edges, (40.0, 30.0)), frozenset({loop}))
    assert found.boxes["late"].x == found.boxes["b"].x > found.boxes["a"].x


def test_layout_wants_an_order() -> None:
    boxes = dict.fromkeys("ab", (10.0, 10.0))
    with pytest.raises(ValueError, match=r"\('b', 'a'\) does not look ahead"):
        arrange(boxes, {("b", "a"): (1.0, 1.0)}, frozenset())


# --- text


def font(size: int, bold: bool) -> Any:
    """DejaVu, the widest of the fonts named in the picture."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)


def extent(t: Any) -> Rect:
    bold = t.get("class") == "name"
    text, x, y = "".join(t.itertext()), float(t.get("x")), float(t.get("y"))
    wide = font(13 if bold else 11, bold).getlength(text)
    x -= wide / 2 if t.get("class") == "middle" else 0
    return x, y - 8, x + wide, y + 2


NAMES = [
    "MMMMMMMMMMMMMM",
    "a" * 300,
    "WQ@%-WQ@%" * 9,
    "lif.0.net_work",
    "Ärger über Öl",
    "σ(Wx) → ŷ",
    "illicit filling",
]


def test_text_fits_its_box() -> None:
    cases = [*NAMES, "x"]
    named = {name: integrate((3,)) for name in cases}
    path = list(itertools.pairwise(["in", *cases, "out"]))
    others = [WHOLE["gated-conv-feedback-balance"], FLOATS["signed-lower-chain"], circuit_cases.FLOATS[3]]
    for network in [check(connected(named, path, (3,))), *(c.network() for c in others)]:
        for g in ET.fromstring(draw(network)).iter(f"{SVG}g"):
            if g.get("class") in ("node", "part"):
                box = next(rect(r) for r in g.iter(f"{SVG}rect"))
                assert all(inside(extent(t), box) for t in g.iter(f"{SVG}text")), g.get("data-name")


HARD = [
    "<b>&amp;</b>",
    "a\"b'c",
    "]]>",
    "π→Ω",
    "层一",
    "a\tb\nc\rd",
    "\x00\x1b\ufffe",
    "\ud800",
    " x  y ",
    "--><!--",
    "é\u0301",
]


@pytest.mark.parametrize("name", HARD)
def test_names(name: str, tmp_path: Path) -> None:
    graph = connected({name: integrate(3)}, [("in", name), (name, "out")], (3,))
    network = check(graph)
    write_svg(network, tmp_path / "g.svg", name)
    root = ET.parse(tmp_path / "g.svg").getroot()
    held = re.sub("[\x00\x1b\ufffe\ud800]", "\ufffd", name)
    node = next(g for g in root.iter(f"{SVG}g") if g.get("data-kind") == "IF")
    assert node.get("data-name") == held
    shown = next(t for t in node.iter(f"{SVG}text") if t.get("class") == "name")
    assert shown.text == ("a b c d" if "\t" in name else held)
    assert {g.get("data-from") for g in root.iter(f"{SVG}g") if g.get("class") == "edge"} == {"in", held}
    assert str(next(root.iter(f"{SVG}title")).text).startswith(f"{held}: dt 1, euler")


def test_long_names_are_cut_and_told() -> None:
    name = "layer." * 30
    svg = draw(check(connected({name: integrate(3)}, [("in", name), (name, "out")], (3,))))
    node = picture(svg).nodes[name]
    assert node.words[0].endswith("…") and name.startswith(node.words[0][:-1]) and len(node.words[0]) > 20
    tips = [t.text for t in ET.fromstring(svg).iter(f"{SVG}title")]
    assert any(t and t.startswith(f"{name}: 3 binary, IF") for t in tips)


# --- the file


@pytest.mark.parametrize("nodes", [{}, {"n0": integrate(3)}])
def test_smallest_graphs(nodes: dict[str, Any]) -> None:
    network = check(chain((3,), *nodes.values()))
    found = verify(network, draw(network))
    middles = {(n.box[1] + n.box[3]) / 2 for n in found.nodes.values()}
    assert len(middles) == 1 and len(found.edges) == len(nodes) + 1


def test_same_graph_same_bytes() -> None:
    for network in (FLOATS["loop-two-neurons"].network(), network_of(0), network_of(3)):
        g = network.graph
        turned = nir.NIRGraph(
            dict(reversed(g.nodes.items())), list(reversed(g.edges)), metadata=g.metadata, type_check=False
        )
        assert draw(check(turned, alphabet=network.alphabets["in"])) == draw(network)


def test_same_bytes_in_every_process() -> None:
    code = "from cases import CASES; from eiexport.draw import draw; import sys; "
    code += "sys.stdout.buffer.write(draw({c.name: c for c in CASES}['loop-two-neurons'].network()).encode())"
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join((str(here), str(here.parent)))}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
    assert made.decode() == draw(FLOATS["loop-two-neurons"].network())


def test_file_stands_alone() -> None:
    svg = draw(network_of(0))
    assert not re.search(r"<script|href|url\(|@import|@font-face|<image|<foreignObject|\son\w+=", svg)
    assert svg.count("http") == 1  # the name space


def test_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, path = FLOATS["branches"].network(), tmp_path / "new" / "g.svg"
    write_svg(network, path, "title")
    assert path.read_text(encoding="utf-8") == draw(network, "title")

    def broken(*args: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drawing, "draw", broken)
    with pytest.raises(OSError):
        write_svg(network, path)
    assert [p.name for p in path.parent.iterdir()] == ["g.svg"]
    assert "title" in path.read_text(encoding="utf-8")


def test_a_hundred_tangled_nodes() -> None:
    rng = np.random.default_rng(0)
    names = [f"n{i}" for i in range(100)]
    edges = {(names[int(rng.integers(max(0, i - 8), i))], names[i]): (40.0, 30.0) for i in range(1, 100) for _ in "ab"}
    found = arrange(dict.fromkeys(names, (100.0, 80.0)), edges, frozenset())
    boxes = [(b.x, b.y, b.x + b.width, b.y + b.height) for b in found.boxes.values()]
    assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    assert found.height < 1000  # some ten boxes above each other: straight lines throughout would make it twice that


# --- colours


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read() -> None:
    """WCAG's least contrast of small text: 4.5 to 1."""
    assert all(contrast(f.fill, f.stroke) >= 4.5 for f in FAMILIES.values())
    assert all(contrast(line.colour, "#ffffff") >= 4.5 for line in LINES.values())
    assert len({f.stroke for f in FAMILIES.values()}) == len(FAMILIES)
    assert math.isclose(contrast("#000000", "#ffffff"), 21)
