"""`winnow review`: a person's decisions about the verdicts of a sanitise job, and the version that they make."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.cli.follow import JsonOption, NoWaitOption, follow
from service.cli.show import print_json, results_console
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect
from service.client import Verdict, WinnowClient

MOST_INDICES = 1_000_000
CRITERIA = ("verdict", "reason", "label", "p_value_below")


class Then(StrEnum):
    """What to decide about the images that --where means."""

    KEEP = "keep"
    QUARANTINE = "quarantine"
    TAKE_BACK = "take-back"


def review(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="A sanitise or harden job that succeeded.")],
    keep: Annotated[list[str] | None, typer.Option(metavar="INDICES", help="Keep these: 3,17,20-29.")] = None,
    quarantine: Annotated[list[str] | None, typer.Option(metavar="INDICES", help="Quarantine these.")] = None,
    take_back: Annotated[list[str] | None, typer.Option(metavar="INDICES", help="Take back what was decided.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help=f"Many at once, by {', '.join(CRITERIA)}; all that is given must hold."
        ),
    ] = None,
    then: Annotated[Then | None, typer.Option(help="What to decide about those that --where means.")] = None,
    note: Annotated[str | None, typer.Option(help="Why; kept with the decision.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Make the version that the decisions come to.")] = False,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Decide on verdicts, or list what was decided; with --apply, make the reviewed version."""
    wanted = _wanted(keep, quarantine, take_back, where, then)
    with connect(home, url, key) as client:
        made = [
            {"verdict": verdict, "images": client.decide(job_id, verdict, meant, note=note)}
            for verdict, meant in wanted
        ]
        if apply:
            _tell(Console(stderr=True), made)
            follow(client, client.review(job_id), no_wait=no_wait, as_json=as_json)
        elif not wanted:
            _list(client, job_id, as_json=as_json)
        elif as_json:
            print_json(made)
        else:
            _tell(results_console(), made)


def parse_indices(given: Sequence[str]) -> list[int]:
    """`["3,17", "20-22"]` is 3, 17, 20, 21, 22."""
    indices: list[int] = []
    for part in ",".join(given).split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else not last)):
            raise typer.BadParameter(f"{part!r} is not an index or a range of them: write 3,17 or 20-29.")
        start, end = int(first), int(last or first) + 1
        if len(indices) + end - start > MOST_INDICES:
            raise typer.BadParameter(
                f"Name at most {MOST_INDICES} images at once, or say what they share with --where."
            )
        indices += range(start, end)
    return indices


def parse_where(given: Sequence[str]) -> dict[str, Any]:
    """`["reason=label_loss"]` as the API takes it."""
    told: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in CRITERIA or name in told:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE with a NAME, once, out of {', '.join(CRITERIA)}.")
        try:
            told[name] = float(value) if name == "p_value_below" else value
        except ValueError as error:
            raise typer.BadParameter(f"{text!r}: {value!r} is no number.") from error
    return told


def _wanted(
    keep: Sequence[str] | None,
    quarantine: Sequence[str] | None,
    take_back: Sequence[str] | None,
    where: Sequence[str] | None,
    then: Then | None,
) -> list[tuple[str | None, dict[str, Any]]]:
    """(verdict, which images) in the order in which they are decided: the selection first, what is named last."""
    if bool(where) != (then is not None):
        raise typer.BadParameter("--where says which images and --then what to decide about them: give both.")
    wanted: list[tuple[str | None, dict[str, Any]]] = []
    if where and then is not None:
        wanted.append((None if then == Then.TAKE_BACK else then.value, parse_where(where)))
    for verdict, indices in (("keep", keep), ("quarantine", quarantine), (None, take_back)):
        if indices:
            wanted.append((verdict, {"indices": parse_indices(indices)}))
    return wanted


def _tell(console: Console, made: Sequence[dict[str, Any]]) -> None:
    for each in made:
        console.print(f"{each['verdict'] or 'taken back'}: {each['images']} images", highlight=False)


def _list(client: WinnowClient, job_id: str, *, as_json: bool) -> None:
    found = list(client.verdicts(job_id, overridden=True))
    if as_json:
        print_json([row.model_dump() for row in found])
        return
    console = results_console()
    if not found:
        console.print("Nobody has decided on an image of this job.")
        return
    console.print(_table(found))


def _table(found: Sequence[Verdict]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("index", "path", "label", "Winnow", "decided", "by", "at", "note"):
        table.add_column(heading)
    for row in found:
        said = row.override or {}
        cells = (
            row.path,
            str(row.label),
            row.verdict,
            said["verdict"],
            said["by"],
            said["at"][:16],
            said["note"] or "",
        )
        table.add_row(str(row.index), *map(escape, cells))
    return table
