"""A panel's scores, and the test that its calibration images make of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.calibration import (
    PanelTest,
    PerClassTest,
    benjamini_hochberg,
    check_alpha,
    check_alpha_per_class,
    threshold_at_fpr,
)
from models.combination import Way, chosen_way, panel_test
from models.shift import FEWEST, BulkMap, Groups, Shift, bulk_calibration, detect_shift
from models.specs import CalibrationSpec
from service.errors import UnusableDataset

P = NDArray[np.float64]
IMAGES_AT_ONCE = 65_536


@dataclass(frozen=True)
class Detectors:
    """The detectors, the filter's score first. weights: how α is shared among them, evenly where not given."""

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    class_names: Sequence[str] = ()

    @classmethod
    def unnamed(cls, count: int) -> Self:
        return cls(tuple(f"score_{place}" for place in range(count)) if count > 1 else ("score",))


@dataclass(frozen=True, eq=False)
class Scored:
    """Images as the panel sees them: scores (k, t), given labels (k,), the object each shows (k,)."""

    scores: NDArray[np.float32]
    labels: NDArray[np.int64] | None = None
    groups: Groups | None = None

    @classmethod
    def of(cls, scores: Self | NDArray[np.float32], labels: NDArray[np.int64] | None = None) -> Self:
        """Takes (k,) for the scores of one detector."""
        if isinstance(scores, cls):
            return scores if scores.scores.ndim == 2 else cls(scores.scores[:, None], scores.labels, scores.groups)
        table = np.asarray(scores)
        return cls(table if table.ndim == 2 else table[:, None], labels)

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, places: slice | NDArray[np.intp]) -> Scored:
        labels, groups = (None if each is None else each[places] for each in (self.labels, self.groups))
        return Scored(self.scores[places], labels, groups)

    def labels_needed(self) -> NDArray[np.int64]:
        if self.labels is None:
            raise ValueError("calibration by class needs the labels of candidates and calibration images")
        return self.labels


@dataclass(frozen=True, eq=False)
class Calibrated:
    """The calibration images, in the candidates' units where they are mapped, and the test they make."""

    calibration: Scored
    maps: dict[str, BulkMap]
    weights: P  # (t,)
    way: Way  # how the panel's p-values become one
    fewest: int  # calibration images that any candidate is compared with, at least
    most: int
    whole: PanelTest | None  # exactly one of the two
    per_class: PerClassTest | None

    def p_values(self, images: Scored) -> P:
        """Of the panel, (k,)."""
        found = np.empty(len(images))
        for here in _parts(len(images)):
            found[here] = self._p_values(images.at(here))[0]
        return found

    def own_p_values(self, images: Scored) -> P:
        """Of each detector, (k, t). Asked for anew where they are needed: of a million images they are 8·t MB."""
        return self._p_values(images)[1]

    def spoke(self, images: Scored, flagged: NDArray[np.bool_], level: float) -> NDArray[np.bool_]:
        """Who speaks against each flagged image: who finds it as rare as `level` asks, and the most extreme, (n, t)."""
        spoke = np.zeros(images.scores.shape, np.bool_)
        for here in _parts(len(images)):
            some = images.at(here)
            own = self.own_p_values(some)
            spoke[here] = own <= self._levels(level, some.labels)
            spoke[here][np.arange(len(own)), np.argmin(own / self.weights, axis=1)] = True
        spoke &= flagged[:, None]
        return spoke

    def _p_values(self, images: Scored) -> tuple[P, P]:
        if self.per_class is not None:
            return self.per_class.p_values(images.scores, images.labels_needed())
        assert self.whole is not None  # noqa: S101
        return self.whole.p_values(images.scores)

    def thresholds(self, level: float) -> P:
        """The scores beyond which each detector speaks against an image of any class at `level`, (t,); inf where none.

        Under the joint test that is where it flags by itself; see `PanelTest.levels`.
        """
        if self.per_class is None:
            return _lines(self.calibration.scores, self._levels(level, None))
        labels = self.calibration.labels_needed()
        classes = np.unique(labels)
        levels = self._levels(level, classes)
        lines = [_lines(self.calibration.scores[labels == c], own) for c, own in zip(classes, levels, strict=True)]
        return np.asarray(np.max(lines, axis=0))

    def _levels(self, level: float, labels: NDArray[np.int64] | None) -> P:
        if self.per_class is not None and labels is not None:
            return self.per_class.levels(level, labels)
        assert self.whole is not None  # noqa: S101
        return self.whole.levels(level)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + IMAGES_AT_ONCE) for start in range(0, count, IMAGES_AT_ONCE))


def _lines(calibration: NDArray[np.float32], levels: P) -> P:
    """calibration: (m, t); levels: (t,)."""
    columns = zip(calibration.T, levels, strict=True)
    return np.array([threshold_at_fpr(column, fpr=level) if level > 0 else np.inf for column, level in columns])


def calibrate(reference: Scored, candidates: Scored, spec: CalibrationSpec, panel: Detectors) -> Calibrated:
    """Raises AlphaTooSmall where the calibration images cannot promise the rate asked for, or no rate of a class."""
    labels = calibration_labels = None
    if spec.per_class:
        labels, calibration_labels = candidates.labels_needed(), reference.labels_needed()
    _check_rate(spec, len(reference.scores), labels, calibration_labels, panel)
    maps = _maps(reference, candidates, panel) if spec.calibrate_on == "candidates" else {}
    calibration = _mapped(reference, maps, panel)

    counts = [len(reference.scores)]
    if labels is not None and calibration_labels is not None:
        counts = [int(np.count_nonzero(calibration_labels == label)) for label in np.unique(labels)] or counts
    way = chosen_way(spec.combine, spec.false_quarantine_rate, min(counts), len(panel.names))

    def make(scores: NDArray[np.floating]) -> PanelTest:
        return panel_test(scores, way, panel.weights)

    whole, per_class = None, None
    if calibration_labels is None:
        whole = make(calibration.scores)
    else:
        per_class = PerClassTest(calibration.scores, calibration_labels, make)
    weights = np.asarray(panel.weights or [1.0] * len(panel.names), dtype=np.float64)
    return Calibrated(calibration, maps, weights, way, min(counts), max(counts), whole, per_class)


def shifts_between(reference: Scored, candidates: Scored, panel: Detectors) -> dict[str, Shift]:
    """How each detector's scores of the bulk of the candidates differ from the reference's; none of too few images."""
    if min(len(reference.scores), len(candidates.scores)) < FEWEST:
        return {}
    return {
        name: detect_shift(
            reference.scores[:, place],
            candidates.scores[:, place],
            groups_calibration=_several(reference.groups),
            groups_candidates=_several(candidates.groups),
            tests=len(panel.names),
        )
        for place, name in enumerate(panel.names)
    }


def discoveries(p_values: P, rate: float) -> float:
    """The largest p-value that Benjamini–Hochberg flags at `rate`; 0 where it flags none."""
    return float(p_values[benjamini_hochberg(p_values, rate=rate)].max(initial=0.0))


def _check_rate(
    spec: CalibrationSpec,
    num_calibration: int,
    labels: NDArray[np.int64] | None,
    calibration_labels: NDArray[np.int64] | None,
    panel: Detectors,
) -> None:
    if spec.rate is None:
        return
    check_alpha(spec.rate, num_calibration)
    if labels is not None and calibration_labels is not None:
        check_alpha_per_class(spec.rate, labels, calibration_labels, panel.class_names)


def _maps(reference: Scored, candidates: Scored, panel: Detectors) -> dict[str, BulkMap]:
    fewest = min(len(reference.scores), len(candidates.scores))
    if fewest < FEWEST:
        raise UnusableDataset(
            f"To calibrate on the candidates takes at least {FEWEST} candidates and as many held-out reference images;"
            f" here are {fewest}. Calibrate on the reference, or give more images."
        )
    return {
        name: bulk_calibration(reference.scores[:, place], candidates.scores[:, place])
        for place, name in enumerate(panel.names)
    }


def _mapped(reference: Scored, maps: dict[str, BulkMap], panel: Detectors) -> Scored:
    if not maps:
        return reference
    table = np.stack([maps[name].mapped for name in panel.names], axis=1).astype(np.float32)
    return Scored(table, reference.labels, reference.groups)


def _several(groups: Groups | None) -> Groups | None:
    return groups if groups is not None and len(np.unique(groups)) > 1 else None
