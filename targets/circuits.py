"""DeepEISNN's circuit in training: `eiexport.circuits.Circuit` forward and, by hand, backward.

Never a second meaning: forward gives the step's very bits, and the gradients are held against autograd through it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eiexport.circuits import Circuit
from eiexport.connections import Conv, Dense
from eiexport.ops import Window
from targets.kernels import WHOLE
from targets.pytorch import TorchOps

CHANNELS_LAST = torch.channels_last
# values that are worked on together: a CPU's caches then hold what its threads need of them at a time
TOGETHER = {"cpu": 2**17, "cuda": 2**24}
LANES = 16  # columns of a product below which MKL's is two to three times slower than it need be
POINT = Window((1, 1), (0, 0), (1, 1))


def applies(step: Circuit, ops: TorchOps) -> bool:
    """True where `run` may stand for `step.drive` in training: forms "exact" and "none", float32 or float64,
    straight-through zeros, dense connections or ungrouped convolutions of two axes, and gains and bias of one number a
    cell as torch tensors (none of them in form "none").
    """
    parts = (step.excite, step.inhibit, step.spread)
    values = (step.gain_i, step.gain_e, step.bias)
    if type(step) is not Circuit or type(ops) is not TorchOps or ops.dtype not in WHOLE or not ops.straight_through:
        return False
    if any(p.bias is not None or not isinstance(p.weight, Tensor) for p in parts):
        return False
    if step.form == "none":
        known = values == (None, None, None)
    else:
        cells = (len(step.inhibit.weight), len(step.excite.weight), len(step.excite.weight))
        known = step.form == "exact" and all(
            isinstance(v, Tensor) and v.shape[:1] == (n,) and v.numel() == n for v, n in zip(values, cells, strict=True)
        )
    maps = all(isinstance(p, Conv) and len(p.window.stride) == 2 and p.window.groups == 1 for p in parts)
    return known and (all(isinstance(p, Dense) for p in parts) or (maps and step.spread.window == POINT))


def run(step: Circuit, ops: TorchOps, x: Tensor) -> Tensor:
    """`step.drive(ops, x)`, bit for bit, for a step that `applies`; x (N, d) or (N, C, H, W), N rows of (step, sample).

    Gradients go to x, the three weights, gains and bias: those of E-I Prop where `ops.scaled`. The result has the
    memory format of the step's; the fast one on a CPU is channels last. Kept for backward: N, D and s.
    """
    if x.numel() == 0 or x.ndim != step.excite.weight.ndim:
        return step.drive(ops, x)  # type: ignore[arg-type]
    if isinstance(step.excite, Conv):
        step, x = _unstrided(step, x)
    tensors = (step.excite.weight, step.inhibit.weight, step.spread.weight, step.gain_i, step.gain_e, step.bias)
    return _Run.apply(x, *tensors, step, ops)


def _unstrided(step: Circuit, x: Tensor) -> tuple[Circuit, Tensor]:
    """A strided circuit by one pixel, maps or weights channels last: as a plain one on the pixels that it sees.

    The same sums; but with few channels, oneDNN's (torch 2.13) writes outside of its memory there.
    """
    weights = (step.excite.weight, step.inhibit.weight)
    if not (_strided_point(step.excite) and (_last(x) or any(w.stride(-1) > 1 for w in weights))):
        return step, x
    down, right = step.excite.window.stride
    parts = {k: replace(getattr(step, k), window=POINT) for k in ("excite", "inhibit")}
    return replace(step, **parts), x[:, :, ::down, ::right].contiguous(memory_format=CHANNELS_LAST)


def _strided_point(part: Any) -> bool:
    w = part.window
    return part.weight.shape[2:] == (1, 1) and w.stride != (1, 1) and not any(w.padding)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_ee: Tensor, w_ie: Tensor, w_ei: Tensor, g_i: Any, g_e: Any, b_e: Any, step: Any, ops: Any
    ) -> Tensor:
        n, s = step.excite.drive(ops, x), step.inhibit.drive(ops, x)
        below = None  # where relu's gradient is 0: nowhere, as long as x and W_IE are not negative
        if not _on_cpu(s) or bool(s.amin() < 0):
            below = s < 0
            s.clamp_(min=0)
        out = step.spread.drive(ops, s)
        kept: tuple[Tensor, ...] = ()
        if step.form == "none":
            out = n.sub_(out)
        else:
            d = step.spread.drive(ops, step.weighed(ops, s))
            _divide(step, n, d, out)
            kept = (g_i, g_e, n, d)
        ctx.save_for_backward(x, w_ee, w_ie, w_ei, s, below, *kept)
        ctx.step, ctx.ops = step, ops
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """With G the gradient of I, sums over positions and the gains as diagonal matrices:

            u = G / D,  t = u N / D
            of N: G_N = g_E u;  of s: -W_EI^T G_N - g_I W_EI^T g_E t, 0 where relu is
            of W_EI: -G_N s^T - g_E t s^T g_I;  of g_I: column sums of W_EI * (-g_E t s^T)
            of g_E: sum of u N;  of b_E: sum of G

        Over many positions the share of N is taken from A = G_N x^T, W_EE's gradient, since s = W_IE x where relu does
        nothing: G_N s^T = A W_IE^T, its share of W_IE's gradient is -W_EI^T A, of x's -(W_EI W_IE)^T G_N.
        """
        x, w_ee, w_ie, w_ei, s, below, *kept = ctx.saved_tensors
        step, (for_x, for_ee, for_ie, for_ei, *_) = ctx.step, ctx.needs_input_grad
        spread, inhibit = w_ei.flatten(1).T, w_ie.flatten(1)
        to_gains: Any = (None, None, None)
        if step.form == "none":
            to_n, to_s, to_ei = grad, _room(s).zero_(), spread.new_zeros(spread.shape)
        else:
            to_n, to_s, to_ei, *to_gains = _undivided(step, grad, s, spread, *kept)
        # 3 n nI d products against 2 n nI positions
        through = below is None and step.form != "none" and 3 * inhibit.shape[1] < 2 * s.numel() // s.shape[1]
        if not through:
            cells = _cells(to_n)
            to_ei -= _cells(s).T @ cells
            _cells(to_s).addmm_(cells, spread.T, alpha=-1)
        elif for_x:
            w_ee = w_ee - (spread.T @ inhibit).view_as(w_ee)
        if below is not None:
            to_s.masked_fill_(below, 0)
        to_x, to_ee = _gradients(step.excite, x, w_ee, to_n, for_x, for_ee or (through and (for_ie or for_ei)))
        more, to_ie = _gradients(step.inhibit, x, w_ie, to_s, for_x, for_ie)
        if for_x:
            to_x += more
        if through and to_ee is not None:
            to_ei.addmm_(inhibit, to_ee.flatten(1).T, alpha=-1)
            if for_ie:
                to_ie -= (spread @ to_ee.flatten(1)).view_as(w_ie)
        if ctx.ops.scaled:
            to_ei *= 1 / step.fan_in
        return to_x, to_ee if for_ee else None, to_ie, to_ei.T.reshape(w_ei.shape), *to_gains, None, None


def _divide(step: Any, n: Tensor, d: Tensor, out: Tensor) -> None:
    """From W_EE x in `n`, W_EI g_I s in `d` and W_EI s in `out`: N, D and I in their places."""
    rows = max(1, _together(n) // n[0].numel())
    spare = torch.empty_like(n[:rows])
    for top, bottom, result in zip(n.split(rows), d.split(rows), out.split(rows), strict=True):
        top.sub_(result)
        _fill(step, *(_flat(a) for a in (bottom, result, spare[: len(top)])))
        torch.mul(top, step.gain_e, out=result)
        torch.addcdiv(step.bias, result, bottom, out=result)  # rounds after the quotient and after the sum


def _fill(step: Any, d: Tensor, spare: Tensor, zero: Tensor) -> None:
    """D of W_EI g_I s, in place; (rows, values) each, two of them spare.

    0 and 1 in the values' own type, since torch is several times slower through bool.
    """
    if _on_cpu(d) and bool((d.amin(1) > 0).all()):
        return
    torch.eq(d, 0, out=zero)
    if step.zero == "constant":
        d.add_(zero, alpha=float(step.epsilon))
        return
    top = torch.finfo(d.dtype).max
    least = torch.add(d, zero, alpha=top, out=spare).amin(1, keepdim=True)
    d.addcmul_(zero, least.masked_fill_(least == top, torch.inf))


def _undivided(
    step: Any, grad: Tensor, s: Tensor, spread: Tensor, g_i: Tensor, g_e: Tensor, n: Tensor, d: Tensor
) -> tuple[Tensor, ...]:
    """G_N; the shares of t in the gradients of s and W_EI^T; the gradients of g_I, g_E and b_E."""
    e, i = g_e.reshape(-1), g_i.reshape(-1, 1)
    to_n, to_s = _room(n), _room(s)
    # of few cells, several positions side by side make one row
    beside = math.gcd(s.numel() // len(i), max(1, LANES // len(i)))
    back = torch.block_diag(*[(spread * e * i).neg_().T] * beside)
    to_e, to_b, to_ei = torch.zeros_like(e), torch.zeros_like(e), spread.new_zeros(spread.shape)
    many = max(1, _together(n) // (beside * n.shape[1])) * beside
    spare = n.new_empty(many, n.shape[1])
    pieces = (_cells(a).split(many) for a in (grad, n, d, s, to_n, to_s))
    for now, top, bottom, sent, to_top, to_sent in zip(*pieces, strict=True):
        t = spare[: len(now)]
        torch.div(now, bottom, out=to_top)
        torch.mul(to_top, top, out=t)
        to_b += now.sum(0)
        to_e += t.sum(0)
        t.div_(bottom)
        to_top.mul_(e)
        to_ei.addmm_(sent.T, t)
        torch.mm(t.view(-1, len(back)), back, out=to_sent.view(-1, back.shape[1]))
    to_ei.mul_(e).neg_()
    to_i = (to_ei * spread).sum(1)
    return to_n, to_s, to_ei.mul_(i), to_i.view_as(g_i), to_e.view_as(g_e), to_b.view_as(g_e)


def _gradients(part: Any, x: Tensor, weight: Tensor, grad: Tensor, for_x: bool, for_weight: bool) -> tuple[Any, Any]:
    """Gradients of x and the weight of a connection, where wanted."""
    if isinstance(part, Dense):
        return grad @ weight if for_x else None, grad.T @ x if for_weight else None
    if not (for_x or for_weight):
        return None, None
    if _on_cpu(x):
        layout = torch.contiguous_format if _strided_point(part) else CHANNELS_LAST
        x, grad = (a.contiguous(memory_format=layout) for a in (x, grad))
    w, wanted = part.window, (for_x, for_weight, False)
    back = torch.ops.aten.convolution_backward
    return back(grad, x, weight, None, w.stride, w.padding, w.dilation, False, (0, 0), 1, wanted)[:2]


def _on_cpu(a: Tensor) -> bool:
    """True where a look at numbers costs nothing; a GPU would have to wait for it. Layouts are a CPU's matter too."""
    return a.device.type == "cpu"


def _last(a: Tensor) -> bool:
    return a.ndim == 4 and a.is_contiguous(memory_format=CHANNELS_LAST)


def _flat(a: Tensor) -> Tensor:
    """(N, values), a view."""
    return (a.movedim(1, -1) if _last(a) else a).view(len(a), -1)


def _cells(a: Tensor) -> Tensor:
    """(N, C, H, W) as (N H W, C), a view of channels last; (N, d) as it is."""
    return a.movedim(1, -1).reshape(-1, a.shape[1])


def _room(a: Tensor) -> Tensor:
    """Unwritten, and `_cells` is a view of it."""
    return torch.empty_like(a, memory_format=CHANNELS_LAST if a.ndim == 4 else torch.contiguous_format)


def _together(a: Tensor) -> int:
    return TOGETHER["cpu"] * torch.get_num_threads() if _on_cpu(a) else TOGETHER["cuda"]
