"""The tables of what several workers do of one job at once: its phases, and the steps that each is cut into."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.tables import Table


class Phase(Table):
    """A part of a job that any worker may help with. `given`: what its steps work with; other means, other steps."""

    __tablename__ = "job_phases"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))  # open, done, failed
    given: Mapped[dict[str, Any]]
    rung_at: Mapped[datetime | None]  # when the broker was last told that help is wanted


class Step(Table):
    """Images `start` to `stop` of a phase. `attempt` fences, as that of jobs, and never goes back."""

    __tablename__ = "job_steps"

    job_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    phase: Mapped[str] = mapped_column(String(16), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    start: Mapped[int]
    stop: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))  # queued, running, succeeded, failed
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    worker: Mapped[str | None] = mapped_column(String(128))
    lease_expires_at: Mapped[datetime | None]
    done: Mapped[int]  # images
    key: Mapped[str | None] = mapped_column(String(255))  # of its result, on storage
    digest: Mapped[str | None] = mapped_column(String(64))  # sha256 of its result
    error: Mapped[dict[str, Any] | None]  # of its last attempt that came to nothing

    __table_args__ = (
        ForeignKeyConstraint(["job_id", "phase"], ["job_phases.job_id", "job_phases.name"]),
        Index("ix_job_steps_state_lease", "state", "lease_expires_at"),
    )
