"""Input of a bare graph: arrays, NIRData and events; every event lands on its step, or the file is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from cases import connected

from eiexport import graph as graphs
from eiexport.errors import ExportError
from eiexport.inputs import Events, Wanted, load
from eiexport.model import open_graph

MAP = (2, 3, 4)  # polarities, height, width


def nirdata(path: Path, observable: Any, node: str = "input", kind: str = "z") -> Path:
    nir.write_data(path, nir.NIRGraphData({node: nir.NIRNodeData({kind: observable})}))
    return path


def events(rows: list[list[tuple[int, float]]], neurons: int, end: float, values: Any = None) -> Any:
    """NIR's padded rows from (neuron, time) lists."""
    width = max(map(len, rows), default=0)
    idx, time = np.full((len(rows), width), -1), np.full((len(rows), width), np.inf)
    value = np.zeros((len(rows), width))
    for i, row in enumerate(rows):
        for j, (n, t) in enumerate(row):
            idx[i, j], time[i, j] = n, t
            value[i, j] = 0 if values is None else values[i][j]
    return (
        nir.EventData(idx, time, neurons, end)
        if values is None
        else nir.ValuedEventData(idx, time, neurons, end, value)
    )


def refused(path: Path, wanted: Wanted, *words: str) -> None:
    with pytest.raises(ExportError) as caught:
        load(path, wanted)
    text = str(caught.value)
    assert "\n" not in text and path.name in text
    for word in words:
        assert word in text, text


# --- NIRData


def test_events_on_the_grid(tmp_path: Path) -> None:
    """0.3 / 0.1 is a little less than 3: NIR's own conversion puts this event a step too early, and makes two one."""
    rows = [[(0, 0.3), (2, 0.7), (1, 0.0)], [(1, 0.6), (1, 0.6)], []]
    data = events(rows, 3, 0.8)
    x, notes = load(nirdata(tmp_path / "e.h5", data), Wanted("input", (3,), 0.1))
    assert x.shape == (3, 8, 3)
    wanted = np.zeros((3, 8, 3))
    wanted[0, 3, 0] = wanted[0, 7, 2] = wanted[0, 0, 1] = 1
    wanted[1, 6, 1] = 2  # two events are two
    np.testing.assert_array_equal(x[0:3], wanted)
    np.testing.assert_array_equal(x[1:2], wanted[1:2])
    assert x[0:3].sum() == sum(map(len, rows))
    assert not np.array_equal(data.to_time_gridded(0.1).data, wanted[:, :7].astype(bool))
    assert "5 events in 8 steps" in notes[0] and "1 of them" in notes[0]


def test_events_of_a_map(tmp_path: Path) -> None:
    """NIRData holds neurons in a row; they are the Input's in C order. Times may be float32."""
    data = events([[(5, 0.003), (23, 0.127)]], 24, 0.128)
    data.time = data.time.astype(np.float32)
    x, _ = load(nirdata(tmp_path / "e.h5", data, "in"), Wanted("in", MAP, 1e-3))
    assert x.shape == (1, 128, *MAP)
    assert {tuple(i) for i in np.argwhere(x[0:1])} == {(0, 3, 0, 1, 1), (0, 127, 1, 2, 3)}


def test_valued_events(tmp_path: Path) -> None:
    data = events([[(0, 1.0), (0, 1.0), (1, 2.0)]], 2, 3.0, [[0.5, 0.25, -1.5]])
    x, _ = load(nirdata(tmp_path / "e.h5", data), Wanted("input", (2,), 1.0))
    np.testing.assert_array_equal(x[0:1], [[[0, 0], [0.75, 0], [0, -1.5]]])


BAD_EVENTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "off the grid": (events([[(0, 1.0), (0, 1.25)]], 2, 3.0), ("1.25", "dt = 1")),
    "a little off": (events([[(0, 1.00001)]], 2, 3.0), ("1.00001",)),
    "half a step at the end": (events([[(0, 1.0)]], 2, 2.5), ("t_max", "2.5")),
    "too late": (events([[(0, 3.0)]], 2, 3.0), ("step 3", "3 steps")),
    "too early": (events([[(0, -1.0)]], 2, 3.0), ("step -1",)),
    "beyond the neurons": (events([[(2, 1.0)]], 2, 3.0), ("neuron 2", "n_neurons = 2")),
    "no time": (events([[(0, np.inf)]], 2, 3.0), ("no time",)),
    "endless": (events([[(0, 1.0)]], 2, 1e12), ("1000000000000 steps", "dt")),
    "an end that wraps": (events([[(0, 1.0)]], 2, 1e300), ("t_max", "1e+300 steps")),
    "a time that wraps": (events([[(0, 1e300)]], 2, 3.0), ("event time", "1e+300 steps")),
    "too many together": (events([[(0, 1.0)]], 1 << 20, 512.0), ("512 steps of 1048576",)),
    "no end": (events([[(0, 1.0)]], 2, np.inf), ("t_max",)),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_bad_events(name: str, tmp_path: Path) -> None:
    data, words = BAD_EVENTS[name]
    refused(nirdata(tmp_path / "e.h5", data), Wanted("input", (2,), 1.0), "'input'", *words)


def test_events_need_dt(tmp_path: Path) -> None:
    path = nirdata(tmp_path / "e.h5", events([[(0, 1.0)]], 2, 3.0))
    refused(path, Wanted("input", (2,), None), "--dt")
    x, _ = load(path, Wanted("input", (2,), 0.5))
    assert x.shape == (1, 6, 2) and x[0:1][0, 2, 0] == 1


@pytest.mark.parametrize("kind", ["z", "spikes"])
def test_gridded(kind: str, tmp_path: Path) -> None:
    data = np.arange(2 * 3 * 24).reshape(2, 3, 24) % 5 * 0.5
    path = nirdata(tmp_path / "g.h5", nir.TimeGriddedData(data, 0.001), kind=kind)
    x, notes = load(path, Wanted("in", MAP, 0.001))
    assert x.shape == (2, 3, *MAP) and notes == () and len(x) == 2
    np.testing.assert_array_equal(x[1:2], data[1:2].reshape(1, 3, *MAP))
    refused(path, Wanted("in", MAP, 0.01), "dt = 0.001", "0.01")
    assert load(path, Wanted("in", MAP, None))[0].shape == (2, 3, *MAP)


def test_which_node_and_observable(tmp_path: Path) -> None:
    grid = nir.TimeGriddedData(np.ones((1, 2, 3)), 1.0)
    other = nir.TimeGriddedData(np.zeros((1, 2, 3)), 1.0)
    data = nir.NIRGraphData({"a": nir.NIRNodeData({"s": other}), "first": nir.NIRNodeData({"s": grid})})
    nir.write_data(path := tmp_path / "d.h5", data)
    assert np.asarray(load(path, Wanted("first", (3,), 1.0))[0][0:1]).all()
    refused(path, Wanted("in", (3,), 1.0), "a, first", "'input'")
    data = nir.NIRGraphData({"in": nir.NIRNodeData({"s": grid, "u": other})})
    nir.write_data(path, data)
    refused(path, Wanted("in", (3,), 1.0), "s, u", "'z'")


# --- recordings

SHORT: dict[str, Any] = {
    "x": np.array([0, 3, 3, 1]),
    "y": np.array([0, 2, 2, 1]),
    "t": np.array([0, 999, 1000, 2999]),
    "p": np.array([0, 1, 1, 0], bool),
}


def recording(path: Path, **changed: Any) -> Path:
    fields = {k: v for k, v in (SHORT | changed).items() if v is not None}
    if path.suffix == ".npz":
        np.savez(path, **fields)
    else:
        rows = np.zeros(len(fields["t"]), [(k, v.dtype) for k, v in fields.items()])
        for key, value in fields.items():
            rows[key] = value
        np.save(path, rows)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("signs", [(0, 1), (-1, 1)])
def test_recording(suffix: str, signs: tuple[int, int], tmp_path: Path) -> None:
    p = np.where(SHORT["p"], signs[1], signs[0])
    x, notes = load(recording(tmp_path / f"r{suffix}", p=p), Wanted("in", MAP, 1e-3))
    assert x.shape == (1, 3, *MAP) and x.dtype == np.float32
    found = {tuple(i) for i in np.argwhere(x[0:1])}
    assert found == {(0, 0, 0, 0, 0), (0, 0, 1, 2, 3), (0, 1, 1, 2, 3), (0, 2, 0, 1, 1)}
    assert x[0:1].sum() == 4 and "4 events in 3 steps; times are microseconds" in notes[0]


def test_recording_in_seconds(tmp_path: Path) -> None:
    """0.3 s is step 3 of 0.1 s; what lies between two steps belongs to the first."""
    path = recording(tmp_path / "r.npz", t=np.array([0.0, 0.3, 0.35, 0.7]))
    x, notes = load(path, Wanted("in", MAP, 0.1))
    assert np.unique(np.argwhere(x[0:1])[:, 1]).tolist() == [0, 3, 7] and x.shape[1] == 8
    assert x[0:1][0, 3, 1, 2, 3] == 2 and "1 of them" in notes[0] and "seconds" in notes[0]


def test_recording_without_polarity(tmp_path: Path) -> None:
    x, notes = load(recording(tmp_path / "r.npz", p=None), Wanted("in", (1, 3, 4), 1e-3))
    assert x.shape == (1, 3, 1, 3, 4) and len(notes) == 1
    x, notes = load(recording(tmp_path / "r.npz"), Wanted("in", (1, 3, 4), 1e-3))
    assert x[0:1].sum() == 4 and any("both polarities" in n for n in notes)
    refused(recording(tmp_path / "r.npz", p=None), Wanted("in", MAP, 1e-3), "no 'p'", "(2, 3, 4)")


def test_recording_for_a_flat_input(tmp_path: Path) -> None:
    """Where a pixel goes in a row has to be said; a sensor of units in a row says it by x alone."""
    refused(recording(tmp_path / "r.npz"), Wanted("in", (24,), 1e-3), "`shape`", "(24,)")
    for odd in ([-2, -3, 4], [2, 3, 5]):
        refused(recording(tmp_path / "o.npz", shape=np.array(odd)), Wanted("in", (24,), 1e-3), "equally many", "(24,)")
    x, _ = load(recording(tmp_path / "s.npz", shape=np.array(MAP)), Wanted("in", (24,), 1e-3))
    square, _ = load(recording(tmp_path / "r.npz"), Wanted("in", MAP, 1e-3))
    np.testing.assert_array_equal(x[0:1], square[0:1].reshape(1, 3, 24))
    x, _ = load(recording(tmp_path / "u.npz", y=None, p=None), Wanted("in", (4,), 1e-3))
    assert {tuple(i) for i in np.argwhere(x[0:1])} == {(0, 0, 0), (0, 0, 3), (0, 1, 3), (0, 2, 1)}


def test_recording_that_says_its_dt(tmp_path: Path) -> None:
    path = recording(tmp_path / "r.npz")
    refused(path, Wanted("in", MAP, 1.0), "steps (dt = 1)", "`dt`")
    refused(path, Wanted("in", MAP, None), "--dt")
    x, _ = load(recording(tmp_path / "s.npz", dt=np.array(5e-4)), Wanted("in", MAP, 1.0))
    assert x.shape == (1, 6, *MAP)
    refused(recording(tmp_path / "s.npz", dt=np.array(-1.0)), Wanted("in", MAP, 1.0), "positive")


BAD_RECORDINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "wider than the input": ({"x": np.array([0, 4, 3, 1])}, ("'x'", "4", "(2, 3, 4)", "crop")),
    "negative": ({"y": np.array([0, -1, 2, 1])}, ("'y'", "-1")),
    "other polarities": ({"p": np.array([0, 1, 2, 1])}, ("'p'", "[0, 1, 2]")),
    "before the start": ({"t": np.array([-1, 0, 1, 2])}, ("'t'", "-1", "start at 0")),
    "not a number": ({"t": np.array([0.0, np.nan, 1, 2])}, ("'t'", "nan")),
    "clock time": ({"t": np.array([0, 1, 2, 3]) + 1_700_000_000_000_000}, ("steps", "start at 0")),
    "of two lengths": ({"t": np.array([0, 1])}, ("one length", "(2,)", "(4,)")),
    "no times": ({"t": None}, ("'t'",)),
    "something else": ({"weights": np.ones(4)}, ("'weights'", "x, y, t, p")),
    "fractions": ({"x": np.array([0.5, 1, 2, 3])}, ("'x'", "float64")),
    "empty": ({k: v[:0] for k, v in SHORT.items()}, ("no event",)),
    "endless": ({"t": np.array([0.005, np.inf, 1, 2])}, ("'t'", "inf")),
    "far away": ({"t": np.array([0.005, 1e300, 1, 2])}, ("1e+303 steps", "start at 0")),
    "wraps below 0": ({"t": np.array([0, 1, 2, 2**63 + 5000], np.uint64)}, ("9.22337203685478e+15 steps",)),
    "wraps to the last step": ({"t": np.array([5000, 1, 2, 2**64 - 1500], np.uint64)}, ("1.84467440737096e+16 steps",)),
    "x wraps": ({"x": np.array([0, 1, 2, 2**64 - 1], np.uint64)}, ("'x'", "18446744073709551615")),
    "a polarity wraps": ({"p": np.array([1, 1, 1, 2**64 - 1], np.uint64)}, ("'p'", "18446744073709551615")),
    "float32 for too long": ({"t": np.array([0, 1, 2, 90], "f4")}, ("float32", "90 s", "float64", "microseconds")),
    "float16": ({"t": np.array([0, 0.001, 0.002, 100], "f2")}, ("float16", "0.01 of a step")),
    "axes in another order": ({"shape": np.array([2, 4, 3])}, ("`shape`", "(2, 4, 3)", "(2, 3, 4)", "in a row")),
    "a flat sensor": ({"shape": np.array([24])}, ("`shape`", "(24,)", "(2, 3, 4)")),
    "a size of nothing": ({"shape": np.array([2, 0, 12])}, ("`shape`", "(2, 0, 12)")),
    "sizes below nothing": ({"shape": np.array([-2, -3, 4])}, ("`shape`", "(-2, -3, 4)")),
    "sizes of fractions": ({"shape": np.array([2.9, 3, 4])}, ("`shape`", "float64")),
    "a size of NaN": ({"shape": np.array([np.nan, 3, 4])}, ("`shape`", "float64")),
    "an endless size": ({"shape": np.array([np.inf, 3, 4])}, ("`shape`", "float64")),
    "sizes in words": ({"shape": np.array("2x3x4")}, ("`shape`", "<U5")),
    "sizes in rows": ({"shape": np.array([[2, 3, 4]])}, ("`shape`", "(1, 3)")),
    "a date for a size": ({"shape": np.array(["2020-01-01"], "M8[D]")}, ("`shape`", "datetime64")),
    "no sizes": ({"shape": np.array([], int)}, ("`shape`", "(0,)")),
    "steps of another length": ({"dt": np.array(1e-4)}, ("`dt`", "0.0001 s", "0.001 s")),
    "another length in a row": ({"dt": np.array([1e-4])}, ("`dt`", "0.0001 s", "0.001 s")),
    "steps of NaN": ({"dt": np.array(np.nan)}, ("`dt`", "positive")),
    "endless steps": ({"dt": np.array(np.inf)}, ("`dt`", "positive")),
    "steps in words": ({"dt": np.array("1e-3")}, ("`dt`", "positive")),
    "two lengths of a step": ({"dt": np.array([[1e-3, 1e-3]])}, ("`dt`", "positive")),
    "a date for a step": ({"dt": np.array("2020-01-01", "M8[D]")}, ("`dt`", "positive")),
    "a complex step": ({"dt": np.array(1e-3 + 0j)}, ("`dt`", "positive")),
    "another sensor": ({"shape": np.array([2, 5, 5])}, ("`shape`", "(2, 5, 5)", "(2, 3, 4)")),
}


@pytest.mark.parametrize("name", BAD_RECORDINGS)
def test_bad_recordings(name: str, tmp_path: Path) -> None:
    changed, words = BAD_RECORDINGS[name]
    refused(recording(tmp_path / "r.npz", **changed), Wanted("in", MAP, 1e-3), *words)


STEPS = np.arange(2000)
FAR = np.arange(0, 83_000, 83)
GRIDS: dict[str, tuple[np.ndarray, float, Any]] = {
    "float32": ((STEPS * 1e-3).astype("f4"), 1e-3, STEPS),
    "float32 at its limit": ((FAR * 1e-3).astype("f4"), 1e-3, FAR),
    "float32 at its limit, before a step": (((FAR + 0.98) * 1e-3).astype("f4"), 1e-3, FAR),
    "float32, just before a step": (((STEPS + 0.99) * 1e-3).astype("f4"), 1e-3, STEPS),
    "float32 of a float32 step": (STEPS.astype("f4") * np.float32(1e-3), float(np.float32(1e-3)), STEPS),
    "float16": ((STEPS[:10] * 1e-3).astype("f2"), 1e-3, STEPS[:10]),
    "float64": (STEPS * 1e-4, 1e-4, STEPS),
    "float64, just before a step": ((STEPS + 0.9999) * 1e-4, 1e-4, STEPS),
    "a step from float32, above": (STEPS * 1e-3, float(np.float32(1e-3)), STEPS),
    "a step from float32, below": (STEPS * float(np.float32(1e-4)), float(np.float32(1e-4)), STEPS),
    "microseconds": (STEPS * 100 + STEPS % 100, 1e-4, STEPS),
    "microseconds, a step from float32, below": (STEPS * 100, 9.999999747378752e-05, STEPS),
    "microseconds, a step from float32, above": (STEPS * 1000 + STEPS % 1000, float(np.float32(1e-3)), STEPS),
    "bytes": (np.array([0, 99, 100, 255], np.uint8), 1e-4, [0, 0, 1, 2]),
    "bytes within a long step": (np.array([0, 255], np.uint8), 1e-3, [0, 0]),
    "beyond int64": (np.array([0, 2**63 + 1], np.uint64), float(2**20), [0, (2**63 + 1) // (2**20 * 10**6)]),
    "a step beyond any integer": (np.array([0, 2**63 + 1], np.uint64), 1e300, [0, 0]),
    "a step beyond any number of microseconds": (np.array([0.0, 1.0]), 1e305, [0, 0]),
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_time_falls_into_its_step(name: str, tmp_path: Path) -> None:
    """To the places that a dtype keeps: a time k dt in it is step k, and no event moves to a neighbour."""
    t, dt, steps = GRIDS[name]
    np.savez(tmp_path / "r.npz", x=np.zeros(len(t), int), t=t)
    x, _ = load(tmp_path / "r.npz", Wanted("in", (1,), dt))
    assert x.shape == (1, max(steps) + 1, 1)
    np.testing.assert_array_equal(x[0:1].ravel(), np.bincount(steps))


@pytest.mark.parametrize("own", [5e-4, [5e-4], [[5e-4]], np.float32(5e-4)])
@pytest.mark.parametrize("said", [None, 1.0, 5e-4, float(np.float32(5e-4))])
def test_a_recordings_own_step(own: Any, said: float | None, tmp_path: Path) -> None:
    """It holds where the graph has no seconds, and then is told; else it must be the graph's."""
    x, notes = load(recording(tmp_path / "r.npz", dt=np.array(own)), Wanted("in", MAP, said))
    assert x.shape == (1, 6, *MAP)
    assert {i[1] for i in np.argwhere(x[0:1])} == {0, 1, 2, 5}
    assert ("steps 0.0005 s as its `dt` says" in notes[0]) == (said in (None, 1.0))


@pytest.mark.parametrize("dt", [0.0, -1.0, np.nan, np.inf])
def test_a_step_of_no_length(dt: float, tmp_path: Path) -> None:
    refused(recording(tmp_path / "r.npz"), Wanted("in", MAP, dt), "must be positive")
    refused(recording(tmp_path / "f.npz", t=np.arange(4.0)), Wanted("in", MAP, dt), "must be positive")
    refused(nirdata(tmp_path / "e.h5", events([[(0, 1.0)]], 2, 3.0)), Wanted("in", (2,), dt), "must be positive")


def test_events_are_counted_without_rows_of_places(tmp_path: Path) -> None:
    """A sort of rows took 20 times as long and 97 bytes an event; an index of places takes 16."""
    rng, n = np.random.default_rng(0), 300_000
    x, t = rng.integers(0, 64, n), rng.integers(0, 50_000, n)
    np.savez(tmp_path / "r.npz", x=x, t=t)
    found, notes = load(tmp_path / "r.npz", Wanted("in", (64,), 1e-3))
    assert f"{n} events in 50 steps, {n - 50 * 64} of them" in notes[0]
    assert isinstance(found, Events)
    tracemalloc.start()
    try:
        found.told()
        assert tracemalloc.get_traced_memory()[1] < 40 * n
    finally:
        tracemalloc.stop()


def test_events_of_samples_are_counted_apart(tmp_path: Path) -> None:
    """The same step and neuron in two samples are two places, and so are neighbours at a row's end."""
    data = events([[(0, 1.0), (2, 0.0), (2, 0.0)], [(0, 1.0)], [(0, 0.0), (2, 2.0)], [(0, 0.0)]], 3, 3.0)
    _, notes = load(nirdata(tmp_path / "e.h5", data), Wanted("input", (3,), 1.0))
    assert "7 events in 3 steps, 1 of them" in notes[0]


def test_unfit_steps_and_formats(tmp_path: Path) -> None:
    refused(recording(tmp_path / "r.npz"), Wanted("in", MAP, 1.5e-6), "1.5e-06", "microseconds")
    refused(recording(tmp_path / "r.npz"), Wanted("in", (3, 3, 4), 1e-3), "(3, 3, 4)", "polarities")
    refused(recording(tmp_path / "r.npz"), Wanted("in", None, 1e-3), "Input", "shape")
    (tmp_path / "r.aedat4").write_bytes(b"#!AER-DAT4.0")
    refused(tmp_path / "r.aedat4", Wanted("in", MAP, 1e-3), ".npz")
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    refused(tmp_path / "bad.npz", Wanted("in", MAP, 1e-3), "not a readable .npz")


# --- with a graph


def test_events_for_a_foreign_graph(tmp_path: Path) -> None:
    """dt from another tool's metadata, or from the user; what was changed in graph and input is in the notes."""
    g = connected({"n": nir.IF(np.ones(3), np.ones(3), np.zeros(3))}, [("in", "n"), ("n", "out")], (1, 3))
    plain = nir.NIRGraph(dict(g.nodes), g.edges, metadata={"dt": 0.1}, type_check=False)
    plain.nodes["out"] = nir.Output(np.array([1, 3]))
    graphs.write(plain, tmp_path / "g.nir")
    source = nirdata(tmp_path / "e.h5", events([[(0, 0.3), (2, 0.7)], [(1, 0.0)]], 3, 0.8))
    model = open_graph(tmp_path / "g.nir", source, None)
    assert [x.shape for x in model.chunks(1)] == [(1, 8, 3), (1, 8, 3)]
    assert next(model.chunks(2)).sum() == 3
    told = "; ".join(model.notes)
    for words in ("(1, 3) is read as (3,)", "dt = 0.1", "3 events in 8 steps"):
        assert words in told, told
    assert next(open_graph(tmp_path / "g.nir", source, None, dt=0.05).chunks(1)).shape == (1, 16, 3)
    assert next(open_graph(tmp_path / "g.nir", source, 1, source).calibration(5)).shape == (2, 8, 3)


def test_truncated_nirdata(tmp_path: Path) -> None:
    path = nirdata(tmp_path / "e.h5", events([[(0, 1.0)]], 2, 3.0))
    with h5py.File(path, "a") as f:
        del f["nodes/input/observables/z/time"]
    refused(path, Wanted("input", (2,), 1.0), "idx, time")
    path.write_bytes(path.read_bytes()[:600])
    refused(path, Wanted("input", (2,), 1.0), "not readable")


@pytest.mark.parametrize(
    "dtype,dt,told", [("f4", 1e-4, True), ("f4", float(np.float32(1e-4)), False), ("f8", 1e-4, False)]
)
def test_a_dt_that_float32_rounds_is_told(dtype: str, dt: float, told: bool, tmp_path: Path) -> None:
    """snnTorch forms dt / tau in float32: at exact thresholds its spikes are those of its own dt."""
    full = {k: np.full(2, v, dtype) for k, v in (("tau", 2e-3), ("r", 1), ("v_leak", 0), ("v_threshold", 1))}
    nodes = {"in": nir.Input(np.array([2])), "n": nir.LIF(**full), "out": nir.Output(np.array([2]))}
    nir.write(tmp_path / "f.nir", nir.NIRGraph(nodes, [("in", "n"), ("n", "out")]))
    np.save(tmp_path / "x.npy", np.ones((1, 4, 2)))
    notes = open_graph(tmp_path / "f.nir", tmp_path / "x.npy", None, dt=dt).notes
    assert any("9.999999747378752e-05" in n for n in notes) == told
