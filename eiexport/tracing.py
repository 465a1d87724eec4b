"""A tracing op set: runs a step on symbols and returns its small DAG, from which other forms of it are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from eiexport.ops import Ints, Ops
from eiexport.steps import Neuron, Step, bind


@dataclass(frozen=True)
class Symbol:
    """The result of line `index` of a trace; its shape has a sample axis of 1 first, that of a constant has none."""

    index: int
    shape: Ints


@dataclass(frozen=True)
class Line:
    """One operation: `op` of symbols, numbers and static attributes. op "input" and "const" hold name or value.

    shape: of its result, as a Symbol's. label: the node that it was traced for, or the parameter that a constant is.
    """

    op: str
    args: tuple[Any, ...]
    shape: Ints = ()
    label: str = ""

    def __str__(self) -> str:
        shown = (f"%{a.index}" if isinstance(a, Symbol) else _short(a) for a in self.args)
        return f"{self.op}({', '.join(shown)})"


@dataclass(frozen=True)
class Dag:
    """A traced step: lines in order, and the symbols of its outputs (z, then the new state); names: what these are."""

    lines: tuple[Line, ...]
    outputs: tuple[Symbol, ...]
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        body = [f"%{i} = {line}" for i, line in enumerate(self.lines)]
        return "\n".join([*body, "return " + ", ".join(f"%{o.index}" for o in self.outputs)])

    def run(self, ops: Ops, inputs: dict[str, Any]) -> tuple[Any, ...]:
        """Evaluate on any op set; inputs: by the names of the lines "input"; those of `trace` are x, state0, ..."""
        values: list[Any] = []

        def get(a: Any) -> Any:
            return values[a.index] if isinstance(a, Symbol) else a

        for line in self.lines:
            if line.op == "input":
                values.append(inputs[line.args[0]])
            elif line.op == "const":
                values.append(ops.const(line.args[0]))
            else:
                values.append(getattr(ops, line.op)(*(get(a) for a in line.args)))
        return tuple(values[o.index] for o in self.outputs)

    @property
    def inputs(self) -> dict[str, Symbol]:
        """What it takes, by name."""
        return {a.args[0]: Symbol(i, a.shape) for i, a in enumerate(self.lines) if a.op == "input"}

    def pruned(self) -> Dag:
        """Without the lines that no output needs; inputs stay."""
        needed = {o.index for o in self.outputs} | {s.index for s in self.inputs.values()}
        for i in reversed(range(len(self.lines))):
            if i in needed:
                needed |= {a.index for a in self.lines[i].args if isinstance(a, Symbol)}
        moved = {old: new for new, old in enumerate(sorted(needed))}

        def symbol(a: Any) -> Any:
            return Symbol(moved[a.index], a.shape) if isinstance(a, Symbol) else a

        lines = (self.lines[i] for i in sorted(needed))
        kept = tuple(Line(n.op, tuple(map(symbol, n.args)), n.shape, n.label) for n in lines)
        return Dag(kept, tuple(map(symbol, self.outputs)), self.names)


class TraceOps:
    """Every method of the op protocol appends a line; shapes are told by running on zeros beside it."""

    name = "trace"

    def __init__(self, shadow: Ops) -> None:
        self.shadow = shadow
        self.lines: list[Line] = []
        self.values: list[Any] = []
        self.label = ""  # of the lines that follow

    def symbol(self, op: str, args: tuple[Any, ...], value: Any, label: str = "") -> Symbol:
        self.lines.append(Line(op, args, tuple(np.shape(value)), label or self.label))
        self.values.append(value)
        return Symbol(len(self.lines) - 1, tuple(np.shape(value)))

    def input(self, name: str, shape: Ints) -> Symbol:
        """A value from outside, of one sample."""
        return self.symbol("input", (name,), self.shadow.zeros((1, *shape)), name)

    def const(self, a: np.ndarray) -> Symbol:
        return self.symbol("const", (a,), self.shadow.const(a))

    def at(self, name: str) -> None:
        """Later lines belong to this node."""
        self.label = name

    def bind(self, step: Any, name: str) -> Any:
        """The step with symbols for its parameters, which are labelled NAME.FIELD; later lines belong to NAME."""
        first = len(self.lines)
        self.at(name)
        bound = bind(step, self)  # type: ignore[type-var]
        called = {id(a): f"{name}.{path}" for path, a in _parameters(step)}
        for i in range(first, len(self.lines)):
            line = self.lines[i]
            self.lines[i] = Line(line.op, line.args, line.shape, called.get(id(line.args[0]), name))
        return bound

    def __getattr__(self, op: str) -> Any:
        method = getattr(self.shadow, op)

        def record(*args: Any) -> Symbol:
            real = (self.values[a.index] if isinstance(a, Symbol) else a for a in args)
            return self.symbol(op, args, method(*real))

        return record


def trace(step: Neuron, shadow: Ops, shape: Ints) -> Dag:
    """The DAG of one step of a neuron whose driven input has neuron shape `shape` (batch 1)."""
    ops = TraceOps(shadow)
    x = ops.input("x", shape)
    state = tuple(ops.input(f"state{i}", v.shape[1:]) for i, v in enumerate(step.init(shadow, (1, *shape))))
    z, new = bind(step, ops).step(ops, x, state)
    return Dag(tuple(ops.lines), (z, *new))


def _parameters(step: Step, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for f in fields(step):
        value = getattr(step, f.name)
        if isinstance(value, Step):
            yield from _parameters(value, f"{path}{f.name}.")
        elif isinstance(value, np.ndarray):
            yield path + f.name, value
        elif isinstance(value, tuple):
            yield from ((f"{path}{f.name}{i}", v) for i, v in enumerate(value) if isinstance(v, np.ndarray))


def _short(a: Any) -> str:
    if isinstance(a, np.ndarray):
        return f"{a:g}" if a.ndim == 0 else f"array{list(a.shape)}"
    return str(a)
