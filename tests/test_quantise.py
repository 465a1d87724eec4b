"""The quantise pass: scales, signs, exactness where the numbers allow it, refusals, and what the command line reports.

Networks of coarse dyadic numbers lose nothing: there the integer network must send the very spikes of the float one,
and its registers must be the membranes, scaled. That holds every factor of the pass against the
float oracle: pools, gains, biases, decays, shifts.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import oracle
import pytest
from cases import chain, connected
from residuals import DYADIC
from test_cli import EXPORT, QUICK, invoke, no_data, refused, tree  # noqa: F401

from eiexport import calibrate, graph, losses, quantise
from eiexport.alphabet import BINARY, REAL, TERNARY, Alphabet, interval
from eiexport.calibrate import Observed, Samples, choose
from eiexport.errors import GraphError
from eiexport.nodes import EIGatedLIF, EIMaxPool2d, lif
from eiexport.plans import GatePlan, Plan, WeightPlan, plan_from_json
from eiexport.quantise import apply
from eitrain.fit import Fitting
from targets import base
from targets.observe import observe

T = 8
RANDOM = np.random.default_rng


def spikes(shape: tuple[int, ...], seed: int = 0, signed: bool = False) -> np.ndarray:
    """(3 samples, T, *shape)."""
    values = [-1, 0, 1] if signed else [0, 0, 1]
    return RANDOM(seed).choice(values, (3, T, *shape)).astype(np.float32)


def coarse(*shape: int, seed: int = 1) -> np.ndarray:
    return RANDOM(seed).choice([-0.5, -0.25, 0.25, 0.5, 0.75, 0.0], shape)


def lowered(net: nir.NIRGraph, x: np.ndarray, bits: int = 8, alphabet: Alphabet = BINARY, **options: Any) -> Any:
    """(float network, plan, integer network)."""
    network = graph.check(net, alphabet=alphabet)
    plan = choose(network, observe(network, [x]), bits, **options)
    return network, plan, graph.check(apply(network, plan), alphabet=plan.alphabet)


def affine(outputs: int, inputs: int, bias: float = 0.0, seed: int = 1) -> nir.Affine:
    return nir.Affine(coarse(outputs, inputs, seed=seed), np.full(outputs, bias))


def conv(outputs: int, inputs: int, kernel: int = 3, bias: float = 0.0, **geometry: Any) -> nir.Conv2d:
    fields = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, **geometry}
    weight = coarse(outputs, inputs // fields["groups"], kernel, kernel)
    return nir.Conv2d(input_shape=None, weight=weight, bias=np.full(outputs, bias), **fields)


def neuron(shape: tuple[int, ...], **fields: Any) -> Any:
    return lif(shape, **{"decay": 0.5, "threshold": 0.75, **fields})


def stock(kind: type, shape: tuple[int, ...], **fields: float) -> Any:
    return kind(**{k: np.full(shape, v) for k, v in fields.items()})


POOL = {"kernel_size": np.array([2, 2]), "stride": np.array([2, 2]), "padding": np.array([0, 0])}
MAP = (2, 4, 4)
CUBA = {"tau_mem": 2.0, "tau_syn": 2.0, "r": 2.0, "v_leak": 0.25, "v_threshold": 0.75, "v_reset": 0.0, "w_in": 2.0}


def recurrent() -> nir.NIRGraph:
    """A population that also hears itself, one step later."""
    nodes = {"w": affine(4, 3), "n": neuron((4,)), "d": nir.Delay(np.ones(4)), "r": affine(4, 4, seed=3)}
    edges = [("in", "w"), ("w", "n"), ("n", "d"), ("d", "r"), ("r", "n"), ("n", "out")]
    return connected(nodes, edges, (3,))


def balanced() -> EIGatedLIF:
    gate = nir.Affine(coarse(4, 4, seed=7), np.full(4, 0.125))
    return EIGatedLIF(neuron((4,)), None, gate)


EXACT: dict[str, tuple[nir.NIRGraph, np.ndarray, Alphabet]] = {
    "dense": (chain((3,), affine(4, 3), neuron((4,))), spikes((3,)), BINARY),
    "bias in the neuron": (chain((3,), affine(4, 3, 0.25), neuron((4,))), spikes((3,)), BINARY),
    "gain": (chain((3,), affine(4, 3), neuron((4,), gain=0.5)), spikes((3,)), BINARY),
    "ternary input": (chain((3,), affine(4, 3), neuron((4,))), spikes((3,), signed=True), TERNARY),
    "two thresholds": (chain((3,), affine(4, 3), neuron((4,), lower=-0.5)), spikes((3,)), BINARY),
    "at or above": (chain((3,), affine(4, 3), neuron((4,), compare="ge")), spikes((3,)), BINARY),
    "subtractive": (chain((3,), affine(4, 3), neuron((4,), decay=1.0, reset="subtract")), spikes((3,)), BINARY),
    "no reset": (chain((3,), affine(4, 3), neuron((4,), reset="none")), spikes((3,)), BINARY),
    "convolution": (chain(MAP, conv(3, 2, bias=0.125), neuron((3, 4, 4))), spikes(MAP), BINARY),
    "strided groups": (chain(MAP, conv(4, 2, groups=2, stride=2), neuron((4, 2, 2))), spikes(MAP), BINARY),
    "average pool": (
        chain(MAP, conv(2, 2), neuron(MAP), nir.AvgPool2d(**POOL), conv(3, 2, bias=0.125), neuron((3, 2, 2))),
        spikes(MAP),
        BINARY,
    ),
    "pool before the neuron": (
        chain(MAP, conv(2, 2, bias=0.25), nir.AvgPool2d(**POOL), neuron((2, 2, 2))),
        spikes(MAP),
        BINARY,
    ),
    "pixels": (
        chain(MAP, conv(2, 2), neuron(MAP)),
        RANDOM(2).integers(0, 5, (3, T, *MAP)).astype(np.float32) / 4,
        interval(0, 1, False),
    ),
    "signed pixels, flattened, pooled": (
        chain(
            MAP, nir.AvgPool2d(**POOL), nir.Flatten({"input": np.array(MAP)}, 0, -1), affine(4, 8, 0.25), neuron((4,))
        ),
        RANDOM(2).integers(-4, 5, (3, T, *MAP)).astype(np.float32) / 2,
        interval(-2, 2, False),
    ),
    "synapse": (chain((3,), affine(4, 3, 0.25), stock(nir.CubaLIF, (4,), **CUBA)), spikes((3,)), BINARY),
    "integrate and fire": (
        chain((3,), affine(4, 3), stock(nir.IF, (4,), r=0.5, v_threshold=0.75, v_reset=0.0)),
        spikes((3,)),
        BINARY,
    ),
    "leak": (
        chain((3,), affine(4, 3), stock(nir.LIF, (4,), tau=2.0, r=2.0, v_leak=0.5, v_threshold=0.5, v_reset=0.0)),
        spikes((3,)),
        BINARY,
    ),
    "threshold": (chain((3,), affine(4, 3, 0.25), stock(nir.Threshold, (4,), threshold=0.5)), spikes((3,)), BINARY),
    "recurrent": (recurrent(), spikes((3,)), BINARY),
    "balance gate": (chain((3,), affine(4, 3), balanced()), spikes((3,)), BINARY),
    "delays": (chain((3,), nir.Delay(np.arange(3.0)), affine(4, 3), neuron((4,))), spikes((3,)), BINARY),
    "delay behind the weights": (
        chain((3,), affine(4, 3, 0.25), nir.Delay(np.arange(4.0)), neuron((4,))),
        spikes((3,)),
        BINARY,
    ),
    "flattened currents": (
        chain(MAP, conv(2, 2, bias=0.25), nir.Flatten({"input": np.array(MAP)}, 0, -1), neuron((32,))),
        spikes(MAP),
        BINARY,
    ),
    **DYADIC,
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("channels", [False, True], ids=["layer", "channel"])
def test_coarse_numbers_lose_nothing(name: str, channels: bool) -> None:
    """Spikes are the scalar float oracle's, registers the membranes times 64 * 2^exponent, readouts in their unit."""
    net, x, alphabet = EXACT[name]
    network, plan, integer = lowered(net, x, alphabet=alphabet, channels=channels)
    ours = base.get("reference")().compile(integer).run(plan.encode(x), probe=True)
    floats = base.get("reference")().compile(network).run(x, probe=True)
    rows = oracle.run(net, x, 1.0, "euler")
    for node, z in ours.z.items():
        expected = np.array([[[step[node][i] for i in np.ndindex(z.shape[2:])] for step in s] for s in rows])
        unit = 1.0 if network.steps[node].neuron else plan.layers[node].alpha
        assert z.shape == (3, T, *network.shapes[node]) and z.dtype == (np.int8 if unit == 1.0 else np.int64)
        assert np.array_equal(z.reshape(expected.shape) * unit, expected), node
        if node in plan.layers and "v" in floats.states and node in floats.states["v"]:
            scale = 64 * 2.0 ** plan.layers[node].exponent
            # what is left of a membrane after many halvings lies below the registers' last bit
            assert np.abs(ours.states["v"][node] - floats.states["v"][node] * scale).max() <= 2, node
    assert any(z.any() for z in ours.z.values())
    assert all(ours.z[n].any() for n in ours.z if not network.steps[n].neuron)


@pytest.mark.parametrize("bits", range(4, 9))
def test_weights_keep_zero_sign_and_range(bits: int) -> None:
    weight = RANDOM(bits).normal(size=(6, 5))
    weight[0, 0] = 0
    for given, mode in ((weight, "mixed"), (np.abs(weight), "excitatory"), (-np.abs(weight), "inhibitory")):
        net = chain((5,), nir.Affine(given, np.zeros(6)), neuron((6,)))
        _, plan, integer = lowered(net, spikes((5,)), bits)
        chosen = plan.layers["n1"].connections["n0"]
        assert chosen.sign_mode == mode and 2.0**chosen.shift >= 1
        whole = integer.steps["n0"].weight
        assert whole[0, 0] == 0 and (whole * given >= 0).all()
        levels = whole / 2.0**chosen.shift
        assert (levels == np.rint(levels)).all()
        assert np.abs(levels).max() <= (2 ** (bits - 1) - 1 if mode == "mixed" else 2**bits - 1)
        # a power-of-two scale uses at least half of the levels, or clips
        assert np.abs(levels).max() > (2 ** (bits - 1) - 1 if mode == "mixed" else 2**bits - 1) / 2
        inside = np.abs(given * 2.0 ** plan.layers["n1"].exponent) <= np.abs(whole).max()
        error = np.abs(whole - given * 2.0 ** plan.layers["n1"].exponent)[inside]
        assert error.max() <= 2.0**chosen.shift / 2


def test_fewer_bits_cost_more() -> None:
    weight = RANDOM(0).normal(size=(20, 30))
    net = chain((30,), nir.Affine(weight, np.zeros(20)), neuron((20,)))
    snr = []
    for bits in range(8, 3, -1):
        network, plan, _ = lowered(net, spikes((30,)), bits)
        snr.append(losses.of_weights(network, plan)["n1"].snr_db)
    assert all(a > b + 3 for a, b in pairwise(snr))


def test_an_outlier_is_clipped_where_that_costs_less() -> None:
    """One large weight that hardly ever gets input must not take the others' resolution."""
    weight = RANDOM(0).uniform(-0.4, 0.4, (8, 40))
    weight[0, 0] = 3.0
    x = spikes((40,), 3)
    x[..., 0] = 0
    network, plan, _ = lowered(chain((40,), nir.Affine(weight, np.zeros(8)), neuron((8,))), x, 4)
    loss = losses.of_weights(network, plan)["n1"]
    assert loss.clipped == 1 / weight.size
    whole = plan.layers["n1"].connections["n0"].units(weight * 2.0 ** plan.layers["n1"].exponent)
    assert loss.zeroed == ((whole == 0) & (weight != 0)).sum() / weight.size > 0


def test_channels_have_scales_of_their_own() -> None:
    weight = coarse(2, 3)
    weight[0] /= 16
    net = chain((3,), nir.Affine(weight, np.zeros(2)), neuron((2,)))
    _, plan, integer = lowered(net, spikes((3,)), 4, channels=True)
    first, second = plan.layers["n1"].connections["n0"].shift
    assert first < second
    assert np.ndim(integer.graph.nodes["n0"].weight_exp) == 1


def test_headroom_is_kept() -> None:
    net, x, alphabet = EXACT["convolution"]
    _, plan, integer = lowered(net, x, alphabet=alphabet)
    seen = base.get("reference")().compile(integer).run(plan.encode(x), probe=True).states
    for name, layer in plan.layers.items():
        most = max(np.abs(seen[k][name]).max() for k in "uv")
        assert calibrate.MARGIN <= layer.headroom < 4 and most * layer.headroom <= 2**23 + 64 * 4


def test_overflow_that_bounds_exclude_is_proven() -> None:
    bounded = chain((3,), affine(4, 3), neuron((4,)))
    _, plan, integer = lowered(bounded, np.ones((1, T, 3), np.float32))
    # the worst input of all was a sample, so calibration and bound agree
    worst = np.abs(integer.steps["n0"].weight).sum(1).max() * 64 / (1 - 0.5)
    assert plan.layers["n1"].proven == (worst < 2**23)
    _, endless, _ = lowered(chain((3,), affine(4, 3), neuron((4,), decay=1.0)), spikes((3,)))
    assert not endless.layers["n1"].proven


def test_table_of_the_feedback_gate() -> None:
    """Within half a step of Q0.8 at the middle of each index' sums; monotonous, and one half in the middle."""
    plan = GatePlan(WeightPlan(0, "mixed", 8), exponent=9, shift=5)
    table = quantise.gate_table(plan)
    for index in range(256):
        middle = ((index - 128) * 32 + 15.5) / 512
        assert table[index] == min(round(256 / (1 + math.exp(-middle))), 255)
    assert (np.diff(table) >= 0).all() and table[0] == 0 and table[255] == 255


def test_message_bits() -> None:
    cases = {BINARY: 0, TERNARY: 2, interval(0, 4, True): 3, interval(-4, 4, True): 4, interval(0, 255, True): 8}
    cases |= {interval(-8, 7, True): 4, interval(-8, 8, True): 5, interval(0, 256, True): 9}
    assert {a: quantise.message_bits(a) for a in cases} == cases


def test_a_plan_survives_json() -> None:
    for channels in (False, True):
        net, x, alphabet = EXACT["balance gate"]
        _, plan, _ = lowered(net, x, alphabet=alphabet, channels=channels)
        assert plan_from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("layers"),
        lambda d: d.update(bits=9),
        lambda d: d.update(input_scale=0),
        lambda d: d.update(input_scale="x"),
        lambda d: d["layers"]["n1"].pop("connections"),
        lambda d: d.update(layers=[]),
    ],
    ids=["no layers", "nine bits", "no scale", "a word", "no connections", "a list"],
)
def test_a_damaged_plan_is_refused(damage: Callable[[dict[str, Any]], Any]) -> None:
    _, plan, _ = lowered(chain((3,), affine(4, 3), neuron((4,))), spikes((3,)))
    d = plan.to_json()
    damage(d)
    with pytest.raises(GraphError, match=r"plan|bits"):
        plan_from_json(d)


REFUSED: dict[str, tuple[nir.NIRGraph, str]] = {
    "v_reset": (chain((3,), affine(4, 3), neuron((4,), v_reset=-0.25)), "'n1'.*v_reset"),
    "membrane sent": (
        chain((3,), affine(4, 3), stock(nir.LI, (4,), tau=2.0, r=1.0, v_leak=0.0)),
        "'n1' .LI. sends its membrane",
    ),
    "scale": (chain((3,), nir.Scale(np.full(3, 0.5)), affine(4, 3), neuron((4,))), "'n0' .Scale."),
    "no weights": (chain((4,), neuron((4,))), "'n0' is fed by no Dense or Conv"),
    "no neuron": (chain((3,), affine(4, 3)), "no spiking neurons"),
    "two connections in a row": (chain((3,), affine(4, 3), affine(4, 4), neuron((4,))), "'n0' leads to 'n1' .Affine."),
    "two readouts in one output": (
        connected(
            {"w": affine(4, 3), "a": neuron((4,)), "b": affine(2, 4), "c": affine(2, 4)},
            [("in", "w"), ("w", "a"), ("a", "b"), ("a", "c"), ("b", "out"), ("c", "out")],
            (3,),
        ),
        "'out' sums 'b' and 'c'",
    ),
    "spikes beside a readout": (
        connected(
            {"w": affine(4, 3), "a": neuron((4,)), "b": affine(4, 4)},
            [("in", "w"), ("w", "a"), ("a", "b"), ("a", "out"), ("b", "out")],
            (3,),
        ),
        "'out' sums 'a' and 'b'",
    ),
    "maximum of currents": (
        chain(MAP, conv(2, 2), EIMaxPool2d(**POOL), neuron((2, 2, 2))),
        "'n1' .EIMaxPool2d. has no integer kind",
    ),
    "shared connection": (
        connected(
            {
                "w": affine(4, 3),
                "a": neuron((4,)),
                "b": neuron((4,)),
                "j": affine(2, 4),
                "k": affine(2, 4),
                "c": neuron((2,)),
            },
            [("in", "w"), ("w", "a"), ("w", "b"), ("a", "j"), ("b", "k"), ("j", "c"), ("k", "c"), ("c", "out")],
            (3,),
        ),
        "'w' feeds 2 nodes",
    ),
    "two thresholds, subtractive": (
        chain((3,), affine(4, 3), neuron((4,), lower=-0.5, reset="subtract")),
        "'n1'.*two thresholds",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_integer_meaning(name: str) -> None:
    net, why = REFUSED[name]
    network = graph.check(net, alphabet=BINARY)
    with pytest.raises(GraphError, match=why):
        quantise.layers(network)


@pytest.mark.parametrize("bits", [3, 9, 0, -8])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(GraphError, match=f"{bits}.*4 to 8"):
        choose(graph.check(chain((3,), affine(4, 3), neuron((4,)))), Samples(), bits)


def test_a_plan_of_another_network_is_refused() -> None:
    _, plan, _ = lowered(chain((3,), affine(4, 3), neuron((4,))), spikes((3,)))
    other = graph.check(chain((3,), affine(4, 3), neuron((4,)), affine(2, 4), neuron((2,))), alphabet=BINARY)
    with pytest.raises(GraphError, match="another network"):
        apply(other, plan)


def test_nothing_to_calibrate_on() -> None:
    network = graph.check(chain((3,), affine(4, 3), neuron((4,))))
    with pytest.raises(GraphError, match="no sample"):
        observe(network, [])
    with pytest.raises(base.TargetError, match=r"expected \(steps, 3\)"):
        observe(network, [np.zeros((1, 4, 5), np.float32)])


def test_twin_holds_what_the_integers_mean() -> None:
    """All layers rounded: the float twin's weights, decays and thresholds are the integer network's, scaled."""
    weight = RANDOM(5).normal(size=(4, 3))
    net = chain((3,), nir.Affine(weight, np.zeros(4)), lif((4,), decay=0.3, threshold=0.61, gain=0.7))
    network, plan, integer = lowered(net, spikes((3,)), 5)
    same = calibrate.twin(network, plan, ())
    assert np.array_equal(same.steps["n0"].weight, weight)
    twin = calibrate.twin(network, plan, ("n1",))
    alpha = plan.layers["n1"].alpha
    assert np.allclose(twin.steps["n0"].weight * 0.7, integer.steps["n0"].weight * alpha, rtol=1e-12)
    assert not np.allclose(twin.steps["n0"].weight, weight, rtol=1e-4)
    fire = integer.graph.nodes["n1"]
    assert float(twin.steps["n1"].threshold) == fire.vth[0] * alpha
    assert float(twin.steps["n1"].decay) == (4096 - int(fire.dv)) / 4096 == round(0.3 * 4096) / 4096


def test_the_layer_that_costs_is_named() -> None:
    found = losses.Quantisation(Plan(8, 1.0, 0, 1), 1, {})
    for name, alone in (("a", 0.0), ("b", 0.25), ("c", 0.125)):
        found.layers[name] = losses.LayerLoss(name, 1, {}, 8, 2, False, 0, 0, 40, alone_decisions=alone)
    assert found.costliest is found.layers["b"]
    found.accuracy_float, found.accuracy_int, found.budget = 0.98, 0.975, 0.4
    assert not found.ok and found.lost == pytest.approx(0.5)
    assert replace(found, budget=0.5).ok


def test_spikes_changed_are_counted() -> None:
    from eiexport.trace import Trace

    layer = losses.LayerLoss("a", 1, {}, 8, 2, False, 0, 0, 40)
    found = losses.Quantisation(Plan(8, 1.0, 0, 1), 1, {"a": layer})
    a, b = np.array([[[1, 0, -1, 0]]], np.int8), np.array([[[1, 1, 1, 0]]], np.int8)
    found.count(Trace({"a": a}), Trace({"a": b}))
    found.count(Trace({"a": a}), Trace({"a": a}))
    assert (layer.entries, layer.changed, layer.spikes_float, layer.spikes) == (8, 2, 4, 5)


def test_observed_largest_is_before_the_reset() -> None:
    net = chain((1,), nir.Affine(np.array([[3.0]]), np.zeros(1)), neuron((1,), threshold=1.0))
    seen = observe(graph.check(net), [np.ones((2, 3, 1), np.float32)])
    assert seen.nodes["n1"].largest == 3.0 and isinstance(seen.nodes["n0"], Observed)
    assert (seen.lo, seen.hi, seen.whole) == (0.0, 1.0, 1.0)


def test_unknown_input_stays_checked() -> None:
    """A graph is checked before its input is known; only then are messages too wide refused."""
    *_, integer = lowered(chain((3,), affine(4, 3), neuron((4,))), spikes((3,)))
    graph.check(integer.graph, alphabet=REAL)
    with pytest.raises(GraphError, match="message_bits = 0"):
        graph.check(integer.graph, alphabet=TERNARY)


# --- the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("float") / "run"
    list(Fitting(QUICK, out, device="cpu").epochs())
    return out


def test_export_quantises_compares_and_reports(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (run, "--quantize", 6, "--samples", 20, "--calibrate", 30, "--target", "torch", "--out", out)
    said = invoke(EXPORT, *arguments, "--budget", 100).stdout
    report = json.loads((out / "report.json").read_text())
    assert report["reference"]["class"] == "integer"
    row = report["targets"]["torch"]
    assert (row["status"], row["class"], row["mismatches"], row["state_mismatches"]) == ("equal", "integer", 0, 0)
    assert row["state_entries"] == 2 * row["entries"] > 0
    found = report["quantisation"]
    assert found["bits"] == 6 and found["calibrated_on"] == 30 and set(found["per_layer"]) == {"neuron1", "neuron2"}
    floats, whole = (base.TargetError, (out / "traces" / "reference.h5")), out / "traces" / "float.h5"
    assert floats[1].is_file() and whole.is_file()
    kinds = {n: type(node).__name__ for n, node in graph.read(out / "model.nir").nodes.items()}
    assert kinds["conv1"] == "IntConv" and kinds["neuron1"] == "IntGatedLIF"
    assert type(graph.read(out / "model_float.nir").nodes["conv1"]).__name__ == "Conv2d"
    assert plan_from_json(json.loads((out / "plan.json").read_text())).to_json() == found["plan"]
    assert "quantised to 6 bits" in said and "neuron1" in said
    assert "Quantisation" in (out / "report.html").read_text()


def test_the_integer_graph_runs_again_by_itself(run: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    invoke(EXPORT, run, "--quantize", 8, "--samples", 10, "--target", "torch", "--out", first)
    invoke(EXPORT, first / "model.nir", "--input", first / "input.h5", "--target", "torch", "--out", again)
    from eiexport.trace import compare_files

    results, remarks = compare_files(first / "traces" / "torch.h5", again / "traces" / "torch.h5")
    assert not remarks and sum(r.state_entries for r in results.values()) > 0
    assert not any(r.mismatches or r.state_mismatches for r in results.values())


def test_a_plain_file_is_quantised_on_calibration_data(run: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first", tmp_path / "out"
    invoke(EXPORT, run, "--samples", 10, "--out", first)
    given = (first / "model.nir", "--input", first / "input.h5", "--quantize", 8, "--out", out)
    invoke(EXPORT, *given, "--calibration", first / "input.h5", "--target", "torch")
    assert json.loads((out / "report.json").read_text())["quantisation"]["accuracy_float"] is None


def test_a_budget_that_is_exceeded_fails(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses.Quantisation, "lost", property(lambda self: 1.5))
    invoke(EXPORT, run, "--quantize", 8, "--samples", 5, "--budget", 1.4, "--out", tmp_path / "a", code=1)
    invoke(EXPORT, run, "--quantize", 8, "--samples", 5, "--budget", 1.5, "--out", tmp_path / "b")


def test_a_register_that_differs_fails(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same spikes with another membrane are not equal."""
    from targets.pytorch import _Program

    original = _Program.run

    def off(self: Any, x: np.ndarray, probe: bool = False) -> Any:
        trace = original(self, x, probe)
        if probe:
            trace.states["v"]["neuron2"][1, 2] += 1
        return trace

    monkeypatch.setattr(_Program, "run", off)
    said = invoke(EXPORT, run, "--quantize", 8, "--samples", 5, "--target", "torch", "--out", tmp_path / "a", code=1)
    assert "register values differ; first at node 'neuron2', step 2" in said.stdout


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--quantize", "3"], ["--quantize 3", "4 to 8"]),
        (["--quantize", "9"], ["--quantize 9", "4 to 8"]),
        (["--quantize", "8", "--calibrate", "0"], ["--calibrate"]),
        (["--per-channel"], ["--per-channel", "--quantize"]),
        (["--quantize", "8", "--calibration", "x.npy"], ["--calibration"]),
        (["--chip", "loihi3"], ["'loihi3'", "loihi1, loihi2"]),
        (["--quantize", "8", "--budget", "-1"], ["--budget -1"]),
    ],
    ids=lambda v: " ".join(v) if v[0].startswith("--") else "",
)
def test_options_that_are_refused(
    run: Path,
    tmp_path: Path,
    refused: Callable[..., str],  # noqa: F811
    arguments: list[str],
    names: list[str],
) -> None:
    shutil.copytree(run, tmp_path / "run")
    refused(EXPORT, tmp_path / "run", *arguments, "--out", tmp_path / "out", names=tuple(names))


def test_calibration_of_the_wrong_shape(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:  # noqa: F811
    invoke(EXPORT, run, "--samples", 4, "--out", tmp_path / "first")
    np.save(tmp_path / "c.npy", np.zeros((2, 3, 5), np.float32))
    first = tmp_path / "first"
    given = (first / "model.nir", "--input", first / "input.h5", "--quantize", 8, "--out", tmp_path / "out")
    refused(EXPORT, *given, "--calibration", tmp_path / "c.npy", names=("(3, 5)",))
    refused(EXPORT, *given, "--calibration", tmp_path / "none.npy", names=("none.npy",))


def test_fractions_into_an_integer_graph(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:  # noqa: F811
    first = tmp_path / "first"
    invoke(EXPORT, run, "--quantize", 8, "--samples", 4, "--out", first)
    given = (first / "model.nir", "--input", first / "input_float.h5", "--out", tmp_path / "out")
    refused(EXPORT, *given, names=("whole numbers",))
    refused(
        EXPORT, first / "model.nir", "--input", first / "input.h5", "--quantize", 8, names=("integer graph already",)
    )
    assert tree(tmp_path)


def test_hardware_is_reported_and_its_program_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (run, "--quantize", 8, "--samples", 6, "--target", "loihi", "--target", "loihi-file")
    said = invoke(EXPORT, *arguments, "--out", out).stdout
    report = json.loads((out / "report.json").read_text())
    assert {r["status"] for r in report["targets"].values()} == {"equal"}
    lo, hi = report["resources"]["cores"]
    assert 1 <= lo <= hi and f"loihi2: {lo}" in said
    operations = report["estimates"]["operations"]
    assert 0 < operations["synaptic_events"] <= operations["synaptic_events_dense"]
    assert "assumed microcode" in (out / "report.html").read_text()
    assert (out / "program.loihi.h5").is_file()
    # a chip that cannot do it says so; what an earlier export left is gone
    invoke(EXPORT, run, "--quantize", 8, "--samples", 6, "--target", "loihi", "--chip", "loihi1", "--out", out, code=1)
    row = json.loads((out / "report.json").read_text())["targets"]["loihi"]
    assert row["status"] == "unsupported" and "neuron1" in row["message"] and "loihi1" in row["message"]
    assert not (out / "program.loihi.h5").exists()


# --- found in review


def both(network: Any, plan: Plan, integer: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spikes of the float and of the integer network."""
    reference = base.get("reference")()
    return reference.compile(network).run(x).z["n1"], reference.compile(integer).run(plan.encode(x)).z["n1"]


def test_dense_layers_over_rows_keep_their_biases_and_gains() -> None:
    """A dense layer maps the last axis; its biases and gains belong there."""
    gain = np.broadcast_to(np.array([1.0, 0.5, 0.25, 2.0]), (4, 4)).copy()
    neurons = replace(neuron((4, 4)), gain=gain)
    net = chain((4, 3), nir.Affine(coarse(4, 3), np.array([0.125, 0.25, 0.5, 1.0])), neurons)
    x = spikes((4, 3))
    network, plan, integer = lowered(net, x)
    floats, ours = (
        base.get("reference")().compile(n).run(y).z["n1"] for n, y in ((network, x), (integer, plan.encode(x)))
    )
    assert floats.any() and np.array_equal(floats, ours)


def test_tiny_inputs_are_no_whole_numbers() -> None:
    x = (RANDOM(1).random((2, T, 3)) * 2e-6).astype(np.float32)
    network, plan, integer = lowered(
        chain((3,), nir.Affine(coarse(4, 3) * 1e6, np.zeros(4)), neuron((4,))), x, alphabet=REAL
    )
    floats, ours = (
        base.get("reference")().compile(n).run(y).z["n1"] for n, y in ((network, x), (integer, plan.encode(x)))
    )
    assert floats.any() and (floats != ours).mean() < 0.1


def test_calibration_on_nothing_is_refused() -> None:
    network = graph.check(chain((3,), affine(4, 3), neuron((4,))))
    with pytest.raises(GraphError, match="all zero"):
        choose(network, observe(network, [np.zeros((1, T, 3), np.float32)]), 8)


def test_pools_and_sums_count_in_what_is_proven() -> None:
    """One live pixel calibrates, all of them run: the registers would wrap, so nothing may be called proven."""
    pool = nir.SumPool2d(np.array([4, 4]), np.array([4, 4]), np.array([0, 0]))
    weight = nir.Conv2d(
        input_shape=None, weight=np.ones((1, 1, 3, 3)), stride=1, padding=1, dilation=1, groups=1, bias=np.zeros(1)
    )
    x = np.zeros((1, T, 1, 8, 8), np.float32)
    x[..., 0, 0] = 1
    _, plan, _ = lowered(chain((1, 8, 8), weight, pool, neuron((1, 2, 2))), x)
    assert not plan.layers["n2"].proven


def test_large_biases_and_lower_thresholds_fit_their_registers() -> None:
    loud = nir.Affine(coarse(4, 3), np.full(4, 40.0))
    _, plan, integer = lowered(chain((3,), loud, neuron((4,), threshold=100.0)), spikes((3,)))
    node = integer.graph.nodes["n1"]
    assert np.abs(node.bias_mant).max() <= 4095 and 0 <= node.bias_exp <= 7
    _, plan, integer = lowered(chain((3,), affine(4, 3), neuron((4,), lower=-1000.0)), spikes((3,)))
    assert np.abs(integer.graph.nodes["n1"].lower).max() <= quantise.VTH_MAX and plan.layers["n1"].alpha > 0


def test_v_reset_is_refused_only_where_it_acts() -> None:
    unused = chain((3,), affine(4, 3), neuron((4,), reset="subtract", v_reset=0.25))
    assert quantise.layers(graph.check(unused, alphabet=BINARY))


def test_gates_that_training_let_grow_stay_within_their_sums() -> None:
    """Rows are scaled down to what the accumulator holds; those that fit stay as they are."""
    plan = GatePlan(WeightPlan(0, "mixed", 8), exponent=5, shift=4, message_bits=12)
    weight = RANDOM(0).uniform(-3.9, 3.9, (3, 8, 5, 5)) * 2.0**5
    weight[0] /= 40
    units, bias = quantise.gate_units(plan, weight, np.array([0.0, 1e9, -5.0]))
    assert np.array_equal(units[0], plan.weight.units(weight)[0])
    assert (np.abs(units).reshape(3, -1).sum(1) * 2047 + np.abs(bias).max() <= 2**23 - 1).all()
    assert not np.array_equal(units[1], plan.weight.units(weight)[1]) and np.abs(units[1]).max() > 1


def test_no_spiking_neurons_nothing_to_quantise() -> None:
    with pytest.raises(GraphError, match="no spiking neurons"):
        quantise.layers(graph.check(chain(MAP, nir.AvgPool2d(**POOL))))


def test_a_layer_alone_rounds_its_biases_too() -> None:
    net = chain((3,), nir.Affine(coarse(4, 3), np.full(4, 0.0101)), neuron((4,)))
    network, plan, integer = lowered(net, spikes((3,)))
    twin = calibrate.twin(network, plan, ("n1",))
    node = integer.graph.nodes["n1"]
    meant = node.bias_mant * 2.0 ** (node.bias_exp - 6) * plan.layers["n1"].alpha
    assert np.allclose(twin.steps["n0"].bias, meant, rtol=1e-12) and not np.allclose(meant, 0.0101, rtol=1e-6)


def test_what_was_clipped_and_calibrated_on_is_said(run: Path, tmp_path: Path) -> None:
    invoke(EXPORT, run, "--samples", 6, "--out", tmp_path / "a")
    x = np.zeros((2, 3, 1, 8, 8), np.float32)
    x[..., 2:5, 2:5] = 0.5
    np.save(tmp_path / "dim.npy", x)
    given = (tmp_path / "a" / "model.nir", "--input", tmp_path / "a" / "input.h5", "--quantize", 8)
    said = invoke(EXPORT, *given, "--calibration", tmp_path / "dim.npy", "--out", tmp_path / "b").stdout
    assert "lay outside what calibration had seen" in said and "tested input itself" not in said
    assert "tested input itself" in invoke(EXPORT, *given, "--out", tmp_path / "c").stdout


def test_budget_needs_labels_and_torch32_is_not_dropped(
    run: Path,
    tmp_path: Path,
    refused: Callable[..., str],  # noqa: F811
) -> None:
    invoke(EXPORT, run, "--samples", 3, "--out", tmp_path / "a")
    given = (tmp_path / "a" / "model.nir", "--input", tmp_path / "a" / "input.h5")
    refused(EXPORT, *given, "--quantize", 8, "--budget", 1, "--out", tmp_path / "b", names=("--budget", "run folder"))
    refused(EXPORT, *given, "--out", tmp_path / "a", names=("model.nir", "another --out"))
    invoke(EXPORT, run, "--quantize", 8, "--target", "torch32", "--samples", 3, "--out", tmp_path / "c", code=1)
    row = json.loads((tmp_path / "c" / "report.json").read_text())["targets"]["torch32"]
    assert row["status"] == "unsupported"


def test_registers_that_were_not_compared_are_said(run: Path, tmp_path: Path) -> None:
    import h5py

    out = tmp_path / "a"
    invoke(EXPORT, run, "--quantize", 8, "--samples", 3, "--target", "torch", "--out", out)
    first, second = (out / "traces" / f"{n}.h5" for n in ("torch", "reference"))
    assert "equal" in invoke(EXPORT, "--compare", first, second).stdout
    with h5py.File(first, "r+") as f:
        del f["nodes"]["neuron2"]["observables"]["v"]
    assert "'neuron2': register v is in one file only" in invoke(EXPORT, "--compare", first, second, code=1).stdout
