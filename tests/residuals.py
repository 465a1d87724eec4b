"""Float networks with shortcuts, max pools on spikes and readouts, of coarse dyadic numbers: integers lose nothing.

Each is (graph, input, alphabet of the input), as `test_quantise.EXACT` has them.
"""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
from cases import chain, connected

from eiexport.alphabet import BINARY, Alphabet, interval
from eiexport.nodes import lif

Made = tuple[nir.NIRGraph, np.ndarray, Alphabet]
RANDOM = np.random.default_rng
T = 8
MAP = (2, 4, 4)


def coarse(*shape: int, seed: int = 1) -> np.ndarray:
    return RANDOM([seed, *shape]).choice([-0.5, -0.25, 0.25, 0.5, 0.75, 0.0], shape)


def conv(outputs: int, inputs: int, kernel: int = 3, seed: int = 1, bias: bool = True, **geometry: Any) -> nir.Conv2d:
    fields = {"stride": 1, "padding": kernel // 2, "dilation": 1, "groups": 1, **geometry}
    offset = RANDOM(seed).choice([-0.25, 0.125, 0.5], outputs) if bias else np.zeros(outputs)
    weight = coarse(outputs, inputs // fields["groups"], kernel, kernel, seed=seed)
    return nir.Conv2d(input_shape=None, weight=weight, bias=offset, **fields)


def affine(outputs: int, inputs: int, seed: int = 1) -> nir.Affine:
    return nir.Affine(coarse(outputs, inputs, seed=seed), RANDOM(seed).choice([-0.25, 0.125, 0.5], outputs))


def fires(*shape: int, **fields: Any) -> Any:
    """Integrate and fire at 1 or above, reset to 0."""
    return lif(shape, **{"decay": 1.0, "threshold": 1.0, "compare": "ge", **fields})


def pool(kind: type, kernel: int, stride: int, padding: int = 0) -> Any:
    return kind(*(np.array([v, v]) for v in (kernel, stride, padding)))


def above(*shape: int) -> nir.Threshold:
    return nir.Threshold(np.full(shape, 0.5))


def spikes(*shape: int, seed: int = 0) -> np.ndarray:
    """(3 samples, T, *shape); the last sample is silent."""
    x = RANDOM(seed).choice([0, 0, 1], (3, T, *shape)).astype(np.float32)
    x[-1] = 0
    return x


def flatten(*shape: int) -> nir.Flatten:
    return nir.Flatten({"input": np.array(shape)}, 0, -1)


def head(channels: int, size: int, classes: int = 3) -> dict[str, Any]:
    """Global average, flattened, one connection without a neuron behind it."""
    return {
        "average": pool(nir.AvgPool2d, size, size),
        "flat": flatten(channels, 1, 1),
        "fc": affine(classes, channels),
    }


HEAD = [("average", "flat"), ("flat", "fc"), ("fc", "out")]
STEM = [("in", "c1"), ("c1", "n1"), ("n1", "c2"), ("c2", "n2"), ("n2", "c3"), ("c3", "n3")]


def identity() -> nir.NIRGraph:
    """A block with its input added to what it makes of it."""
    nodes = {"c1": conv(2, 2), "n1": fires(*MAP), "c2": conv(2, 2, seed=2), "n2": fires(*MAP)}
    nodes |= {"c3": conv(2, 2, seed=3), "n3": fires(*MAP), **head(2, 4)}
    return connected(nodes, [*STEM, ("n1", "n3"), ("n3", "average"), *HEAD], MAP)


def strided() -> nir.NIRGraph:
    """A block that halves the map, with a connection on the short way, which is one hop shorter."""
    nodes = {"c1": conv(2, 2), "n1": fires(*MAP), "c2": conv(4, 2, seed=2, stride=2), "n2": fires(4, 2, 2)}
    nodes |= {"c3": conv(4, 4, seed=3), "s": conv(4, 2, 1, seed=4, stride=2), "n3": fires(4, 2, 2), **head(4, 2)}
    return connected(nodes, [*STEM, ("n1", "s"), ("s", "n3"), ("n3", "average"), *HEAD], MAP)


def maximum(kernel: int, stride: int, padding: int) -> nir.NIRGraph:
    """A max pool on spikes, which a block with a shortcut follows."""
    side = (4 + 2 * padding - kernel) // stride + 1
    nodes = {"c1": conv(2, 2), "n1": fires(*MAP), "sum": pool(nir.SumPool2d, kernel, stride, padding)}
    nodes |= {"max": above(2, side, side), "c2": conv(2, 2, seed=2), "n2": fires(2, side, side), **head(2, side)}
    edges = [("in", "c1"), ("c1", "n1"), ("n1", "sum"), ("sum", "max"), ("max", "c2"), ("c2", "n2"), ("max", "n2")]
    return connected(nodes, [*edges, ("n2", "average"), *HEAD], MAP)


def shared_pool() -> nir.NIRGraph:
    """One sum, read by two thresholds and a connection."""
    nodes = {"c1": conv(2, 2), "n1": fires(*MAP), "sum": pool(nir.SumPool2d, 2, 2), "most": above(2, 2, 2)}
    nodes |= {"two": nir.Threshold(np.full((2, 2, 2), 1.5)), "c2": conv(2, 2, seed=2), "n2": fires(2, 2, 2)}
    edges = [("in", "c1"), ("c1", "n1"), ("n1", "sum"), ("sum", "most"), ("sum", "two"), ("sum", "c2"), ("c2", "n2")]
    return connected(nodes, [*edges, ("most", "n2"), ("two", "n2"), ("n2", "out")], MAP)


def before_a_pool() -> nir.NIRGraph:
    """Spikes and currents are summed into a pool."""
    nodes = {"c1": conv(2, 2), "n1": fires(*MAP), "c2": conv(2, 2, seed=2), "sum": pool(nir.SumPool2d, 2, 2)}
    nodes |= {"n2": fires(2, 2, 2, threshold=2.0)}
    edges = [("in", "c1"), ("c1", "n1"), ("n1", "c2"), ("c2", "sum"), ("n1", "sum"), ("sum", "n2"), ("n2", "out")]
    return connected(nodes, edges, MAP)


def flat() -> nir.NIRGraph:
    """Populations without a map; the short way is late by one step, and the last hears itself."""
    nodes = {"a": affine(4, 3), "n1": fires(4), "b": affine(4, 4, seed=2), "n2": fires(4, decay=0.5)}
    nodes |= {"late": nir.Delay(np.ones(4)), "back": nir.Delay(np.full(4, 2.0)), "fc": affine(2, 4, seed=3)}
    edges = [("in", "a"), ("a", "n1"), ("n1", "b"), ("b", "n2"), ("n1", "late"), ("late", "n2")]
    return connected(nodes, [*edges, ("n2", "back"), ("back", "n2"), ("n2", "fc"), ("fc", "out")], (3,))


def line() -> nir.NIRGraph:
    """Maps of one axis."""

    def conv1(seed: int) -> nir.Conv1d:
        return nir.Conv1d(None, coarse(2, 2, 3, seed=seed), 1, 1, 1, 1, np.full(2, 0.25))

    nodes = {"c1": conv1(1), "n1": fires(2, 6), "c2": conv1(2), "n2": fires(2, 6, gain=0.5)}
    edges = [("in", "c1"), ("c1", "n1"), ("n1", "c2"), ("c2", "n2"), ("n1", "n2"), ("n2", "out")]
    return connected(nodes, edges, (2, 6))


def from_the_input() -> nir.NIRGraph:
    """The input itself, pixels in quarters, is added to the currents; a readout hears it too."""
    nodes = {"c1": conv(2, 2), "n1": fires(*MAP), "f1": flatten(*MAP), "f2": flatten(*MAP)}
    nodes |= {"a": affine(3, 32), "b": affine(3, 32, seed=2), "both": flatten(3)}
    edges = [("in", "c1"), ("c1", "n1"), ("in", "n1"), ("n1", "f1"), ("f1", "a"), ("in", "f2"), ("f2", "b")]
    return connected(nodes, [*edges, ("a", "both"), ("b", "both"), ("both", "out")], MAP)


PIXELS = RANDOM(2).integers(0, 5, (3, T, *MAP)).astype(np.float32) / 4
DYADIC: dict[str, Made] = {
    "identity shortcut": (identity(), spikes(*MAP), BINARY),
    "shortcut through weights": (strided(), spikes(*MAP), BINARY),
    "pixels into a shortcut": (identity(), PIXELS, interval(0, 1, False)),
    "maximum of 2 x 2": (maximum(2, 2, 0), spikes(*MAP), BINARY),
    "maximum of 3 x 3": (maximum(3, 2, 1), spikes(*MAP), BINARY),
    "shared pool": (shared_pool(), spikes(*MAP), BINARY),
    "spikes and currents pooled": (before_a_pool(), spikes(*MAP), BINARY),
    "flat shortcut": (flat(), spikes(3), BINARY),
    "shortcut of a line": (line(), spikes(2, 6), BINARY),
    "shortcut from the input": (from_the_input(), PIXELS, interval(0, 1, False)),
    "readout before a pool": (
        chain(MAP, conv(2, 2), fires(*MAP), conv(3, 2, seed=2), pool(nir.AvgPool2d, 4, 4), flatten(3, 1, 1)),
        spikes(*MAP),
        BINARY,
    ),
    "readout of each place": (chain((2, 3), affine(4, 3), fires(2, 4), affine(3, 4, seed=2)), spikes(2, 3), BINARY),
}
