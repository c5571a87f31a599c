"""A distill job: teacher, student, abstention, ONNX; registered as a bundle only if the student is good enough."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from models.calibration import wilson_interval
from models.classifiers import Classifier, UnfitNetwork, check_fits
from models.distillation import Distilled, distill
from models.onnx_parts import Part
from models.specs import DistillSpec
from models.uncertainty import mc_probabilities
from service.errors import UnusableDataset
from service.registry import bundle
from service.registry import repository as registry
from service.registry.calibration import ServingCalibration
from worker import card
from worker.abstaining import calibrate
from worker.artifacts import save_network
from worker.bundling import graphs
from worker.context import Context, Outcome
from worker.material import Material, gather
from worker.precision import lower
from worker.ranks import fitting_together, ranks_wanted
from worker.reporting import write_distillation

PLAN = {"teacher": 50.0, "soft labels": 2.0, "student": 45.0, "calibrating": 3.0, "exporting": 5.0}


def run(context: Context) -> Outcome:
    context.progress.plan(PLAN)
    spec = DistillSpec.model_validate(context.claim.params)
    material = gather(context, spec)
    _refuse_unfit_networks(spec, material)
    distilled = _distilled(context, material, spec)
    trunk, told = lower(distilled.student, material, spec)
    calibration, metrics = calibrate(context, distilled.student, material, spec)
    metrics |= told
    metrics["teacher_accuracy"] = _accuracy(distilled.teacher, material)
    metrics["student_accuracy"] = _accuracy(distilled.student, material)
    _refuse_worse_student(metrics, spec)
    context.progress.enter("exporting")
    files = _export(distilled, trunk, material, calibration, metrics)
    document = card.write(context, spec, material, distilled, metrics)
    files["card.json"] = card.to_bytes(document)
    write_distillation(context, context.claim.inputs["model"], document)
    prefix = bundle.prefix_of(context.claim.inputs["model"], context.claim.job_id, context.claim.attempt)
    context.written.append(prefix)
    digests = bundle.publish(context.storage, prefix, files)

    def publish(session: Session) -> dict[str, Any]:
        name = context.claim.inputs["model"]
        row = registry.register(session, name, job_id=context.claim.job_id, prefix=prefix, files=digests, card=document)
        return {"model": registry.reference_of(row)}

    return Outcome({"metrics": metrics, "bundle_digest": bundle.bundle_digest(digests)}, publish)


def _distilled(context: Context, material: Material, spec: DistillSpec) -> Distilled:
    """On one device, or on all that the settings or the machine have."""
    size, classes = ranks_wanted(context.settings.training_processes), len(material.classes)
    with fitting_together(size, material.images, material.labels, spec, num_classes=classes):
        return distill(
            material.images,
            material.labels,
            spec,
            num_classes=classes,
            watch_for=context.progress.enter,
            checkpoints=context.checkpoints,
        )


def _accuracy(network: Classifier, material: Material) -> dict[str, Any]:
    """Of the network without dropout, on the held-out images."""
    ones = np.ones((1, network.feature_dim), np.float32)
    found = mc_probabilities(network, material.held_images, ones)[0].argmax(axis=1)
    correct, n = int((found == material.held_labels).sum()), len(material.held_labels)
    low, high = wilson_interval(correct, n)
    return {"share": correct / n, "low": low, "high": high, "n": n}


def _refuse_unfit_networks(spec: DistillSpec, material: Material) -> None:
    try:
        for network in (spec.teacher, spec.student):
            check_fits(network, material.image_shape)
    except UnfitNetwork as error:
        raise UnusableDataset(f"{str(error)[0].upper()}{str(error)[1:]}.", code="network_does_not_fit") from error


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
    distilled: Distilled,
    trunk: Part | None,
    material: Material,
    calibration: ServingCalibration,
    metrics: dict[str, Any],
) -> dict[str, bytes]:
    files, metrics["onnx_max_difference"] = graphs(distilled.student, material, calibration.mc.masks(), trunk=trunk)
    return {
        **files,
        "calibration.json": calibration.to_bytes(),
        "student.safetensors": save_network(distilled.student),
        "teacher.safetensors": save_network(distilled.teacher),
    }
