"""Images as arrays: an npz read by its headers and never unpickled, or a JSON object of nested lists."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import orjson
from numpy.lib import format as npy
from numpy.typing import NDArray

from service.datasets.decode import fit_pixels
from service.datasets.npz import BROKEN
from service.serving.batches import Images
from service.serving.errors import BadImages, BodyTooLarge, TooManyImages

ARRAY = "images"
MAX_JSON_BYTES = 8 * 1024 * 1024  # nested lists take many times their text in memory
HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
ENCRYPTED = 0x1
TO_BYTES = "Convert them to whole numbers from 0 to 255, for example (x * 255).round().astype('uint8')."


@dataclass(frozen=True)
class ArrayLimits:
    """Bounds on an array, checked on its shape before it is read."""

    images: int
    pixels: int  # of one image
    unfolded_bytes: int


class NpzImages:
    """`images` of an npz: uint8 (n, height, width) or (n, height, width, channels), of any size."""

    def __init__(self, body: bytes, shape: tuple[int, int, int], limits: ArrayLimits) -> None:
        """Raises BadImages, TooManyImages or BodyTooLarge; no pixel has been read by then."""
        self._shape = shape
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(body))
        except BROKEN as error:
            raise _damaged(error) from error
        self._member = self._find()
        try:
            with self._archive.open(self._member) as file:
                given, fortran, dtype = _read_header(file)
        except BROKEN as error:
            raise _damaged(error) from error
        if dtype.hasobject:
            raise BadImages(
                f"{ARRAY} holds Python objects, which are never unpickled. {TO_BYTES}", code="pickled_array"
            )
        if dtype != np.uint8:
            raise BadImages(f"{ARRAY} is {dtype}; wanted uint8. {TO_BYTES}", code="images_not_uint8")
        if fortran:
            raise BadImages(
                f"{ARRAY} is in Fortran order. Save it with numpy.ascontiguousarray.", code="bad_image_shape"
            )
        self._given = _checked_shape(given, limits)

    def batches(self, size: int) -> Iterator[Images]:
        count, height, width, channels = self._given
        try:
            with self._archive.open(self._member) as file:
                _read_header(file)
                for start in range(0, count, size):
                    rows = min(size, count - start)
                    pixels = np.frombuffer(_exactly(file, rows * height * width * channels), np.uint8)
                    yield _fitted(pixels.reshape(rows, height, width, channels), self._shape)
                if file.read(1):  # the read that ends the member also checks its CRC
                    raise ValueError("it is longer than its header says")
        except BROKEN as error:
            raise _damaged(error) from error

    def _find(self) -> zipfile.ZipInfo:
        names = [member.filename.removesuffix(".npy") for member in self._archive.infolist()]
        if ARRAY not in names:
            has = ", ".join(sorted(names)[:10]) or "nothing"
            raise BadImages(f"The npz holds no array named {ARRAY}; it holds {has}.", code="missing_array")
        member = self._archive.infolist()[names.index(ARRAY)]
        if member.flag_bits & ENCRYPTED:
            raise BadImages("The npz is encrypted. Send it without a password.", code="damaged_npz")
        return member


class JsonImages:
    """`{"images": [...]}`: whole numbers 0 to 255, nested as (n, height, width) or (n, height, width, channels)."""

    def __init__(self, body: bytes, shape: tuple[int, int, int], limits: ArrayLimits) -> None:
        """Raises BadImages, TooManyImages or BodyTooLarge."""
        if len(body) > MAX_JSON_BYTES:
            raise BodyTooLarge(
                f"The JSON is {len(body)} bytes; at most {MAX_JSON_BYTES} are accepted. "
                "Send an npz, which is smaller and faster."
            )
        values = _json_values(body)
        self._images = values.reshape(_checked_shape(values.shape, limits)).astype(np.uint8)
        self._shape = shape

    def batches(self, size: int) -> Iterator[Images]:
        for start in range(0, len(self._images), size):
            yield _fitted(self._images[start : start + size], self._shape)


def _json_values(body: bytes) -> NDArray[np.integer[Any]]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadImages(
            f"The body looks like JSON and cannot be read as it: {error}.", code="malformed_json"
        ) from error
    if not isinstance(document, dict) or ARRAY not in document:
        raise BadImages(f'The JSON must be an object {{"{ARRAY}": [...]}}.', code="missing_array")
    if unknown := sorted(document.keys() - {ARRAY}):
        raise BadImages(
            f"The JSON has a field {unknown[0]!r}. Send {ARRAY} alone, and parameters such as alpha in the query.",
            code="unknown_field",
        )
    try:
        values = np.asarray(document[ARRAY])
    except ValueError as error:
        raise BadImages(f"{ARRAY} is ragged: its lists differ in length or depth.", code="bad_image_shape") from error
    if values.size and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255):
        raise BadImages(f"{ARRAY} must hold whole numbers from 0 to 255. {TO_BYTES}", code="images_not_uint8")
    return values


def _checked_shape(shape: tuple[int, ...], limits: ArrayLimits) -> tuple[int, int, int, int]:
    """`shape` as (n, height, width, channels)."""
    if 0 in shape or not shape:
        raise BadImages(f"{ARRAY} has shape {shape}: there is no image in it.", code="no_images")
    if len(shape) == 3 and shape[2] in (1, 3):
        raise BadImages(
            f"{ARRAY} has shape {shape}, which looks like one image. Send it as {(1, *shape)}.", code="bad_image_shape"
        )
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise BadImages(
            f"{ARRAY} has shape {shape}; wanted (n, height, width), or (n, height, width, 1 or 3 channels).",
            code="bad_image_shape",
        )
    count, height, width, *rest = shape
    if count > limits.images:
        raise TooManyImages(f"{ARRAY} holds {count} images; at most {limits.images} are accepted at once.")
    if height * width > limits.pixels:
        raise BadImages(
            f"{ARRAY} are of {height}×{width}; at most {limits.pixels} pixels are accepted.", code="image_too_large"
        )
    if math.prod(shape) > limits.unfolded_bytes:
        raise BodyTooLarge(
            f"{ARRAY} unfolds to {math.prod(shape)} bytes; at most {limits.unfolded_bytes} are accepted."
        )
    return count, height, width, rest[0] if rest else 1


def _fitted(images: Images, shape: tuple[int, int, int]) -> Images:
    """Images at the model's size and channels, each by the way it took at ingest; they need none where they are."""
    if images.shape[1:] == shape:
        return images
    side, _, channels = shape
    each = images[..., 0] if images.shape[3] == 1 else images
    return np.stack([fit_pixels(image, size=side, channels=channels) for image in each])


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in HEADER_READERS:
        raise ValueError(f"array format {version} is not read")
    return HEADER_READERS[version](file)


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError("it is shorter than its header says")
    return data


def _damaged(error: Exception) -> BadImages:
    return BadImages(f"The npz is damaged ({error}). Send it again.", code="damaged_npz")
