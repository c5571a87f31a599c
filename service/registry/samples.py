"""Arrays in a bundle: a sample with the answers it must get, and the held-out images that calibrated abstention."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


class InvalidSample(ValueError):
    """Arrays that are missing, or do not fit together."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """An npz of exactly these arrays; those that may be None are left out where they are."""

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        present = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(buffer, **{name: value for name, value in present.items() if value is not None})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises InvalidSample. Nothing is unpickled."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
            return cls(**{field.name: found.pop(field.name, None) for field in fields(cls)}, **found)
        except (ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise InvalidSample(f"malformed arrays: {error}") from error


@dataclass(frozen=True, eq=False)
class Parity(Arrays):
    """What the networks computed for a few images before they were exported: n images, c classes.

    images: uint8 (n, h, w, c); mean_probabilities, class_entropy: (n, classes), under the bundle's own masks;
    scores: (n,) where there is a detector.
    """

    images: NDArray[np.uint8]
    mean_probabilities: NDArray[np.float32]
    class_entropy: NDArray[np.float32]
    scores: NDArray[np.float32] | None

    def __post_init__(self) -> None:
        n = _rows(self.images, 4)
        _check(self.images.dtype == np.uint8 and n > 0, "images must be uint8, at least one")
        _check(_rows(self.mean_probabilities, 2) == n, "mean_probabilities must be one row an image")
        _check(np.shape(self.class_entropy) == self.mean_probabilities.shape, "class_entropy must fit them")
        _check(self.scores is None or _rows(self.scores, 1) == n, "scores must be one an image")


@dataclass(frozen=True, eq=False)
class HeldOut(Arrays):
    """The calibration images as the student's trunk sees them, so that other masks can be calibrated for too.

    features: (m, d), of the images as they are; reformed: (m, d), of their reconstructions; labels: (m,) int64;
    scores: (m,). The last but labels are there where there is a detector.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    reformed: NDArray[np.float32] | None
    scores: NDArray[np.float32] | None

    def __post_init__(self) -> None:
        m = _rows(self.features, 2)
        _check(_rows(self.labels, 1) == m > 0, "labels must be one an image, at least one")
        _check((self.reformed is None) == (self.scores is None), "reformed and scores come together")
        _check(self.reformed is None or self.reformed.shape == self.features.shape, "reformed must fit features")
        _check(self.scores is None or _rows(self.scores, 1) == m, "scores must be one an image")


def _rows(array: Any, dimensions: int) -> int:
    _check(
        isinstance(array, np.ndarray) and array.ndim == dimensions, f"an array of {dimensions} dimensions is missing"
    )
    return len(array)


def _check(holds: bool, wanted: str) -> None:
    if not holds:
        raise InvalidSample(wanted)
