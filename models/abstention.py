"""When the served model answers null: uncertainty, familiarity and the detector's score as one conformal p-value.

Numpy only, so that the gateway computes it without torch. k dropout passes, n images, c classes, d features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from models.calibration import Float64s, Floats, JointTest, PerClassTest, check_alpha, samples_needed, smallest_alpha
from models.mc_dropout import Uncertainty as Uncertainty
from models.mc_dropout import as_passes, kl_to_profile
from models.mc_dropout import class_profiles as class_profiles
from models.mc_dropout import dropout_masks as dropout_masks
from models.mc_dropout import uncertainty as uncertainty
from models.mc_dropout import uncertainty_of as uncertainty_of
from models.reliability import at_temperature

Reason = Literal["perturbed", "uncertain", "unfamiliar", "outlier"]
"""The test that spoke: the detector's score, the KL divergence, the distance of the features, the outlier class."""

STUDENT_REASONS = frozenset({"unfamiliar", "outlier"})

PROFILE_SHARE = 0.25
"""Share of the calibration images that make the class profiles, where profiles are not given."""


def calibrating_of(held: int) -> int:
    """How many of so many held-out images calibrate, where the others make the class profiles."""
    return held - round(PROFILE_SHARE * held)


class InvalidCalibration(ValueError):
    """Calibration data that no abstention can be computed from."""


@dataclass(frozen=True, eq=False)
class AbstentionCalibration:
    """What clean images score. Row i of `kl_scores` (m,), `detector_scores` (m,) and the others is of the same image.

    profiles: (c, c), row c is q_c, the mean probabilities of class c; no entry is 0.
    student_scores: (m,) of each further score that the student's graph gives, named by the reason it stands for.
    answers: (m,) int64, what the student made of each image; None in a calibration of before they were kept.
    per_class: whether an image is judged by the calibration images of the same answer.
    temperature: at which the probabilities that are told mean what they say (models.reliability); no test uses it.
    """

    profiles: Float64s
    kl_scores: Float64s
    detector_scores: Float64s | None
    student_scores: Mapping[Reason, Float64s] = field(default_factory=dict)
    answers: npt.NDArray[np.int64] | None = None
    per_class: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_profiles(self.profiles)
        if not self.student_scores.keys() <= STUDENT_REASONS:
            raise InvalidCalibration(f"no student gives the scores {sorted(self.student_scores.keys())}")
        scores = self.scores_by_reason.values()
        if any(s.shape != (self.n,) or not np.isfinite(s).all() for s in scores) or self.n == 0:
            raise InvalidCalibration("calibration scores must be finite, at least one, and as many of each kind")
        if not 0 < self.temperature < np.inf:
            raise InvalidCalibration(f"a temperature is above 0 and finite, not {self.temperature}")
        self._check_answers()

    @property
    def n(self) -> int:
        """How many images calibrate."""
        return int(self.kl_scores.size)

    @property
    def smallest_alpha(self) -> float:
        """The smallest α that `decide` accepts."""
        return smallest_alpha(self.n)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able object that `from_json` makes the same numbers of, to the last bit."""
        detector = None if self.detector_scores is None else self.detector_scores.tolist()
        student = {name: scores.tolist() for name, scores in self.student_scores.items()}
        return {
            "profiles": self.profiles.tolist(),
            "kl_scores": self.kl_scores.tolist(),
            "detector_scores": detector,
            "student_scores": student,
            "answers": None if self.answers is None else self.answers.tolist(),
            "per_class": self.per_class,
            "temperature": self.temperature,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raises InvalidCalibration where a part is missing or malformed."""
        try:
            detector, answers = data["detector_scores"], data.get("answers")
            return cls(
                np.array(data["profiles"], dtype=np.float64),
                np.array(data["kl_scores"], dtype=np.float64),
                None if detector is None else np.array(detector, dtype=np.float64),
                {name: np.array(scores, dtype=np.float64) for name, scores in data.get("student_scores", {}).items()},
                None if answers is None else np.array(answers, dtype=np.int64),
                bool(data.get("per_class", False)),
                float(data.get("temperature", 1.0)),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidCalibration(f"malformed abstention calibration: {error!r}") from error

    @cached_property
    def test(self) -> JointTest:
        """All that may speak against an image as one test; made once, for a gateway asks it often."""
        return JointTest(np.stack(list(self.scores_by_reason.values()), axis=1))

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Of the test's columns, in their order: where two are as suspicious, the first is believed."""
        return tuple(self.scores_by_reason)

    @cached_property
    def answer_counts(self) -> npt.NDArray[np.int64]:
        """How many calibration images the student gave each answer, (c,)."""
        classes = len(self.profiles)
        return np.zeros(classes, np.int64) if self.answers is None else np.bincount(self.answers, minlength=classes)

    def class_p_values(self, table: Float64s, answers: npt.NDArray[np.int64]) -> Float64s | None:
        """Among the calibration images of the same answer, (n,); 1 where there are none, None where none were kept."""
        return None if self._class_test is None else self._class_test.p_values(table, answers)[0]

    @cached_property
    def _class_test(self) -> PerClassTest | None:
        if self.answers is None:
            return None
        table = np.stack(list(self.scores_by_reason.values()), axis=1)
        return PerClassTest(self.answers, lambda rows: JointTest(table[rows]), table.shape[1])

    def _check_answers(self) -> None:
        if self.answers is None:
            if self.per_class:
                raise InvalidCalibration("a calibration per class needs the student's answers")
        elif self.answers.shape != (self.n,) or not 0 <= self.answers.min() <= self.answers.max() < len(self.profiles):
            raise InvalidCalibration(f"want {self.n} answers under {len(self.profiles)}")

    @property
    def scores_by_reason(self) -> dict[Reason, Float64s]:
        """(m,) each: the columns of the test, in their order."""
        detector: dict[Reason, Float64s] = {} if self.detector_scores is None else {"perturbed": self.detector_scores}
        return {**detector, "uncertain": self.kl_scores, **self.student_scores}


@dataclass(frozen=True, eq=False)
class Decision:
    """Of n images: the answer, or why there is none.

    label_index: (n,) int64, argmax of p̄ whether abstained or not. p_value: (n,), of all tests together; abstained where
    it is <= α. p_class: (n,), the same among the calibration images of the same answer. p_each: (n,) of each test
    alone: not to be compared with α one by one, for two tests refuse up to twice as many clean images.
    probabilities: (n, c), p̄ at the calibration's temperature: what the user is told.
    """

    label_index: npt.NDArray[np.int64]
    abstained: npt.NDArray[np.bool_]
    reason: list[Reason | None]
    p_value: Float64s
    p_class: Float64s | None
    p_each: Mapping[Reason, Float64s]
    uncertainty: Uncertainty
    probabilities: Float64s

    @property
    def p_uncertain(self) -> Float64s:
        return self.p_each["uncertain"]

    @property
    def p_perturbed(self) -> Float64s | None:
        """None without a detector."""
        return self.p_each.get("perturbed")


def calibrate_abstention(
    probabilities: Floats,
    labels: npt.NDArray[np.int64],
    detector_scores: Floats | None,
    *,
    seed: int,
    profiles: Floats | None = None,
    student_scores: Mapping[Reason, Floats] | None = None,
    per_class: bool = False,
    temperature: float = 1.0,
) -> AbstentionCalibration:
    """Calibrate on held-out clean images that neither student nor detector was fitted on.

    probabilities: (k, n, c); labels: (n,) int64; detector_scores: (n,), or None where there is no detector;
    student_scores: (n,) each. per_class: decide by the calibration images of the same answer.
    temperature: of the probabilities that are told, as from `models.reliability.fit_temperature`.
    profiles: (c, c) made from other images (of training, say). Without them a random quarter of the images, drawn from
    `seed`, makes the profiles and the rest calibrates: an image that shapes its own profile lies closer to it than a
    new one, and α would not hold.
    Raises InvalidCalibration where the arrays do not fit together or fewer than two images are given.
    """
    passes = as_passes(probabilities)
    n, further = passes.shape[1], dict(student_scores or {})
    given = [*further.values(), *([] if detector_scores is None else [detector_scores])]
    if n < 2 or labels.shape != (n,) or any(np.shape(scores) != (n,) for scores in given):
        raise InvalidCalibration(f"want two or more images with labels and scores, not {n}, {labels.shape}")
    mean = passes.mean(axis=0)
    rows = np.arange(n)
    if profiles is None:
        order = np.random.Generator(np.random.PCG64(seed)).permutation(n)
        shaping = n - calibrating_of(n)
        profiles, rows = class_profiles(mean[order[:shaping]], labels[order[:shaping]]), np.sort(order[shaping:])
    return AbstentionCalibration(
        profiles=np.asarray(profiles, dtype=np.float64),
        kl_scores=kl_to_profile(mean[rows], np.asarray(profiles, dtype=np.float64)),
        detector_scores=None if detector_scores is None else np.asarray(detector_scores, dtype=np.float64)[rows],
        student_scores={name: np.asarray(scores, dtype=np.float64)[rows] for name, scores in further.items()},
        answers=mean[rows].argmax(axis=1).astype(np.int64),
        per_class=per_class,
        temperature=temperature,
    )


def decide(
    probabilities: Floats,
    detector_scores: Floats | None,
    calibration: AbstentionCalibration,
    *,
    alpha: float,
    student_scores: Mapping[Reason, Floats] | None = None,
) -> Decision:
    """Answer or abstain; clean images exchangeable with the calibration are refused with probability at most `alpha`.

    probabilities: (k, n, c); detector_scores, student_scores: (n,) each, given exactly where the calibration has them.
    Where the calibration is per class, that holds for each answer by itself that has images enough to promise α; an
    answer with fewer is judged by all of them.
    An image's decision does not depend on the others in the batch.
    Raises ValueError where alpha is outside (0, 1) or the arrays do not fit, AlphaTooSmall under 1/(m + 1).
    """
    found = uncertainty(probabilities, calibration.profiles)
    return decide_on(found, detector_scores, calibration, alpha=alpha, student_scores=student_scores)


def decide_on(
    found: Uncertainty,
    detector_scores: Floats | None,
    calibration: AbstentionCalibration,
    *,
    alpha: float,
    student_scores: Mapping[Reason, Floats] | None = None,
) -> Decision:
    """As `decide`, on uncertainty that is computed already against the calibration's profiles."""
    check_alpha(alpha, calibration.n)
    table = _table(found.kl, detector_scores, dict(student_scores or {}), calibration.reasons)
    whole, p_each = calibration.test.p_values(table)
    answers = found.mean_probabilities.argmax(axis=1).astype(np.int64)
    p_class = calibration.class_p_values(table, answers)
    p_value = whole
    if calibration.per_class and p_class is not None:
        p_value = np.where(calibration.answer_counts[answers] >= samples_needed(alpha), p_class, whole)
    abstained = p_value <= alpha
    first = p_each.argmin(axis=1)
    return Decision(
        label_index=answers,
        abstained=abstained,
        reason=[calibration.reasons[int(i)] if a else None for a, i in zip(abstained, first, strict=True)],
        p_value=p_value,
        p_class=p_class,
        p_each=dict(zip(calibration.reasons, p_each.T, strict=True)),
        uncertainty=found,
        probabilities=at_temperature(found.mean_probabilities, calibration.temperature),
    )


def _table(
    kl: Float64s, detector_scores: Floats | None, further: Mapping[Reason, Floats], reasons: Sequence[Reason]
) -> Float64s:
    """(n, t), the scores in the order of `reasons`. Raises ValueError where they are not those, or not n of each."""
    columns: dict[Reason, Floats] = {"uncertain": kl, **further}
    if detector_scores is not None:
        columns["perturbed"] = detector_scores
    if columns.keys() != set(reasons):
        raise ValueError(
            "detector and student scores must be given exactly where the calibration has them: "
            f"want {', '.join(reasons)}, not {', '.join(columns)}"
        )
    if any(np.shape(column) != kl.shape for column in columns.values()):
        raise ValueError(f"want {kl.size} of each score, not {[np.shape(column) for column in columns.values()]}")
    return np.stack([np.asarray(columns[reason], dtype=np.float64) for reason in reasons], axis=1)


def _check_profiles(profiles: Float64s) -> None:
    if profiles.ndim != 2 or profiles.shape[0] != profiles.shape[1] or not profiles.size:
        raise InvalidCalibration(f"profiles must have shape (c, c), not {profiles.shape}")
    if not (profiles > 0).all() or not np.allclose(profiles.sum(axis=1), 1):
        raise InvalidCalibration("the rows of profiles must be positive and sum to 1")
