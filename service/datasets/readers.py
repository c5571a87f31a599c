"""Opens an upload of any format that Winnow reads. The format is sniffed from the bytes, never trusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from service.datasets.imagefolder import ImageFolderUpload, open_zip
from service.datasets.npz import NpzUpload, looks_like_npz
from service.datasets.sample import Layout, Limits, Sample
from service.errors import UnsupportedMedia

ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # the second: an empty archive


class Upload(Protocol):
    """An opened upload; `classes` is complete before the first sample is read."""

    source_format: str
    classes: list[str]
    num_samples: int

    def layout(self) -> Layout: ...
    def samples(self) -> Iterator[Sample]: ...
    def pixels(self, sample: Sample, *, size: int, channels: int) -> NDArray[np.uint8]: ...


def refuse_unknown(magic: bytes) -> UnsupportedMedia:
    """The error for bytes that begin like nothing Winnow reads."""
    return UnsupportedMedia(
        f"The upload is neither a zip of class folders nor an npz: it begins with {magic.hex(' ') or 'nothing'}. "
        "Send a zip with one folder a class, or an npz with images and labels.",
        code="unknown_format",
    )


def open_upload(file: BinaryIO, limits: Limits) -> Upload:
    """Raises UnsupportedMedia for a format that is not read, InvalidUpload or TooLarge for one that is broken."""
    magic = file.read(4)
    file.seek(0)
    if magic not in ZIP_MAGICS:
        raise refuse_unknown(magic)
    archive = open_zip(file)
    return NpzUpload(archive, limits) if looks_like_npz(archive) else ImageFolderUpload(archive, limits)
