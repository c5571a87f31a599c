"""The methods beside the defensive one: outlier mass and its class, the robust loss and its adversary, on digits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from models.attacks.gradient import pgd
from models.classifiers import Classifier, build_classifier
from models.distillation import (
    Adversary,
    Distilled,
    OverfittingCheck,
    check_overfitting,
    distill,
    outlier_mass,
    robust_loss,
    with_outlier_class,
)
from models.familiarity import student_scores
from models.images import Images, to_float
from models.specs import ClassifierSpec, DistillSpec, ExtendedSpec, FitSpec, RobustSpec
from models.training import Silent

SMALL = ClassifierSpec(width=8, hidden=64)
FIT = FitSpec(epochs=2, batch_size=64, optimizer="adamw", peak_lr=4e-3, validation_share=0.0)
SPEC = DistillSpec(teacher=SMALL, student=SMALL, fit=FIT, seed=3)
EPS_LINF = 0.08
Digits = tuple[Images, npt.NDArray[np.int64]]


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = np.round(data.images * 255 / 16).astype(np.uint8)[..., None]
    return images[order], data.target[order].astype(np.int64)


TEACHERS: dict[str, bytes] = {}


class OneTeacher:
    """Keeps the teacher alone: it is the same for every method."""

    def load(self, name: str) -> bytes | None:
        return TEACHERS.get(name)

    def save(self, name: str, data: bytes) -> None:
        if name == "teacher":
            TEACHERS[name] = data


def distilled(digits: Digits, **changes: object) -> Distilled:
    images, labels = digits
    spec = DistillSpec.model_validate({**SPEC.model_dump(), **changes})
    return distill(
        images[:1000], labels[:1000], spec, num_classes=10, watch_for=lambda _phase: Silent(), checkpoints=OneTeacher()
    )


@pytest.fixture(scope="module")
def extended(digits: Digits) -> Distilled:
    return distilled(digits, method="extended")


@pytest.fixture(scope="module")
def robust(digits: Digits) -> Distilled:
    return distilled(digits, method="robust", robust={"eps_linf": EPS_LINF})


def accuracy(model: Classifier, x: torch.Tensor, labels: npt.NDArray[np.int64]) -> float:
    with torch.no_grad():
        return float((model(x).argmax(dim=1).numpy() == labels).mean())


def attacked(model: Classifier, digits: Digits) -> float:
    x, y = to_float(digits[0][1000:1300]), torch.from_numpy(digits[1][1000:1300])
    rng = torch.Generator().manual_seed(0)
    x_adv = pgd(model, x, y, eps_linf=EPS_LINF, step_linf=EPS_LINF / 4, steps=10, restarts=1, loss="margin", rng=rng)
    return accuracy(model, x_adv, digits[1][1000:1300])


def test_the_outlier_class_answers_nothing_and_has_more_mass_where_the_teacher_was_unsure(
    digits: Digits, extended: Distilled
) -> None:
    images, labels = digits
    assert extended.student.outlier_class
    assert not extended.teacher.outlier_class
    assert extended.student(to_float(images[:3])).shape == (3, 10)
    assert accuracy(extended.student, to_float(images[1000:]), labels[1000:]) > 0.9
    assert 0 < extended.notes["mean_outlier_mass"] < 0.5
    mass = outlier_mass(extended.teacher, images[:1000], ExtendedSpec(), seed=1, watch=Silent())
    found = student_scores(extended.student, images[:1000])["outlier"]
    unsure = mass > np.quantile(mass, 0.95)
    assert np.median(found[unsure]) > np.median(found[~unsure])


def test_outlier_mass_is_the_variance_over_passes_of_the_most_uncertain_image(extended: Distilled) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    mass = outlier_mass(extended.teacher, images, ExtendedSpec(share=0.7), seed=1, watch=Silent())
    assert mass.max() == pytest.approx(0.7)
    assert (mass > 0).all()
    assert np.unique(mass).size > 30


def test_a_soft_label_gives_its_share_to_the_outlier_class() -> None:
    soft = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    found = with_outlier_class(soft, np.array([0.5, 0.0], np.float32))
    np.testing.assert_allclose(found, [[0.45, 0.05, 0.5], [0.2, 0.8, 0.0]], atol=1e-7)


@pytest.mark.slow
def test_the_robust_student_withstands_what_fools_its_teacher(digits: Digits, robust: Distilled) -> None:
    assert accuracy(robust.student, to_float(digits[0][1000:]), digits[1][1000:]) > 0.9
    assert attacked(robust.student, digits) > attacked(robust.teacher, digits) + 0.1
    assert robust.notes["adversary"] == "fast"
    assert robust.notes["started_from_teacher"]
    assert robust.notes["overfitting_check"]["n"] == 512


def size_of(model: Classifier) -> int:
    return sum(weights.numel() for weights in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["defensive", "robust"])
def test_a_student_half_as_wide_as_its_teacher_learns_from_it(digits: Digits, method: str) -> None:
    """It cannot start from the teacher's weights."""
    done = distilled(digits, method=method, student={"width": 4, "hidden": 32}, robust={"eps_linf": 0.02})
    assert size_of(done.student) < 0.4 * size_of(done.teacher)
    assert done.student.feature_dim == 32
    assert accuracy(done.student, to_float(digits[0][1000:]), digits[1][1000:]) > 0.85
    if method == "robust":
        assert not done.notes["started_from_teacher"]
        assert done.notes["adversary"] == "fast"


@pytest.mark.slow
def test_a_robust_student_may_start_from_nothing(digits: Digits, robust: Distilled) -> None:
    """Where from_teacher is off, though the networks are alike; it then has more to learn."""
    done = distilled(digits, method="robust", robust={"eps_linf": EPS_LINF, "from_teacher": False})
    assert done.student.state_dict().keys() == done.teacher.state_dict().keys()
    assert not done.notes["started_from_teacher"]
    assert done.student_losses.train_loss[0] > 1.4 * robust.student_losses.train_loss[0]
    assert accuracy(done.student, to_float(digits[0][1000:]), digits[1][1000:]) > 0.85


def test_the_robust_loss_mixes_both_terms(digits: Digits) -> None:
    network = build_classifier(SMALL, num_classes=4, image_shape=(8, 8, 1), seed=0).eval()
    x = to_float(digits[0][:6])
    soft = torch.softmax(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    adversary = Adversary(0.1, 0.05, 2)

    def value(weight: float) -> float:
        loss = robust_loss(5.0, adversary, clean_weight=weight)
        return loss(network, (x, soft, y), torch.Generator().manual_seed(2)).item()

    assert value(1.0) == pytest.approx(F.cross_entropy(network(x), y).item())
    assert value(0.25) == pytest.approx(0.75 * value(0.0) + 0.25 * value(1.0), rel=1e-5)
    x_adv = adversary.perturb(network, x, soft, 5.0, torch.Generator().manual_seed(2))
    log_student = F.log_softmax(network(x_adv) / 5.0, dim=1)
    assert value(0.0) == pytest.approx(25 * (soft * (soft.log() - log_student)).sum(1).mean().item(), rel=1e-4)


@pytest.mark.parametrize("fast", [True, False])
def test_the_adversary_stays_in_its_box_and_moves_away_from_the_teacher(
    digits: Digits, robust: Distilled, fast: bool
) -> None:
    x = to_float(digits[0][:64])
    with torch.no_grad():
        soft = (robust.teacher(x) / 5).softmax(1)
    adversary = Adversary.of(RobustSpec(eps_linf=0.1, steps=5), fast=fast)
    assert (adversary.steps, adversary.step_linf) == ((1, pytest.approx(0.125)) if fast else (5, pytest.approx(0.05)))
    robust.student.train()
    before = {name: value.clone() for name, value in robust.student.state_dict().items()}
    x_adv = adversary.perturb(robust.student, x, soft, 5.0, torch.Generator().manual_seed(0))
    assert robust.student.training
    robust.student.eval()
    assert all(torch.equal(before[name], value) for name, value in robust.student.state_dict().items())
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert not x_adv.requires_grad

    def distance(images: torch.Tensor) -> float:
        with torch.no_grad():
            return float(F.kl_div((robust.student(images) / 5).log_softmax(1), soft, reduction="batchmean"))

    assert distance(x_adv) > 1.5 * distance(x)


class LearnedByHeart(torch.nn.Module):
    """Right on images and on one step of FGSM, wrong as soon as a pixel moves by less than the whole step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = x[:, 0, 0, 0]
        off = torch.sin(levels * 255 * torch.pi / 20).square()  # 0 at multiples of 20 levels
        return torch.stack([0.2 - off, off - 0.2], dim=1)


def test_a_single_step_learned_by_heart_is_caught() -> None:
    assert OverfittingCheck(100, 0.9, 0.7).caught
    assert not OverfittingCheck(100, 0.9, 0.8).caught
    images = np.full((32, 8, 8, 1), 100, np.uint8)
    labels = np.zeros(32, np.int64)
    check = check_overfitting(LearnedByHeart(), images, labels, eps_linf=20 / 255, seed=0)
    assert check.single_step == 1.0
    assert check.ten_steps < 0.2
    assert check.caught


@pytest.mark.slow
def test_a_student_that_overfitted_is_trained_again_by_pgd(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    def always(*_: object, **__: object) -> OverfittingCheck:
        return OverfittingCheck(10, 0.9, 0.1)

    monkeypatch.setattr("models.distillation.distilling.check_overfitting", always)
    fit = {**FIT.model_dump(), "epochs": 1, "batch_size": 256}
    done = distilled(digits, method="robust", fit=fit, robust={"eps_linf": 0.02, "steps": 2})
    assert done.notes["adversary"] == "pgd"
