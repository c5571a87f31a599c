"""A served model whose every answer can be worked out by hand: three colours, 8 × 8 pixels, ONNX graphs built in code.

A clean image is mostly of one colour. One that is grey is uncertain; one with strong stripes is perturbed.
"""

from __future__ import annotations

import functools
import io
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import orjson
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from models.abstention import calibrate_abstention
from service.db import Database
from service.jobs.create import add_job
from service.registry.bundle import (
    CALIBRATION,
    CARD,
    DETECTOR,
    HEAD,
    HELD_OUT,
    PARITY,
    REFORMED,
    SERVED,
    STUDENT,
    prefix_of,
    publish,
)
from service.registry.calibration import McDropout, ServingCalibration
from service.registry.repository import reference_of, register
from service.registry.samples import HeldOut, Parity
from service.storage import Storage

Images = NDArray[np.uint8]

SIDE = 8
SHAPE = (SIDE, SIDE, 3)
CLASSES = ("red", "green", "blue")
ALPHA = 0.05
COPIES = 8  # of each colour's mean among the features, so that dropout seldom loses a colour
MC = McDropout(passes=16, dropout=0.5, seed=3, feature_dim=3 * COPIES)
SHARPNESS = 12.0
CALIBRATION_IMAGES = 400


def clean_images(count: int, seed: int) -> tuple[Images, NDArray[np.int64]]:
    """Images (n, 8, 8, 3) and labels; how strong the colour is varies, and so does the noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    level = np.full((count, 1, 1, 3), 60.0)
    level[np.arange(count), 0, 0, labels] += rng.uniform(60, 160, count)
    noise = rng.normal(0, 1, (count, *SHAPE)) * rng.uniform(2, 8, (count, 1, 1, 1))
    images: Images = np.clip(level + noise, 0, 255).astype(np.uint8)
    return images, labels


def grey_images(count: int) -> Images:
    return np.stack([np.full(SHAPE, 90 + index, np.uint8) for index in range(count)])


def striped_images(count: int, seed: int) -> Images:
    """Clean images with every other column 40 levels brighter."""
    images = clean_images(count, seed)[0].astype(int)
    images[:, :, ::2] += 40
    striped: Images = np.clip(images, 0, 255).astype(np.uint8)
    return striped


def npz_of(images: Images) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images)
    return buffer.getvalue()


def png_of(image: Images) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


TRUNK = (
    ("Cast", ["images"], "pixels", {"to": TensorProto.FLOAT}),
    ("Reshape", ["pixels", "flat"], "rows", {}),
    ("MatMul", ["rows", "to_features"], "features", {}),
)
HEADS = (
    ("Unsqueeze", ["features", "first"], "features_1nd", {}),
    ("Unsqueeze", ["masks", "second"], "masks_k1d", {}),
    ("Mul", ["features_1nd", "masks_k1d"], "kept", {}),
    ("MatMul", ["kept", "to_logits"], "logits", {}),
    ("Softmax", ["logits"], "probabilities", {"axis": -1}),
)
SUMMARY = (
    ("LogSoftmax", ["logits"], "logs", {"axis": -1}),
    ("Mul", ["probabilities", "logs"], "parts", {}),
    ("ReduceMean", ["probabilities", "passes"], "mean_probabilities", {"keepdims": 0}),
    ("ReduceMean", ["parts", "passes"], "mean_parts", {"keepdims": 0}),
    ("Neg", ["mean_parts"], "class_entropy", {}),
)
SCORES = (
    ("Cast", ["images"], "levels", {"to": TensorProto.FLOAT}),
    ("Slice", ["levels", "one", "end", "width"], "right", {}),
    ("Slice", ["levels", "zero", "last", "width"], "left", {}),
    ("Sub", ["right", "left"], "step", {}),
    ("Abs", ["step"], "size", {}),
    ("ReduceMean", ["size", "of_image"], "scores", {"keepdims": 0}),
)
DIMMED = 150  # the reformer: no pixel brighter than that
REFORM = (
    ("Min", ["levels", "dimmed"], "dim", {}),
    ("Cast", ["dim"], "reconstruction", {"to": TensorProto.UINT8}),
)


@functools.cache
def student_onnx() -> bytes:
    """Logits are the colours' means, each seen `COPIES` times through the dropout mask."""
    return _graph((*TRUNK, *HEADS), ["images", "masks"], ["probabilities"])


@functools.cache
def detector_onnx() -> bytes:
    """Scores are the mean absolute difference of neighbouring columns, in levels."""
    return _graph((*SCORES, *REFORM), ["images"], ["scores", "reconstruction"])


@functools.cache
def served_onnx(*, detector: bool = True) -> bytes:
    nodes = (*TRUNK, *HEADS, *SUMMARY, *(SCORES if detector else ()))
    outputs = ["mean_probabilities", "class_entropy", "features", *(["scores"] if detector else [])]
    return _graph(nodes, ["images", "masks"], outputs)


@functools.cache
def reformed_onnx() -> bytes:
    (_, _, name, to_float), *rest = TRUNK
    trunk = (("Cast", ["reconstruction"], name, to_float), *rest)
    outputs = ["mean_probabilities", "class_entropy", "features", "scores", "reconstruction"]
    return _graph((*SCORES, *REFORM, *trunk, *HEADS, *SUMMARY), ["images", "masks"], outputs)


@functools.cache
def head_onnx() -> bytes:
    return _graph((*HEADS, *SUMMARY), ["features", "masks"], ["mean_probabilities", "class_entropy"])


def _constants() -> dict[str, NDArray[Any]]:
    mean_of_colour = np.tile(np.eye(3, dtype=np.float32), COPIES) / (255 * SIDE * SIDE)  # (3, d)
    return {
        "flat": np.array([-1, SIDE * SIDE * 3]),
        "to_features": np.tile(mean_of_colour, (SIDE * SIDE, 1)).astype(np.float32),  # (h·w·c, d)
        "to_logits": (SHARPNESS / COPIES * np.tile(np.eye(3), (COPIES, 1))).astype(np.float32),  # (d, 3)
        "first": np.array([0]),
        "second": np.array([1]),
        "passes": np.array([0]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "last": np.array([SIDE - 1]),
        "end": np.array([SIDE]),
        "width": np.array([2]),
        "of_image": np.array([1, 2, 3]),
        "dimmed": np.array(DIMMED, np.float32),
    }


def _graph(nodes: Sequence[tuple[str, list[str], str, dict[str, Any]]], inputs: list[str], outputs: list[str]) -> bytes:
    values = {
        "images": (TensorProto.UINT8, ["n", *SHAPE]),
        "masks": (TensorProto.FLOAT, ["k", MC.feature_dim]),
        "features": (TensorProto.FLOAT, ["n", MC.feature_dim]),
        "probabilities": (TensorProto.FLOAT, ["k", "n", 3]),
        "mean_probabilities": (TensorProto.FLOAT, ["n", 3]),
        "class_entropy": (TensorProto.FLOAT, ["n", 3]),
        "scores": (TensorProto.FLOAT, ["n"]),
        "reconstruction": (TensorProto.UINT8, ["n", *SHAPE]),
    }
    used = {name for _, names, _, _ in nodes for name in names}
    initializers = [numpy_helper.from_array(value, name) for name, value in _constants().items() if name in used]
    graph = helper.make_graph(
        [helper.make_node(op, names, [output], **attributes) for op, names, output, attributes in nodes],
        "tiny",
        [helper.make_tensor_value_info(name, *values[name]) for name in inputs],
        [helper.make_tensor_value_info(name, *values[name]) for name in outputs],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def probabilities_by_hand(images: Images) -> NDArray[np.float64]:
    """What the student must answer, (k, n, 3), computed without ONNX."""
    colours = images.astype(np.float64).mean(axis=(1, 2)) / 255
    features = np.tile(colours, COPIES)
    kept = features[None] * MC.masks()[:, None]
    logits = SHARPNESS / COPIES * kept.reshape(MC.passes, len(images), COPIES, 3).sum(axis=2)
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = exp / exp.sum(axis=-1, keepdims=True)
    return probabilities


def scores_by_hand(images: Images) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = np.abs(np.diff(images.astype(np.float64), axis=2)).mean(axis=(1, 2, 3))
    return scores


@functools.cache
def calibration(*, detector: bool = True) -> ServingCalibration:
    images, labels = clean_images(CALIBRATION_IMAGES, seed=1)
    scores = scores_by_hand(images) if detector else None
    return ServingCalibration(calibrate_abstention(probabilities_by_hand(images), labels, scores, seed=5), MC, ALPHA)


def card() -> dict[str, Any]:
    return {"classes": list(CLASSES), "image_shape": list(SHAPE), "metrics": {"accuracy": 1.0}}


def summary_by_hand(images: Images) -> dict[str, NDArray[np.float32]]:
    probabilities = probabilities_by_hand(images)
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-30)))
    means = {"mean_probabilities": probabilities.mean(axis=0), "class_entropy": entropy.mean(axis=0)}
    return {name: values.astype(np.float32) for name, values in means.items()}


def features_by_hand(images: Images) -> NDArray[np.float32]:
    return np.tile(images.astype(np.float64).mean(axis=(1, 2)) / 255, COPIES).astype(np.float32)


@functools.cache
def samples(*, detector: bool = True) -> dict[str, bytes]:
    """The parity sample and the calibration images, as a distill job keeps them."""
    images, labels = clean_images(CALIBRATION_IMAGES, seed=1)
    scores = scores_by_hand(images).astype(np.float32) if detector else None
    reformed = features_by_hand(np.minimum(images, DIMMED)) if detector else None
    few = images[:4]
    parity = Parity(images=few, scores=None if scores is None else scores[:4], **summary_by_hand(few))
    held = HeldOut(features=features_by_hand(images), labels=labels, reformed=reformed, scores=scores)
    return {PARITY: parity.to_bytes(), HELD_OUT: held.to_bytes()}


def bundle_files(*, detector: bool = True) -> dict[str, bytes]:
    """All files of a bundle, the worker's own among them."""
    files = {
        SERVED: served_onnx(detector=detector),
        HEAD: head_onnx(),
        **samples(detector=detector),
        STUDENT: student_onnx(),
        CALIBRATION: calibration(detector=detector).to_bytes(),
        CARD: orjson.dumps(card()),
        "student.safetensors": b"weights that serving never reads",
        "teacher.safetensors": b"other weights that serving never reads",
    }
    return {**files, DETECTOR: detector_onnx(), REFORMED: reformed_onnx()} if detector else files


def publish_version(database: Database, storage: Storage, name: str, files: dict[str, bytes] | None = None) -> str:
    """Publish and register the next version of `name`, as a distill job does; returns its reference."""
    with database.transaction() as session:
        job = add_job(session, "distill", inputs={}, params={"note": secrets.token_hex(4)}, max_attempts=1)
        prefix = prefix_of(name, job.id, 1)
        digests = publish(storage, prefix, bundle_files() if files is None else files)
        return reference_of(register(session, name, job_id=job.id, prefix=prefix, files=digests, card=card()))
