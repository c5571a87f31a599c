"""The worst cases of a report: what is served, and wrong, first, whatever the bare student says."""

from __future__ import annotations

import numpy as np

from models.evaluate_specs import EvaluateSpec
from models.robustness import Answer, Target, evaluate
from models.training import Silent
from tests.levels import OfMean, by_level, greys
from worker.examples import SHOWN_EACH, worst_cases
from worker.reports.evaluate import AttackExample
from worker.subject import Subject

EPS = 4 / 255
SPEC = EvaluateSpec(attacks=("fgsm",), **{"eps_linf": EPS, "eps_curve": ()})


def worst(answer: Answer, levels: list[int]) -> list[AttackExample]:
    """Of FGSM, which adds four levels, on images that are all of the class "dark"."""
    images, labels = greys(np.array(levels)), np.zeros(len(levels), np.int64)
    target = Target(OfMean(), answer=answer, alpha=0.05)
    subject = Subject("greys@1", target, answer, 0.05, ["dark", "bright"], [])
    return worst_cases(subject, images, labels, evaluate(target, images, labels, SPEC, watch=Silent()))


def levels_of(examples: list[AttackExample]) -> list[int]:
    return [int(example.original[0, 0, 0]) for example in examples]


def test_a_wrong_answer_is_shown_though_the_student_is_right() -> None:
    examples = worst(by_level(one_from=118), [90, 115, 116, 117])
    assert levels_of(examples) == [117, 116, 115]  # the surest first; 90 stays right
    assert all(np.array_equal(example.attacked, example.original + 4) for example in examples)
    assert {(example.label, example.answer, example.reason) for example in examples} == {("dark", "bright", None)}


def test_what_was_wrong_without_the_attack_is_none_of_its_doing() -> None:
    assert levels_of(worst(by_level(one_from=118), [117, 120, 200])) == [117]


def test_harm_comes_before_what_only_fools_the_student_and_few_are_shown() -> None:
    """From 126 on the student falls, from 130 on the served model is silent."""
    answer = by_level(one_from=118, silent_from=130)
    examples = worst(answer, [127, 126, 125, 116, 115])
    assert levels_of(examples) == [116, 115, 125, 127]
    assert len(examples) == SHOWN_EACH
    assert [example.answer for example in examples] == ["bright", "bright", "bright", None]
    assert examples[3].reason == "uncertain"


def test_the_students_own_answers_are_told_beside_what_is_served() -> None:
    """FGSM takes 116 to 120, where only the served model errs, and 126 to 130, where only the student does."""
    right, wrong, both = (
        worst(by_level(one_from=start), [level])[0] for start, level in ((118, 116), (200, 126), (130, 126))
    )
    assert [(e.before, e.after, e.answer) for e in (right, wrong, both)] == [
        ("dark", "dark", "bright"),
        ("dark", "bright", "dark"),
        ("dark", "bright", "bright"),
    ]
    (misread,) = worst(by_level(one_from=134), [130])
    assert (misread.label, misread.before, misread.after, misread.answer) == ("dark", "bright", "bright", "bright")
