"""The service's records as the client gives them: frozen, typed, tolerant of fields added later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FINISHED = frozenset({"succeeded", "failed", "cancelled"})


class Wire(BaseModel):
    """A record as the service sends it. Fields that this client does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Progress(Wire):
    """How far a job is: `done` of `total`; `fraction` where the service knows it more finely than that."""

    done: float | None = None
    total: float | None = None
    unit: str | None = None
    phase: str | None = None
    fraction: float | None = None

    @property
    def share(self) -> float | None:
        """Between 0 and 1; None while nothing is known."""
        if self.fraction is not None:
            return self.fraction
        return None if not self.total else (self.done or 0.0) / self.total


class Job(Wire):
    id: str
    type: str
    state: str
    progress: Progress = Progress()
    eta_seconds: float | None = None
    attempt: int = 0
    created_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    params: dict[str, Any] = {}
    result: dict[str, Any] | None = None
    error: Any = None

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    @property
    def succeeded(self) -> bool:
        return self.state == "succeeded"

    @property
    def trouble(self) -> str | None:
        """Why it failed, in words."""
        if isinstance(self.error, Mapping):
            return str(self.error.get("message") or self.error.get("detail") or dict(self.error))
        return None if self.error is None else str(self.error)


class JobEvent(Wire):
    """What happened to a job: of kind `state` with its number as `id`, or of kind `progress`, which has none."""

    kind: Literal["state", "progress"] = "state"
    id: int | None = None
    at: str | None = None
    state: str | None = None
    attempt: int | None = None
    message: str | None = None
    progress: Progress | None = None


class Sample(Wire):
    """A row of a version's manifest."""

    index: int
    sample_id: str
    path: str
    label: str


class Verdict(Wire):
    index: int
    sample_id: str
    path: str
    label: Any
    verdict: Literal["keep", "reform", "quarantine"]
    p_value: float | None = None
    scores: dict[str, float] = {}
    p_values: dict[str, float] = {}  # of each detector alone
    reasons: list[str] = []
    override: dict[str, Any] | None = None  # a person's: verdict, note, by, at


class Uncertainty(Wire):
    entropy: float
    mutual_information: float
    kl: float


class Prediction(Wire):
    """`label` is None where the model abstained; `reason` then says why."""

    label: str | None
    index: int | None
    abstained: bool
    reason: str | None = None
    p_value: float | None = None
    probabilities: list[float] = []
    uncertainty: Uncertainty | None = None


class Predictions(Wire):
    model: str
    predictions: list[Prediction]


class DatasetVersion(Wire):
    """An immutable version of a data set."""

    reference: str
    name: str
    version: int
    num_samples: int
    classes: list[str]
    image_shape: list[int]  # height, width, channels
    num_groups: int | None = None
    parent: str | None = None
    digest: str | None = None


class ModelVersion(Wire):
    """An immutable version of a model, with its card."""

    model: str  # name@version
    name: str
    version: int
    card: dict[str, Any] = {}
    aliases: dict[str, int] = {}


class Alias(Wire):
    """A movable name of a model version."""

    name: str
    alias: str
    version: int
    model: str


class Webhook(Wire):
    """Who is told, of what; `events` empty: all."""

    id: str
    url: str
    events: list[str] = []
    description: str = ""
    created_at: str | None = None
    failing_since: str | None = None
    disabled_at: str | None = None
    disabled_reason: str | None = None


class IssuedWebhook(Webhook):
    """A webhook with its `secret`: this once."""

    secret: str


class Delivery(Wire):
    """A message, and what became of it; `payload` is the body as it is signed."""

    id: str
    webhook_id: str
    event: str
    state: str
    attempts: int
    created_at: str
    next_at: str | None = None
    log: list[dict[str, Any]] = []
    payload: str = ""


class ResumableUpload(Wire):
    """An upload under way, or what became of it."""

    id: str
    state: str
    length: int
    received: int
    metadata: dict[str, str]
    job_id: str | None = None


class Health(Wire):
    """`missing`: what the service needs and does not reach, each with the reason."""

    status: str
    missing: dict[str, str] = {}

    @property
    def ok(self) -> bool:
        return not self.missing


class Key(Wire):
    """An API key without its text."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: str | None = None
    expires_at: str | None = None
    last_used_at: str | None = None
    revoked_at: str | None = None


class IssuedKey(Key):
    """A key with its text, `secret`: this once."""

    secret: str


class AuditEntry(Wire):
    """One change: who made it, to what. `details` is JSON as it was hashed."""

    seq: int
    at: str
    actor_id: str
    actor: str
    action: str
    subject: str
    request_id: str | None = None
    details: str = "{}"
    hash: str = ""


class Verification(Wire):
    """Of the audit log. `head` is SEQ:HASH of its last sound entry."""

    intact: bool
    entries: int
    head: str
    fault: str | None = None
