"""The bottleneck denoising autoencoder: an image through a narrow code and back, trained towards the clean image."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_MAP = 8


class BottleneckAutoencoder(nn.Module):
    """Strided 3×3 convolutions down to maps of at most 8×8, a code of `latent` numbers, and the way back.

    It takes images of the one shape it was built for, (c, h, w).
    Source: Badjie et al. 2023, section 3; the paper does not print its layers, these are the usual ones.
    """

    def __init__(self, *, image_shape: tuple[int, int, int], width: int, latent: int) -> None:
        super().__init__()
        channels, *sides = image_shape
        sizes = [(sides[0], sides[1])]
        while max(sizes[-1]) > SMALLEST_MAP or len(sizes) == 1:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        widths = [channels, *(width * min(2**i, 4) for i in range(len(sizes) - 1))]
        pairs = list(pairwise(widths))
        self.sizes = sizes
        self.down = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairs)
        self.up = nn.ModuleList(nn.Conv2d(o, i, 3, padding=1) for i, o in reversed(pairs))
        self.map_shape = (widths[-1], *sizes[-1])
        flat = widths[-1] * sizes[-1][0] * sizes[-1][1]
        self.encode, self.decode = nn.Linear(flat, latent), nn.Linear(latent, flat)

    def forward(self, x: Tensor) -> Tensor:
        """Float (n, c, h, w) in [0, 1] to its reconstruction, of the same shape and range."""
        hidden = x - 0.5
        for convolution in self.down:
            hidden = F.relu(convolution(hidden))
        hidden = self.decode(self.encode(hidden.flatten(1))).reshape(-1, *self.map_shape)
        for convolution, size in zip(self.up, reversed(self.sizes[:-1]), strict=True):
            hidden = convolution(F.interpolate(F.relu(hidden), size=size, mode="nearest"))
        return torch.sigmoid(hidden)
