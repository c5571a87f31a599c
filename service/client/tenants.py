"""Tenants, as the client sees them: for operators; and what one's own may have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from service.client.answers import parse
from service.client.records import IssuedKey, Wire

if TYPE_CHECKING:
    from service.client.connection import Connection


class Tenant(Wire):
    """`quotas` has what was set for it, and differs from the service's settings."""

    name: str
    created_at: str
    quotas: Mapping[str, int | None]


class Usage(Wire):
    """What a tenant may have (None: no limit), and has."""

    tenant: str
    limits: Mapping[str, int | None]
    used: Mapping[str, int]


class Tenants:
    """`client.tenants`: who has data of his own, and how much."""

    def __init__(self, client: Connection) -> None:
        self._client = client

    def create(self, name: str, quotas: Mapping[str, int | None] | None = None) -> Tenant:
        """A tenant without keys. quotas: `bytes`, `images`, `queued_jobs`, `running_jobs`; None for no limit."""
        body = {"name": name, "quotas": dict(quotas or {})}
        return parse(self._client._send("POST", "/v1/tenants", json=body), Tenant)

    def list(self) -> Iterator[Tenant]:
        return self._client._pages("/v1/tenants", {}, Tenant)

    def usage(self, name: str | None = None) -> Usage:
        """Of that tenant, else of the key's own."""
        path = "/v1/usage" if name is None else f"/v1/tenants/{name}"
        return parse(self._client._send("GET", path), Usage)

    def set_quotas(self, name: str, quotas: Mapping[str, int | None]) -> Tenant:
        """All of them anew: what is not named is as the service's settings say."""
        return parse(self._client._send("PUT", f"/v1/tenants/{name}/quotas", json=dict(quotas)), Tenant)

    def create_key(self, name: str, key_name: str, scopes: Sequence[str]) -> IssuedKey:
        """A key of that tenant. Its `secret` is in this answer and nowhere else."""
        body = {"name": key_name, "scopes": [*scopes]}
        return parse(self._client._send("POST", f"/v1/tenants/{name}/keys", json=body), IssuedKey)
