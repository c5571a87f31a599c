"""Which version answers to a tenant's reference: looked up now and then; the present one until the next is warm.

All state belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import structlog
from sqlalchemy.exc import OperationalError

from service.errors import WinnowError
from service.references import ModelRef
from service.serving.loaded import Key

FRESH_SECONDS = 0.5
"""How old a look may be. An alias moved elsewhere is followed within this, plus the new version's warm-up."""

RENEWED_AFTER_SECONDS = 0.3
"""From when on the database is looked at while the version that was meant last answers: steady traffic never waits."""

ANSWER_FIRST_SECONDS = 0.005
"""So long does that look wait, so that it takes no time from the request that asks for it."""

LOOKS = 3
"""At most, where changes are told while the database is looked at."""

REFUSED_SECONDS = 10.0
"""A version that could not take over is tried again after this."""

log = structlog.get_logger()
Place = tuple[str, ModelRef]
"""Whose reference."""
ServedT = TypeVar("ServedT")


@dataclass(slots=True, eq=False)
class Route:
    """The version that answers to a reference at present, and when that was last compared with the database."""

    key: Key
    looked_at: float
    swap: asyncio.Task[None] | None = None
    renewal: asyncio.Task[None] | None = None
    refused: Key | None = None
    refused_at: float = 0.0


class Routes(Generic[ServedT]):
    """look: the version that a reference means now. peek: a version in memory. load: one that is to be."""

    def __init__(
        self,
        look: Callable[[Place], Awaitable[Key]],
        peek: Callable[[Key], ServedT | None],
        load: Callable[[Key], Awaitable[ServedT]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._peek, self._load, self._clock = look, peek, load, clock
        self._routes: dict[Place, Route] = {}
        self._looks: dict[Place, asyncio.Task[Key]] = {}
        self._changes: Counter[tuple[str, str]] = Counter()

    def peek(self, place: Place) -> ServedT | None:
        """What answers, where that is known and in memory; costs next to nothing."""
        route = self._routes.get(place)
        if route is None:
            return None
        if place[1].version is None:
            age = self._clock() - route.looked_at
            if age > FRESH_SECONDS:
                return None
            if age > RENEWED_AFTER_SECONDS and route.renewal is None:
                route.renewal = asyncio.create_task(self._renew(place, route))
        return self._peek(route.key)

    def key(self, place: Place) -> Key | None:
        """What answered last."""
        route = self._routes.get(place)
        return None if route is None else route.key

    async def find(self, place: Place) -> ServedT:
        """Raises what keeps the first version from being served. A later one that fails leaves the present in place."""
        route = self._routes.get(place)
        try:
            meant = await self._meant(place)
        except WinnowError:
            self._routes.pop(place, None)
            raise
        except OperationalError as error:
            served = None if route is None else self._peek(route.key)
            if served is None:
                raise
            log.warning(
                "serving what was meant last: the database is away", model=str(place[1]), reason=str(error.orig)
            )
            return served
        return await self._through(place, self._routes.get(place), meant)

    def changed(self, tenant: str, name: str) -> None:
        """Look before the next answer: an alias of this model has moved, or it has a new version."""
        self._changes[tenant, name] += 1
        for place in [place for place in self._looks if (place[0], place[1].name) == (tenant, name)]:
            del self._looks[place]  # it may have seen what was before
        for (whose, ref), route in self._routes.items():
            if (whose, ref.name) == (tenant, name):
                route.looked_at, route.refused = -FRESH_SECONDS, None

    def clear(self) -> None:
        for route in self._routes.values():
            for task in (route.swap, route.renewal):
                if task is not None:
                    task.cancel()
        self._routes.clear()

    async def _renew(self, place: Place, route: Route) -> None:
        try:
            await asyncio.sleep(ANSWER_FIRST_SECONDS)
            await self.find(place)
        except Exception as error:  # noqa: BLE001 - the next request asks again, and is told
            log.debug("a model's meaning was not renewed", model=str(place[1]), reason=str(error))
        finally:
            route.renewal = None

    async def _through(self, place: Place, route: Route | None, meant: Key) -> ServedT:
        present = None if route is None or route.key == meant else self._peek(route.key)
        if route is None or present is None or self._peek(meant) is not None:
            changes = self._changed(place)
            served = await self._load(meant)
            known = self._clock() if changes == self._changed(place) else -FRESH_SECONDS
            self._routes[place] = Route(meant, known)
            return served
        route.looked_at = self._clock()
        if route.swap is None and not self._was_refused(route, meant):
            route.swap = asyncio.create_task(self._swap(place, route, meant))
        return present

    def _was_refused(self, route: Route, key: Key) -> bool:
        return route.refused == key and self._clock() - route.refused_at < REFUSED_SECONDS

    async def _swap(self, place: Place, route: Route, meant: Key) -> None:
        """The present version answers until the new one is warm, and goes on where that fails."""
        try:
            await self._load(meant)
            route.key = meant
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the new version, the present one serves
            route.refused, route.refused_at = meant, self._clock()
            log.error("model not swapped in", model=str(place[1]), serving=route.key, refused=meant, reason=str(error))
        finally:
            route.swap = None

    async def _meant(self, place: Place) -> Key:
        """As it is after the last change that was told, unless there is one after the other."""
        for _ in range(LOOKS):
            changes = self._changed(place)
            meant = await self._looked(place)
            if changes == self._changed(place):
                break
        return meant

    def _changed(self, place: Place) -> int:
        """How often that was told of this model."""
        return self._changes[place[0], place[1].name]

    async def _looked(self, place: Place) -> Key:
        """One look at the database, however many ask."""
        task = self._looks.get(place)
        if task is None:
            task = self._looks[place] = asyncio.ensure_future(self._look(place))
            task.add_done_callback(partial(self._seen, place))
        return await asyncio.shield(task)

    def _seen(self, place: Place, task: asyncio.Task[Key]) -> None:
        if self._looks.get(place) is task:
            del self._looks[place]
