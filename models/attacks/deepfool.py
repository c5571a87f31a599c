"""The attack that steps to the nearest boundary of the model made linear, again and again: DeepFool in L2.

n images: x float (n, c, h, w) in [0, 1]; y int64 (n,), the labels to move away from; a model gives logits (n, classes).
The model runs in eval mode; its modes and its parameters' gradients are left as they were found.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attacks.gradient import evaluating, margin, to_8bit

BEYOND = 1e-4
"""Added to the gap, in logits, so that a step that lands on the boundary itself crosses it."""
FLAT = 1e-20
"""The least squared length of a normal: where a gradient is zero the step is zero, and not 0·∞."""
DOUBLINGS = 12
BISECTIONS = 6
"""Of the overshoot, where the least that survives the rounding is looked for."""


def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    eight_bit: bool = True,
) -> Tensor:
    """x moved just over the nearest boundary met, clipped to [0, 1], (n, c, h, w).

    An image stops moving when it fools, and comes back as far as it got where it never does; one that is
    misclassified already comes back as it is (rounded where eight_bit).
    overshoot: share by which the change is lengthened in the end. candidates: the wrong classes looked at, those of
    the largest logits at the start; each costs a backward pass a step.
    eight_bit: the answer is rounded to 8 bits, its overshoot raised image by image to the least that still fools.
    Raises ValueError where steps or candidates < 1, or overshoot ≤ 0.
    Source: Moosavi-Dezfooli et al. 2016, algorithm 2; deviations: y is the given label; pixels that would leave [0, 1]
    are clipped at every step; the least surviving overshoot is found by doubling, then bisection.
    """
    if steps < 1 or candidates < 1:
        raise ValueError(f"steps and candidates must be at least 1, not {steps} and {candidates}")
    if overshoot <= 0:
        raise ValueError(f"overshoot must be positive, not {overshoot}")
    x = x.detach()
    with evaluating(model):
        with torch.no_grad():
            logits = model(x)
        wrong = logits.scatter(1, y[:, None], -torch.inf)
        wrong = wrong.topk(min(candidates, logits.shape[1] - 1), dim=1).indices
        x_adv = x.clone()
        active = (margin(logits, y) <= 0).nonzero().squeeze(1)
        for _ in range(steps):
            if not len(active):
                break
            x_adv[active] = _step(model, x_adv[active], y[active], wrong[active])
            fooled = _fools(model, _over(x[active], x_adv[active], overshoot, eight_bit=False), y[active])
            active = active[~fooled]
        return _overshot(model, x, x_adv, y, overshoot=overshoot, eight_bit=eight_bit)


def _step(model: nn.Module, x: Tensor, y: Tensor, wrong: Tensor) -> Tensor:
    """x on the nearest of the boundaries to the wrong classes (n, k), the model taken as linear around x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x)
        gaps = logits.gather(1, wrong) - logits.gather(1, y[:, None])
        normal = torch.stack([torch.autograd.grad(gap.sum(), x, retain_graph=True)[0] for gap in gaps.unbind(1)], 1)
    squared = normal.square().flatten(2).sum(2).clamp(min=FLAT)
    nearest = (gaps.detach().abs() / squared.sqrt()).argmin(1)
    rows = torch.arange(len(x), device=x.device)
    length = (gaps.detach()[rows, nearest].abs() + BEYOND) / squared[rows, nearest]
    moved: Tensor = x.detach() + length[:, None, None, None] * normal[rows, nearest]
    return moved.clamp(0, 1)


def _over(x: Tensor, x_adv: Tensor, overshoot: float | Tensor, *, eight_bit: bool) -> Tensor:
    moved = (x + (1 + overshoot) * (x_adv - x)).clamp(0, 1)
    return to_8bit(moved) if eight_bit else moved


@torch.no_grad()
def _fools(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    fooled: Tensor = margin(model(x), y) > 0
    return fooled


def _overshot(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, overshoot: float, eight_bit: bool) -> Tensor:
    """x_adv lengthened by `overshoot`; where eight_bit, by the least multiple of it that fools once rounded."""
    if not eight_bit:
        return _over(x, x_adv, overshoot, eight_bit=False)
    fails, fools = torch.zeros_like(x[:, :1, :1, :1]), torch.full_like(x[:, :1, :1, :1], torch.inf)
    share = fails + overshoot
    for trial in range(DOUBLINGS + BISECTIONS):
        fooled = _fools(model, _over(x, x_adv, share, eight_bit=True), y)[:, None, None, None]
        fools, fails = torch.where(fooled, share, fools), torch.where(fooled, fails, share)
        if trial == 0:
            fails = torch.where(fooled, share, fails)  # what survives the asked overshoot is not shortened
        share = torch.where(fools.isinf(), 2 * share, (fails + fools) / 2)
    return _over(x, x_adv, torch.where(fools.isinf(), overshoot, fools), eight_bit=True)
