"""The circuit's training pass against the step it stands for: values bit for bit, gradients as autograd takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from eiexport.circuits import Circuit, IntCircuitStep
from eiexport.connections import Conv, Dense
from eiexport.ops import Window
from targets import circuits
from targets.pytorch import TorchOps

NAMES = ("x", "w_ee", "w_ie", "w_ei", "g_i", "g_e", "b_e")
POINT = Window((1, 1), (0, 0), (1, 1))
Run = Callable[[Circuit, TorchOps, Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """kernel 0: dense, `inputs` cells; otherwise maps of `size` pixels a side."""

    inputs: int
    cells: int
    kernel: int = 0
    stride: int = 1
    size: int = 0

    def input(self, rows: int, kind: str = "counts", dtype: torch.dtype = torch.float64, last: bool = True) -> Tensor:
        """Whole numbers, most of them 0. The second row is silent, as is a corner of every map."""
        shape = (rows, self.inputs, self.size, self.size) if self.kernel else (rows, self.inputs)
        rng = np.random.default_rng(rows)
        made = {
            "counts": lambda: rng.choice([0, 0, 0, 0, 1, 2, 5], shape),
            "silent": lambda: np.zeros(shape),
            "full": lambda: rng.uniform(0.1, 1, shape),
            "signed": lambda: rng.choice([-2, -1, 0, 0, 1, 2], shape),
        }[kind]()
        x = torch.tensor(made, dtype=dtype)
        if kind == "counts":
            x[1:2] = 0
            if self.kernel:
                x[:, :, : self.size // 2, : self.size // 2] = 0
        return x.contiguous(memory_format=torch.channels_last) if self.kernel and last else x

    def parameters(self, dtype: torch.dtype = torch.float64, sparse: bool = True) -> dict[str, Tensor]:
        """Not negative but for the bias. sparse: with zeros, as projection leaves them, a row of W_EI among them."""
        rng = np.random.default_rng(self.cells)
        n, m, tail = self.cells, max(1, self.cells // 4), (self.kernel,) * 2 if self.kernel else ()
        d = self.inputs * max(1, self.kernel) ** 2
        made = {
            "w_ee": rng.exponential(d**-0.5, (n, self.inputs, *tail)),
            "w_ie": rng.exponential(d**-0.5, (m, self.inputs, *tail)),
            "w_ei": rng.exponential(1 / m, (n, m, *(1 for _ in tail))),
            "g_i": rng.uniform(0.5, 2, m),
            "g_e": rng.uniform(0.5, 2, n),
            "b_e": rng.normal(0, 0.5, n),
        }
        if sparse:
            for name, share in (("w_ee", 0.2), ("w_ie", 0.2), ("w_ei", 0.3)):
                made[name][rng.random(made[name].shape) < share] = 0
            made["w_ei"][1] = 0
            made["g_e"][-1] = 0
        return {k: torch.tensor(v, dtype=dtype).requires_grad_() for k, v in made.items()}

    def step(self, p: dict[str, Tensor], form: str = "exact", zero: str = "sample_min") -> Circuit:
        window = Window((self.stride,) * 2, (self.kernel // 2,) * 2, (1, 1))
        names = {"excite": "w_ee", "inhibit": "w_ie", "spread": "w_ei"}
        parts: dict[str, Any] = {k: Dense(p[v]) for k, v in names.items()}  # type: ignore[arg-type]
        if self.kernel:
            parts = {k: Conv(v.weight, None, POINT if k == "spread" else window) for k, v in parts.items()}
        if form == "none":
            return Circuit(**parts, form="none")
        values: dict[str, Any] = {"gain_i": p["g_i"], "gain_e": p["g_e"], "bias": p["b_e"]}
        if self.kernel:
            values = {k: v.view(-1, 1, 1) for k, v in values.items()}
        epsilon: Any = torch.tensor(0.25) if zero == "constant" else None  # as a buffer of the layer
        return Circuit(**parts, form=form, zero=zero, epsilon=epsilon, **values)


LAYERS = {
    "dense": Layer(7, 11),
    "dense, one inhibitory": Layer(3, 5),
    "k3": Layer(2, 9, 3, 1, 6),
    "k3 on many pixels": Layer(1, 8, 3, 1, 9),
    "k3 of many inputs on few pixels": Layer(20, 16, 3, 1, 2),
    "k3 stride 2": Layer(3, 8, 3, 2, 7),
    "k1": Layer(5, 12, 1, 1, 5),
    "k1 stride 2": Layer(4, 8, 1, 2, 7),
    "k3 on one pixel": Layer(6, 8, 3, 1, 1),
}
FORMS = [("exact", "sample_min"), ("exact", "constant"), ("none", "sample_min")]
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
forms = pytest.mark.parametrize("form, zero", FORMS, ids=["least", "constant", "none"])


def training(dtype: torch.dtype = torch.float64, **options: bool) -> TorchOps:
    return TorchOps(dtype, "cpu", **options)


def gradients(z: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
    weights = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(1))
    return list(torch.autograd.grad(z, leaves, weights.to(z.device), allow_unused=True))


def close(ours: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> None:
    for a, b in zip(ours, wanted, strict=True):
        assert a is not None and b is not None and b.any()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * float(b.abs().max()))


def drive(step: Circuit, ops: TorchOps, x: Tensor) -> Tensor:
    return step.drive(ops, x)  # type: ignore[arg-type]


def agree(layer: Layer, form: str, zero: str, x: Tensor, run: Run = circuits.run, sparse: bool = True) -> Tensor:
    """Values and gradients against autograd through the step, the latter to rounding of each one's largest entry."""
    p = {k: v.detach().to(x.device).requires_grad_() for k, v in layer.parameters(x.dtype, sparse).items()}
    ops = TorchOps(x.dtype, x.device)
    step = layer.step(p, form, zero)
    assert circuits.applies(step, ops)
    x = x.detach().requires_grad_()
    ours, wanted = run(step, ops, x), drive(step, ops, x)
    assert ours.shape == wanted.shape and ours.dtype == wanted.dtype == x.dtype
    assert torch.equal(ours, wanted)
    leaves = [x, *p.values()]
    for name, a, b in zip(NAMES, gradients(ours, leaves), gradients(wanted, leaves), strict=True):
        assert (a is None) == (b is None) == (form == "none" and name in ("g_i", "g_e", "b_e")), name
        if a is None or b is None:
            continue
        scale = float(b.abs().max())
        assert a.shape == b.shape and a.dtype == b.dtype and np.isfinite(scale)
        tolerance = 1e-10 if x.dtype == torch.float64 else 2e-5
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")
    return ours.detach()


@layers
@forms
@pytest.mark.parametrize("rows", [1, 6])
def test_pass_is_the_step(layer: Layer, form: str, zero: str, rows: int) -> None:
    for dtype, kind in product((torch.float64, torch.float32), ("counts", "full", "silent")):
        # strided convolutions by one pixel are not safe on channels last: there the step itself is no reference
        z = agree(layer, form, zero, layer.input(rows, kind, dtype, last=layer.kernel != 1 or layer.stride == 1))
        assert bool(z.any()) == (kind != "silent" or form == "exact")


@layers
def test_plain_layout(layer: Layer) -> None:
    for kind in ("counts", "full"):
        agree(layer, "exact", "sample_min", layer.input(6, kind, last=False))


@pytest.mark.parametrize("last", [True, False])
@forms
def test_weights_channels_last(form: str, zero: str, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def laid_out(self: Layer, dtype: torch.dtype = torch.float64, sparse: bool = True) -> dict[str, Tensor]:
        made = {k: v.detach() for k, v in plain(self, dtype, sparse).items()}
        maps = {k: v.contiguous(memory_format=torch.channels_last) for k, v in made.items() if v.ndim == 4}
        return {k: v.requires_grad_() for k, v in {**made, **maps}.items()}

    plain = Layer.parameters
    monkeypatch.setattr(Layer, "parameters", laid_out)
    for name in ("k3", "k3 of many inputs on few pixels", "k3 stride 2", "k1"):
        agree(LAYERS[name], form, zero, LAYERS[name].input(6, last=last))


@layers
@forms
def test_without_a_look(layer: Layer, form: str, zero: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which is not asked what numbers it holds: the general way, in the layout that is there."""
    monkeypatch.setattr(circuits, "_on_cpu", lambda a: False)
    for kind, last in product(("counts", "full", "signed"), (True, False)):
        agree(layer, form, zero, layer.input(6, kind, last=last and (layer.kernel != 1 or layer.stride == 1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda() -> None:
    for layer, (form, zero), kind, last in product(LAYERS.values(), FORMS, ("counts", "full"), (True, False)):
        agree(layer, form, zero, layer.input(6, kind, last=last).cuda())


@pytest.mark.parametrize("weights", [True, False], ids=["weights so", "weights plain"])
@pytest.mark.parametrize("maps", [True, False], ids=["maps so", "maps plain"])
def test_strided_by_one_pixel_on_channels_last(maps: bool, weights: bool) -> None:
    """There the step itself may break: neither its convolution nor that one's gradients may run."""
    layer = LAYERS["k1 stride 2"]
    found = []
    for last in (False, True):
        p = {k: v.detach() for k, v in layer.parameters().items()}
        if last and weights:
            p |= {k: v.clone(memory_format=torch.channels_last) for k, v in p.items() if v.ndim == 4}
        p = {k: v.requires_grad_() for k, v in p.items()}
        x = layer.input(6, last=last and maps).requires_grad_()
        with Calls() as calls:
            z = circuits.run(layer.step(p), training(), x)
            found.append([z, *gradients(z, [x, *p.values()])])
        assert z.shape == (6, 8, 4, 4)
        if last and (maps or weights):
            assert calls.strides == {1}
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    seen = found[1][1].clone()
    assert seen[:, :, ::2, ::2].any()
    seen[:, :, ::2, ::2] = 0
    assert not seen.any()


@layers
@forms
def test_relu(layer: Layer, form: str, zero: str) -> None:
    """Negative inputs stop at the inhibitory cells, where a current of exactly 0 passes its gradient, as clamp does."""
    last = layer.kernel != 1 or layer.stride == 1
    for dtype in (torch.float64, torch.float32):
        x = layer.input(6, "signed", dtype, last)
        currents = layer.step(layer.parameters(dtype)).inhibit.drive(training(dtype), x)
        assert (currents < 0).any()
        agree(layer, form, zero, x)
        x[2:4] = 0  # rows at the very edge
        agree(layer, form, zero, x)


def test_zeros() -> None:
    """Zeros beside other values, a row of zeros alone (then I = b_E), and no zero at all, in one batch."""
    layer = LAYERS["k3"]
    p, x = layer.parameters(), layer.input(6)
    step = layer.step(p)
    s = step.inhibit.drive(training(), x).clamp(min=0)
    d = step.spread.drive(training(), s * step.gain_i)
    silent = (d == 0).flatten(1).float().mean(1)
    assert silent[1] == 1 and 0 < silent[0] < 1
    z = agree(layer, "exact", "sample_min", x)
    assert torch.equal(z[1], p["b_e"].view(-1, 1, 1).expand_as(z[1]))
    x.requires_grad_()
    (found,) = torch.autograd.grad(circuits.run(step, training(), x).sum(), x)
    assert found[0].any() and not found[1].any() and found.isfinite().all()
    full = layer.step(layer.parameters(sparse=False))
    assert (full.spread.drive(training(), full.inhibit.drive(training(), layer.input(6, "full"))) > 0).all()
    agree(layer, "exact", "sample_min", layer.input(6, "full"), sparse=False)


def test_published_example() -> None:
    """Zero denominators by number, from the published code: all W_EE 0.5, W_IE = diag(.4, .2), g_I = (.5, 1), d = 2."""
    w_ei = [[1, 0], [0, 1], [0.5, 0.5], [2, 0], [0, 0], [1, 1], [0.25, 0], [0, 2]]
    made = {
        "w_ee": np.full((8, 2), 0.5),
        "w_ie": np.diag([0.4, 0.2]),
        "w_ei": np.array(w_ei, float),
        "g_i": np.array([0.5, 1]),
        "g_e": np.ones(8),
        "b_e": np.zeros(8),
    }
    p = {k: torch.tensor(v).requires_grad_() for k, v in made.items()}
    z = circuits.run(Layer(2, 8).step(p), training(), torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    np.testing.assert_allclose(z.detach(), [[0.5, 10, 3, -0.75, 10, 0.5, 8, 10], [0] * 8], rtol=1e-14, atol=0)
    to_ei, to_i = torch.autograd.grad(z.sum(), [p["w_ei"], p["g_i"]])
    wanted = np.array([[-1.25, -24, -5, -0.3125, -24, -1.25, -20, -24], [0] * 8]).T
    np.testing.assert_allclose(to_ei, wanted, rtol=1e-13, atol=0)
    np.testing.assert_allclose(to_i, [-22.5, 0], rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", ["dense", "k3", "k3 of many inputs on few pixels", "k3 stride 2"])
@pytest.mark.parametrize("form", ["exact", "none"])
def test_differences(name: str, form: str) -> None:
    """No zeros and no relu in reach: then the gradient is a derivative; W_EI's unscaled."""
    layer = LAYERS[name]
    x, p = layer.input(2, "full"), layer.parameters(sparse=False)
    rng = np.random.default_rng(0)
    weights: Any = None

    def loss(values: list[Tensor]) -> Tensor:
        nonlocal weights
        step = layer.step(dict(zip(NAMES[1:], values[1:], strict=True)), form)
        z = circuits.run(step, training(scaled=False), values[0])
        weights = torch.tensor(rng.normal(size=tuple(z.shape))) if weights is None else weights
        return (z * weights).sum()

    values = [x.requires_grad_(), *p.values()]
    found = torch.autograd.grad(loss(values), values, allow_unused=True)
    for i, (which, a) in enumerate(zip(NAMES, found, strict=True)):
        if a is None:
            assert form == "none" and which in ("g_i", "g_e", "b_e")
            continue
        way = torch.tensor(rng.normal(size=tuple(a.shape)))
        ends = [[v.detach() + h * way if k == i else v.detach() for k, v in enumerate(values)] for h in (1e-6, -1e-6)]
        slope = (loss(ends[0]) - loss(ends[1])) / 2e-6
        np.testing.assert_allclose(float((a * way).sum()), float(slope), rtol=1e-6, atol=1e-6 * float(a.abs().max()))


@pytest.mark.parametrize("trained", [(k,) for k in NAMES] + [("x", "w_ie"), ("w_ei", "g_e"), NAMES[1:]], ids="+".join)
@pytest.mark.parametrize("name", ["dense", "k3 on many pixels", "k3 of many inputs on few pixels"])
def test_frozen(trained: tuple[str, ...], name: str) -> None:
    """What is trained gets the gradient that it gets among all, the rest none."""
    layer = LAYERS[name]
    x, p = layer.input(6), layer.parameters()
    values = dict(zip(NAMES, [x, *p.values()], strict=True))
    for k, v in values.items():
        v.requires_grad_(k in trained)
    found = []
    for run in (circuits.run, drive):
        z = run(layer.step(p), training(), x)
        found.append(gradients(z, [values[k] for k in trained]))
        run(layer.step(p), training(), x).sum().backward()
        assert {k for k, v in values.items() if v.grad is not None} == set(trained)
    close(*found)


@pytest.mark.parametrize("together", [1, 40, 100, 10**6])
def test_pieces_are_one_pass(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one position, or one row, at a time to all of them; last pieces narrower."""
    monkeypatch.setitem(circuits.TOGETHER, "cpu", together)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    for name in ("dense", "k3", "k3 of many inputs on few pixels"):
        agree(LAYERS[name], "exact", "sample_min", LAYERS[name].input(6))


def test_bias_and_gains_as_parameters() -> None:
    """Gradients arrive in leaves of shape (n,), which the step sees as (n, 1, 1), and add up."""
    layer = LAYERS["k3"]
    p = layer.parameters()
    for _ in range(2):
        circuits.run(layer.step(p), training(), layer.input(6)).sum().backward()
    for k, v in p.items():
        assert v.grad is not None and v.grad.shape == v.shape, k
    assert torch.equal(p["b_e"].grad, torch.full((9,), 2.0 * 6 * 36, dtype=torch.float64))  # type: ignore[arg-type]


def test_expanded_gradient_and_every_second_row() -> None:
    layer = LAYERS["k3"]
    p, wide = layer.parameters(), layer.input(12)
    found = []
    for run in (circuits.run, drive):
        x = wide.detach().requires_grad_()
        loss = run(layer.step(p), training(), x[::2]).mean(0).sum()
        found.append(torch.autograd.grad(loss, [x, *p.values()]))
    close(*found)


def test_backward_runs_twice_but_not_through_itself() -> None:
    layer = LAYERS["k3"]
    p, x = layer.parameters(), layer.input(6).requires_grad_()
    z = circuits.run(layer.step(p), training(), x)
    first, second = (torch.autograd.grad(z.sum(), [x, *p.values()], retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) and a.any() for a, b in zip(first, second, strict=True))
    (g,) = torch.autograd.grad(z, x, torch.ones_like(z).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_a_changed_weight_is_noticed() -> None:
    layer = LAYERS["k3"]
    p = layer.parameters()
    z = circuits.run(layer.step(p), training(), layer.input(6))
    with torch.no_grad():
        p["w_ei"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


class Calls(TorchDispatchMode):
    """Convolutions and their strides, and sizes of tensors that are copied."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.counts = {"convolution": 0, "convolution_backward": 0}
        self.strides: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("clone", "copy_", "_to_copy"):
            self.sizes.append(args[0].numel())
        elif name in self.counts:
            self.counts[name] += 1
            self.strides |= set(args[3 if name == "convolution" else 4])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sparse", [True, False])
def test_few_convolutions_and_no_copies(sparse: bool) -> None:
    """Four forward and, for both gradients each, two backward; on channels last nothing as large as a map is copied."""
    layer = Layer(8, 16, 3, 1, 12)
    p, x = layer.parameters(sparse=sparse), layer.input(6, "counts" if sparse else "full").requires_grad_()
    with Calls() as calls:
        z = circuits.run(layer.step(p), training(), x)
        torch.autograd.grad(z, [x, *p.values()], torch.ones_like(z))
    assert calls.counts == {"convolution": 4, "convolution_backward": 2}
    assert max(calls.sizes, default=0) < 6 * 4 * 12 * 12


def test_memory_kept_for_backward() -> None:
    """N, D and s beside what lives anyway; what autograd keeps of the step is at least twice that."""
    layer = Layer(8, 16, 3, 1, 12)
    p, x = layer.parameters(), layer.input(6).requires_grad_()
    own = {v.untyped_storage().data_ptr() for v in (x, *p.values())}
    storages: dict[int, int] = {}

    def pack(a: Tensor) -> Tensor:
        if a.untyped_storage().data_ptr() not in own:
            storages[a.untyped_storage().data_ptr()] = a.untyped_storage().nbytes()
        return a

    cells = 6 * 12 * 12 * 8  # bytes of one map of every row
    with saved_tensors_hooks(pack, lambda a: a):
        z = circuits.run(layer.step(p), training(), x)
        kept = sum(storages.values())
        assert z.requires_grad and kept <= (2 * 16 + 4) * cells
        storages.clear()
        drive(layer.step(p), training(), x)
    assert sum(storages.values()) > 1.5 * kept


def test_applies() -> None:
    exact, none = (LAYERS["k3"].step(LAYERS["k3"].parameters(), form) for form in ("exact", "none"))
    dense = LAYERS["dense"].step(LAYERS["dense"].parameters())
    for step in (exact, none, dense):
        assert circuits.applies(step, training()) and circuits.applies(step, training(torch.float32))
        assert not circuits.applies(step, training(straight_through=False))
        for dtype in (torch.float16, torch.bfloat16):
            assert not circuits.applies(step, training(dtype))
    window, weight = exact.excite.window, exact.excite.weight
    others: dict[str, Circuit] = {f"form {f}": replace(exact, form=f) for f in ("frozen", "shift", "table")}
    for field in ("gain_i", "gain_e", "bias"):
        others |= {f"no {field}": replace(exact, **{field: None})}
        others |= {f"{field} one number": replace(exact, **{field: np.asarray(0.5)})}
        others |= {f"{field} one for all": replace(exact, **{field: torch.tensor(0.5)})}
        others |= {f"{field} in form none": replace(none, **{field: getattr(exact, field)})}
    others |= {
        "array for weight": replace(exact, excite=replace(exact.excite, weight=weight.detach().numpy())),
        "bias on a connection": replace(dense, spread=replace(dense.spread, bias=torch.zeros(11))),
        "mixed": replace(exact, spread=dense.spread),
        "groups": replace(exact, excite=replace(exact.excite, window=replace(window, groups=2))),
        "one axis": replace(exact, excite=replace(exact.excite, window=Window((1,), (1,), (1,)))),
        "strided spread": replace(exact, spread=replace(exact.spread, window=replace(window, stride=(2, 2)))),
        "integers": IntCircuitStep(**vars(none)),
    }
    for name, step in others.items():
        assert not circuits.applies(step, training()), name


def test_other_shapes_go_to_the_step() -> None:
    """No rows, and matrices over more axes."""
    layer = LAYERS["k3"]
    assert circuits.run(layer.step(layer.parameters()), training(), layer.input(0)).shape == (0, 9, 6, 6)
    layer = LAYERS["dense"]
    x = layer.input(6).view(2, 3, 7)
    step = layer.step(layer.parameters())
    assert torch.equal(circuits.run(step, training(), x), drive(step, training(), x))


def patched(name: str, wrap: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], Run]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> Run:
        monkeypatch.setattr(circuits, name, wrap(getattr(circuits, name)))
        return circuits.run

    return patch


def scaled_part(index: int, factor: float) -> Callable[[Any], Any]:
    """One of `_undivided`'s results times a factor."""
    return lambda f: lambda *a: tuple(v * factor if i == index else v for i, v in enumerate(f(*a)))


class Unscaled(Circuit):
    fan_in = 1  # type: ignore[assignment]


MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], Run]] = {
    "1/d forgotten": lambda _: lambda step, ops, x: circuits.run(Unscaled(**vars(step)), ops, x),
    "gradient to the donor": lambda _: lambda step, ops, x: drive(step, training(straight_through=False), x),
    "other zero rule": lambda _: (
        lambda step, ops, x: circuits.run(replace(step, zero="constant", epsilon=1e-6), ops, x)
    ),
    "zeros stay": patched("_fill", lambda f: lambda *a: None),
    "least of the whole batch": patched("_fill", lambda f: lambda step, *a: f(step, *(v.view(1, -1) for v in a))),
    "I for N": patched("_divide", lambda f: lambda step, n, d, out: (f(step, n, d, out), n.copy_(out))),
    "D without share in s": patched("_undivided", scaled_part(1, 0)),
    "D without share in W_EI": patched("_undivided", scaled_part(2, 0)),
    "sign of D's share": patched("_undivided", scaled_part(1, -1)),
    "g_I's gradient by 1/d": patched("_undivided", scaled_part(3, 1 / 8)),
    "g_E's gradient lost": patched("_undivided", scaled_part(4, 0)),
    "relu everywhere": patched("_gradients", lambda f: lambda part, x, w, g, *a: f(part, x, w, g * (g > 0), *a)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("name", ["k3", "k3 of many inputs on few pixels"])
def test_a_wrong_pass_is_caught(mutant: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS[name]
    x = layer.input(6)
    agree(layer, "exact", "sample_min", x)
    run = MUTANTS[mutant](monkeypatch)
    with pytest.raises(AssertionError):
        agree(layer, "exact", "sample_min", x, run)
