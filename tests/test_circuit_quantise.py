"""Circuits in whole numbers: Dale's law, widths, what rounding costs, plans, and training through the integers.

Coarse dyadic circuits lose nothing: there the integer network must send the very spikes of the float one. Elsewhere its
currents must lie where the float twin, and the floors on the way, allow them to.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import circuit_oracle
import nir
import numpy as np
import pytest
from cases import chain, connected
from circuit_cases import KERNEL
from test_divide import COUNTS, approximated, counts, linear, network

from eiexport import divide, graph, quantise
from eiexport.alphabet import BINARY, Alphabet, interval
from eiexport.calibrate import choose, twin
from eiexport.circuits import CURRENT, DIVIDING, EICircuit, IntCircuit
from eiexport.divide import FORMS, Numbers
from eiexport.errors import GraphError
from eiexport.graph import Network
from eiexport.integers import TOP
from eiexport.nodes import lif
from eiexport.ops import NumpyOps
from eiexport.plans import LayerPlan, Plan, plan_from_json
from eiexport.steps import bind
from targets import base
from targets.observe import observe

BITS = range(4, 9)
T, RNG, PARTS = 4, np.random.default_rng, ("excite", "inhibit", "spread")
NEURON: dict[str, Any] = {"decay": 0.5, "threshold": 1.0, "compare": "ge", "reset": "subtract"}
X = counts(20, 30)


def lowered(
    net: nir.NIRGraph, x: np.ndarray, bits: int = 8, alphabet: Alphabet = COUNTS
) -> tuple[Network, Plan, Network]:
    """(float network, plan, integer network)."""
    before = graph.check(net, alphabet=alphabet)
    plan = choose(before, observe(before, [x]), bits)
    return before, plan, graph.check(quantise.apply(before, plan), alphabet=plan.alphabet)


def formed(form: str) -> nir.NIRGraph:
    """The first circuit's matrices are of different size, so that each has an exponent of its own."""
    net = network()
    net.nodes["n0"].inhibit.weight *= 5
    net.nodes["n0"].spread.weight *= 0.3
    numbers = {"n0": Numbers(RNG(3).uniform(0.3, 2, 6), 0.21), "n2": Numbers(RNG(4).uniform(0.3, 2, 8), 0.09)}
    return divide.reform(net, form, numbers)


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, int], tuple[Network, Plan, Network]]:
    """Two circuits and an output circuit in every form, at every width."""
    return {(form, bits): lowered(formed(form), X, bits) for form in FORMS for bits in BITS}


EVERY = pytest.mark.parametrize("form, bits", [(form, bits) for form in FORMS for bits in BITS])


def circuits(net: Network) -> dict[str, IntCircuit]:
    return {n: node for n, node in net.graph.nodes.items() if isinstance(node, IntCircuit)}


def effective(part: Any) -> np.ndarray:
    """An integer connection's weights, shift included."""
    return part.weight.astype(np.float64) * 2.0 ** float(part.weight_exp)


def currents(net: Network, name: str, rows: np.ndarray) -> np.ndarray:
    return bind(net.steps[name], NumpyOps()).drive(NumpyOps(), rows)


# --- Dale's law, and one W_EI


@EVERY
def test_nothing_falls_below_zero(form: str, bits: int, made: Any) -> None:
    """D3, on the numbers of the file; zeros stay zeros, and a sixth of the range at least is used."""
    before, plan, after = made[form, bits]
    assert circuits(after).keys() == {"n0", "n2", "n4"}
    for name, node in circuits(after).items():
        given = before.graph.nodes[name]
        for part in PARTS:
            words, weight = getattr(node, part).weight, getattr(given, part).weight
            assert words.dtype == np.int16 and words.shape == weight.shape and getattr(node, part).bits == bits
            assert (
                words.min() >= 0
                and getattr(node, part).sign_mode == "excitatory"
                and not getattr(node, part).bias.any()
            )
            assert (words[weight == 0] == 0).all() and words.max() > 255 / 6
            assert (np.diff(words.ravel()[np.argsort(weight.ravel())]) >= 0).all()  # rounding keeps the order
        if name == "n4":
            assert (node.form, node.gain_i, node.gain_e, node.bias) == ("none", None, None, None)
            continue
        assert node.form == form and node.gain_e.min() >= 0 and node.gain_e.max() > 100
        assert (node.gain_i is None) == (form == "frozen")
        if form in DIVIDING:
            assert node.epsilon >= 1 and node.gain_i.min() >= 0 and node.gain_i.max() > 100
    assert plan.layers["n1"].circuits["n0"].spread.bits == bits


@pytest.mark.parametrize("bits", BITS)
def test_spread_is_rounded_once_for_both_uses(bits: int, made: Any) -> None:
    """N and D of the integers, by hand from the one matrix that the node stores."""
    _, plan, after = made["exact", bits]
    node, p = circuits(after)["n0"], plan.layers["n1"].circuits["n0"]
    rounded = np.round(formed("exact").nodes["n0"].spread.weight * 2.0 ** (p.exponents[2] - p.spread.shift))
    rounded = rounded.clip(0, 2**bits - 1) * 2.0 ** (p.spread.shift - p.exponents[2])
    # its exponent holds what lies between N's unit and that of the sums
    np.testing.assert_array_equal(effective(node.spread), rounded * 2.0 ** (p.exponents[0] - p.exponents[1]))
    rows = X.reshape(-1, 5)
    s = rows @ effective(node.inhibit).T
    n = rows @ effective(node.excite).T - np.floor(s @ effective(node.spread).T)
    d = np.floor(np.floor(s * node.gain_i / 2**node.gain_shift) @ effective(node.spread).T)
    wanted = np.floor(node.gain_e * n * 2**node.shift / np.where(d == 0, node.epsilon, d)) + node.bias
    np.testing.assert_array_equal(currents(after, "n0", rows), wanted.clip(-CURRENT, CURRENT))


# --- engines


@EVERY
def test_engines_agree_with_plain_integers(form: str, bits: int, made: Any) -> None:
    """Reference, torch and a scalar oracle, on input that calibration did not see, silence and the largest included."""
    _, plan, after = made[form, bits]
    x = counts(21, 5).astype(np.float64)
    x[2] = 0
    x[3, 0] = plan.input_hi
    reference, engine = (base.get(k)().compile(after).run(plan.encode(x), probe=True) for k in ("reference", "torch"))
    assert reference.z.keys() == engine.z.keys() == {"n1", "n3", "n4"}
    for name, z in reference.z.items():
        assert np.array_equal(engine.z[name], z) and z.any(), name
    for name in ("n1", "n3"):
        assert np.array_equal(engine.states["v"][name], reference.states["v"][name])
    wanted = circuit_oracle.run([after.graph.nodes[f"n{i}"] for i in range(5)], plan.encode(x))
    for name in ("n1", "n3", "n4"):
        assert np.array_equal(reference.z[name], wanted[int(name[1])].reshape(reference.z[name].shape)), name
    alone = base.get("torch")().compile(after).run(plan.encode(x[2:3]))
    assert all(np.array_equal(alone.z[n][0], z[2]) for n, z in reference.z.items())


# --- what rounding costs


def bracket(plan: LayerPlan, step: Any, epsilon: Any, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """(least, largest, sure): between what floors leave the integers' current, where D cannot have become 0.

    step: the float twin, but epsilon, which may be off by half a unit of D. Every floor takes less than one unit: of
    N, up; of D, those of the cells' products, times W_EI, and its own, down; of the quotient, down.
    """
    (p,) = plan.circuits.values()
    s = np.maximum(rows @ step.inhibit.weight.T, 0)
    spread = step.spread.weight
    low = rows @ step.excite.weight.T - s @ spread.T
    gain, bias = np.ravel(step.gain_e), 0 if step.bias is None else np.ravel(step.bias)
    tops = low, low + 2.0 ** -p.exponents[0]
    ends, sure = [gain * n for n in tops], np.full(low.shape, True)
    if step.form != "frozen":
        came, down = (s * step.gain_i) @ spread.T, p.gain_shift - p.gain_i
        unit = 2.0 ** (down - p.exponents[0])
        floors = spread.sum(1) * 2.0 ** (down - p.exponents[1]) + unit
        sure = (came == 0) | (came > floors)
        edges = (
            (max(epsilon - unit / 2, 1e-30), came),
            (max(epsilon + unit / 2, unit), np.maximum(came - floors, 1e-30)),
        )
        d = [np.where(came == 0, fill, below) for fill, below in edges]
        nothing = Numbers(np.ones(1), 1.0)
        ends = [gain * approximated(step.form, n, below, nothing) for n in tops for below in d]
    most = CURRENT * plan.alpha
    least = np.min(ends, 0) + bias - (3 if step.form == "table" else 1) * plan.alpha
    return least.clip(-most, most), (np.max(ends, 0) + bias).clip(-most, most), sure


def held(before: Network, plan: Plan, after: Network, circuit: str, owner: str, rows: np.ndarray) -> np.ndarray:
    """Where the integers' currents cannot be told from D; everywhere else they are held to their bounds."""
    step: Any = twin(before, plan, list(plan.layers)).steps[circuit]
    epsilon = before.steps[circuit].epsilon  # type: ignore[attr-defined]
    least, largest, sure = bracket(
        plan.layers[owner], step, epsilon, np.round(rows / plan.input_scale) * plan.input_scale
    )
    found = currents(after, circuit, plan.encode(rows)) * plan.layers[owner].alpha
    slack = 1e-9 * np.abs(largest) + 1e-12
    assert (found >= least - slack)[sure].all() and (found <= largest + slack)[sure].all()
    return sure


@EVERY
def test_currents_lie_where_floors_leave_them(form: str, bits: int, made: Any) -> None:
    before, plan, after = made[form, bits]
    rows, most = X.reshape(-1, 5).astype(np.float64), CURRENT * plan.layers["n1"].alpha
    assert held(before, plan, after, "n0", "n1", rows).mean() > 0.95
    meant = currents(twin(before, plan, list(plan.layers)), "n0", rows).clip(-most, most)
    off = currents(after, "n0", plan.encode(rows)) * plan.layers["n1"].alpha - meant
    assert np.sqrt(np.square(off).mean()) / meant.std() < (0.1 if bits < 6 else 0.05)


@pytest.mark.parametrize("form", FORMS)
def test_what_the_weights_alone_cost(form: str, made: Any) -> None:
    """The twin rounds matrices, gains, epsilon and bias, and nothing else: its error falls with the bits."""
    before = made[form, 8][0]
    rows = X.reshape(-1, 5).astype(np.float64)
    meant = currents(before, "n0", rows)
    errors = []
    for bits in BITS:
        rounded = twin(before, made[form, bits][1], ["n1"])
        other = currents(rounded, "n0", rows)
        errors.append(float(np.sqrt(np.square(other - meant).mean()) / meant.std()))
        assert rounded.steps["n2"] is before.steps["n2"] and rounded.steps["n0"] is not before.steps["n0"]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2] > 4 * errors[4] and errors[4] < 0.03 and errors[0] < 1, errors


@pytest.mark.parametrize("form", FORMS)
def test_spikes_hardly_change_in_eight_bits(form: str, made: Any) -> None:
    before, plan, after = made[form, 8]
    one = base.get("reference")().compile(before).run(X).z
    other = base.get("reference")().compile(after).run(plan.encode(X)).z
    assert (one["n1"] != other["n1"]).mean() < 0.01 and (one["n3"] != other["n3"]).mean() < 0.02
    assert 0.05 < one["n3"].mean() < 0.95
    off = other["n4"] * plan.layers["n4"].alpha - one["n4"]
    same = (one["n3"] == other["n3"]).all(-1)
    assert np.abs(off[same]).max() < 0.02 * np.abs(one["n4"]).max() and same.mean() > 0.8


# --- widths


def trained(seed: int, form: str, inputs: int, cells: int) -> EICircuit:
    """As training leaves them: exponential weights with long tails, some at 0, gains of their own."""
    rng = RNG(seed)
    n = max(1, cells // 4)
    scale = 10.0 ** rng.uniform(-2, 0.5)

    def draw(*size: int, scale: float) -> nir.Linear:
        return linear(rng.exponential(scale, size) ** rng.choice([1, 1.5]) * (rng.random(size) < rng.choice([0.3, 1])))

    parts = draw(cells, inputs, scale=scale), draw(n, inputs, scale=scale), draw(cells, n, scale=1 / n)
    if form == "none":
        return EICircuit(*parts, form=form)
    given: dict[str, Any] = {"gain_i": rng.uniform(0, 2, n), "gain_e": rng.exponential(1, cells)}
    given |= {"bias": rng.normal(0, 0.5, cells), "zero": "constant", "epsilon": 0.01}
    return EICircuit(*parts, form=form, **given, denominator=rng.uniform(0.1, 2, cells))


@pytest.mark.parametrize("form", [*FORMS, "none"])
def test_no_sum_leaves_its_register(form: str) -> None:
    """On the largest input of all, for one input or a thousand, spikes or eight bits; and no scale is lost for it."""
    rng = RNG(30)
    for seed in range(12):
        inputs, hi, bits = int(rng.choice([1, 20, 1024])), int(rng.choice([1, 3, 255])), int(rng.integers(4, 9))
        node = trained(seed, form, inputs, int(rng.integers(4, 30)))
        x = rng.integers(0, hi + 1, (2, 3, inputs)).astype(np.float32)
        x[1] = hi
        nodes = [node, lif((len(node.excite.weight),), **NEURON)]
        if form == "none":
            nodes = [nir.Affine(np.eye(inputs), np.zeros(inputs)), lif((inputs,), **NEURON), node]
        before, plan, after = lowered(chain((inputs,), *nodes), x, bits, interval(0, hi, True))
        (found,) = circuits(after).values()
        top = 1 if form == "none" else plan.input_hi
        s = np.floor(effective(found.inhibit)).sum(1) * top
        sums = [np.floor(effective(found.excite)).sum(1) * top, s, effective(found.spread) @ s]
        if form in DIVIDING:
            sums.append(effective(found.spread) @ np.floor(s * found.gain_i / 2**found.gain_shift))
        assert max(float(a.max(initial=0)) for a in sums) <= TOP, (seed, form)
        one, other = (base.get(k)().compile(after).run(plan.encode(x), probe=True) for k in ("reference", "torch"))
        assert all(np.array_equal(one.z[n], z) for n, z in other.z.items())
        if form != "none":
            held(before, plan, after, "n0", "n1", x.reshape(-1, inputs).astype(np.float64))
        # messages as narrow as they may be
        width = 0 if top == 1 else 2 if top == 3 else 8
        assert found.excite.message_bits == found.inhibit.message_bits == width
        assert s.max(initial=0) < 2 ** max(found.spread.message_bits, 1)


# --- input units, sums, maps


def dyadic(seed: int, inputs: int, form: str, cells: int = 4) -> EICircuit:
    """Coarse powers of two, so that nothing is rounded."""
    rng = RNG(seed)
    sizes = (cells, inputs), (1, inputs), (cells, 1)
    parts = [
        linear(rng.choice(v, size))
        for v, size in zip(([0, 0.25, 0.5, 1], [0, 0.25, 0.5], [0.5, 1]), sizes, strict=True)
    ]
    if form == "none":
        return EICircuit(*parts, form="none")
    given: dict[str, Any] = {"gain_i": rng.choice([0.5, 1], 1), "gain_e": rng.choice([0.5, 1, 2], cells)}
    given |= {"bias": rng.choice([-0.25, 0, 0.5], cells), "zero": "constant", "epsilon": 0.125}
    return EICircuit(*parts, form=form, **given, denominator=rng.choice([0.5, 1, 2], cells))


def mapped(seed: int, form: str) -> EICircuit:
    """The same, strided over maps of 2 channels and 5 x 4 pixels."""
    flat = dyadic(seed, 12, form)
    parts = [flat.excite.weight.reshape(4, 2, 3, 2), flat.inhibit.weight.reshape(1, 2, 3, 2)]
    made = [nir.Conv2d((5, 4), w, dilation=1, groups=1, bias=np.zeros(len(w)), **KERNEL) for w in parts]
    place = nir.Conv2d((3, 3), flat.spread.weight.reshape(4, 1, 1, 1), 1, 0, 1, 1, np.zeros(4))
    return replace(flat, excite=made[0], inhibit=made[1], spread=place)


def pooled(form: str) -> tuple[nir.NIRGraph, tuple[int, ...], Alphabet]:
    """An average of four pixels in front of a strided circuit over maps: messages are their sums, in quarters."""
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    return chain((2, 10, 8), pool, mapped(1, form), lif((4, 3, 3), **NEURON)), (2, 10, 8), interval(0, 4, True)


def summed(form: str) -> tuple[nir.NIRGraph, tuple[int, ...], Alphabet]:
    """Two populations whose spikes enter one circuit as a sum, and a readout behind it."""
    nodes = {"a": dyadic(2, 6, form), "za": lif((4,), **NEURON), "b": dyadic(3, 6, form), "zb": lif((4,), **NEURON)}
    nodes |= {"c": dyadic(4, 4, form), "zc": lif((4,), **NEURON), "d": dyadic(5, 4, "none")}
    edges = [("in", "a"), ("a", "za"), ("in", "b"), ("b", "zb"), ("za", "c"), ("zb", "c"), ("c", "zc"), ("zc", "d")]
    return connected(nodes, [*edges, ("d", "out")], (6,)), (6,), BINARY


@pytest.mark.parametrize("form", ["frozen", "shift"])
@pytest.mark.parametrize("make", [pooled, summed], ids=["pooled", "summed"])
def test_coarse_numbers_lose_nothing(make: Callable[[str], Any], form: str) -> None:
    net, shape, alphabet = make(form)
    x = RNG(31).integers(0, alphabet.hi + 1, (6, T, *shape)).astype(np.float32)
    x[0, 1] = 0
    before, plan, after = lowered(net, x, 8, alphabet)
    one = base.get("reference")().compile(before).run(x, probe=True)
    other = base.get("reference")().compile(after).run(plan.encode(x), probe=True)
    assert one.z.keys() == other.z.keys()
    for name, z in one.z.items():
        chosen = plan.layers[name]
        if name == "d":
            np.testing.assert_array_equal(other.z[name] * chosen.alpha, z)
            continue
        np.testing.assert_array_equal(other.z[name], z)
        assert 0 < z.mean() < 1
        v = other.states["v"][name] * chosen.alpha / 64
        reached = np.abs(v) < CURRENT * chosen.alpha / 2
        np.testing.assert_allclose(v[reached], one.states["v"][name][reached], atol=chosen.alpha * 2)
    first, *rest = circuits(after).values()
    assert first.excite.message_bits == (5 if make is pooled else 0)  # four pixels of up to 4
    assert make is pooled or [c.excite.message_bits for c in rest] == [0, 2, 0]
    assert make is summed or isinstance(after.graph.nodes["n0"], nir.SumPool2d)


@pytest.mark.parametrize("form", FORMS)
def test_images_are_messages_of_eight_bits(form: str) -> None:
    """Pixels of 255 levels, shown at every step: a message's unit is 1 / 255, in both matrices."""
    x = (RNG(32).integers(0, 256, (5, 1, 5)) / 255).astype(np.float32).repeat(T, 1)
    x[0, :, 0] = 1
    before, plan, after = lowered(formed(form), x, 8, interval(0, 1, False))
    assert plan.input_scale == pytest.approx(1 / 255, rel=1e-6) and (plan.input_lo, plan.input_hi) == (0, 255)
    np.testing.assert_array_equal(plan.encode(x), np.round(x * 255))
    assert circuits(after)["n0"].excite.message_bits == 8
    rows = x.reshape(-1, 5).astype(np.float64)
    alpha = plan.layers["n1"].alpha
    meant, most = currents(before, "n0", rows), CURRENT * alpha
    found = currents(after, "n0", plan.encode(rows)) * alpha
    assert np.sqrt(np.square(found - meant.clip(-most, most)).mean()) < 0.03 * meant.clip(-most, most).std()
    assert held(before, plan, after, "n0", "n1", rows).mean() > 0.95


def test_what_has_no_integers_is_refused() -> None:
    """By name: the minimum of a sample, an input that may be negative or without bound, an output form before cells."""
    x = counts(33)
    for net, alphabet, says in (
        (network(), COUNTS, r"'n0' fills zeros by a minimum .*--divide"),
        (chain((4,), dyadic(1, 4, "none"), lif((4,), **NEURON)), COUNTS, r"'n0' has no gains"),
    ):
        before = graph.check(net, alphabet=alphabet)
        with pytest.raises(GraphError, match=says):
            choose(before, observe(before, [x[..., : before.input_shape("n0")[0]]]), 8)
    cell, behind = lif((4,), **NEURON), nir.Scale(np.full(4, 0.5))
    with pytest.raises(GraphError, match=r"'n0'.*(circuit ends in one neuron|leads to)|'n1' .Scale."):
        lowered(chain((5,), replace(dyadic(1, 5, "shift")), behind, cell), x)


# --- plans


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_survives_json(form: str, made: Any) -> None:
    before, plan, after = made[form, 5]
    again = plan_from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan and again.layers["n1"].circuits.keys() == {"n0"}
    other = quantise.apply(before, again)
    for name, node in circuits(after).items():
        for part in PARTS:
            assert np.array_equal(getattr(other.nodes[name], part).weight, getattr(node, part).weight)


@pytest.mark.parametrize(
    "key, value",
    [
        ("exponents", [1, 2]),
        ("exponents", [1, 2, 65]),
        ("exponents", "abc"),
        ("gain_i", -65),
        ("gain_e", 1e9),
        ("gain_shift", -1),
        ("gain_shift", 24),
        ("shift", 25),
        ("epsilon", 0),
        ("epsilon", 1 << 23),
        ("excite", {"shift": 0, "sign_mode": "excitatory", "bits": 4}),
        ("inhibit", {"shift": -1, "sign_mode": "excitatory", "bits": 8}),
        ("spread", {"shift": 0, "sign_mode": "both", "bits": 8}),
        ("inhibit", {"shift": 0, "sign_mode": "inhibitory", "bits": 8}),
        ("spread", None),
        ("epsilon", None),
    ],
    ids=str,
)
def test_a_damaged_plan_is_refused(key: str, value: Any, made: Any) -> None:
    d = made["exact", 8][1].to_json()
    d["layers"]["n1"]["circuits"]["n0"][key] = value
    with pytest.raises(GraphError, match=r"^not a quantisation plan"):
        plan_from_json(json.loads(json.dumps(d)))


def test_a_plan_of_another_network_is_refused(made: Any) -> None:
    before, plan, _ = made["exact", 8]
    layers = dict(plan.layers)
    layers["n1"] = replace(layers["n1"], circuits={})
    with pytest.raises(GraphError, match=r"another network: circuits of 'n1' differ"):
        quantise.apply(before, replace(plan, layers=layers))


# --- output circuits, apart or folded


def test_readout_apart_and_folded() -> None:
    """Two integer networks of one float one: both agree over engines, and with it up to rounding."""
    net = formed("frozen")
    folded = divide.fold(net)
    wanted = base.get("reference")().compile(graph.check(net, alphabet=COUNTS)).run(X).z["n4"]
    kinds = []
    for one in (net, folded):
        _, plan, after = lowered(one, X)
        z = [base.get(k)().compile(after).run(plan.encode(X)).z["n4"] for k in ("reference", "torch", "loihi")]
        assert np.array_equal(z[0], z[1]) and np.array_equal(z[0], z[2])
        off = z[0] * plan.layers["n4"].alpha - wanted
        assert np.median(np.abs(off)) < 0.01 * np.abs(wanted).max() and np.abs(wanted).max() > 1
        kinds.append({type(n).__name__ for n in after.graph.nodes.values()} - {"Input", "Output", "IntCubaLIF"})
    assert kinds == [{"IntCircuit"}, {"IntDense"}]
    signs = np.sign(lowered(folded, X)[2].graph.nodes["n0"].weight)
    assert {-1, 1} <= set(signs.ravel().tolist())  # Dale's law is said of the matrices, which folding mixes
