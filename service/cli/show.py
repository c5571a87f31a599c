"""What the commands print: progress while a job runs, tables of what came out, JSON for machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from service.client import Job, Prediction

LONGEST_VALUE = 100
INTERVAL = {"share", "low", "high", "n"}
PIPED_WIDTH = 140


def print_json(value: Any) -> None:
    """One JSON document on stdout, and nothing else there."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def results_console() -> Console:
    """Stdout; wide where it is no terminal, so that nothing is cut off on its way into a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)


class JobProgress:
    """Shows a job's phase, share and remaining time: a live bar on a terminal, a line a phase elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=False,
        )
        self._row = self._bar.add_task("waiting", total=None, left="")
        self._title: str | None = None

    @contextmanager
    def live(self) -> Iterator[JobProgress]:
        if not self._console.is_terminal:
            yield self
            return
        with self._bar:
            yield self

    def update(self, job: Job) -> None:
        title = f"{job.type}: {job.state if job.finished else job.progress.phase or job.state}"
        if not self._console.is_terminal:
            if title != self._title:
                self._console.print(title, highlight=False)
            self._title = title
            return
        share = 1.0 if job.succeeded else job.progress.share
        left = "" if job.eta_seconds is None or job.finished else f"{_clock(job.eta_seconds)} left"
        self._bar.update(self._row, description=title, completed=share or 0.0, total=1.0 if share else None, left=left)


@contextmanager
def upload_bar(console: Console, title: str) -> Iterator[Progress]:
    with Progress(
        TextColumn("[bold]{task.description}"), BarColumn(), TaskProgressColumn(), console=console, transient=True
    ) as bar:
        bar.add_task(title, total=None)
        yield bar


@contextmanager
def received_bar(console: Console, title: str) -> Iterator[Callable[[int], None]]:
    """For a download whose length nobody knows: what to call with the bytes so far."""
    columns = (TextColumn("[bold]{task.description}"), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task(title, total=None)
        yield lambda received: bar.update(row, completed=received)


def show_job(console: Console, job: Job) -> None:
    """A finished or running job, fact by fact."""
    console.print(f"[bold]{job.type}[/] {job.id}: {_coloured(job.state)}", highlight=False)
    if job.trouble:
        console.print(job.trouble, style="red", markup=False, highlight=False)
    show_record(console, job.result or {})


def show_record(console: Console, record: Mapping[str, Any]) -> None:
    """Fact by fact."""
    facts = _flat(record)
    if facts:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts:
            table.add_row(name, escape(value))
        console.print(table)


def show_jobs(console: Console, jobs: Iterable[Job]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("job", "type", "state", "progress", "created", "result"):
        table.add_column(heading, no_wrap=heading in ("job", "type", "state"))
    for job in jobs:
        result = job.result or {}
        outcome = str(result.get("model") or result.get("dataset") or job.trouble or "")
        table.add_row(job.id, job.type, _coloured(job.state), _share(job), (job.created_at or "")[:16], outcome)
    console.print(table)


def show_predictions(console: Console, names: Sequence[str], predictions: Sequence[Prediction]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("image", "label", "probability", "p-value", "reason"):
        table.add_column(heading)
    for name, prediction in zip(names, predictions, strict=True):
        best = max(prediction.probabilities, default=0.0)
        label = "[yellow]null[/]" if prediction.label is None else prediction.label
        p_value = "" if prediction.p_value is None else f"{prediction.p_value:.3f}"
        table.add_row(name, label, f"{best:.3f}", p_value, prediction.reason or "")
    console.print(table)


def _coloured(state: str) -> str:
    colour = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def _share(job: Job) -> str:
    share = job.progress.share
    return "" if job.finished or share is None else f"{job.progress.phase or ''} {share:.0%}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as lines; tables inside them are left to --json and the report."""
    facts: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            facts += [(name, _interval(inner))] if inner.keys() == INTERVAL else _flat(inner, f"{name}.")
        elif isinstance(inner, list) and any(isinstance(row, Mapping) for row in inner):
            facts.append((name, f"{len(inner)} rows (--json shows them)"))
        else:
            facts.append((name, _text(inner)))
    return facts


def _interval(share: Mapping[str, Any]) -> str:
    return f"{share['share']:.2%} ({share['low']:.1%} to {share['high']:.1%} at 95 %, n = {share['n']})"


def _text(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
