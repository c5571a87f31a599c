"""Tenants over HTTP: made, listed, given quotas and keys by operators; what each may have, and has, for itself."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from starlette.responses import Response

from service import quotas, tenants
from service.api.access import MayOperate, MaySeeUsage, actor_of
from service.api.datasets import Limit
from service.api.keys import IssuedKeyOut, KeyIn, made
from service.api.paging import page_of
from service.api.routes import Route
from service.api.schemas import Page
from service.quotas import Quota
from service.tables import Tenant

router = APIRouter(prefix="/v1", tags=["tenants"], route_class=Route)

Amount = Annotated[int, Field(ge=0, le=2**62, strict=True)]


class QuotasIn(BaseModel):
    """A quota that is not named is as the settings say; null is no limit."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"bytes": 10**12, "queued_jobs": 100}]})

    bytes: Amount | None = None
    images: Amount | None = None
    queued_jobs: Amount | None = None
    running_jobs: Amount | None = None

    def named(self) -> dict[Quota, int | None]:
        return {Quota(name): getattr(self, name) for name in self.model_fields_set}


class TenantIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "acme"}]})

    name: str = Field(description="1 to 32 lower-case letters, digits or '-'")
    quotas: QuotasIn = Field(default_factory=QuotasIn)


class TenantOut(BaseModel):
    """`quotas` has what was set for this tenant and differs from the settings."""

    name: str
    created_at: datetime
    quotas: dict[str, Any]

    @classmethod
    def of(cls, tenant: Tenant) -> Self:
        return cls(name=tenant.name, created_at=tenant.created_at, quotas=tenant.quotas)


class UsageOut(BaseModel):
    """What a tenant may have, and has."""

    tenant: str
    limits: dict[str, int | None] = Field(description="null: no limit")
    used: dict[str, int]


@router.post("/tenants", status_code=201, response_model=TenantOut, summary="Make a tenant")
def create(request: Request, body: TenantIn, _key: MayOperate) -> TenantOut:
    """It has no key yet: POST /v1/tenants/{tenant}/keys makes its first."""
    with request.state.database.transaction() as session:
        return TenantOut.of(tenants.create(session, body.name, body.quotas.named(), actor=actor_of(request)))


@router.get("/tenants", response_model=Page[TenantOut], summary="List tenants by name")
def list_tenants(request: Request, _key: MayOperate, cursor: str | None = None, limit: Limit = 100) -> Page[TenantOut]:
    with request.state.database.session() as session:
        return page_of(session, select(Tenant), Tenant.name, TenantOut.of, cursor=cursor, limit=limit)


@router.get("/tenants/{tenant}", response_model=UsageOut, summary="What a tenant may have, and has")
def get_tenant(request: Request, tenant: str, _key: MayOperate) -> UsageOut:
    with request.state.database.session() as session:
        tenants.find(session, tenant)
    return _usage(request, tenant)


@router.put("/tenants/{tenant}/quotas", response_model=TenantOut, summary="Set what a tenant may have")
def put_quotas(request: Request, tenant: str, body: QuotasIn, _key: MayOperate) -> TenantOut:
    """All of them anew. What is there already stays, even where it is more."""
    with request.state.database.transaction() as session:
        found = tenants.find(session, tenant)
        tenants.set_quotas(session, found, body.named(), actor=actor_of(request))
        return TenantOut.of(found)


@router.post("/tenants/{tenant}/keys", status_code=201, response_model=IssuedKeyOut, summary="Make a key for a tenant")
def create_key(request: Request, response: Response, tenant: str, body: KeyIn, _key: MayOperate) -> IssuedKeyOut:
    """Its first, or one more where all its administrators have lost theirs. It is told to that tenant's audit log."""
    with request.state.database.session() as session:
        tenants.find(session, tenant)
    with request.app.state.database.of(tenant).transaction() as session:
        return IssuedKeyOut.issued(made(session, body, actor_of(request)), response)


@router.get("/usage", response_model=UsageOut, summary="What this key's tenant may have, and has")
def usage(request: Request, key: MaySeeUsage) -> UsageOut:
    return _usage(request, key.tenant)


def _usage(request: Request, name: str) -> UsageOut:
    with request.app.state.database.of(name).session() as session:
        limits = quotas.limits_of(request.app.state.settings, session.get(Tenant, name))
        used = {quota.value: quotas.used(session, quota) for quota in Quota}
    return UsageOut(tenant=name, limits={quota.value: limit for quota, limit in limits.items()}, used=used)
