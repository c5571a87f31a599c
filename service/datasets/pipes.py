"""Messages between a process and the small ones it starts: a head that is JSON, and a body of bytes. No pickles."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import IO, Any

LENGTHS = struct.Struct("<QQ")  # of head and body


class Crashed(Exception):
    """The other process did not live to answer."""


class Child:
    """A process that answers messages on its standard input, and ends with it."""

    def __init__(self, start: str, *, keep: Sequence[int] = (), quiet: bool = False) -> None:
        """`start`: the code it runs; `keep`: files that it shares; `quiet`: what it complains about is not shown."""
        self._process = subprocess.Popen(  # noqa: S603 (nothing from outside is in it)
            [sys.executable, "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            pass_fds=tuple(keep),
            start_new_session=True,  # ends with its pipe, not with a signal that was meant for the worker
        )

    def ask(self, head: Any, body: Sequence[bytes] = ()) -> tuple[Any, bytes]:
        """Raises Crashed."""
        if self._process.stdin is None or self._process.stdout is None:
            raise TypeError("the process has pipes")
        try:
            send(self._process.stdin, head, body)
            return receive(self._process.stdout)
        except (EOFError, OSError) as error:
            raise Crashed from error

    def close(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # what it did not read any more
        self._process.wait()


def own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """A child's ends; whatever it prints from here on goes to its errors, not to its parent."""
    pipes = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    return pipes


def send(pipe: IO[bytes], head: Any, body: Sequence[bytes]) -> None:
    text = json.dumps(head).encode()
    pipe.write(LENGTHS.pack(len(text), sum(map(len, body))))
    pipe.write(text)
    for data in body:
        pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[Any, bytes]:
    """Raises EOFError where the other end is gone."""
    head_bytes, body_bytes = LENGTHS.unpack(_exactly(pipe, LENGTHS.size))
    return json.loads(_exactly(pipe, head_bytes)), _exactly(pipe, body_bytes)


def cut(body: bytes, lengths: Sequence[int]) -> list[bytes]:
    """The pieces that were sent as one body."""
    ends = list(accumulate(lengths, initial=0))
    return [body[begin:end] for begin, end in pairwise(ends)]


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) != count:
        raise EOFError
    return data
