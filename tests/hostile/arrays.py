"""Hostile npz and IDX: pickles, headers that lie, shapes beyond memory."""
# ruff: noqa: E501 (tables of bytes, a file an entry)

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
from functools import partial

import numpy as np

from tests.hostile.cases import SPOILT, TAKEN, Case, cut_at, zipped
from tests.service.uploads import IMAGES, LABELS, idx, idx_pair, npz_of, zip_of

NPZ = npz_of(images=IMAGES, labels=LABELS)


class Boom:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("touch winnow-was-here",)


def npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def head(text: bytes, body: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """A .npy whose header is that text."""
    length = struct.pack("<H", len(text)) if version == b"\1\0" else struct.pack("<L", len(text))
    return b"\x93NUMPY" + version + length + text + body


def described(descr: bytes, shape: bytes, fortran: bytes = b"False") -> bytes:
    return b"{'descr': " + descr + b", 'fortran_order': " + fortran + b", 'shape': " + shape + b", }\n"


def with_member(name: str, data: bytes) -> bytes:
    given = {"images.npy": npy(IMAGES), "labels.npy": npy(LABELS)}
    return zipped({**given, f"{name}.npy": data})


def flat(count: int, side: int, **more: np.ndarray) -> bytes:
    """A set of black images, which takes next to nothing."""
    labels = (np.arange(count) % 2).astype(np.uint8)
    return npz_of(images=np.zeros((count, side, side), np.uint8), labels=labels, **more)


OBJECTS = np.array([Boom()] * len(LABELS), dtype=object)
IMAGE_HEADS = {
    "huge": described(b"'|u1'", b"(8, 1000000000, 1000000000)"), "overflow": described(b"'|u1'", b"(%d, %d, 3)" % (1 << 63, 1 << 63)),
    "negative": described(b"'|u1'", b"(-8, 9, 9, 3)"), "zero": described(b"'|u1'", b"(0, 9, 9, 3)"), "scalar": described(b"'|u1'", b"()"),
    "deep": described(b"'|u1'", b"(" + b"1," * 100 + b")"), "bools": described(b"'|u1'", b"(True, True, True)"),
    "fortran": described(b"'|u1'", b"(8, 9, 9, 3)", b"True"), "structured": described(b"[('a', '|u1'), ('b', '|O')]", b"(8,)"),
    "object": described(b"'|O'", b"(8, 9, 9, 3)"), "void-huge": described(b"'|V2000000000'", b"(8, 9, 9)"),
    "void-overflow": described(b"'|V99999999999'", b"(8, 9, 9)"), "nested-dtype": described(b"[('a', " * 60 + b"'|u1'" + b")]" * 60, b"(8,)"),
    "subarray": described(b"('|u1', (1000000, 1000000))", b"(8,)"), "minus": b"-" * 9000 + b"1", "parentheses": b"(" * 9000,
    "unhashable": b"{[]: 1}", "names": b"__import__('os').system('touch winnow-was-here')", "unclosed": b"{'descr': '''",
    "tabs": b"  \t{'descr'\n\t :", "nul": b"\0" * 100, "not-latin": "{'descr': 'ÿ'}".encode("latin1"), "bytes-key": b"{b'descr': 1}",
    "set": b"{1, 2}", "empty": b"", "ratio": b"9" * 5000, "power": b"{'descr': 10**10, 'fortran_order': False, 'shape': (1,)}",
    "time": described(b"'<M8[999999999999Y]'", b"(8, 9, 9)"), "comma": described(b"'u1,u1'", b"(8, 9, 9)"),
    "descr-tuple": described(b"('a',)", b"(8, 9, 9)"), "descr-none": described(b"None", b"(8, 9, 9)"), "descr-list": described(b"[()]", b"(8,)"),
}  # fmt: skip
WORDS = np.array([f"g{i}" for i in range(8)])
GROUPS = {
    "itemsize-0": head(described(b"'<U0'", b"(8,)")), "bytes-0": head(described(b"'|S0'", b"(8,)")),
    "surrogate": head(described(b"'<U1'", b"(8,)"), struct.pack("<8L", *[0xD800] * 8)),
    "beyond-unicode": head(described(b"'<U1'", b"(8,)"), struct.pack("<8L", *[0x110000] * 8)),
    "control": head(described(b"'<U1'", b"(8,)"), struct.pack("<8L", *[27] * 8)), "object": npy(OBJECTS, pickled=True),
    "floats": npy(np.full(8, np.nan)), "wide": npy(np.array(["x" * 2000] * 8)), "complex": npy(np.zeros(8, complex)),
}  # fmt: skip
CLASSES = {
    "surrogate": head(described(b"'<U1'", b"(2,)"), struct.pack("<2L", 0xD800, 0xD801)),
    "beyond-unicode": head(described(b"'<U1'", b"(2,)"), struct.pack("<2L", 0x110000, 0x7FFFFFFF)),
    "control": npy(np.array(["a\x1b[2J", "b\nc"])), "itemsize-0": head(described(b"'<U0'", b"(2,)")),
    "object": npy(np.array([Boom(), Boom()], object), pickled=True), "huge": head(described(b"'<U1'", b"(1000000000,)")),
}  # fmt: skip


def crowd(width: int) -> bytes:
    """A million images of one pixel, each with a group's name that is wide."""
    return flat(1_000_000, 1, groups=np.zeros(1_000_000, f"<U{width}"))


def idx_head(*shape: int, kind: int = 8, dims: int | None = None) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape) if dims is None else dims, *shape)


def idx_set(images: bytes, labels: bytes | None = None) -> bytes:
    return zip_of({"images": images, "labels": idx(LABELS) if labels is None else labels})


PAIR = idx_pair(zipped=False)
PIXELS = next(iter(PAIR.values()))
IDX = {
    "huge": idx_set(idx_head(1 << 31, 1 << 31, 1 << 31)), "overflow": idx_set(idx_head(*[0xFFFFFFFF] * 3)),
    "zero": idx_set(idx_head(0, 28, 28)), "no-dims": idx_set(idx_head(dims=0)), "255-dims": idx_set(idx_head(8, 9, 9, dims=255)),
    "floats": idx_set(idx_head(8, 9, 9, kind=0x0D) + bytes(8 * 81 * 4)), "unknown-kind": idx_set(idx_head(8, 9, 9, kind=0x55)),
    "wide": idx_set(idx_head(8, 1, 0x7FFFFFFF)), "labels-longer": idx_set(PIXELS, idx_head(1 << 31) + bytes(9)),
    "labels-cut": idx_set(PIXELS, idx(LABELS)[:-1]), "labels-short": idx_set(PIXELS, idx(LABELS[:3])), "images-cut": idx_set(PIXELS[:-1]),
    "labels-twice": zip_of({"i": PIXELS, "l": idx(LABELS), "k": idx(LABELS)}), "no-labels": idx_set(PIXELS, PIXELS),
    "gz-cut": idx_set(gzip.compress(PIXELS)[:-30]), "gz-of-gz": idx_set(gzip.compress(gzip.compress(PIXELS))),
    "gz-tail": idx_set(gzip.compress(PIXELS) + b"tail"), "one-label": idx_set(PIXELS, idx(np.zeros(8))),
    "negative-labels": idx_set(PIXELS, idx_head(8, kind=9) + bytes([255, 1] * 4)),
}  # fmt: skip
FINE = {"gz-tail", "negative-labels"}

CASES = [
    *(Case(f"npy-head-{key}", partial(with_member, "images", head(text, bytes(8 * 81 * 3)))) for key, text in IMAGE_HEADS.items()),
    *(Case(f"npz-groups-{key}", partial(with_member, "groups", data)) for key, data in GROUPS.items()),
    *(Case(f"npz-classes-{key}", partial(with_member, "classes", data), ("bad_class_names", "pickled_array", "broken_archive"))
      for key, data in CLASSES.items()),
    *(Case(f"idx-{key}", lambda data=data: data, (TAKEN,) if key in FINE else ()) for key, data in IDX.items()),
    Case("npz-pickle-labels", lambda: with_member("labels", npy(OBJECTS, pickled=True)), ("pickled_array",)),
    Case("npz-pickle-images", lambda: with_member("images", npy(OBJECTS, pickled=True)), ("pickled_array",)),
    Case("npz-pickle-raw", lambda: with_member("labels", pickle.dumps(Boom())), ("broken_archive",)),
    Case("pickle-alone", lambda: pickle.dumps([Boom()] * 99), ("unknown_format",)),
    Case("npy-alone", lambda: npy(IMAGES), ("unknown_format",)),
    Case("npy-version-2", lambda: with_member("images", head(described(b"'|u1'", b"(8, 9, 9, 3)"), IMAGES.tobytes(), b"\2\0")), (TAKEN,)),
    Case("npy-version-9", lambda: with_member("images", head(described(b"'|u1'", b"(8, 9, 9, 3)"), b"", b"\x09\0")), ("broken_archive",)),
    Case("npy-header-4-gib", lambda: with_member("images", b"\x93NUMPY\2\0\xff\xff\xff\xff{"), ("broken_archive",)),
    Case("npy-magic-alone", lambda: with_member("images", b"\x93NUMPY"), ("broken_archive",)),
    Case("npz-labels-huge", lambda: with_member("labels", head(described(b"'<i8'", b"(1000000000000,)"))), ("labels_do_not_match",)),
    Case("npz-labels-2d", lambda: with_member("labels", npy(np.zeros((8, 8), int))), ("labels_do_not_match",)),
    Case("npz-labels-extreme", lambda: with_member("labels", npy(np.array([0, (1 << 64) - 1] * 4, np.uint64)))),
    Case("npz-without-labels", lambda: npz_of(images=IMAGES), ("missing_array",)),
    Case("npz-names-itself-twice", lambda: NPZ.replace(b"labels.npy", b"images.npy")),
    Case("npz-5-million-pixels", lambda: flat(5_000_000, 1), ("archive_bomb",)),
    Case("npz-groups-1-gib", partial(crowd, 256)),
    Case("npz-giant-image", lambda: flat(2, 20_000), ("too_large",)),
    Case("npz-flat-36-mp", lambda: flat(8, 6_000), ("archive_bomb",)),
    Case("npz-stored-lzma", lambda: zipped({"images.npy": npy(IMAGES), "labels.npy": npy(LABELS)}, zipfile.ZIP_LZMA)),
    Case("npz-wrong-crc", lambda: NPZ.replace(struct.pack("<L", zipfile.ZipFile(io.BytesIO(NPZ)).infolist()[0].CRC), b"\0" * 4)),
    Case("idx-empty-gz-streams", lambda: idx_set(gzip.compress(b"") * 2_000_000)),
    Case("npz-50-arrays", lambda: npz_of(images=IMAGES, labels=LABELS, **{f"x{i}": np.zeros(9) for i in range(50)}), (TAKEN,)),
    Case("npz-image-spoilt", lambda: zipped({"images.npy": npy(IMAGES)[:-1], "labels.npy": npy(LABELS)}), ("broken_archive", SPOILT)),
    *(Case(f"npz-cut-{percent}", lambda percent=percent: cut_at(NPZ, percent / 100)) for percent in (2, 30, 60, 90, 99)),
    *(Case(f"idx-cut-{percent}", lambda percent=percent: cut_at(zip_of(PAIR), percent / 100)) for percent in (2, 30, 60, 90, 99)),
]  # fmt: skip
