"""Fits all that judges the candidates: the filter on trusted images, and the panel on candidates and trusted alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.filtering import FilterFit, fit_filter
from models.images import Images
from models.panel.panel import Panel, PanelFit, fit_panel
from models.panel.pool import Pool
from models.panel.sifting import starting_set, trusted_at_last
from models.search import Trial, search_filter
from models.specs import SanitiseSpec
from service.errors import UnusableDataset
from service.jobs.submit import NO_DIVERGENCE
from worker.context import Context
from worker.examiner import Examiner
from worker.pooling import Listings, bounded, draw_pool, list_images
from worker.sets import Sets

FEWEST_SIFTED = 128


@dataclass(frozen=True, eq=False)
class FoundFilter:
    """A filter, the spec it was fitted by, and the trials that led there where hyperparameters were searched."""

    fit: FilterFit
    spec: SanitiseSpec
    trials: list[Trial]


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was fitted, on which images. sets: with the trusted rows, given or sifted. sifting: notes, or None."""

    sets: Sets
    listings: Listings
    found: FoundFilter
    panel_fit: PanelFit | None
    sifting: dict[str, Any] | None
    uses_panel: bool

    @property
    def filter_fit(self) -> FilterFit:
        return self.found.fit

    @property
    def examiner(self) -> Examiner:
        return Examiner(self.filter_fit.filter, self.panel if self.uses_panel else None)

    @property
    def panel(self) -> Panel | None:
        return self.panel_fit.panel if self.panel_fit else None


def uses_panel(spec: SanitiseSpec) -> bool:
    """A threshold is one of the filter's own score; nothing else then decides."""
    return bool(spec.panel.detectors) and spec.calibration.rate is not None


def fit_all(context: Context, sets: Sets, spec: SanitiseSpec) -> Fitted:
    listings = list_images(sets, spec)
    if sets.sifted:
        sets, panel_fit, notes = _sift(context, sets, listings, spec)
        return Fitted(sets, listings, _fit_filter(context, sets, listings, spec), panel_fit, notes, uses_panel(spec))
    found = _fit_filter(context, sets, listings, spec)
    if not uses_panel(spec):
        return Fitted(sets, listings, found, None, None, False)
    pool, rows = draw_pool(sets, listings, spec)
    panel_fit = _fit_panel(context, pool, rows, spec, None, found.fit)
    return Fitted(sets, listings, found, panel_fit, None, True)


def _sift(
    context: Context, sets: Sets, listings: Listings, spec: SanitiseSpec
) -> tuple[Sets, PanelFit, dict[str, Any]]:
    """The sets with what of the candidates is trusted in the end, and the panel that said so."""
    pool, rows = draw_pool(sets, listings, spec)
    start = starting_set(
        pool, spec.panel, seed=spec.seed, watch_for=context.progress.enter, checkpoints=context.checkpoints
    )
    panel_fit = _fit_panel(context, pool, rows, spec, start.chosen, None)
    chosen = rows[trusted_at_last(panel_fit, pool, start)]
    chosen = bounded(np.sort(chosen), 2 * spec.filter.max_images, seed=spec.seed)
    if len(chosen) < FEWEST_SIFTED:
        raise UnusableDataset(
            f"Only {len(chosen)} images of {len(pool)} look clean to every test; {FEWEST_SIFTED} are needed to go on "
            "without a trusted reference. Give a reference, or a larger data set.",
            code="reference_too_small",
        )
    notes = {"looked_at": len(pool), "started_from": int(start.chosen.sum()), "trusted": len(chosen)}
    return sets.trusting(chosen, spec), panel_fit, notes


def _fit_panel(
    context: Context,
    pool: Pool,
    rows: NDArray[np.int64],
    spec: SanitiseSpec,
    start: NDArray[np.bool_] | None,
    filter_fit: FilterFit | None,
) -> PanelFit:
    def reconstruct(images: Images) -> Images:
        if filter_fit is None:
            raise UnusableDataset(NO_DIVERGENCE, code="reference_needed")
        return filter_fit.filter.reconstruct(images)

    return fit_panel(
        pool,
        rows,
        spec.panel,
        start=start,
        reconstruct=reconstruct,
        seed=spec.seed,
        watch_for=context.progress.enter,
        checkpoints=context.checkpoints,
    )


def _fit_filter(context: Context, sets: Sets, listings: Listings, spec: SanitiseSpec) -> FoundFilter:
    rows = bounded(sets.fit, spec.filter.max_images, seed=spec.seed)
    images, labels = sets.reference_reader.images(rows), listings.reference.labels[rows]
    means: dict[str, Any] = {
        "num_classes": len(sets.candidate.classes),
        "watch_for": context.progress.enter,
        "checkpoints": context.checkpoints,
    }
    trials: list[Trial] = []
    if spec.search:
        found = search_filter(images, labels, spec, **means)
        spec, trials = found.spec, found.trials
    return FoundFilter(fit_filter(images, labels, spec, **means), spec, trials)
