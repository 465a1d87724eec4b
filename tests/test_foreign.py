"""NIR files as other tools write them: repaired ones spike as the clean graph, the rest is refused in one line."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from cases import CASES, Case, Numbers, connected, noise

from eiexport import foreign
from eiexport import graph as graphs
from eiexport.errors import GraphError
from eiexport.nodes import lif
from eiexport.passes import insert_delays
from eiexport.steps import Clock
from targets import base

Tree = dict[str, Any]
Edges = list[tuple[str, str]]
DT = {"dt": 1.0, "integrator": "euler"}
R = Numbers(5, True)


def save(path: Path, nodes: Tree, edges: Edges, **more: Any) -> Path:
    """A file by hand, so that any schema can be written; `more` goes beside nodes and edges."""

    def put(group: Any, tree: Tree) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                put(group.create_group(key), value)
            else:
                group.create_dataset(key, data=value)

    with h5py.File(path, "w") as f:
        put(f.create_group("node"), {"type": "NIRGraph", "nodes": nodes, "edges": pairs(edges), **more})
    return path


def pairs(edges: Edges) -> Any:
    return np.array(edges, h5py.string_dtype()).reshape(-1, 2)


def part(node: nir.ir.NIRNode, **changed: Any) -> Tree:
    """A node's fields, some changed; None leaves one out."""
    fields = {k: v for k, v in node.to_dict().items() if k != "metadata"} | changed
    return {k: v for k, v in fields.items() if v is not None}


def ends(shape: Any, out: Any = None) -> Tree:
    """Input and Output of a file; None leaves the shape out."""
    named = {"in": {"type": "Input", "shape": shape}, "out": {"type": "Output", "shape": out}}
    return {n: {k: v for k, v in d.items() if v is not None} for n, d in named.items()}


def line(*names: str) -> Edges:
    return list(pairwise(names))


def spikes(graph: nir.NIRGraph, clean: nir.NIRGraph | None = None, **names: str) -> dict[str, np.ndarray]:
    """Outputs of the reference, and the assertion that the clean graph sends the same, shapes first.

    names: a node of `graph` where `clean` calls it otherwise.
    """
    network = graphs.check(insert_delays(graph, **DT)[0], **DT)
    x = 2 * noise(network.shapes[network.input], 1)
    found = base.get("reference")().compile(network).run(x).z
    assert any(z.any() for z in found.values())
    if clean is not None:
        expected = graphs.check(insert_delays(clean)[0])
        assert expected.shapes[expected.input] == network.shapes[network.input]
        wanted = base.get("reference")().compile(expected).run(x).z
        mapped = {names.get(n, n): z for n, z in wanted.items()}
        assert set(mapped) == set(found)
        for name, z in mapped.items():
            assert found[name].shape == z.shape, name
            np.testing.assert_array_equal(found[name], z, err_msg=name)
    return found


def refused(path: Path, *words: str) -> None:
    with pytest.raises(GraphError) as caught:
        graphs.check(graphs.read(path), **DT)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def cell(shape: Any, kind: Any = nir.LIF) -> nir.ir.NIRNode:
    """A neuron whose every parameter differs from one neuron to the next."""
    if kind is nir.CubaLIF:
        return nir.CubaLIF(**R.cuba(shape), **R.threshold(shape))
    if kind is nir.IF:
        return nir.IF(r=R.pick(shape, (1.0, 2.0), 0.5, 2), **R.threshold(shape))
    return nir.LIF(**R.lif(shape), **R.threshold(shape))


# --- schemas


@pytest.mark.parametrize("kind", [nir.LIF, nir.IF, nir.CubaLIF])
def test_first_schema(kind: Any, tmp_path: Path) -> None:
    """NIR 0.1: no version, no v_reset, no w_in, no metadata, fixed-length texts."""
    neuron = cell((3,), kind)
    neuron.v_reset = np.zeros(3)
    dropped = {"v_reset": None, "type": np.bytes_(kind.__name__)}
    if kind is nir.CubaLIF:
        neuron.w_in = np.ones(3)
        dropped["w_in"] = None
    nodes = {**ends([4], [3]), "w": part(w := R.affine(4, 3)), "n": part(neuron, **dropped)}
    edges = line("in", "w", "n", "out")
    path = save(tmp_path / "f.nir", nodes, edges)
    with h5py.File(path, "a") as f:
        del f["node/edges"]
        f["node/edges"] = np.array(edges, "S")
    assert nir.read(path) is not None
    graph, notes = graphs.load(path)
    assert len(notes) == 1 and "v_reset" in notes[0] and "'n'" in notes[0]
    spikes(graph, connected({"w": w, "n": neuron}, edges, (4,)))


def test_convolution_without_input_shape(tmp_path: Path) -> None:
    conv = R.conv(2, 1, (3, 3), padding=1)
    nodes = {**ends([1, 4, 3]), "c": part(conv, input_shape=None), "n": part(neuron := cell((2, 4, 3)))}
    graph, notes = graphs.load(save(tmp_path / "f.nir", nodes, edges := line("in", "c", "n", "out")))
    assert notes == () and graph.nodes["c"].input_shape == (4, 3)
    assert tuple(graph.nodes["out"].output_type["output"]) == (2, 4, 3)
    spikes(graph, connected({"c": conv, "n": neuron}, edges, (1, 4, 3)))
    graphs.write(graph, tmp_path / "again.nir")  # every shape is filled in, as HDF5 needs it
    assert graphs.load(tmp_path / "again.nir")[1] == ()
    assert nir.read(tmp_path / "again.nir") is not None


@pytest.mark.parametrize("padding", [b"SAME", "same"])
def test_padding_in_words(padding: Any, tmp_path: Path) -> None:
    nodes = {**ends([1, 4, 3]), "c": part(conv := R.conv(2, 1, (3, 3), padding=1), padding=padding, input_shape=[4, 3])}
    nodes["n"] = part(neuron := cell((2, 4, 3)))
    graph, _ = graphs.load(save(tmp_path / "f.nir", nodes, edges := line("in", "c", "n", "out")))
    spikes(graph, connected({"c": conv, "n": neuron}, edges, (1, 4, 3)))


@pytest.mark.parametrize("form", [(), (1,)])
def test_one_number_for_all_neurons(form: Any, tmp_path: Path) -> None:
    values = {"tau": 2.0, "r": 2.0, "v_leak": 0.25, "v_threshold": 0.75, "v_reset": -0.25}
    w = R.affine(4, 3)
    few = nir.LIF(**{k: np.full(form, v) for k, v in values.items()})
    nodes = {**ends([4], [3]), "w": part(w), "n": part(few)}
    graph, notes = graphs.load(save(tmp_path / "f.nir", nodes, edges := line("in", "w", "n", "out")))
    assert len(notes) == len(form) and all("(1,)" in n and "(3,)" in n for n in notes)
    full = nir.LIF(**{k: np.full(3, v) for k, v in values.items()})
    spikes(graph, connected({"w": w, "n": full}, edges, (4,)))


def test_numbers_among_arrays(tmp_path: Path) -> None:
    neuron = cell((3,))
    neuron.tau, neuron.r = np.full(3, 2.0), np.full(3, 0.5)
    nodes = {**ends([3]), "n": part(neuron, tau=2.0, r=[0.5])}
    graph, notes = graphs.load(save(tmp_path / "f.nir", nodes, edges := line("in", "n", "out")))
    assert len(notes) == 1 and "'n'" in notes[0]
    spikes(graph, connected({"n": neuron}, edges, (3,)))
    nodes["n"] = part(neuron, tau=[2.0, 2.0])
    refused(save(tmp_path / "f.nir", nodes, edges), "'n'", "tau (2,)", "r (3,)")


BROKEN: dict[str, tuple[Tree, tuple[str, ...]]] = {
    "unknown field": (part(cell((3,)), reset="soft"), ("'n'", "LIF", "'reset'")),
    "missing field": (part(cell((3,)), tau=None), ("'n'", "LIF", "'tau'", "v_leak")),
    "no type": ({"weight": np.eye(3)}, ("'n'", "'type'", "rename")),
    "unknown kind": ({"type": "Sequence"}, ("'n'", "'Sequence'", "LIF")),
    "odd shape": ({"type": "Flatten", "input_type": [2.5], "start_dim": 0, "end_dim": 0}, ("'n'", "2.5")),
    "flat weight": ({"type": "Linear", "weight": np.ones(3)}, ("'n'", "Linear")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_nodes(name: str, tmp_path: Path) -> None:
    fields, words = BROKEN[name]
    refused(save(tmp_path / "f.nir", {**ends([3]), "n": fields}, line("in", "n", "out")), "f.nir", *words)


def test_no_graph(tmp_path: Path) -> None:
    nodes = {**ends([3]), "n": part(cell((3,)))}
    path = save(tmp_path / "f.nir", nodes, line("in", "n", "out"))
    with h5py.File(path, "a") as f:
        del f["node/edges"]
        f["node/edges"] = np.array([["in", "n", "out"]], "S")
    refused(path, "(1, 3)", "pairs")
    with h5py.File(path, "a") as f:
        del f["node/edges"]
    refused(path, "'edges'")
    nir.write(path, cell((3,)))
    refused(path, "single LIF", "Input and an Output")


def test_missing_ends(tmp_path: Path) -> None:
    both = {**ends([3]), "n": part(cell((3,)))}
    for name, edges, advice in (("in", line("n", "out"), "feeds 'n'"), ("out", line("in", "n"), "behind 'n'")):
        nodes = {n: d for n, d in both.items() if n != name}
        refused(save(tmp_path / "f.nir", nodes, edges), "Input" if name == "in" else "Output", advice)
    refused(save(tmp_path / "f.nir", {**both, "b": both["in"]}, [*line("in", "n", "out"), ("b", "n")]), "(b, in)")


# --- parameters of fewer axes than the neurons


FEWER = {
    "channel": lambda a: a,
    "channel, ones": lambda a: a.reshape(-1, 1, 1),
    "batch of one, channel": lambda a: a.reshape(1, -1, 1, 1),
    "batch": lambda a: np.broadcast_to(a.reshape(-1, 1, 1), (5, 2, 4, 3)),
    "rows": lambda a: a.reshape(-1, 1, 1) + np.zeros((2, 4, 1)),
}


@pytest.mark.parametrize("form", FEWER)
@pytest.mark.parametrize("kind", [nir.LIF, nir.CubaLIF, nir.Threshold, nir.Scale])
def test_parameters_of_a_channel(kind: Any, form: str, tmp_path: Path) -> None:
    conv = R.conv(2, 1, (3, 3), padding=1)
    made = {
        nir.Threshold: lambda: nir.Threshold(np.array([0.25, 0.75])),
        nir.Scale: lambda: nir.Scale(np.array([2.0, 0.5])),
    }
    few = made[kind]() if kind in made else cell((2,), kind)
    values = {k: v for k, v in part(few).items() if k != "type"}
    assert all(v.shape == (2,) for v in values.values())
    nodes = {
        **ends([1, 4, 3]),
        "c": part(conv, input_shape=None),
        "n": part(few, **{k: FEWER[form](v) for k, v in values.items()}),
    }
    nodes["t"] = part(nir.Threshold(np.full((2, 4, 3), 0.5)))
    graph, notes = graphs.load(save(tmp_path / "f.nir", nodes, edges := line("in", "c", "n", "t", "out")))
    assert len(notes) == 1 and "'n'" in notes[0] and "(2, 4, 3)" in notes[0]
    full = kind(**{k: v.reshape(2, 1, 1) + np.zeros((2, 4, 3)) for k, v in values.items()})
    clean = connected({"c": conv, "n": full, "t": nir.Threshold(np.full((2, 4, 3), 0.5))}, edges, (1, 4, 3))
    spikes(graph, clean)


DOUBTFUL = {
    "channel or column": ((3, 4, 3), np.array([0.25, 0.5, 1.0]), ("axis 0 or 2", "(3, 4, 3)")),
    "channel or row": ((4, 4, 3), np.array([0.25, 0.5, 1.0, 2.0]), ("axis 0 or 1",)),
    "column": ((2, 4, 3), np.array([0.25, 0.5, 1.0]), ("(3,)", "(2, 4, 3)")),
    "in a row": ((2, 2, 3), np.arange(12.0), ("order", "(12,)", "(2, 2, 3)")),
    "another size": ((2, 4, 3), np.ones((2, 3, 4)), ("(2, 3, 4)", "(2, 4, 3)")),
    "a batch that differs": ((2, 4, 3), np.arange(48.0).reshape(2, 2, 4, 3), ("(2, 2, 4, 3)", "(2, 4, 3)")),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_parameters_in_doubt(name: str, tmp_path: Path) -> None:
    shape, value, words = DOUBTFUL[name]
    nodes = {**ends([1, *shape[1:]]), "c": part(R.conv(shape[0], 1, (1, 1)), input_shape=None)}
    nodes["n"] = {"type": "Threshold", "threshold": value}
    path = save(tmp_path / "f.nir", nodes, line("in", "c", "n", "out"))
    refused(path, "edge 'c' -> 'n'", *words)


def test_equal_parameters_in_a_row(tmp_path: Path) -> None:
    """In whatever order they go with the neurons."""
    nodes = {**ends([2, 2, 3]), "n": {"type": "Threshold", "threshold": np.full(12, 0.25)}}
    graph, notes = graphs.load(save(tmp_path / "f.nir", nodes, edges := line("in", "n", "out")))
    assert len(notes) == 1
    spikes(graph, connected({"n": nir.Threshold(np.full((2, 2, 3), 0.25))}, edges, (2, 2, 3)))


# --- sub-graphs


def sub(nodes: Tree, edges: Edges) -> Tree:
    return {"type": "NIRGraph", "nodes": nodes, "edges": pairs(edges)}


def loop(size: int = 3) -> tuple[nir.ir.NIRNode, nir.Linear, Tree]:
    """A recurrent population in the form of snnTorch's sub-graph."""
    neuron, w = cell((size,), nir.CubaLIF), nir.Linear(R.weight(size, size))
    ports = {"input": {"type": "Input", "shape": [size]}, "output": {"type": "Output", "shape": [size]}}
    edges = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
    return neuron, w, sub({**ports, "lif": part(neuron), "w_rec": part(w)}, edges)


def test_recurrent_sub_graph(tmp_path: Path) -> None:
    neuron, w_rec, tree = loop()
    w = R.affine(4, 3)
    nodes = {**ends([4], [3]), "w": part(w), "rec": tree}
    path = save(tmp_path / "f.nir", nodes, line("in", "w", "rec", "out"))
    assert nir.read(path) is not None
    graph, notes = graphs.load(path)
    assert sorted(graph.nodes) == ["in", "out", "rec.lif", "rec.w_rec", "w"]
    assert notes == ("sub-graph 'rec' is flattened: its nodes are called 'rec.NODE'",)
    added = insert_delays(graph, **DT)[1]
    assert len(added) == 1 and "'rec.w_rec' -> 'rec.lif'" in added[0]
    edges = [*line("in", "w", "n", "out"), ("n", "v"), ("v", "d"), ("d", "n")]
    clean = connected({"w": w, "n": neuron, "v": w_rec, "d": nir.Delay(np.ones(3))}, edges, (4,))
    spikes(graph, clean, n="rec.lif")


def test_sub_graphs_to_any_depth(tmp_path: Path) -> None:
    a, b, w = cell((3,)), cell((3,)), R.affine(3, 3)
    port = {"i": {"type": "Input", "shape": [3]}, "o": {"type": "Output", "shape": [3]}}
    inner = sub({**port, "n": part(b)}, line("i", "n", "o"))
    middle = sub({**port, "w": part(w), "deep": inner}, line("i", "w", "deep", "o"))
    nodes = {**ends([3]), "n": part(a), "mid": middle}
    graph, notes = graphs.load(save(tmp_path / "f.nir", nodes, line("in", "n", "mid", "out")))
    assert sorted(graph.nodes) == ["in", "mid.deep.n", "mid.w", "n", "out"]
    assert len(notes) == 2 and "'mid.deep.NODE'" in notes[1]
    clean = connected({"a": a, "w": w, "b": b}, line("in", "a", "w", "b", "out"), (3,))
    spikes(graph, clean, a="n", b="mid.deep.n")


def test_loop_through_two_sub_graphs(tmp_path: Path) -> None:
    """A cycle that runs outside of them, and a neuron that feeds itself."""
    port = {"i": {"type": "Input", "shape": [3]}, "o": {"type": "Output", "shape": [3]}}
    a, b = cell((3,)), cell((3,))
    nodes = {**ends([3]), "a": sub({**port, "n": part(a)}, line("i", "n", "o"))}
    nodes["b"] = sub({**port, "n": part(b)}, [*line("i", "n", "o"), ("n", "n")])
    graph, _ = graphs.load(save(tmp_path / "f.nir", nodes, [*line("in", "a", "b", "out"), ("b", "a")]))
    result, added = insert_delays(graph, **DT)
    assert {t.split(" closes")[0] for t in added} == {"edge 'b.n' -> 'a.n'", "edge 'b.n' -> 'b.n'"}
    graphs.check(result, **DT)
    d = {"d": nir.Delay(np.ones(3)), "e": nir.Delay(np.ones(3))}
    edges = [*line("in", "a", "b", "out"), ("b", "d"), ("d", "a"), ("b", "e"), ("e", "b")]
    spikes(graph, connected({"a": a, "b": b, **d}, edges, (3,)), a="a.n", b="b.n")


def test_names_that_collide(tmp_path: Path) -> None:
    """What stands outside keeps its name, in whatever order the file holds its nodes."""
    neuron, w_rec, tree = loop()
    nodes = {**ends([3]), "rec": tree, "rec.lif": part(outer := cell((3,)))}
    edges = line("in", "rec", "rec.lif", "out")
    clean_edges = [*line("in", "n", "m", "out"), ("n", "v"), ("v", "d"), ("d", "n")]
    clean = connected({"n": neuron, "m": outer, "v": w_rec, "d": nir.Delay(np.ones(3))}, clean_edges, (3,))
    graph, notes = graphs.load(save(tmp_path / "f.nir", nodes, edges))
    assert "rec.lif_" in graph.nodes and any("'rec.lif_'" in n for n in notes)
    spikes(graph, clean, n="rec.lif_", m="rec.lif")
    tree["nodes"] = dict(random.Random(1).sample(list(tree["nodes"].items()), 4))
    turned = foreign.adopt({"nodes": dict(reversed(nodes.items())), "edges": edges[::-1]} | {"metadata": {}})[0]
    assert sorted(turned.nodes) == sorted(graph.nodes) and sorted(turned.edges) == sorted(graph.edges)


def test_ports_in_the_middle(tmp_path: Path) -> None:
    """nirtorch writes sub-graphs flat, with their ports, and edges that name the sub-graph itself."""
    neuron, w_rec, tree = loop()
    nodes = {**ends([3]), **{f"rec.{n}": d for n, d in tree["nodes"].items()}}
    inside = [(f"rec.{a.decode()}", f"rec.{b.decode()}") for a, b in np.array(tree["edges"]).astype("S").tolist()]
    graph, notes = graphs.load(save(tmp_path / "f.nir", nodes, [*inside, *line("in", "rec", "out")]))
    assert sorted(graph.nodes) == ["in", "out", "rec.lif", "rec.w_rec"]
    assert any("'rec.input'" in n for n in notes) and any("'rec.output'" in n for n in notes)
    edges = [*line("in", "n", "out"), ("n", "v"), ("v", "d"), ("d", "n")]
    spikes(graph, connected({"n": neuron, "v": w_rec, "d": nir.Delay(np.ones(3))}, edges, (3,)), n="rec.lif")


def test_output_inside_a_loop(tmp_path: Path) -> None:
    neuron, w_rec = cell((3,)), nir.Linear(R.weight(3, 3))
    nodes = {**ends([3]), "n": part(neuron), "w": part(w_rec)}
    graph, notes = graphs.load(save(tmp_path / "f.nir", nodes, [*line("in", "n", "out", "w", "n")]))
    assert ("n", "w") in graph.edges and not any(a == "out" for a, _ in graph.edges) and len(notes) == 1
    edges = [*line("in", "n", "out"), ("n", "w"), ("w", "d"), ("d", "n")]
    spikes(graph, connected({"n": neuron, "w": w_rec, "d": nir.Delay(np.ones(3))}, edges, (3,)))


def test_edges_into_a_sub_graph(tmp_path: Path) -> None:
    port = {"i": {"type": "Input", "shape": [3]}, "o": {"type": "Output", "shape": [3]}}
    n, m = cell((3,)), cell((3,))
    both = sub({**port, "n": part(n), "m": part(m)}, line("i", "n", "m", "o"))
    edges = [*line("in", "s", "out"), ("s.n", "out")]
    graph, _ = graphs.load(save(tmp_path / "f.nir", {**ends([3]), "s": both}, edges))
    clean = connected({"n": n, "m": m}, [*line("in", "n", "m", "out"), ("n", "out")], (3,))
    spikes(graph, clean, n="s.n", m="s.m")


def test_sub_graph_that_only_passes_on(tmp_path: Path) -> None:
    """Beside an edge that is there already it counts twice, as it did before."""
    port = {"i": {"type": "Input", "shape": [3]}, "o": {"type": "Output", "shape": [3]}}
    nodes = {**ends([3]), "n": part(neuron := cell((3,))), "s": sub(port, line("i", "o"))}
    graph, _ = graphs.load(save(tmp_path / "f.nir", nodes, [*line("in", "s", "n", "out"), ("in", "n")]))
    edges = [*line("in", "n", "out"), *line("in", "x", "n")]
    spikes(graph, connected({"n": neuron, "x": nir.Scale(np.ones(3))}, edges, (3,)))


BAD_SUBS: dict[str, tuple[Tree, Edges, tuple[str, ...]]] = {
    "no ports": ({"n": part(cell((3,)))}, [], ("edge 'in' -> 's'", "0 Input", "add an Input")),
    "two inputs": (
        {
            "a": {"type": "Input", "shape": [3]},
            "b": {"type": "Input", "shape": [3]},
            "o": {"type": "Output", "shape": [3]},
        },
        [("a", "o"), ("b", "o")],
        ("edge 'in' -> 's'", "2 Input", "s.a, s.b"),
    ),
    "unfed": (
        {
            "i": {"type": "Input", "shape": [3]},
            "o": {"type": "Output", "shape": [3]},
            "b": {"type": "Input", "shape": [3]},
        },
        [("i", "o"), ("b", "o")],
        ("2 Input",),
    ),
    "edge to nowhere": (
        {"i": {"type": "Input", "shape": [3]}, "o": {"type": "Output", "shape": [3]}},
        [("i", "x"), ("i", "o")],
        ("'i' -> 'x'", "no node"),
    ),
    "of another size": (
        {"i": {"type": "Input", "shape": [2]}, "o": {"type": "Output", "shape": [2]}},
        [("i", "o")],
        ("edge 'in' -> 's.i'", "(3,)", "(2,)"),
    ),
}


@pytest.mark.parametrize("name", BAD_SUBS)
def test_bad_sub_graphs(name: str, tmp_path: Path) -> None:
    nodes, edges, words = BAD_SUBS[name]
    path = save(tmp_path / "f.nir", {**ends([3]), "s": sub(nodes, edges)}, line("in", "s", "out"))
    refused(path, "f.nir", *words)


def test_unfed_input_of_a_sub_graph(tmp_path: Path) -> None:
    port = {n: {"type": "Input", "shape": [3]} for n in "ab"} | {"o": {"type": "Output", "shape": [3]}}
    nodes = {**ends([3]), "s": sub(port, [("a", "o"), ("b", "o")])}
    refused(save(tmp_path / "f.nir", nodes, [("in", "s.a"), ("s", "out")]), "nothing feeds 's.b'", "connect it")


# --- time in the metadata


def timed(tmp_path: Path, *, outer: Tree | None = None, inner: Tree | None = None, node: Tree | None = None) -> Path:
    tree = loop()[2]
    tree["nodes"]["lif"] |= {"metadata": node} if node else {}
    tree |= {"metadata": inner} if inner else {}
    return save(
        tmp_path / "f.nir", {**ends([3]), "s": tree}, line("in", "s", "out"), **({"metadata": outer} if outer else {})
    )


@pytest.mark.parametrize("place", ["outer", "inner", "node"])
def test_plain_dt(place: str, tmp_path: Path) -> None:
    graph, notes = graphs.load(timed(tmp_path, **{place: {"dt": 0.25}}))
    assert any("dt = 0.25" in n and "--dt" in n for n in notes)
    with pytest.raises(GraphError, match="integrator"):  # which nobody can guess
        graphs.clock_of(graph)
    assert graphs.clock_of(graph, integrator="euler").dt == 0.25
    assert graphs.clock_of(graph, dt=0.5, integrator="euler").dt == 0.5
    assert graphs.step_of(graph) == 0.25 and graphs.step_of(graph, 0.5) == 0.5


def test_contradicting_dt(tmp_path: Path) -> None:
    graph, notes = graphs.load(timed(tmp_path, outer={"dt": 0.25}, node={"dt": 0.5}))
    assert any("0.25 (the graph)" in n and "0.5 (node 's.lif')" in n for n in notes)
    with pytest.raises(GraphError, match="--dt"):
        graphs.clock_of(graph, integrator="euler")
    graph, notes = graphs.load(timed(tmp_path, outer={"dt": "fast"}))
    assert any("'fast'" in n for n in notes)
    with pytest.raises(GraphError, match="--dt"):
        graphs.clock_of(graph, integrator="euler")


def test_our_group_in_a_sub_graph(tmp_path: Path) -> None:
    said = {"schema": 1, "dt": 0.5, "integrator": "exponential"}
    graph, notes = graphs.load(timed(tmp_path, inner={"eiexport": said}))
    assert graphs.clock_of(graph) == Clock(0.5, "exponential") and any("sub-graph 's'" in n for n in notes)
    refused(timed(tmp_path, inner={"eiexport": said}, node={"eiexport": said | {"dt": 1.0}}), "differ in dt")
    graph, _ = graphs.load(timed(tmp_path, outer={"eiexport": said}, inner={"dt": 1.0}))
    assert graphs.clock_of(graph).dt == 0.5


def test_extension_nodes_inside_sub_graphs(tmp_path: Path) -> None:
    """Our own kinds keep their shapes as they are; the sub-graph is flattened all the same."""
    own = lif((3,), decay=0.5, threshold=0.5)
    port = {"i": {"type": "Input", "shape": [3]}, "o": {"type": "Output", "shape": [3]}}
    nodes = {**ends([3], [3]), "s": sub({**port, "n": part(own)}, line("i", "n", "o"))}
    graph, _ = graphs.load(save(tmp_path / "f.nir", nodes, line("in", "s", "out")))
    spikes(graph, connected({"n": own}, line("in", "n", "out"), (3,)), n="s.n")


STOCK = [c for c in CASES if all(type(n).__name__ in foreign.STOCK for n in c.graph.nodes.values())]


@pytest.mark.parametrize("case", STOCK, ids=repr)
def test_clean_graphs_stay_as_they_are(case: Case, tmp_path: Path) -> None:
    """As another tool would write them: without our metadata, and with the shapes that NIR asks for."""
    network = case.network()
    clean = foreign.shapes.fit(case.graph)[0]
    plain = nir.NIRGraph(dict(clean.nodes), list(clean.edges), metadata={}, type_check=False)
    graphs.write(plain, tmp_path / "f.nir")
    graph, notes = graphs.load(tmp_path / "f.nir")
    assert notes == () and sorted(graph.edges) == sorted(case.graph.edges)
    again = graphs.check(graph, network.clock.dt, network.clock.integrator, case.alphabet)
    assert again.shapes == network.shapes
    before, after = (base.get("reference")().compile(n).run(case.x).z for n in (network, again))
    for name, z in before.items():
        np.testing.assert_array_equal(after[name], z, err_msg=name)


# --- numbers that are none


@pytest.mark.parametrize("field,value", [("tau", np.array([2 + 1j, 2, 2])), ("r", np.array([b"1", b"2", b"3"], "S1"))])
def test_parameters_that_are_no_real_numbers(field: str, value: np.ndarray, tmp_path: Path) -> None:
    """An imaginary part would be dropped, and text be read as numbers."""
    nodes = {**ends([3], [3]), "n": part(cell((3,)), **{field: value})}
    refused(save(tmp_path / "f.nir", nodes, line("in", "n", "out")), "'n'", field, "real numbers")


def test_float32_delay_is_whole_within_its_own_rounding(tmp_path: Path) -> None:
    delay = np.full(3, 0.01, np.float32)  # 100 steps of 1e-4, which float32 holds to 6e-8
    nodes = {**ends([3], [3]), "d": part(nir.Delay(delay)), "n": part(cell((3,)))}
    graph, _ = graphs.load(save(tmp_path / "f.nir", nodes, line("in", "d", "n", "out")))
    assert graphs.check(graph, dt=1e-4, integrator="exponential").steps["d"].shortest == 100  # type: ignore[attr-defined]
    nodes["d"] = part(nir.Delay(delay.astype(np.float64)))
    path = save(tmp_path / "g.nir", nodes, line("in", "d", "n", "out"))
    with pytest.raises(GraphError, match="no whole number of steps"):
        graphs.check(graphs.read(path), dt=1e-4, integrator="exponential")


def test_weights_may_be_alike(tmp_path: Path) -> None:
    """A one-to-one matrix of many neurons presses well; it is no bomb."""
    graph = connected({"w": nir.Linear(np.eye(3000))}, line("in", "w", "out"), (3000,))
    graph.nodes["out"] = nir.Output(np.array([3000]))
    graphs.write(graph, tmp_path / "eye.nir")
    assert (tmp_path / "eye.nir").stat().st_size < 3000 * 3000 * 8 / 100
    assert np.array_equal(graphs.read(tmp_path / "eye.nir").nodes["w"].weight, np.eye(3000))


def test_ports_without_shape_can_be_written_again(tmp_path: Path) -> None:
    """A sub-graph that only passes on becomes a factor of one, which NIR can write."""
    inner = {"type": "NIRGraph", "nodes": ends(None), "edges": pairs(line("in", "out"))}
    nodes = {**ends([3], [3]), "s": inner, "n": part(neuron := cell((3,)))}
    edges = [("in", "s"), ("s", "n"), ("in", "n"), ("n", "out")]
    graph, _ = graphs.load(save(tmp_path / "f.nir", nodes, edges))
    graphs.write(graph, tmp_path / "again.nir")
    twice = {"in2": nir.Scale(np.full(3, 2.0)), "n": neuron}
    spikes(graphs.read(tmp_path / "again.nir"), connected(twice, line("in", "in2", "n", "out"), (3,)))
