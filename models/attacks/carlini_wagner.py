"""The attack that looks for the least L2 change that fools, whatever the softmax hides: Carlini and Wagner.

n images: x float (n, c, h, w) in [0, 1]; y int64 (n,); a model gives logits (n, classes). The model runs in eval mode;
its modes and its parameters' gradients are left as they were found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.attacks.eight_bit import linf_box, seen_in_8bit
from models.attacks.gradient import evaluating, margin, to_8bit

SHRINK = 0.99
"""tanh(w) runs over ±SHRINK while x runs over [0, 1]: over ±1, a pixel at 0 or 1 would have w = ±∞ and no gradient."""
WEIGHT_GROWTH = 10.0
"""What the search multiplies a weight by while no adversarial image has been found."""


@dataclass(frozen=True)
class Goal:
    """y: the label to leave, or to reach where `targeted`. confidence: the margin, in logits, that counts as done."""

    y: Tensor
    targeted: bool
    confidence: float

    def margins(self, logits: Tensor) -> Tensor:
        """(n,): positive where the attack has what it wants."""
        return -margin(logits, self.y) if self.targeted else margin(logits, self.y)

    def reached(self, margins: Tensor) -> Tensor:
        return (margins > 0) & (margins >= self.confidence)


@dataclass
class _Best:
    """The images to return so far: least L2 where the goal is reached, largest margin where it never was."""

    x: Tensor
    squared_l2: Tensor
    margins: Tensor

    def offer(self, x_adv: Tensor, squared_l2: Tensor, margins: Tensor, reached: Tensor) -> None:
        nearer = reached & (squared_l2 < self.squared_l2)
        stronger = ~reached & self.squared_l2.isinf() & (margins > self.margins)
        won = nearer | stronger
        self.x = torch.where(won[:, None, None, None], x_adv, self.x)
        self.squared_l2 = torch.where(nearer, squared_l2, self.squared_l2)
        self.margins = torch.where(won, margins, self.margins)


def carlini_wagner(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps_linf: float | None,
    steps: int = 100,
    lr: float = 0.1,
    weight: float = 1.0,
    confidence: float = 0.0,
    search_steps: int = 1,
    targeted: bool = False,
    eight_bit: bool = True,
) -> Tensor:
    """The fooling image of least L2 met per image; where none was met, the one of the largest margin. (n, c, h, w).

    Adam descends ‖x_adv - x‖² + weight · max(confidence - margin, 0) over w, where x_adv is a tanh of w.
    eps_linf: every step is projected to this box around x; None for [0, 1] alone. lr: of w. weight: of the margin; with
    search_steps > 1 it is searched per image, ×10 while nothing fools, then by bisection. confidence: in logits.
    y: the labels to move away from, or towards where `targeted`.
    eight_bit: the classifier is shown, and the answer is, the image rounded to 8 bits; the box is one of levels.
    An image that already meets the goal comes back as it is (rounded where eight_bit).
    Raises ValueError where steps or search_steps < 1, or eps_linf < 0.
    Source: Carlini & Wagner 2017, section V; the box and the defaults: Hlihor et al. Deviations: the box is kept by
    clamping w, the same projection as tanh is monotone; rounding is in the loss, by a straight-through gradient.
    """
    if steps < 1 or search_steps < 1:
        raise ValueError(f"steps and search_steps must be at least 1, not {steps} and {search_steps}")
    x, goal = x.detach(), Goal(y, targeted, confidence)
    box = linf_box(x, eps_linf, eight_bit=eight_bit)
    nothing = torch.full_like(x[:, 0, 0, 0], torch.inf)
    best = _Best(x.clone(), nothing, -nothing)
    weights, low, high = torch.full_like(nothing, weight), torch.zeros_like(nothing), nothing
    with evaluating(model):
        for _ in range(search_steps):
            fooled = _descend(model, x, goal, weights, best, box=box, steps=steps, lr=lr, eight_bit=eight_bit)
            low, high = torch.where(fooled, low, weights), torch.where(fooled, weights, high)
            weights = torch.where(high.isinf(), weights * WEIGHT_GROWTH, (low + high) / 2)
    return best.x


def _descend(
    model: nn.Module,
    x: Tensor,
    goal: Goal,
    weights: Tensor,
    best: _Best,
    *,
    box: tuple[Tensor, Tensor],
    steps: int,
    lr: float,
    eight_bit: bool,
) -> Tensor:
    """Offer every iterate to `best`; where any of them reached the goal, (n,)."""
    low, high = (_unbounded(side) for side in box)
    w = torch.clamp(_unbounded(x), low, high).requires_grad_(True)
    adam = torch.optim.Adam([w], lr=lr)
    ever = torch.zeros_like(weights, dtype=torch.bool)
    for step in range(steps + 1):
        with torch.enable_grad():
            x_free = _bounded(w)
            x_free = x_free + (x_free.clamp(*box) - x_free).detach()  # what float32 puts outside keeps its gradient
            x_adv = seen_in_8bit(x_free) if eight_bit else x_free
            margins = goal.margins(model(x_adv))
            squared_l2 = (x_free - x).square().flatten(1).sum(1)
            loss = (squared_l2 + weights * (goal.confidence - margins).clamp(min=0)).sum()
        reached = goal.reached(margins.detach())
        kept = to_8bit(x_free.detach()) if eight_bit else x_free.detach()
        best.offer(kept, (kept - x).square().flatten(1).sum(1), margins.detach(), reached)
        ever |= reached
        if step < steps:
            (w.grad,) = torch.autograd.grad(loss, w)
            adam.step()
            with torch.no_grad():
                w.clamp_(low, high)
    return ever


def _unbounded(x: Tensor) -> Tensor:
    return torch.atanh((2 * x - 1) * SHRINK)


def _bounded(w: Tensor) -> Tensor:
    return (torch.tanh(w) / SHRINK + 1) / 2
