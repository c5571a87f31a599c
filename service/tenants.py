"""Tenants: made by operators, listed, given quotas."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from service.audit import Action, Actor, append
from service.db import now
from service.errors import Conflict, NotFound
from service.quotas import Quota
from service.tables import Tenant
from service.tenancy import check_tenant_name


def create(session: Session, name: str, quotas: Mapping[Quota, int | None], *, actor: Actor) -> Tenant:
    """Raises InvalidInput for what cannot name a tenant, Conflict where it is there already."""
    check_tenant_name(name)
    if session.get(Tenant, name) is not None:
        raise Conflict(f"There is a tenant {name} already.", code="tenant_exists")
    tenant = Tenant(name=name, created_at=now(), quotas=_kept(quotas))
    session.add(tenant)
    session.flush()
    append(session, actor, Action.TENANT_CREATED, f"tenant {name}", quotas=tenant.quotas)
    return tenant


def find(session: Session, name: str) -> Tenant:
    tenant = session.get(Tenant, name)
    if tenant is None:
        raise NotFound(f"There is no tenant {name}. GET /v1/tenants lists those there are.", code="tenant_not_found")
    return tenant


def set_quotas(session: Session, tenant: Tenant, quotas: Mapping[Quota, int | None], *, actor: Actor) -> None:
    """All of them anew: one that is not among `quotas` is as the settings say."""
    was, tenant.quotas = tenant.quotas, _kept(quotas)
    if tenant.quotas != was:
        append(session, actor, Action.TENANT_CHANGED, f"tenant {tenant.name}", was=was, now=tenant.quotas)


def _kept(quotas: Mapping[Quota, int | None]) -> dict[str, int | None]:
    return {quota.value: quotas[quota] for quota in Quota if quota in quotas}
