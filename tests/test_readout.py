"""Readouts: sums without a neuron that the host reads, their scale, their proof, and what the report says of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from cases import chain
from residuals import DYADIC, affine, fires, flatten, pool, spikes
from test_cli import EXPORT, invoke

from eiexport import calibrate, graph, losses, quantise
from eiexport.alphabet import BINARY, TERNARY, interval
from eiexport.calibrate import choose
from eiexport.graph import Network
from eiexport.integers import IntCubaLIF, IntDense
from eiexport.plans import LayerPlan, Plan, WeightPlan, plan_from_json
from eiexport.quantise import apply
from eiexport.trace import Trace
from targets import base
from targets.observe import observe

TOP = (1 << 23) - 1
REFERENCE = base.get("reference")()


def lowered(net: nir.NIRGraph, x: np.ndarray, bits: int = 8, **options: Any) -> tuple[Network, Plan, Network]:
    network = graph.check(net)
    plan = choose(network, observe(network, [x]), bits, **options)
    return network, plan, graph.check(apply(network, plan), alphabet=plan.alphabet)


def ending_in(weight: np.ndarray, bias: Any = 0.0, decay: float = 1.0) -> nir.NIRGraph:
    """Spikes of as many neurons as the input has, and the readout "n2"."""
    n = weight.shape[1]
    first = nir.Affine(np.eye(n), np.zeros(n))
    return chain((n,), first, fires(n, decay=decay), nir.Affine(weight, np.full(len(weight), bias)))


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("channels", [False, True], ids=["layer", "channel"])
def test_outputs_are_the_float_ones_up_to_rounding(bits: int, channels: bool) -> None:
    """Every weight is off by half a step at most, unless it was clipped, and so is the bias, by half an alpha."""
    weight = drawn(5, 12) * np.array([1, 0.1, 3, 0.04, 1])[:, None]
    _, plan, integer = lowered(ending_in(weight, 0.3), spikes(12), bits, channels=channels)
    layer = plan.layers["n2"]
    shift = np.broadcast_to(layer.connections["n2"].shift, 5)[:, None]
    units = layer.connections["n2"].units(weight * 2.0**layer.exponent)
    off = np.abs(units * layer.alpha - weight) / (2.0**shift * layer.alpha)
    clipped = np.abs(units) == np.abs(units).max(1, keepdims=True)
    assert off[~clipped].max() <= 0.5 and (off <= 0.5).mean() > 0.9
    whole = REFERENCE.compile(integer).run(spikes(12, seed=3))
    assert whole.z["n2"].dtype == np.int64
    expected = whole.z["n1"] @ (units * layer.alpha).T + 0.3
    assert np.abs(whole.z["n2"] * layer.alpha - expected).max() <= layer.alpha / 2 * (1 + 1e-9)
    # all levels are in use, of the whole or of each channel, and alpha is as fine as synapses allow, up to clipping
    top = 2 ** (bits - 1) - 1
    levels = np.abs(units / 2.0**shift).max(1)
    assert levels.max() > top / 2 and (levels > top / 2).all() == channels
    assert np.max(integer.graph.nodes["n2"].weight_exp) >= 7 - 3


@pytest.mark.parametrize("fan_in,messages,binds", [(8, 1, False), (4000, 1, True), (500, 64, True), (8, 1024, True)])
def test_sums_are_proven_within_24_bits(fan_in: int, messages: int, binds: bool) -> None:
    """messages: spikes that a pool sums up before. Where that binds, alpha is coarser than the words ask for."""
    side = math.isqrt(messages)
    weight = np.abs(drawn(2, fan_in)) + 0.5
    first = nir.Conv2d(None, np.ones((fan_in, 1, 1, 1)), 1, 0, 1, 1, np.zeros(fan_in))
    cells = [first, fires(fan_in, side, side), pool(nir.AvgPool2d, side, side), flatten(fan_in, 1, 1)]
    net = chain((1, side, side), *cells, nir.Affine(weight, np.full(2, -0.25)))
    _, plan, integer = lowered(net, np.ones((1, 2, 1, side, side), np.float32))
    layer = plan.layers["n4"]
    assert layer.proven and math.isinf(layer.headroom)
    reach = max(-integer.alphabets["n4"].lo, integer.alphabets["n4"].hi)
    assert reach <= TOP
    z = REFERENCE.compile(integer).run(np.ones((1, 2, 1, side, side))).z["n4"]
    assert z.max() == reach == z.min(axis=(0, 1)).max()  # the input that reaches it
    words = 255 * 2.0**7 / (weight.max() / messages)  # the finest alpha that synapses have exponents for
    assert (2.0**layer.exponent <= words / 2) == binds


def test_a_large_bias_counts() -> None:
    _, plan, integer = lowered(ending_in(drawn(3, 4), 9e4), spikes(4))
    layer = plan.layers["n2"]
    assert layer.proven and 9e4 / layer.alpha <= TOP
    bias = integer.graph.nodes["n2"].bias
    assert (bias == np.rint(9e4 / layer.alpha)).all() and bias.dtype == np.int32


def test_nothing_and_next_to_nothing() -> None:
    for weight, bias in ((np.zeros((2, 3)), 0.0), (np.zeros((2, 3)), 0.5), (drawn(2, 3) * 1e-7, 0.0)):
        _, plan, integer = lowered(ending_in(weight, bias), spikes(3))
        assert plan_from_json(json.loads(json.dumps(plan.to_json()))) == plan
        z = REFERENCE.compile(integer).run(spikes(3)).z["n2"] * plan.layers["n2"].alpha
        floats = spikes(3) @ weight.T + bias
        assert np.abs(z - floats).max() <= max(2e-9, np.abs(weight).max() / 50)
        assert np.array_equal(integer.steps["n2"].weight != 0, np.abs(weight) > np.abs(weight).max() / 200)


def test_a_readout_has_no_neuron() -> None:
    network, plan, integer = lowered(*DYADIC["identity shortcut"][:2])
    found = quantise.layers(calibrate.explicit(network))
    assert {n: type(layer).__name__ for n, layer in found.items()} == {
        **dict.fromkeys(("n1", "n2", "n3"), "Layer"),
        "fc": "Readout",
    }
    assert type(integer.graph.nodes["fc"]).__name__ == "IntDense" and integer.recorded[-1] == "fc"
    assert not found["fc"].carried["fc"] and integer.graph.nodes["fc"].bias.any()
    assert plan.to_json()["layers"]["fc"]["headroom"] is None


def test_twin_rounds_a_readout_alone() -> None:
    weight = drawn(3, 4)
    network, plan, integer = lowered(ending_in(weight, 0.0101), spikes(4), 4)
    assert integer.steps["n2"].bias is not None
    twin = calibrate.twin(network, plan, ("n2",))
    alpha = plan.layers["n2"].alpha
    assert np.allclose(twin.steps["n2"].weight, integer.steps["n2"].weight * alpha, rtol=1e-12)
    assert np.allclose(twin.steps["n2"].bias, integer.steps["n2"].bias * alpha, rtol=1e-12)
    assert not np.allclose(twin.steps["n2"].weight, weight, rtol=1e-3)
    assert np.array_equal(twin.steps["n0"].weight, network.steps["n0"].weight)


# --- at or above a threshold


def fired(**fields: Any) -> Any:
    net = chain((3,), affine(4, 3), fires(4, **fields), affine(2, 4))
    network, plan, integer = lowered(net, spikes(3))
    return network, plan, integer


def test_at_or_above_is_above_one_less_where_nothing_lies_between() -> None:
    """An integrator's membrane is a multiple of 64, also on the threshold itself; chips and Lava fire above it."""
    network, plan, integer = fired()
    node = integer.graph.nodes["n1"]
    assert (node.compare, float(node.vth[0])) == ("gt", 2.0 ** plan.layers["n1"].exponent - 1)
    same = dict(integer.graph.nodes) | {"n1": replace(node, compare="ge", vth=node.vth + 1)}
    other = nir.NIRGraph(same, integer.graph.edges, metadata=integer.graph.metadata, type_check=False)
    x = spikes(3, seed=5)
    ours, theirs = (REFERENCE.compile(n).run(x, probe=True) for n in (integer, graph.check(other, alphabet=BINARY)))
    for (kind, name, a), (_, _, b) in zip(ours.observables(), theirs.observables(), strict=True):
        assert np.array_equal(a, b), (kind, name)
    # with coarse weights the membrane lies on the threshold
    floats = REFERENCE.compile(network).run(x)
    assert ours.z["n1"].any() and np.array_equal(ours.z["n1"], floats.z["n1"])
    driven = x @ network.steps["n0"].weight.T + network.steps["n0"].bias
    assert (driven == 1.0).any()


@pytest.mark.parametrize(
    "fields",
    [{"decay": 0.5}, {"reset": "subtract"}, {"reset": "none"}, {"lower": -1.0}, {"threshold": 1e-6}],
    ids=lambda f: " ".join(f),
)
def test_at_or_above_stays_where_it_means_something_else(fields: dict[str, Any]) -> None:
    *_, integer = fired(**fields)
    assert integer.graph.nodes["n1"].compare == "ge"


def test_below_saturation_it_is_one_unit_early() -> None:
    """What the lowering costs, and the report says: v is off the grid of 64 once it has saturated below."""
    drive = np.array([-100000.0, -100000, 100000, 31080]).reshape(1, 4, 1)
    found = []
    zero, word = np.array(0, np.int32), np.array([[1]], np.int16)
    unit = IntDense(word, np.zeros(1, np.int32), 0, bits=8, sign_mode="excitatory", message_bits=24)
    rest = {"du": np.array(4095), "dv": zero, "bias_mant": zero, "bias_exp": zero}
    for compare, vth in (("ge", 9), ("gt", 8)):
        one = IntCubaLIF(vth=np.array([vth]), compare=compare, **rest)
        network = graph.check(chain((1,), unit, one), alphabet=interval(-100000, 100000, True))
        found.append(REFERENCE.compile(network).run(drive).z["n1"].ravel().tolist())
    assert found == [[0, 0, 0, 0], [0, 0, 0, 1]]


# --- what it cost


def test_a_readout_is_measured_by_its_outputs() -> None:
    row = losses.ReadoutLoss("fc", 0.25, {"fc": (0.25, 0.5)}, 8, math.inf, True, 0, 0, 40)
    found = losses.Quantisation(Plan(8, 1.0, 0, 1), 1, {"fc": row})
    floats, ours = np.array([[[3.0, 4.0]]]), np.array([[[12, 20]]])
    for _ in range(2):
        found.count(Trace({"fc": floats}), Trace({"fc": ours}))
    assert row.entries == 4 and row.distance == pytest.approx(1 / 5)
    told = found.to_json()["per_layer"]["fc"]
    assert told["output_error"] == pytest.approx(0.2) and told["entries"] == 4
    assert all(told[k] is None for k in ("changed", "changed_share", "spikes_float", "spikes"))
    assert (row.room, row.change) == ("proven", "outputs 20.00 % off")
    silent = replace(row, energy=0.0, error=0.0)
    assert silent.distance == 0.0 and replace(silent, error=1.0).distance == math.inf


def test_rows_of_both_kinds_have_the_same_keys() -> None:
    layer = losses.LayerLoss("a", 1, {}, 8, 2, False, 0, 0, 40, changed=3, entries=12)
    readout = losses.ReadoutLoss("b", 1, {}, 8, math.inf, True, 0, 0, 40)
    assert layer.to_json().keys() == readout.to_json().keys()
    assert layer.to_json()["changed_share"] == 0.25 and layer.to_json()["output_error"] is None
    assert (layer.room, layer.change) == ("2.0x", "25.00 %")


def test_connections_that_were_written_out_do_not_count_as_lossless_weights() -> None:
    network = graph.check(DYADIC["identity shortcut"][0])
    rng = np.random.default_rng(1)
    nodes = dict(network.graph.nodes)
    for name in ("c2", "c3"):
        nodes[name] = replace(nodes[name], weight=rng.normal(0, 0.5, nodes[name].weight.shape))
    edges = network.graph.edges
    snr = []
    for kept in (edges, [e for e in edges if e != ("n1", "n3")]):
        made = nir.NIRGraph(nodes, kept, metadata=network.graph.metadata, type_check=False)
        whole = graph.check(made)
        chosen = choose(whole, observe(whole, [spikes(2, 4, 4)]), 4)
        chosen = replace(chosen, layers=chosen.layers | {"n3": replace(chosen.layers["n3"], exponent=9)})
        fixed = replace(chosen.layers["n3"].connections["c3"], shift=6)
        both = chosen.layers["n3"].connections | {"c3": fixed}
        chosen = replace(chosen, layers=chosen.layers | {"n3": replace(chosen.layers["n3"], connections=both)})
        snr.append(losses.of_weights(whole, chosen)["n3"])
    assert snr[0].snr_db == snr[1].snr_db < 60 and snr[0].zeroed == snr[1].zeroed > 0


# --- plans


def test_a_plan_with_a_readout_survives_json_and_damage_is_told() -> None:
    _, plan, _ = lowered(*DYADIC["shortcut through weights"][:2], channels=True)
    d = json.loads(json.dumps(plan.to_json()))
    assert plan_from_json(d) == plan and "fc" in d["layers"]


def test_a_plan_from_before_readouts_still_loads() -> None:
    """As files of the first version have it."""
    layer = {
        "exponent": 12,
        "connections": {"n0": {"shift": 5, "sign_mode": "mixed", "bits": 8}},
        **{"feedback": None, "balance": None, "headroom": 1.7, "proven": False, "bias_exp": 6},
    }
    stored = {"bits": 8, "input_scale": 1.0, "input_lo": 0, "input_hi": 1, "layers": {"n1": layer}}
    plan = plan_from_json(stored)
    assert plan.layers == {"n1": LayerPlan(12, {"n0": WeightPlan(5, "mixed", 8)}, headroom=1.7)}
    network = graph.check(chain((3,), affine(4, 3), fires(4)), alphabet=BINARY)
    assert graph.check(apply(network, plan), alphabet=BINARY).integer


# --- the command line


def test_export_of_a_residual_network(tmp_path: Path) -> None:
    net, x, _ = DYADIC["maximum of 3 x 3"]
    nodes = dict(net.nodes)
    rng = np.random.default_rng(1)
    for name in ("c1", "c2"):
        nodes[name] = nir.Conv2d((4, 4), rng.normal(0, 0.5, (2, 2, 3, 3)), 1, 1, 1, 1, rng.normal(0, 0.1, 2))
    nodes["fc"] = nir.Affine(rng.normal(0, 0.5, (3, 2)), rng.normal(0, 0.1, 3))
    nodes["out"] = nir.Output(np.array([3]))
    graph.write(nir.NIRGraph(nodes, net.edges, metadata=net.metadata, type_check=False), tmp_path / "net.nir")
    np.save(tmp_path / "x.npy", x)
    given = (tmp_path / "net.nir", "--input", tmp_path / "x.npy", "--quantize", 8)
    targets = [v for t in ("torch", "loihi", "loihi-file") for v in ("--target", t)]
    said = invoke(EXPORT, *given, *targets, "--out", tmp_path / "out").stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {r["status"] for r in report["targets"].values()} == {"equal"}
    rows = report["quantisation"]["per_layer"]
    assert rows.keys() == {"n1", "max", "n2", "fc"} and rows["max"]["snr_db"] is None  # nothing was lost
    fc = rows["fc"]
    assert fc["changed"] is None and fc["headroom"] is None and fc["proven"] and 0 < fc["output_error"] < 2
    assert fc["alone_decisions"] is not None and 0 <= report["quantisation"]["decisions_changed"] <= 1
    assert "proven" in said and "outputs" in (tmp_path / "out" / "report.html").read_text()
    assert "sum_max_unit" not in graph.read(tmp_path / "out" / "model.nir").nodes
    assert type(graph.read(tmp_path / "out" / "model_float.nir").nodes["sum"]).__name__ == "SumPool2d"


def test_a_chip_without_graded_messages_has_no_readout() -> None:
    """Everything else of a residual network fits its fixed neuron."""
    net, x, _ = DYADIC["identity shortcut"]
    chip = base.get("loihi")(chip="loihi1")
    *_, integer = lowered(net, x)
    with pytest.raises(base.Unsupported, match=r"'fc': rule readout_fits on loihi1"):
        chip.check(integer)
    spiking = {n: v for n, v in net.nodes.items() if n not in ("average", "flat", "fc")}
    edges = [e for e in net.edges if {*e} <= spiking.keys()] + [("n3", "out")]
    *_, integer = lowered(nir.NIRGraph(spiking, edges, metadata=net.metadata, type_check=False), x)
    chip.check(integer)


@pytest.mark.parametrize("name", ["identity shortcut", "maximum of 2 x 2", "flat shortcut"])
def test_netx_says_what_it_cannot_hold(name: str) -> None:
    """Its layers stand in one row and end in neurons."""
    *_, integer = lowered(*DYADIC[name][:2])
    with pytest.raises(base.Unsupported) as e:
        base.get("lava-dl")().check(integer)
    assert "netx" in str(e.value) and "\n" not in str(e.value)
    *_, integer = lowered(ending_in(drawn(2, 3)), spikes(3))
    with pytest.raises(
        base.Unsupported, match=r"'n2' .IntDense.: it is the last, and each layer of netx ends in neurons"
    ):
        base.get("lava-dl")().check(integer)


def test_signed_messages_into_a_readout() -> None:
    net = chain(
        (3,), nir.Affine(np.array([[-0.5, 0.25, 1], [1, -1, 0.5]]), np.zeros(2)), fires(2, lower=-0.5), affine(2, 2)
    )
    x = spikes(3)
    network, plan, integer = lowered(net, x)
    assert integer.alphabets["n1"] == TERNARY and integer.graph.nodes["n2"].message_bits == 2
    floats, ours = REFERENCE.compile(network).run(x).z, REFERENCE.compile(integer).run(x).z
    assert (ours["n1"] < 0).any() and np.array_equal(ours["n2"] * plan.layers["n2"].alpha, floats["n2"])


def test_decisions_and_the_readout_of_currents_and_pixels() -> None:
    net, x, alphabet = DYADIC["shortcut from the input"]
    network, plan, integer = lowered(net, x)
    assert plan.alphabet == interval(0, 4, True) and plan.layers.keys() == {"n1", "both"}
    assert plan.layers["both"].connections.keys() == {"a", "b"}
    from eiexport.session import decisions

    floats, ours = REFERENCE.compile(network).run(x).z, REFERENCE.compile(integer).run(plan.encode(x)).z
    assert np.array_equal(decisions(floats["both"]), decisions(ours["both"]))
    assert alphabet.hi == 1
