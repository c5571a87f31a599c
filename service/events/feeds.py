"""Follows jobs for any number of listeners: one look at the database a round and job, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.db import Database
from service.errors import Unavailable
from service.events.looking import Look, look
from service.tables import JobEvent

POLL_SECONDS = 0.5

log = structlog.get_logger()


class Feed:
    """What is known of one job. Belongs to the event loop: nothing here waits, and no thread but its own touches it."""

    def __init__(self) -> None:
        self.listeners = 0
        self.loaded = asyncio.Event()
        self.latest: Look | None = None
        self._events: list[JobEvent] = []
        self._changed = asyncio.Event()

    @property
    def last_id(self) -> int:
        return self._events[-1].id if self._events else 0

    def after(self, event_id: int) -> Iterator[JobEvent]:
        return (event for event in self._events if event.id > event_id)

    @property
    def change(self) -> asyncio.Event:
        """Set at the next change. Take it before looking, wait for it after: then none is missed."""
        return self._changed

    def take(self, found: Look) -> None:
        before, self.latest = self.latest, found
        self._events += found.events
        self.loaded.set()
        if found.events or before is None or before.progress != found.progress or before.finished != found.finished:
            self.tell()

    def tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Feeds:
    """The feeds of all jobs that somebody listens to, kept up by one task for as long as somebody does."""

    def __init__(self, database: Database, *, most_listeners: int, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._most_listeners = most_listeners
        self._poll_seconds = poll_seconds
        self._feeds: dict[str, Feed] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.closing = False
        self.looks = 0

    @property
    def listeners(self) -> int:
        return sum(feed.listeners for feed in self._feeds.values())

    def close(self) -> None:
        """End every stream; call it on the event loop. A server that waits for its connections calls it first."""
        self.closing = True
        self._wake.set()
        for feed in self._feeds.values():
            feed.loaded.set()
            feed.tell()

    def check_room(self) -> None:
        """Raises Unavailable where one listener more would be too many."""
        if self.closing or self.listeners >= self._most_listeners:
            raise Unavailable(
                f"{self.listeners} listeners follow jobs here already. Look at the job now and then instead "
                "(GET /v1/jobs/{id}), or come back later.",
                code="too_many_listeners",
            )

    @asynccontextmanager
    async def listening(self, job_id: str) -> AsyncIterator[Feed]:
        feed = self._feeds.setdefault(job_id, Feed())
        feed.listeners += 1
        try:
            if not feed.loaded.is_set():
                self._look_now()
                await feed.loaded.wait()
            yield feed
        finally:
            feed.listeners -= 1
            if not feed.listeners:
                del self._feeds[job_id]

    def _look_now(self) -> None:
        if self.closing:
            self.close()
        elif self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_up())
        else:
            self._wake.set()

    async def _keep_up(self) -> None:
        try:
            while self._feeds and not self.closing:
                self._wake.clear()
                await self._round()
                try:
                    await asyncio.wait_for(self._wake.wait(), self._poll_seconds)
                except TimeoutError:
                    continue
        finally:
            for feed in self._feeds.values():  # only where the round broke, or the feeds are closing
                feed.loaded.set()
                feed.tell()

    async def _round(self) -> None:
        wanted = {job_id: feed.last_id for job_id, feed in self._feeds.items()}
        try:
            found = await asyncio.to_thread(self._look, wanted)
        except SQLAlchemyError as error:  # listeners go on hearing that the stream lives, and later what they missed
            log.warning("could not look at jobs", error=type(error).__name__)
            return
        for job_id, told in found.items():
            feed = self._feeds.get(job_id)
            if feed is not None and feed.last_id == wanted[job_id]:
                feed.take(told)

    def _look(self, wanted: dict[str, int]) -> dict[str, Look]:
        self.looks += len(wanted)
        with self._database.session() as session:
            looks = {job_id: look(session, job_id, after=after) for job_id, after in wanted.items()}
        return {job_id: told for job_id, told in looks.items() if told is not None}
