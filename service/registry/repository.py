"""Model versions and aliases in the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from service.db import now
from service.references import ModelRef, check_name, parse_model_ref
from service.registry.errors import AliasNotFound, ModelNotFound
from service.tables import ModelAlias, ModelVersion
from service.tenancy import tenant_of
from service.turns import take_turns
from service.webhooks import outbox as webhooks

CHAMPION = "champion"


@dataclass(frozen=True)
class Model:
    """A model by name: the version that answers to the bare name, all versions' numbers, and its aliases."""

    name: str
    serving: ModelVersion
    versions: list[int]
    aliases: dict[str, int]


@dataclass(frozen=True)
class Page:
    """Models in the order of their names, and the name to go on after; None at the end."""

    models: list[Model]
    next_after: str | None


def reference_of(row: ModelVersion) -> str:
    return str(ModelRef(row.name, row.version))


def register(
    session: Session, name: str, *, job_id: str, prefix: str, files: Mapping[str, str], card: Mapping[str, Any]
) -> ModelVersion:
    """Make the next version of `name`; the caller's transaction decides whether it comes to be.

    A job publishes once: asked again for the same job, it returns the version that is there.
    """
    check_name(name, what="model")
    take_turns(session, f"model {tenant_of(session)} {name}")
    known = session.scalar(select(ModelVersion).where(ModelVersion.job_id == job_id))
    if known is not None:
        return known
    row = ModelVersion(
        tenant=tenant_of(session),
        name=name,
        version=(_latest(session, name) or 0) + 1,
        job_id=job_id,
        prefix=prefix,
        files=dict(files),
        card=dict(card),
        created_at=now(),
    )
    session.add(row)
    session.flush()
    told = {"model": reference_of(row), "metrics": row.card.get("metrics"), "job": job_id}
    webhooks.publish(session, row.tenant, webhooks.EventType.MODEL_REGISTERED, told)
    return row


def resolve(session: Session, reference: str | ModelRef) -> ModelVersion:
    """The version that a reference names. A bare name means its champion, else its latest version.

    Raises InvalidReference, ModelNotFound or AliasNotFound.
    """
    ref = parse_model_ref(reference) if isinstance(reference, str) else reference
    latest = _latest(session, ref.name)
    if latest is None:
        raise ModelNotFound(f"There is no model {ref.name}. GET /v1/models lists those there are.")
    number = ref.version
    if number is None:
        alias = session.get(ModelAlias, (tenant_of(session), ref.name, ref.alias or CHAMPION))
        if alias is None and ref.alias is not None:
            raise _no_such_alias(session, ref)
        number = latest if alias is None else alias.version
    row = session.get(ModelVersion, (tenant_of(session), ref.name, number))
    if row is None:
        raise ModelNotFound(f"There is no model {ref.name}@{number}: its newest version is {ref.name}@{latest}.")
    return row


def describe(session: Session, name: str) -> Model:
    """Raises ModelNotFound."""
    serving = resolve(session, ModelRef(name))
    numbers = select(ModelVersion.version).where(*_named(session, name)).order_by(ModelVersion.version)
    return Model(name, serving, list(session.scalars(numbers)), aliases(session, name))


def page(session: Session, *, after: str | None, limit: int) -> Page:
    """Up to `limit` models whose names come after `after`."""
    here = ModelVersion.tenant == tenant_of(session)
    names = select(ModelVersion.name).where(here).distinct().order_by(ModelVersion.name).limit(limit + 1)
    found = list(session.scalars(names if after is None else names.where(ModelVersion.name > after)))
    models = [describe(session, name) for name in found[:limit]]
    return Page(models, found[limit - 1] if len(found) > limit else None)


def set_alias(session: Session, name: str, alias: str, *, version: int) -> ModelAlias:
    """Point an alias at a version, whether it was there before or not. Raises InvalidReference or ModelNotFound."""
    check_name(alias, what="model alias")
    take_turns(session, f"model {tenant_of(session)} {name}")
    resolve(session, ModelRef(check_name(name, what="model"), version))
    row = session.get(ModelAlias, (tenant_of(session), name, alias))
    if row is None:
        row = ModelAlias(tenant=tenant_of(session), name=name, alias=alias, version=version, updated_at=now())
        session.add(row)
    elif row.version != version:
        row.version, row.updated_at = version, now()
    session.flush()
    return row


def _latest(session: Session, name: str) -> int | None:
    return session.scalar(select(func.max(ModelVersion.version)).where(*_named(session, name)))


def _named(session: Session, name: str) -> tuple[ColumnElement[bool], ...]:
    return ModelVersion.tenant == tenant_of(session), ModelVersion.name == name


def aliases(session: Session, name: str) -> dict[str, int]:
    here = ModelAlias.tenant == tenant_of(session), ModelAlias.name == name
    rows = session.scalars(select(ModelAlias).where(*here).order_by(ModelAlias.alias))
    return {row.alias: row.version for row in rows}


def _no_such_alias(session: Session, ref: ModelRef) -> AliasNotFound:
    known = ", ".join(aliases(session, ref.name)) or "none yet"
    return AliasNotFound(f"The model {ref.name} has no alias {ref.alias!r} (it has: {known}).")
