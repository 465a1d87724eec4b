"""A tracing op set: runs a step on symbols and returns its small DAG, from which other forms of it are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eiexport.ops import Ints, Ops
from eiexport.steps import Neuron, bind


@dataclass(frozen=True)
class Symbol:
    """The result of line `index` of a trace; carries a shape so that reshapes can be told."""

    index: int
    shape: Ints


@dataclass(frozen=True)
class Line:
    """One operation: `op` of symbols, numbers and static attributes. op "input" and "const" hold name or value."""

    op: str
    args: tuple[Any, ...]

    def __str__(self) -> str:
        shown = (f"%{a.index}" if isinstance(a, Symbol) else _short(a) for a in self.args)
        return f"{self.op}({', '.join(shown)})"


@dataclass(frozen=True)
class Dag:
    """A traced step: lines in order, and the symbols of its outputs (z, then the new state)."""

    lines: tuple[Line, ...]
    outputs: tuple[Symbol, ...]

    def __str__(self) -> str:
        body = [f"%{i} = {line}" for i, line in enumerate(self.lines)]
        return "\n".join([*body, "return " + ", ".join(f"%{o.index}" for o in self.outputs)])

    def run(self, ops: Ops, inputs: dict[str, Any]) -> tuple[Any, ...]:
        """Evaluate on any op set; inputs: "x" and "state0", "state1", ..."""
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


class TraceOps:
    """Every method of the op protocol appends a line; shapes are told by running on zeros beside it."""

    name = "trace"

    def __init__(self, shadow: Ops) -> None:
        self.shadow = shadow
        self.lines: list[Line] = []
        self.values: list[Any] = []

    def symbol(self, op: str, args: tuple[Any, ...], value: Any) -> Symbol:
        self.lines.append(Line(op, args))
        self.values.append(value)
        return Symbol(len(self.lines) - 1, tuple(np.shape(value)))

    def const(self, a: np.ndarray) -> Symbol:
        return self.symbol("const", (a,), self.shadow.const(a))

    def __getattr__(self, op: str) -> Any:
        method = getattr(self.shadow, op)

        def record(*args: Any) -> Symbol:
            real = (self.values[a.index] if isinstance(a, Symbol) else a for a in args)
            return self.symbol(op, args, method(*real))

        return record


def trace(step: Neuron, shadow: Ops, shape: Ints) -> Dag:
    """The DAG of one step of a neuron whose driven input has neuron shape `shape` (batch 1)."""
    ops = TraceOps(shadow)
    x = ops.symbol("input", ("x",), shadow.zeros((1, *shape)))
    state = tuple(ops.symbol("input", (f"state{i}",), v) for i, v in enumerate(step.init(shadow, (1, *shape))))
    z, new = bind(step, ops).step(ops, x, state)
    return Dag(tuple(ops.lines), (z, *new))


def _short(a: Any) -> str:
    if isinstance(a, np.ndarray):
        return f"{a:g}" if a.ndim == 0 else f"array{list(a.shape)}"
    return str(a)
