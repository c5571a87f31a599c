"""The report of a sanitise job: what was found, by which detectors, at which rate, and what they cannot see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from worker.reports import figures
from worker.reports.page import FactsError, Report, render
from worker.reports.pictures import amplification, data_uri, difference
from worker.reports.sanitise_facts import (
    DetectorFacts,
    Discovery,
    FitLosses,
    GalleryItem,
    SanitiseFacts,
    SuspiciousImage,
)
from worker.reports.sanitise_findings import Findings, find
from worker.reports.sanitise_json import numbers, request
from worker.reports.sanitise_panel_words import SHORT, alarm, detector_name, sifted, suspects
from worker.reports.sanitise_words import grounds, headline, limits, score_words
from worker.reports.text import count, figure, percent

__all__ = [
    "DetectorFacts",
    "Discovery",
    "FactsError",
    "FitLosses",
    "GalleryItem",
    "SanitiseFacts",
    "SuspiciousImage",
    "sanitise_report",
]

CLASSES_SHOWN = 200
TOGETHER_SHOWN = 10
SUSPICIOUS_SHOWN = 100
TRIALS_SHOWN = 100


@dataclass(frozen=True)
class Exhibit:
    """One image of the gallery with what the page shows of it."""

    item: GalleryItem
    original: str
    reconstruction: str
    difference: str


def sanitise_report(facts: SanitiseFacts) -> Report:
    """The numbers and the page. The same facts give the same report."""
    found = find(facts)
    by_filter, by_others = _galleries(facts)
    factor = amplification([(item.original, item.reconstruction) for item in by_filter])
    page = render(
        "sanitise.html",
        title=f"Sanitise report of {facts.dataset}",
        facts=facts,
        found=found,
        headline=headline(facts, found),
        alarm=alarm(facts),
        grounds=grounds(facts, found),
        sifted=sifted(facts.sifting) if facts.sifting is not None else [],
        limits=limits(facts),
        score_words=score_words(facts),
        tiles=_tiles(found),
        promise=_promise(facts),
        together=found.together[:TOGETHER_SHOWN],
        short=SHORT,
        suspects=suspects,
        detector_name=detector_name,
        pictures=_pictures(facts, found),
        amplification=factor,
        exhibits=[_exhibit(item, factor) for item in by_filter],
        labelled=[_exhibit(item, factor) for item in by_others],
        classes=found.classes[:CLASSES_SHOWN],
        marked=any(row.stands_out for row in found.classes),
        widest=max((row.removed.high for row in found.classes), default=1.0),
        suspicious=facts.suspicious_reference[:SUSPICIOUS_SHOWN],
        trials=_trials(facts),
        request=request(facts),
    )
    return Report(json=numbers(facts, found), html=page)


def _galleries(facts: SanitiseFacts) -> tuple[list[GalleryItem], list[GalleryItem]]:
    """Images that the filter flagged, whose reconstruction tells something, and those that only others flagged."""
    own = [item for item in facts.gallery if not item.reasons or facts.score_name in item.reasons]
    others = [item for item in facts.gallery if item.reasons and facts.score_name not in item.reasons]
    return own, others


def _tiles(found: Findings) -> list[dict[str, Any]]:
    total = found.flagged_share.n
    counts = {
        "keep": int((~found.flagged).sum()),
        "reform": int(found.reformed.sum()),
        "quarantine": int(found.quarantined.sum()),
    }
    words = {"keep": "kept", "reform": "reformed", "quarantine": "quarantined"}
    return [{"kind": kind, "word": words[kind], "n": n, "share": n / total} for kind, n in counts.items()]


def _promise(facts: SanitiseFacts) -> dict[str, str]:
    if facts.alpha is not None:
        what = "false-quarantine rate " + ("promised" if facts.rates_are == "held" else "asked for")
        return {"big": percent(facts.alpha), "what": what, "standing": facts.rates_are}
    if facts.discovery is not None:
        rate = percent(facts.discovery.rate)
        return {"big": rate, "what": "of the quarantined may be clean", "standing": facts.rates_are}
    return {"big": "none", "what": "false-quarantine rate promised", "standing": "a threshold was asked for"}


def _exhibit(item: GalleryItem, factor: int) -> Exhibit:
    changed = difference(item.original, item.reconstruction, factor)
    return Exhibit(item, data_uri(item.original), data_uri(item.reconstruction), data_uri(changed))


def _trials(facts: SanitiseFacts) -> list[dict[str, Any]]:
    """The trials of the search in their order, the best of them marked."""
    trials: Sequence[Any] = facts.search or []
    values = [trial.get("value") for trial in trials]
    best = min((value for value in values if value is not None), default=None)
    return [
        {"number": number, "best": best is not None and trial.get("value") == best, **trial}
        for number, trial in enumerate(trials, start=1)
    ][:TRIALS_SHOWN]


def _pictures(facts: SanitiseFacts, found: Findings) -> dict[str, Markup | None]:
    total, flagged = count(found.flagged_share.n), count(found.flagged_share.k)
    limit = figure(facts.threshold)
    drawn: dict[str, Markup | None] = {
        "errors": figures.every_error(
            facts,
            found,
            f"Scatter plot: the score of each of {total} candidate images by its index, beside the held-out images, "
            f"with the limit at {limit}. {flagged} candidates are flagged.",
        ),
        "scores": figures.score_histograms(
            found.detectors,
            "Histograms of the candidates' scores against the held-out images' scores, with the limit: "
            + ", ".join(detector_name(row.facts.name) for row in found.detectors)
            + ".",
            trusted=facts.reference is not None,
        ),
        "p_values": None,
        "losses": None,
    }
    if found.p_values is not None:
        level = facts.alpha if facts.discovery is None else facts.discovery.level
        alt = f"Histogram of the p-values of {total} candidate images against the level line of a clean set."
        name = "α" if facts.discovery is None else "limit"
        drawn["p_values"] = figures.p_value_histogram(found.p_values, level, alt, name)
    if facts.losses:
        alt = "Line plots: training and validation loss by epoch of " + ", ".join(facts.losses) + "."
        drawn["losses"] = figures.loss_curves(facts.losses, alt)
    return drawn
