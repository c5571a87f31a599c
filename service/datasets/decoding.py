"""Decodes the samples of an upload in order, on every core: small processes decode, one thread hands out the work."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.datasets.decode import ImageRejected
from service.datasets.decoding_process import TOO_SLOW, Answer, DecodingProcess, Task, decode_all
from service.datasets.pipes import Crashed
from service.datasets.readers import Upload
from service.datasets.sample import Sample
from service.errors import InvalidUpload

POOL_FROM = 512  # fewer samples are decoded before a second process has started
MOST_PROCESSES = 16
BATCH_IMAGES = 256
BATCH_BYTES = 4 * 1024 * 1024  # of files, and of pixels
WAITING = 3  # batches a process
MOST_CRASHES = 3  # of decoders over one upload
CRASHED = "decoding it brings the decoder down"


@dataclass(frozen=True)
class Target:
    """What every image becomes."""

    size: int
    channels: int
    max_pixels: int

    @property
    def pixel_bytes(self) -> int:
        return self.size * self.size * self.channels


class Ready(NamedTuple):
    """A sample with its pixels at the working resolution, or the reason why it has none."""

    sample: Sample
    pixels: NDArray[np.uint8] | None
    problem: str | None
    sample_id: str
    width: int
    height: int
    grey: bool


def decoded(
    upload: Upload,
    target: Target,
    *,
    processes: int | None = None,
    most: int | None = None,
    pool: DecodingPool | None = None,
) -> Generator[Ready]:
    """Every sample in the order of the upload, or only the first so many.

    pool: the processes of an earlier walk; else new ones. processes: None for one a core, 0 for this one alone.
    """
    samples: Iterator[Sample] = islice(upload.samples(), most)
    first = next(samples, None)
    if first is None:
        return
    samples = chain([first], samples)
    if not isinstance(first.data, bytes):
        yield from (_fitted(upload, sample, target) for sample in samples)
        return
    if pool is not None:
        yield from pool.decode(samples, target)
        return
    with DecodingPool(min(upload.num_samples, most or upload.num_samples), processes) as pool:
        yield from pool.decode(samples, target)


class DecodingPool:
    """Decoding processes, each with a thread that talks to it; they start when there is work for them."""

    def __init__(self, images: int, processes: int | None = None) -> None:
        """processes: None for one a core, or one alone for few images; 0 for the calling process."""
        if processes is None:
            processes = min(MOST_PROCESSES, len(os.sched_getaffinity(0))) if images >= POOL_FROM else 1
        self._here, self._processes = processes == 0, processes
        self._threads = ThreadPoolExecutor(max(1, processes), thread_name_prefix="decoding")
        self._idle: deque[DecodingProcess] = deque()
        self._window = WAITING * processes
        self._crashes = 0
        self._costly: dict[tuple[str, int], str] = {}  # (path, bytes) of what is not tried in another walk: why not

    def __enter__(self) -> DecodingPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process in self._idle:
            process.close()

    def start(self) -> None:
        """Start the processes before there is work for them: they are ready when an upload has been looked through."""
        self._idle.extend(DecodingProcess() for _ in range(self._processes - len(self._idle)))

    def decode(self, samples: Iterator[Sample], target: Target) -> Generator[Ready]:
        """Every sample, which is an encoded file, in order."""
        batches = _batches(samples, target)
        if self._here:
            for batch in batches:
                yield from _joined(batch, decode_all(_task(batch, target)), target)
            return
        waiting: deque[tuple[list[Sample], Future[list[Answer]]]] = deque()
        try:
            for batch in map(self._without_costly, batches):
                waiting.append((batch, self._threads.submit(self._decode, _task(batch, target))))
                if len(waiting) >= self._window:
                    batch, answers = waiting.popleft()
                    yield from self._answered(batch, answers.result(), target)
            while waiting:
                batch, answers = waiting.popleft()
                yield from self._answered(batch, answers.result(), target)
        finally:
            for _, answers in waiting:
                answers.cancel()

    def _without_costly(self, batch: list[Sample]) -> list[Sample]:
        if not self._costly:
            return batch
        known = [(one, self._costly.get((one.path, len(one.data)))) for one in batch]
        return [one if problem is None else one._replace(problem=problem) for one, problem in known]

    def _answered(self, batch: list[Sample], answers: list[Answer], target: Target) -> Iterator[Ready]:
        for ready in _joined(batch, answers, target):
            if ready.problem in (TOO_SLOW, CRASHED):
                self._costly[ready.sample.path, len(ready.sample.data)] = ready.problem
            yield ready

    def _decode(self, task: Task) -> list[Answer]:
        """A process that dies takes no job with it: its batch is tried again, image by image, in a new one."""
        try:
            process = self._idle.popleft()
        except IndexError:  # each thread holds one at most, so there are never more than threads
            process = DecodingProcess()
        try:
            return process.decode(task)
        except Crashed:
            process.close()
            process = DecodingProcess()
            answers: list[Answer] = []
            for data in task.files:
                try:
                    answers += process.decode(task._replace(files=[data]))
                except Crashed:
                    process.close()
                    self._count_crash()
                    process = DecodingProcess()
                    answers.append(CRASHED)
            return answers
        finally:
            self._idle.append(process)

    def _count_crash(self) -> None:
        """Raises InvalidUpload: a decoder takes long to start, and honest images bring none down."""
        self._crashes += 1
        if self._crashes > MOST_CRASHES:
            raise InvalidUpload(
                f"Over {MOST_CRASHES} images bring down the decoder. Nothing was kept.", code="too_many_rejected"
            )


def _batches(samples: Iterator[Sample], target: Target) -> Iterator[list[Sample]]:
    most = max(1, min(BATCH_IMAGES, BATCH_BYTES // target.pixel_bytes))
    batch: list[Sample] = []
    size = 0
    for sample in samples:
        batch.append(sample)
        size += len(sample.data)
        if len(batch) == most or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _task(batch: list[Sample], target: Target) -> Task:
    files = [sample.data for sample in batch if sample.problem is None and isinstance(sample.data, bytes)]
    return Task(target.size, target.channels, target.max_pixels, files)


def _joined(batch: list[Sample], answers: list[Answer], target: Target) -> Iterator[Ready]:
    following = iter(answers)
    shape = (target.size, target.size, target.channels)
    for sample in batch:
        answer = sample.problem if sample.problem is not None else next(following)
        if isinstance(answer, str):
            yield Ready(sample, None, answer, "", 0, 0, False)
        else:
            sample_id, width, height, grey, pixels = answer
            yield Ready(sample, np.frombuffer(pixels, np.uint8).reshape(shape), None, sample_id, width, height, grey)


def _fitted(upload: Upload, sample: Sample, target: Target) -> Ready:
    """Of an upload that gives pixels."""
    if isinstance(sample.data, bytes):
        raise TypeError("an upload gives files or pixels, not both")
    height, width, channels = sample.data.shape
    try:
        pixels = upload.pixels(sample, size=target.size, channels=target.channels)
    except ImageRejected as error:
        return Ready(sample, None, str(error), "", 0, 0, False)
    sample_id = hashlib.sha256(sample.data.tobytes()).hexdigest()
    return Ready(sample, pixels, None, sample_id, width, height, channels == 1)
