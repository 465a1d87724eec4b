"""One self-contained C99 file from the traced step of a network: no equation stands here, only one form of each op."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from eiexport.graph import Network
from eiexport.ops import Ints, NumpyOps
from eiexport.tracing import Dag
from targets.base import Unsupported
from targets.c.loops import Writer, literal
from targets.c.plan import DTYPES, Form, Names, Plan, Store, folded, live
from targets.c.ranges import Found, Range, RangeOps, infer
from targets.traced import stream

MOST = 1 << 23  # entries of constants: a compiler takes about 3 seconds and 200 MB a million
FLOAT_MAX = float(np.finfo(np.float32).max)
HELD = 2.0**62  # what is computed in int64_t stays below
INPUTS = (32, 16, 8)  # bits tried for an input of which nothing is known

# T: the type, F: the suffix of its functions in math.h
HELPERS = {
    "down": """/* x / 2^bits, rounded down: no shift of a negative number */
static T N(T x, int bits) {
    return x >= 0 ? x >> bits : ~(~x >> bits);
}""",
    "wrap": """/* one turn of a register that ends at top */
static T N(T x, T top) {
    return x > top ? x - 2 * top : x <= -top ? x + 2 * top : x;
}""",
    "modulo": """/* x modulo 2 * top, in [-top, top); top is a power of two */
static T N(T x, T top) {
    const T turned = (T)(((U)x + (U)top) & (U)(2 * top - 1));
    return turned - top;
}""",
    "clip": """static T N(T x, T lo, T hi) {
    return x > hi ? hi : x > lo ? x : lo;
}""",
    "quotient": """/* a / b rounded down, b > 0 */
static T N(T a, T b) {
    return a / b - (a % b < 0);
}""",
    "gate": """/* 1 / (1 + exp(-x)), without overflow */
static T N(T x) {
    const T e = exp_F(-fabs_F(x));
    return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}""",
    "octave": """/* the power of two p with low * p <= x < 2 * low * p, x > 0 */
static T N(T x, T low) {
    int exponent;
    (void)frexp_F(x / low, &exponent);
    return ldexp_F(1, exponent - 1);
}""",
}
HELPERS_REAL = {
    "modulo": """/* x modulo 2 * top, in [-top, top) */
static T N(T x, T top) {
    return x - 2 * top * floor_F((x + top) / (2 * top));
}"""
}
FUNCTIONS = ("reset", "step", "run")  # NAME_run: of the driver that compares it


@dataclass(frozen=True)
class Source:
    """A network in C. outputs, states: the arrays that hold them after a step; results: arguments of the step."""

    text: str
    name: str
    given: Store
    range: Range  # of the input
    outputs: dict[str, Store]
    states: dict[str, Store]
    results: dict[str, Store]
    steps: int | None  # for which no register can overflow; None: any number
    memory: dict[str, int]  # bytes of constants, state, work


def source(network: Network, name: str = "model", probe: bool = False, prefix: str = "") -> Source:
    """The C file of a network; raises Unsupported by the first rule that it breaks.

    probe: with registers that nothing reads. prefix: of every identifier, where files share a translation unit.
    """
    form = Form(network.integer)
    dag = stream(network)
    if not form.integer:
        _verify_floats(dag)
    dag = folded(dag, NumpyOps(np.float64 if form.integer else np.float32))
    entries = sum(np.size(n.args[0]) for n in dag.lines if n.op == "const")
    if entries > MOST:
        raise Unsupported(f"target 'c': rule file_size: {entries:,} constants, limit {MOST:,}; use another target")
    dag = dag if probe else live(dag)
    given, found = _ranges(network, dag, form)
    names = Names(prefix, tuple(f"{prefix}{name}_{f}" for f in FUNCTIONS))
    plan = Plan(dag, found, form, names)
    return _File(network, plan, prefix + name, given).source()


def _verify_floats(dag: Dag) -> None:
    for line in dag.lines:
        if line.op == "const":
            a = np.abs(np.asarray(line.args[0], np.float64))
            reach = a[np.isfinite(a)].max(initial=0.0)
            if reach > FLOAT_MAX:
                raise Unsupported(
                    f"target 'c': rule float32: {line.label} reaches {reach:.3g}, limit {FLOAT_MAX:.3g}; scale it"
                )


def _ranges(network: Network, dag: Dag, form: Form) -> tuple[Range, Found]:
    """What each value can be, and that C's types hold it."""
    a = network.alphabets[network.input]
    ops = RangeOps() if form.integer else RangeOps(2.0**24)
    if not form.integer or a.discrete:
        given = Range(a.lo, a.hi, a.discrete)
        found = infer(dag, {network.input: given}, ops)
        odd = _odd(network, dag, found) if form.integer else ""
        if odd:
            raise Unsupported(odd)
        return given, found
    for bits in INPUTS:
        given = Range(-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1, True)
        found = infer(dag, {network.input: given}, ops)
        odd = _odd(network, dag, found)
        if not odd and (found.steps is None or bits == INPUTS[-1]):
            return given, found
    raise Unsupported(f"{odd}; declare what the input holds")


def _odd(network: Network, dag: Dag, found: Found) -> str:
    """The first value of an integer network that C would not hold exactly."""
    for line, r in zip(dag.lines, found.ranges, strict=True):
        if line.op not in ("const", "input") and r.whole and not r.within(-HELD, HELD):
            return (
                f"target 'c': rule int64: node {line.label!r}: {line.op} reaches {max(-r.lo, r.hi):.3g}, limit 2^62; "
                "use fewer message bits or a smaller weight_exp"
            )
        if line.op in ("linear", "conv", "pool", "max_pool") and not r.whole:
            return f"target 'c': rule whole_sums: node {line.label!r}: {line.op} of fractions in an integer network"
    for name, symbol in zip(dag.names, dag.outputs, strict=True):
        if not found.ranges[symbol.index].whole:
            return f"target 'c': rule whole_values: node {name!r} holds fractions in an integer network"
    return ""


class _File:
    def __init__(self, network: Network, plan: Plan, name: str, given: Range) -> None:
        self.network, self.plan, self.name, self.given = network, plan, name, given
        self.writer = Writer(plan)
        dag = plan.dag
        self.input = plan.stores[dag.inputs[network.input].index][0]
        ends = [n for o in network.outputs for n in network.sources[o]]
        self.results = {
            n: Store(plan.names.make(f"out.{n}"), s.kind, s.size) for n, s in plan.outputs.items() if n in ends
        }
        used = Counter(plan.places.values())
        self.alone = {n: k for n, k in plan.places.items() if used[k] == 1}

    def source(self) -> Source:
        body = self._step()  # first: it finds the constants and helpers
        memory = {
            "constants": sum(s.bytes for s, _ in self.writer.arrays.values()),
            "state": sum(s.bytes for s in self._static()),
            "work": sum(s.bytes for s in self.plan.slots),
        }
        parts = [self._head(memory), self._prototypes(), self._helpers(), self._constants(), self._arrays()]
        text = "\n\n".join(p for p in [*parts, self._reset(), body, self._main()] if p) + "\n"
        plan, steps = self.plan, self.plan.found.steps
        held = (self.given, plan.outputs, plan.states, self.results, steps, memory)
        return Source(text, self.name, self.input, *held)

    def _static(self) -> list[Store]:
        stores = {s.name: s for s in (*self.plan.states.values(), *self.plan.outputs.values())}
        return list(stores.values())

    def _head(self, memory: dict[str, int]) -> str:
        network, plan = self.network, self.plan
        form = "whole numbers, as on the other integer engines to the bit" if plan.form.integer else "float32"
        a, dt = network.alphabets[network.input], repr(float(network.clock.dt)).removesuffix(".0")
        taken = str(a) if a.discrete else f"[{self.given.lo:.0f}, {self.given.hi:.0f}]" if plan.form.integer else "real"
        lines = [
            f"{self.name}: a spiking network of {len(network.graph.nodes)} nodes as one C99 file, made by eiexport.",
            "",
            f"time step   dt = {dt}, integrator {network.clock.integrator}",
            f"numbers     {form}",
            f"input       {_shape(network.shapes[network.input])} {self.input.kind}, {taken}, in C order",
        ]
        for name, s in self.results.items():
            lines.append(f"output      {_shape(network.shapes[name])} {s.kind}, {network.alphabets[name]}: node {name}")
        lines.append("memory      " + ", ".join(f"{k} {n:,} bytes" for k, n in memory.items()) + "; all of it static")
        if plan.found.steps is not None:
            lines.append(f"limit       {plan.found.steps:,} steps between resets: then a register might overflow")
        link = ", link with -lm" if self._needs_math() else ""
        lines += [
            "",
            f"Call {self.name}_reset() before each sample and {self.name}_step() once for each time step.",
            "One network, one thread: its state is in this file. Input outside its range breaks what was proven of it.",
            f"Compile: cc -std=c99 -O2 -ffp-contract=off -c model.c{link}; not -ffast-math.",
            "With -DEI_MAIN it is a program: raw input of one sample on stdin, raw output on stdout.",
        ]
        return "/*\n" + "\n".join(f" * {_plain(t)}".rstrip() for t in lines) + "\n */"

    def _prototypes(self) -> str:
        includes = ["math.h"] * self._needs_math() + ["stdint.h", "string.h"]
        own = [f"void {self.name}_reset(void);", f"{self._call()};"]
        return "\n".join([*(f"#include <{n}>" for n in includes), "", *own])

    def _needs_math(self) -> bool:
        body = self._text + "\n".join(self._helper_texts())
        return bool(re.search(r"INFINITY|\b(exp|fabs|frexp|ldexp|floor|trunc)f?\(", body))

    def _call(self) -> str:
        outs = (f"{s.kind} {s.name}[{s.size}]" for s in self.results.values())
        args = [f"const {self.input.kind} {self.input.name}[{self.input.size}]", *outs]
        return f"void {self.name}_step({', '.join(args)})"

    def _helper_texts(self) -> list[str]:
        found = []
        for wanted in sorted(self.writer.helpers):
            helper, kind = wanted.split(":")
            whole, f = kind.startswith("int"), "f" if kind == "float" else ""
            body = HELPERS[helper] if whole else HELPERS_REAL.get(helper, HELPERS[helper])
            body = re.sub(r"\bT\b", kind, re.sub(r"\bU\b", f"u{kind}", body)).replace("_F(", f"{f}(")
            found.append(re.sub(r"\bN\b", self.writer.helper(helper, kind), body))
        return found

    def _helpers(self) -> str:
        return "\n\n".join(self._helper_texts())

    def _constants(self) -> str:
        return "\n\n".join(_array(s, a) for s, a in self.writer.arrays.values())

    def _arrays(self) -> str:
        states = {s.name: f"state {n}" for n, s in self.plan.states.items()}
        sent = {s.name: f"sent by {n}" for n, s in self.plan.outputs.items()}
        text = []
        for s in self._static():
            about = ", ".join(found[s.name] for found in (states, sent) if s.name in found)
            text.append(f"static {s.kind} {s.name}[{s.size}]; /* {_plain(about)} */")
        single = {k: n for n, k in self.alone.items()}
        for k, s in enumerate(self.plan.slots):
            text.append(f"static {s.kind} {single.get(k, s.name)}[{s.size}];")
        return "\n".join(text)

    def _reset(self) -> str:
        lines = [f"    memset({s.name}, 0, sizeof {s.name});" for s in self.plan.states.values()]
        return "\n".join([f"void {self.name}_reset(void) {{", *lines, "}"])

    def _step(self) -> str:
        plan, text = self.plan, []
        stores = {s.name: s for held in plan.stores.values() for s in held}
        for name, k in plan.places.items():
            if name not in self.alone:
                text.append(f"{stores[name].kind} *const {name} = {plan.slots[k].name};")
        before = ""
        for block in plan.blocks:
            labels = dict.fromkeys(plan.dag.lines[i].label for i in block.lines)
            about = "; ".join(self._about(n) for n in labels)
            text += ["", f"/* {_plain(about)} */"] if about != before else []
            before = about
            text += self.writer.block(block)
        if plan.copies:
            text += ["", "/* copied once all is computed */"]
        for to, r in plan.copies:
            came = plan.stores[r][0]
            if came.kind == to.kind and not came.last:
                text.append(f"memcpy({to.name}, {came.name}, sizeof {to.name});")
            else:
                entry = self.writer.at(r, "i")
                text.append(f"for (int32_t i = 0; i < {to.size}; i++) {to.name}[i] = ({to.kind}){entry};")
        text += [""] if self.results else []
        for name, s in self.results.items():
            text.append(f"memcpy({s.name}, {plan.outputs[name].name}, sizeof {plan.outputs[name].name});")
        lines = (f"    {t}".rstrip() for t in text)
        self._text = "\n".join([self._call() + " {", *lines, "}"]).replace("{\n\n", "{\n", 1)
        return self._text

    def _about(self, name: str) -> str:
        node = self.network.graph.nodes.get(name)
        if node is None:
            return name
        return f"{name}: {type(node).__name__} {_shape(self.network.shapes[name])}"

    def _main(self) -> str:
        outs = [(f"result{k}", s) for k, s in enumerate(self.results.values())]
        static = [f"    static {self.input.kind} given[{self.input.size}];"]
        static += [f"    static {s.kind} {n}[{s.size}];" for n, s in outs]
        call = ", ".join(["given", *(n for n, _ in outs)])
        writes = [f"        if (fwrite({n}, sizeof {n}, 1, stdout) != 1) return 1;" for n, _ in outs]
        text = ["#ifdef EI_MAIN", "#include <stdio.h>", "int main(void) {", *static, f"    {self.name}_reset();"]
        text += [
            "    while (fread(given, sizeof given, 1, stdin) == 1) {",
            f"        {self.name}_step({call});",
            *writes,
        ]
        return "\n".join([*text, "    }", "    return 0;", "}", "#endif"])


def _shape(shape: Ints) -> str:
    return "x".join(map(str, shape))


def _plain(text: str) -> str:
    """What a comment may hold: a node's name may be anything."""
    shown = "".join(c if 32 <= ord(c) < 127 and c != "\\" else "?" for c in text)
    return shown.replace("*/", "* /").replace("/*", "/ *").replace("??", "?")


def _array(store: Store, values: np.ndarray) -> str:
    """A constant's definition, about a hundred characters a line."""
    flat: Any = np.ascontiguousarray(values, DTYPES[store.kind]).reshape(-1)
    mark = "f," if store.kind == "float" else ","
    if np.isfinite(flat).all():
        words = [f"{w}{mark}" for w in flat.astype(str).tolist()]  # the shortest that read back to the bit
    else:
        words = [f"{literal(float(v), store.kind)}," for v in flat]
    count = max(1, 112 // (max(map(len, words)) + 1))
    lines = (" ".join(words[k : k + count]) for k in range(0, len(words), count))
    head = f"static const {store.kind} {store.name}[{store.size}] = {{"
    return "\n".join([head, *(f"    {t}" for t in lines), "};"])
