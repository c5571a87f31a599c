"""The exported graphs compute what torch does, with dropout alive, and the export keeps quiet."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from models.abstention import dropout_masks
from models.autoencoders.bottleneck import BottleneckAutoencoder
from models.autoencoders.residual import ResidualDenoiser
from models.classifiers import Classifier, ImageNorm, build_classifier
from models.filtering import Filter
from models.images import Images, to_float
from models.onnx_export import ParityError, StudentGraphs, check_parity, export_detector
from models.seeding import seeded
from models.specs import ClassifierSpec
from models.uncertainty import mc_probabilities

SHAPE = (10, 14, 3)


def opinionated(shape: tuple[int, int, int]) -> Classifier:
    """A network in training mode whose probabilities are far from even, as a trained one's are."""
    network = build_classifier(ClassifierSpec(width=4, hidden=32), num_classes=6, image_shape=shape, seed=0)
    with torch.no_grad():
        network.out.weight *= 40
        network.convolutions(torch.rand(16, shape[2], *shape[:2], generator=torch.Generator().manual_seed(0)))
    return network


def some_images(n: int, shape: tuple[int, int, int], seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def student() -> Classifier:
    return opinionated(SHAPE)


@pytest.fixture(scope="module")
def graphs(student: Classifier) -> StudentGraphs:
    return StudentGraphs(student, a_filter("residual"), SHAPE)


@pytest.fixture(scope="module")
def graph(graphs: StudentGraphs) -> bytes:
    return graphs.student


@pytest.mark.parametrize(("n", "passes"), [(1, 1), (1, 32), (7, 5), (300, 2)])
def test_any_number_of_images_and_passes_equals_torch(student: Classifier, graph: bytes, n: int, passes: int) -> None:
    images, masks = some_images(n, SHAPE), dropout_masks(passes, 32, 0.5, seed=1)
    expected = mc_probabilities(student, images, masks)
    assert expected.std() > 0.1, "even probabilities would agree with anything"
    assert check_parity(graph, {"images": images, "masks": masks}, {"probabilities": expected}, atol=1e-5) <= 1e-5


@pytest.mark.parametrize("shape", [pytest.param(shape, marks=pytest.mark.slow) for shape in ((8, 8, 1), (200, 200, 1))])
def test_small_large_and_grey_images_export(shape: tuple[int, int, int]) -> None:
    network = opinionated(shape)
    images, masks = some_images(2, shape), dropout_masks(3, 32, 0.5, seed=1)
    expected = {"probabilities": mc_probabilities(network, images, masks)}
    graph = StudentGraphs(network, None, shape).student
    assert check_parity(graph, {"images": images, "masks": masks}, expected, atol=1e-5) <= 1e-5


class NormalisedPeak(nn.Module):
    """As a detector: the largest value of the normalised image, and the image."""

    def forward(self, images_nhwc: Tensor) -> tuple[Tensor, Tensor]:
        return ImageNorm()(to_float(images_nhwc)).amax((1, 2, 3)), images_nhwc

    def as_module(self) -> nn.Module:
        return self


def test_the_normalisation_of_large_pale_images_is_exact_in_onnx_runtime() -> None:
    """One sum over all pixels is off by 2e-5 there, and logits of some hundreds (T = 5, served at 1) multiply that."""
    shape = (200, 200, 3)
    images = some_images(20, shape) // 8 + 100
    peaks = NormalisedPeak()(torch.from_numpy(images))[0].numpy()
    graph = export_detector(NormalisedPeak(), shape)
    assert check_parity(graph, {"images": images}, {"scores": peaks}, atol=5e-6) <= 5e-6


def test_passes_differ_in_onnx_runtime_at_its_default_optimisation(graph: bytes) -> None:
    """Dropout nodes would be removed, and every pass be the same."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    inputs = {"images": some_images(20, SHAPE), "masks": dropout_masks(16, 32, 0.5, seed=1)}
    (probabilities,) = session.run(["probabilities"], inputs)
    assert probabilities.var(axis=0).max(axis=1).min() > 1e-3
    np.testing.assert_allclose(probabilities.sum(axis=2), 1, atol=1e-5)


def test_the_student_stays_as_it_is(student: Classifier, graph: bytes) -> None:
    assert student.training
    assert student.convolutions.training
    assert all(p.requires_grad for p in student.parameters())
    assert len(graph) > 4 * sum(p.numel() for p in student.parameters())


@pytest.mark.slow
def test_export_is_silent_repeatable_and_tells_nothing_of_this_machine(
    student: Classifier, graph: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    level = logging.getLogger("torch.onnx").level
    assert StudentGraphs(student, a_filter("residual"), SHAPE).student == graph
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.getLogger("torch.onnx").level == level
    assert str(Path(__file__).parents[2]).encode() not in graph
    assert b"site-packages" not in graph


def a_filter(kind: str) -> Filter:
    height, width, channels = SHAPE
    with seeded(0):
        if kind == "residual":
            layers = {"width": 4, "depth": 3, "eps_linf": 0.05}
            return Filter(ResidualDenoiser(channels=channels, **layers).eval(), SHAPE, layers)
        layers = {"width": 4, "latent": 8}
        return Filter(BottleneckAutoencoder(image_shape=(channels, height, width), **layers).eval(), SHAPE, layers)


@pytest.mark.parametrize("kind", ["residual", "bottleneck"])
def test_a_filter_exports_with_scores_and_reconstruction(kind: str) -> None:
    own, images = a_filter(kind), some_images(5, SHAPE)
    graph, reconstruction = export_detector(own, SHAPE), own.reconstruct(images)
    expected = {"scores": own.score(images), "reconstruction": reconstruction}
    assert expected["scores"].std() > 0
    assert reconstruction.std() > 0
    assert check_parity(graph, {"images": images}, expected, atol=1e-5) <= 1e-5
    off_by_two = expected | {"reconstruction": (reconstruction.astype(np.int16) + 2)}
    with pytest.raises(ParityError, match="reconstruction"):
        check_parity(graph, {"images": images}, off_by_two, atol=1e-5)


def test_parity_fails_where_the_graph_computes_something_else(student: Classifier, graph: bytes) -> None:
    images, masks = some_images(4, SHAPE), dropout_masks(3, 32, 0.5, seed=1)
    inputs, right = {"images": images, "masks": masks}, mc_probabilities(student, images, masks)
    undropped = mc_probabilities(student, images, np.ones_like(masks))
    for wrong in (undropped, right + 2e-5, np.full_like(right, np.nan), right[:2]):
        with pytest.raises(ParityError, match="probabilities"):
            check_parity(graph, inputs, {"probabilities": wrong}, atol=1e-5)


def wanted_of(student: Classifier, images: Images, masks: np.ndarray) -> dict[str, np.ndarray]:
    probabilities = mc_probabilities(student, images, masks).astype(np.float64)
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-30))).mean(axis=0)
    return {"mean_probabilities": probabilities.mean(axis=0), "class_entropy": entropy}


def test_the_served_graph_is_detector_and_student_in_one(student: Classifier, graphs: StudentGraphs) -> None:
    own, images, masks = a_filter("residual"), some_images(5, SHAPE), dropout_masks(7, 32, 0.5, seed=1)
    inputs = {"images": images, "masks": masks}
    expected = {**wanted_of(student, images, masks), "scores": own.score(images)}
    assert check_parity(graphs.served, inputs, expected, atol=1e-5) <= 1e-5
    reconstruction = own.reconstruct(images)
    reformed = {**wanted_of(student, reconstruction, masks), "scores": own.score(images)}
    assert np.abs(reformed["mean_probabilities"] - expected["mean_probabilities"]).max() > 1e-3
    assert check_parity(graphs.reformed, inputs, {**reformed, "reconstruction": reconstruction}, atol=1e-5) <= 1e-5


def test_the_head_continues_where_the_trunk_ended(student: Classifier, graphs: StudentGraphs) -> None:
    images, masks = some_images(5, SHAPE), dropout_masks(7, 32, 0.5, seed=1)
    session = onnxruntime.InferenceSession(graphs.served, providers=["CPUExecutionProvider"])
    (features,) = session.run(["features"], {"images": images, "masks": masks})
    other = dropout_masks(20, 32, 0.5, seed=2)
    expected = wanted_of(student, images, other)
    assert check_parity(graphs.head, {"features": features, "masks": other}, expected, atol=1e-5) <= 1e-5


def test_nothing_can_reform_without_a_detector(student: Classifier) -> None:
    with pytest.raises(ValueError, match="detector"):
        _ = StudentGraphs(student, None, SHAPE).reformed
