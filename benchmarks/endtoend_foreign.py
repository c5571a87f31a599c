"""Images of another world: how often the served model answers null, at α = 5 %, and what that costs on its own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from benchmarks import datasets
from benchmarks.endtoend_setting import Scene
from benchmarks.harness import ClaimRow, row
from models.calibration import realised_rate_bounds, wilson_interval

ALPHA = 0.05
PAIRS = (("gtsrb", "cifar10"), ("mnist", "fashion-mnist"))
# What is asked here is asked of the filter and the student; the panel looks at training sets only.
NO_PANEL: dict[str, Any] = {"sanitise": {"panel": {"detectors": []}}}


def rows(scene: Scene) -> tuple[list[ClaimRow], dict[str, Any]]:
    found: list[ClaimRow] = []
    told: dict[str, Any] = {}
    for own, foreign in PAIRS:
        world = scene.world(own, poisoned=own == "gtsrb")
        versions = scene.upload_world(world)
        job = scene.hardened(world, versions, **({} if own == "gtsrb" else NO_PANEL))
        result = job.result or {}
        images = datasets.load(scene.data, foreign).test_images[: scene.scale.asked]
        answers = scene.answers(result["model"], images, ALPHA)
        hits, n = sum(each.abstained for each in answers), len(answers)
        share = hits / n
        claim = f"endtoend/{own}-to-{foreign}/abstained-at-{ALPHA}"
        found.append(row(claim, ">= 0.95", share, share >= 0.95, interval=wilson_interval(hits, n), n=n))
        clean = scene.answers(result["model"], world.asked[0], ALPHA)
        refused = float(np.mean([each.abstained for each in clean]))
        calibrating = result["metrics"]["num_calibration"]
        low, high = realised_rate_bounds(ALPHA, calibrating, len(clean))
        claim = f"endtoend/{own}/clean-abstained-at-{ALPHA}"
        wanted = f"within the bounds of α = {ALPHA} (n_cal = {calibrating})"
        holds = low <= refused <= high
        found.append(row(claim, wanted, refused, holds, interval=(low, high), n=len(clean)))
        told[f"{own}-to-{foreign}"] = {"reasons": dict(Counter(str(each.reason) for each in answers))}
    return found, told
