"""Wrong shortcuts, pools, readouts and thresholds of the quantise pass must be caught by the scalar float oracle.

As `test_int_mutants`: this file as a script runs the networks of `residuals`, which integers hold exactly, unchanged
and once with every mutant.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_mutants import AGREES, CAUGHT
from test_mutants_proof import alone, forked, outcomes

EXPLICIT, QUANTISE, CALIBRATE = "eiexport.explicit", "eiexport.quantise", "eiexport.calibrate"
ONES, GROUPED = "np.ones((channels, 1, *pool.kernel))", "(1, 1), channels, np.zeros(channels))"

MUTANTS: dict[str, tuple[str, ...]] = {
    "shortcut of a map twice as strong": (EXPLICIT, ONES, f"(1 + (pool.kernel == (1, 1))) * {ONES}"),
    "shortcut of a line twice as strong": (EXPLICIT, "np.ones((channels, 1, 1))", "2 * np.ones((channels, 1, 1))"),
    "flat shortcut twice as strong": (EXPLICIT, "np.eye(shape[-1])", "2 * np.eye(shape[-1])"),
    "every channel to every channel": (
        *(EXPLICIT, ONES, "np.ones((channels, channels, *pool.kernel))"),
        *(GROUPED, GROUPED.replace("channels", "1", 1)),
    ),
    "channels exchanged": (QUANTISE, "groups=w.groups)", "groups=1 if w.groups == 1 else len(weight) // 2 or 1)"),
    "flat shortcut exchanged": (EXPLICIT, "np.eye(shape[-1])", "np.eye(shape[-1])[::-1]"),
    "padding of a pool lost": (EXPLICIT, "window.stride, window.padding", "window.stride, (0, 0)"),
    "pool taken from its other readers": (EXPLICIT, "if a == source] == [target]:", "if a == source] != []:"),
    "pool feeds one reader only": (
        EXPLICIT,
        "edges.remove((source, target))",
        "edges.remove((source, target)) or nodes.pop(name)",
    ),
    "currents taken for spikes": (
        EXPLICIT,
        "        found |= more\n    return found\n\n\ndef _whole",
        "        break\n    return found\n\n\ndef _whole",
    ),
    "spikes beside currents left": (
        EXPLICIT,
        "if not neuron and not (target in currents",
        "if not neuron and not (False",
    ),
    "threshold of a maximum too high": (QUANTISE, "np.rint(fire.threshold * scale)", "np.ceil(fire.threshold) * scale"),
    "threshold of a maximum too low": (
        QUANTISE,
        "np.rint(fire.threshold * scale)",
        "np.floor(fire.threshold) * scale - 1",
    ),
    "at the threshold is below": (QUANTISE, '"gt", threshold - 1', '"gt", threshold'),
    "bias of a readout dropped": (QUANTISE, "if bias is None else _whole(bias * 2.0**exponent)", "if True else bias"),
    "bias of a readout in the neuron": (QUANTISE, "None if layer.carried[c] else layer.biases[c]", "None"),
    "bias of a readout not scaled": (QUANTISE, "else _whole(bias * 2.0**exponent)", "else _whole(bias)"),
    "average behind a readout forgotten": (
        QUANTISE,
        "factor *= 1.0 if step.factor is None else float(step.factor)",
        "pass",
    ),
    "average before a readout forgotten": (
        QUANTISE,
        "unit * (1.0 if step.factor is None else float(step.factor))",
        "unit",
    ),
    "scale of the input forgotten": (QUANTISE, "sent[name] = input_scale", "sent[name] = 1.0"),
    "readout twice as fine as it says": (
        CALIBRATE,
        "return LayerPlan(exponent, weights)",
        "return LayerPlan(exponent + 1, weights)",
    ),
}


def conformance(known: Path) -> Iterator[tuple[str, bool]]:
    """Every dyadic network: spikes and scaled readouts of the integers are the float oracle's. known: what it said."""
    import oracle
    from residuals import DYADIC, T

    from eiexport import graph
    from eiexport.calibrate import Observed, Samples, choose
    from eiexport.errors import GraphError
    from eiexport.explicit import explicit
    from eiexport.quantise import apply
    from targets import base

    told = pickle.loads(known.read_bytes()) if known.exists() else {}

    def seen(network: Any, x: np.ndarray) -> Samples:
        """What calibration needs, without an engine: anything in the right range will do."""
        rng = np.random.default_rng(0)
        shapes = {n: network.input_shape(n) for n in network.steps}
        rows = {n: Observed(16.0, 0.0, rng.integers(0, 2, (8, *s)).astype(float)) for n, s in shapes.items()}
        return Samples(rows, 0.0, 1.0, 1.0 if set(np.unique(x)) <= {0.0, 1.0} else 4.0)

    for name, (net, x, alphabet) in DYADIC.items():
        if name not in told:
            told[name] = oracle.run(net, x, 1.0, "euler")
        try:
            network = graph.check(net, alphabet=alphabet)
            plan = choose(network, seen(explicit(network), x), 8)
            whole = graph.check(apply(network, plan), alphabet=plan.alphabet)
            found = base.get("reference")().compile(whole).run(plan.encode(x)).z
        except (GraphError, ValueError) as e:  # shapes that no longer fit are a loud way of being wrong
            yield f"{name}: {e}", False
            return
        for node, z in found.items():
            wanted = [[[step[node][i] for i in np.ndindex(z.shape[2:])] for step in sample] for sample in told[name]]
            unit = 1.0 if network.steps[node].neuron else plan.layers[node].alpha
            yield (
                f"{name}: {node}",
                z.shape[:2] == (3, T) and np.array_equal(z.reshape(np.shape(wanted)) * unit, wanted),
            )
    known.write_bytes(pickle.dumps(told))


def test_unchanged_source_agrees() -> None:
    code, said = outcomes(__file__)[""]
    assert code == AGREES, said


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str) -> None:
    code, said = outcomes(__file__)[name]
    assert code != AGREES, "the mutant survives: no network tells it from the original"
    assert code == CAUGHT, said


if __name__ == "__main__":
    alone("argparse", "h5py", "nir", "numpy.random")
    with tempfile.TemporaryDirectory() as folder:
        script = partial(conformance, Path(folder) / "oracle.pickle")  # the unchanged source comes first and writes it
        print(json.dumps({name: forked(script, changes) for name, changes in {"": (), **MUTANTS}.items()}))
