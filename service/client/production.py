"""What a served model meets, as the client sees it: drift of its traffic, and the images it abstained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.client.answers import parse
from service.client.records import Wire

if TYPE_CHECKING:
    from service.client.connection import Connection


class DriftState(Wire):
    """Of one gateway. `alarm` stays until the watch begins anew; `p_value`: how odd the traffic ever looked."""

    model: str
    alarm: bool
    alarmed_at: str | None = None
    since: str | None = None
    images: int
    skipped: int = 0
    rate: float
    p_value: float
    calibration_images: int | None = None
    bins: Sequence[Mapping[str, Any]] = ()


class Captured(Wire):
    """An image that a model abstained on; `segment` and `index` name it."""

    segment: str
    index: int
    model: str
    at: str
    label: str  # the likeliest class, which was not answered
    reason: str
    p_value: float


class Drift:
    """`client.drift`: does live traffic look like what a version was calibrated on?"""

    def __init__(self, client: Connection) -> None:
        self._client = client

    def get(self, reference: str) -> DriftState:
        return parse(self._client._send("GET", f"/v1/models/{reference}/drift"), DriftState)

    def reset(self, reference: str) -> DriftState:
        """Begin the watch anew, once somebody has looked into an alarm."""
        return parse(self._client._send("DELETE", f"/v1/models/{reference}/drift"), DriftState)


class Captures:
    """`client.captures`: sampled images that a model abstained on."""

    def __init__(self, client: Connection) -> None:
        self._client = client

    def list(self, name: str) -> Iterator[Captured]:
        """Newest first."""
        return self._client._pages(f"/v1/models/{name}/captures", {}, Captured)

    def image(self, name: str, captured: Captured) -> bytes:
        """As PNG."""
        path = f"/v1/models/{name}/captures/{captured.segment}/{captured.index}/image"
        return self._client._send("GET", path).content

    def export(self, name: str, to: str | PathLike[str], *, most: int | None = None) -> Path:
        """The newest as an npz that can be uploaded; its labels are what the model would have said."""
        return self._client._saved(f"/v1/models/{name}/captures/export", {} if most is None else {"most": most}, to)

    def clear(self, name: str) -> None:
        """Delete all of them."""
        self._client._send("DELETE", f"/v1/models/{name}/captures")
