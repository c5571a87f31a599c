"""Uploads: what is read, and what is refused as a whole, with which code."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from service.datasets.readers import open_upload
from service.datasets.sample import Layout, Limits
from service.errors import WinnowError

LIMITS = Limits(max_images=100, max_image_bytes=100_000, max_image_pixels=10_000, max_unpacked_bytes=2_000_000)


def png(value: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(members: dict[str, bytes], edit: Callable[[zipfile.ZipInfo], None] | None = None) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            if edit is not None:
                edit(info)
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    buffer.seek(0)
    return buffer


def npz(**arrays: object) -> io.BytesIO:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    buffer.seek(0)
    return buffer


def refused(file: io.BytesIO, limits: Limits = LIMITS) -> str:
    with pytest.raises(WinnowError) as caught:
        upload = open_upload(file, limits)
        list(upload.samples())
    return caught.value.code


def test_class_folders_in_the_order_of_their_names() -> None:
    upload = open_upload(zipped({"b/2.png": png(2), "a/1.png": png(1), "b/1.png": png(3)}), LIMITS)
    assert upload.classes == ["a", "b"]
    assert [(sample.path, sample.label) for sample in upload.samples()] == [
        ("a/1.png", 0),
        ("b/1.png", 1),
        ("b/2.png", 1),
    ]
    assert upload.layout() is None


def test_one_folder_around_the_classes_is_looked_through() -> None:
    assert open_upload(zipped({"set/a/1.png": png(), "set/b/1.png": png()}), LIMITS).classes == ["a", "b"]


def test_deeper_folders_belong_to_their_class() -> None:
    assert open_upload(zipped({"a/x/1.png": png(), "b/1.png": png()}), LIMITS).classes == ["a", "b"]


def test_clutter_is_passed_over() -> None:
    members = {"a/1.png": png(), "b/1.png": png(), "__MACOSX/a/._1.png": b"x", "a/.DS_Store": b"x", "README.txt": b"x"}
    assert open_upload(zipped(members), LIMITS).num_samples == 2


def test_a_file_too_large_is_a_rejected_sample_not_a_failed_upload() -> None:
    noise = np.random.default_rng(0).bytes(LIMITS.max_image_bytes + 1)
    samples = list(open_upload(zipped({"a/1.png": png(), "b/big.png": noise}), LIMITS).samples())
    assert [sample.problem is not None for sample in samples] == [False, True]


@pytest.mark.parametrize("name", ["../a/1.png", "/etc/1.png", "a/../../1.png", "C:/a/1.png", "a\\..\\..\\1.png"])
def test_paths_that_lead_out_are_refused(name: str) -> None:
    assert refused(zipped({name: png(), "b/1.png": png()})) == "unsafe_path"


def test_links_are_refused() -> None:
    def link(info: zipfile.ZipInfo) -> None:
        info.external_attr = 0o120777 << 16

    assert refused(zipped({"a/1.png": b"/etc/passwd"}, link)) == "unsafe_path"


def test_images_outside_of_folders_are_refused() -> None:
    assert refused(zipped({"1.png": png()})) == "no_class_folder"


def test_an_archive_without_images_is_refused() -> None:
    assert refused(zipped({"a/readme.txt": b"x"})) == "no_images"
    assert refused(zipped({})) == "no_images"


def test_too_many_images_are_refused() -> None:
    assert refused(zipped({f"a/{i}.png": b"" for i in range(101)})) == "too_large"


def test_too_many_bytes_are_refused() -> None:
    assert refused(zipped({f"a/{i}.png": bytes(90_000) for i in range(30)})) == "too_large"


def test_a_cut_archive_is_refused() -> None:
    whole = zipped({"a/1.png": png(), "b/1.png": png()}).getvalue()
    assert refused(io.BytesIO(whole[: len(whole) // 2])) == "broken_archive"


def test_a_flipped_byte_spoils_one_image_only() -> None:
    noise = [np.random.default_rng(i).bytes(3000) for i in range(2)]
    data = bytearray(zipped({"a/1.png": noise[0], "b/1.png": noise[1]}).getvalue())
    data[1000] ^= 0xFF
    samples = list(open_upload(io.BytesIO(bytes(data)), LIMITS).samples())
    assert [sample.problem is not None for sample in samples] == [True, False]


@pytest.mark.parametrize("data", [b"", gzip.compress(b"no tar", mtime=0), b"%PDF-1.7", b"\x80\x04\x95pickle"])
def test_other_formats_are_named_unknown(data: bytes) -> None:
    assert refused(io.BytesIO(data)) == "unknown_format"


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x", "y"), ("x_train", "y_train")])
def test_npz_by_each_of_its_names(images: str, labels: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    upload = open_upload(npz(**{images: pixels, labels: np.array([10, 2, 10, 2])}), LIMITS)
    assert upload.classes == ["2", "10"]
    samples = list(upload.samples())
    assert [sample.label for sample in samples] == [1, 0, 1, 0]
    assert all((sample.data == image).all() for sample, image in zip(samples, pixels, strict=True))
    assert (upload.pixels(samples[0], size=8, channels=3) == pixels[0]).all()


def test_npz_of_grey_images_and_groups() -> None:
    upload = open_upload(
        npz(images=np.zeros((3, 8, 8), np.uint8), labels=np.arange(3), groups=np.array([7, 7, 9])), LIMITS
    )
    assert [sample.group for sample in upload.samples()] == ["7", "7", "9"]
    assert upload.layout() == Layout((8, 8), grey=True)


BAD_NPZ = [
    ({"labels": np.arange(2)}, "missing_array"),
    ({"images": np.zeros((2, 8, 8), np.uint8)}, "missing_array"),
    ({"images": np.zeros((2, 8, 8), np.float32), "labels": np.arange(2)}, "images_not_uint8"),
    ({"images": np.zeros((2, 8, 8, 4), np.uint8), "labels": np.arange(2)}, "bad_image_shape"),
    ({"images": np.zeros((2, 8), np.uint8), "labels": np.arange(2)}, "bad_image_shape"),
    ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.arange(0)}, "no_images"),
    ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.arange(3)}, "labels_do_not_match"),
    ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.array([0.5, 1.5])}, "labels_not_integers"),
    ({"images": np.zeros((101, 8, 8), np.uint8), "labels": np.arange(101)}, "too_large"),
    ({"images": np.zeros((1, 200, 200), np.uint8), "labels": np.arange(1)}, "too_large"),
    ({"images": np.array([object()], dtype=object), "labels": np.arange(1)}, "pickled_array"),
]


@pytest.mark.parametrize(("arrays", "code"), BAD_NPZ, ids=[f"{code}-{i}" for i, (_, code) in enumerate(BAD_NPZ)])
def test_npz_that_is_refused(arrays: dict[str, object], code: str) -> None:
    assert refused(npz(**arrays)) == code


def test_npz_whose_header_lies_about_its_length() -> None:
    good = io.BytesIO()
    np.save(good, np.zeros((2, 8, 8), np.uint8))
    labels = io.BytesIO()
    np.save(labels, np.arange(2))
    lying = good.getvalue()[:-32]
    assert refused(zipped({"images.npy": lying, "labels.npy": labels.getvalue()})) == "broken_archive"
