"""No trusted images: is what is sifted out of the candidates clean, and is the poison found by it?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.datasets import split
from benchmarks.detection_labels import poisoned_candidates, sizes
from benchmarks.detection_record import Measured, at_least, at_most, share
from benchmarks.detection_setting import (
    ALL_DETECTORS,
    Bools,
    Labels,
    Looked,
    Setting,
    Shown,
    fitted_filters,
    groups_of,
    kept,
)
from models.calibration import auroc
from models.panel.panel import fit_panel
from models.panel.pool import Pool, folds_of
from models.panel.sifting import starting_set, trusted_at_last
from models.training import Forgetful, Silent, Watch
from worker.examiner import Examiner
from worker.pooling import bounded

ALPHA = 0.05
POISONED = 0.05
KINDS = {"badnets": 0.90, "flips": 0.90}
FREE_SEEDS = 2 / 3
"""Of three, the seeds in which the sifted reference is to hold no poison."""


def measure(setting: Setting, kind: str) -> Iterator[Measured]:
    wanted = KINDS[kind]
    looked = looked_at(setting, kind)
    poisoned, name = looked.is_poison, ("sifted" if setting.encoder is None else "encoded-sifted", kind)
    within = int((looked.trusted & poisoned).sum())
    free = Measured(setting.claim(*name, "reference-free-of-poison"), float(within == 0), at_least(FREE_SEEDS))
    yield free
    yield share(setting.claim(*name, "reference-poison"), within, int(looked.trusted.sum()))
    with_it = () if setting.encoder is None else ("encoder_loss",)
    default = looked.at((looked.names[0], *setting.panel.detectors, *with_it))
    judgement = default.judged(false_quarantine_rate=ALPHA)
    flagged = judgement.flagged
    hits, alarms = int(flagged[poisoned].sum()), int(flagged[~poisoned].sum())
    yield share(setting.claim(*name, "tpr"), hits, int(poisoned.sum()), at_least(wanted))
    yield share(setting.claim(*name, "fpr"), alarms, int((~poisoned).sum()), at_most(ALPHA))
    p_values = judgement.p_values
    cut = np.quantile(p_values[~poisoned], ALPHA, method="lower")
    found = int((p_values[poisoned] <= cut).sum())
    yield share(setting.claim(*name, "tpr-at-true-fpr-5%"), found, int(poisoned.sum()))
    for detector in looked.names:
        column = looked.at((detector,)).candidates[:, 0]
        value = auroc(column[poisoned], column[~poisoned])
        yield Measured(setting.claim(*name, detector, "auroc"), value, n=len(column))
    yield Measured(setting.claim(*name, "seconds"), looked.panel_seconds, unit="s")


def looked_at(setting: Setting, kind: str) -> Looked:
    trusted, count = sizes(setting)

    def make() -> Looked:
        parts = split(setting.data, trusted=trusted, candidates=count, seed=setting.seed)
        shown, is_poison = poisoned_candidates(setting, parts, kind, POISONED)
        return _look(setting, shown, is_poison, groups_of(setting.data, parts.candidates))

    name = "sifted" if setting.encoder is None else f"encoded-{setting.encoder.sha256[:8]}-sifted"
    return kept(setting, f"{name}-{kind}-{POISONED:g}", make)


def _look(setting: Setting, shown: Shown, is_poison: Bools, groups: Labels) -> Looked:
    """As the worker does it without a reference."""
    detectors = tuple(name for name in ALL_DETECTORS if name != "reconstruction_divergence")  # no filter yet
    if setting.encoder is not None:
        detectors = (*detectors, "encoder_loss")
    spec = setting.spec.model_copy(update={"panel": setting.panel.model_copy(update={"detectors": detectors})})
    count, seed = len(shown), setting.seed
    known, nobody = (None if setting.data.groups is None else groups), np.zeros(count, np.bool_)
    folds = folds_of(count, known, seed=seed, what="candidates")
    pool = Pool(shown.images, shown.labels, folds, nobody, setting.data.num_classes)
    rows, began, encode = np.arange(count), time.monotonic(), None
    if setting.encoder is not None:
        encode = setting.encoder.encode
        pool = replace(pool, encoded=encode(pool.images))

    def watch_for(_phase: str) -> Watch:
        return Silent()

    start = starting_set(pool, spec.panel, seed=seed, watch_for=watch_for, checkpoints=Forgetful())
    fit = fit_panel(
        pool,
        rows,
        spec.panel,
        start=start.chosen,
        reconstruct=lambda images, folds: images,  # noqa: ARG005
        encode=encode,
        seed=seed,
        watch_for=watch_for,
        checkpoints=Forgetful(),
    )
    chosen = bounded(np.flatnonzero(trusted_at_last(fit, pool, start)), 2 * spec.filter.max_images, seed=seed)
    seconds = time.monotonic() - began
    reference = Shown(shown.images[chosen], shown.labels[chosen])
    filters = fitted_filters(reference, folds[chosen], spec, setting.data.num_classes)
    examiner = Examiner(filters.filter, fit.panel)
    scores = examiner.score(shown.images, shown.labels, folds, rows)
    return Looked(
        examiner.names,
        scores[chosen],
        scores,
        is_poison,
        np.isin(rows, chosen),
        shown.labels,
        groups[chosen],
        groups,
        seconds,
        float(fit.confirmed.mean()),
        float(fit.confirmed[is_poison].mean()),
    )
