"""C for an element-wise loop of a plan: one expression a line, locals for what is used twice, stores at the end."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from eiexport.ops import Ints
from eiexport.tracing import Line, Symbol
from targets.c.plan import DTYPES, LOCAL, Block, size_of

if TYPE_CHECKING:
    from targets.c.loops import Writer

ATOM, UNARY, MUL, ADD, COMPARE, CHOICE = 6, 5, 4, 3, 2, 1
LONGEST = 48  # of an expression within another
TWICE = ("relu", "fill", "sign")  # name their argument twice
HINT = {"fire": "s", "gate": "g", "sign": "e"}  # how a local is called


class Expr(NamedTuple):
    text: str
    rank: int
    kind: str

    def at(self, rank: int) -> str:
        return self.text if self.rank >= rank else f"({self.text})"


def literal(value: float, kind: str) -> str:
    """A number of a C type that reads back to the bit."""
    if kind.startswith("int"):
        return str(int(value))
    if math.isinf(value):
        return ("-" if value < 0 else "") + ("INFINITY" if kind == "float" else "(double)INFINITY")
    shown = str(DTYPES[kind](value))
    return (shown if any(c in shown for c in ".e") else f"{shown}.0") + ("f" if kind == "float" else "")


def number(value: float, kind: str) -> Expr:
    kind = "double" if kind.startswith("int") and value != int(value) else kind
    return Expr(literal(value, kind), ATOM if value >= 0 else UNARY, kind)


class Loop:
    """An element-wise block: one loop, a local where a value is used twice, stores at the end."""

    def __init__(self, writer: Writer, block: Block) -> None:
        self.w, self.own, self.size = writer, set(block.lines), block.size
        self.lines, self.plan, dag = block.lines, writer.plan, writer.dag
        self.uses: Counter[int] = Counter()
        for i in block.lines:
            for n, a in enumerate(dag.lines[i].args):
                if isinstance(a, Symbol):
                    self.uses[self.plan.root[a.index]] += 2 if dag.lines[i].op in TWICE and n == 0 else 1
        self.stored = {i: self.plan.stores[i] for i in block.lines if i in self.plan.stores}
        self.written = {s.name for stores in self.stored.values() for s in stores}
        self.known: dict[int, Expr] = {}
        self.locals: list[str] = []
        self.called: set[str] = {"i", "c", "p"}
        writer.over = self._places()

    def _places(self) -> int | None:
        """Places of a channel, where some value lies by channels: then two loops are better than divisions."""
        found: set[int] = set()
        for i in self.lines:
            line, shape = self.w.dag.lines[i], self.plan.shape(i)
            for a in (a for a in line.args if isinstance(a, Symbol)):
                r = self.plan.root[a.index]
                value = self.w.dag.lines[r]
                if value.op != "const":
                    stores = self.plan.stores.get(r, ()) if r not in self.own else ()
                    found |= {s.last[1] for s in stores[:1] if s.last}
                elif 1 < len(shape) == len(value.shape) and value.shape == (shape[0], *[1] * (len(shape) - 1)):
                    found.add(size_of(shape[1:]))
        return found.pop() if len(found) == 1 and 1 < min(found) < self.size else None

    def text(self) -> list[str]:
        for i in self.lines:
            line, kind = self.w.dag.lines[i], self.w.kind(i)
            made = _Maker(self, i).expr()
            alone = self.uses[i] + len(self.stored.get(i, ())) <= 1 and len(made.text) <= LONGEST
            self.known[i] = cast(made, kind) if alone else self.local(made, kind, line)
        stores = [(s, i) for i in self.lines for s in self.stored.get(i, ())]
        ends = [f"{s.name}[i] = {assigned(self.known[i], s.kind)};" for s, i in stores]
        body = [f"    {t}" for t in (*self.locals, *ends)]
        if self.w.over is None:
            return [f"for (int32_t i = 0; i < {self.size}; i++) {{", *body, "}"]
        places, channels = self.w.over, self.size // self.w.over
        head = [f"for (int32_t c = 0; c < {channels}; c++)", f"    for (int32_t p = 0; p < {places}; p++) {{"]
        return [*head, f"        const int32_t i = c * {places} + p;", *(f"    {t}" for t in body), "    }"]

    def local(self, made: Expr, kind: str, line: Line) -> Expr:
        hint = HINT.get(line.op, "t")
        if line.op == "input":
            hint = line.args[0].rpartition(".")[2]
            hint = hint if line.args[0] in self.plan.states and LOCAL.fullmatch(hint) else "x"
        name, n = hint, 1
        while name in self.called:
            n += 1
            name = f"{hint}{n}"
        self.called.add(name)
        self.locals.append(f"const {kind} {name} = {assigned(made, kind)};")
        return Expr(name, ATOM, kind)

    def operand(self, a: Any, shape: Ints, kind: str) -> Expr:
        """kind: of the number that a literal becomes."""
        if not isinstance(a, Symbol):
            return number(float(a), kind)
        r = self.plan.root[a.index]
        if r in self.known:
            return self.known[r]
        if self.w.dag.lines[r].op == "const":
            return self.w.parameter(r, shape, kind)
        found = self.w.element(r, shape)
        store = self.plan.stores[r][0]
        if store.name in self.written:  # overwritten at the end of this loop
            self.known[r] = found = self.local(found, self.w.kind(r), self.w.dag.lines[r])
        return found


def cast(e: Expr, kind: str) -> Expr:
    """e as a value of `kind`."""
    return e if e.kind == kind else Expr(f"({kind}){e.at(UNARY)}", UNARY, kind)


def assigned(e: Expr, kind: str) -> str:
    """e as what an array or a local of `kind` takes: a cast where it might lose something."""
    order = ("int8_t", "int16_t", "int32_t", "int64_t")
    wider = kind in order and e.kind in order and order.index(e.kind) <= order.index(kind)
    exact = {"float": order[:2], "double": order[:3]}.get(kind, ())
    return e.text if wider or e.kind == kind or e.kind in exact else cast(e, kind).text


class _Maker:
    """The expression of one element-wise line: a method an op."""

    def __init__(self, loop: Loop, i: int) -> None:
        self.loop, self.w, self.line = loop, loop.w, loop.w.dag.lines[i]
        self.kind, self.shape = loop.w.kind(i), loop.plan.shape(i)

    def expr(self) -> Expr:
        """Of any type: whoever takes it casts it."""
        made: Expr = getattr(self, self.line.op)(*self.line.args)
        return made

    def type_of(self, a: Any) -> str:
        """The type that an operand has when it is computed with."""
        return self.w.kind(self.w.plan.root[a.index]) if isinstance(a, Symbol) else "int32_t"

    def common(self, *args: Any) -> str:
        """The type to compute in: of the result, or of a wider operand."""
        kinds = [self.kind, *(self.type_of(a) for a in args)]
        if not self.w.form.integer:
            return self.kind
        fractions = any(not isinstance(a, Symbol) and float(a) != int(a) for a in args)
        return "double" if "double" in kinds or fractions else "int64_t" if "int64_t" in kinds else "int32_t"

    def get(self, a: Any, kind: str) -> Expr:
        return self.loop.operand(a, self.shape, kind)

    def full(self, a: Any, kind: str) -> Expr:
        """An operand in exactly this type."""
        return cast(self.get(a, kind), kind)

    def pair(self, a: Any, b: Any, kind: str) -> tuple[Expr, Expr]:
        """Two operands, of which one has the type that C then computes in; a whole literal has none of its own."""
        x, y = self.get(a, kind), self.get(b, kind)
        bare = [e.text.lstrip("-").isdigit() for e in (x, y)]
        if any(e.kind == kind and not digits for e, digits in zip((x, y), bare, strict=True)):
            return x, y
        return (x, cast(y._replace(kind=""), kind)) if bare[0] else (cast(x._replace(kind=""), kind), y)

    def binary(self, sign: str, rank: int, a: Any, b: Any) -> Expr:
        kind = self.common(a, b)
        x, y = self.pair(a, b, kind)
        if sign in "+-" and y.rank == UNARY and y.text.startswith("-"):  # a number below 0
            sign, y = "-+"["+-".index(sign)], y._replace(text=y.text[1:])
        return Expr(f"{x.at(rank)} {sign} {y.at(rank + 1)}", rank, kind)

    def add(self, a: Any, b: Any) -> Expr:
        return self.binary("+", ADD, a, b)

    def sub(self, a: Any, b: Any) -> Expr:
        return self.binary("-", ADD, a, b)

    def mul(self, a: Any, b: Any) -> Expr:
        return self.binary("*", MUL, a, b)

    def div(self, a: Any, b: Any) -> Expr:
        real = self.w.form.real
        x, y = self.full(a, real), self.full(b, real)
        return Expr(f"{x.at(MUL)} / {y.at(UNARY)}", MUL, real)

    def gate(self, x: Any) -> Expr:
        return self.call("gate", self.w.form.real, x)

    def call(self, name: str, kind: str, *args: Any) -> Expr:
        shown = ", ".join(self.get(a, kind).text for a in args)
        return Expr(f"{self.w.helper(name, kind)}({shown})", ATOM, kind)

    def relu(self, x: Any) -> Expr:
        kind = self.common(x)
        a, zero = self.full(x, kind), literal(0.0, kind)
        return Expr(f"{a.at(ADD)} > {zero} ? {a.at(ADD)} : {zero}", CHOICE, kind)

    def fill(self, x: Any, y: Any) -> Expr:
        kind = self.common(x, y)
        a, b = self.full(x, kind), self.full(y, kind)
        return Expr(f"{a.at(ADD)} == {literal(0.0, kind)} ? {b.at(ADD)} : {a.at(ADD)}", CHOICE, kind)

    def octave(self, x: Any, low: float) -> Expr:
        real = self.w.form.real
        return Expr(f"{self.w.helper('octave', real)}({self.get(x, real).text}, {literal(low, real)})", ATOM, real)

    def fire(self, v: Any, threshold: Any, compare: str) -> Expr:
        kind = self.type_of(v)
        if not self.w.form.integer:
            kind = self.kind
        x, th = self.get(v, kind), self.get(threshold, kind)
        test = f"{x.at(ADD)} {'>=' if compare == 'ge' else '>'} {th.at(ADD)}"
        if self.kind.startswith("int"):
            return Expr(test, COMPARE, self.kind)
        return Expr(f"{test} ? {literal(1.0, self.kind)} : {literal(0.0, self.kind)}", CHOICE, self.kind)

    def sign(self, x: Any) -> Expr:
        kind = self.type_of(x)
        a, zero = self.get(x, kind).at(ADD), literal(0.0, kind)
        return Expr(f"({a} > {zero}) - ({a} < {zero})", ADD, "int32_t")

    def shift_floor(self, x: Any, bits: int) -> Expr:
        kind = self.common(x) if bits <= 0 else self.type_of(x)
        if bits <= 0:
            return self.binary("*", MUL, x, 2.0**-bits)
        if not kind.startswith("int"):
            f = "floor" + "f" * (kind == "float")
            return Expr(f"{f}({self.get(x, kind).at(MUL)} * {literal(2.0**-bits, kind)})", ATOM, kind)
        return self.call("down", kind, x, bits)

    def shift_zero(self, x: Any, bits: int) -> Expr:
        kind = self.type_of(x)
        if not kind.startswith("int"):
            f = "trunc" + "f" * (kind == "float")
            return Expr(f"{f}({self.get(x, kind).at(MUL)} * {literal(2.0**-bits, kind)})", ATOM, kind)
        return Expr(f"{self.get(x, kind).at(MUL)} / {1 << bits}", MUL, kind)  # C rounds toward zero

    def wrap(self, x: Any, bits: int) -> Expr:
        r = self.w.ranges[self.w.plan.root[x.index]]
        top = 2.0 ** (bits - 1)
        if -top < r.lo and r.hi <= top:
            return self.get(x, self.kind)
        return self.call("wrap", self.type_of(x), x, top)

    def modulo(self, x: Any, bits: int) -> Expr:
        r, top = self.w.ranges[self.w.plan.root[x.index]], 2.0 ** (bits - 1)
        if r.whole and r.within(-top, top - 1):
            return self.get(x, self.kind)
        return self.call("modulo", self.type_of(x), x, top)

    def saturate(self, x: Any, lo: int, hi: int) -> Expr:
        if self.w.ranges[self.w.plan.root[x.index]].within(lo, hi):
            return self.get(x, self.kind)
        return self.call("clip", self.type_of(x), x, lo, hi)

    def table(self, index: Any, values: Symbol) -> Expr:
        store = self.w.constant(values.index)
        e = self.get(index, self.type_of(index))
        at = e.text if e.kind.startswith("int") else f"(int32_t){e.at(UNARY)}"
        return Expr(f"{store.name}[{at}]", ATOM, store.kind)

    def quotient(self, a: Any, b: Any) -> Expr:
        kind = self.common(a, b)
        if not kind.startswith("int"):
            x, y = self.full(a, kind), self.full(b, kind)
            f = "floor" + "f" * (kind == "float")
            return Expr(f"{f}({x.at(MUL)} / {y.at(UNARY)})", ATOM, kind)
        return self.call("quotient", kind, a, b)
