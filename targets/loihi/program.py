"""The program file, DIR/program.loihi.h5: all that a chip would have to be told, and nothing else.

Every dataset holds whole numbers; names and kinds are attributes. There is no graph, no code and no pickle in it.

    /                   format, schema, chip, encoding "list" | "kernel", dt (a label for traces), tail (engine steps
                        that follow the last input step until all have settled), reset (what ends a sample)
    /populations/<i>    name, kind, shape, latency, message_bits; of neurons: compare, reset; of gated ones:
                        feedback, balance (0 or 1), feedback_shift, balance_shift, balance_bits; table (the gate's);
                        of a circuit's: form, gain_shift, shift, epsilon; table (of reciprocals, form "table" alone)
    /groups/<i>         accumulators: population, role, wraps (0 or 1), ports (how many there are: 1 or 2)
    /readout/<i>        what the host reads: population; core and slot of each neuron in C order; output (0 or 1)
    /cores/<k>          population, chip, x, y, slot; neurons (flat indices); vth, du, dv, bias_mant, bias_exp, lower,
                        one number or one a neuron; exponent/<group>, constant/<group> likewise; of a circuit's
                        inhibitory cells: gain_i, of what it drives: gain_e, current (added last)
    list encoding, in each core
        axon_group, axon_start, target, word     axon table and synapse words
        spikes/, membranes/                      start, core, axon, delay: routes of each neuron
    list encoding, of the host
        /input/                                  start, core, axon, delay: where each input is injected
    kernel encoding: words and positions once, lists and routes follow from them
        /kernels/<group>    kind, words, exponent, inputs, outputs, stride, padding, dilation, groups; pooled/ of a pool
                            behind the connection
        /ways/<p>           source, group, lag; table: source, line, delay
        /routes             from, to: cores that talk (-1: the host); membranes likewise under membrane_from, _to

A message that a population sends at engine step e is used at e + 1 + delay. A population of latency L computes its
model step t at engine step t + L, and is inert before. Inhibitory cells send a second message, over the same routes, to
the second port of a group that has two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eiexport.files import writing
from eiexport.graph import Network
from targets.base import TargetError
from targets.loihi import limits
from targets.loihi.assembly import Heard, Routes, Way, routes, synapses
from targets.loihi.cores import Core, Partition
from targets.loihi.kernel import Kernel, Table
from targets.loihi.limits import Chip, chip_of
from targets.loihi.partition import UNROLL_LIMIT, ordered, partition
from targets.loihi.placement import place
from targets.loihi.plan import CIRCUIT_FIELDS, FIRING, LIF_FIELDS, Plan, Population, bias_of, lif_of, plan

FORMAT, SCHEMA = "loihi-program", 1
FILE = "program.loihi.h5"
RESETS = ("state_writes", "none")  # how samples are kept apart; "none" lets them run into each other
Order = dict[str, list[np.ndarray]]  # population -> neurons of each of its cores


def partitioned(
    network: Network, chip: str | Chip, order: Order | None = None, encoding: str | None = None
) -> Partition:
    """Plan and cores of a network; raises Unsupported by the first rule that it breaks.

    encoding: "list", or "kernel" where synapse lists would be longer than `UNROLL_LIMIT` words. order: the neurons of
    each core, for every population; lists only.
    """
    made = plan(network, chip_of(chip))
    chosen = encoding or ("list" if order is not None or made.synapses <= UNROLL_LIMIT else "kernel")
    if chosen == "kernel" and not made.chip.microcode:
        chosen = "list"  # the fixed core has no shared kernels
        sinks = {g.sink: made.population(g.sink).neurons * made.fan_in(g) for g in made.groups}
        limits.synapses_fit(made.chip, max(sinks, key=lambda n: sinks[n]), made.synapses, 8 * UNROLL_LIMIT)
    if order is not None:
        if chosen != "list":
            raise TargetError("an order of neurons needs the list encoding; leave encoding out")
        found = ordered(made, order)
    else:
        found = partition(made, chosen)
    limits.chips_fit(made.chip, made.cored[0].name, -(-len(found.cores) // int(made.chip.cores.value or 1)))
    return found


def write(
    network: Network,
    chip: str | Chip,
    path: str | Path,
    *,
    order: Order | None = None,
    encoding: str | None = None,
    made: Partition | None = None,
) -> Path:
    """Write the program of a network into a folder; returns the file, which appears whole or not at all.

    order, encoding: as in `partitioned`; made: its result, where it is known.
    """
    found = made or partitioned(network, chip, order, encoding)
    file = Path(path) if Path(path).suffix == ".h5" else Path(path) / FILE
    with writing(file) as sink:
        with h5py.File(sink, "w") as f:
            _write(f, found)
        if sink.error is not None:
            raise sink.error
    return file


def _write(f: Any, made: Partition) -> None:
    network = made.plan.network
    tail = max(p.latency for p in made.plan.populations)
    about = {"format": FORMAT, "schema": SCHEMA, "chip": made.plan.chip.name, "encoding": made.encoding}
    f.attrs.update({**about, "dt": network.clock.dt, "tail": tail, "reset": RESETS[0]})
    for i, population in enumerate(made.plan.populations):
        _population(f.create_group(f"populations/{i:04}"), made.plan, population)
    for i, group in enumerate(made.plan.groups):
        wraps = int(group.kernel.wraps and group.pooled is None)
        about = {"population": made.plan.index(group.sink), "role": group.role, "wraps": wraps, "ports": group.ports}
        f.create_group(f"groups/{i:04}").attrs.update(about)
    places = place(made)
    for k, (core, at) in enumerate(zip(made.cores, places, strict=True)):
        group = f.create_group(f"cores/{k:06}")
        address = {"chip": at.chip, "x": at.x, "y": at.y, "slot": at.slot}
        group.attrs.update({"population": made.plan.index(core.population), **address})
        _core(group, made.plan, core)
    _readout(f, made)
    if made.encoding == "list":
        _lists(f, made)
    else:
        _kernels(f, made)


def _population(group: Any, made: Plan, population: Population) -> None:
    fields: dict[str, Any] = {"name": population.name, "kind": population.kind, "latency": population.latency}
    fields |= {"message_bits": population.message_bits, "shape": np.array(population.shape, np.int64)}
    node: Any = made.network.graph.nodes.get(population.name)
    if population.kind in FIRING:
        fields |= {"compare": lif_of(node).compare, "reset": lif_of(node).reset}
    if population.kind == "gated":
        fields |= {"feedback": int(node.feedback is not None), "balance": int(node.balance is not None)}
        fields |= {k: int(getattr(node, k)) for k in ("feedback_shift", "balance_shift", "balance_bits")}
        table = np.zeros(256) if node.table is None else node.table
        group["table"] = np.asarray(table, np.uint8)
    if circuit := made.circuit(population):
        epsilon = 1 if circuit.epsilon is None else int(circuit.epsilon)
        fields |= {"form": circuit.form, "gain_shift": circuit.gain_shift, "shift": circuit.shift, "epsilon": epsilon}
        if made.table_bits(population):
            group["table"] = np.asarray(circuit.table, np.uint16)
    group.attrs.update(fields)


def _core(group: Any, made: Plan, core: Core) -> None:
    """Neurons and their parameters."""
    group["neurons"] = core.neurons.astype(np.int32)
    population = made.population(core.population)
    if circuit := made.circuit(population):
        own = (circuit.gain_i, None, None) if population.kind == "inhibitory" else (None, circuit.gain_e, circuit.bias)
        for name, value in zip(CIRCUIT_FIELDS, own, strict=True):
            if value is not None:
                group[name] = _own(value, population, core)
    if population.kind in FIRING:
        lif = lif_of(made.network.graph.nodes[population.name])
        mant, exp = limits.bias_fits(made.chip, population.name, bias_of(lif))
        values = {k: getattr(lif, k) for k in LIF_FIELDS} | {"bias_mant": mant, "bias_exp": exp}
        for name, value in values.items():
            if value is not None:
                group[name] = _own(np.asarray(value), population, core)
    for i in made.groups_of(population.name):
        g = made.groups[i]
        exponent = g.kernel.exponent
        if exponent.size > 1 and (exponent != exponent[0]).any():
            units = core.neurons if g.pooled is None else _first_unit(g.pooled, core.neurons)
            exponent = exponent[g.kernel.output_of(units)]
        else:
            exponent = exponent[0]
        group[f"exponent/{i:04}"] = np.asarray(exponent, np.int16)
        constant = g.constant if g.constant.ndim == 0 else g.constant[core.neurons]
        group[f"constant/{i:04}"] = np.asarray(constant, np.int32)


def _first_unit(pooled: Table, neurons: np.ndarray) -> np.ndarray:
    """One unit of each neuron's window: all are of one channel, so they share an exponent."""
    first = np.zeros(int(pooled.line.max()) + 1, np.int64)
    first[pooled.line] = pooled.source
    return first[neurons]


def _readout(f: Any, made: Partition) -> None:
    """Where the host finds each neuron of a recorded population."""
    network = made.plan.network
    ends = {s for o in network.outputs for s in network.sources[o]}
    for i, name in enumerate(network.recorded):
        group = f.create_group(f"readout/{i:04}")
        group.attrs.update({"population": made.plan.index(name), "output": int(name in ends)})
        core, slot = (np.zeros(made.plan.population(name).neurons, np.int32) for _ in range(2))
        for k, own in enumerate(made.cores):
            if own.population == name:
                core[own.neurons], slot[own.neurons] = k, np.arange(len(own.neurons))
        _data(group, "core", core)
        _data(group, "slot", slot)


def _own(value: np.ndarray, population: Population, core: Core) -> np.ndarray:
    """A parameter of this core's neurons; one number where all agree."""
    value = value.astype(np.int32)
    if value.size == 1:
        return value.reshape(())
    own = np.broadcast_to(value, population.shape).reshape(-1)[core.neurons]
    return own[0] if (own == own[0]).all() else own


# --- list encoding


def _lists(f: Any, made: Partition) -> None:
    heard: list[dict[int, Heard]] = []
    for k in range(len(made.cores)):
        words, lines = synapses(made.lists[k])
        heard.append(lines)
        group = f[f"cores/{k:06}"]
        group["axon_group"], group["axon_start"] = words.group.astype(np.int16), words.start.astype(np.int64)
        _data(group, "target", words.target.astype(np.int32))
        _data(group, "word", words.word)
    for population in made.plan.populations:
        own = [k for k, c in enumerate(made.cores) if c.population == population.name]
        source = population.kind == "input"
        parts = [np.arange(population.neurons)] if source else [made.cores[k].neurons for k in own]
        for kind in ("spikes", "membranes"):
            ways = ways_of(made.plan, population.name, kind == "membranes")
            for i, found in enumerate(routes(ways, heard, parts, population.neurons)):
                if kind == "spikes" or ways:
                    _routes(f.create_group("input" if source else f"cores/{own[i]:06}/{kind}"), found)


def ways_of(made: Plan, source: str, membranes: bool) -> list[Way]:
    """The paths out of a population: of its spikes, or of its membranes."""
    index = made.index(source)
    chosen = [p for p in made.paths if p.source == source and (made.groups[p.group].role == "balance") == membranes]
    return [Way(index, p.group, 1 if membranes else p.lag, p.table) for p in chosen]


def _routes(group: Any, found: Routes) -> None:
    for name in ("start", "core", "axon", "delay"):
        _data(group, name, getattr(found, name).astype(np.int64 if name == "start" else np.int32))


def _data(group: Any, name: str, data: np.ndarray) -> None:
    """Compressed where it is large enough to pay."""
    packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if data.size > 4096 else {}
    group.create_dataset(name, data=data, **packed)


# --- kernel encoding


def _kernels(f: Any, made: Partition) -> None:
    for i, g in enumerate(made.plan.groups):
        group = f.create_group(f"kernels/{i:04}")
        _kernel(group, g.kernel)
        if g.pooled is not None:
            _table(group.create_group("pooled"), g.pooled)
    for i, path in enumerate(made.plan.paths):
        group = f.create_group(f"ways/{i:04}")
        membranes = made.plan.groups[path.group].role == "balance"
        lag = 1 if membranes else path.lag
        group.attrs.update({"source": made.plan.index(path.source), "group": path.group, "lag": lag})
        _table(group, path.table)
    for flow, prefix in ((made.spikes, ""), (made.membranes, "membrane_")):
        source, target = np.nonzero(flow)
        _data(
            f.require_group("routes"), f"{prefix}from", np.where(source == len(made.cores), -1, source).astype(np.int32)
        )
        _data(f["routes"], f"{prefix}to", target.astype(np.int32))


def _kernel(group: Any, kernel: Kernel) -> None:
    group.attrs.update({"kind": kernel.kind, "inputs": kernel.inputs, "outputs": kernel.outputs})
    if kernel.window is not None:
        w = kernel.window
        group.attrs.update({"stride": w.stride, "padding": w.padding, "dilation": w.dilation, "groups": w.groups})
    _data(group, "words", kernel.words.astype(np.int32))
    group["exponent"] = kernel.exponent.astype(np.int16)


def _table(group: Any, table: Table) -> None:
    for name in ("source", "line", "delay"):
        _data(group, name, getattr(table, name).astype(np.int32))
