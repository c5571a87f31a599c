"""The embedded stack as a user has it: `winnow up` with its real broker, worker and gateway."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.client import WinnowClient
from service.embedded.running import RunningStack, running_stack
from service.embedded.stack import what_is_missing
from service.embedded.state import read_state

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks processes up in /proc")

RESTART_WITHIN_S = 15.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("home")) as stack:
        yield stack


def until(holds: Callable[[], bool], seconds: float = RESTART_WITHIN_S) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def processes_of(home: Path) -> dict[int, str]:
    """Every living process that was started for this home, however deep."""
    mark, found = f"WINNOW_HOME={home}".encode(), {}
    for folder in Path("/proc").iterdir():
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):  # not a process, not ours, or gone meanwhile
            continue
    return found


def parts(home: Path) -> dict[str, int]:
    state = read_state(home)
    return dict(state.parts) if state is not None else {}


def is_ready(stack: RunningStack) -> bool:
    return what_is_missing("127.0.0.1", int(stack.url.rpartition(":")[2])) is None


def small_zip() -> io.BytesIO:
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for label in ("cat", "dog"):
            for index in range(3):
                png = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(png, "PNG")
                archive.writestr(f"{label}/{index}.png", png.getvalue())
    file.seek(0)
    return file


def ingest(stack: RunningStack, name: str) -> dict[str, object]:
    with WinnowClient(stack.url, stack.key) as client:
        job = client.wait(client.upload_dataset(name, small_zip()).id, timeout_s=60)
    assert job.succeeded, job.trouble
    return job.result or {}


def test_it_is_ready_soon_and_private(stack: RunningStack) -> None:
    assert stack.ready_after_s < 15  # 5 s on two idle cores; a test machine may be busy
    assert set(parts(stack.home)) == {"broker", "worker", "gateway"}
    assert stack.key_path.stat().st_mode & 0o077 == 0
    assert (stack.home / "broker" / "broker.sock").is_socket()


def test_it_does_work(stack: RunningStack) -> None:
    result = ingest(stack, "animals")
    assert result["dataset"] == "animals@1" and result["num_samples"] == 6


def test_a_second_up_says_who_holds_the_home(stack: RunningStack) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "service.cli", "up", "--home", str(stack.home), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    port = stack.url.rpartition(":")[2]
    assert ran.returncode == 1
    assert f"pid {stack.process.pid}, port {port}, since 2" in ran.stderr and "Traceback" not in ran.stderr
    assert is_ready(stack)


def test_a_port_in_use_is_said(stack: RunningStack, tmp_path: Path) -> None:
    port = stack.url.rpartition(":")[2]
    ran = subprocess.run(
        [sys.executable, "-m", "service.cli", "up", "--home", str(tmp_path), "--port", port],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ran.returncode == 1 and f"port {port}" in ran.stderr and "--port 0" in ran.stderr
    assert processes_of(tmp_path) == {}


@pytest.mark.parametrize("name", ["worker", "gateway", "broker"])
def test_a_part_that_is_killed_comes_back_and_goes_on_working(stack: RunningStack, name: str) -> None:
    before = parts(stack.home)[name]
    os.kill(before, signal.SIGKILL)
    until(lambda: parts(stack.home).get(name, before) != before and is_ready(stack))
    log = (stack.home / "logs" / "up.log").read_text()
    assert f"{name} (pid {before}) was killed by SIGKILL" in log
    result = ingest(stack, f"after-{name}")
    assert result["dataset"] == f"after-{name}@1"
    assert before not in processes_of(stack.home)


def test_the_cli_finds_the_stack_by_its_home(stack: RunningStack) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "service.cli", "jobs", "--json", "--home", str(stack.home)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert {job["type"] for job in json.loads(ran.stdout)} <= {"ingest"}


@pytest.mark.slow
def test_a_killed_supervisor_leaves_nothing_and_the_home_starts_again(tmp_path: Path) -> None:
    with running_stack(tmp_path) as stack:
        key = stack.key
        stack.process.kill()
        stack.process.wait()
        until(lambda: processes_of(tmp_path) == {})
    with running_stack(tmp_path) as stack:
        assert stack.key == key
        assert ingest(stack, "animals")["dataset"] == "animals@1"


def test_ctrl_c_ends_all_of_it(stack: RunningStack) -> None:
    """The last test, for it ends the stack of all."""
    assert len(processes_of(stack.home)) >= 3
    stack.process.send_signal(signal.SIGINT)
    assert stack.process.wait(timeout=30) == 0
    assert processes_of(stack.home) == {}
    assert read_state(stack.home) is None
    assert not (stack.home / "broker" / "broker.sock").exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(stack.url.rpartition(":")[2]))) != 0
