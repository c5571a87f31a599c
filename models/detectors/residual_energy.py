"""The energy of a predicted perturbation, in units of ε²."""

from __future__ import annotations

from torch import Tensor

FLOOR = 1e-3
"""In ε². Energies of pixels far below it count as none: how far below is chance."""


def residual_energy(perturbation: Tensor) -> Tensor:
    """The geometric mean over an image's pixels of n² + FLOOR, less FLOOR; n² is the mean over the channels.

    perturbation: float (n, c, h, w), in units of ε. Returns (n,), in ε².
    The plain mean is the reconstruction error ‖x − x̂‖² in these units; it is ruled by a few pixels of sharp texture,
    where a clean image looks perturbed. Leaving the largest pixels out is blind to a perturbation that shows only on
    part of the image, as on grey clothes before black. Between them, a pixel counts by its energy's logarithm.
    It sees what is faint and widespread; it cannot see a patch, nor tell an attack from benign noise as strong.
    """
    energy = perturbation.square().mean(dim=1).flatten(1)
    typical: Tensor = FLOOR * (energy / FLOOR).log1p().mean(dim=1).expm1()
    return typical
