"""Bundles of model versions as files, as the client sees them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.client.connection import Connection


class Bundles:
    """`client.bundles`: a version as one file, to keep or to bring to another service."""

    def __init__(self, client: Connection) -> None:
        self._client = client

    def export(self, reference: str, to: str | PathLike[str]) -> Path:
        """Save a version's bundle; `to` holds the whole of it or is not touched."""
        return self._client._saved(f"/v1/models/{reference}/export", {}, to)

    def bring(self, name: str, bundle: str | PathLike[str]) -> str:
        """Make a bundle that was exported the next version of `name`; gives its reference, name@version."""
        answer = self._client._send("POST", f"/v1/models/{name}/versions", content=Path(bundle).read_bytes())
        reference: str = answer.json()["model"]
        return reference
