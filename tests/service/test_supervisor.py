"""The embedded stack's supervision, with small processes as its parts and a real broker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.embedded.broker import MAX_SOCKET_PATH_BYTES, answers_ping, find_server, plan_broker, wait_for_broker
from service.embedded.guarding import Guard
from service.embedded.lock import hold_home
from service.embedded.part import Part, PartSpec, cap_log, describe_exit, last_line
from service.embedded.stack import choose_port, url_of
from service.embedded.state import StackState, forget_state, is_alive, read_state, timestamp, write_state
from service.embedded.supervisor import Supervisor
from service.errors import Conflict, Unavailable

SLEEP = (sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)")
STUBBORN = (
    *SLEEP[:4],
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
)
# A part that has a child of its own, as a worker has; it prints the child's pid.
PARENT = (*SLEEP[:4], "import os, time; pid = os.fork(); pid and print(pid, flush=True); time.sleep(60)")


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """No such process, or one that has ended and waits for a parent to see it."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return not is_alive(pid)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, said: list[str]) -> Iterator[Supervisor]:
    with hold_home(tmp_path) as handle:
        guard = Guard(handle)
        state = StackState(os.getpid(), 1, "http://127.0.0.1:1", timestamp())
        supervisor = Supervisor(tmp_path, state, guard, said.append)
        yield supervisor
        supervisor.end(*supervisor.parts)
        guard.dismiss()


def spec(name: str, argv: tuple[str, ...] = SLEEP, grace_s: float = 5.0) -> PartSpec:
    return PartSpec(name, argv, os.environ, grace_s)


def first_child(part: Part) -> int:
    until(lambda: part.log.read_text().strip().isdecimal())
    return int(part.log.read_text())


def test_a_part_that_is_killed_is_restarted_and_named(supervisor: Supervisor, said: list[str], tmp_path: Path) -> None:
    part = supervisor.add(spec("worker"))
    first = part.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: supervisor.tend() or part.pid not in (first, None))
    assert len(said) == 1
    assert said[0].startswith(f"worker (pid {first}) was killed by SIGKILL after 0 s; restarting it in 0.2 s")
    state = read_state(tmp_path)
    assert state is not None and state.parts == {"worker": part.pid}


def test_what_a_killed_part_leaves_behind_is_killed_too(supervisor: Supervisor) -> None:
    part = supervisor.add(spec("worker", PARENT))
    child = first_child(part)
    assert part.pid is not None
    os.kill(part.pid, signal.SIGKILL)
    until(lambda: supervisor.tend() or gone(child))


def test_back_off_grows_and_a_part_that_cannot_start_ends_the_stack(supervisor: Supervisor, said: list[str]) -> None:
    supervisor.add(spec("gateway", (*SLEEP[:4], "print('no port left'); raise SystemExit(3)")))
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"gateway cannot start: it ended with exit status 3.*no port left"):
        supervisor.run(lambda: "the gateway")
    assert [line.split(" in ")[1][:5] for line in said] == ["0.2 s", "0.4 s", "0.8 s", "1.6 s"]
    assert 3.0 < time.monotonic() - began < 10


def test_a_stop_ends_all_parts_and_a_deaf_one_after_its_grace(supervisor: Supervisor) -> None:
    quick = supervisor.add(spec("gateway"))
    deaf = supervisor.add(spec("worker", STUBBORN, grace_s=0.5))
    until(lambda: "deaf" in deaf.log.read_text())
    pids = [quick.pid, deaf.pid]
    supervisor.stop_requests = 1
    supervisor.run(lambda: None)
    began = time.monotonic()
    supervisor.end(*supervisor.parts)
    assert 0.5 <= time.monotonic() - began < 3
    assert all(pid is not None and gone(pid) for pid in pids)


def test_a_second_stop_request_waits_for_nobody(supervisor: Supervisor) -> None:
    deaf = supervisor.add(spec("worker", STUBBORN, grace_s=60))
    until(lambda: "deaf" in deaf.log.read_text())
    supervisor.stop_requests = 1
    second = threading.Timer(0.2, setattr, (supervisor, "stop_requests", 2))
    began = time.monotonic()
    second.start()
    supervisor.end(deaf)
    assert 0.2 <= time.monotonic() - began < 3


def test_ready_is_said_once_with_the_address(supervisor: Supervisor, said: list[str]) -> None:
    answers = iter(["the gateway", None])

    def missing() -> str | None:
        answer = next(answers)
        supervisor.stop_requests = answer is None
        return answer

    supervisor.run(missing)
    assert len(said) == 1 and "ready in" in said[0] and "http://127.0.0.1:1" in said[0]


def test_a_stack_ends_with_the_parent_it_is_bound_to(supervisor: Supervisor) -> None:
    supervisor.bound_to = os.getppid()
    turns = iter(range(3))

    def missing() -> str | None:
        if next(turns) == 1:
            supervisor.bound_to = 1 if os.getppid() != 1 else 2  # as if another had become our parent
        return "a reason to go on"

    supervisor.run(missing)
    assert next(turns) == 2


def test_a_killed_supervisor_leaves_nothing_and_frees_the_home_only_then(tmp_path: Path) -> None:
    program = f"""
        import os, sys, time
        from pathlib import Path
        from service.embedded.guarding import Guard
        from service.embedded.lock import hold_home
        from service.embedded.part import PartSpec
        from service.embedded.state import StackState
        from service.embedded.supervisor import Supervisor
        home = Path(sys.argv[1])
        with hold_home(home) as handle:
            guard = Guard(handle)
            guard.sweep(home / "private")
            supervisor = Supervisor(home, StackState(os.getpid(), 1, "http://x", "now"), guard, print)
            supervisor.add(PartSpec("worker", {PARENT!r}, os.environ, 1.0))
            supervisor.add(PartSpec("gateway", {SLEEP!r}, os.environ, 1.0))
            supervisor.run(lambda: None)
    """
    (tmp_path / "private").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(program), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and "ready" in process.stdout.readline()
    state = read_state(tmp_path)
    assert state is not None
    child = first_child(Part(spec("worker"), tmp_path / "logs" / "worker.log"))
    with pytest.raises(Conflict, match=rf"pid {process.pid}, port 1, since now"), hold_home(tmp_path):
        raise AssertionError("a held home was given away")
    process.kill()
    process.wait()
    process.stdout.close()
    with hold_home(tmp_path):  # waits for the guard
        assert all(gone(pid) for pid in (*state.parts.values(), child))
        assert not (tmp_path / "private").exists()


def test_a_guard_that_dies_is_replaced_and_knows_as_much(supervisor: Supervisor, said: list[str]) -> None:
    part = supervisor.add(spec("worker"))
    supervisor.guard._process.kill()
    supervisor.guard._process.wait()
    supervisor.tend()
    assert said == ["guard had ended; restarted it"]
    supervisor.parts.clear()
    dismissal = threading.Thread(target=supervisor.guard.dismiss)
    dismissal.start()
    until(lambda: not part.is_running())  # ended by the new guard, although the one who was told of it is gone
    dismissal.join()


def test_the_broker_keeps_what_it_was_told_and_listens_only_on_its_socket(tmp_path: Path) -> None:
    for round_ in range(2):
        plan = plan_broker(tmp_path)
        part = Part(spec("broker", plan.argv), tmp_path / "broker.log")
        part.start()
        assert wait_for_broker(plan.socket, is_running=part.is_running), last_line(part.log)
        told = subprocess.run(
            [sys.executable, "-c", BROKER_PROBE, str(plan.socket), str(round_)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.split() == ["noeviction", "yes", "0", "kept" if round_ else "None"]
        assert plan.socket.stat().st_mode & 0o077 == 0
        part.ask_to_end()
        until(lambda part=part: part.collect_end() is not None)  # type: ignore[misc]
        assert not answers_ping(plan.socket)


BROKER_PROBE = """
import sys, redis
r = redis.Redis(unix_socket_path=sys.argv[1], decode_responses=True)
for name in ("maxmemory-policy", "appendonly", "port"):
    print(r.config_get(name)[name])
print(r.get("note"))
r.set("note", "kept")
r.close()
"""


def test_a_long_home_gets_a_short_socket_elsewhere(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 40)
    home.mkdir()
    plan = plan_broker(home)
    assert plan.private_folder is not None
    try:
        assert len(bytes(plan.socket)) <= MAX_SOCKET_PATH_BYTES
        assert plan.private_folder.stat().st_mode & 0o077 == 0
    finally:
        plan.private_folder.rmdir()


def test_celery_finds_the_broker_of_a_home_with_odd_characters(tmp_path: Path) -> None:
    home = tmp_path / "a b#?é"
    home.mkdir()
    plan = plan_broker(home)
    part = Part(spec("broker", plan.argv), tmp_path / "broker.log")
    part.start()
    try:
        assert wait_for_broker(plan.socket, is_running=part.is_running), last_line(part.log)
        probe = "import sys, kombu; kombu.Connection(sys.argv[1]).ensure_connection(max_retries=1)"
        subprocess.run([sys.executable, "-c", probe, plan.url], check=True)
    finally:
        part.kill()
        until(lambda: part.collect_end() is not None)


def test_a_server_on_path_comes_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server().name == "valkey-server"  # of the wheel
    own = tmp_path / "redis-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert find_server() == own


def test_ports(tmp_path: Path) -> None:
    free = choose_port("127.0.0.1", 0)
    assert choose_port("127.0.0.1", free) == free
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=rf"127\.0\.0\.1 port {port}.*--port"):
            choose_port("127.0.0.1", port)
    assert url_of("0.0.0.0", 80) == "http://127.0.0.1:80"  # noqa: S104
    assert url_of("::1", 80) == "http://[::1]:80"


def test_the_state_file(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    state = StackState(1, 2, "http://u", "now", {"worker": 3})
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    (tmp_path / "winnow.json").write_text('{"pid": 1}')
    assert read_state(tmp_path) is None
    forget_state(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_logs_are_capped(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with log.open("ab") as file:
        file.write(b"first line\nlast line\n\n")
        file.flush()
        assert last_line(log) == "last line"
        cap_log(log, cap_bytes=5)
        file.write(b"after\n")
    assert log.read_bytes() == b"after\n"
    assert (tmp_path / "worker.log.1").read_bytes().startswith(b"first line")


def test_ends_in_words() -> None:
    assert describe_exit(0) == "ended with exit status 0"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-63) == "was killed by signal 63"
