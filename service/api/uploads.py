"""Resumable uploads over HTTP: tus 1.0, which its clients speak. A finished one becomes a version of a data set."""

from __future__ import annotations

from datetime import datetime
from email.utils import format_datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from models.specs import Spec
from service.api.access import MayUpload, actor_of
from service.api.datasets import Limit
from service.api.paging import page_of
from service.api.routes import Route
from service.api.schemas import Page
from service.errors import InvalidInput
from service.jobs.submit import parse_params
from service.references import check_name
from service.tables import Upload
from service.uploads import finishing, resumable, tus
from service.uploads.resumable import Hold
from service.uploads.writing import Writing, prefix_of

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=Route)

BODY = {
    "requestBody": {
        "content": {tus.STREAM: {"schema": {"type": "string", "format": "binary"}}},
    }
}


class UploadOut(BaseModel):
    """A resumable upload, and what became of it."""

    id: str
    state: str = Field(description="open, finished or expired")
    name: str = Field(description="of the data set that it becomes a version of")
    length: int
    received: int = Field(description="bytes that are there: the offset to go on at")
    metadata: dict[str, str]
    params: dict[str, Any]
    job_id: str | None = Field(description="its ingest job, once it is whole")
    created_at: datetime
    expires_at: datetime

    @classmethod
    def of(cls, row: Upload) -> Self:
        told = tus.metadata({"upload-metadata": row.told})
        fields = {name: getattr(row, name) for name in cls.model_fields if name != "metadata"}
        return cls(**fields, metadata=told)


@router.options("", status_code=204, summary="What of tus there is")
def options(request: Request, _key: MayUpload) -> Response:
    return Response(
        status_code=204,
        headers={
            **tus.RESUMABLE,
            "Tus-Version": tus.VERSION,
            "Tus-Extension": tus.EXTENSIONS,
            "Tus-Max-Size": str(request.app.state.settings.max_upload_bytes),
            "Tus-Checksum-Algorithm": ",".join(tus.ALGORITHMS),
        },
    )


@router.post("", status_code=201, summary="Begin a resumable upload", openapi_extra=BODY)
async def create(request: Request, _key: MayUpload) -> Response:
    """`Upload-Metadata` names the data set (`name`) and may have `size`, `channels`, `max_rejected_share` and `split`.

    A body, if there is one, is the upload's beginning, of type application/offset+octet-stream.
    """
    tus.check_version(request.headers)
    settings = request.app.state.settings
    length = tus.length(request.headers, settings.max_upload_bytes)
    told = tus.metadata(request.headers)
    if "name" not in told:
        raise InvalidInput("Upload-Metadata must say which data set this becomes: name.", code="bad_tus_header")
    name = check_name(told["name"], what="data set")
    spec = parse_params("ingest", tus.params(told))
    carries = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if carries:
        tus.check_stream(request.headers)
    upload = await run_in_threadpool(_created, request, name, spec, length)
    headers = {**_headers_of(upload), "Location": f"/v1/uploads/{upload.id}"}
    if carries:
        headers |= await _write(request, upload.id, 0)
    return Response(status_code=201, headers=headers)


def _created(request: Request, name: str, spec: Spec, length: int) -> Upload:
    with request.state.database.transaction() as session:
        upload: Upload = resumable.create(
            session,
            request.app.state.settings,
            name=name,
            params=spec.model_dump(mode="json"),
            told=request.headers.get("upload-metadata", ""),
            length=length,
            actor=actor_of(request),
        )
        return upload


@router.get("", response_model=Page[UploadOut], summary="List resumable uploads")
def list_uploads(
    request: Request,
    _key: MayUpload,
    state: Annotated[str | None, Query(pattern="^(open|finished|expired)$")] = None,
    cursor: str | None = None,
    limit: Limit = 100,
) -> Page[UploadOut]:
    query = select(Upload)
    if state is not None:
        query = query.where(Upload.state == state)
    with request.state.database.session() as session:
        return page_of(session, query, Upload.id, UploadOut.of, cursor=cursor, limit=limit)


@router.head("/{upload_id}", include_in_schema=False)
def head(request: Request, upload_id: str, _key: MayUpload) -> Response:
    """How far an upload is. Not in the OpenAPI document: GET has the same as JSON."""
    with request.state.database.session() as session:
        upload = resumable.find(session, upload_id)
    tus.check_version(request.headers)
    headers = {**_headers_of(upload), "Upload-Length": str(upload.length), "Cache-Control": "no-store"}
    return Response(headers=headers | ({"Upload-Metadata": upload.told} if upload.told else {}))


@router.get("/{upload_id}", response_model=UploadOut, summary="One resumable upload")
def get_upload(request: Request, upload_id: str, _key: MayUpload) -> UploadOut:
    with request.state.database.session() as session:
        return UploadOut.of(resumable.find(session, upload_id))


@router.patch("/{upload_id}", status_code=204, summary="Go on with an upload", openapi_extra=BODY)
async def patch(request: Request, upload_id: str, _key: MayUpload) -> Response:
    """From `Upload-Offset` on. What arrived is kept where the connection breaks, but for a body with Upload-Checksum:
    that counts as a whole. With the last byte the ingest job is queued; `Winnow-Job` is its id.
    """
    upload = await run_in_threadpool(_found, request, upload_id)
    tus.check_version(request.headers)
    tus.check_stream(request.headers)
    offset = tus.number(request.headers, "Upload-Offset")
    headers = {**tus.RESUMABLE, "Upload-Expires": _http_date(upload.expires_at)}
    return Response(status_code=204, headers=headers | await _write(request, upload_id, offset))


@router.delete("/{upload_id}", status_code=204, summary="End an upload that is not whole")
def terminate(request: Request, upload_id: str, _key: MayUpload) -> Response:
    tus_headers = dict(tus.RESUMABLE)
    hold = None
    with request.state.database.session() as session:
        upload = resumable.find(session, upload_id)
    tus.check_version(request.headers)
    if upload.state == "open":
        hold = resumable.take(request.state.database, upload_id, None)
    with request.state.database.transaction() as session:
        resumable.terminate(session, upload_id)
    if hold is not None:
        request.state.storage.delete_prefix(prefix_of(upload_id))
    return Response(status_code=204, headers=tus_headers)


async def _write(request: Request, upload_id: str, offset: int) -> dict[str, str]:
    """The body, from `offset` on; the headers that say what came of it."""
    database, storage, settings = request.state.database, request.state.storage, request.app.state.settings
    checksum = tus.checksum(request.headers)
    upload = await run_in_threadpool(_found, request, upload_id)
    if upload.job_id is not None and offset == upload.length:
        return _headers_of(upload)  # asked again, after the answer was lost
    hold = await run_in_threadpool(resumable.take, database, upload_id, offset)
    writing = Writing(database, storage, settings, hold, checksum)
    try:
        await writing.take(request.stream())
        if writing.hold.offset == hold.length:
            await run_in_threadpool(_finished, request, writing.hold)
    finally:
        await run_in_threadpool(resumable.let_go, database, hold)
    return _headers_of(await run_in_threadpool(_found, request, upload_id))


def _finished(request: Request, hold: Hold) -> None:
    state = request.app.state
    job = finishing.finish(request.state.database, request.state.storage, state.settings, hold)
    state.doorbell.ring([job.id])


def _found(request: Request, upload_id: str) -> Upload:
    with request.state.database.session() as session:
        upload: Upload = resumable.find(session, upload_id)
        return upload


def _headers_of(upload: Upload) -> dict[str, str]:
    job = {"Winnow-Job": upload.job_id} if upload.job_id else {}
    expires = {"Upload-Expires": _http_date(upload.expires_at)} if upload.state == "open" else {}
    return {**tus.RESUMABLE, "Upload-Offset": str(upload.received), **expires, **job}


def _http_date(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)
