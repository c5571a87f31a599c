"""What an evaluate job hands to its report, and the rows of its attacks read with care."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.reports.page import FactsError
from worker.reports.pictures import Picture

NO_ATTACK = "none"
_NAMES = {
    NO_ATTACK: "no attack",
    "fgsm": "FGSM",
    "ifgsm": "I-FGSM",
    "pgd": "PGD",
    "pgd-margin": "PGD with the margin loss",
    "pgd-cross-entropy": "PGD with cross-entropy",
    "pgd-temperature": "PGD at a high temperature",
    "cw": "Carlini–Wagner",
    "jsma": "JSMA",
    "deepfool": "DeepFool",
    "transfer-teacher": "transfer from the teacher",
    "transfer-foreign": "transfer from foreign networks",
    "square": "Square attack on the student",
    "square-served": "Square attack on the served model",
    "adaptive": "adaptive attack on the whole stack",
    "adaptive-expectation": "adaptive attack, dropout masks unknown",
}
KNOWLEDGE = {
    "student": "the student's weights",
    "transfer": "other networks only",
    "queries": "answers only",
    "everything": "everything",
}
"""What an attacker has in his hands, in words."""


@dataclass(frozen=True, eq=False)
class AttackExample:
    """One image before and after an attack; pictures are uint8 (h, w, c).

    before, after: what the bare student, without dropout, makes of each. answer: what the served model says to the
    attacked image, None where it abstains for `reason`; where both are None the page does not speak of it.
    """

    attack: str
    original: Picture
    attacked: Picture
    label: str
    before: str
    after: str
    answer: str | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class EvaluateFacts:
    """Outcome of an evaluate job."""

    model: str
    dataset: str
    job_id: str
    spec: Mapping[str, Any]
    """The whole EvaluateSpec as JSON."""
    rows: Sequence[Mapping[str, Any]]
    """As models.robustness gives them, "none" first: {attack, n, accuracy, low, high, attack_success, success_low,
    success_high, {mean_linf, mean_l2}[_low, _high]}; where told knowledge, eps_linf, {mean_l0, code_cosine,
    code_norm_ratio}[_low, _high]; and where the served model was tried served_{abstained, correct, wrong}[_low, _high]
    and served_reasons."""
    flags: Sequence[Mapping[str, Any] | str]
    """Signs of gradient masking: {flag, raised, measured, meaning}, or a raised one as a sentence."""
    clean: Mapping[str, Any]
    """More numbers about the unattacked images, by name."""
    examples: Sequence[AttackExample]
    warnings: Sequence[str]
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[Mapping[str, Any]] = ()
    """Points of the security curve: {attack, eps_linf, n, accuracy, low, high} and served_… as in rows."""
    least: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of each attack that looks for the least change: {norm, change: {mean, low, high, n}, fooled: a share}."""
    amplitude: Mapping[str, Any] | None = None
    """Of the probabilities' gradients: {mean, low, high, n}."""

    def __post_init__(self) -> None:
        if not any(row.get("attack") != NO_ATTACK for row in self.rows):
            raise FactsError("an evaluate report needs at least one attack")


@dataclass(frozen=True)
class Estimate:
    """A share or a mean with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Served:
    """What the served model did with the images, shares of all of them, and why it abstained."""

    correct: Estimate
    abstained: Estimate
    wrong: Estimate
    reasons: Mapping[str, int]


@dataclass(frozen=True)
class AttackRow:
    """One attack on n images; accuracy and success are the bare student's."""

    attack: str
    n: int
    accuracy: Estimate
    success: Estimate
    mean_linf: Estimate
    mean_l2: Estimate
    served: Served | None
    knowledge: str = "student"
    eps_linf: float | None = None
    mean_l0: Estimate | None = None
    code_cosine: Estimate | None = None
    code_norm_ratio: Estimate | None = None
    code_n: int | None = None

    @property
    def knows(self) -> str:
        return KNOWLEDGE.get(self.knowledge, self.knowledge)

    @property
    def name(self) -> str:
        return attack_name(self.attack)

    @property
    def is_attack(self) -> bool:
        return self.attack != NO_ATTACK


@dataclass(frozen=True)
class Point:
    """One attack at one ε on n images."""

    attack: str
    eps_linf: float
    n: int
    accuracy: Estimate
    served: Served | None

    @property
    def name(self) -> str:
        return attack_name(self.attack)


@dataclass(frozen=True)
class Sign:
    """A sign of gradient masking, looked for and raised or not."""

    name: str
    raised: bool
    meaning: str
    measured: Mapping[str, Any]


def attack_name(attack: str) -> str:
    return _NAMES.get(attack, attack)


def read_rows(rows: Sequence[Mapping[str, Any]]) -> list[AttackRow]:
    """Raises FactsError where a row lacks a number."""
    return [_row(row) for row in rows]


def read_curve(points: Sequence[Mapping[str, Any]]) -> list[Point]:
    return [
        Point(
            attack=str(point["attack"]),
            eps_linf=float(point["eps_linf"]),
            n=int(point["n"]),
            accuracy=Estimate(float(point["accuracy"]), float(point["low"]), float(point["high"])),
            served=_served(point) if "served_wrong" in point else None,
        )
        for point in points
    ]


def read_signs(flags: Sequence[Mapping[str, Any] | str]) -> list[Sign]:
    return [_sign(flag) for flag in flags]


def _row(row: Mapping[str, Any]) -> AttackRow:
    try:
        return AttackRow(
            attack=str(row["attack"]),
            n=int(row["n"]),
            accuracy=Estimate(float(row["accuracy"]), float(row["low"]), float(row["high"])),
            success=Estimate(float(row["attack_success"]), float(row["success_low"]), float(row["success_high"])),
            mean_linf=_estimate(row, "mean_linf"),
            mean_l2=_estimate(row, "mean_l2"),
            served=_served(row) if "served_wrong" in row else None,
            knowledge=str(row.get("knowledge", "student")),
            eps_linf=None if row.get("eps_linf") is None else float(row["eps_linf"]),
            code_n=None if row.get("code_cosine_n") is None else int(row["code_cosine_n"]),
            **{name: _estimate(row, name) for name in ("mean_l0", "code_cosine", "code_norm_ratio") if name in row},
        )
    except KeyError as missing:
        raise FactsError(f"the row of attack {row.get('attack')!r} lacks {missing.args[0]!r}") from missing


def _estimate(row: Mapping[str, Any], name: str) -> Estimate:
    return Estimate(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))


def _served(row: Mapping[str, Any]) -> Served:
    correct, abstained, wrong = (_estimate(row, f"served_{part}") for part in ("correct", "abstained", "wrong"))
    return Served(correct, abstained, wrong, dict(row.get("served_reasons") or {}))


def _sign(flag: Mapping[str, Any] | str) -> Sign:
    if isinstance(flag, str):
        return Sign(flag, raised=True, meaning=flag, measured={})
    name = str(flag["flag"])
    return Sign(name, bool(flag["raised"]), str(flag.get("meaning") or name), flag.get("measured") or {})
