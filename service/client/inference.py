"""The Open Inference Protocol's calls about models, as the client makes them; for inference take Triton's client.

Models are named as everywhere, by `name`, `name@version` or `name:alias`; `version` is the protocol's own way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.client.answers import json_object
from service.client.errors import NotWinnow

if TYPE_CHECKING:
    from service.client.connection import Connection


class Inference:
    """`client.inference`: what is served, what is in memory, and how it has done."""

    def __init__(self, client: Connection) -> None:
        self._client = client

    def server(self) -> dict[str, Any]:
        """Its name, version and extensions."""
        return json_object(self._client._send("GET", "/v2"))

    def live(self) -> bool:
        return self._holds("/v2/health/live")

    def ready(self) -> bool:
        """Whether it takes requests; models are loaded on demand."""
        return self._holds("/v2/health/ready")

    def metadata(self, model: str, version: int | None = None) -> dict[str, Any]:
        """Inputs, outputs and versions."""
        return json_object(self._client._send("GET", _path(model, version)))

    def config(self, model: str, version: int | None = None) -> dict[str, Any]:
        return json_object(self._client._send("GET", f"{_path(model, version)}/config"))

    def in_memory(self, model: str, version: int | None = None) -> bool:
        """Raises ProblemError where there is no such model."""
        return self._holds(f"{_path(model, version)}/ready")

    def statistics(self, model: str | None = None, version: int | None = None) -> list[dict[str, Any]]:
        """Of that model's versions, or of every model that was asked."""
        path = "/v2/models/stats" if model is None else f"{_path(model, version)}/stats"
        found: list[dict[str, Any]] = json_object(self._client._send("GET", path))["model_stats"]
        return found

    def index(self, *, in_memory: bool = False) -> list[dict[str, Any]]:
        """Every version of every model, or those in memory."""
        found: list[dict[str, Any]] = self._client._send(
            "POST", "/v2/repository/index", json={"ready": in_memory}
        ).json()
        return found

    def load(self, model: str) -> None:
        """Into memory, now; it is warm, and its parity sample agrees, when this returns."""
        self._client._send("POST", f"/v2/repository/models/{model}/load", json={})

    def unload(self, model: str) -> None:
        """All versions of that name; they are loaded again when they are asked."""
        self._client._send("POST", f"/v2/repository/models/{model}/unload", json={})

    def _holds(self, path: str) -> bool:
        """By the status alone."""
        try:
            self._client._send("GET", path)
        except NotWinnow as error:  # no body says why
            if error.status in (400, 503):
                return False
            raise
        return True


def _path(model: str, version: int | None) -> str:
    return f"/v2/models/{model}" if version is None else f"/v2/models/{model}/versions/{version}"
