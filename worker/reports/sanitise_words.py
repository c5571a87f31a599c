"""The sanitise report in sentences: the headline, what it rests on, and what this filter cannot see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.reports.sanitise_facts import SanitiseFacts
from worker.reports.sanitise_findings import Findings
from worker.reports.sanitise_panel import kind_of
from worker.reports.sanitise_panel_words import discovery_words
from worker.reports.text import count, figure, interval, percent, plural

SCORES = {
    "residual_energy": "residual energy (squared residual of a typical pixel, in units of ε²)",
    "reconstruction_error": "reconstruction error (mean squared error over the image, pixels in 0 to 1)",
}


@dataclass(frozen=True)
class Limit:
    """One thing the filter cannot see, or a reader might misread."""

    title: str
    body: str


def score_words(facts: SanitiseFacts) -> str:
    return SCORES.get(facts.score_name, facts.score_name)


def headline(facts: SanitiseFacts, found: Findings) -> str:
    return f"{_what(facts, found)}, {_promise(facts, found)}."


def _what(facts: SanitiseFacts, found: Findings) -> str:
    word = "suspicious" if facts.detectors else "perturbed"
    share = found.flagged_share
    quarantined, reformed = int(found.quarantined.sum()), int(found.reformed.sum())
    if share.k == 0:
        return f"None of {plural(share.n, 'image')} was flagged as {word}"
    flagged = f"{count(share.k)} of {plural(share.n, 'image')} ({percent(share.value)})"
    were = "was" if share.k == 1 else "were"
    if not reformed:
        return f"{flagged} {were} flagged as {word} and quarantined"
    if not quarantined:
        return f"{flagged} {were} flagged as {word} and replaced by a reconstruction"
    parts = f"{count(quarantined)} quarantined, {count(reformed)} replaced by a reconstruction"
    return f"{flagged} {were} flagged as {word} ({parts})"


def _promise(facts: SanitiseFacts, found: Findings) -> str:
    if facts.alpha is not None:
        standing = "is held" if facts.rates_are == "held" else "is only an estimate"
        return f"at a false-quarantine rate of {percent(facts.alpha)} that {standing}"
    if facts.discovery is not None:
        standing = "is held" if facts.rates_are == "held" else "is only an estimate"
        return f"at a false-discovery rate of {percent(facts.discovery.rate)} that {standing}"
    if found.rule == "percentage":
        passing = facts.spec["calibration"]["infer_threshold"]["percentage"]
        return f"at the threshold that {percent(passing / 100)} of the calibration images pass; no rate is promised"
    return f"at a fixed threshold of {figure(facts.threshold)}, which promises no rate"


def grounds(facts: SanitiseFacts, found: Findings) -> list[str]:
    """What the headline rests on, a paragraph each."""
    return [
        words for words in (_standing(facts, found), _against_clean(facts, found), _the_others(facts, found)) if words
    ]


def _standing(facts: SanitiseFacts, found: Findings) -> str:
    over = found.calibration_over
    if over is None:
        return "No held-out image calibrated this limit, so the share of clean images that it flags is not known."
    # A threshold promises nothing to hold, but what it flags of a trusted reference is still a measurement.
    if facts.reference is None:
        source = f"{plural(over.n, 'image')} that nobody vouched for, so every rate on this page is an estimate"
    elif facts.calibrated_on_candidates:
        source = f"{plural(over.n, 'reference image')}, by how rare they would be among the candidates"
    else:
        source = f"{plural(over.n, 'reference image')} that no network was fitted on"
    if facts.calibration_groups is not None and found.rule in ("rate", "discovery"):
        source += f" ({plural(facts.calibration_groups, 'group')}, each of which counts as one)"
    if facts.discovery is not None:
        unit = "calibration image" if facts.calibration_groups is None else "group"
        words = discovery_words(facts.discovery, plural(facts.independent, unit), held=facts.rates_are == "held")
        return f"{words} Calibrated on {source}."
    if facts.alpha is None:
        measured = f"{percent(over.value)} of them exceed it (95 % interval {interval(over.low, over.high)})"
        return f"The limit was compared with {source}: {measured}."
    return (
        f"The rate: of clean images like those that calibrated it, {percent(facts.alpha)} are flagged by mistake, "
        f"on average over calibrations. Calibrated on {source}."
    )


def _against_no_discovery(facts: SanitiseFacts) -> str:
    if facts.discovery is None:
        return ""
    most = percent(1 - facts.discovery.rate)
    return f"Of sets without any poison {most} or more would lose no image at all."


def _against_clean(facts: SanitiseFacts, found: Findings) -> str:
    if found.clean_bounds is None:
        return _against_no_discovery(facts)
    low, high = found.clean_bounds
    share = found.flagged_share
    expected = f"Of a clean set of this size, {interval(low, high)} would be flagged (95 of 100 times)"
    here = f"here it is {percent(share.value)}"
    if share.value > high:
        chance = min(share.k, math.ceil(high * share.n))
        return f"{expected}; {here}. Chance alone rarely explains more than {count(chance)} of the {count(share.k)}."
    if share.value >= low:
        sign = "poison" if facts.detectors else "perturbation"
        return f"{expected}; {here}. This is what a clean set shows, and no sign of {sign}."
    return (
        f"{expected}; {here}, which is less. The candidates then differ from the calibration images in some other way "
        "(camera, codec, resizing), and the rate does not carry over to them."
    )


def _the_others(facts: SanitiseFacts, found: Findings) -> str:
    passed = found.flagged_share.n - found.flagged_share.k
    policy: dict[str, Any] = facts.spec.get("policy") or {}
    form = "as their reconstructions" if policy.get("pass_through") == "reconstructed" else "unchanged"
    return f"The other {plural(passed, 'image')} went into the sanitised set {form}." if passed else ""


def limits(facts: SanitiseFacts) -> list[Limit]:
    """What to keep in mind before acting on a verdict."""
    return [
        Limit(
            "Perturbation, not malice",
            "The filter asks one thing: was this image altered by a small amount, pixel by pixel? Harmless noise of "
            "the same size (a noisy sensor, dithering, another compression) is flagged too. A quarantined image is no "
            "proof of an attack, and a kept image no proof of a good one.",
        ),
        *_unseen(facts),
        _too_small(facts),
        Limit(
            "An attacker who knows the filter",
            "Whoever has this filter can shape a perturbation that it rates as clean, at the price of a weaker attack.",
        ),
        Limit(
            "Another camera, codec or resize",
            "Rates carry over to candidates that were made like the reference. Where they were not, p-values shift as "
            "a whole: look whether their histogram is level to the right.",
        ),
        Limit(
            "The reference itself",
            "What is wrong in the reference was learnt as normal. All of this is as good as the reference is clean.",
        ),
        Limit(
            "What a p-value is",
            "A p-value of 0.01 says that one clean image in a hundred scores as high. It is not the probability that "
            "the image is clean.",
        ),
    ]


def _unseen(facts: SanitiseFacts) -> list[Limit]:
    """What no detector of the job looks for."""
    if {kind_of(detector.name) for detector in facts.panel} & {"label", "trigger"}:
        return [
            Limit(
                "Clean-label poison and faint triggers",
                "An image whose label is right, altered so that it teaches something else (gradient matching, feature "
                "collision), contradicts no classifier. Triggers of low opacity and smooth ones are seen less the "
                "fainter they are.",
            )
        ]
    return [
        Limit(
            "Wrong labels",
            "An unaltered image with a wrong label has an unremarkable score. Label flips pass this filter.",
        ),
        Limit(
            "Patches, blends and triggers",
            "Backdoors that paste a patch, blend in a second image, warp, or add a smooth pattern do not look like the "
            "perturbations this filter learnt. Neither do clean-label attacks made to be inconspicuous.",
        ),
    ]


def _too_small(facts: SanitiseFacts) -> Limit:
    title = "Small perturbations"
    perturbation: dict[str, Any] = facts.spec.get("perturbation") or {}
    eps = float(perturbation.get("eps_linf", 0.01))
    if facts.score_name == "reconstruction_error" and len(facts.calibration_scores):
        own = float(np.median(facts.calibration_scores))
        body = (
            f"A perturbation of ε = {figure(eps)} adds at most ε² = {figure(eps * eps)} to the squared error. This "
            f"autoencoder's own error on clean images is {figure(own)} (median)"
        )
        if own > 5 * eps * eps:
            ratio = f"{own / (eps * eps):,.0f}"
            told = "What this limit sets apart is mostly images rich in detail from plain ones."
            return Limit(title, f"{body}, {ratio} times as much, and hides it. {told}")
        return Limit(title, f"{body}. What is much smaller than that passes.")
    low, high = (eps * float(perturbation.get(end, 1)) for end in ("scale_low", "scale_high"))
    return Limit(
        title,
        f"It learnt perturbations of {figure(low)} to {figure(high)} of the pixel range. The further below that, the "
        "more it misses; it learnt nothing of sparse changes to a few pixels.",
    )
