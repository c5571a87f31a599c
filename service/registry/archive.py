"""A bundle as one file: an uncompressed zip of its files and a manifest of their digests; nothing of it is trusted."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import orjson

from service.registry.bundle import NEEDED, bundle_digest
from service.registry.errors import BundleCorrupt, BundleUnreadable
from service.storage import Storage

MANIFEST = "manifest.json"
FORMAT = "winnow-bundle-1"
FILE_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}\.(onnx|npz|json|safetensors)")
MOST_FILES = 32
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Unpacked:
    """A bundle's files, each as its digest says, and what the manifest says of where it came from."""

    files: dict[str, bytes]
    digests: dict[str, str]
    source: str

    @property
    def digest(self) -> str:
        return bundle_digest(self.digests)

    @property
    def card(self) -> dict[str, Any]:
        card: dict[str, Any] = orjson.loads(self.files["card.json"])
        return card


def pack(storage: Storage, prefix: str, digests: Mapping[str, str], *, reference: str, to: IO[bytes]) -> None:
    """Write the archive, every file checked on the way. Raises BundleCorrupt; then what is written is no archive."""
    manifest = {"format": FORMAT, "model": reference, "bundle": bundle_digest(digests), "files": dict(digests)}
    with zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        for name, wanted in sorted(digests.items()):
            found = hashlib.sha256()
            with storage.open(f"{prefix}/{name}") as file, archive.open(name, "w") as member:
                while block := file.read(BLOCK_BYTES):
                    found.update(block)
                    member.write(block)
            if found.hexdigest() != wanted:
                raise BundleCorrupt(f"{name} of {prefix} is not what was published, so it is not exported.", file=name)


def unpack(data: bytes) -> Unpacked:
    """Raises BundleUnreadable for what `pack` does not write: other members, compression, digests that do not hold."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_members(members)
            manifest = _manifest(archive.read(MANIFEST))
            files = {member.filename: archive.read(member) for member in members if member.filename != MANIFEST}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, KeyError, NotImplementedError) as error:
        raise BundleUnreadable(f"The file is no bundle that was exported here: {error}. Export it again.") from error
    digests: dict[str, str] = manifest["files"]
    if files.keys() != digests.keys() or not files.keys() >= NEEDED:
        odd = sorted((files.keys() ^ digests.keys()) | (NEEDED - files.keys()))
        raise BundleUnreadable(f"The bundle and its manifest do not hold the same files: {', '.join(odd)}.")
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != digests[name]:
            raise BundleUnreadable(f"{name} is not what the manifest says. Export the bundle again.", file=name)
    if manifest["bundle"] != bundle_digest(digests):
        raise BundleUnreadable("The digest of the whole bundle is not that of its files. Export it again.")
    return Unpacked(files, digests, str(manifest["model"]))


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    odd = next((name for name in names if name != MANIFEST and not FILE_NAME.fullmatch(name)), None)
    if odd is not None or len(set(names)) != len(names) or len(names) > MOST_FILES:
        raise BundleUnreadable(f"A bundle holds no file {odd!r}, and none twice.")
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        raise BundleUnreadable("A bundle's files are neither compressed nor encrypted.")


def _manifest(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BundleUnreadable(f"{MANIFEST} is no JSON: {error}.") from error
    match found:
        case {"format": "winnow-bundle-1", "model": str(), "bundle": str(), "files": dict(files)} if all(
            isinstance(digest, str) for digest in files.values()
        ):
            return dict(found)
    raise BundleUnreadable(f"{MANIFEST} is not that of a {FORMAT}.")
