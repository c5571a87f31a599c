"""How a command ends: exit codes, and errors said in words."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from service.client import CannotReach, ClientError, NotWinnow, ProblemError
from service.errors import WinnowError

DONE = 0
FAILED = 1  # the job failed or was cancelled, or the service refused
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130

EXIT_CODES = "Exit codes: 0 done; 1 the job failed or was refused; 2 wrong usage; 3 the service cannot be reached."


class Commands(TyperGroup):
    """Turns the errors a user can meet into a line on stderr and an exit code; any other stays loud."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (CannotReach, NotWinnow) as error:
            complain(str(error))
            raise typer.Exit(UNREACHABLE) from error
        except (ClientError, WinnowError) as error:
            complain(_told(error))
            raise typer.Exit(FAILED) from error


def complain(message: str) -> None:
    Console(stderr=True).print(f"winnow: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


def _told(error: ClientError | WinnowError) -> str:
    if not isinstance(error, ProblemError):
        return str(error)
    lines = [f"{error.detail} ({error.code})"]
    if hint := error.extra.get("hint"):
        lines.append(str(hint))
    faults = [_one_line(fault) for fault in error.extra.get("errors") or []]
    lines += [f"  {fault}" for fault in faults if fault not in error.detail]
    return "\n".join(lines)


def _one_line(fault: Any) -> str:
    return ": ".join(map(str, fault.values())) if isinstance(fault, dict) else str(fault)
