"""The evaluate report in sentences: the headline, the signs of gradient masking, what to conclude and what not."""

from __future__ import annotations

from collections.abc import Sequence

from worker.reports.evaluate_facts import AttackRow, EvaluateFacts, Sign
from worker.reports.text import figure, interval, percent, plural

SIGNS = {
    "iterative_weaker_than_single_step": "The attack of many steps does less than the one of a single step.",
    "unbounded_attack_fails": "An attack that may change everything leaves images right.",
    "white_box_weaker_than_transfer": "An attack made against another network does more than one on the loss.",
    "white_box_weaker_than_queries": "A search without gradients does more than an attack on the loss.",
    "loss_flat": "Around some images the loss is the same to the last bit.",
    "zero_gradients": "The gradient of the loss is exactly zero for some images.",
    "cross_entropy_far_behind_margin": "Attacks on the loss fall far behind the attack on the logits.",
    "temperature_unmasks": "The same attack does much more at a high temperature.",
    "adaptive_weaker_than_blind": "The attack that knows the whole stack does less harm than one that does not.",
}
"""What was looked for, by the name that models.robustness gives it."""

OF_THE_ATTACKER = "adaptive_weaker_than_blind"
"""A sign that says something of this evaluation, not of the student."""

LEAST_CHANGE = {"deepfool": "L2", "cw": "L2", "jsma": "L0"}
"""Attacks that look for the least change, and in which norm."""


def strongest(rows: Sequence[AttackRow]) -> AttackRow:
    """The attack under which the bare student is right least often; one without a box only where there is no other."""
    attacks = [row for row in rows if row.is_attack]
    boxed = [row for row in attacks if row.eps_linf is not None]
    return min(boxed or attacks, key=lambda row: row.accuracy.value)


def most_harmful(rows: Sequence[AttackRow]) -> AttackRow | None:
    """The attack in a box under which the served model is wrong most often; None where it was not tried."""
    tried = [row for row in rows if row.is_attack and row.served is not None]
    boxed = [row for row in tried if row.eps_linf is not None]
    return max(boxed or tried, key=_wrong, default=None)


def _wrong(row: AttackRow) -> float:
    return -1.0 if row.served is None else row.served.wrong.value


def headline(facts: EvaluateFacts, rows: Sequence[AttackRow]) -> str:
    worst = strongest(rows)
    clean = next((row for row in rows if not row.is_attack), None)
    before = f"; without attack, {percent(clean.accuracy.value)}" if clean else ""
    eps = facts.spec.get("eps_linf")
    size = f" (ε = {figure(float(eps))})" if eps is not None else ""
    return (
        f"Under {worst.name}{size}, the strongest attack tried, the student gets {percent(worst.accuracy.value)} of "
        f"{plural(worst.n, 'image')} right{before}."
    )


def grounds(rows: Sequence[AttackRow], signs: Sequence[Sign]) -> list[str]:
    """What the headline rests on, a paragraph each."""
    worst, harmful = strongest(rows), most_harmful(rows)
    paragraphs = [
        f"The 95 % interval of that accuracy is {interval(worst.accuracy.low, worst.accuracy.high)}. Of the images "
        f"that the student had right, {worst.name} turned {percent(worst.success.value)}."
    ]
    if harmful is not None and harmful.served is not None:
        served = harmful.served
        paragraphs.append(
            f"As it is served, with the right to abstain, it fares worst under {harmful.name}, whose attacker has "
            f"{harmful.knows}: it answers {percent(served.correct.value)} of those attacked images "
            f"correctly, abstains from {percent(served.abstained.value)} and is wrong on {percent(served.wrong.value)} "
            f"({interval(served.wrong.low, served.wrong.high)}, {plural(harmful.n, 'image')})."
        )
    if _masked(signs):
        paragraphs.append(
            "There are signs of gradient masking: where an attack seems to fail here, it may be for want of a "
            "gradient, not because the student is robust."
        )
    return paragraphs


def verdict(rows: Sequence[AttackRow], signs: Sequence[Sign]) -> str:
    """What to make of it, in one sentence."""
    worst, harmful = strongest(rows), most_harmful(rows)
    if _masked(signs):
        return f"Do not call the student robust: gradients are masked. Believe the lowest row, {worst.name}."
    known = any(row.knowledge == "everything" for row in rows)
    if harmful is not None and not known:
        return "Nobody who knows the whole stack was let loose on it: of the served model this shows the easy half."
    if harmful is not None and _wrong(harmful) > 0.05:
        return "An attacker who gets that far makes the served model wrong too often to rely on its abstention."
    if _too_weak(signs):
        return (
            "No sign of gradient masking was seen, but the attacker who knows the whole stack did less harm than one "
            "who does not: of the served model the table shows too little harm."
        )
    return "No sign of gradient masking was seen: within its intervals the table can be taken as it stands."


def _masked(signs: Sequence[Sign]) -> bool:
    return any(sign.raised and sign.name != OF_THE_ATTACKER for sign in signs)


def _too_weak(signs: Sequence[Sign]) -> bool:
    return any(sign.raised and sign.name == OF_THE_ATTACKER for sign in signs)


def may_conclude(facts: EvaluateFacts, rows: Sequence[AttackRow]) -> list[str]:
    worst = strongest(rows)
    points = [
        f"For images like those of {facts.dataset}, attacked in these ways at this size, the table holds within "
        "its intervals.",
        f"The student's accuracy against the best attack of this size is at most about {percent(worst.accuracy.high)}: "
        "the table bounds it from above, and a stronger attack can only lower it.",
    ]
    if worst.served is not None:
        points.append("Abstention costs answers on clean images too: its share without attack is in the same figure.")
    return points


def may_not_conclude(rows: Sequence[AttackRow], signs: Sequence[Sign]) -> list[str]:
    points = [
        _of_what_was_not_tried(rows),
        _of_abstention(rows, signs),
        "That it was never poisoned. A backdoor answers only to its trigger, and no attack here carries one.",
    ]
    if _masked(signs):
        masked = "That the rows with high accuracy show robustness. Gradients are masked here; believe the lowest row."
        return [masked, *points]
    distilled = (
        "That FGSM or I-FGSM failing is robustness. Distillation shrinks the gradients they follow; read the row of "
        "the margin loss, which does not depend on them."
    )
    return [distilled, *points]


def _of_what_was_not_tried(rows: Sequence[AttackRow]) -> str:
    other_norms = [
        f"{row.name} ({LEAST_CHANGE[row.attack]}{'' if row.eps_linf is None else ', in the same box'})"
        for row in rows
        if row.attack in LEAST_CHANGE
    ]
    if not other_norms:
        return (
            "That the student withstands larger perturbations than those of the curves, other norms, patches, "
            "rotations, blur or weather. None was tried."
        )
    return (
        "That the student withstands larger boxes than those of the curves, patches, rotations, blur or weather. None "
        f"was tried. Of other norms than L∞ only these were: {', '.join(other_norms)}. A change that an attack finds "
        "is not the least there is."
    )


def _of_abstention(rows: Sequence[AttackRow], signs: Sequence[Sign]) -> str:
    if _too_weak(signs):
        return (
            "That abstention stops an attacker who knows it. The one tried did less harm than one who does not know "
            "it, so it was too weak; ask for more adaptive_steps and adaptive_restarts."
        )
    if any(row.knowledge == "everything" for row in rows):
        return (
            "That abstention stops every attacker who knows it. One was tried, with so many steps; a better one, or "
            "one with more time, can only do more."
        )
    return (
        "That abstention stops an attacker who aims at it. These attacks know the student's weights, but not the "
        "filter, the dropout masks or the limits."
    )
