"""What the API does not serve, measured on the files in the stack's storage: the teacher, other calibrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import gtsrb
from models.abstention import calibrate_abstention, decide
from models.classifiers import Classifier
from models.combination import panel_test
from models.familiarity import student_scores
from models.specs import DistillSpec
from models.uncertainty import mc_probabilities
from service.db import Database
from service.jobs import artifacts
from service.jobs import repository as jobs
from service.references import parse_model_ref
from service.registry import bundle as bundles
from service.registry import repository as registry
from service.registry.calibration import ServingCalibration
from service.settings import Settings
from service.storage import LocalStorage
from worker.artifacts import FilterArtifacts, load_filter, load_network

RESAMPLES = 200


@dataclass(frozen=True, eq=False)
class Offline:
    """A registered model's networks and the filter of its sanitise job."""

    teacher: Classifier
    student: Classifier
    calibration: ServingCalibration
    kept: FilterArtifacts
    classes: NDArray[np.int64]

    @classmethod
    def open(cls, home: Path, model: str, sanitise_job: str) -> Offline:
        settings = Settings(home=home).resolved()
        storage = LocalStorage(settings.storage)
        database = Database.open(settings.database_url)
        with database.session() as session:
            row = registry.resolve(session, parse_model_ref(model))
            job = jobs.find(session, sanitise_job)
        database.close()
        bundle = bundles.load(storage, row.prefix, row.files)
        spec = DistillSpec.model_validate(bundle.card["spec"])
        networks = []
        for name, shape in (("teacher", spec.teacher), ("student", spec.student)):
            data = storage.read(f"{row.prefix}/{name}.safetensors")
            networks.append(load_network(data, shape, num_classes=len(bundle.classes), image_shape=bundle.image_shape))
        kept = load_filter(storage, artifacts.attempt_prefix(job.id, job.attempt))
        classes = np.array([int(name) for name in bundle.classes])
        return cls(networks[0], networks[1], bundle.calibration, kept, classes)

    def teacher_accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        ones = np.ones((1, self.teacher.feature_dim), np.float32)
        found = mc_probabilities(self.teacher, images, ones)[0].argmax(1)
        return float((self.classes[found] == labels).mean())

    def abstained_when_calibrated_on(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], asked: NDArray[np.uint8], alphas: tuple[float, ...]
    ) -> tuple[int, dict[float, float]]:
        """(size of the calibration, share of `asked` refused at each α), had these images calibrated abstention."""
        masks = self.calibration.mc.masks()
        place = {value: index for index, value in enumerate(self.classes)}
        targets = np.array([place[label] for label in labels], np.int64)
        score = self.kept.filter.score
        own = student_scores(self.student, images)
        calibration = calibrate_abstention(
            mc_probabilities(self.student, images, masks), targets, score(images), seed=0, student_scores=own
        )
        found, scores, own = (
            mc_probabilities(self.student, asked, masks),
            score(asked),
            student_scores(self.student, asked),
        )
        refused = {
            a: float(decide(found, scores, calibration, alpha=a, student_scores=own).abstained.mean()) for a in alphas
        }
        return calibration.n, refused


def interval_by_sign(
    calibration: NDArray[Any],
    calibration_signs: NDArray[np.int64],
    clean: NDArray[Any],
    signs: NDArray[np.int64],
    *,
    alpha: float,
) -> tuple[float, float]:
    """95 % interval of the realised rate when whole signs, not single images, are drawn anew (cluster bootstrap).

    calibration: (m, t), clean: (n, t), the scores of every detector.
    """
    rng = np.random.default_rng(0)
    of_calibration, of_clean = _by_group(calibration_signs), _by_group(signs)
    rates = []
    for _ in range(RESAMPLES):
        parts = [of_calibration[i] for i in rng.integers(0, len(of_calibration), len(of_calibration))]
        groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        test = panel_test(calibration[np.concatenate(parts)], "power_mean", groups=groups)
        flagged = test.p_values(clean)[0] <= alpha
        picked = rng.integers(0, len(of_clean), len(of_clean))
        rates.append(float(np.mean(np.concatenate([flagged[of_clean[i]] for i in picked]))))
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(low), float(high)


def _by_group(groups: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The places of each group's images."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def halves(signs: gtsrb.Signs, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The test set in two random halves: a labelled sample of production, and what is asked in production."""
    order = np.random.default_rng(seed).permutation(len(signs.test_images))
    middle = len(order) // 2
    return np.sort(order[:middle]), np.sort(order[middle:])
