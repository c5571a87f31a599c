"""`winnow webhooks`: who is told what happened."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.cli.follow import JsonOption
from service.cli.outcome import Commands
from service.cli.show import print_json, results_console
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect
from service.client import Delivery, IssuedWebhook, Webhook

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Tell other programs what happened, by signed messages.")

WebhookArgument = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its id, as 'winnow webhooks list' shows it.")]


@app.command()
def create(
    address: Annotated[str, typer.Argument(metavar="URL", help="Where to send messages: https://…")],
    event: Annotated[list[str] | None, typer.Option("--event", "-e", help="Such as job.failed. Default: all.")] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Make a webhook. Its secret goes to stdout, this once, and nothing else does."""
    with connect(home, url, key) as client:
        _tell(client.webhooks.create(address, event or [], description=description), as_json=as_json)


@app.command("list")
def list_webhooks(
    as_json: JsonOption = False, home: HomeOption = DEFAULT_HOME, url: UrlOption = None, key: KeyOption = None
) -> None:
    """List the webhooks, oldest first."""
    with connect(home, url, key) as client:
        found = list(client.webhooks.list())
    if as_json:
        print_json([each.model_dump() for each in found])
    else:
        results_console().print(_table(found))


@app.command()
def rotate(
    webhook: WebhookArgument,
    grace_hours: Annotated[
        float, typer.Option(min=0, max=720, help="Hours for which messages carry a signature by each secret.")
    ] = 24.0,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Give a webhook a new secret. It goes to stdout, this once, and nothing else does."""
    with connect(home, url, key) as client:
        _tell(client.webhooks.rotate(webhook, grace_seconds=round(grace_hours * 3600)), as_json=as_json)


@app.command()
def enable(
    webhook: WebhookArgument, home: HomeOption = DEFAULT_HOME, url: UrlOption = None, key: KeyOption = None
) -> None:
    """Take up a disabled webhook again."""
    with connect(home, url, key) as client:
        client.webhooks.change(webhook, enabled=True)
    typer.echo(f"{webhook} is enabled.")


@app.command()
def disable(
    webhook: WebhookArgument, home: HomeOption = DEFAULT_HOME, url: UrlOption = None, key: KeyOption = None
) -> None:
    """Send nothing more to a webhook, until it is enabled again."""
    with connect(home, url, key) as client:
        client.webhooks.change(webhook, enabled=False)
    typer.echo(f"{webhook} is disabled.")


@app.command()
def delete(
    webhook: WebhookArgument, home: HomeOption = DEFAULT_HOME, url: UrlOption = None, key: KeyOption = None
) -> None:
    """Delete a webhook, with the log of its deliveries."""
    with connect(home, url, key) as client:
        client.webhooks.delete(webhook)
    typer.echo(f"{webhook} is deleted.")


@app.command()
def test(
    webhook: WebhookArgument, home: HomeOption = DEFAULT_HOME, url: UrlOption = None, key: KeyOption = None
) -> None:
    """Have a webhook.test sent; 'winnow webhooks log' shows what came of it."""
    with connect(home, url, key) as client:
        typer.echo(f"{client.webhooks.test(webhook).id} is on its way.")


@app.command()
def log(
    webhook: WebhookArgument,
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
    again: Annotated[str | None, typer.Option(metavar="MESSAGE", help="Send this message again.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show what was sent, and what became of it."""
    with connect(home, url, key) as client:
        if again is not None:
            client.webhooks.send_again(webhook, again)
        found = list(islice(client.webhooks.deliveries(webhook), limit))
    if as_json:
        print_json([each.model_dump() for each in found])
    else:
        results_console().print(_log(found))


def _tell(issued: IssuedWebhook, *, as_json: bool) -> None:
    if as_json:
        print_json(issued.model_dump())
        return
    about = f"webhook {issued.id} tells {issued.url}; this is the only time its secret is shown:"
    Console(stderr=True).print(about, markup=False, highlight=False, soft_wrap=True)
    typer.echo(issued.secret)


def _table(found: Sequence[Webhook]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("webhook", "url", "events", "description", "state"):
        table.add_column(heading, no_wrap=heading == "webhook")
    for each in found:
        state = each.disabled_reason or (f"failing since {each.failing_since[:16]}" if each.failing_since else "")
        table.add_row(each.id, *map(escape, (each.url, ", ".join(each.events) or "all", each.description, state)))
    return table


def _log(found: Sequence[Delivery]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("message", "event", "state", "attempts", "created", "next", "last answer"):
        table.add_column(heading, no_wrap=heading == "message")
    for each in found:
        last = each.log[-1] if each.log else {}
        answer = str(last.get("error") or last.get("status") or "")
        moments = (each.created_at[:19], (each.next_at or "")[:19])
        table.add_row(each.id, each.event, each.state, str(each.attempts), *moments, escape(answer))
    return table
