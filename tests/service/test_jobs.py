"""Claims, leases, the reaper, cancel and retry, against a real database."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from service.db import Database, now
from service.errors import Conflict, IllegalTransition, LeaseLost
from service.jobs import control, harden, repository
from service.jobs.create import add_job
from service.jobs.queue import Doorbell, celery_app
from service.jobs.reaper import reap
from service.jobs.repository import Claim
from service.jobs.state import JobState
from service.settings import Settings
from service.tables import Job, JobEvent


@pytest.fixture
def doorbell(settings: Settings, database: Database) -> Doorbell:
    """Of a broker that is not there: what follows must not need it."""
    return Doorbell(celery_app(settings), database)


def queued(database: Database, kind: str = "sanitise", max_attempts: int = 3, **inputs: str) -> str:
    with database.transaction() as session:
        return add_job(session, kind, inputs=dict(inputs), params={}, max_attempts=max_attempts).id


def claimed(database: Database, job_id: str, lease_seconds: float = 60.0) -> Claim:
    claim = repository.claim(database, job_id, worker="w", lease_seconds=lease_seconds)
    assert claim is not None
    return claim


def state_of(database: Database, job_id: str) -> Job:
    with database.session() as session:
        return repository.find(session, job_id)


def end(database: Database, claim: Claim, state: JobState, **outcome: object) -> None:
    with database.transaction() as session:
        harden.advance(session, repository.finish(session, claim, state, "ended", **outcome))


def test_of_many_who_try_to_claim_one_wins(database: Database) -> None:
    job_id = queued(database)
    won: list[Claim] = []
    barrier = threading.Barrier(8)

    def try_it(name: str) -> None:
        barrier.wait()
        claim = repository.claim(database, job_id, worker=name, lease_seconds=60)
        if claim is not None:
            won.append(claim)

    threads = [threading.Thread(target=try_it, args=(f"w{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert state_of(database, job_id).attempt == 1


def test_an_attempt_that_lost_its_lease_can_publish_nothing(database: Database, doorbell: Doorbell) -> None:
    job_id = queued(database)
    stale = claimed(database, job_id, lease_seconds=-1)
    reap(database, doorbell)
    assert state_of(database, job_id).state == JobState.QUEUED
    fresh = claimed(database, job_id)
    assert fresh.attempt == 2
    with pytest.raises(LeaseLost):
        repository.renew(database, stale, lease_seconds=60, progress={})
    with pytest.raises(LeaseLost):
        end(database, stale, JobState.SUCCEEDED, result={"from": "the stale one"})
    end(database, fresh, JobState.SUCCEEDED, result={"from": "the fresh one"})
    assert state_of(database, job_id).result == {"from": "the fresh one"}


def test_a_renewed_lease_is_not_reaped(database: Database, doorbell: Doorbell) -> None:
    job_id = queued(database)
    claim = claimed(database, job_id, lease_seconds=-1)
    state = repository.renew(database, claim, lease_seconds=60, progress={"fraction": 0.5})
    reap(database, doorbell)
    job = state_of(database, job_id)
    assert (state, job.state, job.progress) == (JobState.RUNNING, JobState.RUNNING, {"fraction": 0.5})


def test_a_job_that_kills_its_workers_fails_after_its_attempts(database: Database, doorbell: Doorbell) -> None:
    job_id = queued(database, max_attempts=2)
    for _ in range(2):
        claimed(database, job_id, lease_seconds=-1)
        reap(database, doorbell)
    job = state_of(database, job_id)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "worker_lost"
    assert repository.claim(database, job_id, worker="w", lease_seconds=60) is None


def test_giving_back_does_not_count_as_an_attempt(database: Database) -> None:
    job_id = queued(database, max_attempts=1)
    repository.give_back(database, claimed(database, job_id))
    job = state_of(database, job_id)
    assert (job.state, job.attempt, job.max_attempts) == (JobState.QUEUED, 1, 2)


def test_waiting_jobs_are_told_apart_by_when_they_were_rung(database: Database) -> None:
    job_id, new = queued(database), queued(database)
    repository.mark_rung(database, [job_id])
    with database.session() as session:
        assert repository.never_rung(session) == [new]
        (waiting,) = repository.waiting(session)
        rung_at = repository.find(session, job_id).rung_at
        assert (waiting.kind, waiting.count, waiting.longest_ago) == ("sanitise", 1, rung_at)
        later = now() + timedelta(seconds=1)
        assert repository.rung_before(session, later, kinds=["sanitise"], most=9) == [(job_id, rung_at)]
        assert repository.rung_before(session, waiting.longest_ago, kinds=["sanitise"], most=9) == []


def test_of_many_who_would_ring_again_one_does(database: Database) -> None:
    job_id = queued(database)
    repository.mark_rung(database, [job_id])
    seen_at = now()
    assert repository.take_ringing(database, [job_id], before=seen_at) == [job_id]
    assert repository.take_ringing(database, [job_id], before=seen_at) == []


def test_a_broker_that_is_away_loses_no_job(database: Database, doorbell: Doorbell) -> None:
    job_id = queued(database)
    assert doorbell.ring([job_id]) is False
    assert state_of(database, job_id).rung_at is None


def test_cancel_ends_a_queued_job_at_once_and_a_running_one_when_its_worker_says_so(database: Database) -> None:
    waiting, running = queued(database), queued(database)
    claim = claimed(database, running)
    with database.transaction() as session:
        control.cancel(session, repository.find(session, waiting))
        control.cancel(session, repository.find(session, running))
        control.cancel(session, repository.find(session, running))
    assert state_of(database, waiting).state == JobState.CANCELLED
    assert repository.renew(database, claim, lease_seconds=60, progress={}) == JobState.CANCELLING
    end(database, claim, JobState.CANCELLED)
    assert state_of(database, running).state == JobState.CANCELLED


def test_a_cancelled_job_whose_worker_died_ends_cancelled(database: Database, doorbell: Doorbell) -> None:
    job_id = queued(database)
    claimed(database, job_id, lease_seconds=-1)
    with database.transaction() as session:
        control.cancel(session, repository.find(session, job_id))
    reap(database, doorbell)
    assert state_of(database, job_id).state == JobState.CANCELLED


def test_a_finished_job_can_be_neither_cancelled_nor_retried(database: Database) -> None:
    job_id = queued(database)
    end(database, claimed(database, job_id), JobState.SUCCEEDED, result={})
    with database.transaction() as session:
        job = repository.find(session, job_id)
        with pytest.raises(IllegalTransition):
            control.cancel(session, job)
        with pytest.raises(IllegalTransition):
            control.retry(session, job)


def test_retry_queues_a_failed_job_with_attempts_anew(database: Database) -> None:
    job_id = queued(database, max_attempts=1)
    end(database, claimed(database, job_id), JobState.FAILED, error={"code": "x", "message": "y"})
    with database.transaction() as session:
        control.retry(session, repository.find(session, job_id))
    job = state_of(database, job_id)
    assert (job.state, job.error, job.finished_at) == (JobState.QUEUED, None, None)
    assert job.max_attempts - job.attempt >= 1


def test_every_change_of_state_leaves_an_event(database: Database) -> None:
    job_id = queued(database)
    end(database, claimed(database, job_id), JobState.SUCCEEDED, result={})
    with database.session() as session:
        events = [event.state for event in session.query(JobEvent).filter_by(job_id=job_id).order_by(JobEvent.id)]
    assert events == ["queued", "running", "succeeded"]


@pytest.fixture
def hardening(database: Database) -> str:
    with database.transaction() as session:
        inputs = {"dataset": "signs@1", "reference": "trusted@1", "model": "m"}
        params = {step: {"seed": place} for place, step in enumerate(harden.STEPS)}
        parent = add_job(session, "harden", inputs=inputs, params=params, max_attempts=3)
        harden.first_step(session, parent)
        return parent.id


def step(database: Database, parent_id: str) -> Job:
    with database.session() as session:
        return harden.steps_of(session, parent_id)[-1]


def test_harden_makes_each_step_from_the_one_before(database: Database, hardening: str) -> None:
    results = [
        {"dataset": "signs@2", "counts": {}},
        {"model": "m@1", "metrics": {"a": 1}},
        {"model": "m@1", "metrics": {"b": 2}},
    ]
    for kind, result in zip(harden.STEPS, results, strict=True):
        job = step(database, hardening)
        assert (job.type, job.state) == (kind, JobState.QUEUED)
        end(database, claimed(database, job.id), JobState.SUCCEEDED, result=result)
        assert state_of(database, hardening).started_at is not None
    parent = state_of(database, hardening)
    assert parent.state == JobState.SUCCEEDED
    assert parent.result is not None
    assert (parent.result["dataset"], parent.result["model"], parent.result["evaluation"]) == (
        "signs@2",
        "m@1",
        {"b": 2},
    )
    assert set(parent.result["jobs"]) == set(harden.STEPS)
    with database.session() as session:
        steps = harden.steps_of(session, hardening)
    assert [job.inputs.get("dataset") for job in steps] == ["signs@1", "signs@2", "trusted@1"]
    assert harden.progress(steps)["fraction"] == 1.0


def test_abstention_is_calibrated_on_what_the_job_names(database: Database) -> None:
    with database.transaction() as session:
        inputs = {"dataset": "signs@1", "reference": "trusted@1", "calibrate_on": "camera@1", "model": "m"}
        parent = add_job(session, "harden", inputs=inputs, params={step: {} for step in harden.STEPS}, max_attempts=3)
        harden.first_step(session, parent)
    first = step(database, parent.id)
    assert first.inputs == {"dataset": "signs@1", "reference": "trusted@1"}
    end(database, claimed(database, first.id), JobState.SUCCEEDED, result={"dataset": "signs@2"})
    assert step(database, parent.id).inputs == {"dataset": "signs@2", "reference": "camera@1", "model": "m"}


def test_harden_fails_with_its_step_and_goes_on_from_there(database: Database, hardening: str) -> None:
    first = step(database, hardening)
    end(database, claimed(database, first.id), JobState.SUCCEEDED, result={"dataset": "signs@2"})
    second = step(database, hardening)
    end(database, claimed(database, second.id), JobState.FAILED, error={"code": "x", "message": "why"})
    parent = state_of(database, hardening)
    assert parent.state == JobState.FAILED
    assert parent.error == {"code": "x", "message": "why", "step": "distill", "job": second.id}
    with database.transaction() as session:
        with pytest.raises(Conflict, match=hardening):
            control.retry(session, repository.find(session, second.id))
        control.retry(session, repository.find(session, hardening))
    assert step(database, hardening).id == second.id
    assert step(database, hardening).state == JobState.QUEUED
    assert state_of(database, first.id).attempt == 1


def test_cancelling_harden_cancels_its_step_and_starts_no_other(database: Database, hardening: str) -> None:
    job = step(database, hardening)
    claim = claimed(database, job.id)
    with database.transaction() as session:
        control.cancel(session, repository.find(session, hardening))
    assert state_of(database, hardening).state == JobState.CANCELLING
    end(database, claim, JobState.CANCELLED)
    assert state_of(database, hardening).state == JobState.CANCELLED
    with database.session() as session:
        assert len(harden.steps_of(session, hardening)) == 1


def test_leases_are_told_in_utc(database: Database) -> None:
    job_id = queued(database)
    claimed(database, job_id, lease_seconds=60)
    lease = state_of(database, job_id).lease_expires_at
    assert lease is not None
    assert timedelta(seconds=50) < lease - now() <= timedelta(seconds=60)
