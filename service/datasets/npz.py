"""Reads an npz of images and labels. Headers are checked before arrays are read, and nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from service.datasets.decode import ImageRejected, fit_pixels
from service.datasets.imagefolder import check_member
from service.datasets.sample import Layout, Limits, Sample
from service.errors import InvalidUpload, TooLarge

IMAGE_KEYS = ("images", "x", "x_train")
LABEL_KEYS = ("labels", "y", "y_train")
GROUP_KEYS = ("groups",)
MAX_CLASSES = 10_000
# What zipfile, zlib and numpy raise on a damaged or hostile npz.
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, SyntaxError)


@dataclass(frozen=True)
class ArrayHeader:
    """What the head of a .npy member says."""

    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def looks_like_npz(archive: zipfile.ZipFile) -> bool:
    """True where every member is a .npy at the root."""
    names = [member.filename for member in archive.infolist()]
    return bool(names) and all(name.endswith(".npy") and "/" not in name for name in names)


class NpzUpload:
    """`images` (n, h, w) or (n, h, w, c) uint8, `labels` (n,) integers, optionally `groups` (n,)."""

    source_format = "npz"

    def __init__(self, archive: zipfile.ZipFile, limits: Limits) -> None:
        self._archive = archive
        self._images = self._header(IMAGE_KEYS, "images")
        self._check_images(limits)
        self.num_samples = self._images.shape[0]
        labels = self._column(LABEL_KEYS, "labels")
        values, self._labels = np.unique(labels, return_inverse=True)
        if len(values) > MAX_CLASSES:
            raise InvalidUpload(
                f"labels holds {len(values)} different values; at most {MAX_CLASSES} classes are accepted."
            )
        self.classes = [str(value) for value in values]
        self._groups = self._column(GROUP_KEYS, "groups") if self._find(GROUP_KEYS) else None

    def layout(self) -> Layout:
        _, height, width, channels = self._shape4()
        return Layout((width, height), channels == 1)

    def samples(self) -> Iterator[Sample]:
        _, height, width, channels = self._shape4()
        image_bytes = height * width * channels
        with self._archive.open(self._images.member) as file:
            _read_header(file)
            for index in range(self.num_samples):
                data = _read_exactly(file, image_bytes)
                pixels = np.frombuffer(data, np.uint8).reshape(height, width, channels)
                group = None if self._groups is None else str(self._groups[index])
                yield Sample(f"{self._images.member.filename}[{index}]", int(self._labels[index]), pixels, group)

    def pixels(self, sample: Sample, *, size: int, channels: int) -> NDArray[np.uint8]:
        if isinstance(sample.data, bytes):
            raise TypeError("an npz gives pixels")
        image = sample.data[:, :, 0] if sample.data.shape[2] == 1 else sample.data
        try:
            return fit_pixels(image, size=size, channels=channels)
        except (ValueError, OSError) as error:
            raise ImageRejected(f"its pixels cannot be resized ({error})") from error

    def _shape4(self) -> tuple[int, int, int, int]:
        n, height, width, *rest = self._images.shape
        return n, height, width, rest[0] if rest else 1

    def _find(self, keys: tuple[str, ...]) -> zipfile.ZipInfo | None:
        by_name = {member.filename: member for member in self._archive.infolist()}
        return next((by_name[f"{key}.npy"] for key in keys if f"{key}.npy" in by_name), None)

    def _header(self, keys: tuple[str, ...], what: str) -> ArrayHeader:
        member = self._find(keys)
        if member is None:
            names = sorted(member.filename.removesuffix(".npy") for member in self._archive.infolist())
            raise InvalidUpload(
                f"The npz holds no {what}: it needs an array named {' or '.join(keys)}, and has {', '.join(names)}.",
                code="missing_array",
            )
        check_member(member)
        try:
            with self._archive.open(member) as file:
                shape, fortran, dtype = _read_header(file)
        except BROKEN as error:
            raise InvalidUpload(f"{member.filename} in the npz is damaged ({error}).", code="broken_archive") from error
        if dtype.hasobject:
            raise InvalidUpload(
                f"{member.filename} holds Python objects, which are never unpickled. Save plain numbers.",
                code="pickled_array",
            )
        if fortran and len(shape) > 1:
            raise InvalidUpload(f"{member.filename} is in Fortran order. Save it with numpy.ascontiguousarray.")
        return ArrayHeader(member, shape, dtype)

    def _check_images(self, limits: Limits) -> None:
        shape, dtype, name = self._images.shape, self._images.dtype, self._images.member.filename
        if dtype != np.uint8:
            raise InvalidUpload(
                f"{name} is {dtype}; images must be uint8, 0 to 255. "
                "Convert them, for example (x * 255).round().astype('uint8').",
                code="images_not_uint8",
            )
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise InvalidUpload(
                f"{name} has shape {shape}; "
                "wanted (n, height, width) or (n, height, width, channels) with 1 or 3 channels.",
                code="bad_image_shape",
            )
        if min(shape) < 1:
            raise InvalidUpload(f"{name} has shape {shape}: there is no image in it.", code="no_images")
        if shape[1] * shape[2] > limits.max_image_pixels:
            raise TooLarge(
                f"{name} has images of {shape[1]}×{shape[2]}; at most {limits.max_image_pixels} pixels are accepted."
            )
        if shape[0] > limits.max_images or math.prod(shape) > limits.max_unpacked_bytes:
            raise TooLarge(
                f"{name} unfolds to {math.prod(shape)} bytes in {shape[0]} images: split it into several data sets."
            )

    def _column(self, keys: tuple[str, ...], what: str) -> NDArray[Any]:
        """A one-dimensional array, one integer (or short string, for groups) an image."""
        header = self._header(keys, what)
        shape = (header.shape[0],) if len(header.shape) == 2 and header.shape[1] == 1 else header.shape
        if shape != (self.num_samples,):
            raise InvalidUpload(
                f"{header.member.filename} has shape {header.shape}, but there are {self.num_samples} "
                "images: one value an image is needed.",
                code="labels_do_not_match",
            )
        if header.dtype.kind not in "iu" and not (what == "groups" and header.dtype.kind in "US"):
            raise InvalidUpload(
                f"{header.member.filename} is {header.dtype}; {what} must be integers.", code="labels_not_integers"
            )
        try:
            with self._archive.open(header.member) as file:
                _read_header(file)
                data = _read_exactly(file, math.prod(shape) * header.dtype.itemsize)
        except BROKEN as error:
            raise InvalidUpload(
                f"{header.member.filename} in the npz is damaged ({error}).", code="broken_archive"
            ) from error
        return np.frombuffer(data, header.dtype)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file)
    return npy.read_array_header_2_0(file)


def _read_exactly(file: IO[bytes], count: int) -> bytes:
    try:
        data = file.read(count)
    except BROKEN as error:
        raise InvalidUpload(f"The npz is damaged ({error}). Upload it again.", code="broken_archive") from error
    if len(data) != count:
        raise InvalidUpload(
            "An array in the npz is shorter than its header says. Upload it again.", code="broken_archive"
        )
    return data
