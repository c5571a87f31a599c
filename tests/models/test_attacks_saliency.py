"""JSMA picks the pair that a search through all pairs picks, keeps its budget, and fools."""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from attacked import Linear, Untouched, digits, fitted, margins_of, recognised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.attacks.gradient import evaluating, to_8bit
from models.attacks.saliency import _best_pairs, jsma, jsma_untargeted

BUDGET = 36
"""14 % of 256 features, as 112 are of 784."""


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def changed(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv != x).flatten(1).sum(1)


def at_random(x: Tensor, theta: float) -> Tensor:
    """x with as many features moved all the way, chosen blindly: what the map has to beat."""
    draw = torch.rand(x[:, 0].flatten(1).shape, generator=rng(7)).argsort(1)
    return x.masked_fill((draw < BUDGET).view_as(x), 1.0 if theta > 0 else 0.0)


def searched(toward: Tensor, away: Tensor, movable: Tensor) -> float:
    """The saliency of the best pair of one image, all pairs tried; 0 where none helps."""
    best = 0.0
    for p, q in combinations(movable.nonzero().flatten().tolist(), 2):
        up, down = (toward[p] + toward[q]).item(), (away[p] + away[q]).item()
        if up > 0 and down > 0:
            best = max(best, up * down)
    return best


small = st.integers(-3, 3).map(float)  # ties are where a shortlist would go wrong


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(small, small, st.booleans()), min_size=2, max_size=12))
def test_the_pair_is_the_best_of_all_pairs(features: list[tuple[float, float, bool]]) -> None:
    toward, away = (torch.tensor([[feature[i] for feature in features]]) for i in (0, 1))
    movable = torch.tensor([[feature[2] for feature in features]])
    pairs, helps = _best_pairs(toward, away, movable)
    best = searched(toward[0], away[0], movable[0])
    assert bool(helps) == (best > 0)
    if helps:
        assert pairs[0, 0] != pairs[0, 1]
        assert movable[0, pairs[0]].all()
        assert toward[0, pairs[0]].sum() * away[0, pairs[0]].sum() == best


def test_the_pair_is_the_best_among_hundreds() -> None:
    toward, away = torch.randn(4, 150, generator=rng()), torch.randn(4, 150, generator=rng(1))
    movable = torch.rand(4, 150, generator=rng(2)) > 0.2
    pairs, _ = _best_pairs(toward, away, movable)
    found = toward.gather(1, pairs).sum(1) * away.gather(1, pairs).sum(1)
    wanted = [searched(toward[i], away[i], movable[i]) for i in range(4)]
    assert torch.allclose(found, torch.tensor(wanted))


@pytest.mark.parametrize("theta", [1.0, -1.0])
def test_on_a_linear_model_the_first_two_features_are_those_found_by_hand(theta: float) -> None:
    weight = torch.zeros(3, 36)
    weight[1, [4, 9]], weight[0, [4, 9]] = theta * 1.0, theta * -1.0  # helps class 1 and hurts class 0
    weight[1, 20] = theta * 1.5  # helps class 1 more, but hurts nobody
    weight[1, 30], weight[2, 30] = theta * 2.0, theta * 5.0  # helps class 2 most
    x = torch.full((1, 1, 6, 6), 128 / 255)
    model = Linear(weight, torch.tensor([9.0, 0.0, 0.0]))
    x_adv = jsma(model, x, torch.tensor([1]), max_features=2, theta=theta)
    assert changed(x_adv, x).item() == 2
    assert (x_adv.flatten()[[4, 9]] == (1 if theta > 0 else 0)).all()


@pytest.mark.parametrize("options", [{}, {"theta": -1.0}, {"theta": 0.2}, {"tries": 9}, {"output": "probabilities"}])
def test_it_fools_within_its_budget(options: dict[str, Any]) -> None:
    x, y = recognised(60)
    untouched = Untouched(fitted())
    x_adv = jsma_untargeted(fitted(), x, y, max_features=BUDGET, rng=rng(), **options)
    assert untouched
    assert not x.requires_grad
    assert changed(x_adv, x).max() <= BUDGET
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    fooled = margins_of(fitted(), x_adv, y) > 0
    blindly = margins_of(fitted(), at_random(x, options.get("theta", 1.0)), y) > 0
    assert fooled.float().mean() > 0.6
    assert fooled.sum() > 3 * blindly.sum()
    assert changed(x_adv, x)[fooled].min() > 0


def test_it_reaches_the_target_it_is_given_and_then_stops() -> None:
    x, y = recognised(60)
    target = (y + 3) % 10
    x_adv = jsma(fitted(), x, target, max_features=BUDGET)
    reached = margins_of(fitted(), x_adv, target) < 0
    assert reached.float().mean() > 0.4
    assert changed(x_adv, x)[reached].float().mean() < 0.7 * BUDGET
    assert torch.equal(jsma(fitted(), x_adv[reached], target[reached], max_features=BUDGET), x_adv[reached])
    assert torch.equal(to_8bit(x_adv), x_adv)


def test_more_targets_cost_fewer_features() -> None:
    x, y = recognised(60)
    one, nine = (jsma_untargeted(fitted(), x, y, max_features=BUDGET, tries=k, rng=rng()) for k in (1, 9))
    fooled = [margins_of(fitted(), x_adv, y) > 0 for x_adv in (one, nine)]
    assert (fooled[1] >= fooled[0]).all()
    assert changed(nine, x)[fooled[0]].float().mean() < 0.8 * changed(one, x)[fooled[0]].float().mean()


def test_an_odd_budget_leaves_its_last_feature() -> None:
    x, y = recognised(10)
    assert changed(jsma(fitted(), x, (y + 1) % 10, max_features=3, theta=0.1), x).max() == 2


def test_a_saturated_softmax_stops_the_map_of_probabilities_and_not_that_of_logits() -> None:
    class Sharp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e5 * fitted()(x)

    x, y = recognised(20)
    fitted().eval()
    target = (y + 1) % 10
    masked = jsma(Sharp(), x, target, max_features=BUDGET, output="probabilities")
    seen = jsma(Sharp(), x, target, max_features=BUDGET, output="logits")
    clear = jsma(Sharp(), x, target, max_features=BUDGET, output="log_probabilities")
    fitted().train()
    fitted()[1].eval()
    assert torch.equal(masked, x)
    assert (margins_of(fitted(), seen, target) < 0).float().mean() > 0.5
    assert (margins_of(fitted(), clear, target) < 0).float().mean() > 0.8


def test_an_image_is_attacked_alike_in_any_batch_and_a_wrong_one_stays() -> None:
    x, y = recognised(6)
    target = (y + 1) % 10
    alone = torch.cat([jsma(fitted(), x[i : i + 1], target[i : i + 1], max_features=8) for i in range(6)])
    assert torch.equal(alone, jsma(fitted(), x, target, max_features=8))
    x, y = digits()[0][:10], (digits()[1][:10] + 5) % 10
    wrong = margins_of(fitted(), x, y) > 0
    assert wrong.sum() > 5
    assert torch.equal(jsma_untargeted(fitted(), x, y, max_features=8, rng=rng())[wrong], x[wrong])


@pytest.mark.parametrize(("name", "value"), [("max_features", 1), ("theta", 0.0), ("theta", 1.5)])
def test_bad_arguments_are_refused(name: str, value: float) -> None:
    x, y = recognised(2)
    arguments: dict[str, Any] = {"max_features": 4} | {name: value}
    with pytest.raises(ValueError, match=name):
        jsma(fitted(), x, y, **arguments)


@pytest.mark.slow  # ART takes seconds to import
def test_it_reaches_as_many_targets_as_art_within_the_same_budget() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.evasion import SaliencyMapMethod
        from art.estimators.classification import PyTorchClassifier
    x, y = recognised(40)
    targets = (y + 1 + torch.arange(len(y)) % 9) % 10
    with evaluating(fitted()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PyTorchClassifier(fitted(), torch.nn.CrossEntropyLoss(), (1, 16, 16), 10, clip_values=(0, 1))
        oracle = SaliencyMapMethod(wrapped, theta=1.0, gamma=BUDGET / 256, verbose=False)
        theirs = torch.from_numpy(oracle.generate(x.numpy(), np.eye(10)[targets.numpy()]))
    reached = (margins_of(fitted(), theirs, targets) < 0).float().mean()
    assert reached > 0.8
    assert changed(theirs, x).max() <= BUDGET + 2
    for output in ("probabilities", "log_probabilities"):
        ours = jsma(fitted(), x, targets, max_features=BUDGET, output=output)
        assert (margins_of(fitted(), ours, targets) < 0).float().mean() >= reached - 0.03
        assert changed(ours, x).float().mean() <= changed(theirs, x).float().mean() + 0.5
