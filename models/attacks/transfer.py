"""The attack by proxy: made against networks that the attacker owns, for a network that he has never seen.

n images: x float (n, c, h, w) in [0, 1]; y int64 (n,), the labels to move away from; a model gives logits (n, classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from models.attacks.gradient import evaluating, margin

TINY = 1e-12


def transfer(
    sources: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    eps_linf: float,
    step_linf: float,
    steps: int,
    momentum: float = 1.0,
) -> Tensor:
    """Where momentum leads after `steps` steps up the sources' mean loss, in the eps box and [0, 1], (n, c, h, w).

    The loss of a source is its margin over the spread of its logits, so that none outweighs the others and none
    saturates. The last iterate counts: what fools the sources barely does not carry over.
    Raises ValueError without sources, or where steps < 1.
    Source: Dong et al. 2018 (momentum iterative FGSM, ensembles); deviation: margins instead of cross-entropy.
    """
    if not sources or steps < 1:
        raise ValueError(f"want a source and a step at least, not {len(sources)} and {steps}")
    low, high = (x.detach() - eps_linf).clamp(0, 1), (x.detach() + eps_linf).clamp(0, 1)
    x_adv, velocity = x.detach(), torch.zeros_like(x)
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(evaluating(source))
        for _ in range(steps):
            gradient = torch.stack([_gradient(source, x_adv, y) for source in sources]).mean(0)
            length = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=TINY)
            velocity = momentum * velocity + gradient / length
            x_adv = (x_adv + step_linf * velocity.sign()).clamp(low, high)
    return x_adv


def _gradient(source: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = source(x)
        scaled = logits / logits.detach().std(1, keepdim=True).clamp(min=TINY)
        (gradient,) = torch.autograd.grad(margin(scaled, y).sum(), x)
    return gradient
