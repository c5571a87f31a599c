"""`winnow models`: what is served, which version an alias means, and bundles as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from service.cli.outcome import FAILED, Commands
from service.cli.show import print_json, results_console, show_record
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect

app = typer.Typer(cls=Commands, no_args_is_help=True, help="List, watch and promote models, move bundles as files.")

ReferenceArgument = Annotated[str, typer.Argument(metavar="MODEL", help="name@version, name:alias, or name.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]


@app.command("list")
def list_models(
    as_json: JsonOption = False, home: HomeOption = DEFAULT_HOME, url: UrlOption = None, key: KeyOption = None
) -> None:
    """List the models, each by the version that answers to its bare name."""
    with connect(home, url, key) as client:
        found = list(client.models())
    if as_json:
        print_json([each.model_dump() for each in found])
        return
    table = Table("model", "answers to its name", "aliases")
    for each in found:
        aliases = (f"{alias} → {version}" for alias, version in each.aliases.items())
        table.add_row(each.name, each.model, ", ".join(aliases))
    results_console().print(table)


@app.command()
def promote(
    name: NameArgument,
    version: Annotated[int, typer.Argument(min=1, help="The version that is to answer; an earlier one rolls back.")],
    alias: Annotated[str, typer.Option(help="The alias that moves; champion answers to the bare name.")] = "champion",
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Let a version answer to an alias; it is loaded and tried first."""
    with connect(home, url, key) as client:
        typer.echo(client.set_alias(name, alias, version).model)


@app.command()
def export(
    model: ReferenceArgument,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="Where the bundle goes.")],
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Save a version's bundle as one file."""
    with connect(home, url, key) as client:
        typer.echo(str(client.bundles.export(model, to)))


@app.command("import")
def import_bundle(
    name: NameArgument,
    bundle: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What export wrote.")],
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Make an exported bundle the next version of a model."""
    with connect(home, url, key) as client:
        typer.echo(client.bundles.bring(name, bundle))


@app.command()
def show(
    model: ReferenceArgument,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show a version's card, and whether it is in memory."""
    with connect(home, url, key) as client:
        found = client.model(model)
        told = {**found.model_dump(), "in_memory": client.inference.in_memory(found.model)}
    if as_json:
        print_json(told)
    else:
        show_record(results_console(), told)


@app.command()
def drift(
    model: ReferenceArgument,
    reset: Annotated[bool, typer.Option("--reset", help="Begin the watch anew, after a look into an alarm.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Tell whether live traffic still looks like what a version was calibrated on; exit code 1 on an alarm."""
    with connect(home, url, key) as client:
        found = client.drift.reset(model) if reset else client.drift.get(model)
    if as_json:
        print_json(found.model_dump())
    else:
        show_record(results_console(), found.model_dump())
    if found.alarm:
        raise typer.Exit(FAILED)


@app.command()
def load(
    model: ReferenceArgument, home: HomeOption = DEFAULT_HOME, url: UrlOption = None, key: KeyOption = None
) -> None:
    """Bring a version into memory now, before it is asked."""
    with connect(home, url, key) as client:
        client.inference.load(model)
    typer.echo(f"{model} is in memory")


@app.command()
def unload(name: NameArgument, home: HomeOption = DEFAULT_HOME, url: UrlOption = None, key: KeyOption = None) -> None:
    """Let all versions of a name go from memory; they are loaded again when they are asked."""
    with connect(home, url, key) as client:
        client.inference.unload(name)
    typer.echo(f"{name} is not in memory")
