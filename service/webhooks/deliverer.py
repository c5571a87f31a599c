"""Delivers what is in the outbox, for as long as the gateway runs. Any number of gateways may: each takes its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.db import Database, now
from service.webhooks import signing
from service.webhooks.addresses import Resolve, Target, resolve
from service.webhooks.deliveries import RETRY_SECONDS, Taken, due, forget_old, settle, take
from service.webhooks.sending import Outcome, send

AT_ONCE = 20
POLL_SECONDS = 1.0
FORGET_EVERY_SECONDS = 3600.0
USER_AGENT = "Winnow-Webhooks/1"

log = structlog.get_logger("webhooks")


class Deliverer:
    """`running` delivers until the block ends; an attempt that is cut short by that is made again later."""

    def __init__(
        self,
        database: Database,
        *,
        allow_private: bool,
        timeout_seconds: float,
        resolver: Resolve = resolve,
        retry_seconds: tuple[float, ...] = RETRY_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._database = database
        self._allow_private = allow_private
        self._timeout_seconds = timeout_seconds
        self._resolver = resolver
        self._retry_seconds = retry_seconds
        self._poll_seconds = poll_seconds
        self._forgot_at = time.monotonic()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def round(self) -> int:
        """Attempt all that is due now; gives how many those were."""
        ids = await asyncio.to_thread(self._due)
        if not ids:
            return 0
        taken = await asyncio.to_thread(take, self._database, ids, for_seconds=self._timeout_seconds + 30)
        await asyncio.gather(*(self._deliver(each) for each in taken))
        return len(taken)

    async def _run(self) -> NoReturn:
        while True:
            try:
                busy = await self.round()
                if time.monotonic() - self._forgot_at > FORGET_EVERY_SECONDS:
                    self._forgot_at = time.monotonic()
                    await asyncio.to_thread(forget_old, self._database)
            except SQLAlchemyError as error:
                log.warning("outbox cannot be read", error=type(error).__name__)
                busy = 0
            if not busy:
                await asyncio.sleep(self._poll_seconds)

    def _due(self) -> list[str]:
        with self._database.session() as session:
            return due(session, limit=AT_ONCE)

    async def _deliver(self, taken: Taken) -> None:
        body = taken.payload.encode()
        signed = signing.headers(taken.secrets, taken.id, int(now().timestamp()), body)
        headers = {**signed, "Content-Type": "application/json", "User-Agent": USER_AGENT}
        began = time.monotonic()
        target = Target.parse(taken.url, allow_private=True)  # whether it may be private is asked of its address
        if target.scheme == "http" and not self._allow_private:
            outcome = Outcome(None, "it is not https")
        else:
            outcome = await send(
                target,
                body,
                headers,
                resolver=self._resolver,
                allow_private=self._allow_private,
                within_seconds=self._timeout_seconds,
            )
        took_ms = round((time.monotonic() - began) * 1000)
        ids = {"delivery": taken.id, "host": target.host, "attempt": taken.attempt}
        log.info("webhook", **ids, status=outcome.status, error=outcome.error, took_ms=took_ms)
        await asyncio.to_thread(
            settle, self._database, taken, outcome, took_ms=took_ms, retry_seconds=self._retry_seconds
        )
