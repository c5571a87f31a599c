"""Signs that a classifier's gradients hide the truth, from how attacks of different kinds fared on the same images.

Source: Athalye et al. 2018, section 3.1; Carlini et al. 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from models.calibration import wilson_interval
from models.robustness.outcomes import Outcome
from models.robustness.probes import Probes
from models.robustness.shares import Share

ZERO_GRADIENTS_ALLOWED = 0.01
SURVIVORS_ALLOWED = 0.01
FLAT_ALLOWED = 0.1
LAG_ALLOWED = 0.1

Sign = dict[str, Any]
"""{"flag", "raised", "measured", "meaning"}."""

MEANINGS = {
    "iterative_weaker_than_single_step": "more steps of the same attack should never do less",
    "unbounded_attack_fails": "with no limit on the change every image can be turned; an attack that cannot has lost "
    "its way",
    "white_box_weaker_than_transfer": "an attack made against another network should not do more than one made against "
    "this one",
    "white_box_weaker_than_queries": "a search without gradients should not do more than one with them",
    "loss_flat": "a loss that does not move at all around an image leads no attack anywhere",
    "zero_gradients": "the softmax is saturated: attacks on the cross-entropy see no gradient and seem to fail",
    "cross_entropy_far_behind_margin": "an attack on the logits does much more than one on the loss: believe "
    "the former",
    "temperature_unmasks": "the same attack does much more once the logits are divided by a temperature: the softmax "
    "hid the way",
    "adaptive_weaker_than_blind": "who knows the defence should do no less harm than who does not: the adaptive attack "
    "was too weak, and the stack's numbers flatter",
}


def signs(outcomes: Mapping[str, Outcome], probes: Probes) -> list[Sign]:
    """Those that the attacks tried can show, raised or not."""
    by_loss = "pgd-cross-entropy" if "pgd-cross-entropy" in outcomes else "ifgsm"
    return [
        *_weaker(outcomes, "iterative_weaker_than_single_step", "ifgsm", ("fgsm",)),
        _over("unbounded_attack_fails", probes.survived, SURVIVORS_ALLOWED),
        *_weaker(outcomes, "white_box_weaker_than_transfer", by_loss, ("transfer-teacher", "transfer-foreign")),
        *_weaker(outcomes, "white_box_weaker_than_queries", by_loss, ("square",)),
        _over("loss_flat", probes.flat, FLAT_ALLOWED),
        _over("zero_gradients", probes.zero, ZERO_GRADIENTS_ALLOWED),
        *_lag(outcomes, "cross_entropy_far_behind_margin", by_loss, "pgd-margin"),
        *_lag(outcomes, "temperature_unmasks", by_loss, "pgd-temperature"),
        *_adaptive(outcomes),
    ]


def _over(flag: str, measured: Share, allowed: float) -> Sign:
    return _sign(flag, measured.share > allowed, asdict(measured))


def _weaker(outcomes: Mapping[str, Outcome], flag: str, stronger: str, weaker: tuple[str, ...]) -> list[Sign]:
    """Raised where one that should be weaker fools images that the stronger leaves, more often than the reverse."""
    tried = [name for name in weaker if name in outcomes]
    if stronger not in outcomes or not tried:
        return []
    measured: dict[str, Any] = {}
    raised = False
    for name in tried:
        only_weaker, only_stronger, n = _only(outcomes[name], outcomes[stronger])
        measured |= {f"fooled_by_{name}_only": only_weaker, f"fooled_by_{stronger}_only": only_stronger, "n": n}
        raised |= wilson_interval(only_weaker, only_weaker + only_stronger)[0] > 0.5
    return [_sign(flag, raised, measured)]


def _lag(outcomes: Mapping[str, Outcome], flag: str, behind: str, ahead: str) -> list[Sign]:
    if behind not in outcomes or ahead not in outcomes:
        return []
    only_ahead, only_behind, n = _only(outcomes[ahead], outcomes[behind])
    lag = (only_ahead - only_behind) / n
    raised = lag > LAG_ALLOWED and wilson_interval(only_ahead, only_ahead + only_behind)[0] > 0.5
    counts = {f"fooled_by_{ahead}_only": only_ahead, f"fooled_by_{behind}_only": only_behind}
    return [_sign(flag, raised, {f"fooled_by_{ahead}_over_{behind}": lag, **counts, "n": n})]


def _only(first: Outcome, second: Outcome) -> tuple[int, int, int]:
    """Of the images that both attacked: how many only the first fooled, only the second, and how many there are."""
    _, ours, theirs = np.intersect1d(first.rows, second.rows, return_indices=True)
    one, other = first.fooled[ours], second.fooled[theirs]
    return int((one & ~other).sum()), int((other & ~one).sum()), len(ours)


def _adaptive(outcomes: Mapping[str, Outcome]) -> list[Sign]:
    """Of the harm that the table shows: what is served, and wrong, whatever the bare student makes of it."""
    blind = "pgd-margin"
    if "adaptive" not in outcomes or blind not in outcomes:
        return []
    adaptive, other = outcomes["adaptive"], outcomes[blind]
    if adaptive.harmed is None or other.harmed is None:
        return []
    _, ours, theirs = np.intersect1d(adaptive.rows, other.rows, return_indices=True)
    by_adaptive, by_blind = adaptive.harmed[ours], other.harmed[theirs]
    only_blind, only_adaptive = int((by_blind & ~by_adaptive).sum()), int((by_adaptive & ~by_blind).sum())
    raised = wilson_interval(only_blind, only_blind + only_adaptive)[0] > 0.5
    measured = {f"wrong_and_answered_under_{blind}_only": only_blind, "under_adaptive_only": only_adaptive}
    return [_sign("adaptive_weaker_than_blind", raised, measured | {"n": len(ours)})]


def _sign(flag: str, raised: bool, measured: dict[str, Any]) -> Sign:
    return {"flag": flag, "raised": bool(raised), "measured": measured, "meaning": MEANINGS[flag]}
