"""Which rate so many calibration images, or groups of them, can promise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from models.abstention import calibrating_of
from models.calibration import AlphaTooSmall, check_alpha, check_alpha_per_class
from models.seeding import derive_seed
from models.shift import Groups
from models.specs import CalibrationSpec, DistillSpec
from models.splits import one_a_group
from worker.scored import Scored


def check_rate(reference: Scored, candidates: Scored, spec: CalibrationSpec, class_names: Sequence[str]) -> None:
    """What `calibrate` would refuse, before anything is fitted: of both only labels and groups are looked at."""
    judged = candidates.labels_needed() if spec.per_class else None
    count_calibrating(spec, reference, counted_groups(reference, spec), judged, class_names)


def count_calibrating(
    spec: CalibrationSpec,
    reference: Scored,
    groups: Groups | None,
    judged: NDArray[np.int64] | None,
    class_names: Sequence[str],
) -> list[int]:
    """How many images or groups calibrate; those of each class in `judged`, where each calibrates for itself."""
    unit = "calibration images" if groups is None else "groups of calibration images"

    def count(rows: NDArray[np.bool_] | slice) -> int:
        return len(reference.scores[rows]) if groups is None else len(np.unique(groups[rows]))

    if spec.rate is not None:
        with way_out(groups, "calibration.count_by"):
            check_alpha(spec.rate, count(slice(None)), unit)
    if judged is None:
        return [count(slice(None))]
    labels = reference.labels_needed()
    by_class = {int(label): count(labels == label) for label in np.unique(judged)}
    if spec.rate is not None:
        named = {class_names[label] if class_names else str(label): own for label, own in by_class.items()}
        with way_out(groups, "calibration.count_by"):
            check_alpha_per_class(spec.rate, named, unit)
    return list(by_class.values()) or [count(slice(None))]


@contextmanager
def way_out(groups: Groups | None, choice: str) -> Iterator[None]:
    """Where groups count, a refusal says why, and what to do: to choose otherwise."""
    try:
        yield
    except AlphaTooSmall as error:
        if groups is not None:
            error.args = (
                f"{error}. A group counts as one, for images of one object are no independent draws. Give images of "
                f'more objects, or ask for {choice} "images": it counts them all, and rates are estimates',
            )
        raise


def counted_groups(reference: Scored, spec: CalibrationSpec) -> Groups | None:
    """By what the calibration images are counted; None where each counts for itself."""
    if spec.count_by == "images" or not reference.shares_objects:
        return None
    return reference.groups


def rows_that_calibrate(held: int, groups: Groups | None, spec: DistillSpec) -> NDArray[np.int64]:
    """Of so many held-out images those that say when a student abstains: all, or one of each group.

    Images of one group are no independent draws of what production sends. groups: (held,), or None.
    Raises AlphaTooSmall, with the way out: to be asked before anything is fitted.
    """
    alpha, rows = spec.abstention.alpha, np.arange(held)
    if groups is None or spec.abstention.count_by == "images":
        check_alpha(alpha, calibrating_of(held), "held-out images that calibrate")
        return rows
    rows = one_a_group(groups, seed=derive_seed(spec.seed, "calibrating"))
    with way_out(None if len(rows) == held else groups, "abstention.count_by"):
        check_alpha(alpha, calibrating_of(len(rows)), "held-out groups that calibrate")
    return rows
