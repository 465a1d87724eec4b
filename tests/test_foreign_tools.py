"""NIR files from other tools' exporters: our reference against the output that the tool itself recorded.

Where they part, the one thing that the tool does and its file does not say is named, and with it they are equal again.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.support_matrix import outcome
from eiexport import graph as graphs
from eiexport.errors import GraphError
from eiexport.graph import Network
from eiexport.passes import insert_delays

FOLDER = Path(__file__).parent / "foreign"
GE = "fires at `v >= threshold`"
SUBTRACT = "subtracts the threshold where a spike resets"
SEVERAL = "sends floor(v / threshold) spikes in a step, and subtracts as often"
UNIT = "adds the input with gain 1, whatever r says"
OWN = "adds the input to the current before it decays, and the current to v, whatever w_in and r say"


def single(value: float) -> float:
    """A dt that the tool formed its time constants with, in float32: only then is dt / tau what was meant."""
    return float(np.float32(value))


@dataclass(frozen=True)
class Written:
    """A file, the clock to read it with, and what the tool does that its file does not say (nothing: equal)."""

    name: str
    dt: float
    integrator: str = "euler"
    silent: tuple[str, ...] = ()


# dt: snnTorch and spikingjelly write 1e-4. Norse multiplies tau by its dt of 1e-3, so that 1e-6 fits, and knows none
# in IF. sinabs counts tau in steps. rockpool's 1e-3 is the dt of its modules.
FILES = (
    Written("snntorch-leaky", single(1e-4)),
    Written("snntorch-leaky-late-reset", single(1e-4)),
    Written("snntorch-synaptic", single(1e-4)),
    Written("snntorch-conv", single(1e-4)),
    # nothing in the file says whether the delay of the cycle stands before or behind its Affine, whose bias it holds up
    Written(
        "snntorch-rleaky", single(1e-4), silent=("delays what goes into the Affine of the cycle, not what comes out",)
    ),
    Written("norse-lif", single(1e-6)),
    Written("norse-if", 1.0),
    Written("spikingjelly-lif", 1e-4),
    Written("spikingjelly-cuba", 1e-4, silent=(GE,)),
    Written("spikingjelly-conv", 1e-4, silent=(GE,)),
    Written("spikingjelly-residual", 1e-4, silent=(GE,)),
    Written("sinabs-iaf", 1.0, silent=(SEVERAL,)),
    Written("sinabs-iaf-hard", 1.0, silent=(GE,)),
    Written("sinabs-lif", 1.0, "exponential", (UNIT, SEVERAL)),
    Written("sinabs-conv", 1.0, silent=(SEVERAL,)),
    Written("sinabs-expleak", 1.0, "exponential", (SUBTRACT, UNIT)),
    Written("rockpool-lif", single(1e-3), "exponential", (OWN, SEVERAL)),
    Written("rockpool-lif-recurrent", single(1e-3), "exponential", (SUBTRACT, OWN)),
    Written("rockpool-lifneuron", single(1e-3), "exponential", (UNIT, SEVERAL)),
)


def opened(name: str, folder: Path) -> tuple[Any, dict[str, np.ndarray]]:
    path = folder / f"{name}.nir"
    path.write_bytes(gzip.decompress((FOLDER / f"{name}.nir.gz").read_bytes()))
    with np.load(FOLDER / f"{name}.npz") as held:
        return graphs.read(path), dict(held)


def network(graph: Any, file: Written) -> Network:
    whole, _ = insert_delays(graph, file.dt, file.integrator)
    return graphs.check(whole, file.dt, file.integrator)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_what_the_tool_recorded(file: Written, tmp_path: Path) -> None:
    graph, held = opened(file.name, tmp_path)
    x, z = held["x"].astype(float), held["z"].astype(float)
    assert z.any() and z.shape[:2] == x.shape[:2]
    found = outcome(network(graph, file), x, z)
    assert found["of"] == z.size
    if file.silent:
        assert found["status"] == "differs" and set(found["because"]) == set(file.silent)
    else:
        assert found["status"] == "equal"


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.name in ("snntorch-leaky", "norse-lif", "spikingjelly-lif")], ids=lambda f: f.name
)
def test_a_file_that_does_not_say_its_clock_is_refused(file: Written, tmp_path: Path) -> None:
    graph, _ = opened(file.name, tmp_path)
    with pytest.raises(GraphError, match=r"does not say its dt.*--dt SECONDS"):
        graphs.check(graph)


def test_another_clock_gives_other_spikes(tmp_path: Path) -> None:
    """That they agree above is no property of networks that would agree anyhow."""
    file = Written("snntorch-leaky", single(1e-4), "exponential")
    graph, held = opened(file.name, tmp_path)
    assert outcome(network(graph, file), held["x"].astype(float), held["z"].astype(float))["status"] == "differs"


def test_every_fixture_is_used_and_small() -> None:
    files = list(FOLDER.glob("*.gz")) + list(FOLDER.glob("*.npz"))
    assert {f.name.split(".")[0] for f in FOLDER.glob("*.gz")} == {f.name for f in FILES}
    assert all(f.stat().st_size < 20_000 for f in files)
