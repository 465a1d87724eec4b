"""Circuits that provoke what can go wrong in them: zeros of D, negative numerators, both geometries, every form.

`FLOATS` and `WHOLE` are held against `circuit_oracle`. A float case is `exact` where weights, gains and inputs are
dyadic and short: then N and D are exact in any order of summation, and the rest are single roundings of IEEE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import circuit_oracle
import nir
import numpy as np
from cases import Case, connected
from int_networks import conv, dense

from eiexport.alphabet import REAL, Alphabet, interval
from eiexport.circuits import EICircuit, IntCircuit
from eiexport.graph import Network
from eiexport.integers import IntCubaLIF
from eiexport.nodes import lif, prepare
from eiexport.ops import NumpyOps
from eiexport.steps import Clock, bind
from targets.loop import Executor

FLAT, MAP = (5,), (2, 5, 4)
KERNEL = {"stride": np.array([2, 1]), "padding": np.array([1, 0])}
FORMS = (("none", "sample_min"), ("exact", "sample_min"), ("exact", "constant"), ("frozen", "sample_min"))
FORMS += (("shift", "constant"), ("table", "constant"))
COUNTS = interval(0, 4, True)


def circuit_of(
    seed: int, form: str, zero: str, shape: Any, exact: bool, cells: tuple[int, int] = (4, 2), **fields: Any
) -> EICircuit:
    """A circuit over a flat input, or a strided and padded one over a map; weights are often 0, so D is too."""
    rng = np.random.default_rng(seed)

    def draw(*size: int, lo: float = 0.0) -> np.ndarray:
        if exact:
            return rng.choice([0.0, 0.0, 0.25, 0.5, 1.0], size) - (lo < 0) * rng.choice([0, 0.5], size)
        return rng.uniform(lo, 1, size) * (rng.random(size) < 0.6)

    n, m = cells
    if len(shape) == 1:
        parts = [nir.Linear(draw(*size)) for size in ((n, *shape), (m, *shape), (n, m))]
    else:
        sizes = ((n, shape[0], 3, 2), (m, shape[0], 3, 2))
        parts = [nir.Conv2d(shape[1:], draw(*size), dilation=1, groups=1, bias=np.zeros(n), **KERNEL) for size in sizes]
        parts[1].bias = np.zeros(m)
        place = tuple(np.array(shape[1:]) // (2, 1) + (1, -1))
        parts.append(nir.Conv2d(place, draw(n, m, 1, 1), 1, 0, 1, 1, np.zeros(n)))
    if exact:
        parts[-1].weight[0] = 0  # a cell that nothing inhibits: its D is filled in whatever comes
    gains = {"gain_i": rng.choice([0.5, 1.0, 2.0], m), "gain_e": rng.choice([0.5, 1.0, 4.0], n), "bias": draw(n, lo=-1)}
    if form == "none":
        gains = {}
    if form == "frozen":
        gains["denominator"] = rng.choice([0.25, 1.0, 2.0], n) if exact else rng.uniform(0.1, 2, n)
    if zero == "constant":
        gains["epsilon"] = 0.0625 if exact else 0.07
    return EICircuit(*parts, form=form, zero=zero, **{**gains, "table_bits": 3 + seed % 4, **fields})


def inputs(seed: int, shape: Any, exact: bool, samples: int = 3, steps: int = 3) -> np.ndarray:
    """Counts, or reals >= 0; a silent step first, and samples that differ in size, so their least values do too."""
    rng = np.random.default_rng([seed, 1])
    x = rng.integers(0, 5, (samples, steps, *shape)) if exact else rng.random((samples, steps, *shape))
    x = x * (rng.random(x.shape) < 0.5) * 2.0 ** -np.arange(samples).reshape(-1, *[1] * (len(shape) + 1))
    x[0, : steps - 1 : 2] = 0
    return x


def both(shape: Any, *nodes: Any) -> nir.NIRGraph:
    """A circuit, and the neuron behind it if there is one: the output sums them, so that both are recorded."""
    named = {f"n{i}": node for i, node in enumerate(nodes)}
    edges = [("in", "n0"), *((n, "out") for n in named)] + [("n0", "n1")] * (len(nodes) - 1)
    return connected(named, edges, shape)


def behind(node: EICircuit, shape: Any) -> Any:
    """DeepEISNN's neuron: V = 0.5 v + I, a spike at V >= 1, soft reset."""
    cells = len(node.excite.weight)
    size = (cells,) if len(shape) == 1 else (cells, *(int(v) for v in node.spread.input_shape))
    return lif(size, decay=0.5, threshold=1.0, compare="ge", reset="subtract")


def float_cases() -> Iterator[Case]:
    for seed, (form, zero) in enumerate(FORMS):
        for shape in (FLAT, MAP):
            for exact in (True, False):
                node = circuit_of(seed, form, zero, shape, exact)
                name = f"{form}-{zero}-{'conv' if shape is MAP else 'dense'}-{'dyadic' if exact else 'random'}"
                graph = both(shape, node, behind(node, shape)) if exact else both(shape, node)
                yield Case(name, graph, inputs(seed, shape, exact), REAL, exact, "every form in both geometries")
    for form, zero in FORMS[1:3]:
        node = circuit_of(7, form, zero, FLAT, True, (3, 3))
        text = "as many cells of either kind: a spread of its own, or turned around, would fit"
        yield Case(f"{form}-{zero}-square", both(FLAT, node), inputs(7, FLAT, True), REAL, True, text)
    for form, zero in FORMS:
        node = circuit_of(8, form, zero, FLAT, True)
        x = inputs(8, FLAT, True) - 1
        yield Case(f"{form}-{zero}-signed", both(FLAT, node), x, REAL, True, "an inhibitory current below 0 is none")
    text = "one step of one sample"
    yield Case("once", both(MAP, circuit_of(9, *FORMS[1], MAP, True)), inputs(9, MAP, True, 1, 1), REAL, True, text)


# --- integers


def whole_case(seed: int) -> Case:
    """Any form, geometry, gains and shifts; sparse weights, counts up to 15, sometimes below 0 where undeclared."""
    rng = np.random.default_rng(seed)
    form = ("none", "exact", "frozen", "shift", "table")[seed % 5]
    n, m = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    shape = (FLAT, (2, 4, 3))[seed // 5 % 2]
    most = 15 if len(shape) > 1 else 255

    def draw(top: int, *size: int) -> np.ndarray:
        return rng.integers(0, top + 1, size) * (rng.random(size) < 0.6)

    fields: dict[str, Any] = {"sign_mode": "excitatory", "message_bits": 8}
    wide = fields | {"message_bits": 26, "weight_exp": int(rng.integers(-4, 1))}
    if len(shape) == 1:
        parts = [dense(draw(most, k, *shape), weight_exp=int(rng.integers(-3, 2)), **fields) for k in (n, m)]
        parts.append(dense(draw(255, n, m), **wide))
    else:
        parts = [conv(draw(most, k, 2, 3, 2), **KERNEL, **fields) for k in (n, m)]
        parts.append(conv(draw(255, n, m, 1, 1), **wide))
    node = IntCircuit(*parts, form=form)
    if form != "none":
        node.gain_e, node.bias = draw(60, n) + 1, rng.integers(-99, 100, n).astype(np.int32)
        node.shift = int(rng.integers(-8, 4) if form == "frozen" else rng.integers(0, 13))
    if form not in ("none", "frozen"):
        node.gain_i, node.gain_shift = draw(60, m) + int(rng.random() < 0.3), int(rng.integers(5, 9))
        node.epsilon, node.table_bits = int(rng.choice([1, 3, 50])), int(rng.integers(1, 11))
    lone = seed % 7 == 6
    x = rng.integers(0, 16, (1, 1, *shape) if lone else (2, 3, *shape))
    x = x * (rng.random(x.shape) < rng.choice([0.2, 0.7]))
    signed = seed % 4 == 3
    alphabet = REAL if signed else interval(0, 15, True)
    graph = both(shape, node, *(() if form == "none" else (cell(node, shape),)))
    return Case(f"{form}-{seed}", graph, (x - 3 * signed).astype(float), alphabet, True, "whole numbers")


def cell(node: IntCircuit, shape: Any) -> IntCubaLIF:
    cells = len(node.excite.weight)
    size = (cells,) if len(shape) == 1 else (cells, shape[1] // 2 + shape[1] % 2, shape[2] - 1)
    vth = np.random.default_rng(cells).integers(1, 300, size).astype(np.int32)
    return IntCubaLIF(vth, *(np.array(v) for v in (4095, 2048, 0, 0)), compare="ge", reset="subtract")


FLOATS = list(float_cases())
WHOLE = [whole_case(seed) for seed in range(140)]


def expected(case: Case, seen: Counter[str] | None = None) -> dict[str, np.ndarray]:
    nodes = [case.graph.nodes[n] for n in sorted(case.graph.nodes) if n.startswith("n")]
    return {f"n{i}": a for i, a in enumerate(circuit_oracle.run(nodes, case.x, seen))}


def ran(network: Network, x: np.ndarray, ops: Any) -> dict[str, np.ndarray]:
    """Recorded nodes as (sample, time, *neuron), below the targets' look at the input."""
    rows = np.ascontiguousarray(np.swapaxes(x, 0, 1))
    if isinstance(ops, NumpyOps):
        found = Executor(network, ops).run(rows.astype(ops.dtype))
    else:
        import torch

        found = Executor(network, ops).run(torch.from_numpy(rows).to(ops.dtype))
    return {n: np.swapaxes(np.asarray(a), 0, 1) for n, a in found.items()}


def apart(case: Case, found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> str:
    """The first node at which a run is not what the oracle says, or nothing."""
    for name, right in wanted.items():
        z = found.get(name)
        if z is None or z.shape != right.shape:
            return f"{case.name}: {name} has shape {None if z is None else z.shape}, expected {right.shape}"
        same = z == right if case.exact else np.isclose(z, right, rtol=1e-11, atol=1e-11)
        if not same.all():
            at = tuple(int(i) for i in np.argwhere(~same)[0])
            return f"{case.name}: {name}{at} is {z[at]!r}, expected {right[at]!r}"
    return ""


def alphabet_holds(a: Alphabet, z: np.ndarray) -> bool:
    return bool((z >= a.lo).all() and (z <= a.hi).all() and (not a.discrete or (z == np.rint(z)).all()))


# --- gradients


def learning(seed: int, zero: str) -> tuple[EICircuit, np.ndarray, np.ndarray]:
    """A dense circuit, rows of input, a silent one among them, and what each cell's I counts for in the loss."""
    node = circuit_of(seed + 20, "exact", zero, FLAT, False)
    return node, inputs(seed, FLAT, False).reshape(-1, *FLAT), np.random.default_rng(seed).normal(size=4)


def gradients(node: EICircuit, rows: Any, weight: Any, **options: bool) -> dict[str, np.ndarray]:
    """torch's, of the sum of weight * I, for every parameter and for x; 0 where there is none."""
    import torch

    from targets.pytorch import TorchOps

    ops: Any = TorchOps(torch.float64, **options)
    step: Any = bind(prepare(node, Clock(1.0, "euler")), ops)
    parts = {k: getattr(step, k) for k in ("excite", "inhibit", "spread")}
    leaves = {k: part.weight.clone().requires_grad_() for k, part in parts.items()}
    for field in ("gain_i", "gain_e", "bias"):
        leaves[field] = torch.tensor(getattr(node, field), dtype=torch.float64, requires_grad=True)
    leaves["x"] = torch.tensor(np.asarray(rows), dtype=torch.float64, requires_grad=True)
    over = {k: v.reshape(-1, *[1] * (len(leaves["x"].shape) - 2)) for k, v in leaves.items() if v.ndim == 1}
    changed = {k: replace(part, weight=leaves[k]) for k, part in parts.items()}
    y = replace(step, **changed, **over).drive(ops, leaves["x"])
    (torch.as_tensor(weight) * y).sum().backward()
    return {k: np.zeros(v.shape) if v.grad is None else v.grad.numpy() for k, v in leaves.items()}
