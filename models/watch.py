"""What a long computation reports to, is stopped by, and keeps its state in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


class Stopped(Exception):
    """The caller asked the computation to stop; what it had computed is in its checkpoints."""


class Watch(Protocol):
    """What a long computation reports to, at least once a batch."""

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` steps are made. Raises Stopped to end the computation here."""


class Silent:
    """A watch that asks for nothing."""

    def advance(self, done: int, total: int) -> None:  # noqa: ARG002
        return None


@dataclass(frozen=True)
class Piece:
    """One of several equal pieces of a computation, told to the watch of the whole."""

    whole: Watch
    index: int
    pieces: int

    def advance(self, done: int, total: int) -> None:
        self.whole.advance(self.index * total + done, self.pieces * total)


class Checkpoints(Protocol):
    """Where a fit keeps its state between attempts. The bytes are safetensors."""

    def load(self, name: str) -> bytes | None: ...

    def save(self, name: str, data: bytes) -> None: ...


@runtime_checkable
class Paced(Protocol):
    """Checkpoints that also want the state within an epoch: this often, and when the fit is told to stop."""

    @property
    def every_seconds(self) -> float: ...


class Forgetful:
    """Keeps nothing."""

    def load(self, name: str) -> bytes | None:  # noqa: ARG002
        return None

    def save(self, name: str, data: bytes) -> None:  # noqa: ARG002
        return None
