"""What a distilled student says no to: what is familiar to it, when it abstains, what its probabilities are worth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.abstention import calibrate_abstention
from models.calibration import check_alpha
from models.classifiers import Classifier
from models.familiarity import fit_familiarity, student_scores
from models.reliability import crossed, fit_temperature, reliability
from models.seeding import derive_seed
from models.specs import DistillSpec
from models.uncertainty import mc_probabilities
from service.registry.calibration import McDropout, ServingCalibration
from worker.context import Context
from worker.material import Material
from worker.scoring import filter_scores

FAMILIAR_IMAGES = 20_000
"""Class means and one covariance need no more of a large set."""


def learn_the_familiar(student: Classifier, material: Material, spec: DistillSpec) -> None:
    """Give the student the layer that tells how far an image lies from those it was trained on."""
    rng = np.random.default_rng(np.random.PCG64(derive_seed(spec.seed, "familiar")))
    rows = np.sort(rng.permutation(len(material.labels))[:FAMILIAR_IMAGES])
    student.familiarity = fit_familiarity(student, material.images[rows], material.labels[rows])


def calibrate(
    context: Context, student: Classifier, material: Material, spec: DistillSpec
) -> tuple[ServingCalibration, dict[str, Any]]:
    """On the held-out images: when to abstain, and the temperature of the probabilities that are told."""
    watch = context.progress.enter("calibrating", unit="images")
    learn_the_familiar(student, material, spec)
    mc = McDropout(spec.abstention.mc_passes, spec.student.dropout, spec.seed, student.feature_dim)
    probabilities = mc_probabilities(student, material.held_images, mc.masks(), watch=watch)
    temperature, told = _told(probabilities, material.held_labels, spec.seed)
    rows = material.calibrating
    images = material.held_images[rows]
    abstention = calibrate_abstention(
        probabilities[:, rows],
        material.held_labels[rows],
        filter_scores(material.detector, images, watch) if material.detector else None,
        seed=spec.seed,
        student_scores=student_scores(student, images, watch=watch),
        per_class=spec.abstention.per_class,
        temperature=temperature,
    )
    check_alpha(spec.abstention.alpha, abstention.n)
    metrics = {
        "num_calibration": abstention.n,
        "calibration_groups": None if len(rows) == len(material.held_labels) else abstention.n,
        "rates_are": "held" if material.vouched and len(rows) == material.held_objects else "estimated",
        "smallest_alpha": abstention.smallest_alpha,
        "alpha": spec.abstention.alpha,
        "abstains_for": list(abstention.reasons),
        "mc_variance": float(probabilities.var(axis=0).mean()),
        **told,
    }
    return ServingCalibration(abstention, mc, spec.abstention.alpha), metrics


def _told(probabilities: NDArray[np.float32], labels: NDArray[np.int64], seed: int) -> tuple[float, dict[str, Any]]:
    """The temperature, and how well the probabilities hold before and after it; after, by halves, each by the other."""
    mean = probabilities.astype(np.float64).mean(axis=0)
    temperature = fit_temperature(mean, labels)
    before = reliability(mean, labels)
    after = reliability(crossed(mean, labels, seed=derive_seed(seed, "reliability")), labels)
    return temperature, {
        "probability_temperature": temperature,
        "ece_before": before.ece,
        "ece_after": after.ece,
        "reliability": {"before": before.to_json(), "after": after.to_json()},
    }
