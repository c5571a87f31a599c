"""`make test-compose`: builds the images, starts the cluster, does the main job with two workers, kills one of them.

COMPOSE names the engine's compose command (default: docker compose); what comes before "compose" is the engine itself.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from service.client import Job, WinnowClient
from tests.integration.conftest import FAST_DISTILL, FAST_EVALUATE, FAST_FILTER, digits_16
from tests.parts import free_port

ROOT = Path(__file__).parents[2]
COMPOSE = shlex.split(os.environ.get("COMPOSE", "docker compose"))
ENGINE = shlex.split(os.environ.get("ENGINE", "")) or COMPOSE[: COMPOSE.index("compose")]
FILES = ["docker-compose.yml", "docker/compose.cpu.yml", "docker/compose.test.yml"]
PROJECT = "winnow-test"
BUILT = ["storage", "gateway", "worker-cpu"]  # the image of worker-gpu is that of worker-cpu
SERVICES = ["postgres", "redis", "storage", "gateway", "worker-cpu"]
READY_S = 240.0
LONG_ENOUGH = {**FAST_FILTER, "filter": {"width": 16, "fit": {"epochs": 8}}}  # to be killed in the middle of


class Cluster:
    """The file as it stands, in a project of its own, with secrets of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        made = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY")
        self._env = {**os.environ, "WINNOW_PORT": str(self.port)}
        self._env |= {f"WINNOW_{name}": secrets.token_hex(12) for name in made}

    def compose(self, *arguments: str, env: dict[str, str] | None = None, check: bool = True) -> str:
        files = [part for file in FILES for part in ("-f", file)]
        command = [*COMPOSE, *files, "-p", PROJECT, *arguments]
        done = subprocess.run(command, cwd=ROOT, env={**self._env, **(env or {})}, capture_output=True, text=True)
        if check and done.returncode != 0:
            raise RuntimeError(
                f"{shlex.join(command)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            )
        return done.stdout

    def clear(self) -> None:
        """Nothing of the project is left. Not every engine's `down` knows the containers that --scale has made."""
        mine = f"label=com.docker.compose.project={PROJECT}"
        listed = subprocess.run([*ENGINE, "ps", "--all", "--quiet", "--filter", mine], capture_output=True, text=True)
        if made := listed.stdout.split():
            subprocess.run([*ENGINE, "rm", "--force", *made], capture_output=True)
        self.compose("down", "--volumes", "--timeout", "5", check=False)
        volumes = subprocess.run([*ENGINE, "volume", "ls", "--quiet"], capture_output=True, text=True).stdout.split()
        left = [name for name in volumes if name.startswith(f"{PROJECT}_")]
        if left:
            raise RuntimeError(f"volumes of {PROJECT} cannot be removed: {', '.join(left)}")

    def inside(self, *command: str) -> str:
        return self.compose("exec", "-T", "gateway", *command)

    def doctor(self) -> dict[str, dict[str, Any]]:
        told = self.compose("exec", "-T", "gateway", "winnow", "doctor", "--json", check=False)
        return {finding["part"]: finding for finding in json.loads(told[told.index("[") :])}


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def main() -> None:
    cluster = Cluster()
    cluster.clear()  # what a run that was itself killed has left, with secrets of its own
    try:
        run(cluster)
    except BaseException:
        print(cluster.compose("logs", "--tail", "30", check=False), file=sys.stderr)
        raise
    finally:
        cluster.clear()
        say("taken down")


def run(cluster: Cluster) -> None:
    say("building")
    cluster.compose("build", *BUILT)
    refuse_placeholders(cluster)
    cluster.compose("up", "--detach", "--scale", "worker-cpu=2", *SERVICES)
    wait_until_ready(cluster)
    key = cluster.inside("cat", "/data/admin.key").strip()
    with WinnowClient(f"http://127.0.0.1:{cluster.port}", key) as client:
        main_job(cluster, client)
    no_torch = "import importlib.util as u; print(u.find_spec('torch'))"
    assert cluster.inside("python", "-c", no_torch).strip() == "None", "the gateway's image holds torch"
    assert cluster.inside("id", "-u").strip() == "10001", "the gateway runs as root"
    say("the gateway holds no torch and is not root")


def refuse_placeholders(cluster: Cluster) -> None:
    """A gateway whose secret was left as the example has it does not start."""
    placeholder = {"WINNOW_POSTGRES_PASSWORD": "change-me"}
    command = ["run", "--rm", "--no-deps", "gateway", "python", "-m", "service.prepare"]
    try:
        cluster.compose(*command, env=placeholder)
    except RuntimeError as refused:
        assert "default_secret" in str(refused), refused
        say("a secret left at its default was refused")
        return
    raise AssertionError("a gateway started with a secret left at its default")


def wait_until_ready(cluster: Cluster) -> None:
    deadline = time.monotonic() + READY_S
    seen = "nothing yet"
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"http://127.0.0.1:{cluster.port}/readyz", timeout=5)
            seen = answer.text
            if answer.status_code == 200 and cluster.doctor()["workers"]["says"].startswith("2 alive"):
                break
        except (httpx.HTTPError, ValueError, RuntimeError) as error:
            seen = str(error)
        time.sleep(1)
    else:
        raise TimeoutError(f"the cluster did not get ready: {seen}")
    for part, finding in cluster.doctor().items():
        say(f"doctor: {part}: {finding['state']}: {finding['says']}")
        assert finding["state"] != "broken", finding


def main_job(cluster: Cluster, client: WinnowClient) -> None:
    images, labels = digits_16()
    parts = {"trusted": slice(0, 240), "signs": slice(240, 640), "test": slice(640, 840)}
    jobs = {name: client.upload_dataset(name, npz(images[rows], labels[rows])) for name, rows in parts.items()}
    sets = {name: finished(client, job.id)["dataset"] for name, job in jobs.items()}
    say(f"ingested {', '.join(sets.values())}")
    params = {"sanitise": LONG_ENOUGH, "distill": FAST_DISTILL, "evaluate": FAST_EVALUATE}
    job = client.submit(
        "harden",
        dataset=sets["signs"],
        reference=sets["trusted"],
        evaluate_on=sets["test"],
        model="digits",
        params=params,
    )
    step = running_step(client, job.id)
    owner = claimed_by(cluster, step)
    subprocess.run([*ENGINE, "kill", owner], check=True, capture_output=True)
    killed_at = time.monotonic()
    say(f"killed the worker {owner} in the middle of {step}")
    while client.job(step).attempt < 2:
        assert time.monotonic() - killed_at < 30, "the other worker did not take the job over"
        time.sleep(0.1)
    say(f"the other worker took over after {time.monotonic() - killed_at:.1f} s")
    result = finished(client, job.id)
    assert client.job(step).attempt == 2 and sum(result["counts"].values()) == 400
    answers = client.predict(result["model"], npz(images[840:850]).getvalue()).predictions
    say(f"harden ended: {result['counts']}; {result['model']} answered {[answer.label for answer in answers]}")


def running_step(client: WinnowClient, job_id: str) -> str:
    """The sanitise step of a harden job, once it has begun to fit."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for job in client.jobs(type="sanitise", state="running"):
            if job.progress.phase == "denoiser":
                return job.id
        time.sleep(0.1)
    raise TimeoutError(f"no step of {job_id} began to fit: {client.job(job_id)}")


def claimed_by(cluster: Cluster, job_id: str) -> str:
    script = (
        "from service.db import Database; from service.settings import Settings; from service.tables import Job\n"
        "with Database.open(Settings.from_env().database_url).session() as session:\n"
        f"    print(session.get(Job, '{job_id}').worker.rpartition(':')[0])"
    )
    return cluster.inside("python", "-c", script).strip()


def finished(client: WinnowClient, job_id: str) -> dict[str, Any]:
    done: Job = client.wait(job_id, timeout_s=600)
    assert done.state == "succeeded" and done.result is not None, done.error
    return done.result


def npz(images: Any, labels: Any = None) -> io.BytesIO:
    buffer = io.BytesIO()
    np.savez(buffer, images=images, **({} if labels is None else {"labels": labels}))
    buffer.seek(0)
    return buffer


if __name__ == "__main__":
    main()
