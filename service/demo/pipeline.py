"""What the demo asks of the service: three uploads, one harden job, predictions, reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.client import Job, Prediction, Verdict, WinnowClient
from service.demo.material import Material
from service.errors import WinnowError

MODEL = "digits-student"
ALPHAS = (0.01, 0.05)  # shares of clean images that may be refused, asked for in turn
KINDS = ("clean", "attacked", "foreign")
# The defaults are made for larger and harder sets; on digits a part of the work shows the same.
HARDEN_PARAMS: dict[str, Any] = {
    "sanitise": {
        "filter": {"width": 16, "fit": {"epochs": 3}},
        "perturbation": {"surrogates": 1, "surrogate_epochs": 3},
        "panel": {"rounds": 2, "steps": 40, "final_steps": 60},
    },
    "distill": {"fit": {"epochs": 4}},
    "evaluate": {
        "max_images": 100,
        "pgd_steps": 10,
        "eps_curve": [0.01, 0.04],
        "costly_images": 12,
        "queries": 30,
        "adaptive_steps": 10,
        "adaptive_restarts": 1,
    },
}

OnProgress = Callable[[Job], None]


class JobFailed(WinnowError):
    code = "demo_job_failed"

    def __init__(self, job: Job) -> None:
        super().__init__(f"The {job.type} job {job.id} is {job.state}: {job.trouble or 'no reason was given'}")


@dataclass(frozen=True)
class Answers:
    """All that the service said."""

    harden: Job
    verdicts: Sequence[Verdict]
    model_card: Mapping[str, Any]
    predictions: Mapping[float, Mapping[str, Sequence[Prediction]]]  # by α, then by kind of image


def run_pipeline(client: WinnowClient, material: Material, on_progress: OnProgress) -> Answers:
    """Raises JobFailed where a job does not succeed."""
    uploads = {"trusted": material.trusted, "digits": material.candidate, "digits-test": material.test}
    jobs = {name: client.upload_dataset(name, path) for name, path in uploads.items()}
    versions = {name: _succeed(client, job, on_progress)["dataset"] for name, job in jobs.items()}
    harden = client.submit(
        "harden",
        dataset=versions["digits"],
        reference=versions["trusted"],
        evaluate_on=versions["digits-test"],
        model=MODEL,
        params=HARDEN_PARAMS,
    )
    result = _succeed(client, harden, on_progress)
    return Answers(
        harden=client.job(harden.id),
        verdicts=list(client.verdicts(harden.id)),
        model_card=client.model(result["model"]).card,
        predictions={alpha: _ask(client, result["model"], material, alpha) for alpha in ALPHAS},
    )


def _ask(client: WinnowClient, model: str, material: Material, alpha: float) -> Mapping[str, Sequence[Prediction]]:
    return {kind: client.predict(model, material.images(kind), alpha=alpha).predictions for kind in KINDS}


def save_reports(client: WinnowClient, harden: Job, folder: Path) -> list[Path]:
    """The reports of the steps that write one, as pages and as numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    saved: list[Path] = []
    for step in ("sanitise", "evaluate"):
        job_id = (harden.result or {})["jobs"][step]
        for extension in ("html", "json"):
            path = folder / f"{step}.{extension}"
            path.write_bytes(client.report(job_id, extension))
            saved.append(path)
    return saved


def _succeed(client: WinnowClient, job: Job, on_progress: OnProgress) -> dict[str, Any]:
    ended = client.wait(job.id, on_progress=on_progress)
    if not ended.succeeded or ended.result is None:
        raise JobFailed(ended)
    return ended.result
