"""The autoencoders and their scores: shapes, fixed parts, and closed-form cases."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.autoencoders.bottleneck import BottleneckAutoencoder
from models.autoencoders.residual import ResidualDenoiser
from models.detectors.reconstruction_error import reconstruction_error
from models.detectors.residual_energy import residual_energy
from models.seeding import seeded

SHAPES = [(1, 8, 8), (3, 9, 13), (1, 28, 28), (3, 32, 32), (3, 50, 65), (3, 256, 256)]


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def denoiser(channels: int = 3, depth: int = 3) -> ResidualDenoiser:
    with seeded(1):
        return ResidualDenoiser(channels=channels, width=8, depth=depth, eps_linf=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_give_back_the_shape_and_range_they_take(shape: tuple[int, int, int]) -> None:
    x = some(2, *shape)
    with seeded(1), torch.no_grad():
        x_hat = BottleneckAutoencoder(image_shape=shape, width=8, latent=16)(x)
        network = denoiser(shape[0])
        perturbation = network(x)
    assert x_hat.shape == perturbation.shape == x.shape
    assert 0 <= x_hat.min() <= x_hat.max() <= 1
    removed = network.remove(x, perturbation * 1000)
    assert 0 <= removed.min() <= removed.max() <= 1


def test_the_bottleneck_passes_only_its_code() -> None:
    with seeded(1):
        network = BottleneckAutoencoder(image_shape=(3, 64, 64), width=8, latent=5)
    assert network.encode.out_features == network.decode.in_features == 5
    assert max(network.map_shape[1:]) <= 8
    x = some(40, 3, 64, 64)
    with torch.no_grad():
        variation = network(x).double().flatten(1)
    assert torch.linalg.matrix_rank(network.decode.weight) == 5
    assert variation.std(0).max() < x.flatten(1).std(0).max()


def test_the_high_pass_is_blind_to_slopes_and_sees_one_level() -> None:
    network = denoiser(1)
    kernel = network.get_buffer("kernel")
    slope = torch.linspace(0, 1, 16).repeat(16, 1)[None, None]
    assert torch.nn.functional.conv2d(slope, kernel).abs().max() < 1e-6
    dot = torch.zeros(1, 1, 5, 5)
    dot[..., 2, 2] = 1 / 255
    response = torch.nn.functional.conv2d(dot, kernel)
    assert response.abs().max() == pytest.approx(1 / 255)
    assert "kernel" not in network.state_dict()  # it is no weight: nothing to load, nothing to get wrong


def test_a_bright_images_single_levels_survive_bfloat16() -> None:
    """bfloat16 has steps of a whole level above one half: a high-pass in it would see what is not there."""
    network, levels = denoiser(), 200 + torch.arange(12).reshape(1, 1, 1, 12).expand(1, 3, 12, 12) % 3
    x = levels / 255
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded, perturbation = network._high_pass(x), network(x)
    with torch.no_grad():
        assert torch.equal(rounded, network._high_pass(x))
        assert perturbation.dtype == torch.bfloat16
        assert torch.allclose(perturbation.float(), network(x), atol=0.02)


def test_the_denoiser_sees_an_image_alike_wherever_it_lies() -> None:
    network, x = denoiser(), some(1, 3, 40, 40)
    with torch.no_grad():
        whole, part = network(x), network(x[..., 8:32, 8:32])
    assert torch.allclose(whole[..., 16:24, 16:24], part[..., 8:16, 8:16], atol=1e-5)


@pytest.mark.parametrize("depth", [2, 3, 7])
def test_depth_counts_the_convolutions(depth: int) -> None:
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in denoiser(depth=depth).layers) == depth


def test_removing_the_true_perturbation_restores_the_image() -> None:
    network, x = denoiser(), 0.1 + 0.8 * some(2, 3, 16, 16)
    perturbation = 2 * some(2, 3, 16, 16, seed=1) - 1
    assert torch.allclose(network.remove(x + 0.01 * perturbation, perturbation), x, atol=1e-6)


def test_reconstruction_error_is_the_mean_square_in_pixel_range() -> None:
    x = torch.zeros(2, 3, 8, 8)
    shifted = x.clone()
    shifted[1] += 0.1
    assert reconstruction_error(x, shifted).tolist() == pytest.approx([0.0, 0.01])


def test_residual_energy_is_in_units_of_eps_squared() -> None:
    signs = torch.where(some(4, 3, 16, 16) < 0.5, -1.0, 1.0)
    assert residual_energy(signs).tolist() == pytest.approx([1.0] * 4, rel=1e-5)
    assert residual_energy(signs / 2).tolist() == pytest.approx([0.25] * 4, rel=1e-5)


def test_residual_energy_is_ruled_neither_by_few_pixels_nor_blind_to_them() -> None:
    quiet = torch.full((1, 3, 16, 16), 0.1)
    loud = quiet.clone()
    loud[..., :4, :] = 1.0
    got = residual_energy(loud).item()
    assert got == pytest.approx((0.011**0.75) * (1.001**0.25) - 0.001, rel=1e-4)
    assert 2 * residual_energy(quiet).item() < got < 0.15 * loud.square().mean().item()
    faint = torch.full((1, 3, 16, 16), 1e-4)
    faint[..., :4, :] = 0.5
    assert residual_energy(faint).item() > 1000 * residual_energy(torch.full_like(faint, 1e-4)).item()
    assert residual_energy(torch.zeros(1, 3, 16, 16)).item() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(8, 20), st.integers(8, 20), st.floats(0.1, 10))
def test_residual_energy_lies_between_two_means_and_forgets_places(c: int, h: int, w: int, factor: float) -> None:
    perturbation = factor * some(2, c, h, w)
    energy, pixels = residual_energy(perturbation), perturbation.square().mean(1).flatten(1)
    assert torch.allclose(residual_energy(perturbation.flip(2).roll(3, 3)), energy, rtol=1e-4)
    assert (energy <= pixels.mean(1) * (1 + 1e-5)).all()
    assert (energy >= pixels.log().mean(1).exp() * (1 - 1e-5)).all()
    assert (residual_energy(2 * perturbation) > 2 * energy).all()
