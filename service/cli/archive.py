"""A folder of class folders as one zip, for uploading."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import typer


@contextmanager
def opened_for_upload(path: Path) -> Iterator[BinaryIO]:
    """The file at `path`; where that is a folder, a temporary zip of the files in it (links are left out)."""
    if path.is_dir():
        with tempfile.TemporaryFile(prefix="winnow-upload-") as file:
            if not _zip_folder(path, file):
                raise typer.BadParameter(f"{path} holds no class folders with files in them.")
            file.seek(0)
            yield file
    else:
        with path.open("rb") as file:
            yield file


def _zip_folder(folder: Path, into: BinaryIO) -> int:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    inside = [path for path in files if len(path.relative_to(folder).parts) > 1]
    with zipfile.ZipFile(into, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for path in inside:
            archive.write(path, path.relative_to(folder).as_posix())
    return len(inside)
