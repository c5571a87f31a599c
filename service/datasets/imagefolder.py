"""Reads a zip of class folders. Members are iterated, never extracted to disk."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from service.datasets.decode import ImageRejected, decode_image, read_header
from service.datasets.sample import MAX_NAME_BYTES, MAX_RATIO, Layout, Limits, Sample
from service.errors import InvalidUpload, TooLarge

CLUTTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}
ENCRYPTED = 0x1
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InvalidUpload(
            f"The upload begins like a zip but cannot be read as one ({error}). It may be cut short: upload it again.",
            code="broken_archive",
        ) from error


def check_member(member: zipfile.ZipInfo) -> None:
    """Raises InvalidUpload for a member that no honest archive holds."""
    name = member.filename
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or (path.parts and path.parts[0].endswith(":")):
        raise InvalidUpload(
            f"The archive holds a path that leads out of it: {name!r}. Nothing was kept.", code="unsafe_path"
        )
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise InvalidUpload(
            f"The archive holds a name of over {MAX_NAME_BYTES} bytes: {name[:60]!r}….", code="unsafe_path"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise InvalidUpload(f"The archive holds a link: {name!r}. Send the files themselves.", code="unsafe_path")
    if member.flag_bits & ENCRYPTED:
        raise InvalidUpload(
            f"The archive is encrypted ({name!r}). Send it without a password.", code="encrypted_archive"
        )
    if member.file_size > MAX_RATIO * max(member.compress_size, 1024):
        raise TooLarge(
            f"{name!r} unfolds to more than {MAX_RATIO} times its size. Nothing was kept.", code="archive_bomb"
        )


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    """The bytes of a member, at most `limit`. Raises ImageRejected where they cannot be had."""
    if member.file_size > limit:
        raise ImageRejected(f"it is {member.file_size} bytes; at most {limit} are accepted")
    try:
        with archive.open(member) as file:
            data = file.read(limit + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ImageRejected(f"the archive is damaged at this file ({error})") from error
    if len(data) > limit:
        raise ImageRejected(f"it is more than the {limit} bytes accepted, whatever its header says")
    return data


class ImageFolderUpload:
    """A zip whose images lie in one folder a class; one folder around all of them is looked through."""

    source_format = "imagefolder-zip"

    def __init__(self, archive: zipfile.ZipFile, limits: Limits) -> None:
        self._archive = archive
        self._limits = limits
        self._members = _image_members(archive, limits)
        self._outer = _outer_folders([path for path, _ in self._members])
        self.num_samples = len(self._members)
        self.classes = sorted({self._class_of(path) for path, _ in self._members})

    def layout(self) -> Layout:
        """Unreadable images have no say."""
        sizes: set[tuple[int, int]] = set()
        grey = True
        for _, member in self._members:
            try:
                header = read_header(self._read(member), max_pixels=self._limits.max_image_pixels)
            except ImageRejected:
                continue
            sizes.add((header.width, header.height))
            grey = grey and header.grey
        return Layout(next(iter(sizes)) if len(sizes) == 1 else None, grey)

    def samples(self) -> Iterator[Sample]:
        index_of = {name: index for index, name in enumerate(self.classes)}
        for path, member in self._members:
            label = index_of[self._class_of(path)]
            try:
                yield Sample(member.filename, label, self._read(member))
            except ImageRejected as error:
                yield Sample(member.filename, label, b"", problem=str(error))

    def pixels(self, sample: Sample, *, size: int, channels: int) -> NDArray[np.uint8]:
        if not isinstance(sample.data, bytes):
            raise TypeError("a zip of images gives encoded files")
        return decode_image(sample.data, size=size, channels=channels, max_pixels=self._limits.max_image_pixels)

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        return read_member(self._archive, member, self._limits.max_image_bytes)

    def _class_of(self, path: PurePosixPath) -> str:
        return path.parts[self._outer]


def _image_members(archive: zipfile.ZipFile, limits: Limits) -> list[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """The images of the archive in the order of their paths. Raises InvalidUpload or TooLarge."""
    found: list[tuple[PurePosixPath, zipfile.ZipInfo]] = []
    unpacked = 0
    for member in archive.infolist():
        check_member(member)
        path = PurePosixPath(member.filename.replace("\\", "/"))
        clutter = any(part in CLUTTER or part.startswith(".") for part in path.parts)
        if member.is_dir() or clutter or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if len(path.parts) < 2:
            raise InvalidUpload(
                f"{member.filename!r} lies in no class folder. Put every image in a folder named for its class.",
                code="no_class_folder",
            )
        unpacked += member.file_size
        found.append((path, member))
        if len(found) > limits.max_images or unpacked > limits.max_unpacked_bytes:
            raise TooLarge(
                f"The archive unfolds to over {limits.max_images} images or {limits.max_unpacked_bytes} bytes. "
                "Split it into several data sets."
            )
    if not found:
        raise InvalidUpload("The archive holds no images in class folders.", code="no_images")
    return sorted(found, key=lambda pair: str(pair[0]))


def _outer_folders(paths: list[PurePosixPath]) -> int:
    """1 where a single folder holds all the class folders, else 0."""
    one_root = len({path.parts[0] for path in paths}) == 1
    return 1 if one_root and all(len(path.parts) > 2 for path in paths) else 0
