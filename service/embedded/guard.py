"""Ends the parts of a supervisor that can no longer do it itself, because it was killed outright.

Run as a file (standard library only). It reads lines from a pipe whose other end only the supervisor has:
`watch PGID`, `forget PGID`, `sweep FOLDER`. When the pipe ends it signals every process group still watched,
so that a worker's own children go too, which a parent-death signal would not reach.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

GRACE_S = 5.0


def signal_groups(groups: set[int], signum: int) -> None:
    """Send `signum` to every group, and drop from `groups` those that are gone."""
    for group in sorted(groups):
        try:
            os.killpg(group, signum)
        except (ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
            groups.discard(group)


def end_groups(groups: set[int]) -> None:
    deadline = time.monotonic() + GRACE_S
    signal_groups(groups, signal.SIGTERM)
    while groups and time.monotonic() < deadline:
        time.sleep(0.05)
        signal_groups(groups, 0)
    signal_groups(groups, signal.SIGKILL)


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    groups: set[int] = set()
    folders: set[str] = set()
    for line in sys.stdin:
        order, _, what = line.rstrip("\n").partition(" ")
        if order == "watch":
            groups.add(int(what))
        elif order == "forget":
            groups.discard(int(what))
        elif order == "sweep":
            folders.add(what)
    end_groups(groups)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
