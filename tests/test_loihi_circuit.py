"""Integer circuits on the loihi target: their inhibitory cells, their program, its limits, against plain whole numbers.

The oracle writes the circuit out in Python's own integers, with `//`; connections and neurons are `int_oracle`'s, which
imports nothing of the toolchain either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import int_oracle
import nir
import numpy as np
import pytest
import test_int_executor
import test_loihi_resources
import torch
from int_networks import chain, connected, conv, dense, neuron
from test_loihi import FLAT_POOL, Case, equal, gated, late, pool, small

from eiexport import graph as graphs
from eiexport.alphabet import interval
from eiexport.circuits import IntCircuit, IntCircuitStep
from targets.base import Unsupported
from targets.loihi import Loihi, executor
from targets.loihi.executor import IntegerOps
from targets.loihi.file import LoihiFile
from targets.loihi.limits import LOIHI2
from targets.loihi.partition import partition
from targets.loihi.plan import plan
from targets.loihi.program import write
from targets.loihi.simulator import Simulator
from targets.reference import Reference

LIMIT = 131071
FORMS = ("none", "exact", "frozen", "shift", "table")
COUNTS = interval(0, 3, True)
FOUR = {"excite_message_bits": 4, "inhibit_message_bits": 4}
Index = tuple[int, ...]
Signal = dict[Index, int]


# --- the oracle


class Oracle(NamedTuple):
    """A circuit in plain integers; `seen` counts what its values were."""

    node: Any
    excite: Any
    inhibit: Any
    spread: Any
    axis: int  # of an index, that counts the cells
    seen: Counter[str]

    def apply(self, x: Signal) -> Signal:
        node, e = self.node, self.excite.apply(x)
        s = {i: max(n, 0) for i, n in self.inhibit.apply(x).items()}
        taken = self.spread.apply(s)
        difference = {i: e[i] - taken[i] for i in e}
        if node.form == "none":
            return difference
        gains = {i: self.number(node.gain_e, i) for i in e}
        wide = {i: gains[i] * n for i, n in difference.items()}
        shift = int(node.shift)
        if node.form == "frozen":
            divided = {i: n << shift if shift >= 0 else n >> -shift for i, n in wide.items()}
        else:
            r = {i: n * self.number(node.gain_i, i) >> int(node.gain_shift) for i, n in s.items()}
            d = {i: n or int(node.epsilon) for i, n in self.spread.apply(r).items()}
            self.seen.update("zero" for i, n in self.spread.apply(r).items() if n == 0)
            self.seen.update("wide message" for n in (*s.values(), *r.values()) if n >= 1 << 16)
            self.seen.update("wide sum" for n in taken.values() if n >= 1 << 21)
            self.seen.update("wide numerator" for n in wide.values() if abs(n << shift) >= 1 << 40)
            divided = {i: self.quotient(wide[i], d[i], shift) for i in wide}
        self.seen.update("top" for n in divided.values() if n > LIMIT)
        self.seen.update("bottom" for n in divided.values() if n < -LIMIT)
        self.seen.update("negative" for n in divided.values() if n < 0)
        biased = {i: n + self.number(node.bias, i) for i, n in divided.items()}
        return {i: min(max(n, -LIMIT), LIMIT) for i, n in biased.items()}

    def quotient(self, n: int, d: int, shift: int) -> int:
        if self.node.form == "exact":
            self.seen.update(["floor"] if n < 0 and (n << shift) % d else [])
            return (n << shift) // d
        p = 1
        if self.node.form == "shift":
            while 2 * d * d >= 4 * p * p:  # p / sqrt 2 <= d < sqrt 2 p
                p *= 2
            return (n << shift) // p
        while 2 * p <= d:
            p *= 2
        parts = 1 << int(self.node.table_bits)
        part = (d - p) * parts // p
        above, below = 4096 * 2 * parts, 2 * parts + 2 * part + 1  # 4096 / (1 + (part + 1/2) / parts)
        share = (2 * above + below) // (2 * below)
        return ((n * share << shift) >> 12) // p

    def number(self, values: Any, i: Index) -> int:
        if values is None:
            return 0
        found = np.ravel(values).tolist()
        return int(found[i[self.axis]] if len(found) > 1 else found[0])


def oracle(graph: nir.NIRGraph, x: np.ndarray) -> tuple[list[Any], Counter[str]]:
    """(`int_oracle`'s history, what the circuits' values were)."""
    seen: Counter[str] = Counter()

    def make(node: IntCircuit, shape: Index) -> Oracle:
        made = {k: int_oracle.MAKE[type(getattr(node, k)).__name__] for k in ("excite", "inhibit", "spread")}
        excite, inhibit = (made[k](getattr(node, k), shape) for k in ("excite", "inhibit"))
        cells = tuple(max(axis) + 1 for axis in zip(*inhibit.pairs, strict=True))
        axis = -1 if type(node.excite).__name__ == "IntDense" else 0
        return Oracle(node, excite, inhibit, made["spread"](node.spread, cells), axis, seen)

    before = dict(int_oracle.MAKE)
    int_oracle.MAKE["IntCircuit"] = make  # type: ignore[assignment]
    try:
        return int_oracle.run(graph, x), seen
    finally:
        int_oracle.MAKE.clear()
        int_oracle.MAKE.update(before)


def agrees(trace: Any, history: list[Any]) -> None:
    """Every recorded z, v and u against the oracle."""
    for kind, name, a in trace.observables():
        wanted = np.zeros_like(a, np.int64)
        for k, steps in enumerate(history):
            for t, values in enumerate(steps):
                held = values[kind][name]
                assert len(held) == a[0, 0].size, (kind, name)
                for i, n in held.items():
                    wanted[(k, t, *i)] = n
        assert np.array_equal(a, wanted), (kind, name, np.argwhere(a != wanted)[:3])


# --- networks


def draw(seed: int, top: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, top, *shape]).integers(0, top + 1, shape)


def circuit(
    form: str, cells: int, inputs: int, *kernel: int, inhibitory: int = 2, seed: int = 1, **fields: Any
) -> IntCircuit:
    """A circuit over `inputs` lines or channels. Fields of its parts as excite_..., spread_...; geometry of both."""
    rng, make = np.random.default_rng([seed, cells, inputs]), conv if kernel else dense
    own: dict[str, dict[str, Any]] = {k: {"sign_mode": "excitatory", "message_bits": 2} for k in ("excite", "inhibit")}
    own["spread"] = {"sign_mode": "excitatory", "message_bits": 20}
    words = {"excite": (120, cells, inputs, *kernel), "inhibit": (60, inhibitory, inputs, *kernel)}
    words["spread"] = (2, cells, inhibitory, *(1,) * len(kernel))
    tops = {k: fields.pop(f"{k}_top", top) for k, (top, *_) in words.items()}
    geometry = {k: fields.pop(k) for k in ("stride", "padding", "dilation") if k in fields}
    for part in ("excite", "inhibit"):
        own[part] |= geometry
    for name in [n for n in fields if n.partition("_")[0] in own]:
        part, _, field = name.partition("_")
        own[part][field] = fields.pop(name)
    parts = {k: make(rng.integers(0, tops[k] + 1, words[k][1:]), **own[k]) for k in own}
    numbers: dict[str, Any] = {}
    if form != "none":
        numbers["gain_e"], numbers["bias"] = rng.integers(1, 9, cells), rng.integers(-9, 10, cells)
        numbers["gain_i"] = rng.integers(1, 9, inhibitory)
    return IntCircuit(
        **parts, form=form, **{**numbers, "gain_shift": 2, "shift": 5, "epsilon": 3, "table_bits": 3, **fields}
    )


def soft(shape: Any, vth: Any = 40, **fields: Any) -> Any:
    """DeepEISNN's neuron: half of it stays, it fires at its threshold, which is taken off."""
    return neuron(shape, vth, **{"dv": 2048, "compare": "ge", "reset": "subtract", **fields})


def case(*nodes: Any, shape: tuple[int, ...] = (3,), alphabet: Any = COUNTS, steps: int = 7, samples: int = 3) -> Case:
    return Case(chain(shape, *nodes), alphabet, steps, samples)


def linked(nodes: dict[str, Any], path: str, steps: int = 9) -> Case:
    edges = [e for way in path.split(";") for e in pairwise(way.split())]
    return Case(connected(nodes, edges, (3,)), COUNTS, steps)


def alone() -> dict[str, Case]:
    """One circuit of each form, over lines and over maps."""
    fields: dict[str, dict[str, Any]] = {f: {} for f in FORMS} | {"frozen": {"shift": -2}}
    cases = {f"dense-{f}": case(circuit(f, 5, 3, **fields[f]), soft(5)) for f in FORMS}
    geometry: dict[str, Any] = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    for form in FORMS:
        node = circuit(form, 4, 2, 2, 3, **geometry, **fields[form])
        cases[f"conv-{form}"] = case(node, soft((4, 3, 4)), shape=(2, 5, 4), steps=4, samples=2)
    return cases


def harder() -> dict[str, Case]:
    line = circuit("exact", 3, 2, 3, stride=2, padding=1)
    exponents = circuit("table", 5, 3, excite_weight_exp=[0, 1, 2, 0, 3], inhibit_weight_exp=-2, spread_weight_exp=-1)
    none = np.zeros(5, int)
    dead = circuit("exact", 5, 3, gain_i=[0, 1], gain_shift=3, epsilon=7, spread_top=1)
    wide: dict[str, Any] = {"inhibit_weight_exp": 6, "inhibit_top": 255, "spread_top": 25, "spread_message_bits": 20}
    strong = circuit("exact", 5, 3, excite_weight_exp=7, **wide, shift=10, gain_e=[90000, 1, 70000, 5, 30000])
    over = circuit("frozen", 5, 3, shift=9, gain_e=[9, 0, 8, 1, 7], excite_top=9, bias=[131071, -9, 0, 7, -1 << 24])
    last = circuit("none", 3, 5, spread_message_bits=9, excite_message_bits=0, inhibit_message_bits=0)
    kinds = [
        neuron(5, 60, du=1000, dv=300),
        neuron(5, 60, lower=-50, compare="ge"),
        soft(5, [1, 40, 7, 300, 90], du=-1),
    ]
    kinds += [neuron(5, 400, reset="none", dv=3000, bias_mant=-37, bias_exp=-1), neuron(5, 30, dv=4096)]
    deep = [n for i in range(3) for n in (circuit("exact", 3, 3, seed=i, excite_top=200), soft(3, 20 + i))]
    one = circuit("exact", 5, 3, gain_i=4, gain_e=3, bias=none)
    return {
        "line": case(line, soft((3, 4)), shape=(2, 7)),
        "one-number": case(one, soft(5)),
        "exponents": case(exponents, soft(5, 90)),
        "zeros": case(dead, soft(5)),
        "silence": Case(chain((3,), circuit("exact", 5, 3, bias=[50, 40, 39, -9, 0]), soft(5)), interval(0, 3, True)),
        "wide": case(strong, soft(5, 131071, dv=0)),
        "clipped": case(over, soft(5, 9000)),
        "clipped-low": case(replace(over, excite=dense(none[:, None] + np.zeros((1, 3)), message_bits=2)), soft(5, 0)),
        "once": case(circuit("shift", 5, 3), soft(5, 9), steps=1, samples=1),
        "read": case(circuit("exact", 5, 3), soft(5, 9), last),
        "read-divided": case(circuit("table", 5, 3, bias=none + 3)),
        "biased-chain": case(*deep, steps=12),
        **{f"cell-{i}": case(circuit("exact", 5, 3, seed=i), cell, steps=12) for i, cell in enumerate(kinds)},
    }


def joined() -> dict[str, Case]:
    """Sums of populations, pools and delays before a circuit, and a loop through one."""
    first, second, third = (circuit("exact", 3, 3, seed=k, excite_top=200) for k in range(3))
    nodes = {"c": first, "a": soft(3, 9), "d": second, "b": soft(3, 9), "e": third, "f": soft(3, 9)}
    nodes |= {"last": circuit("none", 2, 3)}  # gets up to 3
    maps = circuit("table", 4, 2, 3, 3, padding=1), soft((4, 4, 4), 60), circuit("exact", 2, 4, 3, 3, padding=1)
    bits = FOUR
    tail = [soft((2, 4, 4), 90), pool(), FLAT_POOL, circuit("none", 3, 8, **bits)]
    loop = {"c": circuit("exact", 3, 3, **bits), "a": soft(3, 30), "back": late(3, [2, 4, 3])}
    waits = {"d": late(3, [1, 0, 3]), "c": circuit("exact", 4, 3, **bits), "a": soft(4, 30)}
    overlapping = [pool(3, 2, 1), circuit("exact", 3, 2, 2, 2, seed=4, excite_message_bits=6, inhibit_message_bits=6)]
    return {
        "residual": linked(nodes, "in c a d b e f last out;a e;a last;b last", 12),
        "maps": case(*maps, *tail, shape=(2, 4, 4), steps=5, samples=2),
        "pooled": case(*overlapping, soft((3, 1, 1), 40), shape=(2, 4, 4), steps=5),
        "loop": linked(loop, "in c a out;a back c"),
        "waits": linked(waits, "in d c a out;in c"),
    }


CASES = alone() | harder() | joined()
SILENT = ("silence", "clipped-low", "wide")  # hold what does not come of spikes


def samples(name: str) -> np.ndarray:
    x = CASES[name].x()
    return x * 0 if name == "silence" else x


@pytest.mark.parametrize("name", CASES)
def test_every_engine_agrees_with_plain_integers(name: str, tmp_path: Path) -> None:
    network, x = CASES[name].network(), samples(name)
    expected = Reference().compile(network).run(x, probe=True)
    agrees(expected, oracle(CASES[name].graph, x)[0])
    silent = name in SILENT
    equal(Loihi().compile(network).run(x, probe=True), expected, silent)
    for encoding in ("list", "kernel"):
        for chip in (LOIHI2, small()):
            equal(Simulator(write(network, chip, tmp_path, encoding=encoding)).run(x, probe=True), expected, silent)
    equal(LoihiFile().compile(network).run(x, probe=True), expected, silent)


def test_the_cases_hold_hard_values() -> None:
    """Zero denominators, currents beyond the limit, floors below zero, wide messages, thresholds met exactly."""
    seen: set[str] = set()
    for name, made in CASES.items():
        history, found = oracle(made.graph, samples(name))
        seen |= set(found)
        for node, lif in made.graph.nodes.items():
            if type(lif).__name__ == "IntCubaLIF" and (lif.compare, lif.reset) == ("ge", "subtract"):
                steps = [values for sample in history for values in sample]
                met = any(s["z"][node][i] == 1 and s["v"][node][i] == 0 for s in steps for i in s["z"][node])
                seen |= {"threshold"} if met else set()
    hard = {"zero", "top", "bottom", "negative", "floor", "wide message", "wide sum", "wide numerator", "threshold"}
    assert seen == hard


def test_silence_is_the_bias_alone() -> None:
    """All denominators are zero: what is left is the bias, and 40 and 50 are at and above the threshold."""
    network, x = CASES["silence"].network(), samples("silence")
    found = Loihi().compile(network).run(x[:1, :1], probe=True)
    assert found.z["n1"].shape == (1, 1, 5) and found.z["n1"].ravel().tolist() == [1, 1, 0, 0, 0]
    assert found.states["v"]["n1"].ravel().tolist() == [10 << 6, 0, 39 << 6, -9 << 6, 0]


def test_a_sample_alone_is_the_sample_in_a_batch(tmp_path: Path) -> None:
    for name in ("residual", "loop", "zeros"):
        network, x = CASES[name].network(), samples(name)
        for program in (Simulator(write(network, small(), tmp_path)), Loihi().compile(network)):
            whole = program.run(x, probe=True)
            for k in range(len(x)):
                alone = program.run(x[k : k + 1], probe=True)
                for kind, node, a in alone.observables():
                    assert np.array_equal(a[0], (whole.z if kind == "z" else whole.states[kind])[node][k])


def test_moving_neurons_changes_the_file_and_not_a_spike(tmp_path: Path) -> None:
    network, x, rng = CASES["maps"].network(), samples("maps"), np.random.default_rng(3)
    order = {p.name: np.array_split(rng.permutation(p.neurons), 3) for p in plan(network, LOIHI2).cored}
    order = {n: [part for part in parts if len(part)] for n, parts in order.items()}
    first, moved = write(network, LOIHI2, tmp_path / "a"), write(network, LOIHI2, tmp_path / "b", order=order)
    assert first.read_bytes() != moved.read_bytes()
    equal(Simulator(moved).run(x, probe=True), Simulator(first).run(x, probe=True))


# --- the plan


def test_the_inhibitory_cells_are_a_hop_and_a_population() -> None:
    made = plan(CASES["read"].network(), LOIHI2)
    kinds = [(p.name, p.kind, p.shape, p.latency) for p in made.populations]
    assert kinds == [
        ("in", "input", (3,), 0),
        ("n0/inhibit", "inhibitory", (2,), 1),
        ("n1", "circuit", (5,), 2),
        ("n2/inhibit", "inhibitory", (2,), 3),
        ("n2", "readout", (3,), 4),
    ]
    ways = [(p.source, made.groups[p.group].sink, made.groups[p.group].role, p.lag) for p in made.paths]
    assert ways == [
        ("in", "n0/inhibit", "input", 1),
        ("in", "n1", "input", 2),
        ("n0/inhibit", "n1", "spread", 1),
        ("n1", "n2/inhibit", "input", 1),
        ("n1", "n2", "input", 2),
        ("n2/inhibit", "n2", "spread", 1),
    ]
    # W_EI of what divides is used twice, and one bit more says for which sum
    assert [(g.role, g.ports) for g in made.groups if g.role == "spread"] == [("spread", 2), ("spread", 1)]
    assert [made.population(n).message_bits for n in ("n0/inhibit", "n2/inhibit")] == [21, 9]
    assert made.population("n1").custom == "circuit exact, compare ge, reset subtract"
    program = Loihi().compile(CASES["read"].network())
    assert program.latency == {"n1": 0, "n2": 0} and program.chip_latency["n2"] == 4


def test_a_population_lives_on_many_small_cores() -> None:
    made = partition(plan(CASES["maps"].network(), small()), "list")
    cells = [c for c in made.cores if c.population == "n0/inhibit"]
    assert len(cells) == 16 and max(len(c.neurons) for c in made.cores) <= 3  # both channels of each place


@pytest.mark.parametrize("name", ["conv-exact", "maps", "residual", "loop", "line", "exponents"])
def test_both_encodings_hear_the_same_and_bounds_hold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(test_loihi_resources.CASES, name, CASES[name])
    test_loihi_resources.test_both_encodings_hear_the_same_and_bounds_hold(name)


# --- the fast executor


@pytest.mark.parametrize("name", CASES)
def test_slabs_chunks_and_threads_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "CACHE", 30)
    monkeypatch.setattr(executor, "SMALL", 0)
    x = samples(name)
    test_int_executor.hold(CASES[name].network(), np.concatenate([x, x[::-1]]))
    test_int_executor.hold(graphs.check(CASES[name].graph), x)  # nothing declared


def test_an_input_that_does_not_change_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = CASES["read"].network()
    x = torch.from_numpy(samples("read")[:, 0]).expand(6, -1, -1)
    seen: list[int] = []
    real = executor.fold

    def fold(step: Any, ops: Any, a: torch.Tensor) -> torch.Tensor:
        seen.extend([len(a)] if isinstance(step, IntCircuitStep) else [])
        return real(step, ops, a)

    monkeypatch.setattr(executor, "fold", fold)
    test_int_executor.hold(network, x)
    assert seen == [1, 6] * 3  # the first circuit, and the second, whose input are spikes; in three runs


OUTSIDE: dict[str, Callable[[], Case]] = {
    "pooled": lambda: case(circuit("exact", 2, 1, 3, 3, padding=1), pool(), soft((2, 2, 2)), shape=(1, 4, 4)),
    "gated": lambda: case(circuit("table", 4, 3), gated((4,))),
    "late": lambda: case(circuit("exact", 4, 3), late(4, [0, 2, 1, 0]), soft(4)),
    "wide": lambda: case(circuit("none", 4, 3), dense(2 * draw(1, 9, 2, 4), message_bits=20), neuron(2, 9000)),
    "fed": lambda: case(
        dense(draw(1, 9, 3, 3), message_bits=2, weight_exp=-2),
        circuit("shift", 4, 3, **dict.fromkeys(FOUR, 8)),
        soft(4),
    ),
    "summed": lambda: linked(
        {"c": circuit("exact", 4, 3), "w": dense(2 * draw(1, 9, 4, 3), message_bits=2), "a": soft(4)},
        "in c a out;in w a;c out",
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_the_chip_refuses_runs_in_the_executor(name: str) -> None:
    made = OUTSIDE[name]()
    test_int_executor.hold(made.network(), made.x())
    with pytest.raises(Unsupported):
        Loihi().check(made.network())


def test_wide_messages_are_summed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 where 24 bits hold every sum, and only there."""
    kinds: list[tuple[torch.dtype, float]] = []
    real = IntegerOps.narrow

    def narrow(self: IntegerOps, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, w = real(self, x, weight)
        kinds.append((a.dtype, float(weight.abs().flatten(1).sum(1).max() * x.abs().max())))
        return a, w

    monkeypatch.setattr(IntegerOps, "narrow", narrow)
    for form in ("exact", "table"):
        for kernel in ((), (3, 3)):
            wide = circuit(form, 6, 3, *kernel, inhibit_weight_exp=6, inhibit_top=255, spread_message_bits=22)
            wide.spread.weight[:] = draw(9, 200, *wide.spread.weight.shape)
            wide = replace(wide, gain_i=[1, 3])
            shape = (3, 4, 4) if kernel else (3,)
            graph = chain(shape, wide, soft((6, 2, 2) if kernel else 6, 30, dv=0))
            kinds.clear()
            # undeclared, since what sums may reach would be refused beforehand
            test_int_executor.hold(graphs.check(graph), draw(2, 3, 2, 7, *shape))
            assert {k for k, _ in kinds} == {torch.float32, torch.float64}
            assert all((most < 1 << 24) == (kind == torch.float32) for kind, most in kinds)
