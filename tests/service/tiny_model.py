"""A served model whose every answer can be worked out by hand: three colours, 8 × 8 pixels, ONNX graphs built in code.

A clean image is mostly of one colour. One that is grey is uncertain; one with strong stripes is perturbed.
"""

from __future__ import annotations

import functools
import io
import secrets
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
from service.registry.bundle import CALIBRATION, CARD, DETECTOR, STUDENT, prefix_of, publish
from service.registry.calibration import McDropout, ServingCalibration
from service.registry.repository import reference_of, register
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


@functools.cache
def student_onnx() -> bytes:
    """Logits are the colours' means, each seen `COPIES` times through the dropout mask."""
    mean_of_colour = np.tile(np.eye(3, dtype=np.float32), COPIES) / (255 * SIDE * SIDE)  # (3, d)
    pixels_to_features = np.tile(mean_of_colour, (SIDE * SIDE, 1))  # (h·w·c, d)
    features_to_logits = SHARPNESS / COPIES * np.tile(np.eye(3, dtype=np.float32), (COPIES, 1))  # (d, 3)
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "to_features"], ["features"]),
        helper.make_node("Unsqueeze", ["features", "first"], ["features_1nd"]),
        helper.make_node("Unsqueeze", ["masks", "second"], ["masks_k1d"]),
        helper.make_node("Mul", ["features_1nd", "masks_k1d"], ["kept"]),
        helper.make_node("MatMul", ["kept", "to_logits"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    constants = {
        "flat": np.array([-1, SIDE * SIDE * 3]),
        "to_features": pixels_to_features.astype(np.float32),
        "to_logits": features_to_logits.astype(np.float32),
        "first": np.array([0]),
        "second": np.array([1]),
    }
    masks = helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["k", MC.feature_dim])
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["k", "n", 3])]
    return _graph(nodes, [masks], outputs, constants)


@functools.cache
def detector_onnx() -> bytes:
    """Scores are the mean absolute difference of neighbouring columns, in levels; the reconstruction is the image."""
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["pixels", "one", "end", "width"], ["right"]),
        helper.make_node("Slice", ["pixels", "zero", "last", "width"], ["left"]),
        helper.make_node("Sub", ["right", "left"], ["step"]),
        helper.make_node("Abs", ["step"], ["size"]),
        helper.make_node("ReduceMean", ["size", "of_image"], ["scores"], keepdims=0),
        helper.make_node("Identity", ["images"], ["reconstruction"]),
    ]
    constants = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "last": np.array([SIDE - 1]),
        "end": np.array([SIDE]),
        "width": np.array([2]),
        "of_image": np.array([1, 2, 3]),
    }
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("reconstruction", TensorProto.UINT8, ["n", *SHAPE]),
    ]
    return _graph(nodes, [], outputs, constants)


def _graph(nodes: list[Any], more_inputs: list[Any], outputs: list[Any], constants: dict[str, NDArray[Any]]) -> bytes:
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", *SHAPE])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", [images, *more_inputs], outputs, initializers)
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


def bundle_files(*, detector: bool = True) -> dict[str, bytes]:
    """All files of a bundle, the worker's own among them."""
    files = {
        STUDENT: student_onnx(),
        CALIBRATION: calibration(detector=detector).to_bytes(),
        CARD: orjson.dumps(card()),
        "student.safetensors": b"weights that serving never reads",
        "teacher.safetensors": b"other weights that serving never reads",
    }
    return {**files, DETECTOR: detector_onnx()} if detector else files


def publish_version(database: Database, storage: Storage, name: str, files: dict[str, bytes] | None = None) -> str:
    """Publish and register the next version of `name`, as a distill job does; returns its reference."""
    with database.transaction() as session:
        job = add_job(session, "distill", inputs={}, params={"note": secrets.token_hex(4)}, max_attempts=1)
        prefix = prefix_of(name, job.id, 1)
        digests = publish(storage, prefix, bundle_files() if files is None else files)
        return reference_of(register(session, name, job_id=job.id, prefix=prefix, files=digests, card=card()))
