"""Captured images over HTTP: listed, looked at, handed out as an npz that is an upload, deleted."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from PIL import Image
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from service.api.access import MayReview, actor_of
from service.api.routes import Route
from service.api.schemas import Page, decode_offset, encode_cursor
from service.audit import Action, append
from service.errors import NotFound
from service.references import check_name
from service.serving.capture import Captures, checked_segment, version_of
from service.siblings.first import Siblings

router = APIRouter(prefix="/v1/models", tags=["review"], route_class=Route)

IN_MEMORY_BYTES = 16 * 1024 * 1024
BLOCK_BYTES = 1024 * 1024
SEGMENTS_A_PAGE = 20
Arrays = dict[str, Any]


class CapturedOut(BaseModel):
    """An image that a model abstained on."""

    segment: str
    index: int = Field(description="within the segment; both name the image")
    model: str
    at: datetime
    label: str = Field(description="the likeliest class, which was not answered")
    reason: str
    p_value: float


@router.get(
    "/{name}/captures", response_model=Page[CapturedOut], summary="Images that a model abstained on, newest first"
)
def list_captures(request: Request, name: str, _key: MayReview, cursor: str | None = None) -> Page[CapturedOut]:
    """A page holds the images of some segments, so pages differ in size."""
    captures = _captures(request, name)
    segments, offset = captures.segments(name), decode_offset(cursor)
    items = [row for each in segments[offset : offset + SEGMENTS_A_PAGE] for row in _rows(captures, name, each)]
    following = offset + SEGMENTS_A_PAGE
    return Page(items=items, next_cursor=encode_cursor(following) if following < len(segments) else None)


@router.get("/{name}/captures/export", summary="Captured images as an npz that can be uploaded as a data set")
def export_captures(
    request: Request, name: str, _key: MayReview, most: Annotated[int, Query(ge=1, le=100_000)] = 10_000
) -> Response:
    """The newest `most`. `labels` are what the model would have said: look at them before you trust them."""
    captures = _captures(request, name)
    file = _npz(_newest(captures, name, most))
    headers = {"Content-Disposition": f'attachment; filename="{name}-captures.npz"'}
    return StreamingResponse(_blocks(file), media_type="application/x-npz", headers=headers)


@router.get("/{name}/captures/{version}/{segment}/{index}/image", summary="One captured image as PNG")
def captured_image(request: Request, name: str, version: str, segment: str, index: int, _key: MayReview) -> Response:
    whole = checked_segment(f"{version}/{segment}")
    try:
        images = _captures(request, name).read(name, whole)["images"]
    except NotFound as error:
        raise NotFound(
            f"There are no captured images {whole} of {name} (any more): list them anew.", code="capture_not_found"
        ) from error
    if not 0 <= index < len(images):
        raise NotFound(f"The segment has images 0 to {len(images) - 1}, not {index}.", code="capture_not_found")
    pixels = np.asarray(images[index], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return Response(buffer.getvalue(), media_type="image/png")


@router.delete("/{name}/captures", status_code=204, summary="Delete all captured images of a model")
def clear_captures(request: Request, name: str, _key: MayReview) -> Response:
    captures = _captures(request, name)
    with request.state.database.transaction() as session:
        append(session, actor_of(request), Action.CAPTURES_DELETED, f"model {name}")
    captures.clear(name)
    return Response(status_code=204)


def _captures(request: Request, name: str) -> Captures:
    """With what was chosen until now written."""
    check_name(name, what="model")
    siblings: Siblings = request.app.state.siblings
    request.app.state.sampler.flush()
    siblings.now(siblings.flush_captures)
    return Captures(request.state.storage)


def _rows(captures: Captures, name: str, segment: str) -> Iterator[CapturedOut]:
    try:
        found = captures.read(name, segment)
    except NotFound:  # it was dropped to make room since it was listed
        return
    columns = (found[column].tolist() for column in ("at", "labels", "reasons", "p_values"))
    for index, (at, label, reason, p_value) in enumerate(zip(*columns, strict=True)):
        yield CapturedOut(
            segment=segment,
            index=index,
            model=version_of(name, segment),
            at=datetime.fromtimestamp(at, UTC),
            label=label,
            reason=reason,
            p_value=p_value,
        )


def _newest(captures: Captures, name: str, most: int) -> Arrays:
    """As many images as asked for, of the shape that the newest have. Raises NotFound where there are none."""
    parts: list[Arrays] = []
    shape, left = None, most
    for segment in captures.segments(name):
        try:
            found = captures.read(name, segment)
        except NotFound:
            continue
        shape = shape or found["images"].shape[1:]
        if found["images"].shape[1:] == shape:
            parts.append({field: values[-left:] for field, values in found.items()})
            left -= len(parts[-1]["images"])
        if left <= 0:
            break
    if not parts:
        raise NotFound(
            f"No images of {name} have been captured. WINNOW_CAPTURE_SHARE turns capturing on.",
            code="capture_not_found",
        )
    return {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}


def _npz(found: Arrays) -> IO[bytes]:
    classes, labels = np.unique(found["labels"], return_inverse=True)
    file: IO[bytes] = SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 - closed when it has been sent
    np.savez(file, images=found["images"], labels=labels.astype(np.int64), classes=classes)
    file.seek(0)
    return file


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while block := file.read(BLOCK_BYTES):
            yield block
