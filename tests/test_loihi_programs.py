"""Program files that are wrong: other programs are caught by the comparison, broken ones are refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from int_networks import chain, dense
from test_loihi import CASES, GRADED, Case, differs, equal, gated, small, words

from eiexport.trace import TraceWriter
from targets.base import TargetError
from targets.loihi.program import write
from targets.loihi.simulator import Simulator
from targets.reference import Reference


def edit(file: Path, change: Callable[[Any], None]) -> Path:
    with h5py.File(file, "r+") as f:
        change(f)
    return file


def reset(group: Any, name: str, data: Any) -> None:
    """Put other data under a name."""
    del group[name]
    group[name] = np.asarray(data)


def shifted(name: str, by: int, core: int = 0) -> Callable[[Any], None]:
    def change(f: Any) -> None:
        group = f[f"cores/{core:06}"]
        reset(group, name, group[name][()] + by)

    return change


def drop_route(f: Any) -> None:
    """The busiest route of the host is gone."""
    group = f["input"]
    start = group["start"][()]
    start[1:] -= 1
    reset(group, "start", start)
    for name in ("core", "axon", "delay"):
        reset(group, name, group[name][1:])


def swap_axons(f: Any) -> None:
    group = f["cores/000000/spikes"]
    reset(group, "axon", group["axon"][()][::-1])


def other_core(f: Any) -> None:
    """All input goes to the first core."""
    reset(f["input"], "core", f["input/core"][()] * 0)


def attribute(path: str, name: str, by: int) -> Callable[[Any], None]:
    def change(f: Any) -> None:
        f[path].attrs[name] = f[path].attrs[name] + by

    return change


def let_run_on(f: Any) -> None:
    f.attrs["reset"] = "none"


def drop_pair(f: Any) -> None:
    for name in ("from", "to"):
        reset(f["routes"], name, f["routes"][name][1:])


MUTANTS: dict[str, Callable[[Any], None]] = {
    "dropped-route": drop_route,
    "delay": lambda f: reset(f["input"], "delay", f["input/delay"][()] + 1),
    "feedback-delay": lambda f: reset(f["cores/000000/spikes"], "delay", f["cores/000000/spikes/delay"][()] + 1),
    "membrane-delay": lambda f: reset(f["cores/000000/membranes"], "delay", f["cores/000000/membranes/delay"][()] + 1),
    "swapped-axons": swap_axons,
    "other-core": other_core,
    "word": shifted("word", 2),
    "threshold": shifted("vth", 40),
    "decay": shifted("dv", 1),
    "current-decay": shifted("du", 1),
    "bias": shifted("bias_mant", 1),
    "constant": shifted("constant/0000", 1),
    "exponent": shifted("exponent/0000", 1),
    "target": lambda f: reset(f["cores/000000"], "target", f["cores/000000/target"][()][::-1]),
    "latency": attribute("populations/0001", "latency", 1),
    "tail": lambda f: f.attrs.__setitem__("tail", int(f.attrs["tail"]) - 1),
    "table": lambda f: reset(f["populations/0001"], "table", f["populations/0001/table"][()] // 2),
    "feedback-shift": attribute("populations/0001", "feedback_shift", 1),
    "balance-shift": attribute("populations/0001", "balance_shift", 3),
    "readout": lambda f: reset(f["readout/0000"], "slot", f["readout/0000/slot"][()][::-1]),
    "no-reset": let_run_on,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_program_is_caught(mutant: str, tmp_path: Path) -> None:
    case = Case(chain((3,), dense(words(23, 6, 3), [9] * 6, message_bits=8), gated((6,), vth=60)), GRADED, 12)
    network, x = case.network(), case.x()
    expected = Reference().compile(network).run(x, probe=True)
    file = write(network, small(), tmp_path)
    equal(Simulator(file).run(x, probe=True), expected)
    assert differs(Simulator(edit(file, MUTANTS[mutant])).run(x, probe=True), expected)


def test_a_pair_of_cores_that_does_not_talk_is_caught(tmp_path: Path) -> None:
    case = CASES["dense"]
    file = edit(write(case.network(), small(), tmp_path, encoding="kernel"), drop_pair)
    expected = Reference().compile(case.network()).run(case.x(), probe=True)
    assert differs(Simulator(file).run(case.x(), probe=True), expected)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])


def replaced(path: str, make: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        with h5py.File(file, "r+") as f:
            group, _, name = path.rpartition("/")
            reset(f[group] if group else f, name, make(f[path][()]))

    return change


def without(path: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        with h5py.File(file, "r+") as f:
            del f[path]

    return change


def foreign(**attrs: Any) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        with h5py.File(file, "r+") as f:
            f.attrs.update(attrs)

    return change


CORRUPT: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda file: file.unlink(), "no such program file"),
    "text": (lambda file: file.write_text("{}"), "corrupt"),
    "truncated": (truncate, "corrupt"),
    "foreign": (foreign(format="trace"), "no Loihi program"),
    "schema": (foreign(schema=2), "schema 2"),
    "encoding": (foreign(encoding="kernel"), "corrupt"),
    "reset": (foreign(reset="maybe"), "reset 'maybe'"),
    "floats": (replaced("cores/000000/word", lambda a: a + 0.5), "not whole numbers"),
    "no-input": (without("input"), "corrupt"),
    "no-core": (without("cores/000001"), "is not on one core"),
    "no-threshold": (without("cores/000000/vth"), "lacks vth"),
    "no-constant": (without("cores/000000/constant"), "corrupt"),
    "target": (replaced("cores/000000/target", lambda a: a + 9), "out of range"),
    "axon": (replaced("input/axon", lambda a: a + 99), "out of range"),
    "core": (replaced("input/core", lambda a: a - 1), "out of range"),
    "delay": (replaced("input/delay", lambda a: a - 1), "out of range"),
    "starts": (replaced("cores/000000/axon_start", lambda a: a[::-1]), "starts"),
    "group": (replaced("cores/000000/axon_group", lambda a: a + 9), "out of range"),
    "twice": (replaced("cores/000000/neurons", lambda a: a * 0), "is not on one core"),
    "size": (replaced("cores/000000/vth", lambda a: np.arange(9)), "has shape"),
    "readout": (replaced("readout/0000/core", lambda a: a + 9), "out of range"),
    "words": (replaced("cores/000000/word", lambda a: a[1:]), "as many"),
}


@pytest.mark.parametrize("kind", CORRUPT)
def test_a_corrupt_program_is_one_line(kind: str, tmp_path: Path) -> None:
    case = Case(chain((3,), dense(words(23, 6, 3), message_bits=8), gated((6,))), GRADED)
    file = write(case.network(), small(), tmp_path)
    change, says = CORRUPT[kind]
    change(file)
    with pytest.raises(TargetError) as e:
        Simulator(file)
    assert says in str(e.value) and str(file) in str(e.value) and "\n" not in str(e.value)


def test_a_trace_is_no_program(tmp_path: Path) -> None:
    case = CASES["dense"]
    trace = Reference().compile(case.network()).run(case.x())
    with TraceWriter(tmp_path / "a.h5", dt=1.0, dtype="int32") as writer:
        writer.append(trace)
    with pytest.raises(TargetError, match="no Loihi program"):
        Simulator(tmp_path / "a.h5")
