"""API keys over HTTP: made, listed, revoked, rotated; for administrators."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Self

from fastapi import APIRouter, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from service import auth
from service.api.access import MayAdminister, actor_of
from service.api.datasets import Limit
from service.api.paging import page_of
from service.api.routes import Route
from service.api.schemas import Page
from service.audit import Actor
from service.db import now
from service.errors import InvalidInput
from service.scopes import Scope
from service.tables import ApiKey

router = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=Route)

LONGEST_LIFE = timedelta(days=3653)
DAY_SECONDS = 86_400


class KeyIn(BaseModel):
    """What a new key is for."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "camera-7", "scopes": ["upload"], "expires_at": "2030-01-01T00:00:00Z"}]
        },
    )

    name: Annotated[str, Field(pattern=r"^\w[\w .@+-]{0,63}$")]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    expires_at: AwareDatetime | None = Field(None, description="within ten years; without it the key does not expire")
    requests_per_second: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] | None = Field(
        None, description="how often it may call; without it, as the settings say"
    )


class RotationIn(BaseModel):
    """How long the present text of a key counts beside the new one."""

    model_config = ConfigDict(extra="forbid")

    grace_seconds: Annotated[int, Field(ge=0, le=30 * DAY_SECONDS, strict=True)] = 3600


class KeyOut(BaseModel):
    """A key without its text."""

    id: str
    tenant: str
    name: str
    prefix: str = Field(description="how its text begins")
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")
    revoked_at: datetime | None
    requests_per_second: int | None = Field(description="null: as the settings say")
    old_until: datetime | None = Field(description="when the text from before the latest rotation ends, or ended")

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        return cls(**{name: getattr(key, name) for name in cls.model_fields if name != "secret"})


class IssuedKeyOut(KeyOut):
    """A key with its text, which no other answer holds."""

    secret: str = ""

    @classmethod
    def issued(cls, issued: auth.Issued, response: Response) -> Self:
        response.headers["Cache-Control"] = "no-store"
        return cls.of(issued.key).model_copy(update={"secret": issued.secret})


def made(session: Session, body: KeyIn, actor: Actor) -> auth.Issued:
    """The key that was asked for, of the session's tenant."""
    if body.expires_at is not None and not now() < body.expires_at < now() + LONGEST_LIFE:
        raise InvalidInput("expires_at must be in the future, and within ten years.", code="bad_expiry")
    return auth.create(
        session,
        body.name,
        body.scopes,
        expires_at=body.expires_at,
        requests_per_second=body.requests_per_second,
        actor=actor,
    )


@router.post("", status_code=201, response_model=IssuedKeyOut, summary="Make a key; its text is shown this once")
def create(request: Request, response: Response, body: KeyIn, _key: MayAdminister) -> IssuedKeyOut:
    with request.state.database.transaction() as session:
        return IssuedKeyOut.issued(made(session, body, actor_of(request)), response)


@router.get("", response_model=Page[KeyOut], summary="List keys, oldest first")
def list_keys(request: Request, _key: MayAdminister, cursor: str | None = None, limit: Limit = 100) -> Page[KeyOut]:
    with request.state.database.session() as session:
        return page_of(session, select(ApiKey), ApiKey.id, KeyOut.of, cursor=cursor, limit=limit)


@router.delete("/{key_id}", response_model=KeyOut, summary="Revoke a key")
def revoke(request: Request, key_id: str, _key: MayAdminister) -> KeyOut:
    """At once, with the text of an earlier rotation. The key stays in the list."""
    with request.state.database.transaction() as session:
        key = auth.find(session, key_id)
        auth.revoke(session, key, actor=actor_of(request))
    return KeyOut.of(key)


@router.post("/{key_id}/rotate", response_model=IssuedKeyOut, summary="Give a key a new text")
def rotate(
    request: Request, response: Response, key_id: str, _key: MayAdminister, body: RotationIn | None = None
) -> IssuedKeyOut:
    """The present text counts for `grace_seconds` longer (an hour, where not said); one from before it ends at once."""
    grace = timedelta(seconds=(body or RotationIn()).grace_seconds)
    with request.state.database.transaction() as session:
        issued = auth.rotate(session, auth.find(session, key_id), grace=grace, actor=actor_of(request))
    return IssuedKeyOut.issued(issued, response)
