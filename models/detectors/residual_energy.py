"""The energy of a predicted perturbation, in units of ε²."""

from __future__ import annotations

import torch
from torch import Tensor

KEPT_SHARE = 0.75


def residual_energy(perturbation: Tensor) -> Tensor:
    """Mean of the smallest 75 % of n² over the pixels and channels of each image: (n, c, h, w) to (n,), in ε².

    The whole mean is the reconstruction error ‖x − x̂‖² in units of ε²; it is ruled by a few pixels of sharp texture,
    where a clean image looks perturbed. A perturbation is everywhere, so trimming them costs little and steadies the
    score of clean images.
    """
    energy = perturbation.square().flatten(1)
    kept = max(1, int(KEPT_SHARE * energy.shape[1]))
    return torch.topk(energy, kept, dim=1, largest=False, sorted=False).values.mean(dim=1)
