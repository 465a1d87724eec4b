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
    if ops.surrogate is None or type(step) is not GatedFire:
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

    Backward is BPTT by hand. At t = 0 nothing has been sent yet, so the feedback is its bias alone; input gradients
    of the gates, which keep their map, are convolutions with the turned kernel.
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
        inner, sent = step.inner, torch.empty_like(x)
        # one tensor a step and signal: blocks of T steps would be fresh pages from the system at every call
        membranes, balances, gates = (list[Tensor]() for _ in range(3))
        carried = torch.empty(0)
        for t in range(x.shape[0]):
            if t == 0:
                g = torch.sigmoid(bf).view(-1, 1, 1).expand(x.shape[1:])
                v = g * x[t]
            else:
                g = ops.conv(sent[t - 1], wf, bf, step.feedback.window).sigmoid_()
                v = carried.mul_(inner.decay).add_(g * x[t])
            c = ops.conv(v, wb, bb, step.balance.window)
            spike = torch.gt(v, inner.threshold, out=torch.empty_like(v))
            torch.mul(torch.sign(c), spike, out=sent[t])
            carried = spike.neg_().add_(1).mul_(v)
            for kept, signal in ((membranes, v), (balances, c), (gates, g)):
                kept.append(signal)
        ctx.save_for_backward(x, wf, wb, sent, *membranes, *balances, *gates)
        ctx.step, ctx.ops, ctx.surrogate = step, ops, ops.surrogate
        return sent

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, wf, wb, sent, *signals = ctx.saved_tensors
        steps, inner, slope, ops = len(x), ctx.step.inner, ctx.surrogate, ctx.ops
        feedback, balance = ctx.step.feedback, ctx.step.balance
        back_f, back_b = (w.flip(2, 3).transpose(0, 1).contiguous() for w in (wf, wb))
        to_x, to_wf, to_wb = torch.empty_like(x), torch.zeros_like(wf), torch.zeros_like(wb)
        to_bf, to_bb = (torch.zeros_like(w[:, 0, 0, 0]) for w in (wf, wb))
        to_sent, to_carried = grad[-1], None  # the latter by v[t], from step t + 1
        for t in reversed(range(steps)):
            v, c, g = (signals[i * steps + t] for i in range(3))
            spike = torch.gt(v, inner.threshold, out=torch.empty_like(v))
            to_c = slope(c).mul_(to_sent).mul_(spike)
            to_spike = torch.sign(c).mul_(to_sent)
            to_v = ops.conv(to_c, back_b, None, balance.window)
            if to_carried is not None:
                to_spike.addcmul_(v, to_carried, value=-1)
                to_v.addcmul_(to_carried, spike.neg_().add_(1))
            to_v.addcmul_(to_spike, slope(v - inner.threshold))
            torch.mul(to_v, g, out=to_x[t])
            to_fed = (to_x[t] * x[t]).mul_(g.neg().add_(1))
            to_wb += _weight_grad(v, wb, to_c, balance)
            to_bb += to_c.sum((0, 2, 3))
            to_bf += to_fed.sum((0, 2, 3))
            if t > 0:  # at t = 0 the feedback has seen nothing
                to_wf += _weight_grad(sent[t - 1], wf, to_fed, feedback)
                to_sent = ops.conv(to_fed, back_f, None, feedback.window).add_(grad[t - 1])
            to_carried = to_v.mul_(inner.decay)
        return to_x, to_wf, to_bf, to_wb, to_bb, None, None


def _weight_grad(x: Tensor, weight: Tensor, grad: Tensor, conv: Conv) -> Tensor:
    if not x.is_cuda:  # oneDNN's weight gradient is up to twice as fast in this layout, copy included
        x, grad = (a.contiguous(memory_format=torch.channels_last) for a in (x, grad))
    w = conv.window
    return conv_grad.conv2d_weight(x, weight.shape, grad, w.stride, w.padding, w.dilation, w.groups)
