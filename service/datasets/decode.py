"""One image file to pixels at the working resolution, for ingest and prediction alike."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
WHITE = 255
STRIP_PIXELS = 1_000_000
DEFAULT_MAX_PIXELS = 40_000_000
ORIENTATION = 0x0112  # of EXIF
TURNED = 5  # orientations 5 to 8 swap the sides
ORIENTED_BY = frozenset(("exif", "xmp"))  # what of a JPEG's info may say so
FREE_PIXELS = 1_000_000  # of an image that may be as flat as it likes
MOST_PER_BYTE = 300  # bytes of pixels for a byte of the file: photographs have 10 or 20, flat JPEGs under 200
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    KeyError,
    ZeroDivisionError,
    OverflowError,
    AttributeError,
    RuntimeError,
    MemoryError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# What Pillow raises on a damaged or hostile image.
SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}


class ImageRejected(Exception):
    """This one image cannot be used; the message says why."""


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image file tell."""

    width: int
    height: int
    grey: bool


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image at the working resolution, and what its file was."""

    pixels: bytes  # uint8, (size, size, channels)
    header: ImageHeader


def read_header(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageHeader:
    """Size and colour without decoding the pixels."""
    with _opened(data, max_pixels) as image:
        try:
            return _header(image, turned=_orientation(image) >= TURNED)
        except DAMAGED as error:
            raise ImageRejected(f"its header cannot be read ({error})") from error


def decode_image(data: bytes, *, size: int, channels: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode to (size, size, channels): upright by EXIF, alpha over white, 16 bits scaled to 8, first frame of many."""
    found = decode(data, size=size, channels=channels, max_pixels=max_pixels)
    return np.frombuffer(found.pixels, np.uint8).reshape(size, size, channels)


def decode(data: bytes, *, size: int, channels: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> Decoded:
    """As `decode_image`, with the size and colour that the file has. Raises ImageRejected."""
    with _opened(data, max_pixels) as image:
        try:
            image.load()
            orientation = _orientation(image)  # after loading: a PNG may tell it at its end
            header = _header(image, turned=orientation >= TURNED)
            upright = image if orientation == 1 else ImageOps.exif_transpose(image)
            return Decoded(_fitted(_to_eight_bits(upright, channels), size, channels).tobytes(), header)
        except DAMAGED as error:
            raise ImageRejected(f"its pixels cannot be decoded ({error})") from error


def fit_pixels(image: NDArray[np.uint8] | Image.Image, *, size: int, channels: int) -> NDArray[np.uint8]:
    """Resize to size × size by bilinear interpolation (sides are scaled on their own) and convert to the channels."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(_fitted(picture, size, channels), dtype=np.uint8).reshape(size, size, channels)


def _fitted(picture: Image.Image, size: int, channels: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if picture.mode != mode:
        picture = picture.convert(mode)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return picture


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageRejected(f"it is too large ({error})") from error
    except UnidentifiedImageError:
        raise ImageRejected(f"it is not a whole image of a known format ({', '.join(FORMATS)})") from None
    except DAMAGED as error:
        raise ImageRejected(f"its header cannot be read ({error})") from error
    if image.width * image.height > max_pixels:
        image.close()
        raise ImageRejected(f"it is {image.width}×{image.height} pixels; at most {max_pixels} are accepted")
    pixels = image.width * image.height
    if pixels > FREE_PIXELS and pixels * len(image.getbands()) > MOST_PER_BYTE * len(data):
        image.close()
        raise ImageRejected(f"its {len(data)} bytes unfold to more than {MOST_PER_BYTE} times as many pixels")
    return image


def _orientation(image: Image.Image) -> int:
    """1 to 8; whatever else the file says is taken for upright."""
    if image.format == "JPEG" and ORIENTED_BY.isdisjoint(image.info):
        return 1
    told = image.getexif().get(ORIENTATION, 1)
    return told if isinstance(told, int) and 1 <= told <= 8 else 1


def _header(image: Image.Image, *, turned: bool) -> ImageHeader:
    width, height = (image.height, image.width) if turned else (image.width, image.height)
    return ImageHeader(width, height, _is_grey(image))


def image_suffix(data: bytes) -> str:
    """What a file of these bytes is called, by the bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:1] == b"P" and data[1:2].isdigit():
        return "pgm" if data[1:2] in b"25" else "ppm"
    return next((suffix for magic, suffix in SUFFIXES.items() if data.startswith(magic)), "img")


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I")


def _to_eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """Any mode Pillow knows to L or RGB, without losing what the file meant."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I"):
        return _in_strips(image, "L", _sixteen_to_eight)
    if image.mode == "F":
        raise ImageRejected("its pixels are floating-point numbers, whose range is unknown; save it with 8 or 16 bits")
    if "transparency" in image.info or image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        return _in_strips(image, mode, _over_white)
    return image if image.mode == mode else image.convert(mode)


def _in_strips(image: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`change` applied to some rows at a time: what it needs in between is never as large as the image."""
    rows = max(1, STRIP_PIXELS // image.width)
    if image.height <= rows:
        return change(image).convert(mode)
    changed = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        changed.paste(change(image.crop(box)).convert(mode), box)
    return changed


def _over_white(image: Image.Image) -> Image.Image:
    clear = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, (WHITE, WHITE, WHITE, WHITE)), clear)


def _sixteen_to_eight(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65_535:
        raise ImageRejected("its pixels need more than 16 bits; save it with 8 or 16")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
