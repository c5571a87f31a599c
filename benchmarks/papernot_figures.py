"""The temperature sweep as one figure: JSMA's success, the features it costs, the gradients' size, accuracy."""

from __future__ import annotations

from typing import Any

from benchmarks import figures

NAME = "papernot-temperature"


def draw(found: dict[str, Any]) -> None:
    """Four panels against T; the network that was not distilled as a dashed line."""
    temperatures = sorted(int(key[1:]) for key in found if key[1:].isdigit())
    at, plain = [found[f"T{t}"] for t in temperatures], found["plain"]
    figure, axes = figures.panels(2, 2)
    success, robustness, amplitude, accuracy = (axes[i][j] for i in (0, 1) for j in (0, 1))
    for panel, key, title, y in (
        (success, "jsma_success", "JSMA, 112 features, on the probabilities", "targets reached"),
        (accuracy, "accuracy", "Accuracy on clean images", "share"),
    ):
        spread = [(each[key]["low"], each[key]["high"]) for each in at]
        figures.curve(panel, temperatures, [each[key]["share"] for each in at], spread, 0, "distilled")
        panel.axhline(plain[key]["share"], linestyle="--", color=figures.COLOURS[1], label="not distilled")
        figures.plain(panel, title=title, x="T", y=y)
    error = [1.96 * each["robustness"]["sd"] / each["robustness"]["n"] ** 0.5 for each in at]
    mean = [each["robustness"]["mean"] for each in at]
    spread = [(m - e, m + e) for m, e in zip(mean, error, strict=True)]
    figures.curve(robustness, temperatures, mean, spread, 0, "distilled")
    robustness.axhline(plain["robustness"]["mean"], linestyle="--", color=figures.COLOURS[1], label="not distilled")
    figures.plain(robustness, title="Robustness to JSMA", x="T", y="least share of features")
    median = [max(each["gradient_amplitude"]["median"], 1e-300) for each in at]
    figures.curve(amplitude, temperatures, median, None, 0, "distilled")
    amplitude.axhline(plain["gradient_amplitude"]["median"], linestyle="--", color=figures.COLOURS[1])
    amplitude.set_yscale("log")
    figures.plain(amplitude, title="Gradient amplitude (float64)", x="T", y="median mean |∂F/∂x|")
    for panel in (success, robustness, amplitude, accuracy):
        panel.set_xscale("log")
    success.legend(frameon=False, fontsize=8)
    figures.save(figure, NAME)
