"""How far an attack goes: norms of the change, the least change that fools, gradients, and where the code moves.

n images: x float (n, c, h, w) in [0, 1]; y int64 (n,); a model gives logits (n, classes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.attacks.gradient import evaluating
from models.robustness.shares import Mean, Share, mean, share

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Norms:
    """Of n changes: how many features (a channel of a pixel) were changed; lengths in units of the pixel range."""

    l0: Floats
    l2: Floats
    linf: Floats


@dataclass(frozen=True)
class Robustness:
    """The least change that fools, over the images that an attack fooled; `fooled` says how many that was."""

    norm: str
    change: Mean
    fooled: Share


@dataclass(frozen=True)
class CodeShift:
    """How attacks move a code: cosine of attacked and clean, and the ratio of their norms."""

    cosine: Mean
    norm_ratio: Mean


def norms(x: Tensor, x_adv: Tensor) -> Norms:
    """Of x_adv - x, each (n,)."""
    delta = (x_adv - x).flatten(1).double().cpu().numpy()
    return Norms(
        l0=(delta != 0).sum(axis=1).astype(np.float64),
        l2=np.sqrt((delta**2).sum(axis=1)),
        linf=np.abs(delta).max(axis=1, initial=0.0),
    )


def robustness(change: Floats, fooled: npt.NDArray[np.bool_], *, norm: str) -> Robustness:
    """ρ: the mean least change that fools, as an attack that seeks it found it.

    change: (n,), of each image; fooled: (n,) bool. An attack finds an upper bound of what is least.
    Source: Papernot et al. 2016, section II.C; deviation: images that the attack did not fool are counted beside it,
    not in it, for no finite number stands for them.
    """
    return Robustness(norm, mean(change[fooled]), share(int(fooled.sum()), len(fooled)))


def gradient_amplitude(model: nn.Module, x: Tensor) -> Floats:
    """Mean absolute derivative of the class probabilities by the features, of each image, (n,).

    A backward pass a class. 0 where the softmax is saturated in float32.
    Source: Papernot et al. 2016, section V.C ("amplitude of adversarial gradients").
    """
    with evaluating(model), torch.enable_grad():
        x = x.detach().requires_grad_(True)
        probabilities = model(x).softmax(dim=1)
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for column in probabilities.sum(0):
            (gradient,) = torch.autograd.grad(column, x, retain_graph=True)
            total += gradient.flatten(1).double().abs().mean(1)
        amplitude: Floats = (total / probabilities.shape[1]).cpu().numpy()
    return amplitude


def code_shift(encode: Callable[[Tensor], Tensor], x: Tensor, x_adv: Tensor) -> CodeShift:
    """encode: images to codes (n, d): the means of an autoencoder's latent, or a classifier's features.

    A norm ratio is that of attacked over clean; a clean code of length 0 is left out.
    Source: Hlihor et al., the analysis of latent means.
    """
    with torch.no_grad():
        clean, moved = encode(x).double(), encode(x_adv).double()
    lengths = clean.norm(dim=1)
    some = lengths > 0
    cosine = torch.cosine_similarity(clean[some], moved[some], dim=1)
    ratio = moved[some].norm(dim=1) / lengths[some]
    return CodeShift(mean(cosine.cpu().numpy()), mean(ratio.cpu().numpy()))
