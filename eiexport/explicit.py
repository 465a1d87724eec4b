"""Connections that a graph leaves implicit, written out: then every population is fed through weights alone.

An edge from a neuron to a neuron, as a residual network's shortcut is one, adds the spike itself to the current: that
is a connection of weight one from each neuron to its like. A sum pool in front of a neuron is a connection of ones over
the pool's windows. Written out, both have weights that can be scaled like any others.
"""

from __future__ import annotations

import nir
import numpy as np

from eiexport import graph as graphs
from eiexport.connections import Flatten, Identity, Pool
from eiexport.graph import Network
from eiexport.neurons import Delay
from eiexport.ops import Ints, Window

MOVING = (Pool, Flatten, Delay)  # what enters them is what leaves them: messages, or currents
PASSING = (*MOVING, Identity)


def explicit_connections(graph: nir.NIRGraph, dt: float | None = None, integrator: str | None = None) -> nir.NIRGraph:
    """The same network with its implicit unit connections as stock nodes; bit-equal in every output.

    A message (a spike or an input, perhaps behind pools, delays and reshapes) that enters a neuron, or is summed with
    currents, gets a connection of weight 1 on its last edge, named SOURCE_TARGET_unit: a depthwise convolution by one
    pixel, a diagonal matrix for flat shapes. A SumPool2d of spikes that feeds one neuron alone becomes a depthwise
    convolution of ones with its kernel, stride and padding, and keeps its name; one that feeds others too stands for
    these. An AvgPool2d stays, since 1 / area times each spike need not add up to the bit.
    dt, integrator: as in `graph.check`, whose GraphErrors it raises.
    """
    return explicit(graphs.check(graph, dt, integrator)).graph


def explicit(network: Network) -> Network:
    """The same for a verified network; itself where nothing is implicit."""
    currents, whole = _currents(network), _whole(network)
    nodes, edges = dict(network.graph.nodes), list(network.graph.edges)
    for target in sorted(network.steps):
        neuron = network.steps[target].neuron
        if not neuron and not (target in currents and isinstance(network.steps[target], MOVING)):
            continue
        for source in (s for s in network.sources[target] if s not in currents):
            step, came = network.steps[source], [source]
            made: nir.ir.NIRNode = unit_connection(network.shapes[source])
            if neuron and isinstance(step, Pool) and source in whole:
                made, came = _summing(step, network.input_shape(source)), [*network.sources[source]]
                if [b for a, b in edges if a == source] == [target]:
                    nodes[source] = made
                    continue
            name = f"{source}_{target}_unit"
            while name in nodes:
                name += "_"
            nodes[name] = made
            edges.remove((source, target))
            edges += [*((s, name) for s in came), (name, target)]
    if nodes == network.graph.nodes:
        return network
    result = nir.NIRGraph(nodes, edges, metadata=dict(network.graph.metadata), type_check=False)
    clock = network.clock
    return graphs.check(result, clock.dt, clock.integrator, network.alphabets[network.input])


def unit_connection(shape: Ints) -> nir.ir.NIRNode:
    """Every neuron of a shape to its like, weight 1."""
    if len(shape) == 3:
        return _summing(Pool((1, 1), Window((1, 1), (0, 0), (1, 1)), None), shape)
    if len(shape) == 2:
        channels, length = shape
        return nir.Conv1d(length, np.ones((channels, 1, 1)), 1, 0, 1, channels, np.zeros(channels))
    return nir.Linear(np.eye(shape[-1]))


def _summing(pool: Pool, shape: Ints) -> nir.Conv2d:
    """A sum pool on (C, H, W) as a convolution."""
    channels, *size = shape
    window = pool.window
    weight = np.ones((channels, 1, *pool.kernel))
    return nir.Conv2d(tuple(size), weight, window.stride, window.padding, (1, 1), channels, np.zeros(channels))


def _currents(network: Network) -> set[str]:
    """Nodes that send currents: connections, and what passes them on. All others send messages."""
    found = {n for n, s in network.steps.items() if not s.neuron and not isinstance(s, PASSING)}
    while more := {n for n in network.steps if _passes(network, n) and found.intersection(network.sources[n])} - found:
        found |= more
    return found


def _whole(network: Network) -> set[str]:
    """Nodes that send whole numbers, whatever the input is: spikes, and sums of them."""
    found = {n for n, s in network.steps.items() if s.neuron and network.alphabets[n].discrete}

    def keeps(name: str) -> bool:
        scaled = getattr(network.steps[name], "factor", None) is not None
        return _passes(network, name) and not scaled and name != network.input

    while more := {n for n in network.steps if keeps(n) and found.issuperset(network.sources[n])} - found:
        found |= more
    return found


def _passes(network: Network, name: str) -> bool:
    return isinstance(network.steps[name], PASSING)
