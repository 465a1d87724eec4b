"""What a step costs: operations counted from events, a lower bound of its runtime, energy where it was published.

Runtime: the max-affine lower bound of Timcheck, Pierro, Shrestha (arXiv 2601.10035): a step takes at least as long as
its busiest core's neuron updates, its synaptic operations, its reads of synapse memory, the busiest link's bits, and
the barrier; the largest of the five binds. The paper's constants are not in reach as text, so they are parameters
without a value: the counts are given, and what binds only where the constants are.

Energy: Davies et al., IEEE Micro 2018, table 2, for Loihi 1 (14 nm) alone. For Loihi 2 none is published.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eiexport.graph import Network
from targets.base import TargetError
from targets.loihi import activity as activities
from targets.loihi.activity import Activity, Work, work
from targets.loihi.cores import Partition
from targets.loihi.limits import Chip
from targets.loihi.placement import Place, links, messages, place, traffic
from targets.loihi.plan import FIRING, Plan
from targets.loihi.program import partitioned

# picojoules, Davies et al. 2018, table 2
PJ_SYNAPTIC, PJ_ACTIVE, PJ_INACTIVE, PJ_TILE, PJ_EAST_WEST, PJ_NORTH_SOUTH = 23.6, 81.0, 52.0, 1.7, 3.0, 4.0
WORK_OF_FORMS = {"divisions": "exact", "table_reads": "table"}
EXCLUDED = ("static power", "input and output", "host")
PAPER = "Timcheck, Pierro, Shrestha, arXiv 2601.10035: max-affine lower bound"


@dataclass(frozen=True)
class Rates:
    """Constants of the runtime bound, in seconds and bits a second; None: not available."""

    neuron_update: float | None = None
    synaptic_operation: float | None = None
    memory_read: float | None = None
    link_bits: float | None = None
    barrier: float | None = None

    @property
    def known(self) -> bool:
        return None not in asdict(self).values()


def estimates(
    network: Network,
    chip: str | Chip,
    activity: Activity,
    rates: Rates | None = None,
    made: Partition | None = None,
) -> dict[str, Any]:
    """Costs of a step on average over the counted samples, as JSON-able numbers; raises Unsupported, TargetError."""
    if not isinstance(activity, Activity):
        raise TargetError("estimates need counted events: count_activity(network, x, trace)")
    found = made or partitioned(network, chip)
    plan = found.plan
    sent = messages(found)
    done = work(found, activity, sent)
    places = place(found)
    counts, bits = traffic(found, sent, lambda p: activities.events(plan, activity, p))
    runtime = _runtime(done, links(places, bits), bits, rates or Rates())
    if _circuits(plan):
        runtime["note"] += "; what a circuit's neuron program takes longer, by its divisions above all, is not in it"
    return {
        "per": "step, averaged over the counted samples",
        "steps": activity.steps,
        "operations": _operations(plan, activity, done),
        "runtime": runtime,
        "energy": _energy(plan, done, places, counts),
        **_neurobench(found, activity, done),
    }


def _operations(plan: Plan, activity: Activity, done: Work) -> dict[str, float]:
    spikes = sum(float(activities.events(plan, activity, i).sum()) for i in _sending(plan))
    return {
        "synaptic_events": float((done.acs + done.macs).sum()),
        "synaptic_events_dense": float(plan.operations),
        "constant_events": float(done.constants.sum()),
        "neuron_updates": float(done.updates.sum()),
        "memory_reads": float(done.reads.sum()),
        "events_sent": spikes,
        **_circuits(plan),
    }


def _circuits(plan: Plan) -> dict[str, float]:
    """Work of circuits in every step, beside their sums; the forms "shift" and "frozen" have none."""
    forms = [(c.form, p.neurons) for p in plan.cored if p.kind != "inhibitory" and (c := plan.circuit(p))]
    if not forms:
        return {}
    return {k: float(sum(n for f, n in forms if f == form)) for k, form in WORK_OF_FORMS.items()}


def _sending(plan: Plan) -> list[int]:
    """One path of each population that sends spikes."""
    found: dict[str, int] = {}
    for i, path in enumerate(plan.paths):
        if plan.groups[path.group].role != "balance":
            found.setdefault(path.source, i)
    return list(found.values())


def _runtime(
    done: Work, busy: dict[tuple[int, int, int, int], float], bits: np.ndarray, rates: Rates
) -> dict[str, Any]:
    """Maxima over cores and links; a core's own port is a link too."""
    n = bits.shape[1]
    between = bits[:n] * (1 - np.eye(n))
    ports = max(float(between.sum(0).max(initial=0)), float(between.sum(1).max(initial=0)))
    maxima = {
        "neuron_updates": float(done.updates.max()),
        "synaptic_operations": float(done.operations.max()),
        "memory_reads": float(done.reads.max()),
        "link_bits": max([ports, *busy.values()]),
    }
    found: dict[str, Any] = {"model": PAPER, "maxima_per_step": maxima, "constants": asdict(rates)}
    if not rates.known:
        missing = [k for k, v in asdict(rates).items() if v is None]
        told = f"constants not available: {', '.join(missing)}"
        return {**found, "seconds_per_step": None, "binds": None, "note": told}
    assert rates.link_bits is not None and rates.barrier is not None
    terms = {
        "neuron_updates": maxima["neuron_updates"] * (rates.neuron_update or 0),
        "synaptic_operations": maxima["synaptic_operations"] * (rates.synaptic_operation or 0),
        "memory_reads": maxima["memory_reads"] * (rates.memory_read or 0),
        "link_bits": maxima["link_bits"] / rates.link_bits,
        "barrier": rates.barrier,
    }
    binds = max(terms, key=lambda k: terms[k])
    return {**found, "terms": terms, "seconds_per_step": terms[binds], "binds": binds, "note": "a lower bound"}


def _energy(plan: Plan, done: Work, places: tuple[Place, ...], counts: np.ndarray) -> dict[str, Any]:
    """Dynamic energy of a step in picojoules, between all neurons inactive and all active; Loihi 1's figures."""
    x, y = (np.array([getattr(p, axis) for p in places]) for axis in "xy")
    between = counts[: len(places)]
    east_west = float((between * np.abs(x[:, None] - x)).sum())
    north_south = float((between * np.abs(y[:, None] - y)).sum())
    moved = PJ_EAST_WEST * east_west + PJ_NORTH_SOUTH * north_south + PJ_TILE * float(between.sum())
    fixed = PJ_SYNAPTIC * float(done.operations.sum()) + moved
    updates = float(done.updates.sum())
    span = {
        "picojoules_per_step": [fixed + PJ_INACTIVE * updates, fixed + PJ_ACTIVE * updates],
        "range": "all neurons inactive to all active",
        "source": "Davies et al., IEEE Micro 2018, table 2 (Loihi 1, 14 nm)",
        "excludes": list(EXCLUDED),
    }
    if plan.chip.name == "loihi1":
        return {"dynamic": span}
    return {"dynamic": "not published", "loihi1_equivalent_dynamic_energy": span}


def _neurobench(made: Partition, activity: Activity, done: Work) -> dict[str, Any]:
    """NeuroBench's names; operations from events, for one sample."""
    words = {id(g.kernel): g.kernel.words for g in made.plan.groups if g.kernel.kind != "one"}.values()
    total = sum(w.size for w in words)
    zeros = sum(int((w == 0).sum()) for w in words)
    spiking = [p for p in made.plan.cored if p.kind in FIRING]
    neurons = sum(p.neurons for p in spiking)
    sent = sum(float(activity.events[p.name].sum()) for p in spiking)
    return {
        "footprint": sum(n.bits for n in made.needs) // 8,
        "connection_sparsity": zeros / total if total else 0.0,
        "activation_sparsity": 1 - sent / neurons if neurons else 0.0,
        "synaptic_operations": {
            "Dense": float(made.plan.operations * activity.steps),
            "Effective_MACs": float(done.macs.sum() * activity.steps),
            "Effective_ACs": float(done.acs.sum() * activity.steps),
        },
    }
