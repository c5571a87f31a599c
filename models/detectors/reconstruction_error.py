"""The mean squared error between an image and its reconstruction."""

from __future__ import annotations

from torch import Tensor


def reconstruction_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """mean (x − x̂)² over the pixels and channels of each image: (n, c, h, w) twice to (n,), in squared pixel range.

    Source: Badjie et al. 2023, section 3, whose thresholds 0.015 and 0.003 are in this unit.
    """
    return (x - x_hat).square().flatten(1).mean(dim=1)
