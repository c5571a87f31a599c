"""DeepFool lands just over the nearest boundary where it is known, agrees with foolbox, and survives 8 bits."""

from __future__ import annotations

import pytest
import torch
from attacked import Linear, Untouched, digits, fitted, foolbox, l2, linear_case, margins_of, recognised
from torch import Tensor

from models.attacks.deepfool import deepfool
from models.attacks.gradient import evaluating, to_8bit


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("overshoot", [0.02, 0.5])
def test_on_a_linear_model_one_step_goes_the_distance_to_the_nearest_boundary(classes: int, overshoot: float) -> None:
    model, x, y = linear_case(classes)
    x_adv = deepfool(model, x, y, steps=1, overshoot=overshoot, eight_bit=False)
    assert (margins_of(model, x_adv, y) > 0).all()
    assert torch.allclose(l2(x_adv - x), (1 + overshoot) * model.least_l2(x, y), rtol=1e-2, atol=1e-4)


def test_the_direction_is_the_normal_of_the_boundary() -> None:
    model, x, y = linear_case(2)
    change = (deepfool(model, x, y, eight_bit=False) - x).flatten(1)
    normal = model.weight[1 - y] - model.weight[y]
    assert torch.cosine_similarity(change, normal.detach()).min() > 0.9999


@pytest.mark.slow
def test_it_fools_as_near_as_foolbox() -> None:
    x, y = recognised(100)
    model = fitted()
    ours = deepfool(model, x, y, eight_bit=False)
    with evaluating(model):
        oracle = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        theirs, _, fooled = foolbox.attacks.L2DeepFoolAttack()(oracle, x, y, epsilons=None)
    assert fooled.all()
    assert (margins_of(model, ours, y) > 0).all()
    ratio = l2(ours - x) / l2(theirs - x)
    assert 0.97 < ratio.median() < 1.05
    assert (ratio < 1.25).float().mean() > 0.95
    assert l2(ours - x).median() > 0.1  # a network that falls at a touch would show nothing


def test_eight_bits_undo_none_of_it_and_cost_little() -> None:
    x, y = recognised(100)
    exact = deepfool(fitted(), x, y, eight_bit=False)
    rounded = deepfool(fitted(), x, y)
    assert (margins_of(fitted(), to_8bit(exact), y) > 0).float().mean() < 1  # else there is nothing to show
    assert torch.equal(to_8bit(rounded), rounded)
    assert (margins_of(fitted(), rounded, y) > 0).all()
    assert l2(rounded - x).mean() < 1.05 * l2(exact - x).mean()


@pytest.mark.parametrize("eight_bit", [False, True])
def test_it_stays_in_0_to_1_from_images_of_0_and_1(eight_bit: bool) -> None:
    model, _, _ = linear_case(4)
    x = (torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    y = model(x).argmax(1)
    x_adv = deepfool(model, x, y, eight_bit=eight_bit)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (margins_of(model, x_adv, y) > 0).all()


def test_an_image_that_is_wrong_already_stays_and_nothing_else_moves() -> None:
    x, y = digits()[0][:10], (digits()[1][:10] + 5) % 10
    wrong = margins_of(fitted(), x, y) > 0
    assert wrong.sum() > 5
    untouched = Untouched(fitted())
    assert torch.equal(deepfool(fitted(), x, y)[wrong], x[wrong])
    assert untouched
    assert not x.requires_grad


def test_an_image_is_attacked_alike_in_any_batch() -> None:
    x, y = recognised(5)
    alone = torch.cat([deepfool(fitted(), x[i : i + 1], y[i : i + 1], eight_bit=False) for i in range(5)])
    assert torch.allclose(alone, deepfool(fitted(), x, y, eight_bit=False), atol=1e-4)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_flat_model_leaves_finite_images(eight_bit: bool) -> None:
    flat = Linear(torch.zeros(3, 36), torch.tensor([50.0, 0.0, 0.0]))
    x: Tensor = torch.full((2, 1, 6, 6), 128 / 255)
    assert torch.equal(deepfool(flat, x, torch.zeros(2, dtype=torch.int64), eight_bit=eight_bit), x)


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("candidates", 0), ("overshoot", 0.0)])
def test_bad_arguments_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        deepfool(fitted(), *recognised(2), **{name: value})
