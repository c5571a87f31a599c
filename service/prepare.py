"""`python -m service.prepare`: brings the database to the newest schema and makes the admin key. Safe to repeat."""

from __future__ import annotations

from service.auth import ensure_admin_key
from service.db import migrate
from service.settings import Settings


def main() -> None:
    settings = Settings.from_env()
    migrate(settings)
    ensure_admin_key(settings)


if __name__ == "__main__":
    main()
