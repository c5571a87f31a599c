"""The attack that changes few pixels a lot: pairs of features chosen by Papernot's saliency map (JSMA).

n images: x float (n, c, h, w) in [0, 1], a feature is one channel of one pixel; y, targets int64 (n,); a model gives
logits (n, classes). The model runs in eval mode; its modes and its parameters' gradients are left as they were found.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from models.attacks.gradient import evaluating, margin
from models.images import chunks

Output = Literal["logits", "probabilities", "log_probabilities"]
PAIRS_AT_ONCE = 2**23
"""Pairs scored together: 32 MiB an intermediate result."""


def jsma(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    *,
    max_features: int,
    theta: float = 1.0,
    output: Output = "logits",
) -> Tensor:
    """x with at most max_features features moved by theta, pair by pair, until it is classed as its target.

    theta: step of a feature, in [-1, 1]; negative darkens. A feature leaves the search once it is at 0 or 1; with
    |theta| < 1 one may be moved again, which costs no more of the budget. Features go in pairs: an odd budget's last
    one stays unused. output: whose Jacobian makes the map. That of the probabilities, which the paper takes, vanishes
    where the softmax saturates, and then nothing moves: gradient masking. The logits do not suffer from it, but their
    map asks that all other logits fall together, and reaches half as many targets. The logarithms of the probabilities
    have neither fault.
    An image for which no pair helps stays as far as it got. From an 8-bit image a theta of whole levels, as ±1 is,
    gives an 8-bit one.
    Raises ValueError where max_features < 2, or theta is 0 or outside [-1, 1].
    Source: Papernot et al. 2016, algorithms 2 and 3. The pair is the best of all pairs: only features that at most
    one other beats in both derivatives can be part of it, and the search runs over those.
    """
    if max_features < 2:
        raise ValueError(f"max_features must be at least 2, not {max_features}")
    if not 0 < abs(theta) <= 1:
        raise ValueError(f"theta must be in [-1, 1] and not 0, not {theta}")
    x_adv = x.detach().flatten(1).clone()
    changed = torch.zeros_like(x_adv, dtype=torch.bool)
    active = torch.arange(len(x), device=x.device)
    limit = 1.0 if theta > 0 else 0.0
    with evaluating(model):
        for _ in range(max_features // 2 * math.ceil(1 / abs(theta))):
            if not len(active):
                break
            images = x_adv[active].view(len(active), *x.shape[1:])
            reached, toward, away = _derivatives(model, images, targets[active], theta, output)
            affordable = changed[active] | (changed[active].sum(1, keepdim=True) + 2 <= max_features)
            movable = (x_adv[active] != limit) & affordable
            pairs, helps = _best_pairs(toward, away, movable)
            going = helps & ~reached
            active, pairs = active[going], pairs[going]
            rows = active[:, None]
            x_adv[rows, pairs] = (x_adv[rows, pairs] + theta).clamp(0, 1)
            changed[rows, pairs] = True
    return x_adv.view(x.shape)


def jsma_untargeted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    max_features: int,
    theta: float = 1.0,
    tries: int = 1,
    output: Output = "logits",
    rng: torch.Generator,
) -> Tensor:
    """jsma towards `tries` different wrong classes of the model's own: the one that fools by the fewest features.

    Where none fools, the one of the largest margin. An image that is misclassified already comes back as it is.
    tries: at most classes - 1, which tries them all. rng: draws the classes. Raises as jsma, and where tries < 1.
    """
    if tries < 1:
        raise ValueError(f"tries must be at least 1, not {tries}")
    with evaluating(model), torch.no_grad():
        logits = model(x)
        margins = margin(logits, y)
    best, cost = x.detach().clone(), torch.where(margins > 0, 0, _cost_of_failing(x, margins))
    todo = (margins <= 0).nonzero().squeeze(1)
    order = _wrong_classes(y, logits.shape[1], rng)[:, :tries]
    for targets in order[todo].unbind(1):
        x_adv = jsma(model, x[todo], targets, max_features=max_features, theta=theta, output=output)
        with evaluating(model), torch.no_grad():
            margins = margin(model(x_adv), y[todo])
        features = (x_adv != x[todo]).flatten(1).sum(1).float()
        price = torch.where(margins > 0, features, _cost_of_failing(x_adv, margins))
        better = price < cost[todo]
        best[todo[better]], cost[todo[better]] = x_adv[better], price[better]
    return best


def _cost_of_failing(x: Tensor, margins: Tensor) -> Tensor:
    """More than any number of features, and less for a larger margin (which is at most 0)."""
    return math.prod(x.shape[1:]) + 1 - margins.clamp(max=0)


def _wrong_classes(y: Tensor, classes: int, rng: torch.Generator) -> Tensor:
    """(n, classes - 1): the classes other than y, in an order drawn for each image."""
    draw = torch.rand((len(y), classes), generator=rng, device=rng.device).to(y.device)
    return draw.scatter(1, y[:, None], 2.0).argsort(1)[:, :-1]


def _derivatives(
    model: nn.Module, x: Tensor, targets: Tensor, theta: float, output: Output
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the target is reached (n,), and what a step of theta's sign does, (n, features) each.

    First how much it raises the target's output, then how much it lowers the sum of the others.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x)
        if output == "log_probabilities":  # to raise the target's is to lower the others' sum: one map
            (toward,) = torch.autograd.grad(logits.log_softmax(1).gather(1, targets[:, None]).sum(), x)
            away = toward
        else:
            outputs = logits.softmax(1) if output == "probabilities" else logits
            wanted = outputs.gather(1, targets[:, None]).sum()
            (toward,) = torch.autograd.grad(wanted, x, retain_graph=True)
            (away,) = torch.autograd.grad(wanted - outputs.sum(), x)
    sign = math.copysign(1, theta)
    return logits.argmax(1) == targets, sign * toward.flatten(1), sign * away.flatten(1)


def _best_pairs(toward: Tensor, away: Tensor, movable: Tensor) -> tuple[Tensor, Tensor]:
    """The pair of features with the largest (sum of toward) · (sum of away), both positive (n, 2); if any (n,)."""
    toward, away = (part.masked_fill(~movable, -torch.inf) for part in (toward, away))
    shortlist = _hardly_beaten(toward, away)
    toward, away = toward.gather(1, shortlist), away.gather(1, shortlist)
    size = shortlist.shape[1]
    first, second = torch.triu_indices(size, size, offset=1, device=toward.device)
    saliency = []
    for rows in chunks(len(toward), max(1, PAIRS_AT_ONCE // len(first))):
        up, down = (part[rows][:, first] + part[rows][:, second] for part in (toward, away))
        saliency.append((up * down).masked_fill((up <= 0) | (down <= 0), -1.0).max(1))
    score, place = (torch.cat(parts) for parts in zip(*saliency, strict=True))
    chosen = torch.stack([first[place], second[place]], dim=1)
    return shortlist.gather(1, chosen), score > 0


def _hardly_beaten(a: Tensor, b: Tensor) -> Tensor:
    """Indices (n, k) of the features that at most one other equals or beats in both a and b, padded with others.

    Of a pair that maximises something increasing in both sums, each half is one of them: put in place of any other
    half one of the two that beat it, and the sums do not fall.
    """
    by_a = a.argsort(dim=1, descending=True, stable=True)
    b = b.gather(1, by_a)
    largest = b.cummax(1).values
    # A feature that enters either is the second largest so far or pushes the largest down to be it.
    pushed = torch.minimum(b[:, 1:], largest[:, :-1])
    second = torch.cat([torch.full_like(b[:, :2], -torch.inf), pushed.cummax(1).values[:, :-1]], dim=1)
    kept = b > second
    size = max(2, int(kept.sum(1).max()))
    return by_a.gather(1, kept.float().topk(size, dim=1).indices)
