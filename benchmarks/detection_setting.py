"""What a run of a detection benchmark is given, and the fits that its parts share: they call what the worker calls."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

import models
from benchmarks.datasets import ImageSet
from models.device import has_bfloat16, pick_device
from models.encoder import Encoder
from models.filtering import CrossFit, FilterFit, cross_fit_filter, fit_filter
from models.panel.panel import fit_panel
from models.panel.pool import Pool, folds_of
from models.specs import CalibrationSpec, DetectorName, PanelSpec, ResidualSpec, SanitiseSpec
from models.splits import halves_by_class
from models.training import Forgetful, Silent
from worker.examiner import Examiner
from worker.judging import Judgement, judge
from worker.scored import Detectors, Scored

ALL_DETECTORS: tuple[DetectorName, ...] = tuple(name for name in get_args(DetectorName) if name != "encoder_loss")

QUICK_FILTER = ResidualSpec(fit=ResidualSpec().fit.model_copy(update={"epochs": 4}))
FITTED_BY = ("panel", "detectors", "filtering", "autoencoders")
FITTED_WITH = (
    *("augmentation", "batches", "cores", "device", "perturbations"),
    *("replicas", "schedule", "seeding", "surrogates", "training"),
)
"""The packages and modules that scores come from."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Bools = NDArray[np.bool_]
Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Setting:
    """scratch: scores are kept there, so that what only judges them need not fit again."""

    data: ImageSet
    seed: int
    quick: bool
    scratch: Path
    panel: PanelSpec
    encoder: Encoder | None = None

    @property
    def spec(self) -> SanitiseSpec:
        return SanitiseSpec(seed=self.seed, panel=self.panel, filter=QUICK_FILTER if self.quick else ResidualSpec())

    def claim(self, *parts: str) -> str:
        return "/".join((parts[0], self.data.name, *parts[1:]))


@dataclass(frozen=True, eq=False)
class Shown:
    """Labelled images."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Looked:
    """A panel's scores of calibration images (m, t) and candidates (n, t), and what it cost.

    trusted: bool (n,), the candidates that were sifted out as a reference; none where one was given.
    """

    names: tuple[str, ...]
    calibration: Scores
    candidates: Scores
    is_poison: Bools
    trusted: Bools
    labels: Labels  # (n,), as the candidates came
    calibration_groups: Labels
    candidate_groups: Labels
    panel_seconds: float
    confirmed: float  # the share of the candidates whose label the panel confirmed in the end
    poison_confirmed: float  # the same of the poison
    encoding_seconds: float = 0.0  # that the panel's images took, where there was an encoder

    def at(self, names: tuple[str, ...]) -> Looked:
        """Only these detectors."""
        columns = [self.names.index(name) for name in names]
        return replace(
            self, names=names, calibration=self.calibration[:, columns], candidates=self.candidates[:, columns]
        )

    def judged(self, **rule: float | str | bool) -> Judgement:
        spec = SanitiseSpec(calibration=CalibrationSpec(**rule))  # type: ignore[arg-type]
        candidates = Scored(self.candidates, groups=self.candidate_groups)
        calibration = Scored(self.calibration, groups=self.calibration_groups)
        return judge(candidates, calibration, spec, Detectors(self.names), sifted=bool(self.trusted.any()))


def fitted_filter(reference: Shown, spec: SanitiseSpec, num_classes: int) -> FilterFit:
    return fit_filter(
        reference.images,
        reference.labels,
        spec,
        num_classes=num_classes,
        watch_for=lambda phase: Silent(),  # noqa: ARG005
        checkpoints=Forgetful(),
    )


def fitted_filters(reference: Shown, folds: Labels, spec: SanitiseSpec, num_classes: int) -> CrossFit:
    return cross_fit_filter(
        reference.images,
        reference.labels,
        folds,
        spec,
        num_classes=num_classes,
        watch_for=lambda phase, fold: Silent(),  # noqa: ARG005
        checkpoints_for=lambda fold: Forgetful(),  # noqa: ARG005
    )


def trusted_folds(setting: Setting, trusted: Shown, groups: Labels) -> Labels:
    """As the worker deals them. groups: of the trusted images."""
    known = groups if setting.data.groups is not None else None
    return halves_by_class(trusted.labels, known, seed=setting.seed)


def look(
    setting: Setting,
    candidates: Shown,
    trusted: Shown,
    is_poison: Bools,
    filters: CrossFit,
    groups: tuple[Labels, Labels],
) -> Looked:
    """Fits a panel of all detectors and scores. groups: of the trusted images and of the candidates."""
    detectors = ALL_DETECTORS if setting.encoder is None else (*ALL_DETECTORS, "encoder_loss")
    spec = setting.spec.model_copy(update={"panel": setting.panel.model_copy(update={"detectors": detectors})})
    known = groups[1] if setting.data.groups is not None else None
    pool = Pool(
        np.concatenate([candidates.images, trusted.images]),
        np.concatenate([candidates.labels, trusted.labels]),
        np.concatenate(
            [
                folds_of(len(candidates), known, seed=spec.seed, what="candidates"),
                trusted_folds(setting, trusted, groups[0]),
            ]
        ),
        np.arange(len(candidates) + len(trusted)) >= len(candidates),
        setting.data.num_classes,
    )
    began, encode = time.monotonic(), None if setting.encoder is None else setting.encoder.encode
    if encode is not None:
        pool = replace(pool, encoded=encode(pool.images))
    encoded = time.monotonic()
    panel_fit = fit_panel(
        pool,
        np.arange(len(pool)),
        spec.panel,
        reconstruct=filters.filter.reconstruct,
        encode=encode,
        seed=spec.seed,
        watch_for=lambda phase: Silent(),  # noqa: ARG005
        checkpoints=Forgetful(),
    )
    seconds = time.monotonic() - encoded
    examiner = Examiner(filters.filter, panel_fit.panel)
    scores = examiner.score(pool.images, pool.labels, pool.folds, np.arange(len(pool)))
    confirmed = panel_fit.confirmed[: len(candidates)]
    poison_confirmed = float(confirmed[is_poison].mean()) if is_poison.any() else 0.0
    return Looked(
        examiner.names,
        scores[len(candidates) :],
        scores[: len(candidates)],
        is_poison,
        np.zeros(len(candidates), np.bool_),
        candidates.labels,
        *groups,
        seconds,
        float(confirmed.mean()),
        poison_confirmed,
        encoded - began,
    )


def kept(setting: Setting, name: str, make: Callable[[], Looked], *, refit: bool = False) -> Looked:
    """What `make` makes, or what it made the last time under the same name and settings, by the same code."""
    path = setting.scratch / f"{setting.data.name}-{setting.seed}-{name}-{_made_by(setting)}.npz"
    if path.exists() and not refit:
        with np.load(path) as data:
            found = {key: data[key] if data[key].ndim else data[key].item() for key in data}
            return Looked(**{**found, "names": tuple(map(str, found["names"]))})
    made = make()
    setting.scratch.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: np.asarray(value) for key, value in vars(made).items()})
    return made


def _made_by(setting: Setting) -> str:
    """The settings, the code and the precision that scores come from, in short."""
    low = has_bfloat16(pick_device())
    panel = setting.panel.model_dump_json(exclude={"detectors"})
    digest, folder = hashlib.sha256(f"{setting.spec.filter!r} {panel} {low}".encode()), Path(models.__file__).parent
    sources = [source for package in FITTED_BY for source in sorted((folder / package).glob("*.py"))]
    for source in (*sources, *(folder / f"{module}.py" for module in FITTED_WITH)):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def groups_of(data: ImageSet, rows: Labels) -> Labels:
    """The object that each of these training images shows; each its own where nothing is known."""
    return rows if data.groups is None else data.groups[rows]


def shown(data: ImageSet, rows: Labels) -> Shown:
    return Shown(data.images[rows], data.labels[rows])
