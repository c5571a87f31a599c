"""The drift alarm: how often it is raised by clean traffic, and how soon by traffic of which a part is perturbed.

Every stream has calibration images of its own. Numpy only; `python -m benchmarks.drift [--quick]`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ClaimRow, report, row
from models.calibration import JointTest, wilson_interval
from models.drift import DriftTest, distinct

RATES = (0.05, 0.01)
PERTURBED = 0.2
WITHIN = 500
LONGEST = 10**9
Scores = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Scores]


@dataclass(frozen=True)
class Streams:
    """Of each stream (row): p-values, whether they were perturbed, and where its calibration can be told apart."""

    p_values: Scores
    cuts: list[NDArray[np.bool_]]


class FixedOdds(DriftTest):
    """For comparison: a test that takes p-values for uniform, as if the calibration knew the true quantiles."""

    def expected(self) -> Scores:
        return np.broadcast_to(self.sizes / (self.num_calibration + 1), self.counts.shape)


def dependent(rng: np.random.Generator, count: int) -> Scores:
    """(count, 2): a detector's score and an uncertainty that go together."""
    return 0.5 * rng.normal(size=(count, 1)) + rng.normal(size=(count, 2))


def saturated(rng: np.random.Generator, count: int) -> Scores:
    """The same where a score has a floor that half of the images lie on, as those of a very sure student do."""
    return np.maximum(dependent(rng, count), [-9, 0])


def floored(rng: np.random.Generator, count: int) -> Scores:
    """One score, a third of whose values tie."""
    return np.maximum(rng.normal(size=(count, 1)), -0.43)


def streams(
    rng: np.random.Generator, draw: Draw, *, n: int, count: int, length: int, clean: int = LONGEST, lift: float = 0.0
) -> Streams:
    """`count` streams of `length` images; after `clean` ones PERTURBED of them score `lift` higher."""
    p_values, cuts = np.empty((count, length)), []
    for stream in range(count):
        scores = draw(rng, n + length)
        perturbed = (np.arange(length) >= clean) & (rng.random(length) < PERTURBED)
        scores[n:][perturbed] += lift
        test = JointTest(scores[:n])
        p_values[stream] = test.p_values(scores[n:])[0]
        cuts.append(distinct(test.order()))
    return Streams(p_values, cuts)


def alarms(made: Streams, n: int, rate: float, kind: type[DriftTest] = DriftTest) -> int:
    """How many streams raise an alarm before they end; those that have no ties are tested side by side."""
    if all(cut.all() for cut in made.cuts):
        test = kind(n, rate=rate, streams=len(made.cuts))
        test.observe(made.p_values)
        return int(test.alarmed.sum())
    found = 0
    for p_values, cuts in zip(made.p_values, made.cuts, strict=True):
        test = kind(n, rate=rate, cuts=cuts)
        test.observe(p_values)
        found += int(test.alarmed[0])
    return found


def delays(made: Streams, n: int, rate: float, clean: int) -> NDArray[np.int64]:
    """Images from the change to the alarm, of each stream; LONGEST where none is raised."""
    test = DriftTest(n, rate=rate, streams=len(made.cuts))
    found = np.full(len(made.cuts), LONGEST)
    for place, column in enumerate(made.p_values.T):
        test.observe(column[:, None])
        found[test.alarmed & (found == LONGEST)] = place + 1 - clean
    return found


def false_alarms(rng: np.random.Generator, count: int, length: int) -> Iterator[ClaimRow]:
    cases: list[tuple[str, Draw, int, int]] = [("joint", dependent, n, count) for n in (50, 400, 2000)]
    cases += [("saturated", saturated, 400, count // 5), ("floored", floored, 400, count // 5)]
    for name, draw, n, how_many in cases:
        made = streams(rng, draw, n=n, count=how_many, length=length)
        for rate in RATES:
            share, interval, total = _share(alarms(made, n, rate), how_many)
            holds = interval[0] <= rate
            wanted = f"at most {rate:g} in {length} clean images"
            yield row(f"drift/clean/{name}/n{n}/rate-{rate:g}", wanted, share, holds, interval=interval, n=total)
        if name == "joint":
            share, interval, total = _share(alarms(made, n, RATES[0], FixedOdds), how_many)
            wanted = "for comparison: as if the calibration were exact"
            yield row(f"drift/clean/fixed-odds/n{n}/rate-{RATES[0]:g}", wanted, share, True, interval=interval, n=total)


def detections(rng: np.random.Generator, count: int) -> Iterator[ClaimRow]:
    for n, lift, clean in [(100, 12.0, 0), (400, 12.0, 0), (400, 12.0, 2000), (400, 2.5, 0), (2000, 2.5, 0)]:
        made = streams(rng, dependent, n=n, count=count, length=clean + WITHIN, clean=clean, lift=lift)
        found = delays(made, n, RATES[1], clean)
        in_time = int(((found > 0) & (found <= WITHIN)).sum())
        share, interval, total = _share(in_time, count)
        name = f"drift/perturbed-20/n{n}/{'p-near-0' if lift > 5 else f'lift-{lift:g}'}/after-{clean}"
        yield row(
            name, f"raised within {WITHIN} images in at least 0.99", share, share >= 0.99, interval=interval, n=total
        )
        middle = float(np.median(found))
        yield row(f"{name}/median-delay", f"at most {WITHIN}", middle, middle <= WITHIN, n=total, unit="images")


def _share(successes: int, n: int) -> tuple[float, tuple[float, float], int]:
    return successes / n, wilson_interval(successes, n), n


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter streams, and no file")
    quick = parser.parse_args().quick
    began = time.monotonic()
    rng = np.random.default_rng(0)
    rows = [*false_alarms(rng, *((400, 1000) if quick else (1000, 1500))), *detections(rng, 200 if quick else 400)]
    return report("drift", rows, time.monotonic() - began, quick=quick, extra={})


if __name__ == "__main__":
    raise SystemExit(main())
