"""Wire schemas: what goes over HTTP, apart from how it is kept."""

from __future__ import annotations

import base64
import re
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy.orm import Session

from service.datasets.repository import reference_of
from service.errors import InvalidInput
from service.jobs import harden
from service.jobs.progress import eta_seconds, progress_of
from service.jobs.state import JobState
from service.tables import DatasetVersion, Job


def _written(value: object) -> object:
    """A moment as RFC 3339 writes it: not a count of seconds, which could be of milliseconds as well."""
    if isinstance(value, str) and not re.match(r"\d{4}-\d{2}-\d{2}[Tt ]", value):
        raise ValueError("write a moment like 2026-03-01T12:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_written)]


class JobRequest(BaseModel):
    """What is to be done, to which data set, with which parameters; unknown fields are errors."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "type": "sanitise",
                    "dataset": "signs@1",
                    "reference": "trusted@1",
                    "params": {"false_quarantine_rate": 0.01},
                },
                {"type": "harden", "dataset": "signs@1", "reference": "trusted@1", "model": "signs-student"},
            ]
        },
    )

    type: Literal["sanitise", "distill", "evaluate", "harden", "review"]
    dataset: str | None = None
    reference: str | None = None
    model: str | None = None
    evaluate_on: str | None = None
    calibrate_on: str | None = None
    job: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)

    def inputs(self) -> dict[str, str]:
        return self.model_dump(exclude={"type", "params"}, exclude_none=True)


class Progress(BaseModel):
    done: int
    total: int
    unit: str
    phase: str | None
    fraction: float


class JobOut(BaseModel):
    id: str
    type: str
    state: JobState
    inputs: dict[str, Any]
    params: dict[str, Any]
    progress: Progress
    eta_seconds: float | None
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    steps: list[str] | None = None

    @classmethod
    def of(cls, session: Session, job: Job) -> JobOut:
        steps = harden.steps_of(session, job.id) if job.type == "harden" else []
        progress = progress_of(session, job)
        fields = {name: getattr(job, name) for name in cls.model_fields if hasattr(job, name)}
        return cls(
            **{
                **fields,
                "progress": Progress(**progress),
                "eta_seconds": eta_seconds(job, progress["fraction"]),
                "steps": [step.id for step in steps] if steps else None,
            }
        )


class DatasetOut(BaseModel):
    reference: str
    name: str
    version: int
    digest: str
    num_samples: int
    classes: list[str]
    class_counts: list[int]
    image_shape: list[int]
    num_groups: int | None = Field(
        description="how many objects its images show; null where not every image names one, or where the version is "
        "of before they were counted"
    )
    source_format: str
    parent: str | None
    job_id: str
    created_at: datetime
    deleted_at: datetime | None = None

    @classmethod
    def of(cls, row: DatasetVersion) -> DatasetOut:
        fields = {name: getattr(row, name) for name in cls.model_fields if hasattr(row, name)}
        return cls(reference=reference_of(row), **fields)


class SampleOut(BaseModel):
    """A row of a version's manifest."""

    model_config = ConfigDict(extra="allow")

    index: int
    sample_id: str = Field(description="sha256 of the image's bytes as they were uploaded")
    path: str
    label: str


ItemT = TypeVar("ItemT")


class Page(BaseModel, Generic[ItemT]):
    """A part of a list; send `next_cursor` as `cursor` to go on. It is null at the end."""

    items: list[ItemT]
    next_cursor: str | None


def encode_cursor(value: str | int) -> str:
    return base64.urlsafe_b64encode(str(value).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    """Raises InvalidInput for a cursor that no page gave out."""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise InvalidInput(
            "That cursor is not one of ours: send next_cursor as a page gave it.", code="bad_cursor"
        ) from error


def decode_offset(cursor: str | None) -> int:
    text = "0" if cursor is None else decode_cursor(cursor)
    if not text.isdecimal() or len(text) > 18:  # no count is longer, and int() refuses very long ones
        raise InvalidInput("That cursor is not one of ours: send next_cursor as a page gave it.", code="bad_cursor")
    return int(text)
