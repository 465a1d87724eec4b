"""The one executor over a graph: time folded into the batch outside cycles, step by step inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from eiexport.graph import Network, breaks_cycle
from eiexport.ops import Array, Ops
from eiexport.steps import Neuron, State, Step, bind

States = dict[str, dict[str, Any]]  # observable ("v", "u") -> node -> array


class Executor:
    """A network bound to an op set. Arrays are (time, sample, *neuron) of the engine."""

    def __init__(self, network: Network, ops: Ops) -> None:
        self.network, self.ops = network, ops
        self.steps = {n: bind(s, ops) for n, s in network.steps.items()}
        self._last = {s: n for c in network.order for n in c for s in network.sources[n]}

    def run(self, x: Array, states: States | None = None) -> dict[str, Array]:
        """Outputs of the recorded nodes for input x, from zero state; `states` is filled with their v and u."""
        values: dict[str, Array] = {self.network.input: x}
        kept: dict[str, Array] = {}
        for component in self.network.order:
            if component[0] in self.network.cycles:
                self._cycle(component, values, x.shape[1], states)
            elif component[0] != self.network.input:
                values[component[0]] = self._node(component[0], values, states)
            for name in component:
                if name in self.network.recorded:
                    kept[name] = values[name]
            # a signal nobody reads any more need not stay in memory
            done = {s for n in component for s in self.network.sources[n] if self._last[s] in component}
            for source in done:
                values.pop(source, None)
        return kept

    def _input(self, name: str, values: dict[str, Array]) -> Array:
        return total(self.ops, [values[s] for s in self.network.sources[name]])

    def _node(self, name: str, values: dict[str, Array], states: States | None) -> Array:
        step = self.steps[name]
        x = fold(step, self.ops, self._input(name, values))
        if not isinstance(step, Neuron):
            return x
        rows: list[State] | None = None if states is None else []
        z = self.scan(step, x, rows)
        _keep(states, name, step, rows)
        return z

    def scan(self, step: Neuron, driven: Array, rows: list[State] | None) -> Array:
        """A neuron over time; an engine with a faster way than the step itself says so here."""
        return scan(step, self.ops, driven, rows)

    def _cycle(self, component: tuple[str, ...], values: dict[str, Array], samples: int, kept: States | None) -> None:
        """Step the nodes of one strongly connected component together; its delays look back."""
        network, ops, inside = self.network, self.ops, set(component)
        states = initial(network, self.steps, ops, component, samples)
        outside = {s for n in component for s in network.sources[n]} - inside
        outputs: dict[str, list[Array]] = {n: [] for n in component}
        rows: dict[str, list[State]] = {n: [] for n in states}
        for t in range(len(values[next(iter(outside))])):
            now, states = advance(network, self.steps, ops, component, {s: values[s][t] for s in outside}, states)
            for name in component:
                outputs[name].append(now[name])
            for name in states if kept is not None else ():
                rows[name].append(states[name])
        for name, sent in outputs.items():
            values[name] = stack(sent)
        for name in states:
            _keep(kept, name, self.steps[name], rows[name])  # type: ignore[arg-type]


def initial(network: Network, steps: dict[str, Step], ops: Ops, names: Iterable[str], samples: int) -> dict[str, State]:
    """Zero states of the neurons and delays among some nodes."""
    shapes = {n: (samples, *network.input_shape(n)) for n in names}
    return {n: s.init(ops, shape) for n, shape in shapes.items() if isinstance(s := steps[n], Neuron)}


def advance(
    network: Network,
    steps: dict[str, Step],
    ops: Ops,
    names: Sequence[str],
    arriving: dict[str, Array],
    states: dict[str, State],
    enter: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, Array], dict[str, State]]:
    """One model step of some nodes, which stand in an order in which only delays look back: (outputs, new states).

    steps: bound to `ops`; arriving: what the other nodes send them in this step; enter: told whose turn it is.
    """
    now, new = dict(arriving), dict(states)
    lines = [n for n in names if breaks_cycle(steps[n])]
    for name in lines:
        enter(name)
        now[name] = steps[name].emit(ops, None, states[name])  # type: ignore[attr-defined]
    for name in (*(n for n in names if n not in lines), *lines):
        enter(name)
        driven = steps[name].drive(ops, total(ops, [now[s] for s in network.sources[name]]))
        if name in states:
            z, new[name] = steps[name].step(ops, driven, states[name])  # type: ignore[attr-defined]
            now.setdefault(name, z)
        else:
            now[name] = driven
    return now, new


def total(ops: Ops, came: Sequence[Array]) -> Array:
    """The sum of what arrives on some edges, in their order."""
    first, *rest = came
    for other in rest:
        first = ops.add(first, other)
    return first


def _keep(states: States | None, name: str, step: Neuron, rows: list[State] | None) -> None:
    for i, observable in enumerate(step.observed if states is not None and rows else ()):
        assert states is not None and rows is not None
        states.setdefault(observable, {})[name] = stack([row[i] for row in rows])


def fold(step: Step, ops: Ops, x: Array) -> Array:
    """drive over (time x samples)."""
    y = step.drive(ops, x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def scan(step: Neuron, ops: Ops, driven: Array, states: list[State] | None = None) -> Array:
    """A neuron over time from zero state; rows are unbound once (indexing x[t] has a backward quadratic in T)."""
    state = step.init(ops, tuple(driven.shape[1:]))
    rows = []
    for x in driven.unbind(0) if hasattr(driven, "unbind") else driven:
        z, state = step.step(ops, x, state)
        rows.append(z)
        if states is not None:
            states.append(state)
    return stack(rows)


def stack(rows: list[Any]) -> Any:
    if isinstance(rows[0], np.ndarray):
        return np.stack(rows)
    import torch

    return torch.stack(rows)
