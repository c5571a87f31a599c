"""Hostile zips: bombs, names that lead out, headers that lie, files that are two things at once."""
# ruff: noqa: E501 (tables of bytes, a file an entry)

from __future__ import annotations

import gzip
import stat
import struct
import zipfile
import zlib
from functools import partial

from tests.hostile.cases import CANARY, GOOD, SPOILT, TAKEN, Case, among_good, tarred, zipped
from tests.service.uploads import FILES

LOCAL, ENTRY, END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
MILLION = 1_000_000
OUT = {
    "parent": "../1.png", "deep-parent": "a/" + "../" * 9 + str(CANARY)[1:], "absolute": str(CANARY),
    "backslash-parent": "..\\..\\1.png", "drive": "C:\\a\\1.png", "drive-alone": "c:/1.png", "unc": "\\\\host\\a\\1.png",
    "parent-at-end": "a/..", "mixed-slashes": "a/..\\../1.png", "home": "a/../../~/.ssh/authorized_keys",
}  # fmt: skip
ODD = {
    "con": "CON/1.png", "nul-device": "NUL/1.png", "com1": "com1/x.png", "trailing-dot": "a./1.png",
    "trailing-space": "a /1.png", "dot-folder": "./a/3.png", "double-slash": "a//3.png", "stream": "a/1.png:ads.png",
    "right-to-left": "a/\u202egnp.exe.png", "zero-width": "a\u200b/1.png", "combining": "e\u0301/1.png",
    "full-width-parent": "\uff0e\uff0e/1.png", "fraction-slash": "a/\u2044..\u20441.png", "astral": "\U0001f600/1.png",
    "percent": "%2e%2e/%2e%2e/1.png", "shell": "$(touch x)/`id`.png", "markup": "<script>alert(1)</script>/1.png",
    "formula": "=cmd|' /C calc'!A0/1.png", "long-part": "a/" + "x" * 300 + ".png", "kelvin": "\u212a/1.png",
    "constructor": "__proto__/1.png", "tilde": "~root/1.png", "option": "-rf/1.png", "newlines-like": "a\u2028b/1.png",
}  # fmt: skip
FORBIDDEN = {"newline": "a/\n3.png", "escape": "a/\x1b[2J.png", "bell": "\a/1.png", "delete": "a/\x7f.png"}


def _entry(name: bytes, data: bytes, *, offset: int, size: int | None = None, packed: int | None = None,
           crc: int | None = None, flags: int = 0, method: int = 0, mode: int = 0) -> bytes:  # fmt: skip
    return ENTRY.pack(
        b"PK\1\2", 20, 20, flags, method, 0, 33, zlib.crc32(data) if crc is None else crc,
        len(data) if packed is None else packed, len(data) if size is None else size,
        len(name), 0, 0, 0, 0, mode << 16, offset,
    ) + name  # fmt: skip


def by_hand(names: dict[bytes, bytes], **lies: int) -> bytes:
    """A zip of stored files; what is said of the first in the directory may be lies."""
    body, directory = bytearray(), bytearray()
    for number, (name, data) in enumerate(names.items()):
        given = {"offset": len(body)} | (lies if number == 0 else {})
        directory += _entry(name, data, **given)  # type: ignore[arg-type]
        body += LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0) + name
        body += data
    count = len(names)
    return bytes(body + directory) + END.pack(b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)


RAW = {name.encode(): data for name, data in GOOD.items()}


def lying(**lies: int) -> bytes:
    return by_hand(RAW, **lies)


def raw_name(name: bytes, flags: int = 0) -> bytes:
    return by_hand({name: FILES[0], **RAW}, flags=flags)


def many_empty(count: int, form: bytes) -> bytes:
    """`form`: a name, with a place for a number or without."""
    names = [form % i for i in range(count)] if b"%" in form else [form] * count
    size = len(names[0])
    local = LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, size, 0)
    body = b"".join([local + name for name in names])
    head, tail = _entry(b"", b"", offset=0)[:28] + struct.pack("<H", size) + bytes(12), struct.Struct("<L")
    step = LOCAL.size + size
    directory = b"".join([head + tail.pack(step * i) + name for i, name in enumerate(names)])
    return body + directory + END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(directory), len(body), 0)


def shared_body(copies: int) -> bytes:
    """Many entries over one file's bytes, as in Fifield's bomb."""
    name, data = b"a/1.png", zlib.compress(bytes(4 << 20))[2:-4]
    body = LOCAL.pack(b"PK\3\4", 20, 0, 8, 0, 33, 0, len(data), 4 << 20, len(name), 0) + name + data
    directory = b"".join(
        _entry(b"%d/1.png" % i, data, offset=0, size=4 << 20, method=8, crc=zlib.crc32(bytes(4 << 20)))
        for i in range(copies)
    )
    return body + directory + END.pack(b"PK\5\6", 0, 0, copies, copies, len(directory), len(body), 0)


def end_says(**told: int) -> bytes:
    data = zipped(GOOD)
    fields = dict(zip(("disk", "start", "here", "count", "size", "offset", "comment"), END.unpack(data[-22:])[1:],
                      strict=True)) | told  # fmt: skip
    return data[:-22] + END.pack(b"PK\5\6", *fields.values())


def nested(depth: int) -> bytes:
    data = zipped({"zeros.bin": bytes(8 << 20)})
    for _ in range(depth):
        data = zipped({f"{i}.zip": data for i in range(10)})
    return data


def linked(kind: int) -> bytes:
    return by_hand({b"a/9.png": b"/etc/passwd", **RAW}, mode=kind | 0o777)


def named(name: str) -> bytes:
    return by_hand({name.encode(): FILES[5], **RAW}, flags=0x800)


def classes(count: int) -> bytes:
    return by_hand({b"%d/1.png" % i: FILES[0] for i in range(count)})


def junk_images(count: int) -> bytes:
    """Too large to be called empty, and no images."""
    return by_hand({b"%d/%d.png" % (i % 2, i): b"no image at all.." for i in range(count)})


CASES = [
    *(Case(f"zip-out-{key}", partial(named, name), ("unsafe_path",)) for key, name in OUT.items()),
    *(Case(f"zip-name-{key}", partial(named, name), (TAKEN, "unsafe_path")) for key, name in ODD.items()),
    *(Case(f"zip-control-{key}", partial(named, name), ("bad_name",)) for key, name in FORBIDDEN.items()),
    Case("zip-name-nul", partial(raw_name, b"a/1.png\0.exe"), ("unsafe_path",)),
    Case("zip-name-not-utf8", partial(raw_name, b"a/\xff\xfe.png", 0x800), ("bad_name",)),
    Case("zip-name-cp437", partial(raw_name, b"a/\x84\x94.png"), (TAKEN,)),
    Case("zip-name-surrogate", partial(raw_name, b"a/\xed\xa0\x80.png", 0x800), ("bad_name",)),
    Case("zip-name-overlong-utf8", partial(raw_name, b"\xc0\xae\xc0\xae/1.png", 0x800), ("bad_name",)),
    Case("zip-name-2000", partial(raw_name, b"a/" + b"x" * 2000 + b".png"), ("unsafe_path",)),
    Case("zip-name-empty", partial(raw_name, b""), (TAKEN,)),
    Case("zip-name-65535", partial(raw_name, b"a/" * 32_760 + b".png"), ("unsafe_path",)),
    Case("zip-link", partial(linked, stat.S_IFLNK), ("unsafe_path",)),
    Case("zip-device", partial(linked, stat.S_IFCHR), ("unsafe_path",)),
    Case("zip-fifo", partial(linked, stat.S_IFIFO), ("unsafe_path",)),
    Case("zip-socket", partial(linked, stat.S_IFSOCK), ("unsafe_path",)),
    Case("zip-encrypted", partial(lying, flags=1), ("encrypted_archive",)),
    Case("zip-strong-encryption", partial(lying, flags=0x41), ("encrypted_archive",)),
    Case("zip-masked-headers", partial(lying, flags=0x2000), ("encrypted_archive",)),
    Case("zip-says-longer", partial(lying, size=100_000), (SPOILT,)),
    Case("zip-says-shorter", partial(lying, size=3), (SPOILT,)),
    Case("zip-says-packed-more", partial(lying, packed=0x7FFFFFFF), ("archive_bomb",)),
    Case("zip-says-4-gib", partial(lying, size=0xFFFFFFFE), ("archive_bomb",)),
    Case("zip-wrong-crc", partial(lying, crc=1), (SPOILT,)),
    Case("zip-wrong-method", partial(lying, method=8), (SPOILT,)),
    Case("zip-method-99", partial(lying, method=99), (SPOILT,)),
    Case("zip-lzma", lambda: zipped(GOOD, zipfile.ZIP_LZMA), (SPOILT,)),
    Case("zip-offset-in-directory", partial(lying, offset=1500), ("archive_bomb", SPOILT)),
    Case("zip-offset-outside", partial(lying, offset=0x7FFFFFFF), ("archive_bomb",)),
    Case("zip-zip64-without-extra", partial(lying, offset=0xFFFFFFFF), ("broken_archive", "archive_bomb")),
    Case("zip-overlap-1000", partial(shared_body, 1000), ("archive_bomb",)),
    Case("zip-overlap-2", partial(shared_body, 2), ("archive_bomb",)),
    Case("zip-end-directory-size", partial(end_says, size=1), ("broken_archive",)),
    Case("zip-end-directory-offset", partial(end_says, offset=0), ("broken_archive",)),
    Case("zip-end-comment", partial(end_says, comment=65_535), ("broken_archive",)),
    Case("zip-end-zip64", partial(end_says, offset=0xFFFFFFFF, size=0xFFFFFFFF), ("broken_archive",)),
    Case("zip-end-count", partial(end_says, count=9, here=9)),
    Case("zip-end-alone", lambda: END.pack(b"PK\5\6", 0, 0, 0, 0, 0, 0, 0), ("no_images",)),
    Case("zip-magic-alone", lambda: b"PK\3\4" + bytes(4096), ("broken_archive",)),
    Case("zip-twice", lambda: zipped(GOOD) * 2, ("broken_archive",)),
    Case("zip-with-tail", lambda: zipped(GOOD) + b"tail" * 100, ("broken_archive",)),
    Case("zip-same-name-twice", lambda: by_hand(RAW).replace(b"a/2.png", b"a/1.png"), (TAKEN, "archive_bomb")),
    Case("zip-bomb-flat", lambda: among_good("a/9.png", bytes(60 << 20)), (SPOILT, "archive_bomb")),
    Case("zip-bomb-bz2", lambda: zipped({**GOOD, "a/9.png": bytes(60 << 20)}, zipfile.ZIP_BZIP2), ("archive_bomb",)),
    Case("zip-bomb-many", lambda: zipped({f"{i % 2}/{i}.png": bytes(8 << 20) for i in range(24)}), (SPOILT,)),
    Case("zip-bomb-nested-1", partial(nested, 1), ("no_images",)),
    Case("zip-bomb-nested-3", partial(nested, 3), ("no_images",)),
    Case("zip-of-gz", lambda: zipped({"a/1.png": gzip.compress(bytes(8 << 20)), "b/1.png": FILES[0]}), (SPOILT,)),
    Case("zip-in-zip-as-png", lambda: zipped({"a/1.png": zipped(GOOD), "b/1.png": FILES[0]}), (SPOILT,)),
    Case("zip-tar-as-png", lambda: zipped({"a/1.png": tarred(GOOD), "b/1.png": FILES[0]}), (SPOILT,)),
    Case("zip-million-empty", partial(many_empty, MILLION, b"a/%07d.png"), ("archive_bomb",)),
    Case("zip-million-folders", partial(many_empty, MILLION, b"%07d/"), ("archive_bomb",)),
    Case("zip-million-of-one-name", partial(many_empty, MILLION, b"a/1.png"), ("archive_bomb",)),
    Case("zip-12000-classes", partial(classes, 12_000), ("invalid_upload",)),
    Case("zip-50000-no-images", partial(junk_images, 50_000), (SPOILT,)),
    Case("polyglot-gif-zip", lambda: b"GIF89a" + bytes(20) + zipped(GOOD), ("unknown_format",)),
    Case("polyglot-pdf-zip", lambda: b"%PDF-1.7\n" + zipped(GOOD), ("unknown_format",)),
    Case("polyglot-exe-zip", lambda: b"MZ" + bytes(600) + zipped(GOOD), ("unknown_format",)),
    Case("polyglot-zip-tar", lambda: zipped(GOOD) + tarred(GOOD), ("broken_archive",)),
    Case("polyglot-zip-then-parquet", lambda: zipped(GOOD) + b"PAR1", ("broken_archive",)),
    Case("polyglot-png-zip-inside", lambda: among_good("a/9.png", FILES[0] + zipped(GOOD)), (TAKEN,)),
    Case("zip-called-html", lambda: zipped(GOOD), (TAKEN,), "text/html"),
    Case("zip-called-parquet", lambda: zipped(GOOD), (TAKEN,), "application/vnd.apache.parquet"),
    Case("zip-called-json", lambda: zipped(GOOD), (), "application/json"),
    Case("zip-called-form", lambda: zipped(GOOD), (), "multipart/form-data; boundary=x"),
    Case("zip-called-nonsense", lambda: zipped(GOOD), (), "\x7f/;;=\"';charset=utf-7"),
    Case("html-called-zip", lambda: b"<html>" * 500, ("unknown_format",), "application/zip"),
    Case("four-bytes", lambda: b"\0\0\0\0", ("unknown_format",)),
    Case("empty", lambda: b"", ("empty_body",)),
]
