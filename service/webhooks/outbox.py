"""The outbox: what is to be told is written in the transaction in which it happened: never one without the other."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import now
from service.tables import Job
from service.webhooks.tables import Webhook, WebhookDelivery


class EventType(StrEnum):
    """Everything that can be asked for."""

    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    DATASET_CREATED = "dataset.created"
    MODEL_REGISTERED = "model.registered"


TEST = "webhook.test"  # sent on request, to any webhook


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


def publish(session: Session, tenant: str, event: EventType, data: Mapping[str, Any]) -> None:
    """A delivery for each webhook of the tenant that asks for this event."""
    query = select(Webhook).where(Webhook.tenant == tenant, Webhook.disabled_at.is_(None))
    for webhook in session.scalars(query):
        if not webhook.events or event in webhook.events:
            add_delivery(session, webhook, event, data)


def publish_job(session: Session, job: Job) -> None:
    """Of a job that has just finished."""
    fields = ("id", "type", "state", "inputs", "attempt", "result", "error")
    moments = {name: _text(getattr(job, name)) for name in ("created_at", "started_at", "finished_at")}
    told = {name: getattr(job, name) for name in fields}
    publish(session, job.tenant, EventType(f"job.{job.state}"), {**told, **moments})


def add_delivery(session: Session, webhook: Webhook, event: str, data: Mapping[str, Any]) -> WebhookDelivery:
    present = now()
    body = {"type": event, "timestamp": present.isoformat(), "data": dict(data)}
    delivery = WebhookDelivery(
        id=f"msg_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}",  # sorts by the time of its making
        tenant=webhook.tenant,
        webhook_id=webhook.id,
        event=event,
        payload=orjson.dumps(body).decode(),
        state=DeliveryState.PENDING,
        attempts=0,
        next_at=present,
        log=[],
        created_at=present,
    )
    session.add(delivery)
    return delivery


def _text(moment: Any) -> str | None:
    return None if moment is None else moment.isoformat()
