"""What every benchmark shares: rows of claims, the machine they were measured on, the table, the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class ClaimRow:
    """One claim: what was wanted, what was measured, with its 95 % interval where it has one."""

    claim: str
    wanted: str
    measured: float
    low: float | None
    high: float | None
    n: int | None
    unit: str
    holds: bool


def row(
    claim: str,
    wanted: str,
    measured: float,
    holds: bool,
    *,
    interval: tuple[float, float] | None = None,
    n: int | None = None,
    unit: str = "",
) -> ClaimRow:
    low, high = interval or (None, None)
    return ClaimRow(claim, wanted, float(measured), low, high, n, unit, bool(holds))


def quantile_bounds(values: npt.NDArray[np.float64], share: float) -> tuple[float, float]:
    """95 % by order statistics."""
    n, ordered = len(values), np.sort(values)
    spread = 1.96 * np.sqrt(n * share * (1 - share))
    low, high = (int(np.clip(n * share + sign * spread, 0, n - 1)) for sign in (-1, 1))
    return float(ordered[low]), float(ordered[high])


def machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": version("onnxruntime-gpu"),
    }


def command(module: str) -> str:
    """What was asked for; folders of this machine are called FOLDER, as the docs call them."""
    told = ["FOLDER" if Path(each).is_absolute() else each for each in sys.argv[1:]]
    return " ".join(["python", "-m", f"benchmarks.{module}", *told])


def report(name: str, rows: list[ClaimRow], seconds: float, *, quick: bool, extra: dict[str, Any]) -> int:
    """Print the table, write the file (unless quick), return the exit status: 0 where every claim holds."""
    print_table(rows)
    document = {
        "name": name,
        "command": command(name),
        "commit": commit(),
        "machine": machine(),
        "seconds": round(seconds, 1),
        "rows": [asdict(each) for each in rows],
        **extra,
    }
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(each.holds for each in rows) else 1


def one_of(parts: Collection[str]) -> Callable[[str], list[str]]:
    """Reads an option that names some of a benchmark's parts, with commas between."""

    def read(told: str) -> list[str]:
        names = told.split(",")
        if unknown := [name for name in names if name not in parts]:
            raise argparse.ArgumentTypeError(f"there is no part {unknown[0]!r}: take of {', '.join(parts)}")
        return names

    return read


def earlier(name: str, renewed: Collection[str]) -> tuple[list[ClaimRow], dict[str, Any]]:
    """What a benchmark's file has of the parts that are not run now: their rows, and what they told."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return [], {}
    document = json.loads(path.read_text())
    kept = {part: told for part, told in document["parts"].items() if part not in renewed}
    claims = {claim for told in kept.values() for claim in told["claims"]}
    return [ClaimRow(**each) for each in document["rows"] if each["claim"] in claims], kept


def print_table(rows: list[ClaimRow]) -> None:
    width = max(len(each.claim) for each in rows)
    for each in rows:
        interval = "" if each.low is None or each.high is None else f" [{each.low:.4f}, {each.high:.4f}]"
        count = "" if each.n is None else f" n={each.n}"
        mark = "holds" if each.holds else "FAILS"
        print(
            f"{each.claim:<{width}}  {each.measured:>10.4f}{interval}{count} {each.unit}  {mark}: wanted {each.wanted}"
        )


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    return found.stdout.strip()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
