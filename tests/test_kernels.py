"""The fused scan of plain neurons against the step it stands for, bit for bit, and against forward-mode derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from eiexport.neurons import Leaky, LeakyFire, SynapseFire, Threshold
from eitrain import cells
from eitrain.cells import Cell, rectangular, sigmoid
from targets import kernels
from targets.loop import scan
from targets.pytorch import TorchOps

DECAYS, RESETS = (0.0, 0.2, 0.5, 1.0), ("zero", "subtract", "none")
OPTIONS = [
    pytest.param({"decay": d, "compare": c, "reset": r, "detach_reset": a}, id=f"{d}-{c}-{r}{'-detached' * a}")
    for d, c, r, a in product(DECAYS, ("gt", "ge"), RESETS, (True, False))
]
IF = {"decay": 1.0, "threshold": 1.0, "compare": "ge", "reset": "zero", "surrogate": "sigmoid"}
SHAPES = [(1, 1, 5), (1, 3, 2, 4), (7, 1, 2, 3, 5), (5, 3, 2, 4, 5)]
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}


def neuron(**constants: Any) -> LeakyFire:
    step = Cell(**{"threshold": 1.0, **constants}).p.step()
    assert isinstance(step, LeakyFire)
    return step


def training(dtype: torch.dtype = torch.float64, slope: Callable[[Tensor], Tensor] = sigmoid) -> TorchOps:
    return TorchOps(dtype, "cpu", slope)


def drive(kind: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Currents; "ties": quarters, so that membranes meet the threshold 1 where decay and steps keep them exact."""
    rng = np.random.default_rng(len(shape))
    made = {
        "random": lambda: rng.normal(0.5, 0.8, shape),
        "ties": lambda: rng.integers(-3, 6, shape) / 4,
        "silent": lambda: rng.choice([-0.75, -0.0, 0.0], shape),
    }[kind]()
    return torch.tensor(made, dtype=dtype)


def agree(step: LeakyFire, ops: TorchOps, x: Tensor) -> Tensor:
    """Spikes and gradients of both, the latter to rounding of the largest entry; returns the spikes."""
    x = x.detach().requires_grad_()
    assert kernels.find(step, ops) is kernels.leaky_scan
    ours, wanted = kernels.leaky_scan(step, ops, x), scan(step, ops, x)
    assert ours.shape == wanted.shape == x.shape and ours.dtype == wanted.dtype == x.dtype
    assert torch.equal(ours, wanted)
    weights = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    (a,), (b,) = (torch.autograd.grad(z, x, weights) for z in (ours, wanted))
    assert a.shape == x.shape and b.any()
    torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING[x.dtype] * float(b.abs().max()))
    return ours.detach()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_scan_is_the_step(options: dict[str, Any], dtype: torch.dtype) -> None:
    for shape, threshold, slope in product(SHAPES, (1.0, 0.3), (sigmoid, rectangular)):
        z = agree(neuron(**options, threshold=threshold), training(dtype, slope), drive("random", shape, dtype))
        assert 0 < z.sum() < z.numel()


@pytest.mark.parametrize("options", OPTIONS)
def test_exact_hits(options: dict[str, Any]) -> None:
    """Sums of quarters that meet the threshold: `>` keeps silent where `>=` sends, at the first step and later."""
    x, sent = drive("ties", (6, 4, 30)), {}
    for compare in ("gt", "ge"):
        for slope in (sigmoid, rectangular):
            sent[compare] = agree(neuron(**{**options, "compare": compare}), training(slope=slope), x)
    differ = sent["gt"] != sent["ge"]
    assert differ[0].any() and (options["decay"] == 0.2 or differ[1:].any())


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_silence_has_a_gradient(reset: str, shape: tuple[int, ...]) -> None:
    assert not agree(neuron(**{**IF, "reset": reset}), training(), drive("silent", shape)).any()


def jacobian(p: dict[str, Any], threshold: float, x: list[float]) -> tuple[list[float], list[list[float]]]:
    """Spikes of one neuron and d z[t] / d x[k] by forward mode, in scalars; the slope of a spike is sigmoid's."""
    v, tangent, spikes, rows = 0.0, [0.0] * len(x), [], []
    for t, now in enumerate(x):
        v = p["decay"] * v + now
        tangent = [p["decay"] * d + (k == t) for k, d in enumerate(tangent)]
        s = float(v >= threshold if p["compare"] == "ge" else v > threshold)
        e = 1 / (1 + math.exp(-4 * (v - threshold)))
        spikes.append(s)
        rows.append([4 * e * (1 - e) * d for d in tangent])
        moved = [0.0] * len(x) if p["detach_reset"] else rows[-1]
        if p["reset"] == "zero":
            tangent = [d * (1 - s) - v * m for d, m in zip(tangent, moved, strict=True)]
            v = 0.0 if s else v
        elif p["reset"] == "subtract":
            tangent = [d - threshold * m for d, m in zip(tangent, moved, strict=True)]
            v -= threshold * s
    return spikes, rows


@pytest.mark.parametrize("options", OPTIONS)
def test_jacobian(options: dict[str, Any]) -> None:
    """All derivatives of all steps, from equations written out again; three neurons, one of them often at a tie."""
    currents = torch.cat([drive("random", (6, 1, 2)), drive("ties", (6, 1, 1))], 2)
    step, ops = neuron(**options), training()
    for n in range(3):
        x = currents[:, :, n : n + 1].clone().requires_grad_()
        z = kernels.leaky_scan(step, ops, x)
        spikes, rows = jacobian(options, 1.0, x.flatten().tolist())
        assert z.flatten().tolist() == spikes
        for t, row in enumerate(rows):
            (found,) = torch.autograd.grad(z[t].sum(), x, retain_graph=True)
            np.testing.assert_allclose(found.flatten(), row, rtol=0, atol=1e-12)


def changed(**fields: Any) -> Callable[..., Callable[..., Any]]:
    """A mutant that works for another neuron; "other" stands for the other reset."""

    def mutant(f: Callable[..., Any]) -> Callable[..., Any]:
        def run(step: LeakyFire, *rest: Tensor) -> Any:
            turned = {"zero": "subtract", "subtract": "zero"}[step.reset_mode]
            return f(replace(step, **{k: turned if v == "other" else v for k, v in fields.items()}), *rest)

        return run

    return mutant


MUTANTS: dict[str, tuple[str, Callable[..., Callable[..., Any]]]] = {
    "reset's share missing": ("_passed", lambda f: lambda step, v, slope: f(step, v, 0 * slope)),
    "reset's share with the other sign": ("_passed", lambda f: lambda step, v, slope: f(step, v, -slope)),
    "nothing carried back": ("_passed", lambda f: lambda step, v, slope: 0 * v),
    "always detached": ("_passed", changed(detach_reset=True)),
    "gradient passes a reset": ("_passed", changed(reset_mode="none")),
    "other reset backward": ("_passed", changed(reset_mode="other")),
    "decay missing backward": ("_passed", changed(decay=1.0)),
    "other comparison backward": ("_passed", changed(compare="gt")),
    "no reset": ("_reset", changed(reset_mode="none")),
    "other reset": ("_reset", changed(reset_mode="other")),
    "nothing carried": ("_reset", lambda f: lambda step, v, spike, out: out.zero_()),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_a_wrong_scan_is_caught(mutant: str, reset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step, ops, x = neuron(decay=0.5, compare="ge", reset=reset), training(), drive("ties", (6, 4, 30))
    agree(step, ops, x)
    name, wrong = MUTANTS[mutant]
    monkeypatch.setattr(kernels, name, wrong(getattr(kernels, name)))
    if mutant == "other comparison backward" and reset == "subtract":
        agree(step, ops, x)  # what a subtraction passes back does not depend on who fired
        return
    with pytest.raises(AssertionError):
        agree(step, ops, x)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("values, steps", [(1, [1] * 5), (32, [2, 2, 1]), (64, [4, 1]), (80, [5])])
def test_pieces_are_one_scan(reset: str, values: int, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """120 neurons as two threads take them, 32 at a time, the last piece narrower; backward some steps at a time."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setitem(kernels.LIMITS, "cpu", (16, values))
    shapes: list[torch.Size] = []

    def slope(x: Tensor) -> Tensor:
        shapes.append(x.shape)
        return sigmoid(x)

    step, x = neuron(decay=0.5, reset=reset), drive("random", (5, 3, 2, 4, 5))
    agree(step, training(), x)
    x.requires_grad_()
    kernels.leaky_scan(step, training(slope=slope), x).sum().backward()
    wide, narrow = ([(t, n) for t in reversed(_blocks(5, 2 * values // n))] for n in (32, 24))
    assert shapes == wide * 3 + narrow and [t for t, _ in reversed(wide)] == steps


def _blocks(steps: int, size: int) -> list[int]:
    return [min(max(size, 1), steps - t) for t in range(0, steps, max(size, 1))]


def layouts() -> dict[str, Tensor]:
    """(4, 3, 2, 4, 5) in the layouts that meet a cell."""
    x = drive("random", (4, 3, 2, 4, 5))
    return {
        "contiguous": x,
        "channels last": x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(x.shape),
        "static image": x[:1].expand(4, -1, -1, -1, -1),
        "static image, channels last": x[0].contiguous(memory_format=torch.channels_last).expand(4, -1, -1, -1, -1),
        "samples first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every second sample": x.repeat_interleave(2, 1)[:, ::2],
        "one image for all samples": x[:, :1].expand(-1, 3, -1, -1, -1),
        "one map": x[:, :, :1].flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 3)),
        "no sample": x[:, :0],
    }


@pytest.mark.parametrize("layout", layouts())
def test_layouts(layout: str) -> None:
    """Same spikes and gradients whatever the layout, and each step keeps the memory format of its input."""
    x = layouts()[layout].detach().requires_grad_()
    step, ops = neuron(**IF), training()
    plain = x.detach().contiguous().requires_grad_()
    weights = torch.randn(x.shape, dtype=x.dtype)
    z, wanted = kernels.leaky_scan(step, ops, x), scan(step, ops, plain)
    assert torch.equal(z, wanted)
    assert z[0].stride() == torch.empty_like(x[0]).stride() and z.flatten(0, 1).data_ptr() == z.data_ptr()
    (a,), (b,) = torch.autograd.grad(z, x, weights), torch.autograd.grad(wanted, plain, weights)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    if "channels last" in layout:
        assert z.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert a.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["static image", "mean over time"])
def test_expanded_input_and_gradient(kind: str) -> None:
    """One image for all steps sums its gradient; a mean over time sends every step the same one."""
    x = drive("random", (1 if kind == "static image" else 4, 3, 2, 4, 5)).requires_grad_()
    found = []
    for run in (kernels.leaky_scan, scan):
        z = run(neuron(**IF), training(), x.expand(4, -1, -1, -1, -1))
        loss = (z.mean(0) * drive("ties", tuple(z.shape[1:]))).sum()
        found += torch.autograd.grad(loss, x)
    assert found[1].any()
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


class Copies(TorchDispatchMode):
    """Sizes of tensors that are copied."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten._to_copy):
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_layouts_are_not_copied() -> None:
    step, ops = neuron(**IF), training()
    for name in ("contiguous", "channels last", "static image", "one map"):
        x = layouts()[name].detach().requires_grad_()
        with Copies() as copies:
            z = kernels.leaky_scan(step, ops, x)
            torch.autograd.grad(z, x, torch.ones_like(z))
        assert not any(n > 1 for n in copies.sizes), name
    x = layouts()["every second sample"]
    with Copies() as copies:  # the guard itself sees a copy
        kernels.leaky_scan(step, ops, x)
    assert max(copies.sizes) == x.numel()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 5), (5, 3, 2, 4, 5)])
def test_memory_kept_for_backward(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """No more than one tensor of the input's size: what autograd keeps of the step is several."""
    kept: list[int] = []
    storages: dict[int, int] = {}

    def pack(a: Tensor) -> Tensor:
        kept.append(a.numel() * a.element_size())
        storages[a.untyped_storage().data_ptr()] = a.untyped_storage().nbytes()
        return a

    x = drive("random", shape).requires_grad_()
    size = x.numel() * x.element_size()
    with saved_tensors_hooks(pack, lambda a: a):
        z = kernels.leaky_scan(neuron(**options), training(), x)
        assert z.requires_grad and sum(kept) <= size and sum(storages.values()) <= size
        kept.clear()
        scan(neuron(**options), training(), x)
    assert sum(kept) >= size


def test_backward_runs_twice_but_not_through_itself() -> None:
    x = drive("random", (5, 3, 4)).requires_grad_()
    z = kernels.leaky_scan(neuron(**IF), training(), x)
    first, second = (torch.autograd.grad(z.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert first.any() and torch.equal(first, second)
    (g,) = torch.autograd.grad(z, x, torch.ones_like(z).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize("reset", RESETS)
def test_cells_use_it(reset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training cell never steps; what it sends is what it sends without gradients."""
    cell = Cell(**{**IF, "reset": reset})
    x = drive("random", (5, 3, 2, 4, 5), torch.float32)
    with torch.no_grad():
        wanted = cell.over_time(x)
    monkeypatch.setattr(cells, "scan", lambda *_: pytest.fail("the step ran"))
    assert wanted.any() and torch.equal(cell.over_time(x), wanted)


def test_find_leaves_other_neurons_to_the_step() -> None:
    step, number = neuron(**IF), np.asarray(0.25)
    assert kernels.find(step, training()) is kernels.leaky_scan
    assert kernels.find(replace(step, decay=1, threshold=2), training(torch.float32)) is kernels.leaky_scan
    assert kernels.find(step, TorchOps(torch.float64)) is None  # no surrogate: nothing to train
    for dtype in (torch.float16, torch.bfloat16):
        assert kernels.find(step, training(dtype)) is None
    fields = ("decay", "threshold", "v_reset", "gain", "bias", "lower")
    for field, value in product(fields, (number, torch.full((2,), 0.25))):
        assert kernels.find(replace(step, **{field: value}), training()) is None, field
    fire: dict[str, Any] = {"threshold": 1.0, "v_reset": None, "compare": "gt", "reset_mode": "zero", "lower": None}
    others = [
        Leaky(shape=(), decay=number),
        SynapseFire(shape=(), decay=number, decay_u=number, gain_u=number, **fire),
        Threshold(threshold=number, shape=()),
    ]
    for found in others:
        assert kernels.find(found, training()) is None, type(found).__name__
