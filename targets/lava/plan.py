"""What a graph becomes on Lava, decided before any Lava is needed: processes, latencies, constants.

The tools and the worker both read their decisions here, so a report cannot differ from what ran.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eiexport.circuits import DIVIDING, Circuit
from eiexport.connections import Conv, Dense, Flatten, Identity, MaxPool, Pool
from eiexport.errors import GraphError
from eiexport.graph import Network
from eiexport.integers import ALIGN, IntFire, IntLinear
from eiexport.neurons import Delay, Fire, LeakyFire, SynapseFire, Threshold
from eiexport.ops import NumpyOps
from eiexport.passes import latencies
from eiexport.steps import Step
from targets.base import Unsupported
from targets.lava import fixed

OPS = NumpyOps()
STOCK, CUSTOM = "stock", "custom"


@dataclass(frozen=True)
class Plan:
    """What is decided of each node.

    Biases of stateless nodes are the same at every step, so they are not sent: they stand beside the ports as
    constants, until a neuron, a delay, a maximum, a circuit or a recorder adds them. That is one process less, and no
    hop delays them.
    """

    latency: dict[str, int]  # engine steps behind the model
    process: dict[str, str]  # STOCK or CUSTOM; none for a node that is a view of others' ports
    entering: dict[str, np.ndarray]  # constant that belongs to what the ports bring
    leaving: dict[str, np.ndarray]  # constant behind the node; zero behind what adds it
    gain: dict[str, float]  # factor of a connection's weights, on behalf of the neuron behind it
    lif: dict[str, dict[str, Any]] = field(default_factory=dict)  # parameters of a stock neuron in fixed point

    def arrival(self, network: Network, name: str) -> int:
        """Latency at which a node takes its inputs; what comes from earlier nodes has to wait."""
        if isinstance(network.steps[name], Delay):  # its line makes up for the rest
            return max(self.latency[s] for s in network.sources[name])
        return self.latency[name] - hop(network.steps[name])

    def processes(self, network: Network) -> int:
        """How many processes Lava starts."""
        nodes = network.graph.nodes
        fed = [nodes[n].feedback for n, s in network.steps.items() if fixed.routed(s, nodes[n])]
        circuits = [n for n, s in network.steps.items() if isinstance(s, Circuit)]
        fed += [getattr(nodes[n], part) for n in circuits for part in fixed.PARTS]
        shares = sum(len(fixed.exponents(node)) - 1 for node in (*nodes.values(), *fed))
        shares += sum(bool(self.entering[n].any()) for n in circuits)
        held = {(s, self.arrival(network, n) - self.latency[s]) for n, came in network.sources.items() for s in came}
        return len(self.process) + len(network.recorded) + len(fed) + shares + sum(slack > 0 for _, slack in held)


def plan(network: Network) -> Plan:
    """Decide everything; raises Unsupported where the graph cannot run on Lava."""
    _no_minimum(network)
    entering, leaving = _constants(network)
    if network.integer:
        fixed.check(network, entering)
    gain: dict[str, float] = {}
    lif: dict[str, dict[str, Any]] = {}
    process = {}
    for name, step in network.steps.items():
        if isinstance(step, (Identity, Flatten)) and name != network.input:
            continue
        if not network.integer or connects(step):
            process[name] = _process(network, name, step, entering[name], gain)
        else:
            found = fixed.lif(network, name, entering[name]) if step.neuron else None
            process[name] = CUSTOM if found is None else STOCK
            lif |= {} if found is None else {name: found}
    try:
        latency = latencies(network, lambda n: hop(network.steps[n]))
    except GraphError as e:
        raise Unsupported(f"target 'lava' cannot run this: {e}") from None
    return Plan(latency, process, entering, leaving, gain, lif)


def hop(step: Step) -> int:
    """Engine steps that a node takes: Lava's Dense and Conv deliver what they got in the step before."""
    return int(connects(step) or isinstance(step, Circuit))


def connects(step: Step) -> bool:
    """True for what one of Lava's Dense or Conv does alone."""
    return isinstance(step, (Dense, Conv, Pool))


def message_bits(network: Network, plan: Plan, name: str, step: Step) -> int:
    """0 (a message is a spike, or nothing) where every message into a node is 0 or 1, else 24; or as the node says.

    step: the connection that gets them, the node itself or a part of it.
    """
    # behind a bias the alphabet holds it, and the message does not; a circuit adds it before its connections
    if plan.entering[name].any() and connects(network.steps[name]):
        return 24
    if isinstance(step, IntLinear):
        return step.message_bits
    return 0 if network.arriving(name).kind == "binary" else 24


def register(network: Network, plan: Plan, name: str, kind: str, rows: np.ndarray) -> np.ndarray:
    """A neuron's register of the model, from what Lava's process held there ("v" or "u")."""
    step = network.steps[name]
    if plan.process[name] == CUSTOM or kind != "u":
        return rows
    if isinstance(step, IntFire):  # what comes with the input stood in Lava's bias
        return rows + (plan.entering[name].astype(rows.dtype) << ALIGN)
    assert isinstance(step, SynapseFire)
    return rows if step.gain is None else rows / step.gain  # it stood in the weights


def _constants(network: Network) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(constants that enter, constants that leave); an affine `drive` maps the constant as it maps a signal."""
    leaving = {n: np.zeros(s) for n, s in network.shapes.items()}
    entering = {network.input: leaving[network.input]}

    def enter(name: str) -> np.ndarray:
        return np.sum([leaving[s] for s in network.sources[name]], axis=0)

    for name in (n for component in network.order for n in component if n != network.input):
        step = network.steps[name]
        if not step.neuron and not isinstance(step, Delay | MaxPool | Circuit):
            leaving[name] = step.drive(OPS, enter(name)[None])[0]
    return entering | {n: enter(n) for n in network.shapes if n != network.input}, leaving


def _no_minimum(network: Network) -> None:
    for name, step in network.steps.items():
        if isinstance(step, Circuit) and step.form in DIVIDING and step.zero == "sample_min":
            kind = type(network.graph.nodes[name]).__name__
            raise Unsupported(
                f"target 'lava' cannot run node {name!r} ({kind}): no chip finds the smallest denominator of a sample; "
                "give --divide exact (a calibrated constant for zero denominators), frozen, shift or table"
            )


def _process(network: Network, name: str, step: Step, constant: np.ndarray, gain: dict[str, float]) -> str:
    if connects(step):
        return STOCK
    if isinstance(step, Threshold):
        return STOCK if step.threshold.ndim == 0 else CUSTOM
    if not isinstance(step, (LeakyFire, SynapseFire)) or not _plain(step):
        return CUSTOM
    factor = 1.0 if step.gain is None else float(step.gain)
    if isinstance(step, SynapseFire):
        if constant.any():
            return CUSTOM  # Lava's bias goes into the membrane, this constant into the synaptic current
        assert step.gain_u is not None
        factor *= float(step.gain_u)
    if factor != 1:
        if not _owned(network, name):
            return CUSTOM
        gain |= dict.fromkeys(network.sources[name], factor)
    return STOCK


def _plain(step: LeakyFire | SynapseFire) -> bool:
    """Lava's LIF: fires above one threshold, or in float64 at it (see `build`), resets to zero, has one decay.

    It holds 1 - decay, which rounds decays below one half in their 16th digit: as little as one addition does.
    """
    numbers = (step.decay, step.threshold, step.gain, getattr(step, "decay_u", None), getattr(step, "gain_u", None))
    fires = isinstance(step, Fire) and step.reset_mode == "zero"
    return fires and step.v_reset is None and step.lower is None and all(a is None or a.ndim == 0 for a in numbers)


def _owned(network: Network, name: str) -> bool:
    """True where every source is a connection that feeds this node alone: its weights may hold the node's gain."""
    sources = network.sources[name]
    sinks = [n for n, came in network.sources.items() for s in came if s in sources]
    return all(connects(network.steps[s]) for s in sources) and set(sinks) == {name}
