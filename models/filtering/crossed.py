"""Filters that judge by folds: each image by the one that has learnt nothing from the trusted images of its fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.filtering.fitting import FilterFit, fit_filter
from models.filtering.trained import Filter
from models.images import Images
from models.specs import SanitiseSpec
from models.training import Checkpoints, Watch

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CrossFilter:
    """One filter for each fold, in the order of the folds. Shapes are those of `Filter`; folds: int64 (n,)."""

    filters: tuple[Filter, ...]

    @property
    def score_name(self) -> str:
        return self.filters[0].score_name

    def score(self, images: Images, folds: Labels) -> npt.NDArray[np.float32]:
        """(n,); an image's score does not depend on the images beside it."""
        found = np.empty(len(images), np.float32)
        for own, fitted in self._by_fold(folds):
            found[own] = fitted.score(images[own])
        return found

    def reconstruct(self, images: Images, folds: Labels) -> Images:
        """uint8, of the images' shape."""
        rebuilt = np.empty_like(images)
        for own, fitted in self._by_fold(folds):
            rebuilt[own] = fitted.reconstruct(images[own])
        return rebuilt

    def _by_fold(self, folds: Labels) -> list[tuple[npt.NDArray[np.int64], Filter]]:
        places = [np.flatnonzero(folds == fold) for fold in range(len(self.filters))]
        return [(own, fitted) for own, fitted in zip(places, self.filters, strict=True) if len(own)]


@dataclass(frozen=True, eq=False)
class CrossFit:
    """The fits of the filters, in the order of the folds they judge."""

    fits: tuple[FilterFit, ...]

    @property
    def filter(self) -> CrossFilter:
        return CrossFilter(tuple(fit.filter for fit in self.fits))

    @property
    def notes(self) -> dict[str, Any]:
        """JSON-able; the first filter's, the seconds of all of them, and how well the worst of them tells apart."""
        seconds = {
            phase: sum(fit.notes["seconds"][phase] for fit in self.fits) for phase in self.fits[0].notes["seconds"]
        }
        told = [fit.notes["told_apart"] for fit in self.fits if fit.notes["told_apart"] is not None]
        own = {"filters": len(self.fits), "told_apart": min(told, default=None), "seconds": seconds}
        return {**self.fits[0].notes, **own}

    def classify(self, images: Images, folds: Labels) -> Labels:
        """The label (n,) that the surrogates of the image's filter give it. Raises NoSurrogates."""
        found = np.empty(len(images), np.int64)
        for fold, fit in enumerate(self.fits):
            own = np.flatnonzero(folds == fold)
            if len(own):
                found[own] = fit.classify(images[own])
        return found


def cross_fit_filter(
    images: Images,
    labels: Labels,
    folds: Labels,
    spec: SanitiseSpec,
    *,
    num_classes: int,
    watch_for: Callable[[str, int], Watch],
    checkpoints_for: Callable[[int], Checkpoints],
) -> CrossFit:
    """A filter for each fold, fitted by `fit_filter` on the images of all others.

    images: uint8 (n, h, w, c), clean; labels, folds: int64 (n,). watch_for, checkpoints_for: told the fold that is
    being fitted for. Raises what `fit_filter` raises.
    """

    def fit_for(fold: int) -> FilterFit:
        others = folds != fold
        return fit_filter(
            images[others],
            labels[others],
            spec,
            num_classes=num_classes,
            watch_for=lambda phase: watch_for(phase, fold),
            checkpoints=checkpoints_for(fold),
        )

    return CrossFit(tuple(fit_for(fold) for fold in range(int(folds.max()) + 1)))
