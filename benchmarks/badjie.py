"""The paper's filter on the paper's data: `python -m benchmarks.badjie --data FOLDER [--seeds 0,1,2] [--quick]`.

Preset `badjie` on GTSRB by track: what its reconstruction error tells, at its thresholds, and its figures 1 to 3.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from benchmarks import attackers, datasets
from benchmarks.datasets import ImageSet, split
from benchmarks.detection_record import Measured, Record, Run, share
from benchmarks.detection_setting import fitted_filter, shown
from benchmarks.figures import curve, panels, plain, save
from models.calibration import auroc, infer_threshold
from models.filtering import FilterFit
from models.seeding import derive_seed
from models.specs import SanitiseSpec

NAME, PART = "badjie", "filter"
THRESHOLDS = (0.015, 0.003)
PERCENTAGE = 95.0
NETWORKS = ("mixer", "branches")
ATTACKS = ("fgsm", "ifgsm")
SHOWN = 300
"""Points of a figure."""

Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A fitted filter's reconstruction errors of its calibration images, of clean ones, and of each attack's."""

    fit: FilterFit
    calibration: Scores
    clean: Scores
    attacked: dict[str, Scores]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with gtsrb.npz")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--quick", action="store_true", help="a smaller run for a first look; writes no file")
    asked = parser.parse_args()
    record, data = Record.open(NAME, quick=asked.quick), datasets.load(asked.data, "gtsrb")
    for seed in map(int, asked.seeds.split(",")):
        began = time.monotonic()
        found = evaluate(data, seed, quick=asked.quick)
        run = Run.of(PART, data.name, seed, measured(found), time.monotonic() - began, NAME)
        record.add(run, quick=asked.quick)
        if not asked.quick and seed == 0:
            draw(found)
    return 0 if record.print() else 1


def evaluate(data: ImageSet, seed: int, *, quick: bool) -> Evaluated:
    trusted, candidates, clean, count = (1000, 2500, 500, 100) if quick else (8000, 8000, 2000, 500)
    parts = split(data, trusted=trusted, candidates=candidates, seed=seed)
    spec = SanitiseSpec(preset="badjie", seed=seed)
    fit = fitted_filter(shown(data, parts.fit), spec, data.num_classes)
    order = np.random.default_rng((seed, 1)).permutation(parts.candidates)
    test, own = order[:clean], order[clean:]
    attacked = {}
    for number, name in enumerate(NETWORKS):
        torch.manual_seed(derive_seed(seed, "attacker", name))
        network = attackers.ARCHITECTURES[name](data.image_shape[2], data.image_shape[0], data.num_classes)
        attackers.train(network, data.images[own], data.labels[own], epochs=4 if quick else 12, seed=seed + number)
        for attack in ATTACKS:
            made = attackers.perturb(network, data.images[test[:count]], data.labels[test[:count]], attack)
            attacked[f"{attack}/{name}"] = fit.filter.score(made)
    calibration = fit.filter.score(data.images[parts.calibrate])
    return Evaluated(fit, calibration, fit.filter.score(data.images[test]), attacked)


def measured(found: Evaluated) -> Iterator[Measured]:
    for attack, scores in found.attacked.items():
        yield Measured(f"badjie/gtsrb/{attack}/auroc", auroc(scores, found.clean), n=len(scores))
    everything = np.concatenate([found.clean, *found.attacked.values()])
    yield Measured("badjie/gtsrb/mean-error", float(everything.mean()), n=len(everything))
    yield Measured("badjie/gtsrb/mean-error-clean", float(found.clean.mean()), n=len(found.clean))
    inferred = infer_threshold(found.calibration, percentage=PERCENTAGE)
    lines = {**{f"{line:g}": line for line in THRESHOLDS}, f"inferred-{PERCENTAGE:g}": inferred}
    yield Measured("badjie/gtsrb/inferred-threshold", inferred, n=len(found.calibration))
    for name, line in lines.items():
        lost = int((found.clean > line).sum())
        yield share(f"badjie/gtsrb/threshold-{name}/clean-lost", lost, len(found.clean))
        for attack, scores in found.attacked.items():
            hits = int((scores > line).sum())
            yield share(f"badjie/gtsrb/threshold-{name}/{attack}/found", hits, len(scores))


def draw(found: Evaluated) -> None:
    """The paper's figures: errors of attacked images; of clean and attacked together; the loss by epoch."""
    attacked = np.concatenate(list(found.attacked.values()))
    rng = np.random.default_rng(0)
    some = rng.permutation(len(attacked))[:SHOWN]
    figure, ((axes,),) = panels(1, 1, width=6, height=3.4)
    axes.scatter(np.arange(len(some)), attacked[some], s=8, color="#d1495b", label="attacked")
    _limits(axes, "Reconstruction error of attacked images only")
    save(figure, "badjie-1-attacked")
    both = np.concatenate([found.clean, attacked])
    is_attacked = np.arange(len(both)) >= len(found.clean)
    mixed = rng.permutation(len(both))[: 2 * SHOWN]
    figure, ((axes,),) = panels(1, 1, width=6, height=3.4)
    for mask, colour, label in ((~is_attacked, "#3a7d44", "clean"), (is_attacked, "#d1495b", "attacked")):
        place = np.flatnonzero(mask[mixed])
        axes.scatter(place, both[mixed][place], s=8, color=colour, label=label)
    _limits(axes, "Reconstruction error of clean and attacked images")
    save(figure, "badjie-2-both")
    figure, ((axes,),) = panels(1, 1, width=6, height=3.4)
    losses = found.fit.losses
    epochs = list(range(1, len(losses.train_loss) + 1))
    curve(axes, epochs, losses.train_loss, None, 0, "training")
    if losses.validation_loss:
        curve(axes, epochs, losses.validation_loss, None, 1, "validation")
    axes.legend(fontsize=8)
    plain(axes, title="Reconstruction loss by epoch", x="epoch", y="mean squared error")
    save(figure, "badjie-3-loss")


def _limits(axes: Axes, title: str) -> None:
    for line, style in zip(THRESHOLDS, (":", "--"), strict=True):
        axes.axhline(line, color="#555555", linestyle=style, linewidth=1, label=f"threshold {line:g}")
    axes.set_yscale("log")
    axes.legend(fontsize=8, loc="upper right")
    plain(axes, title=title, x="image", y="mean squared error")


if __name__ == "__main__":
    sys.exit(main())
