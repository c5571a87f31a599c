"""`python -m worker`: one Celery worker with one child, settings from the environment."""

from __future__ import annotations

import os
import socket

from service.jobs.queue import QUEUE
from worker.app import app


def main() -> None:
    # Threads that spin while they wait slow a shared machine tenfold, for each waits for the one that was put aside.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when the child loads torch
    name = f"winnow@{socket.gethostname()}-{os.getpid()}"
    app.worker_main(
        [
            "worker",
            "--pool=prefork",
            "--concurrency=1",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            f"--queues={QUEUE}",
            f"--hostname={name}",
            "--loglevel=INFO",
        ]
    )


if __name__ == "__main__":
    main()
