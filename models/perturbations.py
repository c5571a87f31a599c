"""What the filter learns to undo: perturbations of the reference, crafted once, scaled anew each time they are seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.attacks.gradient import evaluating, fgsm, ifgsm, to_8bit
from models.cores import Cores
from models.device import device_of
from models.images import Images, to_float
from models.seeding import derive_seed
from models.specs import PerturbationSpec
from models.training import Watch

ROWS = 4000
"""Perturbations wanted: a smaller reference is perturbed several times."""
LARGEST_BYTES = 256 * 2**20
"""Of the perturbations of a large reference of large images; fewer are made where they would take more."""
PIXELS_A_BATCH = 2**17
MOST_BATCHES = 4
"""That cores of a CPU compute beside each other; each takes memory of its own."""
LEVELS = 127


@dataclass(frozen=True)
class Perturbations:
    """images: uint8 (m, h, w, c), clean; deltas: int8 of the same shape, what an attack adds, in units of ε/127.

    source: int64 (m,), which of the given images each row is of: an image may be perturbed several times.
    """

    images: Images
    deltas: npt.NDArray[np.int8]
    source: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Plan:
    """Which perturbations are made: row by row, of which image, by which of the (network, attack) pairs."""

    images: npt.NDArray[np.int64]
    pairs: npt.NDArray[np.int64]
    corners: npt.NDArray[np.int64]  # (m, 2), top left of the patch that is kept
    patch: tuple[int, int]


def craft(
    images: Images,
    labels: npt.NDArray[np.int64],
    networks: list[nn.Module],
    spec: PerturbationSpec,
    *,
    largest_side: int | None,
    seed: int,
    watch: Watch,
) -> Perturbations:
    """FGSM and I-FGSM at `spec.eps_linf` against the networks in turn, on the networks' device, a batch at a time.

    images: uint8 (n, h, w, c); labels: (n,). largest_side: of larger images a random patch of this size is kept, while
    the whole image is attacked; None keeps all of it. Raises Stopped.
    """
    plan = _plan(images, 2 * len(networks), largest_side, np.random.default_rng(derive_seed(seed, "perturbations")))
    shape = (len(plan.images), *plan.patch, images.shape[3])
    kept, deltas = np.empty(shape, np.uint8), np.empty(shape, np.int8)
    done = 0

    fast = partial(fgsm, eps_linf=spec.eps_linf)
    iterated = partial(ifgsm, eps_linf=spec.eps_linf, step_linf=spec.step_linf, steps=spec.steps)

    def delta(batch: tuple[int, npt.NDArray[np.int64]]) -> npt.NDArray[np.int8]:
        pair, rows = batch
        of = plan.images[rows]
        return _delta((fast, iterated)[pair % 2], networks[pair // 2], images[of], labels[of], spec)

    batches = list(_batches(plan, images.shape[1] * images.shape[2]))
    beside = min(MOST_BATCHES, torch.get_num_threads()) if device_of(networks[0]).type == "cpu" else 1
    with ExitStack() as modes, Cores(beside) as cores:
        for network in networks:
            modes.enter_context(evaluating(network))  # here, so that no attack changes the mode under another
        for (_, rows), made in zip(batches, cores.imap(delta, iter(batches)), strict=True):
            for place, row in enumerate(rows):
                top, left = plan.corners[row]
                window = np.s_[top : top + plan.patch[0], left : left + plan.patch[1]]
                kept[row], deltas[row] = images[plan.images[row]][window], made[place][window]
            done += len(rows)
            watch.advance(done, len(plan.images))
    return Perturbations(kept, deltas, plan.images)


def _delta(
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor],
    network: nn.Module,
    images: Images,
    labels: npt.NDArray[np.int64],
    spec: PerturbationSpec,
) -> npt.NDArray[np.int8]:
    """What the attack adds to the images, (n, h, w, c)."""
    x = to_float(images, device_of(network))
    x_adv = attack(network, x, torch.from_numpy(labels).to(x.device))
    levels = ((x_adv - x) / spec.eps_linf * LEVELS).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def add(x: Tensor, deltas: Tensor, spec: PerturbationSpec, rng: torch.Generator) -> Tensor:
    """A random half of the images perturbed, each at its own strength; rounded to 8 bits.

    x: float (n, c, h, w) in [0, 1]; deltas: int8 (n, h, w, c). Strengths are log-uniform in [scale_low, scale_high]·ε:
    the faint ones are what is hard to learn.
    A quarter of the images get another image's perturbation, so that the mark is learnt apart from the content.
    """
    delta = deltas.permute(0, 3, 1, 2).to(torch.float32) / LEVELS
    moved = len(x) // 2
    delta = torch.cat([delta[:moved].roll(1, 0), delta[moved:]])
    low, high = spec.scale_low, spec.scale_high
    shape = (len(x), 1, 1, 1)
    scale = low * (high / low) ** torch.rand(shape, generator=rng, device=rng.device)
    scale = scale * (torch.rand(shape, generator=rng, device=rng.device) < 0.5)
    return to_8bit((x + scale * spec.eps_linf * delta).clamp(0, 1))


def _plan(images: Images, pairs: int, largest_side: int | None, rng: np.random.Generator) -> _Plan:
    count, (height, width) = len(images), images.shape[1:3]
    patch = (min(height, largest_side or height), min(width, largest_side or width))
    draws = min(pairs, max(1, round(ROWS / count)))
    chosen = rng.permuted(np.tile(np.arange(pairs), (count, 1)), axis=1)[:, :draws].ravel()
    of = np.repeat(np.arange(count), draws)
    affordable = LARGEST_BYTES // (2 * patch[0] * patch[1] * images.shape[3])
    rows = np.sort(rng.permutation(len(of))[:affordable])
    corners = rng.integers(0, (height - patch[0] + 1, width - patch[1] + 1), (len(rows), 2))
    return _Plan(of[rows], chosen[rows], corners, patch)


def _batches(plan: _Plan, pixels: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """(pair, rows) by rows of the same pair, as many as a batch can hold."""
    size = max(1, min(256, PIXELS_A_BATCH // pixels))
    for pair in np.unique(plan.pairs):
        rows = np.flatnonzero(plan.pairs == pair)
        for start in range(0, len(rows), size):
            yield int(pair), rows[start : start + size]
