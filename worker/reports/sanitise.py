"""The report of a sanitise job: what was found, against which limit, at which rate, and what the filter cannot see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from worker.reports import figures
from worker.reports.page import FactsError, Report, render
from worker.reports.pictures import amplification, data_uri, difference
from worker.reports.sanitise_facts import VERDICTS, FitLosses, Floats, GalleryItem, SanitiseFacts
from worker.reports.sanitise_findings import ClassRow, Findings, Share, find
from worker.reports.sanitise_words import grounds, headline, limits, score_words
from worker.reports.text import count, figure, plain, rounded

__all__ = ["FactsError", "FitLosses", "GalleryItem", "SanitiseFacts", "sanitise_report"]

CLASSES_SHOWN = 200
_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


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
    factor = amplification([(item.original, item.reconstruction) for item in facts.gallery])
    page = render(
        "sanitise.html",
        title=f"Sanitise report of {facts.dataset}",
        facts=facts,
        found=found,
        headline=headline(facts, found),
        grounds=grounds(facts, found),
        limits=limits(facts),
        score_words=score_words(facts),
        tiles=_tiles(found),
        pictures=_pictures(facts, found),
        amplification=factor,
        exhibits=[_exhibit(item, factor) for item in facts.gallery],
        classes=found.classes[:CLASSES_SHOWN],
        marked=any(row.stands_out for row in found.classes),
        widest=max((row.removed.high for row in found.classes), default=1.0),
        request=_request(facts),
    )
    return Report(json=_numbers(facts, found), html=page)


def _tiles(found: Findings) -> list[dict[str, Any]]:
    total = found.flagged_share.n
    numbers = {
        "keep": int((~found.flagged).sum()),
        "reform": int(found.reformed.sum()),
        "quarantine": int(found.quarantined.sum()),
    }
    words = {"keep": "kept", "reform": "reformed", "quarantine": "quarantined"}
    return [{"kind": kind, "word": words[kind], "n": n, "share": n / total} for kind, n in numbers.items()]


def _exhibit(item: GalleryItem, factor: int) -> Exhibit:
    changed = difference(item.original, item.reconstruction, factor)
    return Exhibit(item, data_uri(item.original), data_uri(item.reconstruction), data_uri(changed))


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
        "scores": figures.score_histogram(
            facts, found, f"Histogram of the candidates' scores against the held-out images' scores, limit at {limit}."
        ),
        "p_values": None,
        "losses": None,
    }
    if found.p_values is not None:
        alt = f"Histogram of the p-values of {total} candidate images against the level line of a clean set."
        drawn["p_values"] = figures.p_value_histogram(found.p_values, facts.alpha, alt)
    if facts.losses:
        alt = "Line plots: training and validation loss by epoch of " + ", ".join(facts.losses) + "."
        drawn["losses"] = figures.loss_curves(facts.losses, alt)
    return drawn


def _request(facts: SanitiseFacts) -> dict[str, Any]:
    """The body of the request that runs the same job again."""
    given = {"type": "sanitise", "dataset": facts.dataset, "reference": facts.reference, "params": dict(facts.spec)}
    return {name: value for name, value in given.items() if value is not None}


def _numbers(facts: SanitiseFacts, found: Findings) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "report": "sanitise",
        "headline": headline(facts, found),
        "job_id": facts.job_id,
        "dataset": facts.dataset,
        "reference": facts.reference,
        "result_dataset": facts.result_dataset,
        "counts": {verdict: int((np.asarray(facts.verdicts) == verdict).sum()) for verdict in VERDICTS},
        "flagged": share_json(found.flagged_share),
        "rule": {
            "kind": found.rule,
            "alpha": facts.alpha,
            "smallest_alpha": facts.smallest_alpha,
            "threshold": facts.threshold,
            "rates_are": facts.rates_are,
            "flagged_of_a_clean_set": found.clean_bounds,
        },
        "score": {"name": facts.score_name, "quantiles": _quantiles(facts.scores), "histogram": _histogram(found)},
        "calibration": {
            "n": len(facts.calibration_scores),
            "over_threshold": found.calibration_over and share_json(found.calibration_over),
            "quantiles": _quantiles(facts.calibration_scores),
        },
        "self_test": {kind: share_json(share) for kind, share in found.self_test.items()},
        "p_values": _p_values(found),
        "losses": {name: asdict(fit) for name, fit in facts.losses.items()},
        "classes": [_class(row) for row in found.classes],
        "gallery": [_without_pixels(item) for item in facts.gallery],
        "warnings": list(facts.warnings),
        "limits": [f"{limit.title}: {limit.body}" for limit in limits(facts)],
        "notes": facts.notes,
        "request": _request(facts),
        "versions": facts.versions,
        "seconds": facts.seconds,
    }
    result: dict[str, Any] = plain(numbers)
    return result


def share_json(share: Share) -> dict[str, Any]:
    interval = {"low": rounded(share.low), "high": rounded(share.high)}
    return {"k": share.k, "n": share.n, "share": rounded(share.value), **interval}


def _without_pixels(item: GalleryItem) -> dict[str, Any]:
    return {name: getattr(item, name) for name in ("index", "path", "label", "score", "p_value")}


def _quantiles(scores: Floats) -> dict[str, float | None]:
    if len(scores) == 0:
        return {}
    values: Sequence[float] = np.quantile(np.asarray(scores, np.float64), _QUANTILES).tolist()
    return {str(at): rounded(value) for at, value in zip(_QUANTILES, values, strict=True)}


def _histogram(found: Findings) -> dict[str, Any]:
    bins = found.histogram
    return {
        "edges": [rounded(edge) for edge in bins.edges.tolist()],
        "kept": bins.kept.tolist(),
        "flagged": bins.flagged.tolist(),
        "calibration": bins.calibration.tolist(),
    }


def _p_values(found: Findings) -> dict[str, Any] | None:
    if found.p_values is None:
        return None
    bins = found.p_values
    return {
        "edges": [rounded(edge) for edge in bins.edges.tolist()],
        "counts": bins.counts.tolist(),
        "expected_if_clean": [rounded(value) for value in bins.expected.tolist()],
        "deviation_if_clean": [rounded(value) for value in bins.deviation.tolist()],
        "clean_share_estimate": rounded(bins.clean_share),
    }


def _class(row: ClassRow) -> dict[str, Any]:
    return {
        "index": row.index,
        "name": row.name,
        "reformed": row.reformed,
        "quarantined": share_json(row.removed),
        "stands_out": row.stands_out or None,
    }
