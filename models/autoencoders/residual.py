"""The residual denoiser: a network that predicts the perturbation itself, x̂ = x − ε·n(x)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIGH_PASS = ((-1.0, 2.0, -1.0), (2.0, -4.0, 2.0), (-1.0, 2.0, -1.0))
HIGH_PASS_GAIN, HIGH_PASS_LIMIT = 20.0, 6.0


class ResidualDenoiser(nn.Module):
    """n(x): `depth` 3×3 convolutions of `width` channels over the image and a fixed high-pass of it.

    The high-pass shows the network what is too faint to see beside the image: one level of 256 becomes about 0.1.
    No normalisation layer: the score of an image must not depend on others, and the amplitude is what is measured.
    """

    def __init__(self, *, channels: int, width: int, depth: int, eps_linf: float) -> None:
        super().__init__()
        kernel = torch.tensor(HIGH_PASS) / 4
        self.register_buffer("kernel", kernel.expand(channels, 1, 3, 3).contiguous(), persistent=False)
        self.channels, self.eps_linf = channels, eps_linf
        layers: list[nn.Module] = [nn.Conv2d(2 * channels, width, 3, padding=1)]
        for _ in range(depth - 2):
            layers += [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Float (n, c, h, w) in [0, 1] to the perturbation in units of ε, of the same shape."""
        edges = (self._high_pass(x) * HIGH_PASS_GAIN).clamp(-HIGH_PASS_LIMIT, HIGH_PASS_LIMIT)
        perturbation: Tensor = self.layers(torch.cat([x - 0.5, edges], dim=1))
        return perturbation

    def _high_pass(self, x: Tensor) -> Tensor:
        """In float32 whatever the rest is computed in: bfloat16 tells no level of 256 from the next above one half."""
        padded, kernel = F.pad(x, (1, 1, 1, 1), mode="reflect"), self.get_buffer("kernel")
        if not torch.is_autocast_enabled(x.device.type):
            return F.conv2d(padded, kernel, groups=self.channels)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(padded.float(), kernel, groups=self.channels)

    def remove(self, x: Tensor, perturbation: Tensor) -> Tensor:
        """The reconstruction x − ε·n(x), in [0, 1]."""
        return (x - self.eps_linf * perturbation).clamp(0, 1)
