"""Defensive distillation: a teacher trained at temperature T, its soft labels, and a student trained on them at T.

Source: Papernot et al. 2016, section IV. The student serves at T = 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attacks.gradient import evaluating
from models.augmentation import augment
from models.classifiers import Classifier, build_classifier
from models.device import device_of, exact_convolutions
from models.images import Images, check_images, chunks, to_float
from models.seeding import derive_seed
from models.specs import ClassifierSpec, DistillSpec
from models.training import Batch, Checkpoints, FitResult, ImageBatches, Loss, Watch, fit

BATCH_SIZE = 256

SAMPLES_AN_EPOCH = 2000
"""A smaller set is gone through several times an epoch: with 300 images, 8 times 2 batches teach nothing."""


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
    labels: npt.NDArray[np.int64],
    spec: DistillSpec,
    *,
    num_classes: int,
    watch_for: Callable[[str], Watch],
    checkpoints: Checkpoints,
) -> Distilled:
    """Train teacher and student; announces the phases "teacher", "soft labels" and "student".

    images: uint8 (n, h, w, c); labels: (n,) int64 in [0, num_classes). Everything random comes from `spec.seed`.
    An image is labelled once, as it is, and the student sees augmentations of it. Labelling each augmentation anew
    takes a pass of the teacher more a step and was no better: on GTSRB (six epochs, two seeds) 98.91 and 98.69 % of
    the test images, against 98.69 and 99.14 %.
    Raises NotImages, ValueError where labels do not fit, Stopped, and what `fit` raises.
    """
    check_images(images)
    if labels.shape != images.shape[:1] or not len(labels) or not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"want {len(images)} labels under {num_classes}, and at least one")
    run = _Run(images, spec, num_classes, watch_for, checkpoints)
    teacher, teacher_losses = run.trained("teacher", spec.teacher, labels, hard_label_loss(spec.temperature))
    with run.timed("soft labels") as watch:
        soft = soft_labels(teacher, images, temperature=spec.temperature, watch=watch)
    student, student_losses = run.trained("student", spec.student, soft, soft_label_loss(spec.temperature))
    notes = {
        "seconds": run.seconds,
        "images": len(images),
        "teacher_agrees_with_label": float((soft.argmax(axis=1) == labels).mean()),
        "soft_label_entropy_nats": float(-(soft * np.log(np.maximum(soft, np.float32(1e-30)))).sum(axis=1).mean()),
    }
    return Distilled(teacher, student, teacher_losses, student_losses, notes)


@dataclass(frozen=True)
class _Run:
    """What both fits share; `seconds` gathers how long each phase took."""

    images: Images
    spec: DistillSpec
    num_classes: int
    watch_for: Callable[[str], Watch]
    checkpoints: Checkpoints
    seconds: dict[str, float] = field(default_factory=dict)

    def trained(
        self, name: str, network: ClassifierSpec, targets: npt.NDArray[np.generic], loss: Loss
    ) -> tuple[Classifier, FitResult]:
        """A new network fitted to the targets."""
        seed = derive_seed(self.spec.seed, name)
        height, width, channels = self.images.shape[1:]
        model = build_classifier(
            network, num_classes=self.num_classes, image_shape=(height, width, channels), seed=seed
        )
        batches = ImageBatches(
            self.images,
            targets,
            spec=self.spec.fit,
            seed=seed,
            augment=augment if network.augment else None,
            samples_an_epoch=SAMPLES_AN_EPOCH,
        )
        with self.timed(name) as watch:
            losses = fit(
                model, batches, loss, self.spec.fit, seed=seed, watch=watch, checkpoints=self.checkpoints, name=name
            )
        return model, losses

    @contextmanager
    def timed(self, phase: str) -> Iterator[Watch]:
        started = time.monotonic()
        yield self.watch_for(phase)
        self.seconds[phase] = round(time.monotonic() - started, 3)


def hard_label_loss(temperature: float) -> Loss:
    """T times the mean cross-entropy of softmax(z/T) and the labels, of batches (x, y (n,)); with dropout.

    The factor T undoes what 1/T does to the gradient, so that a learning rate means the same at every T.
    """

    def loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        x, y = batch
        return temperature * F.cross_entropy(_logits(model, x, rng) / temperature, y)

    return loss


def soft_label_loss(temperature: float) -> Loss:
    """T² times the mean KL(soft label ‖ softmax(z/T)), of batches (x, soft labels (n, classes)); with dropout.

    It has the gradient of the cross-entropy with soft labels, and is 0 where they are met.
    Source: Hinton et al. 2015, section 2.1, for the factor T².
    """

    def loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        x, soft = batch
        log_student = F.log_softmax(_logits(model, x, rng) / temperature, dim=1)
        return temperature**2 * F.kl_div(log_student, soft, reduction="batchmean")

    return loss


def soft_labels(teacher: Classifier, images: Images, *, temperature: float, watch: Watch) -> npt.NDArray[np.float32]:
    """The teacher's softmax(z/T) of every image, (n, classes), without dropout; its mode is left as found."""
    device = device_of(teacher)
    soft = np.empty((len(images), teacher.num_classes), dtype=np.float32)
    with torch.no_grad(), evaluating(teacher), exact_convolutions():
        for rows in chunks(len(images), BATCH_SIZE):
            soft[rows] = (teacher(to_float(images[rows], device)) / temperature).softmax(dim=1).cpu().numpy()
            watch.advance(rows.stop, len(images))
    return soft


def _logits(model: nn.Module, x: Tensor, rng: torch.Generator) -> Tensor:
    """With dropout where the model is being trained."""
    if not isinstance(model, Classifier):
        raise TypeError(f"want a Classifier, not {type(model).__name__}")
    return model.dropout_logits(x, rng) if model.training else model(x)
