"""Spike-timing-dependent plasticity of linear and convolution layers, as one increment for all steps of a batch.

Pre spike x at step s, post spike y at step t (both may be real or signed; the formula then simply uses the value):

    dW = f_post(W) * SUM [t after s]  a_plus  * pre^(t - s)  * y[t] x[s]          (potentiation)
       - f_pre(W)  * SUM [s after t]  a_minus * post^(s - t) * y[t] x[s]          (depression)

over all pairs, samples and output positions; pre and post are the decays of the two traces, W is constant meanwhile.
That is the trace rule p <- pre p + x, q <- post q + y, dW = f_post y p - f_pre q x summed over time, with the sums
exchanged: each pre spike meets the *future* trace of y minus its past trace (or each post spike the past of x minus
its future, whichever side is smaller), so all steps together cost one weight
gradient of the layer (two where f_post and f_pre differ, or for nearest pairs) instead of two products a step and tap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import grad as conv_grad

from eitrain.errors import TrainError
from eitrain.point import PointConv2d

DECAYS = ("linear", "exponential")
SAME_STEP = ("include", "exclude")
PAIRS = ("all", "nearest")
WEIGHTS = ("clamp", "identity", "soft", "magnitude", "additive")
# Output positions of all samples that one call of a convolution's weight gradient adds up. oneDNN adds in float32
# without pairing: a million products at once are off by 6e-5 of the largest entry, pieces of this size by 4e-6.
PIECE = 2**16


class Drive(NamedTuple):
    """What a batch asks of a layer, of the weight's shape, before any function of the weight is applied.

    up, down: the two sums (both >= 0 for unsigned spikes). Where f_post = f_pre, up alone holds up - down.
    """

    up: Tensor
    down: Tensor | None


@dataclass(frozen=True)
class STDP:
    """A plasticity rule; a value, without state. Times in steps.

    lr: step size, W <- W + lr * dW. tau_pre governs potentiation, tau_post depression (defaults 2 and 100: BIRIL's
    code, the only published numbers).
    decay: "linear", 1 - 1/tau (spikingjelly), or "exponential", exp(-1/tau) (EICIL eq. 5, BIRIL eq. 3).
    same_step: "include" pairs of one step on both sides (traces are updated before use), or "exclude" them (dt = 0).
    pairs: "all", or "nearest": each spike meets the last one of the other side only (the trace is set, not added to).
    weight: "clamp" f_post = f_pre = clamp(w, -1, 1); "identity" both w; "soft" f_post = 1 - w, f_pre = w (EICIL eq. 5,
    for w in [0, 1]); "magnitude" 1 - |w| and |w| (soft bounds of signed weights); "additive" both 1 (BIRIL eq. 3;
    its A_m must be negative there, here a_minus is positive and subtracted).
    a_plus, a_minus >= 0: eta or A of the two branches.
    mean: divide by batch and output positions; the library's plain sum (False) grows with both, see `limit`.
    keep_norm: each neuron's incoming weights keep the L1 norm they had (synaptic normalisation, which BIRIL names
    without a formula; ours). low, high: bounds of the weights after that.
    reward: R-STDP; a sample's pairs count +1 where it was classified rightly, -1 where not.
    winners: lateral competition; only so many maps learn at a place of a sample, those with the largest area under
    their potential (`compete`). 0: all.
    """

    lr: float = 1e-2
    tau_pre: float = 2.0
    tau_post: float = 100.0
    decay: str = "linear"
    same_step: str = "include"
    pairs: str = "all"
    weight: str = "clamp"
    a_plus: float = 1.0
    a_minus: float = 1.0
    mean: bool = True
    low: float = -math.inf
    high: float = math.inf
    keep_norm: bool = False
    reward: bool = False
    winners: int = 0

    def __post_init__(self) -> None:
        for name, valid in (("decay", DECAYS), ("same_step", SAME_STEP), ("pairs", PAIRS), ("weight", WEIGHTS)):
            if getattr(self, name) not in valid:
                raise TrainError(f"stdp_{name} = {getattr(self, name)!r}; valid: {', '.join(valid)}")
        for name in ("tau_pre", "tau_post"):
            if not getattr(self, name) >= 1:
                raise TrainError(f"stdp_{name} = {getattr(self, name)}: must be at least 1 step")
        for name in ("lr", "a_plus", "a_minus"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TrainError(f"stdp_{name} = {getattr(self, name)}: must be 0 or more; a_minus is subtracted")
        if self.winners < 0:
            raise TrainError(f"stdp_winners = {self.winners}: must be 0 (no competition) or more")
        if not self.low < self.high:
            raise TrainError(f"stdp_low = {self.low}: must be below stdp_high = {self.high}")
        if self.weight == "soft" and not (self.low >= 0 and self.high <= 1):
            raise TrainError(
                "stdp_weight = 'soft' is for weights in [0, 1]: a negative weight would grow by depression; "
                "give stdp_low=0 and stdp_high=1, or use 'magnitude' or 'clamp' for signed weights"
            )

    @property
    def decays(self) -> tuple[float, float]:
        """Factor a step of the pre and of the post trace."""
        kinds = {"linear": lambda tau: 1 - 1 / tau, "exponential": lambda tau: math.exp(-1 / tau)}
        return kinds[self.decay](self.tau_pre), kinds[self.decay](self.tau_post)

    @property
    def symmetric(self) -> bool:
        """f_post = f_pre: the two sums can be formed as one."""
        return self.weight in ("clamp", "identity", "additive")

    @property
    def projects(self) -> bool:
        """Bounds or normalisation change weights beside the rule itself."""
        return self.keep_norm or self.low > -math.inf or self.high < math.inf

    def functions(self, w: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(f_post, f_pre) at the present weights."""
        if self.weight == "additive":
            return 1.0, 1.0
        if self.weight == "soft":
            return 1 - w, w
        if self.weight == "magnitude":
            return 1 - w.abs(), w.abs()
        f = w.clamp(-1, 1) if self.weight == "clamp" else w
        return f, f

    def pair(self, w: float, dt: int) -> float:
        """dW of one pre and one post spike, dt = t_post - t_pre steps, at weight w; what all else is a sum of."""
        up, down = (float(f) for f in self.functions(torch.tensor(w, dtype=torch.float64)))
        future, past = (float(f) for f in self.window(torch.tensor(float(dt), dtype=torch.float64)))
        return up * self.a_plus * future - down * self.a_minus * past

    def window(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """What a pair dt = t_post - t_pre steps apart counts in the two sums: pre^dt after, post^-dt before."""
        pre, post = self.decays
        first = 1 if self.same_step == "exclude" else 0
        future = torch.where(dt >= first, pre ** dt.clamp_min(0), 0.0)
        return future, torch.where(-dt >= first, post ** (-dt).clamp_min(0), 0.0)

    def compete(self, y: Tensor, potential: Tensor) -> Tensor:
        """Post spikes of the winners alone; y (T, B, maps, ...), potential (T or 1, B, maps, ...).

        potential: the current summed up so far, without firing; its sum over steps decides, so that earlier current
        counts more. (Total current would not do: under latency coding it is the same for every input.)
        """
        if not 0 < self.winners < y.shape[2]:
            return y
        total = potential.sum(0)
        won = torch.zeros_like(total).scatter_(1, total.topk(self.winners, dim=1).indices, 1.0)
        return y * won

    def drive(self, layer: nn.Module, x: Tensor, y: Tensor, reward: Tensor | None = None) -> Drive:
        """The sums over all pairs of a batch. x (T, B, *in), or (1, B, *in) for input that stays; y (T, B, *out).

        reward: (B,), what each sample's pairs are multiplied by.
        """
        if reward is not None:
            y = y * reward.view(1, -1, *[1] * (y.ndim - 2))
        scale = 1.0 / (y.shape[1] * math.prod(y.shape[3:])) if self.mean else 1.0
        if self.pairs == "nearest":
            up, down = self._nearest(layer, x, y)
        else:
            steps = torch.arange(len(y), dtype=torch.float64)
            future, past = (w.to(y) for w in self.window(steps[:, None] - steps))  # [t, s]: post at t, pre at s
            if self.symmetric:
                both = self.a_plus * scale * future - self.a_minus * scale * past
                return Drive(_pairs(layer, x, y, both), None)
            up, down = _pairs(layer, x, y, future), _pairs(layer, x, y, past)
        up, down = up * (self.a_plus * scale), down * (self.a_minus * scale)
        return Drive(up - down, None) if self.symmetric else Drive(up, down)

    def _nearest(self, layer: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Traces that spikes set instead of adding to: no exchange of sums, so two products."""
        pre, post = self.decays
        late = self.same_step == "exclude"
        x = x.expand(len(y), *x.shape[1:])
        return _products(layer, _latest(x, pre, late), y), _products(layer, x, _latest(y, post, late))

    def increment(self, weight: Tensor, drive: Drive) -> Tensor:
        """lr * dW at the present weights."""
        up, down = self.functions(weight)
        if drive.down is None:
            return drive.up * up * self.lr
        return (drive.up * up - drive.down * down) * self.lr

    @torch.no_grad()
    def apply(self, weight: Tensor, drive: Drive) -> Tensor:
        """Change the weight in place, bounds and normalisation included; returns the change."""
        before = weight.clone()
        weight += self.increment(weight, drive)
        if self.keep_norm:
            rows, now = before.flatten(1).abs().sum(1), weight.flatten(1).abs().sum(1)
            scale = torch.where(now > 0, rows / now.clamp_min(1e-30), torch.ones_like(now))
            weight *= scale.view(-1, *[1] * (weight.ndim - 1))
        if self.low > -math.inf or self.high < math.inf:
            weight.clamp_(self.low, self.high)
        return weight - before

    def limit(self, drive: Drive) -> float:
        """lr times the largest drive. Above 1, rules that are proportional to w turn a weight's sign in one step."""
        return self.lr * max(float(d.abs().max()) for d in drive if d is not None)


def _pairs(layer: nn.Module, x: Tensor, y: Tensor, window: Tensor) -> Tensor:
    """SUM over t, s of window[t, s] y[t] x[s], over samples and positions, of the layer's weight's shape.

    All traces are one product over time, on the side that has fewer values; x that stays needs the row sums alone.
    """
    if len(x) == 1:
        y = torch.tensordot(window.sum(1, keepdim=True), y, ([0], [0]))
    elif x.numel() < y.numel():
        x = torch.tensordot(window, x, 1)
    else:
        y = torch.tensordot(window, y, ([0], [0]))
    return _products(layer, x, y)


def _latest(y: Tensor, decay: float, late: bool) -> Tensor:
    """The last spike's value times decay^(t - s) for s <= t (late: s < t)."""
    out, held = torch.empty_like(y), torch.zeros_like(y[0])
    for t in range(len(y)):
        faded = held * decay
        held = torch.where(y[t] != 0, y[t], faded)
        out[t] = faded if late else held
    return out


def _products(layer: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    """SUM over steps, samples and positions of r (post) times x (pre), of the layer's weight's shape.

    It is the layer's weight gradient for r as gradient of the output; of a convolution in pieces, see PIECE.
    """
    x, r = x.flatten(0, 1), r.flatten(0, 1)
    if isinstance(layer, nn.Linear):
        return r.flatten(0, -2).T @ x.flatten(0, -2)
    module: Any = layer
    stride = module.stride
    if isinstance(layer, PointConv2d):
        x, stride = layer.seen(x), (1, 1)
    pieces, total = math.ceil(r[:, 0].numel() / PIECE), x.new_zeros(module.weight.shape)
    for some, theirs in zip(x.chunk(pieces), r.chunk(pieces), strict=True):
        total += conv_grad.conv2d_weight(
            some, total.shape, theirs, stride, module.padding, module.dilation, module.groups
        )
    return total
