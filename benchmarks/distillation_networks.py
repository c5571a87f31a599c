"""Teacher and students of the distillation benchmark, kept epoch by epoch so that a run can be resumed.

`python -m benchmarks.distillation_networks --data FOLDER --cache FOLDER` fits them and measures nothing.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import datasets
from benchmarks.datasets import ImageSet, Rows
from models.distillation import Distilled, distill
from models.specs import DistillSpec
from models.training import Silent

EPOCHS = {"gtsrb": 8, "mnist": 4}
IMAGES = {"gtsrb": 20_000, "mnist": 10_000}
QUICK_EPOCHS, QUICK_IMAGES = 2, 2000

ROBUST_IMAGES, ROBUST_EPOCHS, ROBUST_PEAK_LR = 39_209, 14, 2e-3  # all of GTSRB, from the teacher's weights
ROBUST_NETWORK = {"width": 24}
ROBUST_ADVERSARY = {"attack": "pgd", "steps": 2, "eps_linf": 0.011}
"""A step more than the fast adversary's, a half more channels and a little more room than the attacker has."""
STUDENTS = ("defensive", "robust", "extended")


@dataclass(frozen=True)
class Shelf:
    """Checkpoints in a folder; a method's student has its own, the teacher is everybody's."""

    folder: Path
    method: str

    def load(self, name: str) -> bytes | None:
        path = self._path(name)
        return path.read_bytes() if path.exists() else None

    def save(self, name: str, data: bytes) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.rename(path)
        print(f"{time.strftime('%H:%M:%S')} {path.name}", flush=True)

    def _path(self, name: str) -> Path:
        owner = "" if name == "teacher" else f"{self.method}-"
        return self.folder / f"{owner}{name.replace(' ', '-')}.safetensors"


def training_rows(given: ImageSet, method: str, seed: int, *, quick: bool) -> Rows:
    """As many images as a run takes, drawn from all of them."""
    wanted = QUICK_IMAGES if quick else ROBUST_IMAGES if method == "robust" else IMAGES[given.name]
    return np.sort(np.random.default_rng(seed).permutation(len(given.labels))[:wanted])


def spec_of(name: str, method: str, seed: int, *, quick: bool) -> DistillSpec:
    """Badjie's T = 5, the default networks; fewer epochs than the default only where it says quick."""
    epochs = QUICK_EPOCHS if quick else EPOCHS[name]
    asked: dict[str, Any] = {"preset": "badjie", "method": method, "seed": seed, "fit": {"epochs": epochs}}
    if method == "robust":
        student = {"epochs": epochs if quick else ROBUST_EPOCHS, "peak_lr": ROBUST_PEAK_LR}
        networks = {"teacher": ROBUST_NETWORK, "student": ROBUST_NETWORK}
        asked = {**asked, **networks, "student_fit": student, "robust": ROBUST_ADVERSARY}
    return DistillSpec.model_validate(asked)


def distilled(given: ImageSet, method: str, cache: Path, *, seed: int = 0, quick: bool = False) -> Distilled:
    """Fitted now, gone on with, or read back, as far as the cache has it."""
    rows = training_rows(given, method, seed, quick=quick)
    return distill(
        given.images[rows],
        given.labels[rows],
        spec_of(given.name, method, seed, quick=quick),
        num_classes=given.num_classes,
        watch_for=lambda _phase: Silent(),
        checkpoints=Shelf(cache / f"{given.name}-{len(rows)}-s{seed}", method),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=sorted(EPOCHS), default=["gtsrb"])
    parser.add_argument("--methods", nargs="+", choices=STUDENTS, default=["defensive", "robust"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.sets:
        given = datasets.load(asked.data, name)
        for method in asked.methods:
            made = distilled(given, method, asked.cache)
            print(name, method, made.notes, flush=True)


if __name__ == "__main__":
    main()
