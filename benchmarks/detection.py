"""What is detected, at which rates: `python -m benchmarks.detection --data FOLDER [--only PART,…] [--seeds 0,1,2]`.

Parts may be run at different times: benchmarks/results/detection.json keeps the last run of each part, data set and
seed, and its rows are over all the seeds that were run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import (
    datasets,
    detection_clean,
    detection_encoded,
    detection_labels,
    detection_perturbed,
    detection_rates,
    detection_scale,
    detection_sifted,
)
from benchmarks.detection_record import Measured, Record, Run
from benchmarks.detection_setting import Setting
from models.encoder import Encoder
from models.specs import PanelSpec
from service.allocator import keep_pages

NAME = "detection"


@dataclass(frozen=True)
class Part:
    measure: Callable[[Setting], Iterator[Measured]]
    data_sets: tuple[str, ...] = datasets.NAMES


PARTS: dict[str, Part] = {
    "perturbed": Part(detection_perturbed.measure),
    **{f"labels-{kind}": Part(partial(detection_labels.measure, kind=kind)) for kind in detection_labels.KINDS},
    **{f"panels-{kind}": Part(partial(detection_labels.compare, kind=kind)) for kind in detection_labels.KINDS},
    **{f"sifted-{kind}": Part(partial(detection_sifted.measure, kind=kind)) for kind in detection_sifted.KINDS},
    **{f"rates-{kind}": Part(partial(detection_rates.measure, kind=kind)) for kind in detection_rates.KINDS},
    **{f"encoded-{kind}": Part(partial(detection_encoded.measure, kind=kind)) for kind in detection_labels.KINDS},
    **{f"encoded-sifted-{kind}": Part(partial(detection_sifted.measure, kind=kind)) for kind in detection_sifted.KINDS},
    "clean": Part(detection_clean.clean),
    "shift": Part(detection_clean.shift),
    "scale": Part(detection_scale.measure, ("cifar10",)),
}


DEFAULT = tuple(name for name in PARTS if not name.startswith("encoded-"))


def main() -> int:
    keep_pages()  # as a worker does
    asked = _asked()
    if asked.encoder is None and any(name not in DEFAULT for name in asked.only):
        sys.exit("the parts called encoded want --encoder FILE.onnx, as python -m benchmarks.encoder makes one")
    record = Record.open(NAME, quick=asked.quick)
    for name in asked.only:
        for data_set in [each for each in asked.data_sets if each in PARTS[name].data_sets]:
            for seed in asked.seeds:
                data = datasets.load(asked.data, data_set)
                setting = Setting(data, seed, asked.quick, asked.scratch, PanelSpec(**asked.panel), asked.encoder)
                print(f"{time.strftime('%H:%M:%S')} {name} {data_set} seed {seed}", flush=True)
                began = time.monotonic()
                measured = list(PARTS[name].measure(setting))
                run = Run.of(name, data_set, seed, measured, time.monotonic() - began, NAME)
                record.add(run, quick=asked.quick)
    return 0 if record.print(asked.only) else 1


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with gtsrb.npz, cifar10.npz, …")
    parser.add_argument("--only", type=_parts, default=list(DEFAULT), help=f"of {', '.join(PARTS)}, or how they begin")
    parser.add_argument("--data-sets", type=_data_sets, default=list(datasets.NAMES))
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="a smaller run for a first look; writes no file")
    parser.add_argument("--panel", type=_panel, default={}, help="steps=…,final_steps=…,width=…,rounds=…")
    parser.add_argument("--encoder", type=_encoder, help="FILE.onnx, for the parts called encoded")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "winnow-detection")
    return parser.parse_args()


def _parts(text: str) -> list[str]:
    """`labels` stands for all parts whose names begin with it."""
    found = [name for asked in text.split(",") for name in PARTS if name == asked or name.startswith(f"{asked}-")]
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: none of {', '.join(PARTS)}")
    return found


def _data_sets(text: str) -> list[str]:
    unknown = set(text.split(",")) - set(datasets.NAMES)
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(datasets.NAMES)}")
    return text.split(",")


def _encoder(text: str) -> Encoder:
    return Encoder(Path(text).read_bytes(), name=Path(text).stem)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _panel(text: str) -> dict[str, int]:
    return {name: int(value) for name, _, value in (part.partition("=") for part in text.split(","))}


if __name__ == "__main__":
    sys.exit(main())
