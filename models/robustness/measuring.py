"""An evaluation: every attack of a spec on one classifier, bare and as it is served, with the signs of masking."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from models.evaluate_specs import AttackName, EvaluateSpec
from models.images import Images, check_images
from models.robustness.curves import CurvePoint, curve_cost, security_curve
from models.robustness.geometry import Robustness, robustness
from models.robustness.masking import Sign, signs
from models.robustness.outcomes import AttackRow, Outcome, attacked, row_of
from models.robustness.probes import Probes, probe, probe_cost
from models.robustness.served import Answer
from models.robustness.suites import Attack, Target, attacks
from models.seeding import derive_seed
from models.training import Watch

LEAST: dict[AttackName, str] = {"deepfool": "l2", "cw": "l2", "jsma": "l0"}
"""Attacks that look for the least change, and in which norm."""


@dataclass(frozen=True)
class Evaluation:
    """Rows ("none" first), signs of gradient masking, the security curve, and how far the nearest mistakes are.

    outcomes: what each attack made of which rows of the images given, and what was said of it; for eyes.
    """

    rows: list[AttackRow]
    masking: list[Sign]
    curve: list[CurvePoint] = field(default_factory=list)
    least: dict[str, Robustness] = field(default_factory=dict)
    probes: Probes | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """{rows, gradient_masking, curve, robustness, gradient_amplitude}, all numbers."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "gradient_masking": self.masking,
            "curve": [point.to_json() for point in self.curve],
            "robustness": {name: asdict(least) for name, least in self.least.items()},
            "gradient_amplitude": None if self.probes is None else asdict(self.probes.amplitude),
        }


def accuracy_under_attack(
    model: nn.Module,
    images: Images,
    labels: npt.NDArray[np.int64],
    spec: EvaluateSpec,
    *,
    watch: Watch,
    answer: Answer | None = None,
) -> Evaluation:
    """`evaluate` for attackers who have the model's weights, or other networks' answers, and nothing else."""
    return evaluate(Target(model, answer=answer, alpha=spec.alpha), images, labels, spec, watch=watch)


def evaluate(
    target: Target, images: Images, labels: npt.NDArray[np.int64], spec: EvaluateSpec, *, watch: Watch
) -> Evaluation:
    """Attack the target on at most `spec.max_images` of the images, drawn from `spec.seed`.

    images: uint8 (n, h, w, c); labels: (n,) int64. The outcomes' rows are those of the images as they were given.
    watch counts gradients of images. Raises NotImages, ValueError without images or with other labels than images,
    and Stopped.
    """
    check_images(images)
    if len(images) == 0 or labels.shape != images.shape[:1]:
        raise ValueError(f"want as many labels as images and at least one, not {labels.shape} and {len(images)}")
    chosen = np.random.default_rng(derive_seed(spec.seed, "images")).permutation(len(images))[: spec.max_images]
    images, labels, tried = images[chosen], labels[chosen], attacks(spec, target)
    few = min(spec.budget.costly_images, len(images))
    every, some = np.arange(len(images)), np.arange(few)
    tally = _Tally(watch, _cost(tried, len(images), few) + curve_cost(spec, target, len(images)))
    outcomes: dict[str, Outcome] = {
        "none": attacked(
            *(target, images, labels, every, lambda x, _y, _rng: x), seed=(spec.seed, "none"), spent=tally.spend
        )
    }
    for attack in tried:
        outcomes[attack.name] = attacked(
            *(target, images, labels, some if attack.costly else every, attack.perturb),
            seed=(spec.seed, attack.name),
            spent=lambda count, cost=attack.cost: tally.spend(count * cost),  # type: ignore[misc]
        )
    probes = probe(target.student, images, labels, few=few, eps_linf=spec.eps_linf, seed=spec.seed)
    tally.spend(probe_cost(few, len(images)))
    curve = security_curve(target, images, labels, spec, spent=tally.spend)
    right = outcomes["none"].right
    return Evaluation(
        rows=[_row("none", None, outcomes["none"], right, labels)]
        + [_row(attack.name, attack, outcomes[attack.name], right, labels) for attack in tried],
        masking=signs(outcomes, probes),
        curve=curve,
        least={name: _least(norm, outcomes[name], right) for name, norm in LEAST.items() if name in outcomes},
        probes=probes,
        outcomes={name: replace(outcome, rows=chosen[outcome.rows]) for name, outcome in outcomes.items()},
    )


def _cost(tried: tuple[Attack, ...], images: int, few: int) -> float:
    return images + sum(a.cost * (few if a.costly else images) for a in tried) + probe_cost(few, images)


def _row(
    name: str,
    attack: Attack | None,
    outcome: Outcome,
    right: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
) -> AttackRow:
    knowledge, eps_linf = ("none", None) if attack is None else (attack.knowledge, attack.eps_linf)
    return row_of(name, outcome, right, labels, knowledge=knowledge, eps_linf=eps_linf)


def _least(norm: str, outcome: Outcome, right_before: npt.NDArray[np.bool_]) -> Robustness:
    before = right_before[outcome.rows]
    lengths = getattr(outcome.norms, norm)
    return robustness(lengths[before], outcome.fooled[before], norm=norm)


class _Tally:
    """Adds up what is spent for the watch, in whole gradients."""

    def __init__(self, watch: Watch, total: float) -> None:
        self._watch, self._total, self._spent = watch, total, 0.0

    def spend(self, gradients: float) -> None:
        self._spent += gradients
        self._watch.advance(min(round(self._spent), round(self._total)), round(self._total))
