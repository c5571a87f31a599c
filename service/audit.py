"""The audit log: entries are only ever added, each sealed by a hash over itself and the entry before it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self

from sqlalchemy import select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from service.db import now
from service.errors import Corrupt, InvalidInput
from service.tables import AuditEntry, AuditHead
from service.tenancy import tenant_of

BEGINNING = "0" * 64  # what the first entry has for the hash before it
ROWS_AT_ONCE = 1000


class Action(StrEnum):
    """Everything that is told."""

    TENANT_CREATED = "tenant.created"
    TENANT_CHANGED = "tenant.changed"
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    DATASET_DELETED = "dataset.deleted"
    UPLOAD_ACCEPTED = "upload.accepted"
    JOB_SUBMITTED = "job.submitted"
    JOB_CANCELLED = "job.cancelled"
    JOB_RETRIED = "job.retried"
    ALIAS_MOVED = "alias.moved"
    MODEL_IMPORTED = "model.imported"
    DRIFT_RESET = "drift.reset"
    CAPTURES_DELETED = "captures.deleted"
    WEBHOOK_CREATED = "webhook.created"
    WEBHOOK_CHANGED = "webhook.changed"
    WEBHOOK_ROTATED = "webhook.rotated"
    WEBHOOK_REMOVED = "webhook.removed"
    VERDICTS_DECIDED = "verdicts.decided"


@dataclass(frozen=True)
class Actor:
    """Whose key it was, and in which request."""

    key_id: str
    name: str
    request_id: str | None = None


STACK = Actor("-", "stack")  # the service itself, as it starts


@dataclass(frozen=True)
class Sealed:
    """An entry as it is stored, field by field in the order in which they are hashed."""

    seq: int
    at: str
    actor_id: str
    actor: str
    action: str
    subject: str
    request_id: str | None
    details: str
    prev_hash: str
    tenant: str | None = None  # None in entries from before there were tenants

    def seal(self) -> str:
        """sha256 over the fields as one JSON array: whatever their contents, no two entries have the same one."""
        values = list(asdict(self).values())
        sealed = values if self.tenant is not None else values[:-1]
        # default: what a tampered row may hold instead of text (bytes) is told apart as well.
        fields = json.dumps(sealed, ensure_ascii=True, separators=(",", ":"), default=repr)
        return hashlib.sha256(fields.encode()).hexdigest()


@dataclass(frozen=True)
class Head:
    """Where the log ends. Noted down elsewhere, it shows later whether the log was cut or written anew."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Self:
        match = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text)
        if match is None:
            raise InvalidInput(
                "That is not a head of the audit log: write it as 'winnow audit verify' prints it, SEQ:HASH.",
                code="bad_audit_head",
            )
        return cls(int(match[1]), match[2])


@dataclass(frozen=True)
class Verification:
    """`fault` says in words what is wrong, and where it shows first; None where every entry is as it was written."""

    entries: int  # sound ones, from the first on
    head: Head
    fault: str | None

    @property
    def intact(self) -> bool:
        return self.fault is None


def append(session: Session, actor: Actor, action: Action, subject: str, **details: object) -> None:
    """Tell of a change in the transaction that makes it; the last thing to do in it. It is told to its tenant.

    Adding takes turns: SQLite has one writer, elsewhere the head's row is locked until the transaction ends. Should
    two get the same number all the same, the second fails on it as a whole.
    """
    head = session.get(AuditHead, 1, with_for_update=True, populate_existing=True)
    if head is None:
        raise Corrupt(
            "The audit log's head is gone: nothing can be changed until it is restored.", code="audit_head_missing"
        )
    entry = Sealed(
        seq=head.seq + 1,
        at=now().isoformat(timespec="microseconds"),
        actor_id=actor.key_id,
        actor=actor.name,
        action=action.value,
        subject=subject,
        request_id=actor.request_id,
        details=json.dumps(details, ensure_ascii=True, sort_keys=True, separators=(",", ":")),
        prev_hash=head.hash,
        tenant=tenant_of(session),
    )
    head.seq, head.hash = entry.seq, entry.seal()
    session.add(AuditEntry(**asdict(entry), hash=head.hash))
    session.flush()


def verify(session: Session, expected: Head | None = None) -> Verification:
    """Read the whole log, and find the first entry that is not what was written, or not where.

    expected: a head noted before; the log must still hold that very entry.
    """
    if session.get_bind().dialect.name == "postgresql":  # entries and head as of one moment
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    last = Head(0, BEGINNING)
    columns = [getattr(AuditEntry, name) for name in (*Sealed.__dataclass_fields__, "hash")]
    query = select(*columns).order_by(AuditEntry.seq).execution_options(yield_per=ROWS_AT_ONCE)
    try:
        with session.execute(query) as rows:
            for *fields, stored in rows:
                entry = Sealed(*fields)
                fault = _fault(entry, stored, last, expected)
                if fault is not None:
                    return Verification(last.seq, last, fault)
                last = Head(entry.seq, stored)
        return Verification(last.seq, last, _fault_at_the_end(session, last, expected))
    except DatabaseError as error:
        if "decode" not in str(error.orig):
            raise
        return Verification(last.seq, last, f"An entry after {last.seq}, or the head, holds bytes that are no text.")


def _fault(entry: Sealed, stored: object, before: Head, expected: Head | None) -> str | None:
    if entry.seq != before.seq + 1:
        return f"After entry {before.seq} comes {entry.seq}: entries were removed, or numbered anew."
    if entry.prev_hash != before.hash:
        return f"Entry {entry.seq} does not follow on entry {before.seq}: one of them was changed or moved."
    if entry.seal() != stored:
        return f"Entry {entry.seq} is not what was written."
    if expected is not None and entry.seq == expected.seq and stored != expected.hash:
        return f"Entry {entry.seq} is not the one that was noted: the log was written anew."
    return None


def _fault_at_the_end(session: Session, last: Head, expected: Head | None) -> str | None:
    row = session.execute(select(AuditHead.seq, AuditHead.hash).where(AuditHead.id == 1)).one_or_none()
    if row is None:
        return "The log's head is gone."
    if (row.seq, row.hash) != (last.seq, last.hash):
        return f"The log ends with entry {last.seq}, its head says {row.seq}: entries or the head were changed."
    if expected is not None and expected.seq > last.seq:
        return f"The log ends with entry {last.seq}; entry {expected.seq} was noted and is gone."
    return None
