"""The outbox as whoever delivers sees it: what is due, who takes it, what came of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import CursorResult, delete, or_, select, update
from sqlalchemy.orm import Session

from service.db import Database, now
from service.webhooks.outbox import DeliveryState
from service.webhooks.repository import disable, secrets_in_force
from service.webhooks.sending import Outcome
from service.webhooks.tables import Webhook, WebhookDelivery

RETRY_SECONDS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""After the first, second … failure: over three days in all. From Standard Webhooks' own example."""

DISABLED_AFTER = timedelta(days=5)  # of failures and no success
KEPT = timedelta(days=30)  # deliveries in the log
GONE = 410


@dataclass(frozen=True)
class Taken:
    """A delivery that nobody else attempts meanwhile."""

    id: str
    attempt: int
    url: str
    payload: str
    secrets: list[str]


def due(session: Session, *, limit: int) -> list[str]:
    present = now()
    free = or_(WebhookDelivery.taken_until.is_(None), WebhookDelivery.taken_until < present)
    wanted = WebhookDelivery.state == DeliveryState.PENDING, WebhookDelivery.next_at <= present, free
    query = select(WebhookDelivery.id).where(*wanted).order_by(WebhookDelivery.next_at).limit(limit)
    return list(session.scalars(query))


def take(database: Database, ids: list[str], *, for_seconds: float) -> list[Taken]:
    """Those of them that nobody was faster to take."""
    taken = []
    present = now()
    until = present + timedelta(seconds=for_seconds)
    with database.transaction() as session:
        for delivery_id in ids:
            delivery = session.get(WebhookDelivery, delivery_id)
            if delivery is None:  # deleted with its webhook
                continue
            mine = WebhookDelivery.id == delivery_id, WebhookDelivery.attempts == delivery.attempts
            free = or_(WebhookDelivery.taken_until.is_(None), WebhookDelivery.taken_until < present)
            statement = update(WebhookDelivery).where(*mine, free, WebhookDelivery.state == DeliveryState.PENDING)
            changed = session.execute(statement.values(taken_until=until, attempts=delivery.attempts + 1))
            if isinstance(changed, CursorResult) and changed.rowcount == 1:
                session.refresh(delivery)
                webhook = session.get_one(Webhook, delivery.webhook_id)
                keys = secrets_in_force(webhook, present)
                taken.append(Taken(delivery.id, delivery.attempts, webhook.url, delivery.payload, keys))
    return taken


def settle(
    database: Database, taken: Taken, outcome: Outcome, *, took_ms: int, retry_seconds: tuple[float, ...]
) -> None:
    """Note what came of an attempt, and when the next one is. One that lost its turn notes nothing."""
    present = now()
    with database.transaction() as session:
        delivery = session.get(WebhookDelivery, taken.id, with_for_update=True)
        if delivery is None or delivery.attempts != taken.attempt or delivery.state != DeliveryState.PENDING:
            return
        webhook = session.get_one(Webhook, delivery.webhook_id, with_for_update=True)
        told = {"attempt": taken.attempt, "at": present.isoformat(), "status": outcome.status, "error": outcome.error}
        delivery.log = [*delivery.log, {**told, "took_ms": took_ms}]
        delivery.taken_until = None
        if outcome.delivered:
            delivery.state, delivery.next_at, webhook.failing_since = DeliveryState.DELIVERED, None, None
            return
        webhook.failing_since = webhook.failing_since or present
        _plan(delivery, present, retry_seconds)
        if outcome.status == GONE:
            disable(session, webhook, "it answered 410 Gone")
        elif present - webhook.failing_since > DISABLED_AFTER:
            disable(session, webhook, f"every delivery since {webhook.failing_since:%Y-%m-%d} failed")


def _plan(delivery: WebhookDelivery, present: datetime, retry_seconds: tuple[float, ...]) -> None:
    failures = delivery.attempts - delivery.retries_from
    if failures > len(retry_seconds):
        delivery.state, delivery.next_at = DeliveryState.FAILED, None
    else:
        spread = random.uniform(1.0, 1.1)  # noqa: S311 - so that what failed together does not come back together
        delivery.next_at = present + timedelta(seconds=retry_seconds[failures - 1] * spread)


def forget_old(database: Database) -> None:
    """Drop what was settled long ago."""
    settled = WebhookDelivery.state != DeliveryState.PENDING, WebhookDelivery.created_at < now() - KEPT
    with database.transaction() as session:
        session.execute(delete(WebhookDelivery).where(*settled))
