"""The networks of the Papernot benchmark: teacher and student at each temperature, kept so that a run can be resumed.

`python -m benchmarks.papernot_networks --data FOLDER --cache FOLDER` fits them and measures nothing.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks import datasets
from benchmarks.datasets import ImageSet
from models.classifiers import Classifier, build_classifier
from models.distillation import distill
from models.specs import DistillSpec, FitSpec
from models.training import Forgetful, Silent

TEMPERATURES = {"mnist": (1, 100, 20, 40, 10, 5, 2, 50, 30), "cifar10": (1, 20)}
"""The order of the work: what the table needs comes first."""


@dataclass(frozen=True)
class Effort:
    """How much less than the paper's 50 epochs over the whole set a run takes."""

    images: int
    epochs: int
    batch_size: int
    peak_lr: float

    @property
    def tag(self) -> str:
        return f"{self.images}x{self.epochs}-b{self.batch_size}-lr{self.peak_lr:g}"


EFFORTS = {"mnist": Effort(7000, 6, 64, 2e-3), "cifar10": Effort(8000, 8, 64, 1e-3)}
QUICK = {"mnist": Effort(1500, 2, 64, 2e-3), "cifar10": Effort(600, 2, 64, 1e-3)}


@dataclass(frozen=True, eq=False)
class Pair:
    teacher: Classifier
    student: Classifier
    effort: Effort


def spec_of(name: str, temperature: float, effort: Effort, seed: int) -> DistillSpec:
    """The paper's networks; Adam and a one-cycle schedule in place of its 50 epochs of SGD."""
    fit = FitSpec(
        epochs=effort.epochs,
        batch_size=effort.batch_size,
        optimizer="adam",
        peak_lr=effort.peak_lr,
        validation_share=0.0,
    )
    given = {"preset": f"papernot-{name}", "temperature": temperature, "fit": fit, "seed": seed}
    return DistillSpec.model_validate(given)


def pair_of(given: ImageSet, temperature: int, effort: Effort, cache: Path, seed: int = 0) -> Pair:
    """Teacher and student at `temperature`, fitted now or read from the cache."""
    spec = spec_of(given.name, temperature, effort, seed)
    paths = {role: cache / f"{given.name}-T{temperature}-{effort.tag}-s{seed}-{role}.safetensors" for role in ROLES}
    if not all(path.exists() for path in paths.values()):
        _fit(given, spec, effort, paths)
    return Pair(*(_read(given, spec, role, paths[role]) for role in ROLES), effort)


ROLES = ("teacher", "student")


def _fit(given: ImageSet, spec: DistillSpec, effort: Effort, paths: dict[str, Path]) -> None:
    began = time.monotonic()
    rows = np.sort(np.random.default_rng(spec.seed).permutation(len(given.labels))[: effort.images])
    made = distill(
        given.images[rows],
        given.labels[rows],
        spec,
        num_classes=given.num_classes,
        watch_for=lambda _phase: Silent(),
        checkpoints=Forgetful(),
    )
    for role in ROLES:
        paths[role].parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in getattr(made, role).state_dict().items()}
        part = paths[role].with_suffix(".part")
        save_file(tensors, part)
        part.rename(paths[role])
    print(f"{given.name} T={spec.temperature:g}: {time.monotonic() - began:.0f} s", flush=True)


def _read(given: ImageSet, spec: DistillSpec, role: str, path: Path) -> Classifier:
    network = build_classifier(
        getattr(spec, role), num_classes=given.num_classes, image_shape=given.image_shape, seed=0
    )
    network.load_state_dict(load_file(path))
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--only", choices=sorted(EFFORTS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in [asked.only] if asked.only else EFFORTS:
        given = datasets.load(asked.data, name)
        for temperature in TEMPERATURES[name]:
            pair_of(given, temperature, EFFORTS[name], asked.cache)


if __name__ == "__main__":
    main()
