"""Figures of the evaluate report: accuracy under each attack with its interval, and what the served model answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from worker.reports.canvas import CLEAN, FLAG, INK, KEEP, REFORM, inline_svg, new_figure, styled
from worker.reports.evaluate_facts import AttackRow
from worker.reports.text import percent, visible

_WIDTH, _ROW, _MARGIN = 10.0, 0.48, 0.95
_LABELLED = 0.06


def accuracies(rows: Sequence[AttackRow], alt: str) -> Markup:
    """The bare student's accuracy: a dot with its 95 % interval for each attack."""
    name = "accuracies"
    with styled(name):
        drawing = new_figure(_WIDTH, _MARGIN + _ROW * len(rows))
        axes = drawing.subplots()
        places = np.arange(len(rows))
        values = np.array([row.accuracy.value for row in rows])
        low = values - np.array([row.accuracy.low for row in rows])
        high = np.array([row.accuracy.high for row in rows]) - values
        errors = np.maximum(np.stack([low, high]), 0)
        axes.errorbar(values, places, xerr=errors, fmt="o", color=CLEAN, markersize=7, capsize=4, elinewidth=1.8)
        for place, row in zip(places, rows, strict=True):
            # A label inside a nearly full axis would leave it, so the dot of a high value has its number on the left.
            left = row.accuracy.value > 0.9
            at = row.accuracy.low if left else row.accuracy.high
            axes.annotate(
                percent(row.accuracy.value),
                (at, place),
                xytext=(-8 if left else 8, 0),
                textcoords="offset points",
                va="center",
                ha="right" if left else "left",
            )
        _name_rows(axes, rows)
        axes.set_xlabel("right answers of the student alone, with 95 % interval")
        return inline_svg(drawing, name, alt)


def served_shares(rows: Sequence[AttackRow], alt: str) -> Markup:
    """Of each attack's images: answered correctly, abstained from, answered wrongly, as stacked bars."""
    name = "served"
    shown = [(row, row.served) for row in rows if row.served is not None]
    with styled(name):
        drawing = new_figure(_WIDTH, _MARGIN + 0.3 + _ROW * len(shown))
        axes = drawing.subplots()
        parts = (
            ("correct", "answered correctly", KEEP),
            ("abstained", "abstained", REFORM),
            ("wrong", "answered wrongly", FLAG),
        )
        left = np.zeros(len(shown))
        for part, _, colour in parts:
            widths = np.array([getattr(served, part).value for _, served in shown])
            axes.barh(np.arange(len(shown)), widths, left=left, height=0.62, color=colour)
            for place, (start, width) in enumerate(zip(left, widths, strict=True)):
                if width >= _LABELLED:
                    middle = start + width / 2
                    axes.text(
                        middle, place, percent(width), ha="center", va="center", color="#000000", fontweight="bold"
                    )
            left += widths
        _name_rows(axes, [row for row, _ in shown])
        axes.set_xlabel("share of the images")
        handles = [Patch(color=colour, label=label) for _, label, colour in parts]
        drawing.legend(handles=handles, loc="outside upper right", ncols=3)
        return inline_svg(drawing, name, alt)


def _name_rows(axes: Axes, rows: Sequence[AttackRow]) -> None:
    axes.set_yticks(np.arange(len(rows)), [visible(row.name, 32) for row in rows], parse_math=False, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.01, 1.01)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.grid(False, axis="y")
