"""`winnow tenants`: who has data of his own, and how much; for operators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.cli.keys import JsonOption
from service.cli.outcome import Commands
from service.cli.show import print_json, results_console
from service.cli.target import DEFAULT_HOME, HomeOption, KeyOption, UrlOption, connect
from service.client.tenants import Tenant, Usage

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Make and list tenants, and set what they may have.")

NameArgument = Annotated[str, typer.Argument(metavar="TENANT", help="Lower-case letters, digits and '-'.")]
QuotaOption = Annotated[
    list[str],
    typer.Option(
        "--quota", "-q", help="NAME=N or NAME=none, of bytes, images, queued_jobs, running_jobs; as often as needed."
    ),
]


@app.command()
def create(
    name: NameArgument,
    quota: QuotaOption = [],  # noqa: B006 - typer copies it
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Make a tenant and its first admin key. The key's text goes to stdout, this once, and nothing else does."""
    with connect(home, url, key) as client:
        client.tenants.create(name, parsed(quota))
        issued = client.tenants.create_key(name, "admin", ["admin"])
    if as_json:
        print_json(issued.model_dump())
        return
    Console(stderr=True).print(f"tenant {name}, its admin key; this is the only time it is shown:", highlight=False)
    typer.echo(issued.secret)


@app.command("list")
def list_tenants(
    as_json: JsonOption = False, home: HomeOption = DEFAULT_HOME, url: UrlOption = None, key: KeyOption = None
) -> None:
    """List the tenants, and what was set for each."""
    with connect(home, url, key) as client:
        found = list(client.tenants.list())
    if as_json:
        print_json([each.model_dump() for each in found])
    else:
        results_console().print(_table(found))


@app.command()
def usage(
    name: Annotated[str | None, typer.Argument(metavar="TENANT", help="Default: the key's own.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show what a tenant has, and what it may have."""
    with connect(home, url, key) as client:
        found = client.tenants.usage(name)
    if as_json:
        print_json(found.model_dump())
    else:
        results_console().print(_usage(found))


@app.command()
def quotas(
    name: NameArgument,
    quota: QuotaOption = [],  # noqa: B006 - typer copies it
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Set what a tenant may have, all of it anew: what is not named is as the service's settings say."""
    with connect(home, url, key) as client:
        client.tenants.set_quotas(name, parsed(quota))
        found = client.tenants.usage(name)
    results_console().print(_usage(found))


def parsed(quotas: Iterable[str]) -> dict[str, int | None]:
    """Raises BadParameter for what is not NAME=N or NAME=none."""
    found: dict[str, int | None] = {}
    for text in quotas:
        name, _, amount = text.partition("=")
        if not name or not (amount.isdecimal() or amount == "none"):
            raise typer.BadParameter(f"{text!r} is not NAME=N or NAME=none", param_hint="--quota")
        found[name] = None if amount == "none" else int(amount)
    return found


def _table(tenants: Iterable[Tenant]) -> Table:
    table = Table("tenant", "created", "quotas", box=None, pad_edge=False)
    for tenant in tenants:
        told = ", ".join(f"{name}={'none' if most is None else most}" for name, most in tenant.quotas.items())
        table.add_row(tenant.name, tenant.created_at[:16], told or "as the settings say")
    return table


def _usage(usage: Usage) -> Table:
    table = Table(usage.tenant, "used", "limit", box=None, pad_edge=False)
    for name, used in usage.used.items():
        limit = usage.limits.get(name)
        table.add_row(name, str(used), "none" if limit is None else str(limit))
    return table
