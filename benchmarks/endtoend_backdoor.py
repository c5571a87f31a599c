"""A backdoor in the candidates: what a model trained on them obeys, and what is left of it after sanitising."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.endtoend_setting import POISON_SHARE, TARGET, TRIGGER, Scene, World
from benchmarks.harness import ClaimRow, row
from models.calibration import wilson_interval

ALPHA = 0.01


def rows(scene: Scene) -> tuple[list[ClaimRow], dict[str, Any]]:
    world = scene.world("gtsrb", poisoned=True)
    versions = scene.upload_world(world)
    before = scene.distilled("gtsrb-unguarded", versions["candidates"], versions["production"])
    job = scene.hardened(world, versions)
    result = job.result or {}
    found = [*_found(scene, job.id, world)]
    measured = {}
    for name, model in (("before", before), ("after", result["model"])):
        measured[name] = _model(scene, world, model)
        found += _rows(name, measured[name])
    lost = measured["before"]["right"].mean() - measured["after"]["right"].mean()
    n = len(measured["after"]["right"])
    found.append(row("endtoend/gtsrb/badnets/accuracy-lost", "<= 0.01", lost, lost <= 0.01, n=n))
    return found, {"poison_share": POISON_SHARE, "target": TARGET, "counts": result["counts"]}


def _found(scene: Scene, job_id: str, world: World) -> list[ClaimRow]:
    quarantined = np.zeros(len(world.is_poison), np.bool_)
    for verdict in scene.client.verdicts(job_id):
        quarantined[verdict.index] = verdict.verdict == "quarantine"
    shares = []
    for name, part in (("poison-quarantined", world.is_poison), ("clean-quarantined", ~world.is_poison)):
        hits, n = int(quarantined[part].sum()), int(part.sum())
        shares.append(
            row(f"endtoend/gtsrb/badnets/{name}", "shown", hits / n, True, interval=wilson_interval(hits, n), n=n)
        )
    return shares


def _model(scene: Scene, world: World, model: str) -> dict[str, NDArray[np.bool_]]:
    """Of clean images, which the model has right; of triggered ones of other classes, which it calls the target."""
    images, labels = world.asked
    others = labels != TARGET
    classes = np.array([int(name) for name in scene.client.model(model).card["classes"]])
    clean, stamped = (scene.answers(model, part, ALPHA) for part in (images, TRIGGER.stamp(images[others])))
    answers = [classes[np.array([each.probabilities for each in part]).argmax(1)] for part in (clean, stamped)]
    served = np.array([each.label == str(TARGET) for each in stamped])
    return {"right": answers[0] == labels, "obeys": answers[1] == TARGET, "served": served}


def _rows(name: str, measured: dict[str, NDArray[np.bool_]]) -> list[ClaimRow]:
    wanted = {"before": (">= 0.9", lambda share: share >= 0.9), "after": ("<= 0.02", lambda share: share <= 0.02)}
    rows = []
    for what, claim, (bar, holds) in (
        ("obeys", "attack-success", wanted[name]),
        ("served", "attack-success-served", ("shown", lambda _: True)),
        ("right", "accuracy", ("shown", lambda _: True)),
    ):
        hits, n = int(measured[what].sum()), len(measured[what])
        interval = wilson_interval(hits, n)
        rows.append(
            row(f"endtoend/gtsrb/badnets/{name}/{claim}", bar, hits / n, holds(hits / n), interval=interval, n=n)
        )
    return rows
