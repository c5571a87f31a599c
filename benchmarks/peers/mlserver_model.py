"""MLServer with the student as a runtime of its own, for there is none for ONNX: `python -m …`, settings and all."""

from __future__ import annotations

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlserver import MLModel
from mlserver.cli import main
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.peers.student import Student, Told


class StudentModel(MLModel):
    async def load(self) -> bool:
        told = Told.here()
        self._student, self._pool = Student(told), ThreadPoolExecutor(told.calls)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One input of n elements of type BYTES, and one such output: an image's pixels, its probabilities."""
        images = payload.inputs[0].data.root
        found = await asyncio.get_running_loop().run_in_executor(self._pool, self._student.probabilities, images)
        told = [row.tobytes() for row in found]
        output = ResponseOutput(name="probabilities", shape=[len(told), 1], datatype="BYTES", data=told)
        return InferenceResponse(model_name=self.name, outputs=[output])


def write_settings(told: Told) -> None:
    """What costs time and changes no answer is off: access log, compression, metrics. One worker is no process."""
    server = {
        "debug": False,
        "gzip_enabled": False,
        "metrics_endpoint": None,
        "host": "127.0.0.1",
        "http_port": 0,
        "grpc_port": told.port,
        "parallel_workers": told.workers if told.workers > 1 else 0,
    }
    model = {
        "name": "student",
        "implementation": "benchmarks.peers.mlserver_model.StudentModel",
        "max_batch_size": told.batch,
        "max_batch_time": told.wait_ms / 1000,
    }
    folder = Path(told.folder)
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))


if __name__ == "__main__":
    write_settings(Told.here())
    sys.argv = ["mlserver", "start", Told.here().folder]
    main()
