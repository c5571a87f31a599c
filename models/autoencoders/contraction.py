"""What a contractive autoencoder is punished for: how much its code moves with its input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def jacobian_norm(encode: Callable[[Tensor], Tensor], x: Tensor, rng: torch.Generator, *, draws: int = 1) -> Tensor:
    """An unbiased estimate of ‖∂ encode(x) / ∂ x‖² (Frobenius, squared) of each image: (n, …) to (n,).

    encode: (n, …) to (n, latent), each row of its own input alone. Hutchinson's estimate: the mean over `draws` random
    signs v of ‖Jᵀv‖², each a backward pass where the exact norm takes one for every number of the code. It can be
    differentiated in turn, also where gradients are switched off around it.
    Source: Rifai et al. 2011, equation 2, on the code's mean (Hlihor et al. 2022, equation 1 with β = 0); deviation:
    the estimate.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        code = encode(x)
        total = torch.zeros(len(x), device=x.device)
        for _ in range(draws):
            signs = torch.randint(0, 2, code.shape, generator=rng, device=rng.device) * 2.0 - 1
            (back,) = torch.autograd.grad(code, x, signs.to(code), create_graph=True)
            total = total + back.flatten(1).square().sum(dim=1)
        return total / draws
