"""The loihi target: three ways to run a program agree, rules are named, and a program that is wrong is caught."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from int_networks import chain, connected, conv, dense, neuron, sigmoid_table

from eiexport import graph as graphs
from eiexport.alphabet import BINARY, TERNARY, Alphabet, interval
from eiexport.integers import IntGatedLIF
from targets.base import TargetError, Unsupported
from targets.loihi import Loihi, overflow
from targets.loihi.limits import LOIHI2, Chip, Limit
from targets.loihi.partition import boxes, partition
from targets.loihi.placement import place, travel
from targets.loihi.plan import plan
from targets.loihi.program import FILE, partitioned, write
from targets.loihi.simulator import Simulator
from targets.reference import Reference

GRADED = interval(-100, 100, True)


def small(chip: Chip = LOIHI2, **numbers: float | None) -> Chip:
    """A chip of a few neurons a core, so that small networks spread over cores and chips."""
    chosen: dict[str, float | None] = {"neurons": 3, "cores": 4, "cores_per_tile": 2, "mesh_width": 2, **numbers}
    return replace(chip, **{k: Limit(v, "test") for k, v in chosen.items()})  # type: ignore[arg-type]


def words(seed: int, *shape: int, step: int = 2, top: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(-top, top + 1, shape) // step * step


def gated(shape: tuple[int, ...], feedback: bool = True, balance: bool = True, **fields: Any) -> IntGatedLIF:
    """Gates as convolutions over maps, dense over flat populations."""

    def gate(seed: int, bits: int) -> Any:
        c = shape[0]
        if len(shape) == 1:
            return dense(words(seed, c, c), words(seed + 1, c), message_bits=bits)
        return conv(words(seed, c, c, 3, 3, top=40), words(seed + 1, c), padding=1, message_bits=bits)

    return IntGatedLIF(
        neuron(shape, **{"vth": 120, "dv": 1024, "du": 3000, "bias_mant": 3, "bias_exp": 4, **fields}),
        gate(1, 2 if balance else 0) if feedback else None,
        gate(3, 8) if balance else None,
        table=sigmoid_table() if feedback else None,
        feedback_shift=1,
        balance_shift=5,
        balance_bits=8,
        accumulator_bits=32,
    )


def pool(kernel: int = 2, stride: int = 2, padding: int = 0) -> nir.SumPool2d:
    return nir.SumPool2d(*(np.array([n, n]) for n in (kernel, stride, padding)))


def late(shape: Any, steps: Any) -> nir.Delay:
    return nir.Delay(np.broadcast_to(np.array(steps, float), shape).copy())


@dataclass(frozen=True, eq=False)
class Case:
    graph: nir.NIRGraph
    alphabet: Alphabet
    steps: int = 7
    samples: int = 3

    def network(self) -> graphs.Network:
        return graphs.check(self.graph, alphabet=self.alphabet)

    def x(self, seed: int = 5) -> np.ndarray:
        shape = self.network().shapes["in"]
        a, rng = self.alphabet, np.random.default_rng(seed)
        x = rng.integers(int(a.lo), int(a.hi) + 1, (self.samples, self.steps, *shape))
        return (x * (rng.random(x.shape) < 0.7)).astype(float)


FLAT_POOL = nir.Flatten({"input": np.array([2, 2, 2])}, 0, -1)


def feedforward() -> dict[str, Case]:
    each = np.arange(4)
    cuba = neuron(4, 60 + 40 * each, du=800 + each, dv=100, bias_mant=-37 * (each - 1), bias_exp=-2)
    lower = neuron(4, 90, dv=512, lower=-70 - each, compare="ge")
    geometry: dict[str, Any] = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    graded = dense(words(3, 4, 3), [1, -9, 40, 0], weight_exp=2, message_bits=8)
    strong = dense(words(3, 4, 3), weight_exp=5, message_bits=8)
    wide = conv(words(13, 2, 1, 2, 2), weight_exp=7, message_bits=20)
    channels = conv(2 * words(11, 4, 2, 2), [5, 0, -7, 1], weight_exp=np.array([0, 1, -1, 3]))
    signed = [dense(words(4, 4, 3), message_bits=8), lower, dense(words(5, 2, 4), message_bits=2), neuron(2, 20)]
    shaped = conv(words(8, 4, 1, 2, 3), words(9, 4), weight_exp=-1, **geometry)
    return {
        "dense": Case(chain((3,), dense(words(1, 4, 3)), neuron(4, 50), dense(words(2, 2, 4)), neuron(2, 30)), BINARY),
        "cuba": Case(chain((3,), graded, cuba), GRADED),
        "wrapping": Case(chain((3,), strong, neuron(4, 131071, du=200, dv=3)), GRADED, 40),
        "ternary": Case(chain((3,), *signed), GRADED),
        "subtract": Case(chain((3,), dense(words(6, 4, 3)), neuron(4, 40, compare="ge", reset="subtract")), BINARY),
        "keeps": Case(chain((3,), dense(words(6, 4, 3), [9] * 4), neuron(4, 90, reset="none", dv=2000)), BINARY),
        "no-membrane": Case(chain((3,), dense(words(7, 4, 3), message_bits=2), neuron(4, 5, dv=4096)), TERNARY),
        "all-current": Case(chain((3,), dense(words(7, 4, 3), message_bits=2), neuron(4, 500, du=-1)), TERNARY),
        "conv": Case(chain((2, 6, 5), shaped, neuron((4, 4, 5), 30)), BINARY),
        "conv1d": Case(chain((2, 9), conv(words(10, 3, 2, 3), stride=2, padding=1), neuron((3, 5), 30)), BINARY),
        "per-channel": Case(chain((2, 4), channels, neuron((4, 3), [[40], [70], [9], [300]])), BINARY),
        "dense-rows": Case(chain((2, 3), dense(words(12, 4, 3), weight_exp=-2), neuron((2, 4), 20)), BINARY),
        "modulo": Case(chain((1, 2, 2), wide, neuron((2, 1, 1), 9, dv=7)), interval(-400_000, 400_000, True)),
        "identity": Case(chain((4,), neuron(4, 70, dv=300)), GRADED),
    }


def pooled() -> dict[str, Case]:
    """Sum pools on both sides of a connection; the input is a graded map of 4 x 4."""

    def case(*nodes: Any) -> Case:
        return Case(chain((1, 4, 4), *nodes), GRADED)

    def tail(bits: int) -> list[Any]:
        return [FLAT_POOL, dense(words(21, 3, 8), message_bits=bits), neuron(3, 40)]

    def first(bias: Any = None, **fields: Any) -> Any:
        return conv(words(20, 2, 1, 3, 3), bias, padding=1, message_bits=8, **fields)

    lif, ternary = neuron((2, 4, 4), 60, dv=512), neuron((2, 4, 4), 60, lower=-50)
    return {
        "pool": case(first(), lif, pool(), *tail(3)),
        "pool-overlaps": case(first(), lif, pool(3, 2, 1), *tail(4)),
        "pool-signed": case(first(), ternary, pool(), *tail(4)),
        "pool-twice": case(first(), lif, pool(2, 1), pool(2, 2, 1), *tail(5)),
        "pool-behind": case(first([4, -9]), pool(), neuron((2, 2, 2), 90)),
        "pool-behind-flat": case(first(weight_exp=[0, 1]), pool(3, 2, 1), FLAT_POOL, neuron(8, 90)),
        "pool-alone": Case(chain((2, 4, 4), pool(), neuron((2, 2, 2), 2)), BINARY),
        "conv-flat": Case(chain((2, 3, 3), conv(words(22, 2, 2, 2, 2)), FLAT_POOL, neuron(8, 50)), BINARY),
        "gated-conv": case(first(), gated((2, 4, 4)), pool(), *tail(4)),
    }


def gates() -> dict[str, Case]:
    def case(node: Any, *behind: Any, bias: Any = None, steps: int = 7, samples: int = 3) -> Case:
        return Case(chain((3,), dense(words(23, 6, 3), bias, message_bits=8), node, *behind), GRADED, steps, samples)

    return {
        "gated": case(gated((6,)), dense(words(24, 2, 6), message_bits=2), neuron(2, 30)),
        "feedback": case(gated((6,), balance=False), bias=[9] * 6),
        "balance": case(gated((6,), feedback=False, compare="ge", reset="subtract")),
        "once": case(gated((6,), vth=20), bias=[99] * 6, steps=1, samples=1),
    }


def branches() -> dict[str, Case]:
    """Ways of different length, delays on them, loops, and sums that are read as they are."""

    def case(nodes: dict[str, Any], path: str, alphabet: Alphabet, steps: int) -> Case:
        edges = [e for way in path.split(";") for e in pairwise(way.split())]
        return Case(connected(nodes, edges, (3,)), alphabet, steps)

    def loop(*delays: Any) -> Case:
        lines = {f"d{i}": d for i, d in enumerate(delays)}
        nodes = {"w": dense(words(30, 4, 3), message_bits=2), "cell": neuron(4, 60, dv=400, lower=-80)}
        nodes |= {"back": dense(words(31, 4, 4), [3] * 4, message_bits=4), **lines}
        return case(nodes, f"in w cell {' '.join(lines)} back cell;cell out", TERNARY, 12)

    wide = {"left": dense(words(32, 4, 3)), "right": dense(words(33, 4, 3), [7] * 4)}
    wide |= {"a": neuron(4, 50), "b": neuron(4, 70), "c": neuron(4, 40), "deep": dense(words(35, 4, 4))}
    wide |= {"late": late(4, 2), "sum": dense(words(34, 3, 4), message_bits=2, weight_exp=-1), "last": neuron(3, 30)}
    wide |= {"wait": late(3, [1, 0, 3])}
    ways = "in left a deep c sum last out;in right b late sum;left b;in wait last"
    behind = {"w": dense(words(36, 4, 3)), "d": late(4, 3), "cell": neuron(4, 50, bias_mant=9)}
    behind |= {"far": late(4, [4, 0, 1, 2])}
    read = {"w": dense(words(37, 4, 3), [1, 2, 3, 4], weight_exp=-1), "cell": neuron(4, 50)}
    read |= {"r": dense(words(38, 2, 4), [5, -5])}
    # the same sums now and later: each is shifted by itself
    twice = {"w": dense(words(39, 4, 3), weight_exp=-3), "d": late(4, 2), "cell": neuron(4, 9)}
    dead = {"w": dense(words(40, 4, 3)), "none": dense(np.zeros((4, 3))), "cell": neuron(4, 50)}
    biased = [n for i in range(3) for n in (dense(64 * np.eye(3), [77] * 3), neuron(3, 100 + i))]
    return {
        "loop": loop(late(4, 1)),
        "loop-far": loop(late(4, 2), late(4, [1, 0, 3, 1])),
        "branches": case(wide, ways, BINARY, 10),
        "delays": case(behind, "in w d cell far out", BINARY, 12),
        "readout": case(read, "in w cell r out", BINARY, 7),
        "sums-alone": case({"r": dense(words(38, 2, 3), [5, -5])}, "in r out", BINARY, 7),
        "two-ways": case(twice, "in w cell out;w d cell", BINARY, 9),
        "a-dead-way": case(dead, "in w cell out;in none cell", BINARY, 7),
        "biased-chain": Case(chain((3,), *biased), BINARY, 9),
    }


CASES = feedforward() | pooled() | gates() | branches()


def equal(found: Any, expected: Any, silent: bool = False) -> None:
    """z, v and u of every recorded node, and not for want of spikes."""
    assert found.z.keys() == expected.z.keys() and found.states.keys() == expected.states.keys()
    for (kind, name, a), (_, _, b) in zip(found.observables(), _same_order(found, expected), strict=True):
        assert a.shape == b.shape, (kind, name)
        assert np.array_equal(a, b), (kind, name, np.argwhere(a != b)[:3])
        assert silent or kind != "z" or np.count_nonzero(b), f"{name} is silent"


def _same_order(found: Any, expected: Any) -> list[tuple[str, str, np.ndarray]]:
    held = {"z": expected.z, **expected.states}
    return [(kind, name, held[kind][name]) for kind, name, _ in found.observables()]


def differs(found: Any, expected: Any) -> bool:
    pairs = zip(found.observables(), _same_order(found, expected), strict=True)
    return any(a.shape != b.shape or (a != b).any() for (_, _, a), (_, _, b) in pairs)


@pytest.mark.parametrize("name", CASES)
def test_executor_reference_and_program_file_agree(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    network, x = case.network(), case.x()
    expected = Reference().compile(network).run(x, probe=True)
    equal(Loihi().compile(network).run(x, probe=True), expected)
    for encoding in ("list", "kernel"):
        for chip in (LOIHI2, small()):
            file = write(network, chip, tmp_path, encoding=encoding)
            assert file == tmp_path / FILE and list(tmp_path.iterdir()) == [file]
            equal(Simulator(file).run(x, probe=True), expected)
    found = Simulator(file).run(x)
    assert not found.states and not differs(found, replace(expected, states={}))
    assert max(found.latency.values()) == max(p.latency for p in plan(network, LOIHI2).populations) > 0


def test_the_cases_hold_hard_values() -> None:
    """Registers wrap and saturate, sums wrap, membranes are clipped as messages, spikes are negative."""
    hit: set[str] = set()
    for case in CASES.values():
        network, x = case.network(), case.x()
        trace = Reference().compile(network).run(x, probe=True)
        for name in network.recorded:  # one at a time, since only the earliest is told
            first, clipped = overflow.find(network, x, trace.z, trace.states)
            hit |= {first.register} if first else set()
            hit |= {"message"} if clipped else set()
            hit |= {"negative"} if (trace.z[name] < 0).any() else set()
    assert hit == {"u", "v", "sum", "message", "negative"}


def test_small_chips_spread_a_network_over_chips() -> None:
    network = CASES["gated-conv"].network()
    found = partitioned(network, small())
    places = place(found)
    assert len(found.cores) > 8 and max(p.chip for p in places) > 1
    assert max(len(c.neurons) for c in found.cores) == 3
    assert len(set(places)) == len(places)


def test_a_sample_alone_is_the_sample_in_a_batch(tmp_path: Path) -> None:
    for name in ("gated", "loop-far", "delays"):
        case = CASES[name]
        simulator = Simulator(write(case.network(), small(), tmp_path))
        x = case.x()
        whole = simulator.run(x, probe=True)
        for k in range(len(x)):
            alone = simulator.run(x[k : k + 1], probe=True)
            for kind, node, a in alone.observables():
                held = whole.z if kind == "z" else whole.states[kind]
                assert np.array_equal(a[0], held[node][k])


def test_moving_neurons_changes_the_file_and_not_a_spike(tmp_path: Path) -> None:
    for name in ("gated-conv", "loop-far", "pool-behind-flat", "per-channel"):
        case = CASES[name]
        network, x, rng = case.network(), case.x(), np.random.default_rng(3)
        order = {}
        for p in plan(network, LOIHI2).cored:
            ids = rng.permutation(p.neurons)
            order[p.name] = [
                np.sort(part) if i % 2 else part for i, part in enumerate(np.array_split(ids, 3)) if len(part)
            ]
        first, moved = write(network, LOIHI2, tmp_path / "a"), write(network, LOIHI2, tmp_path / "b", order=order)
        assert first.read_bytes() != moved.read_bytes()
        equal(Simulator(moved).run(x, probe=True), Simulator(first).run(x, probe=True))
    with pytest.raises(Unsupported, match="rule order"):
        write(network, LOIHI2, tmp_path, order={**order, "n1": [np.array([0, 0, 1])]})
    with pytest.raises(Unsupported, match="every population"):
        write(network, LOIHI2, tmp_path, order={})


def test_a_program_holds_whole_numbers_and_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["gated-conv"]
    network, x = case.network(), case.x()
    expected = Reference().compile(network).run(x, probe=True)
    kinds: set[str] = set()
    for encoding in ("list", "kernel"):
        file = write(network, LOIHI2, tmp_path / encoding, encoding=encoding)
        with h5py.File(file) as f:
            f.visititems(lambda _, item: kinds.add(item.dtype.kind) if hasattr(item, "dtype") else None)
            assert "node" not in f and f.attrs["encoding"] == encoding
        for name in ("check", "read"):
            monkeypatch.setattr(graphs, name, None)
        equal(Simulator(file).run(x, probe=True), expected)
        monkeypatch.undo()
    assert kinds <= {"i", "u"}


def test_the_simulator_refuses_other_input(tmp_path: Path) -> None:
    simulator = Simulator(write(CASES["dense"].network(), LOIHI2, tmp_path))
    for x, says in (
        (np.zeros((1, 2, 4)), "shape"),
        (np.full((1, 2, 3), 2.0), "0 to 1"),
        (np.full((1, 2, 3), np.nan), "whole"),
    ):
        with pytest.raises(TargetError, match=says):
            simulator.run(x)


# --- cores and places


def test_boxes_cover_a_map_once() -> None:
    for shape, box in (((5, 4, 3), (2, 3, 2)), ((7,), (3,)), ((2, 5), (2, 2))):
        ids = np.concatenate(list(boxes(shape, box)))
        assert np.array_equal(np.sort(ids), np.arange(np.prod(shape)))
        assert max(len(b) for b in boxes(shape, box)) == np.prod(box)


def test_talking_cores_stand_near() -> None:
    """Messages times hops along the curve, against cores placed at random."""
    layers = [n for i in range(6) for n in (conv(words(i, 4, 4, 3, 3), padding=1), neuron((4, 8, 8), 90))]
    made = partition(
        plan(graphs.check(chain((4, 8, 8), *layers), alphabet=BINARY), small(neurons=16, cores=64)), "list"
    )
    n, places = len(made.cores), place(made)
    assert n == 96 and len(set(places)) == n and max(p.chip for p in places) == 1
    rng = np.random.default_rng(0)
    shuffled = [travel(tuple(places[i] for i in rng.permutation(n)), made.spikes) for _ in range(5)]
    assert travel(places, made.spikes) < 0.5 * min(shuffled)


@pytest.mark.slow
def test_a_network_too_large_for_lists_compiles_in_a_minute(tmp_path: Path) -> None:
    """BackEISNN's CIFAR-10 network, 128C3-256C3-512C3-1024."""
    import time

    def stage(inputs: int, outputs: int, size: int, bits: int) -> list[Any]:
        own = IntGatedLIF(
            neuron((outputs, size, size), 500, dv=3277),
            conv(words(1, outputs, outputs, 3, 3), padding=1, message_bits=2),
            conv(words(2, outputs, outputs, 3, 3, top=8), padding=1, message_bits=8),
            table=sigmoid_table(),
            feedback_shift=6,
            balance_shift=10,
            balance_bits=8,
            accumulator_bits=32,
        )
        return [conv(words(3, outputs, inputs, 3, 3), padding=1, message_bits=bits), own, pool()]

    nodes = [*stage(3, 128, 32, 8), *stage(128, 256, 16, 4), *stage(256, 512, 8, 4)]
    nodes += [nir.Flatten({"input": np.array([512, 4, 4])}, 0, -1), dense(words(4, 1024, 8192), message_bits=4)]
    nodes += [neuron((1024,), 500), dense(words(5, 10, 1024)), neuron((10,), 500)]
    network = graphs.check(chain((3, 32, 32), *nodes), alphabet=interval(0, 255, True))
    began = time.process_time()
    made = partitioned(network, "loihi2")
    write(network, "loihi2", tmp_path, made=made)
    assert time.process_time() - began < 60
    assert made.encoding == "kernel" and len(made.cores) < 2000
    with pytest.raises(TargetError, match="more than this simulator unrolls"):
        Simulator(tmp_path / FILE)
