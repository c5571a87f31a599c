"""Drift over HTTP: does live traffic of a version still look like what it was calibrated on?"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.api.access import MayMoveAliases, MaySeeModels, actor_of
from service.api.routes import Route
from service.audit import Action, append
from service.registry import repository as registry

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=Route)


class BinOut(BaseModel):
    above: float
    up_to: float
    promised: float = Field(description="share of images with such p-values, by the calibration")
    observed: int
    recent: int = Field(description="of the last 500 images")


class DriftOut(BaseModel):
    """What this gateway has seen of a version."""

    model: str
    alarm: bool = Field(description="stays until the watch begins anew")
    alarmed_at: datetime | None
    since: datetime | None = Field(description="when the watch began; null where nothing has been answered since")
    images: int = Field(description="that the test has seen")
    skipped: int = Field(description="images that were left out because traffic was too fast to count them all")
    rate: float = Field(description="the chance that traffic like the calibration ever raises the alarm")
    p_value: float = Field(description="the chance that such traffic would ever have looked so odd")
    calibration_images: int | None
    bins: list[BinOut]


@router.get("/{reference}/drift", response_model=DriftOut, summary="Is live traffic still like the calibration?")
def get_drift(request: Request, reference: str, key: MaySeeModels) -> DriftOut:
    """An alarm says that live p-values are not what this version was calibrated on: abstention may not hold its α."""
    state = request.app.state
    model = _version(request, reference)
    state.telemetry.flush()
    state.siblings.look_now()
    found = state.drift.drift(key.tenant, model)
    if found is not None:
        return DriftOut(model=model, **asdict(found))
    return DriftOut(
        model=model,
        alarm=False,
        alarmed_at=None,
        since=None,
        images=0,
        skipped=0,
        rate=state.drift.rate,
        p_value=1.0,
        calibration_images=None,
        bins=[],
    )


@router.delete("/{reference}/drift", response_model=DriftOut, summary="Begin the watch anew")
def reset_drift(request: Request, reference: str, key: MayMoveAliases) -> DriftOut:
    """After somebody has looked into an alarm. A promotion does it by itself."""
    state = request.app.state
    model = _version(request, reference)
    with request.state.database.transaction() as session:
        append(session, actor_of(request), Action.DRIFT_RESET, f"model {model}")
    state.telemetry.flush()
    state.siblings.look_now()
    state.drift.reset(key.tenant, model)
    return get_drift(request, model, key)


def _version(request: Request, reference: str) -> str:
    with request.state.database.session() as session:
        return registry.reference_of(registry.resolve(session, reference))
