"""Images that an attack turned, for the report's eyes: the worst first."""

from __future__ import annotations

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
    """Of each attack a few images that the student had right and then had wrong.

    Answered ones first, the surest answers before others: those are what harms. images, labels: what was evaluated.
    """
    before = found.outcomes["none"]
    was_right = np.zeros(len(images), np.bool_)
    was_right[before.rows] = before.right
    return [
        example
        for name, outcome in found.outcomes.items()
        if name != "none"
        for example in _turned(subject, name, outcome, images, labels, was_right)
    ]


def _turned(
    subject: Subject,
    attack: str,
    outcome: Outcome,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    was_right: NDArray[np.bool_],
) -> list[AttackExample]:
    turned = np.flatnonzero(outcome.fooled & was_right[outcome.rows])
    if not len(turned):
        return []
    decision = subject.answer(outcome.images[turned])
    truth, after = labels[outcome.rows[turned]], decision.label_index
    sure = decision.uncertainty.mean_probabilities.max(axis=1)
    order = np.lexsort((-sure, after == truth, decision.abstained))[:SHOWN_EACH]
    return [
        AttackExample(
            attack=attack,
            original=images[outcome.rows[turned[place]]],
            attacked=outcome.images[turned[place]],
            label=subject.classes[truth[place]],
            before=subject.classes[truth[place]],
            after=subject.classes[after[place]],
            answer=None if decision.abstained[place] else subject.classes[after[place]],
            reason=decision.reason[place],
        )
        for place in order
    ]
