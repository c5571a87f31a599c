"""Set before anything imports torch: OpenMP threads that spin make tests ten times slower on a busy machine."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1") != "1":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores
