"""What lets an attack survive the rounding to 8 bits: it is judged, and its gradient taken, on the rounded image."""

from __future__ import annotations

import torch
from torch import Tensor

from models.attacks.gradient import to_8bit

LEVEL_TOLERANCE = 1e-3
"""In levels: float32 puts k/255 this near to k at most."""


def seen_in_8bit(x: Tensor) -> Tensor:
    """to_8bit(x) going forward, x going backward: rounding has no gradient of its own."""
    return to_8bit(x).detach() + (x - x.detach())  # in this order the sum is exact


def linf_box(x: Tensor, eps_linf: float | None, *, eight_bit: bool) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each pixel within eps of x and in [0, 1].

    eps_linf: None for no limit but [0, 1]. eight_bit: the sides are moved inward to levels k/255, so that rounding
    cannot leave the box; where no level lies inside (x is not 8-bit itself), both sides are the level nearest to x.
    Raises ValueError where eps_linf is negative.
    """
    x = x.detach()
    if eps_linf is None:
        return torch.zeros_like(x), torch.ones_like(x)
    if eps_linf < 0:
        raise ValueError(f"eps_linf must not be negative, not {eps_linf}")
    low, high = (x - eps_linf).clamp(0, 1), (x + eps_linf).clamp(0, 1)
    if not eight_bit:
        return low, high
    low = (low * 255 - LEVEL_TOLERANCE).ceil() / 255
    high = (high * 255 + LEVEL_TOLERANCE).floor() / 255
    empty, nearest = low > high, to_8bit(x)
    return torch.where(empty, nearest, low), torch.where(empty, nearest, high)
