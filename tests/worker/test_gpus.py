"""Which GPU a worker takes, on a machine that has as many as the test says."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from worker.gpus import VISIBLE, gpus_of_driver, see_one_gpu, take

FOUR = ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
TAKES = """
import sys, time, pathlib
from worker.gpus import take
print(take(pathlib.Path(sys.argv[1]), sys.argv[2].split(",")), flush=True)
time.sleep(60)
"""
STARTS = """
import os, sys, worker.__main__ as started
started.app.worker_main = lambda _: print(os.environ["CUDA_VISIBLE_DEVICES"], "torch" in sys.modules)
started.main()
"""


def worker_that_takes(folder: Path, stack: ExitStack) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TAKES, str(folder), ",".join(FOUR)]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    return process


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_workers_that_start_at_once_take_a_gpu_each_and_a_killed_ones_is_free(tmp_path: Path) -> None:
    with ExitStack() as stack:
        workers = [worker_that_takes(tmp_path, stack) for _ in FOUR]
        taken = [told(worker) for worker in workers]
        assert sorted(taken) == FOUR
        workers[2].kill()
        workers[2].wait()
        assert told(worker_that_takes(tmp_path, stack)) == taken[2]


def test_more_workers_than_gpus_share_them_evenly(tmp_path: Path) -> None:
    taken = [take(tmp_path, FOUR) for _ in range(10)]
    assert sorted(taken[:4]) == sorted(taken[4:8]) == FOUR
    assert set(Counter(taken).values()) == {2, 3}


def test_the_others_are_not_seen(tmp_path: Path) -> None:
    environments: list[dict[str, str]] = [{}, {}]
    assert [see_one_gpu(tmp_path, each, present=lambda: FOUR) for each in environments] == FOUR[:2]
    assert environments == [{VISIBLE: FOUR[0]}, {VISIBLE: FOUR[1]}]


@pytest.mark.parametrize(
    ("given", "present"),
    [({}, []), ({}, FOUR[:1]), ({VISIBLE: "2"}, FOUR), ({VISIBLE: ""}, FOUR), ({VISIBLE: "1,-1,2"}, FOUR)],
)
def test_without_a_choice_nothing_is_changed(tmp_path: Path, given: dict[str, str], present: list[str]) -> None:
    environment = dict(given)
    assert see_one_gpu(tmp_path, environment, present=lambda: present) is None
    assert environment == given and list(tmp_path.iterdir()) == []
    assert see_one_gpu(Path(), environment, present=lambda: FOUR) is None and environment == given


def test_of_gpus_that_are_shown_one_is_taken(tmp_path: Path) -> None:
    taken = [see_one_gpu(tmp_path, {VISIBLE: "MIG-GPU-1/2/0, 3"}, present=lambda: FOUR) for _ in range(2)]
    assert taken == ["MIG-GPU-1/2/0", "3"]


def test_a_worker_that_starts_sees_what_no_other_has(tmp_path: Path) -> None:
    assert take(tmp_path, ["0", "1"]) == "0"
    env = {**os.environ, VISIBLE: "0,1", "WINNOW_GPU_LOCKS": str(tmp_path), "WINNOW_HOME": str(tmp_path)}
    started = subprocess.run([sys.executable, "-c", STARTS], env=env, capture_output=True, text=True, check=False)
    assert started.stdout.split() == ["1", "False"], started.stderr
    assert '"gpu": "1"' in started.stderr
    (tmp_path / "file").touch()
    env["WINNOW_GPU_LOCKS"] = str(tmp_path / "file")
    started = subprocess.run([sys.executable, "-c", STARTS], env=env, capture_output=True, text=True, check=False)
    assert started.returncode == 1 and started.stderr.startswith("winnow worker: WINNOW_GPU_LOCKS: ")


class Driver:
    """The management library of a machine with three GPUs, the second of which has fallen off the bus."""

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlShutdown(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetCount_v2(self, found: Any) -> int:  # noqa: N802
        found._obj.value = 3
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, device: Any) -> int:  # noqa: N802
        device._obj.value = index.value + 1
        return 15 if index.value == 1 else 0

    def nvmlDeviceGetUUID(self, device: ctypes.c_void_p, uuid: Any, size: ctypes.c_uint) -> int:  # noqa: N802
        assert size.value == len(uuid)
        uuid.value = f"GPU-{device.value}".encode()
        return 0


def test_the_driver_names_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Driver())
    assert gpus_of_driver() == ["GPU-1", "GPU-3"]


def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpus_of_driver() == []
