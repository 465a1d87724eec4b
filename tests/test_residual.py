"""Residual networks in integers, of any numbers, bit by bit: an oracle that shares no code, and every engine.

The graphs are those of `residuals` with weights and biases of any size, quantised; branches of different length meet,
biases stand everywhere, and the last nodes are readouts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import nir
import numpy as np
import pytest
from campaign import compared, coverage, expected, from_file, reference
from cases import connected
from residuals import DYADIC, MAP, conv, fires, head, spikes

from eiexport import graph
from eiexport.calibrate import choose
from eiexport.graph import Network
from eiexport.quantise import apply
from eiexport.trace import Trace
from targets import base, lava
from targets.observe import observe


def any_numbers(net: nir.NIRGraph, seed: int) -> nir.NIRGraph:
    """The same graph with weights and biases drawn anew."""
    rng, nodes = np.random.default_rng(seed), dict(net.nodes)
    for name, node in nodes.items():
        if isinstance(node, nir.Conv1d | nir.Conv2d | nir.Affine):
            size = node.weight[0].size
            weight = rng.normal(1.0 / size, 2.0 / size**0.5, node.weight.shape)
            nodes[name] = replace(node, weight=weight, bias=rng.normal(0.1, 0.2, np.shape(node.bias)))
    return nir.NIRGraph(nodes, list(net.edges), metadata=net.metadata, type_check=False)


def branches() -> nir.NIRGraph:
    """Ways of none, one, two and three connections from one population into another, and leaks."""
    nodes: dict[str, Any] = {f"c{i}": conv(2, 2, seed=i) for i in range(6)}
    nodes |= {
        f"n{i}": fires(*MAP, **fields)
        for i, fields in enumerate(({}, {"decay": 0.7, "compare": "gt"}, {"compare": "gt"}, {}))
    }
    nodes |= head(2, 4)
    edges = [("in", "c0"), ("c0", "n0"), ("n0", "c1"), ("c1", "n1"), ("n1", "c2"), ("c2", "n2"), ("n2", "c3")]
    edges += [("c3", "n3"), ("n1", "c4"), ("c4", "n3"), ("n0", "c5"), ("c5", "n3"), ("n0", "n3"), ("n3", "average")]
    return connected(nodes, [*edges, ("average", "flat"), ("flat", "fc"), ("fc", "out")], MAP)


def source() -> dict[str, tuple[nir.NIRGraph, np.ndarray, int]]:
    """(graph, input, bits) by name; one network for a single step, one for a single sample."""
    found = {
        name: (any_numbers(net, i), x, (8, 5, 4, 7)[i % 4]) for i, (name, (net, x, _)) in enumerate(DYADIC.items())
    }
    found["branches"] = any_numbers(branches(), 50), spikes(*MAP, seed=4), 8
    found["one step"] = any_numbers(branches(), 51), spikes(*MAP, seed=5)[:, :1], 6
    found["one sample"] = any_numbers(DYADIC["shortcut through weights"][0], 52), spikes(*MAP, seed=6)[:1], 8
    return found


SOURCE = source()


@cache
def made(name: str) -> tuple[Network, np.ndarray]:
    """(integer network, whole input)."""
    net, x, bits = SOURCE[name]
    network = graph.check(net)
    plan = choose(network, observe(network, [x]), bits, channels=len(name) % 2 == 0)
    return graph.check(apply(network, plan), alphabet=plan.alphabet), plan.encode(x.astype(np.float64))


@cache
def wanted(name: str) -> Trace:
    return reference(*made(name))


@pytest.mark.parametrize("name", SOURCE)
def test_reference_is_the_oracle(name: str) -> None:
    network, x = made(name)
    entries, words = compared(wanted(name), expected(network, x))
    assert not words and entries["mismatches"] == 0 and entries["z"] > 0 and entries["v"] > 0
    readouts = [n for n in network.recorded if not network.steps[n].neuron]
    assert all(wanted(name).z[n].dtype == np.int64 and wanted(name).z[n].any() for n in readouts)


def test_what_is_compared_is_alive() -> None:
    """Spikes of every population, biases, reshaped sums, and membranes that were kept."""
    counts: dict[str, int] = {}
    for name in SOURCE:
        network, x = made(name)
        assert all(z[0].any() for z in wanted(name).z.values()), name
        for found in coverage(network, x, wanted(name)).values():
            for branch, count in found.items():
                counts[branch] = counts.get(branch, 0) + count
    assert all(counts[b] > 50 for b in ("kept", "negative v", "reset zero", "v toward zero"))
    biased = [n for name in SOURCE for n in made(name)[0].graph.nodes.values() if np.any(getattr(n, "bias", 0))]
    own = [n for name in SOURCE for n in made(name)[0].graph.nodes.values() if np.any(getattr(n, "bias_mant", 0))]
    assert len(biased) > len(SOURCE) / 2 and len(own) > 2 * len(SOURCE)
    assert {type(n).__name__ for n in biased} == {"IntDense", "IntConv"}


ENGINES = {
    "torch": lambda network, x: base.get("torch")().compile(network).run(x, probe=True),
    "loihi": lambda network, x: base.get("loihi")(strict=True).compile(network).run(x, probe=True),
    "loihi-file": from_file,
}


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree_to_the_bit(engine: str) -> None:
    for name in SOURCE:
        entries, words = compared(ENGINES[engine](*made(name)), wanted(name))
        assert not words and entries["mismatches"] == 0, (name, words)


def stock(target: lava.Lava, network: Network) -> bool:
    return target.evidence_for(network) == "independent"


def test_lava_agrees_to_the_bit() -> None:
    """All in one start; shortcuts, pools and readouts on Lava's own processes."""
    target, pairs = lava.Lava(), [made(name) for name in SOURCE]
    custom = {name for name, (network, _) in zip(SOURCE, pairs, strict=True) if not stock(target, network)}
    # a Delay is a line of ours
    assert custom == {"flat shortcut"}
    for name, found in zip(SOURCE, target.run_many(pairs, probe=True), strict=True):
        entries, words = compared(found, wanted(name))
        assert not words and entries["mismatches"] == 0, (name, words)


def test_a_node_starts_at_its_own_latency() -> None:
    """Branches wait for each other: the longest way decides, and biases before a node's start would show."""
    network, _ = made("branches")
    latency = lava.Lava().compile(network).latency
    assert [latency[f"n{i}"] for i in range(4)] == [1, 2, 3, 4] and latency["fc"] == 6  # the pool is a hop on Lava
    assert base.get("loihi")().compile(network).chip_latency["fc"] == 5
