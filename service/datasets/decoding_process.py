"""A process that does nothing but decode images: what a crafted file can crash in a decoder, it crashes here."""

from __future__ import annotations

import hashlib
import signal
import warnings
from types import FrameType
from typing import Any, NamedTuple

from service.datasets.decode import ImageRejected, decode
from service.datasets.pipes import Child, cut, own_pipes, receive, send

START = "from service.datasets.decoding_process import main; main()"

MOST_SECONDS = 2.0  # of computing that an image may take
TOO_SLOW = f"decoding it takes over {MOST_SECONDS:g} seconds"

Answer = str | tuple[str, int, int, bool, bytes]
"""(sha256 of the file, width, height, whether it is grey, pixels), or why there are none."""


class Task(NamedTuple):
    """Files to decode to one resolution."""

    size: int
    channels: int
    max_pixels: int
    files: list[bytes]


def decode_all(task: Task) -> list[Answer]:
    """In a decoding process each image has its time; elsewhere, where signals are not ours, it has all it wants."""
    one = _in_time if signal.getsignal(signal.SIGVTALRM) is _too_slow else _decode_one
    return [one(task, data) for data in task.files]


def _decode_one(task: Task, data: bytes) -> Answer:
    try:
        found = decode(data, size=task.size, channels=task.channels, max_pixels=task.max_pixels)
    except ImageRejected as error:
        return str(error)
    header = found.header
    return hashlib.sha256(data).hexdigest(), header.width, header.height, header.grey, found.pixels


def _in_time(task: Task, data: bytes) -> Answer:
    """Ends what Pillow does in Python, such as a walk through millions of chunks; the rest has bounds of its own."""
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
        try:
            return _decode_one(task, data)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except _TooSlow:
        return TOO_SLOW


class _TooSlow(BaseException):
    """Not an Exception: what decodes must not take it for damage and go on."""


def _too_slow(_signal: int, _frame: FrameType | None) -> None:
    raise _TooSlow


class DecodingProcess:
    """The parent's end."""

    def __init__(self) -> None:
        self._child = Child(START)

    def decode(self, task: Task) -> list[Answer]:
        """Raises Crashed where the process does not live to answer."""
        lengths = [len(data) for data in task.files]
        return _answers(*self._child.ask([task.size, task.channels, task.max_pixels, lengths], task.files))

    def close(self) -> None:
        self._child.close()


def main() -> None:
    """Answer tasks until the parent is gone."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGVTALRM, _too_slow)
    source, sink = own_pipes()
    try:
        while True:
            (size, channels, max_pixels, lengths), body = receive(source)
            task = Task(size, channels, max_pixels, cut(body, lengths))
            answers = decode_all(task)
            heads = [answer if isinstance(answer, str) else answer[:4] for answer in answers]
            send(sink, heads, [answer[4] for answer in answers if not isinstance(answer, str)])
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


def _answers(heads: list[Any], body: bytes) -> list[Answer]:
    images = sum(not isinstance(head, str) for head in heads)
    pixels = iter(cut(body, [len(body) // images] * images if images else []))
    return [head if isinstance(head, str) else (*head, next(pixels)) for head in heads]
