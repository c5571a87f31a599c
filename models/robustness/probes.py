"""Looks at a classifier's gradients before any attack is believed: are there any, does the loss move, does ε = 1 win.

images: uint8 (n, h, w, c); labels: int64 (n,); a model gives logits of float x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attacks.gradient import evaluating, ifgsm, input_gradient, margin
from models.device import device_of
from models.images import Images, chunks, to_float
from models.robustness.geometry import gradient_amplitude
from models.robustness.shares import Mean, Share, mean, share
from models.seeding import derive_seed

BATCH_SIZE = 64
RANDOM_POINTS = 4
UNBOUNDED_STEPS = 40


@dataclass(frozen=True)
class Probes:
    """zero: images whose cross-entropy has a gradient of exactly 0. Of the images that the model has right: flat, those
    whose cross-entropy is the same to the last bit of a double all over the eps box; survived, those that an attack on
    the cross-entropy without a box leaves right. amplitude: of the probabilities' gradients.
    """

    zero: Share
    flat: Share
    survived: Share
    amplitude: Mean


def probe(
    model: nn.Module, images: Images, labels: npt.NDArray[np.int64], *, few: int, eps_linf: float, seed: int
) -> Probes:
    """few: how many images the probes take that need more than a gradient."""
    return Probes(
        zero=zero_gradient_share(model, images, labels),
        flat=flat_share(model, images[:few], labels[:few], eps_linf=eps_linf, seed=seed),
        survived=unbounded_share(model, images[:few], labels[:few]),
        amplitude=mean(_amplitudes(model, images[:few])),
    )


def probe_cost(few: int, images: int) -> int:
    """In gradients, about."""
    return images + few * (UNBOUNDED_STEPS + RANDOM_POINTS + 10)


def zero_gradient_share(model: nn.Module, images: Images, labels: npt.NDArray[np.int64]) -> Share:
    """Images whose cross-entropy gradient is exactly 0: a saturated softmax, which no attack on the loss can climb."""
    zero = 0
    with evaluating(model):
        for x, y in _batches(model, images, labels):
            zero += int((input_gradient(model, x, y)[0].flatten(1) == 0).all(dim=1).sum())
    return share(zero, len(images))


def flat_share(model: nn.Module, images: Images, labels: npt.NDArray[np.int64], *, eps_linf: float, seed: int) -> Share:
    """The loss is looked at in corners of the box: some at random, and the one that FGSM would go to."""
    flat, right = 0, 0
    with evaluating(model):
        for number, (x, y) in enumerate(_batches(model, images, labels)):
            rng = torch.Generator(x.device).manual_seed(derive_seed(seed, "corners", number))
            signs = [torch.randn(x.shape, generator=rng, device=x.device).sign() for _ in range(RANDOM_POINTS)]
            signs.append(input_gradient(model, x, y)[0].sign())
            with torch.no_grad():
                here, was_right = _losses(model, x, y)
                moved = [(_losses(model, (x + eps_linf * sign).clamp(0, 1), y)[0] - here).abs() for sign in signs]
            flat += int((was_right & (torch.stack(moved).amax(0) == 0)).sum())
            right += int(was_right.sum())
    return share(flat, right)


def unbounded_share(model: nn.Module, images: Images, labels: npt.NDArray[np.int64]) -> Share:
    """Of the images the model has right, those that I-FGSM with ε = 1 leaves right: none where gradients lead anywhere.

    It starts at the image: a random start in so large a box fools by itself. Source: Athalye et al. 2018, section 3.1.
    """
    survived, right = 0, 0
    step_linf = 2.5 / UNBOUNDED_STEPS
    for x, y in _batches(model, images, labels):
        x_adv = ifgsm(model, x, y, eps_linf=1.0, step_linf=step_linf, steps=UNBOUNDED_STEPS)
        with torch.no_grad(), evaluating(model):
            was_right, still = (margin(model(seen), y) <= 0 for seen in (x, x_adv))
        survived += int((was_right & still).sum())
        right += int(was_right.sum())
    return share(survived, right)


def _losses(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(x).double()  # in float32 the loss of any sure answer is 0, and its gradient is not
    return F.cross_entropy(logits, y, reduction="none"), margin(logits, y) <= 0


def _amplitudes(model: nn.Module, images: Images) -> npt.NDArray[np.float64]:
    parts = [gradient_amplitude(model, to_float(images[rows], device_of(model))) for rows in chunks(len(images), 16)]
    return np.concatenate(parts)


def _batches(model: nn.Module, images: Images, labels: npt.NDArray[np.int64]) -> list[tuple[Tensor, Tensor]]:
    device = device_of(model)
    return [
        (to_float(images[rows], device), torch.from_numpy(labels[rows]).to(device))
        for rows in chunks(len(images), BATCH_SIZE)
    ]
