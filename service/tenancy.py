"""What bounds a tenant: sessions that see its rows only, and a storage that reaches its own bytes only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, BinaryIO

from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session, UOWTransaction, with_loader_criteria

from service.errors import InvalidInput
from service.storage import Entry, Storage
from service.tables import DEFAULT, Owned

NAME = r"[a-z0-9][a-z0-9-]{0,31}"
ROOT = "tenants"


class ForeignTenant(Exception):
    """A mistake in the code: rows of one tenant were handed to another's session."""


class TenantSession(Session):
    """Every SELECT, UPDATE and DELETE of it is bounded by its tenant, and what it adds belongs to that tenant."""

    def __init__(self, *arguments: Any, tenant: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.tenant = tenant


@event.listens_for(TenantSession, "do_orm_execute")
def _bound(state: ORMExecuteState) -> None:
    tenant = tenant_of(state.session)
    if state.is_select or state.is_update or state.is_delete:
        criteria = with_loader_criteria(Owned, lambda cls: cls.tenant == tenant, include_aliases=True)
        state.statement = state.statement.options(criteria)


@event.listens_for(TenantSession, "before_flush")
def _belong(session: Session, _context: UOWTransaction, _instances: object) -> None:
    tenant = tenant_of(session)
    for row in (*session.new, *session.dirty):
        if isinstance(row, Owned):
            row.tenant = row.tenant or tenant  # a column's default comes later, at the INSERT
            if row.tenant != tenant:
                raise ForeignTenant(f"{type(row).__name__} of {row.tenant} in a session of {tenant}")


def tenant_of(session: Session) -> str:
    """Whose session it is. One of nobody's (the stack's own) names things of the tenant `default`."""
    return session.tenant if isinstance(session, TenantSession) else DEFAULT


def check_tenant_name(text: str) -> str:
    if not re.fullmatch(NAME, text):
        raise InvalidInput(
            f"{text!r} cannot name a tenant: use 1 to 32 lower-case letters, digits or '-', beginning with a letter "
            "or digit.",
            code="bad_tenant_name",
        )
    return text


class TenantStorage:
    """A tenant's part of a storage: all its keys lie under `tenants/NAME/`, those of `default` everywhere else."""

    def __init__(self, storage: Storage, tenant: str) -> None:
        self._storage = storage
        self._root = "" if tenant == DEFAULT else f"{ROOT}/{check_tenant_name(tenant)}/"

    def read(self, key: str) -> bytes:
        return self._storage.read(self._whole(key))

    def write(self, key: str, data: bytes) -> None:
        self._storage.write(self._whole(key), data)

    def open(self, key: str) -> BinaryIO:
        return self._storage.open(self._whole(key))

    def open_local(self, key: str) -> BinaryIO:
        return self._storage.open_local(self._whole(key))

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return self._storage.read_ranges(self._whole(key), ranges)

    def writing(self, key: str) -> AbstractContextManager[BinaryIO]:
        return self._storage.writing(self._whole(key))

    def exists(self, key: str) -> bool:
        return self._storage.exists(self._whole(key))

    def size(self, key: str) -> int:
        return self._storage.size(self._whole(key))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        for entry in self._storage.list(self._whole(prefix) if prefix else self._root.rstrip("/")):
            if self._root or not entry.key.startswith(f"{ROOT}/"):
                yield replace(entry, key=entry.key.removeprefix(self._root))

    def unfinished(self) -> Iterator[Entry]:
        """Of every tenant: what was never finished has no key."""
        return self._storage.unfinished()

    def delete_prefix(self, prefix: str) -> None:
        self._storage.delete_prefix(self._whole(prefix))

    def check(self) -> None:
        self._storage.check()

    def _whole(self, key: str) -> str:
        """Raises ValueError for a key that leads out of the tenant's part."""
        parts = key.split("/")
        if not key or key.startswith("/") or {"", ".", ".."} & set(parts) or (not self._root and parts[0] == ROOT):
            raise ValueError(f"not a storage key of this tenant: {key!r}")
        return self._root + key
