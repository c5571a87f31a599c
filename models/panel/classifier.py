"""The small classifier that the panel fits many times: quick to train, with features to look at."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

LARGEST_MAP = 64
FEATURES = 128
DROPOUT = 0.3


class PanelClassifier(nn.Module):
    """Four 3×3 convolutions with batch norm and pooling, then a hidden layer of 128, whose output are the features.

    image_shape: (h, w, c). Images larger than 64 pixels are averaged down first, so that they cost what small ones do.
    """

    def __init__(self, *, image_shape: tuple[int, int, int], num_classes: int, width: int) -> None:
        super().__init__()
        self.width = width
        height, size_w, channels = image_shape
        stride = max(1, min(height, size_w) // LARGEST_MAP)
        self.trunk = nn.Sequential(
            nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
            *_block(channels, width),
            nn.MaxPool2d(2),
            *_block(width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 2 * width),
            *_block(2 * width, 4 * width),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(16 * width, FEATURES)
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Float (n, c, h, w) in [0, 1] to (n, 128)."""
        return self.hidden(self.trunk(x - 0.5)).relu()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Float (n, c, h, w) in [0, 1] to logits (n, classes)."""
        return cast(Tensor, self.head(self.features(x)))

    def training_logits(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """The same; in train mode with dropout before the hidden layer, drawn from `rng`."""
        if not self.training:
            return self(x)  # type: ignore[no-any-return]
        pooled = self.trunk(x - 0.5)
        kept = torch.rand(pooled.shape, generator=rng, device=pooled.device) >= DROPOUT
        return cast(Tensor, self.head(self.hidden(pooled * kept / (1 - DROPOUT)).relu()))


def _block(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


@torch.no_grad()
def seen_by(network: PanelClassifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """(log probabilities (n, classes), features (n, 128)) of float images (n, c, h, w), in eval mode."""
    features = network.features(x)
    return network.head(features).log_softmax(dim=1), features
