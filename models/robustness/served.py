"""The served model as an evaluation asks it: images in, answers and abstentions out, and what became of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.abstention import AbstentionCalibration, Decision, decide
from models.calibration import Floats
from models.classifiers import Classifier
from models.familiarity import student_scores
from models.images import Images
from models.robustness.shares import Share, share
from models.uncertainty import mc_probabilities

Answer = Callable[[Images], Decision]
"""The served model: uint8 images (n, h, w, c) to answers and abstentions."""


@dataclass(frozen=True)
class Served:
    """What the served model makes of the images: it abstains, answers rightly or answers wrongly."""

    abstained: Share
    correct: Share
    wrong: Share
    reasons: dict[str, int]


def guard(
    student: Classifier,
    masks: npt.NDArray[np.float32],
    calibration: AbstentionCalibration,
    detector_score: Callable[[Images], Floats] | None,
    *,
    alpha: float,
    reform: Callable[[Images], Images] | None = None,
) -> Answer:
    """The student as it is served, in torch: MC dropout under `masks`, the detector's scores, abstention at `alpha`.

    reform: what the student is shown in an image's place; the detector judges the image itself.
    """

    def answer(images: Images) -> Decision:
        scores = None if detector_score is None else detector_score(images)
        shown = images if reform is None else reform(images)
        probabilities, own = mc_probabilities(student, shown, masks), student_scores(student, shown)
        further = {name: own[name] for name in own if name in calibration.student_scores}
        return decide(probabilities, scores, calibration, alpha=alpha, student_scores=further)

    return answer


def harmed(decided: Sequence[Decision], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """(n,): where the served model answers, and wrongly, whatever the bare student says.

    decided: of one batch after another, of as many images as there are labels.
    """
    abstained, right = _told(decided, labels)
    return ~right & ~abstained


def served(decided: Sequence[Decision], labels: npt.NDArray[np.int64]) -> Served:
    """decided: of one batch after another, of as many images as there are labels."""
    abstained, right = _told(decided, labels)
    reasons = Counter(reason for decision in decided for reason in decision.reason if reason is not None)
    n = len(labels)
    return Served(
        abstained=share(int(abstained.sum()), n),
        correct=share(int((right & ~abstained).sum()), n),
        wrong=share(int((~right & ~abstained).sum()), n),
        reasons={str(reason): count for reason, count in reasons.items()},
    )


def _told(
    decided: Sequence[Decision], labels: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Where it abstained, and where its label is right, abstained from or not."""
    abstained = np.concatenate([decision.abstained for decision in decided])
    return abstained, np.concatenate([decision.label_index for decision in decided]) == labels
