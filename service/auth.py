"""API keys: 256 random bits, kept as their sha256, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from sqlalchemy import select

from service.db import Database, now
from service.errors import Unauthorized
from service.settings import Settings
from service.tables import ApiKey


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def admin_key_path(home: Path) -> Path:
    return home / "admin.key"


def ensure_admin_key(settings: Settings) -> str:
    """The admin key of this home; on first start it is made and written to `admin.key`, readable by its owner only."""
    path = admin_key_path(settings.home)
    if not path.exists():
        settings.home.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write("wk_" + secrets.token_urlsafe(32))
    key = path.read_text().strip()
    database = Database.open(settings.database_url)
    try:
        with database.transaction() as session:
            if session.get(ApiKey, digest_of(key)) is None:
                session.add(ApiKey(digest=digest_of(key), label="admin", created_at=now()))
    finally:
        database.close()
    return key


def authenticate(database: Database, key: str | None) -> ApiKey:
    """The stored key that `key` is. Raises Unauthorized, in words that do not tell which part was wrong."""
    if key:
        wanted = digest_of(key)
        with database.session() as session:
            for stored in session.scalars(select(ApiKey)):
                if hmac.compare_digest(stored.digest, wanted):
                    return stored
    raise Unauthorized(
        "This call needs a valid API key: send 'Authorization: Bearer <key>'. "
        "The embedded stack keeps its admin key in admin.key in its home."
    )
