"""`winnow jobs`: which there are, what happens to one, and its report."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from service.cli.follow import JsonOption, follow, tell_events
from service.cli.show import print_json, results_console, show_jobs
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect
from service.client import Job


def jobs(
    job_id: Annotated[str | None, typer.Argument(metavar="[JOB]", help="One job; without it, the latest ones.")] = None,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    type: Annotated[str | None, typer.Option(help="Only jobs of this type.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
    wait: Annotated[bool, typer.Option("--wait", help="Follow JOB until it has finished.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Tell what happens to JOB until it has finished.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel JOB.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run JOB again.")] = False,
    report: Annotated[Path | None, typer.Option(help="Save the report of JOB here (.html or .json).")] = None,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List jobs, or show, follow, cancel or retry one, or save its report."""
    if job_id is None and (wait or events or cancel or retry or report):
        raise typer.BadParameter("--wait, --events, --cancel, --retry and --report need the JOB they are for.")
    with connect(home, url, key) as client:
        if job_id is None:
            _list_jobs(list(islice(client.jobs(state=state, type=type), limit)), as_json=as_json)
            return
        if report is not None:
            report.write_bytes(client.report(job_id, "json" if report.suffix == ".json" else "html"))
        job = client.cancel(job_id) if cancel else client.retry(job_id) if retry else client.job(job_id)
        if events:
            tell_events(client.events(job_id), as_json=as_json)
            job = client.job(job_id)
        follow(client, job, no_wait=not wait, as_json=as_json)


def _list_jobs(found: list[Job], *, as_json: bool) -> None:
    if as_json:
        print_json([job.model_dump() for job in found])
    else:
        show_jobs(results_console(), found)
