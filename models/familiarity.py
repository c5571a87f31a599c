"""How far an image's features lie from those that the student was trained on: what no class of its own explains.

n images, d features, c classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from models.abstention import Reason
from models.attacks.gradient import evaluating
from models.classifiers import Classifier
from models.classifiers.familiarity import Familiarity
from models.device import device_of, exact_convolutions
from models.images import Images, check_images, chunks, to_float
from models.training import Silent, Watch

BATCH_SIZE = 256
SHRINKAGE = 0.1
"""Share of the mean variance in every direction's: features that no training image varies along have variance 0."""


def fit_familiarity(
    student: Classifier, images: Images, labels: npt.NDArray[np.int64], *, watch: Watch | None = None
) -> Familiarity:
    """Class means and shared covariance of the unit-length features of the training images, as a layer for `student`.

    images: uint8 (n, h, w, c), n ≥ 1; labels: (n,) int64. A class without an image is nobody's nearest.
    Raises NotImages, ValueError where labels do not fit, Stopped.
    Source: Lee et al. 2018 (Mahalanobis); features of unit length after Mueller & Hein 2025.
    """
    check_images(images)
    classes, d = student.num_classes, student.feature_dim
    if labels.shape != images.shape[:1] or not len(labels) or not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"want {len(images)} labels under {classes}, and at least one")
    sums, outer = torch.zeros(classes, d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    watch = watch or Silent()
    for rows in chunks(len(images), BATCH_SIZE):
        features = _unit_features(student, images[rows])
        sums.index_add_(0, torch.from_numpy(labels[rows]), features)
        outer += features.T @ features
        watch.advance(rows.stop, len(images))
    counts = torch.bincount(torch.from_numpy(labels), minlength=classes).double()
    means = sums / counts.clamp(min=1)[:, None]
    within = (outer - (means * counts[:, None]).T @ means) / len(images)
    variance = within.diagonal().mean().clamp(min=1e-12)
    within = (1 - SHRINKAGE) * within + SHRINKAGE * variance * torch.eye(d, dtype=torch.float64)
    whitening = torch.linalg.inv(torch.linalg.cholesky(within)).T
    return Familiarity(means @ whitening, whitening, present=counts > 0).to(device_of(student))


def student_scores(
    student: Classifier, images: Images, *, watch: Watch | None = None
) -> dict[Reason, npt.NDArray[np.float32]]:
    """What the student itself has against each image besides its uncertainty, (n,) by name; higher is more suspicious.

    images: uint8 (n, h, w, c). Raises NotImages, Stopped.
    """
    check_images(images)
    watch, device = watch or Silent(), device_of(student)
    scores = np.empty((len(student.score_names), len(images)), dtype=np.float32)
    with torch.no_grad(), evaluating(student), exact_convolutions():
        for rows in chunks(len(images), BATCH_SIZE):
            scores[:, rows] = student.scores(student.trunk(to_float(images[rows], device))).T.cpu().numpy()
            watch.advance(rows.stop, len(images))
    return dict(zip(student.score_names, scores, strict=True))


def _unit_features(student: Classifier, images: Images) -> Tensor:
    with torch.no_grad(), evaluating(student), exact_convolutions():
        features = student.trunk(to_float(images, device_of(student)))
    return F.normalize(features, dim=1).double().cpu()
