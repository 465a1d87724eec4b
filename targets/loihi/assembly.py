"""Axon tables, synapse words and routes of every core, as whole numbers: what a program in the list encoding holds.

The writer assembles them for the file; the simulator assembles them from the kernels of a file too large for lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from targets.loihi.kernel import Lists, Table, ranges


@dataclass(frozen=True, eq=False)
class Synapses:
    """A core's input: axon i belongs to group[i], its words stand at start[i] to start[i + 1]."""

    group: np.ndarray
    start: np.ndarray
    target: np.ndarray
    word: np.ndarray


@dataclass(frozen=True, eq=False)
class Routes:
    """Where a core's neurons send: entries of neuron i stand at start[i] to start[i + 1]. delay: beyond the hop."""

    start: np.ndarray
    core: np.ndarray
    axon: np.ndarray
    delay: np.ndarray


@dataclass(frozen=True, eq=False)
class Way:
    """A path from a population into a group: its table, and steps from sending to use beyond the table's delay."""

    source: int
    group: int
    lag: int
    table: Table


@dataclass(frozen=True, eq=False)
class Heard:
    """Lines of a group on a core, and its first axon there."""

    lines: np.ndarray
    first: int


def synapses(lists: dict[int, Lists]) -> tuple[Synapses, dict[int, Heard]]:
    """Join the lists of a core's groups; axons are counted over all of them."""
    heard: dict[int, Heard] = {}
    groups, counts, axons = [], [], 0
    for group, own in lists.items():
        heard[group] = Heard(own.lines, axons)
        groups.append(np.full(len(own.lines), group))
        counts.append(np.diff(own.start))
        axons += len(own.lines)
    start = np.concatenate([[0], np.cumsum(np.concatenate([*counts, np.zeros(0, np.int64)]))]).astype(np.int64)
    empty = np.zeros(0, np.int64)
    return Synapses(
        np.concatenate([*groups, empty]),
        start,
        np.concatenate([*(own.target for own in lists.values()), empty]),
        np.concatenate([*(own.word for own in lists.values()), empty]),
    ), heard


def routes(
    ways: Iterable[Way],
    heard: Sequence[dict[int, Heard]],
    parts: Sequence[np.ndarray],
    neurons: int,
    allowed: Sequence[set[int]] | None = None,
) -> list[Routes]:
    """Routes of each part (the neurons of one core) of a population of so many neurons, which takes these ways.

    heard: of each core. allowed: target cores that a part may send to; all where None.
    """
    found: list[tuple[np.ndarray, ...]] = []
    for way in ways:
        for core, groups in enumerate(heard):
            if way.group not in groups:
                continue
            lines, first = groups[way.group].lines, groups[way.group].first
            rows = way.table.into(lines)
            axon = first + np.searchsorted(lines, way.table.line[rows])
            delay = way.table.delay[rows] + way.lag - 1
            found.append((way.table.source[rows], np.full(len(rows), core), axon, delay))
    source, core_, axon, delay = (np.concatenate([*(f[i] for f in found), np.zeros(0, np.int64)]) for i in range(4))
    order = np.argsort(source, kind="stable")
    source, core_, axon, delay = source[order], core_[order], axon[order], delay[order]
    ends = np.concatenate([[0], np.cumsum(np.bincount(source.astype(np.int64), minlength=neurons))]).astype(np.int64)
    made = []
    for i, part in enumerate(parts):
        count = ends[part + 1] - ends[part]
        rows = ranges(ends[part], count)
        if allowed is not None:
            kept = np.isin(core_[rows], list(allowed[i]))
            owner = np.repeat(np.arange(len(part)), count)[kept]
            rows, count = rows[kept], np.bincount(owner, minlength=len(part))
        start = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        made.append(Routes(start, core_[rows].astype(np.int64), axon[rows], delay[rows]))
    return made
