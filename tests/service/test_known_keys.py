"""Keys are remembered for inference, and never for longer than they may be."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from service import auth
from service.api.known_keys import KNOWN_SECONDS, KnownKeys
from service.audit import STACK
from service.db import Database, now
from service.errors import Unauthorized
from service.scopes import Scope


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def issue(database: Database, **ends: Any) -> auth.Issued:
    with database.transaction() as session:
        return auth.create(session, "camera", [Scope.PREDICT], expires_at=ends.get("expires_at"), actor=STACK)


def revoke(database: Database, key_id: str) -> None:
    with database.transaction() as session:
        auth.revoke(session, auth.find(session, key_id), actor=STACK)


def test_a_key_is_looked_up_once_and_no_revoked_one_counts_for_longer_than_said(database: Database) -> None:
    issued, clock, asked = issue(database), Clock(), []
    event.listen(database.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))

    async def run() -> None:
        known = KnownKeys(clock)
        for _ in range(5):
            assert (await known.authenticate(database, issued.secret)).id == issued.key.id
        assert sum("api_keys" in text and text.startswith("SELECT") for text in asked) == 1
        revoke(database, issued.key.id)
        clock.seconds += KNOWN_SECONDS + 0.01
        with pytest.raises(Unauthorized):
            await known.authenticate(database, issued.secret)

    asyncio.run(run())


def test_a_change_that_is_told_counts_at_once(database: Database) -> None:
    issued = issue(database)

    async def run() -> None:
        known = KnownKeys(Clock())
        await known.authenticate(database, issued.secret)
        revoke(database, issued.key.id)
        known.forget()
        with pytest.raises(Unauthorized):
            await known.authenticate(database, issued.secret)

    asyncio.run(run())


def test_a_known_key_that_expires_ends_at_that_moment(database: Database) -> None:
    issued = issue(database, expires_at=now() + timedelta(seconds=0.3))

    async def run() -> None:
        known = KnownKeys(Clock())
        await known.authenticate(database, issued.secret)
        await asyncio.sleep(0.35)
        with pytest.raises(Unauthorized):
            await known.authenticate(database, issued.secret)

    asyncio.run(run())


def test_no_key_and_a_wrong_one_are_never_known(database: Database) -> None:
    async def run() -> None:
        known = KnownKeys(Clock())
        for text in (None, "", "wk_wrong"):
            for _ in range(2):
                with pytest.raises(Unauthorized):
                    await known.authenticate(database, text)

    asyncio.run(run())


def test_many_who_ask_at_once_share_one_question_and_its_answer(database: Database) -> None:
    issued, asked = issue(database), []
    event.listen(database.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))

    async def run() -> None:
        known = KnownKeys(Clock())
        found = await asyncio.gather(*(known.authenticate(database, issued.secret) for _ in range(20)))
        assert {key.id for key in found} == {issued.key.id}
        assert sum("api_keys" in text and text.startswith("SELECT") for text in asked) == 1
        refused = await asyncio.gather(
            *(known.authenticate(database, "wk_no") for _ in range(5)), return_exceptions=True
        )
        assert all(isinstance(each, Unauthorized) for each in refused)
        present = known.known(database, issued.secret)
        assert present is not None and present.id == issued.key.id
        assert known.known(database, "wk_no") is None and known.known(database, None) is None

    asyncio.run(run())
