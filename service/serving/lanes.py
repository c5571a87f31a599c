"""Who is next: requests in lanes by model and tenant, served in turn, so that nobody's many crowd out another's few."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """A request in a lane."""

    @property
    def model(self) -> object: ...
    @property
    def tenant(self) -> str: ...
    @property
    def group(self) -> object:
        """Only requests of one group may share a call."""
        ...

    @property
    def remaining(self) -> int:
        """Images that no call has taken yet; 0 for one that needs no answer any more."""
        ...

    def take(self, count: int) -> slice: ...


RequestT = TypeVar("RequestT", bound=Waiting)


@dataclass(frozen=True, slots=True, eq=False)
class Span(Generic[RequestT]):
    """Some of a request's images."""

    request: RequestT
    rows: slice


@dataclass(eq=False)
class Lanes(Generic[RequestT]):
    """Models take turns by calls, the tenants of a model by images."""

    _models: OrderedDict[object, OrderedDict[str, deque[RequestT]]] = field(default_factory=OrderedDict)

    def __bool__(self) -> bool:
        return bool(self._models)

    def __iter__(self) -> Iterator[RequestT]:
        return (request for tenants in self._models.values() for lane in tenants.values() for request in lane)

    def add(self, request: RequestT) -> None:
        self._models.setdefault(request.model, OrderedDict()).setdefault(request.tenant, deque()).append(request)

    def first(self) -> RequestT | None:
        """The request whose turn it is."""
        while self._models:
            model, tenants = next(iter(self._models.items()))
            while tenants:
                tenant, lane = next(iter(tenants.items()))
                while lane and lane[0].remaining == 0:
                    lane.popleft()
                if lane:
                    return lane[0]
                del tenants[tenant]
            del self._models[model]
        return None

    def waiting(self, model: object) -> int:
        """Images that wait for this model."""
        return sum(request.remaining for lane in self._models.get(model, {}).values() for request in lane)

    def next_call(self, room: int) -> list[Span[RequestT]]:
        """Up to `room` images of one model and group, evenly from all tenants that have some; none when none wait."""
        head = self.first()
        if head is None:
            return []
        tenants = self._models[head.model]
        spans: list[Span[RequestT]] = []
        while room and (taken := self._round(tenants, head.group, room)):
            spans += taken
            room -= sum(span.rows.stop - span.rows.start for span in taken)
        self._models.move_to_end(head.model)
        return spans

    def _round(self, tenants: OrderedDict[str, deque[RequestT]], group: object, room: int) -> list[Span[RequestT]]:
        """One turn of every tenant."""
        share, taken = max(1, room // max(len(tenants), 1)), []
        for tenant in list(tenants):
            lane = tenants[tenant]
            while lane and lane[0].remaining == 0:
                lane.popleft()
            if not lane:
                del tenants[tenant]
            elif lane[0].group is group and room:
                count = min(share, room, lane[0].remaining)
                taken.append(Span(lane[0], lane[0].take(count)))
                room -= count
                tenants.move_to_end(tenant)
        return taken
