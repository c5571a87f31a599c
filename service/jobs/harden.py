"""A harden job is three jobs in a row. It occupies no worker: each step, in ending, makes the next one."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import now
from service.jobs import repository
from service.jobs.create import add_job
from service.jobs.state import FINISHED, JobState
from service.tables import Job

STEPS = ("sanitise", "distill", "evaluate")


def first_step(session: Session, parent: Job) -> Job:
    return _add(session, parent, "sanitise", _pick(parent, "dataset", "reference"))


def advance(session: Session, child: Job) -> None:
    """Called in the transaction that ended `child`: makes the next step, or ends the harden job."""
    parent = session.get(Job, child.parent_id) if child.parent_id else None
    if parent is None or parent.state in FINISHED:
        return
    if child.state == JobState.SUCCEEDED and parent.state != JobState.CANCELLING:
        _succeeded(session, parent, child)
    elif child.state == JobState.FAILED:
        error = {**(child.error or {}), "step": child.type, "job": child.id}
        repository.move(session, parent, JobState.FAILED, f"{child.type} failed", error=error, finished_at=now())
    else:
        repository.move(session, parent, JobState.CANCELLED, f"cancelled in {child.type}", finished_at=now())


def distill_on_what_is_left(session: Session, child_id: str) -> dict[str, Any] | None:
    """The params of the step that will calibrate on what this one's filter has not seen; None where none will."""
    child = session.get(Job, child_id)
    parent = session.get(Job, child.parent_id) if child is not None and child.parent_id else None
    if parent is None or "reference" not in parent.inputs:
        return None
    params: dict[str, Any] = parent.params["distill"]
    given = parent.inputs["reference"]
    return params if parent.inputs.get("calibrate_on", given) == given else None


def steps_of(session: Session, parent_id: str) -> list[Job]:
    return list(session.scalars(select(Job).where(Job.parent_id == parent_id).order_by(Job.created_at, Job.id)))


def progress(children: list[Job]) -> dict[str, Any]:
    """Of the whole, from its steps: they are the truth, nothing is stored twice."""
    done = sum(child.state == JobState.SUCCEEDED for child in children)
    fraction = float(done)
    phase = None
    if children and children[-1].state in (JobState.RUNNING, JobState.CANCELLING):
        fraction += children[-1].progress.get("fraction", 0.0)
        phase = f"{children[-1].type}: {children[-1].progress.get('phase') or 'starting'}"
    return {"done": done, "total": len(STEPS), "unit": "steps", "phase": phase, "fraction": fraction / len(STEPS)}


def _succeeded(session: Session, parent: Job, child: Job) -> None:
    result = child.result or {}
    if child.type == "sanitise":
        reference = parent.inputs.get("calibrate_on", parent.inputs.get("reference"))
        inputs = {"dataset": result["dataset"], "model": parent.inputs["model"]}
        inputs |= {"reference": reference} if reference else {}
        _add(session, parent, "distill", inputs)
    elif child.type == "distill":
        dataset = parent.inputs.get("evaluate_on") or parent.inputs["reference"]
        _add(session, parent, "evaluate", {"model": result["model"], "dataset": dataset})
    else:
        repository.move(
            session,
            parent,
            JobState.SUCCEEDED,
            "all steps succeeded",
            result=_merged(session, parent),
            finished_at=now(),
        )


def _merged(session: Session, parent: Job) -> dict[str, Any]:
    by_type = {step.type: step for step in steps_of(session, parent.id)}
    sanitised, distilled, evaluated = (by_type[name].result or {} for name in STEPS)
    return {
        **{key: value for key, value in sanitised.items() if key != "report"},
        "model": distilled["model"],
        "metrics": distilled["metrics"],
        "evaluation": evaluated["metrics"],
        "jobs": {name: by_type[name].id for name in STEPS},
    }


def _add(session: Session, parent: Job, kind: str, inputs: dict[str, Any]) -> Job:
    return add_job(
        session,
        kind,
        inputs=inputs,
        params=parent.params[kind],
        tenant=parent.tenant,
        parent_id=parent.id,
        request_id=parent.request_id,
        max_attempts=parent.max_attempts,
    )


def _pick(parent: Job, *keys: str) -> dict[str, Any]:
    return {key: parent.inputs[key] for key in keys if key in parent.inputs}
