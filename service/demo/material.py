"""The demo's images, made by `worker.demo` in a process of its own: its attacker needs torch, which service has not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from service.errors import Unavailable


@dataclass(frozen=True)
class Material:
    """Files to upload and to ask about, and what only the demo knows of them."""

    folder: Path
    poisoned: Mapping[str, str]  # path in the candidate zip -> attack
    test_labels: Sequence[int]
    counts: Mapping[str, int]
    eps_linf: float
    attacker_accuracy: Mapping[str, float]

    @property
    def trusted(self) -> Path:
        return self.folder / "trusted.zip"

    @property
    def candidate(self) -> Path:
        return self.folder / "candidate.zip"

    @property
    def test(self) -> Path:
        return self.folder / "test.zip"

    def images(self, kind: str) -> bytes:
        """The npz of `clean`, `attacked` or `foreign` images."""
        return (self.folder / f"{kind}.npz").read_bytes()


class MaterialInTheMaking:
    """Makes the images while the stack starts. As a context manager it leaves no process behind."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._log = folder / "making.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", "worker.demo", str(folder), "--seed", str(seed)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def wait(self) -> Material:
        """Raises Unavailable (`demo_images`) where they could not be made."""
        if self._process.wait() != 0:
            tail = self._log.read_text(errors="replace")[-1500:]
            raise Unavailable(f"The demo's images could not be made:\n{tail}", code="demo_images")
        told = json.loads((self._folder / "truth.json").read_text())
        return Material(folder=self._folder, **told)
