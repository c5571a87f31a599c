"""Grey images of one level each, a student and a served model of them: all that becomes of them is counted by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.abstention import Decision
from models.images import Images
from models.mc_dropout import Uncertainty
from models.robustness import Answer


class OfMean(nn.Module):
    """Two classes, decided by a function of the image's mean; wrong where the function is positive."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def wrong_by(self, mean: Tensor) -> Tensor:
        return mean - 0.5

    def forward(self, x: Tensor) -> Tensor:
        wrong = self.scale * self.wrong_by(x.mean((1, 2, 3)))
        return torch.stack((torch.zeros_like(wrong), wrong), dim=1)


def greys(levels: np.ndarray) -> Images:
    return np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (len(levels), 8, 8, 1)).copy()


def by_level(*, one_from: float, silent_from: float = 256) -> Answer:
    """Serves label 1 from one grey level on, the surer the brighter, and no answer at all from another."""

    def answer(images: Images) -> Decision:
        level = images.reshape(len(images), -1).mean(axis=1)
        ones = 0.5 + (level - one_from + 0.25) / 1024
        told, nothing = np.stack([1 - ones, ones], axis=1), np.zeros(len(level))
        silent = level >= silent_from
        return Decision(
            label_index=told.argmax(axis=1).astype(np.int64),
            abstained=silent,
            reason=["uncertain" if each else None for each in silent],
            p_value=np.where(silent, 0.0, 1.0),
            p_class=None,
            p_each={},
            uncertainty=Uncertainty(nothing, nothing, nothing, told),
            probabilities=told,
        )

    return answer
