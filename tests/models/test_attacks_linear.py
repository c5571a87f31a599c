"""PGD and C&W in an L∞ box of linear models, whose best answers are known; and what PGD's restarts are for."""

from __future__ import annotations

import pytest
import torch
from attacked import Linear, l2, linear_case, margins_of
from torch import Tensor, nn

from models.attacks.carlini_wagner import carlini_wagner
from models.attacks.gradient import pgd

EPS = 0.1


def margin_pgd(model: nn.Module, x: Tensor, y: Tensor, *, restarts: int = 1, steps: int = 20) -> Tensor:
    step_linf, rng = 2.5 * EPS / steps, torch.Generator().manual_seed(0)
    return pgd(
        *(model, x, y), eps_linf=EPS, step_linf=step_linf, steps=steps, restarts=restarts, loss="margin", rng=rng
    )


def largest_margin(model: Linear, x: Tensor, y: Tensor, eps_linf: float) -> Tensor:
    """(n,): in the box, in which a linear margin grows by eps times the L1 norm of its weights."""
    with torch.no_grad():
        logits = model(x)
        gaps = logits - logits.gather(1, y[:, None])
        reach = eps_linf * (model.weight - model.weight[y][:, None]).abs().sum(2)
        return (gaps + reach).scatter(1, y[:, None], -torch.inf).amax(1)


def test_pgd_on_the_margin_of_two_classes_ends_in_the_best_corner() -> None:
    model, x, y = linear_case(classes=2)
    toward = model.weight[1 - y] - model.weight[y]
    best = x + EPS * toward.sign().view_as(x)
    torch.testing.assert_close(margin_pgd(model, x, y), best.detach(), atol=1e-6, rtol=0)


def test_of_many_classes_restarts_find_the_best_corner() -> None:
    model, x, y = linear_case(classes=5)
    found = margins_of(model, margin_pgd(model, x, y, restarts=10), y)
    best = largest_margin(model, x, y, EPS)
    assert (found <= best + 1e-4).all()
    torch.testing.assert_close(found, best, atol=1e-3, rtol=0)


class TwoSlopes(nn.Module):
    """Of one pixel: to the left of mid-grey the way up ends in a wrong answer, to the right in a right one."""

    def forward(self, x: Tensor) -> Tensor:
        right = x.flatten(1).squeeze(1) - 0.5
        wrong_by = torch.where(right < 0, -right, 0.1 * right) - EPS / 2
        return torch.stack([torch.zeros_like(wrong_by), wrong_by], dim=1)


@pytest.mark.parametrize(("restarts", "low", "high"), [(1, 0.44, 0.56), (2, 0.7, 0.8), (8, 0.98, 1.0)])
def test_each_restart_of_pgd_is_another_chance(restarts: int, low: float, high: float) -> None:
    """One start of two lies on the slope that fools: of 1000 images 1 - 2⁻ᵏ fall to k restarts."""
    x, y = torch.full((1000, 1, 1, 1), 0.5), torch.zeros(1000, dtype=torch.int64)
    fooled = margins_of(TwoSlopes(), margin_pgd(TwoSlopes(), x, y, restarts=restarts), y) > 0
    assert low <= fooled.float().mean() <= high


def least_l2_in_box(weight: Tensor, gap: Tensor, eps_linf: float) -> Tensor:
    """(n,): of d with weight·d = gap and |d| ≤ eps. It is t·weight, cut off at eps; t by bisection."""
    low, high = torch.zeros_like(gap), torch.full_like(gap, 1e3)
    for _ in range(100):
        middle = (low + high) / 2
        d = (middle[:, None] * weight).clamp(-eps_linf, eps_linf)
        enough = (d * weight).sum(1) >= gap
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return (high[:, None] * weight).clamp(-eps_linf, eps_linf).norm(dim=1)


def test_cw_finds_the_least_change_that_its_box_allows() -> None:
    model, x, y = linear_case(classes=2, count=20)
    weight = (model.weight[1 - y] - model.weight[y]).detach().double()
    gap = -margins_of(model, x, y).double()
    unboxed = gap[:, None] * weight / weight.square().sum(1, keepdim=True)
    eps_linf = float(0.8 * unboxed.abs().amax(1).median())
    assert (unboxed.abs().amax(1) > eps_linf).float().mean() > 0.9, "the box binds"
    assert (gap < 0.9 * eps_linf * weight.abs().sum(1)).all(), "and leaves a way"
    x_adv = carlini_wagner(model, x, y, eps_linf=eps_linf, lr=0.01, steps=100, search_steps=6, eight_bit=False)
    assert (margins_of(model, x_adv, y) > 0).all()
    assert (x_adv - x).abs().max() <= eps_linf + 1e-6
    least = least_l2_in_box(weight, gap, eps_linf).float()
    assert (l2(x_adv - x) >= least - 1e-4).all()
    assert (l2(x_adv - x) <= 1.05 * least + 1e-3).all()
    assert (least > 1.001 * l2(unboxed.float())).float().mean() > 0.9, "farther than without the box"


def test_where_no_change_in_the_box_fools_cw_goes_as_far_as_it_can() -> None:
    model, x, y = linear_case(classes=2)
    across = (model.weight[0] - model.weight[1]).detach().abs().sum()
    eps_linf = float(0.5 * (-margins_of(model, x, y)).min() / across)
    best = largest_margin(model, x, y, eps_linf)
    assert (best < 0).all()
    x_adv = carlini_wagner(model, x, y, eps_linf=eps_linf, lr=0.01, steps=100, search_steps=4, eight_bit=False)
    torch.testing.assert_close(margins_of(model, x_adv, y), best, rtol=0.01, atol=1e-3)
