"""Draws what the panel is fitted on: a bounded sample of candidates and calibration images, and the trusted ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.panel.pool import Pool, folds_of
from models.seeding import derive_seed
from models.specs import SanitiseSpec
from worker.datasets import relabelled
from worker.examiner import Listing
from worker.sets import Rows, Sets


@dataclass(frozen=True, eq=False)
class Listings:
    """Of all candidates, and of all images of the reference, whose numbers go on where the candidates' end."""

    candidates: Listing
    reference: Listing


def list_images(sets: Sets, spec: SanitiseSpec) -> Listings:
    candidates = sets.candidate_reader.labels()
    count = len(candidates)
    first = Listing(candidates, folds_of(count, seed=spec.seed, what="candidates"), np.arange(count))
    if sets.sifted:
        return Listings(first, first)
    labels = relabelled(sets.reference_reader.labels(), sets.reference_version.classes, sets.candidate.classes)
    folds = folds_of(len(labels), seed=spec.seed, what="reference")
    return Listings(first, Listing(labels, folds, count + np.arange(len(labels))))


def bounded(rows: Rows, most: int, *, seed: int) -> Rows:
    """At most so many of the rows, drawn from the seed; sorted."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(np.random.PCG64(seed)).choice(rows, most, replace=False))


def draw_pool(sets: Sets, listings: Listings, spec: SanitiseSpec) -> tuple[Pool, NDArray[np.int64]]:
    """The pool, and the numbers of its images.

    Candidates and held-out images are drawn as one set, so that a held-out image has a candidate's chance to be in it.
    """
    count = sets.candidate.num_samples
    fit = bounded(sets.fit, spec.filter.max_images, seed=spec.seed)
    judged = np.concatenate([np.arange(count), count + sets.held])
    judged = bounded(judged, spec.panel.max_images, seed=derive_seed(spec.seed, "pool"))
    own, held = judged[judged < count], judged[judged >= count] - count
    theirs = np.concatenate([fit, held])
    lists = [listings.candidates.at(own), listings.reference.at(theirs)]
    trusted = np.zeros(len(own) + len(theirs), np.bool_)
    trusted[len(own) : len(own) + len(fit)] = True
    pool = Pool(
        np.concatenate([sets.candidate_reader.images(own), sets.reference_reader.images(theirs)]),
        np.concatenate([part.labels for part in lists]),
        np.concatenate([part.folds for part in lists]),
        trusted,
        len(sets.candidate.classes),
    )
    return pool, np.concatenate([part.rows for part in lists])
