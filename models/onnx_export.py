"""A student's graphs as ONNX bytes that take uint8 images, and the check that a graph computes what torch does."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn

from models.classifiers import Classifier
from models.images import chunks, to_float
from models.onnx_parts import Network, Part, joined, trace

ImageShape = tuple[int, int, int]
"""Height, width, channels."""

Arrays = dict[str, npt.NDArray[Any]]

BATCH_SIZE = 64
SUMMARY = ("mean_probabilities", "class_entropy")
"""Of the passes: the means of p and of −p log p, both (n, classes)."""


class ParityError(ArithmeticError):
    """The exported graph does not compute what the network does."""


class Detector(Protocol):
    """What `export_detector` needs of a filter."""

    def as_module(self) -> nn.Module:
        """Its forward takes images uint8 (n, h, w, c), gives scores float32 (n,) and reconstructions uint8."""


class _Trunk(nn.Module):
    """Images uint8 (n, h, w, c) to features (n, d) before dropout."""

    def __init__(self, student: Classifier) -> None:
        super().__init__()
        self.student = student

    def forward(self, images_nhwc: Tensor) -> Tensor:
        return self.student.trunk(to_float(images_nhwc))


class _Head(nn.Module):
    """Features (n, d), masks (k, d) to the passes' probabilities (k, n, c) at T = 1, their summary, the own scores.

    The classes are left to be summed up outside: where a row lies in memory decides how ONNX Runtime sums it.
    """

    def __init__(self, student: Classifier) -> None:
        super().__init__()
        self.student = student

    def forward(self, features_nd: Tensor, masks_kd: Tensor) -> tuple[Tensor, ...]:
        logits = self.student.head(features_nd, masks_kd)
        logs, probabilities = logits.log_softmax(dim=-1), logits.softmax(dim=-1)
        scores = self.student.scores(features_nd).unbind(dim=1)
        return probabilities, probabilities.mean(dim=0), -(probabilities * logs).mean(dim=0), *scores


class StudentGraphs:
    """The ONNX graphs of one student and, where there is one, the detector before it. Both stay as they are.

    Images are uint8 (n, h, w, c), masks float32 (k, d) with n and k free, T = 1; all outputs are float32 but for
    reconstructions. Masks are inputs because ONNX Runtime removes Dropout nodes.
    """

    def __init__(
        self, student: Classifier, detector: Detector | None, image_shape: ImageShape, *, trunk: Part | None = None
    ) -> None:
        """trunk: in the place of the student's own, as from `models.lowering`."""
        self._student, self._detector, self._image_shape = student, detector, image_shape
        self._trunk_given = trunk

    @cached_property
    def student(self) -> bytes:
        """The plain network: `images`, `masks` to `probabilities` (k, n, classes)."""
        return joined([self._trunk, self._head], ["images", "masks"], ["probabilities"])

    @cached_property
    def head(self) -> bytes:
        """`features` (n, d) and `masks` to `mean_probabilities`, `class_entropy` and the student's own scores."""
        return joined([self._head], ["features", "masks"], self._summary)

    @cached_property
    def served(self) -> bytes:
        """What serving runs: `images`, `masks` to what `head` gives, `features` and, with a detector, `scores` (n,)."""
        judged = [] if self._detector is None else [self._filter]
        outputs = [*self._summary, "features", *(["scores"] if judged else [])]
        return joined([*judged, self._trunk, self._head], ["images", "masks"], outputs)

    @cached_property
    def reformed(self) -> bytes:
        """As `served`, but the student sees `reconstruction`, uint8 (n, h, w, c), which is an output too.

        Raises ValueError without a detector.
        """
        outputs = [*self._summary, "features", "scores", "reconstruction"]
        parts = [self._filter, self._trunk.under(images="reconstruction"), self._head]
        return joined(parts, ["images", "masks"], outputs)

    @cached_property
    def detector(self) -> bytes:
        """As `export_detector`. Raises ValueError without a detector."""
        return joined([self._filter], ["images"], ["scores", "reconstruction"])

    @property
    def _summary(self) -> list[str]:
        return [*SUMMARY, *self._student.score_names]

    @cached_property
    def _traced(self) -> dict[str, Part]:
        width = self._student.feature_dim
        features = {"features": (torch.ones(3, width), "n"), "masks": (torch.ones(2, width), "k")}
        networks = {"head": Network(_Head(self._student), features, ["probabilities", *self._summary])}
        if self._trunk_given is None:
            networks["trunk"] = _trunk(self._student, self._image_shape)
        if self._detector is not None:
            networks["filter"] = _filter(self._detector, self._image_shape)
        return trace(networks)

    @property
    def _trunk(self) -> Part:
        return self._traced["trunk"] if self._trunk_given is None else self._trunk_given

    @property
    def _head(self) -> Part:
        return self._traced["head"]

    @property
    def _filter(self) -> Part:
        if self._detector is None:
            raise ValueError("only a detector's autoencoder can reform images")
        return self._traced["filter"]


def export_detector(detector: Detector, image_shape: ImageShape) -> bytes:
    """ONNX graph from `images` uint8 (n, h, w, c) to `scores` float32 (n,) and `reconstruction` uint8 (n, h, w, c)."""
    part = trace({"filter": _filter(detector, image_shape)})["filter"]
    return joined([part], ["images"], ["scores", "reconstruction"])


def trace_trunk(student: Classifier, image_shape: ImageShape) -> Part:
    """From `images` uint8 (n, h, w, c) to `features` float32 (n, d), before dropout."""
    return trace({"trunk": _trunk(student, image_shape)})["trunk"]


def _trunk(student: Classifier, image_shape: ImageShape) -> Network:
    return Network(_Trunk(student), {"images": (_example(image_shape), "n")}, ["features"])


def _filter(detector: Detector, image_shape: ImageShape) -> Network:
    return Network(detector.as_module(), {"images": (_example(image_shape), "n")}, ["scores", "reconstruction"])


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


def _example(image_shape: ImageShape) -> Tensor:
    return torch.zeros(3, *image_shape, dtype=torch.uint8)
