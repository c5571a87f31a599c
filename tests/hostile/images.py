"""Hostile images, each among four good ones in a zip: giant, animated, cut, and with attributes that lie."""
# ruff: noqa: E501 (tables of bytes, a file an entry)

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from functools import partial

import numpy as np
from PIL import Image

from tests.hostile.cases import GOOD, SPOILT, TAKEN, Case, cut_at, zipped
from tests.service.uploads import FILES, IMAGES

EITHER = (TAKEN, SPOILT, "archive_bomb")


def among(image: bytes, copies: int = 1) -> bytes:
    return zipped({**GOOD, **{f"a/9{i}.png": image for i in range(copies)}})


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png(width: int, height: int, data: bytes | None = None, *before: bytes, depth: int = 8, colour: int = 0) -> bytes:
    body = zlib.compress(bytes(min(height * (width + 1), 1 << 16))) if data is None else data
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def flat_png(side: int, bands: int = 1) -> bytes:
    """Whole, and next to nothing: every row is black."""
    press = zlib.compressobj(9)
    rows = bytes(side * bands + 1) * 64
    body = b"".join(press.compress(rows) for _ in range(side // 64)) + press.flush()
    return png(side, side // 64 * 64, body, colour={1: 0, 3: 2, 4: 6}[bands])


def saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(IMAGES[0])).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(*tags: tuple[int, int, int, int], next_ifd: int = 0, count: int | None = None) -> bytes:
    """tags: (tag, type, count, value)."""
    entries = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    size = len(tags) if count is None else count
    return (
        b"II*\0" + struct.pack("<L", 8) + struct.pack("<H", size) + entries + struct.pack("<L", next_ifd) + bytes(300)
    )


def sized_tiff(width: int, height: int, *more: tuple[int, int, int, int]) -> bytes:
    return tiff((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 100), (277, 3, 1, 1),
                (278, 4, 1, height), (279, 4, 1, 64), *more)  # fmt: skip


def exif_jpeg(*entries: bytes, count: int | None = None) -> bytes:
    """entries: 12 bytes each."""
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries) if count is None else count) + b"".join(entries)
    payload = b"Exif\0\0" + body + bytes(4)
    plain = saved("JPEG")
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + plain[2:]


def tag(number: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHL", number, kind, count) + value.ljust(4, b"\0")[:4]


def animated(kind: str, frames: int = 300) -> bytes:
    pictures = [Image.fromarray(np.full((16, 16), i % 256, np.uint8)) for i in range(frames)]
    return saved(kind, pictures[0], save_all=True, append_images=pictures[1:])


def crowded_png() -> bytes:
    """Five million chunks without a byte in them."""
    return png(9, 9, None, chunk(b"juNk", b"") * 5_000_000)


def icc(data: bytes) -> bytes:
    return png(9, 9, zlib.compress(bytes(90)), chunk(b"iCCP", b"x\0\0" + zlib.compress(data)))


def text(keyword: bytes, size: int, times: int = 1) -> bytes:
    return png(9, 9, zlib.compress(bytes(90)), chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(bytes(size))) * times)


def ascii_ppm() -> bytes:
    return b"P3 3000 3000 255 " + b"0 " * 27_000_000


def resized_header(kind: str, offset: int, form: str, *size: int) -> bytes:
    data = bytearray(saved(kind))
    struct.pack_into(form, data, offset, *size)
    return bytes(data)


def jpeg_sized(width: int, height: int) -> bytes:
    data = bytearray(saved("JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


ORIENTATION = 0x0112
EXIF = {
    "orientation-text": exif_jpeg(tag(ORIENTATION, 2, 4, b"six\0")), "orientation-0": exif_jpeg(tag(ORIENTATION, 3, 1, b"\0")),
    "orientation-9999": exif_jpeg(tag(ORIENTATION, 3, 1, b"\x0f\x27")), "orientation-list": exif_jpeg(tag(ORIENTATION, 3, 2, b"\6\0\6\0")),
    "orientation-float": exif_jpeg(tag(ORIENTATION, 11, 1, b"\0\0\xc0\x7f")), "orientation-bytes": exif_jpeg(tag(ORIENTATION, 7, 4, b"\6\0\0\0")),
    "orientation-ratio": exif_jpeg(tag(ORIENTATION, 5, 1, b"\0\0\0\0")), "orientation-far": exif_jpeg(tag(ORIENTATION, 5, 1, b"\xff\xff\xff\x7f")),
    "count-lies": exif_jpeg(tag(ORIENTATION, 3, 1, b"\6"), count=65_535), "value-beyond": exif_jpeg(tag(0x8769, 4, 1, b"\xff\xff\xff\xff")),
    "loop": exif_jpeg(tag(0x8769, 4, 1, b"\x08\0\0\0")), "huge-count": exif_jpeg(tag(ORIENTATION, 3, 0xFFFFFFFF, b"\x08\0\0\0")),
    "unknown-type": exif_jpeg(tag(ORIENTATION, 99, 1, b"\6")), "turned": exif_jpeg(tag(ORIENTATION, 3, 1, b"\6")),
}  # fmt: skip
PROGRESSIVE = saved("JPEG", Image.fromarray(np.tile(IMAGES[0], (20, 20, 1))), progressive=True)
BASELINE = saved("JPEG", Image.fromarray(np.tile(IMAGES[0], (20, 20, 1))))
DAMAGED = {
    "png-ihdr-twice": png(9, 9, None, chunk(b"IHDR", bytes(13))), "png-no-data": FILES[0][:33], "png-palette-missing": png(9, 9, None, colour=3),
    "png-depth-3": png(9, 9, None, depth=3), "png-colour-5": png(9, 9, None, colour=5), "png-zero": png(0, 9), "png-data-short": png(99, 99, zlib.compress(b"x")),
    "png-negative-chunk": FILES[0][:33] + b"\xff\xff\xff\xffIDAT", "png-crc": FILES[0][:29] + b"\0\0\0\0" + FILES[0][33:],
    "bmp-negative": resized_header("BMP", 18, "<ll", -(1 << 31), -(1 << 31)), "bmp-huge": resized_header("BMP", 18, "<ll", 1 << 30, 1 << 30),
    "bmp-offset": resized_header("BMP", 10, "<L", 0xFFFFFFFF), "gif-huge": resized_header("GIF", 6, "<HH", 65_535, 65_535),
    "tiff-loop": tiff((256, 4, 1, 9), next_ifd=8), "tiff-no-tags": tiff(), "tiff-count-lies": tiff(count=65_535),
    "tiff-tile-0": sized_tiff(9, 9, (322, 4, 1, 0), (323, 4, 1, 0)), "tiff-strip-far": tiff((256, 4, 1, 9), (257, 4, 1, 9), (273, 4, 1, 0xFFFFFFF0)),
    "tiff-samples": tiff((256, 4, 1, 9), (257, 4, 1, 9), (277, 3, 1, 65_535), (258, 3, 65_535, 8)), "tiff-value-count": tiff((256, 4, 0xFFFFFFFF, 9)),
    "tiff-jpeg-inside": sized_tiff(9, 9, (259, 3, 1, 7)), "ppm-sizes": b"P6 99999999999 9 255 ", "ppm-comment": b"P6 #" + b"c" * 100_000,
    "ppm-maxval-0": b"P6 9 9 0 " + bytes(243), "ppm-letters": b"P3 9 9 255 " + b"x " * 243, "pfm": b"PF 9 9 -1.0 " + bytes(972),
    "webp-size": b"RIFF\xff\xff\xff\xffWEBPVP8X" + bytes(30), "jpeg-marker-length-0": b"\xff\xd8\xff\xe0\0\0" + bytes(99), "jpeg-only-ff": b"\xff\xd8" + b"\xff" * 100_000,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "empty": b"", "zeros": bytes(9999),
    "jpeg-tables-missing": b"\xff\xd8\xff\xc0\0\x0b\x08\0\x09\0\x09\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0" + bytes(99),
}  # fmt: skip
BIG = {
    "png-65000": partial(png, 65_000, 65_000), "png-2-gib-side": partial(png, 0x7FFFFFFF, 1), "png-4-gib-side": partial(png, 0xFFFFFFFF, 0xFFFFFFFF),
    "png-one-row": partial(png, 39_000_000, 1), "png-one-column": partial(png, 1, 39_000_000), "tiff-huge": partial(sized_tiff, 0xFFFFFFFF, 0xFFFFFFFF),
    "tiff-100000": partial(sized_tiff, 100_000, 100_000), "tiff-6000": partial(sized_tiff, 6_000, 6_000), "jpeg-65500": partial(jpeg_sized, 65_500, 65_500), "jpeg-6000": partial(jpeg_sized, 6_000, 6_000),
    "png-flat-39-mp": partial(flat_png, 6_208), "png-flat-rgba-39-mp": partial(flat_png, 6_208, 4), "ppm-ascii-9-mp": ascii_ppm,
    "png-5-million-chunks": crowded_png, "png-icc-64-mib": lambda: icc(bytes(64 << 20)), "png-icc-junk": lambda: icc(b"junk"),
    "png-icc-900-kib": lambda: icc(bytes(900 << 10)), "png-text-64-mib": lambda: text(b"c", 64 << 20), "png-text-many": lambda: text(b"c", 1 << 20, 200),
    "gif-animated": partial(animated, "GIF"), "webp-animated": partial(animated, "WEBP"), "apng": partial(animated, "PNG"), "tiff-300-pages": partial(animated, "TIFF"),
    "webp-flat-16383": lambda: saved("WEBP", Image.new("L", (16_383, 2_400)), lossless=True, quality=0, method=0),
    "tiff-deflate-39-mp": lambda: saved("TIFF", Image.new("L", (6_200, 6_200)), compression="tiff_adobe_deflate"),
    "gif-flat-39-mp": lambda: saved("GIF", Image.new("L", (6_200, 6_200))),
    "jpeg-cmyk-16-mp": lambda: saved("JPEG", Image.new("CMYK", (4_000, 4_000))), "png-i16-16-mp": lambda: saved("PNG", Image.new("I;16", (4_000, 4_000))),
}  # fmt: skip


def bombs() -> bytes:
    """Three hundred images of 39 million pixels, each of which fits in 38 KB."""
    big = flat_png(6_208)
    members = {f"{'ab'[i % 2]}/{i}.png": big for i in range(300)}
    return zipped(members, zipfile.ZIP_DEFLATED)


def crashers() -> bytes:
    return zipped({f"{'ab'[i % 2]}/{i}.jpg": EXIF["orientation-text"] for i in range(400)})


CASES = [
    *(Case(f"image-exif-{key}", lambda data=data: among(data), EITHER) for key, data in EXIF.items()),
    *(Case(f"image-damaged-{key}", lambda data=data: among(data), (SPOILT, TAKEN)) for key, data in DAMAGED.items()),
    *(Case(f"image-big-{key}", lambda make=make: among(make()), EITHER) for key, make in BIG.items()),
    *(Case(f"image-jpeg-cut-{percent}", lambda percent=percent: among(cut_at(BASELINE, percent / 100)), (SPOILT, TAKEN))
      for percent in (1, 10, 40, 70, 95)),
    *(Case(f"image-progressive-cut-{percent}", lambda percent=percent: among(cut_at(PROGRESSIVE, percent / 100)), (SPOILT, TAKEN))
      for percent in (10, 50, 90)),
    *(Case(f"image-{kind.lower()}-cut-half", lambda kind=kind: among(cut_at(saved(kind), 0.5)), (SPOILT, TAKEN))
      for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")),
    Case("image-300-bombs", bombs, (SPOILT, "archive_bomb")),
    Case("image-400-that-crash", crashers, EITHER),
]  # fmt: skip
