"""`winnow uploads`: resumable uploads under way, and how to give them up."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from service.cli.outcome import Commands
from service.cli.show import print_json, results_console
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect

app = typer.Typer(cls=Commands, no_args_is_help=True, help="List and end resumable uploads.")


@app.command("list")
def list_uploads(
    state: Annotated[str | None, typer.Option(help="open, finished or expired.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")] = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List uploads, and how much of each has arrived."""
    with connect(home, url, key) as client:
        found = list(client.uploads.list(state=state))
    if as_json:
        print_json([each.model_dump() for each in found])
        return
    table = Table("upload", "dataset", "state", "arrived", "of", "job", box=None, pad_edge=False)
    for each in found:
        name = escape(each.metadata.get("name", ""))
        table.add_row(each.id, name, each.state, str(each.received), str(each.length), each.job_id or "")
    results_console().print(table)


@app.command()
def end(
    upload: Annotated[str, typer.Argument(metavar="UPLOAD", help="As list names it.")],
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Give up an upload that is not whole; what has arrived of it is deleted."""
    with connect(home, url, key) as client:
        client.uploads.end(upload)
    typer.echo(f"{upload} is ended")
