"""Do the error rates hold? Scores of the label benchmark, whose clean images calibrate and are judged in many draws."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.detection_labels import FILTER, looked_at
from benchmarks.detection_record import SHOWN, Measured, at_most
from benchmarks.detection_setting import Looked, Setting
from models.calibration import benjamini_hochberg
from models.combination import chosen_way, panel_test

DRAWS = 100
ALPHAS = (0.01, 0.05, 0.10)
DISCOVERY_RATES = (0.05, 0.10)
CALIBRATING, CALIBRATING_DISCOVERIES = 500, 2000
"""Images. Fewer than the second can discover nothing of a poison of 2 % at a rate of 5 %."""

IMAGES_AN_OBJECT = 3
CALIBRATING_DISCOVERIES_OF_OBJECTS = 3000
"""Where images show objects, a thousand of them: there are not many more."""

KINDS = ("badnets", "flips")

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]
Floats = NDArray[np.float64]


def measure(setting: Setting, kind: str) -> Iterator[Measured]:
    looked = looked_at(setting, kind)
    for name, detectors in (("filter", (FILTER,)), ("panel", (FILTER, *setting.panel.detectors))):
        yield from _rates(setting, looked.at(detectors), ("rates", kind, name))
    if setting.data.groups is not None:
        yield from _by_images(
            setting, looked.at((FILTER, *setting.panel.detectors)), ("rates", kind, "panel-by-images")
        )


def _by_images(setting: Setting, looked: Looked, name: tuple[str, ...]) -> Iterator[Measured]:
    """What it would be if images of one sign counted for themselves."""
    clean, groups = _clean(looked)
    rng = np.random.default_rng((setting.seed, 2))
    realised = np.empty((DRAWS, len(ALPHAS)))
    for draw in range(DRAWS):
        calibrating, judged = drawn(groups, CALIBRATING, rng)
        realised[draw] = _realised(clean[calibrating], clean[judged], None)
        drawn(groups, CALIBRATING_DISCOVERIES_OF_OBJECTS, rng)  # the same draws as those of _rates
    for place, alpha in enumerate(ALPHAS):
        yield _mean(setting.claim(*name, f"fpr-at-{alpha:g}"), realised[:, place])


def _p_values(calibration: Scores, judged: Scores, alpha: float | None, groups: Rows | None) -> Floats:
    """By the way that a job would choose. groups: of the calibration images, where they count."""
    few = len(calibration) if groups is None else len(np.unique(groups))
    way = chosen_way("auto", alpha, few, calibration.shape[1], exact=groups is None)
    return panel_test(calibration, way, groups=groups).p_values(judged)[0]


def _realised(calibration: Scores, judged: Scores, groups: Rows | None) -> list[float]:
    """The share flagged at each α."""
    return [float((_p_values(calibration, judged, alpha, groups) <= alpha).mean()) for alpha in ALPHAS]


def _clean(looked: Looked) -> tuple[Scores, Rows]:
    """Scores of all clean images, and the object each shows."""
    clean = ~looked.is_poison
    return (
        np.concatenate([looked.calibration, looked.candidates[clean]]),
        np.concatenate([looked.calibration_groups, looked.candidate_groups[clean]]),
    )


def _rates(setting: Setting, looked: Looked, name: tuple[str, ...]) -> Iterator[Measured]:
    clean, groups = _clean(looked)
    poison, grouped = looked.candidates[looked.is_poison], setting.data.groups is not None
    discovering = CALIBRATING_DISCOVERIES_OF_OBJECTS if grouped else CALIBRATING_DISCOVERIES
    rng = np.random.default_rng((setting.seed, 2))
    realised = np.empty((DRAWS, len(ALPHAS)))
    shares, found = np.empty((DRAWS, len(DISCOVERY_RATES))), np.empty((DRAWS, len(DISCOVERY_RATES)))
    for draw in range(DRAWS):
        calibrating, judged = drawn(groups, CALIBRATING, rng)
        realised[draw] = _realised(clean[calibrating], clean[judged], groups[calibrating] if grouped else None)
        calibrating, judged = drawn(groups, discovering, rng)
        own, both = groups[calibrating] if grouped else None, np.concatenate([clean[judged], poison])
        p_values = _p_values(clean[calibrating], both, None, own)
        for place, rate in enumerate(DISCOVERY_RATES):
            flagged = benjamini_hochberg(p_values, rate=rate)
            false = int(flagged[: len(judged)].sum())
            shares[draw, place] = false / max(1, int(flagged.sum()))
            found[draw, place] = flagged[len(judged) :].mean()
    for place, alpha in enumerate(ALPHAS):
        yield _mean(setting.claim(*name, f"fpr-at-{alpha:g}"), realised[:, place], alpha)
    for place, rate in enumerate(DISCOVERY_RATES):
        yield _mean(setting.claim(*name, f"fdr-at-{rate:g}"), shares[:, place], rate)
        yield Measured(setting.claim(*name, f"found-at-fdr-{rate:g}"), float(found[:, place].mean()), n=DRAWS)


def _mean(claim: str, values: Floats, wanted: float | None = None) -> Measured:
    """wanted: at most, but for two standard errors; without it only shown."""
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    bar = SHOWN if wanted is None else at_most(wanted, slack=2 * error)
    return Measured(claim, mean, bar, len(values), mean - 1.96 * error, mean + 1.96 * error)


def drawn(groups: Rows, wanted: int, rng: np.random.Generator, *, each: int = IMAGES_AN_OBJECT) -> tuple[Rows, Rows]:
    """(rows that calibrate, rows that are judged), no object on both sides; at most `each` images of one calibrate."""
    order = rng.permutation(len(groups))
    _, of_group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    drawn_groups = rng.permutation(len(counts))
    enough = int(np.searchsorted(np.cumsum(np.minimum(counts, each)[drawn_groups]), wanted)) + 1
    calibrates = np.isin(of_group, drawn_groups[:enough])
    rank = np.empty(len(groups), np.int64)
    by_group = order[np.argsort(of_group[order], kind="stable")]
    rank[by_group] = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.flatnonzero(calibrates & (rank < each)), np.flatnonzero(~calibrates)
