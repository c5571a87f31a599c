"""Harm is what is served, and wrong, whether the bare student is right or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from torch import Tensor

from models.abstention import Decision
from models.evaluate_specs import EvaluateSpec
from models.images import Images
from models.robustness import Answer, Evaluation, Target, evaluate
from models.training import Silent
from tests.levels import OfMean, by_level, greys

EPS = 4 / 255
LEVELS = np.arange(100, 140)
"""The student errs from 128 on."""
ATTACKS = EvaluateSpec(
    attacks=("pgd-margin", "adaptive"),
    **{"eps_linf": EPS, "eps_curve": (), "pgd_steps": 10, "adaptive_steps": 2, "adaptive_restarts": 1},
)


def lame(x: Tensor, _y: Tensor) -> tuple[Tensor, Tensor]:
    """A stack in which its attacker sees no way: he leaves every image as it is."""
    nowhere = 0 * x.sum((1, 2, 3)) - 1
    return nowhere, nowhere[:, None]


def evaluated(answer: Answer, levels: np.ndarray = LEVELS) -> Evaluation:
    target = Target(OfMean(), answer=answer, alpha=0.05, stack=lame)
    return evaluate(target, greys(levels), np.zeros(len(levels), np.int64), ATTACKS, watch=Silent())


def sign_of(found: Evaluation) -> dict[str, object]:
    (sign,) = (sign for sign in found.masking if sign["flag"] == "adaptive_weaker_than_blind")
    return {"raised": sign["raised"], **sign["measured"]}


@pytest.mark.parametrize(("one_from", "silent_from"), [(118, 256), (118, 125), (135, 256)])
def test_harm_is_the_wrong_share_of_what_is_served(one_from: int, silent_from: int) -> None:
    """The served model errs at other levels than the student does."""
    found = evaluated(by_level(one_from=one_from, silent_from=silent_from))
    for row in found.rows:
        outcome = found.outcomes[row.attack]
        level = outcome.images.reshape(len(LEVELS), -1).mean(axis=1)
        assert outcome.harmed is not None and row.served is not None
        assert np.array_equal(outcome.harmed, (level >= one_from) & (level < silent_from))
        assert row.served.wrong.count == outcome.harmed.sum()
        assert np.array_equal(outcome.student, level > 127.5)
        assert not np.array_equal(outcome.harmed, outcome.fooled)


def test_an_adaptive_attack_that_harms_less_is_told_though_the_student_is_right_all_along() -> None:
    levels = np.full(30, 117)
    found = evaluated(by_level(one_from=118), levels)
    assert all(outcome.right.all() for outcome in found.outcomes.values())
    assert sign_of(found) == {
        "raised": True,
        "wrong_and_answered_under_pgd-margin_only": 30,
        "under_adaptive_only": 0,
        "n": 30,
    }


def test_an_attack_that_fools_the_student_alone_outdoes_no_other() -> None:
    levels = np.full(30, 127)
    found = evaluated(by_level(one_from=200), levels)
    assert found.outcomes["pgd-margin"].fooled.all()
    assert found.outcomes["adaptive"].right.all()
    assert not sign_of(found)["raised"]


def test_square_goes_by_what_clients_of_the_served_model_are_told() -> None:
    """The mean over the passes, which nobody is told, would lead it nowhere here."""
    serves = by_level(one_from=119)

    def answer(images: Images) -> Decision:
        decision = serves(images)
        hidden = np.tile([0.9, 0.1], (len(images), 1))
        return replace(decision, uncertainty=replace(decision.uncertainty, mean_probabilities=hidden))

    spec = ATTACKS.model_copy(update={"attacks": ("square-served",), "queries": 60})
    target = Target(OfMean(), answer=answer, alpha=0.05)
    found = evaluate(target, greys(np.full(10, 117)), np.zeros(10, np.int64), spec, watch=Silent())
    assert found.outcomes["square-served"].harmed.mean() > 0.5
