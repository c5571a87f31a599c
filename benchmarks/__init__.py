"""One script a claim: each prints a table and writes benchmarks/results/NAME.json."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded
