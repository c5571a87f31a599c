"""Which version answers: looked up while the one that was meant last answers, so that steady traffic never waits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from service.errors import NotFound
from service.references import parse_model_ref
from service.serving.loaded import Key
from service.serving.routes import ANSWER_FIRST_SECONDS, FRESH_SECONDS, LOOKS, RENEWED_AFTER_SECONDS, Place, Routes

PLACE: Place = ("a", parse_model_ref("signs"))
PINNED: Place = ("a", parse_model_ref("signs@1"))


@dataclass
class House:
    """A database that says `meant`, and versions that are all in memory."""

    meant: Key = ("a", "signs", 1)
    looks: int = 0
    gone: bool = False
    now: float = 100.0

    async def look(self, _place: Place) -> Key:
        self.looks += 1
        if self.gone:
            raise NotFound("there is no such model")
        return self.meant

    def peek(self, key: Key) -> Key | None:
        return key

    async def load(self, key: Key) -> Key:
        return key

    def routes(self) -> Routes[Key]:
        return Routes(self.look, self.peek, self.load, clock=lambda: self.now)


async def let_it_renew() -> None:
    await asyncio.sleep(4 * ANSWER_FIRST_SECONDS)


def test_what_is_no_longer_new_is_renewed_while_it_answers() -> None:
    async def run() -> None:
        house = House()
        routes = house.routes()
        assert await routes.find(PLACE) == ("a", "signs", 1)
        house.now, house.meant = house.now + RENEWED_AFTER_SECONDS * 1.1, ("a", "signs", 2)
        for _ in range(3):
            assert routes.peek(PLACE) == ("a", "signs", 1), "it answers at once"
        await let_it_renew()
        assert house.looks == 2, "one look, however many ask"
        assert routes.peek(PLACE) == ("a", "signs", 2)

    asyncio.run(run())


def test_what_is_too_old_is_waited_for_and_a_version_never_is() -> None:
    async def run() -> None:
        house = House()
        routes = house.routes()
        await routes.find(PLACE)
        await routes.find(PINNED)
        house.now += FRESH_SECONDS * 1.1
        assert routes.peek(PLACE) is None
        assert routes.peek(PINNED) == ("a", "signs", 1)

    asyncio.run(run())


def test_a_model_that_is_gone_answers_no_more_once_that_is_known() -> None:
    async def run() -> None:
        house = House()
        routes = house.routes()
        await routes.find(PLACE)
        house.now, house.gone = house.now + RENEWED_AFTER_SECONDS * 1.1, True
        assert routes.peek(PLACE) is not None
        await let_it_renew()
        assert routes.peek(PLACE) is None
        house.gone = False
        await routes.find(PLACE)
        assert routes.peek(PLACE) is not None

    asyncio.run(run())


def test_a_change_that_is_told_while_a_version_loads_is_not_missed() -> None:
    async def run() -> None:
        house = House()

        async def load(key: Key) -> Key:
            if house.meant[2] == 1:
                house.meant = ("a", "signs", 2)
                routes.changed("a", "signs")
            return key

        routes: Routes[Key] = Routes(house.look, house.peek, load, clock=lambda: house.now)
        assert await routes.find(PLACE) == ("a", "signs", 1)
        assert routes.peek(PLACE) is None, "it looks again before the next answer"
        assert await routes.find(PLACE) == ("a", "signs", 2)

    asyncio.run(run())


def test_changes_of_one_model_do_not_hold_up_another_nor_for_ever_its_own() -> None:
    async def run() -> None:
        house = House()
        routes = house.routes()

        async def look(place: Place) -> Key:
            house.looks += 1
            for _ in range(3):
                routes.changed("a", "signs")
                await asyncio.sleep(0)
            return place[0], place[1].name, 1

        routes._look = look
        other = ("b", parse_model_ref("cats"))
        assert await asyncio.wait_for(routes.find(other), 5) == ("b", "cats", 1)
        assert house.looks == 1
        assert await asyncio.wait_for(routes.find(PLACE), 5) == ("a", "signs", 1)
        assert house.looks == 1 + LOOKS

    asyncio.run(run())
