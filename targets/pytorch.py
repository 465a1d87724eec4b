"""torch op set, CPU or CUDA: float64 for the proof, float32 as its own row, and the surrogates for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from eiexport.errors import ExportError
from eiexport.graph import Network
from eiexport.nodes import INTEGERS, PREPARE
from eiexport.ops import Array, Ints, Window
from eiexport.trace import Trace
from targets.base import Claim, Program, Target, check_input, recorded
from targets.loop import Executor, States

Surrogate = Callable[[Tensor], Tensor]


class _Decision(torch.autograd.Function):
    """A step function forward, a surrogate derivative backward."""

    @staticmethod
    def forward(ctx, x: Tensor, hard: Callable[[Tensor], Tensor], slope: Surrogate) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.slope = slope
        return hard(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad * ctx.slope(x), None, None


class Through(torch.autograd.Function):
    """`hard` forward, the gradient to x alone, as if it were x."""

    @staticmethod
    def forward(ctx, x: Tensor, hard: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return hard.view_as(hard)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        return grad, None


class _Scaled(torch.autograd.Function):
    """Identity forward, the gradient times `factor` backward."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        return grad * ctx.factor, None


class TorchOps:
    """The op protocol on torch tensors. For training: `surrogate`, derivative of fire and sign at their argument;
    straight_through: `fill` passes its gradient as if nothing had been filled in; scaled: `scale_gradient` does so.
    """

    name = "torch"

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        surrogate: Surrogate | None = None,
        *,
        straight_through: bool = True,
        scaled: bool = True,
    ):
        self.dtype, self.device, self.surrogate = dtype, torch.device(device), surrogate
        self.straight_through, self.scaled = straight_through, scaled

    def const(self, a: np.ndarray) -> Array:
        # one number stays a Python float: torch then neither broadcasts nor allocates
        if a.ndim == 0:
            return float(a)
        return torch.from_numpy(np.array(a)).to(self.device, self.dtype)

    def zeros(self, shape: Ints) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def add(self, a: Array, b: Array) -> Array:
        return a + b

    def sub(self, a: Array, b: Array) -> Array:
        return a - b

    def mul(self, a: Array, b: Array) -> Array:
        return a * b

    def div(self, a: Array, b: Array) -> Array:
        return a / b

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def relu(self, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    def least(self, x: Tensor) -> Tensor:
        return x.masked_fill(x == 0, torch.inf).amin(tuple(range(1, x.ndim)), keepdim=True)

    def fill(self, x: Tensor, y: Array) -> Tensor:
        filled = torch.where(x == 0, y, x)
        return Through.apply(x, filled) if self.straight_through else filled

    def octave(self, x: Tensor, low: float) -> Tensor:
        return torch.ldexp(torch.ones_like(x), torch.frexp(x / low).exponent - 1)

    def fire(self, v: Tensor, threshold: Array, compare: str) -> Tensor:
        if self.surrogate is not None:
            hard = _at_or_above if compare == "ge" else _above
            return _Decision.apply(v - threshold, hard, self.surrogate)
        return (torch.ge if compare == "ge" else torch.gt)(v, threshold, out=torch.empty_like(v))

    def sign(self, x: Tensor) -> Tensor:
        return torch.sign(x) if self.surrogate is None else _Decision.apply(x, torch.sign, self.surrogate)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias)

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        run = functional.conv2d if x.ndim == 4 else functional.conv1d
        return run(x, weight, bias, window.stride, window.padding, window.dilation, window.groups)

    def pool(self, x: Tensor, kernel: Ints, window: Window) -> Tensor:
        return functional.avg_pool2d(x, kernel, window.stride, window.padding, divisor_override=1)

    def max_pool(self, x: Tensor, kernel: Ints, window: Window) -> Tensor:
        return functional.max_pool2d(x, kernel, window.stride, window.padding, window.dilation)

    def reshape(self, x: Tensor, shape: Ints) -> Tensor:
        return x.reshape(x.shape[0], *shape)

    def stop_gradient(self, x: Tensor) -> Tensor:
        return x.detach()

    def scale_gradient(self, x: Tensor, factor: float) -> Tensor:
        return _Scaled.apply(x, factor) if self.scaled and x.requires_grad else x

    def shift_floor(self, x: Tensor, bits: int) -> Tensor:
        y = x * 2.0**-bits
        return y.floor_() if bits > 0 else y

    def shift_zero(self, x: Tensor, bits: int) -> Tensor:
        return (x * 2.0**-bits).trunc_()

    def wrap(self, x: Tensor, bits: int) -> Tensor:
        top = 2.0 ** (bits - 1)
        return x - 2 * top * ((x > top).to(x.dtype) - (x <= -top).to(x.dtype))

    def modulo(self, x: Tensor, bits: int) -> Tensor:
        top = 2.0 ** (bits - 1)
        return torch.remainder(x + top, 2 * top) - top

    def saturate(self, x: Tensor, lo: int, hi: int) -> Tensor:
        return x.clamp(lo, hi)

    def table(self, index: Tensor, values: Tensor) -> Tensor:
        return values[index.long()]

    def quotient(self, a: Tensor, b: Tensor) -> Tensor:
        return (a / b).floor_()


# comparisons write 0 and 1 in the input's dtype: through bool and a cast they cost several times as much
def _above(x: Tensor) -> Tensor:
    return torch.gt(x, 0, out=torch.empty_like(x))


def _at_or_above(x: Tensor) -> Tensor:
    return torch.ge(x, 0, out=torch.empty_like(x))


def device_of(name: str) -> torch.device:
    """ "auto", "cpu" or "cuda" as a device; raises ExportError where CUDA is asked for and absent."""
    if name not in ("auto", "cpu", "cuda") and not name.startswith("cuda:"):
        raise ExportError(f"unknown device {name!r}; valid: auto, cpu, cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ExportError(f"device {name!r}: this torch sees no CUDA device; use --device cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


class Torch(Target):
    """torch in float64, CPU or CUDA; TF32 off."""

    name = "torch"
    dtype: ClassVar[str] = "float64"
    claims = {kind: Claim("exact", "reference") for kind in PREPARE}

    def __init__(self, device: str = "cpu") -> None:
        self.device = device_of(device)

    @property
    def version(self) -> str:
        return f"torch {torch.__version__} {self.device.type} {self.dtype}"

    def compile(self, network: Network) -> Program:
        if network.integer:
            from targets.loihi.executor import IntegerOps, tested

            tested(self.device)  # whole numbers must come out whole, whatever algorithm the device's libraries choose
            return _Program(network, IntegerOps(self.device))
        return _Program(network, TorchOps(getattr(torch, self.dtype), self.device))


class Torch32(Torch):
    """torch in float32: what training computed in; equal up to explained ties."""

    name = "torch32"
    dtype = "float32"
    claims = {kind: Claim("approximate", "ties explained") for kind in PREPARE if kind not in INTEGERS}


class _Program(Program):
    def __init__(self, network: Network, ops: TorchOps) -> None:
        self.network, self.ops = network, ops
        self.latency = dict.fromkeys(network.recorded, 0)
        self._executor = Executor(network, ops)  # type: ignore[arg-type]

    @torch.no_grad()
    def run(self, x: np.ndarray, probe: bool = False) -> Trace:
        check_input(self.network, x)
        # TF32 would round products to 10 bits and call it float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        moved = torch.from_numpy(np.ascontiguousarray(np.swapaxes(x, 0, 1))).to(self.ops.device, self.ops.dtype)
        states: States | None = {} if probe else None
        z = {n: a.cpu().numpy() for n, a in self._executor.run(moved, states).items()}
        held = states and {k: {n: a.cpu().numpy() for n, a in rows.items()} for k, rows in states.items()}
        return recorded(self.network, self.latency, z, held)
