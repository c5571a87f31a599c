"""The report of a distill job: what the student learned, what its probabilities are worth, when it abstains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from worker.reports.canvas import CLEAN, FLAG, KEEP, MUTED, inline_svg, new_figure, styled
from worker.reports.page import Report, render
from worker.reports.text import percent, plain

METHODS = {
    "defensive": "trained on its teacher's soft labels. Distillation smooths answers; it is no defence by itself: a "
    "saturated softmax hides its gradients from attacks on the loss, and from no others",
    "extended": "trained on its teacher's soft labels and an outlier class, which holds what the teacher was unsure of",
    "robust": "trained to agree with its teacher on images that were perturbed against it at every step",
}

TESTS = {
    "perturbed": "the detector's score",
    "uncertain": "how far its probabilities under dropout lie from those of the class it names",
    "unfamiliar": "how far its features lie from those of the images it was trained on",
    "outlier": "the odds of the outlier class",
}


@dataclass(frozen=True)
class DistillFacts:
    """What the page and the JSON tell. metrics, notes: as in the model's card; losses: of teacher and student."""

    model: str
    job_id: str
    spec: Mapping[str, Any]
    metrics: Mapping[str, Any]
    notes: Mapping[str, Any]
    losses: Mapping[str, Sequence[float]]
    versions: Mapping[str, str]


def distill_report(facts: DistillFacts) -> Report:
    """The numbers and the page. The same facts give the same report."""
    metrics = facts.metrics
    page = render(
        "distill.html",
        title=f"Distill report of {facts.model}",
        facts=facts,
        headline=_headline(facts),
        method=METHODS[facts.spec["method"]],
        tests=[(name, TESTS[name]) for name in metrics["abstains_for"]],
        pictures={"losses": _losses(facts), "reliability": _reliability(metrics["reliability"])},
        networks=[("teacher", metrics["teacher_accuracy"]), ("student", metrics["student_accuracy"])],
    )
    return Report(json=plain(asdict(facts)), html=page)


def _headline(facts: DistillFacts) -> str:
    student = facts.metrics["student_accuracy"]
    return f"The student is right on {percent(student['share'])} of the images that were held out"


def _losses(facts: DistillFacts) -> Markup:
    with styled("losses"):
        drawing = new_figure(8.0, 2.8)
        for axes, (name, values) in zip(drawing.subplots(1, 2), facts.losses.items(), strict=True):
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, color=CLEAN)
            axes.set(title=name.capitalize(), xlabel="epoch", ylabel="training loss")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        told = ", ".join(f"{name} {values[-1]:.3g}" for name, values in facts.losses.items())
        return inline_svg(drawing, "losses", f"Training loss by epoch; at the end {told}.")


def _reliability(found: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Share right against mean probability, before and after the temperature."""
    with styled("reliability"):
        drawing = new_figure(8.0, 3.4)
        before, after = drawing.subplots(1, 2, sharey=True)
        _diagram(before, found["before"], "As the student computes them", FLAG)
        _diagram(after, found["after"], "At the calibrated temperature", KEEP)
        before.set_ylabel("share right")
        alt = (
            f"Reliability diagrams: the expected calibration error is {found['before']['ece']:.3g} before and "
            f"{found['after']['ece']:.3g} after the temperature."
        )
        return inline_svg(drawing, "reliability", alt)


def _diagram(axes: Axes, found: Mapping[str, Any], title: str, colour: str) -> None:
    filled = [place for place, count in enumerate(found["counts"]) if count]
    most = max(found["counts"])
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1)
    axes.scatter(
        [found["confidence"][place] for place in filled],
        [found["accuracy"][place] for place in filled],
        s=[12 + 90 * found["counts"][place] / most for place in filled],
        color=colour,
    )
    axes.set(title=f"{title}: ECE {found['ece']:.3g}", xlabel="mean probability of the answer", xlim=(0, 1.03))
    axes.set_ylim(0, 1.03)
