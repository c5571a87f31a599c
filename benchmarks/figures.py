"""Figures of the benchmarks, drawn from what was measured; written as SVG and PNG under benchmarks/results/figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness import RESULTS

FOLDER = RESULTS / "figures"
COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#b07d2b", "#6a4c93", "#555555")

matplotlib.rcParams["svg.hashsalt"] = "winnow"  # the same figure is the same file


def panels(rows: int, columns: int, *, width: float = 4.0, height: float = 3.0) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def plain(axes: Axes, *, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def curve(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    spread: Sequence[tuple[float, float]] | None,
    number: int,
    label: str,
) -> None:
    """spread: (low, high) at each point, or None."""
    colour = COLOURS[number % len(COLOURS)]
    axes.plot(x, y, marker="o", markersize=3, color=colour, label=label)
    if spread:
        axes.fill_between(x, [low for low, _ in spread], [high for _, high in spread], color=colour, alpha=0.12)


def save(figure: Figure, name: str) -> list[Path]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    paths = [FOLDER / f"{name}.svg", FOLDER / f"{name}.png"]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.savefig(paths[1], dpi=110)
    return paths
