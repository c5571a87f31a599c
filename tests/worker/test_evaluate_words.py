"""The sentences of an evaluate report say what its rows and signs do."""

from __future__ import annotations

from typing import Any

import pytest
from report_facts import evaluate_facts

from worker.reports.evaluate_facts import AttackRow, Sign, read_rows, read_signs
from worker.reports.evaluate_words import may_not_conclude, verdict


def rows(wrong: float = 0.02, **more: float | None) -> list[AttackRow]:
    """The facts' rows with that share served wrong, and more of them, by name, each with its box."""
    given = evaluate_facts().rows
    further = [dict(given[1]) | {"attack": name, "eps_linf": eps_linf} for name, eps_linf in more.items()]
    return read_rows([dict(row) | {"served_wrong": wrong} for row in (*given, *further)])


def sign(flag: str, raised: bool) -> list[Sign]:
    facts: dict[str, Any] = {"flag": flag, "raised": raised, "measured": {}, "meaning": ""}
    return read_signs([facts])


@pytest.mark.parametrize(
    ("wrong", "flag", "raised", "says"),
    [
        (0.02, "adaptive_weaker_than_blind", False, "can be taken as it stands"),
        (0.02, "adaptive_weaker_than_blind", True, "too little harm"),
        (0.06, "adaptive_weaker_than_blind", True, "too often to rely on its abstention"),
        (0.02, "zero_gradients", True, "Do not call the student robust"),
    ],
)
def test_the_verdict_follows_the_signs_and_the_harm(wrong: float, flag: str, raised: bool, says: str) -> None:
    said = verdict(rows(wrong), sign(flag, raised))
    assert says in said
    assert ("as it stands" in said) is (not raised)


def test_what_was_not_tried_is_what_no_row_tried() -> None:
    calm = sign("zero_gradients", False)
    bare = " ".join(may_not_conclude(rows(), calm))
    assert "other norms, patches, rotations" in bare
    many = " ".join(may_not_conclude(rows(cw=0.01, deepfool=None, jsma=None), calm))
    assert "other norms, patches" not in many
    assert "only these were: Carlini–Wagner (L2, in the same box), DeepFool (L2), JSMA (L0)." in many
    assert "patches, rotations, blur or weather. None was tried." in many
    one = " ".join(may_not_conclude(rows(jsma=None), calm))
    assert "only these were: JSMA (L0)." in one
