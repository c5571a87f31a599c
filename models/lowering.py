"""A student's trunk in fewer bits, as ONNX Runtime computes it: int8 for CPUs that multiply bytes, float16 for GPUs.

n images, d features.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
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
from torch import Tensor

from models.images import Images, check_images, chunks
from models.onnx_parts import Part, joined

_PATH = list(sys.path)
from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: E402 - it puts its own folder on the path

sys.path[:] = _PATH

Precision = Literal["float32", "float16", "int8"]

BATCH_SIZE = 64
QUANTISED = ("Conv", "Gemm", "MatMul", "Add", "Relu")
"""The rest, such as the norm of the image, stays as it is."""


class LoweredTrunk:
    """Takes the place of `Classifier.trunk`, so that what is calibrated is what is served. No gradient goes through it.

    Computes on the CPU, whatever device the images are on.
    """

    def __init__(self, part: Part) -> None:
        """part: from `images` to `features`; what it gives besides is left out."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = joined([part], ["images"], ["features"])
        self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    @classmethod
    def of_graph(cls, graph: bytes) -> Self:
        """Of a bundle's served graph."""
        return cls(Part(onnx.load_from_string(graph)))

    def __call__(self, x_nchw: Tensor) -> Tensor:
        """x: float (n, c, h, w) in [0, 1], of 8 bits. Features float32 (n, d), on its device."""
        pixels = (x_nchw.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        parts = [
            self._session.run(["features"], {"images": pixels[rows]})[0] for rows in chunks(len(pixels), BATCH_SIZE)
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
    """Without the quantiser's advice on preparing models, which it gives to the root logger, and which is done here."""
    root, here = logging.getLogger(), threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != here or record.levelno >= logging.ERROR

    root.addFilter(of_others)  # of a logger: for what is told to it and to no logger under it
    try:
        yield
    finally:
        root.removeFilter(of_others)
