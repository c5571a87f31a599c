"""What the protocol tells of server and model: metadata, and the configuration that Triton's clients ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.serving.protocol.outputs import DEFAULT, OUTPUTS, Output
from service.serving.protocol.tensors import IMAGES

SERVER = "winnow"
PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
BATCH = -1  # any number of images


def server_metadata(version: str) -> dict[str, Any]:
    return {"name": SERVER, "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(name: str, versions: Sequence[int], card: dict[str, Any]) -> dict[str, Any]:
    """The outputs are those of a request that names none; `more_outputs` are given to those that ask."""
    classes = len(card["classes"])
    more = [output for output in OUTPUTS.values() if output.name not in DEFAULT]
    return {
        "name": name,
        "versions": [str(version) for version in versions],
        "platform": PLATFORM,
        "inputs": [{"name": IMAGES, "datatype": "UINT8", "shape": [BATCH, *card["image_shape"]]}],
        "outputs": [_told(OUTPUTS[output], classes) for output in DEFAULT],
        "parameters": {"more_outputs": [_told(output, classes) for output in more], "classes": card["classes"]},
    }


def model_config(name: str, card: dict[str, Any], *, largest: int) -> dict[str, Any]:
    """As Triton tells it; shapes are of one image. largest: images in one request."""
    classes = len(card["classes"])
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": largest,
        "input": [{"name": IMAGES, "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": card["image_shape"]}],
        "output": [
            {
                "name": output.name,
                "data_type": "TYPE_STRING" if output.datatype == "BYTES" else f"TYPE_{output.datatype}",
                "dims": [classes] if output.per_class else [1],
            }
            for output in OUTPUTS.values()
        ],
    }


def _told(output: Output, classes: int) -> dict[str, Any]:
    shape = [BATCH, classes] if output.per_class else [BATCH]
    return {"name": output.name, "datatype": output.datatype, "shape": shape}
