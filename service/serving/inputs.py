"""What a prediction request may carry: sniffed, checked before it is read, and decoded a batch at a time.

Images reach the model by the way they took at ingest, so that serving sees what training saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from service.datasets.decode import ImageRejected, decode_image
from service.serving.arrays import ArrayLimits, JsonImages, NpzImages
from service.serving.batches import Images
from service.serving.errors import BadImages, ImageUndecodable, TooManyImages, UnknownBody
from service.serving.forms import FormFile, read_form
from service.settings import Settings

UNFOLDED = 4  # an npz may unfold to this many times the largest body
IMAGE_MAGICS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"P5",
    b"P6",
)
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
READ = "an image (PNG, JPEG, WebP, BMP, GIF, TIFF), an npz or a JSON object with images, or a multipart form of files"


@dataclass(frozen=True)
class InputLimits:
    """Bounds on one request."""

    images: int
    pixels: int  # of an encoded image
    unfolded_bytes: int  # of an array

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.max_predict_images, settings.max_image_pixels, UNFOLDED * settings.max_predict_bytes)


class Source(Protocol):
    """The images of one request, at the model's resolution."""

    def batches(self, size: int) -> Iterator[Images]:
        """In order, at most `size` at a time. Raises BadImages where one cannot be used, and says which."""
        ...


def open_source(body: bytes, content_type: str, shape: tuple[int, int, int], limits: InputLimits) -> Source:
    """Look at the body and open it. Only a form is known by its declared type, which holds its boundary.

    Raises UnknownBody, TooManyImages, BodyTooLarge or BadImages.
    """
    if content_type.strip().lower().startswith("multipart/form-data"):
        return EncodedImages(read_form(body, content_type, field="images", most=limits.images), shape, limits)
    if body.startswith(ZIP_MAGICS):
        return NpzImages(body, shape, ArrayLimits(limits.images, limits.pixels, limits.unfolded_bytes))
    if body.startswith(IMAGE_MAGICS) or (body[:4] == b"RIFF" and body[8:12] == b"WEBP"):
        return EncodedImages([FormFile("the body", body)], shape, limits)
    if body[:64].lstrip()[:1] in (b"{", b"["):
        return JsonImages(body, shape, ArrayLimits(limits.images, limits.pixels, limits.unfolded_bytes))
    if not body:
        raise BadImages(f"The body is empty. Send {READ}.", code="no_images")
    raise UnknownBody(f"The body begins with {body[:8].hex(' ')}, which is none of the known formats. Send {READ}.")


class EncodedImages:
    """Image files, decoded as at ingest."""

    def __init__(self, files: list[FormFile], shape: tuple[int, int, int], limits: InputLimits) -> None:
        if len(files) > limits.images:
            raise TooManyImages(f"The request holds {len(files)} images; at most {limits.images} are accepted at once.")
        self._files = files
        self._shape = shape
        self._limits = limits

    def batches(self, size: int) -> Iterator[Images]:
        for start in range(0, len(self._files), size):
            files = enumerate(self._files[start : start + size], start)
            yield np.stack([self._decode(index, file) for index, file in files])

    def _decode(self, index: int, file: FormFile) -> Images:
        side, _, channels = self._shape
        try:
            return decode_image(file.data, size=side, channels=channels, max_pixels=self._limits.pixels)
        except ImageRejected as error:
            raise ImageUndecodable(
                f"Image {index} ({file.name}) cannot be used: {error}. No prediction was made.", image=index
            ) from error
