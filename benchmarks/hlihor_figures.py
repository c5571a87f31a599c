"""Hlihor's figures 1 to 5 from the rows of the benchmark: whatever has been measured so far is drawn."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from matplotlib.axes import Axes

from benchmarks.figures import curve, panels, plain, save
from benchmarks.harness import ClaimRow

FIGURES = {
    "hlihor-1-noise-ae": (("ae", "dae"), "noise", "noise σ"),
    "hlihor-2-noise-vae": (("vae", "dvae"), "noise", "noise σ"),
    "hlihor-3-scale": (("vae", "dvae"), "scale", "factor on the covariance"),
    "hlihor-4-contractive": (("cae", "cvae"), "penalty", "contractive weight"),
}
CODES = {"cosine": "cosine of attacked and clean code", "norm-ratio": "norm of attacked over clean code"}


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    low: float
    high: float


Curves = dict[tuple[str, str, str, float], list[Point]]
"""By data set, family, what varies and its value: accuracy against ε."""


def draw(rows: list[ClaimRow]) -> None:
    curves = _curves(rows)
    sets = sorted({data_set for data_set, *_ in curves})
    for name, (families, varied, words) in FIGURES.items():
        if not any(key[1] in families and key[2] == varied for key in curves):
            continue
        figure, grid = panels(len(families), len(sets))
        for family, line in zip(families, grid, strict=True):
            for data_set, axes in zip(sets, line, strict=True):
                _accuracy(axes, curves, (data_set, family, varied), words)
        save(figure, name)
    _codes(rows)


def _accuracy(axes: Axes, curves: Curves, key: tuple[str, str, str], words: str) -> None:
    data_set, family, _ = key
    own = sorted((each for each in curves if each[:3] == key), key=lambda each: each[3])
    for number, each in enumerate(own):
        points = sorted(curves[each], key=lambda point: point.x)
        spread = [(point.low, point.high) for point in points]
        curve(axes, [p.x for p in points], [p.y for p in points], spread, number, f"{each[3]:g}")
    alone = curves.get((data_set, "none", "alone", 0.0))
    if alone:
        points = sorted(alone, key=lambda point: point.x)
        axes.plot([p.x for p in points], [p.y for p in points], "--", color="#999999", label="no autoencoder")
    if own:
        axes.legend(fontsize=7, title=words, title_fontsize=7)
    axes.set_ylim(0, 1)
    plain(axes, title=f"{family.upper()}, {data_set}", x="ε", y="accuracy under attack")


def _codes(rows: list[ClaimRow]) -> None:
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        parts = row.claim.split("/")
        if len(parts) == 6 and parts[2] == "code":
            found[parts[1], parts[5], parts[3]].append((float(parts[4].split("-")[1]), row.measured))
    sets = sorted({data_set for data_set, *_ in found})
    if not sets:
        return
    figure, grid = panels(len(CODES), len(sets))
    for (what, words), line in zip(CODES.items(), grid, strict=True):
        for data_set, axes in zip(sets, line, strict=True):
            families = sorted(key[2] for key in found if key[:2] == (data_set, what))
            for number, family in enumerate(families):
                points = sorted(found[data_set, what, family])
                curve(axes, [x for x, _ in points], [y for _, y in points], None, number, family.upper())
            axes.legend(fontsize=7)
            plain(axes, title=data_set, x="noise σ in training", y=words)
    save(figure, "hlihor-5-codes")


def _curves(rows: list[ClaimRow]) -> Curves:
    curves: Curves = defaultdict(list)
    for row in rows:
        parts = row.claim.split("/")
        if len(parts) == 6 and parts[2] == "accuracy":
            varied, _, value = parts[4].partition("-")
            low = row.measured if row.low is None else row.low
            high = row.measured if row.high is None else row.high
            point = Point(float(parts[5].split("-")[1]), row.measured, low, high)
            curves[parts[1], parts[3], varied, float(value or 0)].append(point)
    return curves
