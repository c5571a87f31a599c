"""A job's own worker takes the steps of a phase, alone: what it gets, and what it does about what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from models.training import Silent, Stopped, Watch
from service.db import Database
from service.errors import WinnowError
from service.jobs import artifacts, repository, steps
from service.jobs.create import add_job
from service.jobs.queue import Doorbell, celery_app
from service.jobs.steps import StepClaim
from service.settings import Settings
from service.storage import LocalStorage
from worker.context import Context
from worker.fanout import fan_out, worth_sharing
from worker.progress import Progress
from worker.runtime import Runtime
from worker.stepping import CannotHelp, Work, attempt

IMAGES = 95
WHOLE = bytes(range(IMAGES))


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    settings = Settings(home=tmp_path, step_images=10, redis_url="redis://127.0.0.1:1/0").resolved()
    database = Database.open(settings.database_url)
    database.create_all()
    with database.transaction() as session:
        job_id = add_job(session, "sanitise", inputs={}, params={}, max_attempts=3).id
    doorbell = Doorbell(celery_app(settings), database)
    runtime = Runtime(settings, database, LocalStorage(tmp_path / "storage"), doorbell, "here:1")
    claim = repository.claim(database, job_id, worker=runtime.worker, lease_seconds=60)
    assert claim is not None
    yield Context(runtime, claim, Progress())
    database.close()


def numbers(claim: StepClaim, watch: Watch) -> bytes:
    watch.advance(claim.stop - claim.start, claim.stop - claim.start)
    return WHOLE[claim.start : claim.stop]


def results(context: Context, work: Work = numbers, given: str = "d") -> bytes:
    return b"".join(fan_out(context, "scoring", IMAGES, {"sha256": given}, work, Silent()))


def counted(work: Work) -> tuple[Work, list[int]]:
    """The same work, and the numbers of the steps that it did."""
    did: list[int] = []

    def counting(claim: StepClaim, watch: Watch) -> bytes:
        did.append(claim.number)
        return work(claim, watch)

    return counting, did


def once(number: int, accident: Callable[[], None]) -> Work:
    """Something happens in the first attempt at that step."""

    def work(claim: StepClaim, watch: Watch) -> bytes:
        if claim.number == number and claim.attempt == 1:
            accident()
        return numbers(claim, watch)

    return work


def test_results_come_in_order_and_are_not_computed_twice(context: Context) -> None:
    work, did = counted(numbers)
    assert results(context, work) == WHOLE
    assert results(context, work) == WHOLE  # as a later attempt at the job does
    assert did == list(range(10))
    assert results(context, work, given="other") == WHOLE
    assert did == 2 * list(range(10))


def test_few_images_are_not_worth_sharing(context: Context) -> None:
    assert [worth_sharing(context, images) for images in (1, 20, 21)] == [False, False, True]


def test_what_fails_once_is_tried_again_alone(context: Context) -> None:
    def accident() -> None:
        raise OSError("the network was away")

    work, did = counted(once(3, accident))
    assert results(context, work) == WHOLE
    assert sorted(did) == sorted([*range(10), 3])


def test_what_always_fails_ends_with_its_reason(context: Context) -> None:
    def work(claim: StepClaim, watch: Watch) -> bytes:
        if claim.number == 2:
            raise MemoryError
        return numbers(claim, watch)

    work, did = counted(work)
    with pytest.raises(
        WinnowError, match="failed in each of its attempts, the last time so: The worker ran out"
    ) as told:
        results(context, work)
    assert told.value.code == "out_of_memory"
    assert did.count(2) == 3


@pytest.mark.parametrize("loss", ["deleted", "changed"])
def test_a_result_that_was_lost_is_computed_again(context: Context, loss: str) -> None:
    key = f"{artifacts.steps_prefix(context.claim.job_id, 'scoring')}/000000-1"

    def accident() -> None:
        if loss == "deleted":
            context.storage.delete_prefix(key)
        else:
            context.storage.write(key, b"other bytes")

    work, did = counted(once(9, accident))
    assert results(context, work) == WHOLE
    assert did == [*range(10), 0]


def test_an_order_to_stop_gives_the_step_back(context: Context) -> None:
    work, did = counted(once(4, context.progress.stopping.set))
    with pytest.raises(Stopped):
        results(context, work)
    context.progress.stopping.clear()
    assert results(context, work) == WHOLE
    assert did == [*range(5), *range(4, 10)]


def test_a_helper_that_lacks_what_a_step_takes_costs_the_job_nothing(context: Context) -> None:
    """More often than a step may fail, and then who owns the job does them all."""
    database, bounds = context.runtime.database, [(start, min(start + 10, IMAGES)) for start in range(0, IMAGES, 10)]
    steps.open_phase(database, context.claim, "scoring", bounds, {"sha256": "d"}, max_attempts=3)

    def cannot(_claim: StepClaim, _watch: Watch) -> bytes:
        raise CannotHelp("no such encoder here")

    for _ in range(5):
        claim = steps.claim(database, context.claim.job_id, "scoring", worker="there:1", lease_seconds=9)
        assert claim is not None and claim.number == 0
        assert not attempt(context.runtime, claim, cannot, Event())
    assert results(context) == WHOLE
