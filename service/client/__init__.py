"""The typed HTTP client of Winnow's API: what the CLI uses, and what your own programs may import."""

from service.client.errors import CannotReach, ClientError, NotWinnow, ProblemError, WaitTimedOut
from service.client.records import (
    DatasetVersion,
    Job,
    ModelVersion,
    Prediction,
    Predictions,
    Progress,
    Uncertainty,
    Verdict,
)
from service.client.session import WinnowClient

__all__ = [
    "CannotReach",
    "ClientError",
    "DatasetVersion",
    "Job",
    "ModelVersion",
    "NotWinnow",
    "Prediction",
    "Predictions",
    "ProblemError",
    "Progress",
    "Uncertainty",
    "Verdict",
    "WaitTimedOut",
    "WinnowClient",
]
