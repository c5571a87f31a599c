"""The siblings that serve: how many connections each has, and what each has counted."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

from service.siblings.channel import Channel
from service.siblings.looks import Look, added


@dataclass(eq=False)
class Member:
    """One of them. connections: how many it has, as far as it said. late: it does not say that it is well."""

    number: int
    channel: Channel
    door: socket.socket
    connections: int = 0
    late: bool = False
    looked: Look | None = None

    async def gone(self) -> None:
        self.connections -= 1


class Members:
    """Those that serve now, and what those counted that did. own: connections that were dealt to the first process."""

    def __init__(self) -> None:
        self.own = 0
        self._serving: list[Member] = []
        self._open: list[Member] = []
        self._past = Look([], {})

    def __len__(self) -> int:
        return len(self._serving)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._serving)

    def add(self, member: Member) -> None:
        self._serving.append(member)
        self._open.append(member)

    async def left(self, member: Member) -> None:
        """It takes no more connections."""
        if member in self._open:
            self._open.remove(member)

    def remove(self, member: Member) -> None:
        """What it counted, as far as it was told, is not forgotten: sums never fall."""
        for members in (self._serving, self._open):
            if member in members:
                members.remove(member)
        if member.looked is not None:
            self._past = added(self._past, member.looked)
            member.looked = None

    def close(self) -> None:
        """No more connections for any of them."""
        self._open.clear()

    def looks(self) -> list[Look]:
        """The last of each that serves, and all of those that do no more."""
        return [self._past, *(member.looked for member in self._serving if member.looked is not None)]

    def chosen(self, *, mine: bool) -> Member | None:
        """Who is to have the next connection; None: the first process. mine: that has this very one already."""
        well = (member for member in self._open if not member.late)
        member = min(well, key=lambda each: each.connections, default=None)
        others = self.own - 2 if mine else self.own
        return member if member is not None and member.connections <= others else None

    def dealt(self, member: Member | None, *, mine: bool) -> None:
        """None: the first process has it, or has it still."""
        if member is not None:
            member.connections += 1
        self.own += (member is None) - mine
