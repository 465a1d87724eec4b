"""Delays that close cycles, and latencies on one-hop engines."""

from __future__ import annotations

import itertools

import nir
import numpy as np
import pytest
from cases import CASES, connected

from eiexport.errors import GraphError
from eiexport.graph import breaks_cycle, check
from eiexport.neurons import Delay
from eiexport.nodes import lif
from eiexport.passes import insert_delays, latencies

Edges = list[tuple[str, str]]


def cell() -> nir.ir.NIRNode:
    return lif((2,), decay=0.5, threshold=1.0)


def weights() -> nir.Linear:
    return nir.Linear(np.eye(2))


def delay(*steps: float) -> nir.Delay:
    return nir.Delay(np.array(steps) if len(steps) > 1 else np.full(2, steps[0]))


def drawn(text: str, **special: nir.ir.NIRNode) -> nir.NIRGraph:
    """A graph from "a>b b>c": names that start with w are connections, with d delays of one step, others neurons."""
    edges: Edges = [tuple(e.split(">")) for e in text.split()]  # type: ignore[misc]
    names = {n for e in edges for n in e} - {"in", "out"}
    kinds = {"w": weights, "d": lambda: delay(1)}
    return connected({n: special[n] if n in special else kinds.get(n[0], cell)() for n in names}, edges, (2,))


def closed(graph: nir.NIRGraph) -> set[tuple[str, str]]:
    """The edges that got a delay."""
    result, notes = insert_delays(graph)
    new = set(result.nodes) - set(graph.nodes)
    assert len(notes) == len(new)
    assert all(
        repr(n) in note for n, note in zip(sorted(new), sorted(notes, key=lambda t: t.split("Delay")[1]), strict=True)
    )
    ends = {n: [(a, b) for a, b in result.edges if n in (a, b)] for n in new}
    assert all(len(e) == 2 for e in ends.values())
    check(result)
    return {(next(a for a, b in e if b == n), next(b for a, b in e if a == n)) for n, e in ends.items()}


@pytest.mark.parametrize(
    "text,expected",
    [
        ("in>a a>out", set()),
        ("in>a a>a a>out", {("a", "a")}),
        ("in>w w>a a>w1 w1>a a>out", {("w1", "a")}),
        ("in>a a>w1 w1>d d>a a>out", set()),
        ("in>a a>b b>a b>out", {("b", "a")}),
        ("in>a in>b a>b b>a b>out", {("a", "b"), ("b", "a")}),
        # the inner cycle is fed by the outer one alone
        ("in>a a>b b>c c>b c>a c>out", {("c", "a"), ("c", "b")}),
        # a delay inside the cycle is no entry of it
        ("in>y y>x x>y y>d d>x x>out", {("x", "y")}),
        # a delay from outside is
        ("in>d d>x x>y y>x y>out", {("y", "x")}),
        ("in>a a>b a>c b>a c>a b>out", {("b", "a"), ("c", "a")}),
    ],
)
def test_delays_stand_on_the_edges_back_to_the_entries(text: str, expected: set[tuple[str, str]]) -> None:
    assert closed(drawn(text)) == expected


def test_choice_of_edges_depends_on_neither_names_nor_order() -> None:
    text = "in>a a>b b>c c>b c>a in>e e>f f>e f>out c>out"
    expected = closed(drawn(text))
    for names in itertools.permutations("abcef"):
        new = dict(zip("abcef", (f"n{n}" for n in names), strict=True)) | {"in": "in", "out": "out"}
        edges = [">".join(new[n] for n in e.split(">")) for e in reversed(text.split())]
        assert closed(drawn(" ".join(edges))) == {(new[a], new[b]) for a, b in expected}


def test_added_delays_have_the_shape_of_their_edge_and_one_step_of_the_clock() -> None:
    shape = (2, 3, 2)
    conv = nir.Conv2d(None, np.zeros((2, 2, 3, 3)), 1, 1, 1, 1, np.zeros(2))
    nodes = {"cell": lif(shape, decay=0.5, threshold=1.0), "back": conv, "back_cell_delay": nir.Scale(np.ones(shape))}
    edges = [
        ("in", "cell"),
        ("cell", "back"),
        ("back", "cell"),
        ("cell", "back_cell_delay"),
        ("back_cell_delay", "out"),
    ]
    graph = connected(nodes, edges, shape, (1e-3, "euler"))
    before = (list(graph.edges), list(graph.nodes))
    result, notes = insert_delays(graph)
    assert (list(graph.edges), list(graph.nodes)) == before
    added = result.nodes["back_cell_delay_"]  # the plain name was taken
    assert added.delay.shape == shape and (added.delay == 1e-3).all()
    assert notes == ["edge 'back' -> 'cell' closes a cycle without delay: added Delay 'back_cell_delay_' of one step"]
    assert insert_delays(result) == (result, [])
    check(result)


def test_insert_delays_refuses() -> None:
    with pytest.raises(GraphError, match="fed by nothing outside"):
        insert_delays(drawn("in>out a>b b>a"))
    with pytest.raises(GraphError, match="'nobody', which is no node"):
        insert_delays(
            nir.NIRGraph(
                drawn("in>a a>out").nodes, [("in", "nobody")], metadata=drawn("in>out").metadata, type_check=False
            )
        )
    graph = drawn("in>a a>a a>out")
    graph.metadata.clear()
    with pytest.raises(GraphError, match="does not say its dt"):
        insert_delays(graph)
    assert len(insert_delays(graph, 0.5, "euler")[1]) == 1


def found(graph: nir.NIRGraph) -> dict[str, int]:
    network = check(graph)
    result = latencies(network, lambda n: int(n.startswith("w")))
    assert result.pop("in") == 0
    result.pop("out")
    return result


def test_latency_is_the_longest_path() -> None:
    assert found(drawn("in>w w>a a>w1 w1>b in>b a>b b>out")) == {"w": 1, "a": 1, "w1": 2, "b": 2}
    # outside of cycles a delay keeps its steps
    assert found(drawn("in>w w>d d>a a>out")) == {"w": 1, "d": 1, "a": 1}


def test_latency_in_a_cycle_comes_out_of_its_delays() -> None:
    assert found(drawn("in>w w>a a>d d>w1 w1>a a>out")) == {"w": 1, "a": 1, "d": 0, "w1": 1}
    three = drawn("in>w w>a a>d d>w1 w1>w2 w2>a a>out", d=delay(3))
    assert found(three) == {"w": 1, "a": 2, "d": 0, "w1": 1, "w2": 2}
    # the shortest delay of a population decides
    assert found(drawn("in>a a>d d>w1 w1>a a>out", d=delay(4, 1))) == {"a": 1, "d": 0, "w1": 1}


def test_a_cycle_with_more_hops_than_delay_is_named_with_its_numbers() -> None:
    with pytest.raises(GraphError) as e:
        found(drawn("in>w w>a a>d d>w1 w1>w2 w2>a a>out in>b b>out"))
    text = str(e.value)
    assert text == (
        "cycle 'a' -> 'd' -> 'w1' -> 'w2' -> 'a' takes 2 engine steps (one for each connection), "
        "but its delays give 1: lengthen them by 1 or remove connections"
    )


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_latencies_satisfy_their_definition_and_none_could_be_less(case) -> None:  # type: ignore[no-untyped-def]
    network = case.network()

    def hop(name: str) -> int:
        return int(
            not network.steps[name].neuron and not isinstance(network.steps[name], Delay) and name != network.input
        )

    try:
        latency = latencies(network, hop)
    except GraphError as e:
        pytest.skip(str(e))
    for name, sources in network.sources.items():
        step = network.steps[name]
        within = step.shortest if name in network.cycles and breaks_cycle(step) else 0  # type: ignore[attr-defined]
        bounds = [latency[s] + hop(name) - within for s in sources]
        assert all(latency[name] >= b for b in bounds)
        assert latency[name] in (*bounds, 0)
