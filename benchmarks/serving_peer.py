"""One peer of the serving comparison: how it is started, asked and ended, and the settings that it is tried with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.peers.student import TOLD, Told
from benchmarks.serving_client import connect, request_bytes
from benchmarks.serving_environments import Environment, PeerFailed
from benchmarks.serving_gateway import free_port
from benchmarks.serving_grpc import connect_grpc, infer_message, raw_output
from benchmarks.serving_model import Home
from benchmarks.serving_target import Target, ask_once
from service.registry.bundle import SERVED

ROOT = Path(__file__).parent.parent
STARTS_WITHIN_S = 90.0
ENDS_WITHIN_S = 20.0
REQUESTS = 256


@dataclass(frozen=True)
class Setting:
    """workers: processes. calls: at once in each. threads: of a call. batch: images, at most. wait_ms: for more."""

    workers: int
    calls: int
    threads: int
    batch: int
    wait_ms: int


@dataclass(frozen=True)
class Peer:
    """package: its name, on PyPI too. batches: (batch, wait_ms) to be tried. calls: whether one process makes several.

    grpc: whether it is asked by the Open Inference Protocol over gRPC.
    """

    package: str
    command: tuple[str, ...]
    batches: tuple[tuple[int, int], ...]
    calls: bool = False
    grpc: bool = False

    def settings(self, cores: int) -> list[Setting]:
        """All cores in one call, in a process each, and, where it does that, in several calls of one process."""
        places = [(1, 1, cores), (cores, 1, 1), *([(1, cores, 1)] if self.calls else [])]
        return [Setting(*place, *each) for each in self.batches for place in dict.fromkeys(places)]

    def target(self, home: Home, port: int) -> Target:
        images = [home.images[index].tobytes() for index in range(REQUESTS)]
        if self.grpc:
            asked = [infer_message("student", image) for image in images]
            return Target(self.package, port, connect_grpc, asked, raw_output)
        binary = {"Content-Type": "application/octet-stream"}
        asked = [request_bytes("/predict", image, headers=binary) for image in images]
        return Target(self.package, port, connect, asked, bytes)


WAITED = ((8, 20), (32, 5))
ADAPTED = ((8, 1000), (32, 1000))  # BentoML is told the longest that a request may take, and waits as it sees fit
PEERS = (
    Peer("mlserver", ("-m", "benchmarks.peers.mlserver_model"), WAITED, calls=True, grpc=True),
    Peer("litserve", ("-m", "benchmarks.peers.litserve_app"), WAITED),
    Peer("bentoml", ("-m", "bentoml", "serve", "benchmarks.peers.bento_service:StudentService"), ADAPTED),
)


@contextmanager
def running(peer: Peer, made: Environment, home: Home, setting: Setting) -> Iterator[Target]:
    """It is up and has answered. It ends with the block, and all its processes with it. Raises PeerFailed."""
    target = peer.target(home, free_port())
    with tempfile.TemporaryDirectory(prefix=f"winnow-{peer.package}-", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "served.onnx").write_bytes(home.files[SERVED])
        np.save(Path(folder) / "masks.npy", home.masks)
        told = Told(folder, target.port, **asdict(setting))
        log = Path(folder) / "log"
        process = _start([str(made.python), *peer.command], told, log)
        try:
            _wait(target, process, log)
            yield target
        finally:
            _end(process)


def _start(command: list[str], told: Told, log: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": told.folder,
        TOLD: json.dumps(asdict(told)),
    }
    try:
        with log.open("ab") as said:
            return subprocess.Popen(command, env=environment, cwd=told.folder, stdout=said, stderr=said)
    except OSError as error:
        raise PeerFailed(f"it could not be started: {error}") from error


def _wait(target: Target, process: subprocess.Popen[bytes], log: Path) -> None:
    until, said = time.monotonic() + STARTS_WITHIN_S, "nothing"
    while time.monotonic() < until:
        if process.poll() is not None:
            raise PeerFailed(f"it ended with {process.returncode}: {_tail(log)}")
        try:
            status, body = uvloop.run(ask_once(target, 10.0))
        except OSError as error:
            said = str(error)
        else:
            if status == 200:
                return
            said = f"{status} {body[:200]!r}"
        time.sleep(0.2)
    raise PeerFailed(f"it answered {said} for {STARTS_WITHIN_S:.0f} s: {_tail(log)}")


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """First as an operator would; then whatever it has left running, for that would be measured with the next."""
    family = _descendants(process.pid)
    process.terminate()
    try:
        process.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid, began in family.items():
        if _began(pid) == began:
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> dict[int, str]:
    """Processes below it, each with when it began: a number alone may be another's by and by."""
    parents = {int(each.name): _stat(int(each.name), 1) for each in Path("/proc").iterdir() if each.name.isdigit()}
    found, grew = {pid}, True
    while grew:
        more = {child for child, parent in parents.items() if parent and int(parent) in found} - found
        found, grew = found | more, bool(more)
    return {child: _began(child) for child in found - {pid}}


def _began(pid: int) -> str:
    return _stat(pid, 19)


def _stat(pid: int, field: int) -> str:
    """A field of /proc/PID/stat after the name; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[field]
    except OSError:
        return ""
