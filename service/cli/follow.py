"""Follows a job to its end, and exits with what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console

from service.cli.outcome import DONE, FAILED, INTERRUPTED, complain
from service.cli.show import JobProgress, print_json, results_console, show_job
from service.client import Job, JobEvent, WinnowClient

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Return as soon as the job is accepted.")]


def follow(client: WinnowClient, job: Job, *, no_wait: bool, as_json: bool) -> None:
    """Wait for the job where that is wanted, show it, and exit with what came of it."""
    if not no_wait and not job.finished:
        job = _wait(client, job)
    if as_json:
        print_json(job.model_dump())
    else:
        show_job(results_console(), job)
    raise typer.Exit(FAILED if job.finished and not job.succeeded else DONE)


def _wait(client: WinnowClient, job: Job) -> Job:
    try:
        with JobProgress(Console(stderr=True)).live() as progress:
            return client.wait(job.id, on_progress=progress.update)
    except KeyboardInterrupt as error:
        complain(f"job {job.id} goes on; follow it with 'winnow jobs {job.id} --wait', or end it with --cancel")
        raise typer.Exit(INTERRUPTED) from error


def tell_events(events: Iterable[JobEvent], *, as_json: bool) -> None:
    """A line for each on stderr, as it happens."""
    console = Console(stderr=True)
    for event in events:
        if as_json:
            console.print(event.model_dump_json(exclude_none=True), markup=False, highlight=False, soft_wrap=True)
        elif event.kind == "state":
            about = f"{(event.at or '')[:19]}  {event.state}: {event.message}"
            console.print(about, markup=False, highlight=False, soft_wrap=True)
