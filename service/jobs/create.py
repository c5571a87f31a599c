"""Adds a job row in the state every job begins in."""

from __future__ import annotations

import secrets
import time
from typing import Any

from sqlalchemy.orm import Session

from service.db import now
from service.jobs.repository import record
from service.jobs.state import JobState
from service.tables import Job
from service.tenancy import tenant_of


def new_job_id() -> str:
    """32 hex digits that sort by the time of their making: 12 of milliseconds, 20 of chance."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def add_job(
    session: Session,
    kind: str,
    *,
    inputs: dict[str, Any],
    params: dict[str, Any],
    max_attempts: int,
    tenant: str | None = None,
    parent_id: str | None = None,
    request_id: str | None = None,
    idempotency_key: str | None = None,
    payload_digest: str | None = None,
) -> Job:
    """Of the session's tenant, where none is named. The broker is told only once the transaction has committed."""
    job = Job(
        tenant=tenant or tenant_of(session),
        id=new_job_id(),
        type=kind,
        state=JobState.QUEUED,
        inputs=inputs,
        params=params,
        parent_id=parent_id,
        attempt=0,
        max_attempts=max_attempts,
        progress={"done": 0, "total": 0, "unit": "", "phase": None, "fraction": 0.0},
        request_id=request_id,
        idempotency_key=idempotency_key,
        payload_digest=payload_digest,
        created_at=now(),
    )
    session.add(job)
    session.flush()
    record(session, job, "created")
    return job
