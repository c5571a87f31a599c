"""A large upload: what it takes of the gateway's memory, its rate beside sha256sum and a copy, and 20 disconnects."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from benchmarks.gateway_cutting import cutting
from benchmarks.gateway_setting import GIB, MIB, Setting, gateway_pid
from benchmarks.harness import ClaimRow, row
from benchmarks.memory import Growth
from service.client import WinnowClient
from service.client.pieces import CHUNK_BYTES
from service.client.resumable import PIECE_BYTES

SIDE = 64
BLOCK_IMAGES = 4096
COPIES = 4  # of the file, at most, at once: it, its baseline's copy or its parts, and what is kept
WANTED_MIB, WANTED_RATE = 64, 0.5


def rows(setting: Setting) -> list[ClaimRow]:
    _check_space(setting)
    file = setting.folder / "large.npz"
    _write(file, setting.upload_bytes)
    try:
        return [*_whole(setting, file), *_resumed(setting, file)]
    finally:
        file.unlink()


def _check_space(setting: Setting) -> None:
    free, wanted = shutil.disk_usage(setting.folder).free, COPIES * setting.upload_bytes
    if free < wanted:
        raise SystemExit(
            f"{setting.folder} has {free / GIB:.1f} GiB free, and this takes {wanted / GIB:.1f}: name another folder "
            "with --scratch, or a smaller upload with --gigabytes."
        )


def _write(file: Path, size: int) -> None:
    """An npz of about that size: random images, with labels."""
    count = max(2, size // (SIDE * SIDE * 3))
    block = np.random.default_rng(0).integers(0, 256, (BLOCK_IMAGES, SIDE, SIDE, 3), np.uint8)
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE, 3)}
            npy.write_array_header_1_0(member, header)
            for start in range(0, count, BLOCK_IMAGES):
                member.write((block[: count - start] + np.uint8(start // BLOCK_IMAGES % 251)).data)
        with archive.open("labels.npy", "w") as member:
            npy.write_array(member, np.arange(count) % 10)


def _whole(setting: Setting, file: Path) -> list[ClaimRow]:
    """Raw uploads, each after sha256sum and a copy of the same file."""
    size, baseline, ours, grown = file.stat().st_size, [], [], []
    for _ in range(setting.scale.uploads):
        baseline.append(_took(partial(_digest_and_copy, file)))
        with setting.stack() as (stack, client), Growth(gateway_pid(stack)) as growth:
            ours.append(_took(partial(_uploaded, client, file)))
            grown.append(growth.mib)
    ratios = [bare / own for bare, own in zip(baseline, ours, strict=True)]
    ratio, n = statistics.median(ratios), len(ratios)
    rate, bare = (size / MIB / statistics.median(seconds) for seconds in (ours, baseline))
    worst = max(grown)
    return [
        row("gateway/upload/gibibytes", "10", size / GIB, size > 9.9 * GIB, n=n, unit="GiB"),
        row("gateway/upload/memory-growth", f"<= {WANTED_MIB} MiB", worst, worst <= WANTED_MIB, n=n, unit="MiB"),
        row(
            "gateway/upload/rate-over-sha256sum-and-copy",
            f">= {WANTED_RATE}",
            ratio,
            ratio >= WANTED_RATE,
            interval=(min(ratios), max(ratios)),
            n=n,
        ),
        row("gateway/upload/rate", "measured", rate, True, n=n, unit="MiB/s"),
        row("gateway/upload/sha256sum-and-copy", "measured beside", bare, True, n=n, unit="MiB/s"),
    ]


def _resumed(setting: Setting, file: Path) -> list[ClaimRow]:
    """One resumable upload over a network that breaks again and again."""
    cuts, size = setting.scale.disconnects, file.stat().st_size
    sent = Sent()
    with (
        setting.stack() as (stack, client),
        cutting(int(stack.url.rpartition(":")[2]), cuts=cuts, within=size) as proxy,
        Growth(gateway_pid(stack)) as growth,
        WinnowClient(f"http://127.0.0.1:{proxy.port}", stack.key) as broken,
    ):
        began = time.perf_counter()
        job = broken.upload_dataset("large", file, resumable=True, on_sent=sent.count)
        seconds = time.perf_counter() - began
        client.cancel(job.id)
        whole = client.job(job.id).model_extra or {}
        digest = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout  # noqa: S607
    again = max(sent.again, default=0)
    same = whole["inputs"]["sha256"] == digest.split()[0]
    return [
        row("gateway/tus/disconnects", str(cuts), proxy.cut, proxy.cut == cuts, n=1),
        row("gateway/tus/same-bytes", "1", same, same, n=1),
        row(
            "gateway/tus/most-sent-again",
            f"<= one piece of {PIECE_BYTES // MIB} MiB",
            again / MIB,
            again <= PIECE_BYTES,
            n=len(sent.again),
            unit="MiB",
        ),
        row("gateway/tus/memory-growth", f"<= {WANTED_MIB} MiB", growth.mib, growth.mib <= WANTED_MIB, unit="MiB"),
        row("gateway/tus/rate", "measured", size / MIB / seconds, True, n=1, unit="MiB/s"),
    ]


@dataclass
class Sent:
    """How much a client sends once more, break by break."""

    again: list[int] = field(default_factory=list)
    _last: int = 0

    def count(self, sent: int, _total: int) -> None:
        """sent: the offset after a chunk that went out; another one may have been on its way when it broke."""
        if sent <= self._last:
            self.again.append(self._last - sent + 2 * CHUNK_BYTES)
        self._last = sent


def _digest_and_copy(file: Path) -> None:
    copy = file.with_suffix(".copy")
    subprocess.run(["sha256sum", file], capture_output=True, check=True)  # noqa: S607
    subprocess.run(["cp", file, copy], check=True)  # noqa: S607
    copy.unlink()


def _uploaded(client: WinnowClient, file: Path) -> None:
    client.cancel(client.upload_dataset("large", file, resumable=False).id)


def _took(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
