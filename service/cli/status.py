"""`winnow status`: does the service answer, and has it what it needs?"""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.follow import JsonOption
from service.cli.outcome import FAILED
from service.cli.show import print_json
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect


def status(
    metrics: Annotated[bool, typer.Option("--metrics", help="Print what Prometheus reads instead.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Tell whether the service is ready, and what it lacks; exit code 1 where it is not."""
    with connect(home, url, key) as client:
        if metrics:
            typer.echo(client.metrics(), nl=False)
            return
        found = client.ready()
    if as_json:
        print_json(found.model_dump())
    else:
        typer.echo(found.status)
        for part, problem in found.missing.items():
            typer.echo(f"  {part}: {problem}")
    if not found.ok:
        raise typer.Exit(FAILED)
