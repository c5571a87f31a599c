"""Models over HTTP: versions and their cards, aliases, predictions."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service.api.access import MayMoveAliases, MayPredict, MaySeeModels, actor_of
from service.api.bodies import read_body
from service.api.routes import Route
from service.api.schemas import Page, decode_cursor, encode_cursor
from service.audit import Action, append
from service.errors import InvalidInput
from service.references import ModelRef, check_name, parse_model_ref
from service.registry import repository as registry
from service.registry.bundle import bundle_digest
from service.serving.answers import Options
from service.serving.engine import Engine, Shape
from service.serving.inputs import InputLimits, Source, open_source
from service.siblings.first import Siblings
from service.tables import ModelVersion

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=Route)

BODY_SECONDS = 60.0
PARAMETERS = ("alpha", "reform", "mc_passes", "seed")
JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY
IMAGES = {"schema": {"type": "string", "format": "binary"}}
BODIES = {
    "required": True,
    "content": {
        "image/*": IMAGES,
        "application/x-npz": {
            **IMAGES,
            "description": "`images`: uint8 (n, height, width) or (n, height, width, 1 or 3)",
        },
        "application/json": {
            "schema": {"type": "object", "required": ["images"], "properties": {"images": {"type": "array"}}}
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
    },
}


class ModelOut(BaseModel):
    """A version, and what the model is beside it."""

    model: str = Field(description="name@version: the version that this describes")
    name: str
    version: int
    bundle: str = Field(description="digest over all files of the bundle; predictions repeat it")
    files: dict[str, str] = Field(description="sha256 of each file")
    card: dict[str, Any]
    job_id: str
    created_at: datetime
    versions: list[int] = Field(description="all versions of the model")
    aliases: dict[str, int] = Field(description="all aliases of the model; champion answers to the bare name")

    @classmethod
    def of(cls, row: ModelVersion, model: registry.Model) -> ModelOut:
        return cls(
            model=registry.reference_of(row),
            name=row.name,
            version=row.version,
            bundle=bundle_digest(row.files),
            files=row.files,
            card=row.card,
            job_id=row.job_id,
            created_at=row.created_at,
            versions=model.versions,
            aliases=model.aliases,
        )


class AliasIn(BaseModel):
    """Where an alias is to point."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]


class AliasOut(BaseModel):
    name: str
    alias: str
    version: int
    model: str
    updated_at: datetime


@router.get("", response_model=Page[ModelOut], summary="List models, each by the version that answers to its bare name")
def list_models(
    request: Request, _key: MaySeeModels, cursor: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Page[ModelOut]:
    after = None if cursor is None else decode_cursor(cursor)
    with request.state.database.session() as session:
        found = registry.page(session, after=after, limit=limit)
        items = [ModelOut.of(model.serving, model) for model in found.models]
    return Page(items=items, next_cursor=None if found.next_after is None else encode_cursor(found.next_after))


@router.get("/{reference}", response_model=ModelOut, summary="One version: name@n, name:alias, or name")
def get_model(request: Request, reference: str, _key: MaySeeModels) -> ModelOut:
    """A bare name means its champion where that alias is set, else its latest version."""
    with request.state.database.session() as session:
        row = registry.resolve(session, reference)
        return ModelOut.of(row, registry.describe(session, row.name))


@router.put("/{name}/aliases/{alias}", response_model=AliasOut, summary="Point an alias at a version")
async def put_alias(request: Request, name: str, alias: str, body: AliasIn, key: MayMoveAliases) -> AliasOut:
    """Promote by pointing `champion` at a version; roll back by pointing it at an earlier one.

    The version is loaded, warmed and tried on its parity sample first; where that fails, the alias stays where it is.
    What the version's traffic was like before is forgotten: the watch for drift begins anew.
    """
    engine: Engine = request.app.state.engine
    siblings: Siblings = request.app.state.siblings
    check_name(alias, what="model alias")
    await engine.load(ModelRef(check_name(name, what="model"), body.version), tenant=key.tenant)
    await siblings.load(key.tenant, name, body.version)
    answer, moved = await run_in_threadpool(_move_alias, request, name, alias, body.version)
    engine.changed(name, tenant=key.tenant)
    await siblings.changed(key.tenant, name)
    if moved:
        await run_in_threadpool(request.app.state.telemetry.flush)
        await siblings.look()
        request.app.state.drift.reset(key.tenant, answer.model)
    return answer


def _move_alias(request: Request, name: str, alias: str, version: int) -> tuple[AliasOut, bool]:
    with request.state.database.transaction() as session:
        before = registry.aliases(session, name).get(alias)
        row = registry.set_alias(session, name, alias, version=version)
        model = str(ModelRef(name, row.version))
        if row.version != before:
            subject = f"model {name}:{alias}"
            append(session, actor_of(request), Action.ALIAS_MOVED, subject, was=before, now=row.version)
        answer = AliasOut(name=name, alias=alias, version=row.version, model=model, updated_at=row.updated_at)
    return answer, row.version != before


@router.post("/{reference}/predict", summary="Predict, or abstain and say why", openapi_extra={"requestBody": BODIES})
async def predict(
    request: Request,
    reference: str,
    key: MayPredict,
    alpha: Annotated[float | None, Query(description="share of clean images that may be refused")] = None,
    reform: Annotated[bool, Query(description="answer for each image as the filter reconstructs it")] = False,
    mc_passes: Annotated[int | None, Query(description="dropout passes, 2 to 256; default: the model's own")] = None,
    seed: Annotated[int | None, Query(ge=0, lt=2**63, description="what the dropout masks are made from")] = None,
) -> Response:
    """The body is sniffed: an image, an npz or a JSON object with `images`, or a multipart form of files in `images`.

    `label` is null where the model abstains; `reason` then says which test spoke against the image.
    """
    if unknown := sorted(request.query_params.keys() - set(PARAMETERS)):
        raise InvalidInput(
            f"predict has no parameter {unknown[0]!r}; it has {', '.join(PARAMETERS)}.", code="unknown_parameter"
        )
    ref, options = parse_model_ref(reference), Options(alpha, reform, mc_passes, seed)
    engine: Engine = request.app.state.engine
    settings = request.app.state.settings
    content_type = request.headers.get("content-type", "")
    limits = InputLimits.of(settings)
    with engine.admit(tenant=key.tenant):
        body = await read_body(request, max_bytes=settings.max_predict_bytes, within_seconds=BODY_SECONDS)

        def opened(shape: Shape) -> Source:
            return open_source(body, content_type, shape, limits)

        answer = await engine.predict(ref, opened, options, tenant=key.tenant)
        return Response(orjson.dumps(answer, option=JSON_OPTIONS), media_type="application/json")
