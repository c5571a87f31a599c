"""One page of a table, in the order of a column that is different in every row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.api.schemas import Page, decode_cursor, encode_cursor

RowT = TypeVar("RowT")
OutT = TypeVar("OutT")


def page_of(
    session: Session,
    query: Select[RowT],
    by: InstrumentedAttribute[str],
    shown: Callable[[RowT], OutT],
    *,
    cursor: str | None,
    limit: int,
    newest_first: bool = False,
) -> Page[OutT]:
    """The rows after `cursor`, which is the `by` of the row before them. Raises InvalidInput for one of no page."""
    ordered = query.order_by(by.desc() if newest_first else by).limit(limit + 1)
    if cursor is not None:
        at = decode_cursor(cursor)
        ordered = ordered.where(by < at if newest_first else by > at)
    rows = list(session.scalars(ordered))
    more = encode_cursor(getattr(rows[limit - 1], by.key)) if len(rows) > limit else None
    return Page(items=[shown(row) for row in rows[:limit]], next_cursor=more)
