"""Fused scans: hand-written forward and backward passes of a kind's step over time, one entry per (kind, engine).

A kernel is never a second meaning: each is tested against the step it stands for, spikes bit for bit and gradients
against autograd through the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import grad as conv_grad

from eiexport.connections import Conv
from eiexport.neurons import GatedFire
from eiexport.steps import Neuron
from targets.pytorch import TorchOps

Kernel = Callable[[Any, TorchOps, Tensor], Tensor]


def find(step: Neuron, ops: TorchOps) -> Kernel | None:
    """The fused training scan for this step on torch, or None: then the step itself runs over time."""
    if ops.surrogate is None or not isinstance(step, GatedFire):
        return None
    inner, gates = step.inner, (step.feedback, step.balance)
    plain = inner.compare == "gt" and inner.reset_mode == "zero" and not inner.detach_reset
    alone = all(v is None for v in (inner.v_reset, inner.gain, inner.bias, inner.lower))
    # with one gate missing the step is cheap enough to run as it is
    return gated_scan if plain and alone and all(_keeps_map(g) for g in gates) else None


def _keeps_map(gate: Any) -> bool:
    """An ungrouped convolution of stride 1 whose transpose is again such a convolution."""
    if not isinstance(gate, Conv) or gate.bias is None or len(gate.window.stride) != 2:
        return False
    w, kernel = gate.window, gate.weight.shape[2:]
    same = all(2 * p == d * (k - 1) for p, d, k in zip(w.padding, w.dilation, kernel, strict=True))
    return same and w.stride == (1, 1) and w.groups == 1


def gated_scan(step: GatedFire, ops: TorchOps, x: Tensor) -> Tensor:
    """`neurons.GatedFire` with two convolutional gates over all steps; x and result (T, B, C, H, W).

    Backward is BPTT by hand: the recurrence needs the two input gradients of each step, while both weight gradients
    are one convolution over (T x B). At t = 0 nothing has been sent yet, so the feedback is its bias alone.
    """
    feedback, balance = step.feedback, step.balance
    assert isinstance(feedback, Conv) and isinstance(balance, Conv)
    tensors = (feedback.weight, feedback.bias, balance.weight, balance.bias)
    return _GatedScan.apply(x, *tensors, step, ops)


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, wf: Tensor, bf: Tensor, wb: Tensor, bb: Tensor, step: Any, ops: TorchOps
    ) -> Tensor:
        inner, steps = step.inner, x.shape[0]
        sent, membrane, balance, gate = (torch.empty_like(x) for _ in range(4))
        carried = torch.empty(0)
        for t in range(steps):
            v, c, g, d = membrane[t], balance[t], gate[t], sent[t]
            if t == 0:
                torch.sigmoid(bf.view(-1, 1, 1).expand(x.shape[1:]), out=g)
                torch.mul(g, x[t], out=v)
            else:
                torch.sigmoid(ops.conv(sent[t - 1], wf, bf, step.feedback.window), out=g)
                torch.add(carried.mul_(inner.decay), g * x[t], out=v)
            c.copy_(ops.conv(v, wb, bb, step.balance.window))
            spike = torch.gt(v, inner.threshold, out=torch.empty_like(v))
            torch.mul(torch.sign(c), spike, out=d)
            carried = spike.neg_().add_(1).mul_(v)
        ctx.save_for_backward(x, wf, wb, sent, membrane, balance, gate)
        ctx.step, ctx.ops, ctx.surrogate = step, ops, ops.surrogate
        return sent

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, wf, wb, sent, membrane, balance, gate = ctx.saved_tensors
        inner, slope = ctx.step.inner, ctx.surrogate
        to_fed, to_c, to_x = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        back_f, back_b = (w.flip(2, 3).transpose(0, 1).contiguous() for w in (wf, wb))
        to_carried: Tensor | None = None  # gradient of the loss by v[t], from step t + 1
        for t in reversed(range(len(x))):
            v, c, g = membrane[t], balance[t], gate[t]
            spike = torch.gt(v, inner.threshold, out=torch.empty_like(v))
            to_sent = grad[t]
            if t + 1 < len(x):
                to_sent = to_sent + ctx.ops.conv(to_fed[t + 1], back_f, None, ctx.step.feedback.window)
            torch.mul(to_sent, spike, out=to_c[t])
            to_c[t].mul_(slope(c))
            to_spike = torch.sign(c).mul_(to_sent)
            to_v = ctx.ops.conv(to_c[t], back_b, None, ctx.step.balance.window)
            if to_carried is not None:
                to_spike.addcmul_(v, to_carried, value=-1)
                to_v.addcmul_(to_carried, spike.neg_().add_(1))
            to_v.addcmul_(to_spike, slope(v - inner.threshold))
            torch.mul(to_v, g, out=to_x[t])
            torch.mul(to_x[t], x[t], out=to_fed[t])
            to_fed[t].mul_(g.neg().add_(1))
            to_carried = to_v.mul_(inner.decay)
        earlier = sent[:-1].flatten(0, 1)  # what the feedback of steps 1.. saw
        to_wf = _weight_grad(earlier, wf, to_fed[1:].flatten(0, 1), ctx.step.feedback)
        to_wb = _weight_grad(membrane.flatten(0, 1), wb, to_c.flatten(0, 1), ctx.step.balance)
        return to_x, to_wf, to_fed.sum((0, 1, 3, 4)), to_wb, to_c.sum((0, 1, 3, 4)), None, None


def _weight_grad(x: Tensor, weight: Tensor, grad: Tensor, conv: Conv) -> Tensor:
    if not len(x):
        return torch.zeros_like(weight)
    if not x.is_cuda:  # oneDNN's weight gradient is up to twice as fast in this layout, copy included
        x, grad = (a.contiguous(memory_format=torch.channels_last) for a in (x, grad))
    w = conv.window
    return conv_grad.conv2d_weight(x, weight.shape, grad, w.stride, w.padding, w.dilation, w.groups)
