"""A distill job: teacher, student, abstention, ONNX; registered as a bundle only if the student is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from models.filtering import Filter
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from models.abstention import calibrate_abstention
from models.calibration import check_alpha, wilson_interval
from models.classifiers import Classifier
from models.distillation import Distilled, distill
from models.onnx_export import check_parity, export_detector, export_student
from models.specs import DistillSpec
from models.splits import split_by_class
from models.uncertainty import mc_probabilities
from service.datasets import repository as datasets
from service.errors import UnusableDataset
from service.registry import bundle
from service.registry import repository as registry
from service.registry.calibration import McDropout, ServingCalibration
from worker import card
from worker.artifacts import FilterArtifacts, save_network
from worker.context import Context, Outcome
from worker.datasets import groups_of, open_version, relabelled
from worker.lineage import sanitise_filter
from worker.scoring import in_batches

PLAN = {"teacher": 50.0, "soft labels": 2.0, "student": 45.0, "calibrating": 3.0, "exporting": 5.0}
PARITY_ATOL = 1e-4
PARITY_IMAGES = 32


@dataclass(frozen=True, eq=False)
class Material:
    """What a distill job works with. The held-out images were seen by neither filter nor student."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    held_images: NDArray[np.uint8]
    held_labels: NDArray[np.int64]
    classes: list[str]
    image_shape: tuple[int, int, int]
    detector: Filter | None
    lineage: dict[str, Any]


def run(context: Context) -> Outcome:
    context.progress.plan(PLAN)
    spec = DistillSpec.model_validate(context.claim.params)
    material = _gather(context, spec)
    distilled = distill(
        material.images,
        material.labels,
        spec,
        num_classes=len(material.classes),
        watch_for=context.progress.enter,
        checkpoints=context.checkpoints,
    )
    calibration, metrics = _calibrate(context, distilled, material, spec)
    metrics["teacher_accuracy"] = _accuracy(distilled.teacher, material)
    metrics["student_accuracy"] = _accuracy(distilled.student, material)
    _refuse_worse_student(metrics, spec)
    context.progress.enter("exporting")
    files = _export(distilled, material, calibration, metrics)
    document = card.write(context, spec, material, distilled, metrics)
    files["card.json"] = card.to_bytes(document)
    prefix = bundle.prefix_of(context.claim.inputs["model"], context.claim.job_id, context.claim.attempt)
    context.written.append(prefix)
    digests = bundle.publish(context.storage, prefix, files)

    def publish(session: Session) -> dict[str, Any]:
        name = context.claim.inputs["model"]
        row = registry.register(session, name, job_id=context.claim.job_id, prefix=prefix, files=digests, card=document)
        return {"model": registry.reference_of(row)}

    return Outcome({"metrics": metrics, "bundle_digest": bundle.bundle_digest(digests)}, publish)


def _gather(context: Context, spec: DistillSpec) -> Material:
    inputs = context.claim.inputs
    row, reader = open_version(context, inputs["dataset"])
    kept = sanitise_filter(context, row)
    everything = np.arange(row.num_samples)
    labels = reader.labels()
    lineage = {"dataset": inputs["dataset"], "dataset_digest": row.digest, "reference": inputs.get("reference")}
    if "reference" in inputs:
        held_images, held_labels = _from_reference(context, inputs["reference"], kept, row.classes)
        train = everything
    else:
        share = spec.abstention.holdout_share
        train, held = split_by_class(labels, groups_of(reader), share=share, seed=spec.seed)
        held_images, held_labels = reader.images(held), labels[held]
    _refuse_missing_classes(labels[train], row.classes, inputs["dataset"])
    check_alpha(spec.abstention.alpha, len(held_labels))
    return Material(
        images=reader.images(train),
        labels=labels[train],
        held_images=held_images,
        held_labels=held_labels,
        classes=row.classes,
        image_shape=reader.image_shape,
        detector=kept.filter if kept else None,
        lineage={**lineage, "num_held_out": len(held_labels), "sanitised": kept is not None},
    )


def _from_reference(
    context: Context, reference: str, kept: FilterArtifacts | None, classes: list[str]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The reference's images, less those that the filter was fitted on: their scores would flatter."""
    row, reader = open_version(context, reference)
    same = kept is not None and kept.reference == datasets.reference_of(row)
    rows = kept.held if kept is not None and same else np.arange(row.num_samples)
    return reader.images(rows), relabelled(reader.labels(), row.classes, classes)[rows]


def _refuse_missing_classes(labels: NDArray[np.int64], classes: list[str], dataset: str) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise UnusableDataset(
            f"{dataset} has no image left to train on in these classes: {', '.join(empty[:5])}. Add images of them, "
            "leave the class out, or sanitise again with a lower false_quarantine_rate.",
            code="empty_class",
        )


def _calibrate(
    context: Context, distilled: Distilled, material: Material, spec: DistillSpec
) -> tuple[ServingCalibration, dict[str, Any]]:
    watch = context.progress.enter("calibrating", unit="images")
    student = distilled.student
    mc = McDropout(spec.abstention.mc_passes, spec.student.dropout, spec.seed, student.feature_dim)
    probabilities = mc_probabilities(student, material.held_images, mc.masks(), watch=watch)
    total = len(material.held_labels)
    scores = None if material.detector is None else in_batches(material.detector, material.held_images, watch, 0, total)
    abstention = calibrate_abstention(probabilities, material.held_labels, scores, seed=spec.seed)
    check_alpha(spec.abstention.alpha, abstention.n)
    metrics = {
        "num_calibration": abstention.n,
        "smallest_alpha": abstention.smallest_alpha,
        "alpha": spec.abstention.alpha,
        "mc_variance": float(probabilities.var(axis=0).mean()),
    }
    return ServingCalibration(abstention, mc, spec.abstention.alpha), metrics


def _accuracy(network: Classifier, material: Material) -> dict[str, Any]:
    """Of the network without dropout, on the held-out images."""
    ones = np.ones((1, network.feature_dim), np.float32)
    found = mc_probabilities(network, material.held_images, ones)[0].argmax(axis=1)
    correct, n = int((found == material.held_labels).sum()), len(material.held_labels)
    low, high = wilson_interval(correct, n)
    return {"share": correct / n, "low": low, "high": high, "n": n}


def _refuse_worse_student(metrics: dict[str, Any], spec: DistillSpec) -> None:
    teacher, student = metrics["teacher_accuracy"]["share"], metrics["student_accuracy"]["share"]
    if teacher - student > spec.max_accuracy_loss:
        raise UnusableDataset(
            f"The student is right on {student:.2%} of the held-out images, its teacher on {teacher:.2%}: more than "
            f"the max_accuracy_loss of {spec.max_accuracy_loss} was lost, so it was not registered. Train for more "
            "epochs (fit.epochs), give it more width (student.width), or allow a larger loss.",
            code="student_too_weak",
        )


def _export(
    distilled: Distilled, material: Material, calibration: ServingCalibration, metrics: dict[str, Any]
) -> dict[str, bytes]:
    student, sample, masks = distilled.student, material.held_images[:PARITY_IMAGES], calibration.mc.masks()
    onnx = export_student(student, material.image_shape)
    expected = {"probabilities": mc_probabilities(student, sample, masks)}
    difference = check_parity(onnx, {"images": sample, "masks": masks}, expected, atol=PARITY_ATOL)
    metrics["onnx_max_difference"] = difference
    files = {
        "student.onnx": onnx,
        "calibration.json": calibration.to_bytes(),
        "student.safetensors": save_network(student),
        "teacher.safetensors": save_network(distilled.teacher),
    }
    if material.detector is not None:
        files["detector.onnx"] = export_detector(material.detector, material.image_shape)
        wanted = {"scores": material.detector.score(sample)}
        check_parity(files["detector.onnx"], {"images": sample}, wanted, atol=PARITY_ATOL)
    return files
