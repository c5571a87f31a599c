"""The attacker who knows the detector: PGD that wants the classifier wrong and the detector silent at once.

n images: x float (n, c, h, w) in [0, 1]; y int64 (n,), the labels to move away from; a model gives logits (n, classes),
a detector scores (n,), higher is more suspicious. Both run in eval mode and are left as they were found.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.attacks.eight_bit import linf_box, seen_in_8bit
from models.attacks.gradient import evaluating, margin, to_8bit

Score = Callable[[Tensor], Tensor]
"""(n, c, h, w) to (n,), differentiable; an image's score must not depend on its batch."""


@dataclass
class _Best:
    """Per image: the least score among iterates that fool, else the largest margin."""

    x: Tensor
    scores: Tensor
    margins: Tensor

    def offer(self, x_adv: Tensor, scores: Tensor, margins: Tensor) -> None:
        fooled = margins > 0
        quieter = fooled & (scores < self.scores)
        stronger = ~fooled & self.scores.isinf() & (margins > self.margins)
        won = quieter | stronger
        self.x = torch.where(won[:, None, None, None], x_adv, self.x)
        self.scores = torch.where(quieter, scores, self.scores)
        self.margins = torch.where(won, margins, self.margins)


def adaptive_pgd(
    model: nn.Module,
    detector: Score,
    x: Tensor,
    y: Tensor,
    *,
    threshold: float,
    weight: float,
    eps_linf: float,
    step_linf: float,
    steps: int,
    restarts: int,
    confidence: float = torch.inf,
    eight_bit: bool = True,
    rng: torch.Generator,
) -> Tensor:
    """The fooling image of the least detector score met in the eps box; where none fools, that of the largest margin.

    Climbs min(margin, confidence) - weight · score / threshold by the gradient's sign. threshold: what the detector
    flags above, in its own unit. weight: logits a threshold of score is worth; 0 ignores the detector.
    confidence: margin, in logits, beyond which only the detector counts; ∞ never stops climbing the margin.
    The first run starts at x, the others at uniform points of the box.
    eight_bit: model and detector are shown, and the answer is, the image rounded to 8 bits, in a box of levels; use an
    eps_linf of at least 1/255 then, and a step_linf that adds up to levels.
    Raises ValueError where steps or restarts < 1, threshold ≤ 0, weight < 0 or eps_linf < 0.
    Source: Carlini & Wagner 2017b (bypassing ten detection methods), section 3; deviation: sign steps in a box, and
    the best iterate is kept.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be at least 1, not {steps} and {restarts}")
    if threshold <= 0 or weight < 0:
        raise ValueError(f"threshold must be positive and weight not negative, not {threshold} and {weight}")
    x = x.detach()
    low, high = linf_box(x, eps_linf, eight_bit=eight_bit)
    nothing = torch.full_like(x[:, 0, 0, 0], torch.inf)
    best = _Best(x.clone(), nothing, -nothing)
    objective = _Objective(model, detector, y, weight / threshold, confidence, eight_bit)
    with ExitStack() as stack:
        for part in (model, detector):
            if isinstance(part, nn.Module):
                stack.enter_context(evaluating(part))
        for restart in range(restarts):
            share = torch.rand(x.shape, generator=rng, device=rng.device).to(x.device)
            x_adv = x.clamp(low, high) if restart == 0 else low + share * (high - low)
            for _ in range(steps):
                gradient = objective.climb(x_adv, best)
                x_adv = (x_adv + step_linf * gradient.sign()).clamp(low, high)
            objective.climb(x_adv, best)
    return best.x


@dataclass(frozen=True)
class _Objective:
    """weight: logits that one unit of the detector's score is worth."""

    model: nn.Module
    detector: Score
    y: Tensor
    weight: float
    confidence: float
    eight_bit: bool

    def climb(self, x: Tensor, best: _Best) -> Tensor:
        """The direction in which it rises at x, (n, c, h, w); x is offered to `best`."""
        with torch.enable_grad():
            free = x.detach().requires_grad_(True)
            seen = seen_in_8bit(free) if self.eight_bit else free
            margins, scores = margin(self.model(seen), self.y), self.detector(seen)
            gain = margins.clamp(max=self.confidence) - self.weight * scores
            (gradient,) = torch.autograd.grad(gain.sum(), free)
        best.offer(to_8bit(x) if self.eight_bit else x, scores.detach(), margins.detach())
        return gradient
