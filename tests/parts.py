"""The parts of a cluster as real servers on this machine, for as long as a test needs them: S3, PostgreSQL, Redis."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg

from service.embedded.broker import find_server

POSTGRES_HOMES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda home: int(home.parent.name), reverse=True)
START_S = 60.0


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"{process.args!r} does not listen on {port}")


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass
class S3Server:
    """Moto's, which speaks S3 over HTTP and holds everything in memory. It can be taken away and given back."""

    port: int = field(default_factory=free_port)
    environment: Mapping[str, str] = field(
        default_factory=lambda: {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-tests"}
    )
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=quiet, stderr=quiet, stdin=quiet, start_new_session=True)
        wait_for_port(self.port, self.process)

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)
            self.process = None

    def make_bucket(self) -> str:
        name = f"winnow-{secrets.token_hex(4)}"
        httpx.put(f"{self.endpoint}/{name}").raise_for_status()
        return name

    def uploads_under_way(self, bucket: str) -> int:
        return httpx.get(f"{self.endpoint}/{bucket}?uploads").text.count("<UploadId>")


@contextmanager
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    server.start()
    try:
        yield server
    finally:
        server.stop()


class PostgresMissing(Exception):
    """No PostgreSQL is installed here."""


@dataclass
class PostgresServer:
    """A cluster of its own in a temporary folder. It can be taken away and given back, with what it holds."""

    home: Path
    folder: Path
    user: int | None
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]
        where = ["-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder)]
        self.process = subprocess.Popen(
            [str(self.home / "postgres"), *where, *options],
            user=self.user,
            cwd=self.folder,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(self.port, self.process)
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        """It listens before it does."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.run("SELECT 1")
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        """At once, whoever is connected."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            end(self.process)
            self.process = None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://winnow@127.0.0.1:{self.port}/{database}"

    def run(self, statement: str) -> None:
        url = self.url().replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def make_database(self, template: str = "template1") -> str:
        name = f"winnow_{secrets.token_hex(4)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        self.run(f"DROP DATABASE {name} WITH (FORCE)")


def postgres_home() -> Path:
    """The folder of initdb and postgres. Raises PostgresMissing."""
    on_path = shutil.which("initdb")
    homes = [*POSTGRES_HOMES, *([Path(on_path).resolve().parent] if on_path else [])]
    if not homes:
        raise PostgresMissing("PostgreSQL is not installed here (Debian: apt-get install postgresql)")
    return homes[0]


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """initdb refuses root: as root it runs as `postgres`, or as nobody."""
    home, folder = postgres_home(), Path(tempfile.mkdtemp(prefix="winnow-pg-", dir="/tmp"))
    user: int | None = None
    if os.geteuid() == 0:
        user = _unprivileged()
        os.chown(folder, user, -1)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    initdb = [home / "initdb", "-D", folder / "data", "-U", "winnow", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run([*initdb, "--locale=C"], check=True, user=user, cwd=folder, **quiet)  # type: ignore[call-overload]
    server = PostgresServer(home, folder, user)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def _unprivileged() -> int:
    import pwd

    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    return 65534


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Redis or Valkey by TCP; gives its URL."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    command = [str(find_server()), *options, "--maxmemory-policy", "noeviction"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, stdin=quiet, start_new_session=True)
    try:
        wait_for_port(port, process)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        end(process)
