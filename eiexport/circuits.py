"""Excitatory-inhibitory circuits with subtractive and divisive inhibition: the memoryless block of DeepEISNN.

Liu, Ding, Yu (2025), "Normalization-Free ... Lateral Inhibition", arXiv 2509.23253, and its published code. For input
x >= 0, nE excitatory and nI inhibitory cells; all matrices and gains are >= 0 (Dale's law), inhibition is the explicit
minus and the division:

    s = relu(W_IE x)                                   currents of the inhibitory cells, fast and non-spiking
    N = W_EE x - W_EI s                                excitation less subtractive inhibition
    D = W_EI (g_I s), exact zeros replaced             divisive inhibition; W_EI is shared with N
    I = g_E N / D + b_E

The output layer stops at N (form "none"). What a chip can do in place of the division are further forms of the node:

    "frozen"   D is one number a channel: then I is affine in x, and folds into one connection
    "shift"    D becomes the power of two next to it (of log2 D), so that the division is a shift
    "table"    D = p m, p a power of two, m in [1, 2): 1/m comes from a table of 2^bits entries, 1/p is a shift

Zeros of D: "sample_min" takes the smallest other value of the same sample and step (infinite where there is none, so
I = b_E), "constant" takes one number, epsilon. No chip forms a minimum over a layer, so "shift" and "table" take that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np

from eiexport import connections, integers
from eiexport.alphabet import REAL, Alphabet, interval
from eiexport.connections import Conv, Dense
from eiexport.errors import GraphError
from eiexport.integers import ALIGN, EXACT, REGISTER, TOP
from eiexport.ops import Array, Ints, Ops
from eiexport.steps import Clock, Step, parameter, text, uniform, whole_numbers

FORMS = ("none", "exact", "frozen", "shift", "table")
DIVIDING = ("exact", "shift", "table")  # forms that divide by what the sample brings
ZEROS = ("sample_min", "constant")
CURRENT = TOP >> ALIGN  # an integer current is clipped to what the registers hold
TABLE_BITS = 6
RECIPROCAL_BITS = 12  # a table's entries: 1/m in Q0.12
HALF_OCTAVE = math.sqrt(0.5)
SMALLEST = float(np.finfo(np.float32).tiny)


def reciprocals(bits: int) -> np.ndarray:
    """round(2^12 / m) at the middle of each of 2^bits equal parts of [1, 2)."""
    middles = 1 + (np.arange(1 << bits) + 0.5) / (1 << bits)
    return np.rint((1 << RECIPROCAL_BITS) / middles)


def shares(bits: int) -> np.ndarray:
    """The same in parts of 1."""
    return reciprocals(bits) / (1 << RECIPROCAL_BITS)


@dataclass(frozen=True, kw_only=True)
class Circuit(Step):
    """The equations above. excite, inhibit: W_EE and W_IE, of one geometry; spread: W_EI; no biases.

    Gains, bias and denominator lie over the cells: (n,), or (n, 1, 1) over maps; in "frozen", gain_e holds
    g_E / D. table: `shares`.
    """

    excite: Any
    inhibit: Any
    spread: Any
    form: str
    zero: str = ZEROS[0]
    gain_i: np.ndarray | None = None
    gain_e: np.ndarray | None = None
    bias: np.ndarray | None = None
    epsilon: np.ndarray | None = None
    table: np.ndarray | None = None
    table_bits: int = TABLE_BITS  # told apart: a bound table need not have a length

    @property
    def fan_in(self) -> int:
        """d, synapses of one cell, by which training divides W_EI's gradient (E-I Prop)."""
        return math.prod(self.excite.weight.shape[1:])

    def output_shape(self, shape: Ints) -> Ints:
        out, cells = self.excite.output_shape(shape), self.inhibit.output_shape(shape)
        places = slice(1, None) if isinstance(self.excite, Conv) else slice(-1)
        if out[places] != cells[places] or self.spread.output_shape(cells) != out:
            raise ValueError(f"excite gives {out}, inhibit {cells}, which spread must map onto it")
        return out

    def under(self, a: Alphabet) -> Step:
        if math.isfinite(a.lo) and a.lo < 0:
            raise ValueError(
                f"gets {a}, but a circuit's input must not be negative (Dale's law): use spikes, counts, or pixels in "
                "[0, 1] without mean and standard deviation taken off"
            )
        return self

    def alphabet(self, a: Alphabet) -> Alphabet:
        if self.form in DIVIDING:
            return REAL
        e, taken = self.excite.alphabet(a), self.spread.alphabet(_above(self.inhibit.alphabet(a)))
        n = interval(e.lo - taken.hi, e.hi - taken.lo, e.discrete and taken.discrete)
        if not math.isfinite(n.hi - n.lo):
            return REAL
        if self.form == "none" and self.bias is None:
            return n
        gain = np.ones(1) if self.gain_e is None else np.ravel(self.gain_e)
        bias = 0.0 if self.bias is None else np.ravel(self.bias)
        ends = np.stack([n.lo * gain + bias, n.hi * gain + bias])
        return interval(float(ends.min()), float(ends.max()), False)

    def drive(self, ops: Ops, x: Array) -> Array:
        e, s = self.currents(ops, x)
        return self.act(ops, e, s)

    def currents(self, ops: Ops, x: Array) -> tuple[Array, Array]:
        """(W_EE x, s)."""
        return self.excite.drive(ops, x), ops.relu(self.inhibit.drive(ops, x))

    def act(self, ops: Ops, e: Array, s: Array) -> Array:
        """I of the two currents."""
        spread = replace(self.spread, weight=ops.scale_gradient(self.spread.weight, 1 / self.fan_in))
        taken = spread.drive(ops, s)
        return self.settle(ops, e, taken, spread.drive(ops, self.weighed(ops, s)) if self.form in DIVIDING else None)

    def settle(self, ops: Ops, e: Array, taken: Array, d: Array | None) -> Array:
        """I of the sums W_EE x, W_EI s and, where it divides, W_EI (g_I s), which an engine may form itself."""
        n = ops.sub(e, taken)
        if self.form == "none":
            return self.biased(ops, n)
        if self.form == "frozen":
            return self.biased(ops, self.scaled(ops, n))
        return self.biased(ops, self.divided(ops, n, self.filled(ops, d)))

    def weighed(self, ops: Ops, s: Array) -> Array:
        """g_I s."""
        return ops.mul(s, self.gain_i)

    def filled(self, ops: Ops, d: Array) -> Array:
        """D without zeros."""
        return ops.fill(d, ops.least(d) if self.zero == "sample_min" else self.epsilon)

    def scaled(self, ops: Ops, n: Array) -> Array:
        """g_E N; in "frozen", g_E N / D."""
        return ops.mul(n, self.gain_e)

    def divided(self, ops: Ops, n: Array, d: Array) -> Array:
        n, d = self.scaled(ops, n), d
        share, d = self.reciprocal(ops, d)
        return ops.div(n if share is None else ops.mul(n, share), d)

    def reciprocal(self, ops: Ops, d: Array) -> tuple[Array | None, Array]:
        """What D's form makes of it: (factor of N or None, divisor)."""
        if self.form == "exact":
            return None, d
        if self.form == "shift":
            return None, ops.octave(d, HALF_OCTAVE)
        p = ops.octave(d, 1.0)
        m = ops.sub(ops.div(d, p), 1.0)  # exact, since p is a power of two
        part = ops.shift_floor(ops.mul(m, 2.0 ** (self.table_bits + 1)), 1)
        return ops.table(ops.saturate(part, 0, (1 << self.table_bits) - 1), self.table), p

    def biased(self, ops: Ops, y: Array) -> Array:
        return y if self.bias is None else ops.add(y, self.bias)

    @property
    def linear(self) -> bool:
        """True where the circuit is affine in its input, as long as that is not negative, and folds into one kernel."""
        grouped = isinstance(self.excite, Conv) and self.excite.window.groups > 1
        return self.form in ("none", "frozen") and not grouped


def _above(a: Alphabet) -> Alphabet:
    return interval(max(a.lo, 0.0), max(a.hi, 0.0), a.discrete)


@dataclass(frozen=True, kw_only=True)
class IntCircuitStep(Circuit):
    """The circuit in whole numbers. excite, inhibit, spread are integer connections without bias.

        s = relu(inhibit x);  N = excite x - spread s;  D = spread ((g_I s) >> gain_shift), zeros become epsilon
        I = clip(floor((g_E N << shift) / D) + bias)             ("exact"; "shift": D is a power of two)
        I = clip(floor((g_E N r << shift >> 12) / p) + bias)     ("table", r its entries)
        I = clip(((g_E N) << shift) + bias), rounding down       ("frozen")

    clip to +-131071, which the registers of the neuron behind it hold. spread's exponent shifts both of its sums.
    """

    gain_shift: int = 0
    shift: int = 0

    def under(self, a: Alphabet) -> Step:
        super().under(a)
        if a.kind == "real":
            return self
        parts = {"excite": self.excite.under(a), "inhibit": self.inhibit.under(a)}
        cells = _above(parts["inhibit"].alphabet(a))
        parts["spread"] = self.spread.under(cells)
        for name, part in parts.items():
            if part.wraps:
                raise ValueError(f"{name} may leave {REGISTER} bits: use fewer message bits or a smaller weight_exp")
        if self.form in DIVIDING:
            assert self.gain_i is not None
            if (wide := float(self.gain_i.max()) * cells.hi) >= EXACT:
                raise ValueError(f"gain_i times its cells reaches {wide:g}, beyond 2^53: use smaller gains")
            top = math.floor(wide / 2.0**self.gain_shift)
            if self.spread.under(interval(0, top, True)).wraps:
                raise ValueError(f"its denominators may leave {REGISTER} bits: raise gain_shift")
        reach = self._reach(a) * 2.0 ** max(self.shift, 0)
        if reach * (2.0**RECIPROCAL_BITS if self.form == "table" else 1.0) >= EXACT / 2:
            raise ValueError(f"its numerators reach {reach:g}, beyond 2^52: lower shift or gain_e")
        return replace(self, **parts)

    def _reach(self, a: Alphabet) -> float:
        """The largest |g_E N|."""
        n = self._difference(a)
        return max(-n.lo, n.hi) * (1.0 if self.gain_e is None else float(np.max(self.gain_e)))

    def _difference(self, a: Alphabet) -> Alphabet:
        e, taken = self.excite.alphabet(a), self.spread.alphabet(_above(self.inhibit.alphabet(a)))
        return interval(e.lo - taken.hi, e.hi - taken.lo, True)

    def alphabet(self, a: Alphabet) -> Alphabet:
        if self.form != "none":
            return interval(-CURRENT, CURRENT, True)
        return self._difference(a) if a.kind != "real" else REAL

    def weighed(self, ops: Ops, s: Array) -> Array:
        return ops.shift_floor(super().weighed(ops, s), self.gain_shift)

    def scaled(self, ops: Ops, n: Array) -> Array:
        y = super().scaled(ops, n)
        return ops.shift_floor(y, -self.shift) if self.form == "frozen" else y

    def divided(self, ops: Ops, n: Array, d: Array) -> Array:
        n, (share, d) = self.scaled(ops, n), self.reciprocal(ops, d)
        if share is None:
            n = ops.shift_floor(n, -self.shift)
        else:
            n = ops.shift_floor(ops.mul(n, share), RECIPROCAL_BITS - self.shift)
        return ops.quotient(n, d)

    def biased(self, ops: Ops, y: Array) -> Array:
        y = super().biased(ops, y)
        return y if self.form == "none" else ops.saturate(y, -CURRENT, CURRENT)

    @property
    def linear(self) -> bool:
        """Never: whole numbers are rounded on the way."""
        return False


# --- nodes


@dataclass(eq=False)
class EICircuit(nir.ir.NIRNode):
    """DeepEISNN's circuit; the equations stand at the head of `eiexport.circuits`.

    excite, inhibit: Linear or Conv2d (its bias all zero) of one geometry, W_EE (nE, ...) and W_IE (nI, ...); spread:
    W_EI, Linear (nE, nI), or Conv2d by one pixel. All entries >= 0. form: none | exact | frozen | shift | table.
    gain_i (nI,), gain_e (nE,): >= 0, absent in form "none"; bias (nE,), free. zero: sample_min | constant, with epsilon
    > 0, for the forms that divide. denominator (nE,) > 0: form "frozen". table_bits: 1..10, form "table".
    """

    excite: nir.ir.NIRNode
    inhibit: nir.ir.NIRNode
    spread: nir.ir.NIRNode
    form: str = "exact"
    zero: str = ZEROS[0]
    gain_i: np.ndarray | None = None
    gain_e: np.ndarray | None = None
    bias: np.ndarray | None = None
    epsilon: float = 0.0
    denominator: np.ndarray | None = None
    table_bits: int = TABLE_BITS
    schema: int = 1

    def __post_init__(self) -> None:
        self.form, self.zero = text(self.form), text(self.zero)
        self.input_type, self.output_type = {"input": None}, {"output": None}

    def to_dict(self) -> dict[str, Any]:
        return _written(self)

    @classmethod
    def from_dict(cls, kwargs: dict[str, Any]) -> EICircuit:
        from eiexport.nodes import from_dict

        return _read(cls, kwargs, from_dict)


@dataclass(eq=False)
class IntCircuit(nir.ir.NIRNode):
    """The circuit in integers; the equations stand at `circuits.IntCircuitStep`.

    excite, inhibit, spread: IntDense or IntConv, weights >= 0, bias 0. gain_i (nI,), gain_e (nE,): whole, >= 0; bias
    (nE,) whole. gain_shift 0..23; shift -23..24 (left; below 0 only in "frozen"); epsilon >= 1.
    """

    excite: nir.ir.NIRNode
    inhibit: nir.ir.NIRNode
    spread: nir.ir.NIRNode
    form: str = "exact"
    gain_i: np.ndarray | None = None
    gain_e: np.ndarray | None = None
    bias: np.ndarray | None = None
    gain_shift: int = 0
    shift: int = 0
    epsilon: int = 1
    table_bits: int = TABLE_BITS
    schema: int = 1

    def __post_init__(self) -> None:
        self.form = text(self.form)
        self.input_type, self.output_type = {"input": None}, {"output": None}

    def to_dict(self) -> dict[str, Any]:
        return _written(self)

    @classmethod
    def from_dict(cls, kwargs: dict[str, Any]) -> IntCircuit:
        return _read(cls, kwargs, integers.part)


PARTS = ("excite", "inhibit", "spread")
EXTENSIONS: dict[str, type[nir.ir.NIRNode]] = {"EICircuit": EICircuit}
INTEGERS: dict[str, type[nir.ir.NIRNode]] = {"IntCircuit": IntCircuit}


def _written(node: Any) -> dict[str, Any]:
    d = {"type": type(node).__name__, **{k: v for k, v in vars(node).items() if k not in ("input_type", "output_type")}}
    d |= {k: d[k].to_dict() for k in PARTS}
    if bad := [k for k in PARTS if "input_shape" in d[k] and d[k]["input_shape"] is None]:
        raise GraphError(f"{bad[0]}.input_shape is None, which HDF5 cannot hold; fill it in")
    return {k: v.item() if isinstance(v, np.ndarray) and v.ndim == 0 else v for k, v in d.items() if v is not None}


def _read(cls: Any, kwargs: dict[str, Any], part: Callable[[dict[str, Any]], Any]) -> Any:
    return cls(**{k: part(v) if k in PARTS else v for k, v in kwargs.items() if k != "type"})


# --- node -> step


def _choice(node: Any, field: str, valid: tuple[str, ...]) -> str:
    if getattr(node, field) not in valid:
        raise GraphError(f"{field} = {getattr(node, field)!r}; valid: {', '.join(valid)}")
    return getattr(node, field)


def _connection(node: Any, field: str, clock: Clock, prepare: dict[str, Any]) -> Any:
    part = getattr(node, field)
    kind = type(part).__name__
    if kind not in prepare:
        raise GraphError(f"{field} is a {kind}; it is one of {', '.join(prepare)}")
    try:
        step = prepare[kind](part, clock)
    except GraphError as e:
        raise GraphError(f"{field}: {e}") from None
    if step.bias is not None:
        raise GraphError(f"{field} has a bias; the circuit's own is `bias`")
    if (step.weight < 0).any():
        raise GraphError(
            f"{field} holds {step.weight.min():g}: Dale's law asks for weights >= 0; train with projection"
        )
    return step


def _parts(node: Any, clock: Clock, prepare: dict[str, Any]) -> dict[str, Any]:
    parts = {k: _connection(node, k, clock, prepare) for k in PARTS}
    excite, inhibit, spread = parts.values()
    kinds = {isinstance(p, Conv) for p in parts.values()}
    if len(kinds) > 1:
        raise GraphError("mixes convolutions and matrices")
    if excite.weight.shape[1:] != inhibit.weight.shape[1:] or getattr(excite, "window", 0) != getattr(
        inhibit, "window", 0
    ):
        raise GraphError("excite and inhibit differ in their geometry")
    one = isinstance(spread, Dense) or (
        set(spread.weight.shape[2:]) == {1} and set(spread.window.stride) == {1} and not any(spread.window.padding)
    )
    if spread.weight.shape[:2] != (len(excite.weight), len(inhibit.weight)) or not one:
        wanted = (len(excite.weight), len(inhibit.weight))
        raise GraphError(
            f"spread has shape {spread.weight.shape}; it maps cell on cell, so it is {wanted} by one pixel"
        )
    return parts


def _over(step: Any, values: np.ndarray, field: str, like: Any) -> np.ndarray:
    """One number a cell, as it lies over the map; a uniform one as a number."""
    if values.shape not in ((), (len(like.weight),)):
        raise GraphError(f"{field} has shape {values.shape}, there are {len(like.weight)} cells")
    values = uniform(values)
    return values.reshape(-1, *[1] * (like.weight.ndim - 2)) if values.ndim else values


def _numbers(node: Any, parts: dict[str, Any], read: Callable[[str, bool], np.ndarray]) -> dict[str, Any]:
    """gain_i, gain_e and bias over their cells; read(field, may be negative)."""
    found: dict[str, Any] = {}
    for field, cells in (("gain_i", "inhibit"), ("gain_e", "excite"), ("bias", "excite")):
        needed = node.form != "none" if field == "gain_e" else field == "gain_i" and node.form in DIVIDING
        if getattr(node, field) is None:
            if needed:
                raise GraphError(f"form {node.form!r} needs {field}")
            continue
        values = read(field, field == "bias")
        if needed or field == "bias":
            found[field] = _over(parts[cells], values, field, parts[cells])
    if "bias" in found and not found["bias"].any():
        del found["bias"]
    return found


def _circuit(node: EICircuit, clock: Clock) -> Circuit:
    form, zero = _choice(node, "form", FORMS), _choice(node, "zero", ZEROS)
    if form in ("shift", "table") and zero != "constant":
        raise GraphError(f"form {form!r} is for hardware, which has no minimum over a sample: use zero 'constant'")
    parts = _parts(node, clock, {k: connections.PREPARE[k] for k in ("Linear", "Affine", "Conv1d", "Conv2d")})

    def read(field: str, signed: bool) -> np.ndarray:
        values = parameter(node, field)
        if not signed and (values < 0).any():
            raise GraphError(f"{field} holds {values.min():g}: Dale's law asks for gains >= 0")
        return values

    numbers = _numbers(node, parts, read)
    if form == "frozen":
        if node.denominator is None:
            raise GraphError("form 'frozen' needs denominator")
        denominator = _over(None, parameter(node, "denominator", positive=True), "denominator", parts["excite"])
        numbers["gain_e"] = np.asarray(numbers["gain_e"] / denominator)
    if form in DIVIDING and zero == "constant":
        numbers["epsilon"] = parameter(node, "epsilon", positive=True)
        if numbers["epsilon"].size != 1 or numbers["epsilon"] < SMALLEST:
            raise GraphError(
                f"epsilon = {node.epsilon}: give one number of at least {SMALLEST:.2g}, or float32 has none"
            )
        numbers["epsilon"] = numbers["epsilon"].reshape(())
    if form == "table":
        bits = _bits(node)
        numbers |= {"table": shares(bits), "table_bits": bits}
    return Circuit(**parts, form=form, zero=zero, **numbers)


def _bits(node: Any) -> int:
    return integers.number(node, "table_bits", 1, 10)


def _int_circuit(node: IntCircuit, clock: Clock) -> IntCircuitStep:
    form = _choice(node, "form", FORMS)
    parts = _parts(node, clock, {k: integers.PREPARE[k] for k in ("IntDense", "IntConv")})
    if form == "none" and node.bias is not None and np.any(node.bias):
        raise GraphError("form 'none' has no bias")

    def read(field: str, signed: bool) -> np.ndarray:
        return whole_numbers(node, field, -(1 << 24) if signed else 0, 1 << 24)

    numbers = _numbers(node, parts, read)
    one = {k: integers.number(node, k, *span) for k, span in SPANS.items()}
    if one["shift"] < 0 and form != "frozen":
        raise GraphError(f"shift = {one['shift']}: a divided numerator is shifted left, so it is at least 0")
    if form in DIVIDING:
        numbers |= {"zero": "constant", "epsilon": np.asarray(float(one["epsilon"]))}
    if form == "table":
        bits = _bits(node)
        numbers |= {"table": reciprocals(bits), "table_bits": bits}
    return IntCircuitStep(**parts, form=form, **numbers, gain_shift=one["gain_shift"], shift=one["shift"])


SPANS = {"gain_shift": (0, REGISTER - 1), "shift": (1 - REGISTER, REGISTER), "epsilon": (1, TOP)}

PREPARE: dict[str, Callable[[Any, Clock], Step]] = {"EICircuit": _circuit, "IntCircuit": _int_circuit}


# --- folding


def fold(step: Circuit) -> tuple[Any, Any]:
    """(weight, bias or None) of the one connection, of excite's geometry, that a linear circuit is; NumPy or torch.

    `gain (W_EE - W_EI W_IE)`, bias (one number where all agree): since x and W_IE are not negative, the relu does
    nothing. Raises GraphError for circuits that are not `linear`.
    """
    if not step.linear:
        if step.form in DIVIDING:
            raise GraphError(f"divides by what its input brings (form {step.form!r}), so it is no connection")
        raise GraphError("is in groups, or in whole numbers, so it is no single connection")
    w, wi = step.excite.weight, step.inhibit.weight
    taken = step.spread.weight.reshape(len(w), len(wi)) @ wi.reshape(len(wi), -1)
    folded = w - taken.reshape(w.shape)
    if step.gain_e is not None:
        folded = folded * step.gain_e.reshape(-1, *[1] * (w.ndim - 1))
    return folded, None if step.bias is None else step.bias.reshape(-1)
