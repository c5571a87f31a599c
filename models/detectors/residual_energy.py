"""The energy of a predicted perturbation, in units of ε²."""

from __future__ import annotations

import torch
from torch import Tensor

KEPT_SHARE = 0.75


def residual_energy(perturbation: Tensor) -> Tensor:
    """Mean of n² over the channels, and over the 75 % of an image's pixels where it is smallest.

    perturbation: float (n, c, h, w), in units of ε. Returns (n,), in ε².
    The mean over all pixels is the reconstruction error ‖x − x̂‖² in these units; it is ruled by a few pixels of sharp
    texture, where a clean image looks perturbed. A perturbation is everywhere: leaving them out costs little.
    """
    energy = perturbation.square().mean(dim=1).flatten(1)
    kept = max(1, int(KEPT_SHARE * energy.shape[1]))
    return torch.topk(energy, kept, dim=1, largest=False, sorted=False).values.mean(dim=1)
