"""What an attack did, image by image, and the row of the report that it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.abstention import Decision
from models.attacks.gradient import evaluating, to_8bit
from models.device import device_of
from models.images import Images, chunks, to_float, to_uint8
from models.robustness.geometry import CodeShift, Norms, code_shift, norms
from models.robustness.served import Served, harmed, served
from models.robustness.shares import Mean, Share, mean, share
from models.robustness.suites import Perturb, Target
from models.seeding import derive_seed

BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class Outcome:
    """Of one attack on n images. rows: (n,), where they lie among all images of the evaluation.

    student, right: (n,), the bare classifier's answers, and where they are right. decided: the served model's, batch by
    batch. harmed: (n,), where it answers, and wrongly; None where there is none.
    """

    rows: npt.NDArray[np.int64]
    images: Images
    student: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    harmed: npt.NDArray[np.bool_] | None
    norms: Norms
    code: CodeShift | None
    decided: list[Decision]

    @property
    def fooled(self) -> npt.NDArray[np.bool_]:
        return ~self.right


@dataclass(frozen=True)
class AttackRow:
    """One attack's result on n images, all rounded to 8 bits.

    accuracy: of the bare classifier. success: of the images it had right, those that the attack turned.
    linf, l2, l0: of the perturbation as rounded; lengths in units of the pixel range, L0 in features.
    served: None without a guard. code: of the classifier's features, None where it has none to look at.
    eps_linf: the box, None where there was none.
    """

    attack: str
    accuracy: Share
    success: Share
    linf: Mean
    l2: Mean
    l0: Mean
    served: Served | None
    knowledge: str = "student"
    eps_linf: float | None = None
    code: CodeShift | None = None

    def to_json(self) -> dict[str, Any]:
        """Flat: {attack, knowledge, eps_linf, n, accuracy, low, high, attack_success, success_low, …}.

        Each mean is there as {name}, {name}_low, {name}_high and {name}_n.
        """
        flat: dict[str, Any] = {
            "attack": self.attack,
            "knowledge": self.knowledge,
            "eps_linf": self.eps_linf,
            "n": self.accuracy.n,
            "accuracy": self.accuracy.share,
            "low": self.accuracy.low,
            "high": self.accuracy.high,
            "attack_success": self.success.share,
            "success_low": self.success.low,
            "success_high": self.success.high,
            "success_n": self.success.n,
        }
        means = {"mean_linf": self.linf, "mean_l2": self.l2, "mean_l0": self.l0}
        if self.code is not None:
            means |= {"code_cosine": self.code.cosine, "code_norm_ratio": self.code.norm_ratio}
        for name, found in means.items():
            flat |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_n": found.n}
        return flat | (served_json(self.served) if self.served is not None else {})


def served_json(told: Served) -> dict[str, Any]:
    flat: dict[str, Any] = {"served_reasons": told.reasons}
    for name in ("abstained", "correct", "wrong"):
        part: Share = getattr(told, name)
        flat |= {f"served_{name}": part.share, f"served_{name}_low": part.low, f"served_{name}_high": part.high}
    return flat


def attacked(
    target: Target,
    images: Images,
    labels: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    perturb: Perturb,
    *,
    seed: tuple[int, str],
    spent: Callable[[int], None],
) -> Outcome:
    """Attack these rows of the images batch by batch. spent: told how many images each batch had."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    decided: list[Decision] = []
    device = device_of(target.student)
    for batch in chunks(len(rows), BATCH_SIZE):
        here = rows[batch]
        x, y = to_float(images[here], device), torch.from_numpy(labels[here]).to(device)
        rng = torch.Generator(device).manual_seed(derive_seed(seed[0], seed[1], batch.start))
        x_adv = to_8bit(perturb(x, y, rng))
        with torch.no_grad(), evaluating(target.student):
            parts.append((x, x_adv, target.student(x_adv).argmax(dim=1)))
        decided += [] if target.answer is None else [target.answer(to_uint8(x_adv))]
        spent(len(here))
    x, x_adv, answered = (torch.cat(part) for part in zip(*parts, strict=True))
    student = answered.cpu().numpy()
    return Outcome(
        rows=rows,
        images=to_uint8(x_adv),
        student=student,
        right=student == labels[rows],
        harmed=harmed(decided, labels[rows]) if decided else None,
        norms=norms(x, x_adv),
        code=_code(target, x, x_adv),
        decided=decided,
    )


def _code(target: Target, x: Tensor, x_adv: Tensor) -> CodeShift | None:
    trunk = getattr(target.student, "trunk", None)
    if trunk is None:
        return None
    with evaluating(target.student):
        return code_shift(
            lambda part: torch.cat([trunk(part[rows]) for rows in chunks(len(part), BATCH_SIZE)]), x, x_adv
        )


def row_of(
    name: str,
    outcome: Outcome,
    right_before: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
    *,
    knowledge: str,
    eps_linf: float | None,
) -> AttackRow:
    """right_before: (n,) of all images of the evaluation; labels alike."""
    before = right_before[outcome.rows]
    return AttackRow(
        attack=name,
        accuracy=share(int(outcome.right.sum()), len(outcome.right)),
        success=share(int((before & ~outcome.right).sum()), int(before.sum())),
        linf=mean(outcome.norms.linf),
        l2=mean(outcome.norms.l2),
        l0=mean(outcome.norms.l0),
        served=served(outcome.decided, labels[outcome.rows]) if outcome.decided else None,
        knowledge=knowledge,
        eps_linf=eps_linf,
        code=outcome.code,
    )
