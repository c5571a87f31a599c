"""`python -m worker`: one Celery worker with one child, settings from the environment."""

from __future__ import annotations

import os
import socket
import sys

import structlog

from service.errors import WinnowError
from service.jobs.queue import QUEUES
from service.logs import configure_logs
from service.secrets import refuse_default_secrets
from worker.app import app, settings
from worker.gpus import see_one_gpu


def main() -> None:
    # Threads that spin while they wait slow a shared machine tenfold, for each waits for the one that was put aside.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when the child loads torch
    # Arrow's own allocator keeps what a job has freed: malloc gives large tables back to the system.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # read when the child loads pyarrow
    try:
        refuse_default_secrets(settings)
    except WinnowError as error:
        sys.exit(f"winnow worker: {error.message}")
    _choose_gpu()
    queues = ",".join(QUEUES[name] for name in settings.worker_queues.split(","))
    name = f"winnow@{socket.gethostname()}-{os.getpid()}"
    app.worker_main(
        [
            "worker",
            "--pool=prefork",
            "--concurrency=1",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            f"--queues={queues}",
            f"--hostname={name}",
            "--loglevel=INFO",
        ]
    )


def _choose_gpu() -> None:
    try:
        gpu = see_one_gpu(settings.gpu_locks, os.environ)
    except OSError as error:
        sys.exit(f"winnow worker: WINNOW_GPU_LOCKS: {error}")
    if gpu is not None:
        configure_logs(settings.log_level, part="worker")
        structlog.get_logger().info("gpu taken", gpu=gpu)


if __name__ == "__main__":
    main()
