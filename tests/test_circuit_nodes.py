"""EICircuit and IntCircuit as nodes: what is refused, in which words, and what a file gives back."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from cases import Case, chain
from circuit_cases import FLAT, FLOATS, FORMS, MAP, WHOLE, circuit_of
from int_networks import conv, dense
from test_graph import assert_same_node

from eiexport import divide, graph
from eiexport.alphabet import REAL, Alphabet, interval
from eiexport.circuits import EICircuit, IntCircuit, fold
from eiexport.errors import GraphError
from eiexport.ops import NumpyOps
from targets.loop import Executor

COUNTS = interval(0, 15, True)


def refused(node: Any, shape: Any, alphabet: Alphabet = REAL) -> str:
    """The one line that check says, behind the node's name and kind."""
    with pytest.raises(GraphError) as told:
        graph.check(chain(shape, node), alphabet=alphabet)
    words = str(told.value)
    assert "\n" not in words and "'n0'" in words
    return words.removeprefix(f"node 'n0' ({type(node).__name__})").lstrip(": ")


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape)


def made(**fields: Any) -> EICircuit:
    """nE = 4, nI = 2, two inputs."""
    parts = {"excite": ones(4, 2), "inhibit": ones(2, 2), "spread": ones(4, 2)}
    whole = {"gain_i": ones(2), "gain_e": ones(4), **fields}
    held = {k: whole.pop(k, w) for k, w in parts.items()}
    return EICircuit(**{k: nir.Linear(w) if isinstance(w, np.ndarray) else w for k, w in held.items()}, **whole)


def pixels(*shape: int, **geometry: Any) -> nir.Conv2d:
    fields = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **geometry}
    return nir.Conv2d((5, 5), np.ones(shape), bias=np.zeros(shape[0]), **fields)


def holding(value: float, *shape: int) -> np.ndarray:
    a = np.ones(shape)
    a.flat[-1] = value
    return a


CONSTANT = {"zero": "constant", "epsilon": 1.0}
TABLE = {**CONSTANT, "form": "table"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"excite": holding(-0.5, 4, 2)}, "excite holds -0.5: Dale's law asks for weights >= 0"),
    ({"inhibit": holding(-1e-9, 2, 2)}, "inhibit holds -1e-09: Dale's law asks for weights >= 0"),
    ({"spread": holding(-2, 4, 2)}, "spread holds -2: Dale's law asks for weights >= 0"),
    ({"gain_i": holding(-1, 2)}, "gain_i holds -1: Dale's law asks for gains >= 0"),
    ({"gain_e": holding(-3, 4)}, "gain_e holds -3: Dale's law asks for gains >= 0"),
    ({"gain_i": holding(-1, 2), "form": "none"}, "gain_i holds -1"),
    ({"gain_i": holding(np.inf, 2)}, "gain_i holds infinite values"),
    ({"excite": holding(np.nan, 4, 2)}, "excite: weight holds NaN values"),
    ({"bias": holding(np.nan, 4)}, "bias holds NaN values"),
    ({"gain_i": ones(3)}, "gain_i has shape (3,), there are 2 cells"),
    ({"gain_i": ones(2, 1)}, "gain_i has shape (2, 1), there are 2 cells"),
    ({"gain_e": ones(2)}, "gain_e has shape (2,), there are 4 cells"),
    ({"bias": ones(5)}, "bias has shape (5,), there are 4 cells"),
    ({"denominator": ones(2), "form": "frozen"}, "denominator has shape (2,), there are 4 cells"),
    ({"spread": ones(2, 4)}, "spread has shape (2, 4); it maps cell on cell, so it is (4, 2)"),
    ({"spread": ones(4, 3)}, "spread has shape (4, 3); it maps cell on cell, so it is (4, 2)"),
    ({"inhibit": ones(2, 3)}, "excite and inhibit differ in their geometry"),
    ({"inhibit": pixels(2, 2, 1, 1)}, "mixes convolutions and matrices"),
    ({"excite": nir.Affine(ones(4, 2), ones(4))}, "excite has a bias; the circuit's own is `bias`"),
    ({"spread": nir.Threshold(ones(4))}, "spread is a Threshold; it is one of Linear"),
    ({"spread": dense(ones(4, 2))}, "spread is a IntDense; it is one of Linear"),
    ({"gain_i": None}, "form 'exact' needs gain_i"),
    ({"gain_e": None}, "form 'exact' needs gain_e"),
    ({"gain_e": None, "form": "frozen"}, "form 'frozen' needs gain_e"),
    ({"form": "frozen"}, "form 'frozen' needs denominator"),
    ({"form": "frozen", "denominator": holding(0, 4)}, "denominator must be > 0, found 0"),
    ({"form": "halved"}, "form = 'halved'; valid: none, exact, frozen, shift, table"),
    ({"form": ""}, "form = ''; valid"),
    ({"zero": "least"}, "zero = 'least'; valid: sample_min, constant"),
    ({"form": "shift"}, "form 'shift' is for hardware, which has no minimum over a sample"),
    ({"form": "table"}, "form 'table' is for hardware, which has no minimum over a sample"),
    ({"zero": "constant"}, "epsilon must be > 0, found 0"),
    ({"zero": "constant", "epsilon": -1.0}, "epsilon must be > 0, found -1"),
    ({**CONSTANT, "epsilon": np.nan}, "epsilon holds NaN values"),
    ({**CONSTANT, "epsilon": "small"}, "epsilon is str, not numbers"),
    ({**TABLE, "table_bits": 0}, "table_bits must lie in [1, 10], found 0"),
    ({**TABLE, "table_bits": 11}, "table_bits must lie in [1, 10], found 11"),
    ({**TABLE, "table_bits": 2.5}, "table_bits must hold whole numbers, found 2.5"),
]


@pytest.mark.parametrize("fields, words", REFUSED, ids=[w[:60] for _, w in REFUSED])
def test_refused(fields: dict[str, Any], words: str) -> None:
    assert refused(made(**fields), (2,)).startswith(words)


def test_accepted_as_made() -> None:
    """What the refusals change is right; fields that a form does not use may stay."""
    fields = [{}, CONSTANT, TABLE, {**CONSTANT, "form": "shift"}, {"form": "frozen", "denominator": ones(4)}]
    for some in (*fields, {"form": "none", "gain_i": None, "gain_e": None}, {"bias": -ones(4)}, {"table_bits": 99}):
        assert graph.check(chain((2,), made(**some))).shapes["n0"] == (4,)


MAPS = {"excite": pixels(4, 2, 3, 3), "inhibit": pixels(2, 2, 3, 3), "spread": pixels(4, 2, 1, 1)}


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"inhibit": pixels(2, 2, 3, 3, stride=2)}, "excite and inhibit differ in their geometry"),
        ({"inhibit": pixels(2, 2, 3, 3, padding=1)}, "excite and inhibit differ in their geometry"),
        ({"excite": pixels(4, 2, 3, 2)}, "excite and inhibit differ in their geometry"),
        ({"spread": pixels(4, 2, 3, 3, padding=1)}, "spread has shape (4, 2, 3, 3); it maps cell on cell"),
        ({"spread": pixels(4, 2, 1, 1, stride=2)}, "spread has shape (4, 2, 1, 1); it maps cell on cell"),
        ({"spread": pixels(4, 2, 1, 1, padding=1)}, "spread has shape (4, 2, 1, 1); it maps cell on cell"),
        ({"gain_e": ones(4, 1, 1)}, "gain_e has shape (4, 1, 1), there are 4 cells"),
    ],
)
def test_maps_refused(fields: dict[str, Any], words: str) -> None:
    assert graph.check(chain((2, 5, 5), made(**MAPS))).shapes["n0"] == (4, 3, 3)
    assert refused(made(**{**MAPS, **fields}), (2, 5, 5)).startswith(words)


def test_input_that_does_not_fit() -> None:
    for node, shape, words in (
        (made(), (3,), "weight (4, 2) takes 2 inputs"),
        (made(**MAPS), (3, 5, 5), "convolution takes (2, H, W)"),
        (made(**MAPS), (2, 2, 5), "kernel (3, 3) is larger than the padded input"),
    ):
        assert refused(node, shape).endswith(f"'in' and 'n0' do not fit: 'in' gives {shape}, {words}")


def whole(**fields: Any) -> IntCircuit:
    parts: dict[str, Any] = {"excite": (4, 2), "inhibit": (2, 2), "spread": (4, 2)}
    messages = {"excite": 4, "inhibit": 4, "spread": 20}
    held = {
        k: fields.pop(k, dense(np.ones(s), sign_mode="excitatory", message_bits=messages[k])) for k, s in parts.items()
    }
    return IntCircuit(**held, **{"gain_i": ones(2), "gain_e": ones(4), **fields})


def minus(**fields: Any) -> Any:
    return dense(holding(-64, 4, 2), message_bits=4, **fields)


WHOLE_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"excite": minus()}, "excite holds -64: Dale's law asks for weights >= 0"),
    ({"spread": minus()}, "spread holds -64: Dale's law asks for weights >= 0"),
    ({"excite": nir.Linear(ones(4, 2))}, "excite is a Linear; it is one of IntDense, IntConv"),
    ({"excite": dense(ones(4, 2), ones(4), message_bits=4)}, "excite has a bias"),
    ({"inhibit": conv(ones(2, 2, 1, 1), message_bits=4)}, "mixes convolutions and matrices"),
    ({"spread": dense(ones(4, 3), message_bits=20)}, "spread has shape (4, 3)"),
    ({"spread": dense(ones(4, 2), sign_mode="excitatory", message_bits=2)}, "gets int[0,30], which message_bits = 2"),
    ({"spread": dense(ones(4, 2), sign_mode="excitatory")}, "gets int[0,30], but message_bits = 0"),
    ({"gain_i": 0.5 * ones(2)}, "gain_i must hold whole numbers, found 0.5"),
    ({"gain_e": holding(2.25, 4)}, "gain_e must hold whole numbers, found 2.25"),
    ({"bias": holding(0.5, 4)}, "bias must hold whole numbers, found 0.5"),
    ({"gain_i": holding(-1, 2)}, "gain_i must lie in [0, 16777216], found -1 to 1"),
    ({"gain_e": holding(-1, 4)}, "gain_e must lie in [0, 16777216], found -1 to 1"),
    ({"gain_i": ones(3)}, "gain_i has shape (3,), there are 2 cells"),
    ({"gain_i": None}, "form 'exact' needs gain_i"),
    ({"gain_e": None, "form": "frozen"}, "form 'frozen' needs gain_e"),
    ({"form": "half"}, "form = 'half'; valid: none, exact"),
    ({"form": "none", "bias": ones(4)}, "form 'none' has no bias"),
    ({"epsilon": 0}, "epsilon must lie in [1, 8388607], found 0"),
    ({"epsilon": -1}, "epsilon must lie in [1, 8388607], found -1"),
    ({"epsilon": 1.5}, "epsilon must hold whole numbers, found 1.5"),
    ({"shift": -1}, "shift = -1: a divided numerator is shifted left"),
    ({"shift": -1, "form": "table"}, "shift = -1: a divided numerator is shifted left"),
    ({"shift": 25}, "shift must lie in [-23, 24], found 25"),
    ({"shift": -24, "form": "frozen"}, "shift must lie in [-23, 24], found -24"),
    ({"gain_shift": -1}, "gain_shift must lie in [0, 23], found -1"),
    ({"gain_shift": 24}, "gain_shift must lie in [0, 23], found 24"),
    ({"form": "table", "table_bits": 0}, "table_bits must lie in [1, 10], found 0"),
    ({"form": "table", "table_bits": 11}, "table_bits must lie in [1, 10], found 11"),
    ({"shift": 24, "gain_e": (1 << 23) * ones(4)}, "its numerators reach 8.44425e+15, beyond 2^52"),
]


@pytest.mark.parametrize("fields, words", WHOLE_REFUSED, ids=[w[:60] for _, w in WHOLE_REFUSED])
def test_whole_refused(fields: dict[str, Any], words: str) -> None:
    assert refused(whole(**fields), (2,), COUNTS).startswith(words)


def test_whole_widths_are_proven() -> None:
    """Messages and registers: what the alphabet cannot rule out is refused, and half of it is taken."""
    assert graph.check(chain((2,), whole()), alphabet=COUNTS).alphabets["n0"] == interval(-131071, 131071, True)
    assert refused(whole(), (2,), interval(0, 16, True)).startswith("gets int[0,16], which message_bits = 4 cannot")
    kernels = {k: conv(ones(*s, 1, 1), message_bits=4) for k, s in (("excite", (1, 1)), ("inhibit", (1, 1)))}
    kernels["spread"] = conv(255 * ones(1, 1, 1, 1), weight_exp=12, message_bits=20)
    for form in ("none", "exact"):
        node = whole(**kernels, gain_i=ones(1), gain_e=ones(1), form=form)
        assert refused(node, (1, 2, 2), COUNTS).startswith("spread may leave 24 bits")
    kernels["spread"] = conv(255 * ones(1, 1, 1, 1), message_bits=32)
    node = whole(**kernels, gain_i=(1 << 12) * ones(1), gain_e=ones(1))
    assert refused(node, (1, 2, 2), COUNTS).startswith("its denominators may leave 24 bits: raise gain_shift")
    node.gain_shift = 1
    assert graph.check(chain((1, 2, 2), node), alphabet=COUNTS).integer


# --- files


ON_FILE = [c for c in FLOATS if "n1" in c.graph.nodes] + WHOLE[:20]


@pytest.mark.parametrize("case", ON_FILE, ids=repr)
def test_round_trip(case: Case, tmp_path: Path) -> None:
    network = case.network()
    whole = nir.NIRGraph(dict(case.graph.nodes), case.graph.edges, metadata=case.graph.metadata, type_check=False)
    whole.nodes["out"] = nir.Output(np.array(network.shapes["out"]))
    graph.write(whole, tmp_path / "g.nir")
    read = graph.read(tmp_path / "g.nir")
    node, back = whole.nodes["n0"], read.nodes["n0"]
    assert_same_node(back, node, "n0")
    assert_same_node(node, back, "n0")
    assert isinstance(back, EICircuit | IntCircuit) and isinstance(back.form, str)
    for key, value in vars(node).items():
        if isinstance(value, np.ndarray):
            assert getattr(back, key).dtype == value.dtype, key
        elif value is None:
            assert getattr(back, key) is None, key
    again = graph.check(read, alphabet=case.alphabet)
    assert graph.show(again) == graph.show(network)
    rows = np.swapaxes(case.x, 0, 1)
    before, after = (Executor(n, NumpyOps()).run(rows) for n in (network, again))
    for name, z in before.items():
        assert z.dtype == after[name].dtype
        np.testing.assert_array_equal(z, after[name], err_msg=name)


def file_of(node: Any, shape: Any, out: Any, tmp_path: Path) -> Path:
    g = chain(shape, node)
    g.nodes["out"] = nir.Output(np.array(out))
    graph.write(g, tmp_path / "g.nir")
    return tmp_path / "g.nir"


def test_what_is_absent_stays_absent(tmp_path: Path) -> None:
    """A file holds the fields of its form, plain numbers as numbers, and no None."""
    node = made(form="none", gain_i=None, gain_e=None)
    node.table_bits = np.array(5)  # as HDF5 or a caller may give it
    with h5py.File(file_of(node, (2,), (4,), tmp_path)) as f:
        held = f["node/nodes/n0"]
        assert set(held) == {
            *("type", "excite", "inhibit", "spread", "form", "zero", "epsilon", "table_bits", "schema"),
        }
        assert held["type"][()] == b"EICircuit" and held["form"][()] == b"none"
        assert held["table_bits"].shape == () and held["excite/type"][()] == b"Linear"
    with pytest.raises((AssertionError, ValueError)):  # a stock reader must not take it for something else
        nir.read(tmp_path / "g.nir")


def test_bytes_are_text() -> None:
    node = made(form=b"shift", zero=b"constant", epsilon=1.0)
    assert (node.form, node.zero) == ("shift", "constant")
    assert IntCircuit(*(dense([[1]]) for _ in range(3)), form=b"none").form == "none"


def test_metadata_and_float32_survive(tmp_path: Path) -> None:
    node = made(gain_i=np.array([0.1, 0.2], np.float32), excite=np.full((4, 2), 0.1, np.float32))
    node.metadata = {"dale": 1}
    back = graph.read(file_of(node, (2,), (4,), tmp_path)).nodes["n0"]
    assert back.metadata == {"dale": 1}
    assert back.gain_i.tobytes() == node.gain_i.tobytes() and back.gain_i.dtype == np.float32
    assert back.excite.weight.tobytes() == node.excite.weight.tobytes()


def test_convolution_without_its_size_is_not_written(tmp_path: Path) -> None:
    node = made(**{k: copy(p) for k, p in MAPS.items()})
    node.inhibit.input_shape = None
    with pytest.raises(GraphError, match=r"inhibit\.input_shape is None, which HDF5 cannot hold; fill it in"):
        file_of(node, (2, 5, 5), (4, 3, 3), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("node, shape", [(made(), (2,)), (whole(), (2,))], ids=["float", "integer"])
@pytest.mark.parametrize(
    "change, words",
    [
        ({"spread": None}, "has no spread; write it again"),
        ({"schema": 2}, "schema 2"),
        ({"excite/type": "Sigmoid"}, "Sigmoid"),
        ({"form": "half"}, "form = 'half'"),
        ({"gain_e": None}, "needs gain_e"),
        ({"gain_e": "many"}, "gain_e"),
    ],
)
def test_damaged_files(node: Any, shape: Any, change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = file_of(node, shape, (4,), tmp_path)
    with h5py.File(path, "r+") as f:
        for key, value in change.items():
            del f[f"node/nodes/n0/{key}"]
            if value is not None:
                f[f"node/nodes/n0/{key}"] = value
    with pytest.raises(GraphError) as told:
        graph.check(graph.read(path), alphabet=COUNTS)
    assert "n0" in str(told.value) and words in str(told.value) and "\n" not in str(told.value)


# --- show


def test_show() -> None:
    """One line that tells form, zero rule and shapes; the same whatever the order of the nodes."""
    node = circuit_of(1, "exact", "constant", FLAT, False)
    (line,) = (row for row in graph.show(graph.check(chain(FLAT, node))).splitlines() if "n0" in row.split(":")[0])
    for text in (
        *("n0: EICircuit 4 real", "form=exact", "zero=constant", "epsilon=0.07", "spread=Dense(weight=array[4,2])"),
        *("excite=Dense(weight=array[4,5])", "inhibit=Dense(weight=array[2,5])", "bias=array[4]"),
    ):
        assert text.replace(",", ", ") in line or text in line, (text, line)
    for form, zero in FORMS:
        shown = graph.show(graph.check(chain(MAP, circuit_of(1, form, zero, MAP, True))))
        assert f"form={form}" in shown and ("table=array[16]" in shown) == (form == "table")
        assert ("epsilon=0.0625" in shown) == (zero == "constant")
    shown = graph.show(graph.check(chain((2,), whole(shift=3, gain_shift=2)), alphabet=COUNTS))
    assert "n0: IntCircuit 4 int[-131071,131071]" in shown and "shift=3" in shown and "gain_shift=2" in shown


def test_folding_keeps_to_what_it_can() -> None:
    """Groups of inputs see other cells, and whole numbers are rounded on the way: neither is one kernel."""
    grouped = EICircuit(pixels(4, 1, 1, 1, groups=2), pixels(2, 1, 1, 1, groups=2), pixels(4, 2, 1, 1), form="none")
    words = [dense(np.ones(s), sign_mode="excitatory", message_bits=8) for s in ((4, 2), (2, 2), (4, 2))]
    whole = IntCircuit(*words, form="none")
    for node, shape in ((grouped, (2, 5, 5)), (whole, (2,))):
        step = graph.check(chain(shape, node), alphabet=interval(0, 1, True)).steps["n0"]
        assert not step.linear  # type: ignore[attr-defined]
        with pytest.raises(GraphError, match="no single connection"):
            fold(step)  # type: ignore[arg-type]
    kept = graph.stamp(chain((2, 5, 5), grouped), dt=1.0, integrator="euler", dtype="float64")
    assert divide.fold(kept).nodes["n0"] is grouped


@pytest.mark.parametrize("field, value", [("shift", [1, 2]), ("epsilon", [1, 2]), ("gain_shift", [1, 2])])
def test_one_number_is_one_number(field: str, value: list[int]) -> None:
    parts = (dense(np.ones(s), sign_mode="excitatory") for s in ((4, 2), (2, 2), (4, 2)))
    node = IntCircuit(*parts, gain_i=ones(2), gain_e=ones(4), **{field: np.array(value)})
    assert refused(node, (2,)) == f"{field} must be one number, found shape (2,)"


def test_widths_of_the_gains_are_proven() -> None:
    parts = [dense(255 * np.ones(s), sign_mode="excitatory", message_bits=32) for s in ((4, 2), (2, 2), (4, 2))]
    node = IntCircuit(*parts, gain_i=np.full(2, 1 << 24), gain_e=ones(4), gain_shift=23)
    assert "gain_i times its cells reaches" in refused(node, (2,), interval(0, (1 << 22) - 1, True))


def test_epsilon_is_a_number_that_float32_has() -> None:
    for value in (1e-60, np.array([1.0, 2.0])):
        assert refused(made(zero="constant", epsilon=value), (2,)).startswith("epsilon = ")


def test_no_gain_and_no_bound() -> None:
    """0 * inf is no number, and no alphabet."""
    network = graph.check(chain((2,), made(form="frozen", gain_e=np.zeros(4), denominator=ones(4))))
    assert network.alphabets["n0"] == REAL
