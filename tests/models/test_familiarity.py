"""Familiarity: distances against a closed form, foreign features far away, and nothing that depends on the batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.classifiers import Classifier, build_classifier
from models.familiarity import SHRINKAGE, fit_familiarity, student_scores
from models.images import Images, to_float
from models.specs import ClassifierSpec

SMALL = ClassifierSpec(width=8, hidden=16)
RNG = np.random.default_rng(0)
IMAGES: Images = RNG.integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 300)


@pytest.fixture
def student() -> Classifier:
    return build_classifier(SMALL, num_classes=3, image_shape=(8, 8, 1), seed=0)


def unit_features(student: Classifier, images: Images) -> npt.NDArray[np.float64]:
    with torch.no_grad():
        features = student.eval().trunk(to_float(images)).double().numpy()
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True))


def test_it_is_the_mahalanobis_distance_of_the_direction_to_the_nearest_class(student: Classifier) -> None:
    features = unit_features(student, IMAGES)
    means = np.stack([features[label == LABELS].mean(axis=0) for label in range(3)])
    centred = features - means[LABELS]
    covariance = centred.T @ centred / len(centred)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / 16 * np.eye(16)
    apart = features[:20, None] - means[None]
    want = np.sqrt(np.einsum("nci,ij,ncj->nc", apart, np.linalg.inv(shrunk), apart).min(axis=1))
    student.train()
    student.familiarity = fit_familiarity(student, IMAGES, LABELS)
    assert student.training
    got = student_scores(student, IMAGES[:20])
    assert student.score_names == ("unfamiliar",)
    assert list(got) == ["unfamiliar"]
    np.testing.assert_allclose(got["unfamiliar"], want, rtol=2e-3)
    with torch.no_grad():
        scaled = student.familiarity(torch.from_numpy(7 * features[:20]).float())
    np.testing.assert_allclose(scaled, want, rtol=2e-3)


def test_what_no_class_explains_is_far_and_a_class_without_images_is_nobodys_nearest(student: Classifier) -> None:
    labels = np.where(LABELS == 2, 0, LABELS)
    student.familiarity = fit_familiarity(student, IMAGES, labels)
    mean = torch.from_numpy(unit_features(student, IMAGES).mean(axis=0)).float()
    elsewhere = torch.zeros(16)
    elsewhere[mean.argmin()] = 1.0
    near, far = student.familiarity(torch.stack([mean, elsewhere])).tolist()
    assert near < np.median(student_scores(student, IMAGES)["unfamiliar"]) < far < 1000


def test_with_an_outlier_class_there_is_a_second_score_and_no_answer_more() -> None:
    student = build_classifier(SMALL, num_classes=3, image_shape=(8, 8, 1), seed=0, outlier_class=True).eval()
    student.familiarity = fit_familiarity(student, IMAGES, LABELS)
    assert student.score_names == ("unfamiliar", "outlier")
    x = to_float(IMAGES[:9])
    with torch.no_grad():
        assert student(x).shape == (9, 3)
        assert student.head(student.trunk(x), torch.ones(2, 16)).shape == (2, 9, 3)
        all_logits = student.training_logits(x, None)
    assert all_logits.shape == (9, 4)
    mass = all_logits.softmax(1)[:, 3]
    want = -torch.log1p(-mass)  # softplus of the log odds
    np.testing.assert_allclose(student_scores(student, IMAGES[:9])["outlier"], want, rtol=1e-4)


def test_a_network_without_either_has_no_scores(student: Classifier) -> None:
    assert student_scores(student, IMAGES[:4]) == {}
    with pytest.raises(ValueError, match="no outlier class"):
        student.outlier_gap(torch.zeros(1, 16))


def test_labels_that_do_not_fit_are_refused(student: Classifier) -> None:
    with pytest.raises(ValueError, match="under 3"):
        fit_familiarity(student, IMAGES, LABELS + 1)
    with pytest.raises(ValueError, match="under 3"):
        fit_familiarity(student, IMAGES, LABELS[:5])
