"""The evaluate report in sentences: the headline, the signs of gradient masking, what to conclude and what not."""

from __future__ import annotations

from collections.abc import Sequence

from worker.reports.evaluate_facts import AttackRow, EvaluateFacts, Sign
from worker.reports.text import figure, interval, percent, plural

SIGNS = {
    "iterative_weaker_than_single_step": "The attack of many steps does less than the one of a single step.",
    "zero_gradients": "The gradient of the loss is exactly zero for some images.",
    "cross_entropy_far_behind_margin": "Attacks on the loss fall far behind the attack on the logits.",
}
"""What was looked for, by the name that models.robustness gives it."""


def strongest(rows: Sequence[AttackRow]) -> AttackRow:
    """The attack under which the bare student is right least often."""
    return min((row for row in rows if row.is_attack), key=lambda row: row.accuracy.value)


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
    worst = strongest(rows)
    paragraphs = [
        f"The 95 % interval of that accuracy is {interval(worst.accuracy.low, worst.accuracy.high)}. Of the images "
        f"that the student had right, {worst.name} turned {percent(worst.success.value)}."
    ]
    if worst.served is not None:
        served = worst.served
        paragraphs.append(
            f"As it is served, with the right to abstain, it answers {percent(served.correct.value)} of those attacked "
            f"images correctly, abstains from {percent(served.abstained.value)} and is wrong on "
            f"{percent(served.wrong.value)} ({interval(served.wrong.low, served.wrong.high)})."
        )
    if any(sign.raised for sign in signs):
        paragraphs.append(
            "There are signs of gradient masking: where an attack seems to fail here, it may be for want of a "
            "gradient, not because the student is robust."
        )
    return paragraphs


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


def may_not_conclude(signs: Sequence[Sign]) -> list[str]:
    points = [
        "That the student withstands larger perturbations, other norms, patches, rotations, blur or weather. None "
        "was tried.",
        "That abstention stops an attacker who aims at it. These attacks know the student's weights, but not the "
        "filter, the dropout masks or the limits.",
        "That it was never poisoned. A backdoor answers only to its trigger, and no attack here carries one.",
    ]
    if any(sign.raised for sign in signs):
        masked = "That the rows with high accuracy show robustness. Gradients are masked here; believe the lowest row."
        return [masked, *points]
    distilled = (
        "That FGSM or I-FGSM failing is robustness. Distillation shrinks the gradients they follow; read the row of "
        "the margin loss, which does not depend on them."
    )
    return [distilled, *points]
