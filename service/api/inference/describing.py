"""Health, metadata, configuration, statistics and the repository, as the protocol has them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version as version_of
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.api.access import MayAdminister, MayPredict
from service.api.inference.infer import model_of
from service.api.routes import Route
from service.references import ModelRef
from service.registry import repository as registry
from service.serving.engine import Engine
from service.serving.protocol.describe import model_config, model_metadata, server_metadata
from service.serving.protocol.errors import BadInferenceRequest
from service.serving.statistics import Counted, Version, joined, told
from service.siblings.first import Siblings
from service.tables import ModelVersion

router = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=Route)

MOST_BYTES = 64 * 1024
MODELS_AT_ONCE = 1000
NOT_LOADED = "not in memory; it is loaded when it is asked"


@router.get("", summary="What this server is")
def server(_key: MayPredict) -> dict[str, Any]:
    return server_metadata(version_of("winnow"))


@router.get("/health/live", summary="The server answers")
def live() -> Response:
    return Response()


@router.get("/health/ready", summary="The server takes inference requests")
def ready(request: Request) -> Response:
    """Models are loaded on demand, so none needs to be in memory."""
    return Response(status_code=503 if request.app.state.engine.closing else 200)


@router.get("/models/stats", summary="Statistics of every model that was asked")
def all_statistics(request: Request, key: MayPredict) -> dict[str, Any]:
    found = _counted(request)
    references = sorted(reference for tenant, reference in found if tenant == key.tenant)
    return _statistics(found, key.tenant, references)


@router.get("/models/{model}", summary="Metadata of a model")
@router.get("/models/{model}/versions/{version}", summary="Metadata of a version")
def metadata(request: Request, model: str, _key: MayPredict, version: str | None = None) -> dict[str, Any]:
    row, versions = _found(request, model_of(model, version))
    return model_metadata(row.name, versions if version is None else [row.version], row.card)


@router.get("/models/{model}/ready", summary="Whether a model is in memory")
@router.get("/models/{model}/versions/{version}/ready", summary="Whether a version is in memory")
def model_ready(request: Request, model: str, key: MayPredict, version: str | None = None) -> Response:
    """A model that is not ready is loaded when it is asked, or by `repository/models/{model}/load`."""
    row, _ = _found(request, model_of(model, version))
    siblings = _siblings(request)
    loaded = _loaded(request, siblings.now(siblings.loaded) or set(), key.tenant)
    return Response(status_code=200 if registry.reference_of(row) in loaded else 400)


@router.get("/models/{model}/config", summary="Configuration of a model, as Triton has it")
@router.get("/models/{model}/versions/{version}/config", summary="Configuration of a version, as Triton has it")
def config(request: Request, model: str, _key: MayPredict, version: str | None = None) -> dict[str, Any]:
    row, _ = _found(request, model_of(model, version))
    return model_config(row.name, row.card, largest=request.app.state.settings.max_predict_images)


@router.get("/models/{model}/stats", summary="Statistics of a model")
@router.get("/models/{model}/versions/{version}/stats", summary="Statistics of a version")
def statistics(request: Request, model: str, key: MayPredict, version: str | None = None) -> dict[str, Any]:
    row, versions = _found(request, model_of(model, version))
    chosen = versions if version is None else [row.version]
    return _statistics(_counted(request), key.tenant, [str(ModelRef(row.name, number)) for number in chosen])


@router.post("/repository/index", summary="Every version of every model, and whether it is in memory")
async def index(request: Request, key: MayPredict) -> Response:
    """`{"ready": true}` asks for those in memory only."""
    asked = await _body(request, {"ready"})
    loaded = _loaded(request, await _siblings(request).loaded(), key.tenant)
    rows = await _engine(request).off_loop(lambda: _every_version(request))
    told = [
        {"name": name, "version": str(number), "state": "READY", "reason": ""}
        if str(ModelRef(name, number)) in loaded
        else {"name": name, "version": str(number), "state": "UNAVAILABLE", "reason": NOT_LOADED}
        for name, number in rows
    ]
    return JSONResponse([row for row in told if not asked.get("ready") or row["state"] == "READY"])


@router.post("/repository/models/{model}/load", summary="Load the version that a name means")
async def load(request: Request, model: str, key: MayAdminister) -> Response:
    """Answers once it is warm and its parity sample agrees."""
    asked = await _body(request, {"parameters"})
    if asked.get("parameters"):
        raise BadInferenceRequest(
            "A model is loaded as it was published; load takes no parameters.", code="unknown_parameter"
        )
    served = await _engine(request).load(model_of(model, None), tenant=key.tenant)
    await _siblings(request).load(key.tenant, served.name, served.version)
    return JSONResponse({})


@router.post("/repository/models/{model}/unload", summary="Let all versions of a name go from memory")
async def unload(request: Request, model: str, key: MayAdminister) -> Response:
    """It is loaded again when it is asked."""
    await _body(request, {"parameters"})
    row, _ = await _engine(request).off_loop(lambda: _found(request, model_of(model, None)))
    await _engine(request).unload(row.name, tenant=key.tenant)
    await _siblings(request).unload(key.tenant, row.name)
    return JSONResponse({})


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def _found(request: Request, ref: ModelRef) -> tuple[ModelVersion, list[int]]:
    """The version that is meant, and all versions of its name."""
    with request.state.database.session() as session:
        row = registry.resolve(session, ref)
        return row, registry.describe(session, row.name).versions


def _every_version(request: Request) -> list[tuple[str, int]]:
    with request.state.database.session() as session:
        models = registry.page(session, after=None, limit=MODELS_AT_ONCE).models
    return [(model.name, number) for model in models for number in model.versions]


def _counted(request: Request) -> dict[Version, Counted]:
    """By all processes of this gateway."""
    state = request.app.state
    state.telemetry.flush()
    return joined([state.statistics.counted(), *(look.counted for look in state.siblings.look_now())])


def _statistics(found: Mapping[Version, Counted], tenant: str, references: list[str]) -> dict[str, Any]:
    return {"model_stats": [told(reference, found.get((tenant, reference), Counted())) for reference in references]}


def _loaded(request: Request, by_siblings: set[Version], tenant: str) -> set[str]:
    """In the memory of any process of this gateway."""
    versions = by_siblings.union(_engine(request).in_memory())
    return {reference for owner, reference in versions if owner == tenant}


def _siblings(request: Request) -> Siblings:
    siblings: Siblings = request.app.state.siblings
    return siblings


async def _body(request: Request, fields: set[str]) -> dict[str, Any]:
    """The object that was sent; an empty body is an empty object."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise BadInferenceRequest(f"The body is larger than the {MOST_BYTES} bytes that this call needs.")
    try:
        found = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise BadInferenceRequest(f"The request is no JSON: {error}.", code="malformed_json") from error
    if not isinstance(found, dict) or found.keys() - fields:
        raise BadInferenceRequest(f"The request must be an object with {' and '.join(sorted(fields))}, or nothing.")
    return found
