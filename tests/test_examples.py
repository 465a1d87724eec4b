"""What the README tells people to run beside the two tools."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def test_find_the_bug_names_node_step_and_neuron() -> None:
    said = runpy.run_path(str(ROOT / "examples/find_the_bug.py"))["main"]()
    control, *bugs = said.values()
    assert control == "equal" and len(bugs) == 3
    for text, node in zip(bugs, ("hidden", "out", "hidden"), strict=True):
        assert text.startswith("differs") and f"first at node '{node}', step " in text and "neuron (" in text


def test_step_floor_prints_ratios() -> None:
    command = [sys.executable, "benchmarks/step_floor.py", "--steps", "2", "--batch", "2", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert [line.split(" x floor")[0].split()[0] for line in done.stdout.splitlines()] == ["step", "step,", "floor"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there: the check would run for real")
def test_gpu_check_skips_cleanly_without_a_gpu() -> None:
    command = [sys.executable, "benchmarks/gpu_check.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout == "skipped: this torch sees no CUDA device\n"


def test_stdp_receptive_fields_beat_random_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EITRAIN_DATA", raising=False)
    main = runpy.run_path(str(ROOT / "examples/stdp_receptive_fields.py"))["main"]
    scores = main(["--batches", "40", "--out", str(tmp_path / "fields.png")])
    assert (tmp_path / "fields.png").is_file()
    assert all(scores["STDP"][n] > max(scores["before"][n], scores["random, normal"][n]) + 1 for n in (5, 20, 100))


def test_deep_ei_circuit_goes_the_whole_way(capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = runpy.run_path(str(ROOT / "examples/deep_ei_circuit.py"))["main"](epochs=2, samples=40)
    said = capsys.readouterr().out
    assert list(accuracy) == [
        *("as trained", "exact", "frozen", "shift", "table"),
        *("frozen, trained on", "frozen, trained on, 8 bits"),
    ]
    assert accuracy["as trained"] == accuracy["exact"] > 0.5 and accuracy["frozen, trained on"] > 0.5
    assert said.count(" equal, 0 of ") == 5 and "circuit3" in said and "differs" not in said
