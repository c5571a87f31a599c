"""Attacks that follow the sign of the input gradient inside an L∞ box: FGSM, I-FGSM and PGD.

n images: x float (n, c, h, w) in [0, 1]; y int64 (n,), the labels to move away from; a model gives logits (n, classes).
All of them run the model in eval mode and leave its modes and its parameters' gradients as they found them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AttackLoss = Literal["cross_entropy", "margin"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards every submodule is in the mode it had before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best wrong logit minus the true one, (n,): positive where fooled. Source: Carlini & Wagner 2017, f6."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return wrong - true


def to_8bit(x: Tensor) -> Tensor:
    """x rounded to the nearest of the 256 levels k/255; moves a value by at most 0.5/255 and never out of [0, 1]."""
    return (x * 255).round().clamp(0, 255) / 255


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps_linf: float) -> Tensor:
    """x + eps·sign(∇ₓ cross-entropy), clipped to [0, 1]. Source: Goodfellow et al. 2015, section 4."""
    return ifgsm(model, x, y, eps_linf=eps_linf, step_linf=eps_linf, steps=1)


def ifgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps_linf: float,
    step_linf: float,
    steps: int,
    temperature: float = 1.0,
) -> Tensor:
    """`steps` FGSM steps of `step_linf`, each projected to the eps box around x and to [0, 1]; starts at x.

    temperature: the cross-entropy climbed is that of softmax(logits / temperature).
    Source: Kurakin et al. 2017 (basic iterative method). Raises ValueError where steps < 1 or temperature ≤ 0.
    """
    _check(steps=steps)
    low, high = _box(x, eps_linf)
    x_adv = x.detach()
    with evaluating(model):
        for _ in range(steps):
            gradient, _ = input_gradient(model, x_adv, y, temperature=temperature)
            x_adv = _project(x_adv + step_linf * gradient.sign(), low, high)
    return x_adv


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps_linf: float,
    step_linf: float,
    steps: int,
    restarts: int,
    loss: AttackLoss,
    temperature: float = 1.0,
    rng: torch.Generator,
) -> Tensor:
    """The point of the largest margin met on `restarts` ascents of `steps` steps from uniform starts in the eps box.

    loss: what the ascent climbs. "margin" keeps its gradient where a saturated softmax has none, and so does the
    cross-entropy of softmax(logits / temperature) at the temperature that a student was distilled at.
    Raises ValueError where steps or restarts < 1, or temperature ≤ 0.
    Source: Madry et al. 2018; deviation: the best iterate is kept, not the last.
    """
    _check(steps=steps, restarts=restarts)
    low, high = _box(x, eps_linf)
    best, best_margin = x.detach().clone(), torch.full_like(x[:, 0, 0, 0], -torch.inf)
    with evaluating(model):
        for _ in range(restarts):
            start = torch.rand(x.shape, generator=rng, device=rng.device).to(x.device)
            x_adv = _project(x + eps_linf * (2 * start - 1), low, high)
            for _ in range(steps):
                gradient, margins = input_gradient(model, x_adv, y, loss, temperature=temperature)
                best, best_margin = _better(best, best_margin, x_adv, margins)
                x_adv = _project(x_adv + step_linf * gradient.sign(), low, high)
            with torch.no_grad():
                best, best_margin = _better(best, best_margin, x_adv, margin(model(x_adv), y))
    return best


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")


def _box(x: Tensor, eps_linf: float) -> tuple[Tensor, Tensor]:
    return (x.detach() - eps_linf).clamp(0, 1), (x.detach() + eps_linf).clamp(0, 1)


def _project(x_adv: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return x_adv.detach().clamp(low, high)


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, loss: AttackLoss = "cross_entropy", *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """∇ₓ of the loss, and the margins (n,). The loss is a sum, so that a gradient does not depend on its batch.

    Runs the model in the mode it is in. Raises ValueError where temperature ≤ 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x)
        margins = margin(logits, y)
        total = margins.sum() if loss == "margin" else F.cross_entropy(logits / temperature, y, reduction="sum")
        (gradient,) = torch.autograd.grad(total, x)
    return gradient, margins.detach()


def _better(best: Tensor, best_margin: Tensor, x_adv: Tensor, margins: Tensor) -> tuple[Tensor, Tensor]:
    won = margins > best_margin
    return torch.where(won[:, None, None, None], x_adv, best), torch.where(won, margins, best_margin)
