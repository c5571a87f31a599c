"""Teacher and student networks: a residual convolutional trunk, run once, and a head with explicit dropout masks.

n images, c channels, h × w pixels, d features, k dropout passes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.seeding import derive_seed, seeded
from models.specs import ClassifierSpec

GRID = 4
"""Height and width of the feature map that the fully connected layer sees, whatever the size of the images."""

CONTRAST_FLOOR = 0.05


class ImageNorm(nn.Module):
    """Each image to mean 0 and standard deviation 1 over all its values, so that exposure and haze matter less.

    The floor keeps an empty image at 0 and its gradient finite.
    """

    def forward(self, x_nchw: Tensor) -> Tensor:
        centred = x_nchw - _image_mean(x_nchw)
        variance = _image_mean(centred * centred)
        return centred * torch.rsqrt(variance + CONTRAST_FLOOR**2)


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


class GridPool(nn.Module):
    """Adaptive average pooling to `GRID` × `GRID` as two matrix products: they export to ONNX at every size."""

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", _averaging(height), persistent=False)
        self.register_buffer("columns", _averaging(width).T.contiguous(), persistent=False)

    def forward(self, x_nchw: Tensor) -> Tensor:
        return self.rows @ x_nchw @ self.columns


class Classifier(nn.Module):
    """Logits of images. Dropout happens only where masks are given; train and eval mode differ in batch norm alone."""

    def __init__(self, spec: ClassifierSpec, *, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        height, width, channels = image_shape
        self.num_classes, self.feature_dim, self.dropout = num_classes, spec.hidden, spec.dropout
        self.image_shape = image_shape
        self.convolutions = _convolutions(spec.width, channels, _halvings(min(height, width)))
        with torch.no_grad():
            grid = self.convolutions.eval()(torch.zeros(1, channels, height, width)).shape[2:]
        self.convolutions.train()
        self.pool = nn.Identity() if tuple(grid) == (GRID, GRID) else GridPool(*grid)
        self.hidden = nn.Linear(4 * spec.width * GRID * GRID, spec.hidden)
        self.out = nn.Linear(spec.hidden, num_classes)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """x: float (n, c, h, w) in [0, 1]. Logits (n, num_classes), without dropout."""
        logits: Tensor = self.out(self.trunk(x_nchw))
        return logits

    def trunk(self, x_nchw: Tensor) -> Tensor:
        """Features (n, d), all that a dropout mask acts on."""
        return F.relu(self.hidden(self.pool(self.convolutions(x_nchw)).flatten(1)))

    def head(self, features_nd: Tensor, masks_kd: Tensor | None) -> Tensor:
        """Logits (k, n, num_classes) under each of the masks; (1, n, num_classes) without dropout for None."""
        kept = features_nd[None] if masks_kd is None else features_nd[None] * masks_kd[:, None]
        logits: Tensor = self.out(kept)
        return logits

    def dropout_logits(self, x_nchw: Tensor, rng: torch.Generator) -> Tensor:
        """Logits (n, num_classes) with a mask of each image's own, drawn from `rng`: what training sees."""
        features = self.trunk(x_nchw)
        kept = torch.rand(features.shape, generator=rng, device=features.device) >= self.dropout
        logits: Tensor = self.out(features * kept / (1 - self.dropout))
        return logits


def build_classifier(
    spec: ClassifierSpec, *, num_classes: int, image_shape: tuple[int, int, int], seed: int
) -> Classifier:
    """A new network for images of `image_shape` (h, w, c), sides of 8 to 256 pixels; the same for the same seed."""
    with seeded(derive_seed(seed, "classifier")):
        network = Classifier(spec, num_classes=num_classes, image_shape=image_shape)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


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


def _convolutions(width: int, channels: int, halvings: int) -> nn.Sequential:
    """Halve as late as can be, for detail; the stem halves large images, whose cost is in the first layers."""
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


def _image_mean(x_nchw: Tensor) -> Tensor:
    """(n, 1, 1, 1), one axis at a time: ONNX Runtime adds up long sums one by one, and is 25 times less exact at it."""
    return x_nchw.mean(3, keepdim=True).mean(2, keepdim=True).mean(1, keepdim=True)


def _averaging(side: int) -> Tensor:
    """(GRID, side): row i averages side⌊i/GRID⌋ … ⌈(i + 1)·side/GRID⌉, as torch's adaptive pooling does."""
    matrix = torch.zeros(GRID, side)
    for row in range(GRID):
        start, end = row * side // GRID, -(-(row + 1) * side // GRID)
        matrix[row, start:end] = 1 / (end - start)
    return matrix
