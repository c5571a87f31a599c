"""Jobs over HTTP: submit, watch, cancel, retry, and what they found."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Request
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.datastructures import State
from starlette.responses import Response, StreamingResponse

from service.api.access import MayRunJobs, MaySeeJobs, MaySeeVerdicts, MaySubmitJobs, actor_of
from service.api.datasets import Limit, accepted
from service.api.reviews import pages_of
from service.api.schemas import JobOut, JobRequest, Page, decode_cursor, decode_offset, encode_cursor
from service.audit import Action, append
from service.auth import check_scopes
from service.jobs import artifacts, control, harden, overrides, repository, submit
from service.jobs.state import JobState
from service.jobs.verdicts import Verdict, VerdictTable
from service.scopes import Scope
from service.tables import Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

PARQUET = "application/vnd.apache.parquet"


@router.post("", status_code=202, response_model=JobOut, summary="Submit a job")
def create(
    request: Request,
    body: JobRequest,
    key: MaySubmitJobs,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Response:
    if body.type != "review":
        check_scopes(key, {Scope.JOBS})
    asked = submit.Request(
        body.type, body.inputs(), body.params, idempotency_key, request.state.request_id, actor_of(request)
    )
    state = request.app.state
    try:
        answer, to_ring = _submit(request, asked)
    except IntegrityError:  # two with the same idempotency key at once: the other one made the job
        answer, to_ring = _submit(request, asked)
    state.doorbell.ring(to_ring)
    return accepted(answer)


def _submit(request: Request, asked: submit.Request) -> tuple[JobOut, list[str]]:
    state = request.app.state
    with state.database.transaction() as session:
        job = submit.submit(session, asked, max_attempts=state.settings.max_attempts)
        return JobOut.of(session, job), _to_ring(session, job)


def _to_ring(session: Session, job: Job) -> list[str]:
    jobs = harden.steps_of(session, job.id) if job.type == "harden" else [job]
    return [each.id for each in jobs if each.state == JobState.QUEUED and each.rung_at is None]


@router.get("", response_model=Page, summary="List jobs, newest first")
def list_jobs(
    request: Request,
    _key: MaySeeJobs,
    state: JobState | None = None,
    type: Literal["ingest", "sanitise", "distill", "evaluate", "harden", "review"] | None = None,
    cursor: str | None = None,
    limit: Limit = 100,
) -> Page:
    query = select(Job).order_by(Job.id.desc()).limit(limit + 1)
    if state is not None:
        query = query.where(Job.state == state)
    if type is not None:
        query = query.where(Job.type == type)
    if cursor is not None:
        query = query.where(Job.id < decode_cursor(cursor))
    with request.app.state.database.session() as session:
        jobs = list(session.scalars(query))
        items = [JobOut.of(session, job) for job in jobs[:limit]]
    return Page(items=items, next_cursor=encode_cursor(jobs[limit - 1].id) if len(jobs) > limit else None)


@router.get("/{job_id}", response_model=JobOut, summary="One job")
def get_job(request: Request, response: Response, job_id: str, _key: MaySeeJobs) -> JobOut:
    with request.app.state.database.session() as session:
        job = JobOut.of(session, repository.find(session, job_id))
    if job.finished_at is None:
        response.headers["Retry-After"] = "1"
    return job


@router.post("/{job_id}/cancel", status_code=202, response_model=JobOut, summary="Cancel a job")
def cancel(request: Request, job_id: str, _key: MayRunJobs) -> JobOut:
    with request.app.state.database.transaction() as session:
        job = repository.find(session, job_id)
        before = job.state
        control.cancel(session, job)
        if job.state != before:
            append(session, actor_of(request), Action.JOB_CANCELLED, f"job {job.id}", was=before)
        return JobOut.of(session, job)


@router.post("/{job_id}/retry", status_code=202, response_model=JobOut, summary="Try a failed or cancelled job again")
def retry(request: Request, job_id: str, _key: MayRunJobs) -> Response:
    with request.app.state.database.transaction() as session:
        job = repository.find(session, job_id)
        before = job.state
        control.retry(session, job)
        append(session, actor_of(request), Action.JOB_RETRIED, f"job {job.id}", was=before)
        answer, to_ring = JobOut.of(session, job), _to_ring(session, job)
    request.app.state.doorbell.ring(to_ring)
    return accepted(answer)


@router.get("/{job_id}/verdicts", response_model=Page, summary="What a sanitise job decided about every image")
def verdicts(
    request: Request,
    job_id: str,
    _key: MaySeeVerdicts,
    verdict: Verdict | None = None,
    overridden: bool | None = None,
    sort: str = "index",
    cursor: str | None = None,
    limit: Limit = 100,
    accept: Annotated[str, Header()] = "application/json",
) -> Page | Response:
    """JSON pages; with `Accept: text/csv` all rows of that verdict in that order, with
    `Accept: application/vnd.apache.parquet` the whole table. `override` is what a person decided, and `overridden`
    asks for those that a person did, or did not, decide on.

    A cell of the CSV that a spreadsheet would take for a formula has an apostrophe before it.
    """
    state = request.app.state
    with state.database.session() as session:
        job = artifacts.verdict_job(session, job_id)
        stands = state.standings.get(session, job.id)
    pages = pages_of(request, job)
    if PARQUET in accept:
        return Response(_whole(state, job, stands).parquet(), media_type=PARQUET)
    among = None if overridden is None else (stands.over(pages.count()) > 0) == overridden
    if "text/csv" in accept:
        order = pages.order(verdict, sort, among=among)
        return StreamingResponse(_whole(state, job, stands).csv(order), media_type="text/csv")
    offset = decode_offset(cursor)
    rows, total = pages.page(verdict, sort, offset, limit, among=among)
    with state.database.session() as session:
        rows = overrides.shown(session, job.id, stands, rows)
    following = offset + limit
    return Page(items=rows, next_cursor=encode_cursor(following) if following < total else None)


def _whole(state: State, job: Job, stands: overrides.Standing) -> VerdictTable:
    """All verdicts, with what people decided about them."""
    table = VerdictTable.read(state.storage, artifacts.verdicts_key(job))
    with state.database.session() as session:
        made = overrides.decisions(session, job.id)
    return table.reviewed(stands.over(len(table)), {number: each.wire() for number, each in made.items()})


@router.get("/{job_id}/report", summary="The report of a finished job, as HTML or JSON")
def report(request: Request, job_id: str, _key: MaySeeVerdicts, accept: Annotated[str, Header()] = "*/*") -> Response:
    """HTML where the caller prefers it and the job has one, else JSON."""
    state = request.app.state
    with state.database.session() as session:
        job = artifacts.reported_job(session, job_id)
    html_key = artifacts.report_key(job, "html")
    if "text/html" in accept and state.storage.exists(html_key):
        headers = {"Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'"}
        return Response(state.storage.read(html_key), media_type="text/html; charset=utf-8", headers=headers)
    return Response(state.storage.read(artifacts.report_key(job, "json")), media_type="application/json")
