"""Many drawn images, ingested and scored by one worker: rates beside the bare ones, memory beside a tenth of them."""

from __future__ import annotations

import time
import zipfile
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import ClaimRow, row
from benchmarks.memory import status
from benchmarks.scale_setting import (
    CLASSES,
    PARAMS,
    SIDE,
    TRUSTED,
    Phases,
    Setting,
    done,
    drawn,
    ingested,
    npz,
    worker_pids,
    write_zip,
)
from models.filtering.trained import build
from models.images import to_float
from models.panel.classifier import PanelClassifier
from models.specs import ResidualSpec, SanitiseSpec
from service.client import Job, WinnowClient
from service.embedded.running import RunningStack

BARE = 4096
BATCH = 128
FLAT = 1.2
"""Of the peak over a tenth of the images."""


def rows(setting: Setting) -> list[ClaimRow]:
    count, tenth = setting.images, setting.images // 10
    archives = {images: setting.folder / f"{images}.zip" for images in (tenth, count)}
    for images, path in archives.items():
        write_zip(path, images, images)
    bare_decoding, bare_scoring = _decoding(archives[tenth]), _forward()
    with setting.stack() as (stack, client):
        trusted = ingested(client, "trusted", npz(TRUSTED, 2))
        rates, peaks = {}, {}
        for images, path in archives.items():
            rates[images] = _run(stack, client, path, images, trusted)
            peaks[images] = status(worker_pids(stack)[1])[1]
    ingest, scoring = rates[count]
    flat = peaks[count] / peaks[tenth]
    growth = (peaks[count] - peaks[tenth]) * 1024 / (count - tenth)
    decoding, forward = ingest / bare_decoding, scoring / bare_scoring
    return [
        row("scale/million/ingest", "measured", ingest, True, n=count, unit="images/s"),
        row("scale/million/bare-decoding", "measured, one process", bare_decoding, True, n=tenth, unit="images/s"),
        row("scale/million/ingest-over-bare-decoding", "measured", decoding, True, n=count),
        row("scale/million/scoring", "measured", scoring, True, n=count, unit="images/s"),
        row("scale/million/bare-forward", "measured, the same networks", bare_scoring, True, n=BARE, unit="images/s"),
        row("scale/million/scoring-over-bare-forward", "measured", forward, True, n=count),
        row("scale/million/peak-memory-of-a-tenth", "measured", peaks[tenth], True, n=tenth, unit="MiB"),
        row("scale/million/peak-memory", "measured", peaks[count], True, n=count, unit="MiB"),
        row("scale/million/peak-memory-over-a-tenth", f"<= {FLAT}", flat, flat <= FLAT, n=count),
        row("scale/million/memory-an-image", "measured", growth, True, n=count - tenth, unit="KiB"),
    ]


def _run(stack: RunningStack, client: WinnowClient, archive: Path, images: int, trusted: str) -> tuple[float, float]:
    """Images a second of ingest, from its claim to its end, and of scoring."""
    ingest = done(client, client.upload_dataset(f"many-{images}", archive))
    job = client.submit("sanitise", dataset=str((ingest.result or {})["dataset"]), reference=trusted, params=PARAMS)
    scored = Phases(stack).scoring_of(job) if images > 2 * 8192 else None
    done(client, job)
    return images / _seconds(ingest), images / scored.seconds if scored else 0.0


def _seconds(job: Job) -> float:
    began, ended = (datetime.fromisoformat(at or "") for at in (job.started_at, job.finished_at))
    return (ended - began).total_seconds()


def _decoding(archive: Path) -> float:
    """Pillow alone, in one process."""
    with zipfile.ZipFile(archive) as opened:
        files = [opened.read(name) for name in opened.namelist()]
    began = time.perf_counter()
    for data in files:
        with Image.open(BytesIO(data)) as image:
            np.asarray(image.convert("RGB"))
    return len(files) / (time.perf_counter() - began)


def _forward() -> float:
    """The filter's network and a classifier of each of the panel's two kinds, alone, in one thread."""
    spec = SanitiseSpec.model_validate(PARAMS)
    assert isinstance(spec.filter, ResidualSpec)
    layers = {"width": spec.filter.width, "depth": spec.filter.depth, "eps_linf": spec.perturbation.eps_linf}
    filter_ = build("residual", (SIDE, SIDE, 3), layers).eval()
    panel = [
        PanelClassifier(image_shape=(SIDE, SIDE, 3), num_classes=CLASSES, width=spec.panel.width).eval() for _ in "ab"
    ]
    networks = [each.to(memory_format=torch.channels_last) for each in (filter_, *panel)]
    images, _ = drawn(BARE, 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = 0.0
        with torch.inference_mode():
            for _ in range(4):
                began = time.perf_counter()
                for start in range(0, BARE, BATCH):
                    x = to_float(images[start : start + BATCH], torch.device("cpu"))
                    for network in networks:
                        network(x)
                best = max(best, BARE / (time.perf_counter() - began))
        return best
    finally:
        torch.set_num_threads(threads)
