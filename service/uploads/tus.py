"""What tus 1.0 puts into headers: versions, metadata, checksums. https://tus.io/protocols/resumable-upload"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from service.errors import InvalidInput, TooLarge, UnsupportedMedia, WrongTusVersion

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,expiration,termination"
ALGORITHMS = {"sha1": hashlib.sha1, "sha256": hashlib.sha256}
STREAM = "application/offset+octet-stream"
RESUMABLE = {"Tus-Resumable": VERSION}
MOST_METADATA = 8 * 1024
PARAMS = {"size": int, "channels": int, "max_rejected_share": float, "split": str}


@dataclass(frozen=True)
class Checksum:
    """Of the body of one PATCH, as its sender has it."""

    algorithm: str
    digest: bytes


def check_version(headers: Mapping[str, str]) -> None:
    """Raises WrongTusVersion, which answers 412 with the version that there is."""
    said = headers.get("tus-resumable")
    if said != VERSION:
        raise WrongTusVersion(f"Tus-Resumable is {said!r}; this is tus {VERSION}. Send Tus-Resumable: {VERSION}.")


def check_stream(headers: Mapping[str, str]) -> None:
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != STREAM:
        raise UnsupportedMedia(
            f"A piece of an upload has Content-Type: {STREAM}, not {media or 'nothing'}.", code="not_offset_stream"
        )


def number(headers: Mapping[str, str], name: str) -> int:
    """Raises InvalidInput where the header is missing or no count of bytes."""
    text = headers.get(name.lower(), "")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InvalidInput(f"{name} must be a number of bytes, not {text!r}.", code="bad_tus_header")
    return int(text)


def length(headers: Mapping[str, str], most: int) -> int:
    """Of a new upload. Raises InvalidInput or TooLarge."""
    size = number(headers, "Upload-Length")
    if size > most:
        raise TooLarge(f"The upload has {size} bytes; at most {most} are accepted. Split it into several data sets.")
    if size == 0:
        raise InvalidInput("The upload is empty. Send the bytes of an archive.", code="bad_tus_header")
    return size


def metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """Upload-Metadata: `key base64, key base64`. Raises InvalidInput."""
    text = headers.get("upload-metadata", "")
    if len(text) > MOST_METADATA:
        raise InvalidInput(f"Upload-Metadata is longer than {MOST_METADATA} characters.", code="bad_tus_header")
    found = {}
    for pair in filter(None, (each.strip() for each in text.split(","))):
        key, _, value = pair.partition(" ")
        try:
            found[key] = base64.b64decode(value, validate=True).decode()
        except ValueError as error:
            raise InvalidInput(
                f"Upload-Metadata has {key!r} with a value that is not base64 of UTF-8 text.", code="bad_tus_header"
            ) from error
    return found


def params(told: Mapping[str, str]) -> dict[str, object]:
    """The ingest parameters among the metadata."""
    found: dict[str, object] = {}
    for name, kind in PARAMS.items():
        if name in told:
            try:
                found[name] = kind(told[name])
            except ValueError as error:
                raise InvalidInput(
                    f"{name} in Upload-Metadata is {told[name]!r}, which is no {kind.__name__}.", code="bad_tus_header"
                ) from error
    return found


def checksum(headers: Mapping[str, str]) -> Checksum | None:
    """Upload-Checksum: `algorithm base64`. Raises InvalidInput."""
    text = headers.get("upload-checksum")
    if text is None:
        return None
    algorithm, _, value = text.partition(" ")
    try:
        digest = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"Upload-Checksum is not base64: {value!r}.", code="bad_tus_header") from error
    if algorithm not in ALGORITHMS:
        raise InvalidInput(
            f"Upload-Checksum names {algorithm!r}; this service knows {', '.join(ALGORITHMS)}.", code="bad_tus_header"
        )
    return Checksum(algorithm, digest)
