"""Counted events, and the work they make on every core."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eiexport.circuits import DIVIDING, IntCircuitStep
from eiexport.connections import Identity
from eiexport.graph import Network
from eiexport.ops import NumpyOps
from eiexport.trace import Trace
from targets.base import TargetError
from targets.loihi.cores import Partition, list_bits_each
from targets.loihi.kernel import units_of
from targets.loihi.placement import Messages
from targets.loihi.plan import Plan, cells_of
from targets.loihi.signals import Signals


@dataclass(frozen=True, eq=False)
class Activity:
    """Messages of each neuron in a step, on average: population -> array of its shape. steps: of a sample.

    Inhibitory cells of a circuit that divides send up to two.
    """

    events: dict[str, np.ndarray]
    steps: int
    samples: int


def count_activity(network: Network, x: np.ndarray, trace: Trace) -> Activity:
    """Events of the input and of every population, counted in a run; raises TargetError for a trace of another one."""
    events = {network.input: (x != 0).mean(axis=(0, 1))}
    for name in network.recorded:
        if name not in trace.z:
            raise TargetError(f"the trace does not hold node {name!r}, so its events cannot be counted")
        events[name] = (trace.z[name] != 0).mean(axis=(0, 1))
    signals = Signals(network, x, trace.z)
    for name, step in network.steps.items():
        if isinstance(step, IntCircuitStep):
            events[cells_of(name)] = _currents(step, signals.arriving(name))
    return Activity(events, x.shape[1], x.shape[0])


def _currents(step: IntCircuitStep, x: np.ndarray) -> np.ndarray:
    """Messages a step of a circuit's inhibitory cells, for its input (time, sample, *neuron)."""
    ops = NumpyOps()
    s = replace(step, excite=Identity()).currents(ops, x.reshape(-1, *x.shape[2:]))[1]
    sent = (s != 0).mean(axis=0)
    return sent + (step.weighed(ops, s) != 0).mean(axis=0) if step.form in DIVIDING else sent


@dataclass(frozen=True, eq=False)
class Work:
    """Per core and step, on average. macs: operations whose message is a number, acs: whose message is a spike.

    constants: operations that bring the connections' biases, at every step; they are in neither.
    """

    updates: np.ndarray
    acs: np.ndarray
    macs: np.ndarray
    constants: np.ndarray
    reads: np.ndarray  # words of synapse memory

    @property
    def operations(self) -> np.ndarray:
        return self.acs + self.macs + self.constants


def work(made: Partition, activity: Activity, sent: Messages) -> Work:
    """Synaptic operations are counted from events: each message touches the words of its axon's list."""
    plan, n = made.plan, len(made.cores)
    acs, macs, constants, reads = (np.zeros(n) for _ in range(4))
    word = int(plan.chip.memory_word.value or 1)
    for k, core in enumerate(made.cores):
        for i in plan.groups_of(core.population):
            words = plan.groups[i].constant_words(core.neurons)
            constants[k] += words
            reads[k] += float(list_bits_each(plan, i, np.array(words)) / word)
    fans: dict[tuple[int, int], np.ndarray] = {}
    for p, k, rows in sent:
        path = plan.paths[p]
        if (path.group, k) not in fans:
            fans[path.group, k] = _fan_out(made, path.group, k)
        fan = fans[path.group, k][path.table.line[rows]]
        each = events(plan, activity, p)[path.table.source[rows]]
        done = acs if _is_spike(plan, p) else macs
        done[k] += float(each @ fan)
        reads[k] += float(each @ (list_bits_each(plan, path.group, fan) / word))
    return Work(np.array([len(c.neurons) for c in made.cores], float), acs, macs, constants, reads)


def events(plan: Plan, activity: Activity, path: int) -> np.ndarray:
    """Messages a step of each source of a path; a membrane is sent at every step."""
    source = plan.paths[path].source
    if plan.groups[plan.paths[path].group].role == "balance":
        return np.ones(plan.population(source).neurons)
    if source not in activity.events:
        raise TargetError(f"the activity does not tell the events of {source!r}; count them with count_activity")
    return np.asarray(activity.events[source], np.float64).reshape(-1)


def _is_spike(plan: Plan, path: int) -> bool:
    """True where a message says no more than a spike and its sign."""
    source = plan.population(plan.paths[path].source)
    ternary = source.kind != "inhibitory" and plan.network.alphabets[source.name].kind == "ternary"
    return plan.groups[plan.paths[path].group].role != "balance" and (source.message_bits == 0 or ternary)


def _fan_out(made: Partition, group: int, core: int) -> np.ndarray:
    """Words of each line on a core."""
    g = made.plan.groups[group]
    if made.lists:
        found = np.zeros(g.kernel.lines, np.int64)
        lists = made.lists[core][group]
        found[lists.lines] = np.diff(lists.start)
        return found
    return g.kernel.fan_out(units_of(g.pooled, made.cores[core].neurons)[0])
