"""Steps that many take at once, on a real database: each is done once, and the last one closes its phase."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from service.db import Database, now
from service.errors import LeaseLost
from service.jobs import control, repository, steps
from service.jobs.create import add_job
from service.jobs.queue import Doorbell, celery_app
from service.jobs.reaper import reap
from service.jobs.repository import Claim
from service.jobs.state import JobState
from service.jobs.steps import PhaseState, StepClaim, StepState
from service.jobs.tables import Phase, Step
from service.metrics import StackState
from service.settings import Settings
from service.tables import JobEvent

BOUNDS = [(0, 10), (10, 20), (20, 25)]
ERROR = {"code": "internal", "message": "It broke."}


@pytest.fixture
def doorbell(settings: Settings, database: Database) -> Doorbell:
    """Of a broker that is not there: what follows must not need it."""
    return Doorbell(celery_app(settings), database)


@pytest.fixture
def owner(database: Database) -> Claim:
    with database.transaction() as session:
        job_id = add_job(session, "sanitise", inputs={}, params={}, max_attempts=3).id
    claim = repository.claim(database, job_id, worker="owner", lease_seconds=60)
    assert claim is not None
    opened(database, claim)
    return claim


def opened(
    database: Database, owner: Claim, bounds: list[tuple[int, int]] = BOUNDS, digest: str = "d", attempts: int = 2
) -> None:
    steps.open_phase(database, owner, "scoring", bounds, {"sha256": digest}, max_attempts=attempts)


def take(database: Database, owner: Claim, *, lease_seconds: float = 60.0) -> StepClaim | None:
    return steps.claim(database, owner.job_id, "scoring", worker="w", lease_seconds=lease_seconds)


def taken(database: Database, owner: Claim, *, lease_seconds: float = 60.0) -> StepClaim:
    claim = take(database, owner, lease_seconds=lease_seconds)
    assert claim is not None
    return claim


def done(database: Database, claim: StepClaim) -> bool:
    return steps.finish(database, claim, key=f"k{claim.number}", digest="s")


def stands(database: Database, owner: Claim) -> steps.Standing:
    with database.session() as session:
        return steps.standing(session, owner.job_id, "scoring")


def rows(database: Database, owner: Claim) -> list[Step]:
    with database.session() as session:
        return steps.results(session, owner.job_id, "scoring")


def test_of_many_workers_each_step_is_had_by_one_and_one_closes_the_phase(database: Database, owner: Claim) -> None:
    many = [(start, start + 5) for start in range(0, 120, 5)]
    opened(database, owner, many)
    barrier = threading.Barrier(6)

    def work(_: int) -> tuple[list[int], int]:
        barrier.wait()
        had, closed = [], 0
        while (claim := take(database, owner)) is not None:
            had.append(claim.number)
            closed += done(database, claim)
        return had, closed

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(work, range(6)))
    assert sorted(number for had, _ in found for number in had) == list(range(len(many)))
    assert sum(closed for _, closed in found) == 1
    assert stands(database, owner) == steps.Standing(PhaseState.DONE, 120, None)


def test_progress_adds_up_over_steps(database: Database, owner: Claim) -> None:
    first, second = taken(database, owner), taken(database, owner)
    done(database, first)
    state = steps.renew(database, second, lease_seconds=60, progress={"done": 4})
    assert (state, stands(database, owner)) == (JobState.RUNNING, steps.Standing(PhaseState.OPEN, 14, None))


def test_a_step_whose_worker_fell_silent_is_another_s_and_the_first_publishes_nothing(
    database: Database, owner: Claim, doorbell: Doorbell
) -> None:
    stale = taken(database, owner, lease_seconds=-1)
    reap(database, doorbell)
    fresh = taken(database, owner)
    assert (fresh.number, fresh.attempt) == (stale.number, 2)
    for late in (
        lambda: steps.renew(database, stale, lease_seconds=60, progress={"done": 1}),
        lambda: done(database, stale),
        lambda: steps.fail(database, stale, ERROR),
        lambda: steps.give_back(database, stale),
    ):
        with pytest.raises(LeaseLost):
            late()
    done(database, fresh)
    assert [step.state for step in rows(database, owner)] == [StepState.SUCCEEDED, *[StepState.QUEUED] * 2]


def test_only_what_failed_is_tried_again_and_out_of_attempts_the_phase_has_failed(
    database: Database, owner: Claim, doorbell: Doorbell
) -> None:
    done(database, taken(database, owner))
    steps.fail(database, taken(database, owner), ERROR)
    assert stands(database, owner).state == PhaseState.OPEN
    again = taken(database, owner, lease_seconds=-1)
    assert (again.number, again.attempt) == (1, 2)
    reap(database, doorbell)
    failed = stands(database, owner)
    assert failed.state == PhaseState.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "worker_lost"
    assert take(database, owner) is None
    with database.session() as session:
        told = list(session.scalars(select(JobEvent.message).where(JobEvent.job_id == owner.job_id)))
    assert told[-2:] == [
        "step 1 of scoring: internal; it is tried again",
        "step 1 of scoring: worker_lost; out of attempts",
    ]
    opened(database, owner)  # as another attempt at the job does
    assert [taken(database, owner).number for _ in range(2)] == [1, 2]


def test_giving_back_does_not_count_as_an_attempt(database: Database, owner: Claim) -> None:
    for _ in range(5):
        steps.give_back(database, taken(database, owner))
    claim = taken(database, owner)
    assert (claim.number, claim.attempt) == (0, 6)
    steps.fail(database, claim, ERROR)
    assert stands(database, owner).state == PhaseState.OPEN


def test_what_an_earlier_attempt_at_the_job_had_done_counts_unless_it_was_given_something_else(
    database: Database, owner: Claim
) -> None:
    done(database, taken(database, owner))
    old = taken(database, owner)
    opened(database, owner)
    assert stands(database, owner).done == 10
    opened(database, owner, digest="other")
    assert stands(database, owner).done == 0
    with pytest.raises(LeaseLost):
        done(database, old)
    assert [step.attempt for step in rows(database, owner)] == [1, 1, 1]
    for _ in BOUNDS:
        claim = taken(database, owner)
        assert (claim.attempt, claim.given) == (2, {"sha256": "other"})
        done(database, claim)
    assert stands(database, owner).state == PhaseState.DONE


def test_results_that_are_gone_are_computed_again(database: Database, owner: Claim) -> None:
    for _ in BOUNDS:
        done(database, taken(database, owner))
    steps.reopen(database, owner, "scoring", [1])
    claim = taken(database, owner)
    assert (claim.number, take(database, owner)) == (1, None)
    assert done(database, claim)


def test_only_the_job_s_owner_opens_a_phase(database: Database, owner: Claim) -> None:
    with pytest.raises(LeaseLost):
        opened(database, replace(owner, attempt=owner.attempt + 1))


def test_a_cancel_is_heard_by_every_step_and_nothing_more_is_taken(database: Database, owner: Claim) -> None:
    claim = taken(database, owner)
    with database.transaction() as session:
        control.cancel(session, repository.find(session, owner.job_id))
    assert steps.renew(database, claim, lease_seconds=60, progress={"done": 1}) == JobState.CANCELLING
    assert take(database, owner) is None
    with database.transaction() as session:
        repository.finish(session, owner, JobState.CANCELLED, "cancelled")
    with pytest.raises(LeaseLost):
        steps.renew(database, claim, lease_seconds=60, progress={"done": 1})


def test_steps_are_forgotten_with_a_job_that_succeeded(database: Database, owner: Claim) -> None:
    with database.transaction() as session:
        steps.forget(session, owner.job_id)
    with database.session() as session:
        assert (session.scalars(select(Phase)).all(), session.scalars(select(Step)).all()) == ([], [])


def test_steps_and_their_leases_are_told_to_prometheus(database: Database, owner: Claim) -> None:
    done(database, taken(database, owner))
    taken(database, owner)
    with database.transaction() as session:
        expired = now() - timedelta(seconds=1)
        session.execute(update(Step).where(Step.state == StepState.RUNNING).values(lease_expires_at=expired))
    families = {name: dict(values) for name, _, _, values in StackState(database)()}
    assert families["winnow_steps"] == {
        ("scoring", "succeeded"): 1,
        ("scoring", "running"): 1,
        ("scoring", "queued"): 1,
    }
    assert families["winnow_step_leases"] == {("held",): 0, ("expired",): 1}
