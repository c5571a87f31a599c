"""From a spec and what the attacker holds to the attacks that are tried.

n images: x float (n, c, h, w) in [0, 1]; y int64 (n,), the labels to move away from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.attacks.adaptive import Defence, adaptive_attack
from models.attacks.carlini_wagner import carlini_wagner
from models.attacks.deepfool import deepfool
from models.attacks.gradient import AttackLoss, fgsm, ifgsm, pgd
from models.attacks.saliency import jsma_untargeted
from models.attacks.square import Objective, square, square_attack
from models.attacks.transfer import transfer
from models.evaluate_specs import CHEAP, KNOWLEDGE, AttackName, EvaluateSpec, Knowledge
from models.images import to_uint8
from models.robustness.served import Answer

TRANSFER_STEPS = 10
CW_STEPS = 100
DEEPFOOL_STEPS = 50
FORWARD = 0.4
"""What an answer costs, in gradients."""

Perturb = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, eq=False)
class Target:
    """What is attacked, and what its attackers may hold; what is None is not there, and its attacks are left out.

    student: logits of x. answer: the served model, which abstains at `alpha`. stack: the same, differentiable.
    stack_in_expectation: the stack with dropout masks drawn from a generator at every call, for an attacker who does
    not know the served ones. teacher, foreign: networks that are not served. temperature: of the distillation.
    """

    student: nn.Module
    answer: Answer | None = None
    alpha: float | None = None
    stack: Defence | None = None
    stack_in_expectation: Callable[[torch.Generator], Defence] | None = None
    teacher: nn.Module | None = None
    foreign: Sequence[nn.Module] = ()
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Attack:
    """`perturb(x, y, rng)`; eps_linf: its box around x, None for [0, 1] alone. `cost` counts gradients an image."""

    name: AttackName
    knowledge: Knowledge
    eps_linf: float | None
    cost: float
    perturb: Perturb

    @property
    def costly(self) -> bool:
        """Whether it is tried on a part of the images only."""
        return self.name not in CHEAP


def attacks(spec: EvaluateSpec, target: Target) -> tuple[Attack, ...]:
    """Those of the spec that this target has what it takes for, in the order of the report."""
    made: dict[AttackName, tuple[float, Perturb]] = {}
    for kind in (_by_gradient, _by_proxy, _by_answers, _whole):
        made |= kind(spec, target)
    return tuple(
        Attack(name, KNOWLEDGE[name], None if name in ("deepfool", "jsma") else spec.eps_linf, *made[name])
        for name in spec.chosen
        if name in made
    )


def pgd_attack(spec: EvaluateSpec, target: Target, loss: AttackLoss, *, temperature: float = 1.0) -> Perturb:
    """Steps of 2.5 ε/steps (Madry et al. 2018)."""
    return lambda x, y, rng: pgd(
        *(target.student, x, y),
        eps_linf=spec.eps_linf,
        step_linf=2.5 * spec.eps_linf / spec.pgd_steps,
        steps=spec.pgd_steps,
        restarts=spec.budget.pgd_restarts,
        loss=loss,
        temperature=temperature,
        rng=rng,
    )


def _by_gradient(spec: EvaluateSpec, target: Target) -> dict[AttackName, tuple[float, Perturb]]:
    """FGSM and I-FGSM as in Badjie et al.; Carlini–Wagner as in Hlihor et al.; JSMA as in Papernot et al."""
    student, eps_linf = target.student, spec.eps_linf
    ascents = spec.pgd_steps * spec.budget.pgd_restarts
    return {
        "fgsm": (1, lambda x, y, _: fgsm(student, x, y, eps_linf=eps_linf)),
        "ifgsm": (
            spec.steps,
            lambda x, y, _: ifgsm(student, x, y, eps_linf=eps_linf, step_linf=spec.step_linf, steps=spec.steps),
        ),
        "pgd-cross-entropy": (ascents, pgd_attack(spec, target, "cross_entropy")),
        "pgd-margin": (ascents, pgd_attack(spec, target, "margin")),
        "pgd-temperature": (
            ascents,
            pgd_attack(spec, target, "cross_entropy", temperature=hottest(target.temperature)),
        ),
        "cw": (CW_STEPS, lambda x, y, _: carlini_wagner(student, x, y, eps_linf=reach(eps_linf), steps=CW_STEPS)),
        "deepfool": (5 * DEEPFOOL_STEPS, lambda x, y, _: deepfool(student, x, y, steps=DEEPFOOL_STEPS)),
        "jsma": (
            spec.jsma_features,
            lambda x, y, rng: jsma_untargeted(
                student, x, y, max_features=spec.jsma_features, output="log_probabilities", rng=rng
            ),
        ),
    }


def reach(eps_linf: float) -> float:
    """The box of an attack on levels: what one in floats reaches once its image is rounded to 8 bits, if more."""
    return max(eps_linf, round(eps_linf * 255) / 255)


def hottest(temperature: float) -> float:
    """At which a softmax that was distilled at this temperature, or at none, does not saturate."""
    return max(temperature, 20.0)


def _by_proxy(spec: EvaluateSpec, target: Target) -> dict[AttackName, tuple[float, Perturb]]:
    def through(sources: Sequence[nn.Module]) -> tuple[float, Perturb]:
        step_linf = 2.5 * spec.eps_linf / TRANSFER_STEPS
        return TRANSFER_STEPS * len(sources), lambda x, y, _: transfer(
            sources, x, y, eps_linf=spec.eps_linf, step_linf=step_linf, steps=TRANSFER_STEPS
        )

    made: dict[AttackName, tuple[float, Perturb]] = {}
    if target.teacher is not None:
        made["transfer-teacher"] = through([target.teacher])
    if target.foreign:
        made["transfer-foreign"] = through(target.foreign)
    return made


def _by_answers(spec: EvaluateSpec, target: Target) -> dict[AttackName, tuple[float, Perturb]]:
    queries, eps_linf = spec.budget.queries, reach(spec.eps_linf)
    made: dict[AttackName, tuple[float, Perturb]] = {
        "square": (
            FORWARD * queries,
            lambda x, y, rng: square_attack(target.student, x, y, eps_linf=eps_linf, queries=queries, rng=rng),
        )
    }
    if target.answer is not None and target.alpha is not None:
        answer, alpha = target.answer, target.alpha
        made["square-served"] = (
            2 * FORWARD * queries,
            lambda x, y, rng: square(
                _answered_wrongly(answer, alpha, y), x, eps_linf=eps_linf, queries=queries, rng=rng
            ),
        )
    return made


def _answered_wrongly(answer: Answer, alpha: float, y: Tensor) -> Objective:
    """The lesser of the margin and of p - α, of what clients are told: calibrated probabilities in float32, and p."""

    def objective(tried: Tensor, rows: Tensor) -> Tensor:
        decision = answer(to_uint8(tried))
        told = torch.from_numpy(decision.probabilities.astype(np.float32)).to(tried.device)
        true = told.gather(1, y[rows][:, None]).squeeze(1)
        wrong = told.scatter(1, y[rows][:, None], -1.0).amax(1)
        p_value = torch.from_numpy(decision.p_value).to(tried.device)
        return torch.minimum(wrong - true, p_value - alpha).float()

    return objective


def _whole(spec: EvaluateSpec, target: Target) -> dict[AttackName, tuple[float, Perturb]]:
    budget = spec.budget

    def against(stack: Callable[[torch.Generator], Defence]) -> tuple[float, Perturb]:
        return 2.0 * budget.adaptive_steps * budget.adaptive_restarts, lambda x, y, rng: adaptive_attack(
            *(stack(rng), x, y),
            eps_linf=reach(spec.eps_linf),
            steps=budget.adaptive_steps,
            restarts=budget.adaptive_restarts,
            rng=rng,
        )

    made: dict[AttackName, tuple[float, Perturb]] = {}
    if target.stack is not None:
        known = target.stack
        made["adaptive"] = against(lambda _: known)
    if target.stack_in_expectation is not None:
        made["adaptive-expectation"] = against(target.stack_in_expectation)
    return made
