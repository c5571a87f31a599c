"""Every format in: the same images and labels come out, and what is hostile is refused with its code."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.datasets import parquet_process
from service.datasets.readers import open_upload
from service.datasets.sample import Limits, Sample
from service.errors import WinnowError
from tests.service.uploads import (
    FILES,
    IMAGES,
    LABELS,
    NAMES,
    UPLOADS,
    folders,
    idx,
    idx_pair,
    keyed,
    npz_of,
    parquet_of,
    tar_of,
    zip_of,
)

LIMITS = Limits(max_images=100, max_image_bytes=100_000, max_image_pixels=10_000, max_unpacked_bytes=2_000_000)
WIDE = Limits(max_images=5_000_000, max_image_bytes=64 << 20, max_image_pixels=40_000_000, max_unpacked_bytes=80 << 30)


def read(data: bytes, limits: Limits = LIMITS, split: str | None = None) -> tuple[list[str], list[Sample]]:
    upload = open_upload(io.BytesIO(data), limits, split=split)
    samples = list(upload.samples())
    assert len(samples) == upload.num_samples
    return upload.classes, samples


def code_of(data: bytes, limits: Limits = LIMITS, split: str | None = None) -> str:
    with pytest.raises(WinnowError) as caught:
        read(data, limits, split)
    return caught.value.code


def wanted() -> list[tuple[str, bytes]]:
    return sorted((NAMES[label], image.tobytes()) for label, image in zip(LABELS, IMAGES, strict=True))


@pytest.mark.parametrize("form", UPLOADS)
def test_every_format_gives_the_same_pixels_under_the_same_names(form: str) -> None:
    upload = open_upload(io.BytesIO(UPLOADS[form]), LIMITS)
    samples = list(upload.samples())
    found = [(upload.classes[one.label], upload.pixels(one, size=9, channels=3).tobytes()) for one in samples]
    assert sorted(found) == wanted()
    assert upload.classes == list(NAMES)
    assert len({sample.path for sample in samples}) == len(IMAGES)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_idx_pair_is_read_whatever_its_files_are_called(zipped: bool) -> None:
    members = dict(zip(("a.bin", "b.bin"), idx_pair(zipped=zipped).values(), strict=True))
    classes, samples = read(zip_of(members))
    assert classes == ["0", "1"]
    assert [sample.label for sample in samples] == LABELS.tolist()
    assert all((sample.data[..., 0] == image[..., 0]).all() for sample, image in zip(samples, IMAGES, strict=True))


def test_webdataset_classes_without_names_are_called_by_their_numbers() -> None:
    assert read(tar_of(keyed("cls")))[0] == ["0", "1"]


def test_webdataset_classes_keep_the_order_of_their_numbers() -> None:
    members = keyed()
    flipped = {name: data.replace(b'"label": 1', b'"label": -1') for name, data in members.items()}
    assert read(tar_of(flipped))[0] == ["stop", "no entry"]


SPLIT = {**folders("train/"), "test/stop/9.png": FILES[0], "test/no entry/8.png": FILES[1]}


@pytest.mark.parametrize("prefix", ["", "signs/"])
@pytest.mark.parametrize(("split", "count"), [(None, 10), ("all", 10), ("train", 8), ("training", 8), ("test", 2)])
@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_splits_are_kept_out_of_class_names(
    pack: Callable[[dict[str, bytes]], bytes], split: str | None, count: int, prefix: str
) -> None:
    members = {f"{prefix}{name}": data for name, data in SPLIT.items()}
    classes, samples = read(pack(members), split=split)
    assert classes == list(NAMES)
    assert len(samples) == count


@pytest.mark.parametrize("data", [zip_of(SPLIT), zip_of(folders()), parquet_of(), UPLOADS["npz"], zip_of(idx_pair())])
def test_a_split_that_is_not_there_is_said(data: bytes) -> None:
    assert code_of(data, split="validation") == "no_such_split"


def test_splits_of_arrays() -> None:
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:2], "y_test": np.array([7, 1])}
    assert read(npz_of(**arrays))[0] == ["0", "1", "7"]
    assert read(npz_of(**arrays), split="train")[0] == ["0", "1"]
    assert [sample.label for sample in read(npz_of(**arrays), split="test")[1]] == [1, 0]
    pair = {**idx_pair(), "t10k-images-idx3-ubyte": idx(IMAGES[:2, ..., 0]), "t10k-labels-idx1-ubyte": idx(LABELS[:2])}
    assert len(read(zip_of(pair))[1]) == 10
    assert len(read(zip_of(pair), split="test")[1]) == 2


def test_folders_called_train_and_test_may_be_classes() -> None:
    assert read(zip_of({"train/1.png": FILES[0], "test/2.png": FILES[1]}))[0] == ["test", "train"]


def test_images_and_tables_that_do_not_agree_are_rows_of_the_report() -> None:
    table = b"file_name,label\n0.png,a\n1.png,b\ngone.png,a"
    _, samples = read(zip_of({"metadata.csv": table, "0.png": FILES[0], "1.png": FILES[1], "2.png": FILES[2]}))
    assert {sample.path: sample.problem is None for sample in samples} == {
        "0.png": True, "1.png": True, "2.png": False, "gone.png": False,
    }  # fmt: skip


def test_a_table_without_labels_leaves_them_to_the_folders() -> None:
    members = {**folders(), "metadata.csv": b"file_name,text\nstop/1.png,a red sign"}
    assert read(zip_of(members))[0] == list(NAMES)


def test_integer_labels_of_a_table_are_in_numeric_order() -> None:
    table = b"file_name,label,group\n0.png,10,x\n1.png,2,y"
    classes, samples = read(zip_of({"metadata.csv": table, "0.png": FILES[0], "1.png": FILES[1]}))
    assert classes == ["2", "10"]
    assert [(sample.label, sample.group) for sample in samples] == [(1, "x"), (0, "y")]


BAD_TABLES = [
    b"file_name,label\n../0.png,a",
    b"file_name,label\n0.png,",
    b"label\na",
    b"file_name,label\n0.png," + b"x" * 300,
    b'file_name,label\n"0.png,a',
    b"file_name,label\n0.png,\xff",
    b"file_name,label\n" + b"x" * (1 << 20),
]


@pytest.mark.parametrize("table", BAD_TABLES, ids=range(len(BAD_TABLES)))
def test_a_bad_table_is_refused(table: bytes) -> None:
    data = zip_of({"metadata.csv": b"file_name,label\n1.png,a\n" + table.partition(b"\n")[2], "1.png": FILES[1]})
    if table == b"label\na":
        data = zip_of({"metadata.csv": table, "1.png": FILES[1]})
    assert code_of(data, WIDE) in ("bad_metadata", "unsafe_path")


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b"[]", b'{"file_name": 1, "label": "a"}', b'{"file_name": "1.png", "label": {}}', b"{"]
)
def test_a_bad_line_of_json_is_refused(line: bytes) -> None:
    good = b'{"file_name": "1.png", "label": "a"}\n'
    assert code_of(zip_of({"metadata.jsonl": good + line, "1.png": FILES[1]}), WIDE) == "bad_metadata"


def test_parquet_rows_without_bytes_or_label_are_rows_of_the_report() -> None:
    files: list[bytes | None] = [None, *FILES[1:7], b"x" * (LIMITS.max_image_bytes + 1)]
    labels = pa.array([0, 1, None, -1, 1, 0, 0, 1])
    classes, samples = read(parquet_of(labels, files))
    assert classes == list(NAMES)
    assert [sample.problem is None for sample in samples] == [False, True, False, False, True, True, True, False]


def test_classes_that_the_metadata_names_but_no_row_has_are_left_out() -> None:
    names = ("a", "b", "c", "d")
    assert read(parquet_of(pa.array(LABELS * 2 + 1), names=names))[0] == ["b", "d"]


BAD_PARQUET = [
    (parquet_of(pa.array([0.5] * 8)), "labels_not_integers"),
    (parquet_of(pa.array([0, 1, 2, 3] * 2)), "labels_do_not_match"),
    (parquet_of(pa.array([-1] * 8)), "no_labels"),
    (parquet_of()[:-100], "broken_parquet"),
    (b"PAR1" + bytes(2000) + b"PAR1", "broken_parquet"),
    (b"PAR1" + bytes(100) + struct.pack("<I", 1 << 31) + b"PAR1", "broken_parquet"),
]


@pytest.mark.parametrize(("data", "code"), BAD_PARQUET, ids=[f"{code}-{i}" for i, (_, code) in enumerate(BAD_PARQUET)])
def test_parquet_that_is_refused(data: bytes, code: str) -> None:
    assert code_of(data) == code


def test_a_parquet_page_that_unfolds_without_end_is_refused_before_it_is_read() -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([{"bytes": bytes(28 << 20), "path": ""}] * 3, kind), "label": [0, 1, 2]})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False)
    del table
    tracemalloc.start()
    assert code_of(sink.getvalue(), WIDE) == "archive_bomb"
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def link(kind: bytes) -> bytes:
    info = tarfile.TarInfo("a/1.png")
    info.type, info.linkname = kind, "/etc/passwd"
    return info.tobuf() + bytes(1024)


def pax_name(name: bytes) -> bytes:
    record = b" path=" + name + b"\n"
    length = len(record) + len(str(len(record) + 3))
    body = str(length).encode() + record
    head = tarfile.TarInfo("x")
    head.type, head.size = b"x", len(body)
    return head.tobuf() + body + bytes(-len(body) % 512) + tar_of({"a.png": FILES[0]})


def sized(size: int) -> bytes:
    info = tarfile.TarInfo("a/1.png")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


HOSTILE_TARS = [
    (tar_of({"../1.png": FILES[0]}), "unsafe_path"),
    (tar_of({"/etc/1.png": FILES[0]}), "unsafe_path"),
    (tar_of({"a/\n1.png": FILES[0]}), "bad_name"),
    (tar_of({"a/" + "x" * 1100 + ".png": FILES[0]}), "unsafe_path"),
    (pax_name(b"a/../../1.png"), "unsafe_path"),
    (pax_name(b"a/\xff.png"), "bad_name"),
    *[(link(kind), "unsafe_path") for kind in (b"1", b"2", b"3", b"4", b"6")],
    (link(b"S"), "broken_archive"),
    (sized(1 << 40), "broken_archive"),
    (sized(0)[:512], "broken_archive"),
    (UPLOADS["tar"][:3000], "broken_archive"),
    (UPLOADS["tar.gz"][:-200], "broken_archive"),
    (UPLOADS["tar.xz"][: len(UPLOADS["tar.xz"]) // 2], "broken_archive"),
    (UPLOADS["tar.bz2"][: len(UPLOADS["tar.bz2"]) // 2], "broken_archive"),
    (UPLOADS["tar"][:1030] + b"\xff" + UPLOADS["tar"][1031:], "broken_archive"),
    (gzip.compress(zip_of(folders())), "unknown_format"),
    (gzip.compress(gzip.compress(tar_of(folders()))), "unknown_format"),
    (tar_of({"inner.tar": tar_of(folders())}), "no_images"),
    (zip_of({"a/inner.zip": zip_of(folders())}), "no_images"),
    (tar_of({"1.png": FILES[0]}), "no_class_folder"),
    (tar_of({"1.png": FILES[0], "1.cls": b"\xff"}), "bad_metadata"),
    (tar_of({"1.png": FILES[0], "1.json": b"[" * 60_000}), "bad_metadata"),
    (tar_of({"1.png": FILES[0], "1.jpg": FILES[0], "1.cls": b"0"}), "duplicate_key"),
    (tar_of({f"a/{i}.png": b"" for i in range(101)}), "too_large"),
]


@pytest.mark.parametrize(("data", "code"), HOSTILE_TARS, ids=[f"{c}-{i}" for i, (_, c) in enumerate(HOSTILE_TARS)])
def test_hostile_tars_are_refused(data: bytes, code: str) -> None:
    assert code_of(data) == code


def test_long_pax_records_are_refused_before_they_are_read() -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = b"x", 1 << 33
    assert code_of(head.tobuf(tarfile.GNU_FORMAT) + bytes(4096)) == "broken_archive"
    chain = b"".join(pax_name(b"a/1.png")[:1024] for _ in range(50))
    assert code_of(chain + tar_of(folders())) == "broken_archive"


@pytest.mark.parametrize("pack", [lambda data: gzip.compress(data, 1), lambda data: lzma.compress(data, preset=0)])
def test_a_bomb_of_zeros_is_refused_within_a_moment(pack: Callable[[bytes], bytes]) -> None:
    info = tarfile.TarInfo("a/1.png")
    info.size = 1 << 36
    pressed = pack(info.tobuf(tarfile.GNU_FORMAT) + bytes(80 << 20))
    began = time.monotonic()
    assert code_of(pressed, WIDE) == "archive_bomb"
    assert time.monotonic() - began < 5


def empty_files(count: int) -> bytes:
    """A zip of empty images, whose directory is made by hand: the library takes long for so many."""
    name = b"a/%07d.png"
    local = b"".join(
        struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, 13, 0) + name % i for i in range(count)
    )
    step = 30 + 13
    entries = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 13, 0, 0, 0, 0, 0, step * i) + name % i
        for i in range(count)
    )
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(entries), len(local), 0)
    return local + entries + end


@pytest.mark.slow
def test_very_many_empty_members_are_refused_within_a_moment() -> None:
    began = time.monotonic()
    assert code_of(empty_files(70_000), WIDE) == "archive_bomb"
    heads = b"".join(tarfile.TarInfo(f"a/{i}.png").tobuf(tarfile.USTAR_FORMAT) for i in range(1000))
    assert code_of(heads * 67, WIDE) == "archive_bomb"
    assert time.monotonic() - began < 5


def test_zip_members_that_overlap_are_refused() -> None:
    data = bytearray(zip_of({"a/1.png": FILES[0], "b/2.png": FILES[1]}))
    second = data.rfind(b"PK\1\2")
    data[second + 42 : second + 46] = bytes(4)  # the second member begins where the first does
    assert code_of(bytes(data)) == "archive_bomb"


def with_forged(data: bytes, claims: list[tuple[int, int, int]]) -> bytes:
    """The zip with more entries in its directory, of 64-bit numbers: size, packed size, offset."""
    end = data.rfind(b"PK\5\6")
    count, size, offset = struct.unpack_from("<H2L", data, end + 10)
    entries = b""
    for number, claim in enumerate(claims):
        name, extra = b"b/%d.png" % number, struct.pack("<HHQQQ", 1, 24, *claim)
        fixed = (b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1, len(name), len(extra), 0, 0, 0, 0, 2**32 - 1)
        entries += struct.pack("<4s6H3L5H2L", *fixed) + name + extra
    count += len(claims)
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size + len(entries), offset, 0)
    return data[: offset + size] + entries + tail


def test_sizes_near_the_largest_number_do_not_add_up_to_a_small_one() -> None:
    data, most = zip_of({"a/1.png": FILES[0], "b/2.png": FILES[1]}), 2**63 - 1
    assert len(read(with_forged(data, []))[1]) == 2
    assert code_of(with_forged(data, [(most, most, most), (most - 5000, most, most)])) == "archive_bomb"
    assert code_of(with_forged(data, [(most, most, 0), (most, most, most)])) == "archive_bomb"


def test_a_zip_that_lies_about_its_names_is_refused() -> None:
    data = bytearray(zip_of({"ä/1.png": FILES[0], "b/2.png": FILES[1]}))
    assert code_of(bytes(data.replace("ä".encode(), b"\xff\xfe"))) == "bad_name"


def test_zip_names_of_old_systems_are_read() -> None:
    data = zip_of({"xx/1.png": FILES[0], "b/2.png": FILES[1]}).replace(b"xx/", b"\x84x/")
    assert read(data)[0] == ["b", "äx"]


def test_reserved_names_are_only_names() -> None:
    assert read(zip_of({"CON/1.png": FILES[0], "nul/2.png": FILES[1]}))[0] == ["CON", "nul"]


def test_a_lying_length_spoils_one_image_only() -> None:
    data = bytearray(zip_of({"a/1.png": FILES[0], "b/2.png": FILES[1]}))
    first = data.find(b"PK\1\2")
    data[first + 24 : first + 28] = struct.pack("<L", 10)
    assert [sample.problem is not None for sample in read(bytes(data))[1]] == [True, False]


BAD_IDX = [
    {"a": idx(IMAGES[..., 0]), "b": idx(LABELS[:5])},
    {"a": idx(IMAGES[..., 0])[:-1], "b": idx(LABELS)},
    {"a": idx(IMAGES[..., 0]), "b": idx(LABELS)[:-1]},
    {"a": gzip.compress(idx(IMAGES[..., 0]))[:-30], "b": idx(LABELS)},
    {"a": struct.pack(">HBB3I", 0, 8, 3, 1 << 31, 1 << 31, 4), "b": idx(LABELS)},
    {"a": struct.pack(">HBB3I", 0, 8, 3, 0, 9, 9), "b": idx(LABELS)},
]


@pytest.mark.parametrize("members", BAD_IDX, ids=range(len(BAD_IDX)))
def test_bad_idx_files_are_refused(members: dict[str, bytes]) -> None:
    assert code_of(zip_of(members)) in (
        "labels_do_not_match",
        "broken_archive",
        "too_large",
        "no_images",
        "missing_array",
    )


@pytest.mark.parametrize(
    "classes",
    [np.array(["a"]), np.array(["a", "a"]), np.array([1, 2]), np.array([["a", "b"]]), np.array(["a", "x" * 2000])],
)
def test_class_names_of_an_npz_must_name_every_label(classes: np.ndarray) -> None:
    assert code_of(npz_of(images=IMAGES, labels=LABELS, classes=classes)) == "bad_class_names"


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["zip", "tar", "tar.gz", "webdataset", "npz"]),
    st.integers(0, 1 << 30),
    st.binary(min_size=1, max_size=6),
    st.booleans(),
)
def test_damage_anywhere_is_an_error_of_ours_or_a_rejected_image(
    form: str, place: int, noise: bytes, cut: bool
) -> None:
    damaged(form, place, noise, cut)


@pytest.mark.parametrize("place", [0, 40, 900, -60, -300, -700, -1000])
def test_a_damaged_parquet_file_ends_no_process_of_ours(place: int) -> None:
    damaged("parquet", place, b"\xff\x03\xa5", cut=False)


def test_a_parquet_file_that_kills_its_reader_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_process, "START", "import os; os.abort()")
    assert code_of(UPLOADS["parquet"]) == "broken_parquet"


def damaged(form: str, place: int, noise: bytes, cut: bool) -> None:
    data = bytearray(UPLOADS[form])
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place : place + len(noise)] = noise
    try:
        upload = open_upload(io.BytesIO(bytes(data)), LIMITS)
        assert len(list(upload.samples())) <= LIMITS.max_images
    except WinnowError as error:
        assert error.code not in ("internal", "invalid_input")


def test_reading_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    read(UPLOADS["tar.gz"])
    assert list(tmp_path.iterdir()) == []


def test_a_deflated_image_that_unfolds_too_far_is_refused() -> None:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a/1.png", bytes(20 << 20))
        archive.writestr("b/1.png", FILES[0])
    assert code_of(buffer.getvalue(), WIDE) == "archive_bomb"
