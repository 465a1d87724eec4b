"""Networks as traced steps: what engines that are files (ONNX, C) are made of. No equation stands here.

A trace holds one sample. Its inputs and outputs have names: a node's output is called by the node, its states
`NODE.v`, `NODE.u`, `NODE.past1` and so on, and a new state as its old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from eiexport.graph import Network
from eiexport.ops import Array, NumpyOps
from eiexport.steps import Neuron, State, Step
from eiexport.tracing import Dag, Symbol, TraceOps
from targets.base import Unsupported
from targets.loop import advance, initial, total

NEXT = "_next"  # behind the name of a state: its new value
DRIVEN = "/driven"  # behind the name of a node: what drives it; no node has a '/' in its name


def verify_names(network: Network) -> None:
    """Raise Unsupported for a node that is called as another one's state is."""
    zero = initial(network, network.steps, NumpyOps(), network.steps, 1)
    states = {k: n for n, state in zero.items() for k in _named(n, network.steps[n], state)}
    for name in network.graph.nodes:
        if (owner := states.get(name.removesuffix(NEXT))) is not None:
            raise Unsupported(f"node {name!r} is called as a state of {owner!r} is; rename it")


def stream(network: Network) -> Dag:
    """One model step of the whole network: takes the input and all states, gives the recorded nodes and new states."""
    names = [n for component in network.order for n in component if n != network.input]
    return advanced(network, names, network.recorded)


def advanced(network: Network, names: Sequence[str], sent: Iterable[str]) -> Dag:
    """One model step of some nodes, which stand in the network's order; sent: those whose outputs are given."""
    ops = TraceOps(NumpyOps())
    outside = dict.fromkeys(s for n in names for s in network.sources[n] if s not in names)
    arriving = {s: ops.input(s, network.shapes[s]) for s in outside}
    zero = initial(network, network.steps, ops.shadow, names, 1)
    states = {n: _inputs(ops, n, network.steps[n], state) for n, state in zero.items()}
    steps: dict[str, Step] = {n: ops.bind(network.steps[n], n) for n in names}
    now, new = advance(network, steps, ops, names, arriving, states, ops.at)
    outputs = {n: now[n] for n in sent}
    for n, state in new.items():
        outputs |= _named(n, network.steps[n], state)
    return _dag(ops, outputs)


def driven(network: Network, name: str) -> Dag:
    """A node's part without state, of its sources' outputs: all of a node that holds no state, else what drives it."""
    ops = TraceOps(NumpyOps())
    arriving = [ops.input(s, network.shapes[s]) for s in network.sources[name]]
    step = ops.bind(network.steps[name], name)
    y = step.drive(ops, total(ops, arriving))  # type: ignore[arg-type]
    if isinstance(step, Neuron) and not holds_state(network, name):
        y, _ = step.step(ops, y, ())  # type: ignore[arg-type]
    return _dag(ops, {name: y})


def stepped(network: Network, name: str) -> Dag:
    """One step of a neuron or delay: takes what drives it and its states; gives its output and its new states.

    What drives it is called `NODE/driven`, and has the shape of its input.
    """
    ops = TraceOps(NumpyOps())
    x = ops.input(f"{name}{DRIVEN}", network.input_shape(name))
    zero = initial(network, network.steps, ops.shadow, [name], 1)
    state = _inputs(ops, name, network.steps[name], zero[name])
    z, new = ops.bind(network.steps[name], name).step(ops, x, state)
    return _dag(ops, {name: z} | _named(name, network.steps[name], new))


def holds_state(network: Network, name: str) -> bool:
    """True for neurons and delays that remember something."""
    return bool(initial(network, network.steps, NumpyOps(), [name], 1).get(name))


def _inputs(ops: TraceOps, name: str, step: Step, zero: State) -> State:
    return tuple(ops.input(k, a.shape[1:]) for k, a in _named(name, step, zero).items())


def _named(name: str, step: Step, state: State) -> dict[str, Array]:
    """States by name: registers, then past values, the latest first."""
    observed: tuple[str, ...] = getattr(step, "observed", ())
    past = (f"past{i + 1}" for i in range(len(state) - len(observed)))
    return {f"{name}.{k}": a for k, a in zip((*observed, *past), state, strict=True)}


def _dag(ops: TraceOps, outputs: dict[str, Symbol]) -> Dag:
    return Dag(tuple(ops.lines), tuple(outputs.values()), tuple(outputs)).pruned()
