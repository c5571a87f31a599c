"""Webhooks in the database: who is told, of what, under which secret."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.db import now
from service.errors import Conflict, NotFound
from service.tenancy import tenant_of
from service.webhooks.outbox import DeliveryState, EventType
from service.webhooks.signing import new_secret
from service.webhooks.tables import Webhook, WebhookDelivery

MOST = 50  # webhooks of one tenant


def create(session: Session, url: str, events: Iterable[EventType], description: str) -> Webhook:
    """Raises Conflict where the tenant has as many as it may."""
    count = session.scalar(select(func.count()).select_from(Webhook)) or 0
    if count >= MOST:
        raise Conflict(f"There are {count} webhooks, and at most {MOST} can be. Delete one.", code="too_many_webhooks")
    webhook = Webhook(
        id=f"wh_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(4)}",
        tenant=tenant_of(session),
        url=url,
        events=in_order(events),
        description=description,
        secret=new_secret(),
        created_at=now(),
    )
    session.add(webhook)
    session.flush()
    return webhook


def in_order(events: Iterable[EventType]) -> list[str]:
    wanted = set(events)
    return [event.value for event in EventType if event in wanted]


def find(session: Session, webhook_id: str) -> Webhook:
    webhook = session.get(Webhook, webhook_id)
    if webhook is None:
        raise NotFound(f"There is no webhook {webhook_id}. GET /v1/webhooks lists them.", code="webhook_not_found")
    return webhook


def enabled(session: Session, webhook_id: str) -> Webhook:
    """Raises NotFound, or Conflict where nothing is sent to it."""
    webhook = find(session, webhook_id)
    if webhook.disabled_at is not None:
        raise Conflict(
            f"Webhook {webhook.id} is disabled: {webhook.disabled_reason}. Enable it first "
            f'(PATCH /v1/webhooks/{webhook.id} {{"enabled": true}}).',
            code="webhook_disabled",
        )
    return webhook


def rotate(webhook: Webhook, *, grace: timedelta) -> None:
    """A new secret; messages are signed with the present one, too, for `grace` longer."""
    webhook.old_secret, webhook.old_until = webhook.secret, now() + grace
    webhook.secret = new_secret()


def secrets_in_force(webhook: Webhook, present: datetime) -> list[str]:
    """The newest first."""
    old = webhook.old_secret
    in_grace = old is not None and webhook.old_until is not None and webhook.old_until > present
    return [webhook.secret, old] if in_grace and old is not None else [webhook.secret]


def enable(webhook: Webhook) -> None:
    webhook.disabled_at = webhook.disabled_reason = webhook.failing_since = None


def disable(session: Session, webhook: Webhook, reason: str) -> None:
    """Nothing more is sent to it, nor what waits."""
    webhook.disabled_at, webhook.disabled_reason = now(), reason
    waiting = WebhookDelivery.webhook_id == webhook.id, WebhookDelivery.state == DeliveryState.PENDING
    for delivery in session.scalars(select(WebhookDelivery).where(*waiting)):
        delivery.state, delivery.next_at = DeliveryState.FAILED, None


def remove(session: Session, webhook: Webhook) -> None:
    """With the log of its deliveries."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook.id))
    session.delete(webhook)


def find_delivery(session: Session, webhook_id: str, delivery_id: str) -> WebhookDelivery:
    delivery = session.get(WebhookDelivery, delivery_id)
    if delivery is None or delivery.webhook_id != webhook_id:
        raise NotFound(f"Webhook {webhook_id} has no delivery {delivery_id}.", code="delivery_not_found")
    return delivery


def send_again(delivery: WebhookDelivery) -> None:
    """Under the same id, so that a receiver that had it knows."""
    delivery.state, delivery.next_at, delivery.taken_until = DeliveryState.PENDING, now(), None
    delivery.retries_from = delivery.attempts
