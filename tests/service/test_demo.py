"""The demo's arithmetic and its verdict on itself, from answers made up here."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from service.client import Job, Prediction, Verdict
from service.demo.findings import Findings, Share, findings
from service.demo.material import Material, MaterialInTheMaking
from service.demo.pipeline import Answers
from service.demo.show import show_bars, show_findings
from service.errors import Unavailable

POISONED, CLEAN, TEST = 10, 200, 100


def verdict(index: int, path: str, *, quarantined: bool) -> Verdict:
    told = "quarantine" if quarantined else "keep"
    return Verdict(
        index=index, sample_id="", path=path, label="0", verdict=told, p_value=1 - quarantined / 2, scores={}
    )


def prediction(best: int, *, abstained: bool) -> Prediction:
    probabilities = [0.9 if index == best else 0.1 for index in range(2)]
    return Prediction(
        label=None if abstained else str(best),
        index=None if abstained else best,
        abstained=abstained,
        reason="perturbed" if abstained else None,
        probabilities=probabilities,
    )


def measured(
    *, found: int = POISONED, lost: int = 2, right: int = TEST, refused: int = 1, foreign: int = 60
) -> Findings:
    """What the demo would find if so many of each kind came out so."""
    poisoned = {f"0/p{i}.png": "fgsm" if i % 2 else "ifgsm" for i in range(POISONED)}
    verdicts = [verdict(i, path, quarantined=i < found) for i, path in enumerate(poisoned)]
    verdicts += [verdict(i, f"0/c{i}.png", quarantined=i < lost) for i in range(CLEAN)]
    metrics = {"alpha": 0.01, "num_calibration": 125}
    attacks = [{"attack": "none", "accuracy": 1.0, "n": 50}, {"attack": "pgd-margin", "accuracy": 0.5, "n": 50}]
    result = {"alpha": 0.01, "num_calibration": 250, "metrics": metrics, "evaluation": {"attacks": attacks}}
    predictions = {
        "clean": [prediction(int(i < right), abstained=i < refused) for i in range(TEST)],
        "attacked": [prediction(1, abstained=True) for _ in range(TEST)],
        "foreign": [prediction(0, abstained=i < foreign) for i in range(TEST)],
    }
    job = Job(id="h", type="harden", state="succeeded", result=result)
    answers = Answers(job, verdicts, {"classes": ["0", "1"]}, {0.01: predictions})
    return findings(answers, material(poisoned))


def material(poisoned: dict[str, str]) -> Material:
    counts = {"reference": 500, "candidate": POISONED + CLEAN, "test": TEST}
    return Material(Path(), poisoned, [1] * TEST, counts, 0.01, {})


def test_every_figure_is_counted() -> None:
    found = measured(found=8, lost=3, right=95, refused=2, foreign=60)
    assert (found.poison_found.k, found.poison_found.n) == (8, POISONED)
    assert {name: share.k for name, share in found.found_by_attack.items()} == {"fgsm": 4, "ifgsm": 4}
    assert (found.clean_lost.k, found.clean_lost.n) == (3, CLEAN)
    assert found.accuracy["clean"].k == 95
    assert found.white_box == {"pgd-margin": Share(25, 50)}
    (told,) = found.refusals
    assert {kind: share.k for kind, share in told.share.items()} == {"clean": 2, "attacked": TEST, "foreign": 60}
    assert told.reasons["clean"] == {"perturbed": 2}
    assert found.auroc == pytest.approx(0.8 + 0.2 * 0.5 - (3 / CLEAN) * (0.8 * 0.5 + 0.2 * 0.5))


def test_a_pipeline_that_did_its_work_passes() -> None:
    assert all(bar.holds for bar in measured().bars())


@pytest.mark.parametrize(
    ("measurement", "failing"),
    [
        ({"found": 8}, "poison quarantined"),
        ({"lost": 20}, "clean images lost at α = 0.01"),
        ({"right": 80}, "student's accuracy on clean test images"),
        ({"refused": 12}, "clean test images refused at α = 0.01"),
        ({"foreign": 10}, "foreign images refused"),
    ],
)
def test_each_bar_fails_by_itself_and_is_named(measurement: dict[str, int], failing: str) -> None:
    bars = measured(**measurement).bars()
    assert [bar.name for bar in bars if not bar.holds] == [failing]
    console = Console(file=io.StringIO(), width=120)
    assert show_bars(console, bars) is False
    assert f"FAILS  {failing}" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_fits_a_plain_terminal() -> None:
    console = Console(file=io.StringIO(), width=80)
    show_findings(console, measured(), material({}))
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "100.00%" in told and "10 of 10" in told and "PGD, margin loss" in told and "…" not in told


@pytest.mark.slow
def test_images_that_cannot_be_made_are_said_with_the_reason(tmp_path: Path) -> None:
    with (
        MaterialInTheMaking(tmp_path, seed=-1) as making,
        pytest.raises(Unavailable, match="could not be made") as told,
    ):
        making.wait()
    assert "negative" in told.value.message
