"""A panel's findings in sentences: a shift and what it does to the rates, how a reference was sifted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.shift import Shift
from worker.reports.sanitise_facts import Discovery, SanitiseFacts
from worker.reports.sanitise_panel import SUSPICIONS, Kind, Together
from worker.reports.text import count, figure, percent, plural

NAMES = {
    "residual_energy": "residual energy",
    "reconstruction_error": "reconstruction error",
    "reconstruction_divergence": "reconstruction divergence",
    "label_loss": "label loss",
    "unchecked_loss": "unchecked loss",
    "label_agreement": "label agreement",
    "encoder_loss": "encoder loss",
    "poison_gain": "poison gain",
    "spectral_signature": "spectral signature",
    "activation_clustering": "activation clustering",
    "recurring_patch": "recurring patch",
    "recurring_pattern": "recurring pattern",
    "duplicates": "duplicates",
}
FILTER_SEES = "Perturbations: small changes all over the image, of the size that the filter learnt."
FILTER_BLIND_TO = (
    "Unaltered images with a wrong label, patches and other triggers, and changes much smaller than it learnt."
)
SHORT: dict[Kind, str] = {
    "perturbation": "a perturbation",
    "label": "a wrong label",
    "trigger": "a trigger",
    "duplicate": "a relabelled copy",
    "other": "something unlike the reference",
}


@dataclass(frozen=True)
class Alarm:
    """A shift in plain words: what was seen, detector by detector, and what it means for the rates."""

    title: str
    seen: tuple[str, ...]
    meaning: tuple[str, ...]


def detector_name(name: str) -> str:
    return NAMES.get(name, name)


def suspects(row: Together) -> str:
    """What a set of voices suggests."""
    if set(row.kinds) == {"label", "trigger"}:
        return "a wrong label; a trigger, where many of them look alike"
    if len(row.kinds) == 1:
        return SUSPICIONS[row.kinds[0]]
    return " or ".join(SHORT[kind] for kind in row.kinds)


def alarm(facts: SanitiseFacts) -> Alarm | None:
    """None where no shift was found. Sifted images look cleaner than the rest by choice: that is no shift."""
    found = {name: shift for name, shift in facts.shifts.items() if shift.found}
    if not found or facts.sifting is not None:
        return None
    return Alarm(
        "The candidates do not look like the reference",
        tuple(_seen(name, shift) for name, shift in found.items()),
        (*_meaning(facts, found),),
    )


def _seen(name: str, shift: Shift) -> str:
    bulk = "in the bulk of the candidates, where poison is not"
    gap = f"the distributions differ by up to {percent(shift.distance)} of the images, p = {figure(shift.p_value, 2)}"
    word = detector_name(name)[:1].upper() + detector_name(name)[1:]
    if shift.ratio is not None and shift.direction != "mixed":
        times = f"{figure(shift.ratio, 3)} times the reference's"
        return f"{word} is {shift.direction} {bulk}: typically {times} ({gap})."
    if shift.direction == "mixed":
        return f"{word} is spread otherwise {bulk}: some scores higher, some lower ({gap})."
    return f"{word} is {shift.direction} {bulk} ({gap})."


def _meaning(facts: SanitiseFacts, found: Mapping[str, Shift]) -> list[str]:
    cause = "Another camera, codec, resizing or choice of objects does this; poison alone seldom moves the bulk."
    if facts.calibrated_on_candidates:
        return [
            cause,
            'This job calibrated on the bulk of the candidates themselves (calibrate_on = "candidates"), which takes '
            "such a shift out. That rests on most candidates being clean, so every rate on this page is an estimate.",
        ]
    return [
        cause,
        " ".join(
            [_effect(facts, found), *_at_worst(facts, found), "Every rate on this page is therefore an estimate."]
        ),
        "What to do: give a reference that was made the way the candidates were, or send the job again with "
        'params.calibration.calibrate_on = "candidates", which calibrates on the bulk of the candidates themselves and '
        "so takes the shift out.",
    ]


def _effect(facts: SanitiseFacts, found: Mapping[str, Shift]) -> str:
    directions = {shift.direction for shift in found.values()}
    rate = "the share that the threshold flags of the reference"
    if facts.alpha is not None:
        rate = f"α = {percent(facts.alpha)}"
    elif facts.discovery is not None:
        rate = f"the false-discovery rate of {percent(facts.discovery.rate)}"
    if directions == {"higher"}:
        return (
            f"Clean candidates look more suspicious than the reference, so more of them are flagged than {rate} says."
        )
    if directions == {"lower"}:
        return (
            f"Clean candidates look less suspicious than the reference: fewer are flagged than {rate} says, and poison "
            "that would have stood out passes."
        )
    return f"Clean candidates score otherwise than the reference, so {rate} may be missed in either direction."


def _at_worst(facts: SanitiseFacts, found: Mapping[str, Shift]) -> list[str]:
    """What a detector would flag of clean candidates if all their scores had moved as the bulk did; the plainest."""
    told = []
    for detector in facts.panel:
        shift = found.get(detector.name)
        held = np.asarray(detector.calibration_scores, np.float64)
        if shift is None or shift.ratio is None or shift.direction == "mixed" or len(held) == 0:
            continue
        before, after = (float((held * times > detector.threshold).mean()) for times in (1.0, shift.ratio))
        if before != after:
            words = (
                f"If all their scores moved as the bulk did, {detector_name(detector.name)} speaks against "
                f"about {percent(after)} of clean candidates, as it does against {percent(before)} of the reference."
            )
            told.append((abs(after - before), words))
    return [max(told)[1]] if told else []


def sifted(sifting: Mapping[str, Any]) -> list[str]:
    """How a reference was sifted out of the candidates, a paragraph each."""
    looked, started, trusted = (int(sifting[name]) for name in ("looked_at", "started_from", "trusted"))
    encoder = sifting.get("encoder")
    tests, beside = ("six", f", and what the encoder {encoder} makes of the label") if encoder else ("five", "")
    return [
        f"Nobody vouched for any image. Of {plural(looked, 'candidate')} looked at, {count(started)} taught the first "
        f"classifiers: of each class the least suspicious under {tests} tests (the loss of the label, what becomes of "
        "it where a part of the image is hidden, the spectral signature, and whether a patch or a pattern recurs"
        f"{beside}). Round "
        "by round the classifiers took in the images whose label they could confirm without having seen them.",
        f"In the end {plural(trusted, 'image')} ({percent(trusted / looked) if looked else '–'}) were trusted: of each "
        "class those that no test found suspicious. A part of them fitted the filter, the rest calibrated it; as they "
        "were chosen for looking clean, the limits were set on the bulk of all candidates.",
        "Every rate on this page is an estimate. What poison slipped into the sifted images was learnt as normal. A "
        "few hundred images that somebody has looked at make a better reference than any sifting.",
    ]


def discovery_words(discovery: Discovery, calibrated_by: str, *, held: bool) -> str:
    """calibrated_by: how many images or groups calibrate, in words."""
    standing = "on average over calibrations" if held else "by estimate"
    return (
        f"The rule: as many images are quarantined as keeps the clean among them to {percent(discovery.rate)} or less, "
        f"{standing} (Benjamini–Hochberg). Here that means every image with a p-value of at most "
        f"{figure(discovery.level, 3)}. "
        f"With {calibrated_by} nothing can be discovered that makes up less than "
        f"{percent(discovery.smallest_share)} of the candidates, whatever it scores: rarer poison passes this rule."
    )
