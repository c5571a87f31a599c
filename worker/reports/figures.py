"""Figures of the sanitise report: every image's error against the limit, histograms, loss curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from worker.reports import text
from worker.reports.canvas import (
    CLEAN,
    FLAG,
    INK,
    KEEP,
    KNOWN,
    MUTED,
    REFORM,
    horizontal_grid,
    inline_svg,
    log_scale,
    new_figure,
    styled,
)
from worker.reports.histograms import Axis
from worker.reports.sanitise_facts import FitLosses, Floats, Mask, SanitiseFacts
from worker.reports.sanitise_findings import Findings, PValues
from worker.reports.sanitise_panel import DetectorRow
from worker.reports.sanitise_panel_words import detector_name

VECTOR_POINTS = 1500
"""More points than this are drawn as pixels."""
MOST_KEPT_POINTS = 200_000
"""More kept images than this are thinned to every k-th; flagged ones are always all drawn."""

_WIDTH = 10.0
_LOSS_COLUMNS = 3
_DETECTOR_COLUMNS = {1: 1, 2: 2, 4: 2}  # else 3
_TICK = 0.03  # of the panel's height: a few images among a million would show as nothing
_DASHED = (0, (4, 2.5))


def every_error(facts: SanitiseFacts, found: Findings, alt: str) -> Markup:
    """Score of every image by its index, held-out images beside the candidates, on one scale with the limit."""
    name = "errors"
    panels: list[tuple[str, Floats]] = []
    if len(facts.calibration_scores):
        panels.append(("Held-out, clean" if facts.reference else "Calibration", facts.calibration_scores))
    panels += [(f"Held-out, {text.visible(kind, 14)}", s) for kind, s in facts.known_perturbed.items() if len(s)]
    with styled(name):
        drawing = new_figure(_WIDTH, 4.4)
        ratios = [*[1.0] * len(panels), 3.2]
        grid = drawing.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)
        for axes, (title, scores) in zip(grid[0], panels, strict=False):
            over = scores > facts.threshold
            _points(axes, scores, found.axis, {KEEP: ~over, FLAG: over}, room=1 / ratios[-1])
            _panel_title(axes, title, len(scores))
            axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
        candidates = grid[0][-1]
        own = found.by_filter
        marks = {
            KEEP: ~found.flagged,
            KNOWN: found.flagged & ~own,
            REFORM: found.reformed & own,
            FLAG: found.quarantined & own,
        }
        _points(candidates, facts.scores, found.axis, marks, room=1.0)
        _panel_title(candidates, "Candidates", len(facts.scores))
        candidates.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        for axes in grid[0]:
            _limit_line(axes, facts.threshold, found.axis)
            axes.set_xlabel("index")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        grid[0][0].set_ylabel(_score_label(found.axis))
        _room_for(grid[0][0], found.axis, [facts.scores, facts.threshold, *(s for _, s in panels)])
        drawing.legend(handles=_legend(found), loc="outside upper right", ncols=5, handletextpad=0.3)
        return inline_svg(drawing, name, alt)


def _points(axes: Axes, scores: Floats, axis: Axis, marks: Mapping[str, Mask], *, room: float) -> None:
    """One mark an image: kept ones below, flagged ones on top; smaller where many share little room."""
    size = float(np.clip(4.5 * math.sqrt(1500 * room / len(scores)), 2.0, 4.5))
    for layer, (colour, mask) in enumerate(marks.items()):
        chosen = np.flatnonzero(mask)
        if colour == KEEP:
            chosen = chosen[:: max(1, -(-len(chosen) // MOST_KEPT_POINTS))]
        axes.plot(
            chosen,
            axis.place(scores[chosen]),
            linestyle="none",
            marker="o" if colour == KEEP else "D",
            markersize=size if colour == KEEP else size * 0.95,
            markeredgewidth=0,
            color=colour,
            alpha=0.55 if colour == KEEP else 0.85,
            rasterized=len(scores) > VECTOR_POINTS,
            zorder=2 + layer,
        )
    axes.set_xlim(-0.015 * len(scores), 1.015 * max(1, len(scores)))


def _legend(found: Findings) -> list[Line2D]:
    own = found.by_filter
    by_this = "quarantined" if len(found.detectors) == 1 else "flagged by this score"
    entries = [
        (KEEP, "o", "kept", int((~found.flagged).sum())),
        (KNOWN, "D", "flagged by other detectors", int((found.flagged & ~own).sum())),
        (REFORM, "D", "reformed", int((found.reformed & own).sum())),
        (FLAG, "D", by_this, int((found.quarantined & own).sum())),
    ]
    marks = [
        Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=6, label=f"{text.count(n)} {word}")
        for colour, marker, word, n in entries
        if n or colour in (KEEP, FLAG)
    ]
    return [*marks, Line2D([], [], color=INK, linestyle=_DASHED, label="limit")]


def _panel_title(axes: Axes, title: str, images: int) -> None:
    axes.set_title(f"{title}\n{text.plural(images, 'image')}", parse_math=False, fontsize=9.5)


def _limit_line(axes: Axes, threshold: float, axis: Axis) -> None:
    axes.axhline(_placed(axis, threshold), color=INK, linestyle=_DASHED, linewidth=1.3, zorder=6)


def _score_label(axis: Axis) -> str:
    return "score (log scale)" if axis.log else "score"


def _placed(axis: Axis, score: float) -> float:
    return float(axis.place(np.array([score]))[0])


def _room_for(axes: Axes, axis: Axis, values: Sequence[Floats | float]) -> None:
    placed = axis.place(np.concatenate([np.atleast_1d(np.asarray(v, np.float64)) for v in values]))
    low, high = float(placed.min()), float(placed.max())
    if axis.log:
        margin = (high / low) ** 0.05 if high > low else 2.0
        log_scale(axes, "y", low, high)
        axes.set_ylim(low / margin, high * margin)
    else:
        margin = 0.05 * (high - low) or 0.5
        axes.set_ylim(low - margin, high + margin)


def score_histograms(rows: Sequence[DetectorRow], alt: str, *, trusted: bool) -> Markup:
    """A panel for each detector: shares of the candidates in each bin, those it spoke against on top of the others,
    against the outline of the calibration images."""
    name = "scores"
    columns = _DETECTOR_COLUMNS.get(len(rows), 3)
    lines = -(-len(rows) // columns)
    with styled(name):
        drawing = new_figure(_WIDTH if columns > 1 else _WIDTH / 2, 3.5 if columns == 1 else 2.7 * lines + 0.4)
        grid = drawing.subplots(lines, columns, squeeze=False).ravel()
        for axes, row in zip(grid, rows, strict=False):
            _detector_panel(axes, row, titled=columns > 1)
        for axes in grid[len(rows) :]:
            axes.set_axis_off()
        for axes in grid[:: max(columns, 1)]:
            axes.set_ylabel("share of images")
        handles: list[Artist] = [
            Patch(color=KEEP, alpha=0.6, label="kept" if columns == 1 else "not against"),
            Patch(color=FLAG, alpha=0.8, label="flagged" if columns == 1 else "spoke against"),
            Line2D([], [], color=CLEAN, label="held-out clean" if trusted else "calibration"),
            Line2D([], [], color=INK, linestyle=_DASHED, label="limit"),
        ]
        drawing.legend(handles=handles, loc="outside upper left", ncols=4, columnspacing=1.2, handlelength=1.8)
        return inline_svg(drawing, name, alt)


def _detector_panel(axes: Axes, row: DetectorRow, *, titled: bool) -> None:
    facts, bins = row.facts, row.histogram
    total = len(facts.scores)
    kept, both = bins.kept / total, (bins.kept + bins.flagged) / total
    axes.stairs(kept, bins.edges, fill=True, color=KEEP, alpha=0.6)
    axes.stairs(both, bins.edges, baseline=kept, fill=True, color=FLAG, alpha=0.8)
    low = (bins.flagged > 0) & (bins.flagged / total < _TICK * both.max())
    middles = (bins.edges[:-1] + bins.edges[1:])[low] / 2
    axes.vlines(middles, -_TICK, 0, color=FLAG, linewidth=1.6, transform=axes.get_xaxis_transform(), clip_on=False)
    if len(facts.calibration_scores):
        axes.stairs(bins.calibration / len(facts.calibration_scores), bins.edges, color=CLEAN, linewidth=1.6)
    if row.limited:
        axes.axvline(_placed(row.axis, facts.threshold), color=INK, linestyle=_DASHED, linewidth=1.3)
    if row.axis.log:
        log_scale(axes, "x", bins.edges[0], bins.edges[-1])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    if titled:
        axes.set_title(text.visible(detector_name(facts.name), 30), parse_math=False)
    axes.set_xlabel(_score_label(row.axis))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if both.max() > 0.04 else 1, symbol=" %"))
    horizontal_grid(axes)


def p_value_histogram(p_values: PValues, level: float | None, alt: str, level_name: str) -> Markup:
    """Counts of p-values against what clean candidates would give."""
    name = "p-values"
    with styled(name):
        drawing = new_figure(_WIDTH / 2, 3.5)
        axes = drawing.subplots()
        low = np.maximum(p_values.expected - 1.96 * p_values.deviation, 0)
        high = p_values.expected + 1.96 * p_values.deviation
        axes.stairs(p_values.counts, p_values.edges, fill=True, color=CLEAN, alpha=0.6)
        axes.stairs(high, p_values.edges, baseline=low, fill=True, color=MUTED, alpha=0.3)
        axes.stairs(p_values.expected, p_values.edges, baseline=None, color=INK, linewidth=1.3)
        handles: list[Artist] = [
            Patch(color=CLEAN, alpha=0.6, label="this set"),
            Line2D([], [], color=INK, linewidth=1.3, label="a clean set"),
            Patch(color=MUTED, alpha=0.3, label="its 95 % band"),
        ]
        if level is not None:
            axes.axvline(level, color=FLAG, linewidth=1.3, linestyle=_DASHED)
            handles.append(Line2D([], [], color=FLAG, linestyle=_DASHED, label=level_name))
        axes.set_xlim(-0.01, 1.01)
        axes.set_xlabel("p-value")
        axes.set_ylabel("images")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        horizontal_grid(axes)
        drawing.legend(handles=handles, loc="outside upper left", ncols=4, columnspacing=1.2, handlelength=1.8)
        return inline_svg(drawing, name, alt)


def loss_curves(losses: Mapping[str, FitLosses], alt: str) -> Markup:
    """One panel a network: its training loss, and its validation loss where it has one, by epoch."""
    name = "losses"
    rows = -(-len(losses) // _LOSS_COLUMNS)
    columns = min(len(losses), _LOSS_COLUMNS)
    with styled(name):
        drawing = new_figure(_WIDTH, 3.0 * rows + 0.3)
        panels = drawing.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, fit) in zip(panels, losses.items(), strict=False):
            _loss_panel(axes, title, fit)
        for axes in panels[len(losses) :]:
            axes.set_axis_off()
        handles = [
            Line2D([], [], color=CLEAN, marker="o", markersize=4, label="training"),
            Line2D([], [], color=REFORM, marker="s", markersize=4, linestyle=(0, (4, 2)), label="validation"),
        ]
        drawing.legend(handles=handles, loc="outside upper right", ncols=2)
        return inline_svg(drawing, name, alt)


def _loss_panel(axes: Axes, title: str, fit: FitLosses) -> None:
    curves: list[npt.NDArray[np.float64]] = []
    for values, colour, marker, line in ((fit.train, CLEAN, "o", "-"), (fit.validation, REFORM, "s", (0, (4, 2)))):
        loss = np.asarray(values, np.float64)
        curves.append(loss[np.isfinite(loss)])
        axes.plot(np.arange(1, len(loss) + 1), loss, color=colour, marker=marker, markersize=4, linestyle=line)
    drawn = np.concatenate(curves)
    if drawn.size and drawn.min() > 0 and drawn.max() > 20 * drawn.min():
        log_scale(axes, "y", drawn.min(), drawn.max())
    axes.set_title(text.visible(title, 40), parse_math=False)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean loss")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
