"""C for one block of a plan: where values lie, and loop nests of the lines that read elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eiexport.ops import Ints, Window
from eiexport.tracing import Line
from targets.c.expressions import ATOM, Expr, Loop, literal, number
from targets.c.plan import Block, Plan, Store, size_of


class Writer:
    """Writes blocks; collects the constants and helpers that they use."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.dag, self.form = plan, plan.dag, plan.form
        self.ranges = plan.found.ranges
        self.arrays: dict[tuple[int, bool], tuple[Store, np.ndarray]] = {}  # (constant, turned around) -> its array
        self.helpers: set[str] = set()
        self.over: int | None = None  # places of a channel, where the loop at hand runs over channels and places

    def kind(self, i: int) -> str:
        return self.form.computed(self.ranges[i])

    def block(self, block: Block) -> list[str]:
        if block.heavy:
            return getattr(self, f"_{self.dag.lines[block.lines[0]].op}")(block.lines[0])
        return Loop(self, block).text()

    def helper(self, name: str, kind: str) -> str:
        self.helpers.add(f"{name}:{kind}")
        return self.plan.names.prefix + f"ei_{name}" + {"int64_t": "_64", "double": "_real"}.get(kind, "")

    # --- arrays

    def constant(self, i: int, turned: np.ndarray | None = None) -> Store:
        """The array of a constant, as it lies or turned around for a product."""
        key = (i, turned is not None)
        if key not in self.arrays:
            line = self.dag.lines[i]
            values = np.asarray(line.args[0] if turned is None else turned)
            kind = self.form.held(self.ranges[i])
            self.arrays[key] = (Store(self.plan.names.make(line.label), kind, values.size), values)
        return self.arrays[key][0]

    def split(self, places: int) -> tuple[str, str]:
        """(channel, place) of a flat index i."""
        return ("c", "p") if self.over == places else (f"i / {places}", f"i % {places}")

    def element(self, r: int, shape: Ints) -> Expr:
        """A stored value at the loop's index i, in a loop over `shape`."""
        store = self.plan.stores[r][0]
        if store.size == 1:
            return Expr(f"{store.name}[0]", ATOM, store.kind)
        if store.last:
            c, p = self.split(store.last[1])
            return Expr(f"{store.name}[{p} * {store.last[0]} + {c}]", ATOM, store.kind)
        return Expr(f"{store.name}[i]", ATOM, store.kind)

    def parameter(self, i: int, shape: Ints, kind: str) -> Expr:
        """A constant that broadcasts over `shape`: a literal, or an entry."""
        value = np.asarray(self.dag.lines[i].args[0])
        if value.size == 1:
            return number(float(value.reshape(-1)[0]), kind)
        store, axes = self.constant(i), (1,) * (len(shape) - value.ndim) + value.shape
        if axes == shape:
            index = "i"
        elif axes[0] == shape[0] and set(axes[1:]) == {1}:
            index = self.split(size_of(shape[1:]))[0]
        else:
            index = _broadcast(shape, axes)
        return Expr(f"{store.name}[{index}]", ATOM, store.kind)

    def at(self, r: int, index: str) -> str:
        """A stored value at a flat index."""
        store = self.plan.stores[r][0]
        if store.last:
            c, p = store.last
            return f"{store.name}[{_factor(index)} % {p} * {c} + {_factor(index)} / {p}]"
        return f"{store.name}[{index}]"

    def pixel(self, r: int, size: Ints) -> str:
        """A stored map (channels, *size) at c, y, x."""
        store, rows = self.plan.stores[r][0], len(size) > 1
        if store.last == (store.size // size_of(size), size_of(size)):
            place = f"(y * {size[-1]} + x)" if rows else "x"
            return f"{store.name}[{place} * {store.last[0]} + c]"
        return self.at(r, f"(c * {size[0]} + y) * {size[1]} + x" if rows else f"c * {size[0]} + x")

    # --- lines that read elsewhere

    def _operands(self, i: int) -> tuple[Line, int, Store]:
        """(line, what it reads, array of its results)."""
        line = self.dag.lines[i]
        return line, self.plan.root[line.args[0].index], self.plan.stores[i][0]

    def _start(self, out: Store, bias: Any, outputs: int) -> list[str]:
        """Sums begin at the bias, or at zero; out[place][output]."""
        if bias is None:
            return [f"memset({out.name}, 0, {out.size} * sizeof {out.name}[0]);"]
        store = self.constant(bias.index)
        if out.size == outputs:
            return [f"for (int32_t o = 0; o < {outputs}; o++) {out.name}[o] = {store.name}[o];"]
        return [
            f"for (int32_t p = 0; p < {out.size // outputs}; p++)",
            f"    for (int32_t o = 0; o < {outputs}; o++) {out.name}[p * {outputs} + o] = {store.name}[o];",
        ]

    def _take(self, r: int, out: Store, entry: str) -> tuple[list[str], str]:
        """(lines that read an input and leave it where it is 0, what multiplies the weight)."""
        x = self.ranges[r]
        if x.whole and x.within(0, 1):
            return [f"if (!{entry}) continue;"], ""
        zero = "0" if out.kind.startswith("int") else literal(0.0, out.kind)
        return [f"const {out.kind} a = {entry};", f"if (a == {zero}) continue;"], " * a"

    def _linear(self, i: int) -> list[str]:
        line, r, out = self._operands(i)
        weight = np.asarray(self.dag.lines[line.args[1].index].args[0])
        o, n = weight.shape
        held = self.constant(line.args[1].index, weight.T)
        rows = out.size // o
        to, first = (out.name, "k") if rows == 1 else ("to", f"m * {n} + k")
        read, times = self._take(r, out, self.at(r, first))
        body = [f"for (int32_t k = 0; k < {n}; k++) {{"]
        body += [f"    {t}" for t in read]
        body += [f"    const {held.kind} *const w = {held.name} + k * {o};"]
        body += [f"    for (int32_t o = 0; o < {o}; o++) {to}[o] += w[o]{times};", "}"]
        if rows > 1:
            head = [f"for (int32_t m = 0; m < {rows}; m++) {{", f"    {out.kind} *const to = {out.name} + m * {o};"]
            body = [*head, *(f"    {t}" for t in body), "}"]
        return [*self._start(out, line.args[2], o), *body]

    def _conv(self, i: int) -> list[str]:
        """Each input is spread over the outputs that see it; the sums of one place lie side by side."""
        line, r, out = self._operands(i)
        weight, window = np.asarray(self.dag.lines[line.args[1].index].args[0]), line.args[3]
        (outputs, per), kernel = weight.shape[:2], weight.shape[2:]
        size, places = self.plan.shape(line.args[0].index)[1:], line.shape[2:]
        own = outputs // window.groups
        grouped = weight.reshape(window.groups, own, per, *kernel)
        turned = np.moveaxis(grouped, 1, -1)  # (group, channel, *kernel, output)
        held = self.constant(line.args[1].index, turned)
        axes = _axes(size, places, kernel, window)
        channels = per * window.groups
        heads, guards = [f"for (int32_t c = 0; c < {channels}; c++)"], []
        heads += [f"for (int32_t {name} = 0; {name} < {n}; {name}++)" for name, n, *_ in axes]
        read, times = self._take(r, out, self.pixel(r, size))
        to, w = "", "c"
        for name, _, m, k, s, p, d in axes:
            if (k, s, p) == (1, 1, 0):  # each place sees itself
                to = f"{_factor(to)} * {m} + {name}" if to else name
                continue
            step = f" - {d} * k{name}" if d > 1 else f" - k{name}"
            left = name + (f" + {p}" if p else "") + (step if k > 1 else "")
            lines = [f"const int32_t o{name} = {left};"]
            if s == 1:
                lines += [f"if (o{name} < 0 || o{name} >= {m}) continue;"]
                at = f"o{name}"
            else:
                lines += [f"if (o{name} < 0 || o{name} % {s} != 0 || o{name} >= {m * s}) continue;"]
                at = f"o{name} / {s}"
            guards.append((f"for (int32_t k{name} = 0; k{name} < {k}; k{name}++) {{" if k > 1 else "", lines))
            to = f"{_factor(to)} * {m} + {at}" if to else at
            w = f"{_factor(w)} * {k} + k{name}" if k > 1 else w
        offset = ("c" if per == 1 else f"c / {per}") + (f" * {own}" if own > 1 else "")
        offset = f" + {offset}" if window.groups > 1 else ""
        spread = [
            f"{out.kind} *const to = {out.name} + {_factor(to)} * {outputs}{offset};",
            f"const {held.kind} *const w = {held.name} + {_factor(w)} * {own};",
            f"for (int32_t o = 0; o < {own}; o++) to[o] += w[o]{times};",
        ]
        return [*self._start(out, line.args[2], outputs), *_nested(heads, read, guards, spread)]

    def _window(self, i: int, first: str, take: str) -> list[str]:
        """One value for each window of a map."""
        line, r, out = self._operands(i)
        kernel, window = line.args[1], line.args[2]
        size, places = self.plan.shape(line.args[0].index)[1:], line.shape[2:]
        text = [f"for (int32_t c = 0; c < {line.shape[1]}; c++)"]
        text += [f"    for (int32_t oy = 0; oy < {places[0]}; oy++)"]
        text += [f"        for (int32_t ox = 0; ox < {places[1]}; ox++) {{", f"            {out.kind} a = {first};"]
        for depth, (name, n, _, k, s, p, d) in enumerate(_axes(size, places, kernel, window), 3):
            pad, step = "    " * depth, f"{d} * k{name}" if d > 1 else f"k{name}"
            at = f"o{name}" + (f" * {s}" if s > 1 else "") + (f" - {p}" if p else "") + f" + {step}"
            text += [f"{pad}for (int32_t k{name} = 0; k{name} < {k}; k{name}++) {{"]
            text += [f"{pad}    const int32_t {name} = {at};"]
            text += [f"{pad}    if ({name} < 0 || {name} >= {n}) continue;"]
        pad = "    " * 5
        text += [f"{pad}{t}" for t in (take % {"x": self.pixel(r, size)}).splitlines()]
        text += ["    " * 4 + "}", "    " * 3 + "}"]
        index = f"(c * {places[0]} + oy) * {places[1]} + ox"
        return [*text, f"            {out.name}[{index}] = a;", "        }"]

    def _pool(self, i: int) -> list[str]:
        return self._window(i, literal(0.0, self.plan.stores[i][0].kind), "a += %(x)s;")

    def _max_pool(self, i: int) -> list[str]:
        """A window holds a value at least, so the first value loses."""
        kind = self.plan.stores[i][0].kind
        least = literal(-math.inf, kind) if not kind.startswith("int") else f"INT{kind[3:-2]}_MIN"
        return self._window(i, least, "if (%(x)s > a) a = %(x)s;")

    def _least(self, i: int) -> list[str]:
        line, r, out = self._operands(i)
        size = size_of(line.args[0].shape)
        a, end = self.at(r, "i"), literal(math.inf, out.kind)
        text = [f"{out.name}[0] = {end};", f"for (int32_t i = 0; i < {size}; i++)"]
        return [*text, f"    if ({a} != 0 && {a} < {out.name}[0]) {out.name}[0] = {a};"]


def _nested(heads: list[str], read: list[str], guards: list[tuple[str, list[str]]], inner: list[str]) -> list[str]:
    text, depth = [], 0
    for n, head in enumerate(heads):
        text.append("    " * n + head + (" {" if n == len(heads) - 1 else ""))
    depth = len(heads)
    closing = [depth - 1]
    text += ["    " * depth + t for t in read]
    for head, lines in guards:
        if head:
            text.append("    " * depth + head)
            closing.append(depth)
            depth += 1
        text += ["    " * depth + t for t in lines]
    text += ["    " * depth + t for t in inner]
    return [*text, *("    " * d + "}" for d in reversed(closing))]


def _axes(size: Ints, places: Ints, kernel: Ints, window: Window) -> list[tuple[Any, ...]]:
    """Of each spatial axis: (name, inputs, outputs, kernel, stride, padding, dilation)."""
    geometry = (size, places, kernel, window.stride, window.padding, window.dilation)
    return list(zip("yx"[-len(size) :], *geometry, strict=True))


def _factor(index: str) -> str:
    return index if index.isalnum() else f"({index})"


def _broadcast(shape: Ints, axes: Ints) -> str:
    """Index of a smaller array at the flat index i of a larger one."""
    parts, outer, inner = [], 1, 1
    for n, m in zip(reversed(shape), reversed(axes), strict=True):
        if m > 1:
            at = f"i / {outer} % {n}" if outer > 1 else f"i % {n}"
            parts.append(f"{at} * {inner}" if inner > 1 else at)
            inner *= m
        outer *= n
    return " + ".join(reversed(parts)) or "0"
