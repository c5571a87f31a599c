"""Every error a user can meet, in one tree with stable codes. No HTTP here: `service.api.problems` maps the branches.

WinnowError
├── InvalidInput            what was sent cannot be used as it is
│   ├── InvalidParams       a job's parameters do not fit its spec
│   ├── InvalidReference    not a name, name@n or name:alias
│   ├── InvalidUpload       an upload that is not an image data set
│   ├── ChecksumMismatch    a piece of an upload arrived as other bytes
│   └── UnusableDataset     a data set that this job cannot work with
├── NotFound                nothing by that name
├── Gone                    it was there, and is not any more
├── Conflict                the state of the thing forbids it
│   ├── IllegalTransition   a job cannot go from this state to that
│   └── IdempotencyConflict same key, other payload
├── Unauthorized            no key, or one that does not count (wrong, expired, revoked)
├── Forbidden               a key that may not do this
├── TooLarge                over a limit
├── UnsupportedMedia        a format that Winnow does not read
├── NotAcceptable           a format that this call does not answer in
├── WrongTusVersion         a resumable upload in another version of its protocol
├── TooManyRequests         the queue is full; come back later
│   └── Locked              somebody else is writing to it
├── Unavailable             a part is missing for now
├── LeaseLost               another attempt owns the job (workers only)
└── Corrupt                 stored bytes are not what was stored
"""

from __future__ import annotations


class WinnowError(Exception):
    """`code` is stable and documented; `message` says what was wrong, where, and what to do."""

    code = "internal"

    def __init__(self, message: str, *, code: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        if code is not None:
            self.code = code


class InvalidInput(WinnowError):
    code = "invalid_input"


class InvalidParams(InvalidInput):
    code = "invalid_params"


class InvalidReference(InvalidInput):
    code = "invalid_reference"


class InvalidUpload(InvalidInput):
    code = "invalid_upload"


class ChecksumMismatch(InvalidInput):
    code = "checksum_mismatch"


class UnusableDataset(InvalidInput):
    code = "unusable_dataset"


class NotFound(WinnowError):
    code = "not_found"


class Gone(WinnowError):
    code = "gone"


class WrongTusVersion(WinnowError):
    code = "tus_version"


class Conflict(WinnowError):
    code = "conflict"


class IllegalTransition(Conflict):
    code = "illegal_transition"


class IdempotencyConflict(InvalidInput):
    code = "idempotency_key_reused"


class Unauthorized(WinnowError):
    code = "unauthorized"


class Forbidden(WinnowError):
    code = "forbidden"


class TooLarge(WinnowError):
    code = "too_large"


class UnsupportedMedia(WinnowError):
    code = "unsupported_media"


class NotAcceptable(WinnowError):
    code = "not_acceptable"


class TooManyRequests(WinnowError):
    code = "too_many_requests"

    def __init__(
        self, message: str, *, retry_after_seconds: int = 1, code: str | None = None, **details: object
    ) -> None:
        super().__init__(message, code=code, **details)
        self.retry_after_seconds = retry_after_seconds


class Locked(TooManyRequests):
    code = "locked"


class Unavailable(WinnowError):
    code = "unavailable"

    def __init__(
        self, message: str, *, retry_after_seconds: int = 5, code: str | None = None, **details: object
    ) -> None:
        super().__init__(message, code=code, **details)
        self.retry_after_seconds = retry_after_seconds


class LeaseLost(WinnowError):
    code = "lease_lost"


class Corrupt(WinnowError):
    code = "corrupt"
