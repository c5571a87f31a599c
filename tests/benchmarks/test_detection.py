"""What the benchmarks' own arithmetic must hold: no object on two sides, runs merged, intervals over seeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import detection_record
from benchmarks.datasets import TRACKS_A_CLASS, ImageSet, split
from benchmarks.detection_rates import drawn
from benchmarks.detection_record import Measured, Record, Run, at_least, at_most, share


@pytest.fixture
def signs() -> ImageSet:
    """Five classes of 20 signs with 30 images each."""
    labels = np.repeat(np.arange(5), 600)
    groups = labels * TRACKS_A_CLASS + np.tile(np.repeat(np.arange(20), 30), 5)
    images = np.zeros((3000, 8, 8, 3), np.uint8)
    return ImageSet("signs", images, labels, groups, images[:10], labels[:10])


def test_a_split_keeps_every_sign_on_one_side_and_takes_few_images_of_many_signs(signs: ImageSet) -> None:
    assert signs.groups is not None
    parts = split(signs, trusted=60, candidates=1000, seed=3)
    sides = [set(signs.groups[rows].tolist()) for rows in (parts.fit, parts.calibrate, parts.candidates)]
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & sides[2]
    assert len(parts.fit) + len(parts.calibrate) == 60
    assert len(sides[0]) + len(sides[1]) == 25  # a quarter of the signs, and all of these
    assert np.unique(signs.groups[parts.fit], return_counts=True)[1].max() <= 3
    assert len(np.unique(parts.candidates)) == 1000
    assert set(signs.labels[parts.calibrate]) == set(range(5))


def test_a_draw_of_calibration_images_shares_no_object_with_what_is_judged() -> None:
    groups = np.repeat(np.arange(100), 7)
    calibrating, judged = drawn(groups, 90, np.random.default_rng(0))
    assert 90 <= len(calibrating) <= 92
    assert not set(groups[calibrating]) & set(groups[judged])
    assert np.unique(groups[calibrating], return_counts=True)[1].tolist() == [3] * 30
    assert len(judged) == 70 * 7


def _run(seed: int, value: float, commit: str = "a") -> Run:
    measured = Measured("labels/signs/tpr", value, at_least(0.9), n=100)
    return Run("labels", "signs", seed, "python", commit, "2026", 1.0, (measured,))


def test_runs_of_other_seeds_join_and_a_run_of_the_same_replaces(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection_record, "RESULTS", tmp_path)
    for run in (_run(0, 0.5), _run(1, 0.95), _run(0, 0.97, "b")):
        Record.open("signs", quick=False).add(run, quick=False)
    record = Record.open("signs", quick=False)
    assert [run.commit for run in record.runs.values()] == ["b", "a"]
    (row,) = record.rows()
    assert row.measured == pytest.approx(0.96)
    assert row.low is not None and row.high is not None
    assert row.high - row.measured == pytest.approx(12.7062 * 0.01, rel=1e-4)  # t of one degree of freedom, s/√2 = .01
    assert row.n == 200
    assert row.holds


def test_two_commands_that_run_at_once_lose_nothing(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection_record, "RESULTS", tmp_path)
    slow, fast = Record.open("signs", quick=False), Record.open("signs", quick=False)
    fast.add(_run(0, 0.9), quick=False)
    slow.add(_run(1, 0.9), quick=False)
    assert [run.seed for run in Record.open("signs", quick=False).runs.values()] == [0, 1]


def test_a_bar_is_held_to_with_its_slack() -> None:
    assert not at_most(0.02).holds(0.021, 0.0)
    assert at_most(0.02, slack=0.002).holds(0.021, 0.002)
    assert not at_least(0.9).holds(0.89, 0.0)


def test_a_share_carries_its_interval() -> None:
    found = share("x", 8, 10)
    assert found.value == 0.8
    assert found.low is not None and found.high is not None
    assert found.low < 0.8 < found.high


def test_memory_is_measured_by_processes_that_write_and_score_what_a_job_would(tmp_path: Path) -> None:
    for step in ("write", "score"):
        command = [sys.executable, "-m", "benchmarks.detection_scale", step, str(tmp_path), "1200"]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 50 < float(found.stdout) < 5000


def test_a_record_names_no_folder_of_the_machine_and_reads_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(detection_record, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmark", "--data", str(tmp_path), "--only", "labels"])
    for seed in (0, 1):
        measured = [share(f"labels/digits/{what}", seed + 3, 7) for what in ("tpr", "fpr")]
        run = Run.of("labels", "digits", seed, measured, 1.25, "detection")
        Record.open("kept", quick=False).add(run, quick=False)
    written = (tmp_path / "kept.json").read_text()
    assert str(tmp_path) not in written
    assert run.command == "python -m benchmarks.detection --data FOLDER --only labels"
    assert sum(line.startswith('{"part": "labels"') for line in written.splitlines()) == 2
    found = Record.open("kept", quick=False)
    assert found.runs[run.key] == run
    assert [row.measured for row in found.rows()] == pytest.approx([0.5, 0.5])
