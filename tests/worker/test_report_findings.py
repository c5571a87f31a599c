"""What reports say: the numbers, figures and sentences are those of the facts."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from report_facts import Page, evaluate_facts, sanitise_facts, threshold_facts
from report_pages import evaluated, sanitise_numbers

from models.calibration import conformal_p_values, wilson_interval
from models.specs import SanitiseSpec
from worker.reports import canvas, figures, text
from worker.reports.evaluate import FactsError, evaluate_report
from worker.reports.histograms import Axis
from worker.reports.sanitise import sanitise_report
from worker.reports.sanitise_findings import find
from worker.reports.sanitise_words import grounds, headline, limits


def test_the_numbers_are_those_of_the_facts() -> None:
    facts = sanitise_facts(n=500, poison=0.2)
    report = sanitise_numbers(facts)
    flagged = np.asarray(facts.verdicts) == "quarantine"
    assert report["counts"] == {"keep": 500 - flagged.sum(), "reform": 0, "quarantine": flagged.sum()}
    low, high = wilson_interval(int(flagged.sum()), 500)
    assert report["flagged"] == {
        "k": flagged.sum(),
        "n": 500,
        "share": pytest.approx(flagged.mean()),
        "low": pytest.approx(low, rel=1e-5),
        "high": pytest.approx(high, rel=1e-5),
    }
    bins = report["score"]["histogram"]
    assert sum(bins["kept"]) == 500 - flagged.sum() and sum(bins["flagged"]) == flagged.sum()
    assert sum(bins["calibration"]) == 199
    edges, threshold = np.array(bins["edges"]), facts.threshold
    assert not np.array(bins["flagged"])[edges[1:] <= threshold * 1.0001].any()
    assert not np.array(bins["kept"])[edges[:-1] >= threshold * 0.9999].any()
    assert sum(report["p_values"]["counts"]) == 500
    assert sum(report["p_values"]["expected_if_clean"]) == pytest.approx(500, rel=1e-4)
    assert {c["name"]: (c["quarantined"]["k"], c["quarantined"]["n"]) for c in report["classes"]} == {
        f"class {i}": (flagged[facts.labels == i].sum(), (facts.labels == i).sum()) for i in range(4)
    }
    assert headline(facts, find(facts)) in sanitise_report(facts).html


def test_every_flagged_image_is_drawn_however_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_KEPT_POINTS", 100)
    scores = np.linspace(1, 2, 5000)
    flagged = np.arange(5000) % 7 == 3
    axes = canvas.new_figure(4, 3).subplots()
    marks = {canvas.KEEP: ~flagged, canvas.FLAG: flagged}
    figures._points(axes, scores, Axis(log=False, floor=1.0), marks, room=1.0)
    kept, red = axes.get_lines()
    assert np.array_equal(red.get_xdata(), np.flatnonzero(flagged))
    assert np.array_equal(red.get_ydata(), scores[flagged])
    places = np.asarray(kept.get_xdata())
    assert 50 <= len(places) <= 100 and not flagged[places].any()
    assert red.get_zorder() > kept.get_zorder() and red.get_rasterized()


def test_red_pixels_reach_the_page() -> None:
    """One flagged image among 30,000 shows in the raster that the page holds."""
    for poisoned in (False, True):
        scores = np.full(30_000, 1.0, np.float32)
        scores[12_345] = 3.0 if poisoned else 1.0
        clean = np.random.default_rng(0).uniform(0.9, 1.1, 199).astype(np.float32)
        p_values = conformal_p_values(scores, clean)
        facts = sanitise_facts(n=30_000, gallery=[], calibration_scores=clean, threshold=2.0, losses={})
        facts = replace(facts, scores=scores, p_values=p_values, verdicts=np.where(scores > 2, "quarantine", "keep"))
        drawn = str(figures.every_error(facts, find(facts), "alt"))
        red = 0
        for uri in re.findall(r'"data:image/png;base64,([^"]+)"', drawn):
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGBA")).astype(int)
            red += int(((pixels[..., 0] - pixels[..., 1] > 100) & (pixels[..., 3] > 100)).sum())
        assert (red > 5) is poisoned


def test_scores_over_decades_get_a_log_scale_and_zeros_stay_on_it() -> None:
    facts = sanitise_facts()
    assert find(sanitise_facts(poison=0.0)).axis.log is False
    wide = replace(facts, scores=np.where(np.arange(400) < 3, 0, facts.scores * np.geomspace(1, 1e4, 400)))
    axis = find(wide).axis
    assert axis.log and axis.floor > 0 and axis.place(wide.scores).min() == axis.floor
    assert sum(sanitise_numbers(wide)["score"]["histogram"]["kept"]) == int((np.asarray(wide.verdicts) == "keep").sum())


def test_p_values_of_clean_sets_stay_in_the_band_and_poison_leaves_it() -> None:
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(150):
        clean, candidates = rng.normal(size=99), rng.normal(size=300)
        facts = sanitise_facts(n=300, m=99, calibration_scores=clean)
        facts = replace(facts, scores=candidates, p_values=conformal_p_values(candidates, clean))
        found = find(facts).p_values
        assert found is not None and np.allclose(found.expected, 15)
        inside.append(np.abs(found.counts - found.expected) <= 1.96 * found.deviation)
    assert 0.93 < np.mean(inside) < 0.98
    poisoned = find(sanitise_facts(n=2000, m=999, poison=0.3)).p_values
    assert poisoned is not None
    assert poisoned.counts[0] > poisoned.expected[0] + 5 * poisoned.deviation[0]
    assert poisoned.clean_share == pytest.approx(0.7, abs=0.06)


@pytest.mark.parametrize(
    ("poison", "says"),
    [(0.2, "Chance alone rarely explains more than"), (0.0, "no sign of perturbation"), (-1.0, "does not carry over")],
)
def test_the_words_follow_the_numbers(poison: float, says: str) -> None:
    facts = sanitise_facts(n=5000, m=999, poison=max(poison, 0.0), alpha=0.05, seed=1)
    if poison < 0:  # candidates smoother than the reference: fewer are flagged than of a clean set
        scores = facts.scores / 4
        facts = replace(facts, scores=scores, p_values=conformal_p_values(scores, facts.calibration_scores))
        facts = replace(facts, verdicts=["keep"] * 5000, gallery=[])
    assert says in " ".join(grounds(facts, find(facts)))


def test_headlines_say_what_was_found_and_at_which_rate() -> None:
    held = sanitise_facts(n=1000)
    k = int((np.asarray(held.verdicts) == "quarantine").sum())
    assert headline(held, find(held)) == (
        f"{k} of 1,000\u00a0images ({text.percent(k / 1000)}) were flagged as perturbed and quarantined, "
        "at a false-quarantine rate of 1\u00a0% that is held."
    )
    assert "only an estimate" in headline(replace(held, rates_are="estimated"), find(held))
    none = sanitise_facts(poison=0.0, verdicts=["keep"] * 400, gallery=[])
    assert headline(none, find(none)).startswith("None of 400\u00a0images was flagged")
    fixed = threshold_facts()
    assert headline(fixed, find(fixed)).endswith("at a fixed threshold of 0.1, which promises no rate.")
    spec = SanitiseSpec.model_validate({"preset": "badjie", "infer_threshold": {"percentage": 90}}).model_dump(
        mode="json"
    )
    inferred = threshold_facts(spec=spec)
    assert "the threshold that 90\u00a0% of the calibration images pass" in headline(inferred, find(inferred))


def test_a_threshold_is_measured_on_the_reference_though_it_promises_nothing() -> None:
    facts = threshold_facts(rates_are="estimated")
    said = " ".join(grounds(facts, find(facts)))
    over = int((facts.calibration_scores > 0.1).sum())
    assert (
        f"199\u00a0reference images that no network was fitted on: {text.percent(over / 199)} of them exceed it" in said
    )
    assert "nobody vouched for" in " ".join(grounds(replace(facts, reference=None), find(facts)))


def test_an_image_that_passes_through_reconstructed_is_not_a_flagged_one() -> None:
    facts = threshold_facts()
    found, report = find(facts), sanitise_report(facts)
    assert np.array_equal(found.flagged, facts.scores > 0.1) and not found.reformed.any()
    assert report.json["counts"]["reform"] == int((facts.scores <= 0.1).sum())
    assert "as their reconstructions" in report.html and "No p-values" in report.html
    reforming = sanitise_facts()
    verdicts = np.where(np.asarray(reforming.verdicts) == "quarantine", "reform", "keep")
    found = find(replace(reforming, verdicts=verdicts))
    assert found.reformed.sum() == (np.asarray(reforming.verdicts) == "quarantine").sum() > 0


def test_a_class_is_marked_only_where_chance_does_not_explain_it() -> None:
    labels = np.arange(4000) % 10
    targeted = np.where((labels == 3) & (np.arange(4000) % 3 == 0), "quarantine", "keep")
    facts = sanitise_facts(n=4000, classes=11, labels=labels, gallery=[])
    rows = {row.index: row.stands_out for row in find(replace(facts, verdicts=targeted)).classes}
    assert rows[3] == "more" and 10 not in rows and len(rows) == 10
    even = np.where(np.random.default_rng(0).random(4000) < 0.05, "quarantine", "keep")
    assert {row.stands_out for row in find(replace(facts, verdicts=even)).classes} == {""}


def test_limits_name_what_the_score_cannot_see() -> None:
    said = " ".join(f"{limit.title} {limit.body}" for limit in limits(sanitise_facts()))
    for word in ("not malice", "Harmless noise", "wrong label", "patch", "0.004 to 0.025", "not the probability"):
        assert word in said
    hidden = " ".join(limit.body for limit in limits(threshold_facts()))
    assert "adds at most ε² = 0.0001" in hidden and "times as much, and hides it" in hidden


@pytest.mark.slow
def test_the_evaluation_says_how_the_strongest_attack_ends() -> None:
    report = evaluated()
    assert report.json["headline"] == (
        "Under PGD with the margin loss (ε = 0.01), the strongest attack tried, the student gets 30\u00a0% of "
        "200\u00a0images right; without attack, 95\u00a0%."
    )
    low, high = wilson_interval(60, 200)
    assert f"{100 * low:.1f} to {100 * high:.1f}\u00a0%" in report.html
    assert report.json["rows"][3]["served"]["wrong"]["value"] == pytest.approx(31 / 200)
    assert "signs of gradient masking" in Page(report.html).text
    assert report.json["may_not_conclude"][0].startswith("That the rows with high accuracy show robustness")
    calm = evaluate_report(evaluate_facts(flags=[]))
    assert "signs of gradient masking:" not in Page(calm.html).text
    assert "abstains: perturbed" in Page(report.html).text


def test_shares_of_clean_images_are_told_with_their_intervals() -> None:
    clean = {"abstained": {"share": 0.011, "low": 0.006, "high": 0.02, "n": 1200}}
    said = Page(evaluate_report(evaluate_facts(clean=clean)).html).text
    assert "1.1\u00a0% (95 % interval 0.6 to 2\u00a0%, 1,200\u00a0images)" in said


def test_an_evaluation_without_a_served_model_leaves_it_out() -> None:
    bare = [{k: v for k, v in row.items() if not k.startswith("served")} for row in evaluate_facts().rows]
    report = evaluate_report(evaluate_facts(rows=bare, examples=[]))
    assert "right to abstain</h2>" not in report.html and report.json["rows"][1]["served"] is None
    with pytest.raises(FactsError, match="the row of attack 'fgsm' lacks 'mean_l2'"):
        evaluate_report(evaluate_facts(rows=[{k: v for k, v in bare[1].items() if k != "mean_l2"}]))
    with pytest.raises(FactsError, match="at least one attack"):
        evaluate_facts(rows=bare[:1])


def test_the_evaluation_names_what_did_most_harm_and_what_its_attacker_had() -> None:
    report = evaluated()
    said = Page(report.html).text
    low, high = wilson_interval(44, 200)
    assert (
        "it fares worst under adaptive attack on the whole stack, whose attacker has everything: it answers "
        "68\u00a0% of those attacked images correctly, abstains from 10\u00a0% and is wrong on 22\u00a0% "
        f"({100 * low:.1f} to {100 * high:.1f}\u00a0%, 200\u00a0images)"
    ) in said
    assert "Do not call the student robust: gradients are masked. Believe the lowest row" in said
    assert [point["eps_linf"] for point in report.json["curve"]] == [0.005, 0.01, 0.02, 0.04] * 2
    assert "least change that fools, by DeepFool, mean L20.3 (95 % interval 0.2 to 0.4" in said.replace("\u00a0", " ")
    assert "cosine with the clean ones 0.91 (0.9 to 0.92), 1.1 (1 to 1.2) times as long" in said
    assert report.json["rows"][1]["mean_l2"] == {"value": 0.5, "low": 0.45, "high": 0.55}
    shown = Page(evaluate_report(evaluate_facts(curve=[])).html).text
    assert "As the attacker's box grows" in said and "As the attacker's box grows" not in shown


@pytest.mark.slow
def test_the_evaluation_says_when_its_own_attacker_was_too_weak_or_knew_too_little() -> None:
    weak = {"flag": "adaptive_weaker_than_blind", "raised": True, "measured": {}, "meaning": "too weak"}
    report = evaluate_report(evaluate_facts(flags=[weak]))
    assert "so it was too weak" in report.html and "signs of gradient masking:" not in Page(report.html).text
    ignorant = [row for row in evaluate_facts().rows if row["knowledge"] != "everything"]
    said = Page(evaluate_report(evaluate_facts(rows=ignorant, flags=[])).html).text
    assert "this shows the easy half" in said and "but not the filter" in said
    known = Page(evaluate_report(evaluate_facts(flags=[])).html).text
    assert "makes the served model wrong too often" in known and "a better one, or one with more time" in known
    alone = [dict(row) | {"eps_linf": None if row["attack"] == "pgd-margin" else 0.01} for row in evaluate_facts().rows]
    assert "Under adaptive attack" in evaluate_report(evaluate_facts(rows=alone)).json["headline"]
