"""Input tensors of a request: JSON lists or raw bytes, as images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.serving.batches import Images
from service.serving.errors import TooManyImages
from service.serving.protocol.errors import BadTensor

IMAGES = "images"
TYPES: dict[str, type[np.generic]] = {"UINT8": np.uint8, "FP32": np.float32}
MOST_DIMENSIONS = 8


def read_images(tensor: Any, tail: memoryview, *, most: int) -> Images:
    """The tensor `images` as uint8 (n, h, w, c). `tail`: what follows the JSON, all of it this tensor's.

    UINT8 holds 0 to 255. FP32 holds 0 to 1, and is rounded to the 8 bits that the model was trained and calibrated on.
    Raises BadTensor or TooManyImages.
    """
    if not isinstance(tensor, dict) or tensor.get("name") != IMAGES:
        found = tensor.get("name") if isinstance(tensor, dict) else tensor
        raise BadTensor(f"The model has one input, {IMAGES!r}, not {str(found)[:100]!r}.")
    datatype = tensor.get("datatype")
    if datatype not in TYPES:
        raise BadTensor(f"{IMAGES} is {str(datatype)[:100]!r}; wanted UINT8 (0 to 255), or FP32 (0 to 1).")
    shape = _shape(tensor.get("shape"), most)
    size = _binary_size(tensor)
    if size is None:
        if len(tail):
            raise BadTensor(f"{len(tail)} bytes follow the JSON, and no input says that they are its own.")
        values = _from_json(tensor, datatype)
    else:
        values = _from_bytes(tail, size, TYPES[datatype], shape)
    if values.size != math.prod(shape):
        raise BadTensor(f"{IMAGES} has {values.size} values; its shape {list(shape)} needs {math.prod(shape)}.")
    return _eight_bit(values.reshape(shape))


def _shape(given: Any, most: int) -> tuple[int, ...]:
    whole = isinstance(given, list) and all(type(side) is int and side > 0 for side in given)
    if not whole or not 0 < len(given) <= MOST_DIMENSIONS:
        raise BadTensor(f"{IMAGES} has shape {str(given)[:100]}; wanted [images, height, width, channels].")
    if given[0] > most:
        raise TooManyImages(f"The request holds {given[0]} images; at most {most} are accepted at once.")
    return tuple(given)


def _binary_size(tensor: dict[str, Any]) -> int | None:
    parameters = tensor.get("parameters")
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise BadTensor(f"The parameters of {IMAGES} must be an object.")
    if unknown := sorted(parameters.keys() - {"binary_data_size"}):
        raise BadTensor(f"{IMAGES} has a parameter {unknown[0][:100]!r}; it may have binary_data_size.")
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise BadTensor(f"binary_data_size of {IMAGES} must be a number of bytes, not {str(size)[:100]!r}.")
    return size


def _from_bytes(tail: memoryview, size: int, kind: type[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    if size != len(tail):
        raise BadTensor(f"{IMAGES} says it has {size} bytes, and {len(tail)} follow the JSON.")
    wanted = math.prod(shape) * np.dtype(kind).itemsize
    if size != wanted:
        raise BadTensor(f"{IMAGES} has {size} bytes; its shape {list(shape)} needs {wanted}.")
    return np.frombuffer(tail, dtype=np.dtype(kind).newbyteorder("<"))


def _from_json(tensor: dict[str, Any], datatype: str) -> NDArray[np.generic]:
    if not isinstance(data := tensor.get("data"), list):
        raise BadTensor(f"{IMAGES} has neither data as a list nor binary_data_size.")
    try:
        values = np.asarray(data)
    except ValueError as error:
        raise BadTensor(f"{IMAGES} is ragged: its lists differ in length or depth.") from error
    if values.dtype.kind not in ("iu" if datatype == "UINT8" else "iuf"):
        kind = "whole numbers" if datatype == "UINT8" else "numbers"
        raise BadTensor(f"{IMAGES} must hold {kind} as {datatype}.")
    if datatype == "UINT8" and values.size and (values.min() < 0 or values.max() > 255):
        raise BadTensor(f"{IMAGES} must hold whole numbers from 0 to 255 as UINT8.")
    return values.astype(TYPES[datatype])


def _eight_bit(values: NDArray[Any]) -> Images:
    if values.dtype == np.uint8:
        return values
    if not (values.min() >= 0 and values.max() <= 1):  # so NaN is refused as well
        raise BadTensor(f"{IMAGES} must hold numbers from 0 to 1 as FP32; send pixels of 0 to 255 as UINT8.")
    return np.rint(values * np.float32(255)).astype(np.uint8)
