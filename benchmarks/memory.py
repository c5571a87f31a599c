"""Peak resident memory of a process and all its descendants, by process."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

LOOK_EVERY_SECONDS = 0.5
GROWS_EVERY_SECONDS = 0.02


class PeakMemory:
    """Looks at /proc while the block runs; `peak_mib` is of the largest single process."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.by_process: dict[str, float] = {}

    @property
    def peak_mib(self) -> float:
        return max(self.by_process.values(), default=0.0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_EVERY_SECONDS):
            for pid in descendants(self._root):
                name, peak = status(pid)
                self.by_process[name] = max(self.by_process.get(name, 0.0), peak)


class Growth:
    """By how much one process grows, at its largest, while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = self._most = resident_mib(pid)

    @property
    def mib(self) -> float:
        return self._most - self._before

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(GROWS_EVERY_SECONDS):
            self._most = max(self._most, resident_mib(self._pid))


def resident_mib(pid: int) -> float:
    pages = int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def status(pid: int) -> tuple[str, float]:
    """(name, peak resident MiB)."""
    try:
        lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
        command = (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return "gone", 0.0
    peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
    part = next(
        (name for name in ("service.embedded", "-m worker", "-m service", "valkey", "redis") if name in command),
        "other",
    )
    return f"{part} {pid}", peak / 1024
