"""What attacks do to a classifier, with and without abstention, and signs that its gradients hide the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.abstention import AbstentionCalibration, Decision, decide
from models.attacks.gradient import evaluating, fgsm, ifgsm, pgd, to_8bit
from models.calibration import Floats, wilson_interval
from models.classifiers import Classifier
from models.device import device_of
from models.images import Images, check_images, chunks, to_float, to_uint8
from models.seeding import derive_seed
from models.specs import EvaluateSpec
from models.training import Watch
from models.uncertainty import mc_probabilities

BATCH_SIZE = 64
ZERO_GRADIENTS_ALLOWED = 0.01
CROSS_ENTROPY_LAG_ALLOWED = 0.1

Answer = Callable[[Images], Decision]
"""The served model: uint8 images (n, h, w, c) to answers and abstentions."""


@dataclass(frozen=True)
class Share:
    """`count` of `n`, with its 95 % Wilson interval."""

    count: int
    n: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Served:
    """What the served model makes of the images: it abstains, answers rightly or answers wrongly."""

    abstained: Share
    correct: Share
    wrong: Share
    reasons: dict[str, int]


@dataclass(frozen=True)
class AttackRow:
    """One attack's result on n images, all rounded to 8 bits.

    accuracy: of the bare classifier. success: of the images it had right, those that the attack turned.
    mean_linf, mean_l2: of the perturbation as rounded, in units of the pixel range. served: None without a guard.
    """

    attack: str
    accuracy: Share
    success: Share
    mean_linf: float
    mean_l2: float
    served: Served | None


@dataclass(frozen=True)
class Robustness:
    """Rows ("none" first) and the signs of gradient masking: {"flag", "raised", "measured", "meaning"}."""

    rows: list[AttackRow]
    masking: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Rows flat: {attack, n, accuracy, low, high, attack_success, success_low, success_high, …}."""
        return {"rows": [_flat(row) for row in self.rows], "gradient_masking": self.masking}


@dataclass(frozen=True)
class Attack:
    """`perturb(model, x, y, rng)` in the eps box around x; `cost` counts its gradients."""

    name: str
    cost: int
    perturb: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class _Outcome:
    """Of one attack on n images, row by row."""

    right: npt.NDArray[np.bool_]
    linf: npt.NDArray[np.float64]
    l2: npt.NDArray[np.float64]
    decided: list[Decision]


def guard(
    student: Classifier,
    masks: npt.NDArray[np.float32],
    calibration: AbstentionCalibration,
    detector_score: Callable[[Images], Floats] | None,
    *,
    alpha: float,
) -> Answer:
    """The student as it is served, in torch: MC dropout under `masks`, the detector's scores, abstention at `alpha`."""

    def answer(images: Images) -> Decision:
        scores = None if detector_score is None else detector_score(images)
        return decide(mc_probabilities(student, images, masks), scores, calibration, alpha=alpha)

    return answer


def attacks(spec: EvaluateSpec) -> tuple[Attack, ...]:
    """FGSM and I-FGSM as in Badjie et al., and PGD on the margin with steps of 2.5 eps/steps (Madry et al. 2018)."""
    eps_linf, steps = spec.eps_linf, spec.pgd_steps
    return (
        Attack("fgsm", 1, lambda model, x, y, _: fgsm(model, x, y, eps_linf=eps_linf)),
        Attack(
            "ifgsm",
            spec.steps,
            lambda model, x, y, _: ifgsm(model, x, y, eps_linf=eps_linf, step_linf=spec.step_linf, steps=spec.steps),
        ),
        Attack(
            "pgd-margin",
            steps * spec.pgd_restarts,
            lambda model, x, y, rng: pgd(
                model,
                x,
                y,
                eps_linf=eps_linf,
                step_linf=2.5 * eps_linf / steps,
                steps=steps,
                restarts=spec.pgd_restarts,
                loss="margin",
                rng=rng,
            ),
        ),
    )


def accuracy_under_attack(
    model: nn.Module,
    images: Images,
    labels: npt.NDArray[np.int64],
    spec: EvaluateSpec,
    *,
    watch: Watch,
    answer: Answer | None = None,
) -> Robustness:
    """Attack `model` (logits of float x) on at most `spec.max_images` of the images, drawn from `spec.seed`.

    images: uint8 (n, h, w, c); labels: (n,) int64. The attacker knows the classifier, not the detector or the masks.
    watch counts gradients of images. answer: also tell what the served model does with the attacked images.
    Raises NotImages, ValueError without images or with other labels than images, and Stopped.
    """
    check_images(images)
    if len(images) == 0 or labels.shape != images.shape[:1]:
        raise ValueError(f"want as many labels as images and at least one, not {labels.shape} and {len(images)}")
    chosen = np.random.default_rng(derive_seed(spec.seed, "images")).permutation(len(images))[: spec.max_images]
    images, labels = images[np.sort(chosen)], labels[np.sort(chosen)]
    tried = (Attack("none", 1, lambda _model, x, _y, _rng: x), *attacks(spec))
    total, done = sum(attack.cost for attack in tried) * len(images), 0
    outcomes: dict[str, _Outcome] = {}
    for attack in tried:
        parts = []
        for rows in chunks(len(images), BATCH_SIZE):
            rng = torch.Generator(device_of(model)).manual_seed(derive_seed(spec.seed, attack.name, rows.start))
            parts.append(_attacked(model, images[rows], labels[rows], attack, rng, answer))
            done += attack.cost * (rows.stop - rows.start)
            watch.advance(done, total)
        outcomes[attack.name] = _joined(parts)
    rows_of = [_row(name, outcome, outcomes["none"].right, labels) for name, outcome in outcomes.items()]
    return Robustness(rows_of, _masking(outcomes, zero_gradient_share(model, images, labels)))


def zero_gradient_share(model: nn.Module, images: Images, labels: npt.NDArray[np.int64]) -> Share:
    """Images whose cross-entropy gradient is exactly 0: a saturated softmax, which no attack on the loss can climb."""
    zero, device = 0, device_of(model)
    with evaluating(model):
        for rows in chunks(len(images), BATCH_SIZE):
            x = to_float(images[rows], device).requires_grad_(True)
            y = torch.from_numpy(labels[rows]).to(device)
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
            zero += int((gradient.flatten(1) == 0).all(dim=1).sum())
    return share(zero, len(images))


def share(count: int, n: int) -> Share:
    """A share with its interval; 0 in (0, 1) where n = 0."""
    low, high = wilson_interval(count, n)
    return Share(count, n, count / n if n else 0.0, low, high)


def _attacked(
    model: nn.Module,
    images: Images,
    labels: npt.NDArray[np.int64],
    attack: Attack,
    rng: torch.Generator,
    answer: Answer | None,
) -> _Outcome:
    device = device_of(model)
    x, y = to_float(images, device), torch.from_numpy(labels).to(device)
    x_adv = to_8bit(attack.perturb(model, x, y, rng))
    with torch.no_grad(), evaluating(model):
        right = (model(x_adv).argmax(dim=1) == y).cpu().numpy()
    delta = (x_adv - x).flatten(1).double().cpu().numpy()
    decided = [] if answer is None else [answer(to_uint8(x_adv))]
    return _Outcome(right, np.abs(delta).max(axis=1), np.sqrt((delta**2).sum(axis=1)), decided)


def _joined(parts: list[_Outcome]) -> _Outcome:
    return _Outcome(
        np.concatenate([part.right for part in parts]),
        np.concatenate([part.linf for part in parts]),
        np.concatenate([part.l2 for part in parts]),
        [decision for part in parts for decision in part.decided],
    )


def _row(name: str, outcome: _Outcome, right_before: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> AttackRow:
    return AttackRow(
        attack=name,
        accuracy=share(int(outcome.right.sum()), len(outcome.right)),
        success=share(int((right_before & ~outcome.right).sum()), int(right_before.sum())),
        mean_linf=float(outcome.linf.mean()),
        mean_l2=float(outcome.l2.mean()),
        served=_served(outcome.decided, labels) if outcome.decided else None,
    )


def _served(decided: list[Decision], labels: npt.NDArray[np.int64]) -> Served:
    abstained = np.concatenate([decision.abstained for decision in decided])
    right = np.concatenate([decision.label_index for decision in decided]) == labels
    reasons = Counter(reason for decision in decided for reason in decision.reason if reason is not None)
    n = len(labels)
    return Served(
        abstained=share(int(abstained.sum()), n),
        correct=share(int((right & ~abstained).sum()), n),
        wrong=share(int((~right & ~abstained).sum()), n),
        reasons={str(reason): count for reason, count in reasons.items()},
    )


def _masking(outcomes: dict[str, _Outcome], zero: Share) -> list[dict[str, Any]]:
    """Source: Athalye et al. 2018, section 3.1 (the signs of obfuscated gradients)."""
    single, iterated, margin = (~outcomes[name].right for name in ("fgsm", "ifgsm", "pgd-margin"))
    only_single, only_iterated = int((single & ~iterated).sum()), int((iterated & ~single).sum())
    lag = float(margin.mean() - iterated.mean())
    return [
        {
            "flag": "iterative_weaker_than_single_step",
            "raised": wilson_interval(only_single, only_single + only_iterated)[0] > 0.5,
            "measured": {"fooled_by_fgsm_only": only_single, "fooled_by_ifgsm_only": only_iterated},
            "meaning": "more steps of the same attack should never do less",
        },
        {
            "flag": "zero_gradients",
            "raised": zero.share > ZERO_GRADIENTS_ALLOWED,
            "measured": asdict(zero),
            "meaning": "the softmax is saturated: attacks on the cross-entropy see no gradient and seem to fail",
        },
        {
            "flag": "cross_entropy_far_behind_margin",
            "raised": lag > CROSS_ENTROPY_LAG_ALLOWED,
            "measured": {"fooled_by_pgd_margin_over_ifgsm": lag},
            "meaning": "an attack on the logits does much more than one on the loss: believe the former",
        },
    ]


def _flat(row: AttackRow) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "attack": row.attack,
        "n": row.accuracy.n,
        "accuracy": row.accuracy.share,
        "low": row.accuracy.low,
        "high": row.accuracy.high,
        "attack_success": row.success.share,
        "success_low": row.success.low,
        "success_high": row.success.high,
        "success_n": row.success.n,
        "mean_linf": row.mean_linf,
        "mean_l2": row.mean_l2,
    }
    if row.served is not None:
        for name in ("abstained", "correct", "wrong"):
            part: Share = getattr(row.served, name)
            flat |= {f"served_{name}": part.share, f"served_{name}_low": part.low, f"served_{name}_high": part.high}
        flat["served_reasons"] = row.served.reasons
    return flat
