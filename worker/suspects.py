"""Looks at the trusted images themselves: a few poisons among them undo a defence."""

from __future__ import annotations

import numpy as np

from worker.fitting import Fitted
from worker.pooling import bounded
from worker.reports.sanitise_facts import SuspiciousImage

LOOKED_AT = 8000
MOST = 50
SURE, DISBELIEVED = 0.9, 0.02
"""Another label is this probable, and the given one at most that."""


def suspicious_reference(fitted: Fitted, *, seed: int) -> list[SuspiciousImage]:
    """Images of the reference whose label the classifiers that have not seen them deny, the worst first.

    Empty where no panel was fitted, or nobody gave a reference.
    """
    if fitted.panel is None or fitted.sets.sifted:
        return []
    reader, listing = fitted.sets.reference_reader, fitted.listings.reference
    rows = bounded(np.arange(len(listing.labels)), LOOKED_AT, seed=seed)
    asked = listing.at(rows)
    p = np.exp(fitted.panel.answers(reader.images(rows), asked.folds))
    given, best = p[np.arange(len(rows)), asked.labels], p.argmax(axis=1)
    denied = np.flatnonzero((given <= DISBELIEVED) & (p.max(axis=1) >= SURE))
    worst = denied[np.argsort(given[denied], kind="stable")][:MOST]
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
