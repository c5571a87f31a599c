"""What a report of several detectors says: who found what, alone and together, and what a shift does to the rates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_facts import Page, every_extra, panel_facts, sanitise_facts
from report_pages import fully_panelled, panelled, sanitise_numbers

from models.shift import Shift
from worker.reports import Report
from worker.reports.histograms import histogram, score_axis
from worker.reports.sanitise import Discovery, FactsError, sanitise_report
from worker.reports.sanitise_findings import find
from worker.reports.sanitise_panel import Together
from worker.reports.sanitise_panel_words import alarm, suspects
from worker.reports.sanitise_words import grounds, headline, limits
from worker.reports.text import percent


@pytest.fixture(scope="module")
def report() -> Report:
    return panelled()


@pytest.fixture(scope="module")
def full_report() -> Report:
    return fully_panelled()


def test_each_detector_is_counted_alone_and_together(report: Report) -> None:
    facts = panel_facts()
    spoke = np.stack([detector.spoke for detector in facts.detectors], axis=1)
    voices = spoke.sum(axis=1)
    rows = report.json["detectors"]
    assert [row["name"] for row in rows] == ["residual_energy", "label_loss", "poison_gain", "duplicates"]
    assert [row["suspects"] for row in rows] == ["perturbation", "label", "trigger", "duplicate"]
    for place, row in enumerate(rows):
        alone = int((spoke[:, place] & (voices == 1)).sum())
        total = int(spoke[:, place].sum())
        assert row["flagged"] == {"total": total, "alone": alone, "with_others": total - alone}
        assert sum(row["histogram"]["flagged"]) == total
        assert sum(row["histogram"]["kept"]) == len(voices) - total
        assert sum(row["histogram"]["calibration"]) == 999
    assert rows[3]["threshold"] is None  # it never flags alone


def test_the_sets_that_spoke_together_account_for_every_flagged_image(report: Report) -> None:
    together = report.json["spoke_together"]
    assert sum(row["images"] for row in together) == report.json["flagged"]["k"]
    assert [row["images"] for row in together] == sorted((row["images"] for row in together), reverse=True)
    both = next(row for row in together if row["detectors"] == ["label_loss", "poison_gain"])
    assert both["suggests"] == "a wrong label; a trigger, where many of them look alike" and both["images"] > 50
    assert suspects(Together(("x",), ("other",), 1)) == "something unlike the reference"
    assert suspects(Together(("a", "b"), ("perturbation", "duplicate"), 1)) == "a perturbation or a relabelled copy"


def test_what_a_detector_sees_and_does_not_stands_on_the_page(report: Report) -> None:
    facts = panel_facts()
    said = Page(report.html).text
    for detector in facts.detectors:
        assert detector.sees in said and detector.blind_to in said


def test_images_flagged_for_their_label_show_what_they_look_like(report: Report) -> None:
    facts = panel_facts()
    page = Page(report.html)
    by_label = [item for item in facts.gallery if "residual_energy" not in item.reasons]
    assert by_label and page.text.count("class 4") >= len(by_label)
    pictures = sum(tag == "img" for tag, _ in page.found)
    assert pictures == len(by_label) + 3 * (len(facts.gallery) - len(by_label))


def test_who_looks_at_labels_is_not_said_to_miss_them() -> None:
    titles = [limit.title for limit in limits(panel_facts())]
    assert "Wrong labels" not in titles and "Clean-label poison and faint triggers" in titles
    assert "Wrong labels" in [limit.title for limit in limits(sanitise_facts())]


@pytest.mark.parametrize(
    ("direction", "says"),
    [("higher", "more of them are flagged than α = 2"), ("lower", "poison that would"), ("mixed", "either direction")],
)
def test_a_shift_is_told_with_what_it_does_to_the_rate(direction: str, says: str) -> None:
    shift = Shift(True, 0.0002, 0.24, 1.83, direction, 0.05, 900.0, 3800.0)  # type: ignore[arg-type]
    facts = panel_facts(shifts={"residual_energy": shift}, rates_are="estimated")
    told = alarm(facts)
    assert told is not None and says in " ".join(told.meaning)
    assert ("1.83 times" in told.seen[0]) is (direction != "mixed")
    assert 'calibrate_on = "candidates"' in told.meaning[-1]
    held = facts.detectors[0].calibration_scores
    after = f"speaks against about {percent(float((held * 1.83 > facts.threshold).mean()))} of clean candidates"
    assert (after in " ".join(told.meaning)) is (direction != "mixed")
    mapped = alarm(replace(facts, calibrated_on_candidates=True))
    assert mapped is not None and "takes such a shift out" in mapped.meaning[-1]


def test_a_shift_stands_above_all_that_was_found(full_report: Report) -> None:
    page = full_report.html
    assert page.index("The candidates do not look like the reference") < page.index("What was found")


@pytest.mark.slow
def test_no_shift_no_alarm_and_sifting_is_none() -> None:
    quiet = {"label_loss": Shift(False, 0.4, 0.01, None, "higher", 0.0, 900.0, 3800.0)}
    assert alarm(panel_facts(shifts=quiet)) is None
    sifting = {"looked_at": 4000, "started_from": 2000, "trusted": 1100}
    facts = panel_facts(**(every_extra() | {"reference": None, "sifting": sifting}))
    assert alarm(facts) is None
    said = Page(sanitise_report(facts).html).text
    assert "1,100\u00a0images (27.5\u00a0%) were trusted" in said and "Every rate on this page is an estimate" in said


def test_a_false_discovery_rate_is_told_in_words() -> None:
    facts = panel_facts(alpha=None, discovery=Discovery(0.05, 0.0031, 0.02))
    assert headline(facts, find(facts)).endswith("at a false-discovery rate of 5\u00a0% that is held.")
    said = " ".join(grounds(facts, find(facts)))
    assert "keeps the clean among them to 5\u00a0% or less" in said and "less than 2\u00a0% of the candidates" in said
    assert sanitise_numbers(facts)["rule"]["kind"] == "discovery"
    flagged = np.asarray(facts.flagged)
    reformed = replace(facts, verdicts=np.where(flagged, "reform", "keep"))
    assert flagged.any() and np.array_equal(find(reformed).reformed, flagged)


def test_search_and_suspicious_reference_have_tables_where_there_are_any(report: Report, full_report: Report) -> None:
    said = Page(full_report.html).text
    assert "stop/00017.png" in said and "fit.lr = 0.002" in said and said.count("best") >= 1
    trials = full_report.json["search"]
    assert [trial["value"] for trial in trials] == [0.231, 0.207, None]
    assert "hyperparameters</h2>" not in report.html and "reference itself</h2>" not in report.html


def test_scores_below_zero_are_drawn_where_they_are() -> None:
    scores = np.array([-3.0, -1.0, 0.5, 400.0])
    axis = score_axis([scores])
    assert not axis.log and np.array_equal(axis.place(scores), scores)
    bins = histogram(scores, scores > 100, scores[:0], 100.0, axis)
    assert bins.kept.sum() == 3 and bins.flagged.sum() == 1 and 100.0 in bins.edges


def test_a_detector_that_contradicts_the_rest_is_refused() -> None:
    facts = panel_facts()
    with pytest.raises(FactsError, match="label_loss has 3 scores for 4000 images"):
        replace(facts, detectors=[replace(facts.detectors[1], scores=np.zeros(3, np.float32))])
    with pytest.raises(FactsError, match="not finite"):
        replace(facts, detectors=[replace(facts.detectors[1], calibration_scores=np.array([np.nan]))])
