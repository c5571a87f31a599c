"""A student's trunk in fewer bits, as ONNX Runtime computes it: int8 for CPUs that multiply bytes, float16 for GPUs.

n images, d features.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor

from models.images import Images, check_images, chunks
from models.onnx_parts import Part, joined

Precision = Literal["float32", "float16", "int8"]

BATCH_SIZE = 64
QUANTISED = ("Conv", "Gemm", "MatMul", "Add", "Relu")
"""The rest, such as the norm of the image, stays as it is."""


class LoweredTrunk:
    """Takes the place of `Classifier.trunk`, so that what is calibrated is what is served. No gradient goes through it.

    Computes on the CPU, whatever device the images are on.
    """

    def __init__(self, graph: bytes) -> None:
        """graph: gives `features` of `images`, and of `masks` where it is a whole served graph."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        wanted = {node.name: node.shape for node in self._session.get_inputs()}
        self._further = {"masks": np.ones((1, wanted["masks"][1]), np.float32)} if "masks" in wanted else {}

    def __call__(self, x_nchw: Tensor) -> Tensor:
        """x: float (n, c, h, w) in [0, 1], of 8 bits. Features float32 (n, d), on its device."""
        pixels = (x_nchw.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        parts = [
            self._session.run(["features"], {"images": pixels[rows], **self._further})[0]
            for rows in chunks(len(pixels), BATCH_SIZE)
        ]
        return torch.from_numpy(np.concatenate(parts)).to(x_nchw.device)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """A session cannot be copied, and never changes."""
        return self


def lowered(trunk: Part, images: Images, precision: Precision) -> Part:
    """The trunk's graph in that precision; its inputs and outputs stay as they are.

    trunk: `images` uint8 (n, h, w, c) to `features` float32 (n, d). images: uint8 (m, h, w, c), m ≥ 1, of training:
    their activations set the scales of int8.
    Raises NotImages. Weights of int8 are signed with a scale for each channel, activations unsigned with one scale. On
    a CPU without instructions for that (VNNI) sums may overflow: a bundle's parity sample shows it where it is loaded.
    """
    check_images(images)
    if precision == "float32":
        return trunk
    with _quiet():
        model = _in_bytes(trunk, images) if precision == "int8" else _in_halves(trunk)
    return Part(model)


def _in_halves(trunk: Part) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(trunk.model)
    converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    return converted


def _in_bytes(trunk: Part, images: Images) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "quantised"))
        plain.write_bytes(joined([trunk], ["images"], ["features"]))
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            _Sample(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(QUANTISED),
        )
        return onnx.load(quantised)


class _Sample(CalibrationDataReader):  # type: ignore[misc] # untyped
    """Batches of images, one after the other."""

    def __init__(self, images: Images) -> None:
        self._batches: Iterator[Images] = (images[rows] for rows in chunks(len(images), BATCH_SIZE))

    def get_next(self) -> dict[str, Images] | None:
        images = next(self._batches, None)
        return None if images is None else {"images": images}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without advice on preparing models, which is done here already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
