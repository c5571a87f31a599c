"""The model card: what a version was made from, how, and how good it is. Lineage down to the digests."""

from __future__ import annotations

import json
from typing import Any

from models.distillation import Distilled
from models.specs import DistillSpec
from service.db import now
from worker.context import Context
from worker.libraries import library_versions
from worker.material import Material


def write(
    context: Context, spec: DistillSpec, material: Material, distilled: Distilled, metrics: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": context.claim.inputs["model"],
        "created_at": now().isoformat(),
        "classes": material.classes,
        "image_shape": list(material.image_shape),
        "lineage": {**material.lineage, "distill_job": context.claim.job_id},
        "spec": spec.model_dump(mode="json"),
        "seed": spec.seed,
        "metrics": metrics,
        "losses": {
            "teacher": distilled.teacher_losses.train_loss,
            "student": distilled.student_losses.train_loss,
        },
        "notes": distilled.notes,
        "seconds": context.progress.close(),
        "libraries": library_versions(),
    }


def to_bytes(card: dict[str, Any]) -> bytes:
    return json.dumps(card, indent=1).encode()
