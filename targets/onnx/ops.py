"""Lines of a traced step as ONNX nodes: one ONNX form an op, no equation of a neuron.

Numbers are float32, or for integer networks float64, which holds every whole number exactly below 2^53. onnxruntime has
no convolution in float64: where every partial sum is proven below 2^24 an integer convolution runs in float32, exactly;
elsewhere as a product of matrices in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from eiexport.alphabet import Alphabet
from eiexport.ops import Ints, Window
from eiexport.tracing import Dag, Line, Symbol

FLOAT32_WHOLE = 1 << 24
EXPONENTS = np.arange(-126, 128)  # of the powers of two that float32 holds in full


class Names:
    """Every name of a model, its inputs' and outputs' first: ONNX has one room for values and constants."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def unique(self, name: str) -> str:
        found, k = name, 1
        while found in self._taken:
            found, k = f"{name}_{k}", k + 1
        self._taken.add(found)
        return found


class Constants:
    """The initializers of a model, each stored once, whole numbers in the narrowest type that holds them."""

    def __init__(self, dtype: Any, names: Names) -> None:
        self.dtype, self.names = np.dtype(dtype), names
        self.tensors: dict[str, TensorProto] = {}
        self.casts: list[NodeProto] = []
        self._known: dict[tuple[str, Ints, bytes], str] = {}

    def name(self, a: Any, label: str, dtype: Any = None) -> str:
        """The value's name; in the engine's dtype, or in `dtype`."""
        wide = np.asarray(a, dtype or self.dtype)
        key = (wide.dtype.str, wide.shape, wide.tobytes())
        if key not in self._known:
            name = self.names.unique(label or "constant")
            held = _narrow(wide) if self.dtype == np.float64 and wide.dtype.kind == "f" else wide
            self.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(held).reshape(held.shape), name)
            if held.dtype != wide.dtype:
                to, stored = helper.np_dtype_to_tensor_dtype(wide.dtype), name
                name = self.names.unique(f"{name}/wide")
                self.casts.append(helper.make_node("Cast", [stored], [name], name=name, to=to))
            self._known[key] = name
        return self._known[key]


def _narrow(a: np.ndarray) -> np.ndarray:
    if a.size > 16 and np.isfinite(a).all() and (a == np.rint(a)).all():
        for dtype in (np.int8, np.int16, np.int32):
            if a.min() >= np.iinfo(dtype).min and a.max() <= np.iinfo(dtype).max:
                return a.astype(dtype)
    return a


class Body:
    """The nodes of one graph, or of a scan's body; it sees the constants."""

    def __init__(self, constants: Constants) -> None:
        self.constants, self.nodes = constants, list[NodeProto]()

    def unique(self, name: str) -> str:
        return self.constants.names.unique(name)

    def add(self, op: str, inputs: Iterable[str], label: str, **attributes: Any) -> str:
        """One node with one result, whose name begins with `label`."""
        name = self.unique(f"{label}/{op}" if label else op)
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def deliver(self, outputs: dict[str, str]) -> None:
        """Values by the names that they leave under: nodes give them these, a copy only where one leaves twice."""
        read = {i for n in self.nodes for i in n.input}
        # onnxruntime fuses a convolution into the sum behind it, and loses it where it is an output too (1.31.1)
        made = {o for n in self.nodes for o in n.output if n.op_type != "Conv" or o not in read}
        called: dict[str, str] = {}
        for name, value in outputs.items():
            if value in made:
                called.setdefault(value, name)
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [called.get(n, n) for n in names]
        for name, value in outputs.items():
            if called.get(value) != name:
                held = called.get(value, value)
                self.nodes.append(helper.make_node("Identity", [held], [name], name=f"{name}/Identity"))

    def number(self, value: float, dtype: Any = None) -> str:
        return self.constants.name(np.asarray(value), f"{value:g}", dtype)

    def ints(self, values: Iterable[int]) -> str:
        """A list of whole numbers, as shapes and axes are."""
        a = np.asarray(list(values), np.int64)
        return self.constants.name(a, "shape_" + "x".join(map(str, a)), np.int64)

    def cast(self, value: str, dtype: Any, label: str) -> str:
        return self.add("Cast", [value], label, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def value_info(name: str, dtype: Any, shape: Iterable[Any]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))


class Lines:
    """Writes a trace into a body. given: its inputs by name; reach: what these can hold, where it is known."""

    def __init__(self, body: Body, whole: bool) -> None:
        self.body, self.whole = body, whole
        self.dtype = body.constants.dtype
        self.reach: dict[int, float] = {}  # of whole values: the largest magnitude that is known

    def write(self, dag: Dag, given: dict[str, str], alphabets: dict[str, Alphabet]) -> dict[str, str]:
        """Names of the trace's outputs."""
        values: list[Any] = []
        for i, line in enumerate(dag.lines):
            self._note(i, line, alphabets)
            if line.op == "input":
                values.append(given[line.args[0]])
            elif line.op == "const":
                values.append(line)  # written where it is used: some uses want another layout
            else:
                args = [values[a.index] if isinstance(a, Symbol) else a for a in line.args]
                shapes = [a.shape if isinstance(a, Symbol) else () for a in line.args]
                self.line, self.shapes = line, shapes
                self.bound = self.reach.get(line.args[0].index) if isinstance(line.args[0], Symbol) else None
                values.append(getattr(self, line.op)(*args))
        return {n: self.value(values[o.index]) for n, o in zip(dag.names, dag.outputs, strict=True)}

    def _note(self, i: int, line: Line, alphabets: dict[str, Alphabet]) -> None:
        known = [self.reach.get(a.index) for a in line.args if isinstance(a, Symbol)]
        if line.op == "input" and (a := alphabets.get(line.args[0])) is not None and math.isfinite(a.hi - a.lo):
            self.reach[i] = max(-a.lo, a.hi)
        elif line.op == "saturate":
            self.reach[i] = float(max(-line.args[1], line.args[2]))
        elif line.op == "add" and None not in known and len(known) == 2:
            self.reach[i] = sum(known)  # type: ignore[arg-type]
        elif line.op in ("reshape", "relu", "stop_gradient", "scale_gradient") and known[0] is not None:
            self.reach[i] = known[0]

    def value(self, a: Any) -> str:
        """The name of a value, a constant or a number."""
        if isinstance(a, Line):
            return self.body.constants.name(a.args[0], a.label)
        return a if isinstance(a, str) else self.body.number(a)

    def add_node(self, op: str, *inputs: Any, **attributes: Any) -> str:
        return self.body.add(op, [self.value(a) for a in inputs], self.line.label, **attributes)

    def float_of(self, condition: str) -> str:
        return self.body.cast(condition, self.dtype, self.line.label)

    # --- one method an op

    def add(self, a: Any, b: Any) -> str:
        return self.add_node("Add", a, b)

    def sub(self, a: Any, b: Any) -> str:
        return self.add_node("Sub", a, b)

    def mul(self, a: Any, b: Any) -> str:
        return self.add_node("Mul", a, b)

    def div(self, a: Any, b: Any) -> str:
        return self.add_node("Div", a, b)

    def gate(self, x: Any) -> str:
        """1 / (1 + e), or e / (1 + e) below 0, e = exp(-|x|): onnxruntime's Sigmoid is 0 where it should be small."""
        e = self.add_node("Exp", self.add_node("Neg", self.add_node("Abs", x)))
        above = self.add_node("Where", self.add_node("GreaterOrEqual", x, 0.0), 1.0, e)
        return self.add_node("Div", above, self.add_node("Add", e, 1.0))

    def relu(self, x: Any) -> str:
        return self.add_node("Relu", x)

    def least(self, x: Any) -> str:
        some = self.add_node("Where", self._zero(x), math.inf, x)
        axes = self.body.ints(range(1, len(self.shapes[0])))
        return self.add_node("ReduceMin", some, axes, keepdims=1)

    def fill(self, x: Any, y: Any) -> str:
        return self.add_node("Where", self._zero(x), y, x)

    def _zero(self, x: Any) -> str:
        return self.add_node("Equal", x, 0.0)

    def octave(self, x: Any, low: float) -> str:
        """The power of two next below x / low; its logarithm may be off by one, so both neighbours are looked at."""
        q = x if low == 1.0 else self.add_node("Div", x, low)
        about = self.add_node("Floor", self.add_node("Mul", self.add_node("Log", q), 1 / math.log(2)))
        index = self.add_node("Clip", self.add_node("Sub", about, float(EXPONENTS[0])), 1.0, float(len(EXPONENTS) - 2))
        powers = self.body.constants.name(2.0**EXPONENTS, "powers_of_two")
        p = self.add_node("Gather", powers, self.body.cast(index, np.int64, self.line.label))
        double = self.add_node("Mul", p, 2.0)
        above = self.add_node("Where", self.add_node("GreaterOrEqual", q, double), double, p)
        return self.add_node("Where", self.add_node("Less", q, p), self.add_node("Mul", p, 0.5), above)

    def fire(self, v: Any, threshold: Any, compare: str) -> str:
        return self.float_of(self.add_node("GreaterOrEqual" if compare == "ge" else "Greater", v, threshold))

    def sign(self, x: Any) -> str:
        return self.add_node("Sign", x)

    def linear(self, x: Any, weight: Line, bias: Any) -> str:
        more = [] if bias is None else [bias]
        if len(self.shapes[0]) == 2:
            return self.add_node("Gemm", x, weight, *more, transB=1)
        turned = self.body.constants.name(weight.args[0].T, f"{weight.label}.T")
        y = self.add_node("MatMul", x, turned)
        return y if bias is None else self.add_node("Add", y, bias)

    def conv(self, x: Any, weight: Line, bias: Line | None, window: Window) -> str:
        w, label = weight.args[0], self.line.label
        if not self.whole:
            return self._conv(x, w, weight.label, window, bias, np.float32)
        rows = float(np.abs(w).reshape(len(w), -1).sum(1).max())
        if self.bound is not None and rows * self.bound < FLOAT32_WHOLE:
            y = self._conv(self.body.cast(self.value(x), np.float32, label), w, weight.label, window, None, np.float32)
            y = self.body.cast(y, self.dtype, label)
        else:
            y = self._product(x, weight, window)
        if bias is None:
            return y
        return self.add(y, self.body.constants.name(bias.args[0].reshape(-1, *[1] * (w.ndim - 2)), bias.label))

    def _conv(self, x: Any, w: np.ndarray, label: str, window: Window, bias: Line | None, dtype: Any) -> str:
        more = [] if bias is None else [self.body.constants.name(np.ravel(bias.args[0]), bias.label, dtype)]
        return self.body.add(
            "Conv",
            [self.value(x), self.body.constants.name(w, label, dtype), *more],
            self.line.label,
            kernel_shape=w.shape[2:],
            strides=window.stride,
            pads=window.padding * 2,
            dilations=window.dilation,
            group=window.groups,
        )

    def _product(self, x: Any, weight: Line, window: Window) -> str:
        """Cross-correlation as a product of matrices: each row of `taps` holds the pixels under one tap."""
        w = weight.args[0]
        _, channels, *size = self.shapes[0]
        kernel = w.shape[2:]
        if any(window.padding):
            pads = self.body.ints((0, 0, *window.padding) * 2)
            x = self.add_node("Pad", x, pads)
            size = [n + 2 * p for n, p in zip(size, window.padding, strict=True)]
        pixels = np.arange(math.prod(size)).reshape(size)
        out = tuple(self.line.shape[2:])
        starts = np.meshgrid(*(s * np.arange(n) for s, n in zip(window.stride, out, strict=True)), indexing="ij")
        offsets = np.meshgrid(*(d * np.arange(k) for d, k in zip(window.dilation, kernel, strict=True)), indexing="ij")
        at = tuple(o.reshape(-1, 1) + s.reshape(1, -1) for o, s in zip(offsets, starts, strict=True))
        taps = self.body.constants.name(pixels[at], f"{self.line.label}.pixels", np.int64)
        g, o = window.groups, len(w) // window.groups
        flat = self.add_node("Reshape", x, self.body.ints((0, channels, -1)))
        patches = self.add_node("Gather", flat, taps, axis=2)  # (N, C, taps, places)
        rows = self.add_node("Reshape", patches, self.body.ints((0, g, w[0].size, math.prod(out))))
        filters = self.body.constants.name(w.reshape(g, o, -1), f"{weight.label}.rows")
        y = self.add_node("MatMul", filters, rows)
        return self.add_node("Reshape", y, self.body.ints((0, len(w), *out)))

    def pool(self, x: Any, kernel: Ints, window: Window) -> str:
        """Area times the average where the area is a power of two, which rounds nothing; else a sum by channels."""
        area, known = math.prod(kernel), self.bound is not None and self.bound * math.prod(kernel) < FLOAT32_WHOLE
        if area & (area - 1) == 0 and (known or not self.whole):
            x = self.body.cast(self.value(x), np.float32, self.line.label) if self.whole else self.value(x)
            shape = {"kernel_shape": kernel, "strides": window.stride, "pads": window.padding * 2}
            y = self.body.add("AveragePool", [x], self.line.label, count_include_pad=1, **shape)
            return self.mul(self.float_of(y) if self.whole else y, float(area))
        channels = self.shapes[0][1]
        ones = Line("const", (np.ones((channels, 1, *kernel)),), label=f"{self.line.label}.window")
        return self.conv(x, ones, None, Window(window.stride, window.padding, (1,) * len(kernel), channels))

    def max_pool(self, x: Any, kernel: Ints, window: Window) -> str:
        pads = window.padding * 2
        return self.add_node("MaxPool", x, kernel_shape=kernel, strides=window.stride, pads=pads)

    def reshape(self, x: Any, shape: Ints) -> str:
        return self.add_node("Reshape", x, self.body.ints((0, *shape)))

    def stop_gradient(self, x: Any) -> Any:
        return x

    def scale_gradient(self, x: Any, factor: float) -> Any:
        return x

    def shift_floor(self, x: Any, bits: int) -> str:
        y = self.add_node("Mul", x, 2.0**-bits)
        return self.add_node("Floor", y) if bits > 0 else y

    def shift_zero(self, x: Any, bits: int) -> str:
        """A cast to whole numbers drops what lies behind the point: toward zero."""
        y = self.add_node("Mul", x, 2.0**-bits)
        return self.body.cast(self.body.cast(y, np.int64, self.line.label), self.dtype, self.line.label)

    def wrap(self, x: Any, bits: int) -> str:
        top, turn = 2.0 ** (bits - 1), 2.0**bits
        low = self.add_node("Where", self.add_node("LessOrEqual", x, -top), self.add_node("Add", x, turn), x)
        return self.add_node("Where", self.add_node("Greater", x, top), self.add_node("Sub", x, turn), low)

    def modulo(self, x: Any, bits: int) -> str:
        top, turn = 2.0 ** (bits - 1), 2.0**bits
        up = self.add_node("Add", x, top)
        turns = self.add_node("Floor", self.add_node("Mul", up, 1 / turn))
        return self.add_node("Sub", self.add_node("Sub", up, self.add_node("Mul", turns, turn)), top)

    def saturate(self, x: Any, lo: int, hi: int) -> str:
        return self.add_node("Clip", x, float(lo), float(hi))

    def table(self, index: Any, values: Any) -> str:
        return self.add_node("Gather", values, self.body.cast(self.value(index), np.int64, self.line.label))

    def quotient(self, a: Any, b: Any) -> str:
        return self.add_node("Floor", self.add_node("Div", a, b))
