"""`winnow audit`: who changed what, and whether the log of it is as it was written."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from service.cli.outcome import DONE, FAILED, Commands
from service.cli.show import print_json, results_console
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect
from service.client import Verification
from service.errors import NotFound

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Read the audit log, and check it.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]


@app.command("list")
def list_entries(
    action: Annotated[str | None, typer.Option(help="Only these, such as key.created.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 50,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List what was changed, newest first."""
    with connect(home, url, key) as client:
        found = list(islice(client.audit.entries(action=action), limit))
    if as_json:
        print_json([entry.model_dump() for entry in found])
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("entry", "at", "key", "action", "subject", "details"):
        table.add_column(heading, no_wrap=heading in ("at", "action"), overflow="fold")
    for entry in found:
        table.add_row(
            str(entry.seq), *map(escape, (entry.at[:19], entry.actor, entry.action, entry.subject, entry.details))
        )
    results_console().print(table)


@app.command("verify")
def verify_log(
    expect: Annotated[
        str | None, typer.Option(metavar="SEQ:HASH", help="A head noted before; the log must still hold that entry.")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: Annotated[
        str | None, typer.Option("--url", help="Have the service there do it. Default: read the home's database.")
    ] = None,
    key: KeyOption = None,
) -> None:
    """Check every hash of the log. Exit code 1 where an entry was changed, moved, added or removed."""
    if url is not None:
        with connect(home, url, key) as client:
            found = client.audit.verify(expect=expect)
    else:
        found = _verify_in(home, expect)
    if as_json:
        print_json(found.model_dump())
    else:
        typer.echo(f"intact: {found.head}" if found.intact else f"NOT intact: {found.fault}")
        typer.echo(f"{found.entries} sound entries" + ("" if found.intact else f", up to {found.head}"))
    raise typer.Exit(DONE if found.intact else FAILED)


def _verify_in(home: Path, expect: str | None) -> Verification:
    """Without the service, which need not run."""
    from sqlalchemy import inspect

    from service.audit import Head, verify
    from service.db import Database
    from service.settings import Settings

    noted = None if expect is None else Head.parse(expect)
    settings = Settings(home=home).resolved()
    file = settings.database_url.removeprefix("sqlite:///")
    if settings.database_url != file and not Path(file).exists():
        raise NotFound(f"There is no database {file}. Name the home with --home, or a service with --url.")
    database = Database.open(settings.database_url)
    try:
        if not inspect(database.engine).has_table("audit_log"):
            raise NotFound("The database has no audit log yet: start this version of the service once.")
        with database.session() as session:
            told = verify(session, noted)
    finally:
        database.close()
    return Verification(intact=told.intact, entries=told.entries, head=str(told.head), fault=told.fault)
