"""The whole served model under attack, by one who knows the student and by one who knows everything."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.endtoend_setting import Scene
from benchmarks.harness import ClaimRow, row
from benchmarks.main import wait

WRONG_ALLOWED = 0.01
KNOWS_THE_STUDENT = ("student",)


def rows(scene: Scene) -> tuple[list[ClaimRow], dict[str, Any]]:
    world = scene.world("gtsrb", poisoned=True)
    versions = scene.upload_world(world)
    model = (scene.hardened(world, versions).result or {})["model"]
    params = {
        "suite": scene.scale.suite,
        "max_images": scene.scale.attacked,
        "costly_images": scene.scale.attacked // 2,
    }
    job = wait(scene.client, scene.client.submit("evaluate", model=model, dataset=versions["asked"], params=params))
    metrics = (job.result or {})["metrics"]
    found = [each for attack in metrics["attacks"] for each in _rows(attack)]
    raised = [flag["flag"] for flag in metrics["gradient_masking"] if flag["raised"]]
    report = json.loads(scene.client.report(job.id, "json"))
    return found, {"params": params, "raised": raised, "curve": metrics["curve"], "headline": report["headline"]}


def _rows(attack: dict[str, Any]) -> list[ClaimRow]:
    label, n = f"endtoend/gtsrb/stack/{attack['knowledge']}/{attack['attack']}", attack["n"]
    barred = attack["knowledge"] in KNOWS_THE_STUDENT and attack["attack"] != "none"
    found = []
    for what in ("abstained", "correct", "wrong"):
        value = attack[f"served_{what}"]
        wanted = f"<= {WRONG_ALLOWED}" if what == "wrong" and barred else "shown"
        interval = (attack[f"served_{what}_low"], attack[f"served_{what}_high"])
        holds = wanted == "shown" or value <= WRONG_ALLOWED
        found.append(row(f"{label}/{what}", wanted, value, holds, interval=interval, n=n))
    accuracy = (attack["low"], attack["high"])
    return [*found, row(f"{label}/student-accuracy", "shown", attack["accuracy"], True, interval=accuracy, n=n)]
