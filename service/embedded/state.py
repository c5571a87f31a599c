"""`winnow.json` in a home: who runs the stack there and where it listens. Written atomically, read by the CLI."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import orjson


@dataclass(frozen=True)
class StackState:
    """What a running stack tells the world about itself."""

    pid: int  # of the supervisor
    port: int
    url: str
    started_at: str  # ISO 8601, UTC
    parts: Mapping[str, int] = field(default_factory=dict)  # name -> pid, of the parts alive at the time of writing


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def state_path(home: Path) -> Path:
    return home / "winnow.json"


def write_state(home: Path, state: StackState) -> None:
    """Replace the state file in one step; a reader sees the old one or the new one."""
    handle, name = tempfile.mkstemp(dir=home, prefix=".winnow.json.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(orjson.dumps(asdict(state), option=orjson.OPT_INDENT_2))
        temporary.replace(state_path(home))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_state(home: Path) -> StackState | None:
    """The state of the stack in `home`, or None where none was left or it cannot be read as one."""
    try:
        told = orjson.loads(state_path(home).read_bytes())
        return StackState(
            pid=int(told["pid"]),
            port=int(told["port"]),
            url=str(told["url"]),
            started_at=str(told["started_at"]),
            parts={str(name): int(pid) for name, pid in told["parts"].items()},
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def forget_state(home: Path) -> None:
    state_path(home).unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this id exists (it may be another's: then it counts as alive too)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
