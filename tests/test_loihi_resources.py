"""Resources and estimates of the loihi target, against counts made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import nir
import numpy as np
import pytest
from int_networks import chain, conv, dense, neuron
from test_loihi import BINARY, CASES, GRADED, gated, small, words

from eiexport import graph as graphs
from targets.base import TargetError
from targets.loihi.activity import work
from targets.loihi.cores import ENCODINGS, counted, group_lists
from targets.loihi.limits import CHIPS, LOIHI1, LOIHI2, Limit
from targets.loihi.partition import bound, partition
from targets.loihi.placement import Place, links, messages, travel
from targets.loihi.plan import plan
from targets.loihi.program import partitioned
from targets.loihi.resources import Activity, Rates, count_activity, estimates, resources
from targets.reference import Reference

APART = replace(LOIHI2, cores_per_tile=Limit(1, "test"), mesh_width=Limit(2, "test"))  # a core a tile


def tiny() -> graphs.Network:
    """3 inputs, 2 neurons, 1 neuron; 2 of the 8 words are zero, and one of the 3 neurons has a bias."""
    first, second = dense([[2, 0, 4], [6, 8, 0]], [0, 5]), dense([[10, -12]])
    return graphs.check(chain((3,), first, neuron(2, 9), second, neuron(1, 9)), alphabet=BINARY)


def events(steps: int = 10) -> Activity:
    each = {"in": [1.0, 0.5, 0.0], "n1": [0.25, 0.5], "n3": [0.1]}
    return Activity({k: np.array(v) for k, v in each.items()}, steps, 1)


def test_memory_of_every_core_by_hand() -> None:
    found = resources(tiny(), "loihi2", events())
    per = found["per_core"]
    assert per["population"] == ["n1", "n3"] and per["neurons"] == [2, 1]
    assert per["axons_in"] == [3 + 1, 2] and per["words"] == [4 + 1, 2]  # one more brings the bias
    # a list of 1 or 2 words of 8 + 13 bits, 10 bits of header, fills one memory word of 64 bits
    assert per["synapses_bits"] == [4 * 64, 2 * 64]
    assert per["state_bits"] == [2 * 3 * 24, 1 * 3 * 24]  # v, u, one sum
    assert per["axon_in_table_bits"] == [4 * 32, 2 * 32]
    assert per["axons_out"] == [2, 0] and per["axon_out_table_bits"] == [2 * 32, 0]
    assert per["program_bits"] == [0, 0] and per["bits"] == [592, 264]
    assert found["synapse_words"] == 7 and found["neurons"] == 3
    assert found["cores"] == [2, 2] and found["chips"] == [1, 1] and found["encoding"] == "list"
    assert found["latency"] == {"in": 0, "n1": 1, "n3": 2}
    assert found["reset"]["registers_written"] == 3 * 3 and found["reset"]["settling_steps"] == 2
    assert found["binds"] == {"limit": "synapse_formats", "core": 0, "share": 0.0625, "assumed": True}
    assert not found["custom_neurons"] and not found["assumed_microcode"] and found["balance_gates"] == {}


def test_long_lists_are_padded_in_parts() -> None:
    """100 words of 21 bits: 64 of them with a header in 22 memory words, 36 in 12."""
    network = graphs.check(chain((1,), dense(np.full((100, 1), 2)), neuron(100, 9)), alphabet=BINARY)
    per = resources(network, "loihi2")["per_core"]
    assert per["synapses_bits"] == [(22 + 12) * 64] and per["words"] == [100]


def test_messages_and_links_by_hand() -> None:
    found = resources(tiny(), APART, events())
    assert found["input"] == {"entries": 3, "payload_bits": 0, "messages_per_step": 1.5, "bits_per_step": 48.0}
    assert found["readout"] == {
        "populations": ["n3"],
        "neurons": 1,
        "messages_per_step": pytest.approx(0.1),
        "bits_per_step": pytest.approx(3.2),
    }
    links = found["links"]
    assert (links["messages_per_step"], links["bits_per_step"], links["hops_per_step"]) == (0.75, 24.0, 0.75)
    assert len(links["each"]) == 1 and links["busiest"] == links["each"][0]
    assert links["busiest"]["messages_per_step"] == 0.75 and links["busiest"]["bits_per_step"] == 24.0
    a, b = links["busiest"]["from"], links["busiest"]["to"]
    assert abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1
    kinds = [(m["from"], m["to"], m["kind"], m["payload_bits"]) for m in found["messages"]]
    assert kinds == [("in", "n1", "spike", 0), ("n1", "n3", "spike", 0)]
    assert resources(tiny(), "loihi2")["links"] is None
    one_chip_each = replace(APART, cores=Limit(1, "test"), mesh_width=Limit(1, "test"))
    assert resources(tiny(), one_chip_each, events())["links"]["between_chips_per_step"] == 0.75


def test_graded_input_and_membranes_by_hand() -> None:
    """Two gated neurons on a core each: every membrane goes to both cores at every step."""
    network = graphs.check(chain((2,), dense([[2, 4], [6, 8]], message_bits=8), gated((2,))), alphabet=GRADED)
    found = resources(network, small(neurons=1), Activity({"in": np.ones(2), "n1": np.full(2, 0.5)}, 4, 1))
    weights = network.graph.nodes["n1"]
    assert np.count_nonzero(weights.balance.weight) == np.count_nonzero(weights.feedback.weight) == 4
    assert found["balance_gates"] == {
        "n1": {
            "messages_per_step": 4,
            "bits_per_step": 4 * (32 + 8),
            "assumed_microcode": True,
            "synaptic_operations_per_step": 4,
        }
    }
    assert found["custom_neurons"] == {"n1": "gates"} and found["assumed_microcode"]
    by_role = {m["role"]: (m["kind"], m["payload_bits"], m["within_step"]) for m in found["messages"]}
    assert by_role == {
        "input": ("graded", 8, False),
        "feedback": ("graded", 2, False),
        "balance": ("membrane", 8, True),
    }
    # 4 injected, 4 * .5 spikes of the gates, 4 membranes; a core's own messages are counted too
    assert found["input"]["messages_per_step"] == 4 and found["links"]["messages_per_step"] == 2 + 4
    done = estimates(network, small(neurons=1), Activity({"in": np.ones(2), "n1": np.full(2, 0.5)}, 4, 1))
    assert done["synaptic_operations"] == {"Dense": 12.0 * 4, "Effective_MACs": 8.0 * 4, "Effective_ACs": 2.0 * 4}
    assert found["populations"]["n1"]["process"] == "custom"


def test_operations_by_hand() -> None:
    found = estimates(tiny(), "loihi2", events())
    assert found["operations"] == {
        "synaptic_events": 1 * 2 + 0.5 * 1 + 0.25 + 0.5,
        "synaptic_events_dense": 8.0,
        "constant_events": 1.0,
        "neuron_updates": 3.0,
        "memory_reads": 1 + 0.5 + 0.25 + 0.5 + 1,
        "events_sent": 1.5 + 0.75,
    }
    assert found["synaptic_operations"] == {"Dense": 80.0, "Effective_MACs": 0.0, "Effective_ACs": 32.5}
    assert found["connection_sparsity"] == 0.25 and found["footprint"] == (592 + 264) // 8
    assert found["activation_sparsity"] == pytest.approx(1 - 0.85 / 3)
    json.dumps([found, resources(tiny(), "loihi2", events())], allow_nan=False)


def test_runtime_is_a_maximum_and_says_nothing_without_constants() -> None:
    blank = estimates(tiny(), APART, events())["runtime"]
    assert blank["seconds_per_step"] is None and blank["binds"] is None and "barrier" in blank["note"]
    maxima = {"neuron_updates": 2.0, "synaptic_operations": 3.5, "memory_reads": 2.5, "link_bits": 24.0}
    assert blank["maxima_per_step"] == maxima
    for name, rates, seconds in (
        ("neuron_updates", Rates(1.0, 0.1, 0.1, 1e9, 0.1), 2.0),
        ("synaptic_operations", Rates(0.1, 1.0, 0.1, 1e9, 0.1), 3.5),
        ("memory_reads", Rates(0.1, 0.1, 1.0, 1e9, 0.1), 2.5),
        ("link_bits", Rates(0.1, 0.1, 0.1, 8.0, 0.1), 3.0),
        ("barrier", Rates(0.1, 0.1, 0.1, 1e9, 9.0), 9.0),
    ):
        told = estimates(tiny(), APART, events(), rates)["runtime"]
        assert (told["binds"], told["seconds_per_step"]) == (name, seconds)
    partly = estimates(tiny(), APART, events(), Rates(neuron_update=1.0))["runtime"]
    assert partly["seconds_per_step"] is None


def test_energy_is_loihi1s_alone() -> None:
    fixed = (3.25 + 1) * 23.6 + 0.75 * 1.7  # the bias counts, and both cores share a tile
    told = estimates(tiny(), "loihi1", events())["energy"]
    assert told["dynamic"]["picojoules_per_step"] == pytest.approx([fixed + 3 * 52, fixed + 3 * 81])
    other = estimates(tiny(), "loihi2", events())["energy"]
    assert other["dynamic"] == "not published"
    equivalent = other["loihi1_equivalent_dynamic_energy"]
    assert equivalent["picojoules_per_step"] == pytest.approx(told["dynamic"]["picojoules_per_step"])
    assert equivalent["excludes"] == ["static power", "input and output", "host"]
    near = estimates(tiny(), APART, events())["energy"]["loihi1_equivalent_dynamic_energy"]["picojoules_per_step"]
    assert near[0] - fixed - 3 * 52 == pytest.approx(0.75 * 4.0)  # one hop, north or south


def test_activity_is_counted() -> None:
    network = tiny()
    x = np.random.default_rng(0).integers(0, 2, (5, 4, 3)).astype(float)
    trace = Reference().compile(network).run(x)
    found = count_activity(network, x, trace)
    assert (found.steps, found.samples) == (4, 5)
    assert np.array_equal(found.events["n1"], np.count_nonzero(trace.z["n1"], axis=(0, 1)) / 20)
    assert np.array_equal(found.events["in"], x.mean(axis=(0, 1)))
    del trace.z["n3"]
    with pytest.raises(TargetError, match="'n3'"):
        count_activity(network, x, trace)
    with pytest.raises(TargetError, match="'n1'"):
        estimates(network, "loihi2", Activity({"in": np.ones(3)}, 4, 1))


# --- the two encodings, and bounds


def mapped(seed: int, groups: int = 1) -> graphs.Network:
    first = conv(
        words(seed, 4, 2 // groups, 3, 3), padding=1, stride=1 + seed % 2, groups=groups, dilation=1 + seed % 2
    )
    shape = graphs.check(chain((2, 6, 7), first), alphabet=BINARY).shapes["n0"]
    pooled = nir.SumPool2d(*(np.array([n, n]) for n in (2, 1, 0)))
    second = conv(words(seed + 1, 6, 4, 1, 2), message_bits=3)
    nodes: list[Any] = [first, neuron(shape, 30), pooled, second]
    last = graphs.check(chain((2, 6, 7), *nodes), alphabet=BINARY).shapes["n3"]
    return graphs.check(chain((2, 6, 7), *nodes, gated(last) if seed % 3 else neuron(last, 40)), alphabet=BINARY)


@pytest.mark.parametrize("seed", range(6))
def test_lines_heard_and_words_agree_with_the_lists(seed: int) -> None:
    """Counted along axes, and counted from every word: the same."""
    rng = np.random.default_rng(seed)
    made = plan(mapped(seed, 1 + seed % 2), LOIHI2)
    for group in made.groups:
        whole = np.where(group.kernel.words == 0, 2, group.kernel.words)
        for g in (group, replace(group, kernel=replace(group.kernel, words=whole))):
            size = made.population(group.sink).neurons
            neurons = rng.permutation(size)[: int(rng.integers(1, size + 1))]
            lists = group_lists(g, neurons)
            fan = g.kernel.fan_out(neurons)
            assert np.array_equal(np.flatnonzero(fan), lists.lines)
            assert np.array_equal(fan[lists.lines], np.diff(lists.start))
        assert np.array_equal(g.kernel.heard(neurons), lists.lines)  # where no word is zero


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("once",)])
def test_both_encodings_hear_the_same_and_bounds_hold(name: str) -> None:
    made = plan(CASES[name].network(), small(neurons=5))
    rng = np.random.default_rng(1)
    activity = Activity({p.name: rng.random(p.shape) for p in made.populations}, 1, 1)
    totals = []
    for encoding in ENCODINGS:
        found = partition(made, encoding)
        assert found.sizes is not None
        for core, need in zip(found.cores, found.needs, strict=True):
            most = bound(made, made.population(core.population), encoding, found.sizes[core.population])
            assert need.axons_in <= most.axons_in and need.words <= most.words and need.state <= most.state
        done = work(found, activity, messages(found))
        totals.append((done.acs.sum(), done.macs.sum(), done.constants.sum(), done.updates.sum()))
    assert totals[0] == pytest.approx(totals[1])
    # what is shared is held once a core: never more words than when every neuron has its own
    own = partition(made, "list")
    shared = counted(made, "kernel", own.cores)
    most = made.synapses + sum(g.constant_words(np.arange(made.population(g.sink).neurons)) for g in made.groups)
    assert sum(n.words for n in shared.needs) <= most


def test_cores_are_a_range() -> None:
    network = mapped(1)
    tight = small(neurons=100, core_bits=20_000)
    found = resources(network, tight)
    low, high = found["cores"]
    assert 1 < low < high == len(found["per_core"]["chip"])
    shared = resources(network, tight, made=partitioned(network, tight, encoding="kernel"))
    assert shared["cores"][0] == low == len(shared["per_core"]["chip"]) and shared["encoding"] == "kernel"
    assert (
        max(found["per_core"]["share"]) <= 1 and found["binds"]["limit"] == "core_bits" and found["utilisation"] == 0.9
    )
    less = replace(tight, utilisation=Limit(0.75, "test"))
    assert resources(network, less)["cores"][1] > high


def test_an_entry_serves_a_channel_where_kernels_are_shared() -> None:
    """2 channels of 4 positions to one core each: 8 neurons have 8 axons, or 2 entries."""
    layers = [neuron((2, 2, 2), 1), conv(words(3, 3, 2, 1, 1, step=2) + 2, message_bits=0), neuron((3, 2, 2), 9)]
    made = plan(graphs.check(chain((2, 2, 2), *layers), alphabet=BINARY), small(neurons=12))
    for encoding, axons, held in (("list", (8, 8), 24), ("kernel", (2, 2), 6)):
        found = partition(made, encoding)
        assert [len(c.neurons) for c in found.cores] == [8, 12]
        assert (found.needs[0].axons_out, found.needs[1].axons_in, found.needs[1].words) == (*axons, held)
        assert found.spikes[0, 1] == 8 and found.spikes[2, 0] == 8  # messages are as many


def test_messages_go_along_x_first() -> None:
    places = (Place(0, 2, 1, 0), Place(0, 0, 0, 0))
    loads = np.zeros((3, 2))
    loads[0, 1], loads[2, 0] = 5.0, 7.0  # the host's messages cross no link
    assert links(places, loads) == {(2, 1, 1, 1): 5.0, (1, 1, 0, 1): 5.0, (0, 1, 0, 0): 5.0}
    assert travel(places, loads) == 15.0


def test_every_limit_names_its_source() -> None:
    for chip in CHIPS.values():
        told = resources(tiny(), chip)["limits"]
        assert all(v["source"] for v in told.values())
        assert {k for k, v in told.items() if v["assumed"]} == set(chip.assumed())
    assert "core_bits" in LOIHI2.assumed() and "axons_in" not in LOIHI1.assumed()
    assert LOIHI1.axons_in.value == LOIHI1.axons_out.value == 4096 and LOIHI1.synapse_bits.value == 1 << 20
