"""Sends a file as a resumable upload (tus 1.0): in pieces, going on where the service says after whatever breaks."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from service.client.errors import CannotReach, ClientError, NotWinnow, ProblemError
from service.client.pieces import bytes_left, pieces
from service.client.records import ResumableUpload

if TYPE_CHECKING:
    from service.client.session import WinnowClient

PIECE_BYTES = 16 * 1024 * 1024
PATIENCE_S = 120.0  # with a service that cannot be reached, or takes nothing, since it last took a byte
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
LOCKED = 423
BUSY = (LOCKED, 429, 502, 503, 504)
HEADERS = {"Tus-Resumable": "1.0.0"}
LOOKED_AT = 1024 * 1024  # bytes of the beginning by which a file is known again


def send(
    client: WinnowClient,
    name: str,
    file: BinaryIO,
    params: Mapping[str, Any],
    on_sent: Callable[[int, int], None] | None,
    piece_bytes: int = PIECE_BYTES,
) -> str:
    """The id of the ingest job. An open upload of the same file under the same name is gone on with."""
    start, total = file.tell(), bytes_left(file)
    told = {
        "name": name,
        **{key: str(value) for key, value in params.items()},
        "fingerprint": _fingerprint(file, total),
    }
    path = _found(client, told, total) or _created(client, told, total)
    heard, pause_s = time.monotonic(), FIRST_PAUSE_S
    offset = -1
    while True:
        try:
            answer = client._send("HEAD", path, headers=HEADERS)
            here = int(answer.headers["Upload-Offset"])
            if here > offset:
                offset, heard, pause_s = here, time.monotonic(), FIRST_PAUSE_S
            while "Winnow-Job" not in answer.headers:
                file.seek(start + offset)
                size = min(piece_bytes, total - offset)
                counted = _counting(on_sent, offset, total)
                headers = {
                    **HEADERS,
                    "Upload-Offset": str(offset),
                    "Content-Type": "application/offset+octet-stream",
                    "Content-Length": str(size),
                }
                answer = client._send("PATCH", path, content=pieces(file, size, counted), headers=headers)
                offset, heard = int(answer.headers["Upload-Offset"]), time.monotonic()
            return str(answer.headers["Winnow-Job"])
        except ClientError as error:
            if offset == total and isinstance(error, ProblemError) and error.status == LOCKED:
                heard = time.monotonic()  # every byte is there, and the service is putting them together
            if not _may_pass(error) or time.monotonic() - heard > PATIENCE_S:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _created(client: WinnowClient, told: Mapping[str, str], total: int) -> str:
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in told.items())
    headers = {**HEADERS, "Upload-Length": str(total), "Upload-Metadata": metadata}
    return str(client._send("POST", "/v1/uploads", headers=headers).headers["Location"])


def _found(client: WinnowClient, told: Mapping[str, str], total: int) -> str | None:
    for upload in client._pages("/v1/uploads", {"state": "open"}, ResumableUpload):
        if upload.metadata == told and upload.length == total:
            return f"/v1/uploads/{upload.id}"
    return None


def _fingerprint(file: BinaryIO, total: int) -> str:
    """Of the file's beginning, its end and its size: tells one file from another, not one that was tampered with."""
    start = file.tell()
    digest = hashlib.sha256(str(total).encode() + file.read(LOOKED_AT))
    file.seek(start + max(0, total - LOOKED_AT))
    digest.update(file.read(LOOKED_AT))
    file.seek(start)
    return digest.hexdigest()


def _counting(on_sent: Callable[[int, int], None] | None, offset: int, total: int) -> Callable[[int, int], None] | None:
    return None if on_sent is None else lambda sent, _size: on_sent(offset + sent, total)


def _may_pass(error: ClientError) -> bool:
    """Whether it may go better in a moment. A wrong offset does: the next question tells the right one."""
    if isinstance(error, ProblemError | NotWinnow):
        return error.status in BUSY or (isinstance(error, ProblemError) and error.code == "wrong_offset")
    return isinstance(error, CannotReach)
