"""What an evaluate job may be asked: which attacks, how large, how long, and what their attacker knows. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.spec_fields import EpsLinf, Probability, Seed, Spec

Knowledge = Literal["student", "transfer", "queries", "everything"]
"""The attacker has the student's weights; other networks only; answers only; the whole served stack."""

AttackName = Literal[
    "fgsm",
    "ifgsm",
    "pgd-cross-entropy",
    "pgd-margin",
    "pgd-temperature",
    "cw",
    "deepfool",
    "jsma",
    "transfer-teacher",
    "transfer-foreign",
    "square",
    "square-served",
    "adaptive",
    "adaptive-expectation",
]
KNOWLEDGE: dict[AttackName, Knowledge] = {
    "fgsm": "student",
    "ifgsm": "student",
    "pgd-cross-entropy": "student",
    "pgd-margin": "student",
    "pgd-temperature": "student",
    "cw": "student",
    "deepfool": "student",
    "jsma": "student",
    "transfer-teacher": "transfer",
    "transfer-foreign": "transfer",
    "square": "queries",
    "square-served": "queries",
    "adaptive": "everything",
    "adaptive-expectation": "everything",
}
CHEAP: frozenset[AttackName] = frozenset({"fgsm", "ifgsm", "pgd-margin", "transfer-teacher", "transfer-foreign"})
"""Tried on all images of the evaluation; the others on `costly_images` of them."""

SuiteName = Literal["quick", "standard", "full"]


@dataclass(frozen=True)
class Suite:
    """Attacks that go together, and what they may cost."""

    attacks: tuple[AttackName, ...]
    costly_images: int
    pgd_restarts: int
    queries: int
    adaptive_steps: int
    adaptive_restarts: int
    curve_images: int
    curve_steps: int


_QUICK: tuple[AttackName, ...] = (
    *("fgsm", "ifgsm", "pgd-margin", "pgd-cross-entropy"),
    *("transfer-teacher", "square", "adaptive"),
)
_STANDARD: tuple[AttackName, ...] = (
    *("fgsm", "ifgsm", "pgd-margin", "pgd-cross-entropy", "pgd-temperature", "deepfool"),
    *("transfer-teacher", "transfer-foreign", "square", "square-served", "adaptive"),
)
_FULL: tuple[AttackName, ...] = tuple(KNOWLEDGE)

SUITES: dict[SuiteName, Suite] = {
    "quick": Suite(_QUICK, 50, 1, 100, 30, 3, 100, 10),
    "standard": Suite(_STANDARD, 200, 2, 500, 50, 6, 200, 20),
    "full": Suite(_FULL, 500, 5, 2000, 100, 12, 500, 40),
}


class EvaluateSpec(Spec):
    """Parameters of an evaluate job. `suite` says what is tried and how hard; a value given replaces the suite's."""

    suite: SuiteName = Field("quick", description="quick adds little to a harden job; full takes hours on a CPU")
    attacks: tuple[AttackName, ...] | None = Field(None, description="in place of the suite's")
    knowledge: tuple[Knowledge, ...] | None = Field(None, description="only attackers who know this much")
    eps_linf: EpsLinf = 0.01
    step_linf: EpsLinf = 0.01
    steps: Annotated[int, Field(ge=1, le=500)] = 10
    eps_curve: tuple[EpsLinf, ...] | None = Field(
        None, max_length=12, description="of the security curve; None: ½, 1, 2, 4 and 8 times eps_linf; [] for none"
    )
    pgd_steps: Annotated[int, Field(ge=1, le=500)] = 40
    pgd_restarts: Annotated[int, Field(ge=1, le=20)] | None = None
    queries: Annotated[int, Field(ge=1, le=100_000)] | None = Field(None, description="of an image, by square attacks")
    adaptive_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    adaptive_restarts: Annotated[int, Field(ge=1, le=100)] | None = None
    jsma_features: Annotated[int, Field(ge=2)] = Field(112, description="that JSMA may change, as in Papernot 2016")
    max_images: Annotated[int, Field(ge=1)] = 1000
    costly_images: Annotated[int, Field(ge=1)] | None = Field(None, description="of them, for attacks that cost much")
    alpha: Probability | None = Field(None, description="None: the model's own")
    reform: bool = Field(
        False, description="the served model with its reformer on: the student sees each image's reconstruction"
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _something_to_try(self) -> Self:
        if not self.chosen:
            raise ValueError("no attack of these has an attacker who knows this much; name others")
        if self.attacks is not None and len(set(self.attacks)) != len(self.attacks):
            raise ValueError("name each attack once")
        return self

    @property
    def chosen(self) -> tuple[AttackName, ...]:
        """The attacks to try, in the order of the report."""
        named = SUITES[self.suite].attacks if self.attacks is None else self.attacks
        return tuple(
            name for name in KNOWLEDGE if name in named and (not self.knowledge or KNOWLEDGE[name] in self.knowledge)
        )

    @property
    def budget(self) -> Suite:
        """The suite with what was given laid over it."""
        suite = SUITES[self.suite]
        return Suite(
            self.chosen,
            self.costly_images or suite.costly_images,
            self.pgd_restarts or suite.pgd_restarts,
            self.queries or suite.queries,
            self.adaptive_steps or suite.adaptive_steps,
            self.adaptive_restarts or suite.adaptive_restarts,
            suite.curve_images,
            suite.curve_steps,
        )

    @property
    def curve(self) -> tuple[float, ...]:
        """The ε of the security curve, in order."""
        if self.eps_curve is None:
            return tuple(min(1.0, share * self.eps_linf) for share in (0.5, 1, 2, 4, 8))
        return tuple(sorted(set(self.eps_curve)))
