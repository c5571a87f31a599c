"""The typed HTTP client of Winnow's API: what the CLI uses, and what your own programs may import."""

from service.client.errors import CannotReach, ClientError, NotWinnow, ProblemError, WaitTimedOut
from service.client.records import (
    AuditEntry,
    DatasetVersion,
    IssuedKey,
    Job,
    Key,
    ModelVersion,
    Prediction,
    Predictions,
    Progress,
    Uncertainty,
    Verdict,
    Verification,
)
from service.client.session import WinnowClient

__all__ = [
    "AuditEntry",
    "CannotReach",
    "ClientError",
    "DatasetVersion",
    "IssuedKey",
    "Job",
    "Key",
    "ModelVersion",
    "NotWinnow",
    "Prediction",
    "Predictions",
    "ProblemError",
    "Progress",
    "Uncertainty",
    "Verdict",
    "Verification",
    "WaitTimedOut",
    "WinnowClient",
]
