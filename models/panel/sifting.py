"""Without a trusted reference: which of the candidates look clean enough to start from, and which to trust at last.

Purity decides everything, completeness little: an image is taken only if no test at all finds it suspicious beside the
others of its class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.augmentation import augment
from models.detectors.label_loss import label_loss
from models.detectors.poison_gain import poison_gain
from models.detectors.recurring_patch import RecurringPatch
from models.detectors.recurring_pattern import RecurringPattern
from models.detectors.spectral_signature import SpectralSignature
from models.images import Images
from models.panel.encoded import losses
from models.panel.panel import PanelFit
from models.panel.pool import FOLDS, Bools, Pool
from models.panel.purification import CrossFitted, cross_fit
from models.specs import PanelSpec
from models.training import Checkpoints, Watch

START_SHARE = 0.5
TRUSTED_SHARE = 0.3
"""Of a class: what the classifiers start from, and what is trusted in the end."""

CELLS = 3
"""An occlusion hides a square of a third of the image's side."""

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Start:
    """chosen: bool (n,) over the pool. suspicion: (n,) in (0, 1], an image's worst rank among its class.

    What recurs has a say in `chosen` alone: it judges in the end, and a reference that was chosen by it would calibrate
    it wrongly.
    """

    chosen: Bools
    suspicion: npt.NDArray[np.float64]


def starting_set(
    pool: Pool, spec: PanelSpec, *, seed: int, watch_for: Callable[[str], Watch], checkpoints: Checkpoints
) -> Start:
    """The less suspicious half of each class; announces the phase "sifting".

    Five tests, by classifiers that have not seen the image and are used to occlusions: the loss of its label; how far
    the label's log probability falls where a square of the image is hidden, which takes a patch's trigger away but
    little of a sign's meaning; the spectral signature; and what recurs in images whose label is surprising at the worst
    occlusion, as a patch or as a pattern. The first three rank an image in its class, the last two among all: half of a
    class may be poison. Where the pool was encoded, the loss of the label in the encoder's features is a test in its
    class, too. Raises Diverged, Stopped.
    Source of the occlusion test: ours; kin to Chou et al. 2020 (SentiNet) and Xiang et al. 2021 (PatchGuard).
    """
    fitted = cross_fit(
        pool,
        "sifting",
        (spec.steps + spec.final_steps) // 2,
        width=spec.width,
        seed=seed,
        augment=occlude,
        watch=watch_for("sifting"),
        checkpoints=checkpoints,
    )
    log_p, features = fitted.see(pool.images, pool.folds)
    gap = occlusion_gap(fitted, pool, log_p)
    tests = [label_loss(log_p, pool.labels), gap, _signatures(pool, features)]
    if pool.encoded is not None:
        tests.append(losses(pool, np.ones(len(pool), np.bool_), np.zeros(len(pool), np.bool_)))
    suspicion = np.max([ranks_in_class(test, pool) for test in tests], axis=0)
    believed = np.exp(log_p[np.arange(len(pool)), pool.labels] - np.maximum(gap, 0))
    recurring = [ranks(test) for test in _recurring(pool, np.clip(1 - believed, 0, 1))]
    return Start(least_in_class(np.max([suspicion, *recurring], axis=0), pool, START_SHARE), suspicion)


def trusted_at_last(fit: PanelFit, pool: Pool, start: Start) -> Bools:
    """bool (n,) over the pool: of each class the confirmed images that neither start nor panel find suspicious."""
    believing, _ = fit.panel.purified.believing.see(pool.images, pool.folds)
    checked = fit.panel.answers(pool.images, pool.folds)
    tests = [label_loss(checked, pool.labels), poison_gain(believing, checked, pool.labels)]
    if pool.encoded is not None:
        tests.append(losses(pool, fit.confirmed, start.chosen))
    suspicion = np.max([start.suspicion, *(ranks_in_class(test, pool) for test in tests)], axis=0)
    return least_in_class(np.where(fit.confirmed, suspicion, np.inf), pool, TRUSTED_SHARE)


def occlude(x: Tensor, rng: torch.Generator) -> Tensor:
    """The usual changes of view and light, and in half of the images a square of a third of the side made grey."""
    moved = augment(x, rng)
    n, _, height, width = moved.shape
    side = _side(height, width)
    corners = torch.rand((2, n), generator=rng, device=rng.device)
    top, left = (corners[0] * (height - side + 1)).long(), (corners[1] * (width - side + 1)).long()
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    hidden_rows = (rows >= top[:, None]) & (rows < top[:, None] + side)
    hidden_columns = (columns >= left[:, None]) & (columns < left[:, None] + side)
    struck = torch.rand(n, generator=rng, device=rng.device) < 0.5
    hidden = (hidden_rows[:, :, None] & hidden_columns[:, None, :] & struck[:, None, None])[:, None]
    grey = moved.mean(dim=(2, 3), keepdim=True)
    return torch.where(hidden, grey, moved).contiguous(memory_format=torch.channels_last)


def occlusion_gap(fitted: CrossFitted, pool: Pool, log_p: Floats) -> npt.NDArray[np.float32]:
    """log p(label) of the image − the least of it where a square is hidden, (n,), in nats."""
    own = np.arange(len(pool))
    least = np.full(len(pool), np.inf, np.float32)
    for hidden in _occluded(pool.images):
        found, _ = fitted.see(hidden, pool.folds)
        least = np.minimum(least, found[own, pool.labels])
    return np.asarray(log_p[own, pool.labels] - least, dtype=np.float32)


def _occluded(images: Images) -> Iterator[Images]:
    """The images with a grey square at each place of two grids, of which the second lies across the first's seams."""
    height, width = images.shape[1:3]
    side = _side(height, width)
    grey = images.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8)
    for offset, cells in ((0, CELLS), (side // 2, CELLS - 1)):
        for row in range(cells):
            for column in range(cells):
                top = min(offset + row * side, height - side)
                left = min(offset + column * side, width - side)
                hidden = images.copy()
                hidden[:, top : top + side, left : left + side] = grey
                yield hidden


def _side(height: int, width: int) -> int:
    return -(-min(height, width) // CELLS)


def _signatures(pool: Pool, features: Floats) -> npt.NDArray[np.float32]:
    found = np.empty(len(pool), np.float32)
    for fold in range(FOLDS):
        own = pool.folds == fold
        signature = SpectralSignature.fit(features[own], pool.labels[own], num_classes=pool.num_classes)
        found[own] = signature.score(features[own], pool.labels[own])
    return found


def _recurring(pool: Pool, surprise: Floats) -> list[npt.NDArray[np.float32]]:
    """Scores (n,) of each image by what recurs in the other fold: a patch, a pattern. surprise: (n,) in [0, 1]."""
    patch, pattern = np.empty(len(pool), np.float32), np.empty(len(pool), np.float32)
    nobody = np.zeros(len(pool), np.bool_)
    for fold in range(FOLDS):
        own, other = pool.folds == fold, pool.folds != fold
        images, labels = pool.images[other], pool.labels[other]
        stamps = RecurringPatch.fit(images, surprise[other], nobody[other])
        patch[own] = stamps.score(pool.images[own])
        waves = RecurringPattern.fit(images, labels, surprise[other], num_classes=pool.num_classes)
        pattern[own] = waves.score(pool.images[own], pool.labels[own])
    return [patch, pattern]


def ranks(scores: Floats) -> npt.NDArray[np.float64]:
    """(n,) in [0, 1): the share of all images that are less suspicious; those without any evidence rank low."""
    return np.asarray(np.searchsorted(np.sort(scores), scores, side="left") / len(scores), dtype=np.float64)


def ranks_in_class(scores: Floats, pool: Pool) -> npt.NDArray[np.float64]:
    """(n,) in (0, 1]: the share of an image's class that is at most as suspicious as it."""
    ranks = np.empty(len(scores))
    for label in np.unique(pool.labels):
        own = np.flatnonzero(pool.labels == label)
        ranks[own] = np.searchsorted(np.sort(scores[own]), scores[own], side="right") / len(own)
    return ranks


def least_in_class(suspicion: Floats, pool: Pool, share: float) -> Bools:
    """bool (n,): of each class the least suspicious `share`, at least one image, and none that is infinitely so."""
    chosen = np.zeros(len(suspicion), np.bool_)
    for label in np.unique(pool.labels):
        own = np.flatnonzero(pool.labels == label)
        order = own[np.argsort(suspicion[own], kind="stable")]
        chosen[order[: max(1, round(share * len(own)))]] = True
    return np.asarray(chosen & np.isfinite(suspicion))
