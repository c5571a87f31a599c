"""Two kinds of classifier of the same pool: one that believes every label, and one that believes what it can check.

The second starts from the trusted images alone. Round by round it takes in the images whose label the classifiers of
the round before, which had not seen them, confirm: it ends nearly as accurate as if all labels had been right, and
without having met the poison. What the first learnt and the second did not is what the poison teaches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.augmentation import augment
from models.device import device_of, exact_convolutions
from models.images import Images, to_float
from models.panel.classifier import PanelClassifier, seen_by
from models.panel.pool import FOLDS, Bools, Labels, Pool
from models.seeding import derive_seed, seeded
from models.specs import FitSpec, PanelSpec
from models.training import Batch, Checkpoints, ImageBatches, Piece, Watch, fit

BATCH = 128
SAMPLES_AN_EPOCH = 4000
SCORED_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """One classifier for each fold, fitted without the images of that fold."""

    networks: tuple[PanelClassifier, ...]

    def see(self, images: Images, folds: Labels) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """(log probabilities (n, classes), features (n, 128)), each image by the classifier that has not seen it.

        The same whatever the images beside it: batches are of one size, filled up with black images.
        """
        device = device_of(self.networks[0])
        log_p = np.empty((len(images), self.networks[0].head.out_features), np.float32)
        features = np.empty((len(images), self.networks[0].head.in_features), np.float32)
        batch = np.zeros((SCORED_AT_ONCE, *images.shape[1:]), np.uint8)
        with torch.inference_mode(), exact_convolutions():
            for fold, network in enumerate(self.networks):
                own = np.flatnonzero(folds == fold)
                for start in range(0, len(own), SCORED_AT_ONCE):
                    rows = own[start : start + SCORED_AT_ONCE]
                    batch[: len(rows)], batch[len(rows) :] = images[rows], 0
                    got = seen_by(network, to_float(batch, device))
                    log_p[rows], features[rows] = (part[: len(rows)].cpu().numpy() for part in got)
        return log_p, features


@dataclass(frozen=True, eq=False)
class Purified:
    """believing: fitted on every label of the pool. checked: fitted on the labels that were confirmed.

    confirmed: bool (n,) over the pool, by the last round. rounds: what share of the pool each round confirmed.
    """

    believing: CrossFitted
    checked: CrossFitted
    confirmed: Bools
    rounds: tuple[float, ...]


def purify(
    pool: Pool,
    start: Bools,
    spec: PanelSpec,
    *,
    seed: int,
    watch_for: Callable[[str], Watch],
    checkpoints: Checkpoints,
) -> Purified:
    """Announces the phases "believing" and "checking".

    start: bool (n,) over the pool, the images that the first round may learn from. Raises ValueError where it is
    empty, Diverged, Stopped.
    """
    if not start.any():
        raise ValueError("no image to start from")
    trainer = _Trainer(pool, spec, seed, checkpoints)
    believing = trainer.cross_fit("believing", np.ones(len(pool), np.bool_), watch_for("believing"), 0, 1)
    watch = watch_for("checking")
    pieces = spec.rounds + 1
    first = trainer.fit_one("checking-start", start, watch, 0, pieces * FOLDS)
    confirmed, shares = _confirmed(CrossFitted((first,) * FOLDS), pool) | start, []
    checked = CrossFitted((first,) * FOLDS)
    for number in range(1, pieces):
        checked = trainer.cross_fit(f"checking-{number}", confirmed, watch, number, pieces)
        confirmed = _confirmed(checked, pool)
        shares.append(float(confirmed.mean()))
        if not confirmed.any():
            break
    return Purified(believing, checked, confirmed, tuple(shares))


def _confirmed(fitted: CrossFitted, pool: Pool) -> Bools:
    log_p, _ = fitted.see(pool.images, pool.folds)
    return np.asarray(log_p.argmax(axis=1) == pool.labels)


@dataclass(frozen=True, eq=False)
class _Trainer:
    pool: Pool
    spec: PanelSpec
    seed: int
    checkpoints: Checkpoints

    def cross_fit(self, name: str, rows: Bools, watch: Watch, number: int, pieces: int) -> CrossFitted:
        """A classifier for each fold, of those `rows` that lie in the others."""
        fitted = []
        for fold in range(FOLDS):
            others = rows & (self.pool.folds != fold)
            place = number * FOLDS + fold
            fitted.append(
                self.fit_one(f"{name}-{fold}", others if others.any() else rows, watch, place, pieces * FOLDS)
            )
        return CrossFitted(tuple(fitted))

    def fit_one(self, name: str, rows: Bools, watch: Watch, place: int, places: int) -> PanelClassifier:
        pool, seed = self.pool, derive_seed(self.seed, "panel", name)
        images, labels = pool.images[rows], pool.labels[rows]
        height, width, channels = images.shape[1:]
        with seeded(seed):
            network = PanelClassifier(
                image_shape=(height, width, channels), num_classes=pool.num_classes, width=self.spec.width
            )
        epochs = max(1, round(self.spec.steps * BATCH / max(SAMPLES_AN_EPOCH, len(images))))
        own = FitSpec(
            epochs=epochs, batch_size=BATCH, optimizer="adamw", peak_lr=6e-3, weight_decay=0.02, validation_share=0.0
        )
        batches = ImageBatches(images, labels, spec=own, seed=seed, augment=augment, samples_an_epoch=SAMPLES_AN_EPOCH)
        piece = Piece(watch, place, places)
        fit(
            network,
            batches,
            _cross_entropy,
            own,
            seed=seed,
            watch=piece,
            checkpoints=self.checkpoints,
            name=f"panel-{name}",
        )
        return network


def _cross_entropy(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:  # noqa: ARG001
    x, y = batch
    return F.cross_entropy(model(x), y)
