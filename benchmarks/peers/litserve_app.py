"""LitServe with the student: an image's pixels as the body, its probabilities as the answer."""

# LitServe looks at annotations themselves, so they must not become text.
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response
from numpy.typing import NDArray

from benchmarks.peers.student import Student, Told

BINARY = "application/octet-stream"


class StudentApi(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002
        self._student = Student(Told.here())

    def decode_request(self, request: Annotated[bytes, Body(media_type=BINARY)]) -> bytes:
        return request

    def predict(self, x: list[bytes]) -> NDArray[np.float32]:
        return self._student.probabilities(x)

    def encode_response(self, output: NDArray[np.float32]) -> Response:
        return Response(output.tobytes(), media_type=BINARY)


if __name__ == "__main__":
    told = Told.here()
    api = StudentApi(max_batch_size=told.batch, batch_timeout=told.wait_ms / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=told.workers)
    server.run(host="127.0.0.1", port=told.port, generate_client_file=False, log_level="warning", access_log=False)
