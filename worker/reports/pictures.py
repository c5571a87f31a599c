"""Images of a report as PNG data URIs, and what tells two of them apart made visible."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

Picture = npt.NDArray[np.uint8]
"""uint8 (h, w, c), c in {1, 3}."""

AMPLIFICATIONS = (1, 2, 5, 10, 20, 50)
_GREY = 128


def data_uri(picture: Picture) -> str:
    """The picture at its own size; the page enlarges it with sharp pixels."""
    squeezed = picture[..., 0] if picture.shape[-1] == 1 else picture
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(squeezed)).save(buffer, format="PNG", optimize=False)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def amplification(pairs: Sequence[tuple[Picture, Picture]]) -> int:
    """One factor for all pairs, so that they compare: the largest that clips under 1 % of half the pairs' values."""
    if not pairs:
        return 1
    typical = float(np.median([np.percentile(np.abs(_signed(a, b)), 99) for a, b in pairs]))
    return max((factor for factor in AMPLIFICATIONS if factor * typical < _GREY), default=1)


def difference(picture: Picture, other: Picture, factor: int) -> Picture:
    """`factor` times (picture − other) around mid-grey, clipped to 8 bits."""
    return np.clip(_GREY + factor * _signed(picture, other), 0, 255).astype(np.uint8)


def _signed(picture: Picture, other: Picture) -> npt.NDArray[np.int16]:
    return picture.astype(np.int16) - other.astype(np.int16)
