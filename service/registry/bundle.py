"""A model version's files on storage: written with their digests, and read only where every digest still holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from models.abstention import InvalidCalibration
from service.errors import NotFound
from service.registry.calibration import ServingCalibration
from service.registry.errors import BundleCorrupt
from service.registry.samples import HeldOut, InvalidSample, Parity
from service.storage import Storage

SERVED = "served.onnx"  # detector and student in one graph
REFORMED = "reformed.onnx"  # the same, the student seeing the reconstruction; with a detector only
HEAD = "head.onnx"  # the dropout heads alone
STUDENT = "student.onnx"  # the plain networks, for use elsewhere
DETECTOR = "detector.onnx"
PARITY = "parity.npz"
HELD_OUT = "held_out.npz"
CALIBRATION = "calibration.json"
CARD = "card.json"
NEEDED = frozenset({SERVED, HEAD, PARITY, HELD_OUT, CALIBRATION, CARD})
KEPT = frozenset({SERVED, PARITY, CALIBRATION, CARD})  # all else is checked too, but read again when it is asked for
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Bundle:
    """What serving needs of a bundle, checked against its digests and against itself."""

    served: bytes
    parity: Parity
    calibration: ServingCalibration
    card: dict[str, Any]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels
    digest: str
    read: Callable[[str], bytes]  # any other file of it, checked anew; raises BundleCorrupt

    @property
    def has_detector(self) -> bool:
        return self.calibration.abstention.detector_scores is not None

    def held_out(self) -> HeldOut:
        """Raises BundleCorrupt."""
        data = self.read(HELD_OUT)
        try:
            return HeldOut.from_bytes(data)
        except InvalidSample as error:
            raise _malformed(self.digest, HELD_OUT, str(error)) from error


def prefix_of(name: str, job_id: str, attempt: int) -> str:
    """Where the bundle lies that this attempt of this job makes."""
    return f"models/{name}/{job_id}-{attempt}"


def publish(storage: Storage, prefix: str, files: Mapping[str, bytes]) -> dict[str, str]:
    """Write a bundle and return the sha256 of each file. It counts only once a version row points at it.

    Raises ValueError where a file is missing that serving needs.
    """
    missing = NEEDED - files.keys()
    if missing:
        raise ValueError(f"a bundle needs {', '.join(sorted(missing))}")
    for name, data in files.items():
        storage.write(f"{prefix}/{name}", data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def bundle_digest(files: Mapping[str, str]) -> str:
    """One digest for a whole bundle: sha256 over its files' names and digests, in the order of the names."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def load(storage: Storage, prefix: str, digests: Mapping[str, str]) -> Bundle:
    """Read a bundle back. Every digest is checked, on the very bytes that are used, before anything is parsed.

    Raises BundleCorrupt, naming the file.
    """
    absent = NEEDED - digests.keys()
    if absent:
        raise BundleCorrupt(f"{prefix} was published without {', '.join(sorted(absent))}.", file=min(absent))
    files = {name: _checked(storage, prefix, name, digest, keep=name in KEPT) for name, digest in digests.items()}
    calibration = _calibration(prefix, files[CALIBRATION])
    card = _card(prefix, files[CARD])
    bundle = Bundle(
        served=files[SERVED],
        parity=_parity(prefix, files[PARITY]),
        calibration=calibration,
        card=card,
        classes=_classes(prefix, card),
        image_shape=_image_shape(prefix, card),
        digest=bundle_digest(digests),
        read=lambda name: _checked(storage, prefix, name, digests[name], keep=True),
    )
    _check_agreement(prefix, bundle, has_reformer=REFORMED in digests)
    return bundle


def _checked(storage: Storage, prefix: str, name: str, digest: str, *, keep: bool) -> bytes:
    """The bytes of a file, or b"" where they are not to be kept; either way hashed whole."""
    sha256 = hashlib.sha256()
    kept: list[bytes] = []
    try:
        with storage.open(f"{prefix}/{name}") as file:
            while block := file.read(BLOCK_BYTES):
                sha256.update(block)
                if keep:
                    kept.append(block)
    except NotFound as error:
        raise BundleCorrupt(
            f"{name} of {prefix} is missing from storage. Restore it from a backup.", file=name
        ) from error
    if sha256.hexdigest() != digest:
        raise BundleCorrupt(
            f"{name} of {prefix} is not what was published (sha256 {sha256.hexdigest()[:16]}…, wanted {digest[:16]}…). "
            "It is not loaded. Restore it from a backup, or distill again.",
            file=name,
        )
    return b"".join(kept)


def _calibration(prefix: str, data: bytes) -> ServingCalibration:
    try:
        return ServingCalibration.from_bytes(data)
    except InvalidCalibration as error:
        raise _malformed(prefix, CALIBRATION, str(error)) from error


def _parity(prefix: str, data: bytes) -> Parity:
    try:
        return Parity.from_bytes(data)
    except InvalidSample as error:
        raise _malformed(prefix, PARITY, str(error)) from error


def _card(prefix: str, data: bytes) -> dict[str, Any]:
    try:
        card = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _malformed(prefix, CARD, str(error)) from error
    if not isinstance(card, dict):
        raise _malformed(prefix, CARD, "it is not an object")
    return card


def _classes(prefix: str, card: dict[str, Any]) -> tuple[str, ...]:
    classes = card.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise _malformed(prefix, CARD, "classes must be a list of names")
    return tuple(classes)


def _image_shape(prefix: str, card: dict[str, Any]) -> tuple[int, int, int]:
    match card.get("image_shape"):
        case [int(height), int(width), int(channels)] if height == width > 0 and channels in (1, 3):
            return height, width, channels
    raise _malformed(prefix, CARD, "image_shape must be [side, side, channels] with 1 or 3 channels")


def _check_agreement(prefix: str, bundle: Bundle, *, has_reformer: bool) -> None:
    """The parts must be of one model: a detector exactly where its scores were calibrated, a profile for each class."""
    profiles, classes = bundle.calibration.abstention.profiles.shape[0], len(bundle.classes)
    if profiles != classes:
        raise _malformed(prefix, CALIBRATION, f"it profiles {profiles} classes, the card names {classes}")
    if bundle.has_detector != has_reformer:
        raise _malformed(prefix, CALIBRATION, f"a detector's calibration scores and {REFORMED} come together")
    sample = bundle.parity
    if sample.images.shape[1:] != bundle.image_shape or sample.mean_probabilities.shape[1] != classes:
        raise _malformed(
            prefix, PARITY, f"it is of {sample.images.shape[1:]}, {sample.mean_probabilities.shape[1]} classes"
        )
    if (sample.scores is not None) != bundle.has_detector:
        raise _malformed(prefix, PARITY, "it has a detector's scores exactly where the calibration has them")


def _malformed(prefix: str, name: str, why: str) -> BundleCorrupt:
    return BundleCorrupt(f"{name} of {prefix} is as published, and cannot be used: {why}.", file=name)
