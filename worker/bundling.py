"""What of a distilled student goes into its bundle: graphs that compute what torch does, and the samples to show it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.classifiers import Classifier
from models.familiarity import student_scores
from models.filtering import Filter
from models.onnx_export import Arrays, StudentGraphs, check_parity, run_graph
from models.onnx_parts import Part
from models.uncertainty import mc_probabilities
from service.registry.bundle import DETECTOR, HEAD, HELD_OUT, PARITY, REFORMED, SERVED, STUDENT
from service.registry.samples import HeldOut, Parity
from worker.material import Material

PARITY_ATOL = 1e-4
SCORE_PARITY_ATOL = 1e-3
"""Of distances, which only their ranks are used of."""
PARITY_IMAGES = 32
KEPT_IMAGES = 8
"""Of the parity sample, in the bundle: every load tries them again."""


def graphs(
    student: Classifier, material: Material, masks: NDArray[np.float32], *, trunk: Part | None = None
) -> tuple[dict[str, bytes], float]:
    """The bundle's networks and samples, and the largest difference from torch. Raises ParityError.

    trunk: in another precision, which the student computes by already (worker.precision).
    """
    shape, detector, sample = material.image_shape, material.detector, material.held_images[:PARITY_IMAGES]
    inputs: Arrays = {"images": sample, "masks": masks}
    probabilities = mc_probabilities(student, sample, masks)
    made = StudentGraphs(student, detector, shape, trunk=trunk)
    files = {STUDENT: made.student, SERVED: made.served, HEAD: made.head}
    expected = _summary(probabilities)
    if detector is not None:
        files |= _of_filter(student, detector, made, inputs)
        expected["scores"] = detector.score(sample)
    own: Arrays = {str(name): scores for name, scores in student_scores(student, sample).items()}
    differences = [
        check_parity(files[STUDENT], inputs, {"probabilities": probabilities}, atol=PARITY_ATOL),
        check_parity(files[SERVED], inputs, expected, atol=PARITY_ATOL),
    ]
    if own:
        check_parity(files[SERVED], inputs, own, atol=SCORE_PARITY_ATOL)
    few = {name: values[:KEPT_IMAGES].astype(np.float32) for name, values in expected.items()}
    kept = Parity(sample[:KEPT_IMAGES], few["mean_probabilities"], few["class_entropy"], few.get("scores"))
    files[PARITY] = kept.to_bytes()
    files[HELD_OUT] = _held_out(files, material, masks)
    return files, max(differences)


def _of_filter(student: Classifier, detector: Filter, made: StudentGraphs, inputs: Arrays) -> dict[str, bytes]:
    files = {DETECTOR: made.detector, REFORMED: made.reformed}
    scores, reconstruction = detector.score(inputs["images"]), detector.reconstruct(inputs["images"])
    check_parity(files[DETECTOR], {"images": inputs["images"]}, {"scores": scores}, atol=PARITY_ATOL)
    check_parity(files[REFORMED], inputs, {"scores": scores, "reconstruction": reconstruction}, atol=PARITY_ATOL)
    reformed: Any = run_graph(files[REFORMED], inputs, ["reconstruction"])["reconstruction"]  # rounded as served
    expected = _summary(mc_probabilities(student, reformed, inputs["masks"]))
    check_parity(files[REFORMED], inputs, expected, atol=PARITY_ATOL)
    return files


def _held_out(files: dict[str, bytes], material: Material, masks: NDArray[np.float32]) -> bytes:
    inputs: Arrays = {"images": material.held_images[material.calibrating], "masks": masks[:1]}
    plain = run_graph(files[SERVED], inputs, ["features", *(["scores"] if REFORMED in files else [])])
    reformed = run_graph(files[REFORMED], inputs, ["features"])["features"] if REFORMED in files else None
    labels = material.held_labels[material.calibrating]
    return HeldOut(plain["features"], labels, reformed, plain.get("scores")).to_bytes()


def _summary(probabilities: NDArray[np.float32]) -> Arrays:
    """Of (k, n, c), what the served graph gives."""
    exact = probabilities.astype(np.float64)
    entropy = -(exact * np.log(np.where(exact > 0, exact, 1)))
    return {"mean_probabilities": exact.mean(axis=0), "class_entropy": entropy.mean(axis=0)}
