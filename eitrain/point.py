"""A strided convolution by one pixel, as the shortcuts of residual networks have it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class PointConv2d(nn.Conv2d):
    """Runs, forward and in gradients, as a plain convolution on the pixels that it sees.

    The same sums; but on channels last and few channels, oneDNN's (torch 2.13) writes outside of its memory there.
    """

    def seen(self, x: Tensor) -> Tensor:
        """The pixels (N, C, h, w) that the stride leaves of x (N, C, H, W)."""
        down, right = self.stride
        return x[:, :, ::down, ::right].contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(self.seen(x), self.weight, self.bias)
