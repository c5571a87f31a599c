"""Two processes distil as one: the same teacher and student on both, learned, and nothing left running."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from models.distillation import distill
from models.images import to_float
from models.ranks import Ranks
from models.specs import ClassifierSpec, DistillSpec, FitSpec
from models.training import Forgetful, Silent, Stopped
from worker.ranks import fitting_together, ranks_wanted

SMALL = ClassifierSpec(width=8, hidden=32)
FIT = FitSpec(epochs=2, batch_size=64, optimizer="adamw", peak_lr=4e-3, validation_share=0.0)
SPEC = DistillSpec(teacher=SMALL, student=SMALL, fit=FIT)


def test_alone_no_process_is_started_and_no_group_opened() -> None:
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int64)
    with fitting_together(1, images, labels, SPEC, num_classes=2):
        assert Ranks.current() == Ranks(0, 1)
    assert ranks_wanted(3) == 3
    assert ranks_wanted(None) == max(1, torch.cuda.device_count())


@pytest.mark.slow
def test_two_processes_distil_and_stop_together() -> None:
    told = load_digits()
    images = np.round(told.images * 255 / 16).astype(np.uint8)[..., None]
    labels = told.target.astype(np.int64)
    with fitting_together(2, images[:1300], labels[:1300], SPEC, num_classes=10):
        assert Ranks.current() == Ranks(0, 2)
        made = distill(
            images[:1300],
            labels[:1300],
            SPEC,
            num_classes=10,
            watch_for=lambda _phase: Silent(),
            checkpoints=Forgetful(),
        )
    assert Ranks.current() == Ranks(0, 1)
    with torch.no_grad():
        found = made.student(to_float(images[1300:])).argmax(dim=1).numpy()
    assert (found == labels[1300:]).mean() > 0.85
    with pytest.raises(Stopped), fitting_together(2, images[:1300], labels[:1300], SPEC, num_classes=10):
        distill(
            images[:1300],
            labels[:1300],
            SPEC,
            num_classes=10,
            watch_for=lambda _phase: StopsAtThree(),
            checkpoints=Forgetful(),
        )
    assert Ranks.current() == Ranks(0, 1)


class StopsAtThree:
    def advance(self, done: int, _total: int) -> None:
        if done == 3:
            raise Stopped
