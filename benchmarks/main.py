"""The main job on the whole of GTSRB, over the real API: `python -m benchmarks.main --data FOLDER [--quick]`.

Poison by FGSM and I-FGSM against two networks the filter never saw; residual denoiser and preset `badjie` side by side.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks import gtsrb
from benchmarks.harness import ClaimRow, report, row
from benchmarks.memory import PeakMemory
from benchmarks.offline import Offline, halves, interval_by_sign
from models.calibration import realised_rate_bounds, wilson_interval
from service.client import Job, WinnowClient
from service.embedded.running import RunningStack, running_stack

ALPHA = 0.01
ABSTENTION_ALPHAS = (0.01, 0.05)
PREDICT_IMAGES = 2048
BADJIE_VARIANTS: dict[str, dict[str, Any]] = {
    "badjie-0.003": {"preset": "badjie"},
    "badjie-0.015": {"preset": "badjie", "threshold": 0.015},
    "badjie-inferred-99": {"preset": "badjie", "infer_threshold": {"percentage": 99}},
}


@dataclass(frozen=True)
class Scale:
    """How large a run is."""

    reference_images: int
    candidate_images: int | None
    attacker_epochs: int
    params: dict[str, Any]


FULL = Scale(4000, None, 6, {})
QUICK = Scale(1500, 3000, 3, {"distill": {"fit": {"epochs": 2}, "max_accuracy_loss": 1.0}})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with gtsrb.npz")
    parser.add_argument("--quick", action="store_true", help="a smaller run for a first look; writes no file")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    scale = QUICK if asked.quick else FULL
    began = time.monotonic()
    signs = gtsrb.load(
        asked.data, reference_images=scale.reference_images, candidate_images=scale.candidate_images, seed=asked.seed
    )
    poisoned = gtsrb.poison(signs, share=0.1, epochs=scale.attacker_epochs, seed=asked.seed)
    print(
        f"reference {len(signs.reference)}, candidates {len(signs.candidate)}, attackers {poisoned.attacker_accuracy}"
    )
    with (
        tempfile.TemporaryDirectory(prefix="winnow-bench-") as home,
        running_stack(Path(home)) as stack,
        WinnowClient(stack.url, stack.key) as client,
    ):
        rows, extra = run(client, stack, signs, poisoned, scale)
    return report("main", rows, time.monotonic() - began, quick=asked.quick, extra=extra)


def run(
    client: WinnowClient, stack: RunningStack, signs: gtsrb.Signs, poisoned: gtsrb.Poisoned, scale: Scale
) -> tuple[list[ClaimRow], dict[str, Any]]:
    reference = signs.reference
    upload(client, "trusted", signs.images[reference], signs.labels[reference], signs.signs[reference])
    upload(client, "signs", poisoned.images, poisoned.labels, signs.signs[signs.candidate])
    production, asked = halves(signs, seed=0)
    upload(client, "production", signs.test_images[production], signs.test_labels[production])
    upload(client, "test", signs.test_images[asked], signs.test_labels[asked])
    began = time.monotonic()
    with PeakMemory(stack.process.pid) as memory:
        job = wait(
            client,
            client.submit(
                "harden",
                dataset="signs@1",
                reference="trusted@1",
                model="signs-student",
                evaluate_on="test@1",
                calibrate_on="production@1",
                params=scale.params,
            ),
        )
    minutes = (time.monotonic() - began) / 60
    result = job.result or {}
    offline = Offline.open(stack.home, result["model"], result["jobs"]["sanitise"])
    found = verdicts(client, stack, job.id)
    rows = detection_rows("residual", found, poisoned, result)
    rows.append(by_sign_row(offline, found, poisoned, signs))
    rows += by_detector_rows(found, poisoned, result["detectors"])
    rows += student_rows(client, offline, signs, asked, result)
    rows += by_track_rows(offline, signs, asked)
    rows.append(row("main/minutes", "whole job < 25 min on two cores", minutes, minutes < 25, unit="min"))
    rows.append(row("main/peak-rss", "printed", memory.peak_mib, True, unit="MiB"))
    for name, params in BADJIE_VARIANTS.items():
        other = wait(client, client.submit("sanitise", dataset="signs@1", reference="trusted@1", params=params))
        rows += detection_rows(name, verdicts(client, stack, other.id), poisoned, other.result or {})
    extra = {"attackers": poisoned.attacker_accuracy, "harden": result, "peak_rss_mib": memory.by_process}
    return rows, extra


def upload(
    client: WinnowClient,
    name: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    signs: NDArray[np.int64] | None = None,
) -> None:
    wait(client, client.upload_dataset(name, gtsrb.as_npz(images, labels, signs)))


def wait(client: WinnowClient, job: Job) -> Job:
    last = [""]

    def tell(seen: Job) -> None:
        phase = f"{seen.type} {seen.progress.phase}"
        if phase != last[0]:
            last[0] = phase
            print(f"{time.strftime('%H:%M:%S')} {phase}", flush=True)

    done = client.wait(job.id, on_progress=tell)
    if done.state != "succeeded":
        raise SystemExit(f"{done.type} job {done.id} {done.state}: {done.error}")
    return done


def verdicts(client: WinnowClient, stack: RunningStack, job_id: str) -> dict[str, NDArray[Any]]:
    headers = {"Authorization": f"Bearer {stack.key}", "Accept": "application/vnd.apache.parquet"}
    answer = httpx.get(f"{client.url}/v1/jobs/{job_id}/verdicts", headers=headers, timeout=60).raise_for_status()
    table = pq.read_table(pa.BufferReader(answer.content))
    scores = [name for name in table.column_names if name.startswith("score.")]  # the filter's own comes first
    columns = {"verdict": "verdict", "p_value": "p_value", "score": scores[0], "reasons": "reasons"}
    found = {name: table[column].to_numpy() for name, column in columns.items()}
    return found | {"scores": np.stack([table[name].to_numpy() for name in scores], axis=1)}


def by_detector_rows(found: dict[str, NDArray[Any]], poisoned: gtsrb.Poisoned, names: list[str]) -> list[ClaimRow]:
    """The share of the clean images that each detector spoke against."""
    clean = [set(reasons) for reasons in found["reasons"][~poisoned.poison]]
    return [
        row(
            f"detect/gtsrb/clean/residual/quarantined-by-{name}",
            "shown",
            sum(name in reasons for reasons in clean) / len(clean),
            True,
            n=len(clean),
        )
        for name in names
    ]


def detection_rows(
    name: str, found: dict[str, NDArray[Any]], poisoned: gtsrb.Poisoned, result: dict[str, Any]
) -> list[ClaimRow]:
    poison, flagged = poisoned.poison, found["verdict"] == "quarantine"
    default = name == "residual"
    rows = []
    for kind in ("all", *sorted(set(poisoned.kind[poison]))):
        of_kind = poison if kind == "all" else poisoned.kind == kind
        picked = ~poison | of_kind
        auroc = float(roc_auc_score(of_kind[picked], found["score"][picked]))
        hits, n = int(flagged[of_kind].sum()), int(of_kind.sum())
        share = hits / n
        label = f"detect/gtsrb/{kind}/{name}"
        rows.append(
            row(f"{label}/auroc", ">= 0.995" if default else "shown", auroc, not default or auroc >= 0.995, n=n)
        )
        found_enough = not default or share >= 0.97
        interval = wilson_interval(hits, n)
        rows.append(
            row(f"{label}/quarantined", ">= 0.97" if default else "shown", share, found_enough, interval=interval, n=n)
        )
    clean = int((~poison).sum())
    lost = float(flagged[~poison].mean())
    calibrating = result["calibration_groups"] or result["num_calibration"]
    low, high = realised_rate_bounds(ALPHA, calibrating, clean)
    wanted = f"within the bounds of α = {ALPHA} (n_cal = {calibrating})" if default else "shown"
    rows.append(
        row(
            f"detect/gtsrb/clean/{name}/quarantined",
            wanted,
            lost,
            not default or low <= lost <= high,
            interval=(low, high),
            n=clean,
        )
    )
    return rows


def by_sign_row(
    offline: Offline, found: dict[str, NDArray[Any]], poisoned: gtsrb.Poisoned, signs: gtsrb.Signs
) -> ClaimRow:
    """Thirty images of one sign are not thirty signs: the rate's interval when whole signs are drawn anew."""
    clean = ~poisoned.poison
    held = offline.kept.held
    low, high = interval_by_sign(
        offline.kept.calibration,
        signs.signs[signs.reference][held],
        found["scores"][clean],
        signs.signs[signs.candidate][clean],
        alpha=ALPHA,
    )
    lost = float((found["verdict"][clean] == "quarantine").mean())
    wanted = f"α = {ALPHA} inside the interval over signs"
    return row(
        "detect/gtsrb/clean/residual/quarantined-by-sign",
        wanted,
        lost,
        low <= ALPHA <= high,
        interval=(low, high),
        n=int(clean.sum()),
    )


def student_rows(
    client: WinnowClient, offline: Offline, signs: gtsrb.Signs, asked: NDArray[np.int64], result: dict[str, Any]
) -> list[ClaimRow]:
    metrics, images, labels = result["metrics"], signs.test_images[asked], signs.test_labels[asked]
    answers = {alpha: predict_all(client, result["model"], images, alpha) for alpha in ABSTENTION_ALPHAS}
    first = answers[ABSTENTION_ALPHAS[0]]
    right = offline.classes[np.array([each.probabilities for each in first]).argmax(1)] == labels
    student, n = float(right.mean()), len(right)
    teacher = offline.teacher_accuracy(images, labels)
    interval = wilson_interval(int(right.sum()), n)
    rows = [
        row("student/gtsrb/test-accuracy", ">= 0.98", student, student >= 0.98, interval=interval, n=n),
        row("teacher/gtsrb/test-accuracy", "shown", teacher, True, n=n),
        row("student/gtsrb/lost-to-teacher", "<= 0.01", teacher - student, teacher - student <= 0.01, n=n),
    ]
    for alpha, predictions in answers.items():
        share = float(np.mean([each.abstained for each in predictions]))
        rows.append(
            abstention_row(f"student/gtsrb/clean-abstained/{alpha}", share, alpha, metrics["num_calibration"], n)
        )
    information = float(np.mean([each.uncertainty.mutual_information for each in first if each.uncertainty]))
    rows.append(row("student/gtsrb/mc-variance", "> 0", metrics["mc_variance"], metrics["mc_variance"] > 0))
    rows.append(row("student/gtsrb/mutual-information", "> 0, as served", information, information > 0, n=n))
    return rows + [each for attack in result["evaluation"]["attacks"] for each in attack_rows(attack)]


def attack_rows(attack: dict[str, Any]) -> list[ClaimRow]:
    label, n = f"student/gtsrb/{attack['attack']}", attack["n"]
    accuracy = (attack["low"], attack["high"])
    wrong = (attack["served_wrong_low"], attack["served_wrong_high"])
    return [
        row(f"{label}/accuracy", "shown", attack["accuracy"], True, interval=accuracy, n=n),
        row(f"{label}/served-wrong", "shown", attack["served_wrong"], True, interval=wrong, n=n),
    ]


def abstention_row(
    claim: str, share: float, alpha: float, calibrating: int, n: int, *, shown: bool = False
) -> ClaimRow:
    low, high = realised_rate_bounds(alpha, calibrating, n)
    wanted = "shown" if shown else f"within the bounds of α = {alpha} (n_cal = {calibrating})"
    return row(claim, wanted, share, shown or low <= share <= high, interval=(low, high), n=n)


def by_track_rows(offline: Offline, signs: gtsrb.Signs, asked: NDArray[np.int64]) -> list[ClaimRow]:
    """The same student with its abstention calibrated on the trusted training tracks: the test set is another world."""
    held = signs.reference[offline.kept.held]
    n, refused = offline.abstained_when_calibrated_on(
        signs.images[held], signs.labels[held], signs.test_images[asked], ABSTENTION_ALPHAS
    )
    return [
        abstention_row(f"student/gtsrb/clean-abstained-by-tracks/{alpha}", share, alpha, n, len(asked), shown=True)
        for alpha, share in refused.items()
    ]


def predict_all(client: WinnowClient, model: str, images: NDArray[np.uint8], alpha: float) -> list[Any]:
    found = []
    for start in range(0, len(images), PREDICT_IMAGES):
        block = gtsrb.as_npz(images[start : start + PREDICT_IMAGES], np.zeros(0, np.int64)).getvalue()
        found += client.predict(model, block, alpha=alpha).predictions
    return found


if __name__ == "__main__":
    sys.exit(main())
