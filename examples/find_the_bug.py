"""Break an engine on purpose, three times, and read how the report names node, step and neuron.

    python examples/find_the_bug.py

A tiny network of excitatory and inhibitory spikes runs on the reference. Then "an engine" runs it with one mistake that
people really make on the way to hardware, and the execution check says where its trace stops being the network's.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import nir
import numpy as np

from eiexport import graph, nodes
from eiexport.check import ExecutionCheck, judge
from eiexport.trace import earliest
from targets import base


def network(*, dt: float = 1.0, compare: str = "ge", signed: bool = True) -> graph.Network:
    """Input -> conv -> signed spikes (balance gate) -> average pool -> dense -> LIF, two steps of membrane memory."""
    identity = np.zeros((2, 2, 1, 1))
    identity[[0, 1], [0, 1]] = 1
    cell = nodes.lif((2, 4, 4), decay=0.5, threshold=1.0, compare=compare)
    # the gate sends a spike as -1 where the membrane stays below 1.5; an engine that drops signs sends +1
    bias = np.full(2, -1.5) if signed else np.full(2, 1e3)
    chain = {
        "input": nir.Input(np.array([1, 4, 4])),
        "conv": nir.Conv2d((4, 4), np.array([1.0, 0.5]).reshape(2, 1, 1, 1), 1, 0, 1, 1, np.zeros(2)),
        "hidden": nodes.EIGatedLIF(cell, balance=nir.Conv2d((4, 4), identity, 1, 0, 1, 1, bias)),
        "pool": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "flatten": nir.Flatten({"input": np.array([2, 2, 2])}, 0, -1),
        "dense": nir.Affine(np.ones((3, 8)) * np.array([[0.5], [0.25], [-0.5]]), np.array([0.0, 0.25, 0.5])),
        # tau = 4: at dt = 1 a quarter of the way each step
        "out": nir.LIF(*(np.full(3, v) for v in (4.0, 1.0, 0.0, 0.125)), v_reset=np.zeros(3)),
        "output": nir.Output(np.array([3])),
    }
    names = list(chain)
    bare = nir.NIRGraph(chain, list(pairwise(names)), type_check=False)
    return graph.check(graph.stamp(bare, dt=dt, integrator="euler", dtype="float64"))


BUGS: dict[str, Callable[[], graph.Network]] = {
    "nothing (the control)": lambda: network(),
    "> where the network says >=": lambda: network(compare="gt"),
    "dt halved on the way": lambda: network(dt=0.5),
    "-1 sent as +1": lambda: network(signed=False),
}


def main() -> dict[str, str]:
    """Run every bug; returns what the check said of each."""
    right = network()
    # whole numbers and halves: membranes land exactly on thresholds, where mistakes hide
    x = np.random.default_rng(0).integers(0, 5, (4, 12, 1, 4, 4)) / 2
    order = [n for component in right.order for n in component]
    said = {}
    for bug, build in BUGS.items():
        trace = base.get("reference")().compile(build()).run(x)
        check = ExecutionCheck(right, "float64")
        check.add(x, trace.z)
        status, first = judge(check.results, "float64"), earliest(check.results, order)
        wrong = sum(r.mismatches for r in check.results.values())
        said[bug] = f"{status}: {wrong} wrong entries; first at {first}" if first else status
        print(f"{bug}\n    {said[bug]}")
    return said


if __name__ == "__main__":
    main()
