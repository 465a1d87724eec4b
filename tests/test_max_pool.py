"""EIMaxPool2d: max pooling of currents; what it accepts, what it equals in stock nodes, and who refuses it."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
from cases import chain, full, hard, integrate
from test_graph import assert_same_node

from eiexport import calibrate, graph, quantise
from eiexport.alphabet import BINARY, REAL, TERNARY, Alphabet, interval
from eiexport.bounds import BoundedOps
from eiexport.errors import ExportError, GraphError
from eiexport.integers import IntCubaLIF, IntDense
from eiexport.nodes import EIMaxPool2d, lif
from eiexport.ops import NumpyOps, Window
from eiexport.tracing import Dag, TraceOps
from targets import base
from targets.observe import observe
from targets.pytorch import TorchOps

BLOCK = (3, 1, 1)  # EICIL's kernel, stride and padding


def pool(kernel: Any, stride: Any, padding: Any) -> EIMaxPool2d:
    return EIMaxPool2d(*(np.broadcast_to(v, 2).copy() for v in (kernel, stride, padding)))


def run(nodes: list[Any], x: np.ndarray, target: str = "reference") -> np.ndarray:
    """What the last node of a chain sends."""
    found = base.get(target)().compile(graph.check(chain(x.shape[2:], *nodes))).run(x).z
    return found[f"n{len(nodes) - 1}"]


def by_hand(x: list[list[float]], kernel: int, stride: int, padding: int) -> list[list[float]]:
    """Loops over one map; a window sees only what lies on it."""
    rows, columns = len(x), len(x[0])
    out = []
    for top in range(-padding, rows + padding - kernel + 1, stride):
        line = []
        for left in range(-padding, columns + padding - kernel + 1, stride):
            best = None
            for r, c in product(range(top, top + kernel), range(left, left + kernel)):
                if 0 <= r < rows and 0 <= c < columns and (best is None or x[r][c] > best):
                    best = x[r][c]
            assert best is not None
            line.append(best)
        out.append(line)
    return out


@pytest.mark.parametrize("target", ["reference", "torch", "torch32"])
@pytest.mark.parametrize("kernel, stride, padding", [BLOCK, (3, 2, 1), (2, 2, 0), (2, 1, 1), (1, 1, 0), (1, 2, 0)])
def test_pool_by_hand(target: str, kernel: int, stride: int, padding: int) -> None:
    rng = np.random.default_rng(kernel + 10 * stride)
    # few values, so that candidates tie; all negative, so that a padding of zeros would win
    x = -rng.integers(1, 4, (2, 3, 2, 5, 4)) / 4
    found = run([pool(kernel, stride, padding)], x, target)
    wanted = [[[by_hand(m, kernel, stride, padding) for m in step] for step in sample] for sample in x.tolist()]
    assert found.shape == np.shape(wanted)
    np.testing.assert_array_equal(found, wanted)
    assert found.max() < 0


@pytest.mark.parametrize("kernel, stride, padding", [BLOCK, (3, 2, 1), (2, 2, 0), ((2, 3), (1, 2), (1, 0))])
def test_on_spikes_it_is_a_sum_and_a_threshold(kernel: Any, stride: Any, padding: Any) -> None:
    x = (np.random.default_rng(1).random((3, 4, 2, 6, 5)) < 0.2).astype(float)
    one = pool(kernel, stride, padding)
    many = nir.SumPool2d(one.kernel_size, one.stride, one.padding)
    found, wanted = run([one], x), run([many, nir.Threshold(np.array(0.5))], x)
    np.testing.assert_array_equal(found, wanted)
    assert 0 < found.mean() < 1
    signed = np.random.default_rng(2).integers(-1, 2, x.shape).astype(float)  # a +1 among several -1
    assert (run([one], signed) != run([many, nir.Threshold(np.array(0.5))], signed)).any()


@pytest.mark.parametrize("a", [BINARY, TERNARY, REAL, interval(-7, -2, True), interval(0.5, 2, False)])
def test_alphabet_is_that_of_its_input(a: Alphabet) -> None:
    found = graph.check(chain((1, 4, 4), pool(*BLOCK)), alphabet=a).alphabets["n0"]
    assert found == a and found.discrete == a.discrete


@pytest.mark.parametrize(
    "fields, words",
    [
        ((2, 1, 2), "padding (2, 2) is more than half the window (2, 2)"),
        ((1, 1, 1), "more than half"),
        (((3, 1), 1, (1, 1)), "padding (1, 1) is more than half the window (3, 1)"),
        ((0, 1, 0), "kernel_size must be at least 1"),
        ((2, 0, 0), "stride must be at least 1"),
        ((2, 1, -1), "padding must be at least 0"),
        ((1.5, 1, 0), "kernel_size must be 2 whole numbers"),
        ((5, 1, 0), "pool window (5, 5) is larger than the padded input"),
    ],
)
def test_geometry_is_refused_by_name(fields: Any, words: str) -> None:
    with pytest.raises(GraphError) as told:
        graph.check(chain((1, 4, 4), pool(*fields)))
    assert "'n0'" in str(told.value) and words in str(told.value)


def test_maps_only() -> None:
    with pytest.raises(GraphError, match=r"'n0' do not fit.*pooling takes \(C, H, W\)"):
        graph.check(chain((4,), pool(*BLOCK)))


def written(tmp_path: Path) -> Path:
    g = chain((2, 5, 4), pool(3, (2, 1), (1, 0)), integrate((2, 3, 2)))
    g.nodes["out"] = nir.Output(np.array([2, 3, 2]))
    graph.write(g, tmp_path / "g.nir")
    return tmp_path / "g.nir"


def test_round_trip(tmp_path: Path) -> None:
    x = hard((2, 5, 4), 3)
    back = graph.read(written(tmp_path))
    assert_same_node(back.nodes["n0"], pool(3, (2, 1), (1, 0)), "n0")
    assert int(back.nodes["n0"].schema) == 1
    before = run([pool(3, (2, 1), (1, 0)), integrate((2, 3, 2))], x)
    after = base.get("reference")().compile(graph.check(back)).run(x).z["n1"]
    np.testing.assert_array_equal(before, after)
    assert before.any()
    with pytest.raises(AssertionError):  # a stock reader must not take it for something else
        nir.read(written(tmp_path))


@pytest.mark.parametrize("field, value, words", [("dilation", [2, 2], "no dilation"), ("schema", 2, "schema 2")])
def test_a_file_that_says_more_is_refused(tmp_path: Path, field: str, value: Any, words: str) -> None:
    with h5py.File(written(tmp_path), "r+") as f:
        node = f["node/nodes/n0"]
        node.pop(field, None)
        node[field] = value
    with pytest.raises(GraphError, match=f"'n0'.*{words}"):
        graph.read(tmp_path / "g.nir")


def test_traced_and_run_again() -> None:
    """The op as a line of a DAG, like every other."""
    window, x = Window((2, 1), (1, 0), (1, 1)), np.random.default_rng(2).normal(size=(2, 3, 5, 4))
    ops = TraceOps(NumpyOps())
    symbol = ops.max_pool(ops.symbol("input", ("x",), x), (3, 2), window)
    assert symbol.shape == (2, 3, 3, 3)
    dag = Dag(tuple(ops.lines), (symbol,))
    (found,) = dag.run(NumpyOps(), {"x": x})
    (other,) = dag.run(TorchOps(torch.float64), {"x": torch.from_numpy(x)})  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, NumpyOps().max_pool(x, (3, 2), window))
    np.testing.assert_array_equal(found, other.numpy())
    assert "max_pool" in str(dag)


def test_gradient_reaches_the_winner_alone() -> None:
    x = torch.tensor([[[[1.0, 3.0], [2.0, -1.0]]]], dtype=torch.float64, requires_grad=True)
    TorchOps(torch.float64).max_pool(x, (2, 2), Window((2, 2), (0, 0), (1, 1))).sum().backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [0, 1, 0, 0]


def test_bounds_keep_grid_and_largest_error() -> None:
    ops = BoundedOps("float32")
    whole = ops.max_pool(ops.exact(np.array([[[[0.25, -1.5], [2.0, 0.5]]]])), (2, 2), Window((1, 1), (1, 1), (1, 1)))
    assert whole.k == -2 and not whole.e.any() and whole.x.max() == 2 and whole.shape == (1, 1, 3, 3)
    rough = ops.exact(np.array([[[[1.0, 0.0, -9.0]]]]))._replace(e=np.array([[[[0.0, 0.5, 4.0]]]]))
    found = ops.max_pool(rough, (1, 2), Window((1, 1), (0, 0), (1, 1)))
    assert found.x.ravel().tolist() == [1, 0] and found.e.ravel().tolist() == [0.5, 4.0]


# --- who runs it, and who refuses it


def integers() -> graph.Network:
    """An integer network with a maximum, written by hand."""
    shape = (2,)
    cell = IntCubaLIF(full(shape, 20).astype(np.int32), np.array(4095), np.array(0), np.array(0), np.array(0))
    dense = IntDense(np.full((2, 8), 2, np.int16), np.zeros(2, np.int32), 0, 8, "mixed", 2)
    flat = nir.Flatten({"input": np.array([2, 2, 2])}, 0, -1)
    return graph.check(chain((2, 2, 2), pool(*BLOCK), flat, dense, cell), alphabet=TERNARY)


def test_claims() -> None:
    said = {name: str(base.get(name).claims.get("EIMaxPool2d", base.Claim("no"))) for name in base.REGISTRY}
    assert said["reference"] == "exact (scalar oracle)" and said["torch"] == "exact (reference)"
    assert said["torch32"] == "approximate (ties explained)" and said["lava"] == "exact (own step)"
    assert {said[name] for name in ("lava-dl", "loihi", "loihi-file")} == {"no"}


@pytest.mark.parametrize("target", ["loihi", "loihi-file", "lava-dl", "lava"])
def test_integer_engines_refuse_it_by_name(target: str) -> None:
    with pytest.raises(base.Unsupported, match=r"'n0' \(EIMaxPool2d\)"):
        base.get(target)().check(integers())


def test_on_whole_numbers_torch_equals_the_reference() -> None:
    x = np.random.default_rng(5).integers(-1, 2, (3, 6, 2, 2, 2)).astype(float)
    a, b = (base.get(n)().compile(integers()).run(x).z["n3"] for n in ("reference", "torch"))
    np.testing.assert_array_equal(a, b)
    assert a.any()


@pytest.mark.parametrize("where", ["currents", "spikes"])
def test_quantisation_refuses_it_by_name(where: str) -> None:
    shape = (2, 4, 4)
    conv = nir.Conv2d((4, 4), np.full((2, 2, 1, 1), 0.5), 1, 0, 1, 1, np.zeros(2))
    cell = lif(shape, decay=0.5, threshold=1)
    behind = [pool(*BLOCK), cell] if where == "currents" else [cell, pool(*BLOCK), conv, cell]
    network = graph.check(chain(shape, conv, *behind), alphabet=BINARY)
    x = np.random.default_rng(6).integers(0, 2, (2, 3, *shape)).astype(np.float32)
    with pytest.raises(ExportError, match=r"'n\d' \(EIMaxPool2d\) has no integer kind"):
        quantise.apply(network, calibrate.choose(network, observe(network, [x]), 8))
