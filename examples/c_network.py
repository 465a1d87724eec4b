"""An excitatory-inhibitory network of whole numbers as one C file, compiled and run as a program of its own.

    python examples/c_network.py [--out FOLDER]

Nothing is trained: a recurrent network of 24 cells with fixed random weights. It becomes model.c, which needs the C
standard library alone; the machine's compiler makes a program of it that reads raw input on stdin and writes raw
output on stdout, as firmware would from a sensor. The reference must say the same of every step.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path

import nir
import numpy as np

from eiexport import graph
from eiexport.alphabet import BINARY
from eiexport.integers import IntCubaLIF, IntDense
from targets import base
from targets.c import build

CELLS, INPUTS, OUTPUTS, STEPS = 24, 16, 4, 200


def network() -> graph.Network:
    """16 spike trains -> 24 cells, which excite and inhibit each other a step later -> 4 cells."""
    rng = np.random.default_rng(0)

    def dense(outputs: int, inputs: int, lo: int, hi: int) -> IntDense:
        weight = 2 * rng.integers(lo // 2, hi // 2, (outputs, inputs))
        return IntDense(weight.astype(np.int16), np.zeros(outputs, np.int32))

    def cells(n: int, vth: int) -> IntCubaLIF:
        decays = (np.array(v, np.int32) for v in (1024, 256, 0, 0))
        return IntCubaLIF(np.full(n, vth, np.int32), *decays)

    nodes = {
        "input": nir.Input(np.array([INPUTS])),
        "sensors": dense(CELLS, INPUTS, -40, 100),
        "cells": cells(CELLS, 400),
        "later": nir.Delay(np.ones(CELLS)),
        "lateral": dense(CELLS, CELLS, -120, 60),
        "readout": dense(OUTPUTS, CELLS, -100, 120),
        "answer": cells(OUTPUTS, 500),
        "output": nir.Output(np.array([OUTPUTS])),
    }
    edges = [*pairwise(["input", "sensors", "cells", "readout", "answer", "output"])]
    edges += pairwise(["cells", "later", "lateral", "cells"])
    bare = nir.NIRGraph(nodes, edges, type_check=False)
    return graph.check(graph.stamp(bare, dt=1.0, integrator="euler", dtype="int64"), alphabet=BINARY)


def main(arguments: list[str] | None = None) -> bool:
    """True where the program and the reference agree in every step."""
    parser = argparse.ArgumentParser(description="A network of whole numbers as one C file, compiled and compared.")
    parser.add_argument("--out", type=Path, help="keep model.c and the program there")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder)
        made, program = network(), out / "model"
        base.get("c")().emit(made, out)
        build.run([*build.compiler(), *build.FLAGS, "-DEI_MAIN", str(out / "model.c"), "-o", str(program)])
        x = (np.random.default_rng(1).random((STEPS, INPUTS)) < 0.3).astype(np.int8)
        sent = subprocess.run([program.resolve()], input=x.tobytes(), capture_output=True, check=True).stdout
        found = np.frombuffer(sent, np.int8).reshape(STEPS, OUTPUTS)
        text = (out / "model.c").read_text()
    wanted = base.get("reference")().compile(made).run(x[None].astype(np.float64)).z["answer"][0]
    equal = bool(np.array_equal(found, wanted))
    print(text[: text.index("#include")])
    print(f"model.c: {len(text.splitlines())} lines, {len(text):,} bytes")
    spikes = f"{int(wanted.sum())} output spikes of the reference, {int(found.sum())} of the C program"
    print(f"{STEPS} steps, {spikes}: {'equal' if equal else 'different'}")
    return equal


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
