"""Deals every image to a fold, and draws what filter and panel are fitted on: bounded samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.panel.pool import FOLDS, Pool, folds_of
from models.seeding import derive_seed
from models.specs import SanitiseSpec
from models.splits import halves_by_class
from worker.datasets import groups_of, relabelled
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
    folds = folds_of(count, groups_of(sets.candidate_reader), seed=spec.seed, what="candidates")
    first = Listing(candidates, folds, np.arange(count))
    if sets.sifted:
        return Listings(first, first)
    labels = relabelled(sets.reference_reader.labels(), sets.reference_version.classes, sets.candidate.classes)
    folds = halves_by_class(labels, groups_of(sets.reference_reader), seed=spec.seed)
    return Listings(first, Listing(labels, folds, count + np.arange(len(labels))))


def bounded(rows: Rows, most: int, *, seed: int) -> Rows:
    """At most so many of the rows, drawn from the seed; sorted."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(np.random.PCG64(seed)).choice(rows, most, replace=False))


def teaching(sets: Sets, listings: Listings, spec: SanitiseSpec) -> Rows:
    """Trusted rows that fit something: of each fold at most as many as a filter learns from; sorted."""
    folds = listings.reference.folds[sets.trusted]
    of_fold = [sets.trusted[folds == fold] for fold in range(FOLDS)]
    return np.sort(np.concatenate([bounded(rows, spec.filter.max_images, seed=spec.seed) for rows in of_fold]))


def draw_pool(sets: Sets, listings: Listings, spec: SanitiseSpec) -> tuple[Pool, NDArray[np.int64]]:
    """The pool, and the numbers of its images."""
    own = np.arange(sets.candidate.num_samples)
    own = bounded(own, spec.panel.max_images, seed=derive_seed(spec.seed, "pool"))
    theirs = teaching(sets, listings, spec)
    lists = [listings.candidates.at(own), listings.reference.at(theirs)]
    pool = Pool(
        np.concatenate([sets.candidate_reader.images(own), sets.reference_reader.images(theirs)]),
        np.concatenate([part.labels for part in lists]),
        np.concatenate([part.folds for part in lists]),
        np.arange(len(own) + len(theirs)) >= len(own),
        len(sets.candidate.classes),
    )
    return pool, np.concatenate([part.rows for part in lists])
