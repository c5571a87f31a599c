"""What a job does to candidates without poison, and to candidates that came by another codec than the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import attackers
from benchmarks.datasets import Split, split
from benchmarks.detection_labels import FILTER, KINDS, poisoned_candidates, sizes
from benchmarks.detection_perturbed import jpeg, resized
from benchmarks.detection_record import Measured, at_least, at_most, share
from benchmarks.detection_setting import (
    Bools,
    Images,
    Looked,
    Setting,
    Shown,
    fitted_filters,
    groups_of,
    kept,
    look,
    shown,
    trusted_folds,
)
from models.calibration import wilson_interval
from models.seeding import derive_seed

ALPHA = 0.02
POISONED = 0.02
EPOCHS = 10
SHIFTS: dict[str, Callable[[Images], Images]] = {"jpeg-95": jpeg, "resized": resized}


def clean(setting: Setting) -> Iterator[Measured]:
    parts = _split(setting)
    looked = kept(setting, "clean", lambda: _looked(setting, parts, None, lambda images: images))
    default = looked.at((FILTER, *setting.panel.detectors))
    flagged = default.judged(false_quarantine_rate=ALPHA).flagged
    count = len(flagged)
    removed = share(setting.claim("clean", "removed"), int(flagged.sum()), count, at_most(ALPHA))
    yield removed
    losses = {label: flagged[looked.labels == label] for label in np.unique(looked.labels)}
    worst = max(losses.values(), key=lambda own: float(own.mean()))
    yield share(setting.claim("clean", "worst-class-removed"), int(worst.sum()), len(worst), at_most(3 * ALPHA))
    above = [label for label in losses if _surely_above(looked, flagged, label)]
    yield Measured(setting.claim("clean", "classes-surely-above"), float(len(above)), at_most(0.0), n=len(losses))
    images, labels = setting.data.images[parts.candidates], setting.data.labels[parts.candidates]
    everything = _accuracy(setting, images, labels)
    rest = _accuracy(setting, images[~flagged], labels[~flagged])
    yield Measured(setting.claim("clean", "accuracy-on-all"), everything, n=len(setting.data.test_labels))
    yield Measured(setting.claim("clean", "accuracy-on-the-rest"), rest, n=len(setting.data.test_labels))
    lost = everything - rest
    yield Measured(setting.claim("clean", "accuracy-lost"), lost, at_most(0.01), n=len(setting.data.test_labels))


def _surely_above(looked: Looked, flagged: Bools, label: int) -> bool:
    """Whether the luck of the objects that it shows does not explain, over all classes, that it lost more than 3α."""
    of_class = looked.labels == label
    _, of_image, sizes = np.unique(looked.candidate_groups[of_class], return_inverse=True, return_counts=True)
    lost = float(np.sum(flagged[of_class] / sizes[of_image]))
    confidence = 1 - 0.05 / len(np.unique(looked.labels))
    return wilson_interval(round(lost), len(sizes), confidence)[0] > 3 * ALPHA


def shift(setting: Setting) -> Iterator[Measured]:
    """BadNets in the candidates, and then all candidates through the codec: the rates are of their clean images."""
    parts = _split(setting)
    for name, process in SHIFTS.items():
        looked = kept(setting, f"shift-{name}", lambda change=process: _looked(setting, parts, "badnets", change))  # type: ignore[misc]
        default, poisoned = looked.at((FILTER, *setting.panel.detectors)), looked.is_poison
        for where in ("reference", "candidates"):
            judgement = default.judged(false_quarantine_rate=ALPHA, calibrate_on=where)
            flagged, claim = judgement.flagged, ("shift", name, f"on-{where}")
            bar = at_most(2 * ALPHA) if where == "candidates" else at_most(1.0)
            alarms, hits = int(flagged[~poisoned].sum()), int(flagged[poisoned].sum())
            yield share(setting.claim(*claim, "clean-removed"), alarms, int((~poisoned).sum()), bar)
            found = at_least(KINDS["badnets"][1]) if where == "candidates" else at_least(0.0)
            yield share(setting.claim(*claim, "badnets-found"), hits, int(poisoned.sum()), found)
        told = judgement.shift
        yield Measured(setting.claim("shift", name, "reported"), float(bool(told and told.found)), at_least(1.0))
        if told is not None:
            yield Measured(setting.claim("shift", name, "distance"), told.distance, n=len(poisoned))
        for detector, each in judgement.shifts.items():
            yield Measured(setting.claim("shift", name, detector, "p-value"), each.p_value, n=len(poisoned))


def _split(setting: Setting) -> Split:
    trusted, count = sizes(setting)
    return split(setting.data, trusted=trusted, candidates=count, seed=setting.seed)


def _looked(setting: Setting, parts: Split, kind: str | None, process: Callable[[Images], Images]) -> Looked:
    trusted = shown(setting.data, parts.trusted)
    candidates, is_poison = shown(setting.data, parts.candidates), np.zeros(len(parts.candidates), np.bool_)
    if kind is not None:
        candidates, is_poison = poisoned_candidates(setting, parts, kind, POISONED)
    candidates = Shown(process(candidates.images), candidates.labels)
    groups = groups_of(setting.data, parts.trusted), groups_of(setting.data, parts.candidates)
    filters = fitted_filters(
        trusted, trusted_folds(setting, trusted, groups[0]), setting.spec, setting.data.num_classes
    )
    return look(setting, candidates, trusted, is_poison, filters, groups)


def _accuracy(setting: Setting, images: Images, labels: NDArray[np.int64]) -> float:
    """On the test images, of a network that none of the fits above has."""
    data = setting.data
    torch.manual_seed(derive_seed(setting.seed, "clean"))
    network = attackers.WideBranches(data.image_shape[2], data.num_classes)
    trained = attackers.train(network, images, labels, epochs=EPOCHS, seed=setting.seed)
    return attackers.accuracy(trained, data.test_images, data.test_labels)
