"""Names in an exported image folder: what a class or a file was called, where every system can have it so."""

from __future__ import annotations

import re
import unicodedata

from service.datasets.members import is_clutter

LONGEST = 100
_PLAIN = re.compile(r"[^\W_](?:[\w .,+()&'-]*[\w)'+&-])?|[\w)]")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|metadata)(\..*)?", re.IGNORECASE)
_STEM = re.compile(r"[A-Za-z0-9_-]{1,60}")


def folder_names(classes: list[str]) -> list[str]:
    """A folder for each class: its name, or `class-0003` where that cannot be a folder everywhere."""
    folded = [unicodedata.normalize("NFC", name).casefold() for name in classes]
    return [
        name if _is_folder(name) and folded.count(fold) == 1 else f"class-{label:04d}"
        for label, (name, fold) in enumerate(zip(classes, folded, strict=True))
    ]


def stem_of(path: str) -> str:
    """What is kept of an uploaded file's name, with a dash before it; nothing where it is no plain name."""
    base = path.rsplit("/", 1)[-1]
    stem, dot, _ = base.partition(".")
    return f"-{stem}" if dot and _STEM.fullmatch(stem) and not base.endswith("]") else ""


def _is_folder(name: str) -> bool:
    return (
        len(name.encode()) <= LONGEST
        and _PLAIN.fullmatch(name) is not None
        and _RESERVED.fullmatch(name) is None
        and not re.fullmatch(r"class-\d+", name)
        and not is_clutter(name)
    )
