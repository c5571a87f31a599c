"""Webhooks over HTTP: made, changed, rotated, tried, and the log of their deliveries; for administrators."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from starlette.responses import Response

from service.api.access import MayAdminister, actor_of
from service.api.datasets import Limit
from service.api.paging import page_of
from service.api.routes import Route
from service.api.schemas import Page
from service.audit import Action, append
from service.webhooks import repository as webhooks
from service.webhooks.addresses import LONGEST_URL, Target
from service.webhooks.outbox import TEST, DeliveryState, EventType, add_delivery
from service.webhooks.tables import Webhook, WebhookDelivery

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=Route)

DAY_SECONDS = 86_400
Description = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
HOST = r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])"
REST = r"(?::[0-9]{1,5})?(?:[/?](?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
Url = Annotated[str, Field(max_length=LONGEST_URL, pattern=f"^https?://{HOST}{REST}$")]


class WebhookIn(BaseModel):
    """Whom to tell, and of what."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"url": "https://ci.example/winnow", "events": ["job.succeeded", "job.failed"]}]
        },
    )

    url: Url
    events: list[EventType] = Field(default_factory=list, description="none: all of them, also those to come")
    description: Description = ""


class WebhookChange(BaseModel):
    """What is to be otherwise; the rest stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"enabled": True}]})

    url: Url | None = None
    events: list[EventType] | None = None
    description: Description | None = None
    enabled: bool | None = Field(None, description="true also takes up again what was disabled for its failures")


class RotationIn(BaseModel):
    """How long messages are signed with the present secret beside the new one."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"grace_seconds": 86400}]})

    grace_seconds: Annotated[int, Field(ge=0, le=30 * DAY_SECONDS, strict=True)] = DAY_SECONDS


class WebhookOut(BaseModel):
    """A webhook without its secret."""

    id: str
    url: str
    events: list[EventType] = Field(description="empty: all")
    description: str
    created_at: datetime
    old_until: datetime | None = Field(description="until when messages are signed with the secret from before, too")
    failing_since: datetime | None = Field(description="the first failure since the last success")
    disabled_at: datetime | None
    disabled_reason: str | None

    @classmethod
    def of(cls, row: Webhook) -> Self:
        return cls(**{name: getattr(row, name) for name in cls.model_fields if name != "secret"})


class IssuedWebhookOut(WebhookOut):
    """A webhook with its secret, which no other answer holds."""

    secret: str = Field("", description="`whsec_` and 32 bytes in base64: what messages are signed with")

    @classmethod
    def issued(cls, row: Webhook, response: Response) -> Self:
        response.headers["Cache-Control"] = "no-store"
        return cls.of(row).model_copy(update={"secret": row.secret})


class AttemptOut(BaseModel):
    attempt: int
    at: datetime
    status: int | None = Field(description="what the receiver answered, where it did")
    error: str | None
    took_ms: int


class DeliveryOut(BaseModel):
    """A message, and what became of it. `id` is its `webhook-id`."""

    id: str
    webhook_id: str
    event: str
    state: DeliveryState
    attempts: int
    next_at: datetime | None = Field(description="when it is tried next")
    created_at: datetime
    log: list[AttemptOut]
    payload: str = Field(description="the body, byte for byte as it is signed")

    @classmethod
    def of(cls, row: WebhookDelivery) -> Self:
        return cls(**{name: getattr(row, name) for name in cls.model_fields})


@router.post("", status_code=201, response_model=IssuedWebhookOut, summary="Make a webhook; its secret is shown once")
def create(request: Request, response: Response, body: WebhookIn, _key: MayAdminister) -> IssuedWebhookOut:
    Target.parse(body.url, allow_private=request.app.state.settings.webhooks_allow_private)
    with request.state.database.transaction() as session:
        webhook = webhooks.create(session, body.url, body.events, body.description)
        append(session, actor_of(request), Action.WEBHOOK_CREATED, webhook.id, host=_host(webhook))
    return IssuedWebhookOut.issued(webhook, response)


@router.get("", response_model=Page[WebhookOut], summary="List webhooks, oldest first")
def list_webhooks(
    request: Request, _key: MayAdminister, cursor: str | None = None, limit: Limit = 100
) -> Page[WebhookOut]:
    with request.state.database.session() as session:
        return page_of(session, select(Webhook), Webhook.id, WebhookOut.of, cursor=cursor, limit=limit)


@router.get("/{webhook_id}", response_model=WebhookOut, summary="One webhook")
def get_webhook(request: Request, webhook_id: str, _key: MayAdminister) -> WebhookOut:
    with request.state.database.session() as session:
        return WebhookOut.of(webhooks.find(session, webhook_id))


@router.patch("/{webhook_id}", response_model=WebhookOut, summary="Change, disable or enable a webhook")
def change(request: Request, webhook_id: str, body: WebhookChange, _key: MayAdminister) -> WebhookOut:
    if body.url is not None:
        Target.parse(body.url, allow_private=request.app.state.settings.webhooks_allow_private)
    wanted: dict[str, Any] = body.model_dump(exclude_none=True, exclude={"events", "enabled"})
    if body.events is not None:
        wanted["events"] = webhooks.in_order(body.events)
    with request.state.database.transaction() as session:
        webhook = webhooks.find(session, webhook_id)
        for name, value in wanted.items():
            setattr(webhook, name, value)
        if body.enabled is True:
            webhooks.enable(webhook)
        elif body.enabled is False:
            webhooks.disable(session, webhook, "disabled by request")
        changed = sorted(body.model_dump(exclude_none=True))
        append(session, actor_of(request), Action.WEBHOOK_CHANGED, webhook.id, host=_host(webhook), changed=changed)
        return WebhookOut.of(webhook)


@router.delete("/{webhook_id}", status_code=204, summary="Delete a webhook, with the log of its deliveries")
def remove(request: Request, webhook_id: str, _key: MayAdminister) -> None:
    with request.state.database.transaction() as session:
        webhook = webhooks.find(session, webhook_id)
        webhooks.remove(session, webhook)
        append(session, actor_of(request), Action.WEBHOOK_REMOVED, webhook.id, host=_host(webhook))


@router.post("/{webhook_id}/rotate", response_model=IssuedWebhookOut, summary="Give a webhook a new secret")
def rotate(
    request: Request, response: Response, webhook_id: str, _key: MayAdminister, body: RotationIn | None = None
) -> IssuedWebhookOut:
    """Messages carry a signature by each for `grace_seconds` (a day, where not said)."""
    grace = timedelta(seconds=(body or RotationIn()).grace_seconds)
    with request.state.database.transaction() as session:
        webhook = webhooks.find(session, webhook_id)
        webhooks.rotate(webhook, grace=grace)
        told = {"host": _host(webhook), "grace_seconds": grace.total_seconds()}
        append(session, actor_of(request), Action.WEBHOOK_ROTATED, webhook.id, **told)
    return IssuedWebhookOut.issued(webhook, response)


@router.post("/{webhook_id}/test", status_code=202, response_model=DeliveryOut, summary="Send a `webhook.test`")
def test(request: Request, webhook_id: str, _key: MayAdminister) -> DeliveryOut:
    with request.state.database.transaction() as session:
        delivery = add_delivery(session, webhooks.enabled(session, webhook_id), TEST, {"webhook": webhook_id})
        return DeliveryOut.of(delivery)


@router.get("/{webhook_id}/deliveries", response_model=Page[DeliveryOut], summary="What was sent, newest first")
def deliveries(
    request: Request,
    webhook_id: str,
    _key: MayAdminister,
    state: DeliveryState | None = None,
    cursor: str | None = None,
    limit: Limit = 100,
) -> Page[DeliveryOut]:
    """Kept for 30 days."""
    query, by = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id), WebhookDelivery.id
    if state is not None:
        query = query.where(WebhookDelivery.state == state)
    with request.state.database.session() as session:
        webhooks.find(session, webhook_id)
        return page_of(session, query, by, DeliveryOut.of, cursor=cursor, limit=limit, newest_first=True)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/retry",
    status_code=202,
    response_model=DeliveryOut,
    summary="Send a message again, under the same id",
)
def send_again(request: Request, webhook_id: str, delivery_id: str, _key: MayAdminister) -> DeliveryOut:
    with request.state.database.transaction() as session:
        webhooks.enabled(session, webhook_id)
        delivery = webhooks.find_delivery(session, webhook_id, delivery_id)
        webhooks.send_again(delivery)
        return DeliveryOut.of(delivery)


def _host(webhook: Webhook) -> str:
    """For the audit log: the rest of a URL may be secret."""
    return Target.parse(webhook.url, allow_private=True).host
