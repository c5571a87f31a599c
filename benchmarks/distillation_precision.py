"""What a student loses in fewer bits: its accuracy without dropout, and the time of its graph, both beside float32."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import datasets
from benchmarks.distillation_networks import distilled, training_rows
from benchmarks.harness import ClaimRow, row
from benchmarks.serving_session import open_session
from models.abstention import dropout_masks
from models.calibration import wilson_interval
from models.classifiers import Classifier
from models.images import Images
from models.lowering import LoweredTrunk, Precision, lowered
from models.onnx_export import StudentGraphs, trace_trunk
from models.onnx_parts import Part
from models.specs import ExportSpec
from models.uncertainty import mc_probabilities

PRECISIONS: tuple[Precision, ...] = ("int8", "float16")
PASSES, CALLS = 32, 400
BOUND = float(ExportSpec.model_fields["max_accuracy_loss"].default)


def precision_rows(data: Path, cache: Path, *, quick: bool) -> tuple[list[ClaimRow], dict[str, Any]]:
    given, count = datasets.load(data, "gtsrb"), 400 if quick else len(datasets.load(data, "gtsrb").test_labels)
    student = distilled(given, "defensive", cache, quick=quick).student
    sample = given.images[training_rows(given, "defensive", 0, quick=quick)][: ExportSpec().sample_images]
    images, labels = given.test_images[:count], given.test_labels[:count]
    trunk, exact = trace_trunk(student, given.image_shape), _answers(student, images)
    right = int((exact == labels).sum())
    name = "distill/gtsrb/precision"
    rows = [
        row(f"{name}/float32/accuracy", "shown", right / count, True, interval=wilson_interval(right, count), n=count)
    ]
    plain = StudentGraphs(student, None, given.image_shape).student
    for precision in PRECISIONS:
        part = lowered(trunk, sample, precision)
        lower = copy.deepcopy(student)
        lower.lowered = LoweredTrunk(part)
        answers = _answers(lower, images)
        lost, same = (right - int((answers == labels).sum())) / count, float((answers == exact).mean())
        rows.append(row(f"{name}/{precision}/accuracy-lost", f"<= {BOUND}", lost, lost <= BOUND, n=count))
        rows.append(row(f"{name}/{precision}/same-answer", "shown", same, True, n=count))
        graph = _graph(student, part, given.image_shape)
        for size in (1, 8):
            ratio = _time_ratio(graph, plain, images[:size], student.feature_dim)
            rows.append(row(f"{name}/{precision}/time-over-float32-batch-{size}", "shown", ratio, True, n=CALLS))
    return rows, {"sample_images": len(sample)}


def _answers(student: Classifier, images: Images) -> np.ndarray[Any, np.dtype[np.int64]]:
    ones = np.ones((1, student.feature_dim), np.float32)
    answers: np.ndarray[Any, np.dtype[np.int64]] = mc_probabilities(student, images, ones)[0].argmax(axis=1)
    return answers


def _graph(student: Classifier, part: Part, shape: tuple[int, int, int]) -> bytes:
    return StudentGraphs(student, None, shape, trunk=part).student


def _time_ratio(graph: bytes, plain: bytes, images: Images, width: int) -> float:
    """Of one thread, by the lower quartiles of calls in turn, which another process's work disturbs least."""
    feeds = {"images": images, "masks": dropout_masks(PASSES, width, 0.5, seed=0)}
    sessions, seconds = (open_session(graph), open_session(plain)), np.empty((CALLS, 2))
    for call in range(CALLS):
        for place, session in enumerate(sessions):
            began = time.perf_counter()
            session.run(None, feeds)
            seconds[call, place] = time.perf_counter() - began
    lower, exact = np.quantile(seconds, 0.25, axis=0)
    return float(lower / exact)
