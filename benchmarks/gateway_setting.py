"""What the parts of the gateway's benchmark share: how large a run is, and a stack of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from service.client import WinnowClient
from service.embedded.running import RunningStack, running_stack
from service.embedded.state import read_state

GIB = 1024**3
MIB = 1024**2


@dataclass(frozen=True)
class Scale:
    """How large a run is."""

    upload_bytes: int
    uploads: int  # each beside the baseline
    disconnects: int
    ingests: int  # each beside the baseline
    images: int | None  # of the zip; None for all
    verdicts: int
    pages: int  # asked for, of each kind
    posts: int


FULL = Scale(10 * GIB, 3, 20, 3, None, 1_000_000, 300, 1000)
QUICK = Scale(GIB, 1, 20, 2, 10_000, 200_000, 50, 200)


@dataclass(frozen=True)
class Setting:
    """Where a run has its files, and how large it is."""

    folder: Path
    data: Path
    scale: Scale
    upload_bytes: int

    @contextmanager
    def stack(self, environment: Mapping[str, str] | None = None) -> Iterator[tuple[RunningStack, WinnowClient]]:
        """A new stack, and a client of it; its home goes with the block."""
        with (
            TemporaryDirectory(dir=self.folder, prefix="home-") as home,
            running_stack(Path(home), environment=environment) as stack,
            WinnowClient(stack.url, stack.key) as client,
        ):
            yield stack, client


def gateway_pid(stack: RunningStack) -> int:
    state = read_state(stack.home)
    if state is None:
        raise RuntimeError(f"no stack runs in {stack.home}")
    return state.parts["gateway"]


def cores() -> int:
    return len(os.sched_getaffinity(0))
