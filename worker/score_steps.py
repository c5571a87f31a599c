"""Scoring as steps: the fitted examiner goes to storage once, and any worker scores a range of images with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from models.panel.detectors import Encode
from models.training import Watch
from service.datasets.shards import ShardReader
from service.errors import Corrupt, InvalidParams
from service.jobs import artifacts
from service.jobs.steps import StepClaim
from worker.context import Context
from worker.datasets import open_version
from worker.encoders import Eye
from worker.examiner import Examiner, Listing, Scores
from worker.examiner_file import pack_examiner, unpack_examiner
from worker.fanout import fan_out
from worker.scoring import packed, score_range, unpacked
from worker.stepping import CannotHelp, Work

PHASE = "scoring"


def score_by_steps(context: Context, examiner: Examiner, reader: ShardReader, listing: Listing, watch: Watch) -> Scores:
    """Scores (n, t) of every image in order, by however many workers come."""

    def work(claim: StepClaim, watch: Watch) -> bytes:
        return packed(score_range(examiner, reader, listing, claim.start, claim.stop, watch))

    results = fan_out(context, PHASE, reader.num_samples, _give(context, examiner, listing), work, watch)
    found, start = np.empty((reader.num_samples, len(examiner.names)), np.float32), 0
    for part in map(unpacked, results):
        found[start : start + len(part)] = part
        start += len(part)
    return found


def _give(context: Context, examiner: Examiner, listing: Listing) -> dict[str, str]:
    """What the phase is given: the examiner's key on storage and its sha256."""
    data = pack_examiner(examiner, listing)
    digest = hashlib.sha256(data).hexdigest()
    key = f"{artifacts.steps_prefix(context.claim.job_id, PHASE)}/examiner-{digest[:16]}"
    if not context.storage.exists(key):
        context.storage.write(key, data)
    return {"examiner": key, "sha256": digest}


@contextmanager
def helper(context: Context) -> Iterator[Work]:
    """Loads the examiner with the first step, under its lease, and again only where the job has fitted another."""
    loaded: dict[str, tuple[Examiner, Listing, ShardReader]] = {}

    def work(claim: StepClaim, watch: Watch) -> bytes:
        digest = claim.given["sha256"]
        if digest not in loaded:
            loaded.clear()
            loaded[digest] = _load(context, claim.given["examiner"], digest)
        examiner, listing, reader = loaded[digest]
        return packed(score_range(examiner, reader, listing, claim.start, claim.stop, watch))

    yield work


def _load(context: Context, key: str, digest: str) -> tuple[Examiner, Listing, ShardReader]:
    data = context.storage.read(key)
    if hashlib.sha256(data).hexdigest() != digest:
        raise Corrupt(f"{key} is not what was written. Retry the job.")
    _, reader = open_version(context, context.claim.inputs["dataset"])

    def encoder_of(facts: Mapping[str, Any]) -> Encode:
        try:
            return Eye(context.settings, facts["name"], sha256=facts["sha256"]).encode
        except InvalidParams as error:
            raise CannotHelp(error.message) from error

    return *unpack_examiner(data, encoder_of), reader
