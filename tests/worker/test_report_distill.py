"""The distill report: it shows what was measured, stands alone, and escapes what it is given."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from models.specs import DistillSpec
from worker.reports.distill import DistillFacts, distill_report


def facts(method: str = "defensive", model: str = "signs-student") -> DistillFacts:
    accuracy = {"share": 0.9731, "low": 0.96, "high": 0.98, "n": 520}
    bins: dict[str, Any] = {"counts": [0, 4, 90], "confidence": [0.0, 0.5, 0.95], "accuracy": [0.0, 0.25, 0.9]}
    return DistillFacts(
        model=model,
        job_id="a1b2",
        spec=DistillSpec.model_validate({"method": method}).model_dump(mode="json"),
        metrics={
            "teacher_accuracy": {**accuracy, "share": 0.981},
            "student_accuracy": accuracy,
            "num_calibration": 390,
            "calibration_groups": None,
            "rates_are": "held",
            "alpha": 0.01,
            "smallest_alpha": 1 / 391,
            "abstains_for": ["perturbed", "uncertain", "unfamiliar"],
            "probability_temperature": 1.37,
            "reliability": {"before": {**bins, "ece": 0.081}, "after": {**bins, "ece": 0.012}},
        },
        notes={"images": 1000, "seconds": {"teacher": 3.5}, "teacher_agrees_with_label": 0.99},
        losses={"teacher": [2.0, 0.5], "student": [1.0]},
        versions={"torch": "2.13"},
    )


def test_the_page_tells_accuracy_calibration_and_when_it_abstains() -> None:
    report = distill_report(facts())
    assert "97.3" in report.html
    assert "98.1" in report.html
    assert "0.081" in report.html
    assert "0.012" in report.html
    assert "1.37" in report.html
    assert "calibration images" in report.html
    assert report.html.count("<svg") == 2
    assert "the odds of the outlier class" not in report.html
    assert "http://" not in report.html.replace("http://www.w3.org", "")
    assert json.loads(json.dumps(report.json))["metrics"]["student_accuracy"]["share"] == 0.9731
    assert distill_report(facts()).html == report.html


def test_the_page_says_where_objects_calibrate_and_where_the_rate_is_an_estimate() -> None:
    before = facts()
    pages = {
        (groups, standing): distill_report(
            replace(before, metrics={**before.metrics, "calibration_groups": groups, "rates_are": standing})
        ).html
        for groups, standing in ((None, "held"), (520, "held"), (None, "estimated"))
    }
    assert [("of an object of its own" in page) for page in pages.values()] == [False, True, False]
    assert [("only an estimate" in page) for page in pages.values()] == [False, False, True]


def test_another_precision_is_told_with_what_it_costs() -> None:
    before = facts()
    export = {"precision": "int8", "accuracy_in_float32": 0.9754, "accuracy": 0.9731, "same_answer": 0.9912, "n": 900}
    page = distill_report(replace(before, metrics={**before.metrics, "export": export})).html
    assert "<code>int8</code>" in page and "97.5" in page and "99.1" in page
    assert "int8" not in distill_report(before).html


@pytest.mark.parametrize("method", ["defensive", "extended", "robust"])
def test_every_method_has_its_words(method: str) -> None:
    assert f"<code>{method}</code>" in distill_report(facts(method)).html


def test_names_are_shown_as_text() -> None:
    assert "<script>" not in distill_report(facts(model="<script>alert(1)</script>")).html
