"""Reads an npz of images and labels. Headers are checked before arrays are read, and nothing is unpickled."""

from __future__ import annotations

import math
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from service.datasets import pixels
from service.datasets.labelling import MAX_CLASSES
from service.datasets.layouts import SPLITS, no_such_split
from service.datasets.members import printable
from service.datasets.sample import Layout, Limits, Sample
from service.datasets.unpack import FREE_BYTES, MAX_STREAM_RATIO
from service.errors import InvalidUpload, TooLarge

PARTS = {  # split: names of (images, labels, groups)
    "train": (("images", "x", "x_train"), ("labels", "y", "y_train"), ("groups", "groups_train")),
    "test": (("x_test",), ("y_test",), ("groups_test",)),
}
CLASS_KEYS = ("classes", "class_names")
MAX_NAME_CHARS = 1024
# What zipfile, zlib and numpy raise on a damaged or hostile npz.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    AssertionError,
    MemoryError,
    RuntimeError,
    SyntaxError,
)
MAX_COLUMN_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True)
class ArrayHeader:
    """What the head of a .npy member says."""

    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one split, with their labels."""

    images: ArrayHeader
    shape: tuple[int, int, int, int]
    labels: NDArray[Any]
    groups: NDArray[Any] | None


def looks_like_npz(names: list[str]) -> bool:
    """True where every member is a .npy at the root."""
    return bool(names) and all(name.endswith(".npy") and "/" not in name for name in names)


class NpzUpload:
    """`images` (n, h, w) or (n, h, w, c) uint8, `labels` (n,) integers, optionally `groups` (n,) and `classes` (k,)."""

    source_format = "npz"

    def __init__(self, archive: zipfile.ZipFile, limits: Limits, split: str | None = None) -> None:
        self._archive = archive
        self._parts = self._chosen(limits, split)
        if len({part.shape[1:] for part in self._parts}) > 1:
            raise InvalidUpload("The train and test images have different shapes; upload them apart, with split=.")
        self.num_samples = sum(part.shape[0] for part in self._parts)
        self._labels, self.classes = pixels.numbered(np.concatenate([part.labels for part in self._parts]))
        self._name_classes()

    def layout(self) -> Layout:
        _, height, width, channels = self._parts[0].shape
        return Layout((width, height), channels == 1)

    def samples(self) -> Iterator[Sample]:
        labels = iter(self._labels)
        for part in self._parts:
            count, height, width, channels = part.shape
            with self._archive.open(part.images.member) as file:
                _read_header(file)
                for index in range(count):
                    data = _read_exactly(file, height * width * channels)
                    image = np.frombuffer(data, np.uint8).reshape(height, width, channels)
                    group = None if part.groups is None else str(part.groups[index])
                    yield Sample(f"{part.images.member.filename}[{index}]", int(next(labels)), image, group)

    def pixels(self, sample: Sample, *, size: int, channels: int) -> NDArray[np.uint8]:
        return pixels.fit(sample, size=size, channels=channels)

    def _chosen(self, limits: Limits, split: str | None) -> list[Part]:
        there = [name for name, (images, _, _) in PARTS.items() if self._find(images)]
        if split is None or split == "all":
            return [self._part(name, limits) for name in there or ["train"]]
        wanted = SPLITS.get(split, split)
        named = [name for name in there if self._find((f"x_{name}",))]
        if wanted not in named:
            raise no_such_split(split, named)
        return [self._part(wanted, limits)]

    def _part(self, name: str, limits: Limits) -> Part:
        image_keys, label_keys, group_keys = PARTS[name]
        images = self._header(image_keys, "images")
        if images.dtype != np.uint8:
            raise InvalidUpload(
                f"{images.member.filename} is {images.dtype}; images must be uint8, 0 to 255. "
                "Convert them, for example (x * 255).round().astype('uint8').",
                code="images_not_uint8",
            )
        shape = pixels.check_shape(images.member.filename, images.shape, limits)
        unpacked, packed = math.prod(shape), images.member.compress_size
        if unpacked > FREE_BYTES and unpacked > MAX_STREAM_RATIO * packed:
            raise TooLarge(
                f"{images.member.filename} unfolds to more than {MAX_STREAM_RATIO} times its size. Nothing was kept.",
                code="archive_bomb",
            )
        labels = self._column(label_keys, "labels", shape[0])
        groups = self._column(group_keys, "groups", shape[0]) if self._find(group_keys) else None
        if groups is not None:
            _texts(np.unique(groups), "groups", "bad_name")
        return Part(images, shape, labels, groups)

    def _name_classes(self) -> None:
        """`classes` names label i; without it labels are named for their numbers."""
        if self._find(CLASS_KEYS) is None:
            return
        header = self._header(CLASS_KEYS, "classes")
        name = header.member.filename
        if len(header.shape) != 1 or header.shape[0] > MAX_CLASSES or header.dtype.kind != "U":
            raise InvalidUpload(
                f"{name} is {header.dtype}{header.shape}; class names are one text a class.", code="bad_class_names"
            )
        if header.dtype.itemsize > 4 * MAX_NAME_CHARS:
            raise InvalidUpload(f"{name} holds names of over {MAX_NAME_CHARS} characters.", code="bad_class_names")
        names = _texts(self._array(header, header.shape), name, "bad_class_names")
        values = [int(value) for value in self.classes]
        if min(values) < 0 or max(values) >= len(names) or len(set(names)) < len(names) or "" in names:
            raise InvalidUpload(
                f"{name} must hold one name for each label 0 to {max(values)}, no two alike.", code="bad_class_names"
            )
        self.classes = [names[value] for value in values]

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

    def _column(self, keys: tuple[str, ...], what: str, count: int) -> NDArray[Any]:
        """A one-dimensional array, one integer (or short string, for groups) an image."""
        header = self._header(keys, what)
        shape = (header.shape[0],) if len(header.shape) == 2 and header.shape[1] == 1 else header.shape
        if shape != (count,):
            raise InvalidUpload(
                f"{header.member.filename} has shape {header.shape}, but there are {count} "
                "images: one value an image is needed.",
                code="labels_do_not_match",
            )
        if header.dtype.kind not in "iu" and not (what == "groups" and header.dtype.kind in "US"):
            raise InvalidUpload(
                f"{header.member.filename} is {header.dtype}; {what} must be integers.", code="labels_not_integers"
            )
        if header.dtype.itemsize > 4 * MAX_NAME_CHARS:
            raise InvalidUpload(f"{header.member.filename} holds texts of over {MAX_NAME_CHARS} characters.")
        if count * header.dtype.itemsize > MAX_COLUMN_BYTES:
            raise TooLarge(
                f"{header.member.filename} unfolds to {count * header.dtype.itemsize} bytes; at most "
                f"{MAX_COLUMN_BYTES} are accepted. Use shorter names, or numbers."
            )
        return self._array(header, shape)

    def _array(self, header: ArrayHeader, shape: tuple[int, ...]) -> NDArray[Any]:
        try:
            with self._archive.open(header.member) as file:
                _read_header(file)
                array = np.frombuffer(_read_exactly(file, math.prod(shape) * header.dtype.itemsize), header.dtype)
        except BROKEN as error:
            raise InvalidUpload(
                f"{header.member.filename} in the npz is damaged ({error}).", code="broken_archive"
            ) from error
        return array


def _texts(array: NDArray[Any], where: str, code: str) -> list[str]:
    """Raises InvalidUpload where one is no text that can be shown."""
    if array.dtype.kind == "U":
        points = np.ascontiguousarray(array).view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
        if points.max(initial=0) > sys.maxunicode:
            raise InvalidUpload(f"{where} holds what is no text: characters beyond Unicode.", code=code)
    texts = [str(value) for value in array.tolist()]
    odd = next((text for text in texts if not printable(text)), None)
    if odd is not None:
        raise InvalidUpload(f"{where} holds a name with characters that are no text: {odd[:60]!r}.", code=code)
    return texts


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
