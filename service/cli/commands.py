"""The commands themselves: each parses its arguments, makes its calls, shows what came out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from service.cli import (
    audit,
    captures,
    datasets,
    jobs,
    keys,
    models,
    review,
    status,
    tenants,
    upkeep,
    uploads,
    verdicts,
    webhooks,
)
from service.cli.archive import opened_for_upload
from service.cli.follow import JsonOption, NoWaitOption, follow
from service.cli.outcome import DONE, EXIT_CODES, FAILED, Commands
from service.cli.params import ParamOption, parse_params
from service.cli.show import (
    print_json,
    received_bar,
    results_console,
    show_predictions,
    upload_bar,
)
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect

app = typer.Typer(
    name="winnow",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=f"Removes poison from image training sets, and serves the model trained on what is left.\n\n{EXIT_CODES}",
)
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(tenants.app, name="tenants")
app.add_typer(audit.app, name="audit")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(datasets.app, name="datasets")
app.add_typer(uploads.app, name="uploads")
app.add_typer(captures.app, name="captures")
app.command()(jobs.jobs)
app.command()(status.status)
app.command()(verdicts.verdicts)
app.command()(review.review)
upkeep.add_to(app)


class ExportFormat(StrEnum):
    """What a version can be saved as."""

    IMAGEFOLDER = "imagefolder"
    NPZ = "npz"
    PARQUET = "parquet"
    WEBDATASET = "webdataset"


DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help="Dataset version, such as signs@1.")]
ReferenceOption = Annotated[
    str | None, typer.Option("--reference", help="Trusted reference, such as trusted@1: images that you vouch for.")
]


@app.command()
def up(
    home: HomeOption = DEFAULT_HOME,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of the gateway; 0 takes a free one. Default: WINNOW_PORT or 8080."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind to. Default: WINNOW_HOST or 127.0.0.1.")] = None,
    bound_to: Annotated[int | None, typer.Option(hidden=True, help="End when this parent process is gone.")] = None,
) -> None:
    """Run the whole service on this machine: broker, worker and gateway, until Ctrl-C."""
    from service.embedded.stack import run_stack
    from service.settings import Settings

    given: dict[str, Any] = {"home": home, "port": port, "host": host}
    settings = Settings(**{name: value for name, value in given.items() if value is not None}).resolved()
    run_stack(settings, lambda line: typer.echo(f"winnow: {line}"), bound_to=bound_to)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running at the end, until Ctrl-C.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random in it.")] = 0,
    reports: Annotated[Path | None, typer.Option(help="Folder for the reports. Default: a new one in /tmp.")] = None,
) -> None:
    """Do the whole job once, on scikit-learn's handwritten digits, a part of them poisoned."""
    from service.demo import run_demo

    raise typer.Exit(DONE if run_demo(keep=keep, seed=seed, reports=reports) else FAILED)


@app.command()
def upload(
    name: Annotated[str, typer.Argument(help="Name of the dataset; the upload becomes its next version.")],
    path: Annotated[Path, typer.Argument(exists=True, readable=True, help="Archive, npz, Parquet, or a folder.")],
    size: Annotated[int | None, typer.Option(help="Working resolution in pixels, 8 to 256.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for colour.")] = None,
    max_rejected_share: Annotated[float | None, typer.Option(help="Fail when more images are unreadable.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Only train, test or validation, where the upload has them.")
    ] = None,
    resumable: Annotated[
        bool | None,
        typer.Option(help="Go on where an upload of the same file broke off. Default: for files of 64 MiB and more."),
    ] = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Upload images: a zip or tar of class folders, WebDataset, npz, IDX, Parquet, or a folder of class folders."""
    params = {"size": size, "channels": channels, "max_rejected_share": max_rejected_share, "split": split}
    with connect(home, url, key) as client:
        with opened_for_upload(path) as file, upload_bar(Console(stderr=True), f"uploading {path.name}") as bar:
            row = bar.task_ids[0]
            job = client.upload_dataset(
                name,
                file,
                params,
                resumable=resumable,
                on_sent=lambda sent, total: bar.update(row, completed=sent, total=total),
            )
        follow(client, job, no_wait=no_wait, as_json=as_json)


@app.command()
def export(
    dataset: DatasetArgument,
    to: Annotated[Path, typer.Option("--to", dir_okay=False, help="File to write.")],
    format: Annotated[ExportFormat, typer.Option(help="What to write.")] = ExportFormat.IMAGEFOLDER,
    working: Annotated[
        bool, typer.Option("--working", help="Pixels at the working resolution instead of the uploaded files.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Save a dataset version as an image folder (zip), npz, Parquet or WebDataset file."""
    with connect(home, url, key) as client, received_bar(Console(stderr=True), f"exporting {dataset}") as show:
        client.export(dataset, to, format.value, originals=not working, on_received=show)
    typer.echo(f"{to}: {to.stat().st_size} bytes")


@app.command()
def sanitise(
    dataset: DatasetArgument,
    reference: ReferenceOption = None,
    param: ParamOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Judge every image of a dataset: keep, reform or quarantine; gives the sanitised version."""
    params = parse_params(param)
    with connect(home, url, key) as client:
        job = client.submit("sanitise", dataset=dataset, reference=reference, params=params)
        follow(client, job, no_wait=no_wait, as_json=as_json)


@app.command()
def distill(
    dataset: DatasetArgument,
    model: Annotated[str, typer.Option("--model", help="Name of the model; the job makes its next version.")],
    reference: ReferenceOption = None,
    param: ParamOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Train a distilled classifier on a dataset and register it."""
    params = parse_params(param)
    with connect(home, url, key) as client:
        job = client.submit("distill", dataset=dataset, reference=reference, model=model, params=params)
        follow(client, job, no_wait=no_wait, as_json=as_json)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model version, such as signs-student@1.")],
    dataset: DatasetArgument,
    param: ParamOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Measure a model on a dataset, clean and under attack."""
    params = parse_params(param)
    with connect(home, url, key) as client:
        job = client.submit("evaluate", model=model, dataset=dataset, params=params)
        follow(client, job, no_wait=no_wait, as_json=as_json)


@app.command()
def harden(
    dataset: DatasetArgument,
    model: Annotated[str, typer.Option("--model", help="Name of the model; the job makes its next version.")],
    reference: ReferenceOption = None,
    evaluate_on: Annotated[
        str | None, typer.Option(help="Dataset version to evaluate on. Default: the model's held-out reference.")
    ] = None,
    calibrate_on: Annotated[
        str | None,
        typer.Option(help="Labelled images like those of production, to calibrate abstention. Default: the reference."),
    ] = None,
    param: ParamOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Sanitise, distill and evaluate in a row; parameters begin with sanitise., distill. or evaluate."""
    params = parse_params(param)
    with connect(home, url, key) as client:
        job = client.submit(
            "harden",
            dataset=dataset,
            reference=reference,
            model=model,
            evaluate_on=evaluate_on,
            calibrate_on=calibrate_on,
            params=params,
        )
        follow(client, job, no_wait=no_wait, as_json=as_json)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Model: name, name@version or name:alias.")],
    images: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Image files, or one npz.")],
    alpha: Annotated[float | None, typer.Option(help="Share of clean inputs that may be refused.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Ask a model what it sees; `null` where it should not be trusted."""
    whole = images[0].read_bytes() if len(images) == 1 and images[0].suffix == ".npz" else None
    with connect(home, url, key) as client:
        answer = client.predict(model, images if whole is None else whole, alpha=alpha)
    if as_json:
        print_json(answer.model_dump())
        return
    names = [str(image) for image in images] if whole is None else [f"[{i}]" for i in range(len(answer.predictions))]
    show_predictions(results_console(), names, answer.predictions)
