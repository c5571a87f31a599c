"""A defence that hides its gradients is flagged, however it hides them; one that was earned is not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from models.attacks.gradient import ifgsm
from models.evaluate_specs import EvaluateSpec
from models.images import Images, to_float
from models.robustness import Evaluation, Target, evaluate
from models.robustness.probes import flat_share, unbounded_share, zero_gradient_share
from models.seeding import seeded
from models.training import Silent

EPS = 0.1
SPEC = EvaluateSpec(
    attacks=(
        *("fgsm", "ifgsm", "pgd-cross-entropy", "pgd-margin", "pgd-temperature"),
        *("transfer-teacher", "transfer-foreign", "square"),
    ),
    **{"eps_linf": EPS, "step_linf": EPS / 4, "steps": 10, "pgd_steps": 10, "queries": 60},
    **{"max_images": 150, "costly_images": 150, "eps_curve": ()},
)


@cache
def digits() -> tuple[Images, np.ndarray]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return np.round(data.images * 255 / 16).astype(np.uint8)[order][..., None], data.target[order].astype(np.int64)


def network(seed: int, width: int = 16) -> nn.Sequential:
    with seeded(seed):
        return nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
        )


def fitted(
    model: nn.Module, *, soft: Tensor | None = None, temperature: float = 1.0, hardened: bool = False, steps: int = 300
) -> nn.Module:
    """On labels, or on soft labels, at a temperature; hardened: on I-FGSM of itself (Madry et al. 2018)."""
    images, labels = digits()
    x_all, y_all = to_float(images[:1400]), torch.from_numpy(labels[:1400])
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(0, 1400, (64,), generator=rng)
        x = x_all[rows]
        if hardened:
            x = ifgsm(model, x, y_all[rows], eps_linf=1.2 * EPS, step_linf=EPS / 2, steps=4)
        target = y_all[rows] if soft is None else soft[rows]
        loss = temperature * F.cross_entropy(model(x) / temperature, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@cache
def foreign() -> nn.Module:
    return fitted(network(7, width=8), steps=150)


def distilled_at_100() -> tuple[nn.Module, nn.Module]:
    """Teacher and student as in Papernot et al. 2016."""
    teacher = fitted(network(1), temperature=100.0)
    with torch.no_grad():
        soft = (teacher(to_float(digits()[0][:1400])) / 100).softmax(1)
    return teacher, fitted(network(2), soft=soft, temperature=100.0)


class Sharpened(nn.Module):
    """The logits a thousand times as large."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.model(x)


def evaluated(model: nn.Module, teacher: nn.Module, temperature: float = 1.0) -> Evaluation:
    images, labels = digits()
    target = Target(model, teacher=teacher, foreign=[foreign()], temperature=temperature)
    return evaluate(target, images[1400:], labels[1400:], SPEC, watch=Silent())


def raised(result: Evaluation) -> set[str]:
    return {sign["flag"] for sign in result.masking if sign["raised"]}


def accuracies(result: Evaluation) -> dict[str, float]:
    return {row.attack: row.accuracy.share for row in result.rows}


@pytest.mark.slow
def test_a_student_distilled_at_100_is_flagged_and_falls_to_attacks_on_the_logits() -> None:
    teacher, student = distilled_at_100()
    result = evaluated(student, teacher, 100.0)
    found = accuracies(result)
    assert found["none"] > 0.9
    assert found["ifgsm"] > found["pgd-margin"] + 0.2
    assert found["pgd-temperature"] < found["ifgsm"] - 0.2
    assert raised(result) >= {
        *("zero_gradients", "unbounded_attack_fails", "loss_flat"),
        *("cross_entropy_far_behind_margin", "temperature_unmasks", "white_box_weaker_than_transfer"),
    }


@pytest.mark.slow
def test_saturated_logits_are_flagged_by_searches_that_need_no_gradient() -> None:
    result = evaluated(Sharpened(fitted(network(3), steps=100)), foreign())
    assert raised(result) >= {"zero_gradients", "unbounded_attack_fails", "white_box_weaker_than_queries"}


@pytest.mark.slow
def test_a_network_trained_on_its_own_attacks_is_not_flagged_and_stands() -> None:
    earned = evaluated(fitted(network(4), hardened=True, steps=400), foreign())
    plain = evaluated(fitted(network(4)), foreign())
    assert raised(earned) == set()
    assert accuracies(earned)["pgd-margin"] > accuracies(plain)["pgd-margin"] + 0.2
    assert accuracies(earned)["none"] > 0.85


def test_the_probes_say_what_can_be_counted() -> None:
    class Threshold(nn.Module):
        """Class 1 above mid-grey. Images of even mean have a constant answer: no gradient, no change."""

        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3))
            frozen = ((mean * 255).round() % 2 == 0).float()
            moving = 4 * (mean - 0.5) * (1 - frozen) - 3 * frozen.detach()
            return torch.stack([-moving, moving], dim=1)

    images = np.stack([np.full((8, 8, 1), level, np.uint8) for level in (40, 41, 42, 43)])
    labels = np.zeros(4, np.int64)
    assert zero_gradient_share(Threshold(), images, labels).count == 2
    assert flat_share(Threshold(), images, labels, eps_linf=0.1 / 255, seed=0).count == 2
    assert unbounded_share(Threshold(), images, labels).n == 4
