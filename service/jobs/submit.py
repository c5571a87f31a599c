"""Accepts a job: checks what it asks for against what there is, so that a job that cannot succeed is never queued."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.abstention import PROFILE_SHARE
from models.calibration import smallest_alpha
from models.specs import PARAMS_OF_JOB, DistillSpec, HardenSpec, SanitiseSpec, Spec
from service import quotas
from service.audit import STACK, Action, Actor, append
from service.datasets import repository as datasets
from service.errors import Conflict, IdempotencyConflict, InvalidParams, UnusableDataset
from service.jobs import artifacts, harden, overrides
from service.jobs.create import add_job
from service.quotas import Quota
from service.references import check_name, parse_model_ref
from service.registry import repository as registry
from service.settings import Settings
from service.tables import DatasetVersion, Job
from service.tenancy import tenant_of

INPUTS: dict[str, tuple[frozenset[str], frozenset[str]]] = {  # type: (required, optional)
    "sanitise": (frozenset({"dataset"}), frozenset({"reference"})),
    "distill": (frozenset({"dataset", "model"}), frozenset({"reference"})),
    "evaluate": (frozenset({"model", "dataset"}), frozenset()),
    "harden": (frozenset({"dataset", "model"}), frozenset({"reference", "evaluate_on", "calibrate_on"})),
    "review": (frozenset({"job"}), frozenset()),
}
MIN_REFERENCE_FIT = 64
HALF = 0.5
"""Of a reference: what each of the two filters is fitted on, and what the one that is served has not seen."""
MIN_SIFTED = 1000
NO_DIVERGENCE = (
    "The detector reconstruction_divergence looks through the filter, which without a trusted reference is fitted "
    "last. Give a reference, or leave the detector out."
)


@dataclass(frozen=True)
class Request:
    """What a client asked for, as it came."""

    type: str
    inputs: dict[str, str]
    params: dict[str, Any]
    idempotency_key: str | None = None
    request_id: str | None = None
    actor: Actor = STACK

    def digest(self) -> str:
        payload = json.dumps([self.type, self.inputs, self.params], sort_keys=True)
        return hashlib.sha256(payload.encode()).hexdigest()


def submit(session: Session, request: Request, settings: Settings) -> Job:
    """The job, new or (same idempotency key, same payload) the one made before. Raises InvalidInput or NotFound."""
    earlier = made_before(session, request)
    if earlier is not None:
        return earlier
    spec = parse_params(request.type, request.params)
    _check_inputs(session, request, spec)
    _check_quotas(session, settings, request)
    job = add_job(
        session,
        request.type,
        inputs=request.inputs,
        params=spec.model_dump(mode="json"),
        max_attempts=settings.max_attempts,
        request_id=request.request_id,
        idempotency_key=request.idempotency_key,
        payload_digest=request.digest(),
    )
    if job.type == "harden":
        harden.first_step(session, job)
    append(session, request.actor, Action.JOB_SUBMITTED, f"job {job.id}", type=job.type, inputs=job.inputs)
    return job


def made_before(session: Session, request: Request) -> Job | None:
    """The job that this idempotency key made. Raises IdempotencyConflict where it was another request."""
    if not request.idempotency_key:
        return None
    same_key = Job.tenant == tenant_of(session), Job.idempotency_key == request.idempotency_key
    earlier = session.scalar(select(Job).where(*same_key))
    return None if earlier is None else _same(earlier, request)


def _check_quotas(session: Session, settings: Settings, request: Request) -> None:
    """Of what the job makes, a version is counted: at most as large as the one that it is made from."""
    quotas.check(session, settings, Quota.QUEUED_JOBS)
    if request.type in ("sanitise", "harden"):
        row = datasets.find(session, request.inputs["dataset"])
    elif request.type == "review":
        judged = artifacts.verdict_job(session, request.inputs["job"])
        row = datasets.find(session, judged.inputs["dataset"])
    else:
        return
    quotas.check(session, settings, Quota.BYTES, row.size_bytes)
    quotas.check(session, settings, Quota.IMAGES, row.num_samples)


def parse_params(kind: str, params: dict[str, Any]) -> Spec:
    """The complete spec of a job. Raises InvalidParams naming every field that is wrong."""
    try:
        return PARAMS_OF_JOB[kind].model_validate(params)
    except ValidationError as error:
        problems = [
            {"field": ".".join(str(part) for part in ("params", *item["loc"])), "problem": item["msg"]}
            for item in error.errors(include_url=False, include_context=False)
        ]
        told = "; ".join(f"{item['field']}: {item['problem']}" for item in problems)
        raise InvalidParams(f"The parameters of this {kind} job are not right: {told}.", errors=problems) from error


def _same(earlier: Job, request: Request) -> Job:
    if earlier.payload_digest != request.digest():
        raise IdempotencyConflict(
            f"Idempotency-Key {request.idempotency_key!r} was used for another request (job {earlier.id})."
            " Use a new key."
        )
    return earlier


def _check_inputs(session: Session, request: Request, spec: Spec) -> None:
    required, optional = INPUTS[request.type]
    _check_names(request, required, optional)
    inputs = request.inputs
    if request.type == "review":
        check_reviewed(session, inputs["job"])
        return
    dataset = datasets.find(session, inputs["dataset"])
    reference = datasets.find(session, inputs["reference"]) if "reference" in inputs else None
    if request.type in ("distill", "harden"):
        check_name(inputs["model"], what="model")
    if request.type == "evaluate":
        model = registry.resolve(session, parse_model_ref(inputs["model"]))
        check_matches(dataset, tuple(model.card["image_shape"]), model.card["classes"], f"model {inputs['model']}")
    others = {
        field: datasets.find(session, inputs[field]) for field in ("evaluate_on", "calibrate_on") if field in inputs
    }
    for other in others.values():
        check_matches(other, tuple(dataset.image_shape), dataset.classes, f"data set {inputs['dataset']}")
    if isinstance(spec, SanitiseSpec | HardenSpec):
        sanitise = spec if isinstance(spec, SanitiseSpec) else spec.sanitise
        if reference is not None:
            check_reference(dataset, reference, sanitise)
        else:
            check_siftable(dataset, sanitise)
    if isinstance(spec, DistillSpec):
        check_trainable(dataset, reference, spec)
    if isinstance(spec, HardenSpec):
        if "calibrate_on" in others:
            check_trainable(dataset, others["calibrate_on"], spec.distill)
        else:
            check_trainable(dataset, reference, spec.distill, held_share=HALF)


def _check_names(request: Request, required: frozenset[str], optional: frozenset[str]) -> None:
    missing, unknown = required - request.inputs.keys(), request.inputs.keys() - required - optional
    if missing:
        raise InvalidParams(
            f"A {request.type} job needs {' and '.join(sorted(missing))}.", code="missing_input", errors=sorted(missing)
        )
    if request.type == "harden" and not request.inputs.keys() & {"reference", "evaluate_on"}:
        raise InvalidParams(
            "A harden job without a trusted reference needs evaluate_on: images that its student was not trained on.",
            code="missing_input",
            errors=["evaluate_on"],
        )
    if unknown:
        raise InvalidParams(f"A {request.type} job takes no {' or '.join(sorted(unknown))}.", code="unknown_input")


def check_reviewed(session: Session, job_id: str) -> None:
    """Raises InvalidInput or Conflict where there is nothing that a person decided."""
    job = artifacts.verdict_job(session, job_id)
    if not overrides.standing(session, job.id).numbers.any():
        made = (job.result or {}).get("dataset", "its version")
        raise Conflict(
            f"Nobody has decided on an image of job {job.id}, so {made} is all that its verdicts make. Decide first "
            f"(PUT /v1/jobs/{job.id}/verdicts).",
            code="no_overrides",
        )


def check_matches(dataset: DatasetVersion, shape: tuple[int, ...], classes: list[str], what: str) -> None:
    """Raises UnusableDataset where shape or classes do not fit."""
    name = datasets.reference_of(dataset)
    if tuple(dataset.image_shape) != shape:
        size, _, channels = shape
        raise UnusableDataset(
            f"{name} has images of {'×'.join(map(str, dataset.image_shape))} (height×width×channels), {what} has "
            f"{'×'.join(map(str, shape))}. Upload it again with size={size} and channels={channels}.",
            code="shape_mismatch",
        )
    foreign = sorted(set(dataset.classes) - set(classes))
    if foreign:
        raise UnusableDataset(
            f"{name} has classes that {what} does not: {', '.join(foreign[:5])}{'…' if len(foreign) > 5 else ''}. "
            "Remove them, or name them as the other does.",
            code="class_mismatch",
        )


def check_reference(dataset: DatasetVersion, reference: DatasetVersion, spec: SanitiseSpec) -> None:
    """Raises UnusableDataset where this reference cannot fit the filter or cannot show the α asked for."""
    check_matches(reference, tuple(dataset.image_shape), dataset.classes, f"data set {datasets.reference_of(dataset)}")
    name = datasets.reference_of(reference)
    _refuse_lonely(reference, "calibrate on the other images of each class than it is fitted on")
    fitted = int(reference.num_samples * HALF)
    if fitted < MIN_REFERENCE_FIT:
        raise UnusableDataset(
            f"Reference {name} leaves {fitted} images to fit each of the two filters on; at least {MIN_REFERENCE_FIT} "
            f"are needed. Give a reference of at least {round(MIN_REFERENCE_FIT / HALF)} images.",
            code="reference_too_small",
        )
    alpha = spec.calibration.rate
    calibrating = reference.num_samples
    if alpha is not None and alpha < smallest_alpha(calibrating):
        needed = int(1 / alpha - 1) + 1
        raise UnusableDataset(
            f"Reference {name} has {calibrating} images to calibrate on: the smallest false_quarantine_rate they can "
            f"promise is {smallest_alpha(calibrating):.4f}, not {alpha}. Ask for that, or give a reference of at least "
            f"{needed} images (of as many groups, where it names groups).",
            code="alpha_too_small",
            smallest=smallest_alpha(calibrating),
        )


def check_siftable(dataset: DatasetVersion, spec: SanitiseSpec) -> None:
    """Raises UnusableDataset where no reference can be sifted out of these candidates."""
    name = datasets.reference_of(dataset)
    if dataset.num_samples < MIN_SIFTED or len(dataset.classes) < 2:
        raise UnusableDataset(
            f"{name} has {dataset.num_samples} images of {len(dataset.classes)} classes: without a trusted reference "
            f"Winnow sifts one out of at least {MIN_SIFTED} images of two classes. Give a reference.",
            code="reference_needed",
        )
    _refuse_lonely(dataset, "judge each image by others of its class")
    if "reconstruction_divergence" in spec.panel.detectors:
        raise UnusableDataset(NO_DIVERGENCE, code="reference_needed")


def check_trainable(
    dataset: DatasetVersion, reference: DatasetVersion | None, spec: DistillSpec, *, held_share: float = 1.0
) -> None:
    """Raises UnusableDataset where no classifier can be trained, or its abstention not be calibrated."""
    name = datasets.reference_of(dataset)
    if len(dataset.classes) < 2:
        raise UnusableDataset(
            f"{name} has one class only ({dataset.classes[0]}): a classifier needs two.", code="one_class"
        )
    _refuse_lonely(dataset, "train a classifier and hold images out to check it")
    if reference is not None:
        check_matches(reference, tuple(dataset.image_shape), dataset.classes, f"data set {name}")
    held = _held_out(dataset, reference, spec, held_share)
    calibrating = held - round(PROFILE_SHARE * held)
    if spec.abstention.alpha < smallest_alpha(calibrating):
        raise UnusableDataset(
            f"Of {held} held-out images {calibrating} calibrate abstention: the smallest alpha they can promise is "
            f"{smallest_alpha(calibrating):.4f}, not {spec.abstention.alpha}. "
            "Ask for that, or give a larger reference.",
            code="alpha_too_small",
            smallest=smallest_alpha(calibrating),
        )


def _held_out(dataset: DatasetVersion, reference: DatasetVersion | None, spec: DistillSpec, held_share: float) -> int:
    """How many images neither filter nor student will have seen."""
    if reference is None:
        return int(dataset.num_samples * spec.abstention.holdout_share)
    return int(reference.num_samples * held_share)


def _refuse_lonely(dataset: DatasetVersion, purpose: str) -> None:
    few = [name for name, count in zip(dataset.classes, dataset.class_counts, strict=True) if count < 2]
    if few:
        raise UnusableDataset(
            f"In {datasets.reference_of(dataset)} these classes have fewer than two images: {', '.join(few[:5])}"
            f"{'…' if len(few) > 5 else ''}. Two are needed to {purpose}: add images or leave the class out.",
            code="class_too_small",
        )
