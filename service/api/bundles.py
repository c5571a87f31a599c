"""Bundles over HTTP: a version as one file, to keep or to bring to another service."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from service.api.access import MayAdminister, MayRunJobs, actor_of
from service.api.bodies import read_body
from service.api.routes import Route
from service.audit import Action, append
from service.db import now
from service.errors import Corrupt
from service.jobs.create import add_job, new_job_id
from service.jobs.state import JobState
from service.references import check_name
from service.registry import repository as registry
from service.registry.archive import Unpacked, pack, unpack
from service.registry.bundle import prefix_of, publish
from service.registry.errors import BundleUnusable
from service.serving.engine import Engine

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=Route)

MOST_BYTES = 1024 * 1024 * 1024
BODY_SECONDS = 600.0
SPOOLED_BYTES = 16 * 1024 * 1024
BLOCK_BYTES = 1 << 20
BODY = {"required": True, "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}


class ImportedOut(BaseModel):
    """The version that was made."""

    model: str = Field(description="name@version here")
    bundle: str = Field(description="digest over all files; the same wherever the bundle is imported")
    source: str = Field(description="name@version where it was exported")


@router.get("/{reference}/export", summary="A version's bundle as one file")
def export_bundle(request: Request, reference: str, _key: MayRunJobs) -> StreamingResponse:
    """An uncompressed zip with a manifest of digests. Every digest is checked before the first byte is sent."""
    with request.state.database.session() as session:
        row = registry.resolve(session, reference)
    told = registry.reference_of(row)
    file: IO[bytes] = tempfile.SpooledTemporaryFile(SPOOLED_BYTES)  # noqa: SIM115 - closed when it is sent
    try:
        pack(request.state.storage, row.prefix, row.files, reference=told, to=file)
    except BaseException:
        file.close()
        raise
    size = file.tell()
    file.seek(0)
    name = f"{row.name}-{row.version}.winnow"
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(_blocks(file), 200, headers, "application/zip", BackgroundTask(file.close))


@router.post("/{name}/versions", status_code=201, summary="Import a bundle", openapi_extra={"requestBody": BODY})
async def import_bundle(request: Request, name: str, key: MayAdminister) -> ImportedOut:
    """The bundle becomes the next version of `name`, once it is warm and its parity sample agrees."""
    check_name(name, what="model")
    body = await read_body(request, max_bytes=MOST_BYTES, within_seconds=BODY_SECONDS)
    unpacked = await run_in_threadpool(unpack, body)
    prefix, storage, engine = prefix_of(name, new_job_id(), 1), request.state.storage, request.app.state.engine
    await run_in_threadpool(publish, storage, prefix, unpacked.files)
    try:
        await _try(engine, prefix, unpacked, key.tenant)
        model = await run_in_threadpool(_register, request, name, prefix, unpacked)
    except BaseException:
        await run_in_threadpool(storage.delete_prefix, prefix)
        raise
    engine.changed(name, tenant=key.tenant)
    await request.app.state.siblings.changed(key.tenant, name)
    return ImportedOut(model=model, bundle=unpacked.digest, source=unpacked.source)


async def _try(engine: Engine, prefix: str, unpacked: Unpacked, tenant: str) -> None:
    try:
        await engine.try_bundle(prefix, unpacked.digests, tenant=tenant)
    except Corrupt as error:
        raise BundleUnusable(f"The bundle cannot be served: {error.message}") from error


def _register(request: Request, name: str, prefix: str, unpacked: Unpacked) -> str:
    """In one transaction: a job that stands for the import, the version, and the entry in the log."""
    told: dict[str, Any] = {"source": unpacked.source, "bundle": unpacked.digest}
    with request.state.database.transaction() as session:
        job = add_job(session, "import", inputs={"model": name}, params=told, max_attempts=1)
        job.state, job.started_at, job.finished_at = JobState.SUCCEEDED, job.created_at, now()
        row = registry.register(session, name, job_id=job.id, prefix=prefix, files=unpacked.digests, card=unpacked.card)
        model = registry.reference_of(row)
        job.result = {"model": model}
        append(session, actor_of(request), Action.MODEL_IMPORTED, f"model {model}", **told)
    return model


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block
