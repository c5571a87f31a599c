"""Small classifiers fitted on the trusted reference, against which the filter's training perturbations are crafted.

They differ in kernels, pooling, normalisation and activation, so that the filter does not learn one network's mark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attacks.gradient import evaluating
from models.batches import Batches, ShortEpochs
from models.device import device_of
from models.images import Images, chunks, to_float
from models.seeding import derive_seed, seeded
from models.specs import FitSpec
from models.training import Batch, Checkpoints, ImageBatches, Piece, Watch, fit

EPOCHS = 8
FIT = FitSpec(epochs=EPOCHS, batch_size=64, optimizer="adam", peak_lr=2e-3, validation_share=0.1)
IMAGES_AN_EPOCH, MOST_AN_EPOCH = 2000, 4000
LARGEST_MAP = 64
POOLED = 4


class UnfitLabels(ValueError):
    """Labels that do not number the images, or lie outside the classes."""


@dataclass(frozen=True)
class Surrogate:
    """A fitted network, in eval mode: float (n, c, h, w) in [0, 1] to logits (n, classes)."""

    name: str
    network: nn.Module
    validation_accuracy: float | None  # None where nothing could be held out


def check_labels(images: Images, labels: npt.NDArray[np.int64], num_classes: int) -> None:
    """Raise UnfitLabels unless there is a label in [0, num_classes) for each image, and an image."""
    if labels.shape != images.shape[:1] or not len(labels):
        raise UnfitLabels(f"want as many labels as images, and at least one: {labels.shape} for {len(images)}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UnfitLabels(f"labels must be 0 to {num_classes - 1}, not {labels.min()} to {labels.max()}")


def fit_surrogates(
    images: Images,
    labels: npt.NDArray[np.int64],
    *,
    count: int,
    num_classes: int,
    seed: int,
    watch: Watch,
    checkpoints: Checkpoints,
    epochs: int = EPOCHS,
) -> list[Surrogate]:
    """Fit the first `count` architectures, at most 4, for `epochs` of about 2,000 to 4,000 images.

    images: uint8 (n, h, w, c); labels: (n,) in [0, num_classes), classes may be missing.
    A small set is repeated within an epoch, of a large one each sees another part.
    Raises UnfitLabels, ValueError for a count out of range, Stopped.
    """
    check_labels(images, labels, num_classes)
    if not 1 <= count <= len(ARCHITECTURES):
        raise ValueError(f"count must be 1 to {len(ARCHITECTURES)}, not {count}")
    fitted, spec = [], FIT.model_copy(update={"epochs": epochs})
    for index, (name, build) in enumerate(list(ARCHITECTURES.items())[:count]):
        own = derive_seed(seed, "surrogate", name)
        with seeded(own):
            network = build(images.shape[3], _stem_stride(images), num_classes)
        whole = ImageBatches(images, labels, spec=spec, seed=own, samples_an_epoch=IMAGES_AN_EPOCH)
        batches = ShortEpochs.of(whole, MOST_AN_EPOCH, spec.batch_size)
        piece, checkpoint = Piece(watch, index, count), f"surrogate-{name}"
        fit(network, batches, _cross_entropy, spec, seed=own, watch=piece, checkpoints=checkpoints, name=checkpoint)
        fitted.append(Surrogate(name, network, _accuracy(network, batches)))
    return fitted


def classify(surrogates: list[Surrogate], images: Images) -> npt.NDArray[np.int64]:
    """The labels (n,) to which the surrogates together give the largest mean probability."""
    labels = np.empty(len(images), np.int64)
    with torch.no_grad():
        for rows in chunks(len(images), 256):
            x = to_float(images[rows], device_of(surrogates[0].network))
            total = torch.stack([surrogate.network(x).softmax(dim=1) for surrogate in surrogates]).sum(dim=0)
            labels[rows] = total.argmax(dim=1).cpu().numpy()
    return labels


def _cross_entropy(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:  # noqa: ARG001
    x, y = batch
    return F.cross_entropy(model(x), y)


def _accuracy(network: nn.Module, batches: Batches) -> float | None:
    right, count = 0, 0
    with torch.no_grad(), evaluating(network):
        for x, y in batches.validation():
            right, count = right + int((network(x).argmax(dim=1) == y).sum()), count + len(y)
    return right / count if count else None


def _stem_stride(images: Images) -> int:
    """How coarsely the first layer steps, so that large images cost what small ones do."""
    height, width = map(int, images.shape[1:3])
    return max(1, min(height, width) // LARGEST_MAP)


def _stem(channels: int, width: int, kernel: int, stride: int) -> nn.Conv2d:
    reach = max(kernel, 2 * stride + 1)
    return nn.Conv2d(channels, width, reach, stride=stride, padding=reach // 2)


class _Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


def _head(width: int, num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(POOLED), nn.Flatten(), nn.Linear(width * POOLED**2, num_classes)]


def _pooled(channels: int, stride: int, num_classes: int) -> nn.Module:
    """3×3 convolutions and max pooling, no normalisation."""
    return nn.Sequential(
        _Centred(),
        _stem(channels, 16, 3, stride),
        *(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1)),
        *(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1)),
        *(nn.ReLU(), *_head(64, num_classes)),
    )


def _strided(channels: int, stride: int, num_classes: int) -> nn.Module:
    """Strided 5×5 and 3×3 convolutions, group norm, smooth activation."""
    return nn.Sequential(
        _Centred(),
        *(_stem(channels, 24, 5, 2 * stride), nn.GroupNorm(4, 24), nn.SiLU()),
        *(nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.GroupNorm(4, 48), nn.SiLU()),
        *(nn.Conv2d(48, 64, 3, padding=1), nn.SiLU(), *_head(64, num_classes)),
    )


def _wide(channels: int, stride: int, num_classes: int) -> nn.Module:
    """7×7 convolutions, average pooling, saturating activation."""
    return nn.Sequential(
        _Centred(),
        *(_stem(channels, 16, 7, stride), nn.Tanh(), nn.AvgPool2d(4)),
        *(nn.Conv2d(16, 48, 3, padding=1), nn.Tanh(), *_head(48, num_classes)),
    )


def _separable(channels: int, stride: int, num_classes: int) -> nn.Module:
    """Depthwise 5×5 and pointwise convolutions, leaky activation."""
    return nn.Sequential(
        _Centred(),
        *(_stem(channels, 24, 3, stride), nn.LeakyReLU(0.1), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 24, 5, padding=2, groups=24), nn.Conv2d(24, 64, 1), nn.LeakyReLU(0.1), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 5, padding=2, groups=64), nn.Conv2d(64, 64, 1), nn.LeakyReLU(0.1)),
        *_head(64, num_classes),
    )


ARCHITECTURES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "pooled": _pooled,
    "strided": _strided,
    "wide": _wide,
    "separable": _separable,
}
"""Built from (channels, stem stride, classes), in the order in which `count` takes them."""
