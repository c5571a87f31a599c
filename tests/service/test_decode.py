"""Images of every mode come out right, and broken ones are refused with a reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.datasets import decode
from service.datasets.decode import ImageRejected, decode_image, fit_pixels, read_header

RED, HALF = (255, 0, 0), 128


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_grey_stays_grey_and_becomes_rgb_on_request() -> None:
    data = encoded(Image.new("L", (8, 8), HALF))
    assert decode_image(data, size=8, channels=1).shape == (8, 8, 1)
    assert (decode_image(data, size=8, channels=3) == HALF).all()
    assert read_header(data).grey


def test_palette_gives_its_colours_not_its_indices() -> None:
    image = Image.new("RGB", (8, 8), RED).convert("P")
    assert tuple(decode_image(encoded(image), size=8, channels=3)[0, 0]) == RED


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found = decode_image(encoded(image, "TIFF"), size=8, channels=3)[0, 0]
    assert found[0] > 200
    assert max(found[1:]) < 60


def test_sixteen_bits_are_scaled_not_cut() -> None:
    values = np.array([[0, 257, 32_896, 65_535]] * 4, np.uint16)
    found = decode_image(encoded(Image.fromarray(values)), size=4, channels=1)[0, :, 0]
    assert found.tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white(mode: str) -> None:
    clear = Image.new(mode, (8, 8), (0,) * len(mode))
    assert (decode_image(encoded(clear), size=8, channels=3) == 255).all()


def test_palette_transparency_is_white_too() -> None:
    image = Image.new("RGB", (8, 8), RED).convert("P")
    data = encoded(image, transparency=image.getpixel((0, 0)))
    assert (decode_image(data, size=8, channels=3) == 255).all()


def test_exif_orientation_is_applied() -> None:
    image = Image.new("L", (8, 4), 0)
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    data = encoded(image, exif=exif)
    header = read_header(data)
    assert (header.width, header.height) == (4, 8)
    upright = np.asarray(Image.open(io.BytesIO(data)).rotate(-90, expand=True))
    assert upright[0, 3] == 255
    shown = decode_image(data, size=8, channels=1)[:, :, 0]
    assert shown[0, -1] > 100
    assert shown[:, 0].max() == 0


@pytest.mark.parametrize("told", ["exif", "xmp"])
def test_a_photograph_says_in_either_way_that_it_was_turned(told: str) -> None:
    image = Image.new("L", (16, 8), 0)
    image.paste(255, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    said = {"exif": exif, "xmp": b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'}[told]
    data = encoded(image, "JPEG", **{told: said})
    assert (read_header(data).width, read_header(data).height) == (8, 16)
    shown = decode_image(data, size=16, channels=1)[:, :, 0]
    assert shown[:6].min() > 200
    assert shown[10:].max() < 50
    assert decode_image(encoded(image, "JPEG"), size=16, channels=1)[8, 2] > 200


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(decode_image(data, size=8, channels=3)[0, 0]) == RED


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16"])
def test_strip_by_strip_gives_what_the_whole_gives(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 20, 4), dtype=np.uint8)
    image = (
        Image.fromarray(noise).convert(mode)
        if mode != "I;16"
        else Image.fromarray(noise[..., 0].astype(np.uint16) * 250)
    )
    data = encoded(image)
    whole = decode_image(data, size=37, channels=3)
    monkeypatch.setattr(decode, "STRIP_PIXELS", 100)
    assert (decode_image(data, size=37, channels=3) == whole).all()
    assert whole.std() > 10


@pytest.mark.parametrize("size", [28, 32, 64, 128])
def test_resized_to_the_working_resolution(size: int) -> None:
    data = encoded(Image.new("RGB", (50, 40), RED), "JPEG")
    assert decode_image(data, size=size, channels=3).shape == (size, size, 3)


def test_native_size_keeps_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert (decode_image(encoded(Image.fromarray(pixels)), size=32, channels=3) == pixels).all()
    assert (fit_pixels(pixels, size=32, channels=3) == pixels).all()


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ImageRejected, match="floating-point"):
        decode_image(encoded(Image.new("F", (8, 8)), "TIFF"), size=8, channels=1)


def test_a_cut_image_is_refused() -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)))
    with pytest.raises(ImageRejected, match="decoded"):
        decode_image(data[: len(data) // 2], size=8, channels=1)


def test_a_giant_is_refused_by_its_header() -> None:
    data = encoded(Image.new("1", (4000, 4000)))
    with pytest.raises(ImageRejected, match="4000×4000"):
        decode_image(data, size=8, channels=1, max_pixels=1_000_000)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\x00", b"RIFF", b""]),
)
def test_garbage_is_rejected_and_nothing_else_is_raised(garbage: bytes, magic: bytes) -> None:
    with pytest.raises(ImageRejected):
        decode_image(magic + garbage, size=8, channels=3)
