"""`winnow doctor`, `gc`, `backup`, `restore`: for whoever runs the installation, with its settings and not the API."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from service.cli.outcome import DONE, FAILED
from service.cli.show import print_json
from service.cli.target import DEFAULT_HOME, HomeOption
from service.errors import InvalidInput
from service.settings import Settings
from service.storage import LocalStorage, Storage, open_storage

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
PlaceArgument = Annotated[str, typer.Argument(metavar="PLACE", help="A folder, or s3://bucket/prefix.")]
SIGNS = {"well": "ok  ", "warning": "look", "broken": "FAIL"}


def doctor(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Look the installation over, part by part, and say what to mend. Exit code 1 where a part is broken."""
    from service.upkeep.doctor import State, look_over

    findings = []
    for finding in look_over(_settings(home)):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{SIGNS[finding.state]}  {finding.part:13} {finding.says}")
            if finding.mend:
                typer.echo(f"{'':19} → {finding.mend}")
    if as_json:
        print_json([asdict(finding) for finding in findings])
    raise typer.Exit(FAILED if any(finding.state == State.BROKEN for finding in findings) else DONE)


def gc(
    home: HomeOption = DEFAULT_HOME,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove from storage what nothing refers to: of attempts that came to nothing, of jobs that failed long ago."""
    from service.db import Database
    from service.upkeep.garbage import collect

    settings = _settings(home)
    database = Database.open(settings.database_url)
    try:
        found = collect(database, open_storage(settings), settings, dry_run=dry_run)
    finally:
        database.close()
    if as_json:
        print_json([{**asdict(unit), "newest": str(unit.newest)} for unit in found])
        return
    for unit in found:
        typer.echo(f"{unit.size:>14}  {unit.prefix}  ({unit.why})")
    size, values = sum(unit.size for unit in found), sum(unit.values for unit in found)
    typer.echo(f"{size:>14}  bytes in {values} values {'would be' if dry_run else 'were'} removed")


def backup(place: PlaceArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Copy database and storage to PLACE while everything runs; again to the same place copies only what is new."""
    from service.db import Database
    from service.upkeep.backup import back_up

    settings = _settings(home)
    database = Database.open(settings.database_url)
    try:
        done = back_up(database, open_storage(settings), _place(place, settings), typer.echo)
    finally:
        database.close()
    typer.echo(f"{done.values} values, {done.size} bytes; {done.kept} of them were there already")


def restore(place: PlaceArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Fill an empty database and storage from a backup, of the same kind or of the other."""
    from service.upkeep.backup import restore as restore_from

    settings = _settings(home)
    done = restore_from(settings, open_storage(settings), _place(place, settings), typer.echo)
    typer.echo(f"{done.rows} rows, {done.values} values, {done.size} bytes restored")


def add_to(app: typer.Typer) -> None:
    for command in (doctor, gc, backup, restore):
        app.command()(command)


def _settings(home: Path) -> Settings:
    return Settings(home=home).resolved()


def _place(place: str, settings: Settings) -> Storage:
    if not place.startswith("s3://"):
        return LocalStorage(Path(place).expanduser())
    if place.rstrip("/") == settings.storage_url.rstrip("/"):
        raise InvalidInput("A backup cannot lie where the storage itself is.", code="bad_storage_url")
    return open_storage(settings.model_copy(update={"storage_url": place}))
