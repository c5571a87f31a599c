"""Fits all that judges the candidates: the filter on trusted images, and the panel on candidates and trusted alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.filtering import CrossFit, cross_fit_filter
from models.images import Images
from models.panel.panel import Panel, PanelFit, fit_panel
from models.panel.pool import FOLDS, Labels, Pool
from models.panel.sifting import starting_set, trusted_at_last
from models.search import Trial, search_filter
from models.specs import SanitiseSpec
from models.training import Watch
from service.errors import UnusableDataset
from service.jobs.suitable import NO_DIVERGENCE
from worker.context import Context, StorageCheckpoints
from worker.encoders import Eye
from worker.examiner import Examiner
from worker.pooling import Listings, bounded, draw_pool, list_images, teaching
from worker.sets import Sets

FEWEST_SIFTED = 128

FILTER_PHASES = {"surrogates": 15.0, "perturbing": 5.0, "denoiser": 45.0}
"""With their shares of the time. The first filter's are called so, the others' with a number before."""


@dataclass(frozen=True, eq=False)
class FoundFilter:
    """The filters, the spec they were fitted by, and the trials that led there where hyperparameters were searched."""

    fit: CrossFit
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
    eye: Eye | None = None

    @property
    def filter_fit(self) -> CrossFit:
        return self.found.fit

    @property
    def examiner(self) -> Examiner:
        encoder = self.eye.facts if self.eye and self.uses_panel else None
        return Examiner(self.filter_fit.filter, self.panel if self.uses_panel else None, encoder)

    @property
    def panel(self) -> Panel | None:
        return self.panel_fit.panel if self.panel_fit else None


def uses_panel(spec: SanitiseSpec) -> bool:
    """A threshold is one of the filter's own score; nothing else then decides."""
    return bool(spec.panel.detectors) and spec.calibration.rate is not None


def fit_all(context: Context, sets: Sets, spec: SanitiseSpec) -> Fitted:
    listings = list_images(sets, spec)
    eye = _eye(context, sets, spec) if sets.sifted or uses_panel(spec) else None
    if sets.sifted:
        sets, panel_fit, notes = _sift(context, sets, listings, spec, eye)
        found = _fit_filter(context, sets, listings, spec)
        return Fitted(sets, listings, found, panel_fit, notes, uses_panel(spec), eye)
    found = _fit_filter(context, sets, listings, spec)
    if not uses_panel(spec):
        return Fitted(sets, listings, found, None, None, False)
    pool, rows = draw_pool(sets, listings, spec)
    panel_fit = _fit_panel(context, _encoded(context, pool, eye), rows, spec, None, found.fit, eye)
    return Fitted(sets, listings, found, panel_fit, None, True, eye)


def _eye(context: Context, sets: Sets, spec: SanitiseSpec) -> Eye | None:
    """The encoder that is asked for, tried: what it refuses is told before anything is fitted."""
    if spec.panel.encoder is None:
        return None
    height, width, channels = sets.candidate.image_shape
    return Eye.of_job(context.settings, context.checkpoints, spec.panel.encoder, (height, width, channels))


def _encoded(context: Context, pool: Pool, eye: Eye | None) -> Pool:
    if eye is None:
        return pool
    return replace(pool, encoded=eye.encode(pool.images, context.progress.enter("encoding", unit="images")))


def _sift(
    context: Context, sets: Sets, listings: Listings, spec: SanitiseSpec, eye: Eye | None
) -> tuple[Sets, PanelFit, dict[str, Any]]:
    """The sets with what of the candidates is trusted in the end, and the panel that said so."""
    pool, rows = draw_pool(sets, listings, spec)
    pool = _encoded(context, pool, eye)
    start = starting_set(
        pool, spec.panel, seed=spec.seed, watch_for=context.progress.enter, checkpoints=context.checkpoints
    )
    panel_fit = _fit_panel(context, pool, rows, spec, start.chosen, None, eye)
    chosen = rows[trusted_at_last(panel_fit, pool, start)]
    chosen = bounded(np.sort(chosen), 2 * spec.filter.max_images, seed=spec.seed)
    if len(chosen) < FEWEST_SIFTED:
        raise UnusableDataset(
            f"Only {len(chosen)} images of {len(pool)} look clean to every test; {FEWEST_SIFTED} are needed to go on "
            "without a trusted reference. Give a reference, or a larger data set.",
            code="reference_too_small",
        )
    notes = {"looked_at": len(pool), "started_from": int(start.chosen.sum()), "trusted": len(chosen)}
    if eye is not None:
        notes["encoder"] = eye.facts["name"]
    return replace(sets, trusted=chosen), panel_fit, notes


def _fit_panel(
    context: Context,
    pool: Pool,
    rows: NDArray[np.int64],
    spec: SanitiseSpec,
    start: NDArray[np.bool_] | None,
    filter_fit: CrossFit | None,
    eye: Eye | None,
) -> PanelFit:
    def reconstruct(images: Images, folds: Labels) -> Images:
        if filter_fit is None:
            raise UnusableDataset(NO_DIVERGENCE, code="reference_needed")
        return filter_fit.filter.reconstruct(images, folds)

    return fit_panel(
        pool,
        rows,
        spec.panel,
        start=start,
        reconstruct=reconstruct,
        encode=eye.encode if eye else None,
        seed=spec.seed,
        watch_for=context.progress.enter,
        checkpoints=context.checkpoints,
    )


def filter_phases() -> dict[str, float]:
    """The phases of fitting the filters of all folds, and their shares of the time."""
    return {filter_phase(name, fold): share / FOLDS for fold in range(FOLDS) for name, share in FILTER_PHASES.items()}


def filter_phase(name: str, fold: int) -> str:
    return name if fold == 0 else f"{name} {fold + 1}"


def _fit_filter(context: Context, sets: Sets, listings: Listings, spec: SanitiseSpec) -> FoundFilter:
    rows = teaching(sets, listings, spec)
    images, listed = sets.reference_reader.images(rows), listings.reference.at(rows)
    num_classes = len(sets.candidate.classes)
    trials: list[Trial] = []
    if spec.search:
        first = listed.folds != 0
        found = search_filter(
            images[first],
            listed.labels[first],
            spec,
            num_classes=num_classes,
            watch_for=context.progress.enter,
            checkpoints=context.checkpoints,
        )
        spec, trials = found.spec, found.trials

    def watch_for(phase: str, fold: int) -> Watch:
        return context.progress.enter(filter_phase(phase, fold))

    def checkpoints_for(fold: int) -> StorageCheckpoints:
        return context.checkpoints.of(f"filter-{fold}")

    fit = cross_fit_filter(
        images,
        listed.labels,
        listed.folds,
        spec,
        num_classes=num_classes,
        watch_for=watch_for,
        checkpoints_for=checkpoints_for,
    )
    return FoundFilter(fit, spec, trials)
