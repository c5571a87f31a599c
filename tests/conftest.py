"""Set before anything imports torch: OpenMP threads that spin make tests ten times slower on a busy machine."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
