"""Rings for waiting jobs that nobody was told of, or that nobody came for. Every reaper does so in every round.

A queue gets a message for each that is missing: it was lost, or taken while the job's tenant had as many at work as it
may. Which jobs they were nobody can tell, so those that were rung longest ago come first. A queue may also hold other
messages, such as calls for help, and so seem to lack none: a job that is overdue is rung whatever the queue holds, up
to SPARE messages too many.
"""

from __future__ import annotations

from datetime import timedelta

import structlog
from kombu.exceptions import OperationalError

from service.db import Database, now
from service.jobs import repository
from service.jobs.queue import GPU, QUEUE_OF, QUEUES, Doorbell
from service.jobs.repository import Waiting

PATIENCE_SECONDS = 4.0
OVERDUE_SECONDS = 60.0
SPARE = 100  # messages that overdue jobs may add to those of a queue that lacks none
MOST_AT_ONCE = 200  # rings of a round and queue: thousands that wait are rung by and by

log = structlog.get_logger()


def ring_waiting(database: Database, doorbell: Doorbell) -> None:
    """One round."""
    with database.session() as session:
        new = repository.never_rung(session, most=MOST_AT_ONCE)
    if not doorbell.ring(new):
        return
    with database.session() as session:
        waiting = repository.waiting(session)
    before = now() - timedelta(seconds=PATIENCE_SECONDS)
    if all(each.longest_ago >= before for each in waiting):
        return
    try:
        messages = doorbell.waiting()
    except (OperationalError, OSError) as error:
        log.warning("broker cannot be asked", error=str(error))
        return
    for queue in QUEUES.values():
        there = [each for each in waiting if QUEUE_OF.get(each.kind, GPU) == queue]
        again = _to_ring_again(database, there, messages[queue])
        doorbell.ring(repository.take_ringing(database, again, before=before))


def _to_ring_again(database: Database, there: list[Waiting], messages: int) -> list[str]:
    """Of the jobs that wait in one queue, which holds so many messages."""
    missing = sum(each.count for each in there) - messages
    room = min(missing + SPARE, MOST_AT_ONCE)
    if room <= 0:
        return []
    present = now()
    patient, overdue = (present - timedelta(seconds=seconds) for seconds in (PATIENCE_SECONDS, OVERDUE_SECONDS))
    with database.session() as session:
        found = repository.rung_before(session, patient, kinds=[each.kind for each in there], most=room)
    return [job_id for place, (job_id, rung_at) in enumerate(found) if place < missing or rung_at < overdue]
