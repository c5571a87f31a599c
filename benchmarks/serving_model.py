"""A bundle of the default networks for the serving benchmark, registered in a home of its own.

Weights are random and calibrated on real images where there are some: how long a network takes does not depend on them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.abstention import calibrate_abstention
from models.classifiers import build_classifier
from models.filtering import Filter
from models.filtering.trained import build
from models.seeding import seeded
from models.specs import ClassifierSpec, ResidualSpec
from models.uncertainty import mc_probabilities
from service.auth import ensure_admin_key
from service.db import Database, migrate
from service.jobs.create import add_job
from service.registry import bundle
from service.registry import repository as registry
from service.registry.calibration import McDropout, ServingCalibration
from service.registry.samples import Parity
from service.settings import Settings
from service.storage import LocalStorage
from worker.bundling import graphs
from worker.material import Material

NAME = "signs"
CLASSES = 43
SHAPE = (32, 32, 3)
PASSES = 32
HELD_OUT = 1000


@dataclass(frozen=True)
class Home:
    """Where the gateway of the benchmark lives."""

    settings: Settings
    key: str
    images: NDArray[np.uint8]
    masks: NDArray[np.float32]
    files: dict[str, bytes]


def images_of(folder: Path | None, count: int) -> NDArray[np.uint8]:
    """GTSRB's where the folder has gtsrb.npz of 32 × 32 pixels, else noise of several contrasts."""
    path = None if folder is None else folder / "gtsrb.npz"
    if path is not None and path.exists():
        with np.load(path, allow_pickle=False) as archive:
            name = next(name for name in archive.files if archive[name].ndim == 4)
            images = archive[name]
        side = images.shape[1]
        if images.shape[1:] != SHAPE:
            at = np.arange(32) * side // 32
            images = images[:, at][:, :, at]
        return np.ascontiguousarray(images[:: max(1, len(images) // count)][:count])
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (count, *SHAPE)) * rng.uniform(5, 60, (count, 1, 1, 1))
    drawn: NDArray[np.uint8] = np.clip(128 + noise, 0, 255).astype(np.uint8)
    return drawn


def make_files(images: NDArray[np.uint8]) -> dict[int, dict[str, bytes]]:
    """Two bundles by their seed: the same networks under other masks, so that every answer tells them apart."""
    spec, filter_spec = ClassifierSpec(), ResidualSpec()
    student = build_classifier(spec, num_classes=CLASSES, image_shape=SHAPE, seed=0).eval()
    layers = {"width": filter_spec.width, "depth": filter_spec.depth, "eps_linf": 0.01}
    with seeded(0):
        own = Filter(build("residual", SHAPE, layers).eval(), SHAPE, layers)
    made, networks, scores = {}, {}, own.score(images)
    for seed in (0, 1):
        mc = McDropout(PASSES, spec.dropout, seed, student.feature_dim)
        probabilities = mc_probabilities(student, images, mc.masks())
        labels = probabilities.mean(0).argmax(1)
        classes = [str(index) for index in range(CLASSES)]
        if not networks:
            material = Material(
                images, labels, images, labels, len(labels), np.arange(len(labels)), True, classes, SHAPE, own, {}
            )
            networks, _ = graphs(student, material, mc.masks())
        abstention = calibrate_abstention(probabilities, labels, scores, seed=seed)
        card = {"classes": classes, "image_shape": list(SHAPE), "spec": {}, "metrics": {}, "lineage": {}, "seed": seed}
        calibration = ServingCalibration(abstention, mc, 0.01).to_bytes()
        sample = parity_of(probabilities, images, scores)
        files = {bundle.CALIBRATION: calibration, bundle.CARD: json.dumps(card).encode(), bundle.PARITY: sample}
        made[seed] = {**networks, **files}
    return made


def parity_of(probabilities: NDArray[np.float32], images: NDArray[np.uint8], scores: NDArray[np.float32]) -> bytes:
    few = probabilities[:, :8].astype(np.float64)
    entropy = -(few * np.log(np.maximum(few, 1e-30))).mean(axis=0)
    mean = few.mean(axis=0).astype(np.float32)
    return Parity(images[:8], mean, entropy.astype(np.float32), scores[:8]).to_bytes()


def make_home(home: Path, data: Path | None, *, versions: int = 2, **options: object) -> Home:
    """A migrated database and storage with `versions` versions of one model; the alias champion is at the first."""
    torch.set_num_threads(1)
    settings = Settings(home=home, redis_url="redis://127.0.0.1:1/0", **options).resolved()  # type: ignore[arg-type]
    migrate(settings)
    key, images = ensure_admin_key(settings), images_of(data, HELD_OUT)
    database, storage = Database.open(settings.database_url), LocalStorage(settings.storage)
    made = make_files(images)
    for version in range(versions):
        files = made[version % 2]
        with database.transaction() as session:
            job = add_job(session, "distill", inputs={}, params={"version": version}, max_attempts=1)
            prefix = bundle.prefix_of(NAME, job.id, 1)
            digests = bundle.publish(storage, prefix, files)
            card = json.loads(files[bundle.CARD])
            registry.register(session, NAME, job_id=job.id, prefix=prefix, files=digests, card=card)
    with database.transaction() as session:
        registry.set_alias(session, NAME, "champion", version=1)
    database.close()
    calibration = ServingCalibration.from_bytes(made[0][bundle.CALIBRATION])
    return Home(settings, key, images, calibration.mc.masks(), made[0])
