"""What the teacher tells the student of each image: soft labels, and how much of them is the outlier class's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from models.abstention import dropout_masks
from models.attacks.gradient import evaluating
from models.classifiers import Classifier
from models.device import device_of, exact_convolutions
from models.distill_specs import ExtendedSpec
from models.images import Images, chunks, to_float
from models.training import Watch
from models.uncertainty import mc_probabilities

Soft = npt.NDArray[np.float32]
BATCH_SIZE = 256


def soft_labels(teacher: Classifier, images: Images, *, temperature: float, watch: Watch) -> Soft:
    """The teacher's softmax(z/T) of every image, (n, classes), without dropout; its mode is left as found."""
    device = device_of(teacher)
    soft = np.empty((len(images), teacher.num_classes), dtype=np.float32)
    with torch.no_grad(), evaluating(teacher), exact_convolutions():
        for rows in chunks(len(images), BATCH_SIZE):
            soft[rows] = (teacher(to_float(images[rows], device)) / temperature).softmax(dim=1).cpu().numpy()
            watch.advance(rows.stop, len(images))
    return soft


def outlier_mass(teacher: Classifier, images: Images, spec: ExtendedSpec, *, seed: int, watch: Watch) -> Soft:
    """share · σ(x)/max σ, (n,): σ is the variance of the teacher's MC-dropout probabilities, summed over classes.

    0 everywhere where no image is uncertain. Source: Papernot & McDaniel 2017, sections 4.1 and 4.2.
    """
    masks = dropout_masks(spec.mc_passes, teacher.feature_dim, teacher.dropout, seed)
    sigma = mc_probabilities(teacher, images, masks, watch=watch).var(axis=0).sum(axis=1)
    largest = float(sigma.max())
    mass: Soft = (spec.share * sigma / largest if largest > 0 else np.zeros_like(sigma)).astype(np.float32)
    return mass


def with_outlier_class(soft: Soft, mass: Soft) -> Soft:
    """soft: (n, classes); mass: (n,) in [0, 1]. (n, classes + 1): the last class has the mass, the others the rest.

    Deviation from Papernot & McDaniel: the rest is shared as the teacher's soft label has it, not all the label's.
    """
    return np.concatenate([soft * (1 - mass[:, None]), mass[:, None]], axis=1)
