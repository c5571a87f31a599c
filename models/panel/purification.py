"""Two kinds of classifier of the same pool: one that believes every label, and one that believes what it can check.

The second starts from the trusted images alone, less those whose label the first denies unseen. Round by round it takes
in the images whose label the classifiers of the round before, which had not seen them, confirm: it ends nearly as
accurate as if all labels had been right, and without having met the poison. What the first learnt and the second did
not is what the poison teaches. A trusted image teaches in every round, confirmed or not, but never what judges its own
fold: there it is treated as a clean candidate is, and says how one scores. Only what chooses the candidates of the
first round learns from all trusted images at once, for a class may have its few in one fold. Where nobody is trusted,
it starts from images that were sifted, and goes back to them for a class that the rounds lose.
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
from models.training import Augment, Batch, Checkpoints, ImageBatches, Watch, fit

BATCH = 128
SAMPLES_AN_EPOCH = 1000
MOST_PASSES = 40
SURE, DISBELIEVED = 0.9, 0.02
"""An image's label is denied where another is this probable, and it itself at most that."""
SCORED_AT_ONCE = 256
STILL_THERE = 0.5
"""Of what a class started from, the share that the next round must be taught at least."""


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
    trainer = _Trainer(pool, seed, spec.width, checkpoints)
    everything, steps = np.ones(len(pool), np.bool_), (spec.steps + spec.final_steps) // 2
    believing = trainer.cross_fit("believing", everything, _Stretch(watch_for("believing"), 0, steps, FOLDS * steps))
    plan = [spec.steps] * (spec.rounds - 1) + [spec.final_steps]
    total, watch = spec.steps + FOLDS * sum(plan), watch_for("checking")
    believed = pool.trusted & ~denied(*believing.see(pool.images, pool.folds)[:1], pool.labels)
    start = (start & believed) if (start & believed).any() else start
    first = trainer.fit_one("checking-start", start, _Stretch(watch, 0, spec.steps, total))
    confirmed, done, shares = _confirmed(CrossFitted((first,) * FOLDS), pool), spec.steps, []
    for number, steps in enumerate(plan):
        stretch = _Stretch(watch, done, steps, total)
        taught = without_lost_classes(confirmed | (believed if number else start), start, pool)
        checked = trainer.cross_fit(f"checking-{number}", taught, stretch)
        done += FOLDS * steps
        found = _confirmed(checked, pool)
        shares.append(float(found.mean()))
        confirmed = found if found.any() else confirmed
    return Purified(believing, checked, confirmed, tuple(shares))


def cross_fit(
    pool: Pool,
    name: str,
    steps: int,
    *,
    width: int,
    seed: int,
    augment: Augment,
    watch: Watch,
    checkpoints: Checkpoints,
) -> CrossFitted:
    """A classifier for each fold that believes every label, trained under `augment`. Raises Diverged, Stopped."""
    trainer = _Trainer(pool, seed, width, checkpoints, augment)
    return trainer.cross_fit(name, np.ones(len(pool), np.bool_), _Stretch(watch, 0, steps, FOLDS * steps))


def denied(log_p: np.ndarray[Any, Any], labels: Labels) -> Bools:
    """(n,): where another label is all but sure. log_p: (n, classes), of classifiers that have not seen the images."""
    p = np.exp(log_p)
    return np.asarray((p[np.arange(len(labels)), labels] <= DISBELIEVED) & (p.max(axis=1) >= SURE))


def without_lost_classes(taught: Bools, start: Bools, pool: Pool) -> Bools:
    """`taught`, and of each class in each fold of which it has less than half as many as `start`, all of those.

    taught, start: bool (n,) over the pool. A class that a classifier is not taught is confirmed by none in the fold
    that it judges, and would stay lost for good.
    """
    kind = pool.labels * FOLDS + pool.folds
    now, first = (np.bincount(kind[rows], minlength=FOLDS * pool.num_classes) for rows in (taught, start))
    return np.asarray(taught | (start & (now < STILL_THERE * first)[kind]))


def _confirmed(fitted: CrossFitted, pool: Pool) -> Bools:
    log_p, _ = fitted.see(pool.images, pool.folds)
    return np.asarray(log_p.argmax(axis=1) == pool.labels)


@dataclass(frozen=True)
class _Stretch:
    """A fit's `steps` from `start` on, told to the watch of a computation of `total` steps."""

    whole: Watch
    start: int
    steps: int
    total: int

    def next(self) -> _Stretch:
        return _Stretch(self.whole, self.start + self.steps, self.steps, self.total)

    def advance(self, done: int, total: int) -> None:
        self.whole.advance(self.start + round(self.steps * done / total), self.total)


@dataclass(frozen=True, eq=False)
class _Trainer:
    pool: Pool
    seed: int
    width: int
    checkpoints: Checkpoints
    augment: Augment = augment

    def cross_fit(self, name: str, rows: Bools, stretch: _Stretch) -> CrossFitted:
        """A classifier for each fold, of those `rows` that lie in the others, or of all where none does."""
        fitted = []
        for fold in range(FOLDS):
            others = rows & (self.pool.folds != fold)
            fitted.append(self.fit_one(f"{name}-{fold}", others if others.any() else rows, stretch))
            stretch = stretch.next()
        return CrossFitted(tuple(fitted))

    def fit_one(self, name: str, rows: Bools, stretch: _Stretch) -> PanelClassifier:
        pool, seed, name = self.pool, derive_seed(self.seed, "panel", name), f"panel-{name}"
        images, labels = pool.images[rows], pool.labels[rows]
        height, width, channels = images.shape[1:]
        shape = (height, width, channels)
        with seeded(seed):
            network = PanelClassifier(image_shape=shape, num_classes=pool.num_classes, width=self.width)
        spec = _fit_spec(stretch.steps, len(images))
        batches = ImageBatches(
            images, labels, spec=spec, seed=seed, augment=self.augment, samples_an_epoch=SAMPLES_AN_EPOCH
        )
        fit(
            network,
            batches,
            _cross_entropy,
            spec,
            seed=seed,
            watch=stretch,
            checkpoints=self.checkpoints,
            name=name,
        )
        return network


def _fit_spec(steps: int, images: int) -> FitSpec:
    """About so many steps, in whole epochs, but no more than so many passes over a small set."""
    passes = min(steps * BATCH / images, MOST_PASSES)
    epochs = max(1, round(passes * images / max(SAMPLES_AN_EPOCH, images)))
    return FitSpec(
        epochs=epochs, batch_size=BATCH, optimizer="adamw", peak_lr=6e-3, weight_decay=0.02, validation_share=0.0
    )


def _cross_entropy(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    if not isinstance(model, PanelClassifier):
        raise TypeError(f"want a PanelClassifier, not {type(model).__name__}")
    x, y = batch
    return F.cross_entropy(model.training_logits(x, rng), y)
