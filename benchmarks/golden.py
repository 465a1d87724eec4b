"""A small network with fixed weights, and its spikes packed into JSON: what one device found, all others must find."""

from __future__ import annotations

import base64
import hashlib
import zlib
from itertools import pairwise
from typing import Any

import nir
import numpy as np

from eiexport import graph, nodes
from eiexport.alphabet import BINARY


def network() -> graph.Network:
    """Signed spikes through both gates, a pool, a recurrent layer with delay, a plain output; weights from a seed."""
    rng = np.random.default_rng(20210513)

    def conv(o: int, i: int, size: tuple[int, int], scale: float) -> nir.Conv2d:
        return nir.Conv2d(size, rng.normal(0, scale, (o, i, 3, 3)), 1, 1, 1, 1, rng.normal(0, 0.1, o))

    cell = nodes.lif((4, 8, 6), decay=0.2, threshold=0.5)
    found = {
        "input": nir.Input(np.array([2, 8, 6])),
        "conv": conv(4, 2, (8, 6), 1.0),
        "gated": nodes.EIGatedLIF(cell, conv(4, 4, (8, 6), 0.4), conv(4, 4, (8, 6), 0.4)),
        "pool": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "flatten": nir.Flatten({"input": np.array([4, 4, 3])}, 0, -1),
        "dense": nir.Affine(rng.normal(0, 0.8, (12, 48)), rng.normal(0.3, 0.2, 12)),
        "recurrent": nodes.lif((12,), decay=0.5, threshold=1.0, compare="ge"),
        "back": nir.Affine(rng.normal(0, 0.3, (12, 12)), np.zeros(12)),
        "delay": nir.Delay(np.ones(12)),
        "readout": nir.Affine(rng.normal(0, 0.7, (5, 12)), np.full(5, 0.1)),
        "out": nodes.lif((5,), decay=0.2, threshold=0.5),
        "output": nir.Output(np.array([5])),
    }
    forward = ["input", "conv", "gated", "pool", "flatten", "dense", "recurrent", "readout", "out", "output"]
    edges = [*pairwise(forward), ("recurrent", "delay"), ("delay", "back"), ("back", "recurrent")]
    bare = nir.NIRGraph(found, edges, type_check=False)
    return graph.check(graph.stamp(bare, dt=1.0, integrator="euler", dtype="float64"), alphabet=BINARY)


def stimulus() -> np.ndarray:
    """Binary input (sample, time, 2, 8, 6)."""
    return (np.random.default_rng(1).random((3, 16, 2, 8, 6)) < 0.35).astype(np.float64)


def weights_hash(net: graph.Network) -> str:
    """SHA-256 over all parameters, so that a golden trace is never compared with another network's."""
    digest = hashlib.sha256()
    for name in sorted(net.graph.nodes):
        for key, value in sorted(_arrays(net.graph.nodes[name].to_dict())):
            digest.update(f"{name}/{key}{value.shape}".encode() + np.ascontiguousarray(value, np.float64).tobytes())
    return digest.hexdigest()


def _arrays(d: dict[str, Any], prefix: str = "") -> list[tuple[str, np.ndarray]]:
    found = []
    for key, value in d.items():
        if isinstance(value, dict):
            found += _arrays(value, f"{prefix}{key}/")
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            found.append((prefix + key, value))
    return found


def pack(z: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """int8 spikes as text."""
    return {
        n: {
            "shape": list(a.shape),
            "spikes": base64.b64encode(zlib.compress(np.ascontiguousarray(a, np.int8))).decode(),
        }
        for n, a in z.items()
    }


def unpack(packed: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    return {
        n: np.frombuffer(zlib.decompress(base64.b64decode(d["spikes"])), np.int8).reshape(d["shape"])
        for n, d in packed.items()
    }
