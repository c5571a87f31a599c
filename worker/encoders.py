"""The encoder that a job names, opened from the folder that the operator gave."""

from __future__ import annotations

from typing import Any

import structlog

from models.device import pick_device
from models.encoder import Encoder, UnfitEncoder
from models.onnx_runtime import CUDA
from models.watch import Watch
from service.encoders import find
from service.errors import InvalidParams
from service.settings import Settings
from worker.context import StorageCheckpoints
from worker.examiner import Images, Scores

CHECKPOINT = "encoder"

log = structlog.get_logger()


class Eye:
    """An encoder whose failures are told to the user."""

    def __init__(self, settings: Settings, name: str, *, sha256: str | None = None) -> None:
        """sha256: of the file that the job began with. Raises InvalidParams where there is none, or another by now."""
        path = find(settings, name)
        try:
            self._encoder = Encoder(path.read_bytes(), name=name)
        except OSError as error:
            raise _unfit(f"Encoder {name} cannot be read by this worker ({error.strerror}).") from error
        except UnfitEncoder as error:
            raise _unfit(str(error)) from error
        if sha256 not in (None, self._encoder.sha256):
            raise InvalidParams(
                f"Encoder {name!r} is not the file that this job began with (sha256 {sha256}, here "
                f"{self._encoder.sha256}). Put that one back at all workers and retry the job, or ask for a new job.",
                code="encoder_changed",
            )
        if pick_device().type == "cuda" and self._encoder.provider != CUDA:
            log.warning("the encoder came up on the CPU", encoder=name, provider=self._encoder.provider)

    @classmethod
    def of_job(cls, settings: Settings, checkpoints: StorageCheckpoints, name: str, shape: tuple[int, int, int]) -> Eye:
        """The one that the job's first attempt opened; it has been seen to look at images of this shape."""
        known = checkpoints.load(CHECKPOINT)
        eye = cls(settings, name, sha256=known.decode() if known else None)
        try:
            eye._encoder.check(shape)
        except UnfitEncoder as error:
            raise _unfit(str(error)) from error
        if known is None:
            checkpoints.save(CHECKPOINT, eye._encoder.sha256.encode())
        return eye

    @property
    def facts(self) -> dict[str, Any]:
        """What finds it again, and what it is."""
        encoder = self._encoder
        return {"name": encoder.name, "sha256": encoder.sha256, "dimension": encoder.shape.dimension}

    def encode(self, images: Images, watch: Watch | None = None) -> Scores:
        """(n, d). Raises InvalidParams, MemoryError, Stopped."""
        try:
            return self._encoder.encode(images, watch)
        except UnfitEncoder as error:
            raise _unfit(str(error)) from error


def _unfit(why: str) -> InvalidParams:
    return InvalidParams(f"{why} Name another, or leave panel.encoder out.", code="encoder_unfit")
