"""The report itself, and the page around it: templates that escape everything they are given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from worker.reports import text


class FactsError(ValueError):
    """Facts that contradict each other, or that no page can show."""


@dataclass(frozen=True)
class Report:
    """json: the numbers, without pixels, ready for json.dumps. html: the page, complete in itself."""

    json: dict[str, Any]
    html: str


def pretty(value: Any) -> str:
    """JSON for people: indented, in the order given."""
    return json.dumps(text.plain(value), indent=2, ensure_ascii=False)


def render(template: str, **content: Any) -> str:
    """A page of `templates/`; whatever is not Markup is escaped, whatever is missing is an error."""
    pages = Environment(
        loader=PackageLoader("worker.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(
        visible=text.visible,
        count=text.count,
        percent=text.percent,
        percent_cell=text.percent_cell,
        figure=text.figure,
        duration=text.duration,
        pretty=pretty,
    )
    pages.globals.update(interval=text.interval, interval_cell=text.interval_cell, plural=text.plural)
    return pages.get_template(template).render(**content)
