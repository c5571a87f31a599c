"""What a hostile upload is: a name, how its bytes are made, and which answers are right."""

from __future__ import annotations

import io
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.service.uploads import FILES

TAKEN = "taken"  # the ingest job succeeds: what is odd in the file does no harm
SPOILT = "too_many_rejected"
CANARY = Path(tempfile.gettempdir()) / "winnow-was-here.png"
"""Where files that lead out of their archive want to be written."""

GOOD = {"a/1.png": FILES[0], "a/2.png": FILES[1], "b/1.png": FILES[2], "b/2.png": FILES[3]}


class Case(NamedTuple):
    """One hostile file. `codes`: the answers that are right; none given: any that docs/errors.md lists."""

    name: str
    make: Callable[[], bytes]
    codes: tuple[str, ...] = ()
    content_type: str = "application/octet-stream"


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def among_good(name: str, data: bytes) -> bytes:
    """A zip of four good images in two classes, and one other file."""
    return zipped({**GOOD, name: data})


def tarred(members: Mapping[str, bytes], *more: tarfile.TarInfo, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return buffer.getvalue()


def cut_at(data: bytes, share: float) -> bytes:
    return data[: max(4, round(len(data) * share))]
