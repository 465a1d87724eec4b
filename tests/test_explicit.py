"""Implicit unit connections written out: the same outputs to the bit, and every neuron fed through weights."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import pytest
from cases import chain, connected
from residuals import DYADIC, MAP, above, conv, fires, pool, spikes

from eiexport import graph
from eiexport.alphabet import REAL
from eiexport.connections import Conv, Dense
from eiexport.explicit import explicit, explicit_connections
from targets import base

REFERENCE = base.get("reference")()


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.6, shape)


def any_numbers() -> nir.NIRGraph:
    """No dyadic number in it, and sums that depend on their order: pools of pixels, averages of nine."""
    nodes = {"c1": conv(2, 2), "c2": conv(2, 2, seed=2), "n1": fires(*MAP, decay=0.3), "n2": fires(*MAP, decay=0.7)}
    nodes["c1"].weight, nodes["c2"].weight = drawn(1, 2, 2, 3, 3), drawn(2, 2, 2, 3, 3)
    nodes |= {"mean": pool(nir.AvgPool2d, 3, 1, 1), "sum": pool(nir.SumPool2d, 3, 1, 1), "n3": fires(*MAP)}
    edges = [("in", "c1"), ("c1", "n1"), ("n1", "c2"), ("c2", "n2"), ("n1", "n2"), ("n1", "mean"), ("mean", "n2")]
    return connected(nodes, [*edges, ("in", "sum"), ("sum", "n3"), ("n2", "n3"), ("n3", "out")], MAP)


PIXELS = np.random.default_rng(3).random((3, 8, *MAP))
GRAPHS: dict[str, tuple[nir.NIRGraph, np.ndarray]] = {n: (g, x) for n, (g, x, _) in DYADIC.items()}
GRAPHS |= {f"{n}, any input": (DYADIC[n][0], PIXELS) for n in ("maximum of 3 x 3", "shortcut from the input")}
GRAPHS["any numbers"] = any_numbers(), PIXELS


@pytest.mark.parametrize("name", GRAPHS)
def test_outputs_are_the_same_to_the_bit(name: str) -> None:
    given, x = GRAPHS[name]
    nodes, edges = dict(given.nodes), list(given.edges)
    made = explicit_connections(given)
    assert given.nodes == nodes and given.edges == edges  # the graph itself stays as it was
    before, after = (REFERENCE.compile(graph.check(g)).run(x, probe=True) for g in (given, made))
    assert before.z.keys() == after.z.keys() and before.states.keys() == after.states.keys()
    for (kind, node, a), (_, _, b) in zip(before.observables(), after.observables(), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b), (kind, node)
    assert all(z.any() for z in before.z.values())


@pytest.mark.parametrize("name", GRAPHS)
def test_every_neuron_is_fed_through_weights(name: str) -> None:
    network = explicit(graph.check(GRAPHS[name][0]))

    def weighed(node: str) -> bool:
        if isinstance(network.steps[node], Dense | Conv):
            return True
        moved = not network.steps[node].neuron and node != network.input
        return moved and all(weighed(s) for s in network.sources[node])

    for node, step in network.steps.items():
        if step.neuron:
            assert all(weighed(s) for s in network.sources[node]), node
    for node in network.graph.nodes.values():
        assert type(node).__module__.startswith("nir") or type(node).__name__ == "EIDiscreteLIF"


@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_is_written_out_twice(name: str) -> None:
    network = explicit(graph.check(GRAPHS[name][0]))
    assert explicit(network) is network
    plain = graph.check(chain(MAP, conv(2, 2), fires(*MAP), pool(nir.AvgPool2d, 2, 2), conv(3, 2), fires(3, 2, 2)))
    assert explicit(plain) is plain and explicit_connections(plain.graph) is plain.graph


def test_names_and_kinds() -> None:
    made = explicit_connections(DYADIC["identity shortcut"][0])
    added = made.nodes.keys() - DYADIC["identity shortcut"][0].nodes.keys()
    assert added == {"n1_n3_unit"} and ("n1", "n3") not in made.edges
    unit = made.nodes["n1_n3_unit"]
    assert unit.groups == 2 and unit.weight.shape == (2, 1, 1, 1) and (unit.weight == 1).all()
    made = explicit_connections(DYADIC["maximum of 3 x 3"][0])
    ones = made.nodes["sum"]  # the pool keeps its name
    assert (type(ones).__name__, ones.weight.shape, ones.groups) == ("Conv2d", (2, 1, 3, 3), 2)
    assert [*ones.stride, *ones.padding] == [2, 2, 1, 1]
    given, _, _ = DYADIC["shared pool"]
    made = explicit_connections(given)
    added = made.nodes.keys() - given.nodes.keys()
    assert type(made.nodes["sum"]).__name__ == "SumPool2d" and added >= {"sum_most_unit", "sum_two_unit"}
    assert ("n1", "sum_most_unit") in made.edges and ("sum", "c2") in made.edges


def test_names_do_not_collide_or_depend_on_the_order() -> None:
    given, _, _ = DYADIC["flat shortcut"]
    nodes = {("n1_n2_unit" if n == "b" else n): node for n, node in given.nodes.items()}
    edges = [tuple("n1_n2_unit" if n == "b" else n for n in e) for e in given.edges] + [("n1", "n2")]
    taken = graph.stamp(nir.NIRGraph(nodes, edges, type_check=False), dt=1.0, integrator="euler", dtype="float64")
    made = explicit_connections(taken)
    assert made.nodes["n1_n2_unit"] is nodes["n1_n2_unit"] and ("n1_n2_unit_", "n2") in made.edges
    turned = nir.NIRGraph(dict(reversed(nodes.items())), edges[::-1], metadata=taken.metadata, type_check=False)
    other = explicit_connections(turned)
    assert other.nodes.keys() == made.nodes.keys() and set(other.edges) == set(made.edges)
    kinds: list[dict[str, Any]] = [{n: type(v) for n, v in g.nodes.items()} for g in (made, other)]
    assert kinds[0] == kinds[1]


def test_a_pool_of_two_thresholds_leaves_nothing_unread() -> None:
    nodes = {"c": conv(2, 2), "n": fires(*MAP), "sum": pool(nir.SumPool2d, 2, 2)}
    nodes |= {"a": above(2, 2, 2), "b": nir.Threshold(np.full((2, 2, 2), 1.5))}
    edges = [("in", "c"), ("c", "n"), ("n", "sum"), ("sum", "a"), ("sum", "b"), ("a", "out"), ("b", "out")]
    given = connected(nodes, edges, MAP)
    made = explicit_connections(given)
    assert {a for a, _ in made.edges} == made.nodes.keys() - {"out"}
    before, after = (REFERENCE.compile(graph.check(g)).run(spikes(*MAP)) for g in (given, made))
    assert all(np.array_equal(before.z[n], after.z[n]) and before.z[n].any() for n in ("n", "a", "b"))


def test_what_was_known_of_the_input_is_kept() -> None:
    given, _, alphabet = DYADIC["shortcut from the input"]
    for known in (REAL, alphabet):
        network = graph.check(given, alphabet=known)
        assert explicit(network).alphabets["in"] == network.alphabets["in"] == known
