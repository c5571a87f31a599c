"""The run of a distillation: teacher, soft labels, student, by any of the three methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from models.augmentation import augment
from models.classifiers import Classifier, build_classifier
from models.distillation.adversary import Adversary, check_overfitting
from models.distillation.labels import outlier_mass, soft_labels, with_outlier_class
from models.distillation.losses import hard_label_loss, robust_loss, soft_label_loss
from models.images import Images, check_images
from models.seeding import derive_seed
from models.specs import ClassifierSpec, DistillSpec
from models.training import Checkpoints, FitResult, ImageBatches, Loss, Watch, fit

SAMPLES_AN_EPOCH = 2000
"""A smaller set is gone through several times an epoch: with 300 images, 8 times 2 batches teach nothing."""

Labels = npt.NDArray[np.int64]
Soft = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Distilled:
    """Both networks, in eval mode, and how they came about; `notes` is JSON-able."""

    teacher: Classifier
    student: Classifier
    teacher_losses: FitResult
    student_losses: FitResult
    notes: dict[str, Any]


def distill(
    images: Images,
    labels: Labels,
    spec: DistillSpec,
    *,
    num_classes: int,
    watch_for: Callable[[str], Watch],
    checkpoints: Checkpoints,
) -> Distilled:
    """Train teacher and student by `spec.method`; announces the phases "teacher", "soft labels" and "student".

    images: uint8 (n, h, w, c); labels: (n,) int64 in [0, num_classes). Everything random comes from `spec.seed`.
    An image is labelled once, as it is, and the student sees augmentations of it. Labelling each augmentation anew
    takes a pass of the teacher more a step and was no better: on GTSRB (six epochs, two seeds) 98.91 and 98.69 % of
    the test images, against 98.69 and 99.14 %.
    Raises NotImages, UnfitNetwork, ValueError where labels do not fit, Stopped, and what `fit` raises.
    """
    check_images(images)
    if labels.shape != images.shape[:1] or not len(labels) or not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"want {len(images)} labels under {num_classes}, and at least one")
    run = _Run(images, labels, spec, num_classes, watch_for, checkpoints)
    teacher, teacher_losses = run.teacher()
    with run.timed("soft labels") as watch:
        soft = soft_labels(teacher, images, temperature=spec.temperature, watch=watch)
        run.notes.update(_about_labels(soft, labels))
        if spec.method == "extended":
            soft = run.with_outliers(teacher, soft, watch)
    student, student_losses = run.student(soft, teacher)
    return Distilled(teacher, student, teacher_losses, student_losses, {**run.notes, "seconds": run.seconds})


def build_student(spec: DistillSpec, *, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Classifier:
    """A new student as `spec` has it: with an outlier class under the method `extended`."""
    return build_classifier(
        spec.student,
        num_classes=num_classes,
        image_shape=image_shape,
        seed=seed,
        outlier_class=spec.method == "extended",
    )


def _about_labels(soft: Soft, labels: Labels) -> dict[str, Any]:
    return {
        "images": len(labels),
        "teacher_agrees_with_label": float((soft.argmax(axis=1) == labels).mean()),
        "soft_label_entropy_nats": float(-(soft * np.log(np.maximum(soft, np.float32(1e-30)))).sum(axis=1).mean()),
    }


@dataclass(frozen=True)
class _Run:
    """What both fits share; `seconds` gathers how long each phase took, `notes` what is to be told."""

    images: Images
    labels: Labels
    spec: DistillSpec
    num_classes: int
    watch_for: Callable[[str], Watch]
    checkpoints: Checkpoints
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def teacher(self) -> tuple[Classifier, FitResult]:
        seed = derive_seed(self.spec.seed, "teacher")
        network = self.spec.teacher
        model = build_classifier(network, num_classes=self.num_classes, image_shape=self.image_shape, seed=seed)
        with self.timed("teacher") as watch:
            loss = hard_label_loss(self.spec.temperature)
            return model, self._fit("teacher", model, network, loss, watch, self.labels)

    def with_outliers(self, teacher: Classifier, soft: Soft, watch: Watch) -> Soft:
        """The soft labels with one class more."""
        mass = outlier_mass(
            teacher, self.images, self.spec.extended, seed=derive_seed(self.spec.seed, "outliers"), watch=watch
        )
        self.notes["mean_outlier_mass"] = float(mass.mean())
        return with_outlier_class(soft, mass)

    def student(self, soft: Soft, teacher: Classifier) -> tuple[Classifier, FitResult]:
        if self.spec.method == "robust":
            return self._robust_student(soft, teacher)
        with self.timed("student") as watch:
            return self._student("student", soft_label_loss(self.spec.temperature), watch, soft)

    def _robust_student(self, soft: Soft, teacher: Classifier) -> tuple[Classifier, FitResult]:
        """A student of the fast adversary that has overfitted to it is trained once more, by PGD."""
        spec, fast = self.spec.robust, self.spec.robust.attack == "fast"
        start = teacher if spec.from_teacher and self.spec.teacher == self.spec.student else None
        self.notes["started_from_teacher"] = start is not None
        with self.timed("student") as watch:
            model, losses = self._student(
                "student", self._robust_loss(fast=fast), watch, soft, self.labels, start=start
            )
            seed = derive_seed(self.spec.seed, "overfitting")
            check = check_overfitting(model, self.images, self.labels, eps_linf=spec.eps_linf, seed=seed)
            self.notes["overfitting_check"] = check.to_json()
            if fast and check.caught:
                loss = self._robust_loss(fast=False)
                model, losses = self._student("student pgd", loss, watch, soft, self.labels, start=start)
        self.notes["adversary"] = "pgd" if check.caught or not fast else "fast"
        return model, losses

    def _robust_loss(self, *, fast: bool) -> Loss:
        spec = self.spec.robust
        adversary = Adversary.of(spec, fast=fast)
        return robust_loss(self.spec.temperature, adversary, clean_weight=spec.clean_weight)

    def _student(
        self, name: str, loss: Loss, watch: Watch, *targets: npt.NDArray[np.generic], start: Classifier | None = None
    ) -> tuple[Classifier, FitResult]:
        seed = derive_seed(self.spec.seed, "student")
        model = build_student(self.spec, num_classes=self.num_classes, image_shape=self.image_shape, seed=seed)
        if start is not None:
            model.load_state_dict(start.state_dict())
        return model, self._fit(name, model, self.spec.student, loss, watch, *targets)

    def _fit(
        self,
        name: str,
        model: Classifier,
        network: ClassifierSpec,
        loss: Loss,
        watch: Watch,
        *targets: npt.NDArray[np.generic],
    ) -> FitResult:
        seed = derive_seed(self.spec.seed, name)
        spec = self.spec.fit if name == "teacher" else self.spec.student_fit or self.spec.fit
        batches = ImageBatches(
            self.images,
            *targets,
            spec=spec,
            seed=seed,
            augment=augment if network.augment else None,
            samples_an_epoch=SAMPLES_AN_EPOCH,
        )
        return fit(model, batches, loss, spec, seed=seed, watch=watch, checkpoints=self.checkpoints, name=name)

    @contextmanager
    def timed(self, phase: str) -> Iterator[Watch]:
        started = time.monotonic()
        yield self.watch_for(phase)
        self.seconds[phase] = round(time.monotonic() - started, 3)
