"""One script a claim: each prints a table and writes benchmarks/results/NAME.json. Processes are set as a worker's."""

import os

from service.allocator import keep_pages

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded
keep_pages()
