"""Reports that several tests look at, made once: the figures of a page take a second."""

from __future__ import annotations

from functools import cache
from typing import Any

from report_facts import evaluate_facts, every_extra, panel_facts, sanitise_facts

from worker.reports import Report
from worker.reports.evaluate import evaluate_report
from worker.reports.sanitise import SanitiseFacts, sanitise_report
from worker.reports.sanitise_findings import find
from worker.reports.sanitise_json import numbers


def sanitise_numbers(facts: SanitiseFacts) -> dict[str, Any]:
    """The report's numbers without its page."""
    return numbers(facts, find(facts))


@cache
def sanitised() -> Report:
    return sanitise_report(sanitise_facts())


@cache
def panelled() -> Report:
    return sanitise_report(panel_facts())


@cache
def fully_panelled() -> Report:
    return sanitise_report(panel_facts(**every_extra()))


@cache
def evaluated() -> Report:
    return evaluate_report(evaluate_facts())
