"""Layers that torch lacks, written so that ONNX Runtime computes what torch does: normalised images, a fixed grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
