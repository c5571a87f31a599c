"""A trunk in fewer bits: near what it was, put together with what stays in float32, and what calibration sees too."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch

from models.abstention import dropout_masks
from models.autoencoders.residual import ResidualDenoiser
from models.classifiers import Classifier, build_classifier
from models.filtering import Filter
from models.images import Images, to_float
from models.lowering import LoweredTrunk, Precision, lowered
from models.onnx_export import StudentGraphs, check_parity, run_graph, trace_trunk
from models.onnx_parts import Part
from models.seeding import seeded
from models.specs import ClassifierSpec
from models.uncertainty import mc_probabilities

SHAPE = (16, 16, 3)
PRECISIONS = ("int8", "float16")


def drawn(n: int, seed: int = 0) -> Images:
    """Smooth images: noise has no structure that a scale could be set by."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(16) * rng.uniform(0.1, 0.8, (n, 1)) + rng.uniform(0, 6, (n, 1)))
    colours = rng.uniform(0.3, 1, (n, 1, 1, 3))
    return ((waves[:, :, None, None] * waves[:, None, :, None] * 0.5 + 0.5) * colours * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def student() -> Classifier:
    network = build_classifier(ClassifierSpec(width=8, hidden=32), num_classes=5, image_shape=SHAPE, seed=0)
    with torch.no_grad():
        network.train()(to_float(drawn(64)))  # statistics of batch norm
        network.out.weight *= 10
    return network.eval()


@pytest.fixture(scope="module")
def trunk(student: Classifier) -> Part:
    return trace_trunk(student, SHAPE)


@pytest.fixture(scope="module", params=PRECISIONS)
def part(request: pytest.FixtureRequest, trunk: Part) -> Part:
    return lowered(trunk, drawn(64, seed=1), request.param)


def lowered_copy(student: Classifier, part: Part) -> Classifier:
    network = copy.deepcopy(student)
    network.lowered = LoweredTrunk(part)
    return network


def test_the_features_are_near_and_not_the_same(student: Classifier, part: Part) -> None:
    images = drawn(40, seed=2)
    exact = student.trunk(to_float(images)).detach()
    near = lowered_copy(student, part).trunk(to_float(images))
    assert near.dtype == torch.float32 and near.shape == exact.shape
    error = (near - exact).square().mean().sqrt() / exact.std()
    assert 1e-6 < error < 0.1


def test_weights_take_the_room_that_was_promised(trunk: Part) -> None:
    kinds = {
        "int8": onnx.TensorProto.INT8,
        "float16": onnx.TensorProto.FLOAT16,
    }
    for precision in PRECISIONS:
        graph = lowered(trunk, drawn(32), precision).model.graph
        large = [tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) > 64]
        assert large and set(large) == {kinds[precision]}


def test_float32_is_the_trunk_itself(trunk: Part) -> None:
    assert lowered(trunk, drawn(1), "float32") is trunk


def test_the_whole_graphs_compute_what_the_lowered_student_does(student: Classifier, part: Part) -> None:
    layers = {"width": 8, "depth": 3, "eps_linf": 0.01}
    with seeded(0):
        own = Filter(ResidualDenoiser(channels=3, width=8, depth=3, eps_linf=0.01).eval(), SHAPE, layers)
    graphs, served = StudentGraphs(student, own, SHAPE, trunk=part), lowered_copy(student, part)
    images, masks = drawn(24, seed=3), dropout_masks(8, 32, 0.5, seed=0)
    expected = mc_probabilities(served, images, masks)
    assert np.abs(expected - mc_probabilities(student, images, masks)).max() > 1e-6, "it is not the float32 student"
    inputs = {"images": images, "masks": masks}
    check_parity(graphs.student, inputs, {"probabilities": expected}, atol=1e-4)
    means = {"mean_probabilities": expected.mean(axis=0), "scores": own.score(images)}
    check_parity(graphs.served, inputs, means, atol=1e-4)
    reconstructed = run_graph(graphs.reformed, inputs, ["reconstruction"])["reconstruction"]
    of_reformed = mc_probabilities(served, reconstructed, masks).mean(axis=0)
    check_parity(graphs.reformed, inputs, {"mean_probabilities": of_reformed}, atol=1e-4)


def test_a_served_graph_stands_in_for_the_trunk_too(student: Classifier, part: Part) -> None:
    graphs, images = StudentGraphs(student, None, SHAPE, trunk=part), drawn(5, seed=4)
    from_bundle = LoweredTrunk.of_graph(graphs.served)
    np.testing.assert_allclose(
        from_bundle(to_float(images)), lowered_copy(student, part).trunk(to_float(images)), atol=1e-5
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_images_give_the_same_graph(trunk: Part, precision: Precision) -> None:
    first, second = (lowered(trunk, drawn(48), precision).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_parts_of_different_operators_are_not_put_together(student: Classifier, trunk: Part) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(trunk.model)
    other.opset_import[0].version -= 1
    with pytest.raises(ValueError, match="two versions of the operators"):
        _ = StudentGraphs(student, None, SHAPE, trunk=Part(other)).student
