"""The adversary in a robust student's training, and the check that its single step has not been learned by heart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attacks.gradient import evaluating, fgsm, pgd, to_8bit
from models.classifiers import Classifier
from models.device import device_of, exact_convolutions
from models.distill_specs import RobustSpec
from models.images import Images, chunks, to_float
from models.seeding import derive_seed

FAST_STEP = 1.25
"""Of eps: a longer step than the box from a random start in it. Source: Wong et al. 2020, section 4."""

PGD_STEP = 2.5
"""Of eps / steps. Source: Madry et al. 2018."""

CHECKED_IMAGES, CHECK_STEPS, BATCH_SIZE = 512, 10, 128
TOLERATED_GAP = 0.15
"""More accuracy than this between one step and ten is no robustness but a lesson learned by heart."""


@dataclass(frozen=True)
class Adversary:
    """Climbs the distance to the teacher inside the eps box, from a random start."""

    eps_linf: float
    step_linf: float
    steps: int

    @classmethod
    def of(cls, spec: RobustSpec, *, fast: bool) -> Adversary:
        if fast:
            return cls(spec.eps_linf, FAST_STEP * spec.eps_linf, 1)
        return cls(spec.eps_linf, PGD_STEP * spec.eps_linf / spec.steps, spec.steps)

    def perturb(self, model: nn.Module, x: Tensor, soft: Tensor, temperature: float, rng: torch.Generator) -> Tensor:
        """x (n, c, h, w) in [0, 1] moved by at most eps, within [0, 1]; the model in eval mode, its gradients kept.

        soft: the teacher's softmax at `temperature`, (n, classes), of the clean x. rng: on x's device.
        Deviation from Goldblum et al.: climbs the loss that is trained on, not the cross-entropy with the label.
        """
        low, high = (x - self.eps_linf).clamp(0, 1), (x + self.eps_linf).clamp(0, 1)
        start = torch.rand(x.shape, generator=rng, device=rng.device)
        x_adv = (x + self.eps_linf * (2 * start - 1)).clamp(0, 1)
        with evaluating(model), torch.enable_grad():
            for _ in range(self.steps):
                x_adv = x_adv.detach().contiguous(memory_format=torch.channels_last).requires_grad_(True)
                log_student = F.log_softmax(_all_logits(model, x_adv) / temperature, dim=1)
                (gradient,) = torch.autograd.grad(-(soft * log_student).sum(), x_adv)
                x_adv = torch.minimum(torch.maximum(x_adv + self.step_linf * gradient.sign(), low), high)
        return x_adv.detach().contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class OverfittingCheck:
    """Accuracy on n perturbed training images: by a single step, and by ten steps on the margin."""

    n: int
    single_step: float
    ten_steps: float

    @property
    def caught(self) -> bool:
        return self.single_step - self.ten_steps > TOLERATED_GAP

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "caught": self.caught}


def check_overfitting(
    model: nn.Module, images: Images, labels: npt.NDArray[np.int64], *, eps_linf: float, seed: int
) -> OverfittingCheck:
    """Whether single-step training ended in catastrophic overfitting: FGSM fails, PGD does not.

    images: uint8 (n, h, w, c), of training; at most `CHECKED_IMAGES` are drawn from `seed`.
    Source: Wong et al. 2020, section 5; Andriushchenko & Flammarion 2020.
    """
    rows = np.random.default_rng(seed).permutation(len(images))[:CHECKED_IMAGES]
    device, right = device_of(model), np.zeros(2, dtype=np.int64)
    with exact_convolutions():
        for part in chunks(len(rows), BATCH_SIZE):
            x, y = to_float(images[rows[part]], device), torch.from_numpy(labels[rows[part]]).to(device)
            rng = torch.Generator(device).manual_seed(derive_seed(seed, "overfitting", part.start))
            many = pgd(
                model,
                x,
                y,
                eps_linf=eps_linf,
                step_linf=PGD_STEP * eps_linf / CHECK_STEPS,
                steps=CHECK_STEPS,
                restarts=1,
                loss="margin",
                rng=rng,
            )
            for place, x_adv in enumerate((fgsm(model, x, y, eps_linf=eps_linf), many)):
                with torch.no_grad(), evaluating(model):
                    right[place] += int((model(to_8bit(x_adv)).argmax(1) == y).sum())
    return OverfittingCheck(len(rows), *(right / len(rows)).tolist())


def _all_logits(model: nn.Module, x: Tensor) -> Tensor:
    """In float32, with the outlier class where there is one; without dropout."""
    logits: Tensor = model.training_logits(x, None) if isinstance(model, Classifier) else model(x)
    return logits.float()
