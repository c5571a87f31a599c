"""Jobs over HTTP: submit, list, watch, follow, cancel, retry."""

from __future__ import annotations

import hashlib
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel
from sqlalchemy import Select, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from service.api.access import MayRunJobs, MaySeeJobs, MaySubmitJobs, actor_of
from service.api.datasets import Limit, accepted
from service.api.negotiation import preferred
from service.api.paging import page_of
from service.api.routes import Route
from service.api.schemas import JobOut, JobRequest, Moment, Page, decode_offset, encode_cursor
from service.audit import Action, append
from service.auth import check_scopes
from service.events.looking import events_of
from service.events.stream import MEDIA_TYPE, event_stream, wire
from service.jobs import control, harden, repository, submit
from service.jobs.state import FINISHED, JobState
from service.scopes import Scope
from service.tables import Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)

BIGGEST_ID = 2**53
JSON = "application/json"
Kind = Literal["ingest", "sanitise", "distill", "evaluate", "harden", "review"]
Reference = Annotated[str, Query(max_length=160)]

log = structlog.get_logger()


@router.post("", status_code=202, response_model=JobOut, summary="Submit a job")
def create(
    request: Request,
    body: JobRequest,
    key: MaySubmitJobs,
    idempotency_key: Annotated[str | None, Header(max_length=255, pattern=r"^[\x20-\x7e]*$")] = None,
) -> Response:
    """With an `Idempotency-Key`, sending the same again gives the same job, however many send it at once."""
    if body.type != "review":
        check_scopes(key, {Scope.JOBS})
    asked = submit.Request(
        body.type, body.inputs(), body.params, idempotency_key, request.state.request_id, actor_of(request)
    )
    with request.state.database.session() as session:  # who comes second writes nothing, and waits for no one
        earlier = submit.made_before(session, asked)
        if earlier is not None:
            return accepted(JobOut.of(session, earlier))
    try:
        answer, to_ring = _submit(request, asked)
    except IntegrityError:  # two with the same idempotency key at once: the other one made the job
        answer, to_ring = _submit(request, asked)
    return _rung(request, answer, to_ring)


def _rung(request: Request, answer: JobOut, to_ring: list[str]) -> Response:
    request.app.state.doorbell.ring(to_ring)
    log.info("job accepted", type=answer.type, job_id=answer.id, attempt=answer.attempt)
    return accepted(answer)


def _submit(request: Request, asked: submit.Request) -> tuple[JobOut, list[str]]:
    with request.state.database.transaction() as session:
        job = submit.submit(session, asked, request.app.state.settings)
        return JobOut.of(session, job), _to_ring(session, job)


def _to_ring(session: Session, job: Job) -> list[str]:
    jobs = harden.steps_of(session, job.id) if job.type == "harden" else [job]
    return [each.id for each in jobs if each.state == JobState.QUEUED and each.rung_at is None]


@router.get("", response_model=Page[JobOut], summary="List jobs, newest first")
def list_jobs(
    request: Request,
    _key: MaySeeJobs,
    state: JobState | None = None,
    type: Kind | None = None,
    dataset: Reference | None = None,
    model: Reference | None = None,
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    cursor: str | None = None,
    limit: Limit = 100,
) -> Page[JobOut]:
    """`dataset` and `model`: jobs that read or made it; a name means all its versions."""
    query = _created_between(_about(select(Job), dataset, model), created_after, created_before)
    if state is not None:
        query = query.where(Job.state == state)
    if type is not None:
        query = query.where(Job.type == type)
    with request.state.database.session() as session:
        shown = partial(JobOut.of, session)
        return page_of(session, query, Job.id, shown, cursor=cursor, limit=limit, newest_first=True)


def _about(query: Select[Any], dataset: str | None, model: str | None) -> Select[Any]:
    if dataset is not None:
        read = [_names(Job.inputs[field].as_string(), dataset) for field in ("dataset", "reference", "name")]
        query = query.where(or_(*read, _names(Job.result["dataset"].as_string(), dataset)))
    if model is not None:
        named = [_names(column["model"].as_string(), model) for column in (Job.inputs, Job.result)]
        query = query.where(or_(*named))
    return query


def _names(column: Any, wanted: str) -> Any:
    """What is stored is the name wanted, or, where that is bare, a version or an alias of it."""
    if "@" in wanted or ":" in wanted:
        return column == wanted
    versions = [column.startswith(f"{wanted}{mark}", autoescape=True) for mark in "@:"]
    return or_(column == wanted, *versions)


def _created_between(query: Select[Any], after: datetime | None, before: datetime | None) -> Select[Any]:
    if after is not None:
        query = query.where(Job.created_at > after)
    return query if before is None else query.where(Job.created_at < before)


@router.get("/{job_id}", response_model=JobOut, summary="One job")
def get_job(request: Request, response: Response, job_id: str, _key: MaySeeJobs) -> JobOut:
    """Its ETag changes with anything but `eta_seconds`, which grows old by itself."""
    with request.state.database.session() as session:
        job = JobOut.of(session, repository.find(session, job_id))
    if job.finished_at is None:
        response.headers["Retry-After"] = "1"
    lasting = job.model_dump_json(exclude={"eta_seconds"})
    response.headers["ETag"] = f'W/"{hashlib.sha256(lasting.encode()).hexdigest()[:32]}"'
    return job


class EventOut(BaseModel):
    """What happened to a job. Numbers grow, with gaps."""

    id: int
    at: datetime
    state: JobState
    attempt: int
    message: str


@router.get(
    "/{job_id}/events",
    response_model=Page[EventOut],
    summary="What happened to a job, as it happens",
    responses={
        200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}},
        204: {"description": "Nothing came after `Last-Event-ID`, and nothing will"},
    },
)
async def events(
    request: Request,
    job_id: str,
    _key: MaySeeJobs,
    cursor: str | None = None,
    limit: Limit = 100,
    last_event_id: Annotated[int, Header(ge=0, le=BIGGEST_ID)] = 0,
    accept: Annotated[str, Header()] = MEDIA_TYPE,
) -> Page[EventOut] | Response:
    """A stream of server-sent events: what happened so far, then what happens, until the job has finished.

    `state` events carry an id: who comes back with it in `Last-Event-ID` gets what came after, and 204 where nothing
    more will. `progress` events tell how far the job is. With `Accept: application/json`, pages of what happened so
    far.
    """
    wanted = preferred(accept, (MEDIA_TYPE, JSON))
    after = last_event_id if cursor is None else decode_offset(cursor)
    page, finished = await run_in_threadpool(_events, request, job_id, after, limit)
    if wanted == JSON:
        return page
    if finished and last_event_id and not page.items:
        return Response(status_code=204)
    state = request.app.state
    state.feeds.check_room()
    heartbeat_seconds = state.settings.stream_heartbeat_seconds
    stream = event_stream(state.feeds, job_id, after=last_event_id, heartbeat_seconds=heartbeat_seconds)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Vary": "Accept, Authorization"}
    return StreamingResponse(stream, media_type=MEDIA_TYPE, headers=headers)


def _events(request: Request, job_id: str, after: int, limit: int) -> tuple[Page[EventOut], bool]:
    with request.state.database.session() as session:
        job = repository.find(session, job_id)
        found = events_of(session, job_id, after=after, limit=limit + 1)
    items = [EventOut(**wire(event)) for event in found[:limit]]
    more = encode_cursor(items[-1].id) if len(found) > limit else None
    return Page(items=items, next_cursor=more), job.state in FINISHED


@router.post("/{job_id}/cancel", status_code=202, response_model=JobOut, summary="Cancel a job")
def cancel(request: Request, job_id: str, _key: MayRunJobs) -> JobOut:
    with request.state.database.transaction() as session:
        job = repository.find(session, job_id)
        before = job.state
        control.cancel(session, job)
        if job.state != before:
            append(session, actor_of(request), Action.JOB_CANCELLED, f"job {job.id}", was=before)
        return JobOut.of(session, job)


@router.post("/{job_id}/retry", status_code=202, response_model=JobOut, summary="Try a failed or cancelled job again")
def retry(request: Request, job_id: str, _key: MayRunJobs) -> Response:
    with request.state.database.transaction() as session:
        job = repository.find(session, job_id)
        before = job.state
        control.retry(session, job)
        append(session, actor_of(request), Action.JOB_RETRIED, f"job {job.id}", was=before)
        answer, to_ring = JobOut.of(session, job), _to_ring(session, job)
    return _rung(request, answer, to_ring)
