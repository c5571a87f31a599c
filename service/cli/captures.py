"""`winnow captures`: the sampled images that a model abstained on, for review."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from service.cli.outcome import Commands
from service.cli.show import print_json, results_console
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Look at images that a model abstained on.")

NameArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]


@app.command("list")
def list_captures(
    name: NameArgument,
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
    images: Annotated[
        Path | None, typer.Option(file_okay=False, help="Save the listed ones here, too, as PNG files.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")] = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List captured images, newest first."""
    with connect(home, url, key) as client:
        found = list(islice(client.captures.list(name), limit))
        if images is not None:
            images.mkdir(parents=True, exist_ok=True)
            for each in found:
                file = images / f"{each.segment.replace('/', '-')}-{each.index}.png"
                file.write_bytes(client.captures.image(name, each))
    if as_json:
        print_json([each.model_dump() for each in found])
        return
    table = Table("segment", "index", "at", "likeliest", "reason", "p-value", box=None, pad_edge=False)
    for each in found:
        label, reason = escape(each.label), escape(each.reason)
        table.add_row(each.segment, str(each.index), each.at[:16], label, reason, f"{each.p_value:.3f}")
    results_console().print(table)


@app.command()
def export(
    name: NameArgument,
    to: Annotated[Path, typer.Option("--to", dir_okay=False, help="npz file to write.")],
    most: Annotated[int | None, typer.Option(min=1, help="The newest so many. Default: 10,000.")] = None,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Save captured images as an npz that can be uploaded; its labels are what the model would have said."""
    with connect(home, url, key) as client:
        typer.echo(str(client.captures.export(name, to, most=most)))


@app.command()
def clear(name: NameArgument, home: HomeOption = DEFAULT_HOME, url: UrlOption = None, key: KeyOption = None) -> None:
    """Delete all captured images of a model."""
    with connect(home, url, key) as client:
        client.captures.clear(name)
    typer.echo(f"the captured images of {name} are deleted")
