"""The losses at temperature T: hard labels for a teacher, soft ones for a student, perturbed images for a robust one.

n images, classes of the network (with an outlier class where it has one).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifiers import Classifier
from models.distillation.adversary import Adversary
from models.training import Batch, Loss


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
        return distance_to_teacher(_logits(model, x, rng), soft, temperature)

    return loss


def robust_loss(temperature: float, adversary: Adversary, *, clean_weight: float) -> Loss:
    """(1 - w) · T² · KL(teacher(x) ‖ student(x_adv)) + w · cross-entropy of student(x) at T = 1 and the label.

    Of batches (x, soft labels (n, classes), y (n,)); x_adv is made against the student as it is at that step.
    Source: Goldblum et al. 2020, equation 3.
    """

    def loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        x, soft, y = batch
        x_adv = adversary.perturb(model, x, soft, temperature, rng)
        value = (1 - clean_weight) * distance_to_teacher(_logits(model, x_adv, rng), soft, temperature)
        if clean_weight:
            value = value + clean_weight * F.cross_entropy(_logits(model, x, rng), y)
        return value

    return loss


def distance_to_teacher(logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """T² times the mean KL(soft ‖ softmax(logits/T)), a scalar."""
    return temperature**2 * F.kl_div(F.log_softmax(logits / temperature, dim=1), soft, reduction="batchmean")


def _logits(model: nn.Module, x: Tensor, rng: torch.Generator) -> Tensor:
    """All of them in float32, with dropout where the model is being trained."""
    if not isinstance(model, Classifier):
        raise TypeError(f"want a Classifier, not {type(model).__name__}")
    return model.training_logits(x, rng).float()
