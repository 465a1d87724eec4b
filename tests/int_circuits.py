"""Random integer networks with E-I circuits: one or two circuits, neurons and connections around them."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
from circuit_cases import whole_case
from int_networks import Made, connected, dense, neuron

from eiexport.alphabet import interval


def circuit_network(seed: int) -> Made:
    """A circuit of any form and geometry, its neuron, and mostly a second pair that reads it: (graph, x, alphabet)."""
    case, rng = whole_case(seed), np.random.default_rng([seed, 5])
    nodes: dict[str, Any] = {"z_circuit": case.graph.nodes["n0"]}
    edges = [("in", "z_circuit")]
    last = "z_circuit"
    if "n1" in case.graph.nodes:
        nodes["y_cell"] = case.graph.nodes["n1"]
        edges.append(("z_circuit", last := "y_cell"))
    if last == "y_cell" and rng.random() < 0.7:
        last = _second(seed, rng, nodes, edges)
    edges += [(last, "out")]
    if seed % 3 == 0 and last != "z_circuit" and "m_circuit" not in nodes:
        edges.append(("z_circuit", "out"))  # its currents are recorded too
    shape = tuple(int(n) for n in case.graph.nodes["in"].input_type["input"])
    return connected(nodes, edges, shape), np.maximum(case.x, 0), interval(0, 15, True)


def _second(seed: int, rng: np.random.Generator, nodes: dict[str, Any], edges: list[tuple[str, str]]) -> str:
    """A circuit whose input are the spikes of the first one's neurons, behind a connection and neurons of its own."""
    shape = nodes["y_cell"].vth.shape
    before = "y_cell"
    if len(shape) > 1:
        nodes["x_flat"] = nir.Flatten({"input": np.array(shape)}, 0, -1)
        edges.append((before, before := "x_flat"))
    weight = rng.integers(-60, 100, (5, int(np.prod(shape))))
    nodes |= {"w": dense(weight), "v_cell": neuron((5,), rng.integers(1, 80, 5), dv=2048)}
    edges += [(before, "w"), ("w", "v_cell"), ("v_cell", "m_circuit")]
    if seed % 2:  # it also feeds itself back
        nodes |= {"late": nir.Delay(np.ones(5)), "back": dense(rng.integers(-60, 60, (5, 5)))}
        edges += [("v_cell", "late"), ("late", "back"), ("back", "v_cell")]
    other = whole_case(10 * (seed // 10) + seed % 5).graph.nodes  # of the same form, over five inputs
    nodes["m_circuit"] = other["n0"]
    if "n1" not in other:
        return "m_circuit"
    nodes["l_cell"] = other["n1"]
    edges.append(("m_circuit", "l_cell"))
    return "l_cell"
