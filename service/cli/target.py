"""Which service a command talks to: what was given, else the embedded stack of the home."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.client import CannotReach, WinnowClient
from service.embedded.state import read_state

DEFAULT_HOME = Path("~/.winnow")

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="WINNOW_HOME", help="Folder of the embedded stack.", show_default=True)
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="WINNOW_URL", help="Address of the service; default: the stack that runs in the home."
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", envvar="WINNOW_KEY", help="API key; default: admin.key in the home.", show_envvar=True),
]


def connect(home: Path, url: str | None, key: str | None) -> WinnowClient:
    """A client of the service at `url`, or of the stack in `home`. Raises CannotReach where neither is to be found."""
    home = home.expanduser()
    return WinnowClient(url or _url_of_stack(home), key or _key_of(home))


def _url_of_stack(home: Path) -> str:
    state = read_state(home)
    if state is None:
        raise CannotReach(
            f"No stack runs in {home}. Start one with 'winnow up', or name another service with --url (and --key)."
        )
    return state.url


def _key_of(home: Path) -> str:
    path = home / "admin.key"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise CannotReach(f"No API key: give one with --key or WINNOW_KEY ({path}: {error.strerror}).") from error
