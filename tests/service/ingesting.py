"""Takes an upload through the real ingest step, without a broker."""

from __future__ import annotations

from typing import Any, cast

from models.specs import IngestSpec
from service.datasets import repository as datasets
from service.db import Database
from service.jobs.create import add_job
from service.jobs.repository import Claim
from service.settings import Settings
from service.storage import LocalStorage
from worker import ingest
from worker.context import Context
from worker.progress import Progress
from worker.runtime import Runtime


def ingested(
    settings: Settings, database: Database, name: str, upload: bytes, **params: Any
) -> tuple[str, dict[str, Any]]:
    """(reference, result) of the version that the upload becomes."""
    storage = LocalStorage(settings.storage)
    key = f"uploads/{name}"
    storage.write(key, upload)
    spec = IngestSpec.model_validate(params).model_dump(mode="json")
    inputs = {"name": name, "upload": key, "sha256": "0" * 64, "bytes": len(upload)}
    with database.transaction() as session:
        job_id = add_job(session, "ingest", inputs=inputs, params=spec, max_attempts=1).id
    settings = settings.model_copy(update={"decoding_processes": 0})
    runtime = Runtime(settings, database, storage, cast(Any, None), "test")
    outcome = ingest.run(Context(runtime, Claim(job_id, 1, "ingest", inputs, spec, None), Progress()))
    with database.transaction() as session:
        published = outcome.publish(session)
    return published["dataset"], {**outcome.result, **published}


def pictures(settings: Settings, database: Database, reference: str) -> list[tuple[str, bytes]]:
    """(class, pixels) of every image, sorted: what a round trip must keep."""
    with database.session() as session:
        row = datasets.find(session, reference)
        reader = datasets.reader(LocalStorage(settings.storage), row)
        return sorted(
            (row.classes[told.label], image.tobytes())
            for told, image in zip(reader.each_row(), (i for block in reader.blocks() for i in block), strict=True)
        )
