"""The report of an evaluate job: how often the student is right under attack, and what that does and does not show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from worker.reports import attack_figures, curve_figures
from worker.reports.evaluate_facts import (
    AttackExample,
    AttackRow,
    EvaluateFacts,
    Point,
    Sign,
    attack_name,
    read_curve,
    read_rows,
    read_signs,
)
from worker.reports.evaluate_words import SIGNS, grounds, headline, may_conclude, may_not_conclude, verdict
from worker.reports.page import FactsError, Report, render
from worker.reports.pictures import amplification, data_uri, difference
from worker.reports.text import figure, percent, plain

__all__ = ["AttackExample", "EvaluateFacts", "FactsError", "evaluate_report"]


@dataclass(frozen=True)
class Exhibit:
    """One example with what the page shows of it."""

    example: AttackExample
    attack: str
    original: str
    attacked: str
    difference: str


def evaluate_report(facts: EvaluateFacts) -> Report:
    """The numbers and the page. The same facts give the same report. Raises FactsError where a row lacks a number."""
    rows, signs, curve = read_rows(facts.rows), read_signs(facts.flags), read_curve(facts.curve)
    factor = amplification([(example.attacked, example.original) for example in facts.examples])
    page = render(
        "evaluate.html",
        title=f"Evaluate report of {facts.model}",
        facts=facts,
        rows=rows,
        served=any(row.served is not None for row in rows),
        headline=headline(facts, rows),
        grounds=grounds(rows, signs),
        signs=signs,
        sign_words=SIGNS,
        pictures=_pictures(rows, curve),
        curve=curve,
        attack_name=attack_name,
        verdict=verdict(rows, signs),
        amplification=factor,
        exhibits=[_exhibit(example, factor) for example in facts.examples],
        may=may_conclude(facts, rows),
        may_not=may_not_conclude(rows, signs),
        request=_request(facts),
    )
    return Report(json=_numbers(facts, rows, signs), html=page)


def _exhibit(example: AttackExample, factor: int) -> Exhibit:
    changed = difference(example.attacked, example.original, factor)
    return Exhibit(
        example, attack_name(example.attack), data_uri(example.original), data_uri(example.attacked), data_uri(changed)
    )


def _pictures(rows: Sequence[AttackRow], curve: Sequence[Point]) -> dict[str, Markup | None]:
    said = "; ".join(f"{row.name} {percent(row.accuracy.value)}" for row in rows)
    served = "; ".join(
        f"{row.name}: correct {percent(row.served.correct.value)}, abstained {percent(row.served.abstained.value)}, "
        f"wrong {percent(row.served.wrong.value)}"
        for row in rows
        if row.served is not None
    )
    return {
        "accuracies": attack_figures.accuracies(rows, f"Accuracy of the student with intervals. {said}."),
        "served": attack_figures.served_shares(rows, f"Stacked bars of the served model. {served}.")
        if served
        else None,
        "curves": curve_figures.security_curves(curve, _curve_said(curve)) if curve else None,
    }


def _curve_said(curve: Sequence[Point]) -> str:
    points = "; ".join(
        f"{point.name} at {figure(point.eps_linf, 3)}: student right on {percent(point.accuracy.value)}"
        + (f", served model wrong on {percent(point.served.wrong.value)}" if point.served is not None else "")
        for point in curve
    )
    return f"Security curves. {points}."


def _request(facts: EvaluateFacts) -> dict[str, Any]:
    """The body of the request that runs the same job again."""
    return {"type": "evaluate", "model": facts.model, "dataset": facts.dataset, "params": dict(facts.spec)}


def _numbers(facts: EvaluateFacts, rows: Sequence[AttackRow], signs: Sequence[Sign]) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "report": "evaluate",
        "headline": headline(facts, rows),
        "job_id": facts.job_id,
        "model": facts.model,
        "dataset": facts.dataset,
        "rows": [asdict(row) for row in rows],
        "clean": facts.clean,
        "curve": list(facts.curve),
        "robustness": dict(facts.least),
        "gradient_amplitude": facts.amplitude,
        "gradient_masking": [asdict(sign) for sign in signs],
        "may_conclude": may_conclude(facts, rows),
        "may_not_conclude": may_not_conclude(rows, signs),
        "examples": [
            {name: getattr(example, name) for name in ("attack", "label", "before", "after", "answer", "reason")}
            for example in facts.examples
        ],
        "warnings": list(facts.warnings),
        "notes": facts.notes,
        "request": _request(facts),
        "versions": facts.versions,
        "seconds": facts.seconds,
    }
    result: dict[str, Any] = plain(numbers)
    return result
