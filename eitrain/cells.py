"""Norse cells whose step is the one meaning of `eiexport.neurons`, run on torch with surrogate gradients.

Norse's `SNNCell` carries the shell (input, state) -> (spikes, state); what happens in a step is not written here.
"""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import torch
from norse.torch.module.snn import SNNCell
from torch import Tensor, nn

from eiexport import nodes
from eiexport.connections import Conv, Dense
from eiexport.neurons import GatedFire, LeakyFire
from eiexport.ops import Ints, Window
from eiexport.steps import Step
from targets import kernels
from targets.loop import scan
from targets.pytorch import Surrogate, TorchOps


def rectangular(x: Tensor) -> Tensor:
    """Derivative 1 where |x| < 1/2 (strict), else 0; x = V - threshold (BackEISNN, section 3.3, as its code has it)."""
    near = x.abs()
    return torch.lt(near, 0.5, out=near)


def sigmoid(x: Tensor, alpha: float = 4.0) -> Tensor:
    """Derivative `alpha s(alpha x) (1 - s(alpha x))`, s the logistic sigmoid (EICIL, BIRIL, DeepEISNN: alpha = 4)."""
    s = (alpha * x).sigmoid_()
    return torch.ops.aten.sigmoid_backward(s.new_full((), alpha), s)  # one pass: torch's own alpha * (1 - s) * s


SURROGATES: dict[str, Surrogate] = {"rectangular": rectangular, "sigmoid": sigmoid}


def connection(module: nn.Module) -> Step:
    """The step of a torch connection, holding its live parameters."""
    if isinstance(module, nn.Linear):
        return Dense(module.weight, module.bias)  # type: ignore[arg-type]
    if isinstance(module, nn.Conv2d) and not isinstance(module.padding, str) and module.padding_mode == "zeros":
        window = Window(module.stride, module.padding, module.dilation, module.groups)
        return Conv(module.weight, module.bias, window)  # type: ignore[arg-type]
    raise TypeError(f"no step for {type(module).__name__}")


class Parameters(nn.Module):
    """What a spiking layer is: neuron constants (not trained) and its gates (trained).

    decay in [0, 1]; threshold > 0; compare "gt" | "ge"; reset "zero" | "subtract" | "none". feedback (SFBM) and
    balance (BEIM): connections that keep the layer's shape, or None.
    """

    def __init__(
        self,
        *,
        decay: float,
        threshold: float,
        compare: str = "gt",
        reset: str = "zero",
        detach_reset: bool = False,
        surrogate: str = "rectangular",
        feedback: nn.Module | None = None,
        balance: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.decay, self.threshold, self.compare, self.reset = decay, threshold, compare, reset
        self.detach_reset, self.surrogate = detach_reset, surrogate
        self.feedback, self.balance = feedback, balance

    def step(self) -> LeakyFire | GatedFire:
        """The layer's step with live parameters."""
        inner = LeakyFire(
            shape=(),
            decay=self.decay,  # type: ignore[arg-type]
            threshold=self.threshold,  # type: ignore[arg-type]
            v_reset=None,
            compare=self.compare,
            reset_mode=self.reset,
            lower=None,
            detach_reset=self.detach_reset,
        )
        if self.feedback is None and self.balance is None:
            return inner
        feedback, balance = (None if g is None else connection(g) for g in (self.feedback, self.balance))
        return GatedFire(inner=inner, feedback=feedback, balance=balance)

    def extra_repr(self) -> str:
        return f"decay={self.decay}, threshold={self.threshold}, compare={self.compare!r}, reset={self.reset!r}"


class Cell(SNNCell):
    """A Norse cell: one time step of a spiking layer, or all of them with `over_time`."""

    p: Parameters

    def __init__(self, **parameters: Any) -> None:
        super().__init__(activation=_activate, state_fallback=self._start, p=Parameters(**parameters), dt=1.0)

    def _start(self, x: Tensor) -> Any:
        return self.p.step().init(_ops(x, self.p), tuple(x.shape))

    def over_time(self, x: Tensor) -> Tensor:
        """All steps from zero state; x and result (T, B, *neuron)."""
        step, ops = self.p.step(), _ops(x, self.p)
        return (kernels.find(step, ops) or scan)(step, ops, x)

    def node(self, shape: Ints) -> nodes.EIDiscreteLIF | nodes.EIGatedLIF:
        """This layer as a NIR node for neurons of `shape`, weights in the dtype they were trained in."""
        p = self.p
        neuron = nodes.lif(shape, decay=p.decay, threshold=p.threshold, compare=p.compare, reset=p.reset)
        if p.feedback is None and p.balance is None:
            return neuron
        return nodes.EIGatedLIF(
            neuron, *(None if g is None else connection_node(g, shape) for g in (p.feedback, p.balance))
        )


def _activate(x: Tensor, state: Any, p: Parameters, dt: float) -> Any:
    return p.step().step(_ops(x, p), x, state)


def _ops(x: Tensor, p: Parameters) -> TorchOps:
    """The op set for this input; surrogates only while gradients are recorded."""
    return TorchOps(x.dtype, x.device, SURROGATES[p.surrogate] if torch.is_grad_enabled() else None)


def connection_node(module: nn.Module, shape: Ints, weight: Tensor | None = None, bias: Tensor | None = None) -> Any:
    """A connection as a NIR node; `shape` is the neuron shape that enters it. weight, bias: in place of its own."""
    if weight is None:
        weight, bias = module.weight, module.bias  # type: ignore[assignment]

    def array(t: Tensor | None, like: int) -> np.ndarray:
        return np.zeros(like, np.float32) if t is None else t.detach().cpu().numpy().copy()

    if isinstance(module, nn.Linear):
        return nir.Affine(array(weight, 0), array(bias, module.out_features))
    if isinstance(module, nn.Conv2d):
        geometry = module.stride, module.padding, module.dilation, module.groups
        return nir.Conv2d(shape[1:], array(weight, 0), *geometry, array(bias, module.out_channels))
    raise TypeError(f"no NIR node for {type(module).__name__}")
