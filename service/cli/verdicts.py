"""`winnow verdicts`: what a sanitise job decided about every image, as a list or as a file."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from service.cli.follow import JsonOption
from service.cli.show import print_json, results_console
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect


def verdicts(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="A sanitise or harden job that succeeded.")],
    index: Annotated[int | None, typer.Argument(min=0, help="One image, with every decision about it.")] = None,
    verdict: Annotated[str | None, typer.Option(help="Only keep, reform or quarantine.")] = None,
    label: Annotated[str | None, typer.Option(help="Only images of this class.")] = None,
    sort: Annotated[str, typer.Option(help="index, p_value, path, label or score.NAME; -NAME reverses.")] = "p_value",
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
    to: Annotated[Path | None, typer.Option("--to", help="Save all of them here instead (.csv or .parquet).")] = None,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List verdicts, the oddest images first, or save them all."""
    with connect(home, url, key) as client:
        if to is not None:
            to.write_bytes(client.verdict_table(job_id, "parquet" if to.suffix == ".parquet" else "csv"))
            typer.echo(str(to))
            return
        if index is not None:
            print_json(client.verdict(job_id, index).model_dump())
            return
        found = list(islice(client.verdicts(job_id, verdict=verdict, label=label, sort=sort), limit))
    if as_json:
        print_json([row.model_dump() for row in found])
        return
    table = Table("index", "verdict", "p-value", "label", "path", "reasons", "decided", box=None, pad_edge=False)
    for row in found:
        decided = (row.override or {}).get("verdict") or ""
        p_value = "" if row.p_value is None else f"{row.p_value:.4f}"
        cells = (row.verdict, p_value, str(row.label), row.path, ", ".join(row.reasons), decided)
        table.add_row(str(row.index), *map(escape, cells))
    results_console().print(table)
