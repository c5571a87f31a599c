"""A stack to attack, with folders of its own around it, and what is seen of its processes and files from outside."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from service.client import WinnowClient
from service.embedded.running import RunningStack, running_stack

LOOK_EVERY_S = 0.05
TENANT = "mallory"
OURS = ("winnow.db", "logs/", "broker/", f"storage/tenants/{TENANT}/")
"""What may change in the home: the service's own database and logs, and the tenant's part of the storage."""


class Processes(NamedTuple):
    """Who must live on."""

    gateway: tuple[int, ...]
    worker: tuple[int, ...]  # and its child, which takes the jobs
    broker: tuple[int, ...]


class Arena:
    """The folders are the home, the working directory and TMPDIR of a stack; `key` is one of the tenant."""

    def __init__(self, folder: Path, stack: RunningStack) -> None:
        self._folder = folder
        self.stack = stack
        with WinnowClient(stack.url, stack.key) as admin:
            admin.tenants.create(TENANT)
            self.key = admin.tenants.create_key(TENANT, "attack", ["upload", "jobs"]).secret

    def processes(self) -> Processes:
        parts = {_command(pid): pid for pid in _children(self.stack.process.pid)}
        worker = next(pid for command, pid in parts.items() if command.endswith("-m worker"))
        gateway = next(pid for command, pid in parts.items() if command.endswith("-m service"))
        broker = next(pid for command, pid in parts.items() if "-server" in command)
        child = next(pid for pid in _children(worker) if _command(pid).endswith("-m worker"))
        return Processes((gateway,), (worker, child), (broker,))

    def files(self) -> dict[str, tuple[int, int]]:
        """(size, time of change) of everything that no upload may change."""
        found = {}
        for path in self._folder.rglob("*"):
            name = str(path.relative_to(self._folder))
            if not name.removeprefix("home/").startswith(OURS) and path.is_file():
                told = path.lstat()
                found[name] = told.st_size, told.st_mtime_ns
        return found


@contextmanager
def arena(folder: Path) -> Iterator[Arena]:
    for name in ("home", "cwd", "tmp"):
        (folder / name).mkdir()
    with contextlib.ExitStack() as stack:
        with contextlib.chdir(folder / "cwd"):
            environment = {"TMPDIR": str(folder / "tmp")}
            running = stack.enter_context(running_stack(folder / "home", environment=environment))
        yield Arena(folder, running)


class Peaks:
    """The most memory that the worker's child, and each process that it started, ever had, in bytes."""

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.of_worker = self.of_its_processes = 0

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self.of_worker = max(self.of_worker, _peak_bytes(self._worker))
            for pid in _children(self._worker):
                self.of_its_processes = max(self.of_its_processes, _peak_bytes(pid))


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, (task / "children").read_text().split())
    return found


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
