"""The network's shapes and invariances, its explicit dropout, and the augmentation it trains with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.abstention import dropout_masks
from models.augmentation import augment
from models.classifiers import GridPool, ImageNorm, build_classifier
from models.specs import ClassifierSpec, DistillSpec
from models.uncertainty import mc_probabilities

SMALL = ClassifierSpec(width=4, hidden=32)
SHAPES = [(8, 8, 1), (9, 9, 3), (28, 28, 1), (30, 30, 3), (32, 32, 3), (24, 60, 3), (100, 100, 1), (256, 256, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_any_size_gives_logits_and_the_head_continues_the_trunk(shape: tuple[int, int, int]) -> None:
    network = build_classifier(SMALL, num_classes=7, image_shape=shape, seed=0).eval()
    x = torch.rand(3, shape[2], *shape[:2], generator=torch.Generator().manual_seed(1))
    features = network.trunk(x)
    assert features.shape == (3, network.feature_dim)
    assert network(x).shape == (3, 7)
    torch.testing.assert_close(network.head(features, None)[0], network(x))
    masks = torch.from_numpy(dropout_masks(5, 32, 0.5, 0))
    by_pass = torch.stack([network.out(features * mask) for mask in masks])
    torch.testing.assert_close(network.head(features, masks), by_pass)


@pytest.mark.parametrize(("height", "width"), [(5, 5), (6, 7), (13, 4), (4, 9), (32, 31)])
def test_grid_pool_is_adaptive_average_pooling(height: int, width: int) -> None:
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(GridPool(height, width)(x), F.adaptive_avg_pool2d(x, 4))


def test_the_seed_decides_the_weights_and_the_global_generator_stays() -> None:
    state = torch.get_rng_state()
    first, again, other = (
        build_classifier(SMALL, num_classes=3, image_shape=(8, 8, 1), seed=seed).hidden.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_normalisation_removes_light_and_contrast_and_survives_an_empty_image() -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    normal = ImageNorm()(x)
    torch.testing.assert_close(normal.mean((1, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(ImageNorm()(0.5 * x + 0.3), normal, atol=0.1, rtol=0)
    empty = torch.full((1, 3, 8, 8), 0.4, requires_grad=True)
    (gradient,) = torch.autograd.grad(ImageNorm()(empty).square().sum() + ImageNorm()(empty).sum(), empty)
    assert torch.isfinite(gradient).all()
    assert ImageNorm()(empty).abs().max() < 1e-5


def test_training_dropout_comes_from_the_generator_and_is_unbiased() -> None:
    network = build_classifier(SMALL, num_classes=5, image_shape=(8, 8, 1), seed=0).eval()
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, again = (network.dropout_logits(x, torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, again)
        many = network.dropout_logits(x.repeat(3000, 1, 1, 1), torch.Generator().manual_seed(4))
        draws = many.view(3000, 2, 5)
        assert (draws.std(dim=0) > 0).all()
        error = (draws.mean(dim=0) - network(x)).abs() / (draws.std(dim=0) / 3000**0.5)
    assert error.max() < 4.5
    assert torch.equal(network.train().head(network.trunk(x), None), network.head(network.trunk(x), None))


def test_mc_passes_are_those_of_the_masks_and_do_vary() -> None:
    network = build_classifier(SMALL, num_classes=5, image_shape=(8, 8, 3), seed=0).train()
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    masks = dropout_masks(6, 32, 0.5, 0)
    probabilities = mc_probabilities(network, images, masks)
    assert probabilities.shape == (6, 300, 5)
    assert probabilities.dtype == np.float32
    assert network.training
    assert (probabilities.var(axis=0).max(axis=1) > 0).all()
    alone = mc_probabilities(network, images[299:], masks[2:3])
    np.testing.assert_allclose(alone[0, 0], probabilities[2, 299], atol=1e-6)
    with torch.no_grad():
        x = torch.from_numpy(images[:4]).permute(0, 3, 1, 2) / 255
        expected = network.eval().out(network.trunk(x) * torch.from_numpy(masks[1])).softmax(dim=1)
    np.testing.assert_allclose(probabilities[1, :4], expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(k, 32\)"):
        mc_probabilities(network, images, masks[:, :5])


def arrow() -> torch.Tensor:
    """White on black, pointing to the left: its mirror image is another sign."""
    x = torch.zeros(64, 1, 16, 16)
    for i in range(6):
        x[:, :, 8 - i : 8 + i, 3 + i] = 1
    return x


def test_augmentation_is_a_function_of_its_generator() -> None:
    x = arrow()
    first, again = (augment(x, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(x, torch.Generator().manual_seed(1)))
    assert not torch.equal(first[0], first[1])
    assert first.shape == x.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_augmentation_moves_a_little_and_never_mirrors() -> None:
    x = arrow()
    changed = augment(x, torch.Generator().manual_seed(0))
    same, mirrored = (
        F.cosine_similarity((changed - changed.mean()).flatten(1), (y - y.mean()).flatten(1)) for y in (x, x.flip(3))
    )
    assert (same > mirrored).all()
    assert 0.5 < same.mean() < 0.99


def layers_of(network: nn.Module) -> list[str]:
    """Those that compute, in their order."""
    said = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            said.append(f"conv {module.out_channels} of {module.kernel_size[0]}×{module.kernel_size[1]}")
        elif isinstance(module, nn.MaxPool2d):
            said.append(f"pool {module.kernel_size}")
        elif isinstance(module, nn.Linear):
            said.append(f"full {module.out_features}")
        elif isinstance(module, nn.ReLU):
            said.append("relu")
    return said


@pytest.mark.parametrize(
    ("preset", "shape", "width", "hidden", "parameters"),
    [
        ("papernot-mnist", (28, 28, 1), 32, 200, 312_202),
        ("papernot-cifar10", (32, 32, 3), 64, 256, 1_147_978),
    ],
)
def test_the_presets_are_papernots_two_networks(
    preset: str, shape: tuple[int, int, int], width: int, hidden: int, parameters: int
) -> None:
    """Source: Papernot et al. 2016, table I. 4 × 4 and 5 × 5 maps are left of 28 and 32 pixels without padding."""
    spec = DistillSpec.model_validate({"preset": preset})
    assert spec.teacher == spec.student
    network = build_classifier(spec.student, num_classes=10, image_shape=shape, seed=0)
    narrow, wide = f"conv {width} of 3×3", f"conv {2 * width} of 3×3"
    assert layers_of(network) == [
        *(narrow, "relu", narrow, "relu", "pool 2"),
        *(wide, "relu", wide, "relu", "pool 2"),
        *(f"full {hidden}", "relu", f"full {hidden}", "full 10"),
    ]
    assert sum(weights.numel() for weights in network.parameters()) == parameters
    assert not list(network.buffers()), "nothing is normalised by what was seen"
    assert network.dropout == 0.5
    features = network.trunk(torch.rand(2, shape[2], *shape[:2], generator=torch.Generator().manual_seed(0)))
    assert features.shape == (2, hidden)
    assert features.min() == 0, "a ReLU follows the second full layer, too"
