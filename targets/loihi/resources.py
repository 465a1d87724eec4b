"""How much of a chip a network takes: memory of every core by class, messages, links, input, readout, reset, gates.

Averages are over the samples and steps whose events were counted. A limit without a public source is named, and said
when it is the one that binds.
"""

from __future__ import annotations

from dataclasses import fields
from math import ceil, prod
from typing import Any

from eiexport.graph import Network
from targets.loihi import activity as activities
from targets.loihi.activity import Activity, count_activity
from targets.loihi.cores import Partition, state_registers, tightest
from targets.loihi.estimates import Rates, estimates
from targets.loihi.limits import Chip, Limit
from targets.loihi.partition import best_box, bound, partition
from targets.loihi.placement import links, messages, place, traffic, travel
from targets.loihi.plan import Plan
from targets.loihi.program import partitioned

__all__ = ["Activity", "Rates", "count_activity", "estimates", "resources"]


def resources(
    network: Network, chip: str | Chip, activity: Activity | None = None, made: Partition | None = None
) -> dict[str, Any]:
    """What a network needs, as JSON-able numbers; raises Unsupported where it does not fit.

    activity: counted events, without which nothing is said of links and rates. made: the cores, where they are known.
    """
    found = made or partitioned(network, chip)
    plan = found.plan
    cores = _range(found)
    per_chip = int(plan.chip.cores.value or 1)
    return {
        "chip": plan.chip.name,
        "encoding": found.encoding,
        "cores": cores,
        "cores_range": "kernels shared to every neuron its own words: how Loihi shares them is not public",
        "unrolled_fits": found.encoding == "list" or unrolled(plan)[1],
        "chips": [ceil(n / per_chip) for n in cores],
        "utilisation": plan.chip.utilisation.value,
        "neurons": sum(p.neurons for p in plan.cored),
        "synapse_words": sum(n.words for n in found.needs),
        "populations": {p.name: _population(found, p.name) for p in plan.cored},
        "per_core": _per_core(found),
        "binds": _binds(found),
        "messages": _messages(plan),
        **_traffic(found, activity),
        "input": _input(found, activity),
        "readout": _readout(found, activity),
        "reset": _reset(plan),
        "balance_gates": _balance(found),
        "circuits": _circuits(plan),
        "custom_neurons": {p.name: p.custom for p in plan.cored if p.custom},
        "assumed_microcode": any(p.custom for p in plan.cored),
        "latency": {p.name: p.latency for p in plan.populations},
        "limits": {
            f.name: {"value": v.value, "source": v.source, "assumed": v.assumed}
            for f in fields(plan.chip)
            if isinstance(v := getattr(plan.chip, f.name), Limit)
        },
        "assumed": plan.chip.assumed(),
    }


def _range(made: Partition) -> list[int]:
    """[cores with shared kernels, cores with every word unrolled]; what is not laid out is counted by its bound."""
    if made.encoding == "kernel":
        return [len(made.cores), unrolled(made.plan)[0]]
    return [min(len(partition(made.plan, "kernel").cores), len(made.cores)), len(made.cores)]


def unrolled(plan: Plan) -> tuple[int, bool]:
    """(cores when every neuron has its own words, routes aside; whether one neuron alone fits a core then)."""
    total, fits = 0, True
    for p in plan.cored:
        box = best_box(plan, p, "list", p.neurons)
        fits = fits and tightest(plan.chip, bound(plan, p, "list", box))[1] <= 1
        total += prod(ceil(n / b) for n, b in zip(p.shape, box, strict=True))
    return total, fits


def _cores_of(made: Partition, name: str) -> list[int]:
    return [k for k, c in enumerate(made.cores) if c.population == name]


def _population(made: Partition, name: str) -> dict[str, Any]:
    own = _cores_of(made, name)
    worst = max(own, key=lambda k: _tightest(made, k)[1])
    limit, share = _tightest(made, worst)
    about = made.plan.population(name)
    return {
        "kind": about.kind,
        "shape": list(about.shape),
        "cores": len(own),
        "box": None if made.sizes is None else list(made.sizes[name]),
        "memory_bits": sum(made.needs[k].bits for k in own),
        "binds": limit,
        "share": round(share, 4),
        "process": "custom" if about.custom else "stock",
    }


def _tightest(made: Partition, core: int) -> tuple[str, float]:
    """(limit, share of it) that a core uses most."""
    return tightest(made.plan.chip, made.needs[core])


def _per_core(made: Partition) -> dict[str, list[Any]]:
    """Columns, one entry a core: address, counts, bits of each class of memory, what is used most."""
    places = place(made)
    rows: dict[str, list[Any]] = {"population": [c.population for c in made.cores]}
    rows |= {axis: [getattr(p, axis) for p in places] for axis in ("chip", "x", "y", "slot")}
    for name in ("neurons", "axons_in", "axons_out", "words"):
        rows[name] = [getattr(n, name) for n in made.needs]
    for name in made.needs[0].memory():
        rows[f"{name}_bits"] = [n.memory()[name] for n in made.needs]
    rows["bits"] = [n.bits for n in made.needs]
    tightest = [_tightest(made, k) for k in range(len(made.cores))]
    return {**rows, "binds": [n for n, _ in tightest], "share": [round(s, 4) for _, s in tightest]}


def _binds(made: Partition) -> dict[str, Any]:
    """The limit that is used most, on which core, and whether it is assumed (a memory's share is, always)."""
    worst = max(range(len(made.cores)), key=lambda k: _tightest(made, k)[1])
    name, share = _tightest(made, worst)
    limit: Limit | None = getattr(made.plan.chip, name, None)
    memory = name in ("core_bits", "synapse_bits")
    assumed = limit is not None and (limit.assumed or (memory and made.plan.chip.utilisation.assumed))
    return {"limit": name, "core": worst, "share": round(share, 4), "assumed": assumed}


def _messages(plan: Plan) -> list[dict[str, Any]]:
    """Every edge between populations: what its messages hold, and how long the last one waits beyond its hop."""
    found = []
    for i, path in enumerate(plan.paths):
        group, source = plan.groups[path.group], plan.population(path.source)
        balance = group.role == "balance"
        bits = plan.message_bits(i)
        kind = "membrane" if balance else "spike" if bits == 0 else "graded"
        about = {"from": source.name, "to": group.sink, "connection": group.name, "role": group.role}
        wait = 0 if balance else path.longest
        found.append({**about, "kind": kind, "payload_bits": bits, "waits": wait, "within_step": balance})
    return found


def _traffic(made: Partition, activity: Activity | None) -> dict[str, Any]:
    if activity is None:
        return {"links": None, "note": "links and rates need counted events"}
    sent, plan = messages(made), made.plan
    places = place(made)
    counts, bits = traffic(made, sent, lambda p: activities.events(plan, activity, p))
    load, busy = links(places, counts), links(places, bits)
    worst = max(busy, key=lambda k: busy[k], default=None)
    off_chip = sum(v for (x, _, to, _), v in load.items() if _chip_at(plan.chip, x) != _chip_at(plan.chip, to))
    return {
        "links": {
            "messages_per_step": float(counts[: len(places)].sum()),
            "bits_per_step": float(bits[: len(places)].sum()),
            "hops_per_step": travel(places, counts),
            "between_chips_per_step": off_chip,
            "busiest": None if worst is None else _link(worst, load[worst], busy[worst]),
            "each": [_link(k, load[k], busy[k]) for k in sorted(load)],
        }
    }


def _chip_at(chip: Chip, x: int) -> int:
    return x // int(chip.mesh_width.value or 1)


def _link(link: tuple[int, int, int, int], count: float, bits: float) -> dict[str, Any]:
    x, y, to_x, to_y = link
    return {"from": [x, y], "to": [to_x, to_y], "messages_per_step": count, "bits_per_step": bits}


def _input(made: Partition, activity: Activity | None) -> dict[str, Any]:
    """What the host injects: an entry for each input and target axon."""
    plan = made.plan
    name = next(p.name for p in plan.populations if p.kind == "input")
    rows = [(p, r) for p, _, r in messages(made) if plan.paths[p].source == name]
    found: dict[str, Any] = {
        "entries": sum(len(r) for _, r in rows),
        "payload_bits": plan.population(name).message_bits,
    }
    if activity is not None:
        each = sum(float(activities.events(plan, activity, p)[plan.paths[p].table.source[r]].sum()) for p, r in rows)
        found |= {"messages_per_step": each, "bits_per_step": each * _packet(plan, found["payload_bits"])}
    return found


def _readout(made: Partition, activity: Activity | None) -> dict[str, Any]:
    """What the host reads: spikes of the outputs, or their sums at every step."""
    network, plan = made.plan.network, made.plan
    ends = {s for o in network.outputs for s in network.sources[o]} - {network.input}
    own = [p for p in plan.cored if p.name in ends]
    found: dict[str, Any] = {"populations": [p.name for p in own], "neurons": sum(p.neurons for p in own)}
    if activity is not None:
        sums = sum(p.neurons for p in own if p.kind == "readout")
        spikes = sum(float(activity.events[p.name].sum()) for p in own if p.kind != "readout")
        width = _packet(plan, 0)
        bits = spikes * width + sums * _packet(plan, int(plan.chip.register_bits.value or 0))
        found |= {"messages_per_step": spikes + sums, "bits_per_step": bits}
    return found


def _packet(plan: Plan, payload: int) -> int:
    return int(plan.chip.packet_bits.value or 0) + payload


def _reset(plan: Plan) -> dict[str, Any]:
    """What keeps two samples apart: writing every register, after the last population has settled."""
    longest = max((p.longest for p in plan.paths if plan.groups[p.group].role != "balance"), default=0)
    tail = max(p.latency for p in plan.populations)
    return {
        "how": "state_writes",
        "registers_written": sum(p.neurons * state_registers(plan, p) for p in plan.cored),
        "settling_steps": tail,
        "waiting_messages_steps": longest,
        "note": "silent steps alone clear no membrane, so every register is written",
    }


def _circuits(plan: Plan) -> dict[str, Any]:
    """What a circuit takes beside its synapses, whose words of W_EI stand once: cells, and what they send at most."""
    found: dict[str, Any] = {}
    for cells in (p for p in plan.populations if p.kind == "inhibitory"):
        own = next(p for p in plan.cored if p.circuit == cells.circuit and p is not cells)
        ports = next(g.ports for g in plan.groups if g.sink == own.name and g.role == "spread")
        found[cells.circuit] = {
            "population": own.name,
            "form": plan.network.graph.nodes[cells.circuit].form,
            "inhibitory_cells": cells.neurons,
            "messages_of_a_cell": ports,
            "payload_bits": cells.message_bits,
            "steps_more": 1,
            "assumed_microcode": True,
        }
    return found


def _balance(made: Partition) -> dict[str, Any]:
    """Dense traffic of the balance gates: every membrane travels at every step, within the step."""
    found: dict[str, Any] = {}
    for p, _, rows in messages(made):
        path = made.plan.paths[p]
        group = made.plan.groups[path.group]
        if group.role == "balance":
            own = found.setdefault(group.sink, {"messages_per_step": 0, "bits_per_step": 0, "assumed_microcode": True})
            own["messages_per_step"] += len(rows)
            own["bits_per_step"] += len(rows) * _packet(made.plan, made.plan.message_bits(p))
            own["synaptic_operations_per_step"] = made.plan.population(group.sink).neurons * made.plan.fan_in(group)
    return found
