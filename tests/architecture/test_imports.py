"""The walls of the house: who may import whom, and what the gateway must never load."""

from __future__ import annotations

import subprocess
import sys


def test_the_gateway_and_the_command_line_load_no_torch() -> None:
    script = (
        "import sys, service.app, service.cli, service.client, service.embedded.stack; "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'worker', 'onnx')))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_worker_process_loads_no_torch_before_it_forks() -> None:
    script = "import sys, worker.app; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_import_contracts_hold() -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
