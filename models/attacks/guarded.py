"""What serves, as the attacker who knows all of it sees it: differentiable, and with every detector's limit.

n images: x float (n, c, h, w) in [0, 1]; t detectors; k dropout masks of d features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.abstention import AbstentionCalibration
from models.attacks.gradient import margin
from models.autoencoders.residual import ResidualDenoiser
from models.calibration import Floats
from models.classifiers import Classifier
from models.detectors.reconstruction_error import reconstruction_error
from models.detectors.residual_energy import residual_energy

Score = Callable[[Tensor], Tensor]
"""Images to scores (n,), higher is more suspicious; differentiable."""

TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Guarded:
    """A model of logits and one detector that flags above a threshold."""

    model: nn.Module
    detector: Score
    threshold: float

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """See models.attacks.adaptive.Defence."""
        return margin(self.model(x), y), (self.detector(x) / self.threshold - 1)[:, None]


@dataclass(frozen=True, eq=False)
class ServedStack:
    """The served model at one α: detector, reformer where there is one, MC dropout, KL to the class profile.

    masks: gives the dropout masks (k, d) of a call: always the served ones for an attacker who has the bundle, others
    each time for one who must take the expectation over them. detector: its score, or None. reform: what the student
    is shown in an image's place, or None. limits: of the detector's score (where there is one), then of the KL
    divergence; a score above its limit makes the answer null.
    """

    student: Classifier
    masks: Callable[[], Tensor]
    profiles: Tensor
    limits: tuple[float, ...]
    detector: Score | None = None
    reform: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(
        cls,
        student: Classifier,
        masks: Callable[[], Tensor],
        calibration: AbstentionCalibration,
        *,
        alpha: float,
        detector: Score | None = None,
        reform: Callable[[Tensor], Tensor] | None = None,
    ) -> ServedStack:
        """The stack that abstains where models.abstention.decide does at this α."""
        own = [calibration.kl_scores] if detector is None else [calibration.detector_scores, calibration.kl_scores]
        levels = calibration.test.levels(alpha)
        limits = tuple(limit_of(scores, level) for scores, level in zip(own, levels, strict=True))
        device = next(student.parameters()).device
        profiles = torch.from_numpy(calibration.profiles).float().to(device)
        return cls(student, masks, profiles, limits, detector, reform)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """See models.attacks.adaptive.Defence. An excess is the logarithm of a score over its limit."""
        scores = [] if self.detector is None else [self.detector(x)]
        shown = x if self.reform is None else self.reform(x)
        log_passes = self.student.head(self.student.trunk(shown), self.masks()).log_softmax(-1)
        log_mean = log_passes.logsumexp(0) - math.log(len(log_passes))
        wrong = log_mean.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
        scores.append((log_mean.exp() * (log_mean - self.profiles[wrong].log())).sum(1))
        excess = [_over(score, limit) for score, limit in zip(scores, self.limits, strict=True)]
        return margin(log_mean, y), torch.stack(excess, dim=1)


def limit_of(calibration: Floats, level: float) -> float:
    """The score above which an image's own conformal p-value is at most `level`; ∞ where none can be."""
    ordered = np.sort(np.asarray(calibration, np.float64))[::-1]
    rank = round(level * (len(ordered) + 1))
    if rank == 0:
        return math.inf
    return float(ordered[rank - 1]) if rank <= len(ordered) else -math.inf


def filter_score(network: nn.Module) -> Score:
    """The score of a filter's network, differentiable."""
    if isinstance(network, ResidualDenoiser):
        return lambda x: residual_energy(network(x))
    return lambda x: reconstruction_error(x, network(x))


def _over(score: Tensor, limit: float) -> Tensor:
    if math.isinf(limit):
        return torch.full_like(score, -limit)
    return (score.clamp(min=TINY) / max(limit, TINY)).log()
