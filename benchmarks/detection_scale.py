"""What filtering costs: fitting the default filter, scoring shard by shard against a bare forward pass, memory."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.datasets import split
from benchmarks.detection_record import Measured, at_least, at_most
from benchmarks.detection_setting import Setting, fitted_filter, shown
from benchmarks.memory import status
from models.calibration import conformal_p_values
from models.filtering import CrossFilter, Filter
from models.filtering.trained import build
from models.images import to_float
from models.panel.classifier import PanelClassifier
from models.panel.detectors import LabelLoss, PoisonGain
from models.panel.panel import Panel
from models.panel.purification import CrossFitted, Purified
from models.specs import ResidualSpec, SanitiseSpec
from models.training import Forgetful, Silent
from service.allocator import keep_pages
from service.datasets.shard_writing import ShardWriter
from service.datasets.shards import Row, ShardReader
from service.storage import LocalStorage
from worker.examiner import Examiner, Listing
from worker.judging import judge
from worker.scored import Scored
from worker.scoring import score_all

FIT_IMAGES = 8000
TIMED_IMAGES, ROUNDS, BATCH = 4096, 5, 128
MANY, FEW, MEMORY_SIDE = 200_000, 20_000, 16
CALIBRATING = 1000
PREFIX = "datasets/measured/1"


def measure(setting: Setting) -> Iterator[Measured]:
    data = setting.data
    count = 2000 if setting.quick else FIT_IMAGES
    parts = split(data, trusted=2 * count, candidates=TIMED_IMAGES, seed=setting.seed)
    began = time.monotonic()
    fitted = fitted_filter(shown(data, parts.fit), setting.spec, data.num_classes).filter
    seconds = time.monotonic() - began
    yield Measured(setting.claim("scale", f"fit-{count}"), seconds, at_most(60), n=count, unit="s")
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as folder:
        yield from _throughput(setting, Path(folder), fitted, data.images[parts.candidates])
    peaks = {}
    for images in (FEW // 10, MANY // 10) if setting.quick else (FEW, MANY):
        peaks[images] = _peak_of(images)
        yield Measured(f"scale/peak-memory-{images}", peaks[images], n=images, unit="MiB")
    few, many = peaks.values()
    yield Measured("scale/peak-memory-ratio", many / few, at_most(1.2), n=max(peaks))


def _throughput(setting: Setting, folder: Path, fitted: Filter, images: np.ndarray) -> Iterator[Measured]:
    """In turns, the best of several: other work on the machine slows either by chance."""
    reader = _written(LocalStorage(folder), images, np.zeros(len(images), np.int64))
    listing = _listing(np.zeros(len(images), np.int64))
    calibration = np.linspace(0, 1, CALIBRATING, dtype=np.float32)

    def scored() -> None:
        scores = score_all(Examiner(CrossFilter((fitted, fitted)), None), reader, listing, Silent(), Forgetful())
        conformal_p_values(scores[:, 0], calibration)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                fitted.network(to_float(images[start : start + BATCH]))

    times = _best_of(bare, scored)
    rates = [len(images) / seconds for seconds in times]
    yield Measured(setting.claim("scale", "forward-images-a-second"), rates[0], n=len(images))
    yield Measured(setting.claim("scale", "scored-images-a-second"), rates[1], n=len(images))
    ratio = rates[1] / rates[0]
    yield Measured(setting.claim("scale", "scored-over-forward"), ratio, at_least(0.85), n=len(images))


def _best_of(*works: Callable[[], None]) -> list[float]:
    best = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for number, work in enumerate(works):
            began = time.monotonic()
            work()
            best[number] = min(best[number], time.monotonic() - began)
    return best


def _written(storage: LocalStorage, images: np.ndarray, labels: np.ndarray) -> ShardReader:
    height, width, channels = images.shape[1:]
    with ShardWriter(storage, PREFIX, (height, width, channels), int(labels.max()) + 1) as writer:
        for number, image in enumerate(images):
            label = int(labels[number])
            writer.add(image, Row(f"{number:064x}", f"{label}/{number}.png", label, width, height))
        writer.close()
    return ShardReader(storage, PREFIX, len(images), (height, width, channels))


def _listing(labels: np.ndarray) -> Listing:
    rows = np.arange(len(labels))
    return Listing(labels, rows % 2, rows)


def _peak_of(images: int) -> float:
    """Peak resident MiB of a process of its own that scores and judges a version of so many images."""
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as folder:
        for step in ("write", "score"):
            command = [sys.executable, "-m", "benchmarks.detection_scale", step, folder, str(images)]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(found.stdout)


def _write(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 256, (MEMORY_SIDE, MEMORY_SIDE, 3), dtype=np.uint8)
    images = np.broadcast_to(pattern, (count, *pattern.shape))
    _written(LocalStorage(folder), images, np.arange(count) % 10)


def _score(folder: Path, count: int) -> None:
    """With the default filter and panel, whose weights do not matter here."""
    shape = (MEMORY_SIDE, MEMORY_SIDE, 3)
    own = ResidualSpec()
    layers = {"width": own.width, "depth": own.depth, "eps_linf": 0.01}
    fitted = Filter(build("residual", shape, layers).eval(), shape, layers)
    networks = CrossFitted(tuple(PanelClassifier(image_shape=shape, num_classes=10, width=16).eval() for _ in range(2)))
    purified = Purified(networks, networks, np.ones(1, np.bool_), ())
    panel = Panel(("label_loss", "poison_gain"), purified, (LabelLoss(), PoisonGain()), 10)
    reader = ShardReader(LocalStorage(folder), PREFIX, count, shape)
    listing = _listing(reader.labels())
    scores = score_all(Examiner(CrossFilter((fitted, fitted)), panel), reader, listing, Silent(), Forgetful())
    judge(Scored(scores, listing.labels), Scored(scores[:CALIBRATING]), SanitiseSpec())
    print(status(os.getpid())[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("write", "score"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    asked = parser.parse_args()
    keep_pages()  # as a worker does
    (_write if asked.step == "write" else _score)(asked.folder, asked.count)
