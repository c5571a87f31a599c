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

from models.abstention import AbstentionCalibration, Reason
from models.attacks.eight_bit import seen_in_8bit
from models.attacks.gradient import margin
from models.autoencoders.residual import ResidualDenoiser
from models.calibration import Float64s, Floats, JointTest, samples_needed
from models.classifiers import Classifier
from models.detectors.reconstruction_error import reconstruction_error
from models.detectors.residual_energy import residual_energy
from models.device import device_of

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
    """The served model at one α: detector, reformer where there is one, MC dropout, and all that may speak against x.

    masks: gives the dropout masks (k, d) of a call: always the served ones for an attacker who has the bundle, others
    each time for one who must take the expectation over them. reasons: of the t tests, in their order. limits: (c, t)
    of the tests' scores by the answer; a score above its limit makes the answer null. profiles: (c, c).
    detector: its score, where "perturbed" is one of the reasons. reform: what the student is shown in an image's place.
    """

    student: Classifier
    masks: Callable[[], Tensor]
    profiles: Tensor
    reasons: tuple[Reason, ...]
    limits: Tensor
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
        """The stack that abstains where models.abstention.decide does at this α.

        Without a detector where the calibration has one, the stack of an attacker who does not know of it.
        """
        device = device_of(student)
        reasons = tuple(reason for reason in calibration.reasons if reason != "perturbed" or detector is not None)
        known = [calibration.reasons.index(reason) for reason in reasons]
        limits = torch.from_numpy(limits_of(calibration, alpha)[:, known]).float().to(device)
        profiles = torch.from_numpy(calibration.profiles).float().to(device)
        return cls(student, masks, profiles, reasons, limits, detector, reform)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """See models.attacks.adaptive.Defence. An excess is the logarithm of a score over its limit."""
        features = self.student.trunk(x if self.reform is None else self.reform(x))
        log_passes = self.student.head(features, self.masks()).log_softmax(-1)
        log_mean = log_passes.logsumexp(0) - math.log(len(log_passes))
        # The answer that the attacker is after, whether it is given yet or not.
        wrong = log_mean.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
        divergence = (log_mean.exp() * (log_mean - self.profiles[wrong].log())).sum(1)
        own = dict(zip(self.student.score_names, self.student.scores(features).unbind(1), strict=True))
        scores = {"uncertain": divergence, **own}
        if self.detector is not None:
            scores["perturbed"] = self.detector(x)
        excess = [_over(scores[reason], self.limits[wrong, place]) for place, reason in enumerate(self.reasons)]
        return margin(log_mean, y), torch.stack(excess, dim=1)


def limits_of(calibration: AbstentionCalibration, alpha: float) -> Float64s:
    """(c, t): the score of each test above which an image that is answered so is refused at this α."""
    table = np.stack(list(calibration.scores_by_reason.values()), axis=1)
    whole = _limits(table, calibration.test, alpha)
    limits = np.tile(whole, (len(calibration.profiles), 1))
    if calibration.per_class and calibration.answers is not None:
        for answer in np.flatnonzero(calibration.answer_counts >= samples_needed(alpha)):
            own = table[calibration.answers == answer]
            limits[answer] = _limits(own, JointTest(own), alpha)
    return limits


def _limits(table: Float64s, test: JointTest, alpha: float) -> Float64s:
    return np.array([limit_of(scores, level) for scores, level in zip(table.T, test.levels(alpha), strict=True)])


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


def filter_reform(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The reconstruction by a filter's network, as 8-bit as the served one, and differentiable."""
    if isinstance(network, ResidualDenoiser):
        return lambda x: seen_in_8bit(network.remove(x, network(x)))
    return lambda x: seen_in_8bit(network(x))


def _over(score: Tensor, limit: Tensor) -> Tensor:
    """An infinite limit is never exceeded, one of -∞ always."""
    finite = limit.isfinite()
    ratio = (score.clamp(min=TINY) / limit.where(finite, torch.ones_like(limit)).clamp(min=TINY)).log()
    return torch.where(finite, ratio, -limit.sign())
