"""The integer node kinds written a second time, in Python's own whole numbers: no array arithmetic, no rounding.

It imports nothing of the toolchain, so agreement means that two readings of the definitions agree. A signal is a dict
from neuron index to int; an index outside the map reads as 0, which is zero padding. Every node is first turned into
a small table of plain ints, so that the steps stay fast enough for some tens of neurons.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

Index = tuple[int, ...]
Signal = dict[Index, int]

HALF, FULL = 1 << 23, 1 << 24  # a register of 24 bits


def run(graph: Any, x: Any) -> list[list[dict[str, dict[str, Signal]]]]:
    """[sample][step]{"z", "u", "v"}[node]: what every node sends, and the registers of neurons after the step.

    x: (sample, time, *neuron) of whole numbers; dt is one step.
    """
    return [_sample(graph, sample) for sample in x]


def _sample(graph: Any, x: Any) -> list[dict[str, dict[str, Signal]]]:
    sources = {n: sorted(a for a, b in graph.edges if b == n) for n in graph.nodes}
    history: list[dict[str, dict[str, Signal]]] = []
    made: dict[str, Any] = {}  # what a node is, told once its input's shape is known
    state: dict[str, Any] = {}  # absent: zero, as at the start of every sample

    def sent(name: str, t: int) -> Signal:
        """The node's value at step t; whatever it depends on is computed first."""
        if name not in history[t]["z"]:
            history[t]["z"][name] = value(name, graph.nodes[name], t)
        return history[t]["z"][name]

    def incoming(name: str, t: int) -> Signal:
        total: Signal = {}
        for source in sources[name]:
            for i, n in sent(source, t).items():
                total[i] = total.get(i, 0) + n
        return total

    def value(name: str, node: Any, t: int) -> Signal:
        kind = type(node).__name__
        if kind == "Input":
            return _signal(x[t])
        if kind == "Delay":  # asks for the past only, so it may close a cycle
            late = _signal(node.delay)
            return {i: incoming(name, t - d)[i] if t >= d else 0 for i, d in late.items()}
        came = incoming(name, t)
        if kind == "Output":
            return came
        if name not in made:
            made[name] = MAKE[kind](node, _extents(came))
        if kind not in ("IntCubaLIF", "IntGatedLIF"):
            return made[name].apply(came)
        z, state[name] = made[name].step(came, state.get(name))
        history[t]["u"][name], history[t]["v"][name] = state[name][:2]
        return z

    for t in range(len(x)):
        history.append({"z": {}, "u": {}, "v": {}})
        for name in graph.nodes:
            sent(name, t)
    return history


# --- numbers


def _whole(value: Any) -> int:
    n = int(value)
    if n != value:
        raise ValueError(f"{value} is no whole number")
    return n


def _list(a: Any) -> Any:
    return a.tolist() if hasattr(a, "tolist") else a


def _signal(a: Any, at: Index = ()) -> Signal:
    """Nested lists, or an array, as a signal."""
    a = _list(a)
    if not isinstance(a, list):
        return {at: _whole(a)}
    return {i: n for k, part in enumerate(a) for i, n in _signal(part, (*at, k)).items()}


def _each(a: Any, indices: list[Index]) -> dict[Index, int]:
    """A parameter at every neuron; one number holds for all."""
    found = _signal(a)
    return found if len(found) > 1 else dict.fromkeys(indices, next(iter(found.values())))


def _numbers(a: Any, axes: int) -> list[int]:
    """A geometry field: one number for all axes, or one each."""
    found = list(_signal(a).values())
    return found if len(found) == axes else found * axes


def _one(a: Any) -> int:
    (n,) = _signal(a).values()
    return n


def _indices(shape: Any) -> list[Index]:
    return list(product(*(range(n) for n in shape)))


def _extents(x: Signal) -> Index:
    return tuple(max(axis) + 1 for axis in zip(*x, strict=True))


def toward_zero(n: int, bits: int) -> int:
    return n >> bits if n >= 0 else -(-n >> bits)


def scaled(n: int, exponent: int) -> int:
    """n << exponent; a negative exponent shifts right, which rounds down."""
    return n << exponent if exponent >= 0 else n >> -exponent


def clip(n: int, lo: int, hi: int) -> int:
    return lo if n < lo else hi if n > hi else n


def wrapped(n: int) -> int:
    """One turn of the register, not more: (-2^23, 2^23] stays as it is."""
    if n > HALF:
        return n - FULL
    return n + FULL if n <= -HALF else n


# --- connections


class Taps(NamedTuple):
    """A linear map: for every output its (input, weight) pairs, bias and exponent."""

    pairs: dict[Index, list[tuple[Index, int]]]
    bias: dict[Index, int]
    exponent: dict[Index, int]
    graded: bool
    modulo: bool

    def apply(self, x: Signal) -> Signal:
        if not self.graded:  # a message without bits is a spike or nothing, whatever its sign
            x = {i: int(n != 0) for i, n in x.items()}
        y = {}
        for o, pairs in self.pairs.items():
            total = scaled(sum(w * x.get(i, 0) for i, w in pairs), self.exponent[o])
            if self.modulo:
                total = (total + HALF) % FULL - HALF
            y[o] = total + self.bias[o]
        return y


def synapse(weight: int, bits: int, sign_mode: str) -> int:
    """The weight that a synapse of so many bits holds: clipped to 8 bits (9 with a sign), low bits cleared."""
    mixed = sign_mode == "mixed"
    drop = 8 - bits + mixed
    if sign_mode == "inhibitory":
        return -(clip(-weight, 0, 255) >> drop << drop)
    return clip(weight, -256 if mixed else 0, 255) >> drop << drop


def _map(node: Any, pairs: dict[Index, list[tuple[Index, int]]], channel: int, modulo: bool) -> Taps:
    """channel: the axis of an output that bias and exponent follow, where there is more than one."""
    each = []
    for field in (node.bias, node.weight_exp):
        values = list(_signal(field).values())
        each.append({o: values[o[channel] if len(values) > 1 else 0] for o in pairs})
    return Taps(pairs, *each, _one(node.message_bits) > 0, modulo)


def dense(node: Any, shape: Index) -> Taps:
    weight = _list(node.weight)
    mode, bits = node.sign_mode, _one(node.bits)
    pairs: dict[Index, list[tuple[Index, int]]] = {}
    for *lead, o in _indices((*shape[:-1], len(weight))):
        row = enumerate(weight[o])
        pairs[(*lead, o)] = [((*lead, i), synapse(_whole(w), bits, mode)) for i, w in row]
    return _map(node, pairs, -1, modulo=False)


def conv(node: Any, shape: Index) -> Taps:
    weight = _signal(node.weight)
    outputs, per_group, *kernel = _extents(weight)
    axes = range(len(kernel))
    stride, padding, dilation = (_numbers(f, len(kernel)) for f in (node.stride, node.padding, node.dilation))
    reach = [dilation[a] * (kernel[a] - 1) for a in axes]
    size = [(n + 2 * padding[a] - reach[a] - 1) // stride[a] + 1 for a, n in enumerate(shape[1:])]
    pairs: dict[Index, list[tuple[Index, int]]] = {}
    for o, *place in _indices((outputs, *size)):
        first = o // (outputs // _one(node.groups)) * per_group  # first input channel of this filter's group
        pairs[(o, *place)] = [
            ((first + c, *(place[a] * stride[a] + tap[a] * dilation[a] - padding[a] for a in axes)), weight[o, c, *tap])
            for c, *tap in _indices((per_group, *kernel))
        ]
    return _map(node, pairs, 0, modulo=True)


def _plain(pairs: dict[Index, list[tuple[Index, int]]]) -> Taps:
    zero = dict.fromkeys(pairs, 0)
    return Taps(pairs, zero, zero, graded=True, modulo=False)


def pool(node: Any, shape: Index) -> Taps:
    kernel, stride, padding = (_numbers(f, 2) for f in (node.kernel_size, node.stride, node.padding))
    size = [(n + 2 * padding[a] - kernel[a]) // stride[a] + 1 for a, n in enumerate(shape[1:])]
    pairs = {
        (c, *place): [((c, *(place[a] * stride[a] + k[a] - padding[a] for a in (0, 1))), 1) for k in _indices(kernel)]
        for c, *place in _indices((shape[0], *size))
    }
    return _plain(pairs)


def flatten(node: Any, shape: Index) -> Taps:
    first, last = (_one(n) % len(shape) for n in (node.start_dim, node.end_dim))
    pairs = {}
    for i in _indices(shape):
        joined = 0
        for axis in range(first, last + 1):
            joined = joined * shape[axis] + i[axis]
        pairs[(*i[:first], joined, *i[last + 1 :])] = [(i, 1)]
    return _plain(pairs)


# --- neurons


class Cell(NamedTuple):
    """Parameters of one neuron; lower is None where there is one threshold."""

    keep_u: int
    keep_v: int
    bias: int
    threshold: int
    lower: int | None
    at_threshold: bool  # compare "ge"
    reset: str

    def charge(self, a: int, u: int, v: int) -> tuple[int, int]:
        """(u, v) before the decision."""
        u = wrapped(toward_zero(u * self.keep_u, 12) + (a << 6))
        v = toward_zero(v * self.keep_v, 12) + u + self.bias
        return u, clip(v, 1 - HALF, HALF - 1)

    def fire(self, v: int) -> int:
        if v > self.threshold or (self.at_threshold and v == self.threshold):
            return 1
        if self.lower is not None and (v < self.lower or (self.at_threshold and v == self.lower)):
            return -1
        return 0

    def after(self, v: int, fired: bool) -> int:
        if not fired or self.reset == "none":
            return v
        return v - self.threshold if self.reset == "subtract" else 0


class Population(NamedTuple):
    cells: dict[Index, Cell]

    def step(self, a: Signal, state: Any) -> tuple[Signal, tuple[Signal, Signal]]:
        u, v = state or (dict.fromkeys(a, 0), dict.fromkeys(a, 0))
        z, u_new, v_new = {}, {}, {}
        for i, cell in self.cells.items():
            u_new[i], charged = cell.charge(a[i], u[i], v[i])
            z[i] = cell.fire(charged)
            v_new[i] = cell.after(charged, z[i] != 0)
        return z, (u_new, v_new)


def lif(node: Any, shape: Index) -> Population:
    at = _indices(shape)
    names = ("du", "dv", "bias_mant", "bias_exp", "vth")
    p = {k: _each(getattr(node, k), at) for k in names}
    low = None if node.lower is None else _each(node.lower, at)
    return Population(
        {
            i: Cell(
                keep_u=4096 - (p["du"][i] + 1),
                keep_v=4096 - p["dv"][i],
                bias=scaled(p["bias_mant"][i], p["bias_exp"][i]),
                threshold=p["vth"][i] << 6,
                lower=None if low is None else low[i] << 6,
                at_threshold=node.compare == "ge",
                reset=node.reset,
            )
            for i in at
        }
    )


class Gated(NamedTuple):
    """BackEISNN's neuron: the feedback gate scales the input, the balance gate gives the spike its sign."""

    cells: dict[Index, Cell]
    feedback: Taps | None
    balance: Taps | None
    table: list[int]
    feedback_shift: int
    balance_shift: int
    top: int  # largest balance message

    def step(self, a: Signal, state: Any) -> tuple[Signal, tuple[Signal, Signal, Signal]]:
        zero = dict.fromkeys(a, 0)
        u, v, d = state or (zero, zero, zero)
        if self.feedback is not None:
            fed = self.feedback.apply(d)
            a = {i: self.table[clip(fed[i] >> self.feedback_shift, -128, 127) + 128] * n >> 8 for i, n in a.items()}
        charged = {i: cell.charge(a[i], u[i], v[i]) for i, cell in self.cells.items()}
        e = dict.fromkeys(a, 1)
        if self.balance is not None:
            message = {i: clip(n >> self.balance_shift, -self.top, self.top) for i, (_, n) in charged.items()}
            e = {i: (n > 0) - (n < 0) for i, n in self.balance.apply(message).items()}
        fired = {i: cell.fire(charged[i][1]) for i, cell in self.cells.items()}
        # the unsigned spike resets, also where the balance swallows it
        after = {i: cell.after(charged[i][1], fired[i] != 0) for i, cell in self.cells.items()}
        sent = {i: e[i] * n for i, n in fired.items()}
        return sent, ({i: n for i, (n, _) in charged.items()}, after, sent)


def gated(node: Any, shape: Index) -> Gated:
    gates = (None if g is None else MAKE[type(g).__name__](g, shape) for g in (node.feedback, node.balance))
    table = [0] * 256 if node.table is None else [_whole(n) for n in _list(node.table)]
    shifts = (_one(node.feedback_shift), _one(node.balance_shift))
    top = (1 << (_one(node.balance_bits) - 1)) - 1
    return Gated(lif(node.neuron, shape).cells, *gates, table, *shifts, top)


MAKE = {
    "IntDense": dense,
    "IntConv": conv,
    "SumPool2d": pool,
    "Flatten": flatten,
    "IntCubaLIF": lif,
    "IntGatedLIF": gated,
}
