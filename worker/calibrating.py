"""A panel's scores, and the test that its calibration images make of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.among import AmongCandidates
from models.calibration import PanelTest, PerClassTest, benjamini_hochberg
from models.combination import COMBINATIONS, Way, chosen_way, panel_test
from models.panel_specs import CHOOSES_REFERENCE
from models.shift import FEWEST, Groups, Shift, bulk_calibration, detect_shift
from models.specs import CalibrationSpec
from service.errors import UnusableDataset
from worker.promising import count_calibrating, counted_groups
from worker.scored import Detectors, Scored

P = NDArray[np.float64]
IMAGES_AT_ONCE = 65_536
MAPPED = 0.1
"""The p-value of a shift from which on a detector's scores are mapped: a faint one costs more than a needless map."""


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

    def of_calibration(self) -> P:
        """The panel's p-values of the calibration images themselves, (m,)."""
        if self.among is None:
            return self.p_values(self.calibration)
        found = self._tested(self.among.calibration[:, None], self.calibration)[0]
        return self.among.amended(found, self.calibration.scores)

    def unlike_any(self, images: Scored) -> NDArray[np.bool_]:
        """(k,): who resembles none of the candidates that are compared with, beside a reference chosen among them."""
        found = np.zeros(len(images), np.bool_)
        if self.among is None or not self.among.clean_left_out:
            return found
        for here in _parts(len(images)):
            some = images.at(here)
            measured = self._tested(self.among.measure(some.scores)[:, None], some)[0]
            found[here] = self.among.left_out(measured, some.scores)
        return found

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
        found = self.among.amended(self._tested(measured, images)[0], images.scores)
        return found, self.among.own_p_values(images.scores)

    def _tested(self, scores: NDArray[np.floating], images: Scored) -> tuple[P, P]:
        if self.per_class is not None:
            return self.per_class.p_values(scores, images.labels_needed())
        return self._of_all.p_values(scores)

    @property
    def _of_all(self) -> PanelTest:
        assert self.whole is not None  # noqa: S101
        return self.whole

    def _levels(self, level: float, labels: NDArray[np.int64] | None) -> P:
        if self.among is not None:
            return np.full(len(self.weights), level)
        if self.per_class is not None and labels is not None:
            return self.per_class.levels(level, labels)
        return self._of_all.levels(level)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + IMAGES_AT_ONCE) for start in range(0, count, IMAGES_AT_ONCE))


def calibrate(
    reference: Scored, candidates: Scored, spec: CalibrationSpec, panel: Detectors, *, sifted: bool = False
) -> Calibrated:
    """sifted: the reference was chosen among the candidates; whatever the spec says, these calibrate it, one by one.

    Raises AlphaTooSmall where the calibration images cannot promise the rate asked for, or no rate of a class.
    """
    labels = reference.labels_needed() if spec.per_class else None
    judged = candidates.labels_needed() if spec.per_class else None
    groups = None if sifted else counted_groups(reference, spec)
    counts = count_calibrating(spec, reference, groups, judged, panel.class_names)
    on_candidates = sifted or spec.calibrate_on == "candidates"
    exact = groups is None and not on_candidates
    way = chosen_way(spec.combine, spec.false_quarantine_rate, min(counts), len(panel.names), exact=exact)
    calibration, among = reference, None
    scores: NDArray[np.floating] = reference.scores
    if on_candidates:
        shifts = {} if sifted else shifts_between(reference, candidates, panel)
        calibration = _mapped(reference, candidates, shifts, panel)
    if on_candidates and spec.rate is not None:
        chosen_by = np.array([sifted and name in CHOOSES_REFERENCE for name in panel.names])
        combine, weights = COMBINATIONS[way], panel.weights
        among = AmongCandidates(calibration.scores, candidates.scores, combine, weights, chosen_by=chosen_by)
        scores = among.calibration[:, None]

    def make(rows: NDArray[np.bool_] | slice) -> PanelTest:
        weights = None if among is not None else panel.weights
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
        among=among,
    )


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


def _mapped(reference: Scored, candidates: Scored, shifts: dict[str, Shift], panel: Detectors) -> Scored:
    """The reference as it would have scored had it come the candidates' way, where a detector may see a shift."""
    fewest = min(len(reference.scores), len(candidates.scores))
    if fewest < FEWEST:
        raise UnusableDataset(
            f"To calibrate on the candidates takes at least {FEWEST} candidates and as many held-out reference images;"
            f" here are {fewest}. Calibrate on the reference, or give more images."
        )
    table = reference.scores.copy()
    for place, name in enumerate(panel.names):
        if name in shifts and shifts[name].p_value <= MAPPED:
            table[:, place] = bulk_calibration(reference.scores[:, place], candidates.scores[:, place]).mapped
    return Scored(table, reference.labels, reference.groups)


def _several(groups: Groups | None) -> Groups | None:
    return groups if groups is not None and len(np.unique(groups)) > 1 else None
