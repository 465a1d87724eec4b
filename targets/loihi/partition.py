"""Populations onto cores: boxes of neurons of one population, as large as the core's limits allow.

A core takes `size` of each axis of its population's map. Large boxes of a map share their inputs, boxes over many
channels share positions, boxes over many positions share kernels; so all shapes of box are tried, and the one that
needs fewest cores is taken, among those the one with the fewest input axons.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import ceil, prod

import numpy as np

from eiexport.ops import Ints
from targets.loihi import limits
from targets.loihi.cores import Core, Need, Partition, constants, counted, list_bits_each, need_of, tightest, verify
from targets.loihi.kernel import Kernel
from targets.loihi.plan import FIRING, Group, Plan, Population, lif_of, threshold_kinds

UNROLL_LIMIT = 4_000_000  # words up to which a program holds synapse lists; above, kernels
TRIALS = 64


def partition(plan: Plan, encoding: str) -> Partition:
    """Choose boxes, count exactly, and shrink the boxes of populations that do not fit; raises Unsupported."""
    caps = {p.name: p.neurons for p in plan.cored}
    for _ in range(TRIALS):
        sizes = {p.name: best_box(plan, p, encoding, caps[p.name]) for p in plan.cored}
        cores = tuple(Core(p.name, ids) for p in plan.cored for ids in boxes(p.shape, sizes[p.name]))
        found = counted(plan, encoding, cores)
        excess: dict[str, float] = {}
        for core, need in zip(cores, found.needs, strict=True):
            excess[core.population] = max(excess.get(core.population, 0), tightest(plan.chip, need)[1])
        over = {n: e for n, e in excess.items() if e > 1}
        if not over:
            return replace(found, sizes=sizes)
        for name, e in over.items():
            largest = max(len(c.neurons) for c in cores if c.population == name)
            if largest == 1:
                for core, need in zip(cores, found.needs, strict=True):
                    if core.population == name:
                        verify(plan.chip, name, need)
            caps[name] = max(1, min(largest - 1, int(largest / e)))
    raise limits.cores_fit(plan.chip, plan.cored[0].name, TRIALS)


def ordered(plan: Plan, order: dict[str, list[np.ndarray]]) -> Partition:
    """A given partition: for each population, the neurons of each of its cores; raises Unsupported where it is none."""
    for name, parts in order.items():
        seen = np.sort(np.concatenate(parts)) if parts else np.zeros(0)
        known = name in {p.name for p in plan.cored}
        if not known or not np.array_equal(seen, np.arange(plan.population(name).neurons)):
            raise limits.refuse(plan.chip, name, "order", "a given order", "each neuron once", "list every neuron once")
    if missing := [p.name for p in plan.cored if p.name not in order]:
        raise limits.refuse(plan.chip, missing[0], "order", "no given order", "every population", "list its neurons")
    cores = tuple(Core(p.name, np.asarray(ids, np.int64)) for p in plan.cored for ids in order[p.name])
    found = counted(plan, "list", cores)
    for core, need in zip(cores, found.needs, strict=True):
        verify(plan.chip, core.population, need)
    return found


# --- boxes


def best_box(plan: Plan, population: Population, encoding: str, cap: int) -> Ints:
    """The box that needs fewest cores, then fewest input axons; a single neuron where nothing fits."""
    shape = population.shape
    space = [sorted({ceil(n / (1 << i)) for i in range(n.bit_length() + 1)}, reverse=True) for n in shape[1:]]
    best: tuple[tuple[int, int], Ints] | None = None
    for sizes in product(*space):
        channels = _channels(plan, population, encoding, cap, sizes)
        if channels == 0:
            continue
        box = (channels, *sizes)
        count = prod(ceil(n / b) for n, b in zip(shape, box, strict=True))
        cost = count, bound(plan, population, encoding, box).axons_in
        if best is None or cost < best[0]:
            best = cost, box
    return (1,) * len(shape) if best is None else best[1]


def _channels(plan: Plan, population: Population, encoding: str, cap: int, sizes: Ints) -> int:
    """The most channels of a box that fit, evened out over the cores; 0 where one does not."""
    lo, hi = 0, population.shape[0]
    while lo < hi:
        c = (lo + hi + 1) // 2
        box = (c, *sizes)
        if prod(box) <= cap and tightest(plan.chip, bound(plan, population, encoding, box))[1] <= 1:
            lo = c
        else:
            hi = c - 1
    return ceil(population.shape[0] / ceil(population.shape[0] / lo)) if lo else 0


def boxes(shape: Ints, box: Ints) -> Iterator[np.ndarray]:
    """Flat indices of each box of a map, in C order of the boxes."""
    ids = np.arange(prod(shape)).reshape(shape)
    starts = [range(0, n, b) for n, b in zip(shape, box, strict=True)]
    for corner in product(*starts):
        yield ids[tuple(slice(i, i + b) for i, b in zip(corner, box, strict=True))].reshape(-1)


def bound(plan: Plan, population: Population, encoding: str, box: Ints) -> Need:
    """What a box of this size needs at most, routes aside; borders of the map are not taken off."""
    n = prod(box)
    axons = words = synapses = 0
    for i in plan.groups_of(population.name):
        group = plan.groups[i]
        heard, unrolled = _heard_bound(group, population.shape, box), n * plan.fan_in(group)
        if encoding == "kernel":
            heard, unrolled = _shared(group, box, heard, unrolled)
        more = constants(plan, i, most_constant(group) * n)
        axons, words = axons + heard + more[0], words + unrolled + more[1]
        synapses += int(list_bits_each(plan, i, np.array(ceil(unrolled / heard)))) * heard + more[2]
    different, how = threshold_kinds(plan.network, population.name)
    finest = {"one": 1, "channel": box[0], "neuron": n}[how]
    return need_of(
        plan,
        population,
        neurons=n,
        axons_in=axons,
        axons_out=0,
        words=words,
        synapses=synapses,
        thresholds=min(different, finest),
        profiles=min(_profiles(plan, population), n),
    )


def most_constant(group: Group) -> int:
    """Words that the constant of one neuron needs at most."""
    return -(-int(np.abs(group.constant).max()).bit_length() // 8)


def _heard_bound(group: Group, shape: Ints, box: Ints) -> int:
    """Lines that a box hears, zeros and padding counted in."""
    kernel = group.kernel
    if group.pooled is not None:  # the box of units behind a pool
        if len(box) != 3:
            return kernel.lines
        spans = ((b - 1) * s + size for b, s, size in zip(box[1:], group.after[2:4], group.after[:2], strict=True))
        behind = tuple(min(n, b) for n, b in zip(kernel.outputs[1:], spans, strict=True))
        box = (box[0], *behind)
    elif kernel.outputs != shape:  # flattened in between: a run of neurons may lie anywhere
        if kernel.kind == "one":
            return prod(box)
        box = _run(kernel, prod(box)) if kernel.kind == "conv" and len(shape) == 1 else kernel.outputs
    if kernel.kind == "one":
        return prod(box)
    if kernel.kind == "dense":
        return prod(box[:-1]) * kernel.inputs[-1]
    assert kernel.window is not None
    w, taps = kernel.window, kernel.words.shape[2:]
    channels = _input_channels(kernel, box[0])
    reach = 1
    for n, b, k, stride, dilation in zip(kernel.inputs[1:], box[1:], taps, w.stride, w.dilation, strict=True):
        reach *= min(n, b * k, (b - 1) * stride + (k - 1) * dilation + 1)
    return channels * reach


def _run(kernel: Kernel, neurons: int) -> Ints:
    """A box that holds every run of so many units in C order, where such a run may start anywhere."""
    size = prod(kernel.outputs[1:])
    return (min(kernel.outputs[0], ceil(neurons / size) + 1), *kernel.outputs[1:])


def _input_channels(kernel: Kernel, outputs: int) -> int:
    """Input channels that so many neighbouring output channels hear."""
    assert kernel.window is not None
    each = len(kernel.words) // kernel.window.groups
    return (
        min(kernel.window.groups, (outputs - 1) // each + 1 + (outputs % each > 0 and each > 1)) * kernel.words.shape[1]
    )


def _shared(group: Group, box: Ints, heard: int, unrolled: int) -> tuple[int, int]:
    """(axons, words) of a group in the kernel encoding."""
    kernel = group.kernel
    if kernel.kind != "conv":
        return heard, unrolled
    channels = box[0] if len(box) == len(kernel.outputs) else kernel.outputs[0]
    return _input_channels(kernel, channels), channels * kernel.fan_in


def _profiles(plan: Plan, population: Population) -> int:
    if population.kind not in FIRING:
        return 1
    lif = lif_of(plan.network.graph.nodes[population.name])
    return len(np.unique(np.asarray(lif.du) * 8192 + np.asarray(lif.dv)))
