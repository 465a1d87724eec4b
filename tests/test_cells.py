"""Training cells: worked examples, gradients against BPTT written out here, the fused scan, and Norse's own cells."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from norse.torch import IAFCell, LIFBoxCell
from norse.torch.functional.iaf import IAFParameters
from norse.torch.functional.lif_box import LIFBoxParameters
from torch import Tensor, nn

from eiexport import graph as graphs
from eiexport.connections import Conv, Dense
from eiexport.ops import Window
from eitrain.cells import Cell, rectangular, sigmoid
from targets import base, kernels
from targets.loop import scan
from targets.pytorch import TorchOps

BACKEI = {"decay": 0.2, "threshold": 0.5}
SIGMOID = {"decay": 0.5, "threshold": 1.0, "compare": "ge", "surrogate": "sigmoid"}
SLOPES = {"rectangular": lambda x: (x.abs() < 0.5).double(), "sigmoid": lambda x: 4 * _s(4 * x) * (1 - _s(4 * x))}


def _s(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def gate(weight: Any, bias: Any, maps: int = 1) -> nn.Conv2d:
    """A convolution that keeps its map, with every weight and bias set (numbers, or arrays of the right shape)."""
    weight = np.asarray(weight, np.float64)
    kernel = weight.shape[-1] if weight.ndim else 1
    conv = nn.Conv2d(maps, maps, kernel, padding=kernel // 2, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(np.broadcast_to(weight, conv.weight.shape).copy()))
        conv.bias.copy_(torch.from_numpy(np.broadcast_to(np.asarray(bias, np.float64), conv.bias.shape).copy()))
    return conv


def current(*values: float) -> Tensor:
    """(T, 1, 1, 1, 1) for one neuron."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1, 1)


def decided(hard: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """The value of `hard`, the derivative `slope` at `x`."""
    return hard.detach() + slope.detach() * (x - x.detach())


def bptt(x: Tensor, p: Any) -> Tensor:
    """The neurons of the papers step by step, all gradients by autograd; shares no code with the cells."""
    slope, hard = SLOPES[p.surrogate], torch.ge if p.compare == "ge" else torch.gt
    v, d, rows = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for now in x:
        g = 1.0 if p.feedback is None else _s(p.feedback(d))
        membrane = p.decay * v + g * now
        s = decided(hard(membrane, p.threshold).double(), membrane, slope(membrane - p.threshold))
        d = s
        if p.balance is not None:
            c = p.balance(membrane)
            d = decided(torch.sign(c), c, slope(c)) * s
        spike = s.detach() if p.detach_reset else s
        v = membrane * (1 - spike) if p.reset == "zero" else membrane - p.threshold * spike
        rows.append(d)
    return torch.stack(rows)


def gradients(z: Tensor, weights: Tensor, of: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((z * weights).sum(), of))


def close(a: Tensor, b: Tensor) -> None:
    """Equal to 1e-12 of the largest entry: sums over maps and steps are taken in different orders."""
    assert b.abs().max() > 0
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.abs().max()))


@pytest.mark.parametrize(
    "surrogate, values",
    [
        (rectangular, {0.5: 0, -0.5: 0, float(np.nextafter(0.5, 0)): 1, float(-np.nextafter(0.5, 0)): 1, 0: 1, 2: 0}),
        (sigmoid, {0.0: 1.0, -0.4: 0.559055, 0.25: 0.786448}),
    ],
)
def test_surrogate_values(surrogate: Any, values: dict[float, float]) -> None:
    found = surrogate(torch.tensor(list(values), dtype=torch.float64))
    np.testing.assert_allclose(found, list(values.values()), rtol=0, atol=5e-7)


def test_b1_over_time() -> None:
    cell = Cell(**BACKEI, feedback=gate(1, 0), balance=gate(1, -0.8))
    x = current(2.0, 0.8, 1.0, 1.0, 0.9).requires_grad_()
    for z in (cell.over_time(x), torch.no_grad()(cell.over_time)(x)):  # the fused scan, and the step
        assert z.flatten().tolist() == [1, -1, 0, -1, 0]


def test_b6_gradient() -> None:
    feedback, balance = gate(1, 0), gate(1, -0.8)
    x = current(1.2).requires_grad_()
    z = Cell(**BACKEI, feedback=feedback, balance=balance).over_time(x)
    assert z.item() == -1
    found = gradients(z, torch.ones(()), [x, balance.weight, balance.bias])
    np.testing.assert_allclose([g.item() for g in found], [0, 0.6, 1], atol=1e-12)


@pytest.mark.parametrize("x, wanted", [(0.0, 0), (0.25, 1), (0.5, 1), (0.75, 1), (1.0, 0)])
def test_window_of_the_threshold(x: float, wanted: int) -> None:
    """Derivative by V where V - 0.5 is the argument: exactly 1/2 away it is shut."""
    x = current(x).requires_grad_()
    assert gradients(Cell(**BACKEI).over_time(x), torch.ones(()), [x])[0].item() == wanted


@pytest.mark.parametrize("bias, wanted", [(-2.5, 0), (-2.25, 1), (-2.0, 1), (-1.75, 1), (-1.5, 0)])
def test_window_of_the_balance(bias: float, wanted: int) -> None:
    """V = 2 fires far from its own window, so what is left is the sign's, at C(V) = 2 + bias; 1 where it is open."""
    balance = gate(1, bias)
    z = Cell(**BACKEI, balance=balance).over_time(current(2.0))
    assert gradients(z, torch.ones(()), [balance.bias])[0].item() == wanted


def random_gates(maps: int, kernel: int, seed: int) -> dict[str, nn.Conv2d]:
    rng = np.random.default_rng(seed)
    size = (maps, maps, kernel, kernel)
    return {
        "feedback": gate(rng.normal(0, 0.4, size), rng.normal(0.5, 0.4, maps), maps),
        "balance": gate(rng.normal(0, 0.3, size), rng.normal(0.1, 0.3, maps), maps),
    }


@pytest.mark.parametrize("steps, batch", [(1, 1), (6, 3)])
@pytest.mark.parametrize("used", [(), ("feedback",), ("balance",), ("feedback", "balance")])
@pytest.mark.parametrize(
    "constants",
    [
        BACKEI,
        {"decay": 1.0, "threshold": 1.0, "compare": "ge", "surrogate": "sigmoid"},
        {**SIGMOID, "reset": "subtract"},
        {**SIGMOID, "reset": "subtract", "detach_reset": True},
        {**BACKEI, "detach_reset": True},
    ],
    ids=["backei", "if", "soft", "soft-detached", "backei-detached"],
)
def test_gradients_are_those_of_bptt(constants: dict[str, Any], used: tuple[str, ...], steps: int, batch: int) -> None:
    """Through reset, feedback and both factors of e * S, of the input and of every gate parameter."""
    cell = Cell(**constants, **{k: g for k, g in random_gates(2, 3, 1).items() if k in used})
    torch.manual_seed(2)
    x = (2 * torch.rand(steps, batch, 2, 4, 5, dtype=torch.float64) + 0.4).requires_grad_()
    weights = torch.randn(x.shape, dtype=torch.float64)
    found, wanted = cell.over_time(x), bptt(x, cell.p)
    assert torch.equal(found, wanted) and found.any()
    every = [x, *cell.p.parameters()]
    unused = steps == 1 and "feedback" in used  # nothing was sent before the first step: its weights have no gradient
    for (name, p), a, b in zip(
        [("x", x), *cell.p.named_parameters()],
        gradients(found, weights, every),
        gradients(wanted, weights, every),
        strict=True,
    ):
        if unused and name == "feedback.weight":
            assert not a.any() and not b.any()
        else:
            assert a.shape == p.shape
            close(a, b)


def test_detached_reset_passes_the_membrane_alone() -> None:
    """After a spike, dv/dI is what it would be without the reset term (soft reset)."""
    found = {}
    for detach in (True, False):
        x = current(1.1, 0.3).requires_grad_()
        z = Cell(**SIGMOID, reset="subtract", detach_reset=detach).over_time(x)
        assert z.flatten().tolist() == [1, 0]
        found[detach] = gradients(z[1], torch.ones(()), [x])[0][0].item()
    slope = SLOPES["sigmoid"]
    first, second = torch.tensor(1.1 - 1.0).double(), torch.tensor(0.5 * 0.1 + 0.3 - 1.0).double()
    kept = slope(second).item() * 0.5
    assert found[True] == pytest.approx(kept, rel=1e-6)
    assert found[False] == pytest.approx(kept * (1 - slope(first).item()), rel=1e-6)


def fused(gates: dict[str, nn.Conv2d], **constants: Any) -> tuple[Any, TorchOps]:
    ops = TorchOps(torch.float64, "cpu", rectangular)
    return Cell(**BACKEI | constants, **gates).p.step(), ops


def dyadic_gates() -> dict[str, nn.Conv2d]:
    """Feedback 0.5 whatever was sent, balance in quarters: membranes and balances then land on 0, +-0.5 and 1."""
    rng = np.random.default_rng(3)
    balance = rng.choice([-0.5, 0.0, 0.5], (2, 2, 3, 3))
    return {"feedback": gate(np.zeros((2, 2, 3, 3)), 0, 2), "balance": gate(balance, -0.25, 2)}


@pytest.mark.parametrize("shape", [(1, 1, 2, 4, 5), (1, 3, 2, 4, 5), (6, 1, 2, 5, 3), (6, 3, 2, 4, 5)])
@pytest.mark.parametrize("kind", ["random", "ties"])
def test_gated_scan_is_the_step(kind: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(5)
    gates = random_gates(2, 3, 4) if kind == "random" else dyadic_gates()
    step, ops = fused(gates, **({} if kind == "random" else {"decay": 0.5}))
    x = 2.5 * torch.rand(shape, dtype=torch.float64) if kind == "random" else torch.randint(0, 3, shape).double()
    every = [x.requires_grad_(), *(p for g in gates.values() for p in g.parameters())]
    assert kernels.find(step, ops) is kernels.gated_scan
    ours, wanted = kernels.gated_scan(step, ops, x), scan(step, ops, x)
    assert torch.equal(ours, wanted)
    assert {-1, 1} <= set(wanted.unique().tolist())
    if kind == "ties":
        first = 0.5 * x[0]
        landed = gates["balance"](first)
        assert (first == 0.5).any() and (landed == 0).any() and (landed.abs() == 0.5).any()
    weights = torch.randn(shape, dtype=torch.float64)
    for (a, b), p in zip(zip(*(gradients(z, weights, every) for z in (ours, wanted)), strict=True), every, strict=True):
        if p is gates["feedback"].weight and shape[0] == 1:
            assert not a.any() and not b.any()
        else:
            close(a, b)


def test_gated_scan_of_an_expanded_input_sums_its_gradient() -> None:
    """A static image is one map that all steps share."""
    step, ops = fused(random_gates(2, 3, 6))
    x = (2 * torch.rand(1, 2, 2, 4, 5, dtype=torch.float64)).requires_grad_()
    a, b = (
        gradients(run(step, ops, x.expand(4, -1, -1, -1, -1)), torch.ones(()), [x])[0]
        for run in (scan, kernels.gated_scan)
    )
    close(b, a)


def test_find_leaves_to_the_step_what_the_scan_does_not_compute() -> None:
    step, ops = fused(random_gates(2, 3, 7))
    assert kernels.find(step, ops) is kernels.gated_scan
    assert kernels.find(step, TorchOps(torch.float64)) is None  # no surrogate: nothing to train
    assert kernels.find(step.inner, ops) is kernels.leaky_scan
    number = np.asarray(0.25)
    for field, value in {
        "compare": "ge",
        "reset_mode": "subtract",
        "detach_reset": True,
        "v_reset": number,
        "gain": number,
        "bias": number,
    }.items():
        assert kernels.find(replace(step, inner=replace(step.inner, **{field: value})), ops) is None, field
    weight, bias, window = step.balance.weight, step.balance.bias, step.balance.window
    wide = torch.zeros(2, 2, 5, 5, dtype=torch.float64)
    others = {
        "none": None,
        "dense": Dense(torch.zeros(2, 2), torch.zeros(2)),
        "without bias": Conv(weight, None, window),
        "strided": Conv(weight, bias, Window((2, 2), (1, 1), (1, 1))),
        "grouped": Conv(weight[:, :1], bias, replace(window, groups=2)),
        "shrinks": Conv(wide, bias, window),
        "one axis": Conv(weight[..., 0], bias, Window((1,), (1,), (1,))),
    }
    for (name, other), side in product(others.items(), ("feedback", "balance")):
        assert kernels.find(replace(step, **{side: other}), ops) is None, (name, side)


def test_find_leaves_a_second_threshold_to_the_step() -> None:
    step, ops = fused(random_gates(2, 3, 7))
    assert kernels.find(replace(step, inner=replace(step.inner, lower=np.asarray(-0.25))), ops) is None


def drives(kind: str, steps: int) -> Tensor:
    rng = np.random.default_rng(8)
    return torch.from_numpy(
        rng.normal(0.4, 0.6, (steps, 16)) if kind == "random" else rng.integers(-2, 7, (steps, 16)) / 4
    )


@pytest.mark.parametrize(
    "kind, steps, decay", [("random", 200, 0.2), ("ties", 1, 0.2), ("random", 200, 0.5), ("ties", 200, 0.5)]
)
def test_plain_cell_is_norses_box(kind: str, steps: int, decay: float) -> None:
    """tau_mem_inv * dt = 1 - decay, input gain 1 / (1 - decay); decay 0.2 cannot meet ties exactly beyond one step."""
    inverse = torch.tensor(1 - decay, dtype=torch.float64)
    theirs = LIFBoxCell(p=LIFBoxParameters(tau_mem_inv=inverse, v_th=torch.tensor(0.5, dtype=torch.float64)), dt=1.0)
    compare_with_norse(Cell(decay=decay, threshold=0.5), theirs, drives(kind, steps), 1 / (1 - decay))


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_plain_cell_is_norses_integrator(kind: str) -> None:
    one = torch.tensor(1.0, dtype=torch.float64)
    theirs = IAFCell(p=IAFParameters(v_th=one, v_reset=0 * one))
    compare_with_norse(Cell(decay=1.0, threshold=1.0), theirs, drives(kind, 200), 1.0)


def compare_with_norse(ours: Cell, theirs: Any, x: Tensor, gain: float) -> None:
    state, rows = None, []
    for now in x:
        z, state = theirs(gain * now, state)
        rows.append(z)
    wanted = torch.stack(rows)
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(ours.over_time(x[:, None])[:, 0], wanted)


GATED = {**BACKEI, **random_gates(2, 3, 9)}


@pytest.mark.parametrize("constants", [BACKEI, {**SIGMOID, "reset": "subtract"}, GATED], ids=["lif", "soft", "gated"])
def test_state_starts_anew(constants: dict[str, Any]) -> None:
    """Two batches one after the other, and each sample of a batch, are what each is alone."""
    cell = Cell(**constants)
    torch.manual_seed(10)
    a, b = (1.5 * torch.rand(5, 3, 2, 4, 5, dtype=torch.float64) for _ in range(2))
    alone = Cell(**constants).over_time(b)
    assert cell.over_time(a).any() and alone.any()
    assert torch.equal(cell.over_time(b), alone)
    for k in range(3):
        assert torch.equal(cell.over_time(b[:, k : k + 1]), alone[:, k : k + 1])


@pytest.mark.parametrize("constants", [BACKEI, GATED], ids=["lif", "gated"])
@pytest.mark.parametrize("training", [True, False])
def test_stepwise_as_a_norse_cell(constants: dict[str, Any], training: bool) -> None:
    cell = Cell(**constants)
    torch.manual_seed(11)
    x = 1.5 * torch.rand(6, 2, 2, 4, 5, dtype=torch.float64)
    with torch.set_grad_enabled(training):
        state, rows = None, []
        for now in x:
            z, state = cell(now, state)
            rows.append(z)
        wanted = cell.over_time(x)
    assert wanted.any() and not wanted.all()
    assert torch.equal(torch.stack(rows), wanted)


@pytest.mark.parametrize(
    "constants", [BACKEI, {**SIGMOID, "reset": "subtract"}, GATED, {**BACKEI, "balance": gate(0.5, -0.3, 2)}],
    ids=["lif", "soft", "gated", "balance"],
)  # fmt: skip
def test_node_means_the_cell(tmp_path: Path, constants: dict[str, Any]) -> None:
    """Written to disk, read back and run by the reference, a cell's node sends the cell's spikes."""
    cell = Cell(**constants)
    torch.manual_seed(12)
    x = 1.5 * torch.rand(6, 3, 2, 4, 5, dtype=torch.float64)
    shape = np.array((2, 4, 5))
    found = {"in": nir.Input(shape), "cell": cell.node((2, 4, 5)), "out": nir.Output(shape)}
    graph = nir.NIRGraph(found, [("in", "cell"), ("cell", "out")], type_check=False)
    graphs.write(graphs.stamp(graph, dt=1.0, integrator="euler", dtype="float64"), tmp_path / "cell.nir")
    network = graphs.check(graphs.read(tmp_path / "cell.nir"))
    sent = base.get("reference")().compile(network).run(x.transpose(0, 1).numpy()).z["cell"]
    wanted = cell.over_time(x).transpose(0, 1)
    assert wanted.any()
    np.testing.assert_array_equal(sent, wanted.detach().numpy())
