"""From what the service said and what only the demo knows, to figures and bars. Every figure is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.calibration import auroc, realised_rate_bounds, wilson_interval
from service.client import Prediction, Verdict
from service.demo.material import Material
from service.demo.pipeline import Answers

MIN_POISON_FOUND = 0.9
MIN_ACCURACY = 0.9
MIN_ATTACKED_REFUSED = 0.9
MIN_FOREIGN_REFUSED = 0.25
CONFIDENCE = 0.99  # of the bounds on realised rates: the demo is run often, and luck is no failure


@dataclass(frozen=True)
class Share:
    """k of n."""

    k: int
    n: int

    @property
    def value(self) -> float:
        return self.k / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson."""
        return wilson_interval(self.k, self.n)


@dataclass(frozen=True)
class Bar:
    """What must hold for the demo to have done its work."""

    name: str
    wanted: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Refusals:
    """How often the model answered null when asked at `alpha`, by kind of image, and why."""

    alpha: float
    share: Mapping[str, Share]
    reasons: Mapping[str, Mapping[str, int]]
    clean_bounds: tuple[float, float]


@dataclass(frozen=True)
class Findings:
    poison_found: Share
    found_by_attack: Mapping[str, Share]
    clean_lost: Share
    clean_lost_bounds: tuple[float, float]
    auroc: float
    accuracy: Mapping[str, Share]  # clean, attacked; of the most likely class, whether or not it was given out
    white_box: Mapping[str, Share]  # by attack, as the evaluate job measured
    refusals: Sequence[Refusals]  # by α
    alpha: float

    def bars(self) -> list[Bar]:
        strict = self.refusals[0].share
        return [
            _at_least("poison quarantined", self.poison_found, MIN_POISON_FOUND),
            _at_most(f"clean images lost at α = {self.alpha:g}", self.clean_lost, self.clean_lost_bounds[1]),
            _at_least("student's accuracy on clean test images", self.accuracy["clean"], MIN_ACCURACY),
            *(
                _at_most(f"clean test images refused at α = {told.alpha:g}", told.share["clean"], told.clean_bounds[1])
                for told in self.refusals
            ),
            _at_least("attacked test images refused", strict["attacked"], MIN_ATTACKED_REFUSED),
            _at_least("foreign images refused", strict["foreign"], MIN_FOREIGN_REFUSED),
        ]


def findings(answers: Answers, material: Material) -> Findings:
    result: Mapping[str, Any] = answers.harden.result or {}
    poisoned = {row.path: row for row in answers.verdicts if row.path in material.poisoned}
    clean = [row for row in answers.verdicts if row.path not in material.poisoned]
    predictions = next(iter(answers.predictions.values()))
    held_out = result["metrics"]["num_calibration"]
    lost = _quarantined(clean)
    return Findings(
        poison_found=_quarantined(list(poisoned.values())),
        found_by_attack={
            attack: _quarantined([row for path, row in poisoned.items() if material.poisoned[path] == attack])
            for attack in sorted(set(material.poisoned.values()))
        },
        clean_lost=lost,
        clean_lost_bounds=realised_rate_bounds(result["alpha"], result["num_calibration"], lost.n, CONFIDENCE),
        auroc=auroc([_score(row) for row in poisoned.values()], [_score(row) for row in clean]),
        accuracy={kind: _accuracy(predictions[kind], material.test_labels, answers) for kind in ("clean", "attacked")},
        white_box=_white_box(result),
        refusals=[_refusals(alpha, told, held_out) for alpha, told in answers.predictions.items()],
        alpha=result["alpha"],
    )


def _refusals(alpha: float, told: Mapping[str, Sequence[Prediction]], num_calibration: int) -> Refusals:
    share = {kind: _share(p.abstained for p in predictions) for kind, predictions in told.items()}
    bounds = realised_rate_bounds(alpha, num_calibration, share["clean"].n, CONFIDENCE)
    return Refusals(alpha, share, {kind: _reasons(predictions) for kind, predictions in told.items()}, bounds)


def _quarantined(rows: Sequence[Verdict]) -> Share:
    return _share(row.verdict == "quarantine" for row in rows)


def _share(holds: Any) -> Share:
    each = list(holds)
    return Share(sum(each), len(each))


def _score(row: Verdict) -> float:
    return -(row.p_value or 0.0)


def _accuracy(told: Sequence[Prediction], labels: Sequence[int], answers: Answers) -> Share:
    """Of the most likely class: what the student would say if it were made to answer."""
    classes = answers.model_card["classes"]
    best = (classes[max(range(len(p.probabilities)), key=p.probabilities.__getitem__)] for p in told)
    return _share(name == str(label) for name, label in zip(best, labels, strict=True))


def _white_box(result: Mapping[str, Any]) -> Mapping[str, Share]:
    rows = result["evaluation"]["attacks"]
    return {
        row["attack"]: Share(round(row["accuracy"] * row["n"]), row["n"])
        for row in rows
        if row.get("knowledge", "student") == "student" and row["attack"] != "none"
    }


def _reasons(told: Sequence[Prediction]) -> Mapping[str, int]:
    given = [p.reason for p in told if p.reason is not None]
    return {reason: given.count(reason) for reason in sorted(set(given))}


def _at_least(name: str, share: Share, least: float) -> Bar:
    return Bar(name, f"at least {least:.0%}", f"{share.value:.1%}", share.value >= least)


def _at_most(name: str, share: Share, most: float) -> Bar:
    return Bar(name, f"at most {most:.1%}", f"{share.value:.1%}", share.value <= most)
