"""Takes turns where two transactions would count on from the same number: SQLite has one writer, PostgreSQL many."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session


def take_turns(session: Session, what: str) -> None:
    """Until the transaction ends, no other passes here with the same `what`."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(what, 0))))
