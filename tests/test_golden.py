"""Traces found on other machines (benchmarks/gpu_check.py), which every target here must find again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import golden
from eiexport.check import ExecutionCheck, judge
from targets import base

STORED = sorted((Path(__file__).parents[1] / "benchmarks" / "results").glob("*_check.json"))


# the others take integer networks alone, and say so
FLOAT = [n for n in base.REGISTRY if "EIGatedLIF" in base.get(n).claims]


def test_there_is_a_golden_trace() -> None:
    assert STORED and {"reference", "torch", "torch32", "lava"} <= set(FLOAT)


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
@pytest.mark.parametrize("target", FLOAT)
def test_every_target_finds_it(path: Path, target: str) -> None:
    stored = json.loads(path.read_text())["golden"]
    network = golden.network()
    assert golden.weights_hash(network) == stored["weights"]
    expected = golden.unpack(stored["trace"])
    engine = base.get(target)()
    found = engine.compile(network).run(golden.stimulus()).z
    assert found.keys() == expected.keys()
    for name, z in expected.items():
        assert found[name].shape == z.shape
        assert np.count_nonzero(z) > 20, "a silent golden trace would prove nothing"
        assert np.array_equal(found[name], z), name
    assert (expected["gated"] < 0).any()
    check = ExecutionCheck(network, engine.dtype)
    check.add(golden.stimulus(), found)
    assert judge(check.results, engine.dtype) == "equal"


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_the_stored_run_held(path: Path) -> None:
    training = json.loads(path.read_text())["training"]
    for kind, allowed in (("trained", {"equal"}), ("torch", {"equal"}), ("torch32", {"equal", "explained"})):
        assert training[kind]["status"] in allowed
        assert training[kind]["entries"] > 0 and training[kind]["mismatches"] == 0
    assert training["trained"]["free_running_mismatches"] == training["torch"]["free_running_mismatches"] == 0
