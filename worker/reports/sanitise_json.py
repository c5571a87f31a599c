"""The sanitise report as numbers: all that the page shows, without pixels, ready for json.dumps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from worker.reports.sanitise_facts import VERDICTS, Floats, GalleryItem, SanitiseFacts
from worker.reports.sanitise_findings import ClassRow, Findings, Share
from worker.reports.sanitise_panel import Together
from worker.reports.sanitise_panel_words import suspects
from worker.reports.sanitise_words import headline, limits
from worker.reports.text import plain, rounded

_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_OF_AN_EXHIBIT = ("index", "path", "label", "score", "p_value", "suggested_label", "reasons")


def numbers(facts: SanitiseFacts, found: Findings) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "report": "sanitise",
        "headline": headline(facts, found),
        "job_id": facts.job_id,
        "dataset": facts.dataset,
        "reference": facts.reference,
        "result_dataset": facts.result_dataset,
        "counts": {verdict: int((np.asarray(facts.verdicts, dtype=object) == verdict).sum()) for verdict in VERDICTS},
        "flagged": share_json(found.flagged_share),
        "rule": _rule(facts, found),
        "score": {
            "name": facts.score_name,
            "quantiles": _quantiles(facts.scores),
            "histogram": found.histogram.to_json(),
        },
        "detectors": [row.to_json() for row in found.detectors] if facts.detectors else [],
        "spoke_together": [_together(row) for row in found.together],
        "calibration": {
            "n": len(facts.calibration_scores),
            "groups": facts.calibration_groups,
            "over_threshold": found.calibration_over and share_json(found.calibration_over),
            "quantiles": _quantiles(facts.calibration_scores),
            "on_candidates": facts.calibrated_on_candidates,
        },
        "shift": {name: asdict(shift) for name, shift in facts.shifts.items()},
        "sifting": facts.sifting,
        "suspicious_reference": [asdict(image) for image in facts.suspicious_reference],
        "self_test": {kind: share_json(share) for kind, share in found.self_test.items()},
        "p_values": _p_values(found),
        "losses": {name: asdict(fit) for name, fit in facts.losses.items()},
        "search": facts.search,
        "classes": [_class(row) for row in found.classes],
        "gallery": [_without_pixels(item) for item in facts.gallery],
        "warnings": list(facts.warnings),
        "limits": [f"{limit.title}: {limit.body}" for limit in limits(facts)],
        "notes": facts.notes,
        "request": request(facts),
        "versions": facts.versions,
        "seconds": facts.seconds,
    }
    result: dict[str, Any] = plain(whole)
    return result


def request(facts: SanitiseFacts) -> dict[str, Any]:
    """The body of the request that runs the same job again."""
    given = {"type": "sanitise", "dataset": facts.dataset, "reference": facts.reference, "params": dict(facts.spec)}
    return {name: value for name, value in given.items() if value is not None}


def _rule(facts: SanitiseFacts, found: Findings) -> dict[str, Any]:
    return {
        "kind": found.rule,
        "alpha": facts.alpha,
        "smallest_alpha": facts.smallest_alpha,
        "threshold": facts.threshold,
        "rates_are": facts.rates_are,
        "flagged_of_a_clean_set": found.clean_bounds,
        "false_discovery": facts.discovery and asdict(facts.discovery),
    }


def share_json(share: Share) -> dict[str, Any]:
    interval = {"low": rounded(share.low), "high": rounded(share.high)}
    return {"k": share.k, "n": share.n, "share": rounded(share.value), **interval}


def _together(row: Together) -> dict[str, Any]:
    return {"detectors": row.names, "suspects": row.kinds, "images": row.images, "suggests": suspects(row)}


def _without_pixels(item: GalleryItem) -> dict[str, Any]:
    return {name: getattr(item, name) for name in _OF_AN_EXHIBIT}


def _quantiles(scores: Floats) -> dict[str, float | None]:
    if len(scores) == 0:
        return {}
    values: Sequence[float] = np.quantile(np.asarray(scores, np.float64), _QUANTILES).tolist()
    return {str(at): rounded(value) for at, value in zip(_QUANTILES, values, strict=True)}


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
