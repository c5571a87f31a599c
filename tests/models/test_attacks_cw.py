"""C&W finds the nearest boundary where it is known, beats foolbox's, keeps its box, and survives 8 bits."""

from __future__ import annotations

import pytest
import torch
from attacked import Untouched, digits, fitted, foolbox, l2, linear_case, margins_of, recognised
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attacks.carlini_wagner import carlini_wagner
from models.attacks.eight_bit import linf_box
from models.attacks.gradient import evaluating, to_8bit


@pytest.mark.slow
def test_on_a_linear_model_the_change_is_the_distance_to_the_nearest_boundary() -> None:
    model, x, y = linear_case(classes=5)
    x_adv = carlini_wagner(model, x, y, eps_linf=None, lr=0.01, steps=100, search_steps=6, eight_bit=False)
    assert (margins_of(model, x_adv, y) > 0).all()
    least = model.least_l2(x, y)
    assert (l2(x_adv - x) >= least - 1e-5).all()
    assert (l2(x_adv - x) <= 1.05 * least + 1e-3).all()


def test_it_fools_and_survives_eight_bits_nearer_than_foolbox() -> None:
    x, y = recognised(30)
    model = fitted()
    x_adv = carlini_wagner(model, x, y, eps_linf=None)
    assert torch.equal(to_8bit(x_adv), x_adv)
    assert (margins_of(model, x_adv, y) > 0).all()
    with evaluating(model):
        oracle = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.L2CarliniWagnerAttack(1, steps=100, stepsize=0.1, initial_const=1, abort_early=False)
        theirs, _, fooled = attack(oracle, x, y, epsilons=None)
    assert fooled.float().mean() > 0.9
    assert l2(x_adv - x)[fooled].median() <= 1.05 * l2(theirs - x)[fooled].median()
    assert l2(x_adv - x).median() > 0.1  # where it is nearer than this, the network was fooled by nothing


@pytest.mark.parametrize("eps", [0.02, 0.1])
def test_the_box_holds_and_the_margin_rises_in_it(eps: float) -> None:
    x, y = recognised(60)
    before = margins_of(fitted(), x, y)
    x_adv = carlini_wagner(fitted(), x, y, eps_linf=eps)
    assert (x_adv - x).abs().max() <= eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (margins_of(fitted(), x_adv, y) > before).all()
    if eps == 0.1:
        assert (margins_of(fitted(), x_adv, y) > 0).float().mean() > 0.3


def test_pixels_at_0_and_1_move() -> None:
    model, _, _ = linear_case(classes=3)
    x = (torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(3)) > 0.5).float()
    y = model(x).argmax(1)
    x_adv = carlini_wagner(model, x, y, eps_linf=None, search_steps=4)
    assert (margins_of(model, x_adv, y) > 0).all()
    assert ((x_adv != x) & (x == 0)).any()
    assert ((x_adv != x) & (x == 1)).any()


@pytest.mark.slow
def test_more_confidence_goes_further_and_a_target_is_reached() -> None:
    x, y = recognised(20)
    model = fitted()
    weak = carlini_wagner(model, x, y, eps_linf=None, search_steps=3)
    strong = carlini_wagner(model, x, y, eps_linf=None, confidence=2.0, search_steps=3)
    assert (margins_of(model, strong, y) >= 2).all()
    assert l2(strong - x).mean() > l2(weak - x).mean()
    target = (y + 1) % 10
    aimed = carlini_wagner(model, x, target, eps_linf=None, search_steps=3, targeted=True)
    assert (margins_of(model, aimed, target) < 0).all()
    assert l2(aimed - x).mean() > l2(weak - x).mean()


@pytest.mark.slow
def test_the_search_shortens_the_change() -> None:
    x, y = recognised(20)
    one, many = (carlini_wagner(fitted(), x, y, eps_linf=None, weight=20.0, search_steps=k) for k in (1, 5))
    assert (l2(many - x) <= l2(one - x)).all()
    assert l2(many - x).mean() < 0.95 * l2(one - x).mean()


def test_an_image_that_is_wrong_already_stays_and_nothing_else_moves() -> None:
    x, y = digits()[0][:10], (digits()[1][:10] + 5) % 10
    untouched = Untouched(fitted())
    wrong = margins_of(fitted(), x, y) > 0
    assert wrong.sum() > 5
    assert torch.equal(carlini_wagner(fitted(), x, y, eps_linf=0.1, steps=5)[wrong], x[wrong])
    assert untouched
    assert not x.requires_grad


def test_an_image_is_attacked_alike_in_any_batch() -> None:
    x, y = recognised(4)
    alone = torch.cat([carlini_wagner(fitted(), x[i : i + 1], y[i : i + 1], eps_linf=0.1, steps=20) for i in range(4)])
    together = carlini_wagner(fitted(), x, y, eps_linf=0.1, steps=20)
    assert (l2(alone - together) <= 0.05 * l2(together - x) + 1e-6).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=20), st.floats(0, 0.5))
def test_a_box_of_levels_lies_in_the_box_and_holds_the_image(levels: list[int], eps: float) -> None:
    x = torch.tensor(levels).float() / 255
    low, high = linf_box(x, eps, eight_bit=True)
    assert (low <= x + 1e-6).all()
    assert (high >= x - 1e-6).all()
    assert (x - low).max() <= eps + 1e-5
    assert (high - x).max() <= eps + 1e-5
    assert torch.equal(to_8bit(low), low)
    assert torch.equal(to_8bit(high), high)


def test_bad_arguments_are_refused() -> None:
    x, y = recognised(2)
    with pytest.raises(ValueError, match="steps"):
        carlini_wagner(fitted(), x, y, eps_linf=None, steps=0)
    with pytest.raises(ValueError, match="eps_linf"):
        carlini_wagner(fitted(), x, y, eps_linf=-0.1)
