"""The attack that needs no gradient, only answers: Square attack in an L∞ box.

n images: x float (n, c, h, w) in [0, 1]. The objective is queried and never differentiated.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.attacks.eight_bit import linf_box
from models.attacks.gradient import evaluating, margin

Objective = Callable[[Tensor, Tensor], Tensor]
"""Images (k, c, h, w), and which rows of x they come from (k,), to a number each (k,): positive where he has won."""

HALVED_AFTER = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries after which the squares' area is halved. Source: Andriushchenko et al. 2020, section 3.1."""


def square_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps_linf: float,
    queries: int,
    eight_bit: bool = True,
    rng: torch.Generator,
) -> Tensor:
    """`square` on the margin of a model that gives logits (n, classes), away from the labels y (n,)."""
    with evaluating(model), torch.no_grad():
        return square(
            lambda tried, rows: margin(model(tried), y[rows]),
            x,
            eps_linf=eps_linf,
            queries=queries,
            eight_bit=eight_bit,
            rng=rng,
        )


def square(
    objective: Objective,
    x: Tensor,
    *,
    eps_linf: float,
    queries: int,
    first_share: float = 0.8,
    eight_bit: bool = True,
    rng: torch.Generator,
) -> Tensor:
    """The image of the largest objective met in `queries` queries an image, (n, c, h, w).

    The first query is of vertical stripes of the box's two sides, each other one of a square of one side per channel
    in a random place; what raises the objective is kept. An image that has won is not asked about again.
    first_share: of the pixels, covered by the first squares. eight_bit: the box is one of levels, and so is the answer.
    Raises ValueError where queries < 1, first_share is outside (0, 1] or eps_linf is negative.
    Source: Andriushchenko et al. 2020, algorithms 1 and 2 (L∞); deviation: stripes that do not help are not kept.
    """
    if queries < 1:
        raise ValueError(f"queries must be at least 1, not {queries}")
    if not 0 < first_share <= 1:
        raise ValueError(f"first_share must be in (0, 1], not {first_share}")
    low, high = linf_box(x, eps_linf, eight_bit=eight_bit)
    best = x.detach().clamp(low, high)
    values = objective(best, torch.arange(len(x), device=x.device)).detach()
    for query in range(queries):
        rows = (values <= 0).nonzero().squeeze(1)
        if not len(rows):
            break
        if query == 0:
            changed, up = torch.ones_like(best[rows, :1], dtype=torch.bool), _coins((*best[rows, :, :1].shape,), rng, x)
        else:
            side = _side(first_share, query / queries, (x.shape[2], x.shape[3]))
            changed, up = _places(len(rows), side, x, rng), _coins((len(rows), x.shape[1], 1, 1), rng, x)
        tried = torch.where(changed, torch.where(up, high[rows], low[rows]), best[rows])
        got = objective(tried, rows).detach()
        better = got > values[rows]
        best[rows[better]], values[rows[better]] = tried[better], got[better]
    return best


def _side(first_share: float, spent: float, size: tuple[int, int]) -> int:
    """Of the square, in pixels, once this share of the queries is spent."""
    share = first_share / 2 ** bisect_left(HALVED_AFTER, spent)
    return min(max(1, round(math.sqrt(share * size[0] * size[1]))), *size)


def _places(count: int, side: int, x: Tensor, rng: torch.Generator) -> Tensor:
    """(count, 1, h, w): the pixels of a square, each image's in a place of its own."""
    inside = []
    for length in x.shape[2:]:
        start = torch.randint(0, length - side + 1, (count, 1), generator=rng, device=rng.device).to(x.device)
        place = torch.arange(length, device=x.device)[None]
        inside.append((place >= start) & (place < start + side))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]


def _coins(shape: tuple[int, ...], rng: torch.Generator, x: Tensor) -> Tensor:
    return torch.rand(shape, generator=rng, device=rng.device).to(x.device) < 0.5
