"""One stack a home: an flock that lives as long as anything of the stack does."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.embedded.state import is_alive, read_state
from service.errors import Conflict

ENDING_WAIT_S = 15.0  # longer than the guard needs to end the parts of a supervisor that was killed


@contextmanager
def hold_home(home: Path, *, wait_s: float = ENDING_WAIT_S) -> Iterator[int]:
    """Hold `home` for this process; gives the lock's file descriptor.

    The guard inherits the descriptor, so that the lock of a killed supervisor goes only when its parts have gone.
    Raises Conflict (`home_in_use`), naming the holder, where another stack has it.
    """
    home.mkdir(parents=True, exist_ok=True)
    handle = os.open(home / "winnow.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while not _try_lock(handle):
            state = read_state(home)
            if (state is not None and is_alive(state.pid)) or time.monotonic() > deadline:
                raise _in_use(home)
            time.sleep(0.1)
        yield handle
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_use(home: Path) -> Conflict:
    state = read_state(home)
    if state is None:
        return Conflict(
            f"{home} is held by another 'winnow up' that is just starting or ending. Try again in some seconds.",
            code="home_in_use",
        )
    return Conflict(
        f"{home} is held by another 'winnow up': pid {state.pid}, port {state.port}, since {state.started_at}. "
        f"Use it at {state.url}, end it with 'kill {state.pid}', or give another folder with --home.",
        code="home_in_use",
        pid=state.pid,
        port=state.port,
    )
