"""Keys and the audit log, as the client sees them; for administrators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from service.client.answers import parse
from service.client.records import AuditEntry, IssuedKey, Key, Verification

if TYPE_CHECKING:
    from service.client.connection import Connection


class Keys:
    """`client.keys`: who may call, and what."""

    def __init__(self, client: Connection) -> None:
        self._client = client

    def create(self, name: str, scopes: Sequence[str], *, expires_at: datetime | None = None) -> IssuedKey:
        """A new key. Its `secret` is in this answer and nowhere else. `expires_at` carries its zone."""
        body = {"name": name, "scopes": list(scopes), "expires_at": expires_at and expires_at.isoformat()}
        return parse(self._client._send("POST", "/v1/keys", json=body), IssuedKey)

    def list(self) -> Iterator[Key]:
        """Every key there is or was, oldest first."""
        return self._client._pages("/v1/keys", {}, Key)

    def revoke(self, key_id: str) -> Key:
        return parse(self._client._send("DELETE", f"/v1/keys/{key_id}"), Key)

    def rotate(self, key_id: str, *, grace_seconds: int | None = None) -> IssuedKey:
        """A new `secret`; the old one counts for `grace_seconds` longer (an hour, where not said)."""
        body = {} if grace_seconds is None else {"grace_seconds": grace_seconds}
        return parse(self._client._send("POST", f"/v1/keys/{key_id}/rotate", json=body), IssuedKey)


class Audit:
    """`client.audit`: who changed what."""

    def __init__(self, client: Connection) -> None:
        self._client = client

    def entries(self, *, action: str | None = None) -> Iterator[AuditEntry]:
        """Newest first, page by page as they are asked for."""
        return self._client._pages("/v1/audit", {"action": action}, AuditEntry)

    def verify(self, *, expect: str | None = None) -> Verification:
        """Have the whole log checked. expect: a head noted before, SEQ:HASH."""
        query = {} if expect is None else {"expect": expect}
        return parse(self._client._send("GET", "/v1/audit/verify", params=query), Verification)
