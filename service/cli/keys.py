"""`winnow keys`: who may call the service, and what."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.cli.outcome import Commands
from service.cli.show import print_json, results_console
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect
from service.client import IssuedKey, Key
from service.scopes import Scope

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Make, list, revoke and rotate API keys.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, as 'winnow keys list' shows it.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is called in lists and in the audit log.")],
    scope: Annotated[list[Scope], typer.Option("--scope", "-s", help="What it may do; as often as needed.")],
    days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Days until it expires. Default: it does not.")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Make a key. Its text goes to stdout, this once, and nothing else does."""
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    with connect(home, url, key) as client:
        _tell(client.keys.create(name, [each.value for each in scope], expires_at=expires_at), as_json=as_json)


@app.command("list")
def list_keys(
    all: Annotated[bool, typer.Option("--all", help="Revoked and expired ones too.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List the keys, oldest first."""
    with connect(home, url, key) as client:
        found = [each for each in client.keys.list() if all or _ended(each) is None]
    if as_json:
        print_json([each.model_dump() for each in found])
    else:
        results_console().print(_table(found))


@app.command()
def revoke(
    key_id: KeyArgument,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """End a key at once."""
    with connect(home, url, key) as client:
        revoked = client.keys.revoke(key_id)
    if as_json:
        print_json(revoked.model_dump())
    else:
        typer.echo(f"{revoked.id} ({revoked.name}) is revoked.")


@app.command()
def rotate(
    key_id: KeyArgument,
    grace_hours: Annotated[
        float, typer.Option(min=0, max=720, help="Hours for which the present text counts beside the new one.")
    ] = 1.0,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Give a key a new text. It goes to stdout, this once, and nothing else does."""
    with connect(home, url, key) as client:
        _tell(client.keys.rotate(key_id, grace_seconds=round(grace_hours * 3600)), as_json=as_json)


def _tell(issued: IssuedKey, *, as_json: bool) -> None:
    if as_json:
        print_json(issued.model_dump())
        return
    until = f", until {issued.expires_at}" if issued.expires_at else ""
    about = f"key {issued.id} ({issued.name}) may {', '.join(issued.scopes)}{until}; this is the only time it is shown:"
    Console(stderr=True).print(about, markup=False, highlight=False, soft_wrap=True)
    typer.echo(issued.secret)


def _ended(key: Key) -> str | None:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and datetime.fromisoformat(key.expires_at) <= datetime.now(UTC):
        return "expired"
    return None


def _table(keys: Iterable[Key]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("key", "name", "begins", "scopes", "created", "last used", "expires", ""):
        table.add_column(heading, no_wrap=heading in ("key", "begins"))
    for key in keys:
        times = [(moment or "")[:16] for moment in (key.created_at, key.last_used_at, key.expires_at)]
        table.add_row(key.id, key.name, f"{key.prefix}…", ", ".join(key.scopes), *times, _ended(key) or "")
    return table
