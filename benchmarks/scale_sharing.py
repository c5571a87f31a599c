"""Scoring one set with two workers of one thread each, beside one such worker, in turns."""

from __future__ import annotations

import statistics

from benchmarks.harness import ClaimRow, row
from benchmarks.memory import descendants, status
from benchmarks.scale_setting import ONE_THREAD, PARAMS, TRUSTED, Phases, Scored, Setting, done, ingested, npz
from service.client import WinnowClient
from service.embedded.running import another_worker

WANTED = 1.7
STEP = {"WINNOW_STEP_IMAGES": "1024"}


def rows(setting: Setting) -> list[ClaimRow]:
    one: list[Scored] = []
    two: list[Scored] = []
    verdicts = []
    with setting.stack(STEP) as (stack, client):
        sets = {
            "dataset": ingested(client, "candidates", npz(setting.shared, 1)),
            "reference": ingested(client, "trusted", npz(TRUSTED, 2)),
        }
        phases = Phases(stack)
        for _ in range(setting.rounds):
            one.append(_scored(client, phases, sets, verdicts))
            with another_worker(stack, setting.folder / "second.log", environment={**ONE_THREAD, **STEP}) as helper:
                two.append(_scored(client, phases, sets, verdicts))
                helpers = max(status(pid)[1] for pid in descendants(helper.pid))
    ratios = [alone.seconds / shared.seconds for alone, shared in zip(one, two, strict=True)]
    ratio, n = statistics.median(ratios), setting.shared
    came = min(each.workers for each in two)
    different = sum(each != verdicts[0] for each in verdicts)
    alone, shared = (n / statistics.median(each.seconds for each in scored) for scored in (one, two))
    spread = (min(ratios), max(ratios))
    return [
        row("scale/sharing/two-over-one", f">= {WANTED}", ratio, ratio >= WANTED, interval=spread, n=len(ratios)),
        row("scale/sharing/workers-that-came", "2", came, came == 2, n=len(two)),
        row("scale/sharing/other-verdicts", "0", different, different == 0, n=len(verdicts), unit="jobs"),
        row("scale/sharing/one-worker", "measured", alone, True, n=n, unit="images/s"),
        row("scale/sharing/two-workers", "measured", shared, True, n=n, unit="images/s"),
        row("scale/sharing/peak-memory-of-a-helper", "measured", helpers, True, n=n, unit="MiB"),
    ]


def _scored(client: WinnowClient, phases: Phases, sets: dict[str, str], verdicts: list[bytes]) -> Scored:
    job = client.submit("sanitise", **sets, params=PARAMS)
    found = phases.scoring_of(job)
    verdicts.append(client.verdict_table(done(client, job).id))
    return found
