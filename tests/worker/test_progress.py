"""Progress over phases, and stopping."""

from __future__ import annotations

import pytest

from models.training import Stopped
from worker.progress import Progress


def test_the_fraction_follows_the_plan() -> None:
    progress = Progress()
    progress.plan({"first": 1, "second": 3})
    assert progress.snapshot()["fraction"] == 0.0
    progress.enter("first").advance(1, 2)
    assert progress.snapshot()["fraction"] == pytest.approx(0.125)
    watch = progress.enter("second", unit="images")
    assert progress.snapshot() == {"done": 0, "total": 0, "unit": "images", "phase": "second", "fraction": 0.25}
    watch.advance(5, 10)
    assert progress.snapshot()["fraction"] == pytest.approx(0.625)
    assert set(progress.close()) == {"first", "second"}


def test_an_unplanned_phase_is_an_error() -> None:
    progress = Progress()
    progress.plan({"first": 1})
    with pytest.raises(ValueError, match="other"):
        progress.enter("other")


def test_the_order_to_stop_is_heard_at_the_next_step() -> None:
    progress = Progress()
    progress.plan({"first": 1})
    watch = progress.enter("first")
    watch.advance(1, 10)
    progress.stopping.set()
    with pytest.raises(Stopped):
        watch.advance(2, 10)
