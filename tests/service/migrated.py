"""Migrated databases by copying one: the migrations take longer than most tests that want their tables."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

from service.db import migrate
from service.settings import Settings


def migrated(settings: Settings) -> Settings:
    """`settings`, with their database at the newest schema."""
    path = Path(settings.database_url.removeprefix("sqlite:///"))
    if not settings.database_url.startswith("sqlite:///") or path.exists():
        migrate(settings)
        return settings
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_sqlite())
    return settings


@cache
def _sqlite() -> bytes:
    """The file of a migrated database that nobody has opened since: all of it, for the last to close empties the log
    of writes."""
    home = Path(tempfile.mkdtemp(prefix="winnow-migrated-"))
    settings = Settings(home=home).resolved()
    migrate(settings)
    assert [path.name for path in home.iterdir()] == ["winnow.db"]
    content = (home / "winnow.db").read_bytes()
    shutil.rmtree(home)
    return content
