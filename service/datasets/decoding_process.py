"""A process that does nothing but decode images: what a crafted file can crash in a decoder, it crashes here."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import warnings
from itertools import accumulate, pairwise
from typing import IO, Any, NamedTuple

from service.datasets.decode import ImageRejected, decode

LENGTHS = struct.Struct("<QQ")  # of a message's head, which is JSON, and of its body
START = "from service.datasets.decoding_process import main; main()"

Answer = str | tuple[str, int, int, bool, bytes]
"""(sha256 of the file, width, height, whether it is grey, pixels), or why there are none."""


class Task(NamedTuple):
    """Files to decode to one resolution."""

    size: int
    channels: int
    max_pixels: int
    files: list[bytes]


class Crashed(Exception):
    """The process died of a task."""


def decode_all(task: Task) -> list[Answer]:
    return [_decode_one(task, data) for data in task.files]


def _decode_one(task: Task, data: bytes) -> Answer:
    try:
        found = decode(data, size=task.size, channels=task.channels, max_pixels=task.max_pixels)
    except ImageRejected as error:
        return str(error)
    header = found.header
    return hashlib.sha256(data).hexdigest(), header.width, header.height, header.grey, found.pixels.tobytes()


class DecodingProcess:
    """The parent's end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 (nothing from outside is in it)
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # ends with its pipe, not with a signal that was meant for the worker
        )

    def decode(self, task: Task) -> list[Answer]:
        """Raises Crashed where the process does not live to answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise TypeError("the process has pipes")
        try:
            head = [task.size, task.channels, task.max_pixels, [len(data) for data in task.files]]
            _send(self._process.stdin, head, task.files)
            return _answers(*_receive(self._process.stdout))
        except (EOFError, OSError) as error:
            raise Crashed from error

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # what it did not read any more
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Answer tasks from standard input until it ends, which it does when the parent does."""
    warnings.simplefilter("ignore")
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing but answers goes to the parent
    try:
        while True:
            (size, channels, max_pixels, lengths), body = _receive(source)
            answers = decode_all(Task(size, channels, max_pixels, _cut(body, lengths)))
            heads = [answer if isinstance(answer, str) else answer[:4] for answer in answers]
            _send(sink, heads, [answer[4] for answer in answers if not isinstance(answer, str)])
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


def _answers(heads: list[Any], body: bytes) -> list[Answer]:
    images = sum(not isinstance(head, str) for head in heads)
    pixels = iter(_cut(body, [len(body) // images] * images if images else []))
    return [head if isinstance(head, str) else (*head, next(pixels)) for head in heads]


def _cut(body: bytes, lengths: list[int]) -> list[bytes]:
    ends = list(accumulate(lengths, initial=0))
    return [body[begin:end] for begin, end in pairwise(ends)]


def _send(pipe: IO[bytes], head: list[Any], body: list[bytes]) -> None:
    text = json.dumps(head).encode()
    pipe.write(LENGTHS.pack(len(text), sum(map(len, body))))
    pipe.write(text)
    for data in body:
        pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[list[Any], bytes]:
    head_bytes, body_bytes = LENGTHS.unpack(_exactly(pipe, LENGTHS.size))
    return json.loads(_exactly(pipe, head_bytes)), _exactly(pipe, body_bytes)


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) != count:
        raise EOFError
    return data
