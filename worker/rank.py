"""One further rank of a distillation: `python -m worker.rank FOLDER SIZE CLASSES RANK`. Started by `worker.ranks`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from models.distillation import distill
from models.specs import DistillSpec
from models.watch import Forgetful, Silent, Stopped
from service.allocator import keep_pages
from worker.lifeline import die_with_parent
from worker.ranks import IMAGES, LABELS, SPEC, join, leave


def main(folder: Path, size: int, num_classes: int, rank: int) -> None:
    die_with_parent()
    keep_pages()
    spec = DistillSpec.model_validate_json((folder / SPEC).read_text())
    images, labels = np.load(folder / IMAGES, mmap_mode="r"), np.load(folder / LABELS)
    join(folder, rank=rank, size=size)
    try:
        distill(
            images,
            labels,
            spec,
            num_classes=num_classes,
            watch_for=lambda _phase: Silent(),
            checkpoints=Forgetful(),
        )
    except Stopped:
        return
    finally:
        leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
