"""BentoML with the student: an image's pixels as the body, its probabilities as the answer, both by descriptors of
their own, for those that BentoML brings cost it more."""

from __future__ import annotations

from typing import Any

import bentoml
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.student import Student, Told

told = Told.here()


class Pixels(bentoml.IODescriptor):
    images: Any

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Pixels:  # noqa: ARG003
        return cls.model_construct(images=np.frombuffer(await request.body(), np.uint8).reshape(1, -1))


class Probabilities(bentoml.IODescriptor):
    @classmethod
    async def to_http_response(cls, obj: NDArray[np.float32], serde: object) -> Response:  # noqa: ARG003
        return Response(obj.tobytes(), media_type="application/octet-stream")


@bentoml.service(
    workers=told.workers,
    http={"host": "127.0.0.1", "port": told.port},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class StudentService:
    def __init__(self) -> None:
        self._student = Student(told)

    @bentoml.api(
        batchable=True,
        max_batch_size=told.batch,
        max_latency_ms=told.wait_ms,
        input_spec=Pixels,
        output_spec=Probabilities,
    )
    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._student.probabilities([images.tobytes()])
