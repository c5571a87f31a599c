"""The encoder that a job names, opened from the folder that the operator gave."""

from __future__ import annotations

from typing import Any

from models.encoder import Encoder, UnfitEncoder
from models.watch import Watch
from service.encoders import find
from service.errors import InvalidParams
from service.settings import Settings
from worker.examiner import Images, Scores


class Eye:
    """An encoder whose failures are told to the user."""

    def __init__(self, settings: Settings, name: str, *, sha256: str | None = None) -> None:
        """sha256: of the file that the job began with. Raises InvalidParams where there is none, or another by now."""
        path = find(settings, name)
        try:
            self._encoder = Encoder.read(path)
        except UnfitEncoder as error:
            raise _unfit(error) from error
        if sha256 not in (None, self._encoder.sha256):
            raise InvalidParams(
                f"Encoder {name!r} is not the file that this job began with (sha256 {sha256}, now "
                f"{self._encoder.sha256}). Keep the same file at all workers, and retry the job.",
                code="encoder_changed",
            )

    @property
    def facts(self) -> dict[str, Any]:
        shape = self._encoder.shape
        return {"name": self._encoder.name, "sha256": self._encoder.sha256, "dimension": shape.dimension}

    def encode(self, images: Images, watch: Watch | None = None) -> Scores:
        """(n, d). Raises InvalidParams, Stopped."""
        try:
            return self._encoder.encode(images, watch)
        except UnfitEncoder as error:
            raise _unfit(error) from error


def _unfit(error: UnfitEncoder) -> InvalidParams:
    return InvalidParams(f"{error} Name another, or leave panel.encoder out.", code="encoder_unfit")
