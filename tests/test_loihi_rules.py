"""Every rule of a chip refuses by name, and `strict` tells where a register overflows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import pytest
from int_networks import chain, connected, conv, dense, neuron
from test_loihi import CASES, GRADED, differs, gated, late, pool, small, words

from eiexport import graph as graphs
from eiexport.alphabet import BINARY, REAL, TERNARY, Alphabet
from targets.base import TargetError, Unsupported, get
from targets.loihi import Loihi, limits
from targets.loihi.limits import LOIHI1, Chip
from targets.loihi.program import partitioned
from targets.reference import Reference


def if_chain(*nodes: Any, inputs: int = 3, alphabet: Alphabet = BINARY) -> graphs.Network:
    return graphs.check(chain((inputs,), *nodes), alphabet=alphabet)


def one(weight: Any = None, lif: Any = None, alphabet: Alphabet = BINARY, **fields: Any) -> graphs.Network:
    return if_chain(
        dense(words(1, 4, 3) if weight is None else weight, **fields), lif or neuron(4, 50), alphabet=alphabet
    )


def waiting(steps: int) -> graphs.Network:
    nodes = {"d": late(3, steps), "w": dense(words(1, 4, 3)), "n1": neuron(4, 50)}
    return graphs.check(connected(nodes, [("in", "d"), ("d", "w"), ("w", "n1"), ("n1", "out")], (3,)), alphabet=BINARY)


def tight_loop() -> graphs.Network:
    nodes = {"a": neuron(3, 2), "b": neuron(3, 2), "d": late(3, 1)}
    edges = [("in", "a"), ("a", "b"), ("b", "d"), ("d", "a"), ("b", "out")]
    return graphs.check(connected(nodes, edges, (3,)), alphabet=BINARY)


RULES: dict[str, tuple[str, Callable[[], graphs.Network], str | Chip, str]] = {
    "vth": ("vth_fits", lambda: one(lif=neuron(4, 131072)), "loihi2", "131072"),
    "vth-negative": ("vth_fits", lambda: one(lif=neuron(4, [-1, 2, 3, 4])), "loihi2", "-1"),
    "du": ("du_fits", lambda: one(lif=neuron(4, 5, du=-1)), "loihi1", "-1"),
    "dv": ("dv_fits", lambda: one(lif=neuron(4, 5, dv=4096)), "loihi1", "4096"),
    "bias": ("bias_fits", lambda: one(lif=neuron(4, 5, bias_mant=4097, bias_exp=0)), "loihi2", "4097"),
    "bias-high": ("bias_fits", lambda: one(lif=neuron(4, 5, bias_mant=-4095, bias_exp=8)), "loihi2", str(-4095 << 8)),
    "compare": ("compare", lambda: one(lif=neuron(4, 5, compare="ge")), "loihi1", "'ge'"),
    "reset": ("reset", lambda: one(lif=neuron(4, 5, reset="subtract")), "loihi1", "'subtract'"),
    "lower": ("double_threshold", lambda: one(lif=neuron(4, 5, lower=-5)), "loihi1", "lower"),
    "lower-wide": ("double_threshold", lambda: one(lif=neuron(4, 5, lower=-200000)), "loihi2", "200000"),
    "gated": ("gated_nodes", lambda: if_chain(gated((3,))), "loihi1", "a gated neuron"),
    "weight": (
        "weight_fits",
        lambda: graphs.check(chain((1, 3), conv([[[1, 3]]]), neuron((1, 2), 5)), alphabet=BINARY),
        "loihi2",
        "weight 1",
    ),
    "weight-bits": ("weight_bits_fit", lambda: one(bits=8), small(weight_bits=6), "bits = 8"),
    "exponent": ("exponent_fits", lambda: one(weight_exp=8), "loihi2", "weight_exp = 8"),
    "exponent-low": ("exponent_fits", lambda: one(weight_exp=-9), "loihi2", "weight_exp = -9"),
    "constant": ("constant_fits", lambda: one(bias=[0, 40000, 0, 0]), "loihi1", "40000"),
    "message": ("message_bits_fit", lambda: one(alphabet=GRADED, message_bits=8), "loihi1", "8 bits"),
    "message-signed": ("message_bits_fit", lambda: one(alphabet=TERNARY, message_bits=2), "loihi1", "ternary"),
    "message-unknown": ("message_bits_fit", lambda: one(alphabet=REAL, message_bits=5), "loihi1", "5 bits"),
    "delay": ("delay_fits", lambda: waiting(63), "loihi2", "63 steps"),
    "two-connections": (
        "connections_end_in_neurons",
        lambda: if_chain(dense(words(1, 4, 3), weight_exp=-1), dense(words(2, 4, 4), message_bits=20), neuron(4, 5)),
        "loihi2",
        "'n0' leads to 'n1'",
    ),
    "readout": ("readout_fits", lambda: if_chain(neuron(3, 1), dense(words(1, 2, 3))), "loihi1", "sums"),
    "loop": ("one_hop_a_connection", tight_loop, "loihi2", "2 engine steps"),
    "fan-in": ("fan_in_fits", one, small(axons_in=2), "3 input axons"),
    "fan-out": (
        "fan_out_fits",
        lambda: if_chain(neuron(3, 1), dense(words(1, 4, 3)), neuron(4, 9)),
        small(axons_out=1),
        "2 output axons",
    ),
    "memory": ("core_memory_fits", one, small(core_bits=250), "bits of memory"),
    "synapse-memory": ("core_memory_fits", one, small(synapse_bits=100), "bits of synapse memory"),
    "formats": (
        "synapse_formats_fit",
        lambda: graphs.check(
            chain((2, 4), conv(words(1, 2, 2, 2), weight_exp=[0, 1]), neuron((2, 3), 9)), alphabet=BINARY
        ),
        small(synapse_formats=1),
        "2 synapse formats",
    ),
    "chips": ("chips_fit", one, small(neurons=1, cores=1, chips=3), "4 chips"),
}


@pytest.mark.parametrize("case", RULES)
def test_a_broken_rule_is_named_in_one_line(case: str) -> None:
    rule, network, chip, value = RULES[case]
    target = Loihi(chip=chip)  # type: ignore[arg-type]
    with pytest.raises(Unsupported) as e:
        target.check(network())
    told = str(e.value)
    assert f"rule {rule} on " in told and value in told and "\n" not in told
    if rule != "one_hop_a_connection":  # which names the whole cycle
        assert "limit " in told and "; " in told and "node '" in told
        assert callable(getattr(limits, rule))


def pooled_tail() -> list[Any]:
    """A pool whose sums need 3 bits: what is sent are spikes."""
    return [pool(), conv(words(1, 2, 2, 2, 2), message_bits=3), neuron((2, 1, 1), 9)]


def test_the_same_networks_fit_within_the_limits() -> None:
    """Each limit holds at its own value: a rule that refused everything would be no rule."""
    fits: list[tuple[graphs.Network, Any]] = [
        (one(lif=neuron(4, 131071)), "loihi1"),
        (one(lif=neuron(4, 5, du=0, dv=4095)), "loihi1"),
        (one(lif=neuron(4, 5, du=-1)), "loihi2"),
        (one(lif=neuron(4, 5, dv=4096)), "loihi2"),
        (one(lif=neuron(4, 5, bias_mant=[4095, -4095, 0, 1], bias_exp=7)), "loihi1"),
        (one(lif=neuron(4, 5, bias_mant=16380, bias_exp=-2)), "loihi1"),
        (one(lif=neuron(4, 5, bias_mant=8190, bias_exp=6)), "loihi1"),
        (one(weight_exp=7), "loihi1"),
        (one(weight_exp=-8), "loihi1"),
        (one(bias=[0, 32767, 0, 0]), "loihi1"),
        (waiting(62), "loihi1"),
        (one(), small(axons_in=3)),
        (if_chain(gated((3,))), "loihi2"),
        (CASES["pool-alone"].network(), "loihi1"),
        (graphs.check(chain((2, 4, 4), neuron((2, 4, 4), 1), *pooled_tail()), alphabet=BINARY), "loihi1"),
        (one(), small(neurons=1, cores=1, chips=4)),
    ]
    for network, chip in fits:
        Loihi(chip=chip).check(network)
    assert limits.bias_fits(LOIHI1, "n", np.array([8, 8190, -4095 << 7]))[1].tolist() == [0, 1, 7]


def test_thresholds_that_differ_split_a_population() -> None:
    network = one(lif=neuron(4, [10, 20, 30, 30], dv=[0, 1, 1, 1]))
    assert len(partitioned(network, small(LOIHI1, thresholds=1, neurons=9)).cores) == 4
    assert len(partitioned(network, small(LOIHI1, neurons=9)).cores) == 1
    whole = {"n1": [np.arange(4)]}
    for limit, rule in (("thresholds", "thresholds_per_core_fit"), ("neuron_profiles", "neuron_profiles_fit")):
        with pytest.raises(Unsupported, match=rule):
            partitioned(network, small(LOIHI1, neurons=9, **{limit: 1}), whole)
    with pytest.raises(Unsupported, match="neurons_per_core_fit"):
        partitioned(network, small(), whole)


def test_a_float_network_and_a_foreign_node_are_refused() -> None:
    from cases import CASES as FLOATS

    with pytest.raises(Unsupported, match="--quantize 8"):
        Loihi().check(next(c for c in FLOATS if c.name.startswith("LIF")).network())
    scaled = if_chain(nir.Scale(np.full(3, 2.0)), dense(words(1, 4, 3), message_bits=3), neuron(4, 9))
    with pytest.raises(Unsupported, match=r"'n0' \(Scale\)"):
        Loihi().check(scaled)
    with pytest.raises(TargetError, match="loihi1, loihi2"):
        Loihi(chip="loihi3")
    assert get("loihi") is Loihi


def test_stock_and_programmed_neurons_are_told_apart() -> None:
    network, target = CASES["gated-conv"].network(), Loihi()
    assert [target.process(network, n) for n in network.recorded] == ["custom", "stock"]


# --- strict


def strict(name: str) -> str:
    case = CASES[name]
    program = Loihi(strict=True).compile(case.network())
    with pytest.raises(TargetError) as e:
        program.run(case.x())
    assert "\n" not in str(e.value)
    return str(e.value)


def test_strict_tells_where_a_register_overflows() -> None:
    network = one(np.full((4, 3), 100), neuron(4, 131071), weight_exp=7)
    x = np.ones((3, 6, 3))
    x[:2, :3] = 0
    v = Reference().compile(network).run(x, probe=True)
    with pytest.raises(TargetError) as e:
        Loihi(strict=True).compile(network).run(x)
    # it fires as it saturates, so only the size of the sum tells: 4 steps of 38400 << 6
    assert (v.states["v"]["n1"][2, 3] == 0).all() and v.z["n1"][2, 3].all()
    told = (
        "node 'n1': rule no_overflow: register v saturates at sample 2, step 3, neuron (0,): 9830400, limit +-8388607"
    )
    assert str(e.value).startswith(f"{told} (24 bits); quantise with fewer weight bits") and "\n" not in str(e.value)
    assert "the convolution's sum wraps" in strict("modulo") and "'n0'" in strict("modulo")
    assert "register u wraps" in strict("wrapping")


def test_strict_tells_a_wrapped_current() -> None:
    network = one(np.full((4, 3), 254), neuron(4, 131071, du=0, dv=4095), weight_exp=7)
    x = np.ones((2, 12, 3))
    x[0] = 0
    program = Loihi(strict=True).compile(network)
    u = Reference().compile(network).run(x, probe=True).states["u"]["n1"]
    with pytest.raises(TargetError, match="register u wraps at sample 1, ") as e:
        program.run(x)
    assert f"step {int(np.argmax((u < 0).any(axis=(0, 2))))}, neuron (0,)" in str(e.value)
    with pytest.raises(TargetError, match="sample 1, "):
        list(program.stream(x))
    loose = Loihi().compile(network)
    assert np.array_equal(loose.run(x, probe=True).states["u"]["n1"], u)


def test_strict_passes_what_holds_and_counts_clipped_membranes() -> None:
    case = CASES["gated"]
    network, x = case.network(), case.x()
    program = Loihi(strict=True).compile(network)
    trace = program.run(x)
    assert not trace.states and not differs(trace, Reference().compile(network).run(x))
    # the membrane that was sent is the one after the step where nothing fired
    v = Reference().compile(network).run(x, probe=True).states["v"]["n1"]
    kept = v[trace.z["n1"] == 0] >> 5
    assert program.saturated["n1"] >= int((np.abs(kept) > 127).sum()) and program.saturated["n1"] > 0
    assert program.chip_latency == {"in": 0, "n1": 1, "n3": 2}
