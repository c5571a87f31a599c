"""Do the error rates hold? Scores of the label benchmark, whose clean images calibrate and are judged in many draws."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.detection_labels import FILTER, looked_at
from benchmarks.detection_record import Measured, at_most
from benchmarks.detection_setting import Looked, Setting
from models.calibration import benjamini_hochberg
from models.combination import chosen_way, panel_test

DRAWS = 100
ALPHAS = (0.01, 0.05, 0.10)
DISCOVERY_RATES = (0.05, 0.10)
CALIBRATING, CALIBRATING_DISCOVERIES = 500, 2000
"""Fewer than the second can discover nothing of a poison of 2 % at a rate of 5 %."""

IMAGES_AN_OBJECT = 3
KINDS = ("badnets", "flips")

Rows = NDArray[np.int64]


def measure(setting: Setting, kind: str) -> Iterator[Measured]:
    looked = looked_at(setting, kind)
    for name, detectors in (("filter", (FILTER,)), ("panel", (FILTER, *setting.panel.detectors))):
        yield from _rates(setting, looked.at(detectors), ("rates", kind, name))
    if setting.data.groups is not None:
        yield from _alone(setting, looked.at((FILTER, *setting.panel.detectors)), ("rates", kind, "panel-one-a-sign"))


def _alone(setting: Setting, looked: Looked, name: tuple[str, ...]) -> Iterator[Measured]:
    """Where one image of each sign calibrates: images of one sign are not independent, and p-values count them so."""
    clean, groups = _clean(looked)
    rng = np.random.default_rng((setting.seed, 3))
    realised = np.empty((DRAWS, len(ALPHAS)))
    for draw in range(DRAWS):
        calibrating, judged = drawn(groups, CALIBRATING, rng, each=1)
        realised[draw] = _realised(clean[calibrating], clean[judged])
    for place, alpha in enumerate(ALPHAS):
        yield _mean(setting.claim(*name, f"fpr-at-{alpha:g}"), realised[:, place], alpha)


def _realised(calibration: NDArray[np.float32], judged: NDArray[np.float32]) -> list[float]:
    """The share flagged at each α, by the way that a job would choose for it."""
    found = []
    for alpha in ALPHAS:
        test = panel_test(calibration, chosen_way("auto", alpha, *calibration.shape))
        found.append(float((test.p_values(judged)[0] <= alpha).mean()))
    return found


def _clean(looked: Looked) -> tuple[NDArray[np.float32], Rows]:
    """Scores of all clean images, and the object each shows."""
    clean = ~looked.is_poison
    return (
        np.concatenate([looked.calibration, looked.candidates[clean]]),
        np.concatenate([looked.calibration_groups, looked.candidate_groups[clean]]),
    )


def _rates(setting: Setting, looked: Looked, name: tuple[str, ...]) -> Iterator[Measured]:
    clean, groups = _clean(looked)
    poison = looked.candidates[looked.is_poison]
    rng = np.random.default_rng((setting.seed, 2))
    realised = np.empty((DRAWS, len(ALPHAS)))
    shares, found = np.empty((DRAWS, len(DISCOVERY_RATES))), np.empty((DRAWS, len(DISCOVERY_RATES)))
    for draw in range(DRAWS):
        calibrating, judged = drawn(groups, CALIBRATING, rng)
        realised[draw] = _realised(clean[calibrating], clean[judged])
        calibrating, judged = drawn(groups, CALIBRATING_DISCOVERIES, rng)
        test = panel_test(clean[calibrating], chosen_way("auto", None, *clean[calibrating].shape))
        p_values = test.p_values(np.concatenate([clean[judged], poison]))[0]
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


def _mean(claim: str, values: NDArray[np.float64], wanted: float) -> Measured:
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    bar = at_most(wanted, slack=2 * error)
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
