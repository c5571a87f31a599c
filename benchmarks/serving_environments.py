"""A virtual environment for each peer: made when first asked for, outside of the repository, known by its pins."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

PINS = Path(__file__).parent / "peers"
TOLD_BY = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"


class PeerFailed(Exception):
    """A peer that cannot be measured; says why."""


@dataclass(frozen=True)
class Environment:
    python: Path
    versions: dict[str, str]


def default_cache() -> Path:
    own = os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path.home() / ".cache") / "winnow-benchmarks"


def environment(package: str, cache: Path) -> Environment:
    """With the versions in peers/PACKAGE.txt, and ONNX Runtime at Winnow's version where that can be had.

    Raises PeerFailed.
    """
    pins = PINS / f"{package}.txt"
    known_by = f"{pins.read_text()} {onnxruntime.__version__} {platform.python_version()}"
    folder = cache / f"{package}-{hashlib.sha256(known_by.encode()).hexdigest()[:12]}"
    python, whole = folder / "bin" / "python", folder / "versions.json"
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        _install(python, package, pins)
        whole.write_text(_run([str(python), "-c", TOLD_BY, package, "onnxruntime"]))
    return Environment(python, json.loads(whole.read_text()))


def _install(python: Path, package: str, pins: Path) -> None:
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(pins), package]
    try:
        _run([*pip, f"onnxruntime=={onnxruntime.__version__}"])
    except PeerFailed as error:
        print(f"{package} with ONNX Runtime {onnxruntime.__version__}: {error}; trying another", flush=True)
        _run([*pip, "onnxruntime"])


def _run(command: list[str]) -> str:
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        errors = [line for line in found.stderr.splitlines() if line.startswith("ERROR:")]
        raise PeerFailed(errors[0] if errors else f"{' '.join(command)} ended with {found.returncode}")
    return found.stdout
