"""Webhooks, as the client sees them; for administrators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from service.client.answers import parse
from service.client.records import Delivery, IssuedWebhook, Webhook

if TYPE_CHECKING:
    from service.client.connection import Connection


class Webhooks:
    """`client.webhooks`: who is told what happened."""

    def __init__(self, client: Connection) -> None:
        self._client = client

    def create(self, url: str, events: Sequence[str] = (), *, description: str = "") -> IssuedWebhook:
        """Tell `url` of these events, or of all. The `secret` is in this answer and nowhere else."""
        body = {"url": url, "events": list(events), "description": description}
        return parse(self._client._send("POST", "/v1/webhooks", json=body), IssuedWebhook)

    def list(self) -> Iterator[Webhook]:
        """Oldest first."""
        return self._client._pages("/v1/webhooks", {}, Webhook)

    def get(self, webhook_id: str) -> Webhook:
        return parse(self._client._send("GET", f"/v1/webhooks/{webhook_id}"), Webhook)

    def change(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Webhook:
        """What is not said stays as it is."""
        wanted = {"url": url, "events": events, "description": description, "enabled": enabled}
        body = {name: value for name, value in wanted.items() if value is not None}
        return parse(self._client._send("PATCH", f"/v1/webhooks/{webhook_id}", json=body), Webhook)

    def rotate(self, webhook_id: str, *, grace_seconds: int | None = None) -> IssuedWebhook:
        """A new `secret`; messages are signed with the old one, too, for `grace_seconds` (a day, where not said)."""
        body = {} if grace_seconds is None else {"grace_seconds": grace_seconds}
        return parse(self._client._send("POST", f"/v1/webhooks/{webhook_id}/rotate", json=body), IssuedWebhook)

    def delete(self, webhook_id: str) -> None:
        self._client._send("DELETE", f"/v1/webhooks/{webhook_id}")

    def test(self, webhook_id: str) -> Delivery:
        """Have a `webhook.test` sent."""
        return parse(self._client._send("POST", f"/v1/webhooks/{webhook_id}/test"), Delivery)

    def deliveries(self, webhook_id: str, *, state: str | None = None) -> Iterator[Delivery]:
        """What was sent in the last 30 days, newest first."""
        return self._client._pages(f"/v1/webhooks/{webhook_id}/deliveries", {"state": state}, Delivery)

    def send_again(self, webhook_id: str, delivery_id: str) -> Delivery:
        path = f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/retry"
        return parse(self._client._send("POST", path), Delivery)
