"""The supervisor's side of the guard: starts it, keeps it told, replaces it when it dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO

GUARD_FILE = Path(__file__).with_name("guard.py")


class Guard:
    """Holds the home's lock together with the supervisor, and the list of process groups to end if that is killed."""

    def __init__(self, lock_handle: int) -> None:
        self._lock_handle = lock_handle
        self._groups: set[int] = set()
        self._folders: set[str] = set()
        self._process = self._start()

    @property
    def _pipe(self) -> IO[str]:
        if self._process.stdin is None:
            raise RuntimeError("the guard was started without its pipe")
        return self._process.stdin

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-I", "-S", str(GUARD_FILE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            pass_fds=(self._lock_handle,),
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        self._groups.add(group)
        self._tell(f"watch {group}")

    def forget(self, group: int) -> None:
        self._groups.discard(group)
        self._tell(f"forget {group}")

    def sweep(self, folder: Path) -> None:
        """Have `folder` removed when the stack ends, however it ends."""
        self._folders.add(str(folder))
        self._tell(f"sweep {folder}")

    def replace_if_dead(self) -> bool:
        """Start another guard where this one has died; True where that was so."""
        if self._process.poll() is None:
            return False
        self._close_pipe()
        self._process = self._start()
        for group in self._groups:
            self._tell(f"watch {group}")
        for folder in self._folders:
            self._tell(f"sweep {folder}")
        return True

    def dismiss(self) -> None:
        """Let the guard end; it ends first what it still watches."""
        self._close_pipe()
        self._process.wait()

    def _tell(self, line: str) -> None:
        try:
            self._pipe.write(line + "\n")
        except BrokenPipeError:
            self.replace_if_dead()  # the new one is told everything, this line included

    def _close_pipe(self) -> None:
        try:
            self._pipe.close()
        except BrokenPipeError:  # it died with a line unread; the lists here are what counts
            return
