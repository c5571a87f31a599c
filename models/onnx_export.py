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
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from models.classifiers import Classifier
from models.classifiers.residual import Residual
from models.images import chunks, to_float

ImageShape = tuple[int, int, int]
"""Height, width, channels."""

Arrays = dict[str, npt.NDArray[Any]]


BATCH_SIZE = 64


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


class _Answering(nn.Module):
    """Detector, reformer and student as one graph, one trunk pass and k heads: images uint8 (n, h, w, c), masks (k, d).

    Of the k passes only what is said of each image leaves the graph: the means of p and of −p log p.
    """

    def __init__(self, student: Classifier, detector: nn.Module | None, *, reform: bool) -> None:
        super().__init__()
        self.student, self.detector, self.reform = student, detector, reform

    def forward(self, images_nhwc: Tensor, masks_kd: Tensor) -> tuple[Tensor, ...]:
        scores: list[Tensor] = []
        seen = images_nhwc
        if self.detector is not None:
            score, reconstruction = self.detector(images_nhwc)
            scores = [score, reconstruction] if self.reform else [score]
            seen = reconstruction if self.reform else images_nhwc
        features = self.student.trunk(to_float(seen))
        return *_head(self.student, features, masks_kd), features, *scores


class _Head(nn.Module):
    """The dropout heads alone: features (n, d), masks (k, d)."""

    def __init__(self, student: Classifier) -> None:
        super().__init__()
        self.student = student

    def forward(self, features_nd: Tensor, masks_kd: Tensor) -> tuple[Tensor, ...]:
        return _head(self.student, features_nd, masks_kd)


class _Strided(nn.Module):
    """A residual block whose shortcut strides by its convolution: without the slices, a tenth of a student's time."""

    def __init__(self, block: Residual) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_nchw: Tensor) -> Tensor:
        block, shortcut = self.block, self.block.shortcut
        if not isinstance(shortcut, nn.Conv2d):
            strided = x_nchw
        else:
            strided = F.conv2d(x_nchw, shortcut.weight, shortcut.bias, stride=block.stride)
        return F.relu(block.second(F.relu(block.first(x_nchw))) + strided)


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


def export_served(
    student: Classifier, detector: Detector | None, image_shape: ImageShape, *, reform: bool = False
) -> bytes:
    """What serving runs, in one graph: `images` uint8 (n, h, w, c), `masks` float32 (k, d), n and k free, T = 1.

    Gives `mean_probabilities` and `class_entropy` (n, classes), the means over the passes of p and of −p log p; each of
    the student's own scores (n,) by its name; `features` (n, d) before dropout; with a detector `scores` (n,). With
    `reform` the student sees the detector's reconstruction, uint8 (n, h, w, c), which is an output too. All others are
    float32.
    Raises ValueError where reform is asked for without a detector.
    """
    if reform and detector is None:
        raise ValueError("only a detector's autoencoder can reform images")
    module = _Answering(student, None if detector is None else detector.as_module(), reform=reform)
    outputs = [*_head_outputs(student), "features", *([] if detector is None else ["scores"])]
    masks, free = torch.ones(2, student.feature_dim), ({0: Dim("n")}, {0: Dim("k")})
    names = [*outputs, "reconstruction"] if reform else outputs
    return _export(module, (_example(image_shape), masks), free, ["images", "masks"], names)


def export_head(student: Classifier) -> bytes:
    """`features` (n, d), `masks` (k, d) to `mean_probabilities`, `class_entropy` and the student's scores."""
    features, masks = torch.ones(3, student.feature_dim), torch.ones(2, student.feature_dim)
    free = ({0: Dim("n")}, {0: Dim("k")})
    return _export(
        _Head(student), (features, masks), free, ["features", "masks"], ["mean_probabilities", "class_entropy"]
    )


def check_parity(onnx: bytes, inputs: Arrays, expected: Arrays, *, atol: float) -> float:
    """Run the graph on the CPU and compare its outputs with what torch computed, in full float32.

    Returns the largest |difference| / max(1, |expected|) over floating outputs. Whole numbers, which are rounded
    pixels, may differ by one where a value lies on the edge between two, and are not in the result.
    Raises ParityError over `atol`, where shapes differ, and where either side is not finite.
    """
    largest = 0.0
    for name, got in zip(expected, _session(onnx).run(list(expected), inputs), strict=True):
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


def run_graph(onnx: bytes, inputs: Arrays, outputs: list[str]) -> Arrays:
    """Outputs (n, …) for `images` (n, h, w, c), on the CPU and a batch at a time; the other inputs go with each."""
    session, images = _session(onnx), inputs["images"]
    parts = [session.run(outputs, {**inputs, "images": images[rows]}) for rows in chunks(len(images), BATCH_SIZE)]
    return {name: np.concatenate(column) for name, column in zip(outputs, zip(*parts, strict=True), strict=True)}


def _session(onnx: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def _head(student: Classifier, features_nd: Tensor, masks_kd: Tensor) -> tuple[Tensor, ...]:
    """Means over the passes of p and of −p log p, both (n, c), and the student's own scores, (n,) each.

    The classes are left to be summed up outside: where a row lies in memory decides how ONNX Runtime sums it.
    """
    logits = student.head(features_nd, masks_kd)
    logs, probabilities = logits.log_softmax(dim=-1), logits.softmax(dim=-1)
    scores = student.scores(features_nd).unbind(dim=1)
    return probabilities.mean(dim=0), -(probabilities * logs).mean(dim=0), *scores


def _head_outputs(student: Classifier) -> list[str]:
    return ["mean_probabilities", "class_entropy", *student.score_names]


def _as_served(module: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU, its residual blocks in the form that ONNX Runtime is quicker at."""
    copied = copy.deepcopy(module).cpu().eval()
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Residual) and not isinstance(parent, _Strided):
                setattr(parent, name, _Strided(child))
    return copied


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
            _as_served(module),
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
