"""Norms, gradients and codes of linear models, against what is worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attacked import Linear, linear_case

from models.robustness import code_shift, gradient_amplitude, norms


def test_norms_count_features_and_measure_the_change() -> None:
    x = torch.zeros(2, 1, 2, 2)
    x_adv = torch.tensor([[[[0.3, 0.0], [-0.4, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    found = norms(x, x_adv)
    assert found.l0.tolist() == [2, 0]
    assert found.l2 == pytest.approx([0.5, 0])
    assert found.linf == pytest.approx([0.4, 0])


def test_of_two_classes_the_amplitude_is_p_times_1_minus_p_times_the_mean_weight() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, -1.0, 0.0, 4.0]])
    model = Linear(weight, torch.tensor([0.0, -2.5]))
    x = torch.tensor([[0.5, 0.0, 0.3, 0.25], [1.0, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.125]]).view(3, 1, 2, 2)
    p = 1 / (1 + np.exp(-(np.array([2.5, 2.5, -0.5]) - 2.5)))
    assert p[0] == 0.5
    assert gradient_amplitude(model, x) == pytest.approx(p * (1 - p) * (3 + 1 + 0 + 4) / 4, rel=1e-5)


def test_of_many_classes_it_is_the_mean_of_the_softmax_s_jacobian() -> None:
    model, x, _ = linear_case(classes=5)
    weight = model.weight.detach().double().numpy()
    with torch.no_grad():
        p = model(x).double().softmax(1).numpy()
    jacobian = p[:, :, None] * (weight[None] - (p @ weight)[:, None])
    assert gradient_amplitude(model, x) == pytest.approx(np.abs(jacobian).mean(axis=(1, 2)), rel=1e-4)


def test_the_amplitude_of_a_saturated_softmax_is_nothing() -> None:
    model, x, _ = linear_case(classes=5)
    sharp = Linear(1e4 * model.weight.detach(), model.bias.detach())
    assert gradient_amplitude(sharp, x).tolist() == [0.0] * len(x)


def test_a_linear_code_turns_and_stretches_as_the_image_does() -> None:
    """The code is (2a, 2b) of the two pixels a, b."""
    encode = Linear(2 * torch.eye(2), torch.zeros(2))
    x = torch.tensor([[0.5, 0.0], [0.0, 0.4], [0.0, 0.0]]).view(3, 1, 1, 2)
    x_adv = torch.tensor([[0.3, 0.4], [0.0, 0.8], [0.9, 0.9]]).view(3, 1, 1, 2)
    found = code_shift(encode, x, x_adv)
    assert found.cosine.n == found.norm_ratio.n == 2  # a code of length 0 has no direction
    assert found.cosine.mean == pytest.approx((0.6 + 1) / 2, rel=1e-6)
    assert found.norm_ratio.mean == pytest.approx((1 + 2) / 2, rel=1e-6)
    half_width = 1.959964 * np.std([1, 2], ddof=1) / np.sqrt(2)
    assert found.norm_ratio.high == pytest.approx(1.5 + half_width, rel=1e-6)


def test_a_code_that_turns_back_has_cosine_minus_1() -> None:
    encode = Linear(torch.eye(2), torch.tensor([-0.5, -0.5]))
    x, x_adv = torch.full((2, 1, 1, 2), 0.75), torch.full((2, 1, 1, 2), 0.375)
    found = code_shift(encode, x, x_adv)
    assert found.cosine.mean == pytest.approx(-1)
    assert found.norm_ratio.mean == pytest.approx(0.5)
