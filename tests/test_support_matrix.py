"""The table of peers: made of recorded runs alone, complete, and found again by the peers that are installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import support_matrix as matrix
from benchmarks.peers import table, worker
from benchmarks.peers.probes import PROBES, Probe
from eiexport import graph as graphs
from eiexport.passes import insert_delays
from eiexport.steps import Clock

KEPT = json.loads(matrix.RESULT.read_text())
NAMED = {p.name: p for p in PROBES}


def test_the_page_is_what_the_results_say() -> None:
    assert matrix.PAGE.read_text() == matrix.page(), "run `python benchmarks/support_matrix.py --render`"


def test_every_tool_was_asked_every_probe_in_every_convention() -> None:
    assert KEPT["results"].keys() == KEPT["versions"].keys() == matrix.CLOCKS.keys()
    assert {tool.split(",")[0] for tool in matrix.CLOCKS} == set(worker.ADAPTERS)
    for tool, found in KEPT["results"].items():
        assert found.keys() == NAMED.keys()
        for by_clock in found.values():
            assert set(by_clock) == {matrix.label(c) for c in matrix.CLOCKS[tool]}
    for said in KEPT["versions"].values():
        assert {"python", "nir", "nirtorch", "torch"} < said.keys()


def test_the_probes_hold_every_kind_that_the_pass_writes() -> None:
    kinds = {type(node).__name__ for p in PROBES for node in p.graph(Clock(1.0, "euler")).nodes.values()}
    assert kinds == {
        *("Input", "Output", "Affine", "Linear", "Scale", "Conv1d", "Conv2d", "SumPool2d", "AvgPool2d", "Flatten"),
        *("Delay", "Threshold", "IF", "LIF", "CubaLIF", "I", "LI", "CubaLI"),
    }


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.name)
def test_a_probe_provokes(probe: Probe) -> None:
    """An input that float32 holds, and an answer that is neither silent nor constant."""
    network = graphs.check(insert_delays(probe.graph(Clock(1.0, "euler")))[0])
    x = probe.input()
    assert (x == x.astype(np.float32)).all() and x.shape[2:] == probe.shape
    z = matrix.reference(network, x)
    assert len(np.unique(z)) > 1


def test_thresholds_are_met_exactly() -> None:
    """A tool that fires at the threshold is told from one that fires above it, wherever a stock neuron fires."""
    ge, told = "fires at `v >= threshold`", []
    for probe in PROBES:
        network = graphs.check(insert_delays(probe.graph(Clock(1.0, "euler")))[0])
        changed, x = matrix.altered(network, ge), probe.input()
        if changed is None:
            continue
        if probe.name.startswith("`>=`"):  # its threshold stands between two numbers that a membrane can have
            assert matrix.outcome(network, x, matrix.reference(changed, x))["status"] == "equal"
            continue
        assert matrix.outcome(network, x, matrix.reference(changed, x))["because"] == [ge], probe.name
        told.append(probe.name)
    assert {"IF", "LIF", "CubaLIF", "conv network", "two paths", "LIF, explicit"} < set(told)


def run_with(z: Any, name: str = "LIF") -> dict[str, Any]:
    network = graphs.check(NAMED[name].graph(Clock(1.0, "euler")))
    x = NAMED[name].input()
    return matrix.outcome(network, x, z(matrix.reference(network, x)))


def test_outcomes_are_told_apart() -> None:
    assert run_with(lambda z: z)["status"] == "equal"
    assert run_with(lambda z: z[:, :, :2]) == {"status": "wrong shape", "found": [2, 12, 2], "wanted": [2, 12, 4]}
    one = run_with(lambda z: z + (np.arange(z.size) == 5).reshape(z.shape))
    assert (one["status"], one["differ"], one["of"]) == ("differs", 1, 96) and "because" not in one
    late = run_with(lambda z: np.concatenate([np.zeros_like(z[:, :1]), z[:, :-1]], 1))
    assert late["because"] == ["answers one step late"]
    assert run_with(lambda z: z * np.nan)["differ"] == 96


def test_runs_that_do_not_agree_are_no_answer() -> None:
    equal, off = {"status": "equal", "differ": 0}, {"status": "differs", "differ": 1}
    assert matrix.once([equal] * 4) == equal
    assert matrix.once([equal, equal, off, equal]) == {"status": "varies", "equal": 3, "runs": 4}
    assert table.words(matrix.once([off, equal]))[0] == "varies from run to run"


def test_cells() -> None:
    notes = table.Notes()
    equal, refused = (
        {"status": "equal"},
        {"status": "refuses", "stage": "import", "error": "ValueError", "message": "no | `r`"},
    )
    off = {"status": "differs", "differ": 3, "of": 96, "spikes": 5, "because": ["a", "b"]}
    assert table.cell({"A": equal, "B": equal}, ["A", "B"], notes) == "**equal**"
    assert table.cell({"A": off, "B": equal}, ["A", "B"], notes) == "**equal** at B"
    assert (
        table.cell({"A": {"status": "not written"}, "B": off}, ["A", "B"], notes) == "3 of 96 spikes differ<sup>1</sup>"
    )
    assert table.cell({"A": refused, "B": off}, ["A", "B"], notes) == "refuses<sup>2</sup>"
    assert notes.texts == ["a; b", "`ValueError: no | 'r'`"]
    assert table.row(["a|b"]) == "| a\\|b |\n"


@pytest.mark.parametrize("tool", matrix.CLOCKS)
def test_a_peer_that_is_installed_does_the_same_again(tool: str) -> None:
    package = tool.split(",")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (peers: norse, rockpool, sinabs, snntorch, spikingjelly)")
    few = ["Affine", "LIF", "LIF r = 1"]
    versions, found = matrix.run(tool, sys.executable, few)
    if versions != KEPT["versions"][tool]:
        pytest.skip(f"{package} or what it runs on is another version than recorded (peers: spikingjelly, ...)")
    for name in few:
        assert found[name] == KEPT["results"][tool][name]


def test_no_page_lies_about_where_it_comes_from() -> None:
    text = Path(matrix.PAGE).read_text()
    assert "do not edit" in text and all(f"{p.name}: {p.what}" in text for p in PROBES)
