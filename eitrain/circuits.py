"""DeepEISNN's excitatory-inhibitory circuit as a trained module: E-I Init, E-I Prop, projection.

Liu, Ding, Yu (2025), arXiv 2509.23253. What it computes is `eiexport.circuits`; here is what training adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from eiexport import circuits
from eiexport.circuits import DIVIDING, EICircuit
from eiexport.connections import Conv, Dense
from eiexport.divide import Numbers
from eiexport.ops import Ints, Window
from eitrain.errors import TrainError
from targets import circuits as kernels
from targets.pytorch import Through, TorchOps

RATIO = 4  # excitatory cells for each inhibitory one
TINY = 1e-6  # what denominators of 0 become without adaptive stabilisation
SPARSE = 0.1  # the input that E-I Init assumes where the first batch brings none: Bernoulli with this p


@dataclass(frozen=True)
class Prop:
    """E-I Prop and its ablations.

    stabilise: zeros of D become the smallest other value of their sample, else TINY. straight_through: their gradient
    is that of the quotient as it was evaluated, else it goes to the value they took. scaled: W_EI's gradient times 1/d.
    """

    stabilise: bool = True
    straight_through: bool = True
    scaled: bool = True


class Circuit(nn.Module):
    """nE excitatory and nI = floor(nE / 4) inhibitory cells behind an input x >= 0; equations: `eiexport.circuits`.

    inputs: cells (N,) or maps (C, H, W) give (d,) or C. w_ee (nE, ...), w_ie (nI, ...), w_ei (nE, nI), g_i (nI,),
    g_e (nE,), all >= 0, b_e (nE,) free. kernel 0: fully connected. readout: the output layer, W_EE x - W_EI s alone;
    its gains and bias exist, as in the published code, and do nothing.
    Before E-I Init, weights are max(u, 0), u as torch draws a convolution's, so half of them are 0; gains 1, bias 0.
    """

    def __init__(
        self,
        inputs: int,
        cells: int,
        *,
        kernel: int = 0,
        stride: int = 1,
        readout: bool = False,
        prop: Prop = Prop(),
    ) -> None:
        super().__init__()
        if cells < RATIO:
            raise TrainError(f"a circuit of {cells} excitatory cells has no inhibitory one: give at least {RATIO}")
        inhibitory, tail = cells // RATIO, (kernel, kernel) if kernel else ()
        one = (1, 1) if kernel else ()
        self.kernel, self.stride, self.readout, self.prop = kernel, stride, readout, prop
        self.w_ee = nn.Parameter(torch.empty(cells, inputs, *tail))
        self.w_ie = nn.Parameter(torch.empty(inhibitory, inputs, *tail))
        self.w_ei = nn.Parameter(torch.empty(cells, inhibitory, *one))
        self.g_i, self.g_e = nn.Parameter(torch.ones(inhibitory)), nn.Parameter(torch.ones(cells))
        self.b_e = nn.Parameter(torch.zeros(cells))
        for p in (self.g_i, self.g_e, self.b_e) if readout else ():
            p.requires_grad_(False)  # several processes would wait for gradients that never come
        self.form = "none" if readout else "exact"
        for w in (self.w_ee, self.w_ie, self.w_ei):
            nn.init.kaiming_uniform_(w, a=math.sqrt(5))
        self.project()

    @property
    def constrained(self) -> dict[str, nn.Parameter]:
        """Everything that Dale's law keeps from falling below 0."""
        return {k: p for k, p in self.named_parameters(recurse=False) if k != "b_e"}

    @torch.no_grad()
    def project(self) -> None:
        """Onto Dale's law: what fell below 0 is 0."""
        for p in self.constrained.values():
            p.clamp_(min=0)

    def deploy(self, form: str) -> None:
        """Take a form of the division that a chip has; its numbers are buffers, set by `calibrate` or a checkpoint."""
        if self.readout:
            return
        self.form = form
        if form == "frozen":
            self.register_buffer("denominator", torch.ones(len(self.w_ee)))
        else:
            self.register_buffer("epsilon", torch.ones(()))

    @torch.no_grad()
    def calibrate(self, numbers: Numbers) -> None:
        """Set what `deploy` made room for."""
        for name, buffer in self.named_buffers(recurse=False):
            buffer.copy_(torch.as_tensor(np.asarray(getattr(numbers, name))))

    def step(self, dtype: torch.dtype | None = None) -> circuits.Circuit:
        """The layer's step with live parameters, in their own dtype or another."""
        conv = bool(self.kernel)

        def cast(values: Tensor) -> Tensor:
            return values if dtype is None else values.to(dtype)

        def part(weight: Tensor, kernel: int, stride: int) -> Any:
            if not conv:
                return Dense(cast(weight), None)  # type: ignore[arg-type]
            return Conv(cast(weight), None, Window((stride,) * 2, (kernel // 2,) * 2, (1, 1)))  # type: ignore[arg-type]

        def over(values: Tensor) -> Any:
            return values.view(-1, 1, 1) if conv else values

        parts = {"excite": part(self.w_ee, self.kernel, self.stride)}
        parts |= {"inhibit": part(self.w_ie, self.kernel, self.stride), "spread": part(self.w_ei, 1, 1)}
        if self.readout:
            return circuits.Circuit(**parts, form="none")
        gain = cast(self.g_e)
        if self.form == "frozen":
            gain = gain / cast(self.get_buffer("denominator"))
        rest: dict[str, Any] = {"gain_i": over(cast(self.g_i)), "gain_e": over(gain), "bias": over(cast(self.b_e))}
        if self.form in DIVIDING and self.fills is not None:
            rest |= {"zero": "constant", "epsilon": self.fills}
        if self.form == "table":
            rest["table"] = cast(self.w_ee.new_tensor(circuits.shares(circuits.TABLE_BITS)))
        return circuits.Circuit(**parts, form=self.form, **rest)

    @property
    def fills(self) -> Tensor | float | None:
        """The constant that zeros of D become; None: the smallest other value of the sample."""
        if self.form in DIVIDING and "epsilon" in dict(self.named_buffers(recurse=False)):
            return self.get_buffer("epsilon")
        return None if self.prop.stabilise else TINY

    def forward(self, x: Tensor) -> Tensor:
        """I (N, ...) of rows x, each one step of one sample."""
        step, prop = self.step(), self.prop
        ops = TorchOps(x.dtype, x.device, straight_through=prop.straight_through, scaled=prop.scaled)
        if not torch.is_grad_enabled():
            return step.drive(ops, x)  # type: ignore[arg-type]
        if self.form not in ("shift", "table"):
            return _run(step, ops, x)
        with torch.no_grad():
            hard = step.drive(ops, x)  # type: ignore[arg-type]
        return Through.apply(_run(replace(step, form="exact"), ops, x), hard)

    @torch.no_grad()
    def initialise(self, x: Tensor, copies: int = 1) -> bool:
        """E-I Init by the first batch's x (N, ...), each row for `copies` equal ones; False if nothing varied in it.

        With E = mean(x), Q = mean(x^2), R = mean over positions of the unbiased variance over rows:
        W_EE, W_IE ~ Exponential(scale sqrt(R / (d (Q + R)))), W_EI = 1 / nI, g_E = 1, b_E = 0,
        g_I = sqrt(Q + R) / (sqrt(d) E). An input without spikes or without variance would give no number, or only
        zeros: such a layer starts as for Bernoulli spikes of p = SPARSE.
        """
        d, n = self.w_ee[0].numel(), len(x) * copies
        x = x.double()
        mean, square = float(x.mean()), float(x.square().mean())
        spread = float(x.var(0, correction=0).mean()) * n / max(1, n - 1)
        if varied := mean > 0 and spread > 0:
            q, e, r = square, mean, spread
        else:
            q, e, r = SPARSE, SPARSE, SPARSE * (1 - SPARSE)
        for w in (self.w_ee, self.w_ie):
            w.exponential_(1 / math.sqrt(r / (d * (q + r))))
        self.w_ei.fill_(1 / len(self.g_i))
        self.g_e.fill_(1)
        self.b_e.zero_()
        self.g_i.fill_(math.sqrt(q + r) / (math.sqrt(d) * e))
        return varied

    def folded(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) of the one connection that a readout, or a frozen circuit, is; gradients flow to all of it."""
        return circuits.fold(self.step(dtype))

    def node(self, shape: Ints) -> EICircuit:
        """This layer as a NIR node for inputs of `shape`, weights in the dtype they were trained in."""

        def array(a: Tensor) -> np.ndarray:
            return a.detach().cpu().numpy().copy()

        def part(weight: Tensor, size: Ints, kernel: int, stride: int) -> Any:
            if not self.kernel:
                return nir.Linear(array(weight))
            words = array(weight)
            return nir.Conv2d(size, words, stride, kernel // 2, 1, 1, np.zeros(len(words), words.dtype))

        excite = part(self.w_ee, shape[1:], self.kernel, self.stride)
        size = tuple(int(v) for v in excite.output_type["output"][1:]) if self.kernel else ()
        parts = (excite, part(self.w_ie, shape[1:], self.kernel, self.stride), part(self.w_ei, size, 1, 1))
        if self.readout:
            return EICircuit(*parts, form="none")
        given: dict[str, Any] = {"gain_i": array(self.g_i), "gain_e": array(self.g_e), "bias": array(self.b_e)}
        if self.form == "frozen":
            given["denominator"] = array(self.get_buffer("denominator"))
        elif self.fills is not None:
            given |= {"zero": "constant", "epsilon": float(self.fills)}
        return EICircuit(*parts, form=self.form, **given)

    def extra_repr(self) -> str:
        return f"{len(self.w_ee)} E, {len(self.w_ie)} I, kernel={self.kernel}, stride={self.stride}, form={self.form!r}"


def _run(step: circuits.Circuit, ops: TorchOps, x: Tensor) -> Tensor:
    """The step in training: fused where there is a kernel for it."""
    return kernels.run(step, ops, x) if kernels.applies(step, ops) else step.drive(ops, x)  # type: ignore[arg-type]
