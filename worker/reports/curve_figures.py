"""The security curves of the evaluate report: what is right, refused and wrong as the attacker's box grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator, PercentFormatter

from worker.reports.canvas import CLEAN, FLAG, KEEP, KNOWN, REFORM, horizontal_grid, inline_svg, new_figure, styled
from worker.reports.evaluate_facts import Point
from worker.reports.text import visible

_WIDTH, _HEIGHT = 10.0, 3.7
_COLOURS = (CLEAN, KNOWN)
_PARTS = (
    ("correct", "answered correctly", KEEP),
    ("abstained", "abstained", REFORM),
    ("wrong", "answered wrongly", FLAG),
)


def security_curves(curve: Sequence[Point], alt: str) -> Markup:
    """First the bare student's accuracy against ε; then, an attack a panel, the three shares of the served model."""
    name = "curves"
    attacks = list(dict.fromkeys(point.attack for point in curve))
    of = {attack: sorted((p for p in curve if p.attack == attack), key=lambda p: p.eps_linf) for attack in attacks}
    served = [attack for attack in attacks if all(point.served is not None for point in of[attack])]
    with styled(name):
        drawing = new_figure(_WIDTH, _HEIGHT)
        grid = drawing.subplots(1, 1 + len(served), squeeze=False, sharey=True)[0]
        for colour, attack in zip(_COLOURS, attacks, strict=False):
            _accuracy(grid[0], of[attack], colour)
        _eps_axis(grid[0], curve)
        grid[0].set_title("student alone, right")
        handles: list[Artist] = [
            Line2D([], [], color=colour, marker="o", label=visible(of[attack][0].name, 40))
            for colour, attack in zip(_COLOURS, attacks, strict=False)
        ]
        for axes, attack in zip(grid[1:], served, strict=True):
            _shares(axes, of[attack])
            _eps_axis(axes, of[attack])
            axes.set_title(f"served, under\n{visible(of[attack][0].name, 34)}")
        if served:
            handles += [Patch(color=colour, alpha=0.75, label=label) for _, label, colour in _PARTS]
        drawing.legend(handles=handles, loc="outside lower center", ncols=3)
        return inline_svg(drawing, name, alt)


def _accuracy(axes: Axes, points: Sequence[Point], colour: str) -> None:
    eps = [point.eps_linf for point in points]
    values = np.array([point.accuracy.value for point in points])
    low = values - np.array([point.accuracy.low for point in points])
    high = np.array([point.accuracy.high for point in points]) - values
    errors = np.maximum(np.stack([low, high]), 0)
    axes.errorbar(eps, values, yerr=errors, fmt="o-", color=colour, markersize=5, capsize=3)


def _shares(axes: Axes, points: Sequence[Point]) -> None:
    eps = [point.eps_linf for point in points]
    shares = [
        [getattr(point.served, part).value for point in points if point.served is not None] for part, _, _ in _PARTS
    ]
    axes.stackplot(eps, *shares, colors=[colour for _, _, colour in _PARTS], alpha=0.75)


def _eps_axis(axes: Axes, points: Sequence[Point]) -> None:
    eps = sorted({point.eps_linf for point in points})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(eps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelrotation=45)
    axes.set_xlabel("ε (L∞)")
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    horizontal_grid(axes)
