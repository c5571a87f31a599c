"""The Square attack raises the margin by answers alone, keeps its box, and goes as far as ART's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from attacked import Untouched, fitted, margins_of, recognised
from torch import Tensor

from models.attacks.gradient import evaluating, pgd, to_8bit
from models.attacks.square import _side, square, square_attack

EPS = 20 / 255


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attacked(x: Tensor, y: Tensor, queries: int, *, seed: int = 0, eight_bit: bool = True) -> Tensor:
    return square_attack(fitted(), x, y, eps_linf=EPS, queries=queries, eight_bit=eight_bit, rng=seeded(seed))


@pytest.mark.parametrize("eight_bit", [False, True])
def test_the_margin_rises_in_the_box_and_more_queries_fool_more(eight_bit: bool) -> None:
    x, y = recognised(60)
    untouched = Untouched(fitted())
    few, many = (attacked(x, y, queries, eight_bit=eight_bit) for queries in (5, 100))
    assert untouched
    for x_adv in (few, many):
        assert (x_adv - x).abs().max() <= EPS + 1e-6
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert not eight_bit or torch.equal(to_8bit(x_adv), x_adv)
    before, after = margins_of(fitted(), x, y), margins_of(fitted(), many, y)
    assert (after > before).float().mean() > 0.95
    assert (margins_of(fitted(), many, y) > 0).sum() > (margins_of(fitted(), few, y) > 0).sum() > 0


def test_gradients_find_more_than_queries_and_not_much_more() -> None:
    x, y = recognised(60)
    by_gradient = pgd(
        *(fitted(), x, y), eps_linf=EPS, step_linf=EPS / 4, steps=20, restarts=1, loss="margin", rng=seeded()
    )
    shares = [(margins_of(fitted(), x_adv, y) > 0).float().mean() for x_adv in (by_gradient, attacked(x, y, 150))]
    assert shares[0] > 0.4
    assert shares[0] >= shares[1] > 0.2 * shares[0]


def test_it_asks_only_about_images_that_have_not_fallen_and_never_for_a_gradient() -> None:
    x, asked = torch.full((3, 1, 8, 8), 0.5), []

    def objective(tried: Tensor, rows: Tensor) -> Tensor:
        asked.append(rows.tolist())
        return torch.where(rows == 1, 1.0, -1.0).requires_grad_(True)

    square(objective, x, eps_linf=0.1, queries=3, rng=torch.Generator().manual_seed(0))
    assert asked == [[0, 1, 2], [0, 2], [0, 2], [0, 2]]


def test_what_does_not_help_is_not_kept() -> None:
    x = to_8bit(torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(0)))
    kept = square(
        lambda tried, rows: -(tried - x[rows]).abs().sum((1, 2, 3)) - 1, x, eps_linf=0.1, queries=20, rng=seeded()
    )
    assert torch.equal(kept, x)


def test_squares_shrink_as_the_paper_says() -> None:
    sides = [_side(0.8, spent, (100, 100)) ** 2 / 10_000 for spent in (0, 0.004, 0.01, 0.03, 0.9)]
    assert sides == pytest.approx([0.8, 0.4, 0.2, 0.1, 0.8 / 512], rel=0.05)
    assert _side(1.0, 0.0, (8, 5)) == 5


@pytest.mark.slow  # ART takes seconds to import
def test_it_fools_as_many_as_art_at_the_same_queries() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.evasion import SquareAttack
        from art.estimators.classification import PyTorchClassifier
    x, y = recognised(150)
    with evaluating(fitted()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PyTorchClassifier(fitted(), torch.nn.CrossEntropyLoss(), (1, 16, 16), 10, clip_values=(0, 1))
        np.random.seed(0)
        oracle = SquareAttack(wrapped, eps=EPS, max_iter=200, verbose=False)
        theirs = torch.from_numpy(oracle.generate(x.numpy(), np.eye(10)[y.numpy()]))
    shares = [
        (margins_of(fitted(), x_adv, y) > 0).float().mean() for x_adv in (attacked(x, y, 200, eight_bit=False), theirs)
    ]
    assert shares[1] > 0.2
    assert shares[0] == pytest.approx(float(shares[1]), abs=0.1)


@pytest.mark.parametrize(("name", "value"), [("queries", 0), ("first_share", 0.0), ("eps_linf", -0.1)])
def test_bad_arguments_are_refused(name: str, value: float) -> None:
    x, y = recognised(2)
    arguments = {"eps_linf": 0.1, "queries": 1} | {name: value}
    with pytest.raises(ValueError, match=name):
        square(lambda tried, rows: margins_of(fitted(), tried, y[rows]), x, rng=seeded(), **arguments)
