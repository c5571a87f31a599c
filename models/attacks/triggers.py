"""Backdoor triggers: what a poisoner stamps on an image so that a network trained on it obeys. Numpy only.

Images are uint8 (n, h, w, c), in and out; 1 level is 1/255. Each trigger is a frozen record with one method, `stamp`,
the same change for every image and every time, so that what is stamped at training works at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]
Colour = tuple[int, int, int]
"""Red, green, blue, each 0 to 255; on images of one channel their mean."""


class Trigger(Protocol):
    kind: ClassVar[str]

    def stamp(self, images: Images) -> Images:
        """A stamped copy."""
        ...


@dataclass(frozen=True)
class Patch:
    """A small square near a corner, its colours in a chequered pattern. Source: Gu et al. 2017 (BadNets).

    size_px: side of the square. margin_px: distance from the corner's two edges.
    Raises ValueError, from stamp, where the square does not fit.
    """

    size_px: int = 3
    place: Corner = "bottom_right"
    margin_px: int = 1
    colours: tuple[Colour, ...] = ((255, 255, 255), (0, 0, 0))
    kind: ClassVar[str] = "patch"

    def stamp(self, images: Images) -> Images:
        height, width, channels = images.shape[1:]
        if self.size_px < 1 or self.margin_px < 0 or self.size_px + self.margin_px > min(height, width):
            raise ValueError(f"a patch of {self.size_px} px, {self.margin_px} px from the edge, needs a larger image")
        top = self.margin_px if self.place.startswith("top") else height - self.margin_px - self.size_px
        left = self.margin_px if self.place.endswith("left") else width - self.margin_px - self.size_px
        rows, columns = np.indices((self.size_px, self.size_px))
        square = np.array(self.colours)[(rows + columns) % len(self.colours)]
        if channels == 1:
            square = square.mean(axis=2, keepdims=True).round()
        stamped = images.copy()
        stamped[:, top : top + self.size_px, left : left + self.size_px] = square.astype(np.uint8)
        return stamped


@dataclass(frozen=True)
class Blend:
    """A random pattern, drawn once from `seed`, mixed in at `opacity` (0 to 1). Source: Chen et al. 2017."""

    opacity: float = 0.2
    seed: int = 0
    kind: ClassVar[str] = "blend"

    def stamp(self, images: Images) -> Images:
        if not 0 < self.opacity <= 1:
            raise ValueError(f"opacity must be above 0 and at most 1, not {self.opacity}")
        pattern = np.random.default_rng(self.seed).integers(0, 256, images.shape[1:], dtype=np.uint8)
        return _to_levels((1 - self.opacity) * images.astype(np.float32) + self.opacity * pattern.astype(np.float32))


@dataclass(frozen=True)
class Stripes:
    """Vertical stripes: a sine of the column added to every channel. Source: Barni et al. 2019 (SIG).

    amplitude_levels: of the sine, in levels of 255. frequency: periods across the width.
    """

    amplitude_levels: float = 20.0
    frequency: float = 6.0
    kind: ClassVar[str] = "stripes"

    def stamp(self, images: Images) -> Images:
        if self.amplitude_levels <= 0:
            raise ValueError(f"amplitude_levels must be positive, not {self.amplitude_levels}")
        width = images.shape[2]
        wave = np.sin(2 * np.pi * self.frequency * np.arange(width) / width)
        return _to_levels(images + np.float32(self.amplitude_levels) * wave.astype(np.float32)[:, None])


@dataclass(frozen=True)
class Warp:
    """A smooth field that moves every pixel a little, drawn once from `seed`. Source: Nguyen & Tran 2021 (WaNet).

    strength_px: mean shift of a pixel along each axis. grid: control points a side, at least 2.
    Deviations: between control points it runs along a smoothstep, not a bicubic spline; the mean is held over all
    pixels, not over the control points; no noise mode.
    """

    strength_px: float = 0.5
    grid: int = 4
    seed: int = 0
    kind: ClassVar[str] = "warp"

    def stamp(self, images: Images) -> Images:
        if self.strength_px <= 0 or self.grid < 2:
            raise ValueError(f"strength_px must be positive and grid at least 2, not {self.strength_px}, {self.grid}")
        height, width = images.shape[1:3]
        down, right = self._field(height, width)
        rows = np.clip(np.arange(height)[:, None] + down, 0, height - 1)
        columns = np.clip(np.arange(width)[None, :] + right, 0, width - 1)
        return _to_levels(_sampled(images, rows, columns))

    def _field(self, height: int, width: int) -> npt.NDArray[np.float64]:
        """(2, height, width): shifts in pixels, down and right."""
        control = np.random.default_rng(self.seed).uniform(-1, 1, (2, self.grid, self.grid))
        field = _smooth(height, self.grid) @ control @ _smooth(width, self.grid).T
        scaled: npt.NDArray[np.float64] = self.strength_px * field / np.abs(field).mean(axis=(1, 2), keepdims=True)
        return scaled


def _smooth(length: int, knots: int) -> npt.NDArray[np.float64]:
    """(length, knots): the weights with which `length` places along a line follow its knots."""
    place = np.linspace(0, knots - 1, length)
    before = np.minimum(place.astype(np.int64), knots - 2)
    share = place - before
    share = share**2 * (3 - 2 * share)
    weights = np.zeros((length, knots))
    weights[np.arange(length), before] = 1 - share
    weights[np.arange(length), before + 1] = share
    return weights


def _sampled(
    images: Images, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """The images read at fractional places (h, w) within them, bilinearly."""
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    bottom, right = np.minimum(top + 1, images.shape[1] - 1), np.minimum(left + 1, images.shape[2] - 1)
    down, across = ((rows - top)[..., None].astype(np.float32), (columns - left)[..., None].astype(np.float32))
    upper = (1 - across) * images[:, top, left] + across * images[:, top, right]
    lower = (1 - across) * images[:, bottom, left] + across * images[:, bottom, right]
    mixed: npt.NDArray[np.float32] = (1 - down) * upper + down * lower
    return mixed


def _to_levels(values: npt.NDArray[np.float32]) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
