"""Imported once by the process that attempts are forked from: after one whole export, nothing is left to be loaded."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # a process with threads cannot be forked safely
    os.environ[variable] = "1"


def warm() -> None:
    import file_damage
    import lightning_fabric
    import norse.torch
    import sklearn.datasets
    from cases import CASES
    from file_sources import writable
    from typer.testing import CliRunner

    import eiexport.netfile
    import eitrain.export
    import eitrain.integer
    import targets.loihi
    from eiexport import graph
    from eiexport.cli import app

    assert all((eiexport.netfile, eitrain.export, eitrain.integer, targets.loihi, file_damage, lightning_fabric, norse))
    sklearn.datasets.load_digits()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        case = CASES[0]
        graph.write(writable(case.network()), Path(folder) / "net.nir")
        np.save(Path(folder) / "x.npy", case.x)
        CliRunner().invoke(app, [f"{folder}/net.nir", "--input", f"{folder}/x.npy", "--target", "reference"])
        CliRunner().invoke(app, ["--compare", f"{folder}/net-export/input.h5", f"{folder}/net-export/input.h5"])


warm()
