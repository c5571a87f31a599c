"""What a user is told of what went wrong with a step."""

from __future__ import annotations

import pytest

from worker.failures import told


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
    ],
)
def test_whatever_says_that_there_is_no_memory_it_is_called_so(error: Exception) -> None:
    assert told(error, "The step")["code"] == "out_of_memory"


def test_where_no_thread_can_be_started_the_user_is_pointed_at_both_limits() -> None:
    message = told(RuntimeError("can't start new thread"), "The step")["message"]
    assert "memory" in message
    assert "pids" in message


def test_any_other_error_is_told_with_its_type() -> None:
    failed = told(RuntimeError("no such luck"), "The step")
    assert failed == {"code": "internal", "message": "The step broke: RuntimeError: no such luck"}
