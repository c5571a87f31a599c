"""The student in the precision that it is served in, and what that costs; before anything is calibrated on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.classifiers import Classifier
from models.lowering import LoweredTrunk, lowered
from models.onnx_export import trace_trunk
from models.onnx_parts import Part
from models.seeding import derive_seed
from models.specs import DistillSpec
from models.uncertainty import mc_probabilities
from service.errors import UnusableDataset
from worker.material import Material

ROUNDING = 1e-6
"""Of images: a share of them is rarely a number that floats have."""


def lower(student: Classifier, material: Material, spec: DistillSpec) -> tuple[Part | None, dict[str, Any]]:
    """The trunk as it is to be exported, which the student computes by from now on; None and {} for float32.

    Raises UnusableDataset where the precision costs more accuracy than may be.
    """
    precision = spec.export.precision
    if precision == "float32":
        return None, {}
    rng = np.random.default_rng(np.random.PCG64(derive_seed(spec.seed, "precision")))
    rows = np.sort(rng.permutation(len(material.labels))[: spec.export.sample_images])
    before = _answers(student, material)
    part = lowered(trace_trunk(student, material.image_shape), material.images[rows], precision)
    student.lowered = LoweredTrunk(part)
    after, labels = _answers(student, material), material.held_labels
    right = [int((answers == labels).sum()) for answers in (before, after)]
    exact, told = (count / len(labels) for count in right)
    if right[0] - right[1] > spec.export.max_accuracy_loss * len(labels) + ROUNDING:
        raise UnusableDataset(
            f"In {precision} the student is right on {told:.2%} of the held-out images, in float32 on {exact:.2%}: "
            f"more than the export.max_accuracy_loss of {spec.export.max_accuracy_loss} was lost, so it was not "
            "registered. Serve it in float32, or allow a larger loss.",
            code="precision_too_low",
        )
    agreeing = float((before == after).mean())
    found = {"precision": precision, "accuracy_in_float32": exact, "accuracy": told, "same_answer": agreeing}
    return part, {"export": {**found, "n": len(labels)}}


def _answers(student: Classifier, material: Material) -> NDArray[np.int64]:
    """Without dropout."""
    ones = np.ones((1, student.feature_dim), np.float32)
    answers: NDArray[np.int64] = mc_probabilities(student, material.held_images, ones)[0].argmax(axis=1)
    return answers
