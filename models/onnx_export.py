"""Networks to ONNX bytes that take uint8 images, and the check that a graph computes what torch does."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from models.classifiers import Classifier
from models.images import to_float

ImageShape = tuple[int, int, int]
"""Height, width, channels."""

Arrays = dict[str, npt.NDArray[Any]]


class ParityError(ArithmeticError):
    """The exported graph does not compute what the network does."""


class Detector(Protocol):
    """What `export_detector` needs of a filter."""

    def as_module(self) -> nn.Module:
        """Its forward takes images uint8 (n, h, w, c), gives scores float32 (n,) and reconstructions uint8."""


class _Served(nn.Module):
    """A student as it is served: images uint8 (n, h, w, c), masks (k, d) to probabilities (k, n, classes) at T = 1."""

    def __init__(self, student: Classifier) -> None:
        super().__init__()
        self.student = student

    def forward(self, images_nhwc: Tensor, masks_kd: Tensor) -> Tensor:
        features = self.student.trunk(to_float(images_nhwc))
        return self.student.head(features, masks_kd).softmax(dim=-1)


def export_student(student: Classifier, image_shape: ImageShape) -> bytes:
    """ONNX graph: `images` uint8 (n, h, w, c), `masks` float32 (k, d) to `probabilities` float32 (k, n, classes).

    n and k are free; T = 1. Masks are inputs because ONNX Runtime removes Dropout nodes. The student stays as it is.
    """
    masks = torch.ones(2, student.feature_dim)
    free = ({0: Dim("n")}, {0: Dim("k")})
    return _export(_Served(student), (_example(image_shape), masks), free, ["images", "masks"], ["probabilities"])


def export_detector(detector: Detector, image_shape: ImageShape) -> bytes:
    """ONNX graph from `images` uint8 (n, h, w, c) to `scores` float32 (n,) and `reconstruction` uint8 (n, h, w, c)."""
    module, free = detector.as_module(), ({0: Dim("n")},)
    return _export(module, (_example(image_shape),), free, ["images"], ["scores", "reconstruction"])


def check_parity(onnx: bytes, inputs: Arrays, expected: Arrays, *, atol: float) -> float:
    """Run the graph on the CPU and compare its outputs with what torch computed, in full float32.

    Returns the largest |difference| / max(1, |expected|) over floating outputs. Whole numbers, which are rounded
    pixels, may differ by one where a value lies on the edge between two, and are not in the result.
    Raises ParityError over `atol`, where shapes differ, and where either side is not finite.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    names = list(expected)
    largest = 0.0
    for name, got in zip(names, session.run(names, inputs), strict=True):
        if got.shape != expected[name].shape:
            raise ParityError(f"{name}: ONNX gives shape {got.shape}, torch {expected[name].shape}")
        wanted = expected[name].astype(np.float64)
        difference = np.max(np.abs(got - wanted) / np.maximum(1, np.abs(wanted)), initial=0.0)
        if np.issubdtype(got.dtype, np.integer):
            difference, allowed = np.max(np.abs(got - wanted), initial=0.0), 1.0
        else:
            allowed, largest = atol, max(largest, float(difference))
        if not difference <= allowed:  # also where it is not a number
            raise ParityError(f"{name}: ONNX and torch differ by {difference:.3g}, over {allowed:g}")
    return largest


def _example(image_shape: ImageShape) -> Tensor:
    return torch.zeros(3, *image_shape, dtype=torch.uint8)


def _export(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    free: tuple[dict[int, Dim], ...],
    inputs: list[str],
    outputs: list[str],
) -> bytes:
    with _quiet():
        program = torch.onnx.export(
            copy.deepcopy(module).cpu().eval(),
            examples,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=free,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    graph = program.model.graph
    for part in (program.model, graph, *graph.inputs, *graph):
        part.metadata_props.clear()  # stack traces, which name folders of this machine
    data: bytes = program.model_proto.SerializeToString()
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on operators of packages that are not installed and its use of old interfaces."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
