"""Reads IDX pairs (MNIST's own format) from a zip: images and labels, gzipped or not, found by their first bytes."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from service.datasets import pixels
from service.datasets.layouts import SPLITS, no_such_split
from service.datasets.npz import BROKEN
from service.datasets.sample import Layout, Limits, Sample
from service.datasets.unpack import Unpacked
from service.errors import InvalidUpload

MOST_MEMBERS = 16
MAX_FILE_BYTES = 1 << 40  # the sizes in its head are what bounds it
INTEGERS = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4"}
BYTE = 0x08


@dataclass(frozen=True)
class Head:
    """What an IDX file says of itself."""

    member: str
    kind: int
    shape: tuple[int, ...]

    @property
    def split(self) -> str | None:
        base = self.member.rsplit("/", 1)[-1].lower()
        return next((split for word, split in SPLITS.items() if base.startswith(f"{word}-")), None)


@dataclass(frozen=True, eq=False)
class Pair:
    images: Head
    shape: tuple[int, int, int, int]
    labels: NDArray[np.integer]


def heads_of(archive: zipfile.ZipFile) -> list[Head]:
    """The IDX files of a small archive; none where it holds other files."""
    names = [member.filename for member in archive.infolist() if not member.is_dir()]
    if not 2 <= len(names) <= MOST_MEMBERS:
        return []
    found = [_head(archive, name) for name in names if not name.rsplit("/", 1)[-1].startswith(".")]
    return [head for head in found if head is not None]


class IdxUpload:
    """Each file of images goes with the file of labels that is as long and of the same split."""

    source_format = "idx-zip"

    def __init__(self, archive: zipfile.ZipFile, heads: list[Head], limits: Limits, split: str | None = None) -> None:
        self._archive = archive
        images = sorted((head for head in heads if len(head.shape) >= 3), key=lambda head: head.member)
        images = [head for head in images if head.kind == BYTE]
        images.sort(key=lambda head: head.split != "train")
        if split is not None and split != "all":
            wanted = SPLITS.get(split, split)
            if wanted not in {head.split for head in images}:
                raise no_such_split(split, {head.split for head in images if head.split})
            images = [head for head in images if head.split == wanted]
        if not images:
            raise InvalidUpload("The zip holds no IDX file of images as unsigned bytes.", code="missing_array")
        self._pairs = [self._pair(head, heads, limits) for head in images]
        if len({pair.shape[1:] for pair in self._pairs}) > 1:
            raise InvalidUpload("The IDX files hold images of different shapes; upload them apart, with split=.")
        self.num_samples = sum(pair.shape[0] for pair in self._pairs)
        self._labels, self.classes = pixels.numbered(np.concatenate([pair.labels for pair in self._pairs]))

    def layout(self) -> Layout:
        _, height, width, channels = self._pairs[0].shape
        return Layout((width, height), channels == 1)

    def samples(self) -> Iterator[Sample]:
        labels = iter(self._labels)
        for pair in self._pairs:
            count, height, width, channels = pair.shape
            with _opened(self._archive, pair.images.member) as file:
                _read_exactly(file, 4 + 4 * len(pair.images.shape), pair.images.member)
                for index in range(count):
                    data = _read_exactly(file, height * width * channels, pair.images.member)
                    image = np.frombuffer(data, np.uint8).reshape(height, width, channels)
                    yield Sample(f"{pair.images.member}[{index}]", int(next(labels)), image)

    def pixels(self, sample: Sample, *, size: int, channels: int) -> NDArray[np.uint8]:
        return pixels.fit(sample, size=size, channels=channels)

    def _pair(self, images: Head, heads: list[Head], limits: Limits) -> Pair:
        shape = pixels.check_shape(images.member, images.shape, limits)
        labels = [
            head for head in heads if head.shape == shape[:1] and head.kind in INTEGERS and head.split == images.split
        ]
        if len(labels) != 1:
            raise InvalidUpload(
                f"{images.member} holds {shape[0]} images; {len(labels)} IDX files of as many labels are beside it, "
                "and it must be one.",
                code="labels_do_not_match",
            )
        dtype = np.dtype(INTEGERS[labels[0].kind])
        with _opened(self._archive, labels[0].member) as file:
            data = _read_exactly(file, 8 + shape[0] * dtype.itemsize, labels[0].member)
        return Pair(images, shape, np.frombuffer(data, dtype, offset=8).astype(np.int64))


def _head(archive: zipfile.ZipFile, name: str) -> Head | None:
    """None where the file is not IDX."""
    try:
        with _opened(archive, name) as file:
            magic = file.read(4)
            if len(magic) != 4 or magic[:2] != b"\0\0" or magic[2] not in (*INTEGERS, 0x0D, 0x0E) or magic[3] > 4:
                return None
            sizes = file.read(4 * magic[3])
            return Head(name, magic[2], struct.unpack(f">{magic[3]}I", sizes))
    except (InvalidUpload, struct.error):
        return None


@contextmanager
def _opened(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """The bytes of a member, seen through gzip where it is gzipped. Raises InvalidUpload where it is damaged."""
    try:
        with archive.open(name) as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        with archive.open(name) as file:
            if gzipped:
                yield io.BufferedReader(Unpacked(cast(BinaryIO, file), "gz", MAX_FILE_BYTES))
            else:
                yield file
    except BROKEN as error:
        raise InvalidUpload(f"{name} is damaged ({error}). Upload it again.", code="broken_archive") from error


def _read_exactly(file: IO[bytes], count: int, name: str) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise InvalidUpload(f"{name} is shorter than its header says. Upload it again.", code="broken_archive")
    return data
