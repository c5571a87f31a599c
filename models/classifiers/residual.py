"""The default trunk: residual blocks with batch norm, for images of 8 to 256 pixels. n images, c channels, h × w."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.classifiers.layers import GRID, ImageNorm


class Residual(nn.Module):
    """relu(conv(relu(conv(x))) + x), batch norm after each convolution. Source: He et al. 2016, figure 2."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(channels_in, channels_out, stride)
        self.second = convolution(channels_out, channels_out, 1)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        self.stride = stride

    def forward(self, x_nchw: Tensor) -> Tensor:
        # Strided before the 1 × 1 convolution, not by it: the backward pass of a strided one on channels-last images
        # crashes in oneDNN with more than one thread (torch 2.13, CPU).
        strided = x_nchw[:, :, :: self.stride, :: self.stride]
        return F.relu(self.second(F.relu(self.first(x_nchw))) + self.shortcut(strided))


def residual_convolutions(width: int, channels: int, side: int) -> nn.Sequential:
    """Three blocks, to 4 · width channels. Halve as late as can be, for detail; the stem halves large images.

    side: the smaller one. The first layers make the cost of a large image.
    """
    halvings = _halvings(side)
    strides = [2 if halvings >= 3 - block else 1 for block in range(3)]
    stem: list[nn.Module] = [ImageNorm(), convolution(channels, width, 2 if halvings >= 4 else 1), nn.ReLU()]
    if halvings >= 5:
        stem.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(
        *stem,
        Residual(width, 2 * width, strides[0]),
        Residual(2 * width, 4 * width, strides[1]),
        Residual(4 * width, 4 * width, strides[2]),
    )


def convolution(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """3 × 3 convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels_out)
    )


def _halvings(side: int) -> int:
    """How often a side can be halved, rounding up, and stay at least `GRID`."""
    count = 0
    while -(-side // 2 ** (count + 1)) >= GRID:
        count += 1
    return count
