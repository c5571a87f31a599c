"""Keys that were seen valid a moment ago: inference asks for one with every request, and the database is slow for that.

All state belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from starlette.concurrency import run_in_threadpool

from service import auth
from service.db import Database
from service.errors import Unauthorized
from service.serving.routes import ANSWER_FIRST_SECONDS
from service.tables import ApiKey

KNOWN_SECONDS = 1.0
"""How long a key that was revoked through another gateway still counts here, for inference only."""

RENEWED_AFTER_SECONDS = 0.5
MOST = 10_000


@dataclass(slots=True, eq=False)
class Known:
    key: ApiKey
    digest: str
    seen_at: float
    renewal: asyncio.Task[None] | None = None


class KnownKeys:
    """What `auth.authenticate` said, for up to KNOWN_SECONDS. A key that ends meanwhile ends at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, Known] = {}
        self._asked: dict[str, asyncio.Task[ApiKey]] = {}
        self._changes = 0

    async def authenticate(self, database: Database, text: str | None) -> ApiKey:
        """Raises Unauthorized, and what the database raises."""
        return self.known(database, text) or await self._ask(database, text)

    def known(self, database: Database, text: str | None) -> ApiKey | None:
        """A key that was seen valid a moment ago; None where the database is to be asked. Raises Unauthorized."""
        known = None if text is None else self._known.get(text)
        if known is None or text is None or self._age(known) > KNOWN_SECONDS:
            return None
        if self._age(known) > RENEWED_AFTER_SECONDS and known.renewal is None:
            known.renewal = asyncio.create_task(self._renew(database, text))
        if (refused := auth.why_not(known.key, known.digest)) is not None:
            raise refused
        return known.key

    def forget(self) -> None:
        """Some key has changed: what is being looked up is as old as what was known."""
        self._changes += 1
        self._known.clear()
        self._asked.clear()

    def _age(self, known: Known) -> float:
        return self._clock() - known.seen_at

    async def _renew(self, database: Database, text: str) -> None:
        try:
            await asyncio.sleep(ANSWER_FIRST_SECONDS)
            await self._ask(database, text)
        except Exception:  # noqa: BLE001 - the next request asks again, and is told
            self._known.pop(text, None)

    async def _ask(self, database: Database, text: str | None) -> ApiKey:
        """One question to the database, however many wait for its answer."""
        if text is None:
            return await run_in_threadpool(auth.authenticate, database, text)
        task = self._asked.get(text)
        if task is None:
            task = self._asked[text] = asyncio.create_task(self._look(database, text))
            task.add_done_callback(partial(self._answered, text))
        return await asyncio.shield(task)

    def _answered(self, text: str, task: asyncio.Task[ApiKey]) -> None:
        if self._asked.get(text) is task:
            del self._asked[text]

    async def _look(self, database: Database, text: str) -> ApiKey:
        began, changes = self._clock(), self._changes
        try:
            key = await run_in_threadpool(auth.authenticate, database, text)
        except Unauthorized:
            self._known.pop(text, None)
            raise
        if changes == self._changes:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[text] = Known(key, auth.digest_of(text), began)
        return key
