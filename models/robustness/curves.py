"""The security curve: what is right, abstained from and wrong as the attacker's box grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.evaluate_specs import KNOWLEDGE, AttackName, EvaluateSpec
from models.images import Images
from models.robustness.outcomes import attacked, served_json
from models.robustness.served import Served, served
from models.robustness.shares import Share, share
from models.robustness.suites import Target, attacks

ON_THE_CURVE: tuple[AttackName, ...] = ("pgd-margin", "adaptive")


@dataclass(frozen=True)
class CurvePoint:
    """One attack at one ε on n images."""

    attack: AttackName
    eps_linf: float
    accuracy: Share
    served: Served | None

    def to_json(self) -> dict[str, Any]:
        flat: dict[str, Any] = {
            "attack": self.attack,
            "knowledge": KNOWLEDGE[self.attack],
            "eps_linf": self.eps_linf,
            "n": self.accuracy.n,
            "accuracy": self.accuracy.share,
            "low": self.accuracy.low,
            "high": self.accuracy.high,
        }
        return flat | (served_json(self.served) if self.served is not None else {})


def curve_specs(spec: EvaluateSpec) -> list[EvaluateSpec]:
    """Of each ε: the attacks of the curve that the spec has, shortened to the curve's steps."""
    names = tuple(name for name in ON_THE_CURVE if name in spec.chosen and _affordable(name, spec))
    steps = spec.budget.curve_steps
    changes = {"attacks": names, "knowledge": None, "pgd_steps": steps, "pgd_restarts": 1, "adaptive_steps": steps}
    return [spec.model_copy(update={**changes, "eps_linf": eps}) for eps in spec.curve] if names else []


def curve_cost(spec: EvaluateSpec, target: Target, images: int) -> float:
    """In gradients."""
    count = min(images, spec.budget.curve_images)
    return sum(attack.cost for each in curve_specs(spec) for attack in attacks(each, target)) * count


def security_curve(
    target: Target,
    images: Images,
    labels: npt.NDArray[np.int64],
    spec: EvaluateSpec,
    *,
    spent: Callable[[float], None],
) -> list[CurvePoint]:
    """On the first `curve_images` of the images. spent: told the gradients of each batch. Raises Stopped."""
    rows = np.arange(min(len(images), spec.budget.curve_images))
    points = []
    for each in curve_specs(spec):
        for attack in attacks(each, target):
            cost, seed = attack.cost, (spec.seed, f"curve-{attack.name}-{each.eps_linf:g}")
            outcome = attacked(
                *(target, images, labels, rows, attack.perturb),
                seed=seed,
                spent=lambda count, cost=cost: spent(count * cost),  # type: ignore[misc]
            )
            told = served(outcome.decided, labels[rows]) if outcome.decided else None
            right = share(int(outcome.right.sum()), len(rows))
            points.append(CurvePoint(attack.name, each.eps_linf, right, told))
    return points


def _affordable(name: AttackName, spec: EvaluateSpec) -> bool:
    """The whole stack is attacked along the curve only where time was asked for."""
    return name != "adaptive" or spec.suite != "quick"
