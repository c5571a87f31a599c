"""Whether a fitted filter tells what it was fitted to tell: a check on images that were held out of its fit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.attacks.gradient import to_8bit
from models.batches import Batches
from models.calibration import auroc
from models.filtering.trained import FilterModule, Network
from models.perturbations import LEVELS


def told_apart(network: Network, batches: Batches, *, eps_linf: float) -> float | None:
    """AUROC between held-out clean images and the same images under their own perturbations at `eps_linf`.

    batches: of (x, deltas), as the filter was fitted on; what they hold out shares no image with the rest. None where
    they hold nothing out.
    Near 0.5 the fit has failed, or images of this kind hide such perturbations: the filter then flags by chance. Near
    1 says no more than that the fit went well, for other networks' perturbations are harder than those it has seen.
    """
    module = FilterModule(network).eval()
    clean: list[Tensor] = []
    perturbed: list[Tensor] = []
    with torch.inference_mode():
        for x, deltas in batches.validation():
            added = deltas.permute(0, 3, 1, 2).to(torch.float32) * (eps_linf / LEVELS)
            clean.append(_scores(module, x))
            perturbed.append(_scores(module, to_8bit((x + added).clamp(0, 1))))
    if not clean:
        return None
    return auroc(*(np.asarray(torch.cat(scores).cpu(), np.float64) for scores in (perturbed, clean)))


def _scores(module: FilterModule, x: Tensor) -> Tensor:
    scores: Tensor = module((x * 255).round().to(torch.uint8).permute(0, 2, 3, 1))[0]
    return scores
