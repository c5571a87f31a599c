"""What can go wrong between client and service.

ClientError
├── ProblemError    the service refused, and says why
├── CannotReach     no answer from the service
├── NotWinnow       an answer that is not this API's
└── WaitTimedOut    the job had not finished in the time given
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.client.records import Job


class ClientError(Exception):
    """What went wrong between the client and the service; the message says what to do."""


class ProblemError(ClientError):
    """The service refused. `code` is stable; `extra` holds the problem document's other members."""

    def __init__(self, code: str, status: int, detail: str, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status
        self.detail = detail
        self.extra = dict(extra or {})


class CannotReach(ClientError):
    """No answer."""


class NotWinnow(ClientError):
    """Something answered, but not this API (a proxy, another program, another version)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class WaitTimedOut(ClientError):
    """`job` is the job as it was last seen; it goes on."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"Job {job.id} is still {job.state}. It goes on: wait again, or cancel it.")
        self.job = job
