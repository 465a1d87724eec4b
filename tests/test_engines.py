"""Recorded outputs of other engines on one published graph, and Norse itself: evidence that is not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from cases import chain
from norse.torch.functional.iaf import IAFFeedForwardState, IAFParameters, iaf_feed_forward_step
from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters, lif_box_feed_forward_step

from eiexport.errors import GraphError
from eiexport.graph import check, read
from eiexport.nodes import lif, prepare
from eiexport.ops import NumpyOps
from eiexport.steps import Clock, Neuron, Step, bind
from targets import base

DT, ALPHA = 1e-4, 0.04  # s; dt / tau
EULER, EXPONENTIAL = Clock(DT, "euler"), Clock(DT, "exponential")

# The recordings are float32 in each engine's own order of operations; ours differs by a few units of 7e-9.
ROUNDING = 5e-8


def states(step: Step, x: np.ndarray, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """(membrane after reset, spikes) of one neuron alone; x (time, neuron)."""
    ops = NumpyOps(dtype)
    bound = bind(step, ops)
    assert isinstance(bound, Neuron)
    state, v, z = bound.init(ops, (1, *x.shape[1:])), [], []
    for row in x.astype(dtype):
        sent, state = bound.step(ops, bound.drive(ops, row[None]), state)
        v.append(state[0][0])
        z.append(sent[0])
    return np.array(v), np.array(z)


def recording(folder: Path, engine: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(input (time, 1), membrane after reset, spikes)."""
    rows = np.loadtxt(folder / f"lif_{engine}.csv", delimiter=",")
    assert rows.shape == (1000, 3)
    return rows[:, :1], rows[:, 1], rows[:, 2]


def find(folder: Path) -> Path:
    return folder / "lif" if (folder / "lif").is_dir() else folder


def stock_lif() -> nir.LIF:
    one = np.ones(1)
    return nir.LIF(tau=2.5e-3 * one, r=one, v_leak=0 * one, v_threshold=0.1 * one, v_reset=0 * one)


@pytest.mark.parametrize(
    "engine,clock,scale,late,tolerance",
    [
        ("norse", EULER, 1, 0, ROUNDING),
        ("snntorch", EULER, 25, 0, ROUNDING),
        ("spinnaker2", EULER, 25, 0, 2e-5),  # fixed point on the chip
        ("lava_cpu_float", EULER, 1, 1, ROUNDING),
        ("nengo", EXPONENTIAL, 10, 0, ROUNDING),
    ],
)
def test_stock_lif_reproduces_engine(
    cases_dir: Path, engine: str, clock: Clock, scale: float, late: int, tolerance: float
) -> None:
    x, v, z = recording(find(cases_dir), engine)
    ours, spikes = states(prepare(stock_lif(), clock), x)
    end = len(x) - late
    assert np.flatnonzero(z).tolist() == [t + late for t in (460, 510, 710, 760)]
    assert np.flatnonzero(spikes).tolist() == [460, 510, 710, 760]
    assert np.abs(ours[:end, 0] - v[late:] / scale).max() <= tolerance


@pytest.mark.parametrize("engine,gain", [("sinabs", 1.0), ("rockpool", ALPHA)])  # sinabs recorded a * x as its input
def test_subtractive_reset_reproduces_engine(cases_dir: Path, engine: str, gain: float) -> None:
    x, v, z = recording(find(cases_dir), engine)
    node = lif((1,), decay=float(np.exp(-ALPHA)), gain=gain, threshold=0.1, reset="subtract")
    ours, spikes = states(prepare(node, EULER), x)
    assert np.flatnonzero(spikes).tolist() == np.flatnonzero(z).tolist() == [450, 500, 710, 760]
    assert np.abs(ours[:, 0] - v).max() <= ROUNDING
    if engine == "sinabs":  # one multiply and one add: the same float32 operations, so the same bits
        assert np.array_equal(states(prepare(node, EULER), x, np.float32)[0][:, 0], v.astype(np.float32))


@pytest.mark.parametrize("target", ["reference", "torch", "torch32"])
@pytest.mark.parametrize("integrator", ["euler", "exponential"])
def test_published_graph_runs_as_it_stands(cases_dir: Path, target: str, integrator: str) -> None:
    graph = read(find(cases_dir) / "lif_norse.nir")
    with pytest.raises(GraphError, match="does not say its dt"):
        check(graph)
    x, _, z = recording(find(cases_dir), "norse")
    got = base.get(target)().compile(check(graph, DT, integrator)).run(x[None]).z
    assert [np.flatnonzero(a).tolist() for a in got.values()] == [np.flatnonzero(z).tolist()]


def test_two_lif_neurons_load_and_run(cases_dir: Path) -> None:
    """The first neuron's leak potential lies above its threshold, so it fires without input."""
    network = check(read(find(cases_dir) / "two_lif_neurons.nir"), DT, "euler")
    z = base.get("reference")().compile(network).run(np.zeros((1, 1000, 1))).z
    # Euler: v = 1.2 (1 - .99^n) exceeds 1 first at n = 179
    assert np.flatnonzero(z["lif1"]).tolist() == [178, 357, 536, 715, 894]
    assert not z["lif2"].any()


def drives(kind: str) -> np.ndarray:
    """(time, neuron): any reals, or multiples of 1/4 that meet a threshold of 1/2 or 1 exactly."""
    rng = np.random.default_rng(7)
    return rng.normal(0.5, 1, (200, 16)) if kind == "random" else rng.integers(-2, 5, (200, 16)) / 4


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_lif_equals_norse(kind: str) -> None:
    x, full = drives(kind), np.ones(16)
    tau, leak, threshold = (3.0, 0.1, 0.45) if kind == "random" else (2.0, 0.25, 0.5)
    node = nir.LIF(tau * full, full, leak * full, threshold * full, 0.125 * full)
    numbers = {"tau_mem_inv": 1 / tau, "v_leak": leak, "v_th": threshold, "v_reset": 0.125}
    p = LIFBoxParameters(**{k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()})
    state, v, z = LIFBoxFeedForwardState(torch.zeros(16, dtype=torch.float64)), [], []
    for row in torch.from_numpy(x):
        sent, state = lif_box_feed_forward_step(row, state, p, dt=1.0)
        v.append(state.v.numpy())
        z.append(sent.numpy())
    compare(node, x, np.array(v), np.array(z), exact=kind == "ties")


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_if_equals_norse(kind: str) -> None:
    x, full = drives(kind), np.ones(16)
    node = nir.IF(full, full, -0.25 * full)
    p = IAFParameters(torch.tensor(1.0, dtype=torch.float64), torch.tensor(-0.25, dtype=torch.float64))
    state, v, z = IAFFeedForwardState(torch.zeros(16, dtype=torch.float64)), [], []
    for row in torch.from_numpy(x):
        sent, state = iaf_feed_forward_step(row, state, p)
        v.append(state.v.numpy())
        z.append(sent.numpy())
    compare(node, x, np.array(v), np.array(z), exact=kind == "ties")


def compare(node: Any, x: np.ndarray, v: np.ndarray, z: np.ndarray, exact: bool) -> None:
    ours, spikes = states(prepare(node, Clock(1.0, "euler")), x)
    assert 0 < z.sum() < z.size
    np.testing.assert_array_equal(spikes, z)
    np.testing.assert_allclose(ours, v, rtol=0, atol=0 if exact else 1e-12)
    for target in ("reference", "torch"):
        sent = base.get(target)().compile(check(chain((16,), node))).run(x[None]).z["n0"]
        np.testing.assert_array_equal(sent[0], z)
