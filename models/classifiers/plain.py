"""Papernot's two networks: pairs of 3 × 3 convolutions without padding or batch norm, pooled, then two layers of ReLUs.

Source: Papernot et al. 2016, table I.
"""

from __future__ import annotations

from torch import Tensor, nn

SMALLEST, LARGEST = 16, 64
"""Sides: under 16 nothing is left after two pairs of convolutions; over 64 the first full layer has 50 M weights."""

COLOUR_MEAN, COLOUR_SCALE = 0.4587, 0.2066
"""Take [0, 1] to [-2.22, 2.62], the range that the paper states for CIFAR-10."""


class Standardised(nn.Module):
    """Colour images shifted and scaled by fixed amounts; grey ones as they are, as the paper has MNIST."""

    def forward(self, x_nchw: Tensor) -> Tensor:
        return (x_nchw - COLOUR_MEAN) / COLOUR_SCALE if x_nchw.shape[1] == 3 else x_nchw


def plain_convolutions(width: int, channels: int) -> nn.Sequential:
    """2 × conv(width), pool, 2 × conv(2 · width), pool: width 32 for MNIST, 64 for CIFAR-10."""
    return nn.Sequential(Standardised(), *_pair(channels, width), *_pair(width, 2 * width))


def plain_hidden(features: int, hidden: int) -> nn.Sequential:
    """Two fully connected layers; the ReLU after the second is the trunk's."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden))


def _pair(channels_in: int, channels_out: int) -> list[nn.Module]:
    first, second = nn.Conv2d(channels_in, channels_out, 3), nn.Conv2d(channels_out, channels_out, 3)
    return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2)]
