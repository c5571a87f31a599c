"""Images that an attack turned, for the report's eyes: the worst first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.robustness import Evaluation
from models.robustness.outcomes import Outcome
from worker.reports.evaluate import AttackExample
from worker.subject import Subject

SHOWN_EACH = 4


def worst_cases(
    subject: Subject, images: NDArray[np.uint8], labels: NDArray[np.int64], found: Evaluation
) -> list[AttackExample]:
    """Of each attack a few images of which it made a wrong answer, of the served model or of the bare student.

    What is served, and wrong, comes first, the surest answers before others: that is what harms. What was as wrong
    without the attack is none of its doing. images, labels: what was evaluated.
    """
    unattacked = _Unattacked.of(images, labels, found.outcomes["none"])
    return [
        example
        for name, outcome in found.outcomes.items()
        if name != "none"
        for example in _turned(subject, name, outcome, unattacked)
    ]


@dataclass(frozen=True, eq=False)
class _Unattacked:
    """All n images as they were. student: (n,), its answers; harmed: (n,), where the served model's was wrong."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    student: NDArray[np.int64]
    harmed: NDArray[np.bool_]

    @classmethod
    def of(cls, images: NDArray[np.uint8], labels: NDArray[np.int64], clean: Outcome) -> _Unattacked:
        student, harmed = np.full(len(images), -1, np.int64), np.zeros(len(images), np.bool_)
        student[clean.rows], harmed[clean.rows] = clean.student, _harmed(clean)
        return cls(images, labels, student, harmed)


def _harmed(outcome: Outcome) -> NDArray[np.bool_]:
    return np.zeros(len(outcome.rows), np.bool_) if outcome.harmed is None else outcome.harmed


def _turned(subject: Subject, attack: str, outcome: Outcome, unattacked: _Unattacked) -> list[AttackExample]:
    labels, before = unattacked.labels[outcome.rows], unattacked.student[outcome.rows]
    did_harm = _harmed(outcome) & ~unattacked.harmed[outcome.rows]
    turned = np.flatnonzero(did_harm | (outcome.fooled & (before == labels)))
    if not len(turned):
        return []
    decision = subject.answer(outcome.images[turned])
    sure = decision.uncertainty.mean_probabilities.max(axis=1)
    order = np.lexsort((-sure, decision.abstained, ~did_harm[turned]))[:SHOWN_EACH]
    return [
        AttackExample(
            attack=attack,
            original=unattacked.images[outcome.rows[row]],
            attacked=outcome.images[row],
            label=subject.classes[labels[row]],
            before=subject.classes[before[row]],
            after=subject.classes[outcome.student[row]],
            answer=None if decision.abstained[place] else subject.classes[decision.label_index[place]],
            reason=decision.reason[place],
        )
        for place, row in zip(order, turned[order], strict=True)
    ]
