"""The attacker who knows everything: he wants the answer wrong and every detector silent, at once.

n images: x float (n, c, h, w) in [0, 1]; y int64 (n,), the labels to move away from. What defends runs in the mode it
is in, and nothing of it is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.attacks.eight_bit import linf_box, seen_in_8bit
from models.attacks.gradient import to_8bit

Defence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x, y) to margins (n,), positive where the answer is wrong, and (n, t), by how much each of t detectors' scores
exceeds its limit, in units of the limit: positive where it speaks. Differentiable; an image's numbers must not depend
on its batch. A random defence is attacked in expectation where it averages over draws of its own."""

Schedule = Literal["lagrangian", "blind", "selective", "orthogonal"]
SCHEDULES: tuple[Schedule, ...] = ("lagrangian", "blind", "selective", "orthogonal")
STEP_SHARES = (1.0, 0.5, 0.25, 0.1)
"""Of eps_linf: root mean square over the pixels of the first step; the last step is a tenth of it."""
SLACK = 0.05
"""How far below its limit a score is pressed."""
FIRST_WEIGHT, WEIGHT_UP, WEIGHT_DOWN = 1.0, 1.15, 0.9
LARGEST_WEIGHT = 1e4
TINY = 1e-12


def adaptive_attack(
    defence: Defence,
    x: Tensor,
    y: Tensor,
    *,
    eps_linf: float,
    steps: int,
    restarts: int,
    confidence: float = 0.5,
    schedules: tuple[Schedule, ...] = SCHEDULES,
    step_shares: tuple[float, ...] = STEP_SHARES,
    eight_bit: bool = True,
    rng: torch.Generator,
) -> Tensor:
    """Per image the best met in the eps box: fooling and unflagged, else fooling and least flagged, else nearest to it.

    Each restart takes the next of `schedules` and of `step_shares`, and goes in turn along the gradient itself and
    along its sign, which moves farthest and is seen best. The first round of schedules starts at x, for what changes
    little is seen little; later ones ever farther from it. Steps shrink to a tenth. An image that has fallen is left
    alone.
    schedules: "lagrangian" climbs margin - Σ weight·excess, each image's weights raised while it fools and is flagged
    and lowered while it does not fool; "blind" climbs the margin alone, which is best where what makes an answer wrong
    also makes it sure; "selective" climbs the margin of an image that does not fool, and descends the
    worst excess of one that does; "orthogonal" does so along the part of a gradient that leaves the other alone.
    confidence: margin, in the defence's own unit, beyond which only the detectors count.
    step_shares: of eps_linf, the first step's root mean square over the pixels.
    eight_bit: images are judged, and come back, rounded to 8 bits in a box of levels; the path between is not rounded.
    Raises ValueError where steps or restarts < 1, or eps_linf < 0.
    Source: Carlini & Wagner 2017b; Bryniarski et al. 2021 (selective and orthogonal PGD).
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be at least 1, not {steps} and {restarts}")
    low, high = linf_box(x, eps_linf, eight_bit=eight_bit)
    best = _Best.nothing(x.detach().clamp(low, high))
    climb = _Climb(defence, confidence, eight_bit)
    for restart in range(restarts):
        rows = (~best.won).nonzero().squeeze(1)
        if not len(rows):
            break
        schedule = schedules[restart % len(schedules)]
        step_linf = eps_linf * step_shares[restart % len(step_shares)]
        round_ = restart // len(schedules)
        start = _between(low[rows], high[rows], x.detach()[rows], min(1.0, round_ / 2), rng)
        way = _Way(low[rows], high[rows], schedule, step_linf, steps, signed=restart % 2 == 1)
        for x_adv, margins, excess in climb.run(start, y[rows], way):
            best.offer(rows, x_adv, margins, excess)
    return best.x


def _between(low: Tensor, high: Tensor, x: Tensor, away: float, rng: torch.Generator) -> Tensor:
    """From x so far towards a uniform point of the box."""
    share = torch.rand(x.shape, generator=rng, device=rng.device).to(x.device)
    return (x + away * (low + share * (high - low) - x)).clamp(low, high)


@dataclass
class _Best:
    """worth: in (0, 1) of an image that fools unflagged, in (-2, -1) of one that fools flagged, in (-3, -2) else."""

    x: Tensor
    worth: Tensor
    won: Tensor

    @classmethod
    def nothing(cls, x: Tensor) -> _Best:
        return cls(x.clone(), x.new_full((len(x),), -torch.inf), torch.zeros(len(x), dtype=torch.bool, device=x.device))

    def offer(self, rows: Tensor, x_adv: Tensor, margins: Tensor, excess: Tensor) -> None:
        loudest = excess.amax(1)
        won = (margins > 0) & (loudest < 0)
        kinds = torch.where(won, 0.0, torch.where(margins > 0, -1.0, -2.0))
        worth = kinds + _squashed(torch.where(margins > 0, -loudest, margins))
        better = worth > self.worth[rows]
        self.x[rows[better]], self.worth[rows[better]] = x_adv[better], worth[better]
        self.won[rows] |= won


@dataclass(frozen=True, eq=False)
class _Way:
    """How one restart goes: the box, the schedule, the first step and how many there are."""

    low: Tensor
    high: Tensor
    schedule: Schedule
    step_linf: float
    steps: int
    signed: bool


@dataclass(frozen=True)
class _Climb:
    defence: Defence
    confidence: float
    eight_bit: bool

    def run(self, x: Tensor, y: Tensor, way: _Way) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The images met, as they are judged, with their margins and excesses."""
        weights = None
        for step in range(way.steps + 1):
            seen, margins, excess, of_margin, of_excess = self._gradients(x, y, way.schedule, weights)
            yield seen, margins, excess
            if step == way.steps:
                return
            if way.schedule == "lagrangian":
                weights = _reweighted(weights, margins > 0, excess)
                direction = of_margin
            else:
                if way.schedule == "orthogonal":
                    of_margin, of_excess = _without(of_margin, of_excess), _without(of_excess, of_margin)
                turns = (margins > self.confidence) & (way.schedule != "blind")
                direction = torch.where(turns[:, None, None, None], -of_excess, of_margin)
            shrunk = way.step_linf * (1 - 0.9 * step / way.steps)
            x = (x + shrunk * (direction.sign() if way.signed else _unit(direction))).clamp(way.low, way.high)

    def _gradients(
        self, x: Tensor, y: Tensor, schedule: Schedule, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The image as judged, margins, excesses, and the two gradients; of the Lagrangian the first is its own."""
        with torch.enable_grad():
            free = x.detach().requires_grad_(True)
            seen = seen_in_8bit(free) if self.eight_bit else free
            margins, excess = self.defence(seen, y)
            wanted = margins.clamp(max=self.confidence)
            heard = (excess + SLACK).clamp(min=0)
            if schedule == "lagrangian":
                held = torch.full_like(excess, FIRST_WEIGHT) if weights is None else weights
                (gradient,) = torch.autograd.grad((wanted - (held * heard).sum(1)).sum(), free)
                gradients = (gradient, gradient)
            else:
                (of_margin,) = torch.autograd.grad(margins.sum(), free, retain_graph=True)
                (of_excess,) = torch.autograd.grad(heard.amax(1).sum(), free)
                gradients = (of_margin, of_excess)
        judged = to_8bit(x) if self.eight_bit else x
        return judged, margins.detach(), excess.detach(), *gradients


def _reweighted(weights: Tensor | None, fools: Tensor, excess: Tensor) -> Tensor:
    weights = torch.full_like(excess, FIRST_WEIGHT) if weights is None else weights
    raised = fools[:, None] & (excess + SLACK > 0)
    factor = torch.where(raised, WEIGHT_UP, torch.where(fools[:, None], 1.0, WEIGHT_DOWN))
    return (weights * factor).clamp(max=LARGEST_WEIGHT)


def _without(direction: Tensor, other: Tensor) -> Tensor:
    """The direction less its part along the other."""
    along = (direction * other).sum((1, 2, 3), keepdim=True) / other.square().sum((1, 2, 3), keepdim=True).clamp(
        min=TINY
    )
    return direction - along * other


def _squashed(value: Tensor) -> Tensor:
    """Into (-1, 1), in the same order."""
    return value / (1 + value.abs())


def _unit(direction: Tensor) -> Tensor:
    """Of root mean square 1; zero where the direction is."""
    return direction / direction.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=TINY)
