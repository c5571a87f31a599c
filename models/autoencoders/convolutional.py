"""Hlihor's autoencoders: two convolutions down to a code, two back; the code may be a Gaussian."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL_IMAGE = 64


class Code(NamedTuple):
    """mean: float (n, latent); log_variance: the same shape, or None where the code is a point."""

    mean: Tensor
    log_variance: Tensor | None


class ConvolutionalAutoencoder(nn.Module):
    """AE and VAE, and with other losses their denoising and contractive kin.

    It takes images of the one shape it was built for, (c, h, w). Encoder: two 3×3 convolutions of `width` channels,
    ReLU, a linear layer to the code. Decoder: the way back, its last convolution giving the image.
    latent_scale: factor on the code's covariance where the code is sampled. noise_seed: None takes the code's mean;
    else every image's code moves by one and the same standard normal vector drawn from it, times its own deviation,
    so that what becomes of an image depends on no other image, and an exported graph can do it.
    Source: Hlihor et al. 2022, section 5. The paper prints neither strides nor output layer; here each convolution
    halves the sides (a third over 64 pixels), nearest-neighbour upsampling doubles them, and a sigmoid ends it.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        width: int,
        latent: int,
        variational: bool,
        latent_scale: float = 1.0,
        noise_seed: int | None = None,
    ) -> None:
        super().__init__()
        channels, *sides = image_shape
        stride = 2 if max(sides) <= SMALL_IMAGE else 3
        sizes = [(sides[0], sides[1])]
        for _ in range(2):
            sizes.append((-(-sizes[-1][0] // stride), -(-sizes[-1][1] // stride)))
        self.sizes, self.map_shape = sizes, (width, *sizes[-1])
        flat = width * sizes[-1][0] * sizes[-1][1]
        self.down = nn.ModuleList(nn.Conv2d(i, width, 3, stride=stride, padding=1) for i in (channels, width))
        self.mean = nn.Linear(flat, latent)
        self.log_variance = nn.Linear(flat, latent) if variational else None
        self.widen = nn.Linear(latent, flat)
        self.up = nn.ModuleList(nn.Conv2d(width, o, 3, padding=1) for o in (width, channels))
        self.latent_scale = latent_scale
        self.drawn: Tensor | None
        drawn = None if noise_seed is None else _standard_normal(latent, noise_seed)
        self.register_buffer("drawn", drawn, persistent=False)

    def encode(self, x: Tensor) -> Code:
        """Float (n, c, h, w) in [0, 1] to the code's mean, and its log variance where it has one."""
        hidden = x - 0.5
        for convolution in self.down:
            hidden = F.relu(convolution(hidden))
        flat = hidden.flatten(1)
        return Code(self.mean(flat), None if self.log_variance is None else self.log_variance(flat))

    def decode(self, code: Tensor) -> Tensor:
        """A code (n, latent) to an image (n, c, h, w) in [0, 1]."""
        hidden = F.relu(self.widen(code)).reshape(-1, *self.map_shape)
        first, last = self.up
        hidden = F.relu(first(F.interpolate(hidden, size=self.sizes[1], mode="nearest")))
        x_hat: Tensor = last(F.interpolate(hidden, size=self.sizes[0], mode="nearest"))
        return torch.sigmoid(x_hat)

    def forward(self, x: Tensor) -> Tensor:
        """Float (n, c, h, w) in [0, 1] to its reconstruction, of the same shape and range."""
        code = self.encode(x)
        if self.drawn is None:
            return self.decode(code.mean)
        return self.decode(draw(code, self.drawn, scale=self.latent_scale))


def draw(code: Code, standard_normal: Tensor, *, scale: float = 1.0) -> Tensor:
    """A draw (n, latent) of the code whose covariance is `scale` times what the encoder gives; the mean of a point.

    standard_normal: (latent,) or (n, latent). Source: Hlihor et al. 2022, section 4.2.
    """
    if code.log_variance is None:
        return code.mean
    moved: Tensor = code.mean + scale**0.5 * (code.log_variance / 2).exp() * standard_normal
    return moved


def _standard_normal(latent: int, seed: int) -> Tensor:
    return torch.randn(latent, generator=torch.Generator().manual_seed(seed))
