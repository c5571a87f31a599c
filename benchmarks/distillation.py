"""Teacher and student on GTSRB: `python -m benchmarks.distillation --data FOLDER [--quick]`.

The paper's test of a defensive student beside the attack on the student itself; a robust student under PGD-50 and
Square; foreign images; fewer bits; the speed of the fit loop; a resumed fit. A part that is run again replaces its
earlier rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import datasets
from benchmarks.datasets import ImageSet
from benchmarks.distillation_fit import fit_rows
from benchmarks.distillation_foreign import foreign_rows
from benchmarks.distillation_networks import distilled
from benchmarks.distillation_precision import precision_rows
from benchmarks.harness import ClaimRow, commit, earlier, one_of, report, row
from models.attacks.gradient import fgsm, ifgsm, pgd, to_8bit
from models.attacks.square import square_attack
from models.calibration import wilson_interval
from models.classifiers import Classifier
from models.images import chunks, to_float

NAME = "distillation"
EPS_LINF, STEP_LINF, STEPS = 0.01, 0.01, 10
PGD_STEPS, RESTARTS = 50, 5
BATCH = 128


@dataclass(frozen=True)
class Size:
    """How many test images each measurement takes."""

    clean: int
    gradient: int
    pgd: int
    square: int
    queries: int


FULL = Size(12_630, 2000, 500, 300, 1000)
QUICK = Size(400, 100, 32, 16, 50)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four npz files")
    parser.add_argument("--cache", type=Path, help="where networks are kept; DATA/distillation")
    parser.add_argument("--quick", action="store_true", help="a smaller run for a first look; writes no file")
    parser.add_argument("--only", type=one_of(PARTS), default=list(PARTS), help=f"of {', '.join(PARTS)}")
    asked = parser.parse_args()
    began, cache = time.monotonic(), asked.cache or asked.data / NAME
    rows, parts = earlier(NAME, asked.only) if not asked.quick else ([], {})
    for part in asked.only:
        print(f"{time.strftime('%H:%M:%S')} {part}", flush=True)
        found, told = PARTS[part](asked.data, cache, quick=asked.quick)
        rows += found
        parts[part] = {"claims": [each.claim for each in found], "commit": commit(), **told}
    return report(NAME, rows, time.monotonic() - began, quick=asked.quick, extra={"parts": parts})


def defensive_rows(data: Path, cache: Path, *, quick: bool) -> tuple[list[ClaimRow], dict[str, Any]]:
    """Badjie's test: half FGSM, half I-FGSM at ε = 0.01 made against the teacher, shown to the student at T = 1."""
    given, size = datasets.load(data, "gtsrb"), QUICK if quick else FULL
    made = distilled(given, "defensive", cache, quick=quick)
    teacher, student = (_accuracy(network, given, size.clean) for network in (made.teacher, made.student))
    lost = teacher[0] - student[0]
    rows = [
        _share("distill/gtsrb/defensive/teacher-clean", "shown", *teacher),
        _share("distill/gtsrb/defensive/student-clean", "shown", *student),
        row("distill/gtsrb/defensive/lost-to-teacher", "<= 0.01", lost, lost <= 0.01, n=teacher[2]),
    ]
    images, labels = _sample(given, size.gradient)
    for victim, network in (("teacher", made.teacher), ("student", made.student)):
        attacked = [_papers_test(network, x, y) for x, y in _batches(images, labels)]
        found = _right(made.student, torch.cat(attacked), labels)
        wanted = ">= 0.7609" if victim == "teacher" else "shown"
        holds = victim == "student" or found[0] >= 0.7609
        rows.append(_share(f"distill/gtsrb/defensive/made-against-{victim}", wanted, *found, holds=holds))
    return rows, {"notes": made.notes}


def robust_rows(data: Path, cache: Path, *, quick: bool) -> tuple[list[ClaimRow], dict[str, Any]]:
    """In the box of ε as it is, and rounded to 8 bits, which makes 3 levels of its 2.55 and leaves the box."""
    given, size = datasets.load(data, "gtsrb"), QUICK if quick else FULL
    made = distilled(given, "robust", cache, quick=quick)
    clean = _accuracy(made.student, given, size.clean)
    rows = [_share("distill/gtsrb/robust/clean", ">= 0.98", *clean, holds=clean[0] >= 0.98)]
    rng = torch.Generator().manual_seed(0)
    for name, count in (("pgd-50x5-margin", size.pgd), ("square", size.square)):
        images, labels = _sample(given, count)
        parts = []
        for x, y in _batches(images, labels):
            if name == "square":
                parts.append(square_attack(made.student, x, y, eps_linf=EPS_LINF, queries=size.queries, rng=rng))
            else:
                parts.append(_strong_pgd(made.student, x, y, rng))
        attacked = torch.cat(parts)
        found, as_file = _right(made.student, attacked, labels), _right(made.student, to_8bit(attacked), labels)
        rows.append(_share(f"distill/gtsrb/robust/{name}", ">= 0.90", *found, holds=found[0] >= 0.9))
        rows.append(_share(f"distill/gtsrb/robust/{name}-as-8-bit", "shown", *as_file))
    return rows, {"notes": made.notes}


def _strong_pgd(network: Classifier, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    step_linf = 2.5 * EPS_LINF / PGD_STEPS
    return pgd(
        network,
        x,
        y,
        eps_linf=EPS_LINF,
        step_linf=step_linf,
        steps=PGD_STEPS,
        restarts=RESTARTS,
        loss="margin",
        rng=rng,
    )


def _papers_test(network: Classifier, x: Tensor, y: Tensor) -> Tensor:
    half = len(x) // 2
    first = fgsm(network, x[:half], y[:half], eps_linf=EPS_LINF)
    second = ifgsm(network, x[half:], y[half:], eps_linf=EPS_LINF, step_linf=STEP_LINF, steps=STEPS)
    return to_8bit(torch.cat([first, second]))


def _sample(given: ImageSet, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rows = np.sort(np.random.default_rng(0).permutation(len(given.test_labels))[:count])
    return given.test_images[rows], given.test_labels[rows]


def _batches(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[tuple[Tensor, Tensor]]:
    return [(to_float(images[rows]), torch.from_numpy(labels[rows])) for rows in chunks(len(labels), BATCH)]


def _right(network: Classifier, x: Tensor, labels: NDArray[np.int64]) -> tuple[float, tuple[float, float], int]:
    right = 0
    with torch.no_grad():
        for rows in chunks(len(labels), BATCH):
            right += int((network(x[rows]).argmax(1).numpy() == labels[rows]).sum())
    return right / len(labels), wilson_interval(right, len(labels)), len(labels)


def _accuracy(network: Classifier, given: ImageSet, count: int) -> tuple[float, tuple[float, float], int]:
    images, labels = _sample(given, count)
    return _right(network, to_float(images), labels)


def _share(
    claim: str, wanted: str, share: float, interval: tuple[float, float], n: int, *, holds: bool = True
) -> ClaimRow:
    return row(claim, wanted, share, holds, interval=interval, n=n)


PARTS = {
    "fit": fit_rows,
    "defensive": defensive_rows,
    "robust": robust_rows,
    "foreign": foreign_rows,
    "precision": precision_rows,
}


if __name__ == "__main__":
    sys.exit(main())
