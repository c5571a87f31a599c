"""What a prediction request may carry: each format as ingest would read it, each kind of rubbish with its own code."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.datasets.decode import decode_image, fit_pixels
from service.errors import WinnowError
from service.serving.arrays import MAX_JSON_BYTES
from service.serving.inputs import InputLimits, Source, open_source

SHAPE = (8, 8, 3)
LIMITS = InputLimits(images=20, pixels=10_000, unfolded_bytes=1_000_000)
BOUNDARY = "a-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"

Images = NDArray[np.uint8]


def random_images(*shape: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def file_of(pixels: Images, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, kind)
    return buffer.getvalue()


def npz_of(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def form_of(*parts: tuple[str, str, bytes], end: bool = True) -> bytes:
    body = b""
    for field, name, data in parts:
        disposition = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'
        body += f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: image/png\r\n\r\n".encode() + data + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode() if end else body


def opened(body: bytes, content_type: str = "", shape: tuple[int, int, int] = SHAPE) -> Source:
    return open_source(body, content_type, shape, LIMITS)


def read(body: bytes, content_type: str = "", shape: tuple[int, int, int] = SHAPE) -> Images:
    batches = list(opened(body, content_type, shape).batches(4))
    assert all(len(batch) == 4 for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= 4
    return np.concatenate(batches)


def code_of(body: bytes, content_type: str = "") -> str:
    with pytest.raises(WinnowError) as refusal:
        read(body, content_type)
    return refusal.value.code


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_an_image_file_is_read_as_at_ingest(kind: str) -> None:
    data = file_of(random_images(13, 9, 3), kind)
    wanted = decode_image(data, size=8, channels=3)
    np.testing.assert_array_equal(read(data, "application/octet-stream"), wanted[None])
    np.testing.assert_array_equal(read(data, "text/plain; says=nothing"), wanted[None])


@pytest.mark.parametrize("shape", [(6, 8, 8, 3), (6, 8, 8, 1), (6, 8, 8), (6, 13, 9, 3), (6, 13, 9)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["npz", "json"])
def test_an_array_is_fitted_as_at_ingest(shape: tuple[int, ...], channels: int, form: str) -> None:
    images = random_images(*shape)
    body = npz_of(images=images) if form == "npz" else orjson.dumps({"images": images.tolist()})
    flat = images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
    wanted = np.stack([fit_pixels(image, size=8, channels=channels) for image in flat])
    np.testing.assert_array_equal(read(body, shape=(8, 8, channels)), wanted)


def test_a_form_keeps_the_order_of_its_files() -> None:
    images = random_images(9, 8, 8, 3)
    body = form_of(*(("images", f"{index}.png", file_of(image)) for index, image in enumerate(images)))
    np.testing.assert_array_equal(read(body, FORM), images)


def test_a_file_that_holds_a_boundary_of_its_own_is_whole() -> None:
    image = random_images(8, 8, 3)
    tricky = file_of(image) + f"\r\n--{BOUNDARY[:-1]}".encode()
    np.testing.assert_array_equal(read(form_of(("images", "a.png", tricky)), FORM)[0], image)


def test_nothing_is_decoded_before_it_is_needed() -> None:
    good, bad = file_of(random_images(8, 8, 3)), b"\x89PNG\r\n\x1a\nand no more"
    batches = opened(form_of(*[("images", "a", good)] * 4, ("images", "b", bad)), FORM).batches(4)
    assert len(next(batches)) == 4
    with pytest.raises(WinnowError, match=r"Image 4 \(b\)") as refusal:
        next(batches)
    assert refusal.value.code == "image_undecodable"
    assert refusal.value.details["image"] == 4


def stored_npz(header: bytes, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", header + data)
    return buffer.getvalue()


def npy_header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


PICTURE = file_of(random_images(8, 8, 3))
ARRAYS = npz_of(images=random_images(2, 8, 8, 3))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "no_images"),
        (b"neither this nor that", "unknown_body"),
        (b"\x93NUMPY\x01\x00", "unknown_body"),
        (PICTURE[:40], "image_undecodable"),
        (file_of(random_images(200, 90, 3)), "image_undecodable"),  # over the limit of pixels
        (ARRAYS[:60], "damaged_npz"),
        (ARRAYS.replace(b"images.npy", b"../../.npy"), "missing_array"),
        (npz_of(pictures=random_images(2, 8, 8, 3)), "missing_array"),
        (npz_of(images=np.zeros((2, 8, 8, 3), np.float32)), "images_not_uint8"),
        (npz_of(images=np.zeros((2, 8, 8, 3), np.int64)), "images_not_uint8"),
        (npz_of(images=np.zeros((2, 8, 8, 3), bool)), "images_not_uint8"),
        (npz_of(images=np.array([None, {}], object)), "pickled_array"),
        (npz_of(images=np.asfortranarray(random_images(2, 8, 8, 3))), "bad_image_shape"),
        (npz_of(images=random_images(8, 8, 3)), "bad_image_shape"),  # one image without its first axis
        (npz_of(images=random_images(2, 8, 8, 4)), "bad_image_shape"),
        (npz_of(images=random_images(64)), "bad_image_shape"),
        (npz_of(images=random_images(0, 8, 8, 3)), "no_images"),
        (npz_of(images=np.uint8(3)), "no_images"),
        (npz_of(images=random_images(21, 8, 8, 3)), "too_many_images"),
        (npz_of(images=random_images(1, 101, 100, 3)), "image_too_large"),
        (stored_npz(npy_header((2, 8, 8, 3)), bytes(100)), "damaged_npz"),  # shorter than it says
        (stored_npz(npy_header((2, 8, 8, 3)), bytes(400)), "damaged_npz"),  # longer than it says
        (stored_npz(npy_header((20, 90, 9000, 3)), b""), "image_too_large"),
        (stored_npz(b"\x93NUMPY\x09\x00", b""), "damaged_npz"),
        (stored_npz(b"no header", b""), "damaged_npz"),
        (b"{", "malformed_json"),
        (b"[1, 2]", "missing_array"),
        (b'{"image": []}', "missing_array"),
        (b'{"images": [], "alpha": 0.1}', "unknown_field"),
        (b'{"images": []}', "no_images"),
        (b'{"images": 5}', "no_images"),
        (b'{"images": [[[1, 2], [3]]]}', "bad_image_shape"),
        (b'{"images": [[[1, 2], [3, 256]]]}', "images_not_uint8"),
        (b'{"images": [[[1, 2], [3, -1]]]}', "images_not_uint8"),
        (b'{"images": [[[0.5, 2], [3, 1]]]}', "images_not_uint8"),
        (b'{"images": [[[true, false], [true, true]]]}', "images_not_uint8"),
        (b'{"images": [[["a", "b"], ["c", "d"]]]}', "images_not_uint8"),
        (b'{"images": [[[null, 1], [2, 3]]]}', "images_not_uint8"),
        (b'{"images": [1, 2, 3]}', "bad_image_shape"),
        (b'{"images": "' + b"a" * MAX_JSON_BYTES + b'"}', "body_too_large"),
    ],
)
def test_rubbish_is_told_what_is_wrong_with_it(body: bytes, code: str) -> None:
    assert code_of(body) == code


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (form_of(), FORM, "no_images"),
        (form_of(("picture", "a.png", PICTURE)), FORM, "unknown_field"),
        (form_of(("images", "a.png", PICTURE), ("alpha", "", b"0.1")), FORM, "unknown_field"),
        (form_of(("images", "a.png", PICTURE), end=False), FORM, "malformed_form"),
        (form_of(("images", "a.png", PICTURE))[:-30], FORM, "malformed_form"),
        (form_of(("images", "a.png", PICTURE)), "multipart/form-data", "malformed_form"),
        (form_of(("images", "a.png", PICTURE)), FORM + "x" * 5000, "malformed_form"),
        (PICTURE, FORM, "malformed_form"),
        (b"", FORM, "malformed_form"),
        (form_of(*[("images", "a.png", PICTURE)] * 21), FORM, "too_many_images"),
        (form_of(("images", "notes.txt", b"not an image")), FORM, "image_undecodable"),
    ],
)
def test_a_form_is_told_what_is_wrong_with_it(body: bytes, content_type: str, code: str) -> None:
    assert code_of(body, content_type) == code


def test_an_npz_that_unfolds_too_far_is_refused_by_its_header() -> None:
    limits = InputLimits(images=20, pixels=10_000, unfolded_bytes=400_000)
    bomb = npz_of(images=np.zeros((20, 90, 90, 3), np.uint8))
    assert len(bomb) < 5_000
    assert len(read(bomb)) == 20, "a higher limit lets it pass"
    with pytest.raises(WinnowError) as refusal:
        open_source(bomb, "", SHAPE, limits)
    assert refusal.value.code == "body_too_large"


def test_a_flipped_bit_inside_an_npz_is_found() -> None:
    body = bytearray(stored_npz(npy_header((2, 8, 8, 3)), random_images(2, 8, 8, 3).tobytes()))
    place = body.index(random_images(2, 8, 8, 3).tobytes())
    body[place + 100] ^= 1
    assert code_of(bytes(body)) == "damaged_npz"


def test_a_file_name_is_repeated_in_part_only() -> None:
    with pytest.raises(WinnowError) as refusal:
        read(form_of(("images", "long" * 1000, b"no image")), FORM)
    assert len(refusal.value.message) < 400
