"""Learning rates as pure functions of the step: nothing of a schedule needs to be kept in a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from models.spec_fields import FitSpec

WARM_UP_SHARE = 0.3
START_DIVISOR, END_DIVISOR = 25.0, 25.0 * 1e4
LOW_MOMENTUM, HIGH_MOMENTUM = 0.85, 0.95

DECAY_EPOCHS, RATE_DECAY, MOMENTUM_DECAY = 10, 0.95, 0.5
"""Papernot et al. 2016, table II: what rate and momentum are multiplied by every ten epochs."""


@dataclass(frozen=True)
class Rates:
    """What the optimiser uses for one step."""

    lr: float
    momentum: float

    def set_on(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.lr
            if "betas" in group:
                group["betas"] = (self.momentum, *group["betas"][1:])
            else:
                group["momentum"] = self.momentum


def rates(spec: FitSpec, step: int, steps_an_epoch: int) -> Rates:
    """Of step 0 … epochs · steps_an_epoch - 1, by `spec.schedule`."""
    total = spec.epochs * steps_an_epoch
    if spec.schedule == "one_cycle":
        return one_cycle(step, total, spec.peak_lr)
    if spec.schedule == "cosine":
        return Rates(_cosine(spec.peak_lr, 0.0, step / total), spec.momentum)
    if spec.schedule == "decay":
        tens = step // steps_an_epoch // DECAY_EPOCHS
        return Rates(spec.peak_lr * RATE_DECAY**tens, spec.momentum * MOMENTUM_DECAY**tens)
    return Rates(spec.peak_lr, spec.momentum)


def one_cycle(step: int, total_steps: int, peak_lr: float) -> Rates:
    """Rates of step 0 … total_steps - 1: cosine up to `peak_lr` over 30 % of the steps, cosine down to 4e-6 of it.

    Momentum goes the other way, between 0.95 and 0.85. Source: Smith & Topin 2018; constants of torch's OneCycleLR.
    """
    peak_step = WARM_UP_SHARE * total_steps - 1
    start, end = peak_lr / START_DIVISOR, peak_lr / END_DIVISOR
    if step <= peak_step:
        share = step / peak_step if peak_step > 0 else 1.0
        return Rates(_cosine(start, peak_lr, share), _cosine(HIGH_MOMENTUM, LOW_MOMENTUM, share))
    left = total_steps - 1 - peak_step
    share = (step - peak_step) / left if left > 0 else 1.0
    return Rates(_cosine(peak_lr, end, share), _cosine(LOW_MOMENTUM, HIGH_MOMENTUM, share))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
