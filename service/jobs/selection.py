"""Which images a reviewer means: by verdict, reason, label, p-value or index, all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.jobs.verdict_pages import VerdictPages
from service.jobs.verdicts import Verdict, detectors


@dataclass(frozen=True)
class Where:
    """An image is meant where everything that is given holds. `verdict` is Winnow's own."""

    verdict: Verdict | None = None
    reason: str | None = None  # a detector that spoke against it
    label: str | None = None
    p_value_below: float | None = None
    indices: Sequence[int] | None = None

    @property
    def nothing(self) -> bool:
        given = (self.verdict, self.reason, self.label, self.p_value_below, self.indices)
        return all(each is None for each in given)


def selected(pages: VerdictPages, where: Where) -> NDArray[np.int64]:
    """Indices of the images that are meant, in order. Raises InvalidInput where that cannot be told."""
    if where.nothing:
        raise InvalidInput(
            "Say which images: 'where' takes verdict, reason, label, p_value_below and indices.",
            code="bad_selection",
        )
    count = pages.count()
    meant = np.ones(count, bool)
    if where.indices is not None:
        meant &= _named(where.indices, count)
    if where.verdict is not None:
        meant &= pc.equal(pages.column("verdict"), where.verdict.value).to_numpy()
    if where.label is not None:
        meant &= pc.equal(pages.column("label"), where.label).to_numpy()
    if where.p_value_below is not None:
        meant &= pages.column("p_value").to_numpy() < where.p_value_below
    if where.reason is not None:
        meant &= _spoken_of(pages, where.reason, count)
    return np.flatnonzero(meant)


def _named(indices: Sequence[int], count: int) -> NDArray[np.bool_]:
    wanted = np.asarray(indices, np.int64)
    beyond = wanted[(wanted < 0) | (wanted >= count)]
    if len(beyond):
        raise InvalidInput(
            f"There are {count} verdicts, from 0 to {count - 1}: none has the index {beyond[0]}.", code="bad_selection"
        )
    named = np.zeros(count, bool)
    named[wanted] = True
    return named


def _spoken_of(pages: VerdictPages, reason: str, count: int) -> NDArray[np.bool_]:
    names = detectors(pages.columns())
    if reason not in names:
        raise InvalidInput(
            f"No detector of this job is called {reason!r}: use {' or '.join(names)}.", code="bad_selection"
        )
    reasons = pages.column("reasons").combine_chunks()
    spoke = pc.equal(pc.list_flatten(reasons), reason).to_numpy(zero_copy_only=False)
    told = np.zeros(count, bool)
    told[pc.list_parent_indices(reasons).to_numpy()[spoke]] = True
    return told
