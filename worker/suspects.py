"""Looks at the trusted images themselves: a few poisons among them undo a defence."""

from __future__ import annotations

import numpy as np

from models.panel.purification import denied
from worker.fitting import Fitted
from worker.pooling import bounded
from worker.reports.sanitise_facts import SuspiciousImage

LOOKED_AT = 8000
MOST = 50


def suspicious_reference(fitted: Fitted, *, seed: int) -> list[SuspiciousImage]:
    """Images of the reference whose label the classifiers that have not seen them deny, the worst first.

    Empty where no panel was fitted, or nobody gave a reference.
    """
    if fitted.panel is None or fitted.sets.sifted:
        return []
    reader, listing = fitted.sets.reference_reader, fitted.listings.reference
    rows = bounded(np.arange(len(listing.labels)), LOOKED_AT, seed=seed)
    asked = listing.at(rows)
    log_p, _ = fitted.panel.purified.believing.see(reader.images(rows), asked.folds)
    given, best = np.exp(log_p[np.arange(len(rows)), asked.labels]), log_p.argmax(axis=1)
    wrong = np.flatnonzero(denied(log_p, asked.labels))
    worst = wrong[np.argsort(given[wrong], kind="stable")][:MOST]
    classes = fitted.sets.candidate.classes
    return [
        SuspiciousImage(
            path=reader.rows_in(int(rows[place]), 1)["path"][0].as_py(),
            label=classes[asked.labels[place]],
            suggested_label=classes[best[place]],
            score=float(1 - given[place]),
        )
        for place in worst
    ]
