"""Opens an upload of any format that Winnow reads. The format is sniffed from the bytes, never trusted."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from service.datasets import idx, zips
from service.datasets.encoded import EncodedUpload
from service.datasets.members import is_image
from service.datasets.npz import BROKEN, NpzUpload, looks_like_npz
from service.datasets.parquet_process import ParquetUpload
from service.datasets.sample import Layout, Limits, Sample
from service.datasets.tars import TarArchive, looks_like_tar
from service.datasets.unpack import Unpacked, compression_of
from service.datasets.zips import ZipArchive
from service.errors import InvalidUpload, UnsupportedMedia

SNIFF_BYTES = 512  # what it takes to tell: the first block of a tar
PARQUET_MAGIC = b"PAR1"
FEW_MEMBERS = 64  # arrays are few; an archive of more holds images


class Upload(Protocol):
    """An opened upload; `classes` is complete before the first sample is read."""

    source_format: str
    classes: list[str]
    num_samples: int

    def layout(self) -> Layout | None:
        """None where only decoding tells."""
        ...

    def samples(self) -> Iterator[Sample]: ...
    def pixels(self, sample: Sample, *, size: int, channels: int) -> NDArray[np.uint8]: ...


def format_of(head: bytes) -> str | None:
    """zip, parquet, tar, or a compression (gz, bz2, xz) that may hold a tar; None for what is not read."""
    if head.startswith(zips.MAGICS):
        return "zip"
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    return compression_of(head) or ("tar" if looks_like_tar(head) else None)


def begins_with_array(file: BinaryIO) -> bool:
    """Whether it looks like an npz, of which no image need be decoded: a hint, before it is opened."""
    file.seek(0)
    head = file.read(SNIFF_BYTES)
    return head.startswith(zips.MAGICS) and b".npy" in head


def refuse_unknown(head: bytes) -> UnsupportedMedia:
    """The error for bytes that begin like nothing Winnow reads."""
    return UnsupportedMedia(
        "The upload is no zip, tar, npz or Parquet file: it begins with "
        f"{head[:4].hex(' ') or 'nothing'}. Send a zip or tar with one folder a class, a WebDataset tar, an npz with "
        "images and labels, IDX files in a zip, or Parquet with images and labels.",
        code="unknown_format",
    )


def open_upload(file: BinaryIO, limits: Limits, *, split: str | None = None) -> Upload:
    """Raises UnsupportedMedia for a format that is not read, InvalidUpload or TooLarge for one that is broken.

    split: only that one of an upload with `train` and `test`; None or "all": everything.
    """
    file.seek(0)
    head = file.read(SNIFF_BYTES)
    file.seek(0)
    kind = format_of(head)
    if kind is None:
        raise refuse_unknown(head)
    if kind == "zip":
        return _open_zip(file, limits, split)
    if kind == "parquet":
        return ParquetUpload(file, limits, split)
    if kind != "tar":
        inner = io.BufferedReader(Unpacked(file, kind, limits.max_unpacked_bytes)).read(SNIFF_BYTES)
        if not looks_like_tar(inner):
            raise refuse_unknown(inner)
        file.seek(0)
    return EncodedUpload(TarArchive(file, limits, None if kind == "tar" else kind), limits, split)


def _open_zip(file: BinaryIO, limits: Limits, split: str | None) -> Upload:
    archive = ZipArchive(file, limits)
    names = list(archive.members.names()) if len(archive.members) <= FEW_MEMBERS else None
    if names is not None and not any(map(is_image, names)):
        try:
            opened = zipfile.ZipFile(file)
        except BROKEN as error:
            raise InvalidUpload(f"The zip is damaged ({error}). Upload it again.", code="broken_archive") from error
        if looks_like_npz(names):
            return NpzUpload(opened, limits, split)
        heads = idx.heads_of(opened)
        if heads:
            return idx.IdxUpload(opened, heads, limits, split)
    return EncodedUpload(archive, limits, split)
