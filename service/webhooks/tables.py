"""The tables of webhooks and of what is sent to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.tables import Owned, Table


class Webhook(Owned, Table):
    """Whom to tell what happened. Its secrets are kept as they are: each message is signed with them."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    url: Mapped[str] = mapped_column(String(2000))
    events: Mapped[list[Any]]  # empty: all
    description: Mapped[str] = mapped_column(String(200))
    secret: Mapped[str] = mapped_column(String(80))
    old_secret: Mapped[str | None] = mapped_column(String(80))
    old_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    failing_since: Mapped[datetime | None]  # first failure since the last success
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None] = mapped_column(String(200))

    __table_args__ = (Index("ix_webhooks_tenant_id", "tenant", "id"),)


class WebhookDelivery(Owned, Table):
    """A message to a webhook, written together with what it tells of. `attempts` fences, as that of jobs."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    event: Mapped[str] = mapped_column(String(32))
    payload: Mapped[str] = mapped_column(Text)  # JSON, as it is signed
    state: Mapped[str] = mapped_column(String(16))  # pending, delivered, failed
    attempts: Mapped[int] = mapped_column(default=0)
    retries_from: Mapped[int] = mapped_column(default=0, server_default="0")  # attempts before it was asked for again
    next_at: Mapped[datetime | None]
    taken_until: Mapped[datetime | None]
    log: Mapped[list[Any]]  # of every attempt: when, what was answered, what went wrong
    created_at: Mapped[datetime]

    __table_args__ = (
        Index("ix_webhook_deliveries_state_next", "state", "next_at"),
        Index("ix_webhook_deliveries_webhook_id", "webhook_id", "id"),
    )
