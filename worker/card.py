"""The model card: what a version was made from, how, and how good it is. Lineage down to the digests."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from models.specs import DistillSpec
from service.db import now
from worker.context import Context

if TYPE_CHECKING:
    from models.distillation import Distilled
    from worker.distill import Material

LIBRARIES = ("torch", "numpy", "onnx", "onnxscript", "pillow", "winnow")


def library_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


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
