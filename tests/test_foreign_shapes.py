"""Shapes that other tools declare: batch and time axes, Flatten's count, what is left open, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from cases import Numbers, connected
from test_foreign import Tree, cell, ends, line, part, refused, save, spikes

from eiexport import graph as graphs

R = Numbers(6, True)
DENSE = R.affine(4, 3)
CONV = R.conv(2, 1, (3, 3), padding=1)
NEURON, MAPS = cell((3,)), cell((2, 4, 3))


def load(path: Path, nodes: Tree, edges: Any) -> tuple[nir.NIRGraph, str]:
    """The graph, and its notes in one text; what was repaired is written so that nothing is left to repair."""
    graph, notes = graphs.load(save(path / "f.nir", nodes, edges))
    graphs.write(graph, path / "again.nir")
    assert graphs.load(path / "again.nir")[1] == ()
    return graph, "; ".join(notes)


# --- batch axes


@pytest.mark.parametrize(
    "shape,out", [([1, 4], [1, 3]), ([1, 20, 4], [1, 20, 3]), ([32, 4], [32, 3]), ([1, 1, 4], [3])]
)
def test_batch_before_a_matrix(shape: list[int], out: list[int], tmp_path: Path) -> None:
    """rockpool stores (batch, time, neurons), Norse (batch, neurons)."""
    nodes = {**ends(shape, out), "w": part(DENSE), "n": part(NEURON)}
    graph, told = load(tmp_path, nodes, edges := line("in", "w", "n", "out"))
    assert str(tuple(shape)) in told and "(4,)" in told and "'w' (Affine)" in told
    spikes(graph, connected({"w": DENSE, "n": NEURON}, edges, (4,)))


@pytest.mark.parametrize("out", [None, [1, 3], [3]])
def test_batch_before_neurons_of_one_number(out: Any, tmp_path: Path) -> None:
    """Nothing contradicts (1, 4) but NIR's own declaration that a matrix takes one axis."""
    nodes = {**ends([1, 4], out), "w": part(DENSE), "n": part(nir.Threshold(np.array(0.5)))}
    graph, told = load(tmp_path, nodes, edges := line("in", "w", "n", "out"))
    assert "(1, 4) is read as (4,)" in told
    spikes(graph, connected({"w": DENSE, "n": nir.Threshold(np.array(0.5))}, edges, (4,)))


def test_own_graphs_keep_their_axes(tmp_path: Path) -> None:
    """A matrix over the last of several axes is ours to write; in another tool's file it shows a batch axis."""
    own = connected(
        {"w": DENSE, "n": nir.Threshold(np.full((1, 3), 0.5))}, edges := line("in", "w", "n", "out"), (1, 4)
    )
    own.nodes["out"] = nir.Output(np.array([1, 3]))
    graphs.write(own, tmp_path / "own.nir")
    graph, notes = graphs.load(tmp_path / "own.nir")
    assert notes == () and graphs.check(graph).shapes["n"] == (1, 3)
    nodes = {**ends([1, 4], [1, 3]), "w": part(DENSE), "n": part(cell((1, 3)))}
    graph, told = load(tmp_path, nodes, edges)
    assert "(1, 4) is read as (4,)" in told and graph.nodes["n"].tau.shape == (3,)


@pytest.mark.parametrize("shape", [[1, 1, 4, 3], [8, 1, 4, 3], [1, 20, 1, 4, 3]])
def test_batch_before_a_convolution(shape: list[int], tmp_path: Path) -> None:
    """NIR's inference copies the batch axis into the convolution's input_shape."""
    conv = part(CONV, input_shape=[*shape[1:-2], 4, 3][-3:])
    nodes = {**ends(shape, [*shape[:-3], 2, 4, 3]), "c": conv, "n": part(MAPS)}
    graph, told = load(tmp_path, nodes, edges := line("in", "c", "n", "out"))
    assert f"{tuple(shape)} is read as (1, 4, 3)" in told and graph.nodes["c"].input_shape == (4, 3)
    spikes(graph, connected({"c": CONV, "n": MAPS}, edges, (1, 4, 3)))


def test_batch_in_doubt(tmp_path: Path) -> None:
    """Four neurons in a batch of four, or four channels."""
    nodes = {**ends([4, 4]), "n": part(nir.Threshold(np.arange(4.0)))}
    refused(save(tmp_path / "f.nir", nodes, line("in", "n", "out")), "edge 'in' -> 'n'", "axis 0 or 1", "(4, 4)")
    nodes = {**ends([5, 4]), "n": part(nir.Threshold(np.arange(4.0)))}  # or one value a column
    refused(save(tmp_path / "f.nir", nodes, line("in", "n", "out")), "edge 'in' -> 'n'", "(5, 4)", "(4,)")
    nodes = {**ends([1, 2, 2]), "n": part(nir.Threshold(np.arange(2.0)))}
    refused(save(tmp_path / "f.nir", nodes, line("in", "n", "out")), "axis 0 or 1")


def test_batch_before_neurons_alone(tmp_path: Path) -> None:
    nodes = {**ends([1, 3], [1, 3]), "n": part(NEURON)}
    graph, told = load(tmp_path, nodes, edges := line("in", "n", "out"))
    assert "(1, 3) is read as (3,)" in told and "'n' (LIF)" in told
    spikes(graph, connected({"n": NEURON}, edges, (3,)))


# --- Flatten

FLAT = R.affine(24, 3)
FLATS = {
    "start counts the batch": {"start_dim": 1, "end_dim": -1},
    "start and end count it": {"start_dim": 1, "end_dim": 3},
    "two axes in front": {"start_dim": 2, "end_dim": -1},
    "its input_type shows it": {"start_dim": 1, "end_dim": -1, "input_type": [1, 2, 4, 3]},
    "sinabs' zeros": {"start_dim": 1, "end_dim": -1, "input_type": [0, 0, 0, 0]},
    "class defaults": {},
    "right, from behind": {"start_dim": -3, "end_dim": -1, "input_type": [2, 4, 3]},
    "right": {"start_dim": 0, "end_dim": 2, "input_type": [2, 4, 3]},
}


@pytest.mark.parametrize("batch", [[], [1]])
@pytest.mark.parametrize("form", FLATS)
def test_flatten(form: str, batch: list[int], tmp_path: Path) -> None:
    nodes = {**ends([*batch, 1, 4, 3], [*batch, 3]), "c": part(CONV, input_shape=None), "n": part(MAPS)}
    nodes |= {"f": {"type": "Flatten", **FLATS[form]}, "w": part(FLAT), "m": part(NEURON)}
    graph, told = load(tmp_path, nodes, edges := line("in", "c", "n", "f", "w", "m", "out"))
    assert ("count a batch axis" in told) == (not form.startswith("right"))
    flat = nir.Flatten({"input": np.array([2, 4, 3])}, 0, 2)
    spikes(graph, connected({"c": CONV, "n": MAPS, "f": flat, "w": FLAT, "m": NEURON}, edges, (1, 4, 3)))


def test_flatten_of_one_axis(tmp_path: Path) -> None:
    """snnTorch's own example flattens what is flat already, after the batch axis."""
    nodes = {
        **ends([4], [3]),
        "f": {"type": "Flatten", "start_dim": 1, "end_dim": -1},
        "w": part(DENSE),
        "n": part(NEURON),
    }
    graph, told = load(tmp_path, nodes, line("in", "f", "w", "n", "out"))
    assert "count a batch axis" in told
    spikes(graph)
    assert graphs.check(graph, 1.0, "euler").shapes["f"] == (4,)


def test_flatten_means_what_it_says_where_that_fits(tmp_path: Path) -> None:
    """Axes 1..-1 of (2, 4, 3) are (2, 12) in NIR; nothing here says otherwise."""
    nodes = {
        **ends([2, 4, 3]),
        "f": {"type": "Flatten", "start_dim": 1, "end_dim": -1},
        "n": part(nir.Threshold(np.array(0.5))),
    }
    graph, told = load(tmp_path, nodes, line("in", "f", "n", "out"))
    assert told == "" and graphs.check(graph, 1.0, "euler").shapes["n"] == (2, 12)
    nodes["out"]["shape"] = [24]
    graph, told = load(tmp_path, nodes, line("in", "f", "n", "out"))
    assert "count a batch axis" in told and graphs.check(graph, 1.0, "euler").shapes["n"] == (24,)


# --- open shapes


@pytest.mark.parametrize("shape", [None, [-1, 4], [-1], [0], [-1, -1, 4]])
def test_open_input_before_a_matrix(shape: Any, tmp_path: Path) -> None:
    nodes = {**ends(shape, None), "w": part(DENSE), "n": part(NEURON)}
    graph, told = load(tmp_path, nodes, edges := line("in", "w", "n", "out"))
    assert "Input 'in'" in told and "(4,)" in told
    spikes(graph, connected({"w": DENSE, "n": NEURON}, edges, (4,)))


@pytest.mark.parametrize("shape", [None, [-1, 1, 4, 3], [-1, 1, -1, -1], [1, -1, 3]])
def test_open_input_before_a_convolution(shape: Any, tmp_path: Path) -> None:
    nodes = {**ends(shape, None), "c": part(CONV, input_shape=[4, 3]), "n": part(MAPS)}
    graph, told = load(tmp_path, nodes, edges := line("in", "c", "n", "out"))
    assert "Input 'in'" in told
    spikes(graph, connected({"c": CONV, "n": MAPS}, edges, (1, 4, 3)))


def test_open_input_that_nothing_tells(tmp_path: Path) -> None:
    nodes = {**ends([1, -1, -1]), "c": part(CONV, input_shape=None), "n": part(nir.Threshold(np.array(0.5)))}
    path = save(tmp_path / "f.nir", nodes, line("in", "c", "n", "out"))
    refused(path, "Input 'in'", "(1, -1, -1)", "write its shape")
    nodes["c"] = part(CONV, input_shape=[4, 3])
    nodes["in"]["shape"] = [1, -1, 5]
    refused(save(tmp_path / "f.nir", nodes, line("in", "c", "n", "out")), "Input 'in'", "(1, -1, 5)")
    both = {**ends(None), "a": part(DENSE), "b": part(R.affine(5, 3)), "n": part(NEURON)}
    edges = [*line("in", "a", "n", "out"), *line("in", "b", "n")]
    refused(save(tmp_path / "f.nir", both, edges), "edge 'in' -> ", "Affine")


# --- what does not fit


def conv(**fields: Any) -> Tree:
    return part(CONV, **fields)


BROKEN: dict[str, tuple[Tree, Any, tuple[str, ...]]] = {
    "matrix": (
        {**ends([5]), "w": part(DENSE), "n": part(NEURON)},
        line("in", "w", "n", "out"),
        ("edge 'in' -> 'w'", "(5,)", "takes 4", "Input's shape"),
    ),
    "neurons": (
        {**ends([4]), "w": part(DENSE), "n": part(cell((2,)))},
        line("in", "w", "n", "out"),
        ("edge 'w' -> 'n'", "(3,)", "(2,)", "correct the shape"),
    ),
    "channels": (
        {**ends([3, 4, 3]), "c": conv(input_shape=None)},
        line("in", "c", "out"),
        ("edge 'in' -> 'c'", "(3, 4, 3)", "(1, H, W)"),
    ),
    "declared map": (
        {**ends([1, 4, 3]), "c": conv(input_shape=[5, 3])},
        line("in", "c", "out"),
        ("edge 'in' -> 'c'", "(1, 4, 3)", "input_shape (5, 3)"),
    ),
    "no Flatten": (
        {**ends([1, 4, 3]), "c": conv(input_shape=None), "w": part(FLAT)},
        line("in", "c", "w", "out"),
        ("edge 'c' -> 'w'", "(2, 4, 3)", "put a Flatten between"),
    ),
    "declared Flatten": (
        {**ends([2, 4, 3]), "f": {"type": "Flatten", "start_dim": 0, "end_dim": -1, "input_type": [2, 4, 4]}},
        line("in", "f", "out"),
        ("edge 'in' -> 'f'", "(2, 4, 3)", "(2, 4, 4)"),
    ),
    "sum": (
        {**ends([4]), "a": part(DENSE), "b": part(R.affine(4, 2)), "n": part(nir.Threshold(np.array(0.5)))},
        [*line("in", "a", "n", "out"), *line("in", "b", "n")],
        ("edge 'b' -> 'n'", "(2,)", "(3,)", "'a'"),
    ),
    "output": (
        {**ends([4], [2]), "w": part(DENSE), "n": part(NEURON)},
        line("in", "w", "n", "out"),
        ("edge 'n' -> 'out'", "(3,)", "(2,)"),
    ),
    "values of several rows": (
        {**ends([1, 4, 3]), "p": part(nir.AvgPool2d(np.array(2), np.array(2), np.full((2, 3), np.nan)))},
        line("in", "p", "out"),
        ("'p' (AvgPool2d)", "padding must be 2 whole numbers"),
    ),
    "output of another batch": (
        {**ends([4], [7, 3]), "w": part(DENSE), "n": part(NEURON)},
        line("in", "w", "n", "out"),
        ("edge 'n' -> 'out'", "(3,)", "(7, 3)"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_shapes(name: str, tmp_path: Path) -> None:
    nodes, edges, words = BROKEN[name]
    refused(save(tmp_path / "f.nir", nodes, edges), *words)


def test_what_nir_itself_declares_wrongly(tmp_path: Path) -> None:
    """NIR 1.0 takes every kernel for a square, so what follows another one is declared too small or too large."""
    first = R.conv(2, 1, (3, 1))
    second = R.conv(1, 2, (1, 1))
    nodes = {**ends([1, 4, 3], [1, 2, 1]), "c": part(first, input_shape=[4, 3]), "d": part(second, input_shape=[2, 1])}
    nodes["n"] = part(neuron := cell((1, 2, 3)))
    graph, told = load(tmp_path, nodes, edges := line("in", "c", "d", "n", "out"))
    assert "'d' declares input_shape (2, 1), and gets (2, 3)" in told and "Output 'out'" in told
    spikes(graph, connected({"c": first, "d": second, "n": neuron}, edges, (1, 4, 3)))


def test_two_readings_that_fit(tmp_path: Path) -> None:
    """Parameters with a batch axis of their own fit behind one axis in front as well as behind none."""
    nodes = {**ends([1, 1, 3]), "n": part(nir.Threshold(np.full((5, 1, 3), [0.25, 0.5, 1.0])))}
    refused(save(tmp_path / "f.nir", nodes, line("in", "n", "out")), "Input 'in'", "fits as (1, 3) and as (3,)")


def test_doubt_behind_a_matrix(tmp_path: Path) -> None:
    """A batch of three, or three channels with one matrix over their last axis, and one threshold for each."""
    nodes = {**ends([3, 4]), "w": part(DENSE), "n": part(NEURON)}
    refused(save(tmp_path / "f.nir", nodes, line("in", "w", "n", "out")), "edge 'w' -> 'n'", "axis 0 or 1", "(3, 3)")


def test_flatten_that_counts_by_its_own_type(tmp_path: Path) -> None:
    """Nothing behind it tells, but its input_type has one axis more than the neurons."""
    flat = {"type": "Flatten", "start_dim": 1, "end_dim": -1, "input_type": [1, 2, 4, 3]}
    nodes = {**ends([2, 4, 3]), "f": flat, "n": part(nir.Threshold(np.array(0.5)))}
    graph, told = load(tmp_path, nodes, line("in", "f", "n", "out"))
    assert "count a batch axis" in told and graphs.check(graph, 1.0, "euler").shapes["n"] == (24,)


# --- what is declared wrongly behind an oblong kernel, and only there

OBLONG = R.conv(2, 2, (3, 1))


def oblong(size: Any, out: Any, *, matrix: bool = False) -> tuple[Tree, Any]:
    nodes = {**ends([2, 8, 10], out), "c": part(OBLONG, input_shape=size), "n": part(nir.Threshold(np.array(0.5)))}
    if not matrix:
        return nodes, line("in", "c", "n", "out")
    nodes |= {"f": part(nir.Flatten({"input": np.array([2, 6, 10])}, 0, -1)), "w": part(R.affine(120, 5))}
    return nodes, line("in", "c", "n", "f", "w", "out")


def test_an_oblong_kernel_excuses_what_nir_infers_behind_it(tmp_path: Path) -> None:
    graph, told = load(tmp_path, *oblong((8, 10), [2, 6, 8]))  # NIR: (2, 6, 8), for the kernel's height on both axes
    assert graphs.check(graph, dt=1.0, integrator="euler").shapes["out"] == (2, 6, 10) and "(2, 6, 8)" in told


@pytest.mark.parametrize(
    "made, words",
    [
        (oblong((10, 8), [2, 6, 10]), ["'in' -> 'c'", "(2, 8, 10)", "input_shape (10, 8)"]),
        (oblong((8, 10), [7], matrix=True), ["'w' -> 'out'", "(5,)", "(7,)"]),
    ],
    ids=["its own input", "behind a matrix"],
)
def test_an_oblong_kernel_excuses_nothing_else(made: tuple[Tree, Any], words: list[str], tmp_path: Path) -> None:
    refused(save(tmp_path / "f.nir", *made), *words)
