"""API keys: 256 random bits, kept as their sha256, compared in constant time; what each may do, and until when."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

import structlog
from sqlalchemy import or_, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.audit import STACK, Action, Actor, append
from service.db import Database, now
from service.errors import Conflict, Forbidden, InvalidInput, NotFound, Unauthorized
from service.scopes import Scope
from service.settings import Settings
from service.tables import DEFAULT, ApiKey
from service.tenancy import tenant_of
from service.turns import take_turns

PREFIX_LENGTH = 9  # "wk_" and six characters of 43: tells keys apart, and leaves more than 200 bits unknown
USE_NOTED_EVERY = timedelta(minutes=1)

log = structlog.get_logger()


@dataclass(frozen=True)
class Issued:
    """A key and its text, which is nowhere else and is shown once."""

    key: ApiKey
    secret: str


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def new_secret() -> str:
    return "wk_" + secrets.token_urlsafe(32)


def admin_key_path(home: Path) -> Path:
    return home / "admin.key"


def ensure_admin_key(settings: Settings) -> str:
    """The admin key of this home, in `admin.key`, readable by its owner only; made on first start.

    Where it has been revoked, or its text rotated away, a new one takes its place: the owner of the home is never
    locked out for longer than until the next start.
    """
    path = admin_key_path(settings.home)
    database = Database.open(settings.database_url)
    try:
        with database.transaction() as session:
            take_turns(session, "admin key")
            if not path.exists():
                _write_admin_key(path)
            stored = _stored(session, path.read_text().strip())
            if stored is not None and why_not(stored, digest_of(path.read_text().strip())) is not None:
                path.unlink()
                _write_admin_key(path)
                stored = None
            key = path.read_text().strip()
            if stored is None:
                _add(session, "admin", [Scope.ADMIN], key, expires_at=None, actor=STACK)
            elif not stored.prefix:  # made by a version that did not keep it
                stored.prefix = key[:PREFIX_LENGTH]
    finally:
        database.close()
    return key


def _write_admin_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(new_secret())


def authenticate(database: Database, key: str | None) -> ApiKey:
    """The stored key that `key` is. Raises Unauthorized; only who holds a key's text is told that it has ended."""
    if key:
        with database.session() as session:
            stored = _stored(session, key)
        if stored is not None:
            refused = why_not(stored, digest_of(key))
            if refused is not None:
                raise refused
            _note_use(database, stored)
            return stored
    raise Unauthorized(
        "This call needs a valid API key: send 'Authorization: Bearer <key>'. "
        "The embedded stack keeps its admin key in admin.key in its home."
    )


def may(key: ApiKey, scopes: Iterable[Scope]) -> bool:
    """Whether the key has one of these scopes."""
    return not _implied(tuple(key.scopes), key.tenant == DEFAULT).isdisjoint(scopes)


@lru_cache(maxsize=1024)
def _implied(own: tuple[str, ...], of_default: bool) -> frozenset[Scope]:
    """What these scopes of a key allow; only a key of the default tenant can be about all tenants."""
    implied = frozenset(Scope) if Scope.ADMIN in own else frozenset(map(Scope, own))
    return implied if of_default else implied - {Scope.OPERATOR}


def check_scopes(key: ApiKey, scopes: Iterable[Scope]) -> None:
    """Raises Forbidden where the key has none of these scopes."""
    if not may(key, scopes):
        wanted = sorted({*scopes, Scope.ADMIN}, key=list(Scope).index)
        raise Forbidden(
            f"This call needs a key with the scope {' or '.join(wanted)}; yours ({key.name}, of the tenant "
            f"{key.tenant}) has {', '.join(key.scopes)}. {_where_from(scopes)}",
            code="missing_scope",
            scopes=wanted,
        )


def _where_from(scopes: Iterable[Scope]) -> str:
    if Scope.OPERATOR in scopes:
        return f"Only keys of the tenant {DEFAULT} can have it: it is for who runs the service."
    return "'winnow keys create' makes another."


def create(
    session: Session,
    name: str,
    scopes: Iterable[Scope],
    *,
    expires_at: datetime | None,
    requests_per_second: int | None = None,
    actor: Actor,
) -> Issued:
    """A key of the session's tenant."""
    secret = new_secret()
    key = _add(session, name, scopes, secret, expires_at=expires_at, actor=actor)
    key.requests_per_second = requests_per_second
    return Issued(key, secret)


def find(session: Session, key_id: str) -> ApiKey:
    key = session.get(ApiKey, key_id, with_for_update=True)
    if key is None:
        raise NotFound(f"There is no key {key_id}. GET /v1/keys lists those there are.", code="key_not_found")
    return key


def revoke(session: Session, key: ApiKey, *, actor: Actor) -> None:
    """At once, for every text it has had. Doing it again changes nothing."""
    if key.revoked_at is None:
        key.revoked_at = now()
        append(session, actor, Action.KEY_REVOKED, key.id, name=key.name)


def rotate(session: Session, key: ApiKey, *, grace: timedelta, actor: Actor) -> Issued:
    """A new text for the key; the present one counts for `grace` longer, one from an earlier rotation ends now."""
    present = now()
    if key.revoked_at is not None or _is_past(key.expires_at, present):
        raise Conflict(
            f"Key {key.id} ({key.name}) is revoked or has expired; make a new one instead.", code="key_not_active"
        )
    secret = new_secret()
    key.old_digest, key.old_until = key.digest, present + grace
    key.digest, key.prefix = digest_of(secret), secret[:PREFIX_LENGTH]
    append(session, actor, Action.KEY_ROTATED, key.id, name=key.name, grace_seconds=grace.total_seconds())
    return Issued(key, secret)


def _add(
    session: Session, name: str, scopes: Iterable[Scope], secret: str, *, expires_at: datetime | None, actor: Actor
) -> ApiKey:
    present, tenant = now(), tenant_of(session)
    if Scope.OPERATOR in set(scopes) and tenant != DEFAULT:
        raise InvalidInput(
            f"The scope operator is for keys of the tenant {DEFAULT} only, not of {tenant}.", code="operator_elsewhere"
        )
    key = ApiKey(
        tenant=tenant,
        id=f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(4)}",  # sorts by the time of its making
        name=name,
        prefix=secret[:PREFIX_LENGTH],
        digest=digest_of(secret),
        scopes=[scope.value for scope in Scope if scope in set(scopes)],
        created_at=present,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    until = None if expires_at is None else expires_at.isoformat()
    append(session, actor, Action.KEY_CREATED, key.id, name=name, scopes=key.scopes, expires_at=until)
    return key


def _stored(session: Session, key: str) -> ApiKey | None:
    """The key with that text, old or new. The index is asked for a digest, which nobody can steer byte by byte."""
    wanted = digest_of(key)
    found = session.scalar(select(ApiKey).where(or_(ApiKey.digest == wanted, ApiKey.old_digest == wanted)))
    if found is None:
        return None
    is_new = hmac.compare_digest(found.digest, wanted)
    is_old = hmac.compare_digest(found.old_digest or "", wanted)
    return found if is_new or is_old else None


def why_not(key: ApiKey, digest: str) -> Unauthorized | None:
    present = now()
    if key.revoked_at is not None:
        return Unauthorized(
            f"The key {key.name} ({key.id}) was revoked. Ask an administrator for another.", code="key_revoked"
        )
    if _is_past(key.expires_at, present):
        return Unauthorized(
            f"The key {key.name} ({key.id}) expired at {key.expires_at}. Ask an administrator for another.",
            code="key_expired",
        )
    is_old = not hmac.compare_digest(key.digest, digest)
    if is_old and (key.old_until is None or _is_past(key.old_until, present)):
        return Unauthorized(
            f"The key {key.name} ({key.id}) was rotated, and this is its old text. Use the new one.",
            code="key_expired",
        )
    return None


def _is_past(moment: datetime | None, present: datetime) -> bool:
    return moment is not None and moment <= present


def _note_use(database: Database, key: ApiKey) -> None:
    """At most once a minute, so that reading stays reading; never worth failing a call for."""
    present = now()
    before = present - USE_NOTED_EVERY
    if key.last_used_at is not None and key.last_used_at > before:
        return
    long_ago = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= before)
    try:
        with database.transaction() as session:
            session.execute(update(ApiKey).where(ApiKey.id == key.id, long_ago).values(last_used_at=present))
    except OperationalError as error:
        log.warning("key's use not noted", key_id=key.id, reason=type(error.orig).__name__)
