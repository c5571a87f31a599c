"""The panel: detectors that share two sets of cross-fitted classifiers and score any image by its fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.images import Images
from models.panel.detectors import Encode, Fitted, Means, Reconstruct, fit_detector
from models.panel.pool import Bools, Labels, Pool
from models.panel.purification import Purified, purify
from models.panel.views import Float32s, View
from models.specs import PanelSpec
from models.training import Checkpoints, Watch


@dataclass(frozen=True, eq=False)
class Panel:
    """names: of the detectors, in the order of the columns that `score` gives."""

    names: tuple[str, ...]
    purified: Purified
    detectors: tuple[Fitted, ...]
    num_classes: int

    def score(self, images: Images, labels: Labels, folds: Labels, rows: Labels) -> Float32s:
        """(n, t): how suspicious each image is to each detector; the same whatever the images beside it.

        images: uint8 (n, h, w, c); labels, folds: (n,); rows: (n,), the numbers by which images of the pool know
        themselves.
        """
        view = look(self.purified, images, labels, folds, rows, self.num_classes)
        return np.stack([detector.score(view) for detector in self.detectors], axis=1)

    def answers(self, images: Images, folds: Labels) -> Float32s:
        """Log probabilities (n, classes) of the classifiers of confirmed labels."""
        return self.purified.checked.see(images, folds)[0]


@dataclass(frozen=True, eq=False)
class PanelFit:
    """A fitted panel, which images of the pool it confirmed, and JSON-able notes."""

    panel: Panel
    confirmed: Bools
    notes: dict[str, Any]


def fit_panel(
    pool: Pool,
    rows: Labels,
    spec: PanelSpec,
    *,
    start: Bools | None = None,
    reconstruct: Reconstruct,
    encode: Encode | None = None,
    seed: int,
    watch_for: Callable[[str], Watch],
    checkpoints: Checkpoints,
) -> PanelFit:
    """Announces the phases "believing" and "checking". reconstruct: uint8 images (n, h, w, c), folds (n,) to images.

    rows: (n,), distinct, ≥ 0. start: bool (n,), what the first round learns from; None takes the trusted images.
    encode: uint8 images to features (n, d), as `pool.encoded` was made; encoder_loss needs both.
    Raises ValueError where nothing is trusted or the pool is too small for a detector, Diverged, Stopped.
    """
    known = pool.trusted if start is None else start
    purified = purify(
        pool,
        known,
        spec,
        seed=seed,
        watch_for=watch_for,
        checkpoints=checkpoints,
    )
    view = look(purified, pool.images, pool.labels, pool.folds, rows, pool.num_classes)

    def answers(images: Images, folds: Labels) -> Float32s:
        return purified.checked.see(images, folds)[0]

    means = Means(view, purified.confirmed, known, seed, reconstruct, answers, encode, pool)
    fitted = tuple(fit_detector(name, means) for name in spec.detectors)
    notes = {
        "images": len(pool),
        "trusted": int(pool.trusted.sum()),
        "confirmed_by_round": [round(share, 4) for share in purified.rounds],
    }
    return PanelFit(Panel(tuple(spec.detectors), purified, fitted, pool.num_classes), purified.confirmed, notes)


def look(purified: Purified, images: Images, labels: Labels, folds: Labels, rows: Labels, num_classes: int) -> View:
    believing, believing_features = purified.believing.see(images, folds)
    checked, checked_features = purified.checked.see(images, folds)
    return View(images, labels, folds, rows, believing, believing_features, checked, checked_features, num_classes)
