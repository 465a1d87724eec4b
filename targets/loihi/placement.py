"""Cores onto the mesh of one or several chips, and what travels between them. Chips stand in a row (assumed)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from targets.loihi import limits
from targets.loihi.cores import Partition, owners
from targets.loihi.limits import Chip


@dataclass(frozen=True)
class Place:
    """A core's address: chip, tile (x, y) counted over the row of chips, slot within the tile."""

    chip: int
    x: int
    y: int
    slot: int


def place(made: Partition) -> tuple[Place, ...]:
    """An address for every core; raises Unsupported for more chips than were ever joined.

    The core that exchanges most with those already placed comes next, on the free tile where its messages have the
    fewest hops to go.
    """
    chip, n = made.plan.chip, len(made.cores)
    per_chip = int(chip.cores.value or 1)
    limits.chips_fit(chip, made.cores[0].population, -(-n // per_chip))
    tiles, room = tiles_of(chip, n)
    hops = np.abs(tiles[:, None] - tiles[None]).sum(-1)
    talk = made.spikes[:n] + made.membranes
    talk = talk + talk.T
    cost, pull = np.zeros((n, len(tiles))), np.zeros(n)
    waiting, found = np.ones(n, bool), np.zeros(n, np.int64)
    for _ in range(n):
        core = int(np.argmax(np.where(waiting, pull, -1)))
        tile = int(np.argmin(np.where(room > 0, cost[core], np.inf)))
        found[core], waiting[core] = tile, False
        room[tile] -= 1
        pull += talk[core]
        partners = np.flatnonzero(talk[core])
        cost[partners] += talk[core, partners, None] * hops[tile]
    taken = np.zeros(len(tiles), np.int64)
    places = []
    width = int(chip.mesh_width.value or 1)
    for tile in found.tolist():
        x, y = tiles[tile].tolist()
        places.append(Place(x // width, x, y, int(taken[tile])))
        taken[tile] += 1
    return tuple(places)


def tiles_of(chip: Chip, cores: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of each tile and the cores it has room for, on as many chips as so many cores need.

    In the order of a curve up one column of tiles and down the next: of tiles that are as near, the first is taken.
    """
    per_chip, per_tile, width = (int(v.value or 1) for v in (chip.cores, chip.cores_per_tile, chip.mesh_width))
    count = -(-per_chip // per_tile)
    height = -(-count // width)
    tiles, room = [], []
    for k in range(-(-cores // per_chip)):
        for i in range(count):
            column, row = divmod(i, height)
            tiles.append((k * width + column, height - 1 - row if column % 2 else row))
            room.append(min(per_tile, per_chip - i * per_tile))
    return np.array(tiles), np.array(room)


Messages = list[tuple[int, int, np.ndarray]]  # (path, target core, rows of the path's table)


def messages(partition: Partition) -> Messages:
    """Every pair of neuron and target axon: an event sends one message for each."""
    found = []
    for k, core in enumerate(partition.cores):
        for i in partition.plan.groups_of(core.population):
            lines = partition.heard(k, i)
            for p, path in enumerate(partition.plan.paths):
                if path.group == i:
                    found.append((p, k, path.table.into(lines).astype(np.int32)))
    return found


def traffic(partition: Partition, sent: Messages, events: Callable[[int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(messages, bits) a step from core to core, on average; the last row is the host.

    events: of a path, how many messages a step each of its sources sends.
    """
    plan, chip = partition.plan, partition.plan.chip
    n = len(partition.cores)
    counts, bits = np.zeros((n + 1, n)), np.zeros((n + 1, n))
    owner = {p.name: owners(plan, partition.cores, p.name) for p in plan.populations}
    for p, target, rows in sent:
        path = plan.paths[p]
        source = path.table.source[rows]
        found = np.bincount(owner[path.source][source], events(p)[source], n + 1)
        counts[:, target] += found
        bits[:, target] += found * (int(chip.packet_bits.value or 0) + plan.message_bits(p))
    return counts, bits


def travel(places: tuple[Place, ...], counts: np.ndarray) -> float:
    """Messages times hops in a step, between cores."""
    x, y = (np.array([getattr(p, axis) for p in places]) for axis in "xy")
    hops = np.abs(x[:, None] - x) + np.abs(y[:, None] - y)
    return float((counts[: len(places)] * hops).sum())


Link = tuple[int, int, int, int]  # from tile (x, y) to its neighbour


def links(places: tuple[Place, ...], loads: np.ndarray) -> dict[Link, float]:
    """Load of each directed link between tiles: messages go along x first, then along y (dimension order)."""
    found: dict[Link, float] = {}
    between: dict[tuple[int, int, int, int], float] = {}
    for a, b in zip(*np.nonzero(loads[: len(places)]), strict=True):
        p, q = places[a], places[b]
        key = (p.x, p.y, q.x, q.y)
        between[key] = between.get(key, 0.0) + float(loads[a, b])
    for (x, y, to_x, to_y), load in between.items():
        while (x, y) != (to_x, to_y):
            step = (x + np.sign(to_x - x), y) if x != to_x else (x, y + np.sign(to_y - y))
            nearer = (int(step[0]), int(step[1]))
            found[x, y, *nearer] = found.get((x, y, *nearer), 0.0) + load
            x, y = nearer
    return found
