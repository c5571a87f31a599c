"""A panel's scores, and the test that its calibration images make of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.among import AmongCandidates
from models.calibration import (
    PanelTest,
    PerClassTest,
    benjamini_hochberg,
    check_alpha,
    check_alpha_per_class,
)
from models.combination import COMBINATIONS, Way, chosen_way, panel_test
from models.shift import FEWEST, Groups, Shift, bulk_calibration, detect_shift
from models.specs import CalibrationSpec
from service.errors import UnusableDataset

P = NDArray[np.float64]
IMAGES_AT_ONCE = 65_536
OF_IMAGES = "calibration images"
OF_GROUPS = (
    "groups of calibration images, which count as one each (images of one object are no independent draws; "
    'calibration.count_by "images" counts them all, and makes rates estimates)'
)


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

    @property
    def shares_objects(self) -> bool:
        """Whether any two images are known to show the same."""
        return self.groups is not None and len(np.unique(self.groups)) < len(self.groups)

    def labels_needed(self) -> NDArray[np.int64]:
        if self.labels is None:
            raise ValueError("calibration by class needs the labels of candidates and calibration images")
        return self.labels


@dataclass(frozen=True, eq=False)
class Calibrated:
    """The calibration images, in the candidates' units where they are mapped, and the test they make."""

    calibration: Scored
    weights: P  # (t,)
    way: Way  # how the panel's p-values become one
    groups: int | None  # as how many the calibration images count; None where each counts for itself
    fewest: int  # calibration images or groups that any candidate is compared with, at least
    most: int
    whole: PanelTest | None  # exactly one of the two
    per_class: PerClassTest | None
    shifts: dict[str, Shift]  # by detector; empty where there are too few images to tell
    among: AmongCandidates | None  # where it calibrates on the candidates: its measure is what the test looks at

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

    def thresholds(self, level: float) -> P:
        """The scores beyond which each detector speaks against an image of any class at `level`, (t,); inf where none.

        Under the joint test that is where it flags by itself; see `PanelTest.levels`.
        """
        if self.among is not None:
            return self.among.thresholds(np.full(len(self.weights), level))
        if self.per_class is not None:
            return self.per_class.thresholds(level)
        return self._of_all.thresholds(self._of_all.levels(level))

    def _p_values(self, images: Scored) -> tuple[P, P]:
        if self.among is None:
            return self._tested(images.scores, images)
        measured = self.among.measure(images.scores)[:, None]
        return self._tested(measured, images)[0], self.among.own_p_values(images.scores)

    def _tested(self, scores: NDArray[np.floating], images: Scored) -> tuple[P, P]:
        if self.per_class is not None:
            return self.per_class.p_values(scores, images.labels_needed())
        return self._of_all.p_values(scores)

    @property
    def _of_all(self) -> PanelTest:
        assert self.whole is not None  # noqa: S101
        return self.whole

    def _levels(self, level: float, labels: NDArray[np.int64] | None) -> P:
        """(t,) or (n, t), or of one column where the test looks at one measure of them all."""
        if self.per_class is not None and labels is not None:
            return self.per_class.levels(level, labels)
        return self._of_all.levels(level)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + IMAGES_AT_ONCE) for start in range(0, count, IMAGES_AT_ONCE))


def calibrate(
    reference: Scored, candidates: Scored, spec: CalibrationSpec, panel: Detectors, *, sifted: bool = False
) -> Calibrated:
    """sifted: the reference was chosen among the candidates; then they calibrate, whatever the spec says.

    Raises AlphaTooSmall where the calibration images cannot promise the rate asked for, or no rate of a class.
    """
    labels = reference.labels_needed() if spec.per_class else None
    counts = _check_rate(spec, reference, candidates.labels_needed() if spec.per_class else None, panel.class_names)
    groups, on_candidates = _groups(reference, spec), sifted or spec.calibrate_on == "candidates"
    exact = groups is None and not on_candidates
    way = chosen_way(spec.combine, spec.false_quarantine_rate, min(counts), len(panel.names), exact=exact)
    shifts = shifts_between(reference, candidates, panel)
    calibration, among = reference, None
    scores: NDArray[np.floating] = reference.scores
    if on_candidates:
        calibration = _mapped(reference, candidates, {} if sifted else shifts, panel)
        combine, weights = COMBINATIONS[way], panel.weights
        among = AmongCandidates(calibration.scores, candidates.scores, combine, weights, chosen=sifted)
        scores = among.calibration[:, None]

    def make(rows: NDArray[np.bool_] | slice) -> PanelTest:
        weights = None if on_candidates else panel.weights
        return panel_test(scores[rows], way, weights, None if groups is None else groups[rows])

    return Calibrated(
        calibration=calibration,
        weights=np.asarray(panel.weights or [1.0] * len(panel.names), dtype=np.float64),
        way=way,
        groups=None if groups is None else len(np.unique(groups)),
        fewest=min(counts),
        most=max(counts),
        whole=make(slice(None)) if labels is None else None,
        per_class=None if labels is None else PerClassTest(labels, make, scores.shape[1]),
        shifts=shifts,
        among=among,
    )


def check_rate(reference: Scored, candidates: Scored, spec: CalibrationSpec, class_names: Sequence[str]) -> None:
    """What `calibrate` would refuse, before anything is fitted: of both only labels and groups are looked at."""
    _check_rate(spec, reference, candidates.labels_needed() if spec.per_class else None, class_names)


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
    spec: CalibrationSpec, reference: Scored, judged: NDArray[np.int64] | None, class_names: Sequence[str]
) -> list[int]:
    """How many images or groups calibrate; those of each class in `judged`, where each calibrates for itself."""
    groups = _groups(reference, spec)
    unit = OF_IMAGES if groups is None else OF_GROUPS

    def count(rows: NDArray[np.bool_] | slice) -> int:
        return len(reference.scores[rows]) if groups is None else len(np.unique(groups[rows]))

    if spec.rate is not None:
        check_alpha(spec.rate, count(slice(None)), unit)
    if judged is None:
        return [count(slice(None))]
    labels = reference.labels_needed()
    by_class = {int(label): count(labels == label) for label in np.unique(judged)}
    if spec.rate is not None:
        named = {class_names[label] if class_names else str(label): own for label, own in by_class.items()}
        check_alpha_per_class(spec.rate, named, unit)
    return list(by_class.values()) or [count(slice(None))]


def _groups(reference: Scored, spec: CalibrationSpec) -> Groups | None:
    """By what the calibration images are counted; None where each counts for itself."""
    if spec.count_by == "images" or not reference.shares_objects:
        return None
    return reference.groups


def _mapped(reference: Scored, candidates: Scored, shifts: dict[str, Shift], panel: Detectors) -> Scored:
    """The reference as it would have scored had it come the candidates' way, under each detector that sees a shift."""
    fewest = min(len(reference.scores), len(candidates.scores))
    if fewest < FEWEST:
        raise UnusableDataset(
            f"To calibrate on the candidates takes at least {FEWEST} candidates and as many held-out reference images;"
            f" here are {fewest}. Calibrate on the reference, or give more images."
        )
    table = reference.scores.copy()
    for place, name in enumerate(panel.names):
        if name in shifts and shifts[name].found:
            table[:, place] = bulk_calibration(reference.scores[:, place], candidates.scores[:, place]).mapped
    return Scored(table, reference.labels, reference.groups)


def _several(groups: Groups | None) -> Groups | None:
    return groups if groups is not None and len(np.unique(groups)) > 1 else None
