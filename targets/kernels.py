"""Fused scans: hand-written forward and backward passes of a kind's step over time, one entry per (kind, engine).

A kernel is never a second meaning: each is tested against the step it stands for, spikes bit for bit and gradients
against autograd through the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import grad as conv_grad

from eiexport.connections import Conv
from eiexport.neurons import GatedFire, LeakyFire
from eiexport.ops import Ints
from eiexport.steps import Neuron
from targets.pytorch import TorchOps

Kernel = Callable[[Any, TorchOps, Tensor], Tensor]
# in shorter types V >= threshold rounds the threshold, and the step's V - threshold >= 0 does not
WHOLE = (torch.float32, torch.float64)
# of a plain scan: neurons that are taken through all steps together, and values whose slopes are formed together. A CPU
# core's caches then hold what is worked on, and what is needed for a moment is memory used before, not fresh pages
LIMITS = {"cpu": (2**16, 2**17), "cuda": (2**20, 2**23)}


def find(step: Neuron, ops: TorchOps) -> Kernel | None:
    """The fused training scan for this step on torch, or None: then the step itself runs over time."""
    if ops.surrogate is None:
        return None
    if type(step) is LeakyFire:
        return leaky_scan if _alone(step) and _one_number(step) and ops.dtype in WHOLE else None
    if type(step) is not GatedFire:
        return None
    inner, gates = step.inner, (step.feedback, step.balance)
    plain = inner.compare == "gt" and inner.reset_mode == "zero" and not inner.detach_reset
    # with one gate missing the step is cheap enough to run as it is
    return gated_scan if plain and _alone(inner) and all(_keeps_map(g) for g in gates) else None


def _alone(fire: LeakyFire) -> bool:
    return all(v is None for v in (fire.v_reset, fire.gain, fire.bias, fire.lower))


def _one_number(fire: LeakyFire) -> bool:
    """Decay and threshold are numbers, not arrays and nothing that is trained."""
    return all(isinstance(v, int | float) for v in (fire.decay, fire.threshold))


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


def leaky_scan(step: LeakyFire, ops: TorchOps, x: Tensor) -> Tensor:
    """`neurons.LeakyFire` without v_reset, gain, bias and lower over all steps; x and result (T, B, *neuron).

    Decay and threshold are numbers; float32 or float64; any compare, reset and detach_reset. The equations are the
    step's, and tests/test_kernels.py holds both passes to it. Each step of the result has the memory format of x[0].
    Kept for backward, which is BPTT by hand: the membranes before their reset, as many bytes as x.
    """
    return _LeakyScan.apply(x, step, ops)


class _LeakyScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: LeakyFire, ops: TorchOps) -> Tensor:
        strides = (x[0].numel(), *torch.empty_like(x[0], device="meta").stride())
        sent = x.new_empty_strided(x.shape, strides)
        # torch takes a tensor of one number faster than a Python number: of the time of a small row, a third
        decay, threshold = (torch.tensor(v, dtype=x.dtype) for v in (step.decay, step.threshold))
        fire = torch.ge if step.compare == "ge" else torch.gt
        membranes = []
        for now, out in zip(_pieces(x, strides), _pieces(sent, strides), strict=True):
            kept = x.new_empty(now.shape)
            carried = torch.zeros_like(kept[0])
            last = None
            for current, v, spike in zip(now.unbind(), kept.unbind(), out.unbind(), strict=True):
                if last is not None:
                    _reset(step, *last, carried)
                    if step.decay != 1:
                        carried.mul_(decay)
                torch.add(carried, current, out=v)
                fire(v, threshold, out=spike)
                last = v, spike
            membranes.append(kept)
        ctx.save_for_backward(*membranes)
        ctx.step, ctx.surrogate, ctx.strides = step, ops.surrogate, strides
        return sent

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        step, strides = ctx.step, ctx.strides
        to_x = grad.new_empty_strided(grad.shape, strides)
        for pieces in zip(ctx.saved_tensors, _pieces(grad, strides), _pieces(to_x, strides), strict=True):
            together = max(1, _limits(grad)[1] // max(1, pieces[0].shape[1]))  # steps
            later = None
            for v, to_spike, to_v in reversed([*zip(*(p.split(together) for p in pieces), strict=True)]):
                slope = ctx.surrogate(v - step.threshold)
                torch.mul(slope, to_spike, out=to_v)
                passed = _passed(step, v, slope)
                for t in reversed(range(len(v))):
                    now = to_v[t]
                    if later is not None:
                        now.add_(later, alpha=step.decay) if passed is None else now.addcmul_(passed[t], later)
                    later = now
        return to_x, None, None


def _reset(step: Any, v: Tensor, spike: Tensor, out: Tensor) -> None:
    """The membrane carried on. Products with a spike are exact, so one fused operation rounds as the step's two do."""
    if step.reset_mode == "none":
        out.copy_(v)
    elif step.reset_mode == "subtract":
        torch.sub(v, spike, alpha=step.threshold, out=out)
    else:
        torch.addcmul(v, v, spike, value=-1, out=out)


def _passed(step: Any, v: Tensor, slope: Tensor) -> Tensor | None:
    """dV[t+1] / dV[t] through decay and reset, the spike's share by its slope; None: the decay alone."""
    if step.reset_mode == "none" or (step.reset_mode == "subtract" and step.detach_reset):
        return None
    if step.reset_mode == "subtract":
        passed = torch.mul(slope, -step.threshold).add_(1)
    else:  # v (1 - s): where no spike was sent, v is passed
        passed = (torch.lt if step.compare == "ge" else torch.le)(v, step.threshold, out=torch.empty_like(v))
        if not step.detach_reset:
            passed.addcmul_(v, slope, value=-1)
    return passed if step.decay == 1 else passed.mul_(step.decay)


def _pieces(a: Tensor, strides: Ints) -> tuple[Tensor, ...]:
    """(T, B, *neuron) as pieces (T, n) of the neurons in the order of these strides; views where `a` has them too."""
    order = sorted(range(1, a.ndim), key=lambda d: -strides[d])
    return a.permute(0, *order).flatten(1).split(_limits(a)[0], 1)


def _limits(a: Tensor) -> tuple[int, int]:
    """LIMITS of this tensor's device; every thread of a CPU takes its share of a piece."""
    neurons, values = LIMITS.get(a.device.type, LIMITS["cuda"])
    threads = torch.get_num_threads() if a.device.type == "cpu" else 1
    return neurons * threads, values * threads
