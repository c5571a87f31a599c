"""A sample of an upload, how an upload looks as a whole, and the limits that none may pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the processes that read and decode are to start fast
    from service.settings import Settings

MAX_RATIO = 1100  # uncompressed to compressed bytes of one member: deflate itself ends at 1032, other methods do not
MAX_NAME_BYTES = 1024


@dataclass(frozen=True)
class Limits:
    """Bounds on what an upload may unfold to."""

    max_images: int
    max_image_bytes: int
    max_image_pixels: int
    max_unpacked_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(
            max_images=settings.max_images,
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_unpacked_bytes=4 * settings.max_upload_bytes,
        )


@dataclass(frozen=True)
class Layout:
    """Native size and colour of an upload: what the working resolution is chosen from."""

    common_size: tuple[int, int] | None  # (width, height) where all images agree
    grey: bool


class Sample(NamedTuple):
    """One image of an upload with its given label."""

    path: str
    label: int  # index into the upload's classes
    data: bytes | NDArray[np.uint8]  # an encoded file, or pixels (height, width, channels)
    group: str | None = None  # images of one physical object; splits never separate a group
    problem: str | None = None  # why its bytes could not be had
