"""The audit log over HTTP: read and verified, for administrators."""

from __future__ import annotations

from typing import Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement, or_, select

from service import audit
from service.api.access import MayAdminister, MayOperate
from service.api.datasets import Limit
from service.api.routes import Route
from service.api.schemas import Page, decode_offset, encode_cursor
from service.tables import DEFAULT, AuditEntry

router = APIRouter(prefix="/v1/audit", tags=["audit"], route_class=Route)


class AuditOut(BaseModel):
    """An entry, exactly as it is stored and hashed."""

    seq: int
    at: str
    actor_id: str
    actor: str = Field(description="name of the key that was used")
    action: str
    subject: str
    request_id: str | None
    details: str = Field(description="JSON, as it was hashed")
    prev_hash: str
    hash: str

    @classmethod
    def of(cls, row: AuditEntry) -> Self:
        return cls(**{name: getattr(row, name) for name in cls.model_fields})


class VerificationOut(BaseModel):
    intact: bool
    entries: int = Field(description="sound ones, from the first on")
    head: str = Field(description="SEQ:HASH of the last sound entry; keep it elsewhere, and send it as `expect` later")
    fault: str | None = Field(description="what is wrong, and where it shows first")


def _of(tenant: str) -> ColumnElement[bool]:
    """What is told to a tenant; the default one's are also the entries from before there were any."""
    told = AuditEntry.tenant == tenant
    return or_(told, AuditEntry.tenant.is_(None)) if tenant == DEFAULT else told


@router.get("", response_model=Page[AuditOut], summary="List what was changed, newest first")
def entries(
    request: Request,
    key: MayAdminister,
    action: audit.Action | None = None,
    cursor: str | None = None,
    limit: Limit = 100,
) -> Page[AuditOut]:
    query = select(AuditEntry).where(_of(key.tenant)).order_by(AuditEntry.seq.desc()).limit(limit + 1)
    if action is not None:
        query = query.where(AuditEntry.action == action)
    if cursor is not None:
        query = query.where(AuditEntry.seq < decode_offset(cursor))
    with request.state.database.session() as session:
        rows = list(session.scalars(query))
    more = encode_cursor(rows[limit - 1].seq) if len(rows) > limit else None
    return Page(items=[AuditOut.of(row) for row in rows[:limit]], next_cursor=more)


@router.get("/verify", response_model=VerificationOut, summary="Read the whole log, and check every hash in it")
def verify(request: Request, _key: MayOperate, expect: str | None = None) -> VerificationOut:
    """It is one log of all tenants. `expect`: a head noted before, SEQ:HASH.

    Without one, a log that was cut or written anew in whole looks sound.
    """
    noted = None if expect is None else audit.Head.parse(expect)
    with request.state.database.session() as session:
        found = audit.verify(session, noted)
    return VerificationOut(intact=found.intact, entries=found.entries, head=str(found.head), fault=found.fault)
