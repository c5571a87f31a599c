"""The loss of a label under a linear classifier of what a pretrained encoder sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from models.detectors.label_loss import label_loss

SEES = (
    "Labels that fit nothing the encoder sees in the image: flips, and triggers that hide none of what is shown. It "
    "knows more of natural images than a set of some thousands can teach, so it sees most where others see least."
)
BLIND_TO = (
    "Differences that the encoder never learnt, in images unlike those it was trained on; poison with a fitting label; "
    "and whatever the encoder itself was taught to overlook, for it is taken on trust."
)

NORM = 4.0
"""Of a typical image's features once they are standardised, however many they are."""
PENALTY = 1e-3
"""On the squared weights, beside the mean loss."""
MOST_STEPS = 100
LEAST_SPREAD = 1e-3
"""Of a feature, of the mean of all: one that hardly varies says nothing."""

Float32s = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EncoderLoss:
    """A multinomial logistic regression. centre, scale: (d,); weight: (d, c); bias: (c,)."""

    centre: Float32s
    scale: Float32s
    weight: Float32s
    bias: Float32s

    @classmethod
    def fit(cls, features: Float32s, labels: Labels, *, num_classes: int) -> Self:
        """features: (n, d), finite; labels: (n,) in 0 … c − 1. Raises ValueError where n is 0 or they do not fit.

        Source: Alain & Bengio 2017 (linear probes); by L-BFGS, and so without a seed.
        """
        if features.ndim != 2 or not len(features) or labels.shape != features.shape[:1]:
            raise ValueError(f"want features (n, d) with a label each, not {features.shape} and {labels.shape}")
        centre, spread = features.mean(axis=0), features.std(axis=0)
        varies = spread > LEAST_SPREAD * spread.mean()
        norm = NORM / math.sqrt(max(1, int(np.count_nonzero(varies))))
        scale = np.where(varies, norm / np.where(varies, spread, 1), 0).astype(np.float32)
        x = torch.from_numpy(np.asarray((features - centre) * scale, np.float32))
        weight, bias = _regression(x, torch.from_numpy(labels), num_classes)
        return cls(centre, scale, weight.numpy(), bias.numpy())

    def log_probabilities(self, features: Float32s) -> Float32s:
        """(n, d) to (n, c). An image's do not depend on the images beside it: sums are taken image by image."""
        x = (features - self.centre) * self.scale
        logits = np.stack([row @ self.weight for row in x]) + self.bias if len(x) else np.empty((0, len(self.bias)))
        largest = logits.max(axis=1, keepdims=True, initial=-np.inf)
        total = np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
        return np.asarray(logits - largest - total, dtype=np.float32)

    def score(self, features: Float32s, labels: Labels) -> Float32s:
        """−log p(label) in nats: (n, d), (n,) to (n,). Raises ValueError as `label_loss` does."""
        return label_loss(self.log_probabilities(features), labels)


def _regression(x: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    weight = torch.zeros((x.shape[1], num_classes), requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=MOST_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weight + bias, labels) + PENALTY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
