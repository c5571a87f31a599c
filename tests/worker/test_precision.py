"""A precision that costs too much accuracy is refused; one that does not is what the student computes by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.classifiers import Classifier, build_classifier
from models.images import to_float
from models.specs import ClassifierSpec, DistillSpec
from models.uncertainty import mc_probabilities
from service.errors import UnusableDataset
from worker.material import Material
from worker.precision import lower

SHAPE = (16, 16, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (600, *SHAPE), dtype=np.uint8)
CLASSES = [str(index) for index in range(10)]


@pytest.fixture
def student() -> Classifier:
    """Untrained, no class ahead of the others: many of its answers are nearly ties."""
    network = build_classifier(ClassifierSpec(width=4, hidden=16), num_classes=10, image_shape=SHAPE, seed=0).eval()
    with torch.no_grad():
        network.out.bias -= network(to_float(IMAGES)).mean(0)
    return network


@pytest.fixture
def material(student: Classifier) -> Material:
    """Its labels are what the student says in float32."""
    labels = mc_probabilities(student, IMAGES, np.ones((1, 16), np.float32))[0].argmax(axis=1)
    return Material(IMAGES, labels, IMAGES, labels, len(labels), np.arange(len(labels)), True, CLASSES, SHAPE, None, {})


def spec(precision: str, loss: float) -> DistillSpec:
    return DistillSpec.model_validate({"export": {"precision": precision, "max_accuracy_loss": loss}})


def test_float32_is_left_alone(student: Classifier, material: Material) -> None:
    assert lower(student, material, spec("float32", 0.0)) == (None, {})
    assert student.lowered is None


def test_a_precision_that_costs_too_much_is_refused_with_both_figures(student: Classifier, material: Material) -> None:
    with pytest.raises(UnusableDataset, match=r"In int8 .* right on \d+\.\d+% .* in float32 on 100\.00%") as refused:
        lower(student, material, spec("int8", 0.0))
    assert refused.value.code == "precision_too_low"


def test_what_it_costs_is_told(student: Classifier, material: Material) -> None:
    part, told = lower(student, material, spec("int8", 0.5))
    assert part is not None and student.lowered is not None
    found = told["export"]
    assert found["accuracy_in_float32"] == 1.0 and found["n"] == 600
    assert 0.5 <= found["accuracy"] == found["same_answer"] < 1.0
    answers = mc_probabilities(student, material.held_images, np.ones((1, 16), np.float32))[0].argmax(axis=1)
    assert (answers == material.held_labels).mean() == found["accuracy"]
