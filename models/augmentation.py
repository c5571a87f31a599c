"""Small changes of view and light while a classifier trains. No flips: a mirrored sign or digit is another class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROTATION_RADIANS = 0.2
SCALE, SHEAR = 0.12, 0.1
SHIFT = 0.06
"""Share of the width or height."""

CONTRAST, BRIGHTNESS = 0.4, 0.2


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each image rotated, scaled, sheared, shifted, and its contrast and brightness changed, by uniform amounts.

    x: float (n, c, h, w) in [0, 1], on `rng`'s device, which everything is drawn from. Returns the same shape, in
    [0, 1], channels-last. Pixels from outside the frame repeat its edge.
    """
    n = len(x)
    draws = torch.rand((7, n), generator=rng, device=rng.device) * 2 - 1
    grid = F.affine_grid(_views(draws[:5]), list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    contrast, brightness = (1 + CONTRAST * draws[5]).view(n, 1, 1, 1), (BRIGHTNESS * draws[6]).view(n, 1, 1, 1)
    mean = moved.mean((1, 2, 3), keepdim=True)
    lit = (moved - mean) * contrast + mean + brightness
    return lit.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def _views(draws: Tensor) -> Tensor:
    """Affine maps (n, 2, 3) from output to input coordinates in [-1, 1], of draws (5, n) in [-1, 1]."""
    angle, scale = ROTATION_RADIANS * draws[0], 1 + SCALE * draws[1]
    across = torch.stack((scale * angle.cos(), SHEAR * draws[2] - scale * angle.sin(), 2 * SHIFT * draws[3]), dim=1)
    down = torch.stack((scale * angle.sin(), scale * angle.cos(), 2 * SHIFT * draws[4]), dim=1)
    return torch.stack((across, down), dim=1)
