"""The model under test in an evaluate job, and what it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.classifiers import Classifier, build_classifier
from models.robustness import Answer, Robustness, guard
from models.specs import DistillSpec, EvaluateSpec
from service.references import parse_model_ref
from service.registry import bundle as bundles
from service.registry import repository as registry
from worker.artifacts import load_network
from worker.context import Context
from worker.datasets import open_version
from worker.lineage import sanitise_filter


@dataclass(frozen=True, eq=False)
class Subject:
    """The model under test."""

    reference: str
    student: Classifier
    answer: Answer
    alpha: float
    classes: list[str]


@dataclass(frozen=True, eq=False)
class Trial:
    """What the model under test did."""

    dataset: str
    found: Robustness
    clean: dict[str, Any]


def load_subject(context: Context, spec: EvaluateSpec) -> Subject:
    with context.runtime.database.session() as session:
        row = registry.resolve(session, parse_model_ref(context.claim.inputs["model"]))
    bundle = bundles.load(context.storage, row.prefix, row.files)
    distilled = DistillSpec.model_validate(bundle.card["spec"])
    student = build_classifier(
        distilled.student, num_classes=len(bundle.classes), image_shape=bundle.image_shape, seed=distilled.seed
    )
    load_network(student, context.storage.read(f"{row.prefix}/student.safetensors"))
    student.eval()
    dataset, _ = open_version(context, bundle.card["lineage"]["dataset"])
    kept = sanitise_filter(context, dataset)
    calibration = bundle.calibration
    alpha = spec.alpha or calibration.alpha
    detector_score = kept.filter.score if kept is not None else None
    answer = guard(student, calibration.mc.masks(), calibration.abstention, detector_score, alpha=alpha)
    return Subject(registry.reference_of(row), student, answer, alpha, list(bundle.classes))
