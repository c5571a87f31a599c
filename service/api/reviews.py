"""A person's decisions about verdicts, over HTTP: on one image, on a selection, taken back, looked up."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from service.api.access import MayReview, MaySeeVerdicts, actor_of
from service.api.routes import Route
from service.audit import Action, append
from service.jobs import artifacts, overrides
from service.jobs.selection import Where, selected
from service.jobs.verdict_pages import VerdictPages
from service.jobs.verdicts import Verdict
from service.tables import ApiKey, Job

router = APIRouter(prefix="/v1/jobs", tags=["review"], route_class=Route)

MOST_INDICES = 1_000_000
BIGGEST_INDEX = 2**31 - 1

Decided = Literal[Verdict.KEEP, Verdict.QUARANTINE]
Note = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]
Index = Annotated[int, Path(ge=0, le=BIGGEST_INDEX)]
Text = Annotated[str, Field(max_length=1000)]
Picked = Annotated[int, Field(ge=0, le=BIGGEST_INDEX, strict=True)]


class DecisionIn(BaseModel):
    """What a person decided about one image."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"verdict": "keep", "note": "a real sign"}]}
    )

    verdict: Decided
    note: Note | None = None


class WhereIn(BaseModel):
    """Which images: those for which everything given holds. `verdict` is Winnow's own."""

    model_config = ConfigDict(extra="forbid")

    verdict: Verdict | None = None
    reason: Text | None = Field(None, description="a detector that spoke against the image")
    label: Text | None = None
    p_value_below: Annotated[float, Field(strict=True)] | None = None
    indices: list[Picked] | None = Field(None, max_length=MOST_INDICES)


class SelectionIn(BaseModel):
    """What a person decided about many images at once; `verdict: null` takes earlier decisions back."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"where": {"verdict": "quarantine", "reason": "label_loss"}, "verdict": "keep", "note": None}]
        },
    )

    where: WhereIn
    verdict: Decided | None
    note: Note | None = None


class OverrideOut(BaseModel):
    verdict: Verdict | None
    note: str | None
    by: str
    at: datetime


class DecidedOut(BaseModel):
    decided: int = Field(description="images that the decision is about")
    job: str = Field(description="the sanitise job whose verdicts these are")


class ReviewedVerdict(BaseModel):
    """A row of the verdicts."""

    model_config = ConfigDict(extra="allow")

    index: int
    verdict: Verdict
    override: OverrideOut | None


class VerdictHistory(ReviewedVerdict):
    history: list[OverrideOut] = Field(description="every decision about this image, the first one first")


def acting(key: ApiKey) -> str:
    """Under which name a decision is recorded."""
    return key.name


def pages_of(request: Request, job: Job) -> VerdictPages:
    state = request.app.state
    return VerdictPages(request.state.storage, artifacts.verdicts_key(job), state.orders)


@router.put("/{job_id}/verdicts", response_model=DecidedOut, summary="Decide on many images at once")
def decide_many(request: Request, job_id: str, body: SelectionIn, key: MayReview) -> DecidedOut:
    """All of them in one transaction, under one time and note."""
    job = _judged(request, job_id)
    meant = selected(pages_of(request, job), Where(**body.where.model_dump()))
    with request.state.database.transaction() as session:
        made = overrides.decide(session, job, meant, body.verdict, note=body.note, by=acting(key))
        _tell(session, request, job, made, meant)
    return DecidedOut(decided=len(meant), job=job.id)


@router.get("/{job_id}/verdicts/{index}", response_model=VerdictHistory, summary="One verdict, and who decided what")
def one_verdict(request: Request, job_id: str, index: Index, _key: MaySeeVerdicts) -> dict[str, Any]:
    job = _judged(request, job_id)
    row = pages_of(request, job).row(index)
    with request.state.database.session() as session:
        told = overrides.history(session, job.id, index)
    stands = told[-1].wire() if told and told[-1].verdict else None
    return {**row, "override": stands, "history": [each.wire() for each in told]}


@router.put("/{job_id}/verdicts/{index}", response_model=ReviewedVerdict, summary="Decide on one image")
def decide(request: Request, job_id: str, index: Index, body: DecisionIn, key: MayReview) -> dict[str, Any]:
    return _decided(request, job_id, index, body.verdict, body.note, key)


@router.delete("/{job_id}/verdicts/{index}", response_model=ReviewedVerdict, summary="Take a decision back")
def take_back(request: Request, job_id: str, index: Index, key: MayReview) -> dict[str, Any]:
    """Winnow's own verdict holds again. That there was a decision stays on record."""
    return _decided(request, job_id, index, None, None, key)


def _decided(
    request: Request, job_id: str, index: int, verdict: Verdict | None, note: str | None, key: ApiKey
) -> dict[str, Any]:
    """The row as it is now. Where nothing stands there is nothing to take back, and nothing is recorded."""
    job = _judged(request, job_id)
    row = pages_of(request, job).row(index)
    with request.state.database.transaction() as session:
        if verdict is None and not _stands(overrides.history(session, job.id, index)):
            return row
        made = overrides.decide_one(session, job, index, verdict, note=note, by=acting(key))
        _tell(session, request, job, made, np.array([index]))
    return {**row, "override": made.wire() if verdict else None}


def _tell(
    session: Session, request: Request, job: Job, made: overrides.Decision | None, indices: overrides.Indices
) -> None:
    """In the audit log: how many images, and the digest of which, so that the decisions cannot be changed unseen."""
    if made is None:
        return
    chosen = np.unique(indices).astype("<i8")
    append(
        session,
        actor_of(request),
        Action.VERDICTS_DECIDED,
        f"job {job.id}",
        verdict=made.verdict,
        images=len(chosen),
        sha256=hashlib.sha256(chosen.tobytes()).hexdigest(),
    )


def _stands(told: list[overrides.Decision]) -> bool:
    return bool(told) and told[-1].verdict is not None


def _judged(request: Request, job_id: str) -> Job:
    with request.state.database.session() as session:
        return artifacts.verdict_job(session, job_id)
