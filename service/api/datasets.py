"""Data sets over HTTP: uploads, versions, samples."""

from __future__ import annotations

import io
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Query, Request
from PIL import Image
from sqlalchemy import select, tuple_
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from service import quotas
from service.api.access import MayAdminister, MaySeeDatasets, MayUpload, actor_of
from service.api.routes import Route
from service.api.schemas import DatasetOut, JobOut, Page, SampleOut, decode_cursor, decode_offset, encode_cursor
from service.audit import Action, append
from service.datasets import repository as datasets
from service.datasets.export import MEDIA_TYPES, SUFFIXES, ExportFormat, Version, exported
from service.datasets.export_items import origin_of
from service.datasets.receive import parse_repr_digest, receive
from service.datasets.sample import Limits
from service.errors import InvalidInput, NotFound, TooLarge
from service.jobs.submit import parse_params
from service.quotas import Quota
from service.references import check_name
from service.tables import DatasetVersion
from service.uploads import blobs
from service.uploads.accept import Arrived, accept

router = APIRouter(prefix="/v1/datasets", tags=["data sets"], route_class=Route)

Limit = Annotated[int, Query(ge=1, le=1000)]


FILE = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, "required": True}


@router.post(
    "/{name}/versions",
    status_code=202,
    response_model=JobOut,
    summary="Upload a data set",
    openapi_extra={"requestBody": FILE},
)
async def upload(
    request: Request,
    name: str,
    _key: MayUpload,
    size: int | None = None,
    channels: int | None = None,
    max_rejected_share: float | None = None,
    split: str | None = None,
) -> Response:
    """The raw body is a zip or tar of images, a WebDataset tar, an npz, IDX files in a zip, or Parquet.

    Its format is told by its bytes. Answers with the ingest job.
    """
    check_name(name, what="data set")
    given = {"size": size, "channels": channels, "max_rejected_share": max_rejected_share, "split": split}
    spec = parse_params("ingest", {field: value for field, value in given.items() if value is not None})
    state = request.app.state
    limit: int = state.settings.max_upload_bytes
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise TooLarge(
            f"The upload is {announced} bytes; at most {limit} are accepted. Split it into several data sets."
        )
    most = await run_in_threadpool(_check_room, request, int(announced) if announced.isdecimal() else 0, limit)
    key = blobs.new_key()
    wanted = parse_repr_digest(request.headers.get("repr-digest"))
    received = await receive(request.stream(), request.state.storage, key, max_bytes=most, wanted_sha256=wanted)
    arrived = Arrived(name, spec.model_dump(mode="json"), key, received, actor_of(request))
    return accepted(await run_in_threadpool(_queue_ingest, request, arrived))


def _check_room(request: Request, announced: int, limit: int) -> int:
    """How many bytes may come, before one is read. Raises QuotaExceeded."""
    settings = request.app.state.settings
    with request.state.database.transaction() as session:
        quotas.check(session, settings, Quota.QUEUED_JOBS)
        quotas.check(session, settings, Quota.BYTES, max(announced, 1))
        left = quotas.left(session, settings, Quota.BYTES)
    return limit if left is None else min(limit, left)


def _queue_ingest(request: Request, arrived: Arrived) -> JobOut:
    state = request.app.state
    job = accept(request.state.database, request.state.storage, state.settings, arrived)
    with request.state.database.session() as session:
        answer = JobOut.of(session, job)
    state.doorbell.ring([answer.id])
    return answer


def accepted(job: JobOut) -> Response:
    headers = {"Location": f"/v1/jobs/{job.id}", "Retry-After": "1"}
    return JSONResponse(job.model_dump(mode="json"), 202, headers)


@router.get("", response_model=Page[DatasetOut], summary="List versions, newest names first by name and number")
def list_versions(
    request: Request, _key: MaySeeDatasets, cursor: str | None = None, limit: Limit = 100
) -> Page[DatasetOut]:
    order = (DatasetVersion.name, DatasetVersion.version)
    query = select(DatasetVersion).order_by(*order).limit(limit + 1)
    if cursor is not None:
        name, _, version = decode_cursor(cursor).rpartition("@")
        if not version.isdecimal():
            raise InvalidInput("That cursor is not one of ours: send next_cursor as a page gave it.", code="bad_cursor")
        query = query.where(tuple_(*order) > (name, int(version)))
    with request.state.database.session() as session:
        rows = list(session.scalars(query))
    more = encode_cursor(datasets.reference_of(rows[limit - 1])) if len(rows) > limit else None
    return Page(items=[DatasetOut.of(row) for row in rows[:limit]], next_cursor=more)


@router.get(
    "/{reference}", response_model=DatasetOut | Page[DatasetOut], summary="One version (name@n), or all of a name"
)
def get_dataset(request: Request, reference: str, _key: MaySeeDatasets) -> DatasetOut | Page[DatasetOut]:
    with request.state.database.session() as session:
        if "@" in reference:
            return DatasetOut.of(datasets.find(session, reference))
        check_name(reference, what="data set")
        query = select(DatasetVersion).where(DatasetVersion.name == reference).order_by(DatasetVersion.version)
        rows = list(session.scalars(query))
    if not rows:
        raise NotFound(f"There is no data set {reference}.", code="dataset_not_found")
    return Page(items=[DatasetOut.of(row) for row in rows], next_cursor=None)


@router.delete("/{reference}", response_model=DatasetOut, summary="Delete a version's images")
def delete_dataset(request: Request, reference: str, _key: MayAdminister) -> DatasetOut:
    """Its bytes go, and its upload where no other version is made of the same one. The row stays: lineage leads there.
    Its number is not given again.
    """
    with request.state.database.transaction() as session:
        row = datasets.find(session, reference)
        unused = datasets.delete(session, row)
        append(session, actor_of(request), Action.DATASET_DELETED, f"dataset {reference}", digest=row.digest)
        answer = DatasetOut.of(row)
    for prefix in unused:
        request.state.storage.delete_prefix(prefix)
    return answer


@router.get("/{reference}/samples", response_model=Page[SampleOut], summary="The manifest, page by page")
def samples(
    request: Request, reference: str, _key: MaySeeDatasets, cursor: str | None = None, limit: Limit = 100
) -> Page[SampleOut]:
    with request.state.database.session() as session:
        row = datasets.find(session, reference)
    offset = decode_offset(cursor)
    table = datasets.reader(request.state.storage, row).rows_in(offset, limit)
    items = [
        SampleOut(**{"index": offset + place, **fields, "label": row.classes[fields["label"]]})
        for place, fields in enumerate(table.to_pylist())
    ]
    following = offset + limit
    return Page(items=items, next_cursor=encode_cursor(following) if following < row.num_samples else None)


@router.get("/{reference}/samples/{index}/image", summary="One image as PNG, as training sees it")
def sample_image(request: Request, reference: str, index: int, _key: MaySeeDatasets) -> Response:
    with request.state.database.session() as session:
        row = datasets.find(session, reference)
    if not 0 <= index < row.num_samples:
        raise NotFound(f"{reference} has images 0 to {row.num_samples - 1}, not {index}.", code="sample_not_found")
    pixels = datasets.reader(request.state.storage, row).image(index)
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return Response(buffer.getvalue(), media_type="image/png")


@router.get("/{reference}/export", summary="The whole version as one file")
def export(
    request: Request, reference: str, _key: MaySeeDatasets, format: ExportFormat = "imagefolder", originals: bool = True
) -> Response:
    """`originals`: encoded formats carry the uploaded file of an image that was not changed, else its pixels as PNG."""
    state = request.app.state
    with request.state.database.session() as session:
        row = datasets.find(session, reference)
        origin = origin_of(session, row) if originals else None
        session.expunge_all()
    pieces = exported(Version(request.state.storage, row, origin, Limits.of(state.settings)), format)
    first = next(pieces)  # what cannot be read is an answer, not half a file
    name = f"{row.name}-{row.version}.{SUFFIXES[format]}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(chain([first], pieces), media_type=MEDIA_TYPES[format], headers=headers)
