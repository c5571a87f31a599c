"""`winnow up`: brings broker, worker and gateway up in one home, and supervises them until told to stop."""

from __future__ import annotations

import http.client
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import closing

import orjson

from service.auth import admin_key_path, ensure_admin_key
from service.db import migrate
from service.embedded.broker import BrokerPlan, plan_broker, wait_for_broker
from service.embedded.guarding import Guard
from service.embedded.lock import hold_home
from service.embedded.part import PartSpec, last_line
from service.embedded.state import StackState, forget_state, timestamp, write_state
from service.embedded.supervisor import Say, Supervisor
from service.errors import Conflict, Unavailable
from service.settings import Settings

BROKER_GRACE_S = 5.0
WORKER_GRACE_S = 10.0
GATEWAY_GRACE_S = 8.0
READY_ANSWER_S = 5.0  # a gateway that looks for a broker in vain takes a while to say so


def run_stack(settings: Settings, say: Say, *, bound_to: int | None = None) -> None:
    """Run the embedded stack of `settings.home` until SIGINT, SIGTERM, SIGHUP, or the end of the parent `bound_to`.

    Raises Conflict where the home or the port is taken, Unavailable where a part cannot start.
    """
    with hold_home(settings.home) as lock_handle:
        port = choose_port(settings.host, settings.port)
        state = StackState(os.getpid(), port, url_of(settings.host, port), timestamp())
        write_state(settings.home, state)
        guard = Guard(lock_handle)
        supervisor = Supervisor(settings.home, state, guard, say, bound_to)
        supervisor.catch_signals()
        try:
            _supervise(settings, supervisor)
        finally:
            workers = [part for part in supervisor.parts if part.spec.name != "broker"]
            say(f"stopping {', '.join(part.spec.name for part in reversed(supervisor.parts)) or 'nothing'}")
            supervisor.end(*workers)
            supervisor.end(*supervisor.parts)  # the broker last: the worker hands its job back through it
            guard.dismiss()
            forget_state(settings.home)
    say("stopped; nothing is left running")


def _supervise(settings: Settings, supervisor: Supervisor) -> None:
    redis_url = settings.redis_url
    if not redis_url:
        plan = plan_broker(settings.home)
        redis_url = plan.url
        _start_broker(plan, supervisor)
    migrate(settings)
    ensure_admin_key(settings)
    env = part_environment(settings, port=supervisor.state.port, redis_url=redis_url)
    # -P: a folder named `models` or `worker` in the user's current directory must not shadow ours.
    python = (sys.executable, "-P", "-m")
    supervisor.add(PartSpec("gateway", (*python, "service"), env, GATEWAY_GRACE_S))
    supervisor.add(PartSpec("worker", (*python, "worker"), env, WORKER_GRACE_S))
    supervisor.say(f"home {settings.home}; admin key in {admin_key_path(settings.home)}")
    host, port = settings.host, supervisor.state.port
    supervisor.run(lambda: what_is_missing(reachable_host(host), port))


def _start_broker(plan: BrokerPlan, supervisor: Supervisor) -> None:
    if plan.private_folder is not None:
        supervisor.guard.sweep(plan.private_folder)
    plan.socket.unlink(missing_ok=True)  # left by a server that was killed; the lock says that none uses it now
    broker = supervisor.add(PartSpec("broker", plan.argv, os.environ, BROKER_GRACE_S))
    if not wait_for_broker(plan.socket, is_running=broker.is_running):
        raise Unavailable(
            f"The broker ({plan.argv[0]}) did not start. Its last words: {last_line(broker.log)} (log: {broker.log})",
            code="part_fails",
        )


def part_environment(settings: Settings, *, port: int, redis_url: str) -> Mapping[str, str]:
    """What the parts read their own settings from."""
    return {
        **os.environ,
        "WINNOW_HOME": str(settings.home),
        "WINNOW_HOST": settings.host,
        "WINNOW_PORT": str(port),
        "WINNOW_REDIS_URL": redis_url,
        "WINNOW_DATABASE_URL": settings.database_url,
        "WINNOW_STORAGE": str(settings.storage),
        "PYTHONUNBUFFERED": "1",
    }


def choose_port(host: str, port: int) -> int:
    """`port` if it is free, or a free one for 0. Raises Conflict (`port_in_use`)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Conflict(
                f"Cannot listen on {host} port {port}: {error.strerror}. "
                "Give another port with --port N, or --port 0 for any free one.",
                code="port_in_use",
            ) from error
        return int(probe.getsockname()[1])


def reachable_host(host: str) -> str:
    """The address under which this machine reaches a server bound to `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - not bound here


def url_of(host: str, port: int) -> str:
    address = reachable_host(host)
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def what_is_missing(host: str, port: int) -> str | None:
    """What keeps the stack from being ready, as the gateway's /readyz says; None when nothing does."""
    connection = http.client.HTTPConnection(host, port, timeout=READY_ANSWER_S)
    with closing(connection):
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            return "the gateway"
    return None if answer.status == 200 else _named_in(body)


def _named_in(body: bytes) -> str:
    try:
        missing = orjson.loads(body)["missing"]
        return "; ".join(f"{name}: {problem}" for name, problem in missing.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        return "the gateway to be ready"
