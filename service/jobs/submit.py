"""Accepts a job: checks what it asks for against what there is, so that a job that cannot succeed is never queued."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.specs import PARAMS_OF_JOB, DistillSpec, HardenSpec, SanitiseSpec, Spec
from service import encoders, quotas
from service.audit import STACK, Action, Actor, append
from service.datasets import repository as datasets
from service.errors import Conflict, IdempotencyConflict, InvalidParams
from service.jobs import artifacts, harden, overrides
from service.jobs.create import add_job
from service.jobs.suitable import HALF, check_matches, check_reference, check_siftable, check_trainable
from service.quotas import Quota
from service.references import check_name, parse_model_ref
from service.registry import repository as registry
from service.settings import Settings
from service.tables import Job
from service.tenancy import tenant_of

INPUTS: dict[str, tuple[frozenset[str], frozenset[str]]] = {  # type: (required, optional)
    "sanitise": (frozenset({"dataset"}), frozenset({"reference"})),
    "distill": (frozenset({"dataset", "model"}), frozenset({"reference"})),
    "evaluate": (frozenset({"model", "dataset"}), frozenset()),
    "harden": (frozenset({"dataset", "model"}), frozenset({"reference", "evaluate_on", "calibrate_on"})),
    "review": (frozenset({"job"}), frozenset()),
}


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
    _check_encoder(settings, spec)
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
            same = inputs["calibrate_on"] == inputs.get("reference")
            check_trainable(dataset, others["calibrate_on"], spec.distill, held_share=HALF if same else 1.0)
        else:
            check_trainable(dataset, reference, spec.distill, held_share=HALF)


def _check_encoder(settings: Settings, spec: Spec) -> None:
    sanitise = spec.sanitise if isinstance(spec, HardenSpec) else spec
    if isinstance(sanitise, SanitiseSpec) and sanitise.panel.encoder is not None:
        encoders.find(settings, sanitise.panel.encoder)


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
