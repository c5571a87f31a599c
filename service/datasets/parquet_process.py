"""Reads Parquet in a process of its own: the library ends its process, uncatchably, over some damaged files."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from service import errors
from service.datasets.decode import decode_image
from service.datasets.pipes import Child, Crashed, cut, own_pipes, receive, send
from service.datasets.sample import Layout, Limits, Sample
from service.disk import discard, scratch_told
from service.errors import InvalidUpload, WinnowError

START = "from service.datasets.parquet_process import main; main()"
FRAME_ROWS = 256
FRAME_BYTES = 4 * 1024 * 1024
KINDS = {kind.__name__: kind for kind in (errors.InvalidUpload, errors.TooLarge, errors.UnsupportedMedia)}


class ParquetUpload:
    """The parent's end. Only one walk through the samples is under way at a time: a new one ends the last."""

    source_format = "parquet"

    def __init__(self, file: BinaryIO, limits: Limits, split: str | None = None) -> None:
        self._limits = limits
        self._file = _real(file)
        number = self._file.fileno()
        self._child = Child(START, keep=[number], quiet=True)
        weakref.finalize(self, self._child.close)  # nobody else knows when the last image has been read
        told, _ = self._ask(["open", number, asdict(limits), split])
        self.num_samples: int = told["num_samples"]
        self.classes: list[str] = told["classes"]

    def layout(self) -> Layout | None:
        """Only decoding tells."""
        return None

    def samples(self) -> Iterator[Sample]:
        self._ask(["samples"])
        while True:
            rows, body = self._ask(["next"])
            if not rows:
                return
            for (path, label, group, problem, _), data in zip(rows, cut(body, [row[4] for row in rows]), strict=True):
                yield Sample(path, label, data, group, problem)

    def pixels(self, sample: Sample, *, size: int, channels: int) -> NDArray[np.uint8]:
        if not isinstance(sample.data, bytes):
            raise TypeError("a Parquet file of images gives encoded files")
        return decode_image(sample.data, size=size, channels=channels, max_pixels=self._limits.max_image_pixels)

    def _ask(self, head: Any) -> tuple[Any, bytes]:
        try:
            told, body = self._child.ask(head)
        except Crashed as error:
            raise InvalidUpload("The Parquet file is damaged: nobody can read it.", code="broken_parquet") from error
        if isinstance(told, dict) and "error" in told:
            raise KINDS[told["error"]](told["message"], code=told["code"])
        return told, body


def main() -> None:
    """Answer questions about one file until the parent is gone."""
    from service.datasets.parquet import ParquetFile

    source, sink = own_pipes()
    opened: Any = None
    samples: Iterator[Sample] = iter(())
    try:
        while True:
            question, _ = receive(source)
            try:
                if question[0] == "open":
                    _, number, limits, split = question
                    opened = ParquetFile(os.fdopen(number, "rb"), Limits(**limits), split)
                    send(sink, {"num_samples": opened.num_samples, "classes": opened.classes}, [])
                elif question[0] == "samples":
                    samples = opened.samples()
                    send(sink, [], [])
                else:
                    send(sink, *_frame(samples))
            except WinnowError as error:
                kind = type(error).__name__
                send(sink, {"error": kind, "code": error.code, "message": error.message}, [])
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


def _frame(samples: Iterator[Sample]) -> tuple[list[Any], list[bytes]]:
    rows: list[Any] = []
    body: list[bytes] = []
    size = 0
    for sample in samples:
        data = sample.data if isinstance(sample.data, bytes) else b""
        rows.append([sample.path, sample.label, sample.group, sample.problem, len(data)])
        body.append(data)
        size += len(data)
        if size >= FRAME_BYTES or len(rows) == FRAME_ROWS:
            break
    return rows, body


def _real(file: BinaryIO) -> BinaryIO:
    """A file that another process can read too."""
    try:
        file.fileno()
    except OSError:
        with scratch_told():
            copy = tempfile.TemporaryFile(prefix="winnow-spool-")  # noqa: SIM115 (lives as long as the upload)
            weakref.finalize(file, discard, copy)
            file.seek(0)
            shutil.copyfileobj(file, copy)
            copy.flush()
        return copy
    return file
