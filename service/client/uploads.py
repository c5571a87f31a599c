"""Resumable uploads under way, as the client sees them; `upload_dataset` makes them and goes on with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from service.client.answers import parse
from service.client.records import ResumableUpload
from service.client.resumable import HEADERS

if TYPE_CHECKING:
    from service.client.connection import Connection


class Uploads:
    """`client.uploads`: what has arrived of them, and how to give them up."""

    def __init__(self, client: Connection) -> None:
        self._client = client

    def list(self, *, state: str | None = None) -> Iterator[ResumableUpload]:
        """state: open, finished or expired."""
        return self._client._pages("/v1/uploads", {"state": state}, ResumableUpload)

    def get(self, upload_id: str) -> ResumableUpload:
        return parse(self._client._send("GET", f"/v1/uploads/{upload_id}"), ResumableUpload)

    def end(self, upload_id: str) -> None:
        """Give one up that is not whole: what has arrived of it is deleted."""
        self._client._send("DELETE", f"/v1/uploads/{upload_id}", headers=HEADERS)

    def largest(self) -> int:
        """Bytes that an upload may have."""
        return int(self._client._send("OPTIONS", "/v1/uploads").headers["Tus-Max-Size"])
