"""Backdoors and flipped labels against 1,000 trusted images: each detector alone, and panels of several."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from benchmarks.datasets import Split, split
from benchmarks.detection_record import SHOWN, Bar, Measured, at_least, at_most, share
from benchmarks.detection_setting import (
    ALL_DETECTORS,
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
from models.attacks.label_noise import Flip, SymmetricFlip
from models.attacks.poisoning import poison
from models.attacks.triggers import Blend, Patch, Stripes, Trigger
from models.calibration import auroc
from models.filtering import CrossFit

ALPHA = 0.02
POISONED = 0.02
TARGET = 1
KINDS: dict[str, tuple[Trigger | Flip, float]] = {
    "badnets": (Patch(), 0.97),
    "square": (Patch(size_px=5, margin_px=4, colours=((255, 255, 0),)), 0.97),
    "blend-0.2": (Blend(0.2), 0.90),
    "sinusoid": (Stripes(), 0.85),
    "flips": (SymmetricFlip(), 0.95),
}
"""How each poisons, and the share of it that is to be found. The square (yellow, as Gu et al. 2017 put it on signs) is
learnt by whoever trains on it; the chequered patch of nine pixels is not, where training shifts and turns images."""

FILTER = "residual_energy"
PANELS: dict[str, tuple[str, ...]] = {
    "loss": ("label_loss",),
    "loss+gain": ("label_loss", "poison_gain"),
    "loss+agreement": ("label_loss", "label_agreement"),
    "loss+spectral": ("label_loss", "spectral_signature"),
    "loss+unchecked": ("label_loss", "unchecked_loss"),
    "loss+unchecked+gain": ("label_loss", "unchecked_loss", "poison_gain"),
    "loss+unchecked+agreement": ("label_loss", "unchecked_loss", "label_agreement"),
    "unchecked+gain": ("unchecked_loss", "poison_gain"),
    "loss+unchecked+gain+agreement": ("label_loss", "unchecked_loss", "poison_gain", "label_agreement"),
    "loss+unchecked+gain+spectral": ("label_loss", "unchecked_loss", "poison_gain", "spectral_signature"),
    "loss+unchecked+gain+patch+pattern": (
        *("label_loss", "unchecked_loss", "poison_gain", "recurring_patch", "recurring_pattern"),
    ),
    "loss+unchecked+spectral+pattern": ("label_loss", "unchecked_loss", "spectral_signature", "recurring_pattern"),
    "loss+unchecked+patch+pattern": ("label_loss", "unchecked_loss", "recurring_patch", "recurring_pattern"),
    "loss+spectral+patch+pattern": ("label_loss", "spectral_signature", "recurring_patch", "recurring_pattern"),
    "all": ALL_DETECTORS,
}
"""Each beside the filter's own score, which a job always looks at."""


def measure(setting: Setting, kind: str) -> Iterator[Measured]:
    looked, wanted = looked_at(setting, kind), KINDS[kind][1]
    name = ("labels", kind)
    for detector in looked.names:
        column = looked.at((detector,)).candidates[:, 0]
        value = auroc(column[looked.is_poison], column[~looked.is_poison])
        yield Measured(setting.claim(*name, detector, "auroc"), value, n=len(column))
        yield from rates(setting, looked.at((detector,)), (*name, detector), SHOWN, SHOWN)
    default = looked.at((FILTER, *setting.panel.detectors))
    yield from rates(setting, default, (*name, "panel"), at_least(wanted), at_most(ALPHA))
    yield Measured(setting.claim(*name, "panel", "seconds"), looked.panel_seconds, unit="s")
    yield Measured(setting.claim(*name, "confirmed"), looked.confirmed, n=len(looked.candidates))
    yield Measured(setting.claim(*name, "poison-confirmed"), looked.poison_confirmed, n=int(looked.is_poison.sum()))


def compare(setting: Setting, kind: str) -> Iterator[Measured]:
    """The same scores, judged by other panels, and by the default one with other combinations of its p-values."""
    looked = looked_at(setting, kind)
    for panel, detectors in PANELS.items():
        yield from rates(setting, looked.at((FILTER, *detectors)), ("panels", kind, panel), SHOWN, SHOWN)
    default = looked.at((FILTER, *setting.panel.detectors))
    for combine in ("joint", "power_mean", "simes", "cauchy"):
        yield from rates(setting, default, ("panels", kind, f"default-by-{combine}"), SHOWN, SHOWN, combine)


def rates(
    setting: Setting, looked: Looked, name: tuple[str, ...], found: Bar, lost: Bar, combine: str = "auto"
) -> Iterator[Measured]:
    judgement = looked.judged(false_quarantine_rate=ALPHA, combine=combine)
    flagged, poisoned = judgement.flagged, looked.is_poison
    hits, alarms = int(flagged[poisoned].sum()), int(flagged[~poisoned].sum())
    yield share(setting.claim(*name, "tpr"), hits, int(poisoned.sum()), found)
    yield share(setting.claim(*name, "fpr"), alarms, int((~poisoned).sum()), lost)


def sizes(setting: Setting) -> tuple[int, int]:
    """Trusted images and candidates."""
    return (1000, 4000 if setting.quick else 8000)


def looked_at(setting: Setting, kind: str, *, poisoned: float = POISONED) -> Looked:
    trusted, count = sizes(setting)

    def make() -> Looked:
        parts = split(setting.data, trusted=trusted, candidates=count, seed=setting.seed)
        found = poisoned_candidates(setting, parts, kind, poisoned)
        groups = groups_of(setting.data, parts.trusted), groups_of(setting.data, parts.candidates)
        filters = _filters(setting, trusted, count)
        return look(setting, found[0], shown(setting.data, parts.trusted), found[1], filters, groups)

    name = "labels" if setting.encoder is None else f"encoded-{setting.encoder.sha256[:8]}"
    return kept(setting, f"{name}-{kind}-{poisoned:g}", make)


def poisoned_candidates(
    setting: Setting, parts: Split, kind: str, share_of: float
) -> tuple[Shown, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    how = KINDS[kind][0]
    found = poison(
        setting.data.images[parts.candidates],
        setting.data.labels[parts.candidates],
        how,
        share=share_of,
        target=None if kind == "flips" else TARGET,
        rng=np.random.default_rng((setting.seed, sorted(KINDS).index(kind))),
    )
    return Shown(found.images, found.labels), found.is_poison


@cache
def _filters(setting: Setting, trusted: int, count: int) -> CrossFit:
    """The same for every kind of poison: it learns from the trusted images alone."""
    parts = split(setting.data, trusted=trusted, candidates=count, seed=setting.seed)
    vouched = shown(setting.data, parts.trusted)
    folds = trusted_folds(setting, vouched, groups_of(setting.data, parts.trusted))
    return fitted_filters(vouched, folds, setting.spec, setting.data.num_classes)
