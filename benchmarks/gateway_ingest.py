"""Ingest of a zip of JPEGs, beside a bare multi-process Pillow loop over the same files in turn."""

from __future__ import annotations

import statistics
import time
import zipfile
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.gateway_setting import Setting, cores
from benchmarks.harness import ClaimRow, row
from service.client import Job, WinnowClient

ARCHIVE = "cifar10-imagefolder.zip"
WANTED = 0.8
CHUNK = 500


def rows(setting: Setting) -> list[ClaimRow]:
    archive = _archive(setting)
    files = _extracted(archive, setting.folder / "files")
    bare, ours = [], []
    with get_context("spawn").Pool(cores()) as pool, setting.stack() as (_stack, client):
        pool.map(decode, files[: CHUNK * cores()], CHUNK)  # the processes are there, and Pillow is loaded
        for number in range(setting.scale.ingests):
            began = time.perf_counter()
            sizes = pool.map(decode, files, CHUNK)
            bare.append(len(sizes) / (time.perf_counter() - began))
            ours.append(_ingest(client, archive, number, len(files)))
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    ratio, n = statistics.median(ratios), len(files)
    spread = (min(ratios), max(ratios))
    return [
        row("gateway/ingest/over-bare-pillow", f">= {WANTED}", ratio, ratio >= WANTED, interval=spread, n=len(ratios)),
        row("gateway/ingest/images-per-second", "measured", statistics.median(ours), True, n=n, unit="1/s"),
        row("gateway/ingest/bare-pillow", "measured beside", statistics.median(bare), True, n=n, unit="1/s"),
    ]


def decode(path: str) -> tuple[int, ...]:
    """What the bare loop does with a file: its pixels, as an array of RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).shape


def _ingest(client: WinnowClient, archive: Path, number: int, images: int) -> float:
    """Images a second of the job, from its claim to its publication."""
    job = client.wait(client.upload_dataset(f"cifar-{number}", archive, resumable=False).id)
    if not job.succeeded or (job.result or {})["num_samples"] != images:
        raise RuntimeError(f"the ingest ended as {job.state}: {job.trouble or job.result}")
    return images / _seconds(job)


def _seconds(job: Job) -> float:
    began, ended = (datetime.fromisoformat(at or "") for at in (job.started_at, job.finished_at))
    return (ended - began).total_seconds()


def _archive(setting: Setting) -> Path:
    """The zip of the data, or a smaller one of its images."""
    whole = setting.data / ARCHIVE
    if setting.scale.images is None:
        return whole
    part = setting.folder / ARCHIVE
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(part, "w") as target:
        names = [name for name in source.namelist() if name.endswith(".jpg")]
        for name in names[:: max(1, len(names) // setting.scale.images)]:
            target.writestr(name, source.read(name))
    return part


def _extracted(archive: Path, folder: Path) -> list[str]:
    """Numbered files with the bytes of the archive's images."""
    folder.mkdir()
    files = []
    with zipfile.ZipFile(archive) as source:
        for number, name in enumerate(each for each in source.namelist() if each.endswith((".jpg", ".jpeg"))):
            path = folder / f"{number}.jpg"
            path.write_bytes(source.read(name))
            files.append(str(path))
    return files
