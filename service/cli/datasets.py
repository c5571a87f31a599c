"""`winnow datasets`: what has been uploaded and made, image by image, and what is to go."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from service.cli.outcome import Commands
from service.cli.show import print_json, results_console, show_record
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect

app = typer.Typer(cls=Commands, no_args_is_help=True, help="List, look into and delete versions of data sets.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
ReferenceArgument = Annotated[str, typer.Argument(metavar="DATASET", help="Dataset version, such as signs@1.")]


@app.command("list")
def list_versions(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only versions of this name.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List versions."""
    with connect(home, url, key) as client:
        found = list(client.datasets(name))
    if as_json:
        print_json([each.model_dump() for each in found])
        return
    table = Table("version", "images", "classes", "shape", "made of", box=None, pad_edge=False)
    for each in found:
        shape = "×".join(map(str, each.image_shape))
        table.add_row(each.reference, str(each.num_samples), str(len(each.classes)), shape, each.parent or "")
    results_console().print(table)


@app.command()
def show(
    dataset: ReferenceArgument,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show all there is to know of one version."""
    with connect(home, url, key) as client:
        found = client.dataset(dataset)
    if as_json:
        print_json(found.model_dump())
    else:
        show_record(results_console(), found.model_dump())


@app.command()
def samples(
    dataset: ReferenceArgument,
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List a version's images."""
    with connect(home, url, key) as client:
        found = list(islice(client.samples(dataset), limit))
    if as_json:
        print_json([each.model_dump() for each in found])
        return
    table = Table("index", "label", "path", box=None, pad_edge=False)
    for each in found:
        table.add_row(str(each.index), escape(each.label), escape(each.path))
    results_console().print(table)


@app.command()
def image(
    dataset: ReferenceArgument,
    index: Annotated[int, typer.Argument(min=0, help="Of the image, as samples lists it.")],
    to: Annotated[Path, typer.Option("--to", dir_okay=False, help="PNG file to write.")],
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Save one image as PNG, as training sees it."""
    with connect(home, url, key) as client:
        to.write_bytes(client.sample_image(dataset, index))
    typer.echo(str(to))


@app.command()
def delete(
    dataset: ReferenceArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Delete a version's images for good; what was made of them stays."""
    if not yes:
        typer.confirm(f"Delete the images of {dataset} for good?", abort=True)
    with connect(home, url, key) as client:
        typer.echo(f"{client.delete_dataset(dataset).reference} is deleted")
