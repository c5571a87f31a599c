"""Job parameters from the command line: `-p calibration.false_quarantine_rate=0.05`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

ParamOption = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        metavar="NAME=VALUE",
        help="A parameter of the job, as often as needed; dots go inside: -p distill.fit.epochs=20.",
    ),
]


def parse_params(given: Sequence[str] | None) -> dict[str, Any]:
    """The nested parameters that `given` spells out. A value is read as JSON where it is JSON, else as text."""
    params: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        steps = name.split(".")
        if not equals or not all(steps):
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE, such as -p seed=1 or -p fit.epochs=20.")
        place = params
        for step in steps[:-1]:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise typer.BadParameter(f"{text!r}: {step!r} was given a value of its own before.")
        if steps[-1] in place:
            raise typer.BadParameter(f"{name!r} was given twice.")
        place[steps[-1]] = _value(value)
    return params


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
