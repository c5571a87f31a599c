"""Drawing surface of the figures: matplotlib without pyplot, out comes SVG that takes the page's colours and fonts.

Lines and text are drawn in stand-in colours that become the page's CSS variables, so one drawing serves light, dark and
print. Marks keep colours of middle lightness that show on all three, because a rasterised mark cannot change.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK, MUTED, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "var(--card)"}

KEEP, REFORM, FLAG, CLEAN, KNOWN = "#259a63", "#c47a12", "#d8433b", "#3d82c4", "#9a5fc0"
"""Kept, reformed, quarantined; held-out clean images; images perturbed on purpose."""

RASTER_DPI = 200

RcStyle = dict[Any, Any]  # matplotlib types the keys as one literal of all its options

_STYLE: RcStyle = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
}


@contextmanager
def styled(name: str) -> Iterator[None]:
    """The style of all figures, put back afterwards; `name` salts the identifiers, which makes them repeatable."""
    with matplotlib.rc_context(_STYLE):
        matplotlib.rcParams["svg.hashsalt"] = name
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` × `height` inches that lays itself out."""
    return Figure(figsize=(width, height), layout="constrained")


def _lay_out(drawing: Figure) -> None:
    """Once: a figure that lays itself out while it is saved is drawn twice."""
    engine = drawing.get_layout_engine()
    if engine is not None:
        engine.execute(drawing)
        drawing.set_layout_engine(None)


def horizontal_grid(axes: Axes) -> None:
    axes.grid(False, axis="x")


def log_scale(axes: Axes, which: Literal["x", "y"], low: float, high: float) -> None:
    """A log scale labelled in plain numbers: every decade, or 1, 2, 5 of it where there are few."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 30 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def inline_svg(drawing: Figure, name: str, alt: str) -> Markup:
    """The figure as an <svg> element for HTML: `name` makes its identifiers its own, `alt` says what it shows."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    _lay_out(drawing)
    drawing.savefig(buffer, format="svg", transparent=True, dpi=RASTER_DPI, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"; font-family: [^;\"]*", "", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    opening = f'<svg class="figure" role="img" aria-label="{escape(alt)}" '
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*" ', lambda found: opening + found[1], svg, count=1)
    return Markup(svg)  # noqa: S704 - drawn here; matplotlib escapes the text it is given
