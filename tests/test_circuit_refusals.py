"""What an export of circuits has to refuse, or to see, before it writes anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from typer.testing import CliRunner

import eiexport.cli
from eiexport import divide, graph, nodes
from eiexport.circuits import EICircuit
from targets.denominators import denominators

RNG = np.random.default_rng(3)


def circuit(inputs: int, cells: int, **fields: Any) -> EICircuit:
    parts = (nir.Linear(RNG.random(s)) for s in ((cells, inputs), (cells // 4, inputs), (cells, cells // 4)))
    given: dict[str, Any] = (
        {} if fields.get("form") == "none" else {"gain_i": np.ones(cells // 4), "gain_e": np.ones(cells)}
    )
    return EICircuit(*parts, **given | fields)


def written(path: Path, *behind: Any, last: Any = None, shape: tuple[int, ...] = (3,)) -> Path:
    """input -> circuit c (8 cells) -> the nodes n0, n1, ... -> output."""
    found = {"input": nir.Input(np.array(shape)), "c": last or circuit(3, 8)}
    found |= {f"n{i}": node for i, node in enumerate(behind)}
    end = (8,) if not behind or len(behind) == 1 else (4,)
    found["output"] = nir.Output(np.array(end))
    made = nir.NIRGraph(found, list(zip(found, list(found)[1:], strict=False)), type_check=False)
    graph.write(graph.stamp(made, dt=1.0, integrator="euler", dtype="float64"), path)
    return path


def export(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(eiexport.cli.app, list(map(str, arguments)))
    return result.exit_code, result.output


@pytest.fixture
def x(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", RNG.integers(0, 4, (6, 4, 3)).astype(np.float32))
    return tmp_path / "x.npy"


def lif(**fields: Any) -> nodes.EIDiscreteLIF:
    return nodes.lif((8,), decay=0.5, threshold=1.0, compare="ge", reset="subtract", **fields)


@pytest.mark.parametrize(
    "neuron",
    [
        lif(gain=0.25),
        nodes.EIGatedLIF(lif(gain=0.25), feedback=nir.Affine(np.eye(8), np.zeros(8))),
        nir.CubaLIF(*(np.full(8, v) for v in (2.0, 2.0, 1.0, 0.0, 1.0)), v_reset=np.zeros(8), w_in=np.full(8, 0.2)),
    ],
)
def test_integers_have_no_gain_behind_a_circuit(neuron: Any, tmp_path: Path, x: Path) -> None:
    model = written(tmp_path / "m.nir", neuron)
    code, said = export(model, "--input", x, "--divide", "exact", "--quantize", 8, "--out", tmp_path / "o")
    assert code == 2 and "node 'c': a circuit ends in one neuron without a gain" in said
    assert not (tmp_path / "o").exists()


def test_a_biased_readout_has_no_circuit_in_integers(tmp_path: Path, x: Path) -> None:
    model = written(tmp_path / "m.nir", lif(), circuit(8, 4, form="none", bias=np.full(4, 0.3)))
    given = (model, "--input", x, "--divide", "exact", "--quantize", 8, "--out", tmp_path / "o")
    code, said = export(*given, "--dale", "apart")
    assert code == 2 and "node 'n1' has a bias and no gains" in said
    assert export(*given)[0] == 0  # folded, the bias stays


def test_negative_input_is_refused_though_circuits_fold(tmp_path: Path) -> None:
    """Folded, nothing would tell: the relu that they no longer have did something."""
    np.save(tmp_path / "x.npy", -np.ones((2, 4, 3), np.float32))
    model = written(tmp_path / "m.nir", lif(), last=circuit(3, 8, form="frozen", denominator=np.ones(8)))
    for dale in ("fold", "apart"):
        code, said = export(model, "--input", tmp_path / "x.npy", "--dale", dale, "--out", tmp_path / "o")
        assert code == 2 and "must not be negative" in said and "'c'" in said
        assert not (tmp_path / "o").exists()


def test_a_circuit_behind_a_membrane_does_not_fold() -> None:
    found: dict[str, Any] = {"input": nir.Input(np.array([3])), "v": nir.LI(*(np.full(3, v) for v in (2.0, 1.0, 0.0)))}
    found |= {"c": circuit(3, 8, form="none"), "output": nir.Output(np.array([8]))}
    made = nir.NIRGraph(found, list(zip(found, list(found)[1:], strict=False)), type_check=False)
    made = graph.stamp(made, dt=1.0, integrator="euler", dtype="float64")
    assert divide.fold(made).nodes["c"] is found["c"]


def test_cells_of_a_matrix_lie_on_the_last_axis() -> None:
    """Over (8, 3) places and inputs, 8 cells: nothing but the axis tells them from the places."""
    node = circuit(3, 8)
    network = graph.check(
        graph.stamp(
            nir.NIRGraph(
                {"input": nir.Input(np.array([8, 3])), "c": node, "output": nir.Output(np.array([8, 8]))},
                [("input", "c"), ("c", "output")],
                type_check=False,
            ),
            dt=1.0,
            integrator="euler",
            dtype="float64",
        )
    )
    x = RNG.random((2, 3, 8, 3)).astype(np.float32)
    (seen,) = denominators(network, [x]).values()
    d = (x.astype(float) @ node.inhibit.weight.T) @ node.spread.weight.T
    np.testing.assert_allclose(seen.frozen, d.reshape(-1, 8).mean(0), rtol=1e-5)


def test_a_matrix_that_rounds_to_nothing_is_refused(tmp_path: Path, x: Path) -> None:
    weak = circuit(3, 8)
    weak.excite.weight = weak.excite.weight * 2.0**30  # type: ignore[attr-defined]
    model = written(tmp_path / "m.nir", lif(), last=weak)
    code, said = export(model, "--input", x, "--divide", "exact", "--quantize", 8, "--out", tmp_path / "o")
    assert code == 2 and "node 'c': " in said and "rounds to 0 beside the other matrices" in said


def test_numbers_chosen_on_the_tested_input_are_told(tmp_path: Path, x: Path) -> None:
    model, told = written(tmp_path / "m.nir", lif()), "chosen on the tested input itself"
    given = (model, "--input", x, "--divide", "frozen", "--out", tmp_path / "o")
    assert told in " ".join(export(*given)[1].split())
    assert told not in " ".join(export(*given, "--calibration", x)[1].split())
