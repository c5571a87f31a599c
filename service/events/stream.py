"""A job's events as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson

from service.events.feeds import Feed, Feeds
from service.tables import JobEvent

MEDIA_TYPE = "text/event-stream"
RETRY_MS = 2000
LONGEST_SECONDS = 3600.0  # of one stream; whoever goes on listening then comes back, and shows the key again


async def event_stream(feeds: Feeds, job_id: str, *, after: int, heartbeat_seconds: float) -> AsyncIterator[bytes]:
    """What happened after the event numbered `after`, then what happens, until the job has finished.

    `state` events carry their number as id. `progress` events have none: to miss one is no loss.
    """
    until = time.monotonic() + LONGEST_SECONDS
    async with feeds.listening(job_id) as feed:
        yield b"retry: %d\n\n" % RETRY_MS
        shown: dict[str, Any] | None = None
        while True:
            change = feed.change
            if feed.latest is not None and feed.latest.progress != shown:
                shown = feed.latest.progress
                yield _progress(feed)
            for event in feed.after(after):
                after = event.id
                yield _state(event)
            if (feed.latest is not None and feed.latest.finished) or feeds.closing or time.monotonic() > until:
                return
            try:
                await asyncio.wait_for(change.wait(), heartbeat_seconds)
            except TimeoutError:
                yield b": still here\n\n"


def wire(event: JobEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "at": event.at.isoformat(),
        "state": event.state,
        "attempt": event.attempt,
        "message": event.message,
    }


def _state(event: JobEvent) -> bytes:
    return b"id: %d\nevent: state\ndata: %b\n\n" % (event.id, orjson.dumps(wire(event)))


def _progress(feed: Feed) -> bytes:
    told = {**feed.latest.progress, "eta_seconds": feed.latest.eta_seconds} if feed.latest else {}
    return b"event: progress\ndata: %b\n\n" % orjson.dumps(told)
