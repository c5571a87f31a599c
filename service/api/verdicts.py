"""What jobs found, over HTTP: verdicts in pages or whole, and reports."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from service.api.access import MaySeeVerdicts
from service.api.datasets import Limit
from service.api.negotiation import preferred
from service.api.reviews import ReviewedVerdict, pages_of
from service.api.routes import Route, holds, not_modified
from service.api.schemas import Page, decode_offset, encode_cursor
from service.jobs import artifacts, overrides
from service.jobs.verdicts import Verdict, VerdictTable
from service.tables import Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)

JSON, CSV, HTML = "application/json", "text/csv", "text/html"
PARQUET = "application/vnd.apache.parquet"


@router.get(
    "/{job_id}/verdicts",
    response_model=Page[ReviewedVerdict],
    summary="What a sanitise job decided about every image",
    responses={200: {"content": {CSV: {"schema": {"type": "string"}}, PARQUET: {"schema": {"type": "string"}}}}},
)
def verdicts(
    request: Request,
    response: Response,
    job_id: str,
    _key: MaySeeVerdicts,
    verdict: Verdict | None = None,
    label: Annotated[str | None, Query(max_length=1000, description="of one class only")] = None,
    overridden: bool | None = None,
    sort: str = "index",
    cursor: str | None = None,
    limit: Limit = 100,
    accept: Annotated[str, Header()] = JSON,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Page[ReviewedVerdict] | Response:
    """JSON pages; with `Accept: text/csv` all rows of that verdict and class in that order, with
    `Accept: application/vnd.apache.parquet` the whole table. `override` is what a person decided, and `overridden`
    asks for those that a person did, or did not, decide on.

    A cell of the CSV that a spreadsheet would take for a formula has an apostrophe before it.
    """
    wanted = preferred(accept, (JSON, CSV, PARQUET))
    with request.state.database.session() as session:
        job = artifacts.verdict_job(session, job_id)
        stands = request.app.state.standings.get(session, job.id)
    etag = _tag(job, stands, wanted, request.url.query)
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Accept, Authorization"}
    if holds(if_none_match, etag):
        return not_modified(etag, headers)
    response.headers.update(headers)
    pages = pages_of(request, job)
    if wanted == PARQUET:
        return Response(_whole(request, job, stands).parquet(), media_type=PARQUET, headers=headers)
    among = None if overridden is None else (stands.over(pages.count()) > 0) == overridden
    if wanted == CSV:
        order = pages.order(verdict, sort, label=label, among=among)
        return StreamingResponse(_whole(request, job, stands).csv(order), media_type=CSV, headers=headers)
    offset = decode_offset(cursor)
    rows, total = pages.page(verdict, sort, offset, limit, label=label, among=among)
    with request.state.database.session() as session:
        rows = overrides.shown(session, job.id, stands, rows)
    following = offset + limit
    return Page(
        items=[ReviewedVerdict(**row) for row in rows],
        next_cursor=encode_cursor(following) if following < total else None,
    )


def _tag(job: Job, stands: overrides.Standing, media: str, query: str) -> str:
    """Known without reading a row: verdicts never change, decisions are numbered."""
    told = "\n".join((job.id, str(job.attempt), str(stands.last), media, query))
    return f'"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'


def _whole(request: Request, job: Job, stands: overrides.Standing) -> VerdictTable:
    """All verdicts, with what people decided about them."""
    table = VerdictTable.read(request.state.storage, artifacts.verdicts_key(job))
    with request.state.database.session() as session:
        made = overrides.decisions(session, job.id)
    return table.reviewed(stands.over(len(table)), {number: each.wire() for number, each in made.items()})


@router.get(
    "/{job_id}/report",
    summary="The report of a finished job, as HTML or JSON",
    responses={200: {"content": {JSON: {"schema": {"type": "object"}}, HTML: {"schema": {"type": "string"}}}}},
)
def report(request: Request, job_id: str, _key: MaySeeVerdicts, accept: Annotated[str, Header()] = "*/*") -> Response:
    """HTML where the caller prefers it and the job has one, else JSON."""
    storage = request.state.storage
    with request.state.database.session() as session:
        job = artifacts.reported_job(session, job_id)
    html_key = artifacts.report_key(job, "html")
    offered = (JSON, HTML) if storage.exists(html_key) else (JSON,)
    if preferred(accept, offered) == HTML:
        headers = {"Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'"}
        return Response(storage.read(html_key), media_type="text/html; charset=utf-8", headers=headers)
    return Response(storage.read(artifacts.report_key(job, "json")), media_type=JSON)
