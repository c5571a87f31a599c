"""Hostile tars, plain and compressed: links, devices, records that lie, streams without end."""
# ruff: noqa: E501 (tables of bytes, a file an entry)

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zlib
from functools import partial

from tests.hostile.cases import CANARY, GOOD, SPOILT, TAKEN, Case, cut_at, tarred, zipped
from tests.service.uploads import FILES, UPLOADS

LINKS = {
    "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "char-device": tarfile.CHRTYPE,
    "block-device": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE,
}  # fmt: skip
KINDS = {
    "sparse": b"S",
    "multi-volume": b"M",
    "volume-name": b"V",
    "dump-dir": b"D",
    "solaris": b"A",
    "unknown": b"\xff",
}


def headed(name: str, kind: bytes, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def link_then_file(kind: bytes) -> bytes:
    """A link that leads out, then a file that would be written through it."""
    return headed("a", kind, "/etc").tobuf() + tarred({"a/passwd.png": FILES[0], **GOOD})


def first_header(**fields: bytes) -> bytes:
    """A good tar, but for some bytes of its first header, whose checksum is right all the same."""
    places = {"name": 0, "mode": 100, "size": 124, "kind": 156, "magic": 257, "prefix": 345}
    data = bytearray(tarred(GOOD))
    for field, value in fields.items():
        data[places[field] : places[field] + len(value)] = value
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def pax(body: bytes, kind: bytes = b"x") -> bytes:
    head = headed("x", kind, size=len(body))
    return head.tobuf() + body + bytes(-len(body) % 512) + tarred(GOOD)


def record(text: bytes) -> bytes:
    length = len(text) + 2
    while len(b"%d %s\n" % (length, text)) != length:
        length = len(b"%d %s\n" % (length, text))
    return b"%d %s\n" % (length, text)


def long_name(name: bytes) -> bytes:
    return headed("././@LongLink", b"L", size=len(name)).tobuf() + name + bytes(-len(name) % 512) + tarred(GOOD)


def endless(pack: str) -> bytes:
    """One image that unfolds to 64 GiB, of which enough is there to be seen."""
    head = headed("a/1.png", b"0", size=1 << 36).tobuf(tarfile.GNU_FORMAT)
    if pack == "gz":
        return gzip.compress(head + bytes(96 << 20), 1)
    if pack == "bz2":
        return bz2.compress(head + bytes(96 << 20))
    return lzma.compress(head + bytes(96 << 20), preset=0)


def million_empty() -> bytes:
    """A million headers, as a thousand gzip streams in a row."""
    heads = b"".join(headed(f"a/{i}.png", b"0").tobuf(tarfile.USTAR_FORMAT) for i in range(1000))
    return gzip.compress(heads) * 1000


def gz_header(name: bytes = b"../../x", extra: bytes = bytes(65_535)) -> bytes:
    """gzip with every optional field filled."""
    raw = zlib.compress(tarred(GOOD))[2:-4]
    tail = struct.pack("<LL", zlib.crc32(tarred(GOOD)), len(tarred(GOOD)) & 0xFFFFFFFF)
    head = b"\x1f\x8b\x08\x1c" + bytes(6) + struct.pack("<H", len(extra)) + extra
    return head + name + b"\0" + b"c" * 100_000 + b"\0" + raw + tail


def nested_gz(depth: int) -> bytes:
    data = tarred(GOOD)
    for _ in range(depth):
        data = gzip.compress(data)
    return data


def nested_tars(depth: int) -> bytes:
    data = tarred(GOOD)
    for level in range(depth):
        data = tarred({f"{level}.tar.gz": gzip.compress(data)}, mode="w:gz")
    return data


def xz_memory() -> bytes:
    """xz whose dictionary asks for over a gigabyte."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}]
    data = bytearray(lzma.compress(tarred(GOOD), filters=filters))
    place = data.index(b"\x21\x01", 12)  # the filter, the size of its properties, then the size of the dictionary
    data[place + 2] = 37
    size = (data[12] + 1) * 4
    data[12 + size - 4 : 12 + size] = struct.pack("<L", zlib.crc32(data[12 : 12 + size - 4]))
    return bytes(data)


def webdataset(labels: dict[str, bytes]) -> bytes:
    return tarred({**{f"{i}.png": FILES[i] for i in range(4)}, "1.cls": b"1", "2.cls": b"0", "3.cls": b"1"} | labels)


def listed(members: dict[str, bytes]) -> bytes:
    """A tar whose names are bytes that tarfile would not write."""
    buffer = io.BytesIO()
    for name, data in members.items():
        buffer.write(headed(name, b"0", size=len(data)).tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        buffer.write(data + bytes(-len(data) % 512))
    return buffer.getvalue() + bytes(1024)


DEEP_JSON = b"[" * 60_000
BAD_LABELS = {
    "json-deep": {"0.json": DEEP_JSON}, "json-cut": {"0.json": b'{"label": '}, "json-list-label": {"0.json": b'{"label": []}'},
    "json-nan": {"0.json": b'{"label": NaN}'}, "json-infinity": {"0.json": b'{"label": 1e999}'},
    "json-long-number": {"0.json": b'{"label": 1' + b"0" * 5000 + b"}"}, "json-surrogate": {"0.json": b'{"label": "\\ud800"}'},
    "json-nul": {"0.json": b'{"label": "a\\u0000b"}'}, "json-empty": {"0.json": b"{}"}, "cls-empty": {"0.cls": b""},
    "cls-binary": {"0.cls": b"\xff\xfe\0"}, "cls-huge": {"0.cls": b"9" * 70_000}, "cls-nul": {"0.cls": b"a\0b"},
    "group-surrogate": {"0.json": b'{"label": 1, "group": "\\udc00"}'}, "group-nul": {"0.json": b'{"label": 1, "group": "a\\u0000"}'},
    "group-huge": {"0.json": b'{"label": 1, "group": "' + b"g" * 60_000 + b'"}'},
}  # fmt: skip

CASES = [
    *(Case(f"tar-{key}", lambda kind=kind: tarred(GOOD, headed("a/l.png", kind, "/etc/passwd")), ("unsafe_path",))
      for key, kind in LINKS.items()),
    *(Case(f"tar-{key}-then-file", partial(link_then_file, kind), ("unsafe_path",))
      for key, kind in list(LINKS.items())[:2]),
    *(Case(f"tar-kind-{key}", partial(first_header, kind=kind), ("broken_archive",)) for key, kind in KINDS.items()),
    *(Case(f"tar-out-{i}", lambda name=name: tarred({name: FILES[0], **GOOD}), ("unsafe_path",))
      for i, name in enumerate(["../1.png", str(CANARY), "a/../../1.png", "..\\1.png", "C:/1.png", "/dev/null"])),
    *(Case(f"webdataset-{key}", partial(webdataset, labels), ("bad_metadata", "bad_name"))
      for key, labels in BAD_LABELS.items()),
    Case("tar-prefix-out", partial(first_header, prefix=b"../../..\0", magic=b"ustar\0"), ("unsafe_path",)),
    Case("tar-name-not-utf8", lambda: listed({"a/\udcff.png": FILES[0]}), ("bad_name",)),
    Case("tar-name-escape", lambda: listed({"a/\x1b]0;x.png": FILES[0]}), ("bad_name",)),
    Case("tar-name-reserved", lambda: tarred({"AUX/1.png": FILES[0], "LPT1./1.png": FILES[1]}), (TAKEN,)),
    Case("tar-size-negative", partial(first_header, size=b"\xff" * 12), ("broken_archive",)),
    Case("tar-size-base-256", partial(first_header, size=b"\x80" + b"\x7f" * 11), ("broken_archive",)),
    Case("tar-size-letters", partial(first_header, size=b"-0000000001\0"), ("broken_archive",)),
    Case("tar-size-huge", partial(first_header, size=b"77777777777\0"), ("broken_archive",)),
    Case("tar-size-zero", partial(first_header, size=b"00000000000\0"), ("broken_archive",)),
    Case("tar-pax-path-out", lambda: pax(record(b"path=../../x.png")), ("unsafe_path",)),
    Case("tar-pax-path-nul", lambda: pax(record(b"path=a/1.png\0b")), ("unsafe_path",)),
    Case("tar-pax-path-empty", lambda: pax(record(b"path="))),
    Case("tar-pax-size-huge", lambda: pax(record(b"size=999999999999999")), ("broken_archive",)),
    Case("tar-pax-size-lies", lambda: pax(record(b"size=1")), ("broken_archive", SPOILT)),
    Case("tar-pax-sparse", lambda: pax(record(b"GNU.sparse.major=1")), ("broken_archive",)),
    Case("tar-pax-length-0", lambda: pax(b"0 path=a\n"), ("broken_archive",)),
    Case("tar-pax-length-huge", lambda: pax(b"999999999999 path=a\n"), ("broken_archive",)),
    Case("tar-pax-length-none", lambda: pax(b"path=a\n"), ("broken_archive",)),
    Case("tar-pax-global-64-kib", lambda: pax(record(b"comment=" + b"c" * 65_000), b"g"), (TAKEN,)),
    Case("tar-pax-1-mib", lambda: pax(record(b"comment=" + b"c" * (1 << 20))), ("broken_archive",)),
    Case("tar-pax-chain", lambda: pax(record(b"comment=x"))[:1024] * 5000 + tarred(GOOD), ("broken_archive",)),
    Case("tar-long-name-out", lambda: long_name(b"../" * 40 + b"x.png"), ("unsafe_path",)),
    Case("tar-long-name-60000", lambda: long_name(b"a/" + b"x" * 60_000 + b".png"), ("unsafe_path",)),
    Case("tar-zeros", lambda: bytes(1 << 20), ("unknown_format",)),
    Case("tar-checksum-wrong-later", lambda: (lambda data: data[:1536] + b"\1" + data[1537:])(tarred(GOOD))),
    Case("tar-million-empty", million_empty, ("archive_bomb",)),
    Case("tar-only-folders", lambda: gzip.compress(headed("a/", b"5").tobuf() * 70_000), ("archive_bomb",)),
    *(Case(f"tar-endless-{pack}", partial(endless, pack), ("archive_bomb",)) for pack in ("gz", "bz2", "xz")),
    Case("tar-gz-header-64-kib", gz_header, (TAKEN,)),
    Case("tar-gz-nested-2", partial(nested_gz, 2), ("unknown_format",)),
    Case("tar-gz-nested-20", partial(nested_gz, 20), ("unknown_format",)),
    Case("tar-tars-nested-8", partial(nested_tars, 8), ("no_images",)),
    Case("tar-gz-empty-streams", lambda: gzip.compress(b"") * 200_000, ("unknown_format", "broken_archive")),
    Case("tar-gz-wrong-crc", lambda: (lambda data: data[:-6] + b"\0\0" + data[-4:])(UPLOADS["tar.gz"])),
    Case("tar-gz-tail", lambda: UPLOADS["tar.gz"] + b"tail" * 999, (TAKEN,)),
    Case("tar-bz2-of-nothing", lambda: bz2.compress(b""), ("unknown_format",)),
    Case("tar-xz-memory", xz_memory, ("broken_archive",)),
    Case("gz-of-zip", lambda: gzip.compress(zipped(GOOD)), ("unknown_format",)),
    Case("gz-flat-bomb", lambda: gzip.compress(bytes(128 << 20), 1), ("unknown_format",)),
    Case("tar-called-zip", lambda: tarred(GOOD), (TAKEN,), "application/zip"),
    Case("webdataset-two-images-a-key", lambda: webdataset({"1.jpg": FILES[0]}), ("duplicate_key",)),
    *(Case(f"{form}-cut-{percent}", lambda form=form, percent=percent: cut_at(UPLOADS[form], percent / 100))
      for form in ("tar", "tar.gz", "tar.xz", "webdataset") for percent in (3, 20, 50, 80, 97)),
]  # fmt: skip
