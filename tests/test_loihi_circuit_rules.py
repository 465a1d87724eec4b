"""Programs of circuits that are wrong, rules of the chip that they break, and what they cost, counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import test_loihi_resources
from int_networks import chain, dense
from test_loihi import differs, equal, gated, late, pool, small
from test_loihi_circuit import CASES, COUNTS, FOUR, case, circuit, draw, linked, oracle, samples, soft
from test_loihi_programs import attribute, edit, replaced, reset, without

from eiexport import graph as graphs
from eiexport.circuits import IntCircuit
from targets.base import TargetError, Unsupported
from targets.lavadl import LavaDL
from targets.loihi import Loihi, limits, simulator
from targets.loihi.activity import Activity, count_activity
from targets.loihi.estimates import estimates
from targets.loihi.limits import LOIHI2
from targets.loihi.program import write
from targets.loihi.resources import resources
from targets.loihi.simulator import Simulator
from targets.reference import Reference

# --- programs


def form(name: str, value: str) -> Callable[[Any], None]:
    def change(f: Any) -> None:
        for i in (1, 2):
            f[f"populations/{i:04}"].attrs[name] = value

    return change


def on_core(name: str, by: int) -> Callable[[Any], None]:
    def change(f: Any) -> None:
        for group in f["cores"].values():
            if name in group:
                reset(group, name, group[name][()] + by)

    return change


def on_routes(f: Any) -> None:
    """What waits at the neurons comes a step early."""
    reset(f["input"], "delay", f["input/delay"][()] * 0)


MUTANTS: dict[str, Callable[[Any], None]] = {
    "gain_i": on_core("gain_i", 1),
    "gain_e": on_core("gain_e", 1),
    "current": on_core("current", 1),
    "gain_shift": attribute("populations/0001", "gain_shift", 1),
    "shift": attribute("populations/0002", "shift", 1),
    "epsilon": attribute("populations/0002", "epsilon", 9),
    "another form": form("form", "exact"),
    "table": lambda f: reset(f["populations/0002"], "table", f["populations/0002/table"][()][::-1]),
    "word": on_core("word", 1),
    "early": on_routes,
    "latency of the cells": attribute("populations/0001", "latency", 1),
    "latency": attribute("populations/0002", "latency", 1),
    "role": lambda f: f["groups/0002"].attrs.__setitem__("role", "input"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_program_is_caught(mutant: str, tmp_path: Path) -> None:
    made = case(circuit("table", 5, 3, spread_top=1), soft(5, 30), steps=12)
    network, x = made.network(), made.x()
    expected = Reference().compile(network).run(x, probe=True)
    file = write(network, small(), tmp_path)
    equal(Simulator(file).run(x, probe=True), expected)
    assert differs(Simulator(edit(file, MUTANTS[mutant])).run(x, probe=True), expected)


def told(population: int, **attrs: Any) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        edit(file, lambda f: f[f"populations/{population:04}"].attrs.update(attrs))

    return change


def untold(population: int, name: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        with h5py.File(file, "r+") as f:
            del f[f"populations/{population:04}"].attrs[name]

    return change


def ports(count: int) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        edit(file, lambda f: f["groups/0002"].attrs.update(ports=count))

    return change


CORRUPT: dict[str, tuple[Callable[[Path], None], str]] = {
    "form": (told(2, form="cubed"), "form 'cubed'"),
    "no form": (untold(2, "form"), "corrupt"),
    "kind": (told(1, kind="inhibiting"), "kind 'inhibiting'"),
    "epsilon": (told(2, epsilon=0), "epsilon 0"),
    "shift": (told(2, shift=-1), "shift -1"),
    "gain_shift": (told(1, gain_shift=24), "gain_shift 24"),
    "table": (replaced("populations/0002/table", lambda a: a[1:]), "table of 7 entries"),
    "entries": (replaced("populations/0002/table", lambda a: a * 0 + 4097), "4097 to 4097"),
    "no table": (without("populations/0002/table"), "corrupt"),
    "no gain_i": (without("cores/000000/gain_i"), "lacks gain_i"),
    "no gain_e": (without("cores/000001/gain_e"), "lacks gain_e"),
    "no threshold": (without("cores/000001/vth"), "lacks vth"),
    "sizes": (replaced("cores/000001/gain_e", lambda a: np.arange(9)), "has shape"),
    "ports": (ports(3), "3 ports"),
    "one port": (ports(1), "ports of core 0: an index is out of range"),
    "floats": (replaced("cores/000000/gain_i", lambda a: a + 0.5), "not whole numbers"),
}


@pytest.mark.parametrize("kind", CORRUPT)
def test_a_corrupt_program_is_one_line(kind: str, tmp_path: Path) -> None:
    file = write(case(circuit("table", 5, 3), soft(5)).network(), small(), tmp_path)
    change, says = CORRUPT[kind]
    change(file)
    with pytest.raises(TargetError) as e:
        Simulator(file)
    assert says in str(e.value) and str(file) in str(e.value) and "\n" not in str(e.value)


# --- rules


def behind(nodes: dict[str, Any], path: str) -> Callable[[], graphs.Network]:
    return lambda: linked({"c": circuit("exact", 4, 3), "a": soft(4), **nodes}, path).network()


def single(**fields: Any) -> Callable[[], graphs.Network]:
    return lambda: case(circuit("exact", 4, 3, **fields), soft(4)).network()


def mapped() -> graphs.Network:
    node = circuit("exact", 2, 1, 3, 3, padding=1)
    return case(node, pool(), soft((2, 2, 2)), shape=(1, 4, 4)).network()


RULES: dict[str, tuple[str, Callable[[], graphs.Network], Any, str]] = {
    "loihi1": ("circuit_nodes", single(), "loihi1", "a circuit"),
    "loihi1-read": ("circuit_nodes", lambda: case(circuit("none", 4, 3)).network(), "loihi1", "a circuit"),
    "pool": ("circuits_end_in_neurons", mapped, "loihi2", "leads to 'n1' (SumPool2d)"),
    "delay": ("circuits_end_in_neurons", behind({"d": late(4, 1)}, "in c d a out"), "loihi2", "'d' (Delay)"),
    "gated": ("circuits_end_in_neurons", behind({"a": gated((4,))}, "in c a out"), "loihi2", "'a' (IntGatedLIF)"),
    "two": ("circuits_end_in_neurons", behind({"b": soft(4)}, "in c a out;c b out"), "loihi2", "'a', 'b'"),
    "read-too": ("circuits_end_in_neurons", behind({}, "in c a out;c out"), "loihi2", "'a', 'out'"),
    "summed": (
        "circuits_end_in_neurons",
        behind({"w": dense(draw(1, 9, 4, 3), message_bits=2, sign_mode="excitatory")}, "in c a out;in w a"),
        "loihi2",
        "which also gets 'w'",
    ),
    "two-circuits": (
        "circuits_end_in_neurons",
        behind({"d": circuit("frozen", 4, 3)}, "in c a out;in d a"),
        "loihi2",
        "which also gets 'd'",
    ),
    "connection-before": (
        "connections_end_in_neurons",
        behind(
            {"w": dense(np.ones((3, 3)), sign_mode="excitatory", message_bits=2), "c": circuit("exact", 4, 3, **FOUR)},
            "in w c a out",
        ),
        "loihi2",
        "'w' leads to 'c'",
    ),
    "messages": ("message_bits_fit", single(), small(message_bits=20), "21 bits"),
    "weights": ("weight_fits", single(excite_sign_mode="mixed", excite_bits=8), "loihi2", "weight"),
    "exponent": ("exponent_fits", single(spread_weight_exp=-9), "loihi2", "weight_exp = -9"),
    "loop": (
        "one_hop_a_connection",
        lambda: linked(
            {"c": circuit("exact", 3, 3, excite_message_bits=3, inhibit_message_bits=3), "a": soft(3), "d": late(3, 1)},
            "in c a out;a d c",
        ).network(),
        "loihi2",
        "2 engine steps",
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_is_named_in_one_line(name: str) -> None:
    rule, network, chip, value = RULES[name]
    if name == "weights":  # dense words are cut to their grid, those of convolutions are taken as they are
        node = circuit("exact", 4, 3, 2, 2, excite_sign_mode="mixed")
        made = case(node, soft((4, 2, 2)), shape=(3, 3, 3)).network()
    else:
        made = network()
    with pytest.raises(Unsupported) as e:
        Loihi(chip=chip).check(made)
    words = str(e.value)
    assert f"rule {rule} on " in words and value in words and "\n" not in words
    assert callable(getattr(limits, rule))


def test_the_same_networks_fit_within_the_limits() -> None:
    Loihi(chip=small(message_bits=21)).check(single()())
    Loihi(chip=small(message_bits=20)).check(case(circuit("frozen", 4, 3), soft(4)).network())
    Loihi().check(behind({"d": late(3, 2)}, "in d c a out")())
    with pytest.raises(Unsupported, match=r"'n0' \(IntCircuit\): netx has CUBA neurons, and no circuits"):
        LavaDL().check(single()())


# --- what it costs


def tiny(form: str = "exact", **fields: Any) -> graphs.Network:
    """2 inputs, 2 inhibitory cells, 3 neurons; of 4, 6 and 6 words 3, 4 and 5 are not zero."""
    weights = {"inhibit": [[2, 0], [1, 4]], "excite": [[9, 0], [0, 5], [3, 7]], "spread": [[1, 0], [1, 2], [3, 1]]}
    bits = {"inhibit": 2, "excite": 2, "spread": 7}
    parts = {k: dense(w, sign_mode="excitatory", message_bits=bits[k]) for k, w in weights.items()}
    numbers: dict[str, Any] = {"gain_e": [1, 2, 3], "gain_i": [1, 2], "gain_shift": 3, "bias": [4, 0, 0]}
    node = IntCircuit(**parts, form=form, **numbers, table_bits=4, **fields)
    return graphs.check(chain((2,), node, soft(3, 9)), alphabet=COUNTS)


def test_memory_by_hand() -> None:
    found = resources(tiny(), "loihi2")
    per = found["per_core"]
    assert per["population"] == ["n0/inhibit", "n1"] and per["neurons"] == [2, 3] and found["neurons"] == 5
    assert per["words"] == [3, 4 + 5] and found["synapse_words"] == 12  # W_EI's stand once
    assert per["axons_in"] == [2, 2 + 2] and per["axons_out"] == [2, 0]
    # the cells have a sum; the neurons v, u, a sum that waits a step for the cells, and two of W_EI
    assert per["state_bits"] == [2 * 1 * 24, 3 * (2 + 2 + 2) * 24]
    # lists of 1 to 3 words of 8 + 13 bits, 10 of header, fill up to two words of 64; 6 more where a word waits
    assert per["synapses_bits"] == [2 * 64, 2 * 64 + 3 * 64]
    assert per["program_bits"] == [8192, 8192]
    assert found["custom_neurons"] == {
        "n0/inhibit": "rectified sums",
        "n1": "circuit exact, compare ge, reset subtract",
    }
    assert found["assumed_microcode"] and found["latency"] == {"in": 0, "n0/inhibit": 1, "n1": 2}
    assert found["populations"]["n0/inhibit"]["kind"] == "inhibitory"
    assert found["circuits"] == {
        "n0": {
            "population": "n1",
            "form": "exact",
            "inhibitory_cells": 2,
            "messages_of_a_cell": 2,
            "payload_bits": 8,
            "steps_more": 1,
            "assumed_microcode": True,
        }
    }
    table = resources(tiny("table"), "loihi2")
    assert table["per_core"]["program_bits"] == [8192, 8192 + 16 * 12]
    frozen = resources(tiny("frozen"), "loihi2")
    assert frozen["per_core"]["state_bits"] == [2 * 1 * 24, 3 * (2 + 2 + 1) * 24]
    assert frozen["circuits"]["n0"]["messages_of_a_cell"] == 1 and frozen["circuits"]["n0"]["payload_bits"] == 7
    assert resources(test_loihi_resources.tiny(), "loihi2")["circuits"] == {}


def test_events_and_operations_by_hand() -> None:
    network = tiny()
    # s = (2, 1 + 4 b), and (1, 2) s >> 3 is (0, 0), (0, 1), (0, 0), (0, 2)
    x = np.array([[[1, 0], [1, 1], [0, 0], [1, 2]]], float)
    activity = count_activity(network, x, Reference().compile(network).run(x))
    assert activity.events["n0/inhibit"].tolist() == [3 / 4, (3 + 2) / 4]
    assert activity.events["in"].tolist() == [3 / 4, 2 / 4]
    found = estimates(network, "loihi2", activity)
    done = found["operations"]
    cells, neurons = 0.75 * 2 + 0.5 * 1, 0.75 * 2 + 0.5 * 2
    spread = 0.75 * 3 + 1.25 * 2
    assert done["synaptic_events"] == cells + neurons + spread
    assert done["synaptic_events_dense"] == 4 + 6 + 2 * 6
    assert done["neuron_updates"] == 5 and done["divisions"] == 3 and done["table_reads"] == 0
    assert done["events_sent"] == 1.25 + 2.0
    assert found["synaptic_operations"]["Dense"] == 22.0 * 4 and found["synaptic_operations"]["Effective_ACs"] == 0
    assert found["connection_sparsity"] == 4 / 16 and "division" in found["runtime"]["note"]
    spikes = float(activity.events["n1"].sum())
    assert found["activation_sparsity"] == 1 - spikes / 3 and 0 < spikes < 3
    told = resources(network, small(neurons=3), activity)
    by_role = {(m["from"], m["role"]): (m["kind"], m["payload_bits"], m["waits"]) for m in told["messages"]}
    assert by_role == {("in", "input"): ("graded", 2, 1), ("n0/inhibit", "spread"): ("graded", 8, 0)}
    assert told["links"]["messages_per_step"] == 2.0 and told["links"]["bits_per_step"] == 2.0 * (32 + 8)
    for form, divisions, reads in (("table", 0, 3), ("shift", 0, 0), ("frozen", 0, 0)):
        other = tiny(form)
        counted = count_activity(other, x, Reference().compile(other).run(x))
        done = estimates(other, "loihi2", counted)["operations"]
        assert (done["divisions"], done["table_reads"]) == (divisions, reads)
        assert counted.events["n0/inhibit"].tolist() == ([0.75, 0.75] if form == "frozen" else [0.75, 1.25])
    plain = test_loihi_resources.tiny()
    done = estimates(plain, "loihi2", Activity({n: np.ones(3) for n in ("in", "n1", "n3")}, 1, 1))
    assert "divisions" not in done["operations"]


@pytest.mark.parametrize("name", ["maps", "residual", "waits", "loop", "dense-frozen"])
def test_counted_events_are_the_messages_that_were_sent(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network, x = CASES[name].network(), samples(name)
    activity = count_activity(network, x, Reference().compile(network).run(x))
    sent: dict[str, int] = {}
    real = simulator._Core.sent

    def spy(core: Any, z: np.ndarray) -> tuple[np.ndarray, ...]:
        messages = real(core, z)
        sent[core.population.name] = sent.get(core.population.name, 0) + sum(np.count_nonzero(m) for m in messages)
        return messages

    monkeypatch.setattr(simulator._Core, "sent", spy)
    Simulator(write(network, LOIHI2, tmp_path)).run(x)
    assert any(n.endswith("/inhibit") and k > 0 for n, k in sent.items())
    for population, count in sent.items():
        assert count == pytest.approx(activity.events[population].sum() * x.shape[0] * x.shape[1])


def test_strict_counts_clipped_currents() -> None:
    for name in ("clipped", "clipped-low", "wide"):
        nodes, once = CASES[name].graph.nodes, samples(name).reshape(-1, 1, 3)
        # one step without bias, in which no register overflows, which would be an error
        made = case(replace(nodes["n0"], bias=None), nodes["n1"])
        program = Loihi(strict=True).compile(made.network())
        program.run(once)
        seen = oracle(made.graph, once)[1]
        assert program.saturated == {"n0": seen["top"] + seen["bottom"]} and program.saturated["n0"] > 0
    quiet = Loihi(strict=True).compile(CASES["dense-exact"].network())
    quiet.run(samples("dense-exact"))
    assert not quiet.saturated
