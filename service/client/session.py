"""The client itself: one method a call of the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal

from service.client import following
from service.client.access import Audit, Keys
from service.client.answers import json_object, parse
from service.client.bundles import Bundles
from service.client.connection import Connection
from service.client.inference import Inference
from service.client.pieces import bytes_left, pieces
from service.client.production import Captures, Drift
from service.client.records import (
    Alias,
    DatasetVersion,
    Health,
    Job,
    JobEvent,
    ModelVersion,
    Predictions,
    Sample,
    Verdict,
)
from service.client.resumable import send
from service.client.tenants import Tenants
from service.client.uploads import Uploads
from service.client.webhooks import Webhooks

FILES_PER_REQUEST = 64
RESUMABLE_BYTES = 64 * 1024 * 1024

Source = str | PathLike[str] | BinaryIO


class WinnowClient(Connection):
    """A connection to one Winnow service. Use it as a context manager, or `close` it."""

    def __init__(self, url: str, key: str, *, timeout_s: float = 60.0) -> None:
        super().__init__(url, key, timeout_s=timeout_s)
        self.keys, self.audit, self.tenants = Keys(self), Audit(self), Tenants(self)
        self.uploads, self.webhooks, self.bundles = Uploads(self), Webhooks(self), Bundles(self)
        self.drift, self.captures, self.inference = Drift(self), Captures(self), Inference(self)

    # Datasets

    def upload_dataset(
        self,
        name: str,
        source: Source,
        params: Mapping[str, Any] | None = None,
        *,
        resumable: bool | None = None,
        on_sent: Callable[[int, int], None] | None = None,
    ) -> Job:
        """Upload a data set from a file, piece by piece; gives its ingest job.

        params: `size`, `channels`, `max_rejected_share`, `split`. on_sent: called with (bytes sent, bytes in all).
        resumable: go on where a connection broke, and where an earlier call for the same file ended; without it, for
        files of 64 MiB and more. The file must be one that can be sought in.
        """
        query = {key: value for key, value in (params or {}).items() if value is not None}
        with ExitStack() as stack:
            file = stack.enter_context(Path(source).open("rb")) if isinstance(source, str | PathLike) else source
            total = bytes_left(file)
            if total >= RESUMABLE_BYTES if resumable is None else resumable:
                return self.job(send(self, name, file, query, on_sent))
            answer = self._send(
                "POST",
                f"/v1/datasets/{name}/versions",
                params=query,
                content=pieces(file, total, on_sent),
                headers={"Content-Length": str(total), "Content-Type": "application/octet-stream"},
            )
        return parse(answer, Job)

    def dataset(self, reference: str) -> DatasetVersion:
        """One version, such as `signs@1`."""
        return parse(self._send("GET", f"/v1/datasets/{reference}"), DatasetVersion)

    def datasets(self, name: str | None = None) -> Iterator[DatasetVersion]:
        """Every version of that name, or of all."""
        return self._pages("/v1/datasets" if name is None else f"/v1/datasets/{name}", {}, DatasetVersion)

    def delete_dataset(self, reference: str) -> DatasetVersion:
        """Delete a version, such as `signs@1`; its record stays, and its number is not given again."""
        return parse(self._send("DELETE", f"/v1/datasets/{reference}"), DatasetVersion)

    def export(
        self,
        reference: str,
        to: str | PathLike[str],
        format: Literal["imagefolder", "npz", "parquet", "webdataset"] = "imagefolder",
        *,
        originals: bool = True,
        on_received: Callable[[int], None] | None = None,
    ) -> Path:
        """Save a version as one file; `to` holds the whole of it or is not touched.

        originals: False for the pixels at the working resolution instead of the uploaded files.
        on_received: called with the bytes received so far.
        """
        query = {"format": format, "originals": originals}
        return self._saved(f"/v1/datasets/{reference}/export", query, to, on_received)

    def samples(self, reference: str) -> Iterator[Sample]:
        """The manifest of a version, image by image."""
        return self._pages(f"/v1/datasets/{reference}/samples", {}, Sample)

    def sample_image(self, reference: str, index: int) -> bytes:
        """One image as PNG, as training sees it."""
        return self._send("GET", f"/v1/datasets/{reference}/samples/{index}/image").content

    # Jobs

    def submit(
        self,
        type: str,
        *,
        dataset: str | None = None,
        reference: str | None = None,
        model: str | None = None,
        evaluate_on: str | None = None,
        calibrate_on: str | None = None,
        job: str | None = None,
        params: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Start a job. With an `idempotency_key`, sending the same again gives the same job."""
        fields = {
            "dataset": dataset,
            "reference": reference,
            "model": model,
            "evaluate_on": evaluate_on,
            "calibrate_on": calibrate_on,
            "job": job,
        }
        body = {"type": type, **{key: value for key, value in fields.items() if value is not None}}
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return parse(self._send("POST", "/v1/jobs", json={**body, "params": dict(params or {})}, headers=headers), Job)

    def job(self, job_id: str) -> Job:
        return parse(self._send("GET", f"/v1/jobs/{job_id}"), Job)

    def jobs(
        self,
        *,
        state: str | None = None,
        type: str | None = None,
        dataset: str | None = None,
        model: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Iterator[Job]:
        """All jobs of that kind, newest first. Times carry their zone."""
        query = {"state": state, "type": type, "dataset": dataset, "model": model}
        between = {"created_after": created_after, "created_before": created_before}
        return self._pages("/v1/jobs", {**query, **{name: at and at.isoformat() for name, at in between.items()}}, Job)

    def wait(
        self, job_id: str, *, on_progress: Callable[[Job], None] | None = None, timeout_s: float | None = None
    ) -> Job:
        """Poll the job until it has finished; gives it as it ended, failed or not.

        Rides out a gateway that is away for up to half a minute. Raises WaitTimedOut after `timeout_s`.
        """
        return following.wait(self, job_id, on_progress=on_progress, timeout_s=timeout_s)

    def events(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """What happened to the job after the event numbered `after`, then what happens, until it has finished."""
        return following.events(self, job_id, after=after)

    def cancel(self, job_id: str) -> Job:
        return parse(self._send("POST", f"/v1/jobs/{job_id}/cancel"), Job)

    def retry(self, job_id: str) -> Job:
        return parse(self._send("POST", f"/v1/jobs/{job_id}/retry"), Job)

    def verdicts(
        self,
        job_id: str,
        *,
        verdict: str | None = None,
        label: str | None = None,
        overridden: bool | None = None,
        sort: str | None = None,
    ) -> Iterator[Verdict]:
        """Every verdict of a sanitise job, or those of a class, page by page as they are asked for."""
        query = {"verdict": verdict, "label": label, "overridden": overridden, "sort": sort}
        return self._pages(f"/v1/jobs/{job_id}/verdicts", query, Verdict)

    def verdict(self, job_id: str, index: int) -> Verdict:
        """One verdict; its `history` has every decision about it."""
        return parse(self._send("GET", f"/v1/jobs/{job_id}/verdicts/{index}"), Verdict)

    def verdict_table(self, job_id: str, format: Literal["csv", "parquet"] = "csv") -> bytes:
        """All verdicts as one file."""
        accept = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}[format]
        return self._send("GET", f"/v1/jobs/{job_id}/verdicts", headers={"Accept": accept}).content

    def decide_one(self, job_id: str, index: int, verdict: str | None, *, note: str | None = None) -> Verdict:
        """Keep or quarantine one image; None takes the decision back. Gives its verdict as it is now."""
        path = f"/v1/jobs/{job_id}/verdicts/{index}"
        if verdict is None:
            return parse(self._send("DELETE", path), Verdict)
        return parse(self._send("PUT", path, json={"verdict": verdict, "note": note}), Verdict)

    def decide(
        self, job_id: str, verdict: str | None, where: Mapping[str, Any] | Sequence[int], *, note: str | None = None
    ) -> int:
        """Keep or quarantine images, whatever Winnow said of them; None takes earlier decisions back.

        where: indices, or what all holds of them: `verdict`, `reason`, `label`, `p_value_below`, `indices`. Gives how
        many they are.
        """
        meant = dict(where) if isinstance(where, Mapping) else {"indices": list(where)}
        body = {"where": meant, "verdict": verdict, "note": note}
        return int(json_object(self._send("PUT", f"/v1/jobs/{job_id}/verdicts", json=body))["decided"])

    def review(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """Start the job that makes a version of a sanitise job's verdicts and what people decided about them."""
        return self.submit("review", job=job_id, idempotency_key=idempotency_key)

    def report(self, job_id: str, format: Literal["html", "json"] = "html") -> bytes:
        """The report of a job that succeeded."""
        accept = {"html": "text/html", "json": "application/json"}[format]
        return self._send("GET", f"/v1/jobs/{job_id}/report", headers={"Accept": accept}).content

    # Models

    def models(self) -> Iterator[ModelVersion]:
        """Every model, by the version that answers to its bare name."""
        return self._pages("/v1/models", {}, ModelVersion)

    def model(self, reference: str) -> ModelVersion:
        """One version: name@n, name:alias, or name."""
        return parse(self._send("GET", f"/v1/models/{reference}"), ModelVersion)

    def set_alias(self, name: str, alias: str, version: int) -> Alias:
        """Point an alias, such as `champion`, at a version."""
        return parse(self._send("PUT", f"/v1/models/{name}/aliases/{alias}", json={"version": version}), Alias)

    def predict(
        self, model: str, images: Sequence[str | PathLike[str]] | bytes, *, alpha: float | None = None
    ) -> Predictions:
        """Predictions for image files, in order, or for an npz that holds `images` (uint8, n × h × w [× c])."""
        query = {} if alpha is None else {"alpha": alpha}
        path = f"/v1/models/{model}/predict"
        if isinstance(images, bytes):
            headers = {"Content-Type": "application/x-npz"}
            return parse(self._send("POST", path, params=query, content=images, headers=headers), Predictions)
        if not images:
            raise ValueError("predict needs at least one image")
        answers = [
            self._predict_files(path, query, [Path(image) for image in images[start : start + FILES_PER_REQUEST]])
            for start in range(0, len(images), FILES_PER_REQUEST)
        ]
        return answers[0].model_copy(update={"predictions": [p for answer in answers for p in answer.predictions]})

    def _predict_files(self, path: str, query: Mapping[str, Any], images: Sequence[Path]) -> Predictions:
        with ExitStack() as stack:
            files = [
                ("images", (image.name, stack.enter_context(image.open("rb")), "application/octet-stream"))
                for image in images
            ]
            return parse(self._send("POST", path, params=query, files=files), Predictions)

    # The service itself

    def health(self) -> Health:
        """Whether it is up; needs no key."""
        return parse(self._send("GET", "/healthz"), Health)

    def ready(self) -> Health:
        """Whether it has everything that it needs; else `missing` names what it lacks. Needs no key."""
        return parse(self._answered("GET", "/readyz", even=(503,)), Health)

    def metrics(self) -> str:
        """What Prometheus reads."""
        return self._send("GET", "/metrics").text
