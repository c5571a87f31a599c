"""People's decisions about verdicts: added, never changed; which of them stand, and what they come to."""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db import now
from service.jobs.verdicts import Verdict
from service.tables import Job, Override

Indices = NDArray[np.int64]
Numbers = NDArray[np.int32]

DECISIONS = (Verdict.KEEP, Verdict.QUARANTINE)
"""What a person may decide."""

MOST_BYTES = 64 * 1024 * 1024
"""Of all standings kept: sixteen of a million images each."""


@dataclass(frozen=True)
class Decision:
    """One act of one person, without the images that it is about. `verdict` None took earlier ones back."""

    seq: int
    verdict: Verdict | None
    note: str | None
    by: str
    at: datetime

    def wire(self) -> dict[str, Any]:
        """As the API gives it."""
        return {"verdict": self.verdict, "note": self.note, "by": self.by, "at": self.at}


@dataclass(frozen=True, eq=False)
class Standing:
    """Which decision stands for each image: its `seq`, or 0 where none does. Images past the end have none."""

    numbers: Numbers
    last: int  # decisions looked at, all of the job's up to this one

    def over(self, count: int) -> Numbers:
        """The same for the first `count` images."""
        numbers = np.zeros(count, np.int32)
        numbers[: len(self.numbers)] = self.numbers[:count]
        return numbers


def decide(
    session: Session, job: Job, indices: Indices, verdict: Verdict | None, *, note: str | None, by: str
) -> Decision | None:
    """Add one decision about all of `indices`; None where there is no image to decide on."""
    chosen = np.unique(indices)
    return _added(session, job, chosen, verdict, note, by) if len(chosen) else None


def decide_one(
    session: Session, job: Job, index: int, verdict: Verdict | None, *, note: str | None, by: str
) -> Decision:
    return _added(session, job, np.array([index]), verdict, note, by)


def _added(session: Session, job: Job, chosen: Indices, verdict: Verdict | None, note: str | None, by: str) -> Decision:
    """Decisions of one job wait for each other, so that whoever has seen one has seen all before it."""
    session.get(Job, job.id, with_for_update=True, populate_existing=True)
    latest = session.scalar(select(func.max(Override.seq)).where(Override.job_id == job.id)) or 0
    row = Override(
        job_id=job.id,
        seq=latest + 1,
        verdict=verdict,
        note=note,
        by=by,
        at=now(),
        count=len(chosen),
        first=int(chosen[0]),
        last=int(chosen[-1]),
        indices=packed(chosen),
    )
    session.add(row)
    session.flush()
    return _decision(row)


def standing(session: Session, job_id: str, *, since: Standing | None = None) -> Standing:
    """What stands now; `since` saves looking at what was looked at before."""
    start = since or Standing(np.zeros(0, np.int32), 0)
    columns = (Override.seq, Override.verdict, Override.last, Override.indices)
    query = select(*columns).where(Override.job_id == job_id, Override.seq > start.last).order_by(Override.seq)
    rows = session.execute(query).all()
    if not rows:
        return start
    numbers = start.over(max(len(start.numbers), 1 + max(row.last for row in rows)))
    for row in rows:
        numbers[unpacked(row.indices)] = 0 if row.verdict is None else row.seq
    return Standing(numbers, rows[-1].seq)


def decisions(session: Session, job_id: str, numbers: Iterable[int] | None = None) -> dict[int, Decision]:
    """Decisions by their number: these, or all of the job's."""
    columns = (Override.seq, Override.verdict, Override.note, Override.by, Override.at)
    query = select(*columns).where(Override.job_id == job_id).order_by(Override.seq)
    if numbers is not None:
        query = query.where(Override.seq.in_(list(numbers)))
    return {row.seq: _decision(row) for row in session.execute(query)}


def history(session: Session, job_id: str, index: int) -> list[Decision]:
    """Every decision about one image, the first one first."""
    about = (Override.job_id == job_id, Override.first <= index, Override.last >= index)
    rows = session.scalars(select(Override).where(*about).order_by(Override.seq))
    return [_decision(row) for row in rows if index in unpacked(row.indices)]


def shown(session: Session, job_id: str, stands: Standing, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of verdicts, each with the decision that stands for it."""
    places = [row["index"] for row in rows]
    count = 1 + max(places, default=-1)
    numbers = stands.over(count)[places].tolist()
    wanted = {number for number in numbers if number}
    told = {number: each.wire() for number, each in decisions(session, job_id, wanted).items()} if wanted else {}
    return [{**row, "override": told.get(number)} for row, number in zip(rows, numbers, strict=True)]


def digest(numbers: Numbers, made: dict[int, Decision]) -> str:
    """sha256 over a line `index verdict` for each image that a decision stands for, by index."""
    places = np.flatnonzero(numbers)
    verdicts = (str(made[number].verdict) for number in numbers[places].tolist())
    lines = "".join(f"{place} {verdict}\n" for place, verdict in zip(places.tolist(), verdicts, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def packed(indices: Indices) -> bytes:
    """Sorted indices in little: their differences, compressed. A million take from 4 kB to 1 MB."""
    return zlib.compress(np.diff(indices, prepend=0).astype("<i4").tobytes(), 1)


def unpacked(data: bytes) -> Indices:
    return np.cumsum(np.frombuffer(zlib.decompress(data), "<i4"), dtype=np.int64)


class Standings:
    """What stands in the jobs looked at last, within `most_bytes`; any thread may ask."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[str, Standing] = OrderedDict()
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        return sum(kept.numbers.nbytes for kept in self._kept.values())

    def get(self, session: Session, job_id: str) -> Standing:
        """As the database has it now; only decisions that are new are read."""
        with self._lock:
            known = self._kept.get(job_id)
        found = standing(session, job_id, since=known)
        with self._lock:
            self._kept[job_id] = found
            self._kept.move_to_end(job_id)
            while self.nbytes > self._most:
                self._kept.popitem(last=False)
        return found


def _decision(row: Any) -> Decision:
    return Decision(row.seq, Verdict(row.verdict) if row.verdict else None, row.note, row.by, row.at)
