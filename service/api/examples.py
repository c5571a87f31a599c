"""Examples for the OpenAPI document."""

from __future__ import annotations

from typing import Any

JOB_ID = "01a1fe2153ab792ce99fd23df2d881ab"
DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
AT = "2026-03-01T12:00:00Z"

JOB: dict[str, Any] = {
    "id": JOB_ID,
    "type": "sanitise",
    "state": "running",
    "inputs": {"dataset": "signs@1", "reference": "trusted@1"},
    "params": {"false_quarantine_rate": 0.01},
    "progress": {"done": 3, "total": 12, "unit": "shards", "phase": "score", "fraction": 0.41},
    "eta_seconds": 18.2,
    "attempt": 1,
    "created_at": AT,
    "started_at": AT,
    "finished_at": None,
    "result": None,
    "error": None,
    "steps": None,
}
DATASET: dict[str, Any] = {
    "reference": "signs@1",
    "name": "signs",
    "version": 1,
    "digest": DIGEST,
    "num_samples": 2,
    "classes": ["stop", "yield"],
    "class_counts": [1, 1],
    "image_shape": [32, 32, 3],
    "num_groups": None,
    "source_format": "zip",
    "parent": None,
    "job_id": JOB_ID,
    "created_at": AT,
    "deleted_at": None,
}
SAMPLE = {"index": 0, "sample_id": DIGEST, "path": "stop/0001.png", "label": "stop", "width": 48, "height": 50}
OVERRIDE = {"verdict": "keep", "note": "a real sign", "by": "reviewer", "at": AT}
VERDICT: dict[str, Any] = {
    "index": 0,
    "sample_id": DIGEST,
    "path": "stop/0001.png",
    "label": "stop",
    "verdict": "quarantine",
    "p_value": 0.004,
    "scores": {"residual": 1.9, "label_loss": 7.2},
    "p_values": {"residual": 0.21, "label_loss": 0.001},
    "reasons": ["label_loss"],
    "override": OVERRIDE,
}
EVENT = {"id": 41, "at": AT, "state": "running", "attempt": 1, "message": "claimed by worker-1"}
WEBHOOK: dict[str, Any] = {
    "id": "wh_01a1fe2153ab0011aabb",
    "url": "https://ci.example/winnow",
    "events": ["job.succeeded", "job.failed"],
    "description": "tells the build",
    "created_at": AT,
    "old_until": None,
    "failing_since": None,
    "disabled_at": None,
    "disabled_reason": None,
}
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
DELIVERY: dict[str, Any] = {
    "id": "msg_01a1fe2153ab9f3c2e7d4b5a",
    "webhook_id": WEBHOOK["id"],
    "event": "job.succeeded",
    "state": "delivered",
    "attempts": 1,
    "next_at": None,
    "created_at": AT,
    "log": [{"attempt": 1, "at": AT, "status": 204, "error": None, "took_ms": 31}],
    "payload": '{"type":"job.succeeded","timestamp":"2026-03-01T12:00:00+00:00","data":{}}',
}


def _page(item: Any) -> dict[str, Any]:
    return {"items": [item], "next_cursor": None}


ANSWERS: dict[str, Any] = {
    "POST /v1/datasets/{name}/versions": {**JOB, "type": "ingest", "state": "queued", "inputs": {"name": "signs"}},
    "GET /v1/datasets": _page(DATASET),
    "GET /v1/datasets/{reference}": DATASET,
    "GET /v1/datasets/{reference}/samples": _page(SAMPLE),
    "POST /v1/jobs": {**JOB, "state": "queued", "attempt": 0},
    "GET /v1/jobs": _page(JOB),
    "GET /v1/jobs/{job_id}": JOB,
    "GET /v1/jobs/{job_id}/events": _page(EVENT),
    "POST /v1/jobs/{job_id}/cancel": {**JOB, "state": "cancelling"},
    "POST /v1/jobs/{job_id}/retry": {**JOB, "state": "queued"},
    "GET /v1/jobs/{job_id}/verdicts": _page(VERDICT),
    "PUT /v1/jobs/{job_id}/verdicts": {"decided": 17, "job": JOB_ID},
    "GET /v1/jobs/{job_id}/verdicts/{index}": {**VERDICT, "history": [OVERRIDE]},
    "PUT /v1/jobs/{job_id}/verdicts/{index}": VERDICT,
    "DELETE /v1/jobs/{job_id}/verdicts/{index}": {**VERDICT, "override": None},
    "POST /v1/webhooks": {**WEBHOOK, "secret": SECRET},
    "GET /v1/webhooks": _page(WEBHOOK),
    "GET /v1/webhooks/{webhook_id}": WEBHOOK,
    "PATCH /v1/webhooks/{webhook_id}": WEBHOOK,
    "POST /v1/webhooks/{webhook_id}/rotate": {**WEBHOOK, "secret": SECRET},
    "POST /v1/webhooks/{webhook_id}/test": {**DELIVERY, "state": "pending"},
    "GET /v1/webhooks/{webhook_id}/deliveries": _page(DELIVERY),
    "POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/retry": {**DELIVERY, "state": "pending"},
}
PARAMETERS: dict[str, Any] = {  # by name, or by the part of the API and name
    "datasets.reference": "signs@1",
    "models.reference": "signs-student",
    "job_id": JOB_ID,
    "name": "signs",
    "webhook_id": WEBHOOK["id"],
    "delivery_id": DELIVERY["id"],
    "index": 0,
}
