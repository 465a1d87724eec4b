"""Integer node kinds: Loihi-style fixed point, bit-exact with Lava 0.10.0's `fixed_pt` models and a Loihi 2 trace.

All values are whole numbers. Units: an input current is `a`; the registers u, v and the threshold hold 64 times that
(`a << 6`), which is what the chip's alignment of 24-bit registers does. Order in every step: charge, fire, reset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import nir
import numpy as np

from eiexport.alphabet import BINARY, TERNARY, Alphabet, interval
from eiexport.connections import Conv, Dense
from eiexport.errors import GraphError
from eiexport.neurons import COMPARES, Fire, GatedFire, unless
from eiexport.ops import Array, Ints, Ops, Window
from eiexport.steps import Clock, State, Step, complete, linear_alphabet, text, uniform, whole_numbers

REGISTER = 24  # bits of u and v, sign included
ALIGN = 6  # input and threshold are shifted left by this much against the registers
UNITY = 12  # bits of a decay: 4096 keeps everything
TOP = (1 << (REGISTER - 1)) - 1  # v saturates at +-TOP
EXACT = 1 << 53  # float64 holds every whole number up to here
MOST = 1 << 25  # an input beyond it would leave the 32 bits in which engines hold a register before it wraps
SIGN_MODES = ("mixed", "excitatory", "inhibitory")
INT_RESETS = ("zero", "subtract", "none")


def grid_step(bits: int, sign_mode: str) -> int:
    """Distance of neighbouring weights of an 8-bit synapse word that keeps `bits` bits (mixed: one for the sign)."""
    return 1 << (8 - bits + (sign_mode == "mixed"))


def grid_limits(bits: int, sign_mode: str) -> tuple[int, int]:
    """Smallest and largest weight of the format: mixed -256..256 - step, else 0..255 and its mirror image."""
    lo, hi = (-256 if sign_mode == "mixed" else 0), 256 - grid_step(bits, sign_mode)
    return (-hi, 0) if sign_mode == "inhibitory" else (lo, hi)


def sign_mode_of(weight: np.ndarray) -> str:
    """All >= 0: excitatory, all <= 0: inhibitory, else mixed."""
    return "excitatory" if (weight >= 0).all() else "inhibitory" if (weight <= 0).all() else "mixed"


def synapse_words(weight: np.ndarray, bits: int, sign_mode: str) -> np.ndarray:
    """The weights a Loihi synapse holds: clipped to 8 bits (9 with sign), low bits dropped.

    Dropping rounds down for mixed and excitatory words, toward zero for inhibitory ones, whose magnitude is stored.
    """
    flip, step = -1 if sign_mode == "inhibitory" else 1, grid_step(bits, sign_mode)
    clipped = np.clip(flip * weight, -256 if sign_mode == "mixed" else 0, 255)
    return flip * np.floor(clipped / step) * step


@dataclass(frozen=True, kw_only=True)
class IntLinear(Step):
    """What dense and conv share: `a = (sum_i w_i x_i) >> shift, + bias`; the sum comes first, then the shift.

    `shift` >= 0 rounds down; a positive weight exponent is part of the weights, which is exact. message_bits 0: a
    message is a spike or nothing, so only a binary edge may enter. wraps: the shifted sum is kept modulo 2^24.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None
    shift: int = 0
    message_bits: int = 0
    wraps: bool = False

    def product(self, ops: Ops, x: Array) -> Array:
        """The sums alone."""
        raise NotImplementedError

    def drive(self, ops: Ops, x: Array) -> Array:
        y = self.product(ops, x)
        if self.shift:
            y = ops.shift_floor(y, self.shift)
        if self.wraps:
            y = ops.modulo(y, REGISTER)
        return y if self.bias is None else ops.add(y, self.bias)

    def sums(self, a: Alphabet) -> Alphabet:
        """Interval of the shifted sums, before they wrap."""
        total = linear_alphabet(a, self.weight.reshape(len(self.weight), -1), None)
        if total.kind == "real":
            return total
        lo, hi = (float(np.floor(v / 2**self.shift)) for v in (total.lo, total.hi))
        return interval(lo, hi, True)

    def alphabet(self, a: Alphabet) -> Alphabet:
        total = self.sums(a)
        if self.wraps and (total.kind == "real" or _overflows(total)):
            total = interval(-TOP - 1, TOP, True)
        if total.kind == "real" or self.bias is None:
            return total
        return interval(total.lo + float(self.bias.min()), total.hi + float(self.bias.max()), True)

    def under(self, a: Alphabet) -> IntLinear:
        """Without the wrapping that the alphabet rules out; ValueError for messages that would be misread."""
        if a.kind == "real":
            return self  # not known yet
        if self.message_bits == 0 and a.kind != "binary":
            raise ValueError(f"gets {a}, but message_bits = 0 makes every message one spike; -1 would arrive as +1")
        top = 1 << self.message_bits
        if (a.lo < 0 and (a.lo < -top / 2 or a.hi > top / 2 - 1)) or a.hi > top - 1 + (self.message_bits == 0):
            raise ValueError(f"gets {a}, which message_bits = {self.message_bits} cannot hold")
        reach = max(-a.lo, a.hi) * float(np.abs(self.weight).reshape(len(self.weight), -1).sum(1).max())
        if reach >= EXACT:
            raise ValueError(f"sums up to {reach:g}, beyond 2^53: use fewer message bits or a smaller weight_exp")
        return replace(self, wraps=self.wraps and _overflows(self.sums(a)))


def _overflows(a: Alphabet) -> bool:
    return a.lo < -TOP - 1 or a.hi > TOP


@dataclass(frozen=True, kw_only=True)
class IntDenseStep(IntLinear, Dense):
    """`a = ((W x) >> shift) + bias`; weight (O, I), bias (O,) or none, all whole."""

    def product(self, ops: Ops, x: Array) -> Array:
        return ops.linear(x, self.weight, None)


@dataclass(frozen=True, kw_only=True)
class IntConvStep(IntLinear, Conv):
    """`a = modulo((W * x) >> shift, 2^24) + bias`, cross-correlation; weight (O, I / groups, *kernel), all whole.

    bias: one number an output channel, with axes of length 1 for the map.
    """

    window: Window

    def product(self, ops: Ops, x: Array) -> Array:
        return ops.conv(x, self.weight, None, self.window)


@dataclass(frozen=True, kw_only=True)
class IntFire(Fire):
    """Current-based LIF in integers (Lava's `PyLifModelBitAcc`, Loihi's compartment); x = a, the summed input.

        u = zero(u * keep_u >> 12) + (x << 6), wrapped once at 24 bits        keep_u = 4096 - (du + 1)
        v = zero(v * keep_v >> 12) + u + bias, saturated at +-(2^23 - 1)      keep_v = 4096 - dv
        s = v > vth << 6 (compare "gt") or v >= vth << 6 ("ge"); v = 0 where s

    zero() rounds toward zero. keep_u None (0): no synaptic state; 4096: keeps all. `lower`: z = -1 where
    v < lower << 6 (Lava's TernaryLIF), <= with "ge"; both resets to 0. reset "subtract" takes vth << 6 off, "none"
    keeps v. threshold and lower are held shifted.
    """

    observed: ClassVar[tuple[str, ...]] = ("v", "u")
    shape: Ints
    keep_u: np.ndarray | None
    keep_v: np.ndarray | None
    bias: np.ndarray | None

    def output_shape(self, shape: Ints) -> Ints:
        if self.shape not in ((), shape):
            raise ValueError(f"neuron parameters have shape {self.shape}")
        return shape

    def under(self, a: Alphabet) -> IntFire:
        if a.kind != "real" and max(-a.lo, a.hi) >= MOST:
            raise ValueError(f"gets {a}, and 64 times that is more than 32 bits hold: use a smaller weight_exp")
        return self

    def init(self, ops: Ops, shape: Ints) -> State:
        return ops.zeros(shape), ops.zeros(shape)

    def charge(self, ops: Ops, driven: Array, state: State) -> State:
        u = ops.shift_floor(driven, -ALIGN)
        if self.keep_u is not None:
            u = ops.add(ops.shift_zero(ops.mul(state[1], self.keep_u), UNITY), u)
        u = ops.wrap(u, REGISTER)
        v = u
        if self.keep_v is not None:
            v = ops.add(ops.shift_zero(ops.mul(state[0], self.keep_v), UNITY), u)
        if self.bias is not None:
            v = ops.add(v, self.bias)
        return ops.saturate(v, -TOP, TOP), u

    def reset(self, ops: Ops, membrane: State, z: Array, s: Array) -> State:
        return self.after(ops, membrane[0], z, s), membrane[1]


@dataclass(frozen=True, kw_only=True)
class IntGatedFire(GatedFire):
    """BackEISNN's gated neuron in integers; see `neurons.GatedFire` for the model, a = the summed input.

    g = table[clip(feedback(d[t-1]) >> feedback_shift, -128, 127) + 128]      sigmoid in Q0.8, 0..255
    a = (g * a) >> 8                                                          rounds down, also below zero
    u, v: `IntFire`'s charge
    m = clip(v >> balance_shift, +-(2^(balance_bits - 1) - 1))                v as a graded message
    e = sign(balance(m)); s = v > vth << 6; d = e * s; v = 0 where s
    """

    observed: ClassVar[tuple[str, ...]] = ("v", "u")
    inner: IntFire  # type: ignore[assignment]
    values: np.ndarray  # the table
    feedback_shift: int
    balance_shift: int
    balance_bits: int

    def open(self, ops: Ops, driven: Array, fed: Array) -> Array:
        index = ops.saturate(ops.shift_floor(fed, self.feedback_shift), -128, 127)
        return ops.shift_floor(ops.mul(ops.table(ops.add(index, 128.0), self.values), driven), 8)

    def message(self, ops: Ops, v: Array) -> Array:
        """The membrane as the balance connection gets it."""
        top = (1 << (self.balance_bits - 1)) - 1
        return ops.saturate(ops.shift_floor(v, self.balance_shift), -top, top)

    def weigh(self, ops: Ops, v: Array) -> Array:
        return super().weigh(ops, self.message(ops, v))


# --- nodes


def _plain(d: dict[str, Any]) -> dict[str, Any]:
    """What HDF5 can hold: an absent field is an absent dataset, an array without axes a number."""
    return {k: v.item() if isinstance(v, np.ndarray) and v.ndim == 0 else v for k, v in d.items() if v is not None}


@dataclass(eq=False)
class IntCubaLIF(nir.ir.NIRNode):
    """Integer LIF with synaptic current; the equations stand at `integers.IntFire`.

    vth: full array of the neuron shape, 0..131071 on Loihi, in units of the input; lower (optional) likewise, below
    vth. du: -1..4095, dv: 0..4096, bias_mant, bias_exp (bias = mant << exp, >> for a negative exp): one number or full
    arrays. compare "gt" | "ge", reset "zero" | "subtract" | "none".
    """

    vth: np.ndarray
    du: np.ndarray
    dv: np.ndarray
    bias_mant: np.ndarray
    bias_exp: np.ndarray
    compare: str = "gt"
    reset: str = "zero"
    lower: np.ndarray | None = None
    schema: int = 1

    def __post_init__(self) -> None:
        self.compare, self.reset = text(self.compare), text(self.reset)
        shape = np.array(np.shape(self.vth))
        self.input_type, self.output_type = {"input": shape}, {"output": shape}

    def to_dict(self) -> dict[str, Any]:
        return _plain(super().to_dict())


@dataclass(eq=False)
class IntDense(nir.ir.NIRNode):
    """`a = ((W x) << weight_exp) + bias` (>> for a negative exponent, after the sum); weight (O, I), bias (O,), whole.

    weight_exp: one number, or one an output where no weight loses bits by it. bits (1..8) and sign_mode say which
    weights a synapse holds; others are clipped and lose their low bits, as in Lava's Dense (`synapse_words`).
    message_bits: 0 for spikes, else the width of a graded message.
    """

    weight: np.ndarray
    bias: np.ndarray
    weight_exp: Any = 0
    bits: int = 8
    sign_mode: str = "mixed"
    message_bits: int = 0
    schema: int = 1

    def __post_init__(self) -> None:
        self.sign_mode = text(self.sign_mode)
        outputs, inputs = np.shape(self.weight)[:1], np.shape(self.weight)[1:]
        self.input_type, self.output_type = {"input": np.array(inputs)}, {"output": np.array(outputs)}

    def to_dict(self) -> dict[str, Any]:
        return _plain(super().to_dict())


@dataclass(eq=False)
class IntConv(nir.ir.NIRNode):
    """`a = modulo((W * x) << weight_exp, 2^24) + bias`; weight (O, I / groups, *kernel), one or two axes, bias (O,).

    Cross-correlation; stride, padding, dilation in (H, W) order. Weights are taken as they are (Lava's Conv neither
    clips nor truncates); bits and sign_mode say what a synapse has to hold.
    """

    weight: np.ndarray
    bias: np.ndarray
    stride: np.ndarray
    padding: np.ndarray
    dilation: np.ndarray
    groups: int = 1
    weight_exp: Any = 0
    bits: int = 8
    sign_mode: str = "mixed"
    message_bits: int = 0
    schema: int = 1

    def __post_init__(self) -> None:
        self.sign_mode = text(self.sign_mode)
        self.input_type, self.output_type = {"input": None}, {"output": None}

    def to_dict(self) -> dict[str, Any]:
        return _plain(super().to_dict())


@dataclass(eq=False)
class IntGatedLIF(nir.ir.NIRNode):
    """BackEISNN's gated neuron in integers; the equations stand at `integers.IntGatedFire`.

    neuron: IntCubaLIF; feedback, balance: IntConv or IntDense that keep the neuron shape, or absent. table: 256 entries
    0..255, the sigmoid in Q0.8. feedback_shift, balance_shift: 0..23. balance_bits: 2..24, width of the membrane as a
    message. accumulator_bits: what must hold every sum of a gate; proven from the weights, or the node is refused.
    """

    neuron: IntCubaLIF
    feedback: nir.ir.NIRNode | None = None
    balance: nir.ir.NIRNode | None = None
    table: np.ndarray | None = None
    feedback_shift: int = 0
    balance_shift: int = 0
    balance_bits: int = 16
    accumulator_bits: int = REGISTER
    schema: int = 1

    def __post_init__(self) -> None:
        self.input_type, self.output_type = self.neuron.input_type, self.neuron.output_type

    def to_dict(self) -> dict[str, Any]:
        own = ("table", "feedback_shift", "balance_shift", "balance_bits", "accumulator_bits", "schema", "metadata")
        d: dict[str, Any] = {"type": type(self).__name__, **{k: getattr(self, k) for k in own}}
        for name in ("neuron", "feedback", "balance"):
            if (held := getattr(self, name)) is not None:
                d[name] = held.to_dict()
        return _plain(d)

    @classmethod
    def from_dict(cls, kwargs: dict[str, Any]) -> IntGatedLIF:
        parts = {k: part(kwargs[k]) for k in ("neuron", "feedback", "balance") if k in kwargs}
        return cls(**parts, **{k: v for k, v in kwargs.items() if k not in parts and k != "type"})


EXTENSIONS: dict[str, type[nir.ir.NIRNode]] = {c.__name__: c for c in (IntCubaLIF, IntDense, IntConv, IntGatedLIF)}


def part(d: dict[str, Any]) -> nir.ir.NIRNode:
    kind = text(d.get("type"))
    if kind not in EXTENSIONS:
        raise GraphError(f"holds a {kind!r}; a part is one of {', '.join(EXTENSIONS)}")
    return complete(EXTENSIONS[kind], d).from_dict({**d, "type": kind})


# --- node -> step


def number(node: Any, field: str, lo: int, hi: int) -> int:
    a = whole_numbers(node, field, lo, hi)
    if a.size != 1:
        raise GraphError(f"{field} must be one number, found shape {a.shape}")
    return int(a.reshape(-1)[0])


def _choice(node: Any, field: str, valid: tuple[str, ...]) -> str:
    value = getattr(node, field)
    if value not in valid:
        raise GraphError(f"{field} = {value!r}; valid: {', '.join(valid)}")
    return value


def _lif(node: Any, clock: Clock) -> IntFire:
    if type(node) is not IntCubaLIF:
        raise GraphError(f"neuron must be an IntCubaLIF, found {type(node).__name__}")
    limits = {"vth": (-(1 << 24), 1 << 24), "du": (-1, 4095), "dv": (0, 4096), "bias_mant": (-(1 << 23), 1 << 23)}
    limits |= {"bias_exp": (-23, 23)} | ({} if node.lower is None else {"lower": limits["vth"]})
    p = {k: whole_numbers(node, k, *v) for k, v in limits.items()}
    shape = p["vth"].shape
    if bad := [k for k, a in p.items() if a.shape not in ((), (1,), shape)]:
        raise GraphError(f"{bad[0]} has shape {p[bad[0]].shape}, the neurons {shape}")
    if node.lower is not None and (p["lower"] >= p["vth"]).any():
        raise GraphError("lower must lie below vth")
    reset = _choice(node, "reset", INT_RESETS)
    if reset == "subtract" and p["vth"].min() < 0:
        raise GraphError(f'reset "subtract" with vth = {p["vth"].min():g} would raise v without end; use vth >= 0')
    if reset == "subtract" and node.lower is not None:
        raise GraphError('reset "subtract" has one threshold; with lower use "zero"')
    bias = uniform(np.floor(np.ldexp(p["bias_mant"], p["bias_exp"].astype(np.int64))))
    return IntFire(
        shape=shape,
        keep_u=unless(uniform(4095 - p["du"]), 0),
        keep_v=unless(uniform(4096 - p["dv"]), 0),
        bias=bias if bias.any() else None,
        threshold=uniform(p["vth"] * (1 << ALIGN)),
        lower=None if node.lower is None else uniform(p["lower"] * (1 << ALIGN)),
        v_reset=None,
        compare=_choice(node, "compare", COMPARES),
        reset_mode=reset,
    )


def _linear(node: Any) -> dict[str, Any]:
    """Weights with a positive exponent folded in, and what both kinds share."""
    bits, mode = number(node, "bits", 1, 8), _choice(node, "sign_mode", SIGN_MODES)
    messages, exponent = number(node, "message_bits", 0, 32), whole_numbers(node, "weight_exp", -16, 16)
    weight = whole_numbers(node, "weight", -(1 << 23), 1 << 23)
    rows = (-1, *[1] * (weight.ndim - 1))
    if exponent.size not in (1, len(weight)):
        raise GraphError(f"weight_exp has shape {exponent.shape}, weight has {len(weight)} outputs")
    exponent = uniform(exponent).reshape(rows)
    if isinstance(node, IntDense):
        weight = synapse_words(weight, bits, mode)
    # (sum w x) << e is the sum of (w << e) x, and so is a shift down that costs no bit
    scaled = np.ldexp(weight, exponent.astype(np.int64))
    shift = 0
    while (scaled != np.rint(scaled)).any():
        scaled, shift = scaled * 2, shift + 1
    if shift and exponent.size > 1:
        raise GraphError("weight_exp differs between outputs and drops bits of weights; raise it")
    bias = whole_numbers(node, "bias", -(1 << 24), 1 << 24)
    if bias.shape not in ((), (len(weight),)):
        raise GraphError(f"bias has shape {bias.shape}, weight has {len(weight)} outputs")
    return {
        "weight": scaled,
        "bias": np.broadcast_to(bias, len(weight)) if bias.any() else None,
        "shift": shift,
        "message_bits": messages,
    }


def _dense(node: Any, clock: Clock) -> IntDenseStep:
    if np.ndim(node.weight) != 2 or 0 in np.shape(node.weight):
        raise GraphError(f"weight must be (outputs, inputs), found shape {np.shape(node.weight)}")
    return IntDenseStep(**_linear(node))


def _conv(node: Any, clock: Clock) -> IntConvStep:
    shape, axes = np.shape(node.weight), np.ndim(node.weight) - 2
    if axes not in (1, 2) or 0 in shape:
        raise GraphError(f"weight must have 3 or 4 axes (out, in / groups, kernel), found {shape}")
    groups = number(node, "groups", 1, max(1, shape[0]))
    if shape[0] % groups:
        raise GraphError(f"groups = {groups} does not divide {shape[0]} output channels")
    geometry = []
    for field, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        a = whole_numbers(node, field, least, 1 << 16)
        if a.size not in (1, axes):
            raise GraphError(f"{field} must be {axes} whole numbers, found shape {a.shape}")
        geometry.append(tuple(int(v) for v in np.broadcast_to(a.reshape(-1), axes)))
    parts = _linear(node)
    if parts["bias"] is not None:
        parts["bias"] = parts["bias"].reshape(-1, *[1] * axes)
    stride, padding, dilation = geometry
    return IntConvStep(window=Window(stride, padding, dilation, groups), wraps=True, **parts)


def _gated(node: IntGatedLIF, clock: Clock) -> IntGatedFire:
    gates: dict[str, Any] = {"feedback": None, "balance": None}
    bits = number(node, "balance_bits", 2, REGISTER)
    top = (1 << (bits - 1)) - 1
    sent = BINARY if node.balance is None else TERNARY
    arriving = {"feedback": sent, "balance": interval(-top, top, True)}
    for name in gates:
        part = getattr(node, name)
        if part is None:
            continue
        if type(part).__name__ not in ("IntConv", "IntDense"):
            raise GraphError(f"{name} is a {type(part).__name__}; a gate is an IntConv or IntDense")
        try:
            step = PREPARE[type(part).__name__](part, clock)
            gates[name] = step.under(arriving[name])
        except (GraphError, ValueError) as e:
            raise GraphError(f"{name} {e}") from None
        before, total = replace(step, shift=0).sums(arriving[name]), step.sums(arriving[name])
        bias = 0.0 if step.bias is None else float(np.abs(step.bias).max())
        reach = max(-before.lo, before.hi, -total.lo + bias, total.hi + bias)
        most = (1 << (number(node, "accumulator_bits", 2, 48) - 1)) - 1
        if reach > most:
            raise GraphError(
                f"{name} sums up to {reach:g}, more than accumulator_bits = {node.accumulator_bits} hold; "
                f"use fewer {'balance_bits' if name == 'balance' else 'weight bits'}"
            )
    values = np.zeros(256) if node.table is None else whole_numbers(node, "table", 0, 255)
    if gates["feedback"] is not None and (node.table is None or values.shape != (256,)):
        raise GraphError(f"a feedback gate needs a table of 256 entries, found {values.shape}")
    inner = _lif(node.neuron, clock)
    if inner.lower is not None:
        raise GraphError("a gated neuron has one threshold: its sign comes from the balance gate, not from `lower`")
    shifts: dict[str, Any] = {k: number(node, k, 0, REGISTER - 1) for k in ("feedback_shift", "balance_shift")}
    return IntGatedFire(inner=inner, **gates, values=values, balance_bits=bits, **shifts)


PREPARE: dict[str, Callable[[Any, Clock], Any]] = {
    "IntCubaLIF": _lif,
    "IntDense": _dense,
    "IntConv": _conv,
    "IntGatedLIF": _gated,
}
