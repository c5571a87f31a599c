"""What a step is given, and what it gives back."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs import artifacts
from service.jobs.repository import Claim
from service.settings import Settings
from service.storage import Storage
from service.tenancy import TenantStorage
from worker.progress import Progress
from worker.runtime import Runtime
from worker.waiting import patiently

T = TypeVar("T")

Publish = Callable[[Session], dict[str, Any]]
"""Makes the step's rows in the transaction that ends the job, and returns what they add to its result."""


@dataclass(frozen=True)
class Outcome:
    """A step's result. What `publish` writes comes to be together with the job's success, or not at all."""

    result: dict[str, Any]
    publish: Publish


class StorageCheckpoints:
    """Checkpoints of one job on storage, shared by its attempts."""

    def __init__(self, storage: Storage, prefix: str, *, every_seconds: float) -> None:
        """every_seconds: how often a fit keeps its state within an epoch."""
        self._storage = storage
        self._prefix = prefix
        self.every_seconds = every_seconds

    def load(self, name: str) -> bytes | None:
        key = self._key(name)
        return self._storage.read(key) if self._storage.exists(key) else None

    def save(self, name: str, data: bytes) -> None:
        self._storage.write(self._key(name), data)

    def of(self, part: str) -> StorageCheckpoints:
        """The checkpoints of one of several parts of the job that use the same names."""
        return StorageCheckpoints(self._storage, f"{self._prefix}/{part}", every_seconds=self.every_seconds)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{re.sub(r'[^a-zA-Z0-9_-]', '_', name)}"


@dataclass(frozen=True)
class Context:
    """One attempt at one job."""

    runtime: Runtime
    claim: Claim
    progress: Progress
    written: list[str] = field(default_factory=list)  # prefixes to delete where the attempt comes to nothing

    @property
    def storage(self) -> Storage:
        """Of the job's tenant."""
        return TenantStorage(self.runtime.storage, self.claim.tenant)

    @property
    def database(self) -> Database:
        """As the job's tenant sees it."""
        return self.runtime.database.of(self.claim.tenant)

    def patiently(self, call: Callable[[], T]) -> T:
        """What `call` gives, once the database is there. Raises Stopped where the job is to end before."""
        return patiently(call, self.progress.check)

    @property
    def settings(self) -> Settings:
        return self.runtime.settings

    @property
    def checkpoints(self) -> StorageCheckpoints:
        prefix = artifacts.checkpoints_prefix(self.claim.job_id)
        return StorageCheckpoints(self.storage, prefix, every_seconds=self.settings.checkpoint_seconds)

    @property
    def artifacts(self) -> str:
        """Where this attempt keeps its own files."""
        return self._claimed(artifacts.attempt_prefix(self.claim.job_id, self.claim.attempt))

    def output(self, kind: str, name: str) -> str:
        """Where this attempt writes a version, such as datasets/signs/{job}-{attempt}."""
        return self._claimed(f"{kind}/{name}/{self.claim.job_id}-{self.claim.attempt}")

    def _claimed(self, prefix: str) -> str:
        if prefix not in self.written:
            self.written.append(prefix)
        return prefix
