"""Refuses to start a cluster's part with a secret that everybody knows."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from service.errors import InvalidInput
from service.settings import Settings

KNOWN = {"change-me", "changeme", "password", "secret", "postgres", "minioadmin", "winnow", "admin", "redis", "example"}


def refuse_default_secrets(settings: Settings) -> None:
    """Raises InvalidInput (`default_secret`), naming the settings, never the secrets."""
    given = {
        "WINNOW_DATABASE_URL": _password(settings.database_url),
        "WINNOW_REDIS_URL": _password(settings.redis_url),
        "AWS_SECRET_ACCESS_KEY": os.environ.get("AWS_SECRET_ACCESS_KEY") if settings.storage_url else None,
    }
    left = [name for name, secret in given.items() if secret is not None and secret.lower() in KNOWN]
    if left:
        raise InvalidInput(
            f"{' and '.join(left)}: the secret in it is one that everybody knows. Set one of your own "
            "('openssl rand -hex 24' makes one) and start again.",
            code="default_secret",
        )


def _password(url: str) -> str | None:
    password = urlsplit(url).password
    return None if password is None else unquote(password)
