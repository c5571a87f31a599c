"""What an archive may hold: names of files that are safe, which of them are images, and how many of which size."""

from __future__ import annotations

import re

from service.datasets.sample import MAX_NAME_BYTES
from service.errors import InvalidUpload, TooLarge

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
)
CROWD = 65_536
LEAST_IMAGE_BYTES = 16  # no image is smaller than this
_LEADS_OUT = re.compile(r"^/|^[^/]*:(/|$)|(^|/)\.\.(/|$)")
_CLUTTER = re.compile(r"(^|/)(\.|(__MACOSX|Thumbs\.db|desktop\.ini)(/|$))")
_SUSPECT = re.compile(r"^/|[\\:\x00-\x1f\x7f\ud800-\udfff]|\.\.")  # all that is looked at more closely
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def checked_name(name: str) -> str:
    """`name` with forward slashes. Raises InvalidUpload where it leads out of the archive or cannot be a name."""
    if len(name) * 4 <= MAX_NAME_BYTES and _SUSPECT.search(name) is None:
        return name
    path = name.replace("\\", "/")
    if "\0" in path or _LEADS_OUT.search(path):
        raise InvalidUpload(
            f"The archive holds a path that leads out of it: {name[:200]!r}. Nothing was kept.", code="unsafe_path"
        )
    if len(path) * 4 > MAX_NAME_BYTES and len(path.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise InvalidUpload(
            f"The archive holds a name of over {MAX_NAME_BYTES} bytes: {name[:60]!r}….", code="unsafe_path"
        )
    if _CONTROL.search(path):
        raise InvalidUpload(
            f"The archive holds a name with control characters: {name[:200]!r}. Rename the file.", code="bad_name"
        )
    return path


def printable(text: str) -> bool:
    """Whether it is free of control characters and halves of characters, which neither screens nor files take."""
    return _CONTROL.search(text) is None


def is_image(name: str) -> bool:
    dot = name.rfind(".")
    return dot > 0 and name[dot:].lower() in IMAGE_SUFFIXES


def is_clutter(name: str) -> bool:
    """What operating systems leave behind: hidden files and folders, thumbnails' databases."""
    return _CLUTTER.search(name) is not None


class Crowd:
    """Counts members with next to nothing in them, and refuses very many: they cost time and hold no image."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, name: str, size: int) -> None:
        """Raises TooLarge."""
        if size == 0 or (size < LEAST_IMAGE_BYTES and is_image(name)):
            self._count += 1
            if self._count > CROWD:
                raise TooLarge(
                    f"The archive holds over {CROWD} files with next to nothing in them, which no image set does. "
                    "Nothing was kept.",
                    code="archive_bomb",
                )


def too_much(limit_images: int, limit_bytes: int) -> TooLarge:
    return TooLarge(
        f"The archive unfolds to over {limit_images} images or {limit_bytes} bytes. Split it into several data sets."
    )
