"""Chooses the flagged images that a sanitise report shows, and asks the classifiers what they see in them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.images import Images
from worker.fitting import Fitted
from worker.judging import Judgement
from worker.reports.sanitise import GalleryItem

OF_THE_FILTER = 24
OF_OTHERS = 24

Places = NDArray[np.int64]


def gallery(fitted: Fitted, judgement: Judgement) -> list[GalleryItem]:
    """First those that the filter flagged, then those that only other detectors did."""
    chosen = np.concatenate([_of_the_filter(judgement), _of_others(judgement)])
    sets = fitted.sets
    images = sets.candidate_reader.images(chosen)
    rebuilt = fitted.filter_fit.filter.reconstruct(images, fitted.listings.candidates.folds[chosen])
    suggested = _suggested(fitted, images, chosen)
    classes = sets.candidate.classes
    return [
        GalleryItem(
            index=int(index),
            path=sets.candidate_reader.rows_in(int(index), 1)["path"][0].as_py(),
            label=classes[fitted.listings.candidates.labels[index]],
            original=images[place],
            reconstruction=rebuilt[place],
            score=float(judgement.scores[index]),
            p_value=float(judgement.p_values[index]),
            suggested_label=suggested[place],
            reasons=_reasons(judgement, int(index)),
        )
        for place, index in enumerate(chosen)
    ]


def _of_the_filter(judgement: Judgement) -> Places:
    """From the most suspicious to the least, evenly spaced."""
    flagged = np.flatnonzero(judgement.spoke[:, 0] & judgement.flagged)
    return _spaced(flagged[np.argsort(-judgement.scores[flagged], kind="stable")], OF_THE_FILTER)


def _of_others(judgement: Judgement) -> Places:
    """Detector by detector, from the most suspicious to the least, so that each has its share of the places."""
    flagged = np.flatnonzero(judgement.flagged & ~judgement.spoke[:, 0])
    own = np.where(judgement.spoke[flagged], judgement.own_p_values(flagged), np.inf)
    leading = own.argmin(axis=1) if len(flagged) else np.empty(0, np.int64)
    score = judgement.candidates.scores[flagged, leading]
    return _spaced(flagged[np.lexsort((-score, leading))], OF_OTHERS)


def _spaced(order: Places, most: int) -> Places:
    return np.asarray(order[np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(np.int64)])


def _suggested(fitted: Fitted, images: Images, places: Places) -> list[str | None]:
    """The class that classifiers of confirmed labels, which have not seen the image, find most likely."""
    if fitted.panel is None or len(places) == 0:
        return [None] * len(places)
    answers = fitted.panel.answers(images, fitted.listings.candidates.folds[places])
    return [fitted.sets.candidate.classes[best] for best in answers.argmax(axis=1)]


def _reasons(judgement: Judgement, index: int) -> tuple[str, ...]:
    names = judgement.panel.names
    if len(names) == 1:
        return ()
    own = np.where(judgement.spoke[index], judgement.own_p_values(np.array([index]))[0], np.inf)
    return tuple(names[place] for place in np.argsort(own, kind="stable")[: int(judgement.spoke[index].sum())])
