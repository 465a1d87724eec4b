"""Network files that netx does not run, or that are damaged: refused in one line, before they take time or memory."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from netfiles import FLAT, NETS, Layers, cell, conv, dense, given, write
from netx_runs import Run, run
from test_lava import one_line

from eiexport import graph as graphs
from eiexport.errors import GraphError
from eiexport.netfile import read_net
from eiexport.ops import Ints


def without(layer: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in layer.items() if k not in names}


def refusals() -> dict[str, tuple[bool, Layers, tuple[str, ...]]]:
    """(whether netx itself raises when it builds the network, layers, parts of the message)."""
    rng = np.random.default_rng(81)
    w, k = rng.integers(-9, 10, (2, 3)) * 2, rng.integers(-9, 10, (2, 2, 2, 2)) * 2
    line, image, plane = given(3), given(2, 3, 4), conv(k, (2, 2, 3))
    found: dict[str, tuple[bool, Layers, tuple[str, ...]]] = {}

    def add(name: str, raises: bool, layers: Layers, *parts: str) -> None:
        found[name] = raises, layers, parts

    for kind in ("pool", "convT", "unpool", "average", "concat"):
        add(kind, True, [line, dense(w), {"type": kind, "shape": np.array([2])}], f"layer 2 ({kind})", "does not run")
    add("unknown kind", False, [line, dense(w), {"type": "dropout"}], "layer 2 (dropout)", "skips it without a word")
    for model in ("LIF", "ALIF", "cuba"):
        add(f"neurons {model}", True, [line, dense(w, cell(type=model))], "layer 1 (dense)", f"'{model}'", "CUBA")
    add("sigma-delta", False, [line, dense(w, cell(type="SDNN"))], "'SDNN'")
    add("message bits", False, [line, dense(w, cell(messageBits=8))], "messageBits", "fails")
    complex_ = without(dense(w), "weight") | {"weight/real": w, "weight/imag": w}
    add("complex", True, [line, complex_], "complex weights")
    add("no threshold", True, [line, dense(w, without(cell(), "vThMant"))], "no vThMant")
    add("no decay", True, [line, dense(w, without(cell(), "iDecay"))], "no iDecay")
    add("no weight", True, [line, without(dense(w), "weight")], "no dataset 'weight'")
    add("no shape", True, [line, without(dense(w), "shape")], "no dataset 'shape'")
    add("no stride", True, [image, without(plane, "stride")], "no dataset 'stride'")
    add("no neurons", True, [image, without(plane, "neuron")], "layer 1 (conv)", "dense layers alone")
    for field, value, part in (
        *(("iDecay", 4097, "0 to 4096"), ("vDecay", -1, "found -1"), ("vThMant", 1 << 25, "33554432")),
        *(("vThMant", 80.0, "float64"), ("vThMant", np.int16(600), "int16"), ("iDecay", np.uint16(0), "uint16")),
        *(("vDecay", np.arange(3), "shape (3,)"), ("vDecay", np.zeros((1, 2), int), "shape (1, 2)")),
    ):
        layers = [line, dense(w, cell(**{field: value}))]
        add(f"{field} {part}", False, layers, "layer 1 (dense)", f"neuron/{field}", part)
    add("zeros", True, [line, dense(w * 0)], "all its weights are 0", "no exponent")
    add("a zero after the cut", True, [line, dense(w * 0 + 0.9)], "all its weights are 0")
    add("too large", False, [line, dense(abs(w) * 30)], "0 to 255", "scale them down")
    add("too small", False, [line, dense(-abs(w) - 300)], "-256 to 254", "scale them down")
    odd = {"type": "dense_rec", "weight_rec": np.array([[-201.0, 33], [3, 5]])}
    add("a loop of nine bits", False, [line, dense(abs(w) + 1) | odd], "layer 1 (dense_rec)", "words of 9 bits")
    add("weights that are no numbers", False, [line, dense(w * np.nan)], "NaN")
    add("weights of 33 bits", False, [line, dense(w * 1e12)], "32 bits")
    add("weights of another shape", True, [line, dense(w, outputs=3)], "(2, 3)", "3 neurons")
    add("weights of three axes", True, [line, dense(w[None], outputs=1)], "(1, 2, 3)")
    add("inputs do not fit", True, [line, dense(w), dense(w)], "layer 2 (dense)", "3 inputs", "(2,)")
    add("the input does not fit", False, [given(4), dense(w)], "layer 1 (dense)", "3 inputs", "(4,)")
    add(
        "a loop that does not fit",
        True,
        [line, dense(w, type="dense_rec", weight_rec=w)],
        "weight_rec has shape (2, 3)",
    )
    add("a loop without weights", True, [line, dense(w, type="dense_rec")], "no dataset 'weight_rec'")
    late = dense(w, type="dense_rec", weight_rec=w[:, :2], delay=[1.0, 2])
    add("a loop with delays that do not fit", True, [line, late], "delays in a loop", "3 inputs of 2 neurons")
    add("delays that do not fit", True, [line, dense(w, delay=[1.0] * 4)], "delay has shape (4,)", "(2, 3)")
    add("delays back in time", True, [line, dense(w, delay=[-1.0, 2])], "-1 steps")
    add("delays without end", False, [line, dense(w, delay=[np.inf, 2])], "delay holds NaN or infinite")
    add("biases of another size", False, [line, dense(w, bias=[1.0] * 3)], "bias has shape (3,)", "(2,)")
    add("a bias for a map", True, [image, plane | {"bias": 3.0}], "bias has shape ()", "(3, 2, 2)")
    add("no map", True, [line, dense(w), plane], "layer 2 (conv)", "(2,)")
    add("a map without shape", True, [plane], "no input layer")
    add("another output", True, [image, conv(k, (2, 3, 3))], "(2, 2, 3)", "(2, 3, 3)")
    add("channels", False, [image, conv(k[:, :1], (2, 2, 3))], "(2, 1, 2, 2)", "1 groups")
    add("groups", True, [image, plane | {"groups": 3}], "3 groups")
    add("groups in a list", True, [image, plane | {"groups": [1]}], "groups has shape (1,)")
    add("three strides", True, [image, plane | {"stride": [1, 1, 1]}], "stride has shape (3,)")
    add("stride 0", True, [image, plane | {"stride": [0, 1]}], "stride = [0, 1]", "1 to 127")
    add("padding 200", False, [image, plane | {"padding": 200}], "padding = 200", "0 to 127")
    add("no flatten", True, [image, plane, dense(rng.integers(-9, 9, (2, 12)))], "layer 2 (dense)", "put a flatten")
    add("flatten twice", True, [line, dense(w), FLAT, dense(w[:, :2])], "layer 3 (dense)", "remove it")
    add("input in the middle", False, [line, dense(w), line, dense(w[:, :2])], "layer 2 (input)", "first")
    add("input neurons in a plane", False, [given(3, 4, neuron=cell())], "(3, 4)", "(C, H, W)")
    add("input alone", False, [line], "no layer with neurons")
    add("no neurons in a shape", False, [given(0), dense(w)], "shape is [0]")
    add("too many neurons", False, [given(1 << 20, 1 << 20, 3), dense(w)], "4194304 neurons")
    return found


REFUSED = refusals()


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str, tmp_path: Path) -> None:
    _, layers, parts = REFUSED[name]
    with pytest.raises(GraphError) as e:
        read_net(write(tmp_path / "model.net", layers))
    one_line(e, str(tmp_path / "model.net"), *parts)


def test_netx_refuses_too(tmp_path: Path) -> None:
    """Where this is said of it; it builds the others, and fails later or computes what no one means."""
    runs = [Run(write(tmp_path / f"{i}.net", layers)) for i, (_, layers, _) in enumerate(REFUSED.values())]
    for (name, (raises, *_)), ran in zip(REFUSED.items(), run(runs), strict=True):
        assert bool(ran.error) >= raises, name


def test_arguments_are_checked(tmp_path: Path) -> None:
    file = write(tmp_path / "model.net", NETS["dense chain"].layers)
    for fields, part in (({"input_message_bits": -1}, "input_message_bits = -1"), ({"layers": 0}, "layers = 0")):
        with pytest.raises(GraphError, match=part):
            read_net(file, **fields)
    graph, _ = read_net(file, layers=2)
    assert sorted(n for n in graph.nodes if n.startswith("neuron")) == ["neuron1"]
    bits = [read_net(file, b)[0].nodes["dense1"].message_bits for b in (None, 0, 7)]
    assert bits == [0, 0, 7] and read_net(file, 7)[0].nodes["dense2"].message_bits == 0


# --- damaged files


def damage() -> dict[str, tuple[Callable[[h5py.File], None], str]]:
    def put(name: str, value: Any) -> Callable[[h5py.File], None]:
        def edit(file: h5py.File) -> None:
            del file[name]
            if value is not None:
                file[name] = value

        return edit

    def declare(name: str, shape: Ints, dtype: str = "f4", **fields: Any) -> Callable[[h5py.File], None]:
        def edit(file: h5py.File) -> None:
            del file[name]
            file.create_dataset(name, shape, dtype, **fields)

        return edit

    def outside(file: h5py.File) -> None:
        del file[weight]
        file[weight] = h5py.ExternalLink("other.net", "weight")

    def bits(file: h5py.File) -> None:
        file.attrs["input_message_bits"] = "many"

    weight = "layer/1/weight"
    return {
        "weights elsewhere": (outside, "links to another file"),
        "many weights": (declare(weight, (1 << 13, 1 << 13), "i1"), "more than"),
        "no layers": (put("layer", None), "no group 'layer'"),
        "layers are a dataset": (put("layer", np.zeros(3)), "no group 'layer'"),
        "a layer is missing": (put("layer/1", None), "no layer 1"),
        "a layer is a dataset": (put("layer/1", np.zeros(3)), "no layer 1"),
        "no type": (put("layer/1/type", None), "'type'"),
        "type is a number": (put("layer/1/type", 3), "'type'"),
        "several types": (put("layer/1/type", np.array([b"dense", b"conv"])), "'type'"),
        "type is no text": (put("layer/1/type", np.array([b"d\xff"])), "not readable"),
        "a long type": (put("layer/1/type", np.array([b"d" * 300])), "300 bytes"),
        "weights are text": (put(weight, np.array([b"many"])), "not numbers"),
        "weights are complex": (put(weight, np.ones((4, 5), complex)), "not numbers"),
        "weights are empty": (put(weight, h5py.Empty("f")), "not numbers"),
        "weights are none": (put(weight, np.zeros((0, 5))), "(0, 5)"),
        "weights are records": (put(weight, np.zeros(3, "i4,f4")), "not numbers"),
        "huge weights": (declare(weight, (1 << 40, 1 << 20)), "declares"),
        "huge and thin": (declare(weight, (1 << 31,), chunks=(1 << 20,), compression="gzip"), "declares"),
        "huge pieces": (declare(weight, (4, 5), maxshape=(None, 5), chunks=(1 << 24, 5)), "more than"),
        "huge biases": (declare("layer/1/bias", (1 << 33,)), "declares"),
        "a huge threshold": (declare("layer/1/neuron/vThMant", (1 << 33,), "i8"), "declares"),
        "neurons are a dataset": (put("layer/1/neuron", 3), "no group"),
        "message bits are text": (bits, "input_message_bits"),
    }


DAMAGE = damage()


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_one_line(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / "model.net", NETS["dense chain"].layers)
    edit, part = DAMAGE[name]
    with h5py.File(file, "r+") as f:
        edit(f)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GraphError) as e:
        read_net(file)
    one_line(e, str(file), part)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_cut_and_mutated_files(tmp_path: Path) -> None:
    """Every ending and 120 files with bytes changed: a graph, or one line."""
    whole = write(tmp_path / "model.net", NETS["convolution, flatten, dense"].layers).read_bytes()
    rng, file, read_ones = np.random.default_rng(82), tmp_path / "bad.net", 0
    for k in range(160):
        data = bytearray(whole)
        if k < 40:
            data = data[: len(data) * k // 40]
        else:
            for at in rng.integers(0, len(data), 1 + k % 12):
                data[at] = rng.integers(256)
        file.write_bytes(data)
        try:
            graph, notes = read_net(file)
            assert isinstance(graph, nir.NIRGraph) and notes
            read_ones += 1
        except GraphError as e:
            assert "\n" not in str(e)
    assert 0 < read_ones < 120


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="no such file"):
        read_net(tmp_path / "none.net")
    (tmp_path / "text.net").write_text("no network")
    with pytest.raises(GraphError, match="not readable as HDF5"):
        read_net(tmp_path / "text.net")
    graph, _ = read_net(write(tmp_path / "model.net", NETS["one delay"].layers))
    graphs.write(graph, tmp_path / "graph.nir")
    assert graphs.show(graphs.check(graphs.read(tmp_path / "graph.nir"))) == graphs.show(graphs.check(graph))
    with pytest.raises(GraphError, match=r"is it a \.nir file"):
        read_net(tmp_path / "graph.nir")
